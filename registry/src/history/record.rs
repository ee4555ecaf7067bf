//! A change as it is kept: JSON in which every field is present, so that one that was lost is seen.

use std::time::SystemTime;

use aws_lc_rs::digest as sha2;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weft_api::{convert::management as convert, pb::management::ObjectRef};
use weft_policy::model::Key;

use super::{Action, Verb};
use crate::timestamp::{from_unix_seconds, unix_seconds};

/// A change that was made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// Its number, from 1.
    pub number: u64,
    /// When it was made, in whole seconds.
    pub at: SystemTime,
    /// Who made it.
    pub author: String,
    /// Why; empty when nobody said.
    pub reason: String,
    /// What made it.
    pub verb: Verb,
    /// The revision that was rolled back to, or the change that was taken back.
    pub of: Option<u64>,
    /// How many values hold what it replaced.
    pub parts: usize,
    /// The bytes of what it replaced.
    pub bytes: usize,
    /// What it touched.
    pub objects: Vec<Touched>,
}

/// An object of a change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Touched {
    /// Which one.
    pub key: Key,
    /// What became of it.
    pub action: Action,
    /// Where it is kept as it stood before.
    pub before: Before,
    /// SHA-256 of the record that stood there afterwards; `None` when it was deleted.
    pub after: Option<[u8; 32]>,
}

/// Where a replaced object is kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Before {
    /// There was none.
    Nothing,
    /// There was one, and it is not kept: it could not be read, or the store had no room.
    Lost,
    /// In that part, from that byte on.
    Kept {
        /// Which value.
        part: usize,
        /// Where in it.
        start: usize,
        /// How long.
        bytes: usize,
    },
}

/// Why bytes of the store are not a change.
#[derive(Debug, thiserror::Error)]
pub enum UnreadableChange {
    /// A field is missing, unknown, or not what it should be.
    #[error("{0}")]
    Form(#[from] serde_json::Error),
    /// A word or a number that no version known here writes.
    #[error("{0} means nothing here")]
    Meaning(&'static str),
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawHead {
    change: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawChange {
    at: u64,
    author: String,
    reason: String,
    verb: String,
    #[serde(deserialize_with = "present")]
    of: Option<u64>,
    parts: usize,
    bytes: usize,
    objects: Vec<RawTouched>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawTouched {
    kind: String,
    namespace: String,
    name: String,
    action: String,
    before: RawBefore,
    #[serde(deserialize_with = "present")]
    after: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum RawBefore {
    Nothing,
    Lost,
    Kept(usize, usize, usize),
}

/// An optional value that must be written, be it as `null`.
fn present<'de, D, T>(reader: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(reader)
}

/// The value of the guard key.
pub(super) fn encode_head(change: u64) -> Bytes {
    json(&RawHead { change })
}

/// The number in the value of the guard key. A version that kept no history left it empty.
pub(super) fn decode_head(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return Some(0);
    }
    serde_json::from_slice::<RawHead>(value).ok().map(|raw| raw.change)
}

impl Change {
    /// Its form on disk.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        json(&RawChange {
            at: unix_seconds(self.at),
            author: self.author.clone(),
            reason: self.reason.clone(),
            verb: self.verb.word().to_owned(),
            of: self.of,
            parts: self.parts,
            bytes: self.bytes,
            objects: self.objects.iter().map(raw).collect(),
        })
    }

    /// Reads change `number`.
    ///
    /// # Errors
    ///
    /// [`UnreadableChange`] when it is not exactly what this version writes.
    pub fn decode(number: u64, value: &[u8]) -> Result<Self, UnreadableChange> {
        let raw: RawChange = serde_json::from_slice(value)?;
        let verb = Verb::ALL.into_iter().find(|verb| verb.word() == raw.verb);
        Ok(Self {
            number,
            at: from_unix_seconds(raw.at).ok_or(UnreadableChange::Meaning("the time"))?,
            author: raw.author,
            reason: raw.reason,
            verb: verb.ok_or(UnreadableChange::Meaning("the verb"))?,
            of: raw.of,
            parts: raw.parts,
            bytes: raw.bytes,
            objects: raw.objects.iter().map(touched).collect::<Result<_, _>>()?,
        })
    }

    /// What it did to an object.
    #[must_use]
    pub fn touched(&self, key: &Key) -> Option<&Touched> {
        self.objects.iter().find(|object| object.key == *key)
    }
}

fn raw(object: &Touched) -> RawTouched {
    let ObjectRef { kind, namespace, name } = convert::reference(&object.key);
    let before = match object.before {
        Before::Nothing => RawBefore::Nothing,
        Before::Lost => RawBefore::Lost,
        Before::Kept { part, start, bytes } => RawBefore::Kept(part, start, bytes),
    };
    let after = object.after.map(|hash| hash.iter().map(|byte| format!("{byte:02x}")).collect());
    RawTouched { kind, namespace, name, action: object.action.word().to_owned(), before, after }
}

fn touched(raw: &RawTouched) -> Result<Touched, UnreadableChange> {
    let (kind, namespace, name) = (raw.kind.clone(), raw.namespace.clone(), raw.name.clone());
    let key = convert::key(&ObjectRef { kind, namespace, name });
    let actions = [Action::Created, Action::Configured, Action::Deleted];
    let action = actions.into_iter().find(|action| action.word() == raw.action);
    let before = match raw.before {
        RawBefore::Nothing => Before::Nothing,
        RawBefore::Lost => Before::Lost,
        RawBefore::Kept(part, start, bytes) => Before::Kept { part, start, bytes },
    };
    Ok(Touched {
        key: key.map_err(|_| UnreadableChange::Meaning("the object"))?,
        action: action.ok_or(UnreadableChange::Meaning("the action"))?,
        before,
        after: raw.after.as_deref().map(hash).transpose()?,
    })
}

fn hash(text: &str) -> Result<[u8; 32], UnreadableChange> {
    let bad = || UnreadableChange::Meaning("the hash");
    if text.len() != 64 || !text.is_ascii() {
        return Err(bad());
    }
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| bad())?;
    }
    Ok(bytes)
}

/// SHA-256.
#[must_use]
pub fn digest(bytes: &[u8]) -> [u8; 32] {
    sha2::digest(&sha2::SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn json(raw: &impl Serialize) -> Bytes {
    serde_json::to_vec(raw).expect("texts, numbers and lists always serialise").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn change() -> Change {
        let key = |name: &str| weft_policy::model::Resource::Service(samples::service(name, "shop")).key();
        let touched = |name, action, before, after| Touched { key: key(name), action, before, after };
        Change {
            number: 7,
            at: from_unix_seconds(1_800_000_000).unwrap(),
            author: "spiffe://corp.example/user/ada".to_owned(),
            reason: "ticket 7".to_owned(),
            verb: Verb::Rollback,
            of: Some(3),
            parts: 1,
            bytes: 20,
            objects: vec![
                touched("a", Action::Created, Before::Nothing, Some([0xab; 32])),
                touched("b", Action::Deleted, Before::Kept { part: 0, start: 0, bytes: 20 }, None),
                touched("c", Action::Configured, Before::Lost, Some([0; 32])),
            ],
        }
    }

    #[test]
    fn a_change_comes_back_as_it_was_written() {
        assert_eq!(Change::decode(7, &change().encode()).unwrap(), change());
    }

    #[test]
    fn a_change_that_lost_a_field_or_has_one_too_many_is_not_read() {
        let whole: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&change().encode()).unwrap();
        for lost in whole.keys() {
            let mut part = whole.clone();
            part.remove(lost);
            assert!(Change::decode(7, &serde_json::to_vec(&part).unwrap()).is_err(), "without {lost}");
        }
        let mut more = whole;
        more.insert("newer".to_owned(), true.into());
        assert!(Change::decode(7, &serde_json::to_vec(&more).unwrap()).is_err());
    }

    #[test]
    fn the_number_of_a_store_without_history_is_zero_and_a_damaged_one_is_none() {
        assert_eq!(decode_head(b""), Some(0));
        assert_eq!(decode_head(&encode_head(41)), Some(41));
        assert_eq!(decode_head(b"{}"), None);
        assert_eq!(decode_head(b"41"), None);
    }
}
