//! Whose word counts for which trust domain (CERT-01 to CERT-03, CERT-14, CERT-26 to CERT-28).

use std::time::Duration;

use rcgen::KeyUsagePurpose;
use weft_identity::bundle::{TrustBundle, TrustBundles};
use weft_identity::tls::{ExpectedPeer, still_trusted};
use weft_overlay::{CloseCode, Tunnel};
use weft_tests::corpus::Corpus;
use weft_tests::forge::{Authority, Leaf, Offset, Usage};
use weft_tests::handshake::{LOCAL, Lab, ORDER, PARTNER, accept, address, dial};

use super::{BAD_AUTHORITY, HOUR, NOT_AN_SVID, SECOND, UNTRUSTED};

const UNKNOWN: &str = "unknown_trust_domain";
const LEAF_IS_AUTHORITY: &str = "the leaf is a certificate authority";

#[tokio::test]
async fn an_svid_in_order_is_accepted_in_both_roles() {
    let lab = Lab::new();
    let good = lab.sign(&Leaf::good(ORDER));

    assert_eq!(lab.accepts("in order", &good).await.id.to_string(), ORDER);
    assert!(lab.judge_callee(&good, exactly(ORDER)).await.is_ok());
    let partner = lab.partner.sign(&Leaf::good("spiffe://partner.example/ns/a/sa/b"), &[]);
    lab.accepts("a federated identity is one too", &partner).await;
}

#[tokio::test]
async fn cert_01_an_svid_of_an_unknown_trust_domain_is_refused() {
    let lab = Lab::new();
    let unknown = Leaf::good("spiffe://unknown.example/ns/shop/sa/order");
    let own_root = Authority::root("unknown.example").sign(&unknown, &[]);
    let impostor = Authority::root(LOCAL).sign(&Leaf::good(ORDER), &[]);

    lab.refuses("root held for another domain", &lab.sign(&unknown), UNKNOWN, "unknown.example").await;
    lab.refuses("root of its own", &own_root, UNKNOWN, "unknown.example").await;
    lab.refuses("unknown root of the same name", &impostor, UNTRUSTED, ORDER).await;
}

#[tokio::test]
async fn cert_02_a_federated_root_cannot_sign_a_local_identity() {
    let lab = Lab::new();
    let intermediate = lab.partner.intermediate(PARTNER);
    let pretender = lab.partner.intermediate(LOCAL);
    let direct = lab.partner.sign(&Leaf::good(ORDER), &[]);
    let below = intermediate.sign(&Leaf::good(ORDER), &[&intermediate]);
    let renamed = pretender.sign(&Leaf::good(ORDER), &[&pretender]);

    lab.refuses("by the root", &direct, UNTRUSTED, ORDER).await;
    lab.refuses("by an intermediate", &below, UNTRUSTED, ORDER).await;
    lab.refuses("by an intermediate that claims the local domain", &renamed, UNTRUSTED, ORDER).await;
}

#[tokio::test]
async fn cert_03_the_local_root_cannot_sign_a_federated_identity() {
    let lab = Lab::new();
    let foreign = Leaf::good("spiffe://partner.example/ns/shop/sa/order");

    lab.refuses("by the root", &lab.local.sign(&foreign, &[]), UNTRUSTED, "partner.example").await;
    lab.refuses("by the intermediate", &lab.sign(&foreign), UNTRUSTED, "partner.example").await;
}

#[tokio::test]
async fn cert_14_a_self_signed_leaf_and_a_root_as_leaf_are_refused() {
    let lab = Lab::new();
    let mut root_like = Leaf::good(ORDER).usage(Usage::Critical(vec![KeyUsagePurpose::DigitalSignature]));
    root_like.authority = true;

    lab.refuses("self-signed leaf", &Leaf::good(ORDER).self_signed(), UNTRUSTED, ORDER).await;
    lab.refuses("leaf and root in one", &root_like.self_signed(), NOT_AN_SVID, LEAF_IS_AUTHORITY).await;
    lab.refuses("the trusted root as leaf", &lab.local.as_leaf(), NOT_AN_SVID, "SPIFFE ID").await;
}

#[tokio::test]
async fn cert_14_nobody_vouches_for_himself() {
    super::judge(
        "own_signatures",
        &[
            ("self_signed", UNTRUSTED, ORDER),
            ("self_signed_beside_the_issuer", UNTRUSTED, ORDER),
            ("self_signed_with_the_name_of_the_root", UNTRUSTED, ORDER),
            ("root_as_leaf", NOT_AN_SVID, "SPIFFE ID"),
            ("issuer_as_leaf", NOT_AN_SVID, "SPIFFE ID"),
            ("leaf_and_root_in_one", NOT_AN_SVID, LEAF_IS_AUTHORITY),
        ],
    )
    .await;
}

#[tokio::test]
async fn cert_21_an_issuer_named_for_another_domain_or_with_a_path_is_refused() {
    let another = "names another SPIFFE ID";
    super::judge(
        "named_authorities",
        &[
            ("other_domain", BAD_AUTHORITY, another),
            ("with_a_path", BAD_AUTHORITY, another),
            ("upper_case", BAD_AUTHORITY, another),
            ("upper_case_domain", BAD_AUTHORITY, another),
            ("with_a_port", BAD_AUTHORITY, another),
            ("other_domain_further_up", BAD_AUTHORITY, another),
        ],
    )
    .await;
}

#[tokio::test]
async fn cert_26_a_server_with_the_svid_of_another_workload_is_refused_and_sees_no_certificate() {
    let lab = Lab::new();
    let ledger = "spiffe://corp.example/ns/shop/sa/ledger";
    let order_of_partner = "spiffe://partner.example/ns/shop/sa/order";
    for (case, other) in [
        (ledger, lab.sign(&Leaf::good(ledger))),
        (order_of_partner, lab.partner.sign(&Leaf::good(order_of_partner), &[])),
        (
            "spiffe://corp.example/ns/shop/sa/orde",
            lab.sign(&Leaf::good("spiffe://corp.example/ns/shop/sa/orde")),
        ),
        (
            "spiffe://corp.example/ns/shop/sa/ORDER",
            lab.sign(&Leaf::good("spiffe://corp.example/ns/shop/sa/ORDER")),
        ),
        ("spiffe://corp.example/node/order", lab.sign(&Leaf::good("spiffe://corp.example/node/order"))),
    ] {
        let refusal = lab.judge_callee(&other, exactly(ORDER)).await.expect_err(case);
        refusal.check(case, "unexpected_identity", case);
        assert!(!refusal.seen, "{case}: a wrong server never sees the certificate of the caller");
    }
}

#[tokio::test]
async fn cert_27_an_expired_root_of_the_bundle_vouches_for_nobody() {
    let lab = Lab::new();
    let expired = Authority::root_until(LOCAL, Offset::Ago(SECOND));
    let leaf = expired.sign(&Leaf::good(ORDER), &[]);

    trust(&lab, &[&lab.local, &expired]);
    lab.refuses("beside a valid one", &leaf, UNTRUSTED, ORDER).await;
    lab.accepts("under the valid one", &lab.sign(&Leaf::good(ORDER))).await;

    let far = Authority::root_until(PARTNER, Offset::Ago(HOUR));
    let mut bundles = TrustBundles::clone(&lab.bundles.load());
    let roots = vec![far.certificate().clone()];
    bundles.insert(TrustBundle::new(PARTNER.parse().unwrap(), roots, 3).unwrap()).unwrap();
    lab.bundles.publish(bundles);
    let partner = far.sign(&Leaf::good("spiffe://partner.example/ns/a/sa/b"), &[]);
    lab.refuses("the only one", &partner, "no_root", "partner.example").await;
}

#[tokio::test]
async fn cert_27_a_root_stops_at_its_end_to_the_second() {
    let mut lab = Lab::new();
    let ending = Authority::root_until(LOCAL, Offset::In(HOUR));
    let leaf = Leaf::good(ORDER).valid(Offset::Ago(HOUR), Offset::In(2 * HOUR));
    let leaf = ending.sign(&leaf, &[]);
    trust(&lab, &[&lab.local, &ending]);
    let end = lab.bundles.load().get(&LOCAL.parse().unwrap()).unwrap().validities()[1].not_after;

    lab.at(end - SECOND);
    lab.accepts("a second before its end", &leaf).await;
    lab.at(end);
    lab.refuses("at its end", &leaf, UNTRUSTED, ORDER).await;
}

#[tokio::test]
async fn cert_28_an_svid_whose_root_was_tainted_a_second_ago_is_accepted() {
    let lab = Lab::new();
    let next = Authority::root(LOCAL);
    let leaf = lab.sign(&Leaf::good(ORDER));
    let tainted = fingerprint_of(&lab, &[&lab.local]);
    publish(&lab, &[&lab.local, &next], tainted);
    tokio::time::sleep(SECOND).await;
    lab.accepts("as a caller", &leaf).await;
    assert!(lab.judge_callee(&leaf, exactly(ORDER)).await.is_ok(), "as a callee");
    let bundles = lab.bundles.load();
    let bundle = bundles.get(&LOCAL.parse().unwrap()).unwrap();
    assert!(bundle.taints(&leaf.chain), "and its holder is told to renew it");
    assert!(!bundle.taints(&next.sign(&Leaf::good(ORDER), &[]).chain));
}

#[tokio::test]
async fn cert_28_an_svid_whose_root_was_revoked_a_second_ago_is_refused_and_its_live_tunnels_are_closed() {
    let lab = Lab::new();
    let leaked = Authority::root(LOCAL);
    let (old, new) = (leaked.sign(&Leaf::good(ORDER), &[]), lab.sign(&Leaf::good(ORDER)));
    publish(&lab, &[&lab.local, &leaked], Vec::new());
    let victim = lab.victim();
    let mut live = Vec::new();
    for leaf in [&old, &new] {
        let call = dial(address(&victim), lab.attacker_config(leaf.presented()));
        let (dialled, accepted) = tokio::join!(call, accept(&victim));
        live.push((dialled.expect("it is in"), accepted.expect("it is in order")));
    }

    publish(&lab, &[&lab.local], Vec::new());
    let bundles = lab.bundles.load();
    let distrusted = |tunnel: &Tunnel| {
        still_trusted(&tunnel.peer_chain(), &bundles, Offset::Ago(Duration::ZERO).moment()).is_err()
    };
    victim.close_where(CloseCode::AuthorityRevoked, "its authority has left the bundle", distrusted);
    let closed = live[0].0.closed().await;
    assert!(closed.to_string().contains("its authority has left the bundle"), "{closed}");
    assert!(live[1].0.close_reason().is_none(), "what is under the other root goes on");

    tokio::time::sleep(SECOND).await;
    lab.refuses("as a caller", &old, UNTRUSTED, ORDER).await;
    assert!(lab.judge_callee(&old, exactly(ORDER)).await.is_err(), "as a callee");
    lab.accepts("under the other root", &new).await;
}

/// SHA-256 of the roots, as a bundle counts them.
fn fingerprint_of(lab: &Lab, roots: &[&Authority]) -> Vec<[u8; 32]> {
    publish(lab, roots, Vec::new());
    lab.bundles.load().get(&LOCAL.parse().expect("a trust domain")).expect("it was published").fingerprints()
}

/// The victim trusts exactly `roots` for its own domain from now on, some of which are tainted.
fn publish(lab: &Lab, roots: &[&Authority], tainted: Vec<[u8; 32]>) {
    let mut bundles = TrustBundles::clone(&lab.bundles.load());
    let roots = roots.iter().map(|root| root.certificate().clone()).collect();
    let bundle = TrustBundle::new(LOCAL.parse().expect("a trust domain"), roots, 3)
        .expect("roots in order")
        .with_tainted(tainted);
    bundles.insert(bundle).expect("no key is in two domains");
    lab.bundles.publish(bundles);
}

#[tokio::test]
async fn a_bundle_without_roots_ends_trust_at_once() {
    let corpus = Corpus::make("unknown_extensions");
    let lab = corpus.lab();
    let good = &corpus.case("not_critical").forged;
    lab.accepts("before", good).await;
    trust(&lab, &[&lab.local]);
    lab.refuses("after its root has left", good, UNTRUSTED, ORDER).await;
}

/// The victim trusts exactly `roots` for its own domain from now on.
fn trust(lab: &Lab, roots: &[&Authority]) {
    let mut bundles = TrustBundles::clone(&lab.bundles.load());
    let roots = roots.iter().map(|root| root.certificate().clone()).collect();
    let bundle = TrustBundle::new(LOCAL.parse().expect("a trust domain"), roots, 3);
    bundles.insert(bundle.expect("roots in order")).expect("no key is in two domains");
    lab.bundles.publish(bundles);
}

fn exactly(id: &str) -> ExpectedPeer {
    ExpectedPeer::Exactly(id.parse().expect("a SPIFFE ID"))
}
