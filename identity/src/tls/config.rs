//! The rustls configurations of every listener and every dial.
//!
//! All of them: TLS 1.3 alone; no resumption, since a resumed session does not present its certificate
//! again and so outlives revocation and expiry (TLS-01); no early data, which can be replayed (TLS-02);
//! nothing sent by a server before the client has proven itself (TLS-03); no key log (TLS-06); no
//! certificate compression (CERT-25).
//!
//! The time that certificates are judged by is rustls' own clock. A test sets `time_provider` of the
//! configuration it got.

use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ClientConfig, Resumption, WantsClientCert};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, ServerConfig};
use rustls::version::TLS13;
use rustls::{ConfigBuilder, Error, NoKeyLog};

use super::peer::ExpectedPeer;
use super::provider::crypto_provider;
use super::slot::{BundleSlot, SvidSlot};
use super::verifier::{ClientAuth, SpiffeVerifier};

/// The configuration of a listener that presents what `resolver` picks and accepts any trusted caller.
///
/// `resolver` is an [`SvidSlot`] for the control port. For tunnels see [`tunnel_config`].
/// Of QUIC, a caller without one of `alpn` is refused by rustls; over TCP the acceptor must look.
///
/// # Errors
///
/// [`Error`] if the provider has no TLS 1.3 suite, which it has.
pub fn server_config(
    resolver: Arc<dyn ResolvesServerCert>,
    bundles: BundleSlot,
    client: ClientAuth,
    alpn: &[&[u8]],
) -> Result<ServerConfig, Error> {
    listener_config(resolver, SpiffeVerifier::new(bundles, ExpectedPeer::Anyone, client), alpn)
}

/// The configuration of a tunnel endpoint: as [`server_config`], and the caller must be a workload.
///
/// A node, a server or a person has an SVID of the same authority, and no business in a tunnel: a rule
/// for anybody of the trust domain means its workloads.
///
/// # Errors
///
/// As [`server_config`].
pub fn tunnel_config(
    resolver: Arc<dyn ResolvesServerCert>,
    bundles: BundleSlot,
    alpn: &[&[u8]],
) -> Result<ServerConfig, Error> {
    let verifier = SpiffeVerifier::new(bundles, ExpectedPeer::AnyWorkload, ClientAuth::Required);
    listener_config(resolver, verifier, alpn)
}

fn listener_config(
    resolver: Arc<dyn ResolvesServerCert>,
    verifier: SpiffeVerifier,
    alpn: &[&[u8]],
) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(resolver);
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_tls13_tickets = 0; // else a client may ask for some
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    config.key_log = Arc::new(NoKeyLog {});
    config.cert_decompressors = Vec::new();
    Ok(config)
}

/// The configuration of one dial: accepts `expected` only, so that a wrong server is refused before it
/// sees the caller's certificate.
///
/// Without `slot` the caller stays anonymous. Cheap: slot and bundles are shared handles.
pub fn client_config(
    slot: Option<SvidSlot>,
    bundles: BundleSlot,
    expected: ExpectedPeer,
    alpn: &[&[u8]],
) -> ClientConfig {
    let verifier = Arc::new(SpiffeVerifier::new(bundles, expected, ClientAuth::Required));
    match slot {
        Some(slot) => finish(builder(verifier).with_client_cert_resolver(Arc::new(slot)), alpn),
        None => anonymous_client_config(verifier, alpn),
    }
}

/// The configuration of a caller without a certificate.
pub(crate) fn anonymous_client_config(verifier: Arc<dyn ServerCertVerifier>, alpn: &[&[u8]]) -> ClientConfig {
    finish(builder(verifier).with_no_client_auth(), alpn)
}

fn builder(verifier: Arc<dyn ServerCertVerifier>) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&TLS13])
        .expect("crypto_provider() has suites and groups for TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
}

fn finish(mut config: ClientConfig, alpn: &[&[u8]]) -> ClientConfig {
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.send_ticket_request = None;
    config.enable_early_data = false;
    config.enable_sni = true;
    config.key_log = Arc::new(NoKeyLog {});
    config.cert_decompressors = Vec::new();
    config
}
