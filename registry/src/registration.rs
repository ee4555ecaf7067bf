//! Workloads that agents announce: checked against the enrollments, then kept as objects with an owner and a boot number.
//!
//! A registration that changes nothing writes nothing, so agents register again whenever they reach a server. All that
//! belongs to one registration is one transaction: the Workload, who registered it, the reservation of its label, and
//! the Service that nobody declared.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::json;
use tracing::info;
use weft_api::{
    manifest,
    pb::discovery::{MayRunRequest, RegisterRequest, RegisterResponse, UnregisterRequest},
    record,
};
use weft_identity::spiffe::SpiffeId;
use weft_policy::{
    code,
    model::{Key, Kind, Metadata, Resource, Service, Workload, service::ServicePort, workload::UnixSelector},
    name::{EndpointLabel, Namespace, NodeName, ObjectName, ServiceName},
};

use crate::{
    catalog::{Catalog, Scoped},
    core::Core,
    enrollment::{self, Grant},
    layout,
    nodes::{self, old_boot},
    records::{Record, RegistrationRecord},
    refusal::{Refusal, catalogued},
    store::{Compare, Op, Revision, StoreError},
};

/// The most workloads of one node.
pub const MAX_WORKLOADS: u32 = 1_024;
/// How often a registration is tried again because something it was checked against changed meanwhile.
const MAX_TRIES: usize = 8;
/// How long a registration waits for the world to show what it collided with.
const NEWER_WORLD: Duration = Duration::from_secs(1);
/// The bytes of a label: 128 bits (decisions.md).
const LABEL_BYTES: usize = 16;
/// Why a Service exists that nobody declared; the name of the enrollment follows.
const CREATED_BY: &str = "created by the first registration under WorkloadEnrollment ";

/// Registers a workload of `node`, or renews its registration.
///
/// # Errors
///
/// A refusal: the request is malformed (W4), no enrollment gives it (W6021), another node owns the name (W6022), a newer
/// run of the agent is known (W6023).
pub async fn register(
    core: &Core,
    node: &NodeName,
    request: RegisterRequest,
) -> Result<RegisterResponse, Refusal> {
    let wanted = workload(node, &request)?;
    fence(core, node, request.boot).await?;
    let mut worlds = core.world.changes();
    let mut tries = 0;
    loop {
        let catalog = Arc::clone(worlds.borrow_and_update().catalog());
        let plan = plan(core, &catalog, node, wanted.clone(), request.boot)?;
        if plan.ops.is_empty() {
            return Ok(answer(&plan));
        }
        match core.store.txn(plan.compares.clone(), plan.ops.clone()).await {
            Ok(revision) => {
                let (identity, label) = (&plan.workload.identity, &plan.label);
                info!(%node, %identity, %label, %revision, "workload registered");
                core.world.wait_for(revision).await;
                return Ok(answer(&plan));
            }
            Err(StoreError::Conflict(_)) if tries < MAX_TRIES => {
                tries += 1;
                // What it was checked against has changed in the store, so a newer world comes, or is there already.
                // Should it not come in time, the next try says what is wrong.
                let _ = tokio::time::timeout(NEWER_WORLD, worlds.changed()).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Withdraws a workload of `node`. One that is not there is withdrawn already.
///
/// # Errors
///
/// A refusal when another node owns it, or a newer run of the agent is known.
pub async fn unregister(core: &Core, node: &NodeName, request: UnregisterRequest) -> Result<(), Refusal> {
    let namespace: Namespace =
        request.namespace.parse().map_err(|error| Refusal::bad_value("namespace", format!("{error}")))?;
    let name: ObjectName =
        request.name.parse().map_err(|error| Refusal::bad_value("name", format!("{error}")))?;
    fence(core, node, request.boot).await?;
    let catalog = core.world.catalog();
    let scoped = (namespace.clone(), name.clone());
    let Some(workload) = catalog.workloads().get(&scoped) else { return Ok(()) };
    check_owner(workload, node)?;
    let key = Key { kind: Kind::Workload, namespace: Some(namespace), name };
    let compare = unchanged(layout::resource(&key), Revision(workload.metadata.revision));
    let mut ops = vec![Op::Delete(layout::resource(&key))];
    ops.extend(beside(&catalog, &scoped, workload.label.as_ref()));
    match core.store.txn(vec![compare], ops).await {
        Ok(revision) => {
            info!(%node, workload = %key, %revision, "workload withdrawn");
            core.world.wait_for(revision).await;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// The deletions that go with that of a workload: who registered it, and the reservation of its label.
pub(crate) fn beside(catalog: &Catalog, workload: &Scoped, label: Option<&EndpointLabel>) -> Vec<Op> {
    let registered = catalog.registrations().get(workload);
    let mut labels: Vec<_> = registered.map(|kept| &kept.record.label).into_iter().chain(label).collect();
    labels.sort();
    labels.dedup();
    let mut ops: Vec<_> = labels
        .into_iter()
        .filter(|label| catalog.label(label).is_some())
        .map(|label| Op::Delete(layout::label(label)))
        .collect();
    ops.extend(registered.map(|_| Op::Delete(layout::registration(&workload.0, &workload.1))));
    ops
}

/// Reads the request as the Workload that it describes, by the rules of a manifest.
fn workload(node: &NodeName, request: &RegisterRequest) -> Result<Workload, Refusal> {
    let port = |text: &String| text.parse::<u16>().map_or_else(|_| json!(text), |number| json!(number));
    let ports: BTreeMap<_, _> = request.ports.iter().map(|(name, at)| (name, port(at))).collect();
    let mut spec = json!({
        "node": node.as_str(),
        "identity": request.identity,
        "weight": request.weight,
        "locality": {"region": request.region, "zone": request.zone},
    });
    if !ports.is_empty() {
        spec["ports"] = json!(ports);
    }
    if !request.services.is_empty() {
        spec["services"] = json!(request.services);
    }
    if !request.label.is_empty() {
        spec["label"] = json!(request.label);
    }
    if let Some(uid) = request.uid {
        spec["uid"] = json!(uid);
    }
    let document = json!({
        "apiVersion": Kind::Workload.api_version(),
        "kind": Kind::Workload.name(),
        "metadata": {"name": request.name, "namespace": request.namespace},
        "spec": spec,
    });
    match manifest::parse_json(document.to_string().as_bytes(), None) {
        Ok(Resource::Workload(workload)) => Ok(workload),
        Ok(_) => Err(Refusal::bad_value("workload", "the request describes no workload")),
        Err(faults) => Err(Refusal::invalid(faults)),
    }
}

/// Refuses an older run of the agent, and fences the runs older than this one.
async fn fence(core: &Core, node: &NodeName, boot: u64) -> Result<(), Refusal> {
    let known = core.world.catalog().nodes().get(node).map(|kept| kept.record.boot);
    if known == Some(boot) {
        return Ok(());
    }
    nodes::update(core, node, |record| {
        if record.boot > boot {
            return Err(old_boot(node, boot, record.boot));
        }
        record.boot = boot;
        Ok(())
    })
    .await
    .map(drop)
}

/// What a registration writes, and what must hold for it.
struct Plan {
    workload: Workload,
    grant: Grant,
    label: EndpointLabel,
    compares: Vec<Compare>,
    ops: Vec<Op>,
}

fn plan(
    core: &Core,
    catalog: &Catalog,
    node: &NodeName,
    mut workload: Workload,
    boot: u64,
) -> Result<Plan, Refusal> {
    let scoped = (workload.metadata.owner(), workload.metadata.name.clone());
    let grant = allowed(catalog, node, &workload)?;
    let before = catalog.workloads().get(&scoped);
    if let Some(before) = before {
        check_owner(before, node)?;
    } else if core.world.current().hosted(node).is_some_and(|hosted| hosted.workloads >= MAX_WORKLOADS) {
        let what = format!("node {node} has {MAX_WORKLOADS} workloads");
        return Err(Refusal::exhausted(code::OVER_LIMIT, what));
    }
    let label = label(catalog, &workload, before.map(|found| &**found))?;
    workload.label = Some(label.clone());
    workload.metadata.labels = grant.labels.clone();
    let mut plan = Plan { workload, grant, label, compares: Vec::new(), ops: Vec::new() };
    plan.write_workload(before.map(|found| &**found));
    plan.write_label(catalog);
    plan.write_registration(catalog, &scoped, node, boot);
    if before.is_none() {
        plan.declare_service(catalog, &scoped.0);
    }
    Ok(plan)
}

impl Plan {
    fn put(&mut self, key: crate::store::Key, value: bytes::Bytes, before: Option<Revision>) {
        self.compares.push(match before {
            Some(revision) => unchanged(key.clone(), revision),
            None => Compare::Absent(key.clone()),
        });
        self.ops.push(Op::Put { key, value, lease: None });
    }

    fn write_workload(&mut self, before: Option<&Workload>) {
        let revision = before.map(|found| found.metadata.revision);
        if let Some(before) = before {
            // Notes that a person made are the person's.
            self.workload.metadata.annotations.clone_from(&before.metadata.annotations);
            self.workload.metadata.revision = before.metadata.revision;
        }
        if before != Some(&self.workload) {
            let resource = Resource::Workload(self.workload.clone());
            let record = record::encode_resource(&resource).into();
            self.put(layout::resource(&resource.key()), record, revision.map(Revision));
        }
    }

    /// Reserves the label: two workloads of one label would let either take the other's calls.
    fn write_label(&mut self, catalog: &Catalog) {
        if catalog.label(&self.label).is_none() {
            let owner = Resource::Workload(self.workload.clone()).key().to_string();
            self.put(layout::label(&self.label), owner.into(), None);
        }
    }

    fn write_registration(&mut self, catalog: &Catalog, scoped: &Scoped, node: &NodeName, boot: u64) {
        let before = catalog.registrations().get(scoped);
        let record = RegistrationRecord { node: node.clone(), boot, label: self.label.clone() };
        let stale = before.filter(|kept| kept.record.label != self.label).map(|kept| &kept.record.label);
        if let Some(stale) = stale.filter(|stale| catalog.label(stale).is_some()) {
            self.ops.push(Op::Delete(layout::label(stale)));
        }
        if before.is_none_or(|kept| *kept.record != record) {
            let revision = before.map(|kept| kept.revision);
            self.put(layout::registration(&scoped.0, &scoped.1), record.encode(), revision);
        }
    }

    /// Declares the service of the workload's own account when nobody has (decisions.md, names and defaults).
    fn declare_service(&mut self, catalog: &Catalog, namespace: &Namespace) {
        let name = ServiceName::new(namespace.clone(), self.grant.account.clone());
        let serves = self.workload.services.contains(&name.name);
        let key = Key { kind: Kind::Service, namespace: Some(namespace.clone()), name: name.name.clone() };
        if !serves || catalog.revision_of(&key).is_some() {
            return;
        }
        let reason = self.grant.enrollments.first().map(|enrollment| format!("{CREATED_BY}{enrollment}"));
        let annotations = reason.map(|reason| ("weft.mesh/reason".to_owned(), reason)).into_iter().collect();
        let service = Resource::Service(Service {
            metadata: Metadata {
                namespace: Some(name.namespace),
                name: name.name,
                labels: BTreeMap::new(),
                annotations,
                revision: 0,
            },
            ports: vec![ServicePort { number: 80, name: "http".parse().ok(), app_protocol: None }],
            selector: None,
            identities: Vec::new(),
            default_authorization: None,
        });
        let record = record::encode_resource(&service).into();
        self.put(layout::resource(&key), record, None);
    }
}

/// Whether a local user of `node`, who is neither the agent's own nor root, may start programs as an identity.
///
/// # Errors
///
/// A refusal: the node has no such identity (W6021), or no selector of its enrollments names the user (W2206).
pub fn may_run(catalog: &Catalog, node: &NodeName, request: &MayRunRequest) -> Result<(), Refusal> {
    let identity: SpiffeId =
        request.identity.parse().map_err(|error| Refusal::bad_value("identity", format!("{error}")))?;
    let grant = enrollment::grant(catalog, node, &identity).map_err(|no| {
        let what = format!("node {node} may not run {identity}");
        let fault = catalogued(code::REGISTRATION_REFUSED, what).why(no.to_string());
        Refusal::new(tonic::Code::PermissionDenied, fault)
    })?;
    if grant.selectors.iter().any(|selector| names(selector, request)) {
        return Ok(());
    }
    let what = format!("uid {} of node {node} may not run {identity}", request.uid);
    let enrollments: Vec<_> = grant.enrollments.iter().map(ObjectName::as_str).collect();
    let why = format!("no selector of WorkloadEnrollment {} names that user", enrollments.join(" or "));
    Err(Refusal::new(tonic::Code::PermissionDenied, catalogued(code::MAY_NOT_SPEAK_AS, what).why(why)))
}

/// Whether every part of a selector matches, and it has one.
fn names(selector: &UnixSelector, request: &MayRunRequest) -> bool {
    let uid = selector.uid.is_none_or(|uid| uid == request.uid);
    let user = selector.user.as_ref().is_none_or(|user| *user == request.user);
    uid && user && (selector.uid.is_some() || selector.user.is_some())
}

/// What the enrollments give to the workload, if they give it what it asks for.
pub(crate) fn allowed(catalog: &Catalog, node: &NodeName, workload: &Workload) -> Result<Grant, Refusal> {
    let refused = |why: String| {
        let what = format!("node {node} may not run {} in {}", workload.identity, workload.metadata.owner());
        Refusal::new(tonic::Code::PermissionDenied, catalogued(code::REGISTRATION_REFUSED, what).why(why))
    };
    let grant = enrollment::grant(catalog, node, &workload.identity).map_err(|no| refused(no.to_string()))?;
    if grant.namespace != workload.metadata.owner() {
        return Err(refused(format!("the identity belongs to namespace {}", grant.namespace)));
    }
    if let Some(foreign) = workload.services.iter().find(|service| !grant.services.contains(*service)) {
        let given: Vec<_> = grant.services.iter().map(ObjectName::as_str).collect();
        return Err(refused(format!("service {foreign} is not among those enrolled: {}", given.join(", "))));
    }
    Ok(grant)
}

fn check_owner(workload: &Workload, node: &NodeName) -> Result<(), Refusal> {
    if workload.node == *node {
        return Ok(());
    }
    let key = Resource::Workload(workload.clone()).key();
    let what = format!("{key} belongs to node {}", workload.node);
    Err(Refusal::denied(code::REGISTERED_ELSEWHERE, what))
}

/// The label that the agent kept or drew, else the one that is known, else a new one.
fn label(
    catalog: &Catalog,
    workload: &Workload,
    before: Option<&Workload>,
) -> Result<EndpointLabel, Refusal> {
    let known = before.and_then(|found| found.label.clone());
    let Some(kept) = workload.label.clone() else {
        return known.map_or_else(new_label, Ok);
    };
    if Some(&kept) == known.as_ref() {
        return Ok(kept);
    }
    // Somebody else's label, or one that is not opaque: the workload gets one of its own.
    if kept.is_opaque() && catalog.label(&kept).is_none() {
        Ok(kept)
    } else {
        known.map_or_else(new_label, Ok)
    }
}

/// Draws a label.
fn new_label() -> Result<EndpointLabel, Refusal> {
    let mut random = [0; LABEL_BYTES];
    let fault = || catalogued(code::ENTROPY, "the system gives no random numbers");
    let failed = |_| Refusal::new(tonic::Code::Internal, fault());
    aws_lc_rs::rand::fill(&mut random).map_err(failed)?;
    Ok(EndpointLabel::from_bits(u128::from_be_bytes(random)))
}

fn unchanged(key: crate::store::Key, mod_revision: Revision) -> Compare {
    Compare::Unchanged { key, mod_revision }
}

fn answer(plan: &Plan) -> RegisterResponse {
    let mut answer = RegisterResponse {
        label: plan.label.to_string(),
        services: plan.workload.services.iter().map(ToString::to_string).collect(),
        labels: plan.grant.labels.clone(),
        allowed_uids: Vec::new(),
        allowed_users: Vec::new(),
    };
    for selector in &plan.grant.selectors {
        match (selector.uid, &selector.user) {
            (Some(uid), None) => answer.allowed_uids.push(uid),
            (None, Some(user)) => answer.allowed_users.push(user.clone()),
            // Both must match, which two lists cannot say; either alone would be more than was given.
            (Some(_), Some(_)) | (None, None) => {}
        }
    }
    answer
}

#[cfg(test)]
mod tests;
