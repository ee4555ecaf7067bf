//! One UDP socket, and the tunnels that are dialled and accepted on it.
//!
//! [`Overlay`] is a handle. It runs on the tokio runtime it was bound on: quinn's driver, one task for
//! all tunnels, one for stalled flows, one per tunnel. Accepting is two steps, because a handshake takes
//! its time: [`Overlay::accept`] yields a [`Handshake`] that is finished in a task of its own.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::{EndpointConfig, TokioRuntime};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, info};
use weft_identity::tls::PeerIdentity;

use crate::admission::{Arrival, HandshakeGate, PeerLimits, PeerSlot, Ticket};
use crate::budget::StallRule;
use crate::clock;
use crate::code::CloseCode;
use crate::crypto::{identity, server_config, server_crypto, spoken};
use crate::error::{AcceptError, BindError};
use crate::keys::EndpointKeys;
use crate::live::{Live, attend};
use crate::metrics::OverlayMetrics;
use crate::socket::{SocketBuffers, size_buffers};
use crate::stall::StallWatch;
use crate::transport::{Path, Transport, TransportSettings};
use crate::tunnel::{Role, Tunnel, TunnelParts, canonical};

/// QUIC version 1 (RFC 9000 section 15).
const QUIC_VERSION_1: u32 = 1;
/// The least time between two stateless resets: a restarted node must end all its old tunnels soon.
const MIN_RESET_INTERVAL: Duration = Duration::from_millis(1);

/// A handle to one endpoint. Clones are cheap and mean the same endpoint.
#[derive(Clone, Debug)]
pub struct Overlay {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) transport: Transport,
    pub(crate) settings: Arc<TransportSettings>,
    accept_loopback: Arc<quinn::ServerConfig>,
    buffers: SocketBuffers,
    gate: Arc<Mutex<HandshakeGate>>,
    limits: Arc<Mutex<PeerLimits>>,
    pub(crate) live: Arc<Live>,
    stalls: Arc<StallWatch>,
    pub(crate) metrics: Arc<OverlayMetrics>,
    next_tunnel: AtomicU64,
    next_flow: Arc<AtomicU64>,
    pub(crate) tasks: TaskTracker,
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
    /// `server` must speak [`crate::ALPN`], without early data and without session tickets. `keys` are the
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

    pub(crate) fn adopt(
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

fn stall_rule(settings: &TransportSettings) -> StallRule {
    StallRule {
        stall_after: settings.stall_after,
        window_bytes: settings.stream_window_bytes,
        budget_bytes: settings.stall_budget_bytes,
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
