//! Between rustls and quinn: which TLS configurations may carry tunnels, and what a handshake proved.
//!
//! Whom to trust is decided by the configurations that come in. Here stands what must hold of any of
//! them: `weft/1`, no early data, no session tickets.

use std::sync::Arc;

use quinn::ValidationTokenConfig;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls_pki_types::CertificateDer;
use weft_identity::tls::{PeerIdentity, peer_id};

use crate::ALPN;
use crate::code::CloseCode;
use crate::error::ConfigFault;
use crate::keys::EndpointKeys;
use crate::transport::{Path, Transport};

/// The TLS side of accepting, if it keeps what every tunnel promises.
pub(crate) fn server_crypto(server: Arc<rustls::ServerConfig>) -> Result<Arc<QuicServerConfig>, ConfigFault> {
    if server.max_early_data_size != 0 || server.send_half_rtt_data {
        return Err(ConfigFault::EarlyData);
    }
    if server.send_tls13_tickets != 0 || server.max_tls13_tickets != 0 {
        return Err(ConfigFault::Resumption);
    }
    if !server.alpn_protocols.iter().any(|protocol| protocol == ALPN) {
        return Err(ConfigFault::Alpn);
    }
    QuicServerConfig::try_from(server).map(Arc::new).map_err(|_| ConfigFault::InitialSuite)
}

/// The TLS side of dialling, likewise.
pub(crate) fn client_crypto(client: Arc<rustls::ClientConfig>) -> Result<Arc<QuicClientConfig>, ConfigFault> {
    if client.enable_early_data {
        return Err(ConfigFault::EarlyData);
    }
    if !client.alpn_protocols.iter().any(|protocol| protocol == ALPN) {
        return Err(ConfigFault::Alpn);
    }
    QuicClientConfig::try_from(client).map(Arc::new).map_err(|_| ConfigFault::InitialSuite)
}

/// How handshakes from `path` are accepted.
pub(crate) fn server_config(
    crypto: &Arc<QuicServerConfig>,
    transport: &Transport,
    path: Path,
    keys: &EndpointKeys,
) -> quinn::ServerConfig {
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0); // none: a returning caller validates like any other
    let admission = &transport.settings.admission;
    let mut config = quinn::ServerConfig::new(crypto.clone(), keys.token_key());
    config
        .transport_config(transport.accepted(path))
        .validation_token_config(tokens)
        .retry_token_lifetime(admission.retry_token_lifetime)
        // Between nodes addresses do not change; a path that does is a spoof or a new node.
        .migration(false)
        .max_incoming(admission.max_pending)
        .incoming_buffer_size(admission.incoming_buffer_bytes)
        .incoming_buffer_size_total(admission.incoming_buffers_bytes);
    config
}

/// The server name, if the connection speaks `weft/1`.
#[expect(clippy::option_option, reason = "no tunnel at all, a tunnel without a name, a tunnel with one")]
pub(crate) fn spoken(connection: &quinn::Connection) -> Option<Option<String>> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    (data.protocol.as_deref() == Some(ALPN)).then_some(data.server_name)
}

/// Who the verified chain names.
pub(crate) fn identity(connection: &quinn::Connection) -> Result<PeerIdentity, String> {
    let presented = connection.peer_identity().ok_or("the peer presented no certificate")?;
    let chain = presented.downcast::<Vec<CertificateDer<'static>>>();
    let chain = chain.map_err(|_| "the peer's certificates are of an unknown kind")?;
    peer_id(&chain).map_err(|error| {
        connection.close(CloseCode::Protocol.varint(), b"certificate without an identity");
        error.to_string()
    })
}
