//! Which public keys Weft accepts, read from a SubjectPublicKeyInfo.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ParsedPublicKey};
use rustls_pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use webpki::RawPublicKeyEntity;
use webpki::aws_lc_rs as algorithm;

use super::der::{self, NotDer, Reader, tag};
use super::oid;

/// Smallest RSA modulus in bits (NIST SP 800-131A; CERT-15).
const MIN_RSA_BITS: usize = 2048;

/// Largest RSA modulus in bits: verification cost grows with its square (CERT-15, a CPU attack).
const MAX_RSA_BITS: usize = 4096;

/// Smallest public exponent (NIST SP 800-56B §6.2: 2^16 + 1).
const MIN_RSA_EXPONENT: u64 = 65_537;

/// A public key of a kind that Weft accepts. The parts are borrowed from the certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum PublicKey<'a> {
    /// The coordinates of an uncompressed point, 32 octets each.
    P256 { x: &'a [u8], y: &'a [u8] },
    /// The coordinates of an uncompressed point, 48 octets each.
    P384 { x: &'a [u8], y: &'a [u8] },
    /// 32 octets (RFC 8410).
    Ed25519(&'a [u8]),
    /// Modulus and exponent, big-endian, without leading zeros.
    Rsa { modulus: &'a [u8], exponent: &'a [u8] },
}

/// Why a public key is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyError {
    /// The SubjectPublicKeyInfo is not strict DER.
    #[error("public key is malformed")]
    Malformed,
    /// The kind is not in the list: P-256, P-384, Ed25519, RSA of 2048 to 4096 bits.
    #[error("public key is none of P-256, P-384, Ed25519, RSA with 2048 to 4096 bits")]
    Kind,
}

impl From<NotDer> for KeyError {
    fn from(_: NotDer) -> Self {
        Self::Malformed
    }
}

impl<'a> PublicKey<'a> {
    /// Reads `spki`, the DER of a SubjectPublicKeyInfo.
    pub(crate) fn parse(spki: &'a [u8]) -> Result<Self, KeyError> {
        let mut outer = Reader::new(spki);
        let mut info = outer.sequence()?;
        outer.finish()?;
        let mut kind = info.sequence()?;
        let octets = der::whole_bits(info.expect(tag::BIT_STRING)?)?;
        info.finish()?;
        let identifier = kind.expect(tag::OID)?;
        let parsed = match identifier {
            oid::EC_PUBLIC_KEY => point(kind.expect(tag::OID)?, octets)?,
            oid::ED25519 if octets.len() == 32 => Self::Ed25519(octets),
            oid::RSA => {
                kind.optional(tag::NULL)?;
                rsa(octets)?
            }
            _ => return Err(KeyError::Kind),
        };
        kind.finish()?;
        Ok(parsed)
    }
}

fn point<'a>(curve: &[u8], octets: &'a [u8]) -> Result<PublicKey<'a>, KeyError> {
    // A point that is not on its curve belongs to nobody; other verifiers refuse to read it (CERT-29).
    let on = |algorithm| ParsedPublicKey::new(algorithm, octets).is_ok();
    match (curve, octets) {
        (oid::P256, [4, point @ ..]) if point.len() == 64 && on(&ECDSA_P256_SHA256_ASN1) => {
            Ok(PublicKey::P256 { x: &point[..32], y: &point[32..] })
        }
        (oid::P384, [4, point @ ..]) if point.len() == 96 && on(&ECDSA_P384_SHA384_ASN1) => {
            Ok(PublicKey::P384 { x: &point[..48], y: &point[48..] })
        }
        (oid::P256 | oid::P384, _) => Err(KeyError::Malformed), // compressed, cut or off the curve
        _ => Err(KeyError::Kind),
    }
}

fn rsa(octets: &[u8]) -> Result<PublicKey<'_>, KeyError> {
    let mut outer = Reader::new(octets);
    let mut key = outer.sequence()?;
    outer.finish()?;
    let modulus = der::unsigned(key.expect(tag::INTEGER)?)?;
    let exponent = der::unsigned(key.expect(tag::INTEGER)?)?;
    key.finish()?;
    let leading_zeros = modulus.first().map_or(8, |octet| octet.leading_zeros()) as usize;
    let bits = modulus.len() * 8 - leading_zeros;
    let value = exponent.iter().fold(0_u64, |value, octet| value << 8 | u64::from(*octet));
    let exponent_fits = exponent.len() <= 8 && value >= MIN_RSA_EXPONENT && value % 2 == 1;
    if (MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) && exponent_fits {
        Ok(PublicKey::Rsa { modulus, exponent })
    } else {
        Err(KeyError::Kind)
    }
}

/// What signs and what was signed: the outer shape of a certificate and of a signing request alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signed<'a> {
    /// The signed part, with tag and length.
    pub(crate) body: &'a [u8],
    /// Content of the AlgorithmIdentifier.
    pub(crate) algorithm: &'a [u8],
    /// The signature octets.
    pub(crate) signature: &'a [u8],
}

impl<'a> Signed<'a> {
    /// Splits `bytes` into body, algorithm and signature, without judging them.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, NotDer> {
        let mut outer = Reader::new(bytes);
        let mut signed = outer.sequence()?;
        outer.finish()?;
        let body = signed.element(tag::SEQUENCE)?.whole;
        let algorithm = signed.expect(tag::SEQUENCE)?;
        let signature = der::whole_bits(signed.expect(tag::BIT_STRING)?)?;
        signed.finish()?;
        Ok(Self { body, algorithm, signature })
    }

    /// Whether the holder of the private half of `spki` signed the body. Elliptic curves only.
    pub(crate) fn is_signed_by(&self, spki: &[u8]) -> bool {
        self.is_signed_with(spki, SIGNATURES)
    }

    /// Whether the holder of the private half of `spki` signed the body, with one of `algorithms`.
    pub(crate) fn is_signed_with(
        &self,
        spki: &[u8],
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> bool {
        let spki = SubjectPublicKeyInfoDer::from(spki);
        let Ok(key) = RawPublicKeyEntity::try_from(&spki) else { return false };
        algorithms
            .iter()
            .filter(|candidate| candidate.signature_alg_id().as_ref() == self.algorithm)
            .any(|candidate| key.verify_signature(*candidate, self.body, self.signature).is_ok())
    }
}

/// The signatures that Weft makes itself or accepts in a signing request.
static SIGNATURES: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithm::ECDSA_P256_SHA256,
    algorithm::ECDSA_P256_SHA384,
    algorithm::ECDSA_P384_SHA256,
    algorithm::ECDSA_P384_SHA384,
    algorithm::ED25519,
];
