//! Rollback: objects as they stood at an earlier revision, by a change like any other.
//!
//! What is brought back passes the admission of an apply, and what is taken away that of a delete: roles, conflicts,
//! loosening, contradictions, the lock-out guard. All objects in one transaction, or none.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_api::{
    convert::management as convert,
    pb::management::{ApplyResponse, RollbackRequest},
};
use weft_policy::{
    code,
    model::{Key, Resource},
};

use super::{
    apply::{self, Item, Outcome, put_all},
    change::{self, MAX_OBJECTS, Order, Plan},
    delete::remove_all,
    require_for,
    revisions::{self, Revisions},
};
use crate::{
    catalog::Catalog,
    confirmation,
    core::Core,
    history::{Stood, Verb},
    refusal::{Refusal, catalogued},
    roles::{Caller, Role},
    store::Revision,
};

pub(super) async fn rollback(
    core: &Core,
    caller: &Caller,
    request: RollbackRequest,
) -> Result<ApplyResponse, Refusal> {
    let mut order = Order {
        dry_run: request.dry_run,
        force: request.force,
        confirm_within: confirmation::window(request.confirm_within_ms)?,
        ..Order::of(caller, Verb::Rollback, &request.reason)?
    };
    let keys = read(&request)?;
    // Nobody learns from the history of an object what its present role does not show.
    keys.iter().try_for_each(|key| require_for(caller, key, Role::Editor))?;
    // The earlier states are read once: they never change. What they are laid over is compared when it is written.
    let seen = core.world.catalog();
    let targets = targets(core, &seen, &keys, request.to_revision).await?;
    order.of = targets.to;
    let done = change::commit(core, &order, |catalog| {
        let mut plan = Plan::on(catalog);
        let items = restore(core, caller, &seen, &mut plan, &targets.states)?;
        Ok((plan, items))
    });
    Ok(apply::answer(core, &order, done.await?))
}

fn read(request: &RollbackRequest) -> Result<BTreeSet<Key>, Refusal> {
    if request.refs.is_empty() {
        return Err(Refusal::invalid(vec![catalogued(code::NOTHING_TO_DO, "the request names no object")]));
    }
    if request.refs.len() > MAX_OBJECTS {
        let what = format!("{} objects in one rollback, at most {MAX_OBJECTS}", request.refs.len());
        return Err(Refusal::invalid(vec![catalogued(code::OVER_LIMIT, what)]));
    }
    let keys: Result<BTreeSet<Key>, _> = request.refs.iter().map(convert::key).collect();
    keys.map_err(|fault| Refusal::invalid(vec![fault]))
}

struct Targets {
    to: Option<u64>,
    states: BTreeMap<Key, Option<Resource>>,
}

/// How each object is to stand: as after revision `to`, or as before its newest change.
async fn targets(
    core: &Core,
    catalog: &Catalog,
    keys: &BTreeSet<Key>,
    to: Option<u64>,
) -> Result<Targets, Refusal> {
    let all = Revisions::read(core).await?;
    if let Some(to) = to
        && !keys.iter().any(|key| all.has(key, to))
    {
        let names: Vec<_> = keys.iter().map(ToString::to_string).collect();
        return Err(revisions::gone(format!("{} has no revision {to}", names.join(", "))));
    }
    let mut states = BTreeMap::new();
    for key in keys {
        let stood = match to {
            Some(to) => all.at(core, catalog, key, to).await?,
            None => all.previous(core, key).await?,
        };
        let state = match stood {
            Stood::Absent => None,
            Stood::As(resource) => Some(*resource),
            Stood::Gone => {
                let when = to.map_or_else(|| "before".to_owned(), |to| format!("at revision {to}"));
                return Err(revisions::gone(format!("how {key} stood {when} is not kept")));
            }
        };
        states.insert(key.clone(), state);
    }
    Ok(Targets { to, states })
}

/// Plans that every object stands as `states` says.
pub(super) fn restore(
    core: &Core,
    caller: &Caller,
    seen: &Catalog,
    plan: &mut Plan,
    states: &BTreeMap<Key, Option<Resource>>,
) -> Result<Vec<Item>, Refusal> {
    let catalog = Arc::clone(plan.before());
    let gone = states.iter().filter(|(_, state)| state.is_none()).map(|(key, _)| key);
    let (stale, absent): (Vec<_>, Vec<_>) = gone.cloned().partition(|key| catalog.revision_of(key).is_some());
    let mut items = Vec::new();
    for key in absent {
        require_for(caller, &key, Role::Editor)?;
        items.push(Item { key, outcome: Outcome::Unchanged, revision: Revision::ZERO, warnings: Vec::new() });
    }
    let stale: BTreeSet<Key> = stale.into_iter().collect();
    let mut left = remove_all(caller, plan, &stale, None)?;
    for key in stale {
        let warnings = std::mem::take(&mut left);
        items.push(Item { key, outcome: Outcome::Deleted, revision: Revision::ZERO, warnings });
    }
    let wanted: Vec<Resource> = states.values().flatten().cloned().map(without_label).collect();
    items.extend(put_all(core, caller, seen, plan, (&wanted, ""))?);
    Ok(items)
}

/// A workload's label is the server's to give: it keeps the one that it has now, and gets a new one when it has none.
fn without_label(mut resource: Resource) -> Resource {
    if let Resource::Workload(workload) = &mut resource {
        workload.label = None;
    }
    resource
}
