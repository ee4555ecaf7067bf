//! One signing certificate with its key: made, loaded, stored, and signing.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::profile::{self, BACKDATE, Level};
use super::{AuthorityError, KeyPart};
use crate::csr::SigningRequest;
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::svid::Validity;
use crate::tls::SIGNATURES;
use crate::x509::certificate::Certificate;
use crate::x509::pem;
use crate::x509::public_key::Signed;

/// A child never lives longer than its issuer less this (security.md 3.2), or less a thirtieth of an issuer's life that
/// is short.
const ISSUER_MARGIN: Duration = Duration::from_secs(60);

/// A certificate that signs others, and the key to do so. `Debug` shows no key.
pub(crate) struct SigningAuthority {
    certificate: CertificateDer<'static>,
    /// What it is under, its root last; nothing above a root of our own.
    above: Vec<CertificateDer<'static>>,
    issuer: Issuer<'static, KeyPair>,
    validity: Validity,
}

impl SigningAuthority {
    /// Makes a self-signed root, ECDSA P-256.
    pub(crate) fn root(
        trust_domain: &TrustDomain,
        label: &str,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let key = new_key()?;
        let validity = Validity { not_before: backdated(now), not_after: now + lifetime };
        let params = profile::authority(Level::Root, trust_domain, label, validity)?;
        let certificate = params.self_signed(&key).map_err(AuthorityError::Encoding)?;
        Self::join(vec![certificate.into()], key)
    }

    /// Makes an intermediate under this root, ECDSA P-256, for at most the root's own life.
    pub(crate) fn intermediate(
        &self,
        trust_domain: &TrustDomain,
        label: &str,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let key = new_key()?;
        let not_after = (now + lifetime).min(self.last_child_expiry());
        let validity = Validity { not_before: backdated(now), not_after };
        let params = profile::authority(Level::Intermediate, trust_domain, label, validity)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(AuthorityError::Encoding)?;
        Self::join(vec![certificate.into()], key)
    }

    /// Signs a leaf for `id` over the request's key, and nothing else of the request.
    pub(crate) fn leaf(
        &self,
        request: &SigningRequest,
        id: &SpiffeId,
        validity: Validity,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let key = SubjectPublicKeyInfo::from_der(request.public_key()).map_err(AuthorityError::Encoding)?;
        let leaf = profile::leaf(id, validity)?.signed_by(&key, &self.issuer);
        Ok(leaf.map_err(AuthorityError::Encoding)?.into())
    }

    /// Reads what [`SigningAuthority::part`] wrote.
    pub(crate) fn load(part: &KeyPart) -> Result<Self, AuthorityError> {
        let certificates = pem::certificates(&part.certificate_pem).ok_or(AuthorityError::Pem)?;
        let der = Zeroizing::new(pem::private_key(&part.key_pem).ok_or(AuthorityError::Pem)?);
        let key = load_key(&der)?;
        Self::join(certificates, key)
    }

    /// Certificate and key as PEM. The key is a secret: 0600 files only.
    pub(crate) fn part(&self) -> KeyPart {
        let der = Zeroizing::new(self.issuer.key().serialize_der());
        let mut key_pem = Zeroizing::new(String::with_capacity(der.len() * 2 + 128));
        pem::write(&mut key_pem, pem::PRIVATE_KEY, &der);
        let mut certificate_pem = String::new();
        for certificate in std::iter::once(&self.certificate).chain(&self.above) {
            pem::write(&mut certificate_pem, pem::CERTIFICATE, certificate);
        }
        KeyPart { certificate_pem, key_pem }
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The root that it leads to, which is itself when it is one of our own.
    pub(crate) fn root_certificate(&self) -> &CertificateDer<'static> {
        self.above.last().unwrap_or(&self.certificate)
    }

    /// What leaves are presented with beside the issuer: this certificate and those above it, without the root.
    pub(crate) fn presented(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        std::iter::once(&self.certificate).chain(&self.above).take(self.above.len())
    }

    /// Whether it is under the root of somebody else.
    pub(crate) fn is_upstream(&self) -> bool {
        !self.above.is_empty()
    }

    /// When it is valid, with everything above it.
    pub(crate) fn validity(&self) -> Validity {
        self.validity
    }

    /// The latest moment at which a certificate signed now may expire.
    pub(crate) fn last_child_expiry(&self) -> SystemTime {
        self.validity.not_after - ISSUER_MARGIN.min(self.validity.period() / 30)
    }

    /// How long it is of use: the minute that it is dated back was never.
    pub(crate) fn life(&self) -> Duration {
        self.validity.period().saturating_sub(BACKDATE)
    }

    /// When half of the life is over, which is when an intermediate is replaced.
    pub(crate) fn half(&self) -> SystemTime {
        self.validity.not_after - self.life() / 2
    }

    /// Whether `child` is signed by this authority's key and names it as issuer.
    pub(crate) fn has_signed(&self, child: &Self) -> bool {
        let (Ok(own), Ok(theirs)) =
            (Certificate::parse(&self.certificate), Certificate::parse(&child.certificate))
        else {
            return false;
        };
        let signed = Signed::parse(&child.certificate);
        own.subject == theirs.issuer
            && signed.is_ok_and(|signed| signed.is_signed_with(own.spki, SIGNATURES.all))
    }

    /// Joins certificate and key, and checks that they belong together.
    ///
    /// `certificates` are its own and those above it.
    pub(super) fn join(
        mut certificates: Vec<CertificateDer<'static>>,
        key: KeyPair,
    ) -> Result<Self, AuthorityError> {
        if certificates.is_empty() {
            return Err(AuthorityError::Pem);
        }
        let above = certificates.split_off(1);
        let certificate = certificates.remove(0);
        let parsed = Certificate::parse(&certificate).map_err(|_| AuthorityError::Certificate)?;
        if parsed.spki != key.subject_public_key_info() {
            return Err(AuthorityError::KeyMismatch);
        }
        if !parsed.is_authority().unwrap_or(false) || parsed.subject_key_id().ok().flatten().is_none() {
            return Err(AuthorityError::Certificate);
        }
        let mut validity = Validity { not_before: parsed.not_before, not_after: parsed.not_after };
        for certificate in &above {
            let parsed = Certificate::parse(certificate).map_err(|_| AuthorityError::Certificate)?;
            validity.not_before = validity.not_before.max(parsed.not_before);
            validity.not_after = validity.not_after.min(parsed.not_after);
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(AuthorityError::Encoding)?;
        Ok(Self { certificate, above, issuer, validity })
    }
}

fn new_key() -> Result<KeyPair, AuthorityError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|_| AuthorityError::Provider)
}

/// Our own keys are of P-256; one of an upstream authority may be of another kind.
pub(super) fn load_key(der: &PrivatePkcs8KeyDer<'static>) -> Result<KeyPair, AuthorityError> {
    KeyPair::try_from(der).map_err(|_| AuthorityError::Key)
}

/// The moment of signing, dated back; a clock in the first minute of 1970 stays there.
pub(crate) fn backdated(now: SystemTime) -> SystemTime {
    now.checked_sub(BACKDATE).unwrap_or(SystemTime::UNIX_EPOCH).max(SystemTime::UNIX_EPOCH)
}

impl fmt::Debug for SigningAuthority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SigningAuthority").field("validity", &self.validity).finish_non_exhaustive()
    }
}
