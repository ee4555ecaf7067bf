//! Commits of people: one transaction for a whole change, checked against a state that cannot have moved meanwhile.
//!
//! A change is planned against a catalog and committed only if no other change of resources came in between: each
//! compares and writes the guard key. So two changes that are each right alone, and wrong together, cannot both happen.
//! What agents register does not write the guard; their objects are compared one by one.
//!
//! The same transaction writes the change's history ([`crate::history`]) and, where it has to be confirmed, that it waits
//! ([`crate::confirmation`]).

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use weft_api::record;
use weft_policy::{
    code,
    model::{Key, Resource},
};

use super::lockout::{self, Verdict};
use crate::{
    catalog::Catalog,
    confirmation::{self, Pending},
    core::Core,
    history::{self, Draft, Head, Standing, Touching, Verb},
    layout,
    refusal::{Refusal, catalogued},
    roles::{Caller, Role},
    seal,
    store::{Compare, MAX_TXN_OPS, Op, Revision, StoreError},
};

/// The most objects of one change. Of the 128 operations of one transaction the rest are for what a change writes beside
/// its objects: the guard, its history with up to nine values of replaced objects, its waiting.
pub(super) const MAX_OBJECTS: usize = 100;
/// How often a change is planned anew because another came in between.
const MAX_TRIES: usize = 16;
/// The longest reason of a change, in characters.
const MAX_REASON_CHARS: usize = 512;

/// Who changes something, why, and under which conditions.
#[derive(Clone, Debug)]
pub(super) struct Order {
    /// Who.
    pub(super) author: String,
    /// With whose rights: nothing is told of what it may not read.
    pub(super) caller: Caller,
    /// Why; empty when nobody said.
    pub(super) reason: String,
    /// What makes the change.
    pub(super) verb: Verb,
    /// The revision that is rolled back to, or the change that is taken back.
    pub(super) of: Option<u64>,
    /// Check everything, write nothing.
    pub(super) dry_run: bool,
    /// Also when it cuts every call to a service.
    pub(super) force: bool,
    /// Take it back unless it is confirmed within this time.
    pub(super) confirm_within: Option<Duration>,
}

impl Order {
    /// The order of a person.
    pub(super) fn of(caller: &Caller, verb: Verb, reason: &str) -> Result<Self, Refusal> {
        let (author, reason) = (caller.to_string(), checked(reason)?.to_owned());
        let caller = caller.clone();
        Ok(Self {
            author,
            caller,
            reason,
            verb,
            of: None,
            dry_run: false,
            force: false,
            confirm_within: None,
        })
    }
}

/// A reason is one line for terminals and logs: nothing in it may steer them or reorder what is read.
fn checked(reason: &str) -> Result<&str, Refusal> {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{61c}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if reason.chars().count() > MAX_REASON_CHARS || reason.chars().any(steers) {
        let what = format!("a reason is one line of at most {MAX_REASON_CHARS} characters");
        return Err(Refusal::bad_value("reason", what));
    }
    Ok(reason)
}

/// What a change writes, if everything it was checked against is still there.
#[derive(Debug)]
pub(super) struct Plan {
    before: Arc<Catalog>,
    after: Catalog,
    compares: Vec<Compare>,
    ops: Vec<Op>,
    touched: Vec<Touching>,
    /// Objects that stand already as they are asked for.
    unchanged: Vec<Key>,
    /// What it opens; then only an admin could make it, and only an admin may confirm it.
    loosens: bool,
}

impl Plan {
    /// A change of what `catalog` shows, that changes nothing yet.
    pub(super) fn on(catalog: &Arc<Catalog>) -> Self {
        Self {
            before: Arc::clone(catalog),
            after: catalog.as_ref().clone(),
            compares: Vec::new(),
            ops: Vec::new(),
            touched: Vec::new(),
            unchanged: Vec::new(),
            loosens: false,
        }
    }

    /// What stands before it.
    pub(super) const fn before(&self) -> &Arc<Catalog> {
        &self.before
    }

    /// What will stand.
    pub(super) const fn after(&self) -> &Catalog {
        &self.after
    }

    /// The objects that it touches.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.touched.iter().map(|touching| &touching.key)
    }

    /// Writes an object over what stands there, which must not have changed meanwhile.
    pub(super) fn put(&mut self, resource: Resource) {
        let object = resource.key();
        let value: bytes::Bytes = record::encode_resource(&resource).into();
        let key = layout::resource(&object);
        self.compares.push(compare(&key, self.before.revision_of(&object)));
        self.ops.push(Op::Put { key, value: value.clone(), lease: None });
        self.touch(object, Some(value));
        self.after.put(resource);
    }

    /// Deletes an object, which must still be the one of `revision`.
    pub(super) fn delete(&mut self, object: &Key, revision: Revision) {
        let key = layout::resource(object);
        self.compares.push(compare(&key, Some(revision)));
        self.ops.push(Op::Delete(key));
        self.touch(object.clone(), None);
        self.after.remove(object);
    }

    fn touch(&mut self, key: Key, after: Option<bytes::Bytes>) {
        let before = Standing::of(&self.before, &key);
        self.touched.push(Touching { key, before, after });
    }

    /// Notes an object that stands already as it is asked for.
    pub(super) fn leave(&mut self, object: Key) {
        self.unchanged.push(object);
    }

    /// Adds operations that need no condition of their own.
    pub(super) fn also(&mut self, ops: impl IntoIterator<Item = Op>) {
        self.ops.extend(ops);
    }

    /// Adds an operation that needs a condition.
    pub(super) fn only_if(&mut self, compare: Compare, op: Op) {
        self.compares.push(compare);
        self.ops.push(op);
    }

    /// Notes that only an admin could make it.
    pub(super) const fn loosen(&mut self) {
        self.loosens = true;
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
    /// The number of the change, if something was written.
    pub(super) change: Option<u64>,
    /// When it has to be confirmed by, for people.
    pub(super) confirm_by: Option<String>,
    /// Which calls it decides otherwise.
    pub(super) verdict: Verdict,
    /// Which objects other changes hold that wait for their confirmation.
    pub(super) unconfirmed: BTreeMap<Key, Held>,
}

/// By which waiting change an object is held.
pub(super) struct Held {
    /// Its number.
    change: u64,
    /// Whether the object stands as that change left it, and so is still taken back.
    stays: bool,
}

impl<T> Done<T> {
    /// That a change that was only tried would cut every call to a service, or that it could not be judged as a whole.
    pub(super) fn lockout(&self, order: &Order) -> Option<String> {
        let locked = (order.dry_run && self.verdict.locks_out()).then(|| self.verdict.warning());
        locked.or_else(|| self.verdict.unjudged())
    }

    /// What to tell of an object that another change holds.
    pub(super) fn warning(&self, key: &Key) -> Option<String> {
        let Held { change, stays } = self.unconfirmed.get(key)?;
        let what = if *stays {
            "waits for its confirmation, and without it takes this object back"
        } else {
            "waits for its confirmation, and does not take this object back any more"
        };
        Some(format!("{}: change {change} {what}", code::UNCONFIRMED))
    }
}

/// Plans against the newest catalog and commits; plans again when another change came in between. Returns when the
/// catalog shows the commit. With `dry_run` nothing is written.
pub(super) async fn commit<T>(
    core: &Core,
    order: &Order,
    plan: impl Fn(&Arc<Catalog>) -> Result<(Plan, T), Refusal>,
) -> Result<Done<T>, Refusal> {
    let mut tries = 0;
    // What is replaced is kept, unless the store has no room for it even when it has given up its history.
    let (mut room_made, mut documents) = (false, true);
    loop {
        let head = Head::read(&*core.store).await?;
        // Whoever wrote the guard wrote objects in the same commit: the catalog comes to it.
        core.world.wait_for(head.revision.unwrap_or_default()).await;
        let world = core.world.current();
        let (planned, answer) = plan(world.catalog())?;
        let verdict = lockout::judge(&world, &planned, &order.caller, order.dry_run);
        // A dry run is there to show what would happen: it tells as a warning what the change would be refused for.
        if verdict.locks_out() && !order.force && !order.dry_run {
            core.metrics.lockouts.inc();
            return Err(verdict.refusal());
        }
        let unconfirmed = held(core, order, &planned).await?;
        let revision = world.catalog().revision();
        let done = Done { answer, revision, change: None, confirm_by: None, verdict, unconfirmed };
        if order.dry_run || planned.is_empty() {
            return Ok(done);
        }
        let now = core.clock.now();
        let pending = pending(order, &planned, head.next(), now);
        let touches = !planned.touched.is_empty();
        let (compares, ops) = transaction(order, planned, &head, now, documents, pending.as_ref())?;
        match core.store.txn(compares, ops.clone()).await {
            Ok(revision) => {
                core.world.wait_for_commit(revision, &ops).await;
                let confirm_by = pending.map(|pending| pending.confirm_by());
                let change = touches.then_some(head.next());
                if let Some(change) = change {
                    history::trim::after(core, change).await;
                }
                return Ok(Done { revision, change, confirm_by, ..done });
            }
            Err(StoreError::Conflict(conflict)) if conflict.key == layout::guard() && tries < MAX_TRIES => {
                tries += 1;
            }
            Err(StoreError::Conflict(conflict)) => return Err(conflicted(&conflict)),
            Err(StoreError::Full { .. }) if !room_made => {
                room_made = true;
                history::trim::make_room(core).await?;
            }
            // One that waits for its confirmation could never be taken back without what it replaced.
            Err(StoreError::Full { .. }) if documents && order.confirm_within.is_none() => documents = false,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Which objects of the plan other changes hold that wait for their confirmation. A change that is to wait itself must
/// not hold an object together with another: which of the two states would be the one to go back to?
async fn held(core: &Core, order: &Order, plan: &Plan) -> Result<BTreeMap<Key, Held>, Refusal> {
    let mut held = BTreeMap::new();
    let waiting = confirmation::all_with_changes(&*core.store).await?;
    for (pending, change) in &waiting {
        let own = order.verb == Verb::Unconfirmed && order.of == Some(pending.change);
        let Some(change) = change.as_ref().filter(|_| !own) else { continue };
        for (key, stays) in
            plan.keys().map(|key| (key, false)).chain(plan.unchanged.iter().map(|key| (key, true)))
        {
            if change.touched(key).is_some() {
                held.insert(key.clone(), Held { change: change.number, stays });
            }
        }
    }
    if order.confirm_within.is_some() {
        if let Some((key, Held { change, .. })) = held.iter().find(|(_, held)| !held.stays) {
            let fault = catalogued(code::UNCONFIRMED, format!("{key} belongs to change {change}"));
            let fault = fault.why(format!("change {change} waits for its confirmation itself"));
            return Err(Refusal::new(tonic::Code::FailedPrecondition, fault));
        }
        let waiting: Vec<_> = waiting.into_iter().map(|(pending, _)| pending).collect();
        confirmation::room(&waiting, &order.author)?;
    }
    Ok(held)
}

fn pending(order: &Order, plan: &Plan, change: u64, now: SystemTime) -> Option<Pending> {
    let window = order.confirm_within.filter(|_| !plan.touched.is_empty())?;
    let needs = if plan.loosens { Role::Admin } else { Role::Editor };
    Some(Pending { change, deadline: now + window, author: order.author.clone(), needs, failed: None })
}

/// All that is written, and what must hold for it.
fn transaction(
    order: &Order,
    plan: Plan,
    head: &Head,
    now: SystemTime,
    documents: bool,
    pending: Option<&Pending>,
) -> Result<(Vec<Compare>, Vec<Op>), Refusal> {
    let Plan { mut compares, mut ops, touched, .. } = plan;
    if !touched.is_empty() {
        let draft = Draft {
            author: order.author.clone(),
            reason: order.reason.clone(),
            verb: order.verb,
            of: order.of,
            objects: touched,
        };
        ops.extend(draft.ops(head.next(), now, documents));
        // A commit without objects does not write it: whoever reads the guard waits for the catalog to show its commit.
        ops.push(head.advance());
    }
    ops.extend(pending.map(Pending::put));
    compares.push(head.compare());
    // Each namespace has a manifest that is written, and compared, with its records.
    let needed = seal::operations(&ops);
    if needed.max(compares.len() + needed - ops.len()) > MAX_TXN_OPS {
        let what = format!("the change needs {needed} operations, one transaction has {MAX_TXN_OPS}");
        return Err(Refusal::invalid(vec![catalogued(code::OVER_LIMIT, what)]));
    }
    Ok((compares, ops))
}

/// The refusal of a change whose object somebody else changed meanwhile.
fn conflicted(conflict: &crate::store::Conflict) -> Refusal {
    let what = match layout::place(&conflict.key) {
        layout::Place::Resource(key) => return changed_meanwhile(&key, conflict.current),
        layout::Place::Registration(..)
        | layout::Place::Label(_)
        | layout::Place::Node(_)
        | layout::Place::User(_)
        | layout::Place::Denied(_)
        | layout::Place::Server(_)
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
