//! Apply: all objects in one transaction, or none.

use std::{collections::BTreeMap, sync::Arc};

use tracing::info;
use weft_api::{
    convert::management as convert,
    fault::Fault,
    pb::management::{Applied, ApplyRequest, ApplyResponse},
    record,
};
use weft_policy::{
    code,
    model::{Key, Resource, WorkloadEnrollment},
};

use super::{
    admission,
    change::{self, MAX_OPS, Plan, changed_meanwhile},
    loosening::loosening,
    require_for, who,
};
use crate::{
    catalog::Catalog,
    core::Core,
    refusal::{Refusal, catalogued},
    registration,
    roles::{Caller, Role},
    store::Revision,
};

/// The longest reason of a change, in characters.
const MAX_REASON_CHARS: usize = 512;
/// Where the reason is kept.
const REASON: &str = "weft.mesh/reason";

/// What happened to one object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    Created,
    Configured,
    Unchanged,
}

impl Outcome {
    const fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        }
    }
}

/// One object of a change.
struct Item {
    key: Key,
    outcome: Outcome,
    /// The revision that it has if it is not written.
    revision: Revision,
    warnings: Vec<String>,
}

pub(super) async fn apply(
    core: &Core,
    caller: &Caller,
    request: ApplyRequest,
) -> Result<ApplyResponse, Refusal> {
    let wanted = read(&request)?;
    // What the caller may have seen: an object that changes after it is not written over unseen.
    let seen = core.world.catalog();
    let done =
        change::commit(core, request.dry_run, |catalog| plan(core, caller, &seen, catalog, &wanted)).await?;
    let mut results = Vec::new();
    for item in done.answer {
        let written = done.committed && item.outcome != Outcome::Unchanged;
        if written {
            core.metrics.changes.inc();
            let (object, outcome) = (item.key.to_string(), item.outcome.word());
            let reason = request.reason.as_str();
            info!(target: "audit", who = who(caller), object, outcome, revision = %done.revision, ?reason);
        }
        let reference = convert::reference(&item.key);
        results.push(Applied {
            kind: reference.kind,
            namespace: reference.namespace,
            name: reference.name,
            outcome: item.outcome.word().to_owned(),
            revision: if written { done.revision.0 } else { item.revision.0 },
            warnings: item.warnings,
        });
    }
    Ok(ApplyResponse { revision: done.revision.0, results })
}

/// Reads the objects of a request, with its reason in each.
fn read(request: &ApplyRequest) -> Result<Vec<Resource>, Refusal> {
    if request.documents.is_empty() {
        return Err(Refusal::invalid(vec![catalogued(code::NOTHING_TO_DO, "the request holds no object")]));
    }
    if request.documents.len() > MAX_OPS {
        let what = format!("{} objects in one apply, at most {MAX_OPS}", request.documents.len());
        let fault = catalogued(code::OVER_LIMIT, what).why("all objects of an apply are one transaction");
        return Err(Refusal::invalid(vec![fault]));
    }
    if request.reason.chars().count() > MAX_REASON_CHARS || request.reason.chars().any(char::is_control) {
        let what = format!("a reason is one line of at most {MAX_REASON_CHARS} characters");
        return Err(Refusal::bad_value("reason", what));
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

/// What is to be written so that all of `wanted` stands as it is asked for.
fn plan(
    core: &Core,
    caller: &Caller,
    seen: &Catalog,
    catalog: &Arc<Catalog>,
    wanted: &[Resource],
) -> Result<(Plan, Vec<Item>), Refusal> {
    let mut after = catalog.as_ref().clone();
    let mut plan = Plan::default();
    let mut items = Vec::new();
    let mut faults = Vec::new();
    for resource in wanted {
        let key = resource.key();
        require_for(caller, &key, Role::Editor)?;
        let mut resource = resource.clone();
        let current = catalog.get(&key);
        let revision = catalog.revision_of(&key);
        keep_what_the_server_gave(&mut resource, current.as_ref());
        if is_same(current.as_ref(), &mut resource, revision)? {
            let revision = revision.unwrap_or_default();
            items.push(Item { key, outcome: Outcome::Unchanged, revision, warnings: Vec::new() });
            continue;
        }
        if seen.revision_of(&key) != revision {
            return Err(changed_meanwhile(&key, revision));
        }
        faults.extend(admit(core, catalog, &resource, current.as_ref()));
        if let Some(opened) = loosening(catalog, &key, Some(&resource)) {
            require_admin(caller, &key, &opened)?;
        }
        let outcome = if revision.is_some() { Outcome::Configured } else { Outcome::Created };
        plan.put(&key, record::encode_resource(&resource).into(), revision);
        items.push(Item { key, outcome, revision: revision.unwrap_or_default(), warnings: Vec::new() });
        after.put(resource);
    }
    if faults.is_empty() && !plan.is_empty() {
        faults = admission::contradictions(catalog, &after);
    }
    // Whether a workload may be where it is asked for is asked of the enrollments as they are afterwards.
    faults.extend(wanted.iter().filter_map(|resource| workload_fault(catalog, &after, resource)));
    if !faults.is_empty() {
        return Err(Refusal::invalid(faults));
    }
    for (item, resource) in items.iter_mut().zip(wanted) {
        item.warnings = admission::warnings(&after, resource);
    }
    Ok((plan, items))
}

/// Whether the object stands already as it is asked for. Refuses a change that was made from another revision.
fn is_same(
    current: Option<&Resource>,
    wanted: &mut Resource,
    revision: Option<Revision>,
) -> Result<bool, Refusal> {
    let made_from = wanted.metadata().revision;
    if made_from != 0 && revision != Some(Revision(made_from)) {
        return Err(changed_meanwhile(&wanted.key(), revision));
    }
    wanted.metadata_mut().revision = revision.unwrap_or_default().0;
    Ok(current == Some(wanted))
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
