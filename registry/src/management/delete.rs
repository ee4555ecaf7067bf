//! Delete: all objects in one transaction, or none.

use std::{collections::BTreeSet, sync::Arc};

use tracing::info;
use weft_api::{
    convert::management as convert,
    pb::management::{DeleteRequest, DeleteResponse},
};
use weft_policy::{
    code,
    model::{Key, Kind, TargetRef},
    name::{Namespace, ServiceName},
};

use super::{
    apply::require_admin,
    change::{self, MAX_OBJECTS, Order, Plan, changed_meanwhile},
    loosening::loosening,
    require_for,
};
use crate::{
    catalog::{Catalog, Scoped},
    confirmation,
    core::Core,
    enrollment,
    history::Verb,
    refusal::{Refusal, catalogued},
    registration,
    roles::{Caller, Role},
    store::Revision,
};

pub(super) async fn delete(
    core: &Core,
    caller: &Caller,
    request: DeleteRequest,
) -> Result<DeleteResponse, Refusal> {
    let order = Order {
        dry_run: request.dry_run,
        force: request.force,
        confirm_within: confirmation::window(request.confirm_within_ms)?,
        ..Order::of(caller, Verb::Delete, &request.reason)?
    };
    let keys = read(&request)?;
    let expected = (request.expected_revision != 0).then_some(Revision(request.expected_revision));
    let done = change::commit(core, &order, |catalog| {
        let mut plan = Plan::on(catalog);
        let warnings = remove_all(caller, &mut plan, &keys, expected)?;
        Ok((plan, warnings))
    });
    let done = done.await?;
    if done.change.is_some() {
        for key in &keys {
            core.metrics.changes.inc();
            let (who, object, reason) = (&order.author, key.to_string(), order.reason.as_str());
            let (outcome, change) = ("deleted", done.change);
            info!(target: "audit", who, object, outcome, change, revision = %done.revision, ?reason);
        }
    }
    let deleted = keys.iter().map(convert::reference).collect();
    let held = keys.iter().filter_map(|key| done.warning(key));
    let warnings = done.answer.iter().cloned().chain(held).chain(done.lockout(&order)).collect();
    let (decisions, more_decisions) = done.verdict.told();
    Ok(DeleteResponse {
        revision: done.revision.0,
        deleted,
        warnings,
        change: done.change.unwrap_or(0),
        confirm_by: done.confirm_by.unwrap_or_default(),
        decisions,
        more_decisions,
    })
}

fn read(request: &DeleteRequest) -> Result<BTreeSet<Key>, Refusal> {
    if request.refs.is_empty() {
        return Err(Refusal::invalid(vec![catalogued(code::NOTHING_TO_DO, "the request names no object")]));
    }
    if request.refs.len() > MAX_OBJECTS {
        let what = format!("{} objects in one delete, at most {MAX_OBJECTS}", request.refs.len());
        return Err(Refusal::invalid(vec![catalogued(code::OVER_LIMIT, what)]));
    }
    let keys: Result<BTreeSet<Key>, _> = request.refs.iter().map(convert::key).collect();
    let keys = keys.map_err(|fault| Refusal::invalid(vec![fault]))?;
    if request.expected_revision != 0 && keys.len() != 1 {
        return Err(Refusal::bad_value("expectedRevision", "a revision is that of one object"));
    }
    Ok(keys)
}

/// Plans that none of `keys` is there any more, and says what still refers to them.
pub(super) fn remove_all(
    caller: &Caller,
    plan: &mut Plan,
    keys: &BTreeSet<Key>,
    expected: Option<Revision>,
) -> Result<Vec<String>, Refusal> {
    let catalog = Arc::clone(plan.before());
    for key in keys {
        require_for(caller, key, Role::Editor)?;
        let Some(revision) = catalog.revision_of(key) else {
            let fault = catalogued(code::NOT_FOUND, format!("there is no {key}"));
            return Err(Refusal::new(tonic::Code::NotFound, fault));
        };
        if expected.is_some_and(|expected| expected != revision) {
            return Err(changed_meanwhile(key, Some(revision)));
        }
        if key.kind == Kind::Mesh {
            let fault =
                catalogued(code::IMMUTABLE, "the Mesh object is the mesh itself; it cannot be deleted");
            return Err(Refusal::invalid(vec![fault]));
        }
        if let Some(opened) = loosening(&catalog, key, None) {
            require_admin(caller, key, &opened)?;
            plan.loosen();
        }
        plan.delete(key, revision);
        if let (Kind::Workload, Some(namespace)) = (key.kind, &key.namespace) {
            let scoped: Scoped = (namespace.clone(), key.name.clone());
            let label = catalog.workloads().get(&scoped).and_then(|workload| workload.label.as_ref());
            plan.also(registration::beside(&catalog, &scoped, label));
        }
    }
    Ok(keys.iter().flat_map(|key| left_behind(&catalog, plan.after(), key)).collect())
}

/// What still refers to a deleted object.
fn left_behind(before: &Catalog, after: &Catalog, key: &Key) -> Vec<String> {
    let Some(namespace) = &key.namespace else { return Vec::new() };
    let left: Vec<Key> = match key.kind {
        Kind::Service => referring_to(after, &ServiceName::new(namespace.clone(), key.name.clone())),
        Kind::WorkloadEnrollment => orphans(before, after, namespace),
        Kind::Mesh
        | Kind::Namespace
        | Kind::Workload
        | Kind::TcpRoute
        | Kind::TrafficPolicy
        | Kind::AuthorizationPolicy => Vec::new(),
    };
    let line = |other: Key| match other.kind {
        Kind::Workload if key.kind == Kind::WorkloadEnrollment => {
            format!("{}: {other} loses its identity and leaves its services", code::STILL_REFERRED_TO)
        }
        Kind::Mesh
        | Kind::Namespace
        | Kind::Service
        | Kind::Workload
        | Kind::WorkloadEnrollment
        | Kind::TcpRoute
        | Kind::TrafficPolicy
        | Kind::AuthorizationPolicy => format!("{}: {other} still refers to {key}", code::STILL_REFERRED_TO),
    };
    left.into_iter().map(line).collect()
}

/// Routes, policies and workloads that name a service.
fn referring_to(catalog: &Catalog, service: &ServiceName) -> Vec<Key> {
    let names = |namespace: &Namespace, targets: &[TargetRef]| {
        *namespace == service.namespace && targets.contains(&TargetRef::Service(service.name.clone()))
    };
    let mut found = Vec::new();
    let mut add = |kind, scoped: &Scoped| {
        found.push(Key { kind, namespace: Some(scoped.0.clone()), name: scoped.1.clone() });
    };
    for (scoped, route) in catalog.routes() {
        let parents = route.parents.iter().map(|parent| &parent.service);
        if parents.chain(route.backends.iter().map(|backend| &backend.service)).any(|name| name == service) {
            add(Kind::TcpRoute, scoped);
        }
    }
    for (scoped, policy) in catalog.traffic() {
        if names(&scoped.0, &policy.targets) {
            add(Kind::TrafficPolicy, scoped);
        }
    }
    for (scoped, policy) in catalog.policies() {
        if names(&scoped.0, &policy.targets) {
            add(Kind::AuthorizationPolicy, scoped);
        }
    }
    for (scoped, workload) in catalog.workloads() {
        if scoped.0 == service.namespace && workload.services.contains(&service.name) {
            add(Kind::Workload, scoped);
        }
    }
    found
}

/// Workloads of a namespace that had an enrollment and have none any more.
fn orphans(before: &Catalog, after: &Catalog, namespace: &Namespace) -> Vec<Key> {
    let own = after.workloads().iter().filter(|((found, _), _)| found == namespace);
    let enrolled = |catalog: &Catalog, workload: &weft_policy::model::Workload| {
        enrollment::grant(catalog, &workload.node, &workload.identity).is_ok()
    };
    let lost = own.filter(|(_, workload)| enrolled(before, workload) && !enrolled(after, workload));
    let key = |scoped: &Scoped| Key {
        kind: Kind::Workload,
        namespace: Some(scoped.0.clone()),
        name: scoped.1.clone(),
    };
    lost.map(|(scoped, _)| key(scoped)).collect()
}
