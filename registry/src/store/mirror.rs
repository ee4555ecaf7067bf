//! Follows a prefix without ever losing a change: list, watch, and list again when the watch ends.
//!
//! Owns what a service needs to keep a view of the registry: the first batch holds everything
//! there is, each later one what changed. When the history is compacted under it, it lists again
//! and reports the *difference* (a deletion in the gap is reported like any other), so its user
//! knows neither pages nor compaction (ETCD-01). It also drops what a backend delivers twice or
//! late (ETCD-02).
//!
//! Invariant: for each key, the revisions of the reported events only grow.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Event, EventBatch, Key, Listing, Prefix, Revision, Store, StoreError, Watch};

/// See the module.
pub struct Mirror {
    store: Arc<dyn Store>,
    prefix: Prefix,
    known: BTreeMap<Key, Revision>,
    revision: Revision,
    place: Place,
}

/// Where the mirror is in the history.
enum Place {
    /// Nothing was reported yet.
    Start,
    /// Behind the last reported batch.
    At(Watch),
    /// The watch ended; what was reported stays reported.
    Lost,
}

impl Mirror {
    /// Returns a mirror of `prefix` that has seen nothing yet.
    pub fn new(store: Arc<dyn Store>, prefix: Prefix) -> Self {
        Self { store, prefix, known: BTreeMap::new(), revision: Revision::ZERO, place: Place::Start }
    }

    /// Returns the revision up to which everything has been reported.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Waits for the next changes; the first call returns at once with everything there is, even
    /// if that is nothing. Later batches are never empty.
    ///
    /// A batch made of a listing may hold the changes of many commits; its revision is that of the
    /// listing. Cancel-safe: what was not returned is reported by the next call.
    ///
    /// # Errors
    ///
    /// [`StoreError::Ahead`] if the store is older than what was reported: it was replaced, and
    /// the caller must not go on as if nothing had happened (ETCD-07). [`StoreError::Closed`], and
    /// [`StoreError::Unavailable`] if the backend is lost: the next call tries again.
    pub async fn next(&mut self) -> Result<EventBatch, StoreError> {
        loop {
            let first = matches!(self.place, Place::Start);
            let Place::At(watch) = &mut self.place else {
                let batch = self.list().await?;
                if first || !batch.events.is_empty() {
                    return Ok(batch);
                }
                continue;
            };
            match watch.next().await {
                Ok(batch) => {
                    let batch = self.accept(batch);
                    if !batch.events.is_empty() {
                        return Ok(batch);
                    }
                }
                Err(StoreError::Compacted { .. }) => self.place = Place::Lost,
                Err(error) => {
                    self.place = Place::Lost;
                    return Err(error);
                }
            }
        }
    }

    /// Lists, opens the watch behind the listing, and returns the difference to what is known.
    async fn list(&mut self) -> Result<EventBatch, StoreError> {
        let listing = self.store.list_all(&self.prefix).await?;
        if listing.revision < self.revision {
            return Err(StoreError::Ahead { wanted: self.revision, current: listing.revision });
        }
        let watch = self.store.watch(self.prefix.clone(), listing.revision.next()).await;
        // No await from here on: the difference is reported or, if dropped before, made again.
        self.place = match watch {
            Ok(watch) => Place::At(watch),
            // Compacted between the two calls: what was listed holds, the next round lists again.
            Err(StoreError::Compacted { .. }) => Place::Lost,
            Err(error) => return Err(error),
        };
        Ok(self.difference(listing))
    }

    fn difference(&mut self, listing: Listing) -> EventBatch {
        let Listing { entries, revision } = listing;
        let mut gone = std::mem::take(&mut self.known);
        let mut events = Vec::new();
        for entry in entries {
            if gone.remove(&entry.key).is_none_or(|known| known < entry.mod_revision) {
                self.known.insert(entry.key.clone(), entry.mod_revision);
                events.push(Event::Put(entry));
            } else {
                self.known.insert(entry.key, entry.mod_revision);
            }
        }
        events.extend(gone.into_keys().map(Event::Delete));
        self.revision = revision;
        EventBatch { revision, events }
    }

    /// Takes from a batch what is news.
    fn accept(&mut self, batch: EventBatch) -> EventBatch {
        let EventBatch { revision, mut events } = batch;
        if revision <= self.revision {
            events.clear();
        }
        events.retain(|event| match event {
            Event::Put(entry) => {
                let known = self.known.get(&entry.key);
                let news = known.is_none_or(|known| *known < entry.mod_revision);
                if news {
                    self.known.insert(entry.key.clone(), entry.mod_revision);
                }
                news
            }
            Event::Delete(key) => {
                let news = self.known.get(key).is_some_and(|known| *known < revision);
                if news {
                    self.known.remove(key);
                }
                news
            }
        });
        self.revision = self.revision.max(revision);
        EventBatch { revision, events }
    }
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = formatter.debug_struct("Mirror");
        text.field("prefix", &self.prefix).field("revision", &self.revision).finish_non_exhaustive()
    }
}
