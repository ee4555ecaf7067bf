//! The lock-out guard: refuses a change that would cut every call to a service that is made now (POL-06).
//!
//! Pure. A call is *live* when its caller is a registered workload that is vouched for and the service has an endpoint.
//! The decisions are those of the destinations' agents, by their code, from the views before and after. Locked out is a
//! service to which at least one live call was allowed and none is any more. Callers that a DENY of the change names
//! one by one do not count: who writes a name means it.
//!
//! Whoever makes the change learns of callers in namespaces that it may not read only how many there are.
//!
//! The channel between agents and servers is not subject to any policy, so no change can lock the mesh out of its own
//! undoing; nor can one take a person's role, which is no resource.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use weft_api::{fault::Fault, pb::management::Decision};
use weft_identity::spiffe::SpiffeId;
use weft_policy::{
    authz::{CallRequest, Principal},
    code,
    model::{
        Key, Kind, Resource, TargetRef,
        authorization::{Action, Mode, Source},
    },
    name::{Namespace, ServiceName},
    pattern::IdentityPattern,
    snapshot::{Revision, Snapshot, SnapshotContext},
};

use super::change::Plan;
use crate::{
    catalog::Catalog,
    refusal::{Refusal, catalogued},
    roles::{Caller, Role},
    view::{self, Interest},
    world::World,
};

/// The most decisions of one judgement, of both sides together: about a second. What is beyond is not judged, and said.
const MAX_DECISIONS: usize = 500_000;
/// The most changed decisions that a dry run tells.
const MAX_TOLD: usize = 100;
/// The most services and callers that a refusal names.
const MAX_NAMED: usize = 5;

/// What a change does to live calls.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// By service, who was let in and is not any more.
    locked_out: BTreeMap<ServiceName, Lost>,
    changed: Vec<Decision>,
    more: u64,
}

/// The callers that a service loses.
#[derive(Debug, Default)]
struct Lost {
    /// Those whose workloads may be read.
    named: BTreeSet<String>,
    /// How many others there are.
    unnamed: usize,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = self.named.iter().take(MAX_NAMED).cloned().collect();
        match self.named.len().saturating_sub(MAX_NAMED) {
            0 => {}
            rest => parts.push(format!("{rest} more")),
        }
        match self.unnamed {
            0 => {}
            1 => parts.push("1 caller of another namespace".to_owned()),
            count => parts.push(format!("{count} callers of other namespaces")),
        }
        match parts.split_last() {
            Some((last, [])) => f.write_str(last),
            Some((last, some)) => write!(f, "{} and {last}", some.join(", ")),
            None => f.write_str("nobody"),
        }
    }
}

impl Verdict {
    /// Whether some service loses all its calls.
    pub(super) fn locks_out(&self) -> bool {
        !self.locked_out.is_empty()
    }

    /// The refusal of such a change.
    pub(super) fn refusal(&self) -> Refusal {
        Refusal::new(tonic::Code::FailedPrecondition, self.fault())
    }

    /// The same as a line, led by its code.
    pub(super) fn warning(&self) -> String {
        let fault = self.fault();
        let facts = fault.why.iter().map(|fact| format!("; {fact}"));
        format!("{}: {}{}", code::LOCKOUT, fault.what, facts.collect::<String>())
    }

    fn fault(&self) -> Fault {
        let names: Vec<_> = self.locked_out.keys().take(MAX_NAMED).map(ToString::to_string).collect();
        let rest = self.locked_out.len().saturating_sub(MAX_NAMED);
        let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        let what = format!("every call that is made to {}{more} would be refused", names.join(", "));
        let mut fault = catalogued(code::LOCKOUT, what);
        for (service, lost) in self.locked_out.iter().take(MAX_NAMED) {
            fault = fault.why(format!("{service} is called by {lost}"));
        }
        fault
    }

    /// The decisions that change, of a dry run, and how many more there are, be it that they are too many or that their
    /// callers may not be named.
    pub(super) fn told(&self) -> (Vec<Decision>, u64) {
        (self.changed.clone(), self.more)
    }
}

/// Judges a change of what `world` shows, for the eyes of `reader`. With `all`, every decision that changes is told.
pub(super) fn judge(world: &World, plan: &Plan, reader: &Caller, all: bool) -> Verdict {
    let services = affected(world, plan);
    if services.is_empty() {
        return Verdict::default();
    }
    let after = Arc::new(plan.after().clone());
    let after = World::derive(after, world.standings().clone(), Some(world));
    let (Some(old), Some(new)) = (snapshot(world, &services), snapshot(&after, &services)) else {
        // What agents would refuse is refused by the admission, with what is wrong with it.
        return Verdict::default();
    };
    let callers = callers(world, reader);
    let named = named(plan);
    let mut judgement = Judgement { old, new, left: MAX_DECISIONS, all, verdict: Verdict::default() };
    for service in &services {
        judgement.service(service, &callers, &named);
    }
    judgement.verdict
}

struct Judgement {
    old: Snapshot,
    new: Snapshot,
    left: usize,
    all: bool,
    verdict: Verdict,
}

impl Judgement {
    fn service(&mut self, name: &ServiceName, callers: &Callers, named: &BTreeSet<SpiffeId>) {
        let Some(destination) = self.old.destination(name).cloned() else { return };
        // A port that comes in place of another is no refusal: let in is who may call any port that there will be.
        let ports: BTreeSet<u16> = ports(&self.old, name).chain(ports(&self.new, name)).collect();
        let serves: BTreeSet<_> = destination.endpoints().iter().map(|endpoint| &endpoint.identity).collect();
        let mut lost = Lost::default();
        let mut some_left = false;
        for (caller, shown) in callers.iter().filter(|(caller, _)| !serves.contains(caller)) {
            let (mut let_in, mut stays) = (false, false);
            for port in &ports {
                let Some(rest) = self.left.checked_sub(2) else { return };
                self.left = rest;
                let before = is_allowed(&self.old, caller, name, *port);
                let after = is_allowed(&self.new, caller, name, *port);
                let_in |= before;
                stays |= after;
                if before != after {
                    self.tell(shown.then_some(caller), name, *port, (before, after));
                }
            }
            some_left |= stays;
            if let_in && !stays && !named.contains(caller) {
                if *shown {
                    lost.named.insert(caller.to_string());
                } else {
                    lost.unnamed += 1;
                }
            }
            if some_left && !self.all {
                return;
            }
        }
        if !some_left && (!lost.named.is_empty() || lost.unnamed > 0) {
            self.verdict.locked_out.insert(name.clone(), lost);
        }
    }

    /// Tells a decision that changes; of a caller that may not be named only that there is one.
    fn tell(
        &mut self,
        caller: Option<&SpiffeId>,
        service: &ServiceName,
        port: u16,
        (before, after): (bool, bool),
    ) {
        if !self.all {
            return;
        }
        let Some(caller) = caller.filter(|_| self.verdict.changed.len() < MAX_TOLD) else {
            self.verdict.more += 1;
            return;
        };
        self.verdict.changed.push(Decision {
            source: caller.to_string(),
            service: service.to_string(),
            port: u32::from(port),
            allowed_before: before,
            allowed_after: after,
        });
    }
}

fn ports(snapshot: &Snapshot, service: &ServiceName) -> impl Iterator<Item = u16> {
    let destination = snapshot.destination(service).cloned();
    let ports = destination.map(|found| found.service().ports.iter().map(|port| port.number).collect());
    let ports: Vec<u16> = ports.unwrap_or_default();
    ports.into_iter()
}

fn is_allowed(snapshot: &Snapshot, caller: &SpiffeId, service: &ServiceName, port: u16) -> bool {
    let request = CallRequest { source: Principal::Spiffe(caller), service, port, network: None };
    snapshot.authorize(&request).decision.is_allowed()
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

fn snapshot(world: &World, services: &BTreeSet<ServiceName>) -> Option<Snapshot> {
    let interest = Interest { hosted: services.clone(), ..Interest::default() };
    let view = view::build(world, &interest);
    let catalog = world.catalog();
    let context = SnapshotContext { trust_domain: catalog.trust_domain().clone() };
    Snapshot::build(Arc::new(view), Revision(catalog.revision().0), context).ok()
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

/// Whom the DENYs of the change name one by one.
fn named(plan: &Plan) -> BTreeSet<SpiffeId> {
    let mut named = BTreeSet::new();
    for key in plan.keys() {
        let Some(Resource::AuthorizationPolicy(policy)) = plan.after().get(key) else { continue };
        if policy.action == Action::Deny && policy.mode == Mode::Enforce {
            let sources = policy.rules.iter().flat_map(|rule| &rule.sources);
            named.extend(sources.filter_map(|source| exactly(source, plan.after())));
        }
    }
    named
}

/// The one identity that a source stands for, if it is one.
fn exactly(source: &Source, catalog: &Catalog) -> Option<SpiffeId> {
    match source {
        Source::Spiffe { pattern, .. } => {
            let identity = pattern.to_string().parse::<SpiffeId>().ok()?;
            (IdentityPattern::exactly(&identity) == *pattern).then_some(identity)
        }
        Source::ServiceAccount { namespace, name } => {
            SpiffeId::workload(catalog.trust_domain(), namespace.as_str(), name.as_str()).ok()
        }
        Source::Any | Source::Unauthenticated => None,
    }
}
