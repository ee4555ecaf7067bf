//! Who a peer is expected to be, and who it was found to be.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use crate::denied::Presented;
use crate::spiffe::{IdKind, SpiffeId, TrustDomain};
use crate::svid::{Serial, SvidError, profile};
use crate::x509::certificate::Certificate;
use crate::x509::fingerprint;

/// Whom a handshake accepts, beyond the proof that the peer is whoever it says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ExpectedPeer {
    /// This identity: the usual case of a dial.
    Exactly(SpiffeId),
    /// One of these. An empty list accepts nobody.
    AnyOf(Arc<[SpiffeId]>),
    /// Any control plane instance, `/server/*`, of this trust domain.
    AnyServerOf(TrustDomain),
    /// Any workload, `/ns/*/sa/*`, of a trusted domain: what it may do is decided per flow.
    AnyWorkload,
    /// Anybody of a trusted domain. For listeners that decide per call, such as the control port.
    Anyone,
}

impl ExpectedPeer {
    /// Whether `id` is among those expected.
    pub fn accepts(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exactly(expected) => expected == id,
            Self::AnyOf(expected) => expected.contains(id),
            Self::AnyServerOf(domain) => {
                id.trust_domain() == domain && matches!(id.kind(), IdKind::Server(_))
            }
            Self::AnyWorkload => matches!(id.kind(), IdKind::Workload { .. }),
            Self::Anyone => true,
        }
    }
}

impl fmt::Display for ExpectedPeer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(id) => id.fmt(formatter),
            Self::AnyOf(ids) => write!(formatter, "one of {} identities", ids.len()),
            Self::AnyServerOf(domain) => write!(formatter, "a server of {domain}"),
            Self::AnyWorkload => formatter.write_str("a workload"),
            Self::Anyone => formatter.write_str("anyone"),
        }
    }
}

/// A peer as its certificate chain names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerIdentity {
    /// The identity that the leaf proves.
    pub id: SpiffeId,
    /// When the first certificate of the presented chain expires: the connection must end before.
    pub not_after: SystemTime,
    /// The leaf's serial number.
    pub serial: Serial,
    /// SHA-256 of the leaf's SubjectPublicKeyInfo.
    pub key: [u8; 32],
    /// Identifiers of the keys that signed the leaf and each certificate above it, in that order, as far
    /// as the certificates name them. One that is revoked takes the connection with it.
    pub authority_key_ids: Vec<Vec<u8>>,
}

/// Reads who the peer of an established connection is from the chain it presented, leaf first.
///
/// Only for chains that a handshake of this crate has verified: nothing is verified again. To judge a
/// chain against bundles that changed since, use [`super::still_trusted`].
///
/// # Errors
///
/// [`SvidError`] if there is no chain or the leaf does not obey the profile.
pub fn peer_id(chain: &[CertificateDer<'_>]) -> Result<PeerIdentity, SvidError> {
    profile::check_size(chain)?;
    let (leaf, above) = chain.split_first().ok_or(SvidError::Empty)?;
    let leaf = Certificate::parse(leaf)?;
    let id = profile::check_leaf(&leaf)?;
    let serial = Serial::from_integer(leaf.serial)?;
    let key = fingerprint(leaf.spki);
    let mut peer = PeerIdentity { id, not_after: leaf.not_after, serial, key, authority_key_ids: Vec::new() };
    peer.note_authority(&leaf)?;
    for certificate in above {
        let certificate = Certificate::parse(certificate)?;
        peer.not_after = peer.not_after.min(certificate.not_after);
        peer.note_authority(&certificate)?;
    }
    Ok(peer)
}

impl PeerIdentity {
    /// What a denylist is asked about.
    pub fn presented(&self) -> Presented<'_> {
        let issuer = self.authority_key_ids.first().map(Vec::as_slice);
        Presented { id: &self.id, serial: self.serial.as_bytes(), key: &self.key, issuer }
    }

    fn note_authority(&mut self, signed: &Certificate<'_>) -> Result<(), SvidError> {
        self.authority_key_ids.extend(signed.authority_key_id()?.map(<[u8]>::to_vec));
        Ok(())
    }
}
