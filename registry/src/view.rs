//! What each node is told: its view of the world, and nothing more than it needs.
//!
//! | object | told when |
//! |---|---|
//! | Mesh, the denylist | always |
//! | Namespace | of the services below, and of the node's own workloads |
//! | Service, Endpoint, TrafficPolicy | the node asks for it or hosts it, or a route of such a service leads to it |
//! | TCPRoute | it takes the connections of a service that the node asks for or hosts |
//! | AuthorizationPolicy | it is about a service that the node hosts: callers do not learn who else may call |
//!
//! Pure. The same function answers the discovery stream, `policy check` and the check of a change before it is made.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use weft_identity::spiffe::TrustDomain;
use weft_policy::{
    model::{DefaultAuthorization, EgressMode, Key, Kind, Mesh, Metadata, NamespaceSettings, TcpRoute},
    name::{Namespace, NodeName, ObjectName, ServiceName},
    snapshot::{Unreadable, View, ViewKey, ViewObject},
};

use crate::world::World;

/// What somebody needs to know.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Interest {
    /// Services that are called from here.
    pub services: BTreeSet<ServiceName>,
    /// Services that are served here, so that it is decided here who may call them.
    pub hosted: BTreeSet<ServiceName>,
    /// Namespaces of the workloads that run here.
    pub namespaces: BTreeSet<Namespace>,
}

impl Interest {
    /// What the agent of `node` needs that calls `services`.
    #[must_use]
    pub fn of_node(world: &World, node: &NodeName, services: BTreeSet<ServiceName>) -> Self {
        let hosted = world.hosted(node).cloned().unwrap_or_default();
        Self { services, hosted: hosted.services, namespaces: hosted.namespaces }
    }

    /// What a node needs that serves `service`.
    #[must_use]
    pub fn of_destination(service: &ServiceName) -> Self {
        Self { hosted: BTreeSet::from([service.clone()]), ..Self::default() }
    }

    /// Everything there is: what a change is checked against.
    #[must_use]
    pub fn everything(world: &World) -> Self {
        let services: BTreeSet<_> = world.catalog().services().keys().cloned().collect();
        let namespaces = world.catalog().namespaces().keys().cloned().collect();
        Self { hosted: services, namespaces, services: BTreeSet::new() }
    }
}

/// The view of somebody with that interest.
#[must_use]
pub fn build(world: &World, interest: &Interest) -> View {
    scoped(world, interest).0
}

/// The same, with every service that it is about: those asked for, those hosted, and those to which routes lead.
#[must_use]
pub fn scoped(world: &World, interest: &Interest) -> (View, BTreeSet<ServiceName>) {
    let mut builder = Builder { world, objects: Vec::new(), namespaces: interest.namespaces.clone() };
    let mut destinations: BTreeSet<_> = interest.services.union(&interest.hosted).cloned().collect();
    let routes = builder.routes_of(&destinations);
    let backends = routes.iter().flat_map(|route| &route.backends).map(|backend| backend.service.clone());
    destinations.extend(backends);
    builder.destinations(&destinations);
    builder.objects.extend(routes.into_iter().map(ViewObject::TcpRoute));
    builder.policies(&interest.hosted);
    (builder.finish(), destinations)
}

struct Builder<'a> {
    world: &'a World,
    objects: Vec<ViewObject>,
    namespaces: BTreeSet<Namespace>,
}

impl Builder<'_> {
    /// The routes that take connections of `services`, from the namespaces of any of them.
    fn routes_of(&self, services: &BTreeSet<ServiceName>) -> Vec<Arc<TcpRoute>> {
        let namespaces = namespaces_of(services);
        let of_each = services.iter().flat_map(|service| self.world.routes(service));
        of_each.filter(|route| namespaces.contains(&route.metadata.owner())).cloned().collect()
    }

    /// Services with their endpoints and settings.
    fn destinations(&mut self, services: &BTreeSet<ServiceName>) {
        let world = self.world;
        for name in services {
            // Settings are told also while there is no service.
            self.objects.extend(world.traffic().service(name).iter().cloned().map(ViewObject::TrafficPolicy));
            let Some(service) = world.catalog().services().get(name) else { continue };
            self.namespaces.insert(name.namespace.clone());
            self.objects.push(ViewObject::Service(Arc::clone(service)));
            self.objects.extend(world.endpoints(name).iter().cloned().map(ViewObject::Endpoint));
        }
        for namespace in namespaces_of(services) {
            let whole = world.traffic().namespace(namespace).iter().cloned();
            self.objects.extend(whole.map(ViewObject::TrafficPolicy));
        }
    }

    /// The policies about services that are decided here. One that cannot be read closes what it was about.
    fn policies(&mut self, hosted: &BTreeSet<ServiceName>) {
        let world = self.world;
        for service in hosted {
            let own = world.policies().service(service).iter().cloned();
            self.objects.extend(own.map(ViewObject::AuthorizationPolicy));
        }
        for namespace in namespaces_of(hosted) {
            let whole = world.policies().namespace(namespace).iter().cloned();
            self.objects.extend(whole.map(ViewObject::AuthorizationPolicy));
            if let Some(why) = world.catalog().closed(namespace) {
                let key = ViewKey::AuthorizationPolicy(namespace.clone(), closed_name());
                self.objects.push(Unreadable { key, targets: Vec::new(), why }.into());
            }
            for (key, aside) in world.catalog().unreadable() {
                if let Some(policy) = unreadable_policy(key, namespace) {
                    let unreadable = Unreadable { key: policy, targets: Vec::new(), why: aside.why.clone() };
                    self.objects.push(unreadable.into());
                }
            }
        }
    }

    fn finish(mut self) -> View {
        let catalog = self.world.catalog();
        // Settings that somebody else may have written open nothing, neither to callers nor to the outside.
        let mesh = match catalog.closed_mesh() {
            Some(trust_domain) => Some(Arc::new(strictest_mesh(trust_domain))),
            None => catalog.mesh().cloned(),
        };
        self.objects.extend(mesh.map(ViewObject::Mesh));
        let settings = self.namespaces.iter().filter_map(|name| match catalog.closed(name) {
            Some(_) => strictest(name).map(Arc::new),
            None => catalog.namespaces().get(name).cloned(),
        });
        self.objects.extend(settings.map(ViewObject::Namespace));
        self.objects.extend(self.world.denied().pages().cloned().map(ViewObject::Denied));
        self.objects.into_iter().collect()
    }
}

fn strictest_mesh(trust_domain: &TrustDomain) -> Mesh {
    let name = "mesh".parse().expect("it is a name");
    Mesh {
        metadata: named(name),
        trust_domain: trust_domain.clone(),
        default_authorization: DefaultAuthorization::Deny,
        egress: EgressMode::Deny,
    }
}

fn strictest(namespace: &Namespace) -> Option<NamespaceSettings> {
    // Both are one label of the same grammar.
    let metadata = named(namespace.as_str().parse().ok()?);
    let (default_authorization, egress) = (Some(DefaultAuthorization::Deny), Some(EgressMode::Deny));
    Some(NamespaceSettings { metadata, default_authorization, egress })
}

fn named(name: ObjectName) -> Metadata {
    let (labels, annotations) = (BTreeMap::new(), BTreeMap::new());
    Metadata { namespace: None, name, labels, annotations, revision: 0 }
}

/// The key of a policy of `namespace` that cannot be read. Its targets are not known, so it is about the namespace.
fn unreadable_policy(key: &Key, namespace: &Namespace) -> Option<ViewKey> {
    let own = key.kind == Kind::AuthorizationPolicy && key.namespace.as_ref() == Some(namespace);
    own.then(|| ViewKey::AuthorizationPolicy(namespace.clone(), key.name.clone()))
}

/// Under this name a namespace whose records cannot be vouched for is closed. A policy that is named so is closed with it.
fn closed_name() -> ObjectName {
    "closed-records".parse().expect("it is a name")
}

fn namespaces_of(services: &BTreeSet<ServiceName>) -> HashSet<&Namespace> {
    services.iter().map(|service| &service.namespace).collect()
}

#[cfg(test)]
mod tests {
    use weft_policy::{
        model::Resource,
        snapshot::{Revision, Snapshot, SnapshotContext},
    };

    use super::*;
    use crate::{catalog::Catalog, liveness::Standings, samples};

    fn view(catalog: Catalog, node: &str, services: &[(&str, &str)]) -> View {
        let world = World::derive(Arc::new(catalog), Standings::default(), None);
        let services = services.iter().map(|(name, namespace)| samples::service_name(name, namespace));
        build(&world, &Interest::of_node(&world, &node.parse().unwrap(), services.collect()))
    }

    fn kinds(view: &View) -> Vec<String> {
        view.iter().map(|(key, _)| key.to_string()).collect()
    }

    #[test]
    fn a_caller_learns_the_service_and_its_endpoints_but_not_its_policies() {
        let told = kinds(&view(samples::shop(), "hostz", &[("charge", "shop")]));
        assert_eq!(
            told,
            ["Mesh/mesh", "Namespace/shop", "Service/charge.shop", "Endpoint/charge-1 of charge.shop"]
        );
    }

    #[test]
    fn whoever_hosts_a_service_gets_its_policies_without_asking() {
        let told = kinds(&view(samples::shop(), "hostb", &[]));
        assert!(told.contains(&"AuthorizationPolicy/charge-from-order.shop".to_owned()), "{told:?}");
        assert!(!told.iter().any(|key| key.contains("ledger")), "{told:?}");
    }

    #[test]
    fn a_node_without_anything_learns_only_the_mesh() {
        assert_eq!(kinds(&view(samples::shop(), "hostz", &[])), ["Mesh/mesh"]);
    }

    #[test]
    fn a_route_brings_its_backends_but_not_their_routes() {
        let mut catalog = samples::shop();
        catalog.put(Resource::TcpRoute(samples::route("r1", "shop", "charge", "ledger")));
        catalog.put(Resource::TcpRoute(samples::route("r2", "shop", "ledger", "order")));
        let told = kinds(&view(catalog, "hostz", &[("charge", "shop")]));
        assert!(
            told.contains(&"TCPRoute/r1.shop".to_owned()) && told.contains(&"Service/ledger.shop".to_owned())
        );
        assert!(!told.iter().any(|key| key.contains("r2") || key.contains("order")), "{told:?}");
    }

    #[test]
    fn pol_02_a_policy_that_cannot_be_read_closes_its_namespace_where_it_is_decided() {
        let mut catalog = samples::shop();
        samples::damage(&mut catalog, "charge-from-order", "shop");
        let view = view(catalog, "hostb", &[]);
        let context = SnapshotContext { trust_domain: samples::domain() };
        let snapshot = Snapshot::build(Arc::new(view), Revision(1), context).unwrap();
        let charge = samples::service_name("charge", "shop");
        assert_eq!(snapshot.destination(&charge).unwrap().unreadable().len(), 1);
    }

    #[test]
    fn everything_that_exists_makes_one_snapshot() {
        let catalog = samples::shop();
        let count = catalog.services().len();
        let world = World::derive(Arc::new(catalog), Standings::default(), None);
        let view = build(&world, &Interest::everything(&world));
        assert!(
            view.get(&ViewKey::Mesh).is_some_and(|mesh| matches!(mesh, ViewObject::Mesh(found) if **found
            == Mesh { metadata: found.metadata.clone(), ..samples::mesh() }))
        );
        let context = SnapshotContext { trust_domain: samples::domain() };
        let snapshot = Snapshot::build(Arc::new(view), Revision(1), context).unwrap();
        assert_eq!(snapshot.destinations().count(), count);
    }
}
