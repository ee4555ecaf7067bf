//! Keys and signatures (CERT-15, CERT-16).

use std::time::Duration;

use weft_identity::bundle::{TrustBundle, TrustBundles};
use weft_identity::tls::{PeerRole, verify_chain};
use weft_tests::corpus::Corpus;
use weft_tests::cpu;
use weft_tests::forge::Offset;
use weft_tests::handshake::{LOCAL, ORDER};

use super::{NOT_AN_SVID, UNTRUSTED, judge_alike};

#[tokio::test]
async fn cert_15_weak_huge_and_unknown_keys_are_refused() {
    let corpus = Corpus::make("refused_keys");
    let lab = corpus.lab();
    assert!(corpus.cases.len() > 20);
    for case in &corpus.cases {
        assert!(!case.accept);
        lab.refuses(&case.name, &case.forged, NOT_AN_SVID, "public key").await;
    }
}

#[tokio::test]
async fn cert_15_weak_signatures_are_refused() {
    judge_alike("weak_signatures", UNTRUSTED, ORDER).await;
}

#[test]
fn cert_15_an_rsa_key_of_16384_bits_costs_less_than_5_ms() {
    const ROUNDS: u32 = 50;
    let corpus = Corpus::make("refused_keys");
    let huge = &corpus.case("rsa_16384").forged.chain;
    let local = TrustBundle::new(LOCAL.parse().unwrap(), corpus.roots.clone(), 1).unwrap();
    let (bundles, now) = (TrustBundles::from(local), Offset::In(Duration::ZERO).moment());

    let (_, spent) = cpu::spent(|| {
        for _ in 0..ROUNDS {
            verify_chain(&bundles, huge, PeerRole::Client, now).unwrap_err();
        }
    });
    assert!(spent / ROUNDS < Duration::from_millis(5), "{:?} of CPU each", spent / ROUNDS);
}

#[tokio::test]
async fn cert_16_every_kind_of_key_in_the_list_is_accepted() {
    let corpus = Corpus::make("accepted_keys");
    let names: Vec<&str> = corpus.cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names, ["p256", "p384", "ed25519", "rsa_2048", "rsa_3072", "rsa_4096"]);
    corpus.judge(&corpus.lab(), &[]).await;
}
