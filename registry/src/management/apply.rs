//! Apply: all objects in one transaction, or none.

use std::{collections::BTreeMap, sync::Arc};

use tracing::info;
use weft_api::{
    convert::management as convert,
    fault::Fault,
    pb::management::{Applied, ApplyRequest, ApplyResponse},
};
use weft_policy::{
    code,
    model::{Key, Resource, WorkloadEnrollment},
};

use super::{
    admission,
    change::{self, Done, MAX_OBJECTS, Order, Plan, changed_meanwhile},
    loosening::loosening,
    require_for,
};
use crate::{
    catalog::Catalog,
    confirmation,
    core::Core,
    history::Verb,
    refusal::{Refusal, catalogued},
    registration,
    roles::{Caller, Role},
    store::Revision,
};

/// Where the reason is kept with the object, beside the history.
const REASON: &str = "weft.mesh/reason";

/// What happened to one object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    Created,
    Configured,
    Unchanged,
    Deleted,
}

impl Outcome {
    const fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
        }
    }
}

/// One object of a change.
pub(super) struct Item {
    pub(super) key: Key,
    pub(super) outcome: Outcome,
    /// The revision that it has if it is not written.
    pub(super) revision: Revision,
    pub(super) warnings: Vec<String>,
}

pub(super) async fn apply(
    core: &Core,
    caller: &Caller,
    request: ApplyRequest,
) -> Result<ApplyResponse, Refusal> {
    let order = Order {
        dry_run: request.dry_run,
        force: request.force,
        confirm_within: confirmation::window(request.confirm_within_ms)?,
        ..Order::of(caller, Verb::Apply, &request.reason)?
    };
    let wanted = read(&request)?;
    // What the caller may have seen: an object that changes after it is not written over unseen.
    let seen = core.world.catalog();
    let done = change::commit(core, &order, |catalog| {
        let mut plan = Plan::on(catalog);
        let items = put_all(core, caller, &seen, &mut plan, (&wanted, &request.reason))?;
        Ok((plan, items))
    });
    Ok(answer(core, &order, done.await?))
}

/// Writes down what was done, and answers it.
pub(super) fn answer(core: &Core, order: &Order, done: Done<Vec<Item>>) -> ApplyResponse {
    let mut results = Vec::new();
    let mut lockout = done.lockout(order);
    for item in &done.answer {
        let written = done.change.is_some() && item.outcome != Outcome::Unchanged;
        if written {
            core.metrics.changes.inc();
            let (object, outcome) = (item.key.to_string(), item.outcome.word());
            let (who, reason, change) = (&order.author, order.reason.as_str(), done.change);
            info!(target: "audit", who, object, outcome, change, revision = %done.revision, ?reason);
        }
        // It is the change as a whole that locks out: it is told once, with the first object that changes.
        let lockout = if item.outcome == Outcome::Unchanged { None } else { lockout.take() };
        let reference = convert::reference(&item.key);
        results.push(Applied {
            kind: reference.kind,
            namespace: reference.namespace,
            name: reference.name,
            outcome: item.outcome.word().to_owned(),
            revision: if written { done.revision.0 } else { item.revision.0 },
            warnings: item.warnings.iter().cloned().chain(done.warning(&item.key)).chain(lockout).collect(),
        });
    }
    let (decisions, more_decisions) = done.verdict.told();
    ApplyResponse {
        revision: done.revision.0,
        results,
        change: done.change.unwrap_or(0),
        confirm_by: done.confirm_by.unwrap_or_default(),
        decisions,
        more_decisions,
    }
}

/// Reads the objects of a request, with its reason in each.
fn read(request: &ApplyRequest) -> Result<Vec<Resource>, Refusal> {
    if request.documents.is_empty() {
        return Err(Refusal::invalid(vec![catalogued(code::NOTHING_TO_DO, "the request holds no object")]));
    }
    if request.documents.len() > MAX_OBJECTS {
        let what = format!("{} objects in one apply, at most {MAX_OBJECTS}", request.documents.len());
        let fault = catalogued(code::OVER_LIMIT, what).why("all objects of an apply are one transaction");
        return Err(Refusal::invalid(vec![fault]));
    }
    let mut resources = convert::resources(&request.documents, None).map_err(Refusal::invalid)?;
    let mut places: BTreeMap<Key, usize> = BTreeMap::new();
    for (index, resource) in resources.iter_mut().enumerate() {
        if let Some(first) = places.insert(resource.key(), index) {
            let what =
                format!("{} stands twice, at documents[{first}] and documents[{index}]", resource.key());
            return Err(Refusal::invalid(vec![catalogued(code::SAME_OBJECT_TWICE, what)]));
        }
        if !request.reason.is_empty() {
            let annotations = &mut resource.metadata_mut().annotations;
            annotations.insert(REASON.to_owned(), request.reason.clone());
        }
    }
    Ok(resources)
}

/// Plans that all of `wanted` stands as it is asked for, for a reason that those of it carry that have none of their own.
pub(super) fn put_all(
    core: &Core,
    caller: &Caller,
    seen: &Catalog,
    plan: &mut Plan,
    (wanted, reason): (&[Resource], &str),
) -> Result<Vec<Item>, Refusal> {
    let catalog = Arc::clone(plan.before());
    let mut items = Vec::new();
    let mut faults = Vec::new();
    for resource in wanted {
        let key = resource.key();
        require_for(caller, &key, Role::Editor)?;
        let mut resource = resource.clone();
        let current = catalog.get(&key);
        let revision = catalog.revision_of(&key);
        keep_what_the_server_gave(&mut resource, current.as_ref());
        if is_same(current.as_ref(), (&mut resource, reason), revision)? {
            let revision = revision.unwrap_or_default();
            plan.leave(key.clone());
            items.push(Item { key, outcome: Outcome::Unchanged, revision, warnings: Vec::new() });
            continue;
        }
        if seen.revision_of(&key) != revision {
            return Err(changed_meanwhile(&key, revision));
        }
        faults.extend(admit(core, &catalog, &resource, current.as_ref()));
        if let Some(opened) = loosening(&catalog, &key, Some(&resource)) {
            require_admin(caller, &key, &opened)?;
            plan.loosen();
        }
        let outcome = if revision.is_some() { Outcome::Configured } else { Outcome::Created };
        items.push(Item { key, outcome, revision: revision.unwrap_or_default(), warnings: Vec::new() });
        plan.put(resource);
    }
    if faults.is_empty() && !plan.is_empty() {
        faults = admission::contradictions(&core.world.current(), &catalog, plan.after());
    }
    // Whether a workload may be where it is asked for is asked of the enrollments as they are afterwards.
    faults.extend(wanted.iter().filter_map(|resource| workload_fault(&catalog, plan.after(), resource)));
    if !faults.is_empty() {
        return Err(Refusal::invalid(faults));
    }
    for (item, resource) in items.iter_mut().zip(wanted) {
        item.warnings = admission::warnings(plan.after(), resource);
    }
    Ok(items)
}
/// Whether the object stands already as it is asked for. Refuses a change that was made from another revision.
fn is_same(
    current: Option<&Resource>,
    (wanted, reason): (&mut Resource, &str),
    revision: Option<Revision>,
) -> Result<bool, Refusal> {
    let made_from = wanted.metadata().revision;
    if made_from != 0 && revision != Some(Revision(made_from)) {
        return Err(changed_meanwhile(&wanted.key(), revision));
    }
    wanted.metadata_mut().revision = revision.unwrap_or_default().0;
    Ok(current.is_some_and(|current| current == wanted || differs_in_reason(current, wanted, reason)))
}

/// Whether an object is asked for as it stands, only that this is done for another reason: that is no change of it. The audit
/// log has the reason, and a change that waits for its confirmation still takes the object back. A reason that stands in
/// the manifest is part of what is asked for.
fn differs_in_reason(current: &Resource, wanted: &Resource, reason: &str) -> bool {
    if wanted.metadata().annotations.get(REASON).is_some_and(|own| own != reason) {
        return false;
    }
    let mut same = wanted.clone();
    let annotations = &mut same.metadata_mut().annotations;
    match current.metadata().annotations.get(REASON) {
        Some(reason) => annotations.insert(REASON.to_owned(), reason.clone()),
        None => annotations.remove(REASON),
    };
    same == *current
}

/// A workload's label is the server's to give: who applies the object without one keeps it.
fn keep_what_the_server_gave(wanted: &mut Resource, current: Option<&Resource>) {
    if let (Resource::Workload(wanted), Some(Resource::Workload(current))) = (wanted, current)
        && wanted.label.is_none()
    {
        wanted.label.clone_from(&current.label);
    }
}

/// What cannot be written because of what the mesh is.
fn admit(core: &Core, catalog: &Catalog, wanted: &Resource, current: Option<&Resource>) -> Option<Fault> {
    match wanted {
        Resource::Mesh(mesh) if mesh.metadata.name.as_str() != "mesh" => {
            Some(catalogued(code::BAD_NAME, "the one Mesh object is named mesh").at("metadata.name", None))
        }
        Resource::Mesh(mesh) if mesh.trust_domain != core.trust_domain => {
            let what = format!("the trust domain is {} for good", core.trust_domain);
            Some(catalogued(code::IMMUTABLE, what).at("spec.trustDomain", None))
        }
        Resource::Workload(workload) => {
            let before = match current {
                Some(Resource::Workload(before)) => before.label.as_ref(),
                Some(_) | None => None,
            };
            (workload.label.as_ref() != before).then(|| {
                let what = "a workload's label is given by the server when its agent registers it";
                catalogued(code::IMMUTABLE, what).at("spec.label", None)
            })
        }
        Resource::WorkloadEnrollment(enrollment) => foreign_pattern(catalog, enrollment),
        Resource::Mesh(_)
        | Resource::Namespace(_)
        | Resource::Service(_)
        | Resource::TcpRoute(_)
        | Resource::TrafficPolicy(_)
        | Resource::AuthorizationPolicy(_) => None,
    }
}

/// An enrollment gives identities of this trust domain only: others are not this server's to sign.
fn foreign_pattern(catalog: &Catalog, enrollment: &WorkloadEnrollment) -> Option<Fault> {
    let own = catalog.trust_domain();
    let foreign = enrollment.identities.iter().find(|pattern| pattern.trust_domain() != own)?;
    let what = format!("{foreign} is not of the trust domain {own}");
    Some(catalogued(code::IDENTITY_OUT_OF_SCOPE, what).at("spec.identities", None))
}

/// A workload written by hand must be one that its node could register.
fn workload_fault(before: &Catalog, after: &Catalog, wanted: &Resource) -> Option<Fault> {
    let Resource::Workload(workload) = wanted else { return None };
    if before.get(&wanted.key()).as_ref() == Some(wanted) {
        return None;
    }
    let refusal = registration::allowed(after, &workload.node, workload).err()?;
    refusal.faults().first().cloned()
}

pub(super) fn require_admin(caller: &Caller, key: &Key, opened: &str) -> Result<(), Refusal> {
    if require_for(caller, key, Role::Admin).is_ok() {
        return Ok(());
    }
    Err(Refusal::denied(code::LOOSENING_NEEDS_ADMIN, opened))
}
