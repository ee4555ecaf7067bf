//! Chains that are long, wide or out of order (CERT-17, CERT-18).

use std::time::Duration;

use weft_identity::bundle::{TrustBundle, TrustBundles};
use weft_identity::tls::{PeerRole, verify_chain};
use weft_tests::corpus::Corpus;
use weft_tests::cpu;
use weft_tests::forge::Offset;
use weft_tests::handshake::{LOCAL, ORDER};

use super::{MALFORMED, NOT_AN_SVID, UNTRUSTED, judge};

const TOO_MANY: &str = "certificates follow the leaf, at most 4 may";
const TOO_LONG: &str = "at most 16384 are read";

#[tokio::test]
async fn cert_17_chains_beyond_4_intermediates_or_16_kib_are_refused() {
    let corpus = Corpus::make("lengths");
    let (within, beyond): (Vec<_>, Vec<_>) = corpus.cases.iter().partition(|case| case.accept);
    let lab = corpus.lab();
    assert_eq!(within.len(), 5, "1 and 4 intermediates, none, and up to the byte");
    for case in within {
        lab.accepts(&case.name, &case.forged).await;
    }
    for case in beyond {
        let says = match case.name.as_str() {
            name if name.starts_with("intermediates_") => TOO_MANY,
            "bytes_16385" | "kib_60_in_one" => TOO_LONG,
            "kib_64_in_one" => {
                refused_by_tls(&corpus, &case.name).await;
                continue;
            }
            name => panic!("an unknown case: {name}"),
        };
        lab.refuses(&case.name, &case.forged, NOT_AN_SVID, says).await;
    }
}

/// A message of over 64 KiB does not even reach the verifier.
async fn refused_by_tls(corpus: &Corpus, name: &str) {
    let (lab, forged) = (corpus.lab(), &corpus.case(name).forged);
    let caller = lab.judge_caller(forged).await.expect_err(name);
    let callee = lab.judge_callee(forged, weft_identity::tls::ExpectedPeer::Anyone).await.expect_err(name);
    for refusal in [caller, callee] {
        assert_eq!(refusal.reason, "transport", "{name}: {refusal:?}");
    }
}

#[tokio::test]
async fn cert_17_authorities_that_vouch_for_each_other_are_refused() {
    judge(
        "explosions",
        &[
            ("crossed_100", NOT_AN_SVID, TOO_MANY),
            ("crossed_4", UNTRUSTED, ORDER),
            ("one_key_4_times", UNTRUSTED, ORDER),
        ],
    )
    .await;
}

/// What is beyond the limits costs no signature; what is within costs at most 50 ms.
#[test]
fn cert_17_no_chain_costs_more_than_its_bound_of_cpu() {
    const ROUNDS: u32 = 20;
    for group in ["explosions", "lengths"] {
        let corpus = Corpus::make(group);
        let local = TrustBundle::new(LOCAL.parse().unwrap(), corpus.roots.clone(), 1).unwrap();
        let (bundles, now) = (TrustBundles::from(local), Offset::In(Duration::ZERO).moment());
        for case in corpus.cases.iter().filter(|case| !case.accept) {
            let (_, spent) = cpu::spent(|| {
                for _ in 0..ROUNDS {
                    verify_chain(&bundles, &case.forged.chain, PeerRole::Client, now).unwrap_err();
                }
            });
            let within = case.forged.chain.len() <= 5
                && case.forged.chain.iter().map(|der| der.len()).sum::<usize>() <= 16_384;
            // A signature takes about 100 us; a look at the lengths takes nothing that could be measured.
            let bound = if within { Duration::from_millis(50) } else { Duration::from_millis(1) };
            assert!(spent / ROUNDS < bound, "{}: {:?} of CPU each", case.name, spent / ROUNDS);
        }
    }
}

/// A path is looked for among what is presented: order, doubles and strangers do not matter, as long as all of it can
/// be read and one path holds.
#[tokio::test]
async fn cert_18_order_doubles_and_strangers_do_not_matter() {
    judge(
        "orders",
        &[
            ("malformed_extra", NOT_AN_SVID, MALFORMED),
            ("one_missing", UNTRUSTED, ORDER),
            ("none_at_all", UNTRUSTED, ORDER),
            ("leaf_last", NOT_AN_SVID, "SPIFFE ID"),
        ],
    )
    .await;
}
