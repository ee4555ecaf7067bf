//! Who gets a tunnel: the attack catalogue over real QUIC handshakes, as caller and as callee.
//!
//! Each case is tried in both roles: the attacker calls the victim, and the victim dials the attacker.
//! The control of every case is [`an_svid_in_order_is_accepted_in_both_roles`].

use std::sync::Arc;
use std::time::Duration;

use rcgen::KeyUsagePurpose;
use rustls::client::{ClientSessionMemoryCache, Resumption};
use weft_identity::bundle::TrustBundles;
use weft_identity::tls::ExpectedPeer;
use weft_tests::forge::{Authority, Forged, Leaf, Name, Nothing, Offset, Usage};
use weft_tests::handshake::{self, CHARGE, LOCAL, Lab, ORDER, PARTNER, accept, address, connecting};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// The variant of `VerifyError` that refuses, as it stands in the reason of a failed handshake.
const UNTRUSTED: &str = "Untrusted";
const UNKNOWN: &str = "UnknownTrustDomain";
const NO_URI: &str = "NoUri";
const SEVERAL_URIS: &str = "SeveralUris(2)";
const AUTHORITY: &str = "LeafIsAuthority";
const KEY_USAGE: &str = "KeyUsage";

#[tokio::test]
async fn an_svid_in_order_is_accepted_in_both_roles() {
    let lab = Lab::new();
    let good = lab.sign(&Leaf::good(ORDER));

    let tunnel = lab.call_victim(&good).await.unwrap();
    assert_eq!(tunnel.peer().id.to_string(), ORDER);
    assert_eq!(lab.dialled_by_victim(&good, exactly(ORDER)).await, (Ok(()), true));

    let partner = lab.partner.sign(&Leaf::good("spiffe://partner.example/ns/a/sa/b"), &[]);
    assert!(lab.call_victim(&partner).await.is_ok(), "a federated identity is one too");
}

#[tokio::test]
async fn cert_01_an_svid_of_an_unknown_trust_domain_is_refused() {
    let lab = Lab::new();
    let unknown = Leaf::good("spiffe://unknown.example/ns/shop/sa/order");

    refused(&lab, "root held for another domain", &lab.sign(&unknown), UNKNOWN).await;
    refused(&lab, "root of its own", &Authority::root("unknown.example").sign(&unknown, &[]), UNKNOWN).await;
    let impostor = Authority::root(LOCAL).sign(&Leaf::good(ORDER), &[]);
    refused(&lab, "unknown root of the same name", &impostor, UNTRUSTED).await;
}

#[tokio::test]
async fn cert_02_a_federated_root_cannot_sign_a_local_identity() {
    let lab = Lab::new();
    let intermediate = lab.partner.intermediate(PARTNER);
    let pretender = lab.partner.intermediate(LOCAL);

    refused(&lab, "by the root", &lab.partner.sign(&Leaf::good(ORDER), &[]), UNTRUSTED).await;
    let below = intermediate.sign(&Leaf::good(ORDER), &[&intermediate]);
    refused(&lab, "by an intermediate", &below, UNTRUSTED).await;
    let renamed = pretender.sign(&Leaf::good(ORDER), &[&pretender]);
    refused(&lab, "by an intermediate that claims the local domain", &renamed, UNTRUSTED).await;
}

#[tokio::test]
async fn cert_03_the_local_root_cannot_sign_a_federated_identity() {
    let lab = Lab::new();
    let foreign = Leaf::good("spiffe://partner.example/ns/shop/sa/order");

    refused(&lab, "by the root", &lab.local.sign(&foreign, &[]), UNTRUSTED).await;
    refused(&lab, "by the intermediate", &lab.sign(&foreign), UNTRUSTED).await;
}

#[tokio::test]
async fn cert_04_an_svid_out_of_its_time_is_refused() {
    let lab = Lab::new();
    for by in [SECOND, HOUR] {
        let expired = Leaf::good(ORDER).valid(Offset::Ago(2 * HOUR - SECOND), Offset::Ago(by));
        refused(&lab, &format!("expired by {by:?}"), &lab.sign(&expired), "Expired").await;
    }
    // A second of the first case may pass before the check, so it starts with two.
    for early in [2 * SECOND, 61 * SECOND, HOUR] {
        let future = Leaf::good(ORDER).valid(Offset::In(early), Offset::In(HOUR + HOUR / 2));
        refused(&lab, &format!("valid in {early:?}"), &lab.sign(&future), "NotYetValid").await;
    }
}

#[tokio::test]
async fn cert_05_a_certificate_without_a_uri_san_is_refused() {
    let lab = Lab::new();
    let mut only_common_name = Leaf::good(ORDER).names(&[]);
    only_common_name.common_name = Some(ORDER.to_owned());

    refused(&lab, "no SAN", &lab.sign(&Leaf::good(ORDER).names(&[])), NO_URI).await;
    let dns = [Name::Dns(ORDER.into())];
    refused(&lab, "SAN without URI", &lab.sign(&Leaf::good(ORDER).names(&dns)), NO_URI).await;
    refused(&lab, "URI in the common name", &lab.sign(&only_common_name), NO_URI).await;
}

#[tokio::test]
async fn cert_06_two_uri_sans_are_refused_whatever_the_second_is() {
    let lab = Lab::new();
    let long = format!("{ORDER}/{}", "x".repeat(2048));
    let seconds: &[(&str, &[u8])] = &[
        ("both valid", CHARGE.as_bytes()),
        ("identical", ORDER.as_bytes()),
        ("https", b"https://corp.example/"),
        ("not UTF-8", b"spiffe://corp.example/\xff\xfe"),
        ("over 2048 bytes", long.as_bytes()),
        ("empty", b""),
    ];
    for (case, second) in seconds {
        for swapped in [false, true] {
            let mut names = vec![Name::Uri(ORDER.into()), Name::Uri(second.to_vec())];
            if swapped {
                names.reverse();
            }
            let forged = lab.sign(&Leaf::good(ORDER).names(&names));
            refused(&lab, &format!("{case}, swapped: {swapped}"), &forged, SEVERAL_URIS).await;
        }
    }
}

#[tokio::test]
async fn cert_10_a_leaf_with_the_id_of_a_trust_domain_is_refused() {
    let lab = Lab::new();

    refused(&lab, "no path", &lab.sign(&Leaf::good("spiffe://corp.example")), "NoPath").await;
}

#[tokio::test]
async fn cert_11_a_leaf_that_may_sign_or_does_not_say_what_its_key_is_for_is_refused() {
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign, KeyEncipherment};
    let lab = Lab::new();
    let mut authority = Leaf::good(ORDER);
    authority.authority = true;
    refused(&lab, "cA true", &lab.sign(&authority), AUTHORITY).await;

    for (case, usage) in [
        ("keyCertSign", Usage::Critical(vec![DigitalSignature, KeyCertSign])),
        ("cRLSign", Usage::Critical(vec![DigitalSignature, CrlSign])),
        ("no keyUsage", Usage::Absent),
        ("no digitalSignature", Usage::Critical(vec![KeyEncipherment])),
        ("keyUsage not critical", Usage::NotCritical),
    ] {
        refused(&lab, case, &lab.sign(&Leaf::good(ORDER).usage(usage)), KEY_USAGE).await;
    }
}

#[tokio::test]
async fn cert_14_a_self_signed_leaf_and_a_root_as_leaf_are_refused() {
    let lab = Lab::new();
    let mut root_like = Leaf::good(ORDER).usage(Usage::Critical(vec![KeyUsagePurpose::DigitalSignature]));
    root_like.authority = true;

    refused(&lab, "self-signed leaf", &Leaf::good(ORDER).self_signed(), UNTRUSTED).await;
    refused(&lab, "leaf and root in one", &root_like.self_signed(), AUTHORITY).await;
    refused(&lab, "the trusted root as leaf", &lab.local.as_leaf(), "Profile").await;
}

#[tokio::test]
async fn cert_24_a_caller_without_a_certificate_is_refused_before_any_data() {
    let lab = Lab::new();
    let mut empty = lab.anonymous_config();
    empty.client_auth_cert_resolver = Arc::new(Nothing);
    for (case, config) in [("no certificate", lab.anonymous_config()), ("an empty message", empty)] {
        let victim = lab.victim();
        let (dialled, accepted) = tokio::join!(handshake::dial(address(&victim), config), accept(&victim));
        assert!(accepted.is_err(), "{case}");
        if let Ok(connection) = dialled {
            assert!(
                connection.accept_uni().await.is_err(),
                "{case}: nothing is sent to a caller without proof"
            );
        }
    }
}

#[tokio::test]
async fn cert_26_a_server_with_the_svid_of_another_workload_is_refused_and_sees_no_certificate() {
    let lab = Lab::new();
    let other = lab.sign(&Leaf::good("spiffe://corp.example/ns/shop/sa/ledger"));

    let (dialled, seen) = lab.dialled_by_victim(&other, exactly(ORDER)).await;
    let reason = dialled.unwrap_err();
    assert!(reason.contains("Unexpected") && reason.contains("ledger"), "{reason}");
    assert!(!seen, "a wrong server never sees the certificate of the caller");
}

#[tokio::test]
async fn tls_01_no_ticket_is_given_so_nothing_outlives_its_bundle() {
    let lab = Lab::new();
    let victim = lab.victim();
    let mut config = lab.attacker_config(lab.sign(&Leaf::good(ORDER)).presented());
    config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(64)));
    config.enable_early_data = true;
    let (dialled, accepted) =
        tokio::join!(handshake::dial(address(&victim), config.clone()), accept(&victim));
    let (first, _tunnel) = (dialled.unwrap(), accepted.unwrap());

    let trusting = lab.bundles.load();
    lab.bundles.publish(TrustBundles::new());
    // The attacker still trusts the victim; the victim trusts nobody any more.
    let mut later = config;
    let still = weft_identity::tls::BundleSlot::new((*trusting).clone());
    let verifier = weft_identity::tls::SpiffeVerifier::new(
        still,
        ExpectedPeer::Anyone,
        weft_identity::tls::ClientAuth::Required,
    );
    later.dangerous().set_certificate_verifier(Arc::new(verifier));
    let (_, accepted) = tokio::join!(handshake::dial(address(&victim), later), accept(&victim));

    assert!(accepted.is_err(), "a second connection is judged by the bundles of now");
    drop(first);
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the attacker tries what the mesh never does")]
async fn tls_02_there_is_nothing_to_send_early_data_with() {
    let lab = Lab::new();
    let victim = lab.victim();
    let mut config = lab.attacker_config(lab.sign(&Leaf::good(ORDER)).presented());
    config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(64)));
    config.enable_early_data = true;
    for attempt in 0..3 {
        let connecting = connecting(address(&victim), config.clone()).unwrap();
        let Err(connecting) = connecting.into_0rtt() else {
            panic!("attempt {attempt}: keys for early data from an earlier connection");
        };
        let (dialled, accepted) = tokio::join!(connecting, accept(&victim));
        // Time for a ticket to arrive, if one were sent.
        let (connection, tunnel) = (dialled.unwrap(), accepted.unwrap());
        tokio::time::timeout(Duration::from_millis(100), connection.closed()).await.unwrap_err();
        drop(tunnel);
    }
}

#[tokio::test]
async fn tls_03_a_server_sends_nothing_before_the_caller_is_proven() {
    let lab = Lab::new();
    let forged = lab.partner.sign(&Leaf::good(ORDER), &[]);
    let victim = lab.victim();
    let config = lab.attacker_config(forged.presented());

    let (dialled, accepted) = tokio::join!(handshake::dial(address(&victim), config), accept(&victim));
    assert!(accepted.is_err());
    if let Ok(connection) = dialled {
        assert!(connection.accept_uni().await.is_err() && connection.accept_bi().await.is_err());
    }
}

#[tokio::test]
async fn tls_04_a_caller_with_another_protocol_or_none_is_refused() {
    let lab = Lab::new();
    let good = lab.sign(&Leaf::good(ORDER));
    for protocols in [vec![], vec![b"h3".to_vec()], vec![b"h2".to_vec()], vec![b"weft/2".to_vec()]] {
        let mut config = lab.attacker_config(good.presented());
        config.alpn_protocols.clone_from(&protocols);
        assert!(lab.call_victim_with(config).await.is_err(), "{protocols:?}");
    }
}

#[tokio::test]
async fn tls_04_a_draft_version_is_answered_by_no_more_than_was_received() {
    let lab = Lab::new();
    let victim = lab.victim();
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    // A long header (RFC 8999): form bit, version draft-29, two connection IDs of 8 bytes, padding.
    let mut packet = vec![0xc0, 0xff, 0x00, 0x00, 0x1d, 8, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 7, 6, 5, 4, 3, 2, 1];
    packet.resize(1200, 0);
    socket.send_to(&packet, address(&victim)).await.unwrap();

    let mut answer = [0; 2048];
    let answered = tokio::time::timeout(5 * SECOND, socket.recv(&mut answer)).await.unwrap().unwrap();
    assert!(answered <= packet.len());
    assert_eq!(answer[1..5], [0; 4], "Version Negotiation");
    let versions: Vec<&[u8]> = answer[23..answered].chunks(4).collect();
    assert!(versions.contains(&&[0, 0, 0, 1][..]), "QUIC version 1 is offered: {versions:?}");
    assert!(!versions.contains(&&[0xff, 0, 0, 0x1d][..]), "the draft is not: {versions:?}");
}

fn exactly(id: &str) -> ExpectedPeer {
    ExpectedPeer::Exactly(id.parse().expect("a SPIFFE ID"))
}

/// Checks that `forged` is refused by the victim in both roles, with `reason`, and that a victim that
/// dials never shows its own certificate.
async fn refused(lab: &Lab, case: &str, forged: &Forged, reason: &str) {
    let called = lab.call_victim(forged).await.map(drop).expect_err(case);
    assert!(called.contains(reason), "{case}, as caller: {called}");
    let (dialled, seen) = lab.dialled_by_victim(forged, ExpectedPeer::Anyone).await;
    let dialled = dialled.expect_err(case);
    assert!(dialled.contains(reason), "{case}, as callee: {dialled}");
    assert!(!seen, "{case}: the forger saw the certificate of the victim");
}
