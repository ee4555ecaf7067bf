//! An authority as texts, for the registry to keep in 0600 files.

use std::fmt;
use std::time::SystemTime;

use zeroize::Zeroizing;

use super::authority::SigningAuthority;
use super::{AuthorityError, CaSettings, CertificateAuthority, Prepared, Retired};
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::x509::certificate::Certificate;
use crate::x509::pem;

/// A certificate with its key. `Debug` shows no key.
#[derive(Clone, Eq, PartialEq)]
pub struct KeyPart {
    /// One PEM certificate.
    pub certificate_pem: String,
    /// Its PKCS#8 key as PEM: a secret, wiped on drop.
    pub key_pem: Zeroizing<String>,
}

impl fmt::Debug for KeyPart {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("KeyPart")
            .field("certificate_pem", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

/// A root that is published and does not sign yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PreparedPart {
    /// Certificate and key.
    pub authority: KeyPart,
    /// Since when it is published.
    pub since: SystemTime,
}

/// A root that does not sign any more. Its key is gone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RetiredPart {
    /// One PEM certificate.
    pub certificate_pem: String,
    /// When it was retired.
    pub at: SystemTime,
}

/// All that an authority consists of. Write it whole (temporary file, fsync, rename), before what was
/// signed or prepared with it leaves the process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuthorityParts {
    /// The trust domain that is signed for.
    pub trust_domain: TrustDomain,
    /// The name of the control plane instance.
    pub instance: String,
    /// The root that the intermediate is under.
    pub root: KeyPart,
    /// The next root, if one is prepared.
    pub prepared: Option<PreparedPart>,
    /// Former roots that are still published.
    pub retired: Vec<RetiredPart>,
    /// What signs leaves.
    pub intermediate: KeyPart,
    /// The latest moment of a signature.
    pub high_water: SystemTime,
}

impl CertificateAuthority {
    /// The authority as texts.
    pub fn to_parts(&self) -> AuthorityParts {
        AuthorityParts {
            trust_domain: self.trust_domain.clone(),
            instance: self.instance.clone(),
            root: self.active.part(),
            prepared: self
                .prepared
                .as_ref()
                .map(|prepared| PreparedPart { authority: prepared.authority.part(), since: prepared.since }),
            retired: self.retired.iter().map(retired_part).collect(),
            intermediate: self.intermediate.part(),
            high_water: self.high_water,
        }
    }

    /// Reads an authority back.
    ///
    /// An expired intermediate or root is no error here; [`CertificateAuthority::maintain`] replaces it.
    ///
    /// # Errors
    ///
    /// [`AuthorityError`] if a text is broken, a key belongs to another certificate, or the intermediate is
    /// not under the root.
    pub fn load(parts: &AuthorityParts, settings: CaSettings) -> Result<Self, AuthorityError> {
        SpiffeId::server(&parts.trust_domain, &parts.instance).map_err(AuthorityError::Instance)?;
        let active = SigningAuthority::load(&parts.root)?;
        let intermediate = SigningAuthority::load(&parts.intermediate)?;
        if !active.has_signed(&intermediate) {
            return Err(AuthorityError::BrokenChain);
        }
        let prepared = parts.prepared.as_ref().map(load_prepared).transpose()?;
        Ok(Self {
            trust_domain: parts.trust_domain.clone(),
            instance: parts.instance.clone(),
            settings,
            active,
            prepared,
            retired: parts.retired.iter().map(load_retired).collect::<Result<_, _>>()?,
            intermediate,
            high_water: parts.high_water,
        })
    }
}

fn load_prepared(part: &PreparedPart) -> Result<Prepared, AuthorityError> {
    Ok(Prepared { authority: SigningAuthority::load(&part.authority)?, since: part.since })
}

fn load_retired(part: &RetiredPart) -> Result<Retired, AuthorityError> {
    let certificates = pem::certificates(&part.certificate_pem).ok_or(AuthorityError::Pem)?;
    let certificate = certificates.into_iter().next().ok_or(AuthorityError::Pem)?;
    let not_after = Certificate::parse(&certificate).map_err(|_| AuthorityError::Certificate)?.not_after;
    Ok(Retired { certificate, not_after, at: part.at })
}

fn retired_part(retired: &Retired) -> RetiredPart {
    let mut certificate_pem = String::new();
    pem::write(&mut certificate_pem, pem::CERTIFICATE, &retired.certificate);
    RetiredPart { certificate_pem, at: retired.at }
}
