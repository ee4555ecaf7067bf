//! Who is denied gets nothing of the server, on new and on old connections (ISS-02; security.md 3.7).

use std::time::Duration;

use tonic::Code;
use weft_api::{
    fault::status_to_faults,
    pb::management::{
        CreateTokenRequest, DenyRequest, DenyResponse, ListDeniedRequest, StatusRequest, UndenyRequest,
        WatchRequest, management_client::ManagementClient,
    },
};
use weft_identity::{svid::Svid, tls::peer_id};
use weft_policy::code;

use super::{Rig, agent_token, call, codes, workload};

const MAY_RUN: &str = "/weft.discovery.v1.Discovery/MayRun";
const STATUS: &str = "/weft.management.v1.Management/Status";
const WITHIN: Duration = Duration::from_secs(20);

async fn deny(rig: &Rig, subject: &str) -> Result<DenyResponse, tonic::Status> {
    let request = DenyRequest { subject: subject.to_owned(), reason: "because".to_owned() };
    rig.admin().await.deny(request).await.map(tonic::Response::into_inner)
}

async fn undeny(rig: &Rig, subject: &str) -> Result<(), tonic::Status> {
    let request = UndenyRequest { subject: subject.to_owned(), reason: String::new() };
    rig.admin().await.undeny(request).await.map(drop)
}

fn serial(svid: &Svid) -> String {
    format!("serial:{}", peer_id(svid.chain()).unwrap().serial)
}

fn is(status: Result<impl std::fmt::Debug, tonic::Status>) -> String {
    codes(status).1
}

#[tokio::test]
async fn iss_02_a_banned_node_is_refused_on_its_old_connection_and_gets_nothing_until_it_is_let_in() {
    let rig = Rig::start();
    let node = rig.node("hosta").await;
    let old = rig.dial(Some(&node)).await;
    let _ = rig.issue(&node, &workload("order")).await.unwrap();
    assert_ne!(is(call(&old, MAY_RUN).await), code::IDENTITY_BANNED.as_str());

    let banned = deny(&rig, "node:hosta").await.unwrap();
    assert_eq!(banned.entry.unwrap().certificates, 2, "its own and that of order");
    let refused = call(&old, MAY_RUN).await.unwrap_err();
    let fault = status_to_faults(&refused).swap_remove(0);
    assert_eq!((refused.code(), &*fault.code), (Code::PermissionDenied, code::IDENTITY_BANNED.as_str()));
    assert!(fault.what.contains("because"), "{fault:?}");
    assert_eq!(is(call(&rig.dial(Some(&node)).await, MAY_RUN).await), code::IDENTITY_BANNED.as_str());
    assert_eq!(is(rig.issue(&node, &workload("order")).await), code::IDENTITY_BANNED.as_str());
    assert_eq!(is(rig.issue(&node, "").await), code::IDENTITY_BANNED.as_str());
    let plain = rig.admin().await.create_token(agent_token("hosta")).await;
    assert_eq!(is(plain), code::IDENTITY_BANNED.as_str());

    undeny(&rig, "node:hosta").await.unwrap();
    assert_ne!(is(call(&old, MAY_RUN).await), code::IDENTITY_BANNED.as_str());
    rig.issue(&node, &workload("order")).await.unwrap();

    // A token that replaces the node ends the ban for whoever joins with it, and for nobody else.
    deny(&rig, "node:hosta").await.unwrap();
    let token = rig.token(CreateTokenRequest { replace: true, ..agent_token("hosta") }).await;
    let anew = rig.join(&token, "hosta").await.unwrap();
    rig.issue(&anew, &workload("order")).await.unwrap();
    assert_eq!(is(rig.issue(&node, &workload("order")).await), code::IDENTITY_BANNED.as_str());
}

#[tokio::test]
async fn a_node_that_is_not_known_cannot_be_banned() {
    let rig = Rig::start();
    assert_eq!(codes(deny(&rig, "node:nobody").await).0, Code::NotFound);
    assert_eq!(codes(deny(&rig, "node:no body").await).0, Code::InvalidArgument);
}

#[tokio::test]
async fn nothing_is_signed_for_a_revoked_identity_until_it_is_restored() {
    let rig = Rig::start();
    let node = rig.node("hosta").await;
    let order = workload("order");
    deny(&rig, &order).await.unwrap();
    assert_eq!(is(rig.issue(&node, &order).await), code::IDENTITY_REVOKED.as_str());
    rig.issue(&node, &workload("cart")).await.unwrap();

    undeny(&rig, &order).await.unwrap();
    rig.issue(&node, &order).await.unwrap();
    assert_eq!(is(undeny(&rig, &order).await), code::NOT_DENIED.as_str());
    assert_eq!(is(deny(&rig, "spiffe://other.example/ns/a/sa/b").await), code::FOREIGN_IDENTITY.as_str());
}

#[tokio::test]
async fn iss_02_a_revoked_person_is_refused_also_on_a_watch_that_is_open() {
    let rig = Rig::start();
    let ada = rig.person("ada", "viewer").await;
    let channel = rig.dial(Some(&ada)).await;
    call(&channel, STATUS).await.unwrap();
    let request = WatchRequest { kind: "Service".into(), all_namespaces: true, ..Default::default() };
    let mut watch = ManagementClient::new(channel.clone()).watch(request).await.unwrap().into_inner();

    let denied = deny(&rig, &serial(&ada)).await.unwrap().entry.unwrap();
    assert!(!denied.until.is_empty(), "it ends with the certificate");
    let ended = tokio::time::timeout(WITHIN, watch.message()).await.expect("the watch ends");
    assert_eq!(is(ended), code::IDENTITY_REVOKED.as_str());
    assert_eq!(is(call(&channel, STATUS).await), code::IDENTITY_REVOKED.as_str());
    assert_eq!(is(call(&rig.dial(Some(&ada)).await, STATUS).await), code::IDENTITY_REVOKED.as_str());
}

#[tokio::test]
async fn the_servers_own_identity_is_not_denied_by_itself() {
    let rig = Rig::start();
    let status = rig.admin().await.status(StatusRequest::default()).await.unwrap().into_inner();
    let own = format!("spiffe://corp.example/server/{}", status.instance);
    assert_eq!(is(deny(&rig, &own).await), code::NOT_DENIED.as_str());
}

#[tokio::test]
async fn an_entry_ends_with_what_it_is_about_and_is_forgotten_later() {
    let (rig, hands) = Rig::timed("");
    let node = rig.node("hosta").await;
    deny(&rig, &serial(&node)).await.unwrap();
    deny(&rig, &workload("order")).await.unwrap();
    let listed = async || {
        let list = rig.admin().await.list_denied(ListDeniedRequest::default()).await.unwrap().into_inner();
        list.entries.into_iter().map(|entry| entry.subject).collect::<Vec<_>>()
    };
    assert_eq!(listed().await.len(), 2);

    // A day: the certificate is over, the identity is still refused.
    hands.advance(Duration::from_secs(25 * 3_600));
    let look = async {
        while listed().await.len() > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(WITHIN, look).await.expect("the ended entry is forgotten");
    assert_eq!(listed().await, [workload("order")]);
}

#[tokio::test]
async fn a_list_is_given_page_by_page() {
    let rig = Rig::start();
    let mut all: Vec<_> = (0..7).map(|number| workload(&format!("w{number}"))).collect();
    for subject in &all {
        deny(&rig, subject).await.unwrap();
    }
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListDeniedRequest { page_size: 3, page_token };
        let page = rig.admin().await.list_denied(request).await.unwrap().into_inner();
        assert!(page.entries.len() <= 3);
        found.extend(page.entries.into_iter().map(|entry| entry.subject));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    found.sort();
    all.sort();
    assert_eq!(found, all);
}
