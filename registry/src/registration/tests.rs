//! Registrations over real gRPC, with the embedded store.

use tonic::{Code, Status};
use weft_policy::model::EndpointState;

use super::*;
use crate::{
    harness::{Plane, fault},
    samples,
    store::Expected,
};

fn request(name: &str, account: &str) -> RegisterRequest {
    RegisterRequest {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        identity: format!("spiffe://corp.example/ns/shop/sa/{account}"),
        ports: BTreeMap::from([("http".to_owned(), "8081".to_owned())]),
        weight: 1,
        boot: 1,
        services: vec![account.to_owned()],
        uid: Some(1_000),
        ..Default::default()
    }
}

async fn try_register(
    plane: &Plane,
    node: &str,
    request: RegisterRequest,
) -> Result<RegisterResponse, Status> {
    plane.agent(node).await.register(request).await.map(tonic::Response::into_inner)
}

async fn refused(plane: &Plane, node: &str, request: RegisterRequest) -> (Code, String, Vec<String>) {
    let status = try_register(plane, node, request).await.unwrap_err();
    let fault = fault(&status);
    (status.code(), fault.code, fault.why)
}

/// A plane whose enrollments are there, but no service and no workload.
async fn enrolled() -> Plane {
    let plane = Plane::start().await;
    plane.rig.put(&Resource::Mesh(samples::mesh())).await;
    let mut charge = samples::enrollment("charge", "shop", &["hostb", "hostc"], "sa/charge");
    let by_uid = UnixSelector { uid: Some(1_000), user: None };
    let by_both = UnixSelector { uid: Some(0), user: Some("root".to_owned()) };
    charge.selectors = vec![by_uid, by_both];
    let revision = plane.rig.put(&Resource::WorkloadEnrollment(charge)).await;
    let key = layout::node(&"hostb".parse().unwrap());
    let node = samples::node("192.0.2.2:7443", 1).encode();
    plane.rig.core.store.put(key, node, Expected::Anything, None).await.unwrap();
    plane.rig.core.world.wait_for(revision.next()).await;
    plane
}

#[tokio::test]
async fn the_first_registration_makes_an_endpoint_and_the_service_that_nobody_declared() {
    let plane = enrolled().await;
    let answer = try_register(&plane, "hostb", request("charge-1", "charge")).await.unwrap();
    assert_eq!(answer.label.len(), 26);
    assert_eq!((answer.services, answer.allowed_uids), (vec!["charge".to_owned()], vec![1_000]));
    assert!(answer.allowed_users.is_empty(), "a selector of two parts gives neither of them alone");
    assert_eq!(answer.labels["app"], "charge");

    let world = plane.rig.core.world.current();
    let charge = samples::service_name("charge", "shop");
    let service = &world.catalog().services()[&charge];
    assert_eq!((service.ports[0].number, service.ports[0].app_protocol), (80, None));
    assert_eq!(service.ports[0].name.as_ref().unwrap().as_str(), "http");
    assert!(service.metadata.annotations["weft.mesh/reason"].contains("charge"));
    let [endpoint] = world.endpoints(&charge) else { panic!("one endpoint") };
    assert_eq!((endpoint.label.as_str(), endpoint.state), (answer.label.as_str(), EndpointState::Confirmed));
    let workload = &world.catalog().workloads()[&("shop".parse().unwrap(), "charge-1".parse().unwrap())];
    assert_eq!(workload.ports["http"].to_string(), "127.0.0.1:8081");
}

#[tokio::test]
async fn registering_again_writes_nothing_and_keeps_the_label_over_restarts() {
    let plane = enrolled().await;
    let first = try_register(&plane, "hostb", request("charge-1", "charge")).await.unwrap();
    let revision = plane.rig.core.store.status().await.unwrap().revision;
    let kept = RegisterRequest { label: first.label.clone(), ..request("charge-1", "charge") };
    for again in [kept.clone(), request("charge-1", "charge")] {
        assert_eq!(try_register(&plane, "hostb", again).await.unwrap().label, first.label);
    }
    assert_eq!(plane.rig.core.store.status().await.unwrap().revision, revision);

    let restarted = RegisterRequest { boot: 2, ..kept };
    assert_eq!(try_register(&plane, "hostb", restarted).await.unwrap().label, first.label);
    let status = refused(&plane, "hostb", request("charge-1", "charge")).await;
    assert_eq!((status.0, status.1.as_str()), (Code::FailedPrecondition, "W6023"));
}

#[tokio::test]
async fn a_label_of_somebody_else_or_of_no_server_is_replaced() {
    let plane = enrolled().await;
    let first = try_register(&plane, "hostb", request("charge-1", "charge")).await.unwrap().label;
    for label in [first.as_str(), "short", &"1".repeat(26)] {
        let name = format!("charge-{}", label.len() + usize::from(label.starts_with('1')));
        let claim = RegisterRequest { label: label.to_owned(), ..request(&name, "charge") };
        let given = try_register(&plane, "hostc", claim).await.unwrap().label;
        assert_ne!(given, label);
    }
    // A label that the agent kept and this store lost comes back.
    let mine = "abcdefghijklmnopqrstuvwxy2";
    let claim = RegisterRequest { label: mine.to_owned(), ..request("charge-9", "charge") };
    assert_eq!(try_register(&plane, "hostc", claim).await.unwrap().label, mine);
}

#[tokio::test]
async fn iss_01_what_no_enrollment_gives_is_refused_with_the_reason() {
    let plane = enrolled().await;
    let (code, id, why) = refused(&plane, "hosta", request("charge-1", "charge")).await;
    assert_eq!((code, id.as_str()), (Code::PermissionDenied, "W6021"));
    assert!(why.iter().any(|fact| fact.contains("gives it to other nodes")), "{why:?}");
    let (_, id, why) = refused(&plane, "hostb", request("ledger-1", "ledger")).await;
    assert_eq!(id, "W6021");
    assert!(why.iter().any(|fact| fact.contains("not that identity")), "{why:?}");
    let more = RegisterRequest { services: vec!["ledger".to_owned()], ..request("charge-1", "charge") };
    let (_, id, why) = refused(&plane, "hostb", more).await;
    assert_eq!(id, "W6021");
    assert!(why.iter().any(|fact| fact.contains("not among those enrolled: charge")), "{why:?}");
    for identity in ["spiffe://corp.example/node/hostb", "spiffe://evil.example/ns/shop/sa/charge"] {
        let other = RegisterRequest { identity: identity.to_owned(), ..request("charge-1", "charge") };
        assert_eq!(refused(&plane, "hostb", other).await.1, "W6021", "{identity}");
    }
    let elsewhere = RegisterRequest { namespace: "bank".to_owned(), ..request("charge-1", "charge") };
    assert_eq!(refused(&plane, "hostb", elsewhere).await.1, "W6021");
    assert!(plane.rig.core.world.catalog().workloads().is_empty());
}

#[tokio::test]
async fn a_name_belongs_to_the_node_that_registered_it() {
    let plane = enrolled().await;
    try_register(&plane, "hostb", request("charge-1", "charge")).await.unwrap();
    let (code, id, _) = refused(&plane, "hostc", request("charge-1", "charge")).await;
    assert_eq!((code, id.as_str()), (Code::PermissionDenied, "W6022"));
    let mut other = plane.agent("hostc").await;
    let (namespace, name) = ("shop".to_owned(), "charge-1".to_owned());
    let withdraw = UnregisterRequest { namespace, name, boot: 1 };
    let status = other.unregister(withdraw.clone()).await.unwrap_err();
    assert_eq!(fault(&status).code, "W6022");

    let mut owner = plane.agent("hostb").await;
    owner.unregister(withdraw.clone()).await.unwrap();
    owner.unregister(withdraw).await.unwrap();
    let catalog = plane.rig.core.world.catalog();
    assert!(catalog.workloads().is_empty() && catalog.registrations().is_empty());
    try_register(&plane, "hostc", request("charge-1", "charge")).await.unwrap();
}

#[tokio::test]
async fn a_request_that_is_no_workload_is_refused_with_the_field() {
    let plane = enrolled().await;
    let base = || request("charge-1", "charge");
    let bad = [
        RegisterRequest { name: "Charge_1".to_owned(), ..base() },
        RegisterRequest { namespace: String::new(), ..base() },
        RegisterRequest { identity: "charge".to_owned(), ..base() },
        RegisterRequest { ports: BTreeMap::from([("http".to_owned(), "0".to_owned())]), ..base() },
        RegisterRequest { ports: BTreeMap::from([("http".to_owned(), "host:80".to_owned())]), ..base() },
        RegisterRequest { weight: 10_001, ..base() },
        RegisterRequest { zone: "a\u{1b}[31m".to_owned(), ..base() },
        RegisterRequest { services: vec!["a.b".to_owned()], ..base() },
    ];
    for request in bad {
        let (code, id, _) = refused(&plane, "hostb", request.clone()).await;
        assert!(code == Code::InvalidArgument && id.starts_with("W4"), "{id} for {request:?}");
    }
}

#[tokio::test]
async fn fifty_registrations_at_once_are_all_made() {
    let plane = enrolled().await;
    let client = plane.agent("hostb").await;
    let mut agents = tokio::task::JoinSet::new();
    for number in 0..50 {
        let mut client = client.clone();
        let request = request(&format!("charge-{number}"), "charge");
        agents.spawn(async move { client.register(request).await.map(|answer| answer.into_inner().label) });
    }
    let labels: Result<Vec<_>, _> = agents.join_all().await.into_iter().collect();
    let mut labels = labels.unwrap();
    labels.sort();
    labels.dedup();
    assert_eq!(labels.len(), 50);
    let charge = samples::service_name("charge", "shop");
    assert_eq!(plane.rig.core.world.current().endpoints(&charge).len(), 50);
}

#[tokio::test]
async fn wl_02_only_a_user_whom_a_selector_names_whole_may_start_programs() {
    let plane = enrolled().await;
    let ask = |identity: &str, uid, user: &str| {
        let identity = format!("spiffe://corp.example/ns/shop/sa/{identity}");
        MayRunRequest { identity, uid, user: user.to_owned() }
    };
    let mut agent = plane.agent("hostb").await;
    agent.may_run(ask("charge", 1_000, "")).await.unwrap();
    agent.may_run(ask("charge", 0, "root")).await.unwrap();
    for (identity, uid, user, code) in [
        ("charge", 1_001, "", "W2206"),
        ("charge", 0, "", "W2206"),
        ("charge", 1, "root", "W2206"),
        ("ledger", 1_000, "", "W6021"),
    ] {
        let status = agent.may_run(ask(identity, uid, user)).await.unwrap_err();
        assert_eq!((status.code(), fault(&status).code.as_str()), (Code::PermissionDenied, code), "{uid}");
    }
    let mut other = plane.agent("hosta").await;
    let status = other.may_run(ask("charge", 1_000, "")).await.unwrap_err();
    assert_eq!(fault(&status).code, "W6021", "hosta has no such identity");
}
