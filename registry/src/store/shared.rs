//! What every reader of a store shares: the image, and the news that it changed.
//!
//! Owns reading. Whoever writes the image (the writer of the embedded store, the follower of etcd) applies changes to
//! it in one step and then tells the revision; a watch is a position in its history that waits for that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use futures_util::stream;
use tokio::sync::watch;

use super::draft::Changes;
use super::image::{Image, Step};
use super::metrics::Counted;
use super::{EventBatch, Key, MAX_PAGE_ENTRIES, Page, Prefix, Revision, StoreError, Watch};

/// See the module.
pub(crate) struct Shared {
    image: RwLock<Image>,
    /// Told the revision after every change; closed when whoever writes ends.
    progress: watch::Receiver<Revision>,
    /// How often the image was replaced by another one. Watches of an earlier one may have missed something.
    replaced: AtomicU64,
    /// Why it ended, if not because the store was closed.
    end: OnceLock<StoreError>,
}

impl Shared {
    pub(crate) fn new(image: Image, progress: watch::Receiver<Revision>) -> Self {
        Self { image: RwLock::new(image), progress, replaced: AtomicU64::new(0), end: OnceLock::new() }
    }

    /// The image to read. A writer that panicked left it unfit to be read.
    pub(crate) fn read(&self) -> Result<RwLockReadGuard<'_, Image>, StoreError> {
        self.image.read().map_err(|_| StoreError::Closed)
    }

    /// Changes the image in one step. Nothing happens after a panic of a writer.
    pub(crate) fn apply(&self, changes: Changes) {
        if let Ok(mut image) = self.image.write() {
            image.apply(changes);
        }
    }

    /// Puts another image in the place of this one. Watches are told that something may be missing between the two.
    pub(crate) fn replace(&self, image: Image) {
        let mut current = self.image.write().unwrap_or_else(PoisonError::into_inner);
        *current = image;
        self.replaced.fetch_add(1, Ordering::Release);
    }

    /// Says why no more changes come; to be called before the sender of the progress is dropped.
    pub(crate) fn end(&self, why: StoreError) {
        // The first reason is the one that matters.
        let _ = self.end.set(why);
    }

    /// Why no more changes come, if the store was not just closed.
    pub(crate) fn ended(&self) -> Option<&StoreError> {
        self.end.get()
    }

    /// Waits until the image has reached `revision`. Cancel-safe.
    pub(crate) async fn reach(&self, revision: Revision) -> Result<(), StoreError> {
        let reached = self.progress.clone().wait_for(|seen| *seen >= revision).await.map(drop);
        reached.map_err(|_| self.why())
    }

    /// Waits until what `holds` asks for is true of the image. Cancel-safe.
    pub(crate) async fn until(&self, holds: impl Fn(&Image) -> bool) -> Result<(), StoreError> {
        let mut progress = self.progress.clone();
        loop {
            progress.mark_unchanged();
            if holds(&*self.read()?) {
                return Ok(());
            }
            progress.changed().await.map_err(|_| self.why())?;
        }
    }

    fn why(&self) -> StoreError {
        self.end.get().cloned().unwrap_or(StoreError::Closed)
    }

    pub(crate) fn page(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        if !(1..=MAX_PAGE_ENTRIES).contains(&limit) {
            return Err(StoreError::PageLimit { limit });
        }
        Ok(self.read()?.page(prefix, after, limit))
    }

    pub(crate) fn watch(
        self: &Arc<Self>,
        prefix: Prefix,
        from: Revision,
        counted: Counted,
    ) -> Result<Watch, StoreError> {
        let image = self.read()?;
        image.check_watch(from)?;
        let replaced = self.replaced.load(Ordering::Acquire);
        drop(image);
        let (shared, seen) = (Arc::clone(self), self.progress.clone());
        let position = Position { shared, prefix, next: from, replaced, seen, _watcher: counted };
        Ok(Watch::new(stream::unfold(Some(position), |position| async {
            let mut position = position?;
            let batch = position.next().await;
            let rest = batch.is_ok().then_some(position);
            Some((batch, rest))
        })))
    }
}

/// One watch: a place in the history.
struct Position {
    shared: Arc<Shared>,
    prefix: Prefix,
    next: Revision,
    /// Which image it watches.
    replaced: u64,
    seen: watch::Receiver<Revision>,
    /// Counts this watch for as long as it lives.
    _watcher: Counted,
}

impl Position {
    fn step(&self) -> Result<Step, StoreError> {
        let image = self.shared.read()?;
        if self.shared.replaced.load(Ordering::Acquire) != self.replaced {
            return Ok(Step::Compacted { oldest: image.compacted().next() });
        }
        Ok(image.step(&self.prefix, self.next))
    }

    async fn next(&mut self) -> Result<EventBatch, StoreError> {
        loop {
            let newest = *self.seen.borrow_and_update();
            let step = self.step()?;
            match step {
                Step::Batch(batch) => {
                    self.next = batch.revision.next();
                    return Ok(batch);
                }
                Step::Compacted { oldest } => {
                    return Err(StoreError::Compacted { wanted: self.next, oldest });
                }
                Step::Nothing { next } if next <= newest => {
                    self.next = next;
                    tokio::task::yield_now().await;
                }
                Step::Nothing { next } => {
                    self.next = next;
                    self.seen.changed().await.map_err(|_| self.shared.why())?;
                }
            }
        }
    }
}
