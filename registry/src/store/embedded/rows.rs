//! The rows of the store: what stands in each table, byte by byte.
//!
//! ```text
//! meta     name            -> number     format, id, revision, compacted, last_lease
//! entries  key             -> record
//! leases   number          -> length in ms
//! history  revision        -> change*
//!
//! record = create_revision mod_revision version lease(0: none)  value
//!          u64             u64          u64     u64             rest
//! change = 1 key_length key record_length record   put
//!        | 2 key_length key                        delete
//!            u16            u32                    all numbers big-endian
//! ```
//!
//! Decoding trusts nothing: bytes left over or missing make the row unreadable, never a shorter
//! record. redb's own checksums guard against a torn page; these checks guard against a bug.

use std::num::NonZeroU64;

use bytes::Bytes;
use redb::TableDefinition;

use super::super::{Entry, Event, EventBatch, Key, LeaseId, Revision};

/// The version of everything in this module. A store of a higher one is refused.
pub(super) const FORMAT: u128 = 1;

/// One number per name; see `meta_names`.
pub(super) const META: TableDefinition<'_, &str, u128> = TableDefinition::new("meta");
/// Key to record.
pub(super) const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
/// Lease to its length in milliseconds.
pub(super) const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");
/// Revision to the changes of that commit.
pub(super) const HISTORY: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("history");

/// The rows of [`META`].
pub(super) mod meta_names {
    /// [`super::FORMAT`] of the store.
    pub(crate) const FORMAT: &str = "format";
    /// The random name of the store.
    pub(crate) const ID: &str = "id";
    /// The newest revision.
    pub(crate) const REVISION: &str = "revision";
    /// The newest forgotten revision.
    pub(crate) const COMPACTED: &str = "compacted";
    /// The number of the newest lease.
    pub(crate) const LAST_LEASE: &str = "last_lease";
}

const PUT: u8 = 1;
const DELETE: u8 = 2;

/// The bytes of a record before its value.
const HEAD: usize = 32;

/// Encodes the row of an entry; the key is the key of the row.
pub(super) fn encode_entry(entry: &Entry) -> Vec<u8> {
    let mut row = Vec::with_capacity(HEAD + entry.value.len());
    put_record(&mut row, entry);
    row
}

/// Decodes the row of an entry.
pub(super) fn decode_entry(key: &str, row: &[u8]) -> Option<Entry> {
    take_record(key.parse().ok()?, row)
}

/// Encodes the row of a commit; the revision is the key of the row.
pub(super) fn encode_batch(batch: &EventBatch) -> Vec<u8> {
    let mut row = Vec::new();
    for event in &batch.events {
        match event {
            Event::Put(entry) => {
                row.push(PUT);
                put_key(&mut row, &entry.key);
                let length = u32::try_from(HEAD + entry.value.len()).expect("a value has at most 256 KiB");
                row.extend(length.to_be_bytes());
                put_record(&mut row, entry);
            }
            Event::Delete(key) => {
                row.push(DELETE);
                put_key(&mut row, key);
            }
        }
    }
    row
}

/// Decodes the row of a commit.
pub(super) fn decode_batch(revision: u64, mut row: &[u8]) -> Option<EventBatch> {
    let mut events = Vec::new();
    while !row.is_empty() {
        let [tag] = take(&mut row)?;
        let length = usize::from(u16::from_be_bytes(take(&mut row)?));
        let key: Key = std::str::from_utf8(take_slice(&mut row, length)?).ok()?.parse().ok()?;
        events.push(match tag {
            PUT => {
                let length = usize::try_from(u32::from_be_bytes(take(&mut row)?)).ok()?;
                Event::Put(take_record(key, take_slice(&mut row, length)?)?)
            }
            DELETE => Event::Delete(key),
            _ => return None,
        });
    }
    (!events.is_empty()).then_some(EventBatch { revision: Revision(revision), events })
}

fn put_key(row: &mut Vec<u8>, key: &Key) {
    let length = u16::try_from(key.as_str().len()).expect("a key has at most 1 KiB");
    row.extend(length.to_be_bytes());
    row.extend(key.as_str().as_bytes());
}

fn put_record(row: &mut Vec<u8>, entry: &Entry) {
    let lease = entry.lease.map_or(0, |lease| lease.0.get());
    for number in [entry.create_revision.0, entry.mod_revision.0, entry.version, lease] {
        row.extend(number.to_be_bytes());
    }
    row.extend(&entry.value);
}

fn take_record(key: Key, mut row: &[u8]) -> Option<Entry> {
    let mut number = || take(&mut row).map(u64::from_be_bytes);
    let (create_revision, mod_revision) = (Revision(number()?), Revision(number()?));
    let (version, lease) = (number()?, NonZeroU64::new(number()?).map(LeaseId));
    Some(Entry { key, value: Bytes::copy_from_slice(row), create_revision, mod_revision, version, lease })
}

fn take<const N: usize>(row: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = row.split_first_chunk()?;
    *row = rest;
    Some(*head)
}

fn take_slice<'a>(row: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, rest) = row.split_at_checked(length)?;
    *row = rest;
    Some(head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(batch in any_batch()) {
            let row = encode_batch(&batch);
            prop_assert_eq!(decode_batch(batch.revision.0, &row), Some(batch.clone()));
            for event in batch.events {
                if let Event::Put(entry) = event {
                    let row = encode_entry(&entry);
                    prop_assert_eq!(decode_entry(entry.key.as_str(), &row), Some(entry));
                }
            }
        }

        #[test]
        fn a_row_cut_short_is_never_a_shorter_commit(batch in any_batch(), cut in any::<prop::sample::Index>()) {
            let row = encode_batch(&batch);
            let kept = &row[..cut.index(row.len())];
            if let Some(shorter) = decode_batch(batch.revision.0, kept) {
                // Only a cut between two changes can be read, and redb does not make it.
                prop_assert_eq!(&shorter.events[..], &batch.events[..shorter.events.len()]);
                prop_assert_eq!(encode_batch(&shorter), kept);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(row: Vec<u8>) {
            let _ = (decode_batch(1, &row), decode_entry("/k", &row));
        }
    }

    fn any_batch() -> impl Strategy<Value = EventBatch> {
        (any::<u64>(), prop::collection::vec(any_event(), 1..5))
            .prop_map(|(revision, events)| EventBatch { revision: Revision(revision), events })
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let key = "[ -~]{1,40}".prop_map(|text| text.parse::<Key>().unwrap());
        let value = prop::collection::vec(any::<u8>(), 0..100);
        (any::<bool>(), key, value, any::<(u64, u64, u64, u64)>()).prop_map(|(put, key, value, numbers)| {
            if !put {
                return Event::Delete(key);
            }
            Event::Put(Entry {
                key,
                value: value.into(),
                create_revision: Revision(numbers.0),
                mod_revision: Revision(numbers.1),
                version: numbers.2,
                lease: NonZeroU64::new(numbers.3).map(LeaseId),
            })
        })
    }
}
