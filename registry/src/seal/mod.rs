//! Records that only the control plane can have written (security.md T6).
//!
//! Owns the signature on every record, the signed manifest of every group of records, and the layer over a store that
//! writes and checks both ([`SealedStore`]). What a record says, and what follows from one that is refused, belongs to
//! its readers: [`crate::catalog`] closes a namespace whose group does not add up.
//!
//! ```text
//! envelope   one record: signer, generation, hash of its predecessor, Ed25519 signature over these, its key and content
//! manifest   one group: generation, predecessor, how many members, a hash over all of them; an envelope itself
//! ```
//!
//! A signature alone shows neither that a record was deleted nor that an older one was put back; the manifest, written in
//! the transaction that changes a member, shows both. The newest generation of each is kept in the server's own directory
//! ([`seen`]), so that a manifest put back together with its members is seen as well, also after a restart.
//!
//! The keys are Ed25519, made at the first start, in the server's own directory and nowhere else ([`keys`]). A reader
//! trusts a set of them: that of this server, and those that it was told to trust.
//!
//! Which records are in a group is a rule over keys ([`group`]), so that a kind of record that this module never heard of
//! is signed and counted; what is left out is left out by name, with its reason.

pub mod envelope;
pub mod group;
pub mod keys;
pub mod ledger;
pub mod seen;
pub mod vouch;

mod draft;
mod store;
#[cfg(test)]
pub(crate) mod tests;

use weft_policy::code::{self, CodeId};

pub(crate) use self::draft::operations;
pub use self::{
    envelope::{OVERHEAD_BYTES, refusal},
    group::Group,
    keys::{KeyFile, KeyId, KeyRing, RecordKey, RecordPublicKey},
    ledger::Ledger,
    seen::Seen,
    store::SealedStore,
    vouch::Report,
};
use crate::{private::PrivateError, store::StoreError};

/// A SHA-256.
pub type Digest = [u8; 32];

/// Stands for the predecessor of the first record under a key.
pub const NOTHING_BEFORE: Digest = [0; 32];

/// Why records cannot be sealed or opened at all.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The directory or a file of the keys.
    #[error(transparent)]
    File(#[from] PrivateError),
    /// A file of the keys holds something else.
    #[error("{path} cannot be used: {why}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// No key could be made.
    #[error("no key for records: the system gives no random numbers")]
    Entropy,
    /// The store.
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    /// Something stands in the store that the server did not write like this.
    #[error("{0}")]
    Refused(Box<Report>),
}

impl SealError {
    /// Its code in the catalogue.
    #[must_use]
    pub fn code(&self) -> CodeId {
        match self {
            Self::File(error) => error.code(),
            Self::Damaged { .. } => code::STATE_DAMAGED,
            Self::Entropy => code::ENTROPY,
            Self::Store(error) => error.code(),
            Self::Refused(_) => code::RECORDS_REFUSED,
        }
    }
}

fn sha256(parts: &[&[u8]]) -> Digest {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut hash = NOTHING_BEFORE;
    hash.copy_from_slice(context.finish().as_ref());
    hash
}
