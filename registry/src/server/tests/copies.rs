//! An agent's state directory that was copied (ISS-04).

use tonic::Code;
use weft_api::pb::{
    discovery::{DiscoveryRequest, Hello, discovery_client::DiscoveryClient, discovery_request::Message},
    identity::identity_client::IdentityClient,
};
use weft_identity::svid::Svid;
use weft_policy::code;

use super::{Rig, codes, issue_by, workload};

#[tokio::test]
async fn iss_04_the_copy_that_comes_second_is_refused_in_everything_an_agent_asks_for() {
    let rig = Rig::start();
    let copied = rig.node("hostb").await;
    let own = rig.issue(&copied, "").await.unwrap();
    stream(&rig, &own).await.unwrap();

    older(rig.issue(&copied, "").await);
    older(rig.issue(&copied, &workload("charge")).await);
    older(stream(&rig, &copied).await);
    assert_eq!(rig.alarms("older_copy").await, 3);

    rig.issue(&own, &workload("charge")).await.unwrap();
    let own = rig.issue(&own, "").await.unwrap();
    rig.issue(&own, "").await.unwrap();
}

#[tokio::test]
async fn iss_04_when_the_copy_is_first_the_original_is_refused_and_the_alarm_is_the_same() {
    let rig = Rig::start();
    let original = rig.node("hostb").await;
    let stolen = rig.issue(&original, "").await.unwrap();
    rig.issue(&stolen, &workload("charge")).await.unwrap();

    older(rig.issue(&original, "").await);
    assert_eq!(rig.alarms("older_copy").await, 1);
    let token = rig
        .token(weft_api::pb::management::CreateTokenRequest { replace: true, ..super::agent_token("hostb") });
    let fresh = rig.join(&token.await, "hostb").await.unwrap();
    let refused = codes(rig.issue(&stolen, &workload("charge")).await);
    assert_eq!(refused, (Code::PermissionDenied, code::IDENTITY_BANNED.as_str().to_owned()));
    rig.issue(&fresh, &workload("charge")).await.unwrap();
}

#[tokio::test]
async fn iss_04_both_copies_may_not_renew_from_the_same_certificate() {
    let rig = Rig::start();
    let shared = rig.node("hostb").await;
    let first = rig.issue(&shared, "").await.unwrap();
    let second = rig.issue(&shared, "").await.unwrap();
    let refused = codes(rig.issue(&first, &workload("charge")).await);
    assert_eq!(refused.1, code::IDENTITY_BANNED.as_str(), "it counts as an answer that was lost");
    rig.issue(&second, &workload("charge")).await.unwrap();
    older(rig.issue(&shared, &workload("charge")).await);
}

#[tokio::test]
async fn iss_04_the_chain_outlives_the_server() {
    let mut rig = Rig::start();
    let copied = rig.node("hostb").await;
    let own = rig.issue(&copied, "").await.unwrap();
    stream(&rig, &own).await.unwrap();
    rig.kill();
    rig.start_again();
    older(rig.issue(&copied, "").await);
    rig.issue(&own, "").await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_older_than_a_renewal_goes_on_until_the_new_certificate_is_used() {
    let rig = Rig::start();
    let first = rig.node("hostb").await;
    let open = rig.dial(Some(&first)).await;
    let second = rig.issue(&first, "").await.unwrap();
    issue_by(IdentityClient::new(open.clone()), &workload("charge")).await.unwrap();
    rig.issue(&second, &workload("charge")).await.unwrap();
    older(issue_by(IdentityClient::new(open), &workload("charge")).await);
}

#[track_caller]
fn older<T: std::fmt::Debug>(answer: Result<T, tonic::Status>) {
    assert_eq!(codes(answer), (Code::PermissionDenied, code::OLDER_COPY.as_str().to_owned()));
}

/// Opens the agent's stream as `holder` and waits for its first message.
async fn stream(rig: &Rig, holder: &Svid) -> Result<(), tonic::Status> {
    let hello = Hello { boot: 1, version: "test".into(), ..Hello::default() };
    let hello = DiscoveryRequest { message: Some(Message::Hello(hello)) };
    let mut client = DiscoveryClient::new(rig.dial(Some(holder)).await);
    client.stream(tokio_stream::iter([hello])).await.map(drop)
}
