//! The lock-out guard: refuses a change that would cut every call to a service that is made now (POL-06).
//!
//! Pure. A call is *live* when its caller is a registered workload that is vouched for and the service has an endpoint.
//! The decisions are those of the destinations' agents, by their code, from the views before and after. Locked out is a
//! service to which at least one live call was allowed and none is any more. Callers that are refused by a DENY rule of the
//! change that names them one by one do not count: who writes a name means it.
//!
//! Refused is also a change of enrollments after which workloads that are registered now may not be where they are.
//!
//! Whoever makes the change learns of callers in namespaces that it may not read only how many there are.
//!
//! The channel between agents and servers is not subject to any policy, so no change can lock the mesh out of its own
//! undoing; nor can one take a person's role, which is no resource.

mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_identity::spiffe::{SpiffeId, TrustDomain};
use weft_policy::{
    authz::{self, CallRequest, DenyReason, Principal},
    model::{Key, Kind, Metadata, Resource, TargetRef, authorization::Source},
    name::{Namespace, ServiceName},
    pattern::IdentityPattern,
    snapshot::{Revision, Snapshot, SnapshotContext},
};

use self::verdict::Lost;
pub(super) use self::verdict::Verdict;
use super::change::Plan;
use crate::{
    catalog::Catalog,
    registration,
    roles::{Caller, Role},
    view::{self, Interest},
    world::World,
};

/// The most decisions of one judgement, of both sides together: about a second. What is beyond is not judged, and said.
const MAX_DECISIONS: usize = 500_000;

/// Judges a change of what `world` shows, for the eyes of `reader`. With `all`, every decision that changes is told.
pub(super) fn judge(world: &World, plan: &Plan, reader: &Caller, all: bool) -> Verdict {
    let services = affected(world, plan);
    let unenrolled = unenrolled(world, plan, reader);
    if services.is_empty() {
        return Verdict { unenrolled, ..Verdict::default() };
    }
    let after = Arc::new(plan.after().clone());
    let after = World::derive(after, world.standings().clone(), Some(world));
    let old = snapshot(world, &services, None);
    let new = old.as_ref().and_then(|old| snapshot(&after, &services, Some(old)));
    let (Some(old), Some(new)) = (old, new) else {
        // What agents would refuse is refused by the admission, with what is wrong with it.
        return Verdict { unenrolled, ..Verdict::default() };
    };
    let callers = callers(world, reader);
    let touched: BTreeSet<Key> = plan.keys().cloned().collect();
    let verdict = Verdict { unenrolled, ..Verdict::default() };
    let mut judgement = Judgement { old, new, touched, left: MAX_DECISIONS, all, verdict };
    for service in &services {
        judgement.service(service, &callers, &named(&after, service));
    }
    judgement.verdict
}

struct Judgement {
    old: Snapshot,
    new: Snapshot,
    /// What the change writes.
    touched: BTreeSet<Key>,
    left: usize,
    all: bool,
    verdict: Verdict,
}

impl Judgement {
    /// Those who are named by the rules are asked first: most services have one of them, and one that is let in is enough.
    fn service(&mut self, name: &ServiceName, callers: &Callers, named: &BTreeSet<SpiffeId>) {
        let Some(destination) = self.old.destination(name).cloned() else { return };
        // A port that comes in place of another is no refusal: let in is who may call any port that there will be.
        let ports: BTreeSet<u16> = ports(&self.old, name).chain(ports(&self.new, name)).collect();
        let serves: BTreeSet<_> = destination.endpoints().iter().map(|endpoint| &endpoint.identity).collect();
        let mut lost = Lost::default();
        let mut some_left = false;
        let first = named.iter().filter_map(|named| callers.get_key_value(named));
        let others = callers.iter().filter(|(caller, _)| !named.contains(*caller));
        for (caller, shown) in first.chain(others).filter(|(caller, _)| !serves.contains(caller)) {
            let (mut let_in, mut stays, mut meant) = (false, false, true);
            for port in &ports {
                let Some(rest) = self.left.checked_sub(2) else {
                    self.verdict.cut = true;
                    return;
                };
                self.left = rest;
                let decision = decide(&self.new, caller, name, *port);
                let before = decide(&self.old, caller, name, *port).is_allowed();
                let after = decision.is_allowed();
                let_in |= before;
                stays |= after;
                meant &= !before || self.means(&decision, caller);
                if self.all && before != after {
                    self.verdict.tell(shown.then_some(caller), name, *port, (before, after));
                }
            }
            some_left |= stays;
            if let_in && !stays && !meant {
                lost.add(caller, *shown);
            }
            if some_left && !self.all {
                return;
            }
        }
        if !some_left && !lost.is_empty() {
            self.verdict.locked_out.insert(name.clone(), lost);
        }
    }

    /// Whether a DENY rule of the change refuses `caller`, and names it and nobody else.
    fn means(&self, decision: &authz::Decision, caller: &SpiffeId) -> bool {
        let authz::Decision::Deny(denial) = decision else { return false };
        let DenyReason::DenyRule(found) = &denial.reason else { return false };
        let Metadata { namespace, name, .. } = &found.rule.policy().metadata;
        let key = Key { kind: Kind::AuthorizationPolicy, namespace: namespace.clone(), name: name.clone() };
        let domain = caller.trust_domain();
        self.touched.contains(&key)
            && found.rule.rule().sources.iter().any(|source| exactly(source, domain).as_ref() == Some(caller))
    }
}

fn ports(snapshot: &Snapshot, service: &ServiceName) -> impl Iterator<Item = u16> {
    let destination = snapshot.destination(service).cloned();
    let ports = destination.map(|found| found.service().ports.iter().map(|port| port.number).collect());
    let ports: Vec<u16> = ports.unwrap_or_default();
    ports.into_iter()
}

fn decide(snapshot: &Snapshot, caller: &SpiffeId, service: &ServiceName, port: u16) -> authz::Decision {
    let request = CallRequest { source: Principal::Spiffe(caller), service, port, network: None };
    snapshot.authorize(&request).decision
}

/// The services with endpoints about which the change may say something else.
fn affected(world: &World, plan: &Plan) -> BTreeSet<ServiceName> {
    let (before, after) = (plan.before(), plan.after());
    let mut found = BTreeSet::new();
    for key in plan.keys() {
        match (key.kind, &key.namespace) {
            (Kind::Mesh, _) => found.extend(before.services().keys().cloned()),
            (Kind::Namespace, _) => found.extend(of_namespace(before, key.name.as_str())),
            (Kind::Service, Some(namespace)) => {
                found.insert(ServiceName::new(namespace.clone(), key.name.clone()));
            }
            (Kind::AuthorizationPolicy, Some(namespace)) => {
                found.extend(targets(before, key, namespace));
                found.extend(targets(after, key, namespace));
            }
            (Kind::Service | Kind::AuthorizationPolicy, None)
            | (Kind::Workload | Kind::WorkloadEnrollment | Kind::TcpRoute | Kind::TrafficPolicy, _) => {}
        }
    }
    // One that is deleted is not locked out, but gone.
    found.retain(|name| after.services().contains_key(name) && !world.endpoints(name).is_empty());
    found
}

fn of_namespace(catalog: &Catalog, name: &str) -> Vec<ServiceName> {
    catalog.services().keys().filter(|service| service.namespace.as_str() == name).cloned().collect()
}

/// What a policy is about; one that cannot be read may be about everything in its namespace.
fn targets(catalog: &Catalog, key: &Key, namespace: &Namespace) -> Vec<ServiceName> {
    match catalog.get(key) {
        Some(Resource::AuthorizationPolicy(policy)) => {
            let of = |target: &TargetRef| match target {
                TargetRef::Service(name) => vec![ServiceName::new(namespace.clone(), name.clone())],
                TargetRef::Namespace(whole) => of_namespace(catalog, whole.as_str()),
            };
            policy.targets.iter().flat_map(of).collect()
        }
        Some(_) => Vec::new(),
        None if catalog.unreadable().contains_key(key) => of_namespace(catalog, namespace.as_str()),
        None => Vec::new(),
    }
}

/// What decides about calls to these services. Rules that are as they were `before` are not compiled again.
fn snapshot(world: &World, services: &BTreeSet<ServiceName>, before: Option<&Snapshot>) -> Option<Snapshot> {
    let interest = Interest { hosted: services.clone(), ..Interest::default() };
    let view = Arc::new(view::build(world, &interest));
    let revision = Revision(world.catalog().revision().0);
    let context = SnapshotContext { trust_domain: world.catalog().trust_domain().clone() };
    let built = before.map_or_else(
        || Snapshot::build(Arc::clone(&view), revision, context),
        |before| before.rebuild(Arc::clone(&view), revision),
    );
    built.ok()
}

/// The identities that the policies about a service name one by one.
fn named(world: &World, service: &ServiceName) -> BTreeSet<SpiffeId> {
    let policies = world.policies();
    let own = policies.service(service).iter().chain(policies.namespace(&service.namespace));
    let sources = own.flat_map(|policy| &policy.rules).flat_map(|rule| &rule.sources);
    sources.filter_map(|source| exactly(source, world.catalog().trust_domain())).collect()
}

/// Identities, and whether they may be named.
type Callers = BTreeMap<SpiffeId, bool>;

/// Who may be calling at present, and whether `reader` may read a workload that shows it.
fn callers(world: &World, reader: &Caller) -> Callers {
    let mut callers = Callers::new();
    for (scoped, workload) in world.catalog().workloads() {
        if world.standings().is_confirmed(scoped) {
            let shown = reader.role_in(Some(&scoped.0)) >= Role::Viewer;
            *callers.entry(workload.identity.clone()).or_default() |= shown;
        }
    }
    callers
}

/// The registered workloads that are allowed where they are now, and are not after the change. Those that it deletes are
/// meant.
fn unenrolled(world: &World, plan: &Plan, reader: &Caller) -> Lost {
    let mut lost = Lost::default();
    if !plan.keys().any(|key| key.kind == Kind::WorkloadEnrollment) {
        return lost;
    }
    let (before, after) = (plan.before(), plan.after());
    for (scoped, workload) in before.workloads() {
        let stays = after.workloads().contains_key(scoped);
        if stays
            && world.standings().is_confirmed(scoped)
            && registration::allowed(before, &workload.node, workload).is_ok()
            && registration::allowed(after, &workload.node, workload).is_err()
        {
            let shown = reader.role_in(Some(&scoped.0)) >= Role::Viewer;
            lost.add(format_args!("Workload/{}.{}", scoped.1, scoped.0), shown);
        }
    }
    lost
}

/// The one identity that a source stands for, if it is one.
fn exactly(source: &Source, domain: &TrustDomain) -> Option<SpiffeId> {
    match source {
        Source::Spiffe { pattern, .. } => {
            let identity = pattern.to_string().parse::<SpiffeId>().ok()?;
            (IdentityPattern::exactly(&identity) == *pattern).then_some(identity)
        }
        Source::ServiceAccount { namespace, name } => {
            SpiffeId::workload(domain, namespace.as_str(), name.as_str()).ok()
        }
        Source::Any | Source::Unauthenticated => None,
    }
}
