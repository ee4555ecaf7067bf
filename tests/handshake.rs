//! What a session of a tunnel never does: resume, send early, speak another protocol or version.
//!
//! Who gets a tunnel at all is `certificates/`.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::{ClientSessionMemoryCache, Resumption};
use weft_identity::bundle::TrustBundles;
use weft_identity::tls::ExpectedPeer;
use weft_tests::forge::Leaf;
use weft_tests::handshake::{self, Lab, ORDER, accept, address, connecting};

const SECOND: Duration = Duration::from_secs(1);

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
