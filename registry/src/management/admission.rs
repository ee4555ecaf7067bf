//! What is wrong, or odd, with objects in the company of all others.
//!
//! Pure. What can be said of one object alone was said when it was read. A contradiction refuses the change; something
//! that refers to what does not exist (yet) is told and takes effect when the other thing comes.

use std::sync::Arc;

use weft_api::fault::Fault;
use weft_identity::spiffe::{IdKind, SpiffeId};
use weft_policy::{
    code::{self, CodeId},
    model::{
        AuthorizationPolicy, Resource, Service, TargetRef, TcpRoute, Workload, WorkloadEnrollment,
        authorization::{Action, PortRef, Rule, Source},
    },
    name::{Namespace, ObjectName, ServiceName},
    pattern::IdentityPattern,
    snapshot::{self, Revision, Snapshot, SnapshotContext},
};

use crate::{
    catalog::Catalog,
    enrollment,
    liveness::Standings,
    refusal::catalogued,
    view::{self, Interest},
    world::World,
};

/// The most warnings about one object.
const MAX_WARNINGS: usize = 16;

/// What contradicts itself in `after` and did not in `before`: the snapshot that agents would refuse. `world` is of
/// `before`, or of a catalog close to it.
pub(super) fn contradictions(world: &World, before: &Catalog, after: &Catalog) -> Vec<Fault> {
    let new = snapshot_faults(world, after);
    if new.is_empty() {
        return Vec::new();
    }
    let old = snapshot_faults(world, before);
    let new = new.into_iter().filter(|fault| !old.contains(fault));
    new.map(|fault| catalogued(fault.code(), fault.to_string())).collect()
}

fn snapshot_faults(near: &World, catalog: &Catalog) -> Vec<snapshot::Fault> {
    let world = World::derive(Arc::new(catalog.clone()), Standings::default(), Some(near));
    let view = view::build(&world, &Interest::everything(&world));
    let context = SnapshotContext { trust_domain: catalog.trust_domain().clone() };
    match Snapshot::build(Arc::new(view), Revision(catalog.revision().0), context) {
        Ok(_) => Vec::new(),
        Err(error) => error.faults,
    }
}

/// What is odd about `resource` among the objects of `catalog`, each led by its code.
pub(super) fn warnings(catalog: &Catalog, resource: &Resource) -> Vec<String> {
    let mut lint = Lint { catalog, found: Vec::new() };
    match resource {
        Resource::Service(service) => lint.service(service),
        Resource::Workload(workload) => lint.workload(workload),
        Resource::WorkloadEnrollment(enrollment) => lint.enrollment(enrollment),
        Resource::TcpRoute(route) => lint.route(route),
        Resource::TrafficPolicy(policy) => {
            lint.targets(&policy.metadata.owner(), &policy.targets);
        }
        Resource::AuthorizationPolicy(policy) => lint.policy(policy),
        Resource::Mesh(_) | Resource::Namespace(_) => {}
    }
    let hidden = lint.found.len().saturating_sub(MAX_WARNINGS);
    lint.found.truncate(MAX_WARNINGS);
    if hidden > 0 {
        lint.found.push(format!("and {hidden} more"));
    }
    lint.found
}

struct Lint<'a> {
    catalog: &'a Catalog,
    found: Vec<String>,
}

impl Lint<'_> {
    fn say(&mut self, code: CodeId, what: impl std::fmt::Display) {
        let line = format!("{code}: {what}");
        if !self.found.contains(&line) {
            self.found.push(line);
        }
    }

    /// The service of that name; says so when there is none.
    fn known(&mut self, name: &ServiceName) -> Option<Arc<Service>> {
        let found = self.catalog.services().get(name).cloned();
        if found.is_none() {
            self.say(code::WARNED_REFERENCE, format_args!("service {name} does not exist yet"));
        }
        found
    }

    fn known_port(&mut self, name: &ServiceName, port: u16) {
        if self.known(name).is_some_and(|service| service.port(port).is_none()) {
            self.say(code::WARNED_REFERENCE, format_args!("service {name} has no port {port}"));
        }
    }

    fn targets(&mut self, namespace: &Namespace, targets: &[TargetRef]) -> Vec<Arc<Service>> {
        let mut services = Vec::new();
        for target in targets {
            match target {
                TargetRef::Service(name) => {
                    services.extend(self.known(&ServiceName::new(namespace.clone(), name.clone())));
                }
                TargetRef::Namespace(whole) => {
                    let own = self.catalog.services().iter().filter(|(name, _)| name.namespace == *whole);
                    services.extend(own.map(|(_, service)| Arc::clone(service)));
                }
            }
        }
        services
    }

    fn service(&mut self, service: &Service) {
        for identity in &service.identities {
            self.identity(identity);
        }
    }

    fn workload(&mut self, workload: &Workload) {
        let namespace = workload.metadata.owner();
        for name in &workload.services {
            let service = self.known(&ServiceName::new(namespace.clone(), name.clone()));
            if let Some(service) = service
                && !service.may_be_served_by(&workload.identity, self.catalog.trust_domain())
            {
                let (name, identity) = (service.service_name(), &workload.identity);
                self.say(code::WRONG_SERVER_IDENTITY, format_args!("{identity} may not serve {name}"));
            }
        }
        if !self.catalog.nodes().contains_key(&workload.node) {
            self.say(code::WARNED_REFERENCE, format_args!("node {} has not joined yet", workload.node));
        }
    }

    fn enrollment(&mut self, enrollment: &WorkloadEnrollment) {
        for node in &enrollment.nodes {
            if !self.catalog.nodes().contains_key(node) {
                self.say(code::WARNED_REFERENCE, format_args!("node {node} has not joined yet"));
            }
        }
        if enrollment.selectors.iter().any(|selector| selector.uid.is_some() && selector.user.is_some()) {
            let what = "a selector with both uid and user selects nobody in this version; name one of them";
            self.say(code::NOT_SERVED, what);
        }
    }

    fn route(&mut self, route: &TcpRoute) {
        for parent in &route.parents {
            match parent.port {
                Some(port) => self.known_port(&parent.service, port),
                None => drop(self.known(&parent.service)),
            }
        }
        for backend in &route.backends {
            self.known_port(&backend.service, backend.port);
        }
    }

    fn policy(&mut self, policy: &AuthorizationPolicy) {
        let services = self.targets(&policy.metadata.owner(), &policy.targets);
        for rule in &policy.rules {
            if policy.action == Action::Allow {
                self.breadth(rule);
            }
            for port in rule.ports.iter().flatten() {
                self.rule_port(&rule.name, port, &services);
            }
            for source in &rule.sources {
                self.source(source);
            }
        }
    }

    fn breadth(&mut self, rule: &Rule) {
        let narrowed = rule.ports.is_some() || rule.networks.is_some();
        for source in &rule.sources {
            let who = match source {
                Source::Any => "any authenticated caller".to_owned(),
                Source::Spiffe { pattern, .. } if pattern.is_whole_domain() => {
                    format!("every workload of {}", pattern.trust_domain())
                }
                Source::Unauthenticated => "callers without any identity".to_owned(),
                Source::Spiffe { .. } | Source::ServiceAccount { .. } => continue,
            };
            if !narrowed || *source == Source::Unauthenticated {
                self.say(code::BROAD_ALLOW, format_args!("rule {} allows {who}", rule.name));
            }
        }
    }

    /// A port that none of the targets has: the rule never matches there.
    fn rule_port(&mut self, rule: &ObjectName, port: &PortRef, services: &[Arc<Service>]) {
        let has = |service: &Arc<Service>| match port {
            PortRef::Number(number) => service.port(*number).is_some(),
            PortRef::Name(name) => service.port_named(name.as_str()).is_some(),
        };
        if services.is_empty() || services.iter().any(has) {
            return;
        }
        let port = match port {
            PortRef::Number(number) => number.to_string(),
            PortRef::Name(name) => name.to_string(),
        };
        let what = format!("rule {rule} names port {port}, which no service of the policy has");
        self.say(code::WARNED_REFERENCE, what);
    }

    fn source(&mut self, source: &Source) {
        match source {
            Source::Spiffe { pattern, except } => {
                for pattern in std::iter::once(pattern).chain(except) {
                    self.pattern(pattern);
                }
            }
            Source::ServiceAccount { namespace, name } => {
                let domain = self.catalog.trust_domain();
                if let Ok(identity) = SpiffeId::workload(domain, namespace.as_str(), name.as_str()) {
                    self.identity(&identity);
                }
            }
            Source::Any | Source::Unauthenticated => {}
        }
    }

    fn pattern(&mut self, pattern: &IdentityPattern) {
        if pattern.trust_domain() != self.catalog.trust_domain() {
            self.foreign(pattern.trust_domain());
        } else if let Ok(identity) = pattern.to_string().parse::<SpiffeId>()
            && IdentityPattern::exactly(&identity) == *pattern
        {
            self.identity(&identity);
        }
    }

    /// An identity that no enrollment gives to anybody is often a misspelt one.
    fn identity(&mut self, identity: &SpiffeId) {
        if identity.trust_domain() != self.catalog.trust_domain() {
            self.foreign(identity.trust_domain());
            return;
        }
        match identity.kind() {
            IdKind::Workload { .. } | IdKind::Other => {
                if !enrollment::can_exist(self.catalog, identity) {
                    self.say(
                        code::WARNED_REFERENCE,
                        format_args!("no enrollment gives {identity} to anybody yet"),
                    );
                }
            }
            IdKind::Node(_) | IdKind::Server(_) | IdKind::User(_) => {}
        }
    }

    fn foreign(&mut self, domain: &weft_identity::spiffe::TrustDomain) {
        self.say(code::WARNED_REFERENCE, format_args!("trust domain {domain} is not trusted here"));
    }
}
