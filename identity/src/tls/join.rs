//! The first contact of a node that has a token and no bundle yet.
//!
//! A token names the trust domain and the SHA-256 fingerprints of its roots. The control listener appends
//! its root to the chain it presents; the joiner finds the one whose fingerprint it was given, anchors on
//! it and demands a control plane instance of that trust domain. It has no certificate to show.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::config::anonymous_client_config;
use super::error::VerifyError;
use super::peer::{ExpectedPeer, PeerIdentity};
use super::provider::SIGNATURES;
use super::verifier::{PeerRole, chain_of, no_tls12, system_time, verify_chain};
use crate::bundle::{TrustBundle, TrustBundles};
use crate::spiffe::TrustDomain;
use crate::svid::{SvidError, profile};
use crate::x509::fingerprint;

/// Accepts a control plane instance whose presented root has a fingerprint known beforehand.
#[derive(Debug)]
pub struct JoinVerifier {
    trust_domain: TrustDomain,
    fingerprints: BTreeSet<[u8; 32]>,
}

impl JoinVerifier {
    /// Pins the roots with these SHA-256 fingerprints (of their DER) for `trust_domain`.
    ///
    /// Without fingerprints nobody is accepted.
    pub fn new(trust_domain: TrustDomain, fingerprints: impl IntoIterator<Item = [u8; 32]>) -> Self {
        Self { trust_domain, fingerprints: fingerprints.into_iter().collect() }
    }

    /// Judges one chain, leaf first, with its root among the certificates.
    ///
    /// # Errors
    ///
    /// [`VerifyError::UnknownRoot`] if no certificate is pinned; [`VerifyError::Unexpected`] if the chain
    /// proves anything but `/server/*` of the trust domain; else as [`verify_chain`].
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<PeerIdentity, VerifyError> {
        profile::check_size(chain)?;
        let pinned: Vec<_> = chain
            .iter()
            .filter(|certificate| self.fingerprints.contains(&fingerprint(certificate)))
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        if pinned.is_empty() {
            return Err(VerifyError::UnknownRoot);
        }
        let bundle =
            TrustBundle::new(self.trust_domain.clone(), pinned, 0).map_err(|_| SvidError::NotAnAuthority)?;
        let peer = verify_chain(&TrustBundles::from(bundle), chain, PeerRole::Server, now)?;
        let expected = ExpectedPeer::AnyServerOf(self.trust_domain.clone());
        if expected.accepts(&peer.id) {
            Ok(peer)
        } else {
            Err(VerifyError::Unexpected { id: peer.id, expected })
        }
    }
}

impl ServerCertVerifier for JoinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(&chain_of(end_entity, intermediates), system_time(now))?;
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

/// The client configuration of a node that joins: no certificate of its own, pinned roots.
pub fn join_config(verifier: JoinVerifier, alpn: &[&[u8]]) -> ClientConfig {
    anonymous_client_config(Arc::new(verifier), alpn)
}
