//! Signing requests that ask for too much or prove nothing (CERT-30), and the certificates that come of the others.
//!
//! That a key which was certified for somebody else is refused is decided where certificates are recorded, in
//! `registry::issuance`, and tested there.

use std::time::Duration;

use weft_identity::SpiffeId;
use weft_identity::bundle::{TrustBundle, TrustBundles};
use weft_identity::ca::CertificateAuthority;
use weft_identity::csr::{CsrError, MAX_REQUEST_BYTES, SigningRequest};
use weft_identity::tls::{PeerRole, verify_chain};
use weft_tests::corpus::Corpus;
use weft_tests::forge::Offset;
use weft_tests::handshake::{LOCAL, ORDER};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn cert_30_a_request_gets_its_key_certified_and_nothing_else() {
    let corpus = Corpus::make("requests");
    let now = Offset::In(Duration::ZERO).moment();
    let (domain, id): (_, SpiffeId) = (LOCAL.parse().unwrap(), ORDER.parse().unwrap());
    let mut authority = CertificateAuthority::create(&domain, "a", now).unwrap();
    let bundle = TrustBundle::new(domain, authority.bundle_roots(), 1).unwrap();
    let bundles = TrustBundles::from(bundle);
    let plain = issued_length(&mut authority, &corpus, "plain", &id);

    for request in corpus.requests.iter().filter(|request| request.accept) {
        let parsed =
            SigningRequest::parse(&request.der).unwrap_or_else(|error| panic!("{}: {error}", request.name));
        let issued = authority.issue(&parsed, &id, HOUR, now).unwrap();
        for role in [PeerRole::Client, PeerRole::Server] {
            let peer = verify_chain(&bundles, &issued.chain, role, now).unwrap();
            assert_eq!(peer.id, id, "{}: the identity is the authority's decision", request.name);
        }
        let leaf = &issued.chain[0];
        assert!(holds(leaf, parsed.public_key()), "{}: its own key is certified", request.name);
        assert!(!holds(leaf, b"evil"), "{}: nothing that it asked for is in the certificate", request.name);
        assert!(leaf.len() <= plain + 40, "{}: {} bytes, a plain one has {plain}", request.name, leaf.len());
    }
}

#[test]
fn cert_30_requests_that_are_broken_weak_huge_or_not_proven_are_refused() {
    let corpus = Corpus::make("requests");
    let refused: Vec<(&str, CsrError)> = corpus
        .requests
        .iter()
        .filter(|request| !request.accept)
        .map(|request| (request.name.as_str(), SigningRequest::parse(&request.der).expect_err(&request.name)))
        .collect();
    for (name, error) in &refused {
        let expected = match *name {
            "huge_attribute" => matches!(error, CsrError::TooLong(bytes) if *bytes > MAX_REQUEST_BYTES),
            "wrong_signature"
            | "signature_of_another_request"
            | "empty_signature"
            | "key_of_somebody_else"
            | "sha1" => *error == CsrError::NotProven,
            "rsa_1024" | "rsa_2048" | "p224" | "secp256k1" | "p521" => *error == CsrError::KeyKind,
            "version_2"
            | "trailing_byte"
            | "trailing_element"
            | "indefinite_length"
            | "attributes_of_indefinite_length"
            | "a_certificate"
            | "empty" => *error == CsrError::Malformed,
            name => panic!("an unknown case: {name}"),
        };
        assert!(expected, "{name}: {error:?}");
    }
    assert_eq!(refused.len(), 18);
}

fn issued_length(authority: &mut CertificateAuthority, corpus: &Corpus, name: &str, id: &SpiffeId) -> usize {
    let request =
        corpus.requests.iter().find(|request| request.name == name).expect("a request of that name");
    let request = SigningRequest::parse(&request.der).expect("a request in order");
    let now = Offset::In(Duration::ZERO).moment();
    authority.issue(&request, id, HOUR, now).expect("it is its own domain").chain[0].len()
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
