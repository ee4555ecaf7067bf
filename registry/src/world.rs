//! What follows from everything that is configured and everybody who is there: the endpoints of each service, and what
//! each node hosts.
//!
//! Pure, and made once per change for all readers: sessions of a thousand agents share its endpoints. An endpoint that
//! did not change stays the same object in memory, so that comparing views costs next to nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use weft_identity::{
    denied::{Denylist, Subject},
    spiffe::SpiffeId,
};
use weft_policy::{
    model::{Endpoint, EndpointState, Service, Workload},
    name::{Namespace, NodeName, ObjectName, ServiceName},
};

use crate::{
    catalog::{Catalog, Scoped},
    denied::{self, What},
    enrollment::{Enrollments, Grant},
    liveness::{Standing, Standings},
};

/// See the module.
#[derive(Clone, Debug)]
pub struct World {
    catalog: Arc<Catalog>,
    standings: Standings,
    endpoints: BTreeMap<ServiceName, Vec<Arc<Endpoint>>>,
    hosts: BTreeMap<NodeName, Hosted>,
    denied: Denylist,
}

/// What runs on one node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Hosted {
    /// The services that its workloads may serve.
    pub services: BTreeSet<ServiceName>,
    /// The namespaces of its workloads.
    pub namespaces: BTreeSet<Namespace>,
    /// How many workloads it registered.
    pub workloads: u32,
}

impl World {
    /// What follows from `catalog` and `standings`. `before` is the world that this one replaces.
    #[must_use]
    pub fn derive(catalog: Arc<Catalog>, standings: Standings, before: Option<&Self>) -> Self {
        let enrollments = Enrollments::of(&catalog);
        let mut old: HashMap<(&ServiceName, &ObjectName), &Arc<Endpoint>> = HashMap::new();
        let known = before.into_iter().flat_map(|world| world.endpoints.iter());
        for (service, endpoints) in known {
            old.extend(endpoints.iter().map(|endpoint| ((service, &endpoint.workload), endpoint)));
        }
        let mut endpoints: BTreeMap<ServiceName, Vec<Arc<Endpoint>>> = BTreeMap::new();
        let mut hosts: BTreeMap<NodeName, Hosted> = BTreeMap::new();
        for (scoped, workload) in catalog.workloads() {
            let host = hosts.entry(workload.node.clone()).or_default();
            host.workloads += 1;
            host.namespaces.insert(scoped.0.clone());
            if is_denied(&catalog, workload) {
                continue;
            }
            let Some(grant) = enrollments.grant(&catalog, &workload.node, &workload.identity) else {
                continue;
            };
            for service in served(&catalog, scoped, workload, &grant) {
                let name = service.service_name();
                host.services.insert(name.clone());
                let Some(endpoint) = endpoint(&catalog, &standings, workload, &grant, &service) else {
                    continue;
                };
                let kept = old.get(&(&name, &scoped.1)).filter(|old| ****old == endpoint);
                let endpoint = kept.map_or_else(|| Arc::new(endpoint), |old| Arc::clone(old));
                endpoints.entry(name).or_default().push(endpoint);
            }
        }
        let denied = denylist(&catalog, before);
        Self { catalog, standings, endpoints, hosts, denied }
    }

    /// What is configured.
    #[must_use]
    pub const fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Which workloads are in doubt.
    #[must_use]
    pub const fn standings(&self) -> &Standings {
        &self.standings
    }

    /// The endpoints of a service that callers are shown, in the order of their workloads' names.
    #[must_use]
    pub fn endpoints(&self, service: &ServiceName) -> &[Arc<Endpoint>] {
        self.endpoints.get(service).map_or(&[], Vec::as_slice)
    }

    /// Who is refused by every agent.
    #[must_use]
    pub const fn denied(&self) -> &Denylist {
        &self.denied
    }

    /// What runs on a node; `None` when nothing does.
    #[must_use]
    pub fn hosted(&self, node: &NodeName) -> Option<&Hosted> {
        self.hosts.get(node)
    }
}

/// Whether nobody is to be sent to a workload, because its node is banned or its identity is revoked.
fn is_denied(catalog: &Catalog, workload: &Workload) -> bool {
    if catalog.denied().is_empty() {
        return false;
    }
    let identity = What::Subject(Subject::Identity(workload.identity.clone()));
    denied::banned(catalog, &workload.node).is_some() || catalog.denied().contains_key(&identity.id())
}

/// The denylist that agents are told. Made anew only when a record has changed; its pages stay the same objects.
fn denylist(catalog: &Catalog, before: Option<&World>) -> Denylist {
    let none = Denylist::new();
    if let Some(before) = before.filter(|before| Arc::ptr_eq(before.catalog.denied(), catalog.denied())) {
        return before.denied.clone();
    }
    let entries = catalog.denied().values().flat_map(|kept| kept.record.entries());
    Denylist::of(entries, before.map_or(&none, |before| &before.denied))
}

/// The services that a workload says it serves, that its enrollments let it serve, and that take it.
fn served(catalog: &Catalog, scoped: &Scoped, workload: &Workload, grant: &Grant) -> Vec<Arc<Service>> {
    if grant.namespace != scoped.0 {
        return Vec::new();
    }
    let own = workload.services.iter().filter(|service| grant.services.contains(*service));
    let found = own.filter_map(|name| {
        catalog.services().get(&ServiceName::new(scoped.0.clone(), name.clone())).cloned()
    });
    // What a closed namespace says of others that may serve may be what somebody else wrote.
    let closed = catalog.closed(&scoped.0).is_some();
    let own_account = |service: &Service| {
        SpiffeId::workload(catalog.trust_domain(), scoped.0.as_str(), service.metadata.name.as_str())
            .is_ok_and(|own| own == workload.identity)
    };
    let takes = |service: &Arc<Service>| {
        (!closed || own_account(service))
            && service.may_be_served_by(&workload.identity, catalog.trust_domain())
            && service.selects(&grant.labels)
    };
    found.filter(takes).collect()
}

/// The endpoint as callers see it; `None` while it has no label, no address, or is withdrawn.
fn endpoint(
    catalog: &Catalog,
    standings: &Standings,
    workload: &Workload,
    grant: &Grant,
    service: &Service,
) -> Option<Endpoint> {
    let name = service.service_name();
    let state = match standings.of(&name, &workload.metadata.name) {
        Standing::Confirmed => EndpointState::Confirmed,
        Standing::Unconfirmed => EndpointState::Unconfirmed,
        Standing::Withdrawn => return None,
    };
    let node = &catalog.nodes().get(&workload.node)?.record;
    if node.advertise.is_empty() {
        return None;
    }
    Some(Endpoint {
        service: name,
        workload: workload.metadata.name.clone(),
        node: workload.node.clone(),
        identity: workload.identity.clone(),
        label: workload.label.clone()?,
        addresses: node.advertise.clone(),
        weight: workload.weight,
        locality: workload.locality.clone(),
        labels: grant.labels.clone(),
        boot: node.boot,
        state,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weft_policy::model::{Key, Kind, Resource};

    use super::*;
    use crate::samples;

    fn world(change: impl FnOnce(&mut Catalog)) -> World {
        let mut catalog = samples::shop();
        change(&mut catalog);
        World::derive(Arc::new(catalog), Standings::default(), None)
    }

    fn charge() -> ServiceName {
        samples::service_name("charge", "shop")
    }

    fn key(kind: Kind, name: &str) -> Key {
        Key { kind, namespace: Some("shop".parse().unwrap()), name: name.parse().unwrap() }
    }

    #[test]
    fn an_endpoint_joins_workload_node_and_enrollment() {
        let world = world(|_| {});
        let [endpoint] = world.endpoints(&charge()) else { panic!("one endpoint") };
        assert_eq!(endpoint.identity.to_string(), "spiffe://corp.example/ns/shop/sa/charge");
        assert_eq!(endpoint.addresses[0].to_string(), "192.0.2.2:7443");
        assert_eq!((endpoint.boot, endpoint.state), (1, EndpointState::Confirmed));
        assert_eq!(endpoint.labels["app"], "charge");
        assert!(world.hosted(&"hostb".parse().unwrap()).unwrap().services.contains(&charge()));
    }

    #[test]
    fn a_deleted_enrollment_takes_its_endpoints_with_it() {
        let world = world(|catalog| catalog.remove(&key(Kind::WorkloadEnrollment, "charge")));
        assert!(world.endpoints(&charge()).is_empty());
        assert!(world.hosted(&"hostb".parse().unwrap()).unwrap().services.is_empty());
    }

    #[test]
    fn an_identity_that_is_not_the_services_does_not_serve_it_unless_it_is_listed() {
        let stranger = |catalog: &mut Catalog| {
            let mut workload = samples::workload("charge-1", "shop", "hostb", &["charge"]);
            workload.identity = samples::identity("shop", "other");
            catalog.put(Resource::Workload(workload));
            let mut wide = samples::enrollment("wide", "shop", &["hostb"], "**");
            wide.services = Some(vec!["charge".parse().unwrap()]);
            catalog.put(Resource::WorkloadEnrollment(wide));
        };
        assert!(world(stranger).endpoints(&charge()).is_empty());
        let listed = world(|catalog| {
            stranger(catalog);
            let mut service = samples::service("charge", "shop");
            service.identities = vec![samples::identity("shop", "other")];
            catalog.put(Resource::Service(service));
        });
        assert_eq!(listed.endpoints(&charge()).len(), 1);
    }

    #[test]
    fn labels_come_from_the_enrollment_and_the_selector_asks_for_them() {
        let select = |wanted: &str| {
            let labels = BTreeMap::from([("app".to_owned(), wanted.to_owned())]);
            world(|catalog| {
                let mut service = samples::service("charge", "shop");
                service.selector = Some(labels);
                catalog.put(Resource::Service(service));
                let mut workload = samples::workload("charge-1", "shop", "hostb", &["charge"]);
                workload.metadata.labels = BTreeMap::from([("app".to_owned(), "forged".to_owned())]);
                catalog.put(Resource::Workload(workload));
            })
        };
        assert_eq!(select("charge").endpoints(&charge()).len(), 1);
        assert!(select("forged").endpoints(&charge()).is_empty());
    }

    #[test]
    fn an_endpoint_that_did_not_change_stays_the_same_object() {
        let before = world(|_| {});
        let mut catalog = before.catalog().as_ref().clone();
        catalog.put(Resource::Service(samples::service("more", "shop")));
        let after = World::derive(Arc::new(catalog), Standings::default(), Some(&before));
        assert!(Arc::ptr_eq(&before.endpoints(&charge())[0], &after.endpoints(&charge())[0]));
    }
}
