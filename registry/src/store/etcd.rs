//! The store of servers that share an etcd cluster: everything in etcd, and an image of it in memory.
//!
//! ```text
//! get, list, watch ─────────────────▶ image (memory) ◀── follower ◀── one watch ─┐
//! commit ─▶ slot ─▶ transaction ─────────────────────────────────────────────▶ etcd
//!    └ returns when the image shows it                        leases ────────────┘
//! ```
//!
//! Owns opening, and the reading side's bounds. `link` is the connection to one of the members, `caller` one call on it;
//! `space` says where records stand and how revisions count; `writes` and `slots` make transactions and find out what
//! became of those whose answer was lost; `contact` when etcd was last heard of; `follower`, `batches` and `listing` keep the image in step; `lease` is etcd's
//! leases; `mark` is what this server knows of its store, kept outside it.
//!
//! What other servers commit is read a watch later, a few milliseconds; conditions are checked by etcd. A revision is one
//! of etcd, so between two commits of this mesh others may lie.

mod batches;
mod caller;
mod contact;
mod error;
mod follower;
mod lease;
mod link;
mod listing;
mod mark;
mod open;
mod settings;
mod slots;
mod space;
mod tls;
mod wire;
mod writes;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use weft_api::pb::etcd::CompactionRequest;

use self::caller::SharedCaller;
use self::error::Verdict;
pub use self::error::{Failure, Found, OpenError};
use self::lease::Leases;
use self::link::Session;
pub use self::link::{Endpoint, InvalidEndpoint, User};
use self::mark::Mark;
pub use self::settings::{Settings, Timeouts};
use self::space::Identity;
pub use self::tls::{TlsError, TlsFiles};
use self::writes::Writes;
use super::draft::Changes;
use super::metrics::StoreMetrics;
use super::shared::Shared;
use super::{Entry, Key, LeaseId, Page, Prefix, Revision, Status, Store, StoreError, Ttl, Txn, Watch};

/// The most bytes of transactions under way, counted in KiB; further ones wait.
const UNDER_WAY_KIB: usize = 64 * 1024;

/// A [`Store`] in etcd. See the module.
pub struct EtcdStore {
    caller: SharedCaller,
    shared: Arc<Shared>,
    identity: Identity,
    cluster: u64,
    mark: Arc<Mutex<Mark>>,
    writes: Writes,
    leases: Leases,
    room: Semaphore,
    metrics: Arc<StoreMetrics>,
    follower: tokio::sync::Mutex<JoinSet<()>>,
}

impl EtcdStore {
    /// Stops following etcd: watches end, reads go on, and every later write fails with [`StoreError::Closed`].
    pub async fn close(&self) {
        self.caller.closed.cancel();
        while self.follower.lock().await.join_next().await.is_some() {}
        self.note();
    }

    /// The cluster that holds the store, as etcd names it.
    pub fn cluster(&self) -> u64 {
        self.cluster
    }

    /// Notes in the state directory where the store is.
    fn note(&self) {
        let Ok(revision) = self.shared.read().map(|image| image.revision()) else { return };
        let mut mark = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = mark.note(self.cluster, &self.identity, revision) {
            tracing::error!(%error, "what is known of the store cannot be noted");
        }
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if let Some(why) = self.shared.ended() {
            return Err(why.clone());
        }
        if self.caller.closed.is_cancelled() { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// Waits until the image has reached `revision`, if etcd has: another server may have shown it already.
    async fn catch_up(&self, revision: Revision) {
        let key = self.writes.space.identity();
        let ask = |session: Arc<Session>| {
            let range = wire::bare(key.clone());
            async move { session.kv().range(range).await }
        };
        let deadline = self.caller.clock.uptime().saturating_add(self.caller.timeouts.answer);
        let Ok(answer) = self.caller.repeat(deadline, ask).await else { return };
        let current = answer.header.map_or(0, |header| header.revision);
        if self.identity.revision(current) >= revision {
            let _ = tokio::time::timeout(self.caller.timeouts.answer, self.shared.reach(revision)).await;
        }
    }

    async fn compact_to(&self, revision: Revision) -> Result<(), StoreError> {
        self.check_open()?;
        let status = self.shared.read()?.status();
        if revision > status.revision {
            return Err(StoreError::Ahead { wanted: revision, current: status.revision });
        }
        if revision < status.oldest {
            return Ok(());
        }
        let request = CompactionRequest { revision: self.identity.of_etcd(revision) };
        let ask = |session: Arc<Session>| async move { session.kv().compact(request).await };
        match self.caller.repeat(self.caller.deadline(), ask).await {
            Ok(_) => {}
            // Another server was faster, or the first answer was lost.
            Err(failure) if failure.verdict() == Verdict::Compacted => {}
            Err(failure) => return Err(failure.unwritten()),
        }
        let changes = Changes::compacted(&*self.shared.read()?, revision);
        self.shared.apply(changes);
        Ok(())
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.caller.closed.cancel();
        self.note();
    }
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdStore").field("id", &self.identity.id).finish_non_exhaustive()
    }
}

impl Store for EtcdStore {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        async move { Ok(self.shared.read()?.get(key).cloned()) }.boxed()
    }

    fn list<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        async move { self.shared.page(prefix, after, limit) }.boxed()
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, StoreError>> {
        async move {
            self.check_open()?;
            let _waiting = self.metrics.wait();
            let weight = u32::try_from(1 + txn.bytes() / 1024).unwrap_or(u32::MAX);
            let _room = self.room.acquire_many(weight).await.map_err(|_| StoreError::Closed)?;
            self.writes.commit(&txn).await
        }
        .boxed()
    }

    fn watch(&self, prefix: Prefix, from: Revision) -> BoxFuture<'_, Result<Watch, StoreError>> {
        async move {
            self.check_open()?;
            let known = self.shared.read()?.revision();
            if from > known.next() {
                self.catch_up(Revision(from.0 - 1)).await;
            }
            self.shared.watch(prefix, from, self.metrics.watcher())
        }
        .boxed()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.compact_to(revision).boxed()
    }

    fn grant(&self, ttl: Ttl) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        async move {
            self.check_open()?;
            self.leases.grant(ttl).await
        }
        .boxed()
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Ttl, StoreError>> {
        async move {
            self.check_open()?;
            self.leases.keep_alive(lease).await
        }
        .boxed()
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        async move {
            self.check_open()?;
            self.leases.revoke(lease).await
        }
        .boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<Status, StoreError>> {
        async move { Ok(self.shared.read()?.status()) }.boxed()
    }

    fn stale_for(&self) -> Option<Duration> {
        self.caller.contact.stale_for(self.caller.clock.uptime())
    }
}
