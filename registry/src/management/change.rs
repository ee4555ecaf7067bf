//! Commits of people: one transaction for a whole change, checked against a state that cannot have moved meanwhile.
//!
//! A change is planned against a catalog and committed only if no other change of resources came in between: each
//! compares and writes the guard key. So two changes that are each right alone, and wrong together, cannot both happen.
//! What agents register does not write the guard; their objects are compared one by one.

use std::sync::Arc;

use bytes::Bytes;
use weft_policy::model::Key;

use crate::{
    catalog::Catalog,
    core::Core,
    layout,
    refusal::{Refusal, catalogued},
    store::{Compare, MAX_TXN_OPS, Op, Revision, StoreError},
};
use weft_policy::code;

/// The most operations of one change: those of one transaction, less the guard's.
pub(super) const MAX_OPS: usize = MAX_TXN_OPS - 1;
/// How often a change is planned anew because another came in between.
const MAX_TRIES: usize = 16;

/// What a change writes, if everything it was checked against is still there.
#[derive(Debug, Default)]
pub(super) struct Plan {
    compares: Vec<Compare>,
    ops: Vec<Op>,
}

impl Plan {
    /// Writes an object over `before`, which must still be the one that stands there.
    pub(super) fn put(&mut self, key: &Key, value: Bytes, before: Option<Revision>) {
        let key = layout::resource(key);
        self.compares.push(compare(&key, before));
        self.ops.push(Op::Put { key, value, lease: None });
    }

    /// Deletes an object, which must still be the one of `before`.
    pub(super) fn delete(&mut self, key: &Key, before: Revision) {
        let key = layout::resource(key);
        self.compares.push(compare(&key, Some(before)));
        self.ops.push(Op::Delete(key));
    }

    /// Adds operations that need no condition of their own.
    pub(super) fn also(&mut self, ops: impl IntoIterator<Item = Op>) {
        self.ops.extend(ops);
    }

    /// Whether nothing is written.
    pub(super) const fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

fn compare(key: &crate::store::Key, before: Option<Revision>) -> Compare {
    match before {
        Some(mod_revision) => Compare::Unchanged { key: key.clone(), mod_revision },
        None => Compare::Absent(key.clone()),
    }
}

/// What came of a change.
pub(super) struct Done<T> {
    /// What the plan answered.
    pub(super) answer: T,
    /// The commit, or the newest one when nothing was written.
    pub(super) revision: Revision,
    /// Whether something was written.
    pub(super) committed: bool,
}

/// Plans against the newest catalog and commits; plans again when another change came in between. Returns when the
/// catalog shows the commit. With `dry_run` nothing is written.
pub(super) async fn commit<T>(
    core: &Core,
    dry_run: bool,
    plan: impl Fn(&Arc<Catalog>) -> Result<(Plan, T), Refusal>,
) -> Result<Done<T>, Refusal> {
    let guard = layout::guard();
    let mut tries = 0;
    loop {
        let before = core.store.get(&guard).await?.map(|entry| entry.mod_revision);
        // Whoever wrote the guard wrote objects in the same commit: the catalog comes to it.
        core.world.wait_for(before.unwrap_or(Revision::ZERO)).await;
        let catalog = core.world.catalog();
        let (planned, answer) = plan(&catalog)?;
        if dry_run || planned.is_empty() {
            return Ok(Done { answer, revision: catalog.revision(), committed: false });
        }
        if planned.ops.len().max(planned.compares.len()) > MAX_OPS {
            let what =
                format!("the change needs {} operations, one transaction has {MAX_OPS}", planned.ops.len());
            return Err(Refusal::invalid(vec![catalogued(code::OVER_LIMIT, what)]));
        }
        let mut compares = planned.compares;
        compares.push(compare(&guard, before));
        let mut ops = planned.ops;
        ops.push(Op::Put { key: guard.clone(), value: Bytes::new(), lease: None });
        match core.store.txn(compares, ops).await {
            Ok(revision) => {
                core.world.wait_for(revision).await;
                return Ok(Done { answer, revision, committed: true });
            }
            Err(StoreError::Conflict(conflict)) if conflict.key == guard && tries < MAX_TRIES => tries += 1,
            Err(StoreError::Conflict(conflict)) => return Err(conflicted(&conflict)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The refusal of a change whose object somebody else changed meanwhile.
fn conflicted(conflict: &crate::store::Conflict) -> Refusal {
    let what = match layout::place(&conflict.key) {
        layout::Place::Resource(key) => return changed_meanwhile(&key, conflict.current),
        layout::Place::Registration(..)
        | layout::Place::Label(_)
        | layout::Place::Node(_)
        | layout::Place::User(_)
        | layout::Place::Unknown => "too many changes come at once".to_owned(),
    };
    Refusal::new(tonic::Code::Aborted, catalogued(code::WRITE_CONFLICT, what))
}

/// The refusal of a change made from another revision of `key` than the present one.
pub(super) fn changed_meanwhile(key: &Key, current: Option<Revision>) -> Refusal {
    let fault = match current {
        Some(revision) => catalogued(code::WRITE_CONFLICT, format!("{key} was changed by somebody else"))
            .why(format!("its revision is now {revision}")),
        None => catalogued(code::WRITE_CONFLICT, format!("{key} does not exist any more")),
    };
    Refusal::new(tonic::Code::Aborted, fault)
}
