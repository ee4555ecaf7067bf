//! Changes that wait: who may confirm them, and how they are taken back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use nix::unistd::geteuid;
use tracing::{error, info, warn};
use weft_api::{
    convert::management as convert,
    pb::management::{Applied, ApplyResponse, ConfirmRequest, ConfirmResponse, ObjectRef, PendingChange},
};
use weft_policy::{
    code,
    model::{Key, Resource},
};

use super::{
    apply::{self, Item},
    change::{self, Done, Order, Plan},
    require_everywhere, require_for, rollback,
};
use crate::{
    catalog::Catalog,
    confirmation::{self, Pending},
    core::Core,
    history::{self, Stood, Verb, record::Change, stands_as_left},
    layout,
    refusal::{Refusal, catalogued},
    roles::{Caller, Role, Source},
    store::StoreError,
};

/// How often it is tried again to take a change back when somebody writes its objects at that moment.
const MAX_TRIES: usize = 4;

pub(super) async fn confirm(
    core: &Core,
    caller: &Caller,
    request: &ConfirmRequest,
) -> Result<ConfirmResponse, Refusal> {
    let (pending, change) = find(core, caller, request.change).await?;
    match &change {
        Some(change) => {
            let mut objects = change.objects.iter();
            objects.try_for_each(|object| require_for(caller, &object.key, pending.needs))?;
        }
        // Nobody knows any more what it is about.
        None => require_everywhere(caller, pending.needs)?,
    }
    if request.abort {
        // Whoever takes back what somebody else tightened opens it, and needs the role for that. One's own is taken back
        // by the server in time anyway.
        let own = pending.author == caller.to_string();
        let whom = if own { server() } else { caller.clone() };
        let undone = take_back(core, &whom, &pending, change, &caller.to_string(), "aborted").await?;
        let (results, undone_by) = (undone.results, undone.change);
        return Ok(ConfirmResponse { change: pending.change, results, undone_by });
    }
    let (compare, op) = pending.end();
    match core.store.txn(vec![compare], vec![op]).await {
        Ok(_) => {
            info!(target: "audit", who = %caller, change = pending.change, "change confirmed");
            Ok(ConfirmResponse { change: pending.change, results: Vec::new(), undone_by: 0 })
        }
        Err(StoreError::Conflict(_)) => Err(decided(pending.change)),
        Err(error) => Err(error.into()),
    }
}

/// The change that is meant: that of the number, or the only one of the caller's.
async fn find(core: &Core, caller: &Caller, number: u64) -> Result<(Pending, Option<Change>), Refusal> {
    let mut waiting = confirmation::all_with_changes(&*core.store).await?;
    if number != 0 {
        waiting.retain(|(pending, change)| pending.change == number && may_see(caller, change.as_ref()));
        return waiting.pop().ok_or_else(|| decided(number));
    }
    let author = caller.to_string();
    waiting.retain(|(pending, _)| pending.author == author);
    match waiting.len() {
        0 | 1 => waiting.pop().ok_or_else(|| {
            let what = format!("no change of {author} waits for its confirmation");
            Refusal::new(tonic::Code::NotFound, catalogued(code::NOT_WAITING, what))
        }),
        count => {
            let numbers: Vec<_> = waiting.iter().map(|(pending, _)| pending.change.to_string()).collect();
            let what = format!("{count} changes wait: name one of {}", numbers.join(", "));
            Err(Refusal::bad_value("change", what))
        }
    }
}

/// A change is told to those who may read everything that it touched; one that lost its history, to readers of the mesh.
fn may_see(caller: &Caller, change: Option<&Change>) -> bool {
    match change {
        Some(change) => {
            change.objects.iter().all(|object| require_for(caller, &object.key, Role::Viewer).is_ok())
        }
        None => caller.role_in(None) >= Role::Viewer,
    }
}

fn decided(change: u64) -> Refusal {
    let what = format!("change {change} does not wait for a confirmation");
    Refusal::new(tonic::Code::NotFound, catalogued(code::NOT_WAITING, what))
}

/// Takes back what nobody has confirmed in time.
///
/// # Errors
///
/// A refusal when it cannot be taken back; then it still waits. That somebody else was faster is none.
pub(crate) async fn expire(core: &Core, pending: &Pending) -> Result<(), Refusal> {
    let change = history::change(&*core.store, pending.change).await?;
    let author = format!("server {}", core.instance);
    match take_back(core, &server(), pending, change, &author, "not confirmed in time").await {
        Err(refusal) if *refusal.faults()[0].code == *code::NOT_WAITING.as_str() => Ok(()),
        answer => answer.map(drop),
    }
}

/// Notes in the record why a change could not be taken back, so that the status tells it, also after a restart.
pub(crate) async fn note_failure(core: &Core, pending: &Pending, why: String) {
    if pending.failed.as_ref() == Some(&why) {
        return;
    }
    let (compare, _) = pending.end();
    let failed = Pending { failed: Some(why), ..pending.clone() };
    if let Err(error) = core.store.txn(vec![compare], vec![failed.put()]).await {
        warn!(%error, change = pending.change, "that a change could not be taken back could not be noted");
    }
}

/// Puts everything back that stands as the change left it, in one change of its own, and ends the waiting with it.
async fn take_back(
    core: &Core,
    caller: &Caller,
    pending: &Pending,
    change: Option<Change>,
    author: &str,
    why: &str,
) -> Result<ApplyResponse, Refusal> {
    let states = states(core, change.as_ref()).await?;
    let order = Order {
        author: author.to_owned(),
        caller: caller.clone(),
        reason: format!("change {} of {}: {why}", pending.change, pending.author),
        verb: Verb::Unconfirmed,
        of: Some(pending.change),
        dry_run: false,
        // It brings back what was in force before, whatever that allows or refuses.
        force: true,
        confirm_within: None,
    };
    let mut tries = 0;
    loop {
        let done = change::commit(core, &order, |catalog| {
            plan(core, caller, catalog, pending, change.as_ref(), &states)
        });
        match done.await {
            Ok(done) => return Ok(finish(core, &order, pending, done)),
            Err(refusal) if !waits(core, pending).await? => {
                tracing::debug!(?refusal, "somebody else was faster");
                return Err(decided(pending.change));
            }
            // An agent wrote one of the objects at this moment: the next try leaves it alone.
            Err(refusal) if refusal.code() == tonic::Code::Aborted && tries < MAX_TRIES => tries += 1,
            Err(refusal) => return Err(refusal),
        }
    }
}

async fn waits(core: &Core, pending: &Pending) -> Result<bool, Refusal> {
    Ok(core.store.get(&layout::unconfirmed(pending.change)).await?.is_some())
}

/// What is put back, and what somebody has changed since and so stays as it is.
struct Undone {
    items: Vec<Item>,
    since: BTreeSet<Key>,
}

fn plan(
    core: &Core,
    caller: &Caller,
    catalog: &Arc<Catalog>,
    pending: &Pending,
    change: Option<&Change>,
    states: &BTreeMap<Key, Option<Resource>>,
) -> Result<(Plan, Undone), Refusal> {
    let as_left = |key: &Key| {
        let object = change.and_then(|change| change.touched(key));
        object.is_some_and(|object| stands_as_left(object, catalog.get(key).as_ref()))
    };
    let (left, since): (BTreeMap<_, _>, BTreeMap<_, _>) =
        states.iter().map(|(key, state)| (key.clone(), state.clone())).partition(|(key, _)| as_left(key));
    let mut plan = Plan::on(catalog);
    let items = rollback::restore(core, caller, catalog, &mut plan, &left)?;
    let (compare, op) = pending.end();
    plan.only_if(compare, op);
    Ok((plan, Undone { items, since: since.into_keys().collect() }))
}

/// Who takes back: the server itself, which may bring back what an admin once allowed.
fn server() -> Caller {
    let source = Source::Local { uid: geteuid().as_raw() };
    Caller { identity: None, role: Role::Admin, scope: None, source, peer: None }
}

/// Says what was done, loudly when it is not all.
fn finish(core: &Core, order: &Order, pending: &Pending, done: Done<Undone>) -> ApplyResponse {
    let Done { answer: Undone { items, since }, revision, change, confirm_by, verdict, unconfirmed } = done;
    let kept: Vec<_> = since.iter().map(ToString::to_string).collect();
    if kept.is_empty() {
        core.metrics.took_back("ok");
        let author = &pending.author;
        warn!(target: "audit", change = pending.change, author, why = order.reason, "change taken back");
    } else {
        core.metrics.took_back("partly");
        error!(
            target: "audit", change = pending.change, author = pending.author, kept = kept.join(", "),
            "change taken back only in part: somebody has changed these objects since, and they stay as they are"
        );
    }
    let mut answer = apply::answer(
        core,
        order,
        Done { answer: items, revision, change, confirm_by, verdict, unconfirmed },
    );
    answer.results.extend(since.iter().map(|key| {
        let ObjectRef { kind, namespace, name } = convert::reference(key);
        let what = format!("{}: changed since, and left as it is", code::NOT_TAKEN_BACK);
        Applied { kind, namespace, name, outcome: "unchanged".to_owned(), revision: 0, warnings: vec![what] }
    }));
    answer
}

/// How each object of the change stood before it.
async fn states(core: &Core, change: Option<&Change>) -> Result<BTreeMap<Key, Option<Resource>>, Refusal> {
    let mut states = BTreeMap::new();
    let Some(change) = change else {
        return Err(super::revisions::gone("what the change did is not kept".to_owned()));
    };
    for object in &change.objects {
        let state = match history::before(&*core.store, change, object).await? {
            Stood::Absent => None,
            Stood::As(resource) => Some(*resource),
            Stood::Gone => {
                let what = format!("how {} stood before change {} is not kept", object.key, change.number);
                return Err(super::revisions::gone(what));
            }
        };
        states.insert(object.key.clone(), state);
    }
    Ok(states)
}

/// The changes that wait, for the status.
pub(super) async fn told(core: &Core, caller: &Caller) -> Result<Vec<PendingChange>, Refusal> {
    let waiting = confirmation::all_with_changes(&*core.store).await?;
    let visible = waiting.into_iter().filter(|(_, change)| may_see(caller, change.as_ref()));
    let tell = |(pending, change): (Pending, Option<Change>)| PendingChange {
        change: pending.change,
        confirm_by: pending.confirm_by(),
        author: pending.author,
        reason: change.as_ref().map(|change| change.reason.clone()).unwrap_or_default(),
        objects: change
            .iter()
            .flat_map(|change| &change.objects)
            .map(|object| convert::reference(&object.key))
            .collect(),
        failed: pending.failed.unwrap_or_default(),
    };
    Ok(visible.map(tell).collect())
}
