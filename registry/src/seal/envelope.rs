//! One signed record, as its bytes stand in the store.
//!
//! ```text
//! 0  "\0weft\x01"       6   no record is JSON that begins so
//! 6  signer             8   which key signed
//! 14 generation         8   how often the key was written, from 1
//! 22 predecessor       32   SHA-256 of the record before, all zero for none
//! 54 signature         64   Ed25519 over the context, the key, all of the above and the content
//! 118 content
//! ```
//!
//! Pure. The key of the store is part of what is signed, so a record that is moved to another key is forged there.

use bytes::Bytes;

use super::{
    Digest, NOTHING_BEFORE,
    keys::{KeyId, KeyRing, RecordKey},
    sha256,
};
use crate::store::Key;

/// How an envelope begins.
const MAGIC: [u8; 6] = *b"\0weft\x01";
/// What a signature of this module says first, so that it is none of another protocol.
const CONTEXT: &[u8] = b"weft record 1\0";
/// Where the parts begin.
const SIGNER: usize = MAGIC.len();
const GENERATION: usize = SIGNER + 8;
const PREVIOUS: usize = GENERATION + 8;
const SIGNATURE: usize = PREVIOUS + 32;
/// By how many bytes a record in the store is larger than what it says.
pub const OVERHEAD_BYTES: usize = SIGNATURE + 64;
/// How readers of a store are told of a record that is refused: no reader takes such bytes for a record.
const REFUSED: &[u8] = b"\0refused: ";

/// A record as it was signed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Opened {
    /// Who signed it.
    pub signer: KeyId,
    /// How often its key was written.
    pub generation: u64,
    /// The hash of the record before.
    pub previous: Digest,
    /// What it says.
    pub content: Bytes,
}

/// Why a record is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// It is no envelope.
    #[error("it is not signed")]
    Unsigned,
    /// It begins as an envelope and ends too early.
    #[error("it is cut off")]
    Cut,
    /// Nobody who is trusted has that key.
    #[error("it is signed by the unknown key {0}")]
    UnknownKey(KeyId),
    /// The signature is not that of this content under this key.
    #[error("its signature does not fit: it was changed, or belongs to another key")]
    Forged,
}

/// Signs what shall stand at `key` as its `generation`, after a record with the hash `previous`.
#[must_use]
pub fn seal(signer: &RecordKey, key: &Key, generation: u64, previous: &Digest, content: &[u8]) -> Bytes {
    let mut sealed = Vec::with_capacity(OVERHEAD_BYTES + content.len());
    sealed.extend_from_slice(&MAGIC);
    sealed.extend_from_slice(&signer.id().0);
    sealed.extend_from_slice(&generation.to_be_bytes());
    sealed.extend_from_slice(previous);
    let signature = signer.sign(&signed(key, &sealed, content));
    sealed.extend_from_slice(&signature);
    sealed.extend_from_slice(content);
    sealed.into()
}

/// Opens what stands at `key`.
///
/// # Errors
///
/// [`Refused`]: nobody who is trusted has signed it for this key.
pub fn open(ring: &KeyRing, key: &Key, sealed: &Bytes) -> Result<Opened, Refused> {
    if !sealed.starts_with(&MAGIC) {
        return Err(Refused::Unsigned);
    }
    let opened = peek(sealed).ok_or(Refused::Cut)?;
    let message = signed(key, &sealed[..SIGNATURE], &opened.content);
    match ring.verify(opened.signer, &message, &sealed[SIGNATURE..OVERHEAD_BYTES]) {
        None => Err(Refused::UnknownKey(opened.signer)),
        Some(false) => Err(Refused::Forged),
        Some(true) => Ok(opened),
    }
}

/// Takes an envelope apart without asking who signed it; `None` when it is none.
#[must_use]
pub fn peek(sealed: &Bytes) -> Option<Opened> {
    if !sealed.starts_with(&MAGIC) || sealed.len() < OVERHEAD_BYTES {
        return None;
    }
    let signer = KeyId(sealed[SIGNER..GENERATION].try_into().ok()?);
    let generation = u64::from_be_bytes(sealed[GENERATION..PREVIOUS].try_into().ok()?);
    let previous = sealed[PREVIOUS..SIGNATURE].try_into().ok()?;
    Some(Opened { signer, generation, previous, content: sealed.slice(OVERHEAD_BYTES..) })
}

/// The generation and the predecessor's hash of what comes after `before`.
#[must_use]
pub fn successor(before: Option<&Bytes>) -> (u64, Digest) {
    let Some(before) = before else { return (1, NOTHING_BEFORE) };
    let generation = peek(before).map_or(0, |opened| opened.generation);
    (generation.saturating_add(1), sha256(&[before]))
}

/// What a signature is over. The key has a length of its own, so that no byte can be counted to the other side.
fn signed(key: &Key, head: &[u8], content: &[u8]) -> Vec<u8> {
    let key = key.as_str().as_bytes();
    let length = u64::try_from(key.len()).unwrap_or(u64::MAX).to_be_bytes();
    [CONTEXT, &length, key, head, content].concat()
}

/// What readers get in the place of a record that is refused.
#[must_use]
pub fn refused(why: &str) -> Bytes {
    [REFUSED, why.as_bytes()].concat().into()
}

/// Why the record that a reader got is refused, if it is.
#[must_use]
pub fn refusal(content: &[u8]) -> Option<&str> {
    std::str::from_utf8(content.strip_prefix(REFUSED)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(text: &str) -> Key {
        text.parse().unwrap()
    }

    #[test]
    fn a_record_is_opened_at_its_key_by_those_who_trust_its_signer() {
        let (one, other) = (RecordKey::create().unwrap(), RecordKey::create().unwrap());
        let ring = KeyRing::of(one.clone());
        let sealed = seal(&one, &key("mesh/a"), 7, &[9; 32], b"{}");
        let opened = open(&ring, &key("mesh/a"), &sealed).unwrap();
        assert_eq!((opened.generation, opened.previous, &*opened.content), (7, [9; 32], b"{}".as_slice()));
        assert_eq!(open(&ring, &key("mesh/b"), &sealed), Err(Refused::Forged), "moved to another key");

        let foreign = seal(&other, &key("mesh/a"), 7, &[9; 32], b"{}");
        assert_eq!(open(&ring, &key("mesh/a"), &foreign), Err(Refused::UnknownKey(other.id())));
        ring.trust(other.public());
        open(&ring, &key("mesh/a"), &foreign).unwrap();
        assert_eq!(open(&ring, &key("mesh/a"), &"{}".into()), Err(Refused::Unsigned));
        assert_eq!(successor(Some(&sealed)), (8, sha256(&[&sealed])));
        assert_eq!(successor(None), (1, NOTHING_BEFORE));
    }

    #[test]
    fn no_reader_mistakes_a_refusal_for_a_record() {
        assert_eq!(refusal(&refused("why")), Some("why"));
        assert_eq!(refusal(b"{}"), None);
        assert!(serde_json::from_slice::<serde_json::Value>(&refused("why")).is_err());
    }

    proptest! {
        #[test]
        fn etcd_09_a_record_that_is_cut_or_changed_anywhere_is_refused(
            content in proptest::collection::vec(any::<u8>(), 0..64), at in any::<prop::sample::Index>(), flip in 1_u8..,
        ) {
            let signer = RecordKey::create().unwrap();
            let ring = KeyRing::of(signer.clone());
            let sealed = seal(&signer, &key("mesh/a"), 1, &NOTHING_BEFORE, &content);
            let at = at.index(sealed.len());
            let mut changed = sealed.to_vec();
            changed[at] ^= flip;
            prop_assert!(open(&ring, &key("mesh/a"), &changed.into()).is_err());
            prop_assert!(open(&ring, &key("mesh/a"), &sealed.slice(..at)).is_err());
            let longer = [&*sealed, &[flip]].concat();
            prop_assert!(open(&ring, &key("mesh/a"), &longer.into()).is_err());
        }
    }
}
