//! A whole store at once: what of it is refused, signing it as it stands, and carrying records between stores.
//!
//! Signing what stands there is done once by itself, when a store from before there were signatures is taken over, and
//! else only when a person says so: it makes what somebody else may have written the server's own word.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;

use super::{
    Group, KeyRing, SealError, Seen,
    draft::Book,
    envelope,
    group::{Leaf, Sealing, leaf, leaf_of, sealing},
};
use crate::store::{
    Compare, Entry, Key, MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_OPS, Op, Prefix, Store, StoreError, Txn,
    transfer::Content,
};

/// What of a store is refused, or was before it was accepted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    /// Records that nobody who is trusted has signed for their key, and why each is refused.
    pub records: Vec<(Key, String)>,
    /// Groups that do not add up, and why.
    pub groups: Vec<(Group, String)>,
}

impl Report {
    /// Whether everything is as the server wrote it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.groups.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} records and {} groups of the store are not as the server wrote them",
            self.records.len(),
            self.groups.len()
        )?;
        let record = self.records.first().map(|(key, why)| format!("{key}: {why}"));
        let group = self.groups.first().map(|(group, why)| format!("{group}: {why}"));
        record.or(group).map_or(Ok(()), |first| write!(formatter, ", such as {first}"))
    }
}

/// The manifests of a store.
pub(super) async fn manifests(store: &dyn Store) -> Result<Vec<Entry>, StoreError> {
    let mut found = Vec::new();
    for folder in [super::group::IN_MESH, super::group::BESIDE] {
        let prefix: Prefix = folder.parse().expect("it is a prefix");
        found.extend(store.list_all(&prefix).await?.entries);
    }
    Ok(found)
}

/// Whether a store has manifests, and so was sealed before.
pub(crate) async fn has_manifests(store: &dyn Store) -> Result<bool, StoreError> {
    for folder in [super::group::IN_MESH, super::group::BESIDE] {
        let prefix: Prefix = folder.parse().expect("it is a prefix");
        if !store.list(&prefix, None, 1).await?.entries.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether nothing stands in a store.
pub(super) async fn is_empty(store: &dyn Store) -> Result<bool, StoreError> {
    Ok(store.list(&Prefix::everything(), None, 1).await?.entries.is_empty())
}

/// What of `store` is refused.
pub(super) async fn inspect(store: &dyn Store, ring: &KeyRing, seen: &Seen) -> Result<Report, StoreError> {
    let entries = store.list_all(&Prefix::everything()).await?.entries;
    let rows: Vec<Row<'_>> = entries.iter().map(Row::of).collect();
    let groups = broken(&rows, ring, seen);
    Ok(Report {
        records: rows.iter().filter_map(|row| row.fault(ring)).collect(),
        groups: groups.into_iter().map(|(group, (why, _))| (group, why)).collect(),
    })
}

/// Signs what stands in `store`, and returns what of it was refused before.
///
/// A record first, then the manifests: what is interrupted in between is refused, and can be accepted again.
pub(super) async fn accept(store: &dyn Store, ring: &KeyRing, seen: &Seen) -> Result<Report, StoreError> {
    let report = inspect(store, ring, seen).await?;
    let mut part = Part::default();
    for (key, _) in &report.records {
        let Some(entry) = store.get(key).await? else { continue };
        if !part.has_room(&entry) {
            store.commit(part.take()?).await?;
        }
        part.sign(ring, entry);
    }
    store.commit(part.take()?).await?;
    let entries = store.list_all(&Prefix::everything()).await?.entries;
    let rows: Vec<Row<'_>> = entries.iter().map(Row::of).collect();
    let broken: Vec<_> = broken(&rows, ring, seen).into_iter().collect();
    for part in broken.chunks(MAX_TXN_OPS) {
        let (mut compares, mut ops, mut generations) = (Vec::new(), Vec::new(), Vec::new());
        for (group, (_, book)) in part {
            let (generation, value) = book.advance(ring, group, &book.members, seen.of(group));
            compares.push(book.compare(group));
            ops.push(Op::Put { key: group.key().clone(), value, lease: None });
            generations.push((group, generation));
        }
        store.commit(Txn::sealed(compares, ops)?).await?;
        generations.into_iter().for_each(|(group, generation)| seen.note(group, generation));
    }
    Ok(report)
}

/// What `content`, as it stands in a store, says, if all of it is as the server wrote it.
///
/// # Errors
///
/// [`SealError::Refused`]: what somebody else wrote must not get a signature by being moved.
pub fn opened(content: &Content, ring: &KeyRing, seen: &Seen) -> Result<Content, SealError> {
    let rows: Vec<Row<'_>> = content.records.iter().map(Row::moved).collect();
    let records: Vec<_> = rows.iter().filter_map(|row| row.fault(ring)).collect();
    let groups: Vec<_> =
        broken(&rows, ring, seen).into_iter().map(|(group, (why, _))| (group, why)).collect();
    let report = Report { records, groups };
    if !report.is_empty() {
        return Err(SealError::Refused(Box::new(report)));
    }
    let says = |row: &Row<'_>| match sealing(row.key, row.leased) {
        Sealing::Manifest(_) => None,
        Sealing::Open => Some((row.key.clone(), row.value.clone())),
        Sealing::Signed | Sealing::Member(_) => Some((row.key.clone(), content_of(row.value))),
    };
    Ok(Content { records: rows.iter().filter_map(says).collect(), revision: content.revision })
}

/// Whether `content` is from a store that was sealed.
#[must_use]
pub fn is_sealed(content: &Content) -> bool {
    content.records.iter().any(|(key, _)| Group::of_manifest(key).is_some())
}

/// What `content` says, of a store whose taking over was interrupted: part of it is signed already.
#[must_use]
pub fn taken(content: &Content, ring: &KeyRing) -> Content {
    let says = |(key, value): &(Key, Bytes)| {
        Group::of_manifest(key).is_none().then(|| {
            let opened = envelope::open(ring, key, value).map(|opened| opened.content);
            (key.clone(), opened.unwrap_or_else(|_| value.clone()))
        })
    };
    Content { records: content.records.iter().filter_map(says).collect(), revision: content.revision }
}

/// `content` as it stands in a store, signed, with manifests behind all that were seen.
#[must_use]
pub fn sealed(content: &Content, ring: &KeyRing, seen: &Seen) -> Content {
    let mut records = BTreeMap::new();
    let mut groups: BTreeMap<Group, BTreeMap<Key, Leaf>> = BTreeMap::new();
    for (key, value) in &content.records {
        match sealing(key, false) {
            // A manifest that is moved as a record is none: it would be that of another store.
            Sealing::Manifest(_) => continue,
            Sealing::Open => {
                records.insert(key.clone(), value.clone());
                continue;
            }
            Sealing::Signed => {}
            Sealing::Member(group) => {
                groups.entry(group).or_default().insert(key.clone(), leaf(key, value));
            }
        }
        records.insert(key.clone(), envelope::seal(ring.own(), key, 1, &super::NOTHING_BEFORE, value));
    }
    // A group that was seen and is empty now has a manifest that says so.
    for group in seen.all().into_keys() {
        groups.entry(group).or_default();
    }
    for (group, members) in groups {
        let (generation, value) = Book::default().advance(ring, &group, &members, seen.of(&group));
        records.insert(group.key().clone(), value);
        seen.note(&group, generation);
    }
    Content { records: records.into_iter().collect(), revision: content.revision }
}

/// One record of a store.
struct Row<'a> {
    key: &'a Key,
    value: &'a Bytes,
    leased: bool,
    revision: crate::store::Revision,
}

impl<'a> Row<'a> {
    fn of(entry: &'a Entry) -> Self {
        Self {
            key: &entry.key,
            value: &entry.value,
            leased: entry.lease.is_some(),
            revision: entry.mod_revision,
        }
    }

    fn moved((key, value): &'a (Key, Bytes)) -> Self {
        Self { key, value, leased: false, revision: crate::store::Revision::ZERO }
    }

    fn fault(&self, ring: &KeyRing) -> Option<(Key, String)> {
        let why = match sealing(self.key, self.leased) {
            Sealing::Open | Sealing::Manifest(_) => return None,
            Sealing::Signed | Sealing::Member(_) => envelope::open(ring, self.key, self.value).err()?,
        };
        Some((self.key.clone(), why.to_string()))
    }
}

/// The groups that do not add up.
fn broken(rows: &[Row<'_>], ring: &KeyRing, seen: &Seen) -> BTreeMap<Group, (String, Book)> {
    let mut books: BTreeMap<Group, Book> =
        seen.all().into_keys().map(|group| (group, Book::default())).collect();
    for row in rows {
        match sealing(row.key, row.leased) {
            Sealing::Open | Sealing::Signed => {}
            Sealing::Manifest(group) => {
                books.entry(group).or_default().manifest = Some((row.value.clone(), row.revision));
            }
            Sealing::Member(group) => {
                books.entry(group).or_default().members.insert(row.key.clone(), leaf_of(row.key, row.value));
            }
        }
    }
    let fault = |(group, book): (Group, Book)| {
        let why = book.fault(ring, &group, seen.of(&group))?;
        Some((group, (why, book)))
    };
    books.into_iter().filter_map(fault).collect()
}

/// Records that are signed in one commit.
#[derive(Default)]
struct Part {
    compares: Vec<Compare>,
    ops: Vec<Op>,
    bytes: usize,
}

impl Part {
    fn has_room(&self, entry: &Entry) -> bool {
        self.ops.len() < MAX_TXN_OPS && self.bytes + Self::bytes(entry) <= MAX_TXN_BYTES
    }

    const fn bytes(entry: &Entry) -> usize {
        // The key stands in the operation and in its condition.
        2 * MAX_KEY_BYTES + entry.value.len()
    }

    fn sign(&mut self, ring: &KeyRing, entry: Entry) {
        self.bytes += Self::bytes(&entry);
        let Entry { key, value, mod_revision, lease, .. } = entry;
        let (generation, previous) = envelope::successor(Some(&value));
        let sealed = envelope::seal(ring.own(), &key, generation, &previous, &content_of(&value));
        self.compares.push(Compare::Unchanged { key: key.clone(), mod_revision });
        self.ops.push(Op::Put { key, value: sealed, lease });
    }

    fn take(&mut self) -> Result<Txn, StoreError> {
        let Self { compares, ops, .. } = std::mem::take(self);
        Txn::sealed(compares, ops)
    }
}

/// What a record says, whoever signed it, or its bytes when it is no envelope.
fn content_of(value: &Bytes) -> Bytes {
    envelope::peek(value).map_or_else(|| value.clone(), |opened| opened.content)
}
