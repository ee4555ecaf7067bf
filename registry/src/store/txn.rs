//! A transaction: what must hold, and what then changes, all or nothing.
//!
//! Owns the shape and the limits. [`Txn::new`] is the only door, so a backend never meets one that
//! is too large or that touches a key twice.

use std::collections::HashSet;

use bytes::Bytes;

use super::error::StoreError;
use super::key::Key;
use super::lease::LeaseId;
use super::record::Revision;
use crate::seal::OVERHEAD_BYTES;

/// The largest value, in bytes (security.md 9.3: registry object).
pub const MAX_VALUE_BYTES: usize = 256 * 1024;

/// The most comparisons, and the most operations, in one transaction: etcd's `--max-txn-ops` of 128 less the one with
/// which the store over etcd learns whether a transaction was applied (ETCD-10).
pub const MAX_TXN_OPS: usize = 127;

/// The largest transaction, in bytes of keys and values together. etcd refuses requests above
/// 1.5 MiB; a transaction that one backend takes must not be refused by the other.
pub const MAX_TXN_BYTES: usize = 1024 * 1024;

/// A condition that must hold when the transaction is applied.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Compare {
    /// The key does not exist: create-only.
    Absent(Key),
    /// The key exists.
    Present(Key),
    /// The key exists and was last written by this commit: compare-and-put.
    Unchanged {
        /// The key.
        key: Key,
        /// Its expected `mod_revision`.
        mod_revision: Revision,
    },
    /// The key exists and was created by this commit: the fence of a lock holder (ETCD-06).
    SameCreation {
        /// The key.
        key: Key,
        /// Its expected `create_revision`.
        create_revision: Revision,
    },
}

impl Compare {
    /// Returns the key it is about.
    pub fn key(&self) -> &Key {
        match self {
            Self::Absent(key)
            | Self::Present(key)
            | Self::Unchanged { key, .. }
            | Self::SameCreation { key, .. } => key,
        }
    }
}

/// A change of one key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Op {
    /// Creates or overwrites the key. It belongs to `lease` from now on, or to none.
    Put {
        /// The key.
        key: Key,
        /// The new value.
        value: Bytes,
        /// The lease it dies with.
        lease: Option<LeaseId>,
    },
    /// Deletes the key. Nothing happens if it does not exist.
    Delete(Key),
}

impl Op {
    /// Returns the key it changes.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete(key) => key,
        }
    }
}

/// The usual condition on the one key that a caller is about to change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expected {
    /// Whatever is there.
    Anything,
    /// Nothing is there.
    Absent,
    /// What this commit wrote is there still.
    Unchanged(Revision),
}

impl Expected {
    /// Returns the comparison for `key`, if there is one to make.
    pub fn compare(self, key: &Key) -> Option<Compare> {
        match self {
            Self::Anything => None,
            Self::Absent => Some(Compare::Absent(key.clone())),
            Self::Unchanged(mod_revision) => Some(Compare::Unchanged { key: key.clone(), mod_revision }),
        }
    }
}

/// A checked transaction.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Txn {
    compares: Vec<Compare>,
    ops: Vec<Op>,
    bytes: usize,
}

impl Txn {
    /// Returns the transaction that applies `ops` if all `compares` hold.
    ///
    /// Without `ops` it only verifies.
    ///
    /// # Errors
    ///
    /// [`StoreError::ValueTooLarge`], [`StoreError::TxnTooLong`] and [`StoreError::TxnTooLarge`]
    /// above the limits of this module; [`StoreError::KeyTwice`] if two operations name one key.
    pub fn new(compares: Vec<Compare>, ops: Vec<Op>) -> Result<Self, StoreError> {
        Self::within(compares, ops, 0)
    }

    /// The same of records that are signed already: what signatures add does not count against the limits of what
    /// records say. It is 16 KiB at most, and etcd has half a MiB of room above [`MAX_TXN_BYTES`].
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub(crate) fn sealed(compares: Vec<Compare>, ops: Vec<Op>) -> Result<Self, StoreError> {
        Self::within(compares, ops, OVERHEAD_BYTES)
    }

    fn within(compares: Vec<Compare>, ops: Vec<Op>, overhead_bytes: usize) -> Result<Self, StoreError> {
        let longest = compares.len().max(ops.len());
        if longest > MAX_TXN_OPS {
            return Err(StoreError::TxnTooLong { ops: longest });
        }
        let mut bytes: usize = compares.iter().map(|compare| compare.key().as_str().len()).sum();
        let mut keys = HashSet::with_capacity(ops.len());
        for op in &ops {
            let value_bytes = match op {
                Op::Put { value, .. } => value.len(),
                Op::Delete(_) => 0,
            };
            if value_bytes > MAX_VALUE_BYTES + overhead_bytes {
                return Err(StoreError::ValueTooLarge { key: op.key().clone(), bytes: value_bytes });
            }
            if !keys.insert(op.key()) {
                return Err(StoreError::KeyTwice { key: op.key().clone() });
            }
            bytes += op.key().as_str().len() + value_bytes;
        }
        // A manifest that the layer adds has its key and its condition as well.
        if bytes > MAX_TXN_BYTES + longest * overhead_bytes * 16 {
            return Err(StoreError::TxnTooLarge { bytes });
        }
        Ok(Self { compares, ops, bytes })
    }

    /// Returns the conditions.
    pub fn compares(&self) -> &[Compare] {
        &self.compares
    }

    /// Returns the changes.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Returns the size of all keys and values together.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
