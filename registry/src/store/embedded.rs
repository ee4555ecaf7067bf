//! The store of a server that needs no etcd: redb on the local disk, everything in memory besides.
//!
//! ```text
//! get, list, watch ─────────────────▶ image (memory) ◀─ apply ─┐
//! commit, grant, … ─▶ bounded queue ─▶ writer thread ─ draft ─▶ disk (redb, fsync)
//! ```
//!
//! Owns opening, the bounded queue to the writer, and the reading side. `writer` groups what has
//! queued up into one disk transaction; `disk` makes it durable; `rows` is the format; `files` is
//! the directory and its lock; `alarm` wakes the writer when a lease ends.
//!
//! Invariant: the image is never ahead of the disk. A reader sees only what a crash cannot undo.

mod alarm;
mod disk;
mod files;
mod rows;
mod writer;

#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

pub use super::draft::Bounds;
use super::image::Image;
use super::metrics::StoreMetrics;
use super::shared::Shared;
use super::{Entry, Key, LeaseId, Page, Prefix, Revision, Status, Store, StoreError, Ttl, Txn, Watch};
use crate::clock::Clock;
use disk::Disk;
pub(super) use files::Files;
pub use files::OpenError;
use writer::{Request, Writer};

/// The most writes that wait for the writer thread; further ones wait at the door. Ten times the
/// largest group of one disk transaction.
const QUEUE: usize = 2560;

/// The most bytes of writes that wait, counted in KiB.
const QUEUE_KIB: usize = 64 * 1024;

/// Where and how large.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory of the store; created with mode 0700.
    pub directory: PathBuf,
    /// How large it may grow.
    pub bounds: Bounds,
}

/// A [`Store`] on the local disk. See the module.
///
/// Dropping it finishes the writes that are queued and waits for the disk, a few milliseconds.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    requests: Option<mpsc::Sender<Request>>,
    room: Arc<Semaphore>,
    metrics: Arc<StoreMetrics>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Dropped with the store, which ends the alarm.
    _alarm: JoinSet<()>,
}

impl EmbeddedStore {
    /// Opens the store in `settings.directory`, or creates it there.
    ///
    /// Runs the alarm of leases on the current tokio runtime and the writer on a thread of its own.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: in use by another process, written by a newer version, damaged, or the disk
    /// fails.
    pub async fn open(
        settings: Settings,
        clock: Clock,
        metrics: Arc<StoreMetrics>,
    ) -> Result<Self, OpenError> {
        let files = Files::new(settings.directory.clone());
        Self::open_files(files, settings.bounds, clock, metrics).await
    }

    async fn open_files(
        files: Files,
        bounds: Bounds,
        clock: Clock,
        metrics: Arc<StoreMetrics>,
    ) -> Result<Self, OpenError> {
        let opened = tokio::task::spawn_blocking(move || Disk::open(files)).await;
        let (disk, image) = opened.map_err(|_| OpenError::Stopped)??;
        let (progress, seen) = watch::channel(image.revision());
        let (wake, next_end) = watch::channel(None);
        let (requests, queue) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared::new(image, seen));
        let writer = Writer::new(
            Arc::clone(&shared),
            disk,
            bounds,
            clock.clone(),
            writer::Signals { progress, wake },
            Arc::clone(&metrics),
        );
        let mut alarm = JoinSet::new();
        alarm.spawn(alarm::ring(clock, next_end, requests.downgrade()));
        let thread = std::thread::Builder::new().name("weft-store".to_owned());
        let writer = thread.spawn(move || writer.run(queue)).map_err(OpenError::Thread)?;
        Ok(Self {
            shared,
            requests: Some(requests),
            room: Arc::new(Semaphore::new(QUEUE_KIB)),
            metrics,
            writer: Mutex::new(Some(writer)),
            _alarm: alarm,
        })
    }

    /// Finishes the writes that are queued and closes the disk. Watches end, reads go on, and
    /// every later write fails with [`StoreError::Closed`]. Closing twice is allowed.
    pub async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        if let Some(requests) = &self.requests
            && requests.send(Request::Close { reply }).await.is_ok()
        {
            let _ = closed.await;
        }
        self.join();
    }

    /// Waits for the writer thread to end.
    fn join(&self) {
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(_)) = thread.map(JoinHandle::join) {
            tracing::error!("the store's writer stopped by a panic");
        }
    }

    /// Queues a write and waits for its answer. `bytes` is what it holds in the queue.
    async fn ask<T>(
        &self,
        bytes: usize,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
        let weight = u32::try_from(1 + bytes / 1024).unwrap_or(u32::MAX);
        let _room = self.room.acquire_many(weight).await.map_err(|_| StoreError::Closed)?;
        let _waiting = self.metrics.wait();
        let (reply, answer) = oneshot::channel();
        requests.send(request(reply)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.requests = None;
        self.join();
    }
}

impl Store for EmbeddedStore {
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
        self.ask(txn.bytes(), |reply| Request::Commit { txn, reply }).boxed()
    }

    fn watch(&self, prefix: Prefix, from: Revision) -> BoxFuture<'_, Result<Watch, StoreError>> {
        async move { self.shared.watch(prefix, from, self.metrics.watcher()) }.boxed()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.ask(0, move |reply| Request::Compact { revision, reply }).boxed()
    }

    fn grant(&self, ttl: Ttl) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        self.ask(0, move |reply| Request::Grant { ttl, reply }).boxed()
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Ttl, StoreError>> {
        self.ask(0, move |reply| Request::KeepAlive { lease, reply }).boxed()
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.ask(0, move |reply| Request::Revoke { lease, reply }).boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<Status, StoreError>> {
        async move { Ok(self.shared.read()?.status()) }.boxed()
    }
}
