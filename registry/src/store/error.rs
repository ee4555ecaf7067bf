//! What the store can refuse or fail at, each with its code of the error catalogue.

use std::error::Error;
use std::sync::Arc;

use weft_policy::code::{self, CodeId};

use super::key::Key;
use super::lease::LeaseId;
use super::record::Revision;
use super::txn::{MAX_TXN_BYTES, MAX_TXN_OPS, MAX_VALUE_BYTES};

/// The failure underneath, shared because one failed disk write fails every transaction in it.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// Why a call to the store had no effect, or (only [`StoreError::OutcomeUnknown`]) may have had one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A condition of the transaction did not hold; nothing was changed.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// A value is larger than the limit.
    #[error("the value of {key} has {bytes} bytes, more than {MAX_VALUE_BYTES}")]
    ValueTooLarge {
        /// The key it was meant for.
        key: Key,
        /// Its size in bytes.
        bytes: usize,
    },
    /// A transaction has more comparisons or operations than the limit.
    #[error("a transaction of {ops} operations is longer than {MAX_TXN_OPS}")]
    TxnTooLong {
        /// How many it has.
        ops: usize,
    },
    /// The keys and values of a transaction together are larger than the limit.
    #[error("a transaction of {bytes} bytes is larger than {MAX_TXN_BYTES}")]
    TxnTooLarge {
        /// Their size in bytes.
        bytes: usize,
    },
    /// Two operations of one transaction change the same key.
    #[error("a transaction may change {key} only once")]
    KeyTwice {
        /// The key.
        key: Key,
    },
    /// A page was asked for with no room or too much.
    #[error("a page of {limit} entries is not between 1 and 500")]
    PageLimit {
        /// The limit asked for.
        limit: usize,
    },
    /// The store holds as much as it may. Deleting works.
    #[error("the store is full: {limit_bytes} bytes")]
    Full {
        /// The most it may hold, in bytes of keys and values.
        limit_bytes: u64,
    },
    /// There are as many leases as there may be.
    #[error("the store holds {limit} leases already")]
    TooManyLeases {
        /// The most it may hold.
        limit: usize,
    },
    /// The lease ended, was revoked, or never was.
    #[error("no lease {lease}")]
    NoLease {
        /// The lease asked for.
        lease: LeaseId,
    },
    /// The history before `oldest` is gone: list again, then watch from there.
    #[error("revision {wanted} is compacted, the oldest is {oldest}")]
    Compacted {
        /// The revision asked for.
        wanted: Revision,
        /// The oldest one that a watch can start from.
        oldest: Revision,
    },
    /// The caller has seen a later revision than the store holds: it was replaced or restored.
    #[error("revision {wanted} lies ahead of this store, which is at {current}")]
    Ahead {
        /// The revision asked for.
        wanted: Revision,
        /// The newest revision of this store.
        current: Revision,
    },
    /// The store cannot be written now. Nothing was changed; reads go on.
    #[error("the store cannot be written")]
    Unavailable {
        /// Why.
        source: Cause,
    },
    /// The commit failed half-way: it may take effect after a restart. Read before trying again.
    #[error("the store failed during the commit, whose outcome is unknown")]
    OutcomeUnknown {
        /// Why.
        source: Cause,
    },
    /// The store turned out not to be the one that was known: nothing more is read into it or written (ETCD-07).
    #[error("the store is refused: {source}")]
    Refused {
        /// Why.
        source: Arc<super::etcd::OpenError>,
    },
    /// The records beside which it would be written are not as the server wrote them; nothing was changed.
    #[error("{what} cannot be vouched for: {why}")]
    Unvouched {
        /// Which records.
        what: String,
        /// What is wrong with them.
        why: String,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// A condition that did not hold, and what stands there instead.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{key} {}", self.found())]
pub struct Conflict {
    /// The key of the first condition that failed.
    pub key: Key,
    /// The commit that wrote the key last; `None` if it does not exist.
    pub current: Option<Revision>,
}

impl Conflict {
    fn found(&self) -> String {
        match self.current {
            Some(revision) => format!("was changed at revision {revision}"),
            None => "does not exist".to_owned(),
        }
    }
}

impl StoreError {
    /// Returns the code of this error in the catalogue.
    pub fn code(&self) -> CodeId {
        match self {
            Self::Unavailable { .. } => code::STORE_UNAVAILABLE,
            Self::OutcomeUnknown { .. } => code::OUTCOME_UNKNOWN,
            Self::Conflict(_) => code::WRITE_CONFLICT,
            Self::Compacted { .. } => code::COMPACTED,
            Self::Full { .. } | Self::TooManyLeases { .. } => code::STORE_FULL,
            Self::ValueTooLarge { .. }
            | Self::TxnTooLong { .. }
            | Self::TxnTooLarge { .. }
            | Self::KeyTwice { .. }
            | Self::PageLimit { .. } => code::OUT_OF_BOUNDS,
            Self::NoLease { .. } => code::NO_LEASE,
            Self::Ahead { .. } => code::STORE_BEHIND,
            Self::Refused { source } => source.code(),
            Self::Unvouched { .. } => code::RECORDS_REFUSED,
            Self::Closed => code::STORE_CLOSED,
        }
    }

    /// Returns what stands at the key of a failed condition, if that is what happened.
    pub fn conflict(&self) -> Option<&Conflict> {
        if let Self::Conflict(conflict) = self { Some(conflict) } else { None }
    }
}
