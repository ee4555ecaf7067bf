//! What a leaf says of itself and how it is written (CERT-11, CERT-12, CERT-20, CERT-22, CERT-25).

use rcgen::KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign, KeyEncipherment};
use weft_identity::tls::ExpectedPeer;
use weft_tests::corpus::Corpus;
use weft_tests::forge::{Leaf, Usage};
use weft_tests::handshake::{Lab, ORDER};

use super::{MALFORMED, NOT_AN_SVID, UNTRUSTED, judge};

const AUTHORITY: &str = "the leaf is a certificate authority";
const USAGE: &str = "key usage is";

#[tokio::test]
async fn cert_11_a_leaf_that_may_sign_or_does_not_say_what_its_key_is_for_is_refused() {
    let lab = Lab::new();
    let mut authority = Leaf::good(ORDER);
    authority.authority = true;
    lab.refuses("cA true", &lab.sign(&authority), NOT_AN_SVID, AUTHORITY).await;

    for (case, usage) in [
        ("keyCertSign", Usage::Critical(vec![DigitalSignature, KeyCertSign])),
        ("cRLSign", Usage::Critical(vec![DigitalSignature, CrlSign])),
        ("no keyUsage", Usage::Absent),
        ("no digitalSignature", Usage::Critical(vec![KeyEncipherment])),
        ("keyUsage not critical", Usage::NotCritical),
    ] {
        lab.refuses(case, &lab.sign(&Leaf::good(ORDER).usage(usage)), NOT_AN_SVID, USAGE).await;
    }
}

#[tokio::test]
async fn cert_11_usages_by_another_hand_are_refused() {
    judge(
        "usages",
        &[
            ("authority", NOT_AN_SVID, AUTHORITY),
            ("authority_of_paths", NOT_AN_SVID, AUTHORITY),
            ("cert_sign", NOT_AN_SVID, USAGE),
            ("crl_sign", NOT_AN_SVID, USAGE),
            ("no_usage", NOT_AN_SVID, USAGE),
            ("no_digital_signature", NOT_AN_SVID, USAGE),
            ("empty_usage", NOT_AN_SVID, MALFORMED),
            ("usage_not_critical", NOT_AN_SVID, USAGE),
            ("usage_with_set_padding", NOT_AN_SVID, MALFORMED),
        ],
    )
    .await;
}

/// A purpose that is stated must be that of the role. `anyExtendedKeyUsage` is none of them for rustls-webpki, so it
/// is refused too; a leaf that states no purpose fits both roles.
#[tokio::test]
async fn cert_12_a_stated_purpose_must_be_that_of_the_role() {
    let corpus = Corpus::make("purposes");
    let lab = corpus.lab();
    for case in corpus.cases.iter().filter(|case| case.accept) {
        lab.accepts(&case.name, &case.forged).await;
    }
    for (name, caller, callee) in [
        ("email", false, false),
        ("code_signing", false, false),
        ("any", false, false),
        ("only_client", true, false),
        ("only_server", false, true),
        ("none", false, false),
    ] {
        let case = corpus.case(name);
        let called = lab.judge_caller(&case.forged).await;
        let dialled = lab.judge_callee(&case.forged, ExpectedPeer::Anyone).await;
        assert_eq!((called.is_ok(), dialled.is_ok()), (caller, callee), "{name}: {called:?}, {dialled:?}");
        for refusal in [called.err(), dialled.err()].into_iter().flatten() {
            let reason = if name == "none" { NOT_AN_SVID } else { UNTRUSTED };
            refusal.check(name, reason, "");
        }
    }
}

#[tokio::test]
async fn cert_20_an_unknown_critical_extension_is_refused() {
    judge(
        "unknown_extensions",
        &[
            ("critical", NOT_AN_SVID, "a critical extension is unknown"),
            ("default_written_out", NOT_AN_SVID, MALFORMED),
        ],
    )
    .await;
}

#[tokio::test]
async fn cert_22_serials_are_positive_and_at_most_20_bytes() {
    super::judge_alike("serials", NOT_AN_SVID, "serial number").await;
}

/// A serial is unique per issuer only: whoever lists peers must take both, and both are there to take.
#[tokio::test]
async fn cert_22_the_same_serial_under_two_issuers_is_two_certificates() {
    let (corpus, other) = (Corpus::make("serials"), Corpus::make("serials"));
    let (lab, other_lab) = (corpus.lab(), other.lab());
    let mut peers = Vec::new();
    for (lab, corpus) in [(&lab, &corpus), (&other_lab, &other)] {
        for name in ["same_serial_first", "same_serial_second"] {
            peers.push(lab.accepts(name, &corpus.case(name).forged).await);
        }
    }
    assert!(peers.iter().all(|peer| peer.serial == peers[0].serial), "{peers:?}");
    assert!(peers.iter().all(|peer| !peer.authority_key_ids.is_empty()), "{peers:?}");
    assert_eq!(peers[0].authority_key_ids, peers[1].authority_key_ids);
    assert_ne!(peers[0].authority_key_ids, peers[2].authority_key_ids, "the issuer tells them apart");
}

#[tokio::test]
async fn cert_25_and_cert_07_other_versions_and_encodings_are_refused() {
    let changed = ["a_changed_signature", "parameters_of_the_algorithm", "another_algorithm_outside"];
    let corpus = Corpus::make("encodings");
    let refused: Vec<_> = corpus
        .cases
        .iter()
        .filter(|case| !case.accept)
        .map(|case| match case.name.as_str() {
            name @ "a_changed_signature" => (name, UNTRUSTED, ORDER),
            name => (name, NOT_AN_SVID, MALFORMED),
        })
        .collect();
    assert!(changed.iter().all(|name| refused.iter().any(|(other, ..)| other == name)));
    corpus.judge(&corpus.lab(), &refused).await;
}
