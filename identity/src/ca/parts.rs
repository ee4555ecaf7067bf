//! An authority as texts, for the registry to keep in 0600 files.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use zeroize::Zeroizing;

use super::authority::SigningAuthority;
use super::life::{Former, FormerState, Prepared};
use super::{AuthorityError, CaSettings, CertificateAuthority, RootState};
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::svid::Validity;
use crate::x509::certificate::Certificate;
use crate::x509::pem;

/// A certificate with its key. `Debug` shows no key.
#[derive(Clone, Eq, PartialEq)]
pub struct KeyPart {
    /// One PEM certificate, and those above it.
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

/// A root that does not sign any more.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FormerPart {
    /// Its PEM certificate; with a key, the certificate of that and those above it, the root last.
    pub certificate_pem: String,
    /// The key, of an old root to which the authority can go back.
    pub key_pem: Option<Zeroizing<String>>,
    /// Old, tainted or revoked.
    pub state: RootState,
    /// Since when.
    pub since: SystemTime,
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
    /// Since when it signs.
    pub active_since: SystemTime,
    /// The next root, if one is prepared.
    pub prepared: Option<PreparedPart>,
    /// Former roots that are still published, and revoked ones.
    pub former: Vec<FormerPart>,
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
            active_since: self.active_since,
            prepared: self
                .prepared
                .as_ref()
                .map(|prepared| PreparedPart { authority: prepared.authority.part(), since: prepared.since }),
            former: self.former.iter().map(former_part).collect(),
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
            active: Arc::new(active),
            active_since: parts.active_since,
            prepared,
            former: parts.former.iter().map(load_former).collect::<Result<_, _>>()?,
            intermediate: Arc::new(intermediate),
            high_water: parts.high_water,
        })
    }
}

fn load_prepared(part: &PreparedPart) -> Result<Prepared, AuthorityError> {
    Ok(Prepared { authority: Arc::new(SigningAuthority::load(&part.authority)?), since: part.since })
}

fn load_former(part: &FormerPart) -> Result<Former, AuthorityError> {
    let certificates = pem::certificates(&part.certificate_pem).ok_or(AuthorityError::Pem)?;
    let certificate = certificates.into_iter().next_back().ok_or(AuthorityError::Pem)?;
    let parsed = Certificate::parse(&certificate).map_err(|_| AuthorityError::Certificate)?;
    let validity = Validity { not_before: parsed.not_before, not_after: parsed.not_after };
    let state = match (part.state, &part.key_pem) {
        (RootState::Old, None) => FormerState::Old(None),
        (RootState::Old, Some(key)) => {
            let part = KeyPart { certificate_pem: part.certificate_pem.clone(), key_pem: key.clone() };
            FormerState::Old(Some(Arc::new(SigningAuthority::load(&part)?)))
        }
        (RootState::Tainted, None) => FormerState::Tainted,
        (RootState::Revoked, None) => FormerState::Revoked,
        (RootState::Tainted | RootState::Revoked, Some(_)) | (RootState::Prepared | RootState::Active, _) => {
            return Err(AuthorityError::State);
        }
    };
    Ok(Former { certificate, validity, state, since: part.since })
}

fn former_part(former: &Former) -> FormerPart {
    let (state, since) = (former.named_state(), former.since);
    if let FormerState::Old(Some(authority)) = &former.state {
        let KeyPart { certificate_pem, key_pem } = authority.part();
        return FormerPart { certificate_pem, key_pem: Some(key_pem), state, since };
    }
    let mut certificate_pem = String::new();
    pem::write(&mut certificate_pem, pem::CERTIFICATE, &former.certificate);
    FormerPart { certificate_pem, key_pem: None, state, since }
}
