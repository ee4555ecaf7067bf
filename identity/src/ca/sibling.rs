//! The root of another instance of the same control plane, before it is let into the bundle.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use super::profile::root_name;
use crate::spiffe::TrustDomain;
use crate::svid::{SvidError, profile};
use crate::x509::certificate::Certificate;
use crate::x509::fingerprint;
use crate::x509::public_key::Signed;

/// Why a certificate is not the root of another instance.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotASibling {
    /// It cannot be read, or is no authority of the trust domain.
    #[error("it is no authority of the trust domain: {0}")]
    Profile(#[from] SvidError),
    /// Whoever sent it did not sign it with its key, or it is an intermediate.
    #[error("it is not signed by its own key")]
    NotSelfSigned,
    /// It is not valid at this time.
    #[error("it is not valid now")]
    NotValid,
}

/// The root of another instance.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SiblingRoot {
    /// DER.
    pub certificate: CertificateDer<'static>,
    /// SHA-256 of the DER.
    pub fingerprint: [u8; 32],
}

impl SiblingRoot {
    /// Reads a root and checks that it may stand in the bundle of `trust_domain`.
    ///
    /// # Errors
    ///
    /// [`NotASibling`].
    pub fn parse(der: &[u8], trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, NotASibling> {
        let parsed = Certificate::parse(der).map_err(SvidError::from)?;
        profile::check_root(&parsed)?;
        profile::check_authority(&parsed, trust_domain)?;
        let signed = Signed::parse(der).map_err(SvidError::from)?;
        if parsed.subject != parsed.issuer || !signed.is_signed_by(parsed.spki) {
            return Err(NotASibling::NotSelfSigned);
        }
        if now < parsed.not_before || parsed.not_after <= now {
            return Err(NotASibling::NotValid);
        }
        Ok(Self { certificate: CertificateDer::from(der.to_vec()), fingerprint: fingerprint(der) })
    }
}

/// Whether `root` was made by the instance of that name, as its common name says. Only for roots of one's own mesh: the
/// name is for people, and nothing is trusted for it.
#[must_use]
pub fn is_root_of(root: &[u8], instance: &str) -> bool {
    let name = root_name(instance);
    let named = Certificate::parse(root).map(|parsed| parsed.subject.to_vec()).unwrap_or_default();
    named.windows(name.len()).any(|part| part == name.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ca::{CaSettings, CertificateAuthority};

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn domain(name: &str) -> TrustDomain {
        name.parse().unwrap()
    }

    #[test]
    fn a_root_of_the_domain_is_one_and_nothing_else_is() {
        let corp = domain("corp.example");
        let ca = CertificateAuthority::create(&corp, "b", now()).unwrap();
        let root = ca.active_root().clone();
        let read = SiblingRoot::parse(&root, &corp, now()).unwrap();
        assert!(is_root_of(&root, "b") && !is_root_of(&root, "a") && !is_root_of(b"", "b"));
        assert_eq!((read.fingerprint, &read.certificate), (fingerprint(&root), &root));

        assert!(matches!(
            SiblingRoot::parse(&root, &domain("other.example"), now()),
            Err(NotASibling::Profile(_))
        ));
        let late = now() + CaSettings::default().root_lifetime;
        assert_eq!(SiblingRoot::parse(&root, &corp, late), Err(NotASibling::NotValid));
        let intermediate = ca.to_parts().intermediate.certificate_pem;
        let intermediate = crate::x509::pem::certificates(&intermediate).unwrap().remove(0);
        assert_eq!(SiblingRoot::parse(&intermediate, &corp, now()), Err(NotASibling::NotSelfSigned));
        let mut forged = root.to_vec();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert!(SiblingRoot::parse(&forged, &corp, now()).is_err());
        assert!(SiblingRoot::parse(&root[..root.len() / 2], &corp, now()).is_err());
    }
}
