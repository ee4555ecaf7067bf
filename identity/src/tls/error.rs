//! Why a peer is refused, and how that is still known after rustls and QUIC have carried it.
//!
//! Owns the words that stand in metrics and logs. What leads to them is decided in [`super::verifier`].

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::{CertificateError, Error, OtherError};

use super::peer::ExpectedPeer;
use crate::denied::{Denied, Subject};
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::svid::SvidError;

/// Why a chain does not prove an identity.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VerifyError {
    /// The chain is too long, or its leaf is not an X.509-SVID.
    #[error("the peer's certificate is not an X.509-SVID: {0}")]
    Profile(#[from] SvidError),
    /// There is no bundle for the leaf's trust domain; no other bundle is tried.
    #[error("trust domain {0} is not trusted")]
    UnknownTrustDomain(TrustDomain),
    /// The bundle has no root that is still valid: X.509-SVIDs of the trust domain are all invalid.
    #[error("trust domain {0} has no valid root")]
    NoRoot(TrustDomain),
    /// The leaf, or an authority above it, is not valid yet.
    #[error("a certificate of {id} is not valid yet")]
    NotYetValid {
        /// The identity that the leaf claims.
        id: SpiffeId,
        /// When it becomes valid.
        not_before: SystemTime,
        /// The moment of the check.
        now: SystemTime,
    },
    /// The leaf, or an authority above it, has expired.
    #[error("a certificate of {id} has expired")]
    Expired {
        /// The identity that the leaf claims.
        id: SpiffeId,
        /// When it expired.
        not_after: SystemTime,
        /// The moment of the check.
        now: SystemTime,
    },
    /// An authority on the path breaks a rule of signing certificates.
    #[error("an authority above {id} is not acceptable: {source}")]
    Authority {
        /// The identity that the leaf claims.
        id: SpiffeId,
        /// The rule.
        source: SvidError,
    },
    /// No valid path leads from the leaf to a root of its trust domain.
    #[error("the certificate of {id} does not lead to a root of its trust domain: {source}")]
    Untrusted {
        /// The identity that the leaf claims.
        id: SpiffeId,
        /// What path building found.
        source: webpki::Error,
    },
    /// The peer has proven an identity, and it is another one than expected.
    #[error("the peer is {id}, expected was {expected}")]
    Unexpected {
        /// The proven identity.
        id: SpiffeId,
        /// Whom the handshake was for.
        expected: ExpectedPeer,
    },
    /// The chain holds, and its identity, certificate or key was revoked.
    #[error("{id} is revoked, by {by}")]
    Revoked {
        /// The proven identity.
        id: SpiffeId,
        /// What was revoked.
        by: Subject,
    },
    /// The chain holds, and was issued to a node that is banned.
    #[error("the certificate of {id} was issued to node {node}, which is banned")]
    NodeBanned {
        /// The proven identity.
        id: SpiffeId,
        /// The node.
        node: String,
    },
    /// No certificate of the chain has a fingerprint that the joiner was given.
    #[error("no root in the presented chain has a fingerprint that the token names")]
    UnknownRoot,
}

impl VerifyError {
    /// A word for metrics and logs, one of [`REASONS`].
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Profile(_) => "not_an_svid",
            Self::UnknownTrustDomain(_) => "unknown_trust_domain",
            Self::NoRoot(_) => "no_root",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::Expired { .. } => "expired",
            Self::Authority { .. } => "bad_authority",
            Self::Untrusted { .. } => "untrusted",
            Self::Unexpected { .. } => "unexpected_identity",
            Self::Revoked { .. } => "identity_revoked",
            Self::NodeBanned { .. } => "node_banned",
            Self::UnknownRoot => "unknown_root",
        }
    }

    /// The refusal of `id` by an entry of the denylist.
    pub(crate) fn denied(id: SpiffeId, entry: &Denied) -> Self {
        match &entry.node {
            Some(node) => Self::NodeBanned { id, node: node.clone() },
            None => Self::Revoked { id, by: entry.subject.clone() },
        }
    }

    /// The error of this crate inside a handshake error, if that is what failed the handshake.
    pub fn of(error: &Error) -> Option<&Self> {
        let Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) = error else {
            return None;
        };
        inner.downcast_ref().map(|Refusal(error)| error)
    }

    /// The [`VerifyError::reason`] in the text of a handshake error of this end: QUIC keeps no more of it than
    /// its text.
    pub fn reason_in(text: &str) -> Option<&'static str> {
        let (_, refusal) = text.split_once(REFUSAL)?;
        let (word, _) = refusal.split_once(':')?;
        REASONS.into_iter().find(|reason| *reason == word)
    }
}

/// Every [`VerifyError::reason`].
pub const REASONS: [&str; 11] = [
    "not_an_svid",
    "unknown_trust_domain",
    "no_root",
    "not_yet_valid",
    "expired",
    "bad_authority",
    "untrusted",
    "unexpected_identity",
    "unknown_root",
    "identity_revoked",
    "node_banned",
];

/// What stands before the reason in the text of a handshake error.
const REFUSAL: &str = "refused as ";

/// A [`VerifyError`] on its way through rustls, which shows it by its `Debug`: `refused as expired: …`.
struct Refusal(VerifyError);

impl fmt::Debug for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{REFUSAL}{}: {}", self.0.reason(), self.0)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

impl From<VerifyError> for Error {
    fn from(error: VerifyError) -> Self {
        // The alert is all that the other end hears of it. These two have one of their own (RFC 8446 §6.2):
        // certificate_revoked and access_denied; what rustls says of them here has no room for words of ours.
        match error {
            VerifyError::Revoked { .. } => Self::InvalidCertificate(CertificateError::Revoked),
            VerifyError::NodeBanned { .. } => {
                Self::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
            }
            error @ (VerifyError::Profile(_)
            | VerifyError::UnknownTrustDomain(_)
            | VerifyError::NoRoot(_)
            | VerifyError::NotYetValid { .. }
            | VerifyError::Expired { .. }
            | VerifyError::Authority { .. }
            | VerifyError::Untrusted { .. }
            | VerifyError::Unexpected { .. }
            | VerifyError::UnknownRoot) => {
                Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Refusal(error)))))
            }
        }
    }
}
