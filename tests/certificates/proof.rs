//! How a certificate is shown to be one's own, and other things in its place (CERT-23 to CERT-25).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::SignatureScheme::{
    self, ECDSA_NISTP384_SHA384, ECDSA_NISTP521_SHA512, ECDSA_SHA1_Legacy, ED25519, RSA_PKCS1_SHA256,
    RSA_PSS_SHA256,
};
use rustls::compress::{CertCompressor, CompressionCache, CompressionFailed, CompressionLevel};
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;
use rustls::{CertificateCompressionAlgorithm, server::ClientHello};
use weft_identity::tls::ExpectedPeer::Anyone;
use weft_tests::corpus::Corpus;
use weft_tests::forge::{Forged, Leaf, Nothing};
use weft_tests::handshake::{Lab, ORDER};
use weft_tests::presented::{Proof, RawPublicKey};

use super::{MALFORMED, NOT_AN_SVID};

/// Alerts of TLS (RFC 8446 section 6).
const ILLEGAL_PARAMETER: u8 = 47;
const DECRYPT_ERROR: u8 = 51;
const CERTIFICATE_REQUIRED: u8 = 116;

#[tokio::test]
async fn cert_23_a_certificate_without_its_key_is_refused() {
    let lab = Lab::new();
    let (own, stolen) = (lab.sign(&Leaf::good(ORDER)), lab.sign(&Leaf::good(ORDER)));

    let wrong = stolen.proven_by(own.proof.clone());
    let nonsense = stolen.proven_by(Proof::Nonsense(SignatureScheme::ECDSA_NISTP256_SHA256));
    for (case, forged) in [("another key", wrong), ("nonsense", nonsense)] {
        assert_alert(&lab, case, &forged, DECRYPT_ERROR).await;
    }
}

#[tokio::test]
async fn cert_23_a_signature_scheme_that_is_not_that_of_the_key_is_refused() {
    let corpus = Corpus::make("accepted_keys");
    let lab = corpus.lab();
    let p256 = &corpus.case("p256").forged;
    let rsa = &corpus.case("rsa_2048").forged;
    for (case, forged, scheme, alert) in [
        ("P-384 for P-256", p256, ECDSA_NISTP384_SHA384, DECRYPT_ERROR),
        ("Ed25519 for P-256", p256, ED25519, DECRYPT_ERROR),
        ("RSA for P-256", p256, RSA_PSS_SHA256, DECRYPT_ERROR),
        ("P-521, never offered", p256, ECDSA_NISTP521_SHA512, ILLEGAL_PARAMETER),
        ("SHA-1, never offered", p256, ECDSA_SHA1_Legacy, ILLEGAL_PARAMETER),
        ("PKCS #1, for certificates only", rsa, RSA_PKCS1_SHA256, ILLEGAL_PARAMETER),
    ] {
        let Proof::Key(key) = &forged.proof else { panic!("{case}: a case with its key") };
        let liar = forged.proven_by(Proof::KeyAs(key.clone(), scheme));
        assert_alert(&lab, case, &liar, alert).await;
    }
}

#[tokio::test]
async fn cert_24_a_caller_without_a_certificate_is_refused_before_any_data() {
    let lab = Lab::new();
    let mut empty = lab.anonymous_config();
    empty.client_auth_cert_resolver = Arc::new(Nothing);
    for (case, config) in [("no certificate", lab.anonymous_config()), ("an empty message", empty)] {
        let refusal = lab.judge_caller_with(config).await.expect_err(case);
        refusal.check_alert(case, CERTIFICATE_REQUIRED);
    }
}

#[tokio::test]
async fn cert_24_a_server_without_a_certificate_gets_no_tunnel() {
    let lab = Lab::new();
    let refusal = lab.judge_callee_with(lab.attacker_server(Arc::new(Nobody)), Anyone).await.unwrap_err();
    assert_eq!(refusal.reason, "tls_refused_by_peer", "the server itself gives up: {refusal:?}");
    assert!(!refusal.seen);

    let no_chain = Forged { chain: Vec::new(), ..lab.sign(&Leaf::good(ORDER)) };
    let refusal = lab.judge_callee(&no_chain, Anyone).await.unwrap_err();
    assert!(!refusal.seen && refusal.reason != "ok", "{refusal:?}");
}

#[tokio::test]
async fn cert_25_a_raw_public_key_is_no_certificate() {
    let lab = Lab::new();
    let good = lab.sign(&Leaf::good(ORDER));
    let raw = || Arc::new(RawPublicKey(good.presented()));

    // Negotiated (RFC 7250): the victim knows certificates only, so there is nothing to agree on.
    let mut caller = lab.anonymous_config();
    caller.client_auth_cert_resolver = raw();
    let called = lab.judge_caller_with(caller).await.unwrap_err();
    assert_eq!(called.reason, "tls_refused", "{called:?}");
    let dialled = lab.judge_callee_with(lab.attacker_server(raw()), Anyone).await.unwrap_err();
    assert!(dialled.reason.starts_with("tls_refused") && !dialled.seen, "{dialled:?}");

    // Not negotiated: the bytes of a key where a certificate stands.
    let keys = Corpus::make("encodings");
    let bare = &keys.case("a_public_key_alone").forged;
    let bare = Forged { chain: vec![bare.chain[0].clone()], ..bare.clone() };
    keys.lab().refuses("a key as certificate", &bare, NOT_AN_SVID, MALFORMED).await;
}

#[tokio::test]
async fn cert_25_a_compressed_certificate_is_never_asked_for() {
    let lab = Lab::new();
    let good = lab.sign(&Leaf::good(ORDER));
    let bomb: &'static Bomb = Box::leak(Box::default());

    let mut server = lab.attacker_server(good.presented());
    server.cert_compressors = vec![bomb];
    server.cert_compression_cache = Arc::new(CompressionCache::Disabled);
    assert!(lab.judge_callee_with(server, Anyone).await.is_ok(), "the certificate comes as it is");

    let mut client = lab.attacker_config(good.presented());
    client.cert_compressors = vec![bomb];
    client.cert_compression_cache = Arc::new(CompressionCache::Disabled);
    assert!(lab.judge_caller_with(client).await.is_ok(), "the certificate comes as it is");
    assert_eq!(bomb.0.load(Ordering::Relaxed), 0, "nobody offered to decompress (RFC 8879)");
}

async fn assert_alert(lab: &Lab, case: &str, forged: &Forged, alert: u8) {
    let caller = lab.judge_caller(forged).await.expect_err(case);
    caller.check_alert(&format!("{case}, as caller"), alert);
    let callee = lab.judge_callee(forged, Anyone).await.expect_err(case);
    callee.check_alert(&format!("{case}, as callee"), alert);
    assert!(!callee.seen, "{case}");
}

/// Counts how often it is asked to compress a certificate.
#[derive(Debug, Default)]
struct Bomb(AtomicUsize);

impl CertCompressor for Bomb {
    fn compress(&self, input: Vec<u8>, _level: CompressionLevel) -> Result<Vec<u8>, CompressionFailed> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(input)
    }

    fn algorithm(&self) -> CertificateCompressionAlgorithm {
        CertificateCompressionAlgorithm::Zlib
    }
}

/// A server that has nothing to show.
#[derive(Debug)]
struct Nobody;

impl ResolvesServerCert for Nobody {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}
