//! The registry's memory: records with revisions, transactions, watches and leases.
//!
//! Owns the contract, [`Store`], and what both sides of it mean by the words; [`embedded`] keeps
//! it with redb on one host, [`etcd`] in an etcd cluster. The words are etcd's: one global [`Revision`] that every commit
//! advances, and for each key its creation, its last change and its version since creation.
//! What a value says, who may write it, and which keys exist belongs to the services above.
//!
//! Promises of every backend, checked by one suite (`conformance`):
//!
//! - A commit is atomic, durable before it is acknowledged, and visible to every later read.
//! - A watch delivers each commit at most once, whole, in order, and skips none without saying so:
//!   one that falls behind the kept history ends with [`StoreError::Compacted`], and the caller
//!   lists again.
//! - A lease ends no earlier than its length after the last keep-alive, and takes its keys with it
//!   in one commit. A restart of the store gives every lease its full length again, so that an
//!   outage of the store does not end what it could not hear of (ETCD-04).
//! - When the disk fails, writes fail, reads go on, and nothing acknowledged is lost.
//! - Reads that go on without the backend say so, and how old they are ([`Store::stale_for`]).

pub mod embedded;
pub mod etcd;
pub mod metrics;
pub mod transfer;

mod draft;
mod error;
mod image;
mod key;
mod lease;
mod mirror;
mod record;
mod shared;
mod txn;

#[cfg(test)]
pub(crate) mod conformance;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, Stream, StreamExt};

pub use error::{Cause, Conflict, StoreError};
pub use key::{InvalidKey, Key, MAX_KEY_BYTES, Prefix};
pub use lease::{InvalidTtl, LeaseId, Ttl};
pub use mirror::Mirror;
pub use record::{Entry, Event, EventBatch, Listing, Page, Revision};
pub use txn::{Compare, Expected, MAX_TXN_BYTES, MAX_TXN_OPS, MAX_VALUE_BYTES, Op, Txn};

/// The most entries of one page (security.md 9.3).
pub const MAX_PAGE_ENTRIES: usize = 500;

/// A durable, revisioned map from keys to values.
///
/// Dropping a future of a *read* has no effect. Dropping one of a *write* does not take the write
/// back: it may still be committed.
pub trait Store: Send + Sync + 'static {
    /// Returns what stands at `key`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Closed`]; [`StoreError::Unavailable`] if the backend cannot be reached.
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, StoreError>>;

    /// Returns up to `limit` entries under `prefix` in the order of their keys, the first behind
    /// `after`, as they stand now.
    ///
    /// Writes between two pages do not disturb the walk: a key that exists throughout is returned
    /// exactly once, one that comes or goes meanwhile at most once.
    ///
    /// # Errors
    ///
    /// [`StoreError::PageLimit`] unless `limit` is 1 to [`MAX_PAGE_ENTRIES`]; else as
    /// [`Self::get`].
    fn list<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Page, StoreError>>;

    /// Applies a transaction and returns its revision, once it is durable.
    ///
    /// A transaction that changes nothing (no operations, or deletions of absent keys) makes no
    /// revision; the current one is returned.
    ///
    /// # Errors
    ///
    /// [`StoreError::Conflict`] with the first condition that does not hold; [`StoreError::Full`]
    /// if the store would grow beyond its bound; [`StoreError::NoLease`]; [`StoreError::Closed`];
    /// [`StoreError::Unavailable`] and [`StoreError::OutcomeUnknown`] when the disk fails.
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// Reports every commit from revision `from` on that touches `prefix`; `from` may be the one
    /// after the current revision, which means "what comes next".
    ///
    /// # Errors
    ///
    /// [`StoreError::Compacted`] if `from` is older than the history; [`StoreError::Ahead`] if it
    /// is beyond the next commit, which means that the store is not the one the caller knew.
    fn watch(&self, prefix: Prefix, from: Revision) -> BoxFuture<'_, Result<Watch, StoreError>>;

    /// Forgets the history up to and including `revision`; the entries themselves stay. Nothing
    /// happens if it is forgotten already.
    ///
    /// # Errors
    ///
    /// [`StoreError::Ahead`] if `revision` is not yet reached; else as [`Self::commit`].
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Starts a lease of length `ttl`.
    ///
    /// # Errors
    ///
    /// [`StoreError::TooManyLeases`]; else as [`Self::commit`].
    fn grant(&self, ttl: Ttl) -> BoxFuture<'_, Result<LeaseId, StoreError>>;

    /// Prolongs a lease to its full length from now, and returns that length.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoLease`] if it has ended: what hung on it must be written again.
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Ttl, StoreError>>;

    /// Ends a lease and deletes its keys in one commit; returns the revision after it.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoLease`]; else as [`Self::commit`].
    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// Returns the newest revision and the oldest that a watch can start from.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    fn status(&self) -> BoxFuture<'_, Result<Status, StoreError>>;

    /// Since when what is read here may be out of date: how long ago the backend was last heard of, if it does not answer
    /// now; `None` while reads are current. A store that is its own backend always is.
    fn stale_for(&self) -> Option<Duration> {
        None
    }

    /// Checks and applies a transaction: all of `ops`, if all of `compares` hold.
    ///
    /// # Errors
    ///
    /// Those of [`Txn::new`] and of [`Self::commit`].
    fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move { self.commit(Txn::new(compares, ops)?).await })
    }

    /// Writes one key, if what is there is as `expected`.
    ///
    /// # Errors
    ///
    /// As [`Self::txn`].
    fn put(
        &self,
        key: Key,
        value: Bytes,
        expected: Expected,
        lease: Option<LeaseId>,
    ) -> BoxFuture<'_, Result<Revision, StoreError>> {
        let compares = expected.compare(&key).into_iter().collect();
        self.txn(compares, vec![Op::Put { key, value, lease }])
    }

    /// Deletes one key, if what is there is as `expected`.
    ///
    /// # Errors
    ///
    /// As [`Self::txn`].
    fn delete(&self, key: Key, expected: Expected) -> BoxFuture<'_, Result<Revision, StoreError>> {
        let compares = expected.compare(&key).into_iter().collect();
        self.txn(compares, vec![Op::Delete(key)])
    }

    /// Reads a whole prefix, page by page.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    fn list_all<'a>(&'a self, prefix: &'a Prefix) -> BoxFuture<'a, Result<Listing, StoreError>> {
        Box::pin(async move {
            let first = self.list(prefix, None, MAX_PAGE_ENTRIES).await?;
            let mut listing = Listing { entries: first.entries, revision: first.revision };
            let mut next = first.next;
            while let Some(after) = next {
                let page = self.list(prefix, Some(&after), MAX_PAGE_ENTRIES).await?;
                listing.entries.extend(page.entries);
                next = page.next;
            }
            Ok(listing)
        })
    }
}

/// Where a store stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Status {
    /// Names this store, for as long as its data live: a store that was wiped has another one.
    pub id: StoreId,
    /// The newest commit.
    pub revision: Revision,
    /// The oldest revision that a watch can start from.
    pub oldest: Revision,
    /// How many keys there are.
    pub entries: usize,
    /// The size of all keys and values together.
    pub bytes: u64,
}

/// Random name of a store, made when it is created (ETCD-07: revisions of two stores are not
/// comparable).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct StoreId(pub u128);

impl std::fmt::Display for StoreId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

/// The commits under one prefix, in order. After an error it ends.
pub struct Watch {
    batches: BoxStream<'static, Result<EventBatch, StoreError>>,
}

impl Watch {
    /// Wraps what a backend delivers, which must keep the promises of this module.
    pub(crate) fn new(batches: impl Stream<Item = Result<EventBatch, StoreError>> + Send + 'static) -> Self {
        // Whoever asks an ended watch again, however often, hears that it has ended.
        Self { batches: batches.fuse().boxed() }
    }

    /// Waits for the next commit that touches the prefix. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`StoreError::Compacted`] if the caller was too slow, [`StoreError::Closed`] if the store
    /// was closed, [`StoreError::Unavailable`] if the backend was lost; [`StoreError::Closed`]
    /// also when called again after an error.
    pub async fn next(&mut self) -> Result<EventBatch, StoreError> {
        self.batches.next().await.unwrap_or(Err(StoreError::Closed))
    }
}

impl Stream for Watch {
    type Item = Result<EventBatch, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.batches.poll_next_unpin(context)
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Watch").finish_non_exhaustive()
    }
}
