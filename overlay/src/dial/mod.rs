//! Dialling: the first address that answers and proves itself becomes the tunnel.
//!
//! [`plan`] says when which address is tried; here the attempts run.

mod plan;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::ConnectError;
use quinn::crypto::rustls::QuicClientConfig;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::info;
use weft_identity::tls::PeerIdentity;

use crate::clock;
use crate::code::CloseCode;
use crate::crypto::{client_crypto, identity, spoken};
use crate::endpoint::Overlay;
use crate::error::{Addresses, CloseReason, DialError};
use crate::live::attend;
use crate::load::PeerLoad;
use crate::transport::Path;
use crate::tunnel::{Role, Tunnel};
use plan::{DialPlan, Next};

/// An address that answers at all does so by then: quinn has sent its first packet at 0, 1 and 3 s (RFC 9002
/// section 6.2, from an initial round trip of 333 ms). Shorter than the connect timeout of a flow, so that its
/// caller hears of blocked UDP and not of slowness.
const ANSWERED_WITHIN: Duration = Duration::from_millis(3500);

impl Overlay {
    /// Makes a tunnel to the first of `addresses` that answers and proves itself to `client`, which must
    /// speak [`crate::ALPN`] without early data. `server_name` chooses the SVID that the other end presents.
    ///
    /// The whole dial takes at most the handshake timeout, and less if nobody answers at all. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`DialError`]; [`DialError::Blocked`] if nobody answered at all.
    pub async fn dial(
        &self,
        addresses: &[SocketAddr],
        server_name: &str,
        client: Arc<rustls::ClientConfig>,
    ) -> Result<Tunnel, DialError> {
        let crypto = client_crypto(client)?;
        let began = clock::now();
        let dialled = self.race(addresses, server_name, &crypto, began).await;
        let result = dialled.as_ref().map_or_else(dial_label, |_| "ok");
        self.shared.metrics.handshake(result, began.elapsed());
        let (connection, peer) = dialled?;
        let load = Arc::new(PeerLoad::new(&self.shared.settings.load, clock::now().into_std()));
        let tunnel = self.adopt(connection, peer, None, Role::Dialled, load);
        info!(peer = %tunnel.peer().id, address = %tunnel.remote_address(), "tunnel dialled");
        self.shared.tasks.spawn(attend(self.shared.live.clone(), tunnel.clone(), None));
        Ok(tunnel)
    }

    async fn race(
        &self,
        addresses: &[SocketAddr],
        server_name: &str,
        crypto: &Arc<QuicClientConfig>,
        began: Instant,
    ) -> Result<(quinn::Connection, PeerIdentity), DialError> {
        let waited = self.shared.settings.handshake_timeout;
        let unanswered = waited.min(ANSWERED_WITHIN);
        let mut plan = DialPlan::new(addresses.len(), began.into_std());
        let mut attempts = JoinSet::new();
        let (answers, mut answered) = tokio::sync::mpsc::channel(addresses.len().max(1));
        let mut failure = DialError::NoAddress;
        loop {
            let deadline = began + if plan.answered().is_some() { waited } else { unanswered };
            let next_at = match plan.next(clock::now().into_std()) {
                Next::Start(index) => {
                    match self.connect(addresses[index], server_name, crypto) {
                        Ok(connecting) => {
                            attempts.spawn(attempt(connecting, index, addresses[index], answers.clone()));
                        }
                        Err(error) => {
                            plan.handle_failure(index, clock::now().into_std());
                            failure = error;
                        }
                    }
                    continue;
                }
                Next::WaitUntil(then) => Instant::from_std(then).min(deadline),
                Next::Wait => deadline,
                Next::GiveUp => return Err(failure),
            };
            tokio::select! {
                biased;
                Some(Ok((index, ended))) = attempts.join_next() => match ended {
                    Ok(peer) => return Ok(peer),
                    Err(error) => {
                        plan.handle_failure(index, clock::now().into_std());
                        failure = error;
                    }
                },
                Some(index) = answered.recv() => plan.handle_answer(index),
                () = tokio::time::sleep_until(next_at) => {}
            }
            if clock::now() >= deadline {
                return Err(match plan.answered() {
                    Some(index) => DialError::HandshakeTimeout { address: addresses[index], waited },
                    None => {
                        DialError::Blocked { addresses: Addresses(addresses.to_vec()), waited: unanswered }
                    }
                });
            }
        }
    }

    fn connect(
        &self,
        address: SocketAddr,
        server_name: &str,
        crypto: &Arc<QuicClientConfig>,
    ) -> Result<quinn::Connecting, DialError> {
        let mut config = quinn::ClientConfig::new(crypto.clone());
        config.transport_config(self.shared.transport.dialled(Path::to(address.ip())));
        // Tokens of a server are not kept: they would tell it apart from other callers of the host.
        config.token_store(Arc::new(quinn::NoneTokenStore));
        self.shared.trains.dialled(address);
        self.shared.endpoint.connect_with(config, address, server_name).map_err(|error| match error {
            ConnectError::EndpointStopping => DialError::Closing,
            invalid @ (ConnectError::CidsExhausted
            | ConnectError::InvalidServerName(_)
            | ConnectError::InvalidRemoteAddress(_)
            | ConnectError::NoDefaultClientConfig
            | ConnectError::UnsupportedVersion) => {
                DialError::Invalid { address, detail: invalid.to_string() }
            }
        })
    }
}

/// One attempt of a dial: says when the peer answers, ends with its verified identity.
async fn attempt(
    mut connecting: quinn::Connecting,
    index: usize,
    address: SocketAddr,
    answers: tokio::sync::mpsc::Sender<usize>,
) -> (usize, Result<(quinn::Connection, PeerIdentity), DialError>) {
    let refused = |error: quinn::ConnectionError| DialError::Refused { address, reason: error.into() };
    if connecting.handshake_data().await.is_ok() {
        let _ = answers.try_send(index); // full: the dial knows of as many answers as there are addresses
    }
    let ended = match connecting.await {
        Ok(connection) => established(connection, address),
        Err(error) => Err(refused(error)),
    };
    (index, ended)
}

fn established(
    connection: quinn::Connection,
    address: SocketAddr,
) -> Result<(quinn::Connection, PeerIdentity), DialError> {
    if spoken(&connection).is_none() {
        connection.close(CloseCode::Protocol.varint(), b"speak weft/1");
        let reason = CloseReason::ours(CloseCode::Protocol, "the peer does not speak weft/1");
        return Err(DialError::Refused { address, reason });
    }
    let peer = identity(&connection).map_err(|detail| DialError::Identity { address, detail })?;
    Ok((connection, peer))
}

fn dial_label(error: &DialError) -> &'static str {
    match error {
        DialError::NoAddress => "no_address",
        DialError::Blocked { .. } => "no_answer",
        DialError::HandshakeTimeout { .. } => "timeout",
        DialError::Refused { reason, .. } => reason.label(),
        DialError::Identity { .. } => "identity",
        DialError::Invalid { .. } => "invalid",
        DialError::Config(_) => "config",
        DialError::Closing => "closing",
    }
}
