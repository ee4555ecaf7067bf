//! Issuing (security.md 5.8).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinSet;
use tonic::Code;
use weft_api::pb::{
    identity::{IssueSvidRequest, identity_client::IdentityClient},
    management::CreateTokenRequest,
};
use weft_identity::{csr::SigningRequest, svid::Svid};
use weft_policy::code;

use super::{Rig, agent_token, codes, issue_by, workload};
use crate::{
    clock::Clock,
    layout,
    store::{
        Store,
        embedded::{Bounds, EmbeddedStore, Settings},
        metrics::StoreMetrics,
    },
};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn iss_01_a_node_gets_only_what_it_is_enrolled_for() {
    let rig = Rig::start();
    let node = rig.node("hostb").await;
    let charge = rig.issue(&node, &workload("charge")).await.unwrap();
    assert_eq!(charge.id().to_string(), workload("charge"));
    for (id, refusal) in [
        ("spiffe://corp.example/ns/bank/sa/vault", code::ISSUANCE_REFUSED),
        ("spiffe://corp.example/node/hostc", code::FOREIGN_IDENTITY),
        ("spiffe://corp.example/server/s-1", code::FOREIGN_IDENTITY),
        ("spiffe://corp.example/user/root", code::FOREIGN_IDENTITY),
        ("spiffe://other.example/ns/default/sa/charge", code::FOREIGN_IDENTITY),
    ] {
        assert_eq!(
            codes(rig.issue(&node, id).await),
            (Code::PermissionDenied, refusal.as_str().to_owned()),
            "{id}"
        );
    }
    assert_eq!(codes(rig.issue(&node, "no id").await).1, code::BAD_SPIFFE_ID.as_str());
    assert_eq!(rig.alarms("overreach").await, 4, "the one of another trust domain is not even looked for");
}

#[tokio::test]
async fn iss_01_an_identity_that_is_enrolled_for_another_node_is_refused_with_an_alarm() {
    let rig = Rig::start();
    let services = vec!["charge".to_owned()];
    let token = rig.token(CreateTokenRequest { services, ..agent_token("hostb") }).await;
    let (own, other) = (rig.join(&token, "hostb").await.unwrap(), rig.token(one("hostc", "order")).await);
    let other = rig.join(&other, "hostc").await.unwrap();
    rig.issue(&own, &workload("charge")).await.unwrap();
    let (grpc, id) = codes(rig.issue(&other, &workload("charge")).await);
    assert_eq!((grpc, &*id), (Code::PermissionDenied, code::ISSUANCE_REFUSED.as_str()));
    let charge = rig.issue(&own, &workload("charge")).await.unwrap();
    let (grpc, _) = codes(rig.issue(&charge, &workload("charge")).await);
    assert_eq!(
        grpc,
        Code::PermissionDenied,
        "a workload's certificate asks for nothing, not even for itself"
    );
    assert_eq!(rig.alarms("overreach").await, 1);
}

fn one(node: &str, service: &str) -> CreateTokenRequest {
    CreateTokenRequest { services: vec![service.to_owned()], ..agent_token(node) }
}

#[tokio::test]
async fn iss_03_a_replayed_request_certifies_no_second_identity() {
    let rig = Rig::start();
    let (one, two) = (rig.node("hostb").await, rig.node("hostc").await);
    let (_, csr) = SigningRequest::create().unwrap();
    let ask = async |holder: &Svid, id: String| {
        let mut client = IdentityClient::new(rig.dial(Some(holder)).await);
        client.issue_svid(IssueSvidRequest { spiffe_id: id, csr: csr.clone(), ..Default::default() }).await
    };
    ask(&one, workload("charge")).await.unwrap();
    for (holder, id) in [(&one, workload("ledger")), (&two, two.id().to_string())] {
        let (grpc, refusal) = codes(ask(holder, id).await);
        assert_eq!((grpc, &*refusal), (Code::PermissionDenied, code::BAD_SIGNING_REQUEST.as_str()));
    }
    let mut client = IdentityClient::new(rig.dial(Some(&one)).await);
    let cut = IssueSvidRequest {
        spiffe_id: workload("order"),
        csr: csr[..csr.len() - 1].to_vec(),
        ..Default::default()
    };
    assert_eq!(codes(client.issue_svid(cut).await).0, Code::InvalidArgument);
}

#[tokio::test]
async fn iss_04_of_two_copies_of_an_agent_one_is_found_out() {
    let rig = Rig::start();
    let first = rig.node("hostb").await;
    let second = rig.issue(&first, "").await.unwrap();
    let third = rig.issue(&second, "").await.unwrap();
    assert_eq!(codes(rig.issue(&first, "").await).1, code::OLDER_COPY.as_str(), "the copy is older");
    rig.issue(&third, "").await.unwrap();
}

#[tokio::test]
async fn iss_04_an_answer_that_was_lost_can_be_asked_for_again() {
    let rig = Rig::start();
    let first = rig.node("hostb").await;
    let lost = rig.issue(&first, "").await.unwrap();
    let second = rig.issue(&first, "").await.unwrap();
    rig.issue(&second, "").await.unwrap();
    assert_eq!(codes(rig.issue(&lost, "").await).1, code::IDENTITY_BANNED.as_str());
}

#[tokio::test]
async fn iss_06_a_node_that_floods_is_slowed_and_others_are_served() {
    let rig = Rig::with("limits: {issuesPerNode: 1, signingQueue: 8}\n");
    let (flood, other) = (rig.node("hostb").await, rig.node("hostc").await);
    let channel = rig.dial(Some(&flood)).await;
    let (mut issued, mut refused) = (0, 0);
    for number in 0..40 {
        match issue_by(IdentityClient::new(channel.clone()), &workload(&format!("s{number}"))).await {
            Ok(_) => issued += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted);
                refused += 1;
            }
        }
    }
    assert!(issued >= 10 && refused > 0, "{issued} issued, {refused} refused");
    rig.issue(&other, &workload("charge")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn iss_06_under_a_flood_of_three_nodes_the_fourth_is_served_at_once() {
    let rig = Rig::with("limits: {signingQueue: 8, joinBurst: 10, issuesPerSecond: 1000000}\n");
    let other = rig.node("calm").await;
    let calm = IdentityClient::new(rig.dial(Some(&other)).await);
    let quiet = latencies(&calm).await;
    let mut floods = JoinSet::new();
    let (refused, issued) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for name in ["hostb", "hostc", "hostd"] {
        let channel = rig.dial(Some(&rig.node(name).await)).await;
        for _ in 0..16 {
            let (client, refused, issued) =
                (IdentityClient::new(channel.clone()), Arc::clone(&refused), Arc::clone(&issued));
            floods.spawn(async move {
                loop {
                    let counter = match issue_by(client.clone(), &workload("flood")).await {
                        Ok(_) => &issued,
                        Err(status) => {
                            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                            &refused
                        }
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
    let under_flood = latencies(&calm).await;
    floods.shutdown().await;
    let (refused, issued) = (refused.load(Ordering::Relaxed), issued.load(Ordering::Relaxed));
    println!(
        "calm: worst of 40 {quiet:?} alone, {under_flood:?} under a flood ({issued} issued, {refused} refused)"
    );
    assert!(refused > 0, "the queue has a bound");
    assert!(under_flood < Duration::from_secs(5), "{under_flood:?}");
}

/// The longest of forty requests that all succeed.
async fn latencies(client: &IdentityClient<tonic::transport::Channel>) -> Duration {
    let mut worst = Duration::ZERO;
    for _ in 0..40 {
        let clock = Clock::system();
        issue_by(client.clone(), &workload("calm")).await.expect("others are served");
        worst = worst.max(clock.uptime());
    }
    worst
}

#[tokio::test]
async fn iss_07_what_was_given_out_is_in_the_log_after_a_crash() {
    let mut rig = Rig::start();
    let node = rig.node("hostb").await;
    let charge = rig.issue(&node, &workload("charge")).await.unwrap();
    rig.kill();
    let settings = Settings { directory: rig.state(), bounds: Bounds::default() };
    let metrics = Arc::<StoreMetrics>::default();
    let store = EmbeddedStore::open(settings, Clock::system(), metrics).await.unwrap();
    for svid in [&node, &charge] {
        let entry = store.get(&layout::issued(svid.serial().as_bytes())).await.unwrap().unwrap();
        assert!(String::from_utf8_lossy(&entry.value).contains(&svid.id().to_string()));
    }
}

#[tokio::test]
async fn clk_02_nothing_is_signed_while_the_clock_lies_behind() {
    let (rig, hands) = Rig::timed("");
    let node = rig.node("hostb").await;
    hands.advance(10 * MINUTE);
    rig.issue(&node, &workload("order")).await.unwrap();
    let now = rig.now();
    hands.set_wall(now - 2 * MINUTE);
    let (grpc, id) = codes(rig.issue(&node, &workload("charge")).await);
    assert_eq!((grpc, &*id), (Code::Unavailable, code::CLOCK_WENT_BACK.as_str()));
    hands.set_wall(now);
    rig.issue(&node, &workload("charge")).await.unwrap();
}
