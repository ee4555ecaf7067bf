//! Complete or refused: what makes a snapshot, what refuses one, what is left out.

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::{Fault, Notice, Revision, Snapshot, SnapshotContext, Unreadable, View, ViewKey};
use crate::{
    authz::{CallRequest, Principal},
    model::{
        AuthorizationPolicy, Endpoint, Service, TargetRef, TrafficPolicy,
        authorization::{Action, Mode},
        traffic::{Algorithm, TrafficSettings},
    },
    route::{NoBackend, Target},
    testing::{
        any_view, build, endpoint, id, mesh, namespace, parent, policy, port, route, rule, service,
        service_name, snapshot, traffic, view,
    },
};

fn faults(view: View) -> Vec<String> {
    build(view).unwrap_err().faults.iter().map(ToString::to_string).collect()
}

#[test]
fn a_view_without_a_mesh_is_refused() {
    let error = build([service("charge", "shop")].into_iter().collect()).unwrap_err();
    assert_eq!(error.faults, [Fault::NoMesh]);
    assert_eq!(error.to_string(), "the configuration is refused: there is no Mesh object");
    assert_eq!(error.faults[0].code(), crate::code::SNAPSHOT_REFUSED);
}

#[test]
fn a_view_of_another_trust_domain_is_refused() {
    let context = SnapshotContext { trust_domain: "other.example".parse().unwrap() };
    let error = Snapshot::build(Arc::new(view([])), Revision(1), context).unwrap_err();
    assert_eq!(
        error.faults[0].to_string(),
        "the Mesh is of trust domain corp.example, this is other.example"
    );
}

#[test]
fn of_two_objects_under_one_key_the_later_one_stays() {
    let key = ViewKey::AuthorizationPolicy("shop".parse().unwrap(), "charge".parse().unwrap());
    let lost = |why: &str| Unreadable { key: key.clone(), targets: Vec::new(), why: why.to_owned() };
    let view: View = ["first", "second", "third"].map(lost).into_iter().collect();
    assert_eq!((view.len(), view.get(&key)), (1, Some(&lost("third").into())));
}

#[test]
fn every_fault_is_told_at_once() {
    let mut view = view([service("charge", "shop")]);
    view.insert(endpoint("gone", "shop", 1));
    view.insert(traffic("a", "charge"));
    view.insert(traffic("b", "charge"));
    view.insert(route("r1", vec![parent("charge", "shop", None)], &["charge"]));
    view.insert(route("r2", vec![parent("charge", "shop", None), parent("web", "front", None)], &["charge"]));
    assert_eq!(
        faults(view),
        [
            "TCPRoute/r1.shop and TCPRoute/r2.shop both take the connections of charge.shop",
            "TCPRoute/r2.shop reaches into namespace front",
            "TrafficPolicy/a.shop and TrafficPolicy/b.shop both set the traffic of charge.shop",
            "Endpoint/gone-1 of gone.shop, which is not there",
        ]
    );
}

#[test]
fn pol_12_overlapping_traffic_policies_are_refused_also_over_a_namespace() {
    let mut view = view([service("charge", "shop")]);
    view.insert(traffic("a", "charge"));
    view.insert(TrafficPolicy {
        targets: vec![TargetRef::Namespace(namespace("shop"))],
        ..traffic("b", "charge")
    });
    assert_eq!(faults(view).len(), 1);
}

#[test]
fn a_policy_for_another_namespace_is_refused() {
    let mut view = view([service("charge", "shop")]);
    view.insert(AuthorizationPolicy {
        targets: vec![TargetRef::Namespace(namespace("front"))],
        ..policy("p", Action::Allow, Vec::new())
    });
    assert_eq!(faults(view), ["AuthorizationPolicy/p.shop reaches into namespace front"]);
}

#[test]
fn something_other_than_a_policy_that_cannot_be_read_refuses_the_view() {
    let mut view = view([]);
    let key = ViewKey::Service(service_name("charge", "shop"));
    view.insert(Unreadable { key, targets: Vec::new(), why: "truncated".to_owned() });
    assert_eq!(faults(view), ["Service/charge.shop cannot be read: truncated"]);
}

#[test]
fn pol_05_more_policies_than_a_decision_should_look_at_are_refused() {
    let with = |count: usize| {
        let mut view = view([service("charge", "shop")]);
        view.extend((0..count).map(|number| AuthorizationPolicy {
            mode: Mode::DryRun,
            ..policy(&format!("p{number}"), Action::Allow, vec![rule("r", Vec::new())])
        }));
        build(view)
    };
    assert!(with(super::MAX_POLICIES).is_ok());
    let count = super::MAX_POLICIES + 1;
    let fault = Fault::TooManyPolicies { service: service_name("charge", "shop"), count };
    assert_eq!(with(count).unwrap_err().faults, [fault]);
}

#[test]
fn an_endpoint_that_may_not_serve_is_left_out_and_noted() {
    let foreign = id("spiffe://other.example/ns/shop/sa/charge");
    let cases = [
        ("spiffe://corp.example/ns/shop/sa/charge", true),
        ("spiffe://corp.example/ns/shop/sa/helper", true),
        ("spiffe://corp.example/ns/shop/sa/other", false),
        ("spiffe://corp.example/ns/front/sa/charge", false),
        ("spiffe://corp.example/node/charge", false),
        (&*foreign.to_string(), false),
    ];
    let identities = vec![id("spiffe://corp.example/ns/shop/sa/helper")];
    for (identity, admitted) in cases {
        let mut view = view([Service { identities: identities.clone(), ..service("charge", "shop") }]);
        view.insert(Endpoint { identity: id(identity), ..endpoint("charge", "shop", 1) });
        let snapshot = snapshot(view);
        let charge = snapshot.destination(&service_name("charge", "shop")).unwrap();
        assert_eq!(charge.endpoints().len() == 1, admitted, "{identity}");
        assert_eq!(snapshot.notices().is_empty(), admitted, "{identity}");
    }
}

#[test]
fn a_selector_asks_for_labels_beside_the_identity() {
    let label = |value: &str| BTreeMap::from([("version".to_owned(), value.to_owned())]);
    let mut view = view([Service { selector: Some(label("v2")), ..service("charge", "shop") }]);
    view.insert(Endpoint { labels: label("v2"), ..endpoint("charge", "shop", 1) });
    view.insert(Endpoint { labels: label("v1"), ..endpoint("charge", "shop", 2) });
    let snapshot = snapshot(view);
    let charge = snapshot.destination(&service_name("charge", "shop")).unwrap();
    let names: Vec<_> = charge.endpoints().iter().map(|endpoint| endpoint.workload.as_str()).collect();
    assert_eq!(names, ["charge-1"]);
    let left = ViewKey::Endpoint(service_name("charge", "shop"), "charge-2".parse().unwrap());
    assert_eq!(snapshot.notices(), [Notice::NotSelected(left)]);
}

#[test]
fn one_label_is_one_workload() {
    let shared = |service, number| Endpoint {
        label: "one".parse().unwrap(),
        workload: "both".parse().unwrap(),
        ..endpoint(service, "shop", number)
    };
    let mut two_services = view([service("charge", "shop"), service("ledger", "shop")]);
    two_services.insert(shared("charge", 1));
    two_services.insert(shared("ledger", 1));
    assert!(build(two_services).is_ok());

    let mut two_workloads = view([service("charge", "shop")]);
    two_workloads.insert(shared("charge", 1));
    two_workloads.insert(Endpoint { label: "one".parse().unwrap(), ..endpoint("charge", "shop", 2) });
    assert_eq!(faults(two_workloads).len(), 1);
}

#[test]
fn traffic_settings_reach_their_service_and_others_keep_the_defaults() {
    let settings = TrafficSettings { algorithm: Algorithm::RoundRobin, ..TrafficSettings::default() };
    let mut view = view([service("charge", "shop"), service("ledger", "shop")]);
    view.insert(TrafficPolicy { settings, ..traffic("a", "charge") });
    view.insert(traffic("b", "elsewhere"));
    let snapshot = snapshot(view);
    let of = |name| *snapshot.destination(&service_name(name, "shop")).unwrap().settings();
    assert_eq!(of("charge"), settings);
    assert_eq!(of("ledger"), TrafficSettings::default());
}

#[test]
fn a_route_for_the_port_goes_before_one_for_all_and_routes_do_not_chain() {
    let two =
        |name| Service { ports: vec![port(80, Some("http")), port(81, Some("x"))], ..service(name, "shop") };
    let mut view = view([two("charge"), two("v1"), two("v2")]);
    view.insert(route("all", vec![parent("charge", "shop", None)], &["v1"]));
    view.insert(route("one", vec![parent("charge", "shop", Some(81))], &["v2"]));
    view.insert(route("loop", vec![parent("v1", "shop", None)], &["charge"]));
    let snapshot = snapshot(view);
    let mut rng = StdRng::seed_from_u64(1);
    let mut routed = |name: &str, port| {
        snapshot.destination(&service_name(name, "shop")).unwrap().route(port, &mut rng).unwrap().to_string()
    };
    assert_eq!(routed("charge", 80), "v1.shop:80");
    assert_eq!(routed("charge", 81), "v2.shop:80");
    assert_eq!(routed("v2", 81), "v2.shop:81");
}

#[test]
fn a_route_to_nothing_refuses_its_connections_only() {
    let mut view = view([service("charge", "shop"), service("ledger", "shop")]);
    view.insert(route("r", vec![parent("charge", "shop", None)], &["gone"]));
    let snapshot = snapshot(view);
    let charge = snapshot.destination(&service_name("charge", "shop")).unwrap();
    let target = Target { service: service_name("gone", "shop"), port: 80 };
    let missing = NoBackend::Missing { route: "r.shop".to_owned(), target };
    assert_eq!(charge.route(80, &mut StdRng::seed_from_u64(1)), Err(missing));
}

#[test]
fn an_older_snapshot_is_untouched_by_a_newer_view() {
    let old = view([service("charge", "shop")]);
    let mut new = old.clone();
    new.remove(&ViewKey::Service(service_name("charge", "shop")));
    let (old, new) = (snapshot(old), snapshot(new));
    assert!(old.destination(&service_name("charge", "shop")).is_some());
    assert!(new.destination(&service_name("charge", "shop")).is_none());
    assert_eq!(old.mesh(), &mesh());
}

#[test]
fn rules_that_have_not_changed_are_not_compiled_again() {
    let mut old = view([service("charge", "shop"), service("ledger", "shop")]);
    old.insert(policy("p", Action::Allow, vec![rule("r", Vec::new())]));
    old.insert(AuthorizationPolicy {
        targets: vec![TargetRef::Namespace(namespace("shop"))],
        ..policy("q", Action::Allow, vec![rule("r", Vec::new())])
    });
    let old = snapshot(old);
    let mut view = View::clone(old.view());
    view.insert(endpoint("charge", "shop", 1));
    let new = old.rebuild(Arc::new(view.clone()), Revision(42)).unwrap();
    let rules =
        |snapshot: &Snapshot| snapshot.destination(&service_name("charge", "shop")).unwrap().rules().to_vec();
    assert_eq!(rules(&old).len(), 2);
    assert!(rules(&old).iter().zip(&rules(&new)).all(|(old, new)| Arc::ptr_eq(old, new)));

    view.insert(policy("p", Action::Deny, vec![rule("r", Vec::new())]));
    let newer = new.rebuild(Arc::new(view), Revision(43)).unwrap();
    let kept: Vec<_> =
        rules(&new).iter().zip(&rules(&newer)).map(|(old, new)| Arc::ptr_eq(old, new)).collect();
    assert_eq!(kept, [true, false]);
}

proptest! {
    #[test]
    fn a_rebuilt_snapshot_decides_as_one_built_afresh(old in any_view(), new in any_view()) {
        let Ok(before) = build(old) else { return Ok(()) };
        let (fresh, rebuilt) = (build(new.clone()), before.rebuild(Arc::new(new), Revision(41)));
        prop_assert_eq!(fresh.is_ok(), rebuilt.is_ok());
        let (Ok(fresh), Ok(rebuilt)) = (fresh, rebuilt) else { return Ok(()) };
        for (service, _) in fresh.destinations() {
            for source in [id("spiffe://corp.example/ns/a/sa/b"), id("spiffe://corp.example/a")] {
                let source = Principal::Spiffe(&source);
                let request = CallRequest { source, service, port: 80, network: None };
                prop_assert_eq!(fresh.authorize(&request), rebuilt.authorize(&request));
            }
        }
    }

    #[test]
    fn a_view_makes_a_snapshot_of_all_its_services_or_none(view in any_view()) {
        let services = view.iter().filter(|(key, _)| matches!(key, ViewKey::Service(_))).count();
        match build(view) {
            Ok(snapshot) => prop_assert_eq!(snapshot.destinations().count(), services),
            Err(error) => prop_assert!(!error.faults.is_empty()),
        }
    }

    #[test]
    fn endpoints_of_a_snapshot_are_those_of_the_view_that_have_their_service(view in any_view()) {
        let endpoints = view.iter().filter(|(key, _)| matches!(key, ViewKey::Endpoint(..))).count();
        if let Ok(snapshot) = build(view) {
            let served: usize = snapshot.destinations().map(|(_, found)| found.endpoints().len()).sum();
            prop_assert_eq!(served, endpoints);
        }
    }
}
