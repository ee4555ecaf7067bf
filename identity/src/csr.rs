//! Signing requests (PKCS#10, RFC 2986): how a key that never leaves its node gets a certificate.
//!
//! Owns making a request and proving that its sender holds the key. Everything else that a request can
//! ask for (names, extensions) is not even read: the authority decides what a certificate says.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::x509::der::{self, NotDer, Reader, tag};
use crate::x509::public_key::{KeyError, PublicKey, Signed};
use crate::x509::{fingerprint, oid};

/// Largest request that is read, in bytes. One with a P-256 key has about 200.
pub const MAX_REQUEST_BYTES: usize = 8 * 1024;

/// Why a signing request is refused, or could not be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CsrError {
    /// The request has more than [`MAX_REQUEST_BYTES`] bytes.
    #[error("the signing request has {0} bytes, at most {MAX_REQUEST_BYTES} are read")]
    TooLong(usize),
    /// The request is not strict DER of the form of RFC 2986.
    #[error("the signing request is malformed")]
    Malformed,
    /// The key is of a kind that is not signed: P-256, P-384 and Ed25519 are.
    #[error("the key is none of P-256, P-384, Ed25519")]
    KeyKind,
    /// The request is not signed by its own key, so the sender may not hold it.
    #[error("the signing request is not signed by its own key")]
    NotProven,
    /// The crypto provider could not make a key.
    #[error("the crypto provider could not make a key")]
    Provider,
}

impl From<NotDer> for CsrError {
    fn from(_: NotDer) -> Self {
        Self::Malformed
    }
}

/// A request whose sender has proven to hold the private key. Nothing of it but the public key is ever signed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SigningRequest {
    public_key: Vec<u8>,
    der: Vec<u8>,
}

impl SigningRequest {
    /// Makes a new P-256 key (as PKCS#8) and a request for it (as DER).
    ///
    /// A renewal calls this again: no key is used twice.
    ///
    /// # Errors
    ///
    /// [`CsrError::Provider`] if there is no entropy or the signature fails.
    pub fn create() -> Result<(PrivateKeyDer<'static>, Vec<u8>), CsrError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| CsrError::Provider)?;
        let private = pair.to_pkcs8v1().map_err(|_| CsrError::Provider)?;
        let info = der::sequence(&[
            &der::element(tag::INTEGER, &[&[0]]), // version 1
            &der::sequence(&[]),                  // no subject
            &p256_key_info(pair.public_key().as_ref()),
            &der::element(tag::CONTEXT_0, &[]), // no attributes
        ]);
        let signature = pair.sign(&SystemRandom::new(), &info).map_err(|_| CsrError::Provider)?;
        let algorithm = der::sequence(&[&der::element(tag::OID, &[oid::ECDSA_SHA256])]);
        let request = der::sequence(&[&info, &algorithm, &der::bit_string(signature.as_ref())]);
        Ok((PrivatePkcs8KeyDer::from(private.as_ref().to_vec()).into(), request))
    }

    /// Reads a request and checks that it is signed by its own key.
    ///
    /// # Errors
    ///
    /// [`CsrError`], the first rule that is broken; the signature is verified last.
    pub fn parse(request: &[u8]) -> Result<Self, CsrError> {
        if request.len() > MAX_REQUEST_BYTES {
            return Err(CsrError::TooLong(request.len()));
        }
        let signed = Signed::parse(request)?;
        let mut info = Reader::new(der::single(signed.body, tag::SEQUENCE)?);
        if info.expect(tag::INTEGER)? != [0] {
            return Err(CsrError::Malformed);
        }
        info.expect(tag::SEQUENCE)?; // the subject is ignored
        let spki = info.element(tag::SEQUENCE)?.whole;
        info.optional(tag::CONTEXT_0)?; // attributes are ignored
        info.finish()?;
        match PublicKey::parse(spki) {
            Ok(PublicKey::P256 { .. } | PublicKey::P384 { .. } | PublicKey::Ed25519(_)) => {}
            Ok(PublicKey::Rsa { .. }) | Err(KeyError::Kind) => return Err(CsrError::KeyKind),
            Err(KeyError::Malformed) => return Err(CsrError::Malformed),
        }
        if !signed.is_signed_by(spki) {
            return Err(CsrError::NotProven);
        }
        Ok(Self { public_key: spki.to_vec(), der: request.to_vec() })
    }

    /// The request as it was sent, DER, for another authority to read it as well.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The public key as SubjectPublicKeyInfo, DER.
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// SHA-256 of the public key, to notice one that was used or revoked before.
    pub fn key_fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.public_key)
    }
}

/// The SubjectPublicKeyInfo of a P-256 key (RFC 5480 §2).
pub(crate) fn p256_key_info(point: &[u8]) -> Vec<u8> {
    let kind = der::sequence(&[
        &der::element(tag::OID, &[oid::EC_PUBLIC_KEY]),
        &der::element(tag::OID, &[oid::P256]),
    ]);
    der::sequence(&[&kind, &der::bit_string(point)])
}
