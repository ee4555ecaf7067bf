//! X.509-SVIDs: a certificate chain with its private key, checked against the profile.
//!
//! Owns the container. The rules are in [`profile`]; whether a chain leads to a trusted root is the
//! business of [`crate::tls`], because it depends on a bundle and on the time.
//!
//! Invariant: an [`Svid`] holds a leaf that obeys the profile and the key that belongs to it.

pub mod profile;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::sign::SigningKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::spiffe::{InvalidSpiffeId, SpiffeId};
use crate::tls::crypto_provider;
use crate::x509::certificate::Certificate;
use crate::x509::{der, pem};

pub use crate::x509::public_key::KeyError;

/// Most certificates between leaf and root that a peer may present (security.md 9.3, CERT-17).
pub const MAX_INTERMEDIATES: usize = 4;

/// Most bytes of a presented chain, before any signature is looked at (security.md 9.3, CERT-17).
pub const MAX_CHAIN_BYTES: usize = 16 * 1024;

/// Longest serial number in octets (RFC 5280 §4.1.2.2).
pub const MAX_SERIAL_BYTES: usize = 20;

/// Why a chain, or a chain with its key, is not an X.509-SVID.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SvidError {
    /// There is no certificate at all.
    #[error("the chain is empty")]
    Empty,
    /// More than [`MAX_INTERMEDIATES`] certificates follow the leaf.
    #[error("{0} certificates follow the leaf, at most {MAX_INTERMEDIATES} may")]
    TooManyIntermediates(usize),
    /// The chain has more than [`MAX_CHAIN_BYTES`] bytes.
    #[error("the chain has {0} bytes, at most {MAX_CHAIN_BYTES} are read")]
    ChainTooLong(usize),
    /// A certificate is not strict DER, not version 3, or has an extension twice.
    #[error("a certificate is malformed")]
    Malformed,
    /// The serial number is negative, zero or longer than [`MAX_SERIAL_BYTES`].
    #[error("the serial number is not positive or longer than {MAX_SERIAL_BYTES} bytes")]
    Serial,
    /// The certificate is never valid: notAfter is not after notBefore.
    #[error("the validity period is empty")]
    EmptyValidity,
    /// A critical extension is not known, so the certificate must be refused (RFC 5280 §4.2).
    #[error("a critical extension is unknown")]
    UnknownCriticalExtension,
    /// The public key is refused.
    #[error(transparent)]
    PublicKey(#[from] KeyError),
    /// The leaf has no URI among its alternative names, so no identity (X5-01).
    #[error("the leaf names no URI")]
    NoUri,
    /// The leaf has several URIs; which one it is would be a matter of the reader (X5-01).
    #[error("the leaf names {0} URIs, an SVID names exactly one")]
    SeveralUris(usize),
    /// The one URI is not a SPIFFE ID with a path (X5-04, X5-05).
    #[error("the URI is not a SPIFFE ID of a workload")]
    Id(#[from] InvalidSpiffeId),
    /// The leaf says that it may sign certificates (X5-06, X5-12).
    #[error("the leaf is a certificate authority")]
    LeafIsAuthority,
    /// keyUsage is absent, not critical, lacks digitalSignature, or allows signing (X5-07).
    #[error("the leaf's key usage is {0}")]
    KeyUsage(KeyUsageFault),
    /// extendedKeyUsage is there without both serverAuth and clientAuth (X5-09).
    #[error("the leaf's extended key usage lacks serverAuth or clientAuth")]
    ExtendedKeyUsage,
    /// A certificate above the leaf may not sign certificates (X5-11).
    #[error("a certificate above the leaf is not a certificate authority")]
    NotAnAuthority,
    /// A certificate above the leaf names a path or another trust domain (X5-13, CERT-21).
    #[error("a certificate above the leaf names another SPIFFE ID than its trust domain")]
    AuthorityId,
    /// A certificate says that it was signed with another key, or another certificate of it, than the one above it.
    #[error("a certificate names another issuer than the one above it")]
    IssuerMismatch,
    /// The private key is not PKCS#8, or of a kind that cannot be used for TLS.
    #[error("the private key cannot be used: PKCS#8 of a supported kind is needed")]
    PrivateKey,
    /// The private key belongs to another certificate.
    #[error("the private key does not belong to the leaf")]
    KeyMismatch,
    /// The text is not PEM, or has no certificate or no key.
    #[error("no certificate chain with private key in the PEM text")]
    Pem,
}

/// What is wrong with a leaf's keyUsage (X5-07).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyUsageFault {
    /// The extension is not there.
    Absent,
    /// The extension is not critical; Weft is strict in both roles.
    NotCritical,
    /// digitalSignature is not set, so TLS 1.3 cannot use the key.
    NoDigitalSignature,
    /// keyCertSign or cRLSign is set.
    Signing,
}

impl fmt::Display for KeyUsageFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Absent => "absent",
            Self::NotCritical => "not critical",
            Self::NoDigitalSignature => "without digitalSignature",
            Self::Signing => "one of a certificate authority",
        })
    }
}

impl From<der::NotDer> for SvidError {
    fn from(_: der::NotDer) -> Self {
        Self::Malformed
    }
}

/// When a certificate is valid: from `not_before`, until just before `not_after`.
///
/// RFC 5280 counts notAfter itself as valid; Weft does not, so that "expired" means `now >= not_after`
/// wherever it is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Validity {
    /// First moment of validity.
    pub not_before: SystemTime,
    /// First moment of invalidity.
    pub not_after: SystemTime,
}

impl Validity {
    /// Whether the certificate is valid at `now`.
    pub fn contains(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// The whole length, zero if the period is empty.
    pub fn period(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// How long it is still valid at `now`, zero once expired.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }
}

/// The serial number of a certificate: 1 to 20 octets, big-endian, without leading zeros.
///
/// Unique per issuer only; a denylist keys by issuer and serial. Prints as lower-case hex.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Serial(Box<[u8]>);

impl Serial {
    /// The octets, without leading zeros.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads the content octets of an ASN.1 INTEGER.
    pub(crate) fn from_integer(content: &[u8]) -> Result<Self, SvidError> {
        let magnitude = der::unsigned(content).map_err(|_| SvidError::Serial)?;
        if content.len() > MAX_SERIAL_BYTES || magnitude == [0] {
            return Err(SvidError::Serial);
        }
        Ok(Self(magnitude.into()))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(formatter, "{octet:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Serial({self})")
    }
}

impl FromStr for Serial {
    type Err = SvidError;

    /// Reads what `Display` writes: an even number of hex digits, 1 to 20 octets, no leading zeros.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let pairs = text.as_bytes().chunks(2);
        let octets: Option<Box<[u8]>> = pairs
            .map(|pair| match pair {
                [high, low] => Some(hex_digit(*high)? << 4 | hex_digit(*low)?),
                _ => None,
            })
            .collect();
        match octets {
            Some(octets)
                if octets.first().is_some_and(|first| *first != 0) && octets.len() <= MAX_SERIAL_BYTES =>
            {
                Ok(Self(octets))
            }
            _ => Err(SvidError::Serial),
        }
    }
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// An X.509-SVID: an identity, the chain that proves it and the key that goes with it.
///
/// Cheap to clone; the key is wiped from memory with the last clone (TLS keeps its own copy while a
/// handshake runs). `Debug` shows the identity and serial only.
#[derive(Clone)]
pub struct Svid {
    id: SpiffeId,
    chain: Arc<[CertificateDer<'static>]>,
    key: Arc<Zeroizing<Vec<u8>>>,
    signer: Arc<dyn SigningKey>,
    validity: Validity,
    serial: Serial,
}

impl Svid {
    /// Checks `chain` (leaf first) and `key` (PKCS#8) and joins them.
    ///
    /// The leaf must obey the profile as an issuer must keep it (X5-01..09), the other certificates that
    /// of a signing certificate of the same trust domain, and the key must belong to the leaf. Neither
    /// time nor signatures are looked at.
    ///
    /// # Errors
    ///
    /// [`SvidError`]: the first rule that is broken.
    pub fn parse(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, SvidError> {
        profile::check_size(&chain)?;
        let (leaf_der, intermediates) = chain.split_first().ok_or(SvidError::Empty)?;
        let leaf = Certificate::parse(leaf_der)?;
        let id = profile::check_leaf(&leaf)?;
        profile::check_leaf_purposes(&leaf)?;
        for intermediate in intermediates {
            profile::check_authority(&Certificate::parse(intermediate)?, id.trust_domain())?;
        }
        let PrivateKeyDer::Pkcs8(pkcs8) = &key else { return Err(SvidError::PrivateKey) };
        let bytes = Arc::new(Zeroizing::new(pkcs8.secret_pkcs8_der().to_vec()));
        let loaded = crypto_provider().key_provider.load_private_key(key);
        let signer = loaded.map_err(|_| SvidError::PrivateKey)?;
        if signer.public_key().is_none_or(|own| own.as_ref() != leaf.spki) {
            return Err(SvidError::KeyMismatch);
        }
        let validity = Validity { not_before: leaf.not_before, not_after: leaf.not_after };
        let serial = Serial::from_integer(leaf.serial)?;
        Ok(Self { id, chain: chain.into(), key: bytes, signer, validity, serial })
    }

    /// Reads a chain and its key from one PEM text, as [`Svid::to_pem`] writes it.
    ///
    /// # Errors
    ///
    /// [`SvidError::Pem`] if a part is missing, else as [`Svid::parse`].
    pub fn from_pem(text: &str) -> Result<Self, SvidError> {
        let chain = pem::certificates(text).ok_or(SvidError::Pem)?;
        let key = pem::private_key(text).ok_or(SvidError::Pem)?;
        if chain.is_empty() {
            return Err(SvidError::Pem);
        }
        Self::parse(chain, key.into())
    }

    /// The chain, leaf first, and then the key, as one PEM text. A secret: write it to 0600 files only.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let bytes: usize = self.chain.iter().map(|certificate| certificate.len()).sum();
        let mut text = Zeroizing::new(String::with_capacity((bytes + self.key.len()) * 3 / 2 + 512));
        self.chain.iter().for_each(|certificate| pem::write(&mut text, pem::CERTIFICATE, certificate));
        pem::write(&mut text, pem::PRIVATE_KEY, &self.key);
        text
    }

    /// The chain alone, leaf first, as PEM: what may be shown to anybody.
    pub fn chain_pem(&self) -> String {
        let mut text = String::new();
        self.chain.iter().for_each(|certificate| pem::write(&mut text, pem::CERTIFICATE, certificate));
        text
    }

    /// The identity that the leaf proves.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The certificates, leaf first, without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The private key as PKCS#8, borrowed: a copy is the caller's to wipe.
    pub fn key(&self) -> PrivateKeyDer<'_> {
        PrivatePkcs8KeyDer::from(self.key.as_slice()).into()
    }

    /// When the leaf is valid.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// The leaf's serial number.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// The key in the form that rustls signs with.
    pub(crate) fn signer(&self) -> &Arc<dyn SigningKey> {
        &self.signer
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Svid")
            .field("id", &self.id)
            .field("serial", &self.serial)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(feature = "ca")]
mod tests;
