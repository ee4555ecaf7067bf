//! Decides what a group of writes changes, before anything is written.
//!
//! Owns the verdict on each transaction: its conditions, the bounds of the store, the revision and
//! the events it makes. A backend opens a [`Draft`] on the [`Image`], passes the writes to it one
//! by one (each sees those before it), makes the resulting [`Changes`] durable as one disk
//! transaction, and applies them to the image. If the disk fails, it drops them, and nothing has
//! happened.
//!
//! [`Draft`] performs no I/O and reads no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::sync::Arc;

use super::image::{Image, batch_bytes, entry_bytes};
use super::{Compare, Conflict, Entry, Event, EventBatch, Key, LeaseId, Op, Revision, StoreError, Ttl, Txn};

/// How large a store may grow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bounds {
    /// The most bytes of keys and values. 256 MiB holds 100,000 resources of 2.5 KiB; the store is
    /// held in memory.
    pub max_bytes: u64,
    /// The most leases.
    pub max_leases: usize,
    /// The most commits kept for watches.
    pub max_history: usize,
    /// The most bytes of commits kept for watches; the newest commit is kept whatever its size.
    pub max_history_bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { max_bytes: 256 << 20, max_leases: 100_000, max_history: 10_000, max_history_bytes: 64 << 20 }
    }
}

/// Writes decided but not yet durable. See the module.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    image: &'a Image,
    bounds: Bounds,
    bytes: u64,
    lease_count: usize,
    changes: Changes,
}

/// What a group of writes changes.
#[derive(Debug)]
pub(crate) struct Changes {
    /// The newest revision afterwards.
    pub(crate) revision: Revision,
    /// The newest forgotten revision afterwards.
    pub(crate) compacted: Revision,
    /// The number of the newest lease afterwards.
    pub(crate) last_lease: u64,
    /// The entries that were written, `None` for deleted.
    pub(crate) entries: BTreeMap<Key, Option<Entry>>,
    /// The leases that were granted, `None` for ended.
    pub(crate) leases: BTreeMap<LeaseId, Option<Ttl>>,
    /// The commits, in order.
    pub(crate) batches: Vec<Arc<EventBatch>>,
    /// Whether the history was compacted on request.
    compaction: bool,
}

impl Changes {
    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.leases.is_empty() && self.batches.is_empty() && !self.compaction
    }

    /// What a backend has watched happen: `batches`, all behind the revision of `image`, and nothing else up to and
    /// including `revision`. The leases of such a backend are its own affair.
    pub(crate) fn watched(
        image: &Image,
        bounds: Bounds,
        revision: Revision,
        batches: Vec<EventBatch>,
    ) -> Self {
        let mut changes = Self::none(image);
        for batch in batches {
            changes.record(&batch.events);
            changes.batches.push(Arc::new(batch));
        }
        changes.revision = changes.revision.max(revision);
        changes.forget(image, bounds);
        changes
    }

    /// History up to and including `compacted` is forgotten, and nothing else changes.
    pub(crate) fn compacted(image: &Image, compacted: Revision) -> Self {
        let none = Self::none(image);
        Self { compacted: none.compacted.max(compacted.min(none.revision)), ..none }
    }

    fn none(image: &Image) -> Self {
        Self {
            revision: image.revision(),
            compacted: image.compacted(),
            last_lease: image.last_lease(),
            entries: BTreeMap::new(),
            leases: BTreeMap::new(),
            batches: Vec::new(),
            compaction: false,
        }
    }

    fn record(&mut self, events: &[Event]) {
        for event in events {
            let after = match event {
                Event::Put(entry) => Some(entry.clone()),
                Event::Delete(_) => None,
            };
            self.entries.insert(event.key().clone(), after);
        }
    }

    /// Marks old history beyond the bounds as forgotten.
    fn forget(&mut self, image: &Image, bounds: Bounds) {
        let drafted = self.batches.iter().map(|batch| batch_bytes(batch)).sum::<u64>();
        let mut bytes = image.history_bytes() + drafted;
        let mut count = image.history().len() + self.batches.len();
        for batch in image.history().chain(&self.batches) {
            let fits = count <= bounds.max_history && bytes <= bounds.max_history_bytes;
            if batch.revision > self.compacted && (fits || count == 1) {
                break;
            }
            count -= 1;
            bytes -= batch_bytes(batch);
            self.compacted = self.compacted.max(batch.revision);
        }
    }
}

impl<'a> Draft<'a> {
    /// Opens a draft on what is durable now.
    pub(crate) fn new(image: &'a Image, bounds: Bounds) -> Self {
        let bytes = image.status().bytes;
        Self { image, bounds, bytes, lease_count: image.leases().len(), changes: Changes::none(image) }
    }

    /// Decides a transaction; returns the revision after it.
    pub(crate) fn txn(&mut self, txn: &Txn) -> Result<Revision, StoreError> {
        for compare in txn.compares() {
            self.check(compare)?;
        }
        let revision = self.changes.revision.next();
        let mut events = Vec::with_capacity(txn.ops().len());
        let (mut grown, mut shrunk) = (0, 0);
        for op in txn.ops() {
            let before = self.entry(op.key());
            shrunk += before.map_or(0, entry_bytes);
            match op {
                Op::Put { key, value, lease } => {
                    if let Some(lease) = lease.filter(|lease| self.lease(*lease).is_none()) {
                        return Err(StoreError::NoLease { lease });
                    }
                    let entry = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: before.map_or(revision, |before| before.create_revision),
                        mod_revision: revision,
                        version: before.map_or(1, |before| before.version + 1),
                        lease: *lease,
                    };
                    grown += entry_bytes(&entry);
                    events.push(Event::Put(entry));
                }
                Op::Delete(key) => events.extend(before.map(|_| Event::Delete(key.clone()))),
            }
        }
        let bytes = self.bytes - shrunk + grown;
        if grown > shrunk && bytes > self.bounds.max_bytes {
            return Err(StoreError::Full { limit_bytes: self.bounds.max_bytes });
        }
        self.bytes = bytes;
        Ok(self.push(events))
    }

    /// Decides the grant of a lease.
    pub(crate) fn grant(&mut self, ttl: Ttl) -> Result<LeaseId, StoreError> {
        if self.lease_count >= self.bounds.max_leases {
            return Err(StoreError::TooManyLeases { limit: self.bounds.max_leases });
        }
        let lease = LeaseId(NonZeroU64::MIN.saturating_add(self.changes.last_lease));
        self.changes.last_lease = lease.0.get();
        self.changes.leases.insert(lease, Some(ttl));
        self.lease_count += 1;
        Ok(lease)
    }

    /// Returns the length of a lease, if it is alive.
    pub(crate) fn lease(&self, lease: LeaseId) -> Option<Ttl> {
        match self.changes.leases.get(&lease) {
            Some(drafted) => *drafted,
            None => self.image.lease(lease),
        }
    }

    /// Ends a lease, revoked or expired; returns the revision after it.
    pub(crate) fn end_lease(&mut self, lease: LeaseId) -> Result<Revision, StoreError> {
        if self.lease(lease).is_none() {
            return Err(StoreError::NoLease { lease });
        }
        let keys = self.lease_keys(lease);
        let shrunk: u64 = keys.iter().filter_map(|key| self.entry(key)).map(entry_bytes).sum();
        self.bytes -= shrunk;
        self.changes.leases.insert(lease, None);
        self.lease_count -= 1;
        Ok(self.push(keys.into_iter().map(Event::Delete).collect()))
    }

    /// Decides a compaction up to and including `revision`.
    pub(crate) fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        if revision > self.changes.revision {
            return Err(StoreError::Ahead { wanted: revision, current: self.changes.revision });
        }
        if revision > self.changes.compacted {
            self.changes.compacted = revision;
            self.changes.compaction = true;
        }
        Ok(())
    }

    /// Closes the draft: old history beyond the bounds is marked as forgotten.
    pub(crate) fn finish(mut self) -> Changes {
        self.changes.forget(self.image, self.bounds);
        self.changes
    }

    fn check(&self, compare: &Compare) -> Result<(), Conflict> {
        let entry = self.entry(compare.key());
        let holds = match compare {
            Compare::Absent(_) => entry.is_none(),
            Compare::Present(_) => entry.is_some(),
            Compare::Unchanged { mod_revision, .. } => {
                entry.is_some_and(|entry| entry.mod_revision == *mod_revision)
            }
            Compare::SameCreation { create_revision, .. } => {
                entry.is_some_and(|entry| entry.create_revision == *create_revision)
            }
        };
        if holds {
            return Ok(());
        }
        Err(Conflict { key: compare.key().clone(), current: entry.map(|entry| entry.mod_revision) })
    }

    fn entry(&self, key: &Key) -> Option<&Entry> {
        match self.changes.entries.get(key) {
            Some(drafted) => drafted.as_ref(),
            None => self.image.get(key),
        }
    }

    fn lease_keys(&self, lease: LeaseId) -> BTreeSet<Key> {
        let durable = self.image.lease_keys(lease).filter(|key| !self.changes.entries.contains_key(*key));
        let drafted = self.changes.entries.values().flatten().filter(|entry| entry.lease == Some(lease));
        durable.cloned().chain(drafted.map(|entry| entry.key.clone())).collect()
    }

    /// Records the events of one commit, if there are any.
    fn push(&mut self, events: Vec<Event>) -> Revision {
        if events.is_empty() {
            return self.changes.revision;
        }
        let revision = self.changes.revision.next();
        self.changes.record(&events);
        self.changes.revision = revision;
        self.changes.batches.push(Arc::new(EventBatch { revision, events }));
        revision
    }
}
