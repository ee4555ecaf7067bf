//! Who may call what (security.md 5.7).

use std::time::Duration;

use tokio::{io::AsyncReadExt, net::TcpStream};
use tonic::Code;
use weft_api::pb::{
    self,
    identity::identity_client::IdentityClient,
    management::{
        ApplyRequest, Document, ListRequest, ListTokensRequest, ShowAuthorityRequest, StatusRequest,
        WatchRequest, management_client::ManagementClient,
    },
};
use weft_identity::{ca::CertificateAuthority, csr::SigningRequest, spiffe::SpiffeId, svid::Svid};
use weft_policy::code;

use super::{Rig, agent_token, call, codes, issue_by, workload};
use crate::roles::{Access, METHODS};

const STATUS: &str = "/weft.management.v1.Management/Status";

#[tokio::test]
async fn api_01_no_method_that_needs_a_role_is_served_without_it() {
    let rig = Rig::start();
    let node = rig.node("hostb").await;
    let charge = rig.issue(&node, &workload("charge")).await.unwrap();
    let (nobody, charge) = (rig.dial(None).await, rig.dial(Some(&charge)).await);
    let mut asked = 0;
    for (path, access) in METHODS.iter().filter(|(_, access)| *access != Access::Everybody) {
        let (grpc, id) = codes(call(&nobody, path).await);
        assert_eq!((grpc, &*id), (Code::Unauthenticated, code::UNAUTHENTICATED.as_str()), "{path} as nobody");
        let (grpc, id) = codes(call(&charge, path).await);
        assert_eq!(
            (grpc, &*id),
            (Code::PermissionDenied, code::NOT_PERMITTED.as_str()),
            "{path} as a workload"
        );
        if matches!(access, Access::Person(_)) {
            let node = rig.dial(Some(&node)).await;
            assert_eq!(codes(call(&node, path).await).0, Code::PermissionDenied, "{path} as an agent");
        }
        asked += 1;
    }
    let served = pb::methods().iter().filter(|path| !path.starts_with("/weft.agent.")).count();
    assert_eq!(asked, served - 2, "all but Join and GetBundle");
}

#[tokio::test]
async fn api_01_every_method_of_the_descriptors_is_refused_to_a_proof_that_has_ended() {
    let (rig, hands) = Rig::timed("");
    let (ada, node) = (rig.person("ada", "admin").await, rig.node("hostb").await);
    let channels = [rig.dial(Some(&ada)).await, rig.dial(Some(&node)).await];
    hands.advance(Duration::from_secs(24 * 3600));
    let served = pb::methods().into_iter().filter(|path| !path.starts_with("/weft.agent."));
    let mut asked = 0;
    for path in served {
        for channel in &channels {
            let (grpc, id) = codes(call(channel, &path).await);
            assert_eq!((grpc, &*id), (Code::Unauthenticated, code::UNAUTHENTICATED.as_str()), "{path}");
        }
        asked += 1;
    }
    assert!(asked >= 17, "{asked} methods are in the descriptors");
}

#[tokio::test]
async fn api_01_a_stranger_and_an_expired_certificate_are_refused_for_every_method() {
    let rig = Rig::with("identity: {leafTtl: 4s, allowShortLifetimes: true}\n");
    let stranger = foreign("other.example", &rig);
    let forged = foreign("corp.example", &rig);
    let expired = rig.node("hostb").await;
    crate::clock::Clock::system().sleep_until(expired.validity().not_after).await;
    for svid in [stranger, forged, expired] {
        for (path, _) in METHODS {
            let refused = match try_dial(&rig, &svid).await {
                Some(channel) => call(&channel, path).await.is_err(),
                None => true,
            };
            assert!(refused, "{path} as {}", svid.id());
        }
    }
}

#[tokio::test]
async fn api_01_a_user_without_a_role_is_refused_and_each_role_is_held_to_its_own() {
    let rig = Rig::start();
    for (role, allowed) in [("viewer", [true, false]), ("editor", [true, false]), ("admin", [true, true])] {
        let person = rig.person(&format!("ada-{role}"), role).await;
        let mut client = ManagementClient::new(rig.dial(Some(&person)).await);
        assert_eq!(client.status(StatusRequest {}).await.is_ok(), allowed[0], "{role}");
        assert_eq!(client.list_tokens(ListTokensRequest {}).await.is_ok(), allowed[1], "{role}");
    }
}

#[tokio::test]
async fn api_03_health_says_serving_and_there_is_no_reflection() {
    let rig = Rig::start();
    let nobody = rig.dial(None).await;
    call(&nobody, "/grpc.health.v1.Health/Check").await.unwrap();
    for path in [
        "/grpc.health.v1.Health/Watch",
        "/grpc.health.v1.Health/List",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ] {
        assert_eq!(codes(call(&nobody, path).await).0, Code::Unimplemented, "{path}");
    }
}

#[tokio::test]
async fn api_04_odd_paths_are_unimplemented_whoever_asks() {
    let rig = Rig::start();
    for channel in [rig.dial(None).await, rig.socket().await] {
        for path in [
            "//weft.management.v1.Management/Status",
            "/weft.management.v1.Management//Status",
            "/weft.management.v1.Management/Status/",
            "/weft.management.v1.management/Status",
            "/weft.management.v1.Management/status",
            "/weft.management.v2.Management/Status",
            "/weft.agent.v1.Agent/Run",
            "/unknown.Package/Method",
            "/",
        ] {
            assert_eq!(codes(call(&channel, path).await).0, Code::Unimplemented, "{path}");
        }
    }
}

#[tokio::test]
async fn api_07_one_client_cannot_hold_more_streams_than_its_share() {
    let rig = Rig::with("limits: {streamsPerClient: 4}\n");
    let (mut client, other) = (rig.admin().await, rig.dial(None).await);
    let watch = WatchRequest { kind: "Service".into(), all_namespaces: true, ..Default::default() };
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(client.watch(watch.clone()).await.unwrap().into_inner());
    }
    let (grpc, id) = codes(rig.admin().await.status(StatusRequest {}).await);
    assert_eq!((grpc, &*id), (Code::ResourceExhausted, code::TOO_MANY_STREAMS.as_str()));
    call(&other, "/grpc.health.v1.Health/Check").await.unwrap();
    drop(streams);
    // The server hears of it a moment later.
    let free = async { while rig.admin().await.status(StatusRequest {}).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(10), free).await.unwrap();
}

#[tokio::test]
async fn api_10_a_client_that_does_not_finish_its_handshake_is_let_go() {
    let rig = Rig::with("limits: {handshakeTimeout: 200ms, handshakesPerAddress: 2}\n");
    let mut silent = TcpStream::connect(rig.server().control_addr()).await.unwrap();
    let mut byte = [0];
    let ended = tokio::time::timeout(Duration::from_secs(10), silent.read(&mut byte)).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "the connection is closed");
    call(&rig.dial(None).await, "/grpc.health.v1.Health/Check").await.unwrap();
}

#[tokio::test]
async fn api_12_a_tokens_secret_is_told_once_and_stored_nowhere() {
    let rig = Rig::start();
    let made = rig.admin().await.create_token(agent_token("hostb")).await.unwrap().into_inner();
    let token: weft_api::token::JoinToken = made.token.parse().unwrap();
    let list = rig.admin().await.list_tokens(ListTokensRequest {}).await.unwrap().into_inner();
    assert_eq!(list.tokens[0].id, made.id);
    let status = rig.admin().await.status(StatusRequest {}).await.unwrap().into_inner();
    let authority = rig.admin().await.show_authority(ShowAuthorityRequest {}).await.unwrap().into_inner();
    let mut told = format!("{list:?}{status:?}{authority:?}");
    for kind in weft_policy::model::Kind::ALL {
        let request = ListRequest { kind: kind.name().into(), all_namespaces: true, ..Default::default() };
        let page = rig.admin().await.list(request).await.unwrap().into_inner();
        told.extend(page.documents.iter().map(|document| String::from_utf8_lossy(&document.json)));
    }
    for (address, paths) in [
        (rig.server().metrics_addr(), &["/metrics"][..]),
        (rig.server().admin_addr(), &["/config", "/version", "/readyz"]),
    ] {
        for path in paths {
            told.push_str(&super::http(address, path).await);
        }
    }
    assert!(
        told.contains("agent-hostb") && told.contains("weft_registry_alarms_total"),
        "all of it was read"
    );
    for secret in [token.secret(), &made.token, "PRIVATE KEY"] {
        assert!(!told.contains(secret));
    }
    let other = rig.admin().await.create_token(agent_token("hostc")).await.unwrap().into_inner();
    assert_ne!(other.token.parse::<weft_api::token::JoinToken>().unwrap().secret(), token.secret());
    for path in super::files(rig.folder()) {
        let bytes = std::fs::read(&path).unwrap();
        let secret = token.secret().as_bytes();
        assert!(!bytes.windows(secret.len()).any(|part| part == secret), "{}", path.display());
    }
}

#[tokio::test]
async fn api_13_an_editor_cannot_raise_themselves() {
    let rig = Rig::start();
    let editor = rig.person("ada", "editor").await;
    let mut client = ManagementClient::new(rig.dial(Some(&editor)).await);
    let (grpc, _) = codes(client.create_token(agent_token("hostc")).await);
    assert_eq!(grpc, Code::PermissionDenied);
    let enrollment = "apiVersion: weft.mesh/v1alpha1\nkind: WorkloadEnrollment\n\
        metadata: {name: mine, namespace: default}\n\
        spec: {nodes: [hostc], identities: [\"spiffe://corp.example/ns/default/sa/*\"]}\n";
    let resources = weft_api::manifest::parse(enrollment, None).unwrap();
    let json = weft_api::manifest::to_json(&resources[0]).to_string().into_bytes();
    let request = ApplyRequest { documents: vec![Document { json }], ..Default::default() };
    assert_eq!(codes(client.apply(request).await).0, Code::PermissionDenied);
    let admin = SpiffeId::user(&super::domain(), "root").unwrap().to_string();
    let raised = issue_by(IdentityClient::new(rig.dial(Some(&editor)).await), &admin).await;
    assert_eq!(codes(raised).0, Code::PermissionDenied);
}

#[tokio::test]
async fn api_14_a_connection_outlives_its_certificate_without_a_voice() {
    let (rig, hands) = Rig::timed("");
    let ada = rig.person("ada", "admin").await;
    let channel = rig.dial(Some(&ada)).await;
    call(&channel, STATUS).await.unwrap();
    hands.advance(Duration::from_secs(24 * 3600));
    let (grpc, id) = codes(call(&channel, STATUS).await);
    assert_eq!((grpc, &*id), (Code::Unauthenticated, code::UNAUTHENTICATED.as_str()));
}

/// An SVID of another authority.
fn foreign(trust_domain: &str, rig: &Rig) -> Svid {
    let domain = trust_domain.parse().unwrap();
    let mut ca = CertificateAuthority::create(&domain, "x", rig.now()).unwrap();
    let (key, csr) = SigningRequest::create().unwrap();
    let (request, id) = (SigningRequest::parse(&csr).unwrap(), SpiffeId::user(&domain, "ada").unwrap());
    let issued = ca.issue(&request, &id, Duration::from_secs(3600), rig.now()).unwrap();
    Svid::parse(issued.chain, key).unwrap()
}

/// A connection, if the handshake lets it come about; in TLS 1.3 the client may learn of its refusal only later.
async fn try_dial(rig: &Rig, svid: &Svid) -> Option<tonic::transport::Channel> {
    use weft_identity::{
        bundle::TrustBundles,
        tls::{BundleSlot, ExpectedPeer, SvidSlot, client_config},
    };

    let slot = SvidSlot::empty();
    slot.publish(svid.clone());
    let bundles = BundleSlot::new(TrustBundles::from(rig.bundle().await));
    let expected = ExpectedPeer::AnyServerOf(super::domain());
    let tls = client_config(Some(slot), bundles, expected, &[weft_api::channel::ALPN_H2]);
    let servers = [rig.server().control_addr().into()];
    weft_api::channel::connect(&servers, std::sync::Arc::new(tls), "server.weft").await.ok()
}
