//! Where the records of one mesh stand in etcd, and how its revisions count.
//!
//! ```text
//! <prefix>store          who this store is, written once
//! <prefix>r/<key>        a record
//! <prefix>w/<writer>/<n> the last transaction of slot n of a writer (see `slots`)
//! ```
//!
//! A revision of the store is etcd's, counted from the commit that created it, so that an empty store is at 0 like an
//! embedded one; a store that took over from another goes on from where that one was.

use std::num::NonZeroU64;

use bytes::Bytes;
use weft_api::pb::etcd::KeyValue;

use super::super::{Entry, Key, LeaseId, MAX_VALUE_BYTES, Revision, StoreId};

/// The format that this version writes and reads.
const FORMAT: &str = "1";

/// The keys of one mesh.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Space {
    prefix: String,
}

/// What a key of the space names.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Name {
    /// Who the store is.
    Identity,
    /// A record.
    Record(Key),
    /// A slot of a writer.
    Slot,
    /// Nothing that Weft wrote.
    Foreign,
}

impl Space {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    pub(super) fn prefix(&self) -> Bytes {
        Bytes::copy_from_slice(self.prefix.as_bytes())
    }

    /// The first key behind every key of the space.
    pub(super) fn end(&self) -> Bytes {
        let mut end = self.prefix.clone().into_bytes();
        // A prefix ends with a slash, which is not the largest byte.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        end.into()
    }

    pub(super) fn identity(&self) -> Bytes {
        format!("{}store", self.prefix).into()
    }

    pub(super) fn record(&self, key: &Key) -> Bytes {
        format!("{}r/{key}", self.prefix).into()
    }

    pub(super) fn slot(&self, writer: &str, number: usize) -> Bytes {
        format!("{}w/{writer}/{number}", self.prefix).into()
    }

    pub(super) fn name(&self, key: &[u8]) -> Name {
        let Some(rest) = std::str::from_utf8(key).ok().and_then(|text| text.strip_prefix(&self.prefix))
        else {
            return Name::Foreign;
        };
        match (rest, rest.split_once('/')) {
            ("store", _) => Name::Identity,
            (_, Some(("r", key))) => key.parse().map_or(Name::Foreign, Name::Record),
            (_, Some(("w", _))) => Name::Slot,
            _ => Name::Foreign,
        }
    }
}

/// Who a store is, and how its revisions count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Identity {
    pub(super) id: StoreId,
    /// The revision of the store that it had when it was created.
    pub(super) start: Revision,
    /// etcd's revision at that moment.
    pub(super) created: i64,
}

/// Why the record of a store's identity cannot be used.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum InvalidIdentity {
    Newer(String),
    Damaged,
}

impl Identity {
    /// The text of a new store's record.
    pub(super) fn text(id: StoreId, start: Revision) -> String {
        format!("{FORMAT} {id} {start}")
    }

    pub(super) fn read(record: &KeyValue) -> Result<Self, InvalidIdentity> {
        let text = std::str::from_utf8(&record.value).map_err(|_| InvalidIdentity::Damaged)?;
        let mut parts = text.split(' ');
        let format = parts.next().filter(|format| format.bytes().all(|byte| byte.is_ascii_digit()));
        match format {
            Some(FORMAT) => {}
            Some(newer) if !newer.is_empty() => return Err(InvalidIdentity::Newer(newer.to_owned())),
            Some(_) | None => return Err(InvalidIdentity::Damaged),
        }
        let id = parts.next().and_then(|id| u128::from_str_radix(id, 16).ok()).map(StoreId);
        let start = parts.next().and_then(|start| start.parse().ok()).map(Revision);
        match (id, start, parts.next(), record.version) {
            (Some(id), Some(start), None, 1) => Ok(Self { id, start, created: record.create_revision }),
            _ => Err(InvalidIdentity::Damaged),
        }
    }

    /// The store's revision for one of etcd's.
    pub(super) fn revision(&self, of_etcd: i64) -> Revision {
        Revision(self.start.0.saturating_add_signed(of_etcd.saturating_sub(self.created)).max(self.start.0))
    }

    /// etcd's revision for one of the store's; never one from before the store, where another key's could be meant.
    pub(super) fn of_etcd(&self, revision: Revision) -> i64 {
        match revision.0.checked_sub(self.start.0).and_then(|since| i64::try_from(since).ok()) {
            Some(since) => self.created.saturating_add(since),
            None => NEVER,
        }
    }

    /// The entry that a key and value of etcd stand for; `None` if the value is larger than Weft writes.
    pub(super) fn entry(&self, key: Key, found: KeyValue) -> Option<Entry> {
        if found.value.len() > MAX_VALUE_BYTES {
            return None;
        }
        Some(Entry {
            key,
            value: found.value,
            create_revision: self.revision(found.create_revision),
            mod_revision: self.revision(found.mod_revision),
            version: u64::try_from(found.version).unwrap_or(0),
            lease: lease_of(found.lease),
        })
    }
}

/// A revision that no key of etcd has.
pub(super) const NEVER: i64 = -1;

pub(super) fn lease_of(id: i64) -> Option<LeaseId> {
    u64::try_from(id).ok().and_then(NonZeroU64::new).map(LeaseId)
}

/// etcd's name of a lease; 0, which none has, for one that etcd cannot have given.
pub(super) fn id_of(lease: LeaseId) -> i64 {
    i64::try_from(lease.0.get()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(value: &str, version: i64) -> KeyValue {
        let (key, value) = ("/weft/x/store".into(), Bytes::copy_from_slice(value.as_bytes()));
        KeyValue { key, value, create_revision: 7, mod_revision: 7, version, lease: 0 }
    }

    #[test]
    fn a_store_counts_from_its_creation_or_goes_on_from_another() {
        let id = StoreId(5);
        for (start, of_etcd, revision) in [(0, 7, 0), (0, 8, 1), (0, 3, 0), (40, 7, 40), (40, 17, 50)] {
            let identity = Identity::read(&record(&Identity::text(id, Revision(start)), 1)).unwrap();
            assert_eq!(identity.revision(of_etcd), Revision(revision), "{start} {of_etcd}");
            if of_etcd >= 7 {
                assert_eq!(identity.of_etcd(Revision(revision)), of_etcd);
            }
        }
        let late = Identity { id, start: Revision(40), created: 7 };
        assert_eq!(late.of_etcd(Revision(39)), NEVER, "no key of etcd is meant by it");
    }

    #[test]
    fn an_identity_that_is_not_as_it_was_written_is_refused() {
        let text = Identity::text(StoreId(5), Revision(0));
        assert!(Identity::read(&record(&text, 1)).is_ok());
        assert_eq!(
            Identity::read(&record(&text, 2)),
            Err(InvalidIdentity::Damaged),
            "somebody wrote it again"
        );
        assert_eq!(Identity::read(&record("2 0 0", 1)), Err(InvalidIdentity::Newer("2".to_owned())));
        for text in ["", " ", "x 5 0", "1 5", "1 g 0", "1 5 -1", "1 5 0 0"] {
            assert_eq!(Identity::read(&record(text, 1)), Err(InvalidIdentity::Damaged), "{text:?}");
        }
    }

    #[test]
    fn etcd_05_a_key_that_weft_would_not_write_is_nobodys() {
        let space = Space::new("/weft/x/");
        let key: Key = "mesh/a".parse().unwrap();
        assert_eq!(space.name(&space.record(&key)), Name::Record(key));
        assert_eq!(space.name(&space.identity()), Name::Identity);
        assert_eq!(space.name(&space.slot("a", 3)), Name::Slot);
        for foreign in [&b"/weft/x/r/"[..], b"/weft/x/r/a\n", b"/weft/x/r/\xff", b"/weft/x/z", b"/weft/y/r/a"]
        {
            assert_eq!(space.name(foreign), Name::Foreign, "{foreign:?}");
        }
    }
}
