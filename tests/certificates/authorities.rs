//! Authorities that may not sign, or not this (CERT-13, CERT-19, CERT-20).

use weft_identity::tls::ExpectedPeer;
use weft_tests::corpus::Corpus;
use weft_tests::handshake::ORDER;

use super::{BAD_AUTHORITY, UNTRUSTED, judge};

#[tokio::test]
async fn cert_19_path_lengths_and_the_right_to_sign_are_enforced() {
    judge(
        "limits",
        &[
            ("path_length_violated", UNTRUSTED, ORDER),
            ("no_authority", UNTRUSTED, ORDER),
            ("no_cert_sign", BAD_AUTHORITY, "not a certificate authority"),
            ("expired_issuer", "expired", ORDER),
            ("future_issuer", "not_yet_valid", ORDER),
            ("signed_by_a_workload", UNTRUSTED, ORDER),
        ],
    )
    .await;
}

/// A constraint on URIs refuses every chain, whatever it permits: rustls-webpki does not compare URIs, and the safe
/// side is the closed one (X5-14). One on DNS names says nothing about a leaf without DNS names. The purposes of an
/// authority bind what is below it (CERT-13): one that states some must state that of the role.
#[tokio::test]
async fn cert_13_and_cert_20_what_an_authority_is_limited_to_binds_what_is_below_it() {
    let corpus = Corpus::make("constrained");
    let lab = corpus.lab();
    for (name, caller, callee) in [
        ("uri_permitted", false, false),
        ("uri_permitted_not_critical", false, false),
        ("uri_excluded", false, false),
        ("uri_excluded_elsewhere", false, false),
        ("dns_permitted", true, true),
        ("dns_excluded", true, true),
        ("unknown_critical", false, false),
        ("unknown", true, true),
        ("purpose_email", false, false),
        ("purpose_any", false, false),
        ("purpose_both", true, true),
        ("purpose_only_server", false, true),
        ("purpose_only_client", true, false),
    ] {
        let forged = &corpus.case(name).forged;
        let called = lab.judge_caller(forged).await;
        let dialled = lab.judge_callee(forged, ExpectedPeer::Anyone).await;
        assert_eq!((called.is_ok(), dialled.is_ok()), (caller, callee), "{name}: {called:?}, {dialled:?}");
        for refusal in [called.err(), dialled.err()].into_iter().flatten() {
            refusal.check(name, refusal.reason, ORDER);
            assert!([UNTRUSTED, BAD_AUTHORITY].contains(&refusal.reason), "{name}: {refusal:?}");
        }
    }
    assert_eq!(corpus.cases.len(), 13);
}
