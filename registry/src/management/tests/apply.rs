//! Apply: outcomes, conflicts, admission.

use weft_policy::code;

use super::*;
use crate::{
    clock::Clock,
    harness::{Plane, Raw, local},
    roles::{Caller, Role, Source},
    samples,
};

fn traffic(name: &str) -> Value {
    json!({
        "apiVersion": "weft.mesh/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "charge"}],
                 "timeouts": {"connect": "2s"}},
    })
}

fn outcomes(answer: &ApplyResponse) -> Vec<&str> {
    answer.results.iter().map(|result| result.outcome.as_str()).collect()
}

fn warnings(answer: &ApplyResponse) -> String {
    answer.results.iter().flat_map(|result| result.warnings.clone()).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn an_object_is_created_then_unchanged_then_configured_and_read_back_at_once() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let first = apply(&mut client, &[service("new"), service("newer")]).await.unwrap();
    assert_eq!(outcomes(&first), ["created", "created"]);
    assert!(first.results.iter().all(|result| result.revision == first.revision));

    let stored = get(&mut client, "service", "new").await.unwrap();
    assert_eq!(stored["metadata"]["resourceVersion"], first.revision.to_string());
    let same = apply(&mut client, std::slice::from_ref(&stored)).await.unwrap();
    assert_eq!(outcomes(&same), ["unchanged"]);
    assert_eq!(same.results[0].revision, first.revision);

    let mut changed = stored;
    changed["spec"]["ports"][0]["port"] = json!(81);
    let second = apply(&mut client, &[changed]).await.unwrap();
    assert_eq!(outcomes(&second), ["configured"]);
    assert_eq!(get(&mut client, "svc", "new").await.unwrap()["spec"]["ports"][0]["port"], 81);
}

#[tokio::test]
async fn api_08_of_concurrent_writes_from_one_revision_exactly_one_wins() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let stored = get(&mut client, "service", "charge").await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..16 {
        let mut client = client.clone();
        let mut mine = stored.clone();
        mine["spec"]["ports"][0]["port"] = json!(1_000 + number);
        writers.spawn(async move { apply(&mut client, &[mine]).await });
    }
    let (won, lost): (Vec<_>, Vec<_>) = writers.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 15));
    let revision = won.into_iter().next().unwrap().unwrap().revision;
    for answer in lost {
        let status = answer.unwrap_err();
        let told = fault(&status);
        assert_eq!((status.code(), told.code.as_str()), (Code::Aborted, code::WRITE_CONFLICT.as_str()));
        assert!(told.why.iter().any(|fact| fact.ends_with(&format!("now {revision}"))), "{told:?}");
    }
}

#[tokio::test]
async fn an_older_revision_does_not_overwrite_a_newer_object() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let old = get(&mut client, "service", "charge").await.unwrap();
    let mut newer = old.clone();
    newer["spec"]["ports"][0]["port"] = json!(81);
    apply(&mut client, &[newer]).await.unwrap();
    let mut late = old;
    late["spec"]["ports"][0]["port"] = json!(82);
    refused(apply(&mut client, &[late]).await, Code::Aborted, code::WRITE_CONFLICT);

    let mut gone = service("gone");
    gone["metadata"]["resourceVersion"] = json!("5");
    refused(apply(&mut client, &[gone]).await, Code::Aborted, code::WRITE_CONFLICT);
}

#[tokio::test]
async fn all_objects_are_written_or_none() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let mut bad = service("bad");
    bad["spec"]["ports"] = json!([]);
    let what =
        refused(apply(&mut client, &[service("good"), bad]).await, Code::InvalidArgument, code::EMPTY_LIST);
    assert!(what.starts_with("documents[1].spec.ports"), "{what}");
    refused(get(&mut client, "service", "good").await, Code::NotFound, code::NOT_FOUND);
}

#[tokio::test]
async fn a_dry_run_says_what_would_happen_and_writes_nothing() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let request =
        ApplyRequest { documents: documents(&[service("new")]), dry_run: true, ..Default::default() };
    let answer = client.apply(request).await.unwrap().into_inner();
    assert_eq!(outcomes(&answer), ["created"]);
    refused(get(&mut client, "service", "new").await, Code::NotFound, code::NOT_FOUND);
    assert_eq!(plane.rig.core.metrics.changes.get(), 0);
}

#[tokio::test]
async fn a_reason_is_kept_with_the_object() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let request = ApplyRequest {
        documents: documents(&[service("new")]),
        reason: "ticket 7".to_owned(),
        ..Default::default()
    };
    client.apply(request.clone()).await.unwrap();
    let stored = get(&mut client, "service", "new").await.unwrap();
    assert_eq!(stored["metadata"]["annotations"]["weft.mesh/reason"], "ticket 7");
    let spoof = ApplyRequest { reason: "a\nb".to_owned(), ..request };
    refused(client.apply(spoof).await, Code::InvalidArgument, code::BAD_VALUE);
}

#[tokio::test]
async fn pol_02_what_admission_cannot_read_exactly_is_refused_with_its_path() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let policy = || json_of(&Resource::AuthorizationPolicy(samples::policy("p", "shop", "charge", "order")));
    let with = |change: &dyn Fn(&mut Value)| {
        let mut policy = policy();
        change(&mut policy);
        policy
    };
    let cases = [
        (with(&|p| p["spec"]["rules"][0]["from"] = json!([])), code::UNKNOWN_FIELD),
        (with(&|p| p["spec"]["action"] = json!("PERMIT")), code::BAD_VALUE),
        (with(&|p| p["spec"]["rules"][0]["sources"] = json!([])), code::EMPTY_LIST),
        (with(&|p| p["spec"]["rules"][0]["ports"] = json!([])), code::EMPTY_LIST),
        (with(&|p| p["spec"]["rules"] = json!("all")), code::WRONG_TYPE),
        (with(&|p| p["apiVersion"] = json!("weft.mesh/v9")), code::BAD_API_VERSION),
        (with(&|p| p["kind"] = json!("AuthorisationPolicy")), code::UNKNOWN_KIND),
        (with(&|p| p["spec"]["enforcementLevel"] = json!("Application")), code::NOT_SERVED),
    ];
    for (bad, expected) in cases {
        let text = bad.to_string();
        let status = apply(&mut client, &[bad]).await.unwrap_err();
        let told = fault(&status);
        assert_eq!(status.code(), Code::InvalidArgument, "{text}");
        assert_eq!(told.code, expected.as_str(), "{text}: {told:?}");
        assert!(told.path.starts_with("documents[0]"), "{told:?}");
    }
    let raw = |text: &str| ApplyRequest {
        documents: vec![Document { json: text.as_bytes().to_vec() }],
        ..Default::default()
    };
    let whole = policy().to_string();
    let twice = whole.replacen("\"kind\"", "\"kind\": \"Service\", \"kind\"", 1);
    for text in [&twice, &format!("{whole} x"), "NaN", "[", "", "null", "\u{0}"] {
        let status = client.apply(raw(text)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{text}");
        assert!(fault(&status).code.starts_with("W4"), "{status:?}");
    }
    refused(get(&mut client, "ap", "p").await, Code::NotFound, code::NOT_FOUND);
}

#[tokio::test]
async fn one_apply_holds_as_many_objects_as_one_transaction_and_says_so() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let many: Vec<_> = (0..101).map(|number| service(&format!("s{number}"))).collect();
    let what = refused(apply(&mut client, &many).await, Code::InvalidArgument, code::OVER_LIMIT);
    assert!(what.contains("101 objects") && what.contains("at most 100"), "{what}");
    assert_eq!(outcomes(&apply(&mut client, &many[..100]).await.unwrap()).len(), 100);
    refused(apply(&mut client, &[]).await, Code::InvalidArgument, code::NOTHING_TO_DO);
    let twice = [service("a"), service("a")];
    refused(apply(&mut client, &twice).await, Code::InvalidArgument, code::SAME_OBJECT_TWICE);
}

#[tokio::test]
async fn a_second_traffic_policy_or_route_for_one_service_is_refused_also_when_both_come_at_once() {
    let plane = Plane::shop().await;
    let client = plane.admin().await;
    let both = ["tp1", "tp2"].map(|name| {
        let mut client = client.clone();
        async move { apply(&mut client, &[traffic(name)]).await }
    });
    let [first, second] = both;
    let (first, second) = tokio::join!(first, second);
    let (won, lost) = if first.is_ok() { (first, second) } else { (second, first) };
    won.unwrap();
    refused(lost, Code::InvalidArgument, code::CONTRADICTION);

    let mut client = client;
    let route = |name: &str| json_of(&Resource::TcpRoute(samples::route(name, "shop", "charge", "ledger")));
    apply(&mut client, &[route("r1")]).await.unwrap();
    let what = refused(apply(&mut client, &[route("r2")]).await, Code::InvalidArgument, code::CONTRADICTION);
    assert!(what.contains("r1") && what.contains("r2"), "{what}");
}

#[tokio::test]
async fn the_trust_domain_is_for_good_and_there_is_one_mesh() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let mesh = |name: &str, domain: &str| {
        json!({
            "apiVersion": "weft.mesh/v1alpha1", "kind": "Mesh", "metadata": {"name": name},
            "spec": {"trustDomain": domain},
        })
    };
    let other = apply(&mut client, &[mesh("mesh", "evil.example")]).await;
    refused(other, Code::InvalidArgument, code::IMMUTABLE);
    let second = apply(&mut client, &[mesh("mesh2", "corp.example")]).await;
    let status = second.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(fault(&status).code.starts_with("W4"));
}

#[tokio::test]
async fn what_is_odd_is_told_and_takes_effect_all_the_same() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let mut policy = samples::policy("p", "shop", "chrage", "oder");
    policy.rules[0].sources.push(weft_policy::model::authorization::Source::Any);
    let answer = apply(&mut client, &[json_of(&Resource::AuthorizationPolicy(policy))]).await.unwrap();
    assert_eq!(outcomes(&answer), ["created"]);
    let said = warnings(&answer);
    assert!(said.contains("W4031: service chrage.shop does not exist yet"), "{said}");
    assert!(said.contains("W4031: no enrollment gives spiffe://corp.example/ns/shop/sa/oder"), "{said}");
    assert!(said.contains("W4028: rule oder allows any authenticated caller"), "{said}");

    let mut port = samples::policy("q", "shop", "charge", "order");
    port.rules[0].ports =
        Some(vec![weft_policy::model::authorization::PortRef::Name("admin".parse().unwrap())]);
    let answer = apply(&mut client, &[json_of(&Resource::AuthorizationPolicy(port))]).await.unwrap();
    assert!(warnings(&answer).contains("names port admin"), "{answer:?}");

    let fine = json_of(&Resource::AuthorizationPolicy(samples::policy("r", "shop", "charge", "order")));
    assert_eq!(warnings(&apply(&mut client, &[fine]).await.unwrap()), "");
}

#[tokio::test]
async fn a_workload_by_hand_stays_within_the_enrollments_and_has_no_label_of_its_own() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let by_hand = |name: &str, node: &str, services: &[&str]| {
        let mut workload = samples::workload(name, "shop", node, services);
        workload.label = None;
        json_of(&Resource::Workload(workload))
    };
    apply(&mut client, &[by_hand("charge-2", "hostb", &["charge"])]).await.unwrap();
    for (node, service) in [("hosta", "charge"), ("hostb", "ledger")] {
        let answer = apply(&mut client, &[by_hand("x", node, &[service])]).await;
        refused(answer, Code::InvalidArgument, code::REGISTRATION_REFUSED);
    }
    let mut labelled = by_hand("y", "hostb", &["charge"]);
    labelled["spec"]["label"] = json!("mine");
    refused(apply(&mut client, &[labelled]).await, Code::InvalidArgument, code::IMMUTABLE);

    // An enrollment and the workload it allows may come together.
    let more =
        json_of(&Resource::WorkloadEnrollment(samples::enrollment("more", "shop", &["hosta"], "sa/charge")));
    apply(&mut client, &[by_hand("charge-3", "hosta", &["charge"]), more]).await.unwrap();
}

#[tokio::test]
async fn an_enrollment_gives_identities_of_this_trust_domain_only() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let mut enrollment =
        json_of(&Resource::WorkloadEnrollment(samples::enrollment("e", "shop", &["hosta"], "**")));
    enrollment["spec"]["identities"] = json!(["spiffe://evil.example/ns/shop/**"]);
    refused(apply(&mut client, &[enrollment]).await, Code::InvalidArgument, code::IDENTITY_OUT_OF_SCOPE);
}

#[tokio::test]
async fn api_05_messages_that_are_too_large_or_no_messages_are_refused_in_our_words() {
    let plane = Plane::start().await;
    let mut client = plane.admin().await;
    let big = ApplyRequest {
        documents: vec![Document { json: vec![b' '; 4 * 1024 * 1024 + 1] }],
        ..Default::default()
    };
    refused(client.apply(big).await, Code::ResourceExhausted, code::MESSAGE_TOO_LARGE);

    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep = ApplyRequest { documents: vec![Document { json: deep.into_bytes() }], ..Default::default() };
    let status = client.apply(deep).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(fault(&status).code.starts_with("W4"));

    let invalid = ApplyRequest {
        documents: vec![Document { json: b"{\"kind\": \"\xff\xfe\"}".to_vec() }],
        ..Default::default()
    };
    assert_eq!(client.apply(invalid).await.unwrap_err().code(), Code::InvalidArgument);

    let list = ApplyRequest { documents: vec![Document::default(); 1_000_000], ..Default::default() };
    refused(client.apply(list).await, Code::InvalidArgument, code::OVER_LIMIT);
}

#[tokio::test]
async fn api_05_a_text_that_is_not_utf_8_is_no_message() {
    let plane = Plane::start().await;
    let channel = plane.channel(local(Role::Admin)).await;
    // Field 1 of RevokeTokenRequest is a string; this one holds a byte that no UTF-8 text has.
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/weft.management.v1.Management/RevokeToken");
    let answer = grpc.unary(tonic::Request::new(vec![0x0a, 0x01, 0xff]), path, Raw).await;
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(fault(&status).code, code::WRONG_TYPE.as_str());
}

/// A person who comes through the network.
fn remote(name: &str) -> Caller {
    let identity = format!("spiffe://corp.example/user/{name}").parse().unwrap();
    let source = Source::Remote { addr: "192.0.2.7:40000".parse().unwrap() };
    Caller { identity: Some(identity), source, ..local(Role::Editor) }
}

#[tokio::test]
async fn api_02_one_caller_may_change_so_often_and_others_do_not_notice() {
    let (clock, hands) = Clock::test(std::time::SystemTime::UNIX_EPOCH);
    let plane = Plane::with_clock(clock).await;
    plane.rig.put_shop().await;
    let dry = ApplyRequest { documents: documents(&[service("new")]), dry_run: true, ..Default::default() };
    let (mut busy, mut other) = (plane.people(remote("ada")).await, plane.people(remote("bob")).await);
    for _ in 0..300 {
        busy.apply(dry.clone()).await.unwrap();
    }
    let what = refused(busy.apply(dry.clone()).await, Code::ResourceExhausted, code::TOO_MANY_ATTEMPTS);
    assert!(what.contains("try again in 500 ms"), "{what}");
    other.apply(dry.clone()).await.unwrap();
    let mut admin = plane.admin().await;
    for _ in 0..301 {
        admin.apply(dry.clone()).await.unwrap();
    }
    hands.advance(std::time::Duration::from_millis(500));
    busy.apply(dry.clone()).await.unwrap();
    refused(busy.apply(dry).await, Code::ResourceExhausted, code::TOO_MANY_ATTEMPTS);
}
