//! A world that is made of the one before is the same as one made anew, and says whom a change concerns.

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use weft_policy::{
    model::{EndpointState, Key, Kind, Resource, TargetRef},
    name::{NodeName, ServiceName},
};

use super::World;
use crate::{
    catalog::Catalog,
    liveness::Standings,
    samples,
    view::{self, Interest},
};

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

/// One change of what a world is made of, drawn by numbers.
fn change(catalog: &mut Catalog, (what, which): (usize, usize), revision: u64) {
    let service = ["charge", "ledger", "order", "new"][which % 4];
    let node = ["hosta", "hostb", "hostc"][which % 3];
    let name = format!("{service}-1");
    match what {
        0 => {
            let mut workload = samples::workload(&name, "shop", node, &[service]);
            workload.weight = u32::try_from(revision).unwrap();
            catalog.put(Resource::Workload(workload));
        }
        1 => catalog.remove(&key(Kind::Workload, &name)),
        2 => catalog.put(Resource::Service(samples::service(service, "shop"))),
        3 => catalog.remove(&key(Kind::Service, service)),
        4 => {
            let enrolled = samples::enrollment(service, "shop", &[node], &format!("sa/{service}"));
            catalog.put(Resource::WorkloadEnrollment(enrolled));
        }
        5 => catalog.remove(&key(Kind::WorkloadEnrollment, service)),
        6 => catalog.put(Resource::AuthorizationPolicy(samples::policy(&name, "shop", service, "order"))),
        7 => catalog.remove(&key(Kind::AuthorizationPolicy, &name)),
        8 => catalog.put(Resource::TcpRoute(samples::route(&name, "shop", service, "ledger"))),
        9 => catalog.remove(&key(Kind::TcpRoute, &name)),
        10 => catalog.put(Resource::Namespace(samples::namespace("shop"))),
        11 => samples::damage(catalog, "charge-from-order", "shop"),
        _ => {
            let mut whole = samples::policy("whole", "shop", service, "order");
            whole.targets = vec![TargetRef::Namespace("shop".parse().unwrap())];
            catalog.put(Resource::AuthorizationPolicy(whole));
        }
    }
}

proptest! {
    /// A world that follows another one is what it would be if it followed none, and whoever is told something else
    /// is concerned.
    #[test]
    fn a_world_that_follows_is_the_same_as_one_made_anew(
        steps in proptest::collection::vec((0_usize..13, 0_usize..12), 1..30)
    ) {
        let asked = ["charge", "new"].map(|name| samples::service_name(name, "shop"));
        let hosts = ["hosta", "hostb", "hostz"].map(|name| name.parse::<NodeName>().unwrap());
        let view = |world: &World, host: &NodeName| {
            view::scoped(world, &Interest::of_node(world, host, asked.clone().into()))
        };
        let mut catalog = samples::shop();
        let mut world = World::derive(Arc::new(catalog.clone()), Standings::default(), None);
        let mut told = hosts.each_ref().map(|host| (world.mark().clone(), view(&world, host)));
        for (revision, step) in (10..).zip(steps) {
            change(&mut catalog, step, revision);
            let anew = World::derive(Arc::new(catalog.clone()), Standings::default(), None);
            world = World::derive(Arc::new(catalog.clone()), Standings::default(), Some(&world));
            prop_assert_eq!(&world.endpoints, &anew.endpoints);
            prop_assert_eq!(&world.hosts, &anew.hosts);
            for (host, (mark, told)) in hosts.iter().zip(&mut told) {
                let now = view(&world, host);
                prop_assert_eq!(&now.0, &view(&anew, host).0);
                if world.concerns(mark, host, &told.1) {
                    (*mark, *told) = (world.mark().clone(), now);
                } else {
                    prop_assert_eq!(&now, told);
                }
            }
        }
    }
}

#[test]
fn a_registration_concerns_those_who_are_told_of_its_service() {
    let before = world(|_| {});
    let mut catalog = before.catalog().as_ref().clone();
    let mut workload = samples::workload("charge-1", "shop", "hostb", &["charge"]);
    workload.weight = 7;
    catalog.put(Resource::Workload(workload));
    let after = World::derive(Arc::new(catalog), Standings::default(), Some(&before));
    let stranger = "hostz".parse().unwrap();
    assert!(after.concerns(before.mark(), &stranger, &[charge()]));
    assert!(!after.concerns(before.mark(), &stranger, &[samples::service_name("ledger", "shop")]));
}
