//! What the store holds and reports: [`Revision`], [`Entry`], [`Event`], [`EventBatch`], [`Page`].
//!
//! The words and their meaning are etcd's, so that both backends mean the same by them.

use std::fmt;

use bytes::Bytes;

use super::key::Key;
use super::lease::LeaseId;

/// A point in the history of a store. Every commit that changes a key makes the next one; 0 is the
/// empty store before its first commit.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Revision(pub u64);

impl Revision {
    /// Before the first commit.
    pub const ZERO: Self = Self(0);

    /// Returns the revision of the commit that follows.
    ///
    /// # Panics
    ///
    /// Never in practice: a million commits a second reach the bound in 584,000 years.
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("revisions never reach 2^64"))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

/// One record as it stands. A clone shares key and value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Its name.
    pub key: Key,
    /// Its content, opaque to the store, at most [`super::MAX_VALUE_BYTES`].
    pub value: Bytes,
    /// The commit that created it. It changes when the key is deleted and created again.
    pub create_revision: Revision,
    /// The commit that wrote it last.
    pub mod_revision: Revision,
    /// How often it was written since it was created, from 1.
    pub version: u64,
    /// The lease it dies with.
    pub lease: Option<LeaseId>,
}

/// One change of one key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// The key was created (`version` is 1) or overwritten.
    Put(Entry),
    /// The key was deleted by a caller or with its lease.
    Delete(Key),
}

impl Event {
    /// Returns the key that changed.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete(key) => key,
        }
    }
}

/// Everything one commit changed, in the order of its operations. No key is in it twice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EventBatch {
    /// The commit.
    pub revision: Revision,
    /// The changes; a watch leaves out those of other prefixes, and is never empty.
    pub events: Vec<Event>,
}

/// A part of a listing, in the order of the keys.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Page {
    /// The records, as they stood at `revision`. May be fewer than asked for even if more follow.
    pub entries: Vec<Entry>,
    /// The newest commit that the page has seen.
    pub revision: Revision,
    /// Where the next page starts (`after` of the next call); `None` when this was the last.
    pub next: Option<Key>,
}

/// A whole prefix, read page by page.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listing {
    /// The records in the order of the keys. Each was current when its page was read.
    pub entries: Vec<Entry>,
    /// The revision of the first page. A watch from the commit after it misses nothing; an event
    /// not newer than the entry's `mod_revision` is already contained.
    pub revision: Revision,
}
