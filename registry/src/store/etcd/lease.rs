//! Leases, which etcd keeps: it gives each its full length again when it has a new leader, so that an outage of etcd
//! does not end what it could not hear of (ETCD-04).

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tonic::{Response, Status};
use weft_api::pb::etcd::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
};

use super::super::image::Image;
use super::super::shared::Shared;
use super::super::{LeaseId, Revision, StoreError, Ttl};
use super::caller::SharedCaller;
use super::error::{Failure, Verdict};
use super::link::Session;
use super::mark::random;
use super::space::{Identity, Name, Space, id_of};

/// After how many grants etcd is asked how many leases there are: others grant and end them too.
const COUNT_EVERY: usize = 256;

/// See the module.
pub(super) struct Leases {
    caller: SharedCaller,
    shared: Arc<Shared>,
    space: Space,
    identity: Identity,
    limit: usize,
    /// How many more may be granted before etcd is asked again.
    credit: AtomicUsize,
}

impl Leases {
    pub(super) fn new(
        caller: SharedCaller,
        shared: Arc<Shared>,
        space: Space,
        identity: Identity,
        limit: usize,
    ) -> Self {
        Self { caller, shared, space, identity, limit, credit: AtomicUsize::new(0) }
    }

    /// Starts a lease. Its name is drawn here, so that a repetition cannot start a second one.
    pub(super) async fn grant(&self, ttl: Ttl) -> Result<LeaseId, StoreError> {
        self.take_credit().await?;
        let lease = draw()?;
        // etcd counts whole seconds; a lease may be longer than asked for, and not shorter.
        let seconds = ttl.as_duration().as_secs() + u64::from(ttl.as_duration().subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let request = LeaseGrantRequest { ttl: seconds, id: id_of(lease) };
        let ask = |session: Arc<Session>| async move { session.lease().lease_grant(request).await };
        let deadline = self.caller.deadline();
        let mut lost = false;
        loop {
            let Err(failure) = self.try_once(deadline, &ask).await else { return Ok(lease) };
            match failure.verdict() {
                // Of 2^63 names nobody else drew this one: the first answer was lost.
                Verdict::Refused if lost => return Ok(lease),
                Verdict::Unknown | Verdict::Unserved => lost = true,
                Verdict::Refused
                | Verdict::Compacted
                | Verdict::NoLease
                | Verdict::Full
                | Verdict::Forbidden
                | Verdict::TooLarge => {}
            }
            self.caller.again(deadline, failure).await.map_err(Failure::unwritten)?;
        }
    }

    /// Prolongs a lease; it may be longer than was asked for, because etcd has a least length.
    pub(super) async fn keep_alive(&self, lease: LeaseId) -> Result<Ttl, StoreError> {
        let ask = |session: Arc<Session>| async move { prolong(&session, lease).await.map(Response::new) };
        let answer = self.caller.repeat(self.caller.deadline(), ask).await;
        // Its own answer carries the length that was granted, to which the lease now has been set again.
        let granted = answer.map_err(Failure::unwritten)?.and_then(|seconds| u64::try_from(seconds).ok());
        let granted = granted.filter(|seconds| *seconds > 0).ok_or(StoreError::NoLease { lease })?;
        Ttl::try_from(Duration::from_secs(granted)).map_err(|_| StoreError::NoLease { lease })
    }

    /// Ends a lease. Returns once readers no longer see its keys.
    pub(super) async fn revoke(&self, lease: LeaseId) -> Result<Revision, StoreError> {
        let deadline = self.caller.deadline();
        let request = LeaseTimeToLiveRequest { id: id_of(lease), keys: true };
        let keys = |session: Arc<Session>| async move { session.lease().lease_time_to_live(request).await };
        let held = self.caller.repeat(deadline, keys).await.map_err(|failure| gone(lease, failure))?;
        if held.ttl < 0 && held.keys.is_empty() {
            return Err(StoreError::NoLease { lease });
        }
        let request = LeaseRevokeRequest { id: id_of(lease) };
        let ask = |session: Arc<Session>| async move { session.lease().lease_revoke(request).await };
        let mut lost = false;
        let answer = loop {
            let failure = match self.try_once(deadline, &ask).await {
                Ok(answer) => break Some(answer),
                Err(failure) => failure,
            };
            match failure.verdict() {
                // It was there above, so it was the lost answer that said it is gone.
                Verdict::NoLease if lost => break None,
                Verdict::NoLease => return Err(StoreError::NoLease { lease }),
                Verdict::Unknown | Verdict::Unserved => lost = true,
                Verdict::Refused
                | Verdict::Compacted
                | Verdict::Full
                | Verdict::Forbidden
                | Verdict::TooLarge => {}
            }
            self.caller.again(deadline, failure).await.map_err(Failure::unwritten)?;
        };
        self.gone_for_readers(lease, &held.keys).await?;
        let shown = self.shared.read()?.revision();
        let revision = answer.and_then(|answer| answer.header).map(|header| header.revision);
        // Behind the deletion others may have committed what is none of this mesh's.
        Ok(revision.map_or(shown, |of_etcd| self.identity.revision(of_etcd).min(shown)))
    }

    /// Waits until no key that hung on `lease` is seen any more.
    async fn gone_for_readers(&self, lease: LeaseId, keys: &[Bytes]) -> Result<(), StoreError> {
        let record = |key: &Bytes| match self.space.name(key) {
            Name::Record(key) => Some(key),
            Name::Identity | Name::Slot | Name::Foreign => None,
        };
        let records: Vec<_> = keys.iter().filter_map(record).collect();
        let held = |image: &Image, key| image.get(key).is_some_and(|entry| entry.lease == Some(lease));
        let limit = self.caller.timeouts.write;
        let gone = self.shared.until(|image| !records.iter().any(|key| held(image, key)));
        match tokio::time::timeout(limit, gone).await {
            Ok(gone) => gone,
            Err(_) => Err(StoreError::OutcomeUnknown { source: Failure::TimedOut(limit).source() }),
        }
    }

    async fn try_once<T, F>(&self, deadline: Duration, ask: impl Fn(Arc<Session>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let session = loop {
            match self.caller.link.session().await {
                Ok(session) => break session,
                Err(failure) => self.caller.again(deadline, failure).await?,
            }
        };
        self.caller.once(&session, ask(Arc::clone(&session))).await
    }

    /// Keeps the number of leases within its bound, give or take those that other servers grant meanwhile.
    async fn take_credit(&self) -> Result<(), StoreError> {
        let taken = |credit: usize| credit.checked_sub(1);
        if self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok() {
            return Ok(());
        }
        let ask =
            |session: Arc<Session>| async move { session.lease().lease_leases(LeaseLeasesRequest {}).await };
        let there = self.caller.repeat(self.caller.deadline(), ask).await.map_err(Failure::unwritten)?;
        let left = self.limit.saturating_sub(there.leases.len()).min(COUNT_EVERY);
        let Some(left) = left.checked_sub(1) else {
            return Err(StoreError::TooManyLeases { limit: self.limit });
        };
        self.credit.store(left, Ordering::Relaxed);
        Ok(())
    }
}

/// Sends one sign of life; returns the length that the lease now has, 0 if there is none.
async fn prolong(session: &Session, lease: LeaseId) -> Result<Option<i64>, Status> {
    let request = LeaseKeepAliveRequest { id: id_of(lease) };
    let mut answers = session.lease().lease_keep_alive(stream::iter([request])).await?.into_inner();
    Ok(answers.message().await?.map(|answer| answer.ttl))
}

fn gone(lease: LeaseId, failure: Failure) -> StoreError {
    if failure.verdict() == Verdict::NoLease { StoreError::NoLease { lease } } else { failure.unwritten() }
}

/// A name that no lease has had: 63 random bits.
fn draw() -> Result<LeaseId, StoreError> {
    let random = random().map_err(|error| StoreError::Unavailable { source: Arc::new(error) })?;
    let positive = u64::try_from(random >> 65).unwrap_or(0);
    Ok(LeaseId(NonZeroU64::new(positive).unwrap_or(NonZeroU64::MIN)))
}
