//! Makes of a transaction the one that is committed: its records signed, the manifests of their groups advanced.
//!
//! Pure: what stands in the store comes in as [`Standing`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{
    Digest, Group, KeyRing, NOTHING_BEFORE, envelope,
    group::{Count, Leaf, Sealing, leaf, sealing},
    ledger::fault,
    sha256,
};
use crate::store::{Compare, Key, Op, Revision, StoreError, Txn};

/// A group as it stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Book {
    /// The manifest in the store, and the commit that wrote it.
    pub(super) manifest: Option<(Bytes, Revision)>,
    pub(super) members: BTreeMap<Key, Leaf>,
}

impl Book {
    /// Why it cannot be vouched for; `seen` is the newest generation that was seen.
    pub(super) fn fault(&self, ring: &KeyRing, group: &Group, seen: u64) -> Option<String> {
        let Some((sealed, _)) = &self.manifest else { return fault(None, &self.members, seen) };
        let opened = match envelope::open(ring, group.key(), sealed) {
            Ok(opened) => opened,
            Err(why) => return Some(format!("its manifest is refused: {why}")),
        };
        let Some(says) = Count::decode(&opened.content) else {
            return Some("its manifest cannot be read".to_owned());
        };
        fault(Some((opened.generation, &says)), &self.members, seen)
    }

    /// The manifest of `members` that follows this one: its generation and its bytes.
    pub(super) fn advance(
        &self,
        ring: &KeyRing,
        group: &Group,
        members: &BTreeMap<Key, Leaf>,
        seen: u64,
    ) -> (u64, Bytes) {
        let (generation, previous) = match &self.manifest {
            Some((sealed, _)) => envelope::successor(Some(sealed)),
            None => (1, NOTHING_BEFORE),
        };
        let generation = generation.max(seen.saturating_add(1));
        let content = Count::of(members).encode();
        (generation, envelope::seal(ring.own(), group.key(), generation, &previous, &content))
    }

    /// Holds as long as nobody else has written the manifest.
    pub(super) fn compare(&self, group: &Group) -> Compare {
        let key = group.key().clone();
        match &self.manifest {
            Some((_, mod_revision)) => Compare::Unchanged { key, mod_revision: *mod_revision },
            None => Compare::Absent(key),
        }
    }
}

/// A group as it stands once a transaction is committed.
#[derive(Clone, Debug)]
pub(super) struct Advanced {
    pub(super) group: Group,
    pub(super) generation: u64,
    pub(super) manifest: Bytes,
    pub(super) members: BTreeMap<Key, Leaf>,
}

/// What stands in the store of what a transaction is about.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    /// The generation and the hash of the predecessor of what is put, by key; nothing stands at the others.
    pub(super) records: BTreeMap<Key, (u64, Digest)>,
    pub(super) books: BTreeMap<Group, Book>,
    pub(super) seen: BTreeMap<Group, u64>,
}

/// The groups whose members `ops` change.
pub(super) fn groups(ops: &[Op]) -> BTreeSet<Group> {
    let group = |op: &Op| match sealing(op.key(), is_leased(op)) {
        Sealing::Member(group) => Some(group),
        Sealing::Open | Sealing::Signed | Sealing::Manifest(_) => None,
    };
    ops.iter().filter_map(group).collect()
}

/// How many operations `ops` are once they are sealed: each group has one more.
#[must_use]
pub(crate) fn operations(ops: &[Op]) -> usize {
    ops.len() + groups(ops).len()
}

fn is_leased(op: &Op) -> bool {
    matches!(op, Op::Put { lease: Some(_), .. })
}

/// What is committed for `txn`, and its groups as they then stand.
///
/// # Errors
///
/// [`StoreError::Unvouched`] when a group does not add up: what is wrong in it would be signed with the change.
pub(super) fn seal(
    ring: &KeyRing,
    txn: &Txn,
    standing: &Standing,
) -> Result<(Txn, Vec<Advanced>), StoreError> {
    let mut compares = txn.compares().to_vec();
    let mut ops = Vec::with_capacity(txn.ops().len() + standing.books.len());
    let mut after: BTreeMap<&Group, BTreeMap<Key, Leaf>> = BTreeMap::new();
    for (group, book) in &standing.books {
        let seen = standing.seen.get(group).copied().unwrap_or_default();
        if let Some(why) = book.fault(ring, group, seen) {
            return Err(StoreError::Unvouched { what: group.to_string(), why });
        }
        after.insert(group, book.members.clone());
    }
    for op in txn.ops() {
        let of_group = match sealing(op.key(), is_leased(op)) {
            Sealing::Open => {
                ops.push(op.clone());
                continue;
            }
            Sealing::Manifest(group) => {
                let why = "nobody but the layer that seals records writes a manifest".to_owned();
                return Err(StoreError::Unvouched { what: group.to_string(), why });
            }
            Sealing::Member(group) => Some(group),
            Sealing::Signed => None,
        };
        let members = of_group.as_ref().and_then(|group| after.get_mut(group));
        match op {
            Op::Delete(key) => {
                members.map(|members| members.remove(key));
                ops.push(op.clone());
            }
            Op::Put { key, value, lease } => {
                let (generation, previous) =
                    standing.records.get(key).copied().unwrap_or((1, NOTHING_BEFORE));
                members.map(|members| members.insert(key.clone(), leaf(key, value)));
                let value = envelope::seal(ring.own(), key, generation, &previous, value);
                ops.push(Op::Put { key: key.clone(), value, lease: *lease });
            }
        }
    }
    let mut generations = Vec::new();
    for (group, members) in after {
        let (Some(book), seen) =
            (standing.books.get(group), standing.seen.get(group).copied().unwrap_or_default())
        else {
            continue;
        };
        // A record that is not there is not deleted: what changes nothing makes no revision.
        let written =
            txn.ops().iter().any(|op| matches!(op, Op::Put { .. }) && group.has(op.key(), is_leased(op)));
        if !written && members == book.members {
            continue;
        }
        let (generation, value) = book.advance(ring, group, &members, seen);
        compares.push(book.compare(group));
        ops.push(Op::Put { key: group.key().clone(), value: value.clone(), lease: None });
        generations.push(Advanced { group: group.clone(), generation, manifest: value, members });
    }
    Ok((Txn::sealed(compares, ops)?, generations))
}

/// The generation and the predecessor's hash of what comes after `sealed`.
pub(super) fn follows(sealed: &Bytes) -> (u64, Digest) {
    let (generation, _) = envelope::successor(Some(sealed));
    (generation, sha256(&[sealed]))
}
