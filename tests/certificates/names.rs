//! Names that are no identity (CERT-05 to CERT-10).

use weft_tests::forge::{Leaf, Name};
use weft_tests::handshake::{CHARGE, Lab, ORDER};

use super::{MALFORMED, NOT_AN_SVID, judge, judge_alike};

const NO_URI: &str = "the leaf names no URI";
const SEVERAL_URIS: &str = "the leaf names 2 URIs";
const NO_ID: &str = "not a SPIFFE ID";

#[tokio::test]
async fn cert_05_a_certificate_without_a_uri_san_is_refused() {
    let lab = Lab::new();
    let mut only_common_name = Leaf::good(ORDER).names(&[]);
    only_common_name.common_name = Some(ORDER.to_owned());
    let dns = Leaf::good(ORDER).names(&[Name::Dns(ORDER.into())]);

    lab.refuses("no SAN", &lab.sign(&Leaf::good(ORDER).names(&[])), NOT_AN_SVID, NO_URI).await;
    lab.refuses("SAN without URI", &lab.sign(&dns), NOT_AN_SVID, NO_URI).await;
    lab.refuses("URI in the common name", &lab.sign(&only_common_name), NOT_AN_SVID, NO_URI).await;
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
            lab.refuses(&format!("{case}, swapped: {swapped}"), &forged, NOT_AN_SVID, SEVERAL_URIS).await;
        }
    }
}

#[tokio::test]
async fn cert_06_two_uri_sans_by_another_hand_are_refused() {
    judge_alike("several_uris", NOT_AN_SVID, SEVERAL_URIS).await;
}

#[tokio::test]
async fn cert_07_names_that_stand_twice_or_are_not_strict_der_are_refused() {
    judge(
        "san_shapes",
        &[
            ("two_extensions", NOT_AN_SVID, MALFORMED),
            ("the_same_extension_twice", NOT_AN_SVID, MALFORMED),
            ("two_extensions_one_not_critical", NOT_AN_SVID, MALFORMED),
            ("bytes_behind_the_names", NOT_AN_SVID, MALFORMED),
            ("a_byte_behind_the_names", NOT_AN_SVID, MALFORMED),
            ("bytes_among_the_names", NOT_AN_SVID, MALFORMED),
            ("names_of_indefinite_length", NOT_AN_SVID, MALFORMED),
            ("names_of_padded_length", NOT_AN_SVID, MALFORMED),
            ("a_constructed_uri", NOT_AN_SVID, MALFORMED),
            ("names_that_are_a_set", NOT_AN_SVID, MALFORMED),
            ("no_names", NOT_AN_SVID, MALFORMED),
            ("an_empty_value", NOT_AN_SVID, MALFORMED),
        ],
    )
    .await;
}

#[tokio::test]
async fn cert_08_and_cert_10_uris_that_break_the_grammar_are_refused() {
    judge_alike("ids", NOT_AN_SVID, NO_ID).await;
}

#[tokio::test]
async fn cert_09_and_cert_05_an_id_in_a_name_of_another_kind_is_no_identity() {
    judge_alike("other_kinds", NOT_AN_SVID, NO_URI).await;
}

#[tokio::test]
async fn cert_10_a_leaf_with_the_id_of_a_trust_domain_is_refused() {
    let lab = Lab::new();
    lab.refuses("no path", &lab.sign(&Leaf::good("spiffe://corp.example")), NOT_AN_SVID, NO_ID).await;
}
