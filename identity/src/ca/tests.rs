//! The authority: what it signs (X5 as issuer), what it refuses, how it ages.

use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::*;
use crate::bundle::{TrustBundle, TrustBundles};
use crate::csr::SigningRequest;
use crate::forge::{at, domain, id};
use crate::svid::Svid;
use crate::tls::{PeerRole, VerifyError, verify_chain};
use crate::x509::der::{self, tag};

const ID: &str = "spiffe://td/ns/shop/sa/charge";
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

#[test]
fn a_leaf_is_an_svid_that_leads_to_the_published_root() {
    let mut ca = new_ca();
    let (key, issued) = issue(&mut ca, at(0));
    assert_eq!(issued.validity, Validity { not_before: at(-60), not_after: at(24 * 3600) });
    assert_eq!(issued.chain.len(), 2);
    let svid = Svid::parse(issued.chain.clone(), key).unwrap();
    assert_eq!((svid.id(), svid.serial()), (&id(ID), &issued.serial));
    for role in [PeerRole::Server, PeerRole::Client] {
        assert_eq!(verify_chain(&bundles(&ca), &issued.chain, role, at(0)).unwrap().id, id(ID));
    }
}

#[test]
fn clk_05_certificates_are_issued_and_judged_across_2038_and_2050() {
    // The end of 31-bit seconds; the change from UTCTime to GeneralizedTime, within a leaf and within a root.
    for seconds in [2_147_483_648 - 3600, 2_524_608_000 - 3600, 2_524_608_000 + 3600, 4_102_444_800] {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let mut ca = CertificateAuthority::create(&domain("td"), "one", now).unwrap();
        let (_, issued) = issue(&mut ca, now);
        assert_eq!(
            issued.validity,
            Validity { not_before: now - BACKDATE, not_after: now + DAY },
            "{seconds}"
        );
        let judge = |now| verify_chain(&bundles(&ca), &issued.chain, PeerRole::Server, now);
        for valid in [now, now + HOUR * 2, now + DAY - Duration::from_secs(1)] {
            assert_eq!(judge(valid).unwrap().not_after, now + DAY, "{seconds}");
        }
        assert!(matches!(judge(now + DAY), Err(VerifyError::Expired { .. })), "{seconds}");
        let kept = ca.to_parts();
        let loaded = CertificateAuthority::load(&kept, CaSettings::default()).unwrap();
        assert_eq!(loaded.root_validity(), ca.root_validity(), "{seconds}");
    }
}

#[test]
fn x5_03_the_subject_is_empty_and_the_names_are_critical() {
    let (_, issued) = issue(&mut new_ca(), at(0));
    let leaf = Certificate::parse(&issued.chain[0]).unwrap();
    assert_eq!(leaf.subject, b"");
    assert!(leaf.alternative_names().unwrap().unwrap().critical);
}

#[test]
fn x5_07_and_x5_08_the_key_usage_is_digital_signature_alone() {
    let (_, issued) = issue(&mut new_ca(), at(0));
    let (_, leaf) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 1, "digitalSignature is bit 0");
}

#[test]
fn x5_06_and_x5_09_a_leaf_signs_nothing_and_serves_both_roles() {
    let (_, issued) = issue(&mut new_ca(), at(0));
    let (_, leaf) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.server_auth && purposes.client_auth && !purposes.any);
}

#[test]
fn x5_11_x5_13_and_id_13_authorities_sign_and_are_named_by_their_trust_domain() {
    let mut ca = new_ca();
    let (_, issued) = issue(&mut ca, at(0));
    for (certificate, path_length) in [(&issued.chain[1], 0), (ca.active_root(), 1)] {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
        let constraints = parsed.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(path_length));
        let usage = parsed.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && !usage.value.digital_signature());
        let own = Certificate::parse(certificate).unwrap();
        assert_eq!(own.alternative_names().unwrap().unwrap().uris, [b"spiffe://td"]);
    }
}

#[test]
fn x5_12_an_issuing_certificate_does_not_authenticate() {
    let mut ca = new_ca();
    let (_, issued) = issue(&mut ca, at(0));
    let refused = verify_chain(&bundles(&ca), &issued.chain[1..], PeerRole::Server, at(0));
    assert!(matches!(refused, Err(VerifyError::Profile(_))), "{refused:?}");
}

#[test]
fn x5_14_no_certificate_has_name_constraints() {
    let mut ca = new_ca();
    let (_, issued) = issue(&mut ca, at(0));
    for certificate in issued.chain.iter().chain([ca.active_root()]) {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
        assert!(parsed.name_constraints().unwrap().is_none());
    }
}

#[test]
fn a_chain_stays_within_3_kib() {
    let (_, issued) = issue(&mut new_ca(), at(0));
    let bytes: usize = issued.chain.iter().map(|certificate| certificate.len()).sum();
    assert!(bytes < 3 * 1024, "{bytes}"); // security.md 9.3: it fits the first flights of QUIC
}

#[test]
fn cert_30_nothing_of_a_request_but_its_key_is_used() {
    let pair = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI("spiffe://td/ns/evil/sa/root".try_into().unwrap()));
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let request = params.serialize_request(&pair).unwrap();
    let request = SigningRequest::parse(request.der()).unwrap();
    let issued = new_ca().issue(&request, &id(ID), HOUR, at(0)).unwrap();
    let leaf = Certificate::parse(&issued.chain[0]).unwrap();
    assert_eq!(leaf.alternative_names().unwrap().unwrap().uris, [ID.as_bytes()]);
    assert_eq!(leaf.spki, request.public_key());
    assert_eq!(leaf.is_authority(), Ok(false));
}

#[test]
fn cert_16_keys_of_all_accepted_kinds_are_signed() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let mut ca = new_ca();
        let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&pair).unwrap();
        let request = SigningRequest::parse(request.der()).unwrap();
        let issued = ca.issue(&request, &id(ID), HOUR, at(0)).unwrap();
        let key = PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
        assert!(Svid::parse(issued.chain.clone(), key).is_ok());
        assert!(verify_chain(&bundles(&ca), &issued.chain, PeerRole::Client, at(0)).is_ok());
    }
}

#[test]
fn serials_are_128_random_bits() {
    let mut ca = new_ca();
    let serials: std::collections::BTreeSet<_> =
        (0..50).map(|_| issue(&mut ca, at(0)).1.serial.as_bytes().to_vec()).collect();
    assert_eq!(serials.len(), 50);
    assert!(serials.iter().all(|serial| serial.len() == 16));
}

#[test]
fn an_id_of_another_trust_domain_is_refused() {
    let refused = new_ca().issue(&request().1, &id("spiffe://other/a"), HOUR, at(0));
    assert!(matches!(refused, Err(IssueError::ForeignTrustDomain { .. })));
}

#[test]
fn lives_are_from_five_minutes_to_seven_days() {
    let mut ca = new_ca();
    let mut allowed = |seconds| {
        let life = Duration::from_secs(seconds);
        ca.issue(&request().1, &id(ID), life, at(0)).is_ok()
    };
    assert!(!allowed(299) && allowed(300) && allowed(7 * 24 * 3600) && !allowed(7 * 24 * 3600 + 1));
    let settings = CaSettings { lifetimes: LeafLifetimes::AllowShort, ..CaSettings::default() };
    let mut ca = CertificateAuthority::create_with(&domain("td"), "a", settings, at(0)).unwrap();
    let mut allowed = |millis| ca.issue(&request().1, &id(ID), Duration::from_millis(millis), at(0)).is_ok();
    assert!(allowed(1000) && !allowed(999));
}

#[test]
fn a_leaf_ends_a_minute_before_its_issuer() {
    let mut ca = new_ca();
    let end = ca.intermediate_validity().not_after;
    let late = end - DAY;
    let (_, issued) = issue_for(&mut ca, DAY * 7, late);
    assert_eq!(issued.validity.not_after, end - Duration::from_secs(60));
    let too_late = ca.issue(&request().1, &id(ID), DAY, end - Duration::from_secs(359));
    assert_eq!(too_late, Err(IssueError::IssuerExpiring));
    assert!(ca.issue(&request().1, &id(ID), DAY, end - Duration::from_secs(360)).is_ok());
}

#[test]
fn a_clock_that_went_back_more_than_a_minute_stops_signing() {
    let mut ca = new_ca();
    issue(&mut ca, at(1000));
    assert_eq!(ca.high_water(), at(1000));
    assert!(ca.issue(&request().1, &id(ID), HOUR, at(940)).is_ok());
    assert_eq!(ca.high_water(), at(1000), "a step back does not lower the mark");
    let back = IssueError::Authority(AuthorityError::ClockWentBack(Duration::from_secs(61)));
    assert_eq!(ca.issue(&request().1, &id(ID), HOUR, at(939)), Err(back));
    let stored = CertificateAuthority::load(&ca.to_parts(), CaSettings::default()).unwrap();
    assert!(stored.check_clock(at(939)).is_err(), "the mark survives a restart");
}

#[test]
fn parts_bring_the_same_authority_back() {
    let mut ca = new_ca();
    ca.prepare(at(10)).unwrap();
    ca.activate(0, false, at(20)).unwrap();
    ca.prepare(at(30)).unwrap();
    let parts = ca.to_parts();
    let mut read = CertificateAuthority::load(&parts, CaSettings::default()).unwrap();
    assert_eq!(read.bundle_roots(), ca.bundle_roots());
    assert_eq!(read.to_parts(), parts);
    let (_, issued) = issue(&mut read, at(40));
    assert!(verify_chain(&bundles(&ca), &issued.chain, PeerRole::Server, at(40)).is_ok());
}

#[test]
fn broken_parts_are_refused() {
    let (parts, other) = (new_ca().to_parts(), new_ca().to_parts());
    let load = |parts: &AuthorityParts| CertificateAuthority::load(parts, CaSettings::default()).unwrap_err();
    let mut swapped = parts.clone();
    swapped.intermediate = other.intermediate.clone();
    assert_eq!(load(&swapped), AuthorityError::BrokenChain);
    let mut wrong_key = parts.clone();
    wrong_key.root.key_pem = other.root.key_pem;
    assert_eq!(load(&wrong_key), AuthorityError::KeyMismatch);
    let mut cut = parts.clone();
    cut.root.certificate_pem.truncate(60);
    assert_eq!(load(&cut), AuthorityError::Pem);
    let mut empty = parts;
    empty.intermediate.key_pem.clear();
    assert_eq!(load(&empty), AuthorityError::Pem);
    assert!(matches!(
        CertificateAuthority::create(&domain("td"), "a/b", at(0)),
        Err(AuthorityError::Instance(_))
    ));
}

#[test]
fn secrets_do_not_show_in_debug() {
    let ca = new_ca();
    let shown = format!("{ca:?} {:?}", ca.to_parts());
    assert!(!shown.contains("PRIVATE"), "{shown}");
}

#[test]
fn the_intermediate_is_renewed_at_half_of_its_life_and_old_leaves_stay_valid() {
    let mut ca = new_ca();
    let (_, before) = issue(&mut ca, at(0));
    assert_eq!(ca.maintain(0, at(0)), Ok(vec![]));
    let half = at(0) + DAY * 15;
    assert_eq!(ca.maintain(0, half - HOUR), Ok(vec![]));
    let (_, before_half) = issue(&mut ca, half - HOUR);
    assert_eq!(ca.maintain(0, half), Ok(vec![Maintained::IntermediateRenewed]));
    assert_eq!(ca.maintain(0, half), Ok(vec![]));
    let (_, after) = issue(&mut ca, half);
    assert_ne!(before.chain[1], after.chain[1]);
    for chain in [before_half.chain, after.chain] {
        assert!(verify_chain(&bundles(&ca), &chain, PeerRole::Server, half).is_ok());
    }
}

#[test]
fn an_authority_that_slept_for_years_recovers() {
    let mut ca = new_ca();
    let late = at(0) + DAY * 1000;
    let done = ca.maintain(0, late).unwrap();
    assert!(
        matches!(done[..], [Maintained::RootPrepared { .. }, Maintained::RootActivated { .. }]),
        "{done:?}"
    );
    let (_, issued) = issue(&mut ca, late);
    assert!(verify_chain(&bundles(&ca), &issued.chain, PeerRole::Server, late).is_ok());
}

#[test]
fn a_request_proves_that_its_sender_holds_the_key() {
    let (_, der) = SigningRequest::create().unwrap();
    let request = SigningRequest::parse(&der).unwrap();
    let (_, other) = SigningRequest::create().unwrap();
    assert_ne!(request.key_fingerprint(), SigningRequest::parse(&other).unwrap().key_fingerprint());
    let mut forged = der.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert!(SigningRequest::parse(&forged).is_err());
    let (read, theirs) = (signed_parts(&der), signed_parts(&other));
    let swapped = der::sequence(&[&read.0, &theirs.1, &theirs.2]);
    assert_eq!(SigningRequest::parse(&swapped), Err(crate::csr::CsrError::NotProven));
    assert!(<X509CertificationRequest<'_> as FromDer<'_, _>>::from_der(&der).is_ok());
}

#[test]
fn cert_30_requests_that_are_broken_weak_or_huge_are_refused() {
    use crate::csr::{CsrError, MAX_REQUEST_BYTES};
    let (_, der) = SigningRequest::create().unwrap();
    for length in 0..der.len() {
        assert!(SigningRequest::parse(&der[..length]).is_err());
    }
    let mut trailing = der;
    trailing.push(0);
    assert_eq!(SigningRequest::parse(&trailing), Err(CsrError::Malformed));
    let huge = vec![0; MAX_REQUEST_BYTES + 1];
    assert_eq!(SigningRequest::parse(&huge), Err(CsrError::TooLong(MAX_REQUEST_BYTES + 1)));
    for algorithm in [&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_ECDSA_P521_SHA512] {
        let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&pair).unwrap();
        assert_eq!(SigningRequest::parse(request.der()), Err(CsrError::KeyKind));
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_a_request_or_an_error(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = SigningRequest::parse(&bytes);
    }
}

fn signed_parts(der: &[u8]) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let mut parts = der::Reader::new(der::single(der, tag::SEQUENCE).unwrap());
    let mut next = || parts.any().unwrap().whole.to_vec();
    (next(), next(), next())
}

fn new_ca() -> CertificateAuthority {
    CertificateAuthority::create(&domain("td"), "a", at(0)).unwrap()
}

fn request() -> (PrivateKeyDer<'static>, SigningRequest) {
    let (key, der) = SigningRequest::create().unwrap();
    (key, SigningRequest::parse(&der).unwrap())
}

fn issue(ca: &mut CertificateAuthority, now: SystemTime) -> (PrivateKeyDer<'static>, IssuedSvid) {
    issue_for(ca, DAY, now)
}

fn issue_for(
    ca: &mut CertificateAuthority,
    life: Duration,
    now: SystemTime,
) -> (PrivateKeyDer<'static>, IssuedSvid) {
    let (key, request) = request();
    (key, ca.issue(&request, &id(ID), life, now).unwrap())
}

fn bundles(ca: &CertificateAuthority) -> TrustBundles {
    let roots: Vec<CertificateDer<'static>> = ca.bundle_roots();
    TrustBundle::new(domain("td"), roots, 1).unwrap().into()
}
