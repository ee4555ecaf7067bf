//! Joining by a token (security.md T3, ISS-05).

use std::time::Duration;

use tokio::task::JoinSet;
use tonic::Code;
use weft_api::{
    fault::from_status,
    pb::{
        identity::identity_client::IdentityClient,
        management::{
            ApplyRequest, CreateTokenRequest, Document, GetRequest, ListTokensRequest, ObjectRef,
            RevokeTokenRequest,
        },
    },
};
use weft_identity::{
    spiffe::IdKind,
    tls::{JoinVerifier, join_config},
};
use weft_policy::code;

use super::{Rig, agent_token, codes, join_by, workload};

#[tokio::test]
async fn a_joiner_that_knows_only_fingerprints_finds_the_server_and_gets_an_identity() {
    let rig = Rig::start();
    let token = rig.token(CreateTokenRequest { namespace: "shop".into(), ..agent_token("hostb") }).await;
    let verifier = JoinVerifier::new(token.trust_domain.clone(), token.fingerprints.iter().copied());
    let tls = join_config(verifier, &[weft_api::channel::ALPN_H2]);
    let channel = weft_api::channel::connect(&token.servers, std::sync::Arc::new(tls), "server.weft").await;
    let svid = join_by(IdentityClient::new(channel.unwrap()), token.secret(), "hostb").await.unwrap();
    assert_eq!(svid.id().kind(), IdKind::Node("hostb"));
    let name =
        ObjectRef { kind: "WorkloadEnrollment".into(), namespace: "shop".into(), name: "agent-hostb".into() };
    let written = rig.admin().await.get(GetRequest { r#ref: Some(name) }).await.unwrap().into_inner();
    let json = String::from_utf8(written.document.unwrap().json).unwrap();
    assert!(json.contains("spiffe://corp.example/ns/shop/sa/*"), "{json}");
}

#[tokio::test]
async fn the_enrollment_of_a_token_gives_its_services_and_no_others() {
    let rig = Rig::start();
    let services = vec!["charge".to_owned()];
    let token = rig.token(CreateTokenRequest { services, uids: vec![1000], ..agent_token("hostb") }).await;
    let node = rig.join(&token, "hostb").await.unwrap();
    rig.issue(&node, &workload("charge")).await.unwrap();
    let (grpc, id) = codes(rig.issue(&node, &workload("ledger")).await);
    assert_eq!((grpc, &*id), (Code::PermissionDenied, code::ISSUANCE_REFUSED.as_str()));
}

#[tokio::test]
async fn the_advice_of_a_refused_identity_gives_it_and_takes_nothing() {
    let rig = Rig::start();
    let services = vec!["charge".to_owned()];
    let token = rig.token(CreateTokenRequest { services, ..agent_token("hostb") }).await;
    let node = rig.join(&token, "hostb").await.unwrap();
    let refused = rig.issue(&node, &workload("ledger")).await.unwrap_err();

    let advice = from_status(&refused).swap_remove(0).fix;
    let json = advice.iter().find_map(|fix| fix.split('\'').nth(1)).expect("an object to apply");
    let documents = vec![Document { json: json.as_bytes().to_vec() }];
    rig.admin().await.apply(ApplyRequest { documents, ..ApplyRequest::default() }).await.unwrap();
    for service in ["charge", "ledger"] {
        rig.issue(&node, &workload(service)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn iss_05_of_a_hundred_who_use_a_token_at_once_one_joins() {
    let rig = Rig::with("limits: {joinsPerSecond: 1000, joinBurst: 1000}\n");
    let token = rig.token(agent_token("hostb")).await;
    let channels = [rig.dial(None).await, rig.dial(None).await];
    let mut all = JoinSet::new();
    for number in 0..100 {
        let (client, secret) = (IdentityClient::new(channels[number % 2].clone()), token.secret().to_owned());
        all.spawn(async move { join_by(client, &secret, "hostb").await });
    }
    let answers = all.join_all().await;
    let (joined, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!(joined.len(), 1);
    for answer in refused {
        let (_, id) = codes(answer);
        assert_eq!(id, code::TOKEN_USED.as_str());
    }
}

#[tokio::test]
async fn iss_05_a_token_that_is_over_or_somebody_elses_lets_nobody_in() {
    let (rig, hands) = Rig::timed("");
    let other = rig.token(agent_token("hostb")).await;
    assert_eq!(codes(rig.join(&other, "hostc").await).1, code::TOKEN_OTHER_NODE.as_str());
    assert_eq!(codes(rig.join(&other, "").await).1, code::TOKEN_OTHER_PURPOSE.as_str());
    rig.join(&other, "hostb").await.unwrap();

    hands.advance(Duration::from_secs(10));
    let revoked = rig.token(agent_token("hostc")).await;
    let request = RevokeTokenRequest { id: revoked.id.clone() };
    rig.admin().await.revoke_token(request).await.unwrap();
    assert_eq!(codes(rig.join(&revoked, "hostc").await).1, code::TOKEN_REVOKED.as_str());

    let late = rig.token(CreateTokenRequest { ttl_seconds: 60, ..agent_token("hostd") }).await;
    hands.advance(Duration::from_secs(60));
    assert_eq!(codes(rig.join(&late, "hostd").await).1, code::TOKEN_EXPIRED.as_str());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn iss_05_a_token_that_is_used_and_revoked_at_once_is_one_of_both() {
    let rig = Rig::with("limits: {joinsPerSecond: 1000, joinBurst: 1000}\n");
    let (mut joined, mut revoked) = (0, 0);
    for round in 0..20 {
        let node = format!("host{round}");
        let token = rig.token(agent_token(&node)).await;
        let mut admin = rig.admin().await;
        let request = RevokeTokenRequest { id: token.id.clone() };
        let client = IdentityClient::new(rig.dial(None).await);
        let (join, revoke) =
            tokio::join!(join_by(client, token.secret(), &node), admin.revoke_token(request));
        let list = admin.list_tokens(ListTokensRequest {}).await.unwrap().into_inner();
        let state = list.tokens.into_iter().find(|found| found.id == token.id).unwrap().state;
        match join {
            Ok(_) => {
                assert_eq!(state, "used", "round {round}: {revoke:?}");
                joined += 1;
            }
            Err(status) => {
                assert_eq!(codes::<()>(Err(status)).1, code::TOKEN_REVOKED.as_str());
                assert_eq!(state, "revoked", "round {round}");
                revoked += 1;
            }
        }
    }
    println!("{joined} joined, {revoked} were revoked first");
}

#[tokio::test]
async fn iss_05_what_is_wrong_with_a_token_is_counted_and_told_without_its_secret() {
    let rig = Rig::with("limits: {joinsPerSecond: 1000, joinBurst: 1000}\n");
    let token = rig.token(agent_token("hostb")).await;
    rig.join(&token, "hostc").await.unwrap_err();
    rig.join(&token, "hostb").await.unwrap();
    let used = rig.join(&token, "hostb").await.unwrap_err();
    assert!(!format!("{used:?}").contains(token.secret()));
    let guess = join_by(IdentityClient::new(rig.dial(None).await), "x", "hostb").await;
    assert_eq!(codes(guess).1, code::TOKEN_UNKNOWN.as_str());
    for (kind, count) in [("token_elsewhere", 1), ("token_again", 1), ("unknown_token", 1)] {
        assert_eq!(rig.alarms(kind).await, count, "{kind}");
    }
}

#[tokio::test]
async fn iss_05_guessing_is_slow_and_then_locked() {
    let (rig, hands) = Rig::timed("");
    let guess =
        async |text: &str| codes(join_by(IdentityClient::new(rig.dial(None).await), text, "hostb").await);
    for _ in 0..5 {
        assert_eq!(guess("x").await.1, code::TOKEN_UNKNOWN.as_str());
    }
    assert_eq!(guess("x").await, (Code::ResourceExhausted, code::TOO_MANY_ATTEMPTS.as_str().to_owned()));
    for _ in 0..5 {
        hands.advance(Duration::from_secs(1));
        assert_eq!(guess("x").await.1, code::TOKEN_UNKNOWN.as_str());
    }
    hands.advance(Duration::from_secs(60));
    let token = rig.token(agent_token("hostb")).await;
    assert_eq!(codes(rig.join(&token, "hostb").await).1, code::TOO_MANY_ATTEMPTS.as_str(), "locked");
    hands.advance(Duration::from_secs(600));
    rig.join(&token, "hostb").await.unwrap();
}

#[tokio::test]
async fn a_known_node_needs_a_replacing_token_which_bans_the_old_certificate() {
    let rig = Rig::start();
    let spare = rig.token(agent_token("hostb")).await;
    let old = rig.node("hostb").await;
    let (grpc, id) = codes(rig.admin().await.create_token(agent_token("hostb")).await);
    assert_eq!((grpc, &*id), (Code::FailedPrecondition, code::NODE_KNOWN.as_str()));
    assert_eq!(
        codes(rig.join(&spare, "hostb").await).1,
        code::NODE_KNOWN.as_str(),
        "an older token is no way around"
    );

    let open = rig.dial(Some(&old)).await;
    issue_with(&open, "a").await.unwrap();
    let token = rig.token(CreateTokenRequest { replace: true, ..agent_token("hostb") }).await;
    assert_eq!(
        codes(issue_with(&open, "b").await).1,
        code::IDENTITY_BANNED.as_str(),
        "iss_02: an open connection too"
    );
    assert_eq!(codes(rig.issue(&old, &workload("charge")).await).1, code::IDENTITY_BANNED.as_str());
    let new = rig.join(&token, "hostb").await.unwrap();
    rig.issue(&new, &workload("charge")).await.unwrap();
    assert_eq!(codes(rig.issue(&old, &workload("charge")).await).1, code::IDENTITY_BANNED.as_str());
}

#[tokio::test]
async fn tokens_are_bounded_in_number_and_life() {
    let rig = Rig::with("limits: {openTokens: 2}\n");
    let mut admin = rig.admin().await;
    let long = CreateTokenRequest { ttl_seconds: 24 * 3600 + 1, ..agent_token("a") };
    assert_eq!(codes(admin.create_token(long).await).1, code::TOKEN_LIFETIME.as_str());
    admin.create_token(agent_token("a")).await.unwrap();
    admin.create_token(agent_token("b")).await.unwrap();
    assert_eq!(codes(admin.create_token(agent_token("c")).await).1, code::TOO_MANY_TOKENS.as_str());
}

#[tokio::test]
async fn a_person_has_their_role_where_the_token_says() {
    let rig = Rig::start();
    let (purpose, user, role) = ("user".into(), "ada".into(), "editor".into());
    let request = CreateTokenRequest { purpose, user, role, namespace: "shop".into(), ..Default::default() };
    let token = rig.token(request).await;
    assert_eq!(codes(rig.join(&token, "hostb").await).1, code::TOKEN_OTHER_PURPOSE.as_str());
    let ada = rig.join(&token, "").await.unwrap();
    assert_eq!(ada.id().kind(), IdKind::User("ada"));
    let renewed = rig.issue(&ada, "").await.unwrap();
    assert_eq!(renewed.id(), ada.id());
}

async fn issue_with(
    channel: &tonic::transport::Channel,
    name: &str,
) -> Result<weft_identity::svid::Svid, tonic::Status> {
    super::issue_by(IdentityClient::new(channel.clone()), &workload(name)).await
}
