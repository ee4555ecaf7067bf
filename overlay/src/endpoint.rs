//! One UDP socket, and the tunnels that are dialled and accepted on it.
//!
//! [`Overlay`] is a handle. It runs on the tokio runtime it was bound on: quinn's driver, one task for
//! all tunnels, one for stalled flows, one per tunnel. Accepting is two steps, because a handshake takes
//! its time: [`Overlay::accept`] yields a [`Handshake`] that is finished in a task of its own.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{ConnectError, EndpointConfig, TokioRuntime, ValidationTokenConfig};
use rustls_pki_types::CertificateDer;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, info};
use weft_identity::tls::{PeerIdentity, peer_id};

use crate::ALPN;
use crate::admission::{Arrival, HandshakeGate, PeerLimits, PeerSlot, Ticket};
use crate::budget::StallRule;
use crate::clock;
use crate::code::CloseCode;
use crate::dial::{DialPlan, Next};
use crate::error::{AcceptError, Addresses, BindError, CloseReason, ConfigFault, DialError};
use crate::keys::EndpointKeys;
use crate::live::{Live, attend};
use crate::metrics::OverlayMetrics;
use crate::socket::{SocketBuffers, size_buffers};
use crate::stall::StallWatch;
use crate::transport::{Path, Transport, TransportSettings};
use crate::tunnel::{Role, Tunnel, TunnelParts, canonical};

/// QUIC version 1 (RFC 9000 section 15).
const QUIC_VERSION_1: u32 = 1;
/// First packets kept for a handshake that was not looked at yet, for one and for all (security limits).
const INCOMING_BUFFER_BYTES: u64 = 64 * 1024;
const INCOMING_BUFFERS_BYTES: u64 = 16 * 1024 * 1024;
/// How long a Retry token is good (security limits).
const RETRY_TOKEN_LIFETIME: Duration = Duration::from_secs(15);
/// The least time between two stateless resets: a restarted node must end all its old tunnels soon.
const MIN_RESET_INTERVAL: Duration = Duration::from_millis(1);

/// A handle to one endpoint. Clones are cheap and mean the same endpoint.
#[derive(Clone, Debug)]
pub struct Overlay {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    endpoint: quinn::Endpoint,
    transport: Transport,
    settings: Arc<TransportSettings>,
    accept_loopback: Arc<quinn::ServerConfig>,
    buffers: SocketBuffers,
    gate: Arc<Mutex<HandshakeGate>>,
    limits: Arc<Mutex<PeerLimits>>,
    live: Arc<Live>,
    stalls: Arc<StallWatch>,
    metrics: Arc<OverlayMetrics>,
    next_tunnel: AtomicU64,
    next_flow: Arc<AtomicU64>,
    tasks: TaskTracker,
    /// Ends the endpoint's own tasks with the last handle.
    _stop: DropGuard,
}

/// An incoming handshake under way.
#[derive(Debug)]
pub struct Handshake {
    incoming: quinn::Incoming,
    place: Place,
    overlay: Overlay,
}

/// A place among the handshakes under way; free again when dropped.
#[derive(Debug)]
struct Place {
    gate: Arc<Mutex<HandshakeGate>>,
    metrics: Arc<OverlayMetrics>,
    ticket: Ticket,
}

impl Overlay {
    /// Makes an endpoint of `socket` on the current tokio runtime.
    ///
    /// `server` must speak [`ALPN`], without early data and without session tickets. `keys` are the
    /// node's own, the same after a restart.
    ///
    /// # Errors
    ///
    /// [`BindError`] if the socket, the TLS configuration or the settings cannot be used.
    pub fn bind(
        socket: UdpSocket,
        server: Arc<rustls::ServerConfig>,
        settings: TransportSettings,
        keys: &EndpointKeys,
        metrics: Arc<OverlayMetrics>,
    ) -> Result<Self, BindError> {
        let transport = Transport::new(settings)?;
        let settings = Arc::new(transport.settings.clone());
        let server = server_crypto(server)?;
        let accept = |path| server_config(&server, &transport, path, keys);
        let (accept_network, accept_loopback) = (accept(Path::Network), accept(Path::Loopback));
        let buffers = size_buffers(&socket, settings.socket_buffer_bytes);

        let mut config = EndpointConfig::new(keys.reset_key());
        config.min_reset_interval(MIN_RESET_INTERVAL);
        // quinn also speaks the drafts 29 to 34, which nobody else here does (TLS-04).
        config.supported_versions(vec![QUIC_VERSION_1]);
        let ids = keys.clone();
        config.cid_generator(move || Box::new(ids.connection_ids()));
        let payload = transport.max_udp_payload();
        config.max_udp_payload_size(payload).map_err(|_| crate::InvalidTransport::Mtu(payload))?;
        let endpoint = quinn::Endpoint::new(config, Some(accept_network), socket, Arc::new(TokioRuntime))?;

        let now = clock::now().into_std();
        let admission = settings.admission.clone();
        let stop = CancellationToken::new();
        let shared = Shared {
            endpoint,
            accept_loopback: Arc::new(accept_loopback),
            buffers,
            gate: Arc::new(Mutex::new(HandshakeGate::new(admission.clone(), now))),
            limits: Arc::new(Mutex::new(PeerLimits::new(admission))),
            live: Live::new(metrics.clone()),
            stalls: StallWatch::new(stall_rule(&settings)),
            metrics,
            next_tunnel: AtomicU64::new(1),
            next_flow: Arc::new(AtomicU64::new(1)),
            tasks: TaskTracker::new(),
            transport,
            settings,
            _stop: stop.clone().drop_guard(),
        };
        let overlay = Self { shared: Arc::new(shared) };
        overlay.start_tasks(&stop);
        debug!(?buffers, payload, "tunnel endpoint bound");
        Ok(overlay)
    }

    fn start_tasks(&self, stop: &CancellationToken) {
        let shared = &self.shared;
        let keep = shared.live.clone().keep();
        let watch = shared.stalls.clone().run(shared.metrics.clone());
        let (stop_keep, stop_watch) = (stop.clone(), stop.clone());
        shared.tasks.spawn(async move { stop_keep.run_until_cancelled(keep).await });
        shared.tasks.spawn(async move { stop_watch.run_until_cancelled(watch).await });
    }

    /// Makes a tunnel to the first of `addresses` that answers and proves itself to `client`, which must
    /// speak [`ALPN`] without early data. `server_name` chooses the SVID that the other end presents.
    ///
    /// The whole dial takes at most the handshake timeout. Cancel-safe.
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
        let tunnel = self.adopt(connection, peer, None, Role::Dialled);
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
        let deadline = began + waited;
        let mut plan = DialPlan::new(addresses.len(), began.into_std());
        let mut attempts = JoinSet::new();
        let (answers, mut answered) = tokio::sync::mpsc::channel(addresses.len().max(1));
        let mut failure = DialError::NoAddress;
        loop {
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
                    None => DialError::Blocked { addresses: Addresses(addresses.to_vec()), waited },
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

    /// Waits for the next handshake to begin; `None` once the endpoint is closed. Finish it in a task of
    /// its own. Cancel-safe.
    pub async fn accept(&self) -> Option<Handshake> {
        loop {
            let incoming = self.shared.endpoint.accept().await?;
            let remote = incoming.remote_address().ip();
            let validated = incoming.remote_address_validated();
            let now = clock::now().into_std();
            let mut gate = self.shared.gate.lock().unwrap_or_else(PoisonError::into_inner);
            match gate.arrive(remote, validated, now) {
                Arrival::Proceed(ticket) => {
                    self.shared.metrics.pending(gate.pending());
                    let (gate, metrics) = (self.shared.gate.clone(), self.shared.metrics.clone());
                    let place = Place { gate, metrics, ticket };
                    return Some(Handshake { incoming, place, overlay: self.clone() });
                }
                Arrival::Retry => {
                    self.shared.metrics.deflected("retry");
                    let _ = incoming.retry(); // an unvalidated address may always be asked
                }
                Arrival::Refuse => {
                    self.shared.metrics.deflected("refused");
                    incoming.refuse();
                }
            }
        }
    }

    /// Every tunnel that is up.
    pub fn tunnels(&self) -> Vec<Tunnel> {
        self.shared.live.tunnels()
    }

    /// Closes every tunnel that `which` chooses, such as those of a revoked identity or an older boot of
    /// a node, and returns how many.
    pub fn close_where(&self, code: CloseCode, detail: &str, which: impl Fn(&Tunnel) -> bool) -> usize {
        let chosen: Vec<_> = self.tunnels().into_iter().filter(|tunnel| which(tunnel)).collect();
        for tunnel in &chosen {
            tunnel.close(code, detail);
        }
        chosen.len()
    }

    /// Tells the peers of all accepted tunnels to open no new flows here.
    pub fn drain(&self, code: CloseCode) {
        for tunnel in self.tunnels() {
            tunnel.drain(code);
        }
    }

    /// The address that the socket is bound to.
    ///
    /// # Errors
    ///
    /// That of `getsockname`.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.shared.endpoint.local_addr()
    }

    /// The kernel buffers of the socket; small ones cost rate, and `node` warns of them.
    pub fn buffers(&self) -> SocketBuffers {
        self.shared.buffers
    }

    /// Closes all tunnels and takes no new ones.
    pub fn close(&self, code: CloseCode) {
        for tunnel in self.tunnels() {
            tunnel.close(code, ""); // so that each remembers why
        }
        self.shared.endpoint.close(code.varint(), b"");
    }

    /// Waits until every closed tunnel has told its peer. Cancel-safe.
    pub async fn wait_idle(&self) {
        self.shared.endpoint.wait_idle().await;
    }

    fn adopt(
        &self,
        connection: quinn::Connection,
        peer: PeerIdentity,
        server_name: Option<String>,
        role: Role,
    ) -> Tunnel {
        let shared = &self.shared;
        let tunnel = Tunnel::new(TunnelParts {
            id: shared.next_tunnel.fetch_add(1, Ordering::Relaxed),
            connection,
            peer,
            server_name,
            role,
            stalls: shared.stalls.clone(),
            next_flow: shared.next_flow.clone(),
            settings: shared.settings.clone(),
            metrics: shared.metrics.clone(),
        });
        shared.live.add(&tunnel);
        tunnel
    }
}

impl Handshake {
    /// Where it comes from; not proven before [`Handshake::finish`].
    pub fn remote_address(&self) -> SocketAddr {
        canonical(self.incoming.remote_address())
    }

    /// Carries the handshake through: the peer's certificate is verified, its identity read, its limits
    /// checked. Takes at most the handshake timeout. Cancel-safe: the handshake is given up.
    ///
    /// # Errors
    ///
    /// [`AcceptError`]; the peer has been told.
    pub async fn finish(self) -> Result<Tunnel, AcceptError> {
        let Self { incoming, place, overlay } = self;
        let shared = overlay.shared.clone();
        let began = clock::now();
        let waited = shared.settings.handshake_timeout;
        let remote = incoming.remote_address();
        let finished = match tokio::time::timeout(waited, overlay.verify(incoming)).await {
            Ok(finished) => finished,
            Err(_) => Err(AcceptError::Timeout { waited }),
        };
        drop(place);
        let result = finished.as_ref().map_or_else(accept_label, |_| "ok");
        shared.metrics.handshake(result, began.elapsed());
        let (tunnel, slot) = finished.inspect_err(|error| {
            debug!(remote = %canonical(remote), %error, "handshake failed");
        })?;
        info!(peer = %tunnel.peer().id, address = %tunnel.remote_address(), "tunnel accepted");
        shared.tasks.spawn(attend(shared.live.clone(), tunnel.clone(), Some(slot)));
        Ok(tunnel)
    }
}

impl Overlay {
    async fn verify(&self, incoming: quinn::Incoming) -> Result<(Tunnel, PeerSlot), AcceptError> {
        let remote = incoming.remote_address();
        let connecting = match Path::to(remote.ip()) {
            Path::Loopback => incoming.accept_with(self.shared.accept_loopback.clone()),
            Path::Network => incoming.accept(),
        };
        let refused = |error: quinn::ConnectionError| AcceptError::Refused(error.into());
        let connection = connecting.map_err(refused)?.await.map_err(refused)?;
        let Some(server_name) = spoken(&connection) else {
            connection.close(CloseCode::Protocol.varint(), b"speak weft/1");
            return Err(AcceptError::Protocol);
        };
        let peer = identity(&connection).map_err(AcceptError::Identity)?;
        let now = clock::now().into_std();
        let slot = PeerSlot::take(&self.shared.limits, &peer.id, remote.ip(), now).map_err(|code| {
            connection.close(code.varint(), b"over the limit of tunnels");
            AcceptError::OverLimit { peer: peer.id.clone(), code }
        })?;
        Ok((self.adopt(connection, peer, server_name, Role::Accepted), slot))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.leave(self.ticket);
        self.metrics.pending(gate.pending());
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

/// The server name, if the connection speaks `weft/1`.
#[expect(clippy::option_option, reason = "no tunnel at all, a tunnel without a name, a tunnel with one")]
fn spoken(connection: &quinn::Connection) -> Option<Option<String>> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    (data.protocol.as_deref() == Some(ALPN)).then_some(data.server_name)
}

/// Who the verified chain names.
fn identity(connection: &quinn::Connection) -> Result<PeerIdentity, String> {
    let presented = connection.peer_identity().ok_or("the peer presented no certificate")?;
    let chain = presented.downcast::<Vec<CertificateDer<'static>>>();
    let chain = chain.map_err(|_| "the peer's certificates are of an unknown kind")?;
    peer_id(&chain).map_err(|error| {
        connection.close(CloseCode::Protocol.varint(), b"certificate without an identity");
        error.to_string()
    })
}

fn server_crypto(server: Arc<rustls::ServerConfig>) -> Result<Arc<QuicServerConfig>, ConfigFault> {
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

fn client_crypto(client: Arc<rustls::ClientConfig>) -> Result<Arc<QuicClientConfig>, ConfigFault> {
    if client.enable_early_data {
        return Err(ConfigFault::EarlyData);
    }
    if !client.alpn_protocols.iter().any(|protocol| protocol == ALPN) {
        return Err(ConfigFault::Alpn);
    }
    QuicClientConfig::try_from(client).map(Arc::new).map_err(|_| ConfigFault::InitialSuite)
}

fn server_config(
    crypto: &Arc<QuicServerConfig>,
    transport: &Transport,
    path: Path,
    keys: &EndpointKeys,
) -> quinn::ServerConfig {
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0); // none: a returning caller validates like any other
    let mut config = quinn::ServerConfig::new(crypto.clone(), keys.token_key());
    config
        .transport_config(transport.accepted(path))
        .validation_token_config(tokens)
        .retry_token_lifetime(RETRY_TOKEN_LIFETIME)
        // Between nodes addresses do not change; a path that does is a spoof or a new node.
        .migration(false)
        .max_incoming(transport.settings.admission.max_pending)
        .incoming_buffer_size(INCOMING_BUFFER_BYTES)
        .incoming_buffer_size_total(INCOMING_BUFFERS_BYTES);
    config
}

fn stall_rule(settings: &TransportSettings) -> StallRule {
    StallRule {
        stall_after: settings.stall_after,
        window_bytes: settings.stream_window_bytes,
        budget_bytes: settings.stall_budget_bytes,
    }
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

fn accept_label(error: &AcceptError) -> &'static str {
    match error {
        AcceptError::Refused(reason) => reason.label(),
        AcceptError::Timeout { .. } => "timeout",
        AcceptError::Identity(_) => "identity",
        AcceptError::Protocol => "protocol",
        AcceptError::OverLimit { code, .. } => code.name(),
    }
}
