//! The one thread that writes.
//!
//! Owns the order of writes and the ends of leases. It takes what has queued up as one group: each
//! request is decided on its own against those before it ([`Draft`]), all of them become durable
//! with one disk transaction (a *group commit*: the cost of the fsync is shared), then visible,
//! then acknowledged. If the disk fails, the whole group fails, because later verdicts rest on
//! earlier ones.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::super::draft::{Bounds, Changes, Draft};
use super::super::lease::Deadlines;
use super::super::metrics::StoreMetrics;
use super::super::shared::Shared;
use super::super::{LeaseId, Revision, StoreError, Ttl, Txn};
use super::disk::Disk;
use crate::clock::Clock;

/// The most requests of one group: 256 small transactions are written in about the time of one.
const MAX_GROUP: usize = 256;

/// The most bytes of one group: it bounds the memory of a disk transaction and the wait of the
/// first request in it.
const MAX_GROUP_BYTES: usize = 8 << 20;

/// The most leases ended in one group.
const MAX_ENDED: usize = 1024;

/// How long after a failed disk the next attempt is made, at the earliest.
const RETRY: Duration = Duration::from_secs(1);

/// The answer to one request.
type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked to do.
pub(super) enum Request {
    /// Apply a transaction.
    Commit { txn: Txn, reply: Reply<Revision> },
    /// Start a lease.
    Grant { ttl: Ttl, reply: Reply<LeaseId> },
    /// Prolong a lease.
    KeepAlive { lease: LeaseId, reply: Reply<Ttl> },
    /// End a lease.
    Revoke { lease: LeaseId, reply: Reply<Revision> },
    /// Forget history.
    Compact { revision: Revision, reply: Reply<()> },
    /// Look at the clock: a lease has ended.
    LeaseEnded,
    /// Finish.
    Close { reply: oneshot::Sender<()> },
}

/// How the writer tells others.
pub(super) struct Signals {
    /// The newest revision, to watches.
    pub(super) progress: watch::Sender<Revision>,
    /// The uptime at which the writer next has work, to the alarm.
    pub(super) wake: watch::Sender<Option<Duration>>,
}

/// See the module.
pub(super) struct Writer {
    shared: Arc<Shared>,
    disk: Disk,
    bounds: Bounds,
    clock: Clock,
    signals: Signals,
    metrics: Arc<StoreMetrics>,
    deadlines: Deadlines,
    /// After a failed disk: the uptime before which nothing is written, and what failed.
    pause: Option<(Duration, super::super::Cause)>,
}

/// Whether the writer goes on after a group.
enum Next {
    Continue,
    Stop(Option<oneshot::Sender<()>>),
}

/// Requests that become durable together.
struct Group<'a> {
    draft: Draft<'a>,
    verdicts: Verdicts,
    count: usize,
    bytes: usize,
}

/// Verdicts that wait for the disk.
#[derive(Default)]
struct Verdicts {
    waiting: Vec<Answer>,
}

/// Sends a verdict, or the failure of the disk in its place.
type Answer = Box<dyn FnOnce(Option<&StoreError>)>;

impl Verdicts {
    /// Keeps `verdict` until the group is durable. If it never is, the answer is that failure.
    fn push<T: 'static>(&mut self, reply: Reply<T>, verdict: Result<T, StoreError>) {
        self.waiting.push(Box::new(move |failure| {
            // A caller that went away does not hear the answer, which is its own choice.
            let _ = reply.send(failure.cloned().map_or(verdict, Err));
        }));
    }

    fn deliver(self, failure: Option<&StoreError>) {
        self.waiting.into_iter().for_each(|answer| answer(failure));
    }
}

impl Writer {
    /// Returns the writer of `shared`. Every lease starts with its full length.
    pub(super) fn new(
        shared: Arc<Shared>,
        disk: Disk,
        bounds: Bounds,
        clock: Clock,
        signals: Signals,
        metrics: Arc<StoreMetrics>,
    ) -> Self {
        let now = clock.uptime();
        let mut deadlines = Deadlines::default();
        if let Ok(image) = shared.read() {
            image.leases().for_each(|(lease, ttl)| deadlines.renew(lease, ttl, now));
        }
        let writer = Self { shared, disk, bounds, clock, signals, metrics, deadlines, pause: None };
        writer.report();
        writer
    }

    /// Serves the queue until it is closed.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.blocking_recv() {
            match self.group(first, &mut queue) {
                Next::Continue => {}
                Next::Stop(reply) => {
                    drop(self);
                    drop(reply);
                    return;
                }
            }
        }
    }

    /// Decides, writes, shows and answers one group of requests.
    fn group(&mut self, first: Request, queue: &mut mpsc::Receiver<Request>) -> Next {
        let shared = Arc::clone(&self.shared);
        let Ok(image) = shared.read() else { return Next::Stop(None) };
        let mut group = Group {
            draft: Draft::new(&image, self.bounds),
            verdicts: Verdicts::default(),
            count: 0,
            bytes: 0,
        };
        self.end_leases(&mut group.draft);
        let next = self.gather(&mut group, first, queue);
        let Group { draft, verdicts, .. } = group;
        let changes = draft.finish();
        let written = if changes.is_empty() { Ok(()) } else { self.write(&changes, &image) };
        drop(image);
        match &written {
            Ok(()) => self.show(changes),
            Err(error) => tracing::debug!(%error, "a group of writes failed"),
        }
        self.report();
        verdicts.deliver(written.as_ref().err());
        next
    }

    /// Decides `first` and what else has queued up, as far as it fits into one group.
    fn gather(&mut self, group: &mut Group<'_>, first: Request, queue: &mut mpsc::Receiver<Request>) -> Next {
        let mut next = self.decide(group, first);
        while matches!(next, Next::Continue) && group.count < MAX_GROUP && group.bytes < MAX_GROUP_BYTES {
            let Ok(request) = queue.try_recv() else { break };
            next = self.decide(group, request);
        }
        next
    }

    fn decide(&mut self, group: &mut Group<'_>, request: Request) -> Next {
        let Group { draft, verdicts, count, bytes } = group;
        *count += 1;
        match request {
            Request::Commit { txn, reply } => {
                *bytes += txn.bytes();
                verdicts.push(reply, draft.txn(&txn));
            }
            Request::Grant { ttl, reply } => verdicts.push(reply, draft.grant(ttl)),
            Request::KeepAlive { lease, reply } => self.keep_alive(draft, lease, reply, verdicts),
            Request::Revoke { lease, reply } => verdicts.push(reply, draft.end_lease(lease)),
            Request::Compact { revision, reply } => verdicts.push(reply, draft.compact(revision)),
            Request::LeaseEnded => {}
            Request::Close { reply } => return Next::Stop(Some(reply)),
        }
        Next::Continue
    }

    /// Ends the leases whose time is over, unless the disk is known to refuse it.
    fn end_leases(&self, draft: &mut Draft<'_>) {
        let now = self.clock.uptime();
        if self.pause.as_ref().is_some_and(|(until, _)| now < *until) {
            return;
        }
        for lease in self.deadlines.due(now, MAX_ENDED) {
            tracing::debug!(%lease, "lease ended");
            if let Err(error) = draft.end_lease(lease) {
                tracing::error!(%error, "a lease had a deadline but did not exist");
            }
        }
    }

    /// Prolongs a lease at once: that needs no disk, and must work while the disk fails.
    fn keep_alive(&mut self, draft: &Draft<'_>, lease: LeaseId, reply: Reply<Ttl>, verdicts: &mut Verdicts) {
        match draft.lease(lease) {
            Some(ttl) => {
                self.deadlines.renew(lease, ttl, self.clock.uptime());
                let _ = reply.send(Ok(ttl));
            }
            None => verdicts.push(reply, Err(StoreError::NoLease { lease })),
        }
    }

    /// Makes the changes durable, or says why they are not.
    fn write(&mut self, changes: &Changes, image: &super::Image) -> Result<(), StoreError> {
        let now = self.clock.uptime();
        if let Some((until, cause)) = &self.pause
            && now < *until
        {
            return Err(StoreError::Unavailable { source: Arc::clone(cause) });
        }
        match self.disk.write(changes, image) {
            Ok(()) => {
                if self.pause.take().is_some() {
                    tracing::info!("the store can be written again");
                }
                self.metrics.commits.inc();
                self.metrics.commit_duration.observe((self.clock.uptime() - now).as_secs_f64());
                Ok(())
            }
            Err(failure) => {
                self.metrics.commit_failures.inc();
                let error = StoreError::from(failure);
                if let StoreError::Unavailable { source } | StoreError::OutcomeUnknown { source } = &error {
                    tracing::error!(cause = %source, "the store cannot be written; reads go on");
                    self.pause = Some((now.saturating_add(RETRY), Arc::clone(source)));
                }
                Err(error)
            }
        }
    }

    /// Makes durable changes visible to readers and watches, and times their leases.
    fn show(&mut self, changes: Changes) {
        let now = self.clock.uptime();
        for (lease, ttl) in &changes.leases {
            match ttl {
                Some(ttl) => self.deadlines.renew(*lease, *ttl, now),
                None => self.deadlines.remove(*lease),
            }
        }
        let revision = changes.revision;
        self.shared.apply(changes);
        self.signals.progress.send_if_modified(|seen| std::mem::replace(seen, revision) != revision);
    }

    /// Tells the alarm when to wake the writer, and the metrics where the store stands.
    fn report(&self) {
        let next_end = self.deadlines.next();
        let retry = self.pause.as_ref().map(|(until, _)| *until);
        self.signals.wake.send_replace(next_end.max(next_end.and(retry)));
        if let Ok(image) = self.shared.read() {
            let status = image.status();
            self.metrics.revision.set(i64::try_from(status.revision.0).unwrap_or(i64::MAX));
            self.metrics.bytes.set(i64::try_from(status.bytes).unwrap_or(i64::MAX));
        }
    }
}
