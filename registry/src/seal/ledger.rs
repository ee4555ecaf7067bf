//! Adds up the mirrored groups as their records come and go, and says which do not add up.
//!
//! Owns the comparison of members with their manifest, and that manifests follow one another. Pure: batches of opened
//! records in ([`super::SealedStore`] opens them), verdicts out. What follows from a verdict is [`crate::catalog`]'s.
//!
//! Invariants: a group whose members or manifest cannot be vouched for is in [`Ledger::broken`]; a generation that was
//! seen never comes back.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    Digest, Group, KeyRing, envelope,
    group::{Count, Leaf, Sealing, leaf, sealing},
    sha256,
};
use crate::store::{Entry, Event, EventBatch, Key};

/// A manifest as readers are told it, once its signature was checked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Told {
    generation: u64,
    previous: Digest,
    /// Its own hash, which its successor names.
    hash: Digest,
    says: Count,
}

/// An entry of the store as readers of the mirrored part see it: opened, or with the reason for which it is refused. With
/// a manifest comes its group and generation.
#[must_use]
pub fn shown(ring: &KeyRing, mut entry: Entry) -> (Entry, Option<(Group, u64)>) {
    match sealing(&entry.key, entry.lease.is_some()) {
        Sealing::Open => (entry, None),
        Sealing::Signed | Sealing::Member(_) => {
            entry.value = match envelope::open(ring, &entry.key, &entry.value) {
                Ok(opened) => opened.content,
                Err(why) => envelope::refused(&why.to_string()),
            };
            (entry, None)
        }
        Sealing::Manifest(group) => {
            let told = told(ring, &entry);
            let generation = told.as_ref().ok().map(|told| (group, told.generation));
            entry.value = match told {
                Ok(told) => serde_json::to_vec(&told).expect("texts and numbers always serialise").into(),
                Err(why) => envelope::refused(&why),
            };
            (entry, generation)
        }
    }
}

fn told(ring: &KeyRing, entry: &Entry) -> Result<Told, String> {
    let opened = envelope::open(ring, &entry.key, &entry.value).map_err(|why| why.to_string())?;
    let says = Count::decode(&opened.content).ok_or("it cannot be read")?;
    let (generation, previous) = (opened.generation, opened.previous);
    Ok(Told { generation, previous, hash: sha256(&[&entry.value]), says })
}

/// What the manifest of a group is.
#[derive(Clone, Debug, Default)]
enum Manifest {
    #[default]
    Missing,
    Refused(String),
    Stands(Told),
}

#[derive(Clone, Debug, Default)]
struct State {
    members: BTreeMap<Key, Leaf>,
    /// Members that are refused themselves.
    refused: BTreeMap<Key, String>,
    manifest: Manifest,
    /// What is wrong with how the manifest follows the one before; stays until a newer one comes.
    misplaced: Option<String>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    groups: BTreeMap<Group, State>,
    seen: BTreeMap<Group, u64>,
    broken: BTreeMap<Group, String>,
}

impl Ledger {
    /// A ledger of nothing. `seen` are the newest generations that were seen before.
    #[must_use]
    pub fn new(seen: BTreeMap<Group, u64>) -> Self {
        let seen: BTreeMap<_, _> = seen.into_iter().filter(|(group, _)| group.is_in_mesh()).collect();
        let mut ledger = Self { seen, ..Self::default() };
        let groups: BTreeSet<Group> = ledger.seen.keys().cloned().collect();
        ledger.judge(groups);
        ledger
    }

    /// The groups that do not add up, and why.
    #[must_use]
    pub const fn broken(&self) -> &BTreeMap<Group, String> {
        &self.broken
    }

    /// Takes a commit in. Returns the groups that do not add up from now on, or for another reason than before.
    pub fn apply(&mut self, batch: &EventBatch) -> Vec<(Group, String)> {
        let touched = batch.events.iter().filter_map(|event| self.take(event)).collect();
        self.judge(touched)
    }

    fn take(&mut self, event: &Event) -> Option<Group> {
        let leased = matches!(event, Event::Put(entry) if entry.lease.is_some());
        let key = event.key();
        match sealing(key, leased) {
            Sealing::Manifest(group) => {
                self.take_manifest(&group, event);
                Some(group)
            }
            Sealing::Member(group) => {
                let state = self.groups.entry(group.clone()).or_default();
                state.refused.remove(key);
                match event {
                    Event::Delete(_) => drop(state.members.remove(key)),
                    Event::Put(entry) => {
                        state.members.insert(key.clone(), leaf(key, &entry.value));
                        if let Some(why) = envelope::refusal(&entry.value) {
                            state.refused.insert(key.clone(), why.to_owned());
                        }
                    }
                }
                Some(group)
            }
            // A member that was written over with something that hangs on a lease is gone.
            Sealing::Signed if leased => match sealing(key, false) {
                Sealing::Member(group) => {
                    self.groups.entry(group.clone()).or_default().members.remove(key);
                    Some(group)
                }
                Sealing::Open | Sealing::Signed | Sealing::Manifest(_) => None,
            },
            Sealing::Signed | Sealing::Open => None,
        }
    }

    fn take_manifest(&mut self, group: &Group, event: &Event) {
        let seen = self.seen.entry(group.clone()).or_default();
        let state = self.groups.entry(group.clone()).or_default();
        let Event::Put(entry) = event else {
            state.manifest = Manifest::Missing;
            return;
        };
        if let Some(why) = envelope::refusal(&entry.value) {
            state.manifest = Manifest::Refused(why.to_owned());
            return;
        }
        let Ok(told) = serde_json::from_slice::<Told>(&entry.value) else {
            state.manifest = Manifest::Refused("it cannot be read".to_owned());
            return;
        };
        let before = match &state.manifest {
            Manifest::Stands(before) if *before != told => Some(before),
            Manifest::Stands(_) | Manifest::Missing | Manifest::Refused(_) => None,
        };
        let older =
            told.generation < *seen || before.is_some_and(|before| told.generation == before.generation);
        let strange = before.is_some_and(|before| {
            before.generation.checked_add(1) == Some(told.generation) && told.previous != before.hash
        });
        state.misplaced = if older {
            Some(format!("its manifest is an older one: generation {}, {seen} was seen", told.generation))
        } else if strange {
            Some(format!("its manifest of generation {} does not follow the one before", told.generation))
        } else {
            None
        };
        *seen = told.generation.max(*seen);
        state.manifest = Manifest::Stands(told);
    }

    fn judge(&mut self, groups: BTreeSet<Group>) -> Vec<(Group, String)> {
        let mut news = Vec::new();
        for group in groups {
            let seen = self.seen.get(&group).copied().unwrap_or_default();
            let state = self.groups.entry(group.clone()).or_default();
            match state.fault(seen) {
                None => drop(self.broken.remove(&group)),
                Some(why) => {
                    if self.broken.insert(group.clone(), why.clone()).as_ref() != Some(&why) {
                        news.push((group, why));
                    }
                }
            }
        }
        news
    }
}

impl State {
    fn fault(&self, seen: u64) -> Option<String> {
        if let Some((key, why)) = self.refused.first_key_value() {
            return Some(format!("{key}: {why}"));
        }
        match &self.manifest {
            Manifest::Missing => fault(None, &self.members, seen),
            Manifest::Refused(why) => Some(format!("its manifest is refused: {why}")),
            Manifest::Stands(told) => self
                .misplaced
                .clone()
                .or_else(|| fault(Some((told.generation, &told.says)), &self.members, seen)),
        }
    }
}

/// What is wrong with a group of these members, whose manifest has this generation and says this; `seen` is the newest
/// generation that was seen.
#[must_use]
pub(super) fn fault(
    manifest: Option<(u64, &Count)>,
    members: &BTreeMap<Key, Leaf>,
    seen: u64,
) -> Option<String> {
    let Some((generation, says)) = manifest else {
        let nothing = members.is_empty() && seen == 0;
        return (!nothing).then(|| format!("it has {} records and no manifest", members.len()));
    };
    if generation < seen {
        return Some(format!("its manifest is an older one: generation {generation}, {seen} was seen"));
    }
    let found = Count::of(members);
    if found.count != says.count {
        return Some(format!("it has {} records, its manifest counts {}", found.count, says.count));
    }
    (found.set != says.set).then(|| format!("its {} records are not those of its manifest", found.count))
}
