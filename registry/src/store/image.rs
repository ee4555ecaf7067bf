//! The whole content of a store in memory: entries, leases, and the history that watches read.
//!
//! Owns what readers see. [`Image`] performs no I/O: a backend drafts changes against it
//! ([`super::draft::Draft`]), makes them durable, and then applies them here in one step. So
//! readers never wait for a disk, and go on reading when it fails.
//!
//! The history doubles as the queue of every watch: a watch is a position in it, and one that
//! falls behind the oldest kept commit is told so. Its bound is therefore the bound of all of them.
//!
//! Invariant: `history` holds every commit after `compacted` that changed a key, in order, up to `revision`. The
//! embedded store gives each commit the next number; in etcd, others' commits lie between.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use super::draft::Changes;
use super::{
    Entry, Event, EventBatch, Key, LeaseId, Page, Prefix, Revision, Status, StoreError, StoreId, Ttl,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Image {
    id: StoreId,
    revision: Revision,
    compacted: Revision,
    last_lease: u64,
    bytes: u64,
    entries: BTreeMap<Key, Entry>,
    leases: BTreeMap<LeaseId, Lease>,
    history: VecDeque<Arc<EventBatch>>,
    history_bytes: u64,
}

#[derive(Debug)]
struct Lease {
    ttl: Ttl,
    keys: BTreeSet<Key>,
}

/// What a backend has read from its disk. [`Image::restore`] checks that it fits together.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) id: StoreId,
    pub(crate) revision: Revision,
    pub(crate) compacted: Revision,
    pub(crate) last_lease: u64,
    pub(crate) entries: Vec<Entry>,
    pub(crate) leases: Vec<(LeaseId, Ttl)>,
    pub(crate) history: Vec<EventBatch>,
}

/// Where a watch finds itself in the history.
#[derive(Debug)]
pub(crate) enum Step {
    /// The next commit that touches its prefix.
    Batch(EventBatch),
    /// Nothing of its prefix before this revision, which is not looked at yet.
    Nothing { next: Revision },
    /// The commit it waits for is forgotten.
    Compacted { oldest: Revision },
}

/// How many commits one [`Image::step`] looks at, so that a watch with a rare prefix does not hold
/// the lock for the whole history.
const MAX_STEP: usize = 1024;

impl Image {
    /// Returns an empty store.
    pub(crate) fn empty(id: StoreId) -> Self {
        Self {
            id,
            revision: Revision::ZERO,
            compacted: Revision::ZERO,
            last_lease: 0,
            bytes: 0,
            entries: BTreeMap::new(),
            leases: BTreeMap::new(),
            history: VecDeque::new(),
            history_bytes: 0,
        }
    }

    /// Rebuilds the image of a saved store, or says what does not fit.
    pub(crate) fn restore(saved: Saved) -> Result<Self, &'static str> {
        let expected =
            saved.revision.0.checked_sub(saved.compacted.0).ok_or("history ends before it starts")?;
        if saved.history.len() as u64 != expected {
            return Err("commits are missing from the history");
        }
        if saved.history.iter().zip(saved.compacted.0 + 1..).any(|(batch, number)| batch.revision.0 != number)
        {
            return Err("commits of the history are out of order");
        }
        if saved.leases.iter().any(|(lease, _)| lease.0.get() > saved.last_lease) {
            return Err("a lease is newer than the newest");
        }
        let leases: BTreeSet<LeaseId> = saved.leases.iter().map(|(lease, _)| *lease).collect();
        for entry in &saved.entries {
            if entry.mod_revision > saved.revision || entry.create_revision > entry.mod_revision {
                return Err("an entry is newer than the store");
            }
            if entry.lease.is_some_and(|lease| !leases.contains(&lease)) {
                return Err("an entry hangs on a lease that does not exist");
            }
        }
        Ok(Self::of(saved))
    }

    /// Builds the image of what a backend vouches for. Leases that it does not list are not followed here.
    pub(crate) fn of(saved: Saved) -> Self {
        let mut image = Self::empty(saved.id);
        image
            .leases
            .extend(saved.leases.into_iter().map(|(id, ttl)| (id, Lease { ttl, keys: BTreeSet::new() })));
        saved.entries.into_iter().for_each(|entry| image.insert(entry));
        image.history_bytes = saved.history.iter().map(batch_bytes).sum();
        image.history = saved.history.into_iter().map(Arc::new).collect();
        (image.revision, image.compacted, image.last_lease) =
            (saved.revision, saved.compacted, saved.last_lease);
        image
    }

    /// Makes durable changes visible. They were drafted against this very image.
    pub(crate) fn apply(&mut self, changes: Changes) {
        for (lease, ttl) in changes.leases {
            match ttl {
                Some(ttl) => drop(self.leases.insert(lease, Lease { ttl, keys: BTreeSet::new() })),
                None => drop(self.leases.remove(&lease)),
            }
        }
        for (key, entry) in changes.entries {
            self.remove(&key);
            if let Some(entry) = entry {
                self.insert(entry);
            }
        }
        for batch in changes.batches {
            self.history_bytes += batch_bytes(&batch);
            self.history.push_back(batch);
        }
        // Two of them may have been made from one image: nothing goes back.
        self.compacted = self.compacted.max(changes.compacted);
        let forgotten = self.history.partition_point(|batch| batch.revision <= self.compacted);
        self.history_bytes -= self.history.drain(..forgotten).map(|batch| batch_bytes(&batch)).sum::<u64>();
        self.revision = self.revision.max(changes.revision);
        self.last_lease = self.last_lease.max(changes.last_lease);
    }

    fn insert(&mut self, entry: Entry) {
        if let Some(lease) = entry.lease.and_then(|lease| self.leases.get_mut(&lease)) {
            lease.keys.insert(entry.key.clone());
        }
        self.bytes += entry_bytes(&entry);
        self.entries.insert(entry.key.clone(), entry);
    }

    fn remove(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else { return };
        if let Some(lease) = entry.lease.and_then(|lease| self.leases.get_mut(&lease)) {
            lease.keys.remove(key);
        }
        self.bytes -= entry_bytes(&entry);
    }

    /// Returns the newest revision.
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// Returns the newest revision that is forgotten.
    pub(crate) fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Returns the number of the newest lease.
    pub(crate) fn last_lease(&self) -> u64 {
        self.last_lease
    }

    /// Returns where the store stands.
    pub(crate) fn status(&self) -> Status {
        Status {
            id: self.id,
            revision: self.revision,
            oldest: self.compacted.next(),
            entries: self.entries.len(),
            bytes: self.bytes,
        }
    }

    /// Returns what stands at `key`.
    pub(crate) fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Returns every entry in the order of the keys.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Returns the page of [`super::Store::list`]; `limit` is checked by the caller.
    pub(crate) fn page(&self, prefix: &Prefix, after: Option<&Key>, limit: usize) -> Page {
        let start = match after.map(Key::as_str) {
            Some(after) if after >= prefix.as_str() => Bound::Excluded(after),
            _ => Bound::Included(prefix.as_str()),
        };
        let mut rest = self
            .entries
            .range::<str, _>((start, Bound::Unbounded))
            .map(|(_, entry)| entry)
            .take_while(|entry| entry.key.is_under(prefix));
        let entries: Vec<Entry> = rest.by_ref().take(limit).cloned().collect();
        let next = rest.next().and_then(|_| entries.last()).map(|entry| entry.key.clone());
        Page { entries, revision: self.revision, next }
    }

    /// Returns the length of a lease.
    pub(crate) fn lease(&self, lease: LeaseId) -> Option<Ttl> {
        self.leases.get(&lease).map(|lease| lease.ttl)
    }

    /// Returns every lease and its length.
    pub(crate) fn leases(&self) -> impl ExactSizeIterator<Item = (LeaseId, Ttl)> {
        self.leases.iter().map(|(id, lease)| (*id, lease.ttl))
    }

    /// Returns the keys that hang on a lease.
    pub(crate) fn lease_keys(&self, lease: LeaseId) -> impl Iterator<Item = &Key> {
        self.leases.get(&lease).into_iter().flat_map(|lease| &lease.keys)
    }

    /// Returns the kept commits, the oldest first.
    pub(crate) fn history(&self) -> impl ExactSizeIterator<Item = &Arc<EventBatch>> {
        self.history.iter()
    }

    /// Returns the size of the kept commits.
    pub(crate) fn history_bytes(&self) -> u64 {
        self.history_bytes
    }

    /// Returns what a watch of `prefix` that has seen everything before `from` sees next.
    pub(crate) fn step(&self, prefix: &Prefix, from: Revision) -> Step {
        if from <= self.compacted {
            return Step::Compacted { oldest: self.compacted.next() };
        }
        let skip = self.history.partition_point(|batch| batch.revision < from);
        for batch in self.history.range(skip..).take(MAX_STEP) {
            let events: Vec<Event> =
                batch.events.iter().filter(|event| event.key().is_under(prefix)).cloned().collect();
            if !events.is_empty() {
                return Step::Batch(EventBatch { revision: batch.revision, events });
            }
        }
        let next =
            self.history.get(skip + MAX_STEP).map_or_else(|| self.revision.next(), |batch| batch.revision);
        Step::Nothing { next: next.max(from) }
    }

    /// Whether a watch may start at `from`.
    pub(crate) fn check_watch(&self, from: Revision) -> Result<(), StoreError> {
        if from <= self.compacted {
            return Err(StoreError::Compacted { wanted: from, oldest: self.compacted.next() });
        }
        if from > self.revision.next() {
            return Err(StoreError::Ahead { wanted: from, current: self.revision });
        }
        Ok(())
    }
}

/// What an entry counts for against the bound of the store.
pub(crate) fn entry_bytes(entry: &Entry) -> u64 {
    (entry.key.as_str().len() + entry.value.len()) as u64
}

/// What a commit counts for against the bound of the history.
pub(crate) fn batch_bytes(batch: &EventBatch) -> u64 {
    let event_bytes = |event: &Event| match event {
        Event::Put(entry) => entry_bytes(entry),
        Event::Delete(key) => key.as_str().len() as u64,
    };
    batch.events.iter().map(event_bytes).sum()
}
