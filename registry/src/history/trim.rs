//! How much history is kept: so many changes, so many of one object, so many bytes.
//!
//! First goes what only has objects with enough newer revisions, so that a program that applies one object every minute
//! does not push the history of all others out; then the oldest.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};
use weft_policy::model::Key;

use super::record::Change;
use crate::{
    confirmation,
    core::Core,
    layout,
    store::{MAX_TXN_OPS, Op, Store, StoreError},
};

/// The most changes that are kept: at ten a day more than half a year. Reading all of them is four pages of the store.
pub const MAX_CHANGES: usize = 2_000;
/// The most revisions of one object that are told and that keep a change from being forgotten: a year of weekly ones.
pub const MAX_PER_OBJECT: usize = 50;
/// The most bytes of it, replaced objects and all: an eighth of what the embedded store holds in memory.
pub const MAX_BYTES: usize = 32 << 20;
/// What a change itself takes for each object that it names, roughly: two names of 63 characters, a hash, the words.
const OBJECT_BYTES: usize = 256;
/// Every so many changes it is looked whether there are too many, so that most of them cost no listing. The bounds are
/// exceeded by so many at most.
const EVERY: u64 = 16;

/// After a change of the number `newest`: forgets what is too much, now and then. The change is made; that too much history is
/// kept for a while is no reason to say that it was not.
pub async fn after(core: &Core, newest: u64) {
    core.metrics.history_changes.inc();
    if newest.is_multiple_of(EVERY)
        && let Err(error) = trim(core, Bounds::default()).await
    {
        warn!(%error, "old changes of the history could not be forgotten");
    }
}

/// Forgets all that waits for no confirmation: a store that is full gives up its history first.
///
/// # Errors
///
/// [`StoreError`] when the store cannot be read or written; what was forgotten before stays so.
pub async fn make_room(core: &Core) -> Result<(), StoreError> {
    trim(core, Bounds { changes: 0, per_object: 0, bytes: 0 }).await
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    changes: usize,
    per_object: usize,
    bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { changes: MAX_CHANGES, per_object: MAX_PER_OBJECT, bytes: MAX_BYTES }
    }
}

async fn trim(core: &Core, bounds: Bounds) -> Result<(), StoreError> {
    let store = &*core.store;
    let changes = super::changes(store).await?;
    let waiting = confirmation::all(store).await?.iter().map(|pending| pending.change).collect();
    let excess = excess(&changes, &waiting, bounds);
    forget(store, &changes, &excess).await?;
    let kept = changes.len() - excess.len();
    core.metrics.history_changes.set(i64::try_from(kept).unwrap_or(i64::MAX));
    if !excess.is_empty() {
        core.metrics.history_forgotten.inc_by(u64::try_from(excess.len()).unwrap_or(u64::MAX));
        info!(forgotten = excess.len(), kept, "old changes of the history were forgotten");
    }
    Ok(())
}

/// The numbers of the changes that are too many. `changes` are in the order of their numbers.
fn excess(changes: &[Change], waiting: &BTreeSet<u64>, bounds: Bounds) -> BTreeSet<u64> {
    let mut newer: BTreeMap<&Key, usize> = BTreeMap::new();
    let mut excess = BTreeSet::new();
    let (mut kept, mut bytes) = (0, 0);
    for change in changes.iter().rev() {
        let counts: Vec<usize> = change
            .objects
            .iter()
            .map(|object| {
                let count = newer.entry(&object.key).or_default();
                *count += 1;
                *count
            })
            .collect();
        if waiting.contains(&change.number) {
            continue;
        }
        let needed = counts.into_iter().any(|count| count <= bounds.per_object);
        let size = change.bytes + change.objects.len() * OBJECT_BYTES;
        let fits = kept < bounds.changes && bytes + size <= bounds.bytes;
        if needed && fits {
            kept += 1;
            bytes += size;
        } else {
            excess.insert(change.number);
        }
    }
    excess
}

async fn forget(store: &dyn Store, changes: &[Change], numbers: &BTreeSet<u64>) -> Result<(), StoreError> {
    let gone = changes.iter().filter(|change| numbers.contains(&change.number));
    let keys: Vec<_> = gone
        .flat_map(|change| {
            let parts = (0..change.parts).map(|part| layout::replaced(change.number, part));
            parts.chain([layout::change(change.number)])
        })
        .collect();
    for some in keys.chunks(MAX_TXN_OPS) {
        store.txn(Vec::new(), some.iter().cloned().map(Op::Delete).collect()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use weft_policy::model::Resource;

    use super::*;
    use crate::{
        history::{
            Action, Verb,
            record::{Before, Touched},
        },
        samples,
        timestamp::from_unix_seconds,
    };

    const SMALL: Bounds = Bounds { changes: 10, per_object: 3, bytes: 10_000 };

    fn change(number: u64, names: &[&str], bytes: usize) -> Change {
        let touched = |name: &&str| Touched {
            key: Resource::Service(samples::service(name, "shop")).key(),
            action: Action::Configured,
            before: Before::Lost,
            after: None,
        };
        Change {
            number,
            at: from_unix_seconds(0).unwrap(),
            author: String::new(),
            reason: String::new(),
            verb: Verb::Apply,
            of: None,
            parts: 1,
            bytes,
            objects: names.iter().map(touched).collect(),
        }
    }

    fn numbers(numbers: &[u64]) -> BTreeSet<u64> {
        numbers.iter().copied().collect()
    }

    #[test]
    fn a_busy_object_keeps_its_newest_revisions_and_pushes_no_other_out() {
        let mut changes = vec![change(1, &["quiet"], 1), change(2, &["quiet", "busy"], 1)];
        changes.extend((3..=9).map(|number| change(number, &["busy"], 1)));
        assert_eq!(excess(&changes, &numbers(&[]), SMALL), numbers(&[3, 4, 5, 6]));
    }

    #[test]
    fn the_oldest_go_first_when_there_are_too_many_or_they_are_too_large() {
        let names: Vec<String> = (1..=12).map(|number| format!("s{number}")).collect();
        let many: Vec<_> =
            (1..=12).map(|n| change(n, &[&names[usize::try_from(n).unwrap() - 1]], 1)).collect();
        assert_eq!(excess(&many, &numbers(&[]), SMALL), numbers(&[1, 2]));
        let large: Vec<_> =
            (1..=3).map(|n| change(n, &[&names[usize::try_from(n).unwrap()]], 4_000)).collect();
        assert_eq!(excess(&large, &numbers(&[]), SMALL), numbers(&[1]));
    }

    #[test]
    fn a_change_that_waits_for_its_confirmation_is_never_forgotten() {
        let changes: Vec<_> = (1..=9).map(|number| change(number, &["busy"], 1)).collect();
        let none = Bounds { changes: 0, per_object: 0, bytes: 0 };
        assert_eq!(excess(&changes, &numbers(&[2]), none), numbers(&[1, 3, 4, 5, 6, 7, 8, 9]));
    }
}
