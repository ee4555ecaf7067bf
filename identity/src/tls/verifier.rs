//! Whether a presented chain proves an identity: the one place where trust is decided.
//!
//! Owns the order of the checks: size before syntax, the leaf's profile before its trust domain, the
//! bundle of exactly that trust domain before any signature, the denylist after the proof, the expected
//! identity last. Path building
//! and signatures are rustls-webpki's (RFC 5280 §6), with what it leaves open decided here: keyUsage, the
//! moment of expiry, and the SPIFFE IDs of authorities.
//!
//! Invariant: an identity comes out only if its chain ends in a root of its own trust domain and nothing
//! of it is denied.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::error::VerifyError;
use super::peer::{ExpectedPeer, PeerIdentity, peer_id};
use super::provider::SIGNATURES;
use super::slot::BundleSlot;
use crate::bundle::{TrustBundle, TrustBundles};
use crate::spiffe::SpiffeId;
use crate::svid::{SvidError, profile};
use crate::x509::certificate::Certificate;

/// Which side of the handshake the peer is on; an extended key usage must allow it (X5-10).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PeerRole {
    /// The peer was dialled.
    Server,
    /// The peer called.
    Client,
}

/// Whether a listener accepts callers without a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClientAuth {
    /// A caller without an SVID is refused in the handshake: every tunnel.
    Required,
    /// A certificate is requested, and judged if given. For the control port, where a node that joins has
    /// none yet; every method but attestation and bundles must refuse the anonymous.
    Optional,
}

/// Verifies `chain` (leaf first) against the bundle of its own trust domain, for a peer in `role`.
///
/// Pure. To judge a live connection again, see [`still_trusted`].
///
/// # Errors
///
/// [`VerifyError`], the first check that fails. Chains beyond the limits fail before signature work.
pub fn verify_chain(
    bundles: &TrustBundles,
    chain: &[CertificateDer<'_>],
    role: PeerRole,
    now: SystemTime,
) -> Result<PeerIdentity, VerifyError> {
    profile::check_size(chain)?;
    let (leaf_der, intermediates) = chain.split_first().ok_or(SvidError::Empty)?;
    let leaf = Certificate::parse(leaf_der).map_err(SvidError::from)?;
    let id = profile::check_leaf(&leaf)?;
    let bundle = bundles
        .get(id.trust_domain())
        .ok_or_else(|| VerifyError::UnknownTrustDomain(id.trust_domain().clone()))?;
    let anchors = bundle.anchors(now);
    if anchors.is_empty() {
        return Err(VerifyError::NoRoot(id.trust_domain().clone()));
    }
    check_time(&leaf, &id, now)?;

    // webpki can carry only its own errors out of the path, so ours is kept beside it.
    let fault = RefCell::new(None);
    let check_path = |path: &webpki::VerifiedPath<'_>| {
        check_path(path, bundle, &leaf, &id, now).map_err(|error| {
            fault.borrow_mut().get_or_insert(error);
            webpki::Error::UnknownIssuer
        })
    };
    let untrusted = |source| path_error(&id, source, now);
    let end_entity = EndEntityCert::try_from(leaf_der).map_err(untrusted)?;
    end_entity
        .verify_for_usage(
            SIGNATURES.all,
            &anchors,
            intermediates,
            unix_time(now),
            match role {
                PeerRole::Server => KeyUsage::server_auth(),
                PeerRole::Client => KeyUsage::client_auth(),
            },
            None,
            Some(&check_path),
        )
        .map_err(|source| fault.take().unwrap_or_else(|| untrusted(source)))?;
    let peer = peer_id(chain)?;
    match bundles.denied().find(peer.presented(), now) {
        Some(denied) => Err(VerifyError::denied(peer.id.clone(), denied)),
        None => Ok(peer),
    }
}

/// Judges what webpki leaves open about a path that holds: its authorities' SPIFFE IDs, the moment of their expiry,
/// and that each certificate names the one above it and no other.
fn check_path(
    path: &webpki::VerifiedPath<'_>,
    bundle: &TrustBundle,
    leaf: &Certificate<'_>,
    id: &SpiffeId,
    now: SystemTime,
) -> Result<(), VerifyError> {
    let faulty = |source| VerifyError::Authority { id: id.clone(), source };
    let authorities: Vec<_> = path.intermediate_certificates().map(|authority| authority.der()).collect();
    let mut below = leaf.clone();
    for der in &authorities {
        let authority = Certificate::parse(der).map_err(|error| faulty(error.into()))?;
        profile::check_authority(&authority, id.trust_domain()).map_err(faulty)?;
        check_time(&authority, id, now)?;
        if !profile::names_issuer(&below, &authority).map_err(faulty)? {
            return Err(faulty(SvidError::IssuerMismatch));
        }
        below = authority;
    }
    let mut roots = bundle.certificates_of(path.anchor()).filter_map(|der| Certificate::parse(der).ok());
    let named = roots.any(|root| profile::names_issuer(&below, &root).unwrap_or(false));
    if named { Ok(()) } else { Err(faulty(SvidError::IssuerMismatch)) }
}

/// Whether the chain of a live connection still proves its identity, when bundles or time have changed.
///
/// In which role the peer was accepted does not matter any more; one that it may still have is enough.
///
/// # Errors
///
/// As [`verify_chain`]: the connection must be closed.
pub fn still_trusted(
    chain: &[CertificateDer<'_>],
    bundles: &TrustBundles,
    now: SystemTime,
) -> Result<PeerIdentity, VerifyError> {
    match verify_chain(bundles, chain, PeerRole::Server, now) {
        denied @ Err(VerifyError::Revoked { .. } | VerifyError::NodeBanned { .. }) => denied,
        Err(_) => verify_chain(bundles, chain, PeerRole::Client, now),
        proven @ Ok(_) => proven,
    }
}

/// An authority out of its time is told apart, since it is mended by waiting or by rotation.
fn path_error(id: &SpiffeId, source: webpki::Error, now: SystemTime) -> VerifyError {
    let id = id.clone();
    if let webpki::Error::CertExpired { not_after, .. } = source {
        VerifyError::Expired { id, not_after: system_time(not_after), now }
    } else if let webpki::Error::CertNotValidYet { not_before, .. } = source {
        VerifyError::NotYetValid { id, not_before: system_time(not_before), now }
    } else {
        VerifyError::Untrusted { id, source }
    }
}

/// Valid means `not_before <= now < not_after`; webpki would accept `now == not_after`.
fn check_time(certificate: &Certificate<'_>, id: &SpiffeId, now: SystemTime) -> Result<(), VerifyError> {
    let id = id.clone();
    if now < certificate.not_before {
        Err(VerifyError::NotYetValid { id, not_before: certificate.not_before, now })
    } else if now >= certificate.not_after {
        Err(VerifyError::Expired { id, not_after: certificate.not_after, now })
    } else {
        Ok(())
    }
}

/// A clock before 1970 reads as 1970: every certificate is then not valid yet.
fn unix_time(now: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// The other direction, for the time that rustls passes in.
pub(crate) fn system_time(now: UnixTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(now.as_secs())
}

/// The verifier that rustls calls, in both roles. Reads the bundles anew in each handshake.
#[derive(Debug)]
pub struct SpiffeVerifier {
    bundles: BundleSlot,
    expected: ExpectedPeer,
    client_auth: ClientAuth,
}

impl SpiffeVerifier {
    /// Accepts `expected` if the chain proves it in the bundles that `bundles` holds at that moment.
    ///
    /// `client_auth` matters only where the peer is the caller.
    pub fn new(bundles: BundleSlot, expected: ExpectedPeer, client_auth: ClientAuth) -> Self {
        Self { bundles, expected, client_auth }
    }

    /// Judges one chain, leaf first.
    ///
    /// # Errors
    ///
    /// As [`verify_chain`]; [`VerifyError::Unexpected`] if the proven identity is not the expected one.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: PeerRole,
        now: SystemTime,
    ) -> Result<PeerIdentity, VerifyError> {
        let peer = verify_chain(&self.bundles.load(), chain, role, now)?;
        if self.expected.accepts(&peer.id) {
            Ok(peer)
        } else {
            Err(VerifyError::Unexpected { id: peer.id, expected: self.expected.clone() })
        }
    }
}

/// Joins what rustls hands over in two parts.
pub(crate) fn chain_of<'a>(
    end_entity: &CertificateDer<'a>,
    intermediates: &[CertificateDer<'a>],
) -> Vec<CertificateDer<'a>> {
    std::iter::once(end_entity).chain(intermediates).cloned().collect()
}

/// TLS 1.2 is not spoken; rustls has no such code here, and this says so a second time.
pub(crate) fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
}

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>, // an opaque label; the identity is in the certificate
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(&chain_of(end_entity, intermediates), PeerRole::Server, system_time(now))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &SIGNATURES)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SIGNATURES.supported_schemes()
    }
}

impl ClientCertVerifier for SpiffeVerifier {
    fn client_auth_mandatory(&self) -> bool {
        match self.client_auth {
            ClientAuth::Required => true,
            ClientAuth::Optional => false,
        }
    }

    /// No hints: names of roots would tell an unauthenticated caller which trust domains are trusted.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(&chain_of(end_entity, intermediates), PeerRole::Client, system_time(now))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &SIGNATURES)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SIGNATURES.supported_schemes()
    }
}
