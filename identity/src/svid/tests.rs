//! The profile, rule by rule (X5-01..13, CERT-05..11, 15, 22). What a bundle and a time add is tested in
//! `tls/tests`.

use aws_lc_rs::signature::{ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use proptest::prelude::*;
use rustls_pki_types::CertificateDer;

use super::*;
use crate::forge::{self, Authority, Forge, Key, at, domain, id, key_usage, names, purposes};
use crate::x509::der::tag;
use crate::x509::oid;
use crate::x509::public_key::PublicKey;

const ID: &str = "spiffe://td/ns/shop/sa/charge";
const DNS: u8 = 0x82;

#[test]
fn a_legal_leaf_is_an_svid() {
    let root = Authority::root("td");
    let svid = root.svid(ID);
    assert_eq!(svid.id(), &id(ID));
    assert_eq!(svid.validity(), Validity { not_before: at(-60), not_after: at(3600) });
    assert_eq!(svid.serial().to_string(), "2a");
    assert_eq!(svid.chain().len(), 1);
}

#[test]
fn x5_01_exactly_one_uri() {
    assert_eq!(judge(Forge::leaf(ID).without(oid::SUBJECT_ALT_NAME)), Err(SvidError::NoUri));
    assert_eq!(judge(Forge::leaf(ID).named(&[])), Err(SvidError::Malformed), "names, and none of them");
    assert_eq!(judge(Forge::leaf(ID).named(&[(DNS, b"td")])), Err(SvidError::NoUri));
    assert_eq!(judge(uris(&[ID.as_bytes(), b"spiffe://td/b"])), Err(SvidError::SeveralUris(2)));
}

#[test]
fn x5_02_names_of_other_kinds_do_not_matter() {
    let address: &[u8] = &[127, 0, 0, 1];
    let others = Forge::leaf(ID).named(&[
        (DNS, b"spiffe://td/other"),
        (0x81, b"a@b.example"),
        (tag::URI, ID.as_bytes()),
        (0x87, address),
        (0xa0, &[0x06, 0x01, 0x2a, 0xa0, 0x02, 0x05, 0x00]),
    ]);
    assert_eq!(judge(others), Ok(id(ID)));
}

#[test]
fn x5_04_the_uri_must_be_a_spiffe_id() {
    for uri in ["https://td/a", "spiffe:/td/a", "td/a", ""] {
        assert_eq!(judge(uris(&[uri.as_bytes()])), Err(SvidError::Id(InvalidSpiffeId::Scheme)), "{uri}");
    }
}

#[test]
fn x5_05_and_cert_10_the_id_must_have_a_path() {
    assert_eq!(judge(uris(&[b"spiffe://td"])), Err(SvidError::Id(InvalidSpiffeId::NoPath)));
    assert_eq!(judge(uris(&[b"spiffe://td/"])), Err(SvidError::Id(InvalidSpiffeId::EmptySegment)));
}

#[test]
fn x5_06_a_leaf_is_no_authority() {
    let authority = |value| judge(Forge::leaf(ID).with(oid::BASIC_CONSTRAINTS, true, value));
    assert_eq!(authority(forge::basic_constraints(true, None)), Err(SvidError::LeafIsAuthority));
    assert_eq!(authority(forge::basic_constraints(true, Some(0))), Err(SvidError::LeafIsAuthority));
    assert_eq!(judge(Forge::leaf(ID).without(oid::BASIC_CONSTRAINTS)), Ok(id(ID)));
    let explicit_no = der::sequence(&[&der::element(tag::BOOLEAN, &[&[0]])]);
    assert_eq!(authority(explicit_no), Ok(id(ID)));
}

#[test]
fn x5_07_key_usage_is_strict() {
    let usage = |critical, bits| judge(Forge::leaf(ID).with(oid::KEY_USAGE, critical, key_usage(bits)));
    let fault = |fault| Err(SvidError::KeyUsage(fault));
    assert_eq!(judge(Forge::leaf(ID).without(oid::KEY_USAGE)), fault(KeyUsageFault::Absent));
    assert_eq!(usage(false, 0x80), fault(KeyUsageFault::NotCritical));
    assert_eq!(usage(true, 0x20), fault(KeyUsageFault::NoDigitalSignature));
    assert_eq!(usage(true, 0x00), Err(SvidError::Malformed), "a usage, and none of them");
    assert_eq!(usage(true, 0x84), fault(KeyUsageFault::Signing));
    assert_eq!(usage(true, 0x82), fault(KeyUsageFault::Signing));
    assert_eq!(usage(true, 0xa8), Ok(id(ID)));
    let empty = Forge::leaf(ID).with(oid::KEY_USAGE, true, der::element(tag::BIT_STRING, &[]));
    assert_eq!(judge(empty), Err(SvidError::Malformed));
}

#[test]
fn x5_09_purposes_are_both_or_not_stated() {
    let with = |oids: &[&[u8]]| judge(Forge::leaf(ID).with(oid::EXTENDED_KEY_USAGE, false, purposes(oids)));
    assert_eq!(with(&[oid::CLIENT_AUTH, oid::SERVER_AUTH]), Ok(id(ID)));
    assert_eq!(with(&[oid::SERVER_AUTH]), Err(SvidError::ExtendedKeyUsage));
    assert_eq!(with(&[oid::CLIENT_AUTH]), Err(SvidError::ExtendedKeyUsage));
    assert_eq!(with(&[]), Err(SvidError::Malformed), "purposes, and none of them");
    assert_eq!(judge(Forge::leaf(ID).without(oid::EXTENDED_KEY_USAGE)), Ok(id(ID)));
}

#[test]
fn x5_11_what_signs_must_be_an_authority() {
    let cases = [
        Forge::authority("i", "spiffe://td").without(oid::BASIC_CONSTRAINTS),
        Forge::authority("i", "spiffe://td").without(oid::KEY_USAGE),
        Forge::authority("i", "spiffe://td").with(oid::KEY_USAGE, true, key_usage(0x82)),
    ];
    for forge in cases {
        assert_eq!(judge_authority(forge), Err(SvidError::NotAnAuthority));
    }
    assert_eq!(judge_authority(Forge::authority("i", "spiffe://td")), Ok(()));
}

#[test]
fn x5_12_and_cert_14_a_root_is_no_leaf() {
    let root = Authority::root("td");
    assert!(Svid::parse(vec![root.certificate.clone()], root.key.pkcs8()).is_err());
    let with_path =
        Authority::self_signed(Forge::authority("r", ID).with(oid::KEY_USAGE, true, key_usage(0x84)));
    let parsed = Svid::parse(vec![with_path.certificate.clone()], with_path.key.pkcs8());
    assert_eq!(parsed.unwrap_err(), SvidError::LeafIsAuthority);
}

#[test]
fn x5_13_and_cert_21_an_authority_names_its_trust_domain_or_nothing() {
    for uri in ["spiffe://td", "spiffe://td/", "https://pki.example/ca"] {
        assert_eq!(judge_authority(Forge::authority("i", uri)), Ok(()), "{uri}");
    }
    assert_eq!(judge_authority(Forge::authority("i", "").without(oid::SUBJECT_ALT_NAME)), Ok(()));
    for uri in
        ["spiffe://td/a", "spiffe://td//", "spiffe://other", "spiffe://other/", "SPIFFE://td", "spiffe:td"]
    {
        assert_eq!(judge_authority(Forge::authority("i", uri)), Err(SvidError::AuthorityId), "{uri}");
    }
    let two = Forge::authority("i", "").named(&[(tag::URI, b"spiffe://td"), (tag::URI, b"spiffe://td")]);
    assert_eq!(judge_authority(two), Err(SvidError::AuthorityId));
}

#[test]
fn cert_05_an_id_that_is_not_a_uri_name_is_no_identity() {
    let in_subject = Forge { subject: forge::name(Some(ID)), ..Forge::leaf(ID) };
    assert_eq!(judge(in_subject.without(oid::SUBJECT_ALT_NAME)), Err(SvidError::NoUri));
}

#[test]
fn cert_06_a_second_uri_of_any_kind_is_counted() {
    let long = [b"spiffe://td/".as_slice(), &[b'a'; 2100]].concat();
    let seconds: [(&str, &[u8]); 7] = [
        ("valid", b"spiffe://td/b"),
        ("identical", ID.as_bytes()),
        ("https", b"https://example.com/"),
        ("not UTF-8", &[0xff, 0xfe, 0x80]),
        ("longer than 2048 bytes", &long),
        ("empty", b""),
        ("not a URI", b"::"),
    ];
    for (case, second) in seconds {
        for order in [[ID.as_bytes(), second], [second, ID.as_bytes()]] {
            assert_eq!(judge(uris(&order)), Err(SvidError::SeveralUris(2)), "{case}");
        }
    }
}

#[test]
fn cert_07_names_must_be_strict_der_and_stand_once() {
    let value = names(&[(tag::URI, ID.as_bytes())]);
    let twice = Forge::leaf(ID).adding(oid::SUBJECT_ALT_NAME, false, value.clone());
    let trailing = Forge::leaf(ID).with(oid::SUBJECT_ALT_NAME, true, [value.as_slice(), &[0]].concat());
    let mut indefinite = vec![tag::SEQUENCE, 0x80];
    indefinite.extend(der::element(tag::URI, &[ID.as_bytes()]));
    indefinite.extend([0, 0]);
    let indefinite = Forge::leaf(ID).with(oid::SUBJECT_ALT_NAME, true, indefinite);
    let constructed = Forge::leaf(ID).named(&[(tag::URI, ID.as_bytes()), (0xa6, b"")]);
    let unknown_kind = Forge::leaf(ID).named(&[(tag::URI, ID.as_bytes()), (0x89, b"")]);
    for forge in [twice, trailing, indefinite, constructed, unknown_kind] {
        assert_eq!(judge(forge), Err(SvidError::Malformed));
    }
}

#[test]
fn cert_08_ids_that_break_the_grammar_are_refused() {
    let long = format!("spiffe://td/{}", "a".repeat(2049 - "spiffe://td/".len()));
    let cases = [
        "spiffe://td/a\0",
        "Spiffe://td/a",
        "spiffe://TD/a",
        "spiffe://td:443/a",
        "spiffe://u@td/a",
        "spiffe://td/a?b",
        "spiffe://td/a#b",
        "spiffe://td/%2e",
        "spiffe://td/..",
        "spiffe://td/a/",
        "spiffe://td/ä",
        &long,
    ];
    for uri in cases {
        assert!(matches!(judge(uris(&[uri.as_bytes()])), Err(SvidError::Id(_))), "{uri:?}");
    }
    assert_eq!(judge(uris(&[b"spiffe://td/\xff"])), Err(SvidError::Id(InvalidSpiffeId::NotUtf8)));
}

#[test]
fn cert_09_an_id_in_a_name_of_another_kind_is_no_identity() {
    for kind in [DNS, 0x81] {
        assert_eq!(judge(Forge::leaf(ID).named(&[(kind, ID.as_bytes())])), Err(SvidError::NoUri));
    }
}

#[test]
fn cert_15_keys_outside_the_list_are_refused() {
    let rsa = |bits: usize, exponent: &[u8]| {
        let modulus = [vec![0, 0x80], vec![1; bits / 8 - 1]].concat();
        let key = der::sequence(&[
            &der::element(tag::INTEGER, &[&modulus]),
            &der::element(tag::INTEGER, &[exponent]),
        ]);
        let kind = der::sequence(&[&der::element(tag::OID, &[oid::RSA]), &der::element(tag::NULL, &[])]);
        let forge = Forge { spki: der::sequence(&[&kind, &der::bit_string(&key)]), ..Forge::leaf(ID) };
        judge(forge)
    };
    for bits in [512, 1024, 1536, 2040, 4104, 16_384] {
        assert_eq!(rsa(bits, &[1, 0, 1]), Err(SvidError::PublicKey(KeyError::Kind)), "{bits}");
    }
    for exponent in [&[1][..], &[3], &[1, 0, 0]] {
        assert_eq!(rsa(2048, exponent), Err(SvidError::PublicKey(KeyError::Kind)), "{exponent:?}");
    }
    for bits in [2048, 3072, 4096] {
        assert_eq!(rsa(bits, &[1, 0, 1]), Ok(id(ID)), "{bits}");
    }
    const P224: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x21];
    const SECP256K1: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x0a];
    for curve in [P224, SECP256K1] {
        assert_eq!(judge_curve(curve, &[4; 65]), Err(SvidError::PublicKey(KeyError::Kind)));
    }
    assert_eq!(judge_curve(oid::P256, &[2; 33]), Err(SvidError::PublicKey(KeyError::Malformed)));
}

#[test]
fn cert_16_keys_of_the_list_are_accepted() {
    let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).unwrap();
    assert_eq!(judge_curve(oid::P384, p384.public_key().as_ref()), Ok(id(ID)));
    assert_eq!(
        judge_curve(oid::P384, &[4; 97]),
        Err(SvidError::PublicKey(KeyError::Malformed)),
        "off the curve"
    );
    let kind = der::sequence(&[&der::element(tag::OID, &[oid::ED25519])]);
    let spki = der::sequence(&[&kind, &der::bit_string(&[7; 32])]);
    assert_eq!(PublicKey::parse(&spki), Ok(PublicKey::Ed25519(&[7; 32])));
    assert_eq!(judge(Forge { spki, ..Forge::leaf(ID) }), Ok(id(ID)));
}

#[test]
fn cert_20_an_unknown_critical_extension_is_refused() {
    let odd: &[u8] = &[0x2a, 0x03, 0x04];
    assert_eq!(judge(Forge::leaf(ID).with(odd, true, vec![5, 0])), Err(SvidError::UnknownCriticalExtension));
    assert_eq!(judge(Forge::leaf(ID).with(odd, false, vec![5, 0])), Ok(id(ID)));
}

#[test]
fn cert_22_serials_are_positive_and_at_most_20_bytes() {
    let serial = |content: &[u8]| judge(Forge { serial: content.to_vec(), ..Forge::leaf(ID) });
    for content in [&[0][..], &[0x80], &[0xff, 0x01], &[0, 1], &[], &[1; 21]] {
        assert_eq!(serial(content), Err(SvidError::Serial), "{content:02x?}");
    }
    for content in [&[1][..], &[0, 0x80], &[0x7f; 20]] {
        assert_eq!(serial(content), Ok(id(ID)), "{content:02x?}");
    }
}

#[test]
fn cert_25_older_versions_are_refused() {
    for version in [None, Some(0), Some(1), Some(3)] {
        let forge = Forge { version, ..Forge::leaf(ID) };
        assert_eq!(judge(forge), Err(SvidError::Malformed), "{version:?}");
    }
}

#[test]
fn an_empty_validity_is_refused() {
    assert_eq!(judge(Forge::leaf(ID).valid(at(5), at(5))), Err(SvidError::EmptyValidity));
    assert_eq!(judge(Forge::leaf(ID).valid(at(5), at(4))), Err(SvidError::EmptyValidity));
}

#[test]
fn the_key_must_belong_to_the_leaf() {
    let root = Authority::root("td");
    let leaf = root.child(Forge::leaf(ID));
    let parsed = Svid::parse(vec![leaf.certificate.clone()], Key::new().pkcs8());
    assert_eq!(parsed.unwrap_err(), SvidError::KeyMismatch);
    let broken = PrivatePkcs8KeyDer::from(vec![1, 2, 3]).into();
    assert_eq!(Svid::parse(vec![leaf.certificate], broken).unwrap_err(), SvidError::PrivateKey);
    assert_eq!(Svid::parse(Vec::new(), Key::new().pkcs8()).unwrap_err(), SvidError::Empty);
}

#[test]
fn pem_keeps_chain_and_key() {
    let root = Authority::root("td");
    let intermediate = root.child(Forge::authority("i", "spiffe://td"));
    let leaf = intermediate.child(Forge::leaf(ID));
    let chain = vec![leaf.certificate.clone(), intermediate.certificate.clone()];
    let svid = Svid::parse(chain, leaf.key.pkcs8()).unwrap();
    let read = Svid::from_pem(&svid.to_pem()).unwrap();
    assert_eq!(read.chain(), svid.chain());
    assert_eq!(read.key().secret_der(), svid.key().secret_der());
    assert!(svid.to_pem().lines().all(|line| line.len() <= 64));
    for text in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert_eq!(Svid::from_pem(text).unwrap_err(), SvidError::Pem);
    }
}

#[test]
fn debug_shows_no_key() {
    let svid = Authority::root("td").svid(ID);
    let shown = format!("{svid:?}");
    assert!(shown.contains(ID) && !shown.contains("key"), "{shown}");
}

#[test]
fn serials_print_as_they_are_read() {
    for text in ["2a", "00", "", "0", "xyz", "+1", &"01".repeat(21)] {
        assert_eq!(text.parse::<Serial>().is_ok(), text == "2a", "{text}");
    }
    let serial = Serial::from_integer(&[0, 0xab, 0x01]).unwrap();
    assert_eq!(serial.to_string(), "ab01");
    assert_eq!("ab01".parse(), Ok(serial));
}

#[test]
fn validity_ends_just_before_not_after() {
    let validity = Validity { not_before: at(0), not_after: at(10) };
    let inside: Vec<bool> = [-1, 0, 9, 10, 11].map(|second| validity.contains(at(second))).to_vec();
    assert_eq!(inside, [false, true, true, false, false]);
    assert_eq!(validity.remaining(at(11)), Duration::ZERO);
}

proptest! {
    /// CERT-29 in small: where this reader and x509-parser both read a broken certificate, they see the
    /// same URIs, and no byte makes this reader panic.
    #[test]
    fn cert_29_two_readers_see_the_same_names(flips in proptest::collection::vec((0_usize..600, any::<u8>()), 1..4)) {
        let mut bytes = LEAF.with(|leaf| leaf.to_vec());
        for (position, value) in flips {
            let position = position % bytes.len();
            bytes[position] = value;
        }
        let Ok(own) = Certificate::parse(&bytes) else { return Ok(()) };
        let Ok(Some(own)) = own.alternative_names() else { return Ok(()) };
        let Ok((_, theirs)) = x509_parser::parse_x509_certificate(&bytes) else { return Ok(()) };
        let Ok(Some(theirs)) = theirs.subject_alternative_name() else { return Ok(()) };
        let mut uris = Vec::new();
        for name in &theirs.value.general_names {
            if let x509_parser::extensions::GeneralName::URI(text) = name {
                uris.push(text.as_bytes());
            }
        }
        // x509-parser passes over a URI that is not text; this reader must not.
        prop_assert!(own.uris.len() >= uris.len());
        prop_assert!(uris.iter().all(|uri| own.uris.contains(uri)));
    }
}

thread_local! {
    static LEAF: CertificateDer<'static> = Forge::leaf(ID).signed_by(&Authority::root("td"));
}

fn judge(forge: Forge) -> Result<SpiffeId, SvidError> {
    let certificate = forge.signed_by(&Authority::root("td"));
    let leaf = Certificate::parse(&certificate)?;
    let id = profile::check_leaf(&leaf)?;
    profile::check_leaf_purposes(&leaf)?;
    Ok(id)
}

fn judge_authority(forge: Forge) -> Result<(), SvidError> {
    let certificate = forge.signed_by(&Authority::root("td"));
    profile::check_authority(&Certificate::parse(&certificate)?, &domain("td"))
}

fn judge_curve(curve: &[u8], point: &[u8]) -> Result<SpiffeId, SvidError> {
    let kind =
        der::sequence(&[&der::element(tag::OID, &[oid::EC_PUBLIC_KEY]), &der::element(tag::OID, &[curve])]);
    judge(Forge { spki: der::sequence(&[&kind, &der::bit_string(point)]), ..Forge::leaf(ID) })
}

fn uris(contents: &[&[u8]]) -> Forge {
    let names: Vec<(u8, &[u8])> = contents.iter().map(|content| (tag::URI, *content)).collect();
    Forge::leaf(ID).named(&names)
}
