//! f05: signing requests, and what the authority makes of them.
//!
//! A request is raw bytes, or one built and signed here and then bent. What is accepted and legible to x509-parser must
//! be proven there too; the certificate made of it says what the authority was told, and nothing of what the
//! request asked for.

use std::sync::{LazyLock, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use weft_identity::bundle::{TrustBundle, TrustBundles};
use weft_identity::ca::{CertificateAuthority, IssueError, LONGEST_LEAF};
use weft_identity::csr::{MAX_REQUEST_BYTES, SigningRequest};
use weft_identity::tls::{PeerRole, verify_chain};
use weft_identity::{SpiffeId, TrustDomain};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509CertificationRequest};

use crate::choice::Choice;
use crate::der::{self, INTEGER, element, sequence};

const SHORTEST: Duration = Duration::from_secs(5 * 60);

/// An authority, and the bundle that trusts it.
struct World {
    authority: Mutex<CertificateAuthority>,
    bundles: TrustBundles,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let domain: TrustDomain = "a.example".parse().expect("it is one");
    let authority = CertificateAuthority::create(&domain, "one", now()).expect("there is entropy");
    let mut bundles = TrustBundles::new();
    let bundle = TrustBundle::new(domain, authority.bundle_roots(), 1).expect("its own root");
    bundles.insert(bundle).expect("the only one");
    World { authority: Mutex::new(authority), bundles }
});

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// The first byte: raw or built. Then identity and lifetime that the server decided on, then the request.
pub fn f05_csr(data: &[u8]) {
    let mut choice = Choice::new(data);
    let raw = choice.byte() & 1 == 1;
    let id: SpiffeId = ["spiffe://a.example/ns/shop/sa/charge", "spiffe://b.example/ns/shop/sa/charge"]
        [choice.below(2)]
    .parse()
    .expect("it is one");
    let ttl =
        [SHORTEST, LONGEST_LEAF, SHORTEST - Duration::from_secs(1), LONGEST_LEAF + Duration::from_secs(1)]
            [choice.below(4)];
    let (request, legal) = if raw { (choice.rest().to_vec(), false) } else { built(choice) };
    let parsed = SigningRequest::parse(&request);
    assert!(parsed.is_ok() || !legal, "a legal request was refused: {parsed:?}");
    let Ok(parsed) = parsed else { return };
    assert!(request.len() <= MAX_REQUEST_BYTES);
    proven(&request, &parsed);
    issued(&parsed, &id, ttl);
}

/// A request for key 0, bent as the input says; whether it is still legal.
fn built(mut choice: Choice<'_>) -> (Vec<u8>, bool) {
    let version = choice.below(3);
    let key = choice.below(4);
    let signer = choice.below(4);
    let subject = choice.below(3);
    let attributes = choice.slice(512);
    let info = sequence(&[
        &element(INTEGER, &[version as u8]),
        &match subject {
            0 => der::name(""),
            1 => der::name("spiffe://a.example/server/one"),
            _ => element(der::SEQUENCE, choice.slice(64)),
        },
        &der::key_info(key),
        &element(0xa0, attributes),
    ]);
    let mut request = der::signed(&info, if signer == 0 { key } else { signer - 1 });
    let mut legal = version == 0 && (signer == 0 || signer - 1 == key);
    while !choice.is_empty() {
        let (at, by) = (choice.short(), choice.byte());
        let last = request.len() - 1;
        request[usize::from(at).min(last)] ^= by;
        legal &= by == 0;
    }
    (request, legal)
}

/// Another parser reads the same key and finds it proven.
fn proven(request: &[u8], parsed: &SigningRequest) {
    // Subject and attributes are not even read by the code under test; x509-parser may not like them.
    let Ok((rest, other)) = X509CertificationRequest::from_der(request) else { return };
    assert!(rest.is_empty(), "bytes behind the request");
    other.verify_signature().expect("x509-parser finds the key proven");
    assert_eq!(other.certification_request_info.subject_pki.raw, parsed.public_key(), "the same key");
    assert_eq!(parsed.key_fingerprint(), weft_identity::fingerprint(parsed.public_key()));
}

/// The certificate says what the authority was told.
fn issued(request: &SigningRequest, id: &SpiffeId, ttl: Duration) {
    let answer = WORLD.authority.lock().expect("no panic under the lock").issue(request, id, ttl, now());
    let allowed = id.trust_domain().as_str() == "a.example" && (SHORTEST..=LONGEST_LEAF).contains(&ttl);
    assert_eq!(answer.is_ok(), allowed, "{id} for {ttl:?}");
    let issued = match answer {
        Ok(issued) => issued,
        Err(IssueError::ForeignTrustDomain { .. } | IssueError::Lifetime { .. }) => return,
        Err(other) => panic!("{other}"),
    };
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).expect("x509-parser reads it");
    assert_eq!(leaf.public_key().raw, request.public_key());
    let names = leaf.subject_alternative_name().expect("at most one").expect("there is one");
    assert_eq!(names.value.general_names, [GeneralName::URI(&id.to_string())]);
    assert!(!leaf.basic_constraints().expect("at most one").is_some_and(|basics| basics.value.ca));
    assert_eq!(leaf.subject().iter().count(), 0, "nothing of the request's subject");
    assert!(issued.validity.not_after <= now() + ttl);
    for role in [PeerRole::Server, PeerRole::Client] {
        let peer =
            verify_chain(&WORLD.bundles, &issued.chain, role, now()).expect("its own verifier accepts it");
        assert_eq!(&peer.id, id);
    }
}
