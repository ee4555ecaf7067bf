//! From a view to a snapshot: every object in its place, or all faults at once.
//!
//! What is wrong with the whole (two answers to one question, a part without its other half) refuses the view: the last
//! good snapshot stays. What cannot be read about one destination closes that destination only. An endpoint that may
//! not serve its service is left out and noted.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    hash::Hash,
    sync::Arc,
};

use weft_identity::denied::{DenyPage, Denylist};

use super::{
    Compiled, DefaultOrigin, Destination, Fault, MAX_POLICIES, Notice, Revision, Snapshot, SnapshotContext,
    SnapshotError, Unreadable, View, ViewKey, ViewObject,
};
use crate::{
    authz::matcher::RuleSet,
    model::{
        AuthorizationPolicy, DefaultAuthorization, Endpoint, Mesh, Metadata, NamespaceSettings, Service,
        TargetRef, TcpRoute, TrafficPolicy,
        authorization::{Action, Mode},
        route::BackendRef,
        traffic::TrafficSettings,
    },
    name::{EndpointLabel, Namespace, ServiceName},
    route::Route,
};

impl Snapshot {
    /// Checks and indexes `view`.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] with every fault when the view is not complete or contradicts itself.
    pub fn build(
        view: Arc<View>,
        revision: Revision,
        context: SnapshotContext,
    ) -> Result<Self, SnapshotError> {
        Self::assemble(view, revision, context, &Compiled::default())
    }

    /// As [`Self::build`], for the view that follows this snapshot's: rules that have not changed are not compiled
    /// again, so that endpoints may come and go cheaply beside many rules.
    ///
    /// # Errors
    ///
    /// As [`Self::build`].
    pub fn rebuild(&self, view: Arc<View>, revision: Revision) -> Result<Self, SnapshotError> {
        Self::assemble(view, revision, self.context.clone(), &self.compiled)
    }

    fn assemble(
        view: Arc<View>,
        revision: Revision,
        context: SnapshotContext,
        before: &Compiled,
    ) -> Result<Self, SnapshotError> {
        let mut parts = Parts::sort(&view);
        let mesh = parts.checked_mesh(&context);
        let compiled = parts.compile(&context, before);
        let destinations = parts.destinations(mesh.as_deref(), &context, &compiled);
        let (Some(mesh), true) = (mesh, parts.faults.is_empty()) else {
            return Err(SnapshotError { faults: parts.faults });
        };
        let Parts { namespaces, notices, denied, .. } = parts;
        let denied = Denylist::of_pages(denied);
        Ok(Self { revision, view, context, mesh, namespaces, destinations, compiled, denied, notices })
    }
}

/// What a target has in the way of policies.
#[derive(Default)]
struct Policies {
    readable: Vec<Arc<AuthorizationPolicy>>,
    unreadable: Vec<Arc<Unreadable>>,
}

/// A route with the port it takes, by service.
type RoutesByPort = BTreeMap<Option<u16>, Arc<TcpRoute>>;

/// The objects of a view, sorted by what they concern, and what was found wrong on the way.
#[derive(Default)]
struct Parts {
    mesh: Option<Arc<Mesh>>,
    namespaces: HashMap<Namespace, Arc<NamespaceSettings>>,
    services: BTreeMap<ServiceName, Arc<Service>>,
    endpoints: HashMap<ServiceName, Vec<Arc<Endpoint>>>,
    labels: HashMap<EndpointLabel, (Namespace, ViewKey)>,
    routes: BTreeMap<ServiceName, RoutesByPort>,
    traffic: Vec<Arc<TrafficPolicy>>,
    of_service: HashMap<ServiceName, Policies>,
    of_namespace: HashMap<Namespace, Policies>,
    denied: Vec<Arc<DenyPage>>,
    faults: Vec<Fault>,
    notices: Vec<Notice>,
}

impl Parts {
    fn sort(view: &View) -> Self {
        let mut parts = Self::default();
        for (key, object) in view {
            match object {
                ViewObject::Mesh(mesh) => parts.mesh = Some(Arc::clone(mesh)),
                ViewObject::Namespace(settings) => {
                    if let Some(name) = key.namespace() {
                        parts.namespaces.insert(name.clone(), Arc::clone(settings));
                    }
                }
                ViewObject::Service(service) => {
                    parts.services.insert(service.service_name(), Arc::clone(service));
                }
                ViewObject::Endpoint(endpoint) => parts.endpoint(key, endpoint),
                ViewObject::TcpRoute(route) => parts.route(key, route),
                ViewObject::TrafficPolicy(policy) => parts.traffic.push(Arc::clone(policy)),
                ViewObject::AuthorizationPolicy(policy) => parts.policy(key, policy),
                ViewObject::Unreadable(object) => parts.unreadable(object),
                ViewObject::Denied(page) => parts.denied.push(Arc::clone(page)),
            }
        }
        parts
    }

    fn endpoint(&mut self, key: &ViewKey, endpoint: &Arc<Endpoint>) {
        let owner = endpoint.service.namespace.clone();
        if let Some((namespace, first)) = self.labels.get(&endpoint.label) {
            let ours = ViewKey::Endpoint(endpoint.service.clone(), endpoint.workload.clone());
            // One workload serves several services of its namespace under one label.
            if (namespace, workload_of(first)) != (&owner, workload_of(&ours)) {
                self.faults.push(Fault::SameLabel { first: first.clone(), second: ours });
            }
        }
        self.labels.insert(endpoint.label.clone(), (owner, key.clone()));
        self.endpoints.entry(endpoint.service.clone()).or_default().push(Arc::clone(endpoint));
    }

    fn route(&mut self, key: &ViewKey, route: &Arc<TcpRoute>) {
        for parent in &route.parents {
            if !self.is_own(key, &route.metadata, &parent.service.namespace) {
                continue;
            }
            match self.routes.entry(parent.service.clone()).or_default().entry(parent.port) {
                Entry::Vacant(entry) => {
                    entry.insert(Arc::clone(route));
                }
                Entry::Occupied(entry) => self.faults.push(Fault::TwoRoutes {
                    service: parent.service.clone(),
                    port: parent.port,
                    first: ViewObject::TcpRoute(Arc::clone(entry.get())).key(),
                    second: key.clone(),
                }),
            }
        }
    }

    /// Files a policy under its targets. A DENY that lost its targets or its rules closes what it was about.
    fn policy(&mut self, key: &ViewKey, policy: &Arc<AuthorizationPolicy>) {
        let enforced_deny = policy.action == Action::Deny && policy.mode == Mode::Enforce;
        let lost = match (policy.targets.is_empty(), policy.rules.is_empty()) {
            (true, _) => Some("it names no target"),
            (false, true) => Some("it has no rule"),
            (false, false) => None,
        };
        match lost {
            Some(why) if enforced_deny => {
                let targets = policy.targets.clone();
                self.unreadable(&Arc::new(Unreadable { key: key.clone(), targets, why: why.to_owned() }));
            }
            // An ALLOW of nothing allows nothing, and what is in DryRun blocks nothing.
            Some(_) | None => {
                for target in &policy.targets {
                    if let Some(policies) = self.policies_of(key, target) {
                        policies.readable.push(Arc::clone(policy));
                    }
                }
            }
        }
    }

    fn unreadable(&mut self, object: &Arc<Unreadable>) {
        let ViewKey::AuthorizationPolicy(namespace, _) = &object.key else {
            self.faults.push(Fault::Unreadable { key: object.key.clone(), why: object.why.clone() });
            return;
        };
        let whole = [TargetRef::Namespace(namespace.clone())];
        let targets = if object.targets.is_empty() { &whole[..] } else { &object.targets };
        for target in targets {
            if let Some(policies) = self.policies_of(&object.key, target) {
                policies.unreadable.push(Arc::clone(object));
            }
        }
    }

    /// Where the policies of `target` are collected; `None`, with a fault, when it is not the policy's to name.
    fn policies_of(&mut self, key: &ViewKey, target: &TargetRef) -> Option<&mut Policies> {
        let own = key.namespace()?;
        match target {
            TargetRef::Service(name) => {
                let service = ServiceName::new(own.clone(), name.clone());
                Some(self.of_service.entry(service).or_default())
            }
            TargetRef::Namespace(namespace) if namespace == own => {
                Some(self.of_namespace.entry(own.clone()).or_default())
            }
            TargetRef::Namespace(namespace) => {
                self.faults.push(Fault::OtherNamespace { object: key.clone(), namespace: namespace.clone() });
                None
            }
        }
    }

    fn is_own(&mut self, key: &ViewKey, metadata: &Metadata, namespace: &Namespace) -> bool {
        let own = metadata.owner() == *namespace;
        if !own {
            self.faults.push(Fault::OtherNamespace { object: key.clone(), namespace: namespace.clone() });
        }
        own
    }

    fn checked_mesh(&mut self, context: &SnapshotContext) -> Option<Arc<Mesh>> {
        let Some(mesh) = self.mesh.clone() else {
            self.faults.push(Fault::NoMesh);
            return None;
        };
        if mesh.trust_domain != context.trust_domain {
            self.faults.push(Fault::TrustDomain {
                found: mesh.trust_domain.to_string(),
                expected: context.trust_domain.to_string(),
            });
        }
        Some(mesh)
    }

    /// The rules of every target, those that have not changed taken over.
    fn compile(&self, context: &SnapshotContext, before: &Compiled) -> Compiled {
        fn sets<K: Clone + Eq + Hash>(
            targets: &HashMap<K, Policies>,
            before: &HashMap<K, Arc<RuleSet>>,
            context: &SnapshotContext,
        ) -> HashMap<K, Arc<RuleSet>> {
            let with_rules = targets.iter().filter(|(_, policies)| !policies.readable.is_empty());
            let set = |(target, policies): (&K, &Policies)| {
                let kept = before.get(target).filter(|set| set.is_of(&policies.readable));
                let compile = || Arc::new(RuleSet::compile(&policies.readable, &context.trust_domain));
                (target.clone(), kept.map_or_else(compile, Arc::clone))
            };
            with_rules.map(set).collect()
        }
        Compiled {
            of_namespace: sets(&self.of_namespace, &before.of_namespace, context),
            of_service: sets(&self.of_service, &before.of_service, context),
        }
    }

    fn destinations(
        &mut self,
        mesh: Option<&Mesh>,
        context: &SnapshotContext,
        compiled: &Compiled,
    ) -> HashMap<ServiceName, Arc<Destination>> {
        let settings = self.settings();
        let mut destinations = HashMap::new();
        for (name, service) in std::mem::take(&mut self.services) {
            let own = self.of_service.remove(&name).unwrap_or_default();
            let namespace = self.of_namespace.get(&name.namespace);
            let count = own.readable.len() + namespace.map_or(0, |policies| policies.readable.len());
            if count > MAX_POLICIES {
                self.faults.push(Fault::TooManyPolicies { service: name.clone(), count });
                continue;
            }
            let of_namespace = namespace.into_iter().flat_map(|policies| policies.unreadable.iter().cloned());
            let unreadable = of_namespace.chain(own.unreadable.iter().cloned()).collect();
            let shared = compiled.of_namespace.get(&name.namespace);
            let rules = shared.into_iter().chain(compiled.of_service.get(&name)).cloned().collect();
            let destination = Destination {
                endpoints: self.admitted(&service, &name, context),
                settings: settings.get(&name).copied().unwrap_or_default(),
                routes: BTreeMap::new(),
                default: self.default_of(mesh, &service, &name.namespace),
                rules,
                unreadable,
                service,
            };
            destinations.insert(name, destination);
        }
        self.orphans();
        self.attach_routes(&mut destinations);
        destinations.into_iter().map(|(name, destination)| (name, Arc::new(destination))).collect()
    }

    /// The traffic settings by service. Targets that are not in the view are somebody else's destinations.
    fn settings(&mut self) -> HashMap<ServiceName, TrafficSettings> {
        let mut found: HashMap<ServiceName, (ViewKey, TrafficSettings)> = HashMap::new();
        for policy in std::mem::take(&mut self.traffic) {
            let key = ViewObject::TrafficPolicy(Arc::clone(&policy)).key();
            for service in self.services_meant(&key, &policy) {
                match found.get(&service) {
                    Some((first, _)) => self.faults.push(Fault::TwoTrafficPolicies {
                        service,
                        first: first.clone(),
                        second: key.clone(),
                    }),
                    None => {
                        found.insert(service, (key.clone(), policy.settings));
                    }
                }
            }
        }
        found.into_iter().map(|(service, (_, settings))| (service, settings)).collect()
    }

    fn services_meant(&mut self, key: &ViewKey, policy: &TrafficPolicy) -> Vec<ServiceName> {
        let own = policy.metadata.owner();
        let mut meant = Vec::new();
        for target in &policy.targets {
            match target {
                TargetRef::Service(name) => meant.push(ServiceName::new(own.clone(), name.clone())),
                TargetRef::Namespace(namespace) if *namespace == own => {
                    meant.extend(self.services.keys().filter(|name| name.namespace == own).cloned());
                }
                TargetRef::Namespace(namespace) => {
                    let namespace = namespace.clone();
                    self.faults.push(Fault::OtherNamespace { object: key.clone(), namespace });
                }
            }
        }
        meant.sort();
        meant.dedup();
        meant
    }

    /// The endpoints that may serve the service. The registry asks the same; the dialling side trusts nobody's word.
    fn admitted(
        &mut self,
        service: &Service,
        name: &ServiceName,
        context: &SnapshotContext,
    ) -> Vec<Arc<Endpoint>> {
        let mut admitted = self.endpoints.remove(name).unwrap_or_default();
        admitted.retain(|endpoint| {
            let key = || ViewKey::Endpoint(name.clone(), endpoint.workload.clone());
            if !service.may_be_served_by(&endpoint.identity, &context.trust_domain) {
                self.notices.push(Notice::WrongIdentity(key()));
                return false;
            }
            if !service.selects(&endpoint.labels) {
                self.notices.push(Notice::NotSelected(key()));
                return false;
            }
            true
        });
        admitted
    }

    /// The most specific default: service over namespace over mesh. Rules never change it.
    fn default_of(
        &self,
        mesh: Option<&Mesh>,
        service: &Service,
        namespace: &Namespace,
    ) -> (DefaultOrigin, DefaultAuthorization) {
        let of_namespace = self.namespaces.get(namespace).and_then(|settings| settings.default_authorization);
        match (service.default_authorization, of_namespace) {
            (Some(default), _) => (DefaultOrigin::Service, default),
            (None, Some(default)) => (DefaultOrigin::Namespace, default),
            (None, None) => (
                DefaultOrigin::Mesh,
                mesh.map_or(DefaultAuthorization::Deny, |mesh| mesh.default_authorization),
            ),
        }
    }

    /// Endpoints whose service is not there.
    fn orphans(&mut self) {
        let left = std::mem::take(&mut self.endpoints).into_values().flatten();
        let mut keys: Vec<_> = left.map(|endpoint| ViewObject::Endpoint(endpoint).key()).collect();
        keys.sort();
        self.faults.extend(keys.into_iter().map(Fault::EndpointWithoutService));
    }

    fn attach_routes(&mut self, destinations: &mut HashMap<ServiceName, Destination>) {
        for (service, by_port) in std::mem::take(&mut self.routes) {
            let exists = |backend: &BackendRef| {
                let found = destinations.get(&backend.service);
                found.is_some_and(|destination| destination.service.port(backend.port).is_some())
            };
            let compiled =
                by_port.iter().map(|(port, route)| (*port, Route::compile(route, exists))).collect();
            if let Some(destination) = destinations.get_mut(&service) {
                destination.routes = compiled;
            }
        }
    }
}

fn workload_of(key: &ViewKey) -> Option<&str> {
    match key {
        ViewKey::Endpoint(_, workload) => Some(workload.as_str()),
        ViewKey::Mesh
        | ViewKey::Namespace(_)
        | ViewKey::Service(_)
        | ViewKey::TcpRoute(..)
        | ViewKey::TrafficPolicy(..)
        | ViewKey::AuthorizationPolicy(..)
        | ViewKey::Denied(_) => None,
    }
}
