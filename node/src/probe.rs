//! What a stranger sees of an agent: a raw dial with a certificate of the caller's choice.
//!
//! For checks that must be real (`weft demo`): nothing of the mesh's identity is used, and the answer is what the wire
//! says.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use weft_identity::{
    ca::CertificateAuthority,
    csr::SigningRequest,
    spiffe::SpiffeId,
    svid::Svid,
    tls::{BundleSlot, ExpectedPeer, SvidSlot, client_config, crypto_provider},
};
use weft_overlay::{ALPN, EndpointKeys, Overlay, OverlayMetrics, TransportSettings, bind_udp};

use crate::clock::Clock;

/// What the stranger shows.
#[derive(Clone, Copy, Debug)]
pub enum Certificate<'a> {
    /// A certificate for this SPIFFE ID, well-formed in every way, from an authority of its own making.
    ForeignAuthority(&'a str),
    /// None.
    None,
}

/// What came of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The tunnel stood: the stranger is in.
    Accepted,
    /// The other end, or TLS, refused; in its words.
    Refused(String),
}

/// Dials the agent at `address` as a stranger would, for the endpoint of that label. Blocks, for at most 10 s.
///
/// # Errors
///
/// What kept the probe itself from working.
pub fn stranger(address: SocketAddr, label: &str, certificate: Certificate<'_>) -> Result<Outcome, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let config = stranger_config(certificate)?;
    runtime.block_on(async {
        let dial = dial(address, label, Arc::new(config));
        tokio::time::timeout(Duration::from_secs(10), dial)
            .await
            .map_err(|_| "no answer within 10 s".to_owned())?
    })
}

async fn dial(address: SocketAddr, label: &str, config: Arc<ClientConfig>) -> Result<Outcome, String> {
    let any = SocketAddr::new(
        if address.is_ipv4() { [0, 0, 0, 0].into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() },
        0,
    );
    let socket = bind_udp(any).map_err(|e| e.to_string())?;
    let server = nobody()?;
    let keys = EndpointKeys::generate().map_err(|e| e.to_string())?;
    let metrics = Arc::new(OverlayMetrics::unregistered());
    let overlay = Overlay::bind(socket, server, TransportSettings::default(), &keys, metrics)
        .map_err(|e| e.to_string())?;
    match overlay.dial(&[address], &format!("{label}.local.weft"), config).await {
        Err(error) => Ok(Outcome::Refused(error.to_string())),
        // TLS 1.3 tells a client that its certificate was refused only after its own handshake has ended.
        Ok(tunnel) => match tokio::time::timeout(Duration::from_secs(2), tunnel.closed()).await {
            Ok(reason) => Ok(Outcome::Refused(reason.to_string())),
            Err(_) => Ok(Outcome::Accepted),
        },
    }
}

/// Dials the agent at `address` with a local workload's own SVID, without caring who answers. Blocks.
///
/// # Errors
///
/// Why there was no tunnel.
pub(crate) fn insider(
    address: SocketAddr,
    label: &str,
    slot: SvidSlot,
    bundles: BundleSlot,
) -> Result<(), String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let config = client_config(Some(slot), bundles, ExpectedPeer::Anyone, &[ALPN]);
    match runtime.block_on(dial(address, label, Arc::new(config)))? {
        Outcome::Accepted => Ok(()),
        Outcome::Refused(why) => Err(why),
    }
}

/// A server configuration for an endpoint that only dials: it presents nothing, so nobody can connect.
fn nobody() -> Result<Arc<rustls::ServerConfig>, String> {
    use weft_identity::{
        bundle::TrustBundles,
        tls::{ClientAuth, InboundSvids, server_config},
    };
    let resolver = Arc::new(InboundSvids::new());
    let bundles = BundleSlot::new(TrustBundles::new());
    let config = server_config(resolver, bundles, ClientAuth::Required, &[ALPN]);
    config.map(Arc::new).map_err(|e| e.to_string())
}

fn stranger_config(certificate: Certificate<'_>) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match certificate {
        Certificate::None => builder.with_no_client_auth(),
        Certificate::ForeignAuthority(id) => {
            let svid = forged(id)?;
            let chain = svid.chain().to_vec();
            builder.with_client_auth_cert(chain, svid.key().clone_key()).map_err(|e| e.to_string())?
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// An SVID that is right in everything but the authority.
fn forged(id: &str) -> Result<Svid, String> {
    let id: SpiffeId = id.parse().map_err(|e: weft_identity::spiffe::InvalidSpiffeId| e.to_string())?;
    let now = Clock::system().wall();
    let mut authority =
        CertificateAuthority::create(id.trust_domain(), "stranger", now).map_err(|e| e.to_string())?;
    let (key, request) = SigningRequest::create().map_err(|e| e.to_string())?;
    let request = SigningRequest::parse(&request).map_err(|e| e.to_string())?;
    let issued =
        authority.issue(&request, &id, Duration::from_secs(3_600), now).map_err(|e| e.to_string())?;
    Svid::parse(issued.chain, key).map_err(|e| e.to_string())
}

/// A stranger does not care whom it calls.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto_provider().signature_verification_algorithms.supported_schemes()
    }
}
