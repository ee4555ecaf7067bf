//! What every change of resources was: its number, author, time and reason, and what it replaced.
//!
//! ```text
//! guard/resources              {"change": n}: the number of the newest change
//! changes/<n>                  who, when, why, and which objects
//! replaced/<n>/<part>          the objects as they stood before, one record behind the other
//! ```
//!
//! A change writes all of it in the transaction that writes the objects, so there is no change without its history and no
//! history without its change. Kept is what was *replaced*: the object as it stands is the newest revision, and an object
//! that was written before there was a history has its first revision with its first change. Numbers count the changes
//! of the whole mesh; they are in the value of the guard key, which every change compares and writes, so that they
//! survive a move to another store, where revisions of the store do not.
//!
//! [`record`] is the form on disk, [`trim`] the bounds.

pub mod record;
pub mod trim;

use std::time::SystemTime;

use bytes::Bytes;
use weft_api::record as object_record;
use weft_policy::{
    code,
    model::{Key, Resource},
};

use self::record::{Before, Change, Touched};
use crate::{
    catalog::Catalog,
    layout,
    refusal::{Refusal, catalogued},
    store::{Compare, MAX_VALUE_BYTES, Op, Revision, Store, StoreError},
};

/// What a change did to an object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// There was none.
    Created,
    /// There was another.
    Configured,
    /// There is none any more.
    Deleted,
}

impl Action {
    /// Its word, as it is stored and told.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Deleted => "deleted",
        }
    }
}

/// What made a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verb {
    /// `weft apply`.
    Apply,
    /// `weft delete`.
    Delete,
    /// `weft rollback`.
    Rollback,
    /// A change was taken back: nobody confirmed it in time, or somebody said so.
    Unconfirmed,
    /// An enrollment that was written with a token.
    Token,
    /// The first start of a mesh.
    Start,
}

impl Verb {
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::Apply, Self::Delete, Self::Rollback, Self::Unconfirmed, Self::Token, Self::Start];

    /// Its word, as it is stored and told.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::Delete => "delete",
            Self::Rollback => "rollback",
            Self::Unconfirmed => "unconfirmed",
            Self::Token => "token",
            Self::Start => "start",
        }
    }
}

/// The guard key as it stands: which change was the newest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Head {
    /// The commit that wrote it; `None` before the first change.
    pub revision: Option<Revision>,
    /// The number of the newest change; 0 when there was none.
    pub change: u64,
}

impl Head {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// A refusal when the store cannot be read, or the number cannot: numbers are never given twice.
    pub async fn read(store: &dyn Store) -> Result<Self, Refusal> {
        let Some(entry) = store.get(&layout::guard()).await? else {
            return Ok(Self { revision: None, change: 0 });
        };
        let change = record::decode_head(&entry.value).ok_or_else(|| {
            let what = "the number of the newest change cannot be read";
            Refusal::new(tonic::Code::DataLoss, catalogued(code::UNREADABLE_RECORD, what))
        })?;
        Ok(Self { revision: Some(entry.mod_revision), change })
    }

    /// The number of the change that comes next.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.change.saturating_add(1)
    }

    /// Holds as long as no other change came in between.
    #[must_use]
    pub fn compare(&self) -> Compare {
        let key = layout::guard();
        match self.revision {
            Some(mod_revision) => Compare::Unchanged { key, mod_revision },
            None => Compare::Absent(key),
        }
    }

    /// Takes the next number.
    #[must_use]
    pub fn advance(&self) -> Op {
        Op::Put { key: layout::guard(), value: record::encode_head(self.next()), lease: None }
    }
}

/// A change that is about to be made.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Who makes it.
    pub author: String,
    /// Why; empty when nobody said.
    pub reason: String,
    /// What makes it.
    pub verb: Verb,
    /// The revision that is rolled back to, or the change that is taken back.
    pub of: Option<u64>,
    /// What it touches, each object once.
    pub objects: Vec<Touching>,
}

/// An object of a change that is about to be made.
#[derive(Clone, Debug)]
pub struct Touching {
    /// Which one.
    pub key: Key,
    /// What stood there.
    pub before: Standing,
    /// The record that will stand there; `None` when it is deleted.
    pub after: Option<Bytes>,
}

/// What stands under a key.
#[derive(Clone, Debug)]
pub enum Standing {
    /// Nothing.
    Nothing,
    /// This record.
    Record(Bytes),
    /// Something that cannot be read, and so cannot be brought back.
    Unreadable,
}

impl Standing {
    /// What `catalog` shows under a key.
    #[must_use]
    pub fn of(catalog: &Catalog, key: &Key) -> Self {
        match catalog.get(key) {
            Some(resource) => Self::Record(object_record::encode_resource(&resource).into()),
            None if catalog.revision_of(key).is_some() => Self::Unreadable,
            None => Self::Nothing,
        }
    }
}

impl Draft {
    /// What is written for it as change `number`, made `at`. Without `documents` what it replaces is not kept.
    #[must_use]
    pub fn ops(&self, number: u64, at: SystemTime, documents: bool) -> Vec<Op> {
        let mut parts = Parts::default();
        let touched = |object: &Touching| {
            let before = match &object.before {
                Standing::Nothing => Before::Nothing,
                Standing::Record(record) if documents => parts.add(record),
                Standing::Record(_) | Standing::Unreadable => Before::Lost,
            };
            let action = match (&object.before, &object.after) {
                (_, None) => Action::Deleted,
                (Standing::Nothing, Some(_)) => Action::Created,
                (Standing::Record(_) | Standing::Unreadable, Some(_)) => Action::Configured,
            };
            let after = object.after.as_deref().map(record::digest);
            Touched { key: object.key.clone(), action, before, after }
        };
        let objects = self.objects.iter().map(touched).collect();
        let change = Change {
            number,
            at,
            author: self.author.clone(),
            reason: self.reason.clone(),
            verb: self.verb,
            of: self.of,
            parts: parts.count(),
            bytes: parts.bytes(),
            objects,
        };
        let mut ops = vec![Op::Put { key: layout::change(number), value: change.encode(), lease: None }];
        ops.extend(parts.full.into_iter().zip(0..).map(|(part, index)| Op::Put {
            key: layout::replaced(number, index),
            value: part.into(),
            lease: None,
        }));
        ops
    }
}

/// Records one behind the other, in as few values as they fit into.
#[derive(Default)]
struct Parts {
    full: Vec<Vec<u8>>,
}

impl Parts {
    fn add(&mut self, record: &[u8]) -> Before {
        let fits = |part: &Vec<u8>| part.len() + record.len() <= MAX_VALUE_BYTES;
        if !self.full.last().is_some_and(fits) {
            self.full.push(Vec::new());
        }
        let part = self.full.len() - 1;
        let start = self.full[part].len();
        self.full[part].extend_from_slice(record);
        Before::Kept { part, start, bytes: record.len() }
    }

    const fn count(&self) -> usize {
        self.full.len()
    }

    fn bytes(&self) -> usize {
        self.full.iter().map(Vec::len).sum()
    }
}

/// Every change that is kept and can be read, the oldest first.
///
/// # Errors
///
/// [`StoreError`] when the store cannot be read.
pub async fn changes(store: &dyn Store) -> Result<Vec<Change>, StoreError> {
    let listing = store.list_all(&layout::changes()).await?;
    Ok(listing.entries.iter().filter_map(|entry| read(&entry.key, &entry.value)).collect())
}

/// One change; `None` when it is not kept any more, or cannot be read.
///
/// # Errors
///
/// [`StoreError`] when the store cannot be read.
pub async fn change(store: &dyn Store, number: u64) -> Result<Option<Change>, StoreError> {
    let key = layout::change(number);
    Ok(store.get(&key).await?.and_then(|entry| read(&key, &entry.value)))
}

fn read(key: &crate::store::Key, value: &[u8]) -> Option<Change> {
    let number = layout::change_number(key)?;
    match Change::decode(number, value) {
        Ok(change) => Some(change),
        Err(error) => {
            tracing::warn!(change = number, %error, "a change of the history cannot be read; it is left out");
            None
        }
    }
}

/// How an object stood.
#[derive(Clone, Debug, PartialEq)]
pub enum Stood {
    /// Not at all.
    Absent,
    /// Like this.
    As(Box<Resource>),
    /// Nobody knows any more.
    Gone,
}

/// How an object stood before `change` touched it.
///
/// # Errors
///
/// [`StoreError`] when the store cannot be read.
pub async fn before(store: &dyn Store, change: &Change, object: &Touched) -> Result<Stood, StoreError> {
    let (part, start, bytes) = match object.before {
        Before::Nothing => return Ok(Stood::Absent),
        Before::Lost => return Ok(Stood::Gone),
        Before::Kept { part, start, bytes } => (part, start, bytes),
    };
    let Some(entry) = store.get(&layout::replaced(change.number, part)).await? else {
        return Ok(Stood::Gone);
    };
    let record = start.checked_add(bytes).and_then(|end| entry.value.get(start..end));
    let read = record.and_then(|record| object_record::decode_resource(record, 0).ok());
    // A record under another object's name would bring back something that never stood there.
    Ok(read.filter(|found| found.key() == object.key).map_or(Stood::Gone, |found| Stood::As(Box::new(found))))
}

/// Whether an object stands as a change left it.
#[must_use]
pub fn stands_as_left(object: &Touched, current: Option<&Resource>) -> bool {
    let stands = current.map(|resource| record::digest(&object_record::encode_resource(resource)));
    stands == object.after
}
