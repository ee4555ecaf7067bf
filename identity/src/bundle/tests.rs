//! Bundles and their JWK Set form (X5-18..20, BU-01..09, FED-01, FED-02).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::forge::{Authority, Forge, at, domain};
use crate::svid::KeyError;

#[test]
fn a_bundle_survives_its_document() {
    let (one, two) = (Authority::root("td"), Authority::root("td"));
    let roots = vec![one.certificate.clone(), two.certificate.clone()];
    let bundle =
        TrustBundle::new(domain("td"), roots, u64::MAX).unwrap().with_refresh_hint(Duration::from_secs(300));
    assert_eq!(TrustBundle::from_jwks(domain("td"), bundle.to_jwks().as_bytes()), Ok(bundle));
}

#[test]
fn x5_18_a_published_key_has_its_use_one_certificate_and_no_kid() {
    let root = Authority::root("td");
    let document: Value = serde_json::from_str(&root.bundle("td").to_jwks()).unwrap();
    let key = &document["keys"][0];
    assert_eq!((key["use"].as_str(), key["kty"].as_str()), (Some("x509-svid"), Some("EC")));
    assert_eq!(key.get("kid"), None);
    assert_eq!(key["x5c"], json!([STANDARD.encode(&root.certificate)]));
    assert_eq!(document["spiffe_sequence"], 1);
}

#[test]
fn x5_19_keys_without_certificate_are_passed_over_and_only_the_first_counts() {
    let (one, two) = (Authority::root("td"), Authority::root("td"));
    let mut without = key(&one);
    without.as_object_mut().unwrap().remove("x5c");
    let mut empty = key(&one);
    empty["x5c"] = json!([]);
    let mut several = key(&two);
    several["x5c"].as_array_mut().unwrap().push(json!("not even base64"));
    let bundle = read(&json!({"keys": [without, empty, several]})).unwrap();
    assert_eq!(bundle.roots().collect::<Vec<_>>(), [&two.certificate]);
}

#[test]
fn x5_19_the_roots_are_the_union_and_equal_ones_count_once() {
    let (one, two) = (Authority::root("td"), Authority::root("td"));
    let bundle = read(&json!({"keys": [key(&one), key(&two), key(&one)]})).unwrap();
    assert_eq!(bundle.roots().len(), 2);
    assert_eq!(bundle.fingerprints(), [fingerprint(&one.certificate), fingerprint(&two.certificate)]);
}

#[test]
fn x5_20_without_an_x509_key_there_is_no_root() {
    let mut jwt = key(&Authority::root("td"));
    jwt["use"] = json!("jwt-svid");
    assert_eq!(read(&json!({"keys": [jwt]})).unwrap().roots().len(), 0);
}

#[test]
fn bu_01_keys_must_be_there_and_may_be_empty() {
    assert!(read(&json!({"keys": []})).is_ok());
    for document in [json!({}), json!({"keys": null}), json!({"keys": {}}), json!([]), json!("keys")] {
        assert!(matches!(read(&document), Err(BundleError::NotJwks { .. })), "{document}");
    }
}

#[test]
fn bu_02_an_empty_bundle_has_no_anchor() {
    assert!(read(&json!({"keys": []})).unwrap().anchors(at(0)).is_empty());
}

#[test]
fn bu_03_the_sequence_has_64_bits() {
    for (text, expected) in [
        ("9007199254740993", Some(9_007_199_254_740_993)),
        ("9223372036854775807", Some(9_223_372_036_854_775_807)),
        ("18446744073709551615", Some(u64::MAX)),
        ("0", Some(0)),
        ("18446744073709551616", None),
        ("-1", None),
        ("1.5", None),
        ("\"1\"", None),
    ] {
        let document = format!(r#"{{"keys": [], "spiffe_sequence": {text}}}"#);
        let read = TrustBundle::from_jwks(domain("td"), document.as_bytes());
        assert_eq!(read.ok().map(|bundle| bundle.sequence()), expected, "{text}");
    }
    assert_eq!(read(&json!({"keys": []})).unwrap().sequence(), 0);
}

#[test]
fn bu_04_a_refresh_hint_is_only_a_hint() {
    let hint = |text: &str| {
        let document = format!(r#"{{"keys": [], "spiffe_refresh_hint": {text}}}"#);
        TrustBundle::from_jwks(domain("td"), document.as_bytes()).unwrap().refresh_hint()
    };
    assert_eq!(hint("300"), Some(Duration::from_secs(300)));
    for text in ["0", "-5", "59"] {
        assert_eq!(hint(text), Some(MIN_REFRESH_HINT), "{text}");
    }
    assert_eq!(hint("18446744073709551615"), Some(MAX_REFRESH_HINT));
    for text in ["1e30", "18446744073709551616", "1.5"] {
        assert_eq!(hint(text), Some(MIN_REFRESH_HINT), "{text}");
    }
    for text in ["null", "\"300\"", "[]"] {
        assert_eq!(hint(text), None, "{text}");
    }
}

#[test]
fn bu_05_a_key_of_unknown_kind_or_use_is_passed_over_alone() {
    let root = Authority::root("td");
    let broken = json!({"use": "x509-svid", "x5c": ["!"]});
    let mut unknown_kind = broken.clone();
    unknown_kind["kty"] = json!("AKP");
    let mut no_use = key(&root);
    no_use.as_object_mut().unwrap().remove("use");
    let mut unknown_use = key(&root);
    unknown_use["use"] = json!("sig");
    let document = json!({"keys": [broken, unknown_kind, no_use, unknown_use, key(&root)]});
    assert_eq!(read(&document).unwrap().roots().len(), 1);
}

#[test]
fn bu_06_unknown_parameters_are_allowed() {
    let mut own = key(&Authority::root("td"));
    own["kid"] = json!("tolerated when read");
    own["more"] = json!({"a": 1});
    assert_eq!(read(&json!({"keys": [own], "more": [1, 2]})).unwrap().roots().len(), 1);
}

#[test]
fn bu_07_the_trust_domain_is_what_the_reader_says() {
    let document = Authority::root("td").bundle("td").to_jwks();
    let bundle = TrustBundle::from_jwks(domain("friend"), document.as_bytes()).unwrap();
    assert_eq!(bundle.trust_domain(), &domain("friend"));
}

#[test]
fn bu_09_and_fed_02_one_key_does_not_vouch_for_two_domains() {
    let root = Authority::root("td");
    let mut bundles = TrustBundles::from(root.bundle("td"));
    let refused = bundles.insert(root.bundle("friend"));
    assert_eq!(refused, Err(BundleError::SharedKey { domain: domain("friend"), other: domain("td") }));
    // The same key under another certificate is the same key.
    let again =
        Forge { spki: root.key.spki(), ..Forge::authority("again", "spiffe://friend") }.signed_by(&root);
    assert!(bundles.insert(TrustBundle::new(domain("friend"), vec![again], 1).unwrap()).is_err());
    assert_eq!(bundles.get(&domain("friend")), None);
    assert!(bundles.insert(root.bundle("td")).is_ok(), "its own domain may replace it");
    assert!(bundles.insert(Authority::root("friend").bundle("friend")).is_ok());
    assert_eq!(bundles.iter().count(), 2);
    assert!(bundles.remove(&domain("friend")).is_some());
}

#[test]
fn fed_01_what_is_no_document_or_too_much_is_refused() {
    for text in ["", "{", "keys", "{\"keys\": [}", "\u{0}", "{\"keys\": []} {}"] {
        assert!(matches!(raw(text), Err(BundleError::NotJwks { .. })), "{text}");
    }
    let many = |count: usize| json!({"keys": vec![json!({"kty": "EC"}); count]});
    assert!(read(&many(MAX_BUNDLE_KEYS)).is_ok());
    assert_eq!(read(&many(MAX_BUNDLE_KEYS + 1)), Err(BundleError::TooManyKeys(65)));
    let padded = |bytes: usize| format!("{}{}", r#"{"keys": []}"#, " ".repeat(bytes - 12));
    assert!(raw(&padded(MAX_BUNDLE_BYTES)).is_ok());
    assert_eq!(raw(&padded(MAX_BUNDLE_BYTES + 1)), Err(BundleError::TooLong(MAX_BUNDLE_BYTES + 1)));
}

#[test]
fn fed_01_a_parameter_that_stands_twice_is_refused() {
    let own = key(&Authority::root("td")).to_string();
    for text in [
        r#"{"keys": [], "keys": []}"#.to_owned(),
        r#"{"keys": [], "spiffe_sequence": 1, "spiffe_sequence": 2}"#.to_owned(),
        format!(r#"{{"keys": [{}]}}"#, own.replacen('{', r#"{"use": "jwt-svid","#, 1)),
    ] {
        assert!(matches!(raw(&text), Err(BundleError::NotJwks { .. })), "{text}");
    }
}

#[test]
fn fed_01_a_broken_certificate_or_one_of_another_key_refuses_the_document() {
    let (one, two) = (Authority::root("td"), Authority::root("td"));
    let with = |name: &str, value: Value| {
        let mut own = key(&one);
        own[name] = value;
        read(&json!({"keys": [key(&two), own]}))
    };
    assert_eq!(with("x5c", json!(["!"])), Err(BundleError::Encoding(1)));
    assert_eq!(with("x5c", json!([STANDARD.encode(b"no DER")])), Err(BundleError::Encoding(1)));
    assert_eq!(with("x", key(&two)["x"].clone()), Err(BundleError::KeyMismatch(1)));
    assert_eq!(with("crv", json!("P-384")), Err(BundleError::KeyMismatch(1)));
    assert_eq!(with("kty", json!("RSA")), Err(BundleError::KeyMismatch(1)));
    assert_eq!(with("n", json!("AQAB")), Err(BundleError::KeyMismatch(1)));
    let leaf = STANDARD.encode(Forge::leaf("spiffe://td/a").signed_by(&one));
    let no_authority = read(&json!({"keys": [{"kty": "EC", "use": "x509-svid", "x5c": [leaf]}]}));
    assert_eq!(no_authority, Err(BundleError::Root { index: 0, source: SvidError::NotAnAuthority }));
}

#[test]
fn roots_may_be_named_as_they_like_but_must_sign_with_a_known_key() {
    let odd = Authority::self_signed(Forge::authority("r", "spiffe://example.com/"));
    assert!(TrustBundle::new(domain("td"), vec![odd.certificate], 1).is_ok());
    let malformed = TrustBundle::new(domain("td"), vec![vec![1, 2, 3].into()], 1);
    assert_eq!(malformed, Err(BundleError::Root { index: 0, source: SvidError::Malformed }));
    let root = Authority::root("td");
    let p521 = Forge { spki: p521_key(), ..Forge::authority("r", "spiffe://td") }.signed_by(&root);
    let refused = TrustBundle::new(domain("td"), vec![p521], 1);
    let source = SvidError::PublicKey(KeyError::Kind);
    assert_eq!(refused, Err(BundleError::Root { index: 0, source }));
}

#[test]
fn cert_27_anchors_are_the_roots_that_have_not_expired() {
    let short = Authority::self_signed(Forge::authority("r", "spiffe://td").valid(at(-10), at(10)));
    let long = Authority::root("td");
    let roots = vec![short.certificate.clone(), long.certificate.clone()];
    let bundle = TrustBundle::new(domain("td"), roots, 1).unwrap();
    let anchors = [at(9), at(10), at(89_999), at(90_000)].map(|now| bundle.anchors(now).len());
    assert_eq!(anchors, [2, 1, 1, 0]);
    assert_eq!(bundle.last_expiry(), Some(at(90_000)));
}

#[test]
fn keys_of_all_kinds_keep_their_parameters() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&rcgen::KeyPair::generate_for(algorithm).unwrap()).unwrap();
        let bundle = TrustBundle::new(domain("td"), vec![root.into()], 3).unwrap();
        let document = bundle.to_jwks();
        assert_eq!(TrustBundle::from_jwks(domain("td"), document.as_bytes()), Ok(bundle), "{document}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_bundle_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = TrustBundle::from_jwks(domain("td"), &bytes);
    }
}

fn key(root: &Authority) -> Value {
    let document: Value = serde_json::from_str(&root.bundle("td").to_jwks()).unwrap();
    document["keys"][0].clone()
}

fn read(document: &Value) -> Result<TrustBundle, BundleError> {
    raw(&document.to_string())
}

fn raw(text: &str) -> Result<TrustBundle, BundleError> {
    TrustBundle::from_jwks(domain("td"), text.as_bytes())
}

fn p521_key() -> Vec<u8> {
    use rcgen::PublicKeyData as _;
    rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap().subject_public_key_info()
}
