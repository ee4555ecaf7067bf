//! One UDP socket, and the tunnels that are dialled and accepted on it.
//!
//! [`Overlay`] is a handle. It runs on the tokio runtime it was bound on: quinn's driver, one task for
//! all tunnels, one for stalled flows, one per tunnel. Accepting is two steps, because a handshake takes
//! its time: [`Overlay::accept`] yields a [`Handshake`] that is finished in a task of its own.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use quinn::{EndpointConfig, Runtime, TokioRuntime};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use weft_identity::tls::PeerIdentity;

use crate::admission::{PeerLimits, PeerSlot};
use crate::budget::StallRule;
use crate::clock;
use crate::code::CloseCode;
use crate::crypto::{identity, server_config, server_crypto, spoken};
use crate::error::{AcceptError, BindError};
use crate::gate::{Arrival, HandshakeGate, Ticket};
use crate::keys::EndpointKeys;
use crate::live::{Live, attend};
use crate::load::PeerLoad;
use crate::metrics::OverlayMetrics;
use crate::quiet::Quiet;
use crate::say::Says;
use crate::socket::{SocketBuffers, size_buffers};
use crate::stall::StallWatch;
use crate::train::Trains;
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
    seats: Arc<Mutex<Seats>>,
    says: Arc<Says>,
    limits: Arc<Mutex<PeerLimits>>,
    pub(crate) live: Arc<Live>,
    pub(crate) trains: Arc<Trains>,
    judge: OnceLock<Judge>,
    stalls: Arc<StallWatch>,
    pub(crate) metrics: Arc<OverlayMetrics>,
    next_tunnel: AtomicU64,
    next_flow: Arc<AtomicU64>,
    pub(crate) tasks: TaskTracker,
    /// Ends the endpoint's own tasks with the last handle.
    _stop: DropGuard,
}

type Verdict = dyn Fn(&Tunnel) -> Result<(), CloseCode> + Send + Sync;

/// The second look at a new tunnel, see [`Overlay::judge_by`].
struct Judge(Box<Verdict>);

impl std::fmt::Debug for Judge {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Judge")
    }
}

/// An incoming handshake under way.
#[derive(Debug)]
pub struct Handshake {
    incoming: quinn::Incoming,
    place: Place,
    overlay: Overlay,
}

/// The gate, and how to end each handshake that it let through.
#[derive(Debug)]
struct Seats {
    gate: HandshakeGate,
    under_way: HashMap<Ticket, CancellationToken>,
}

/// A place among the handshakes under way; free again when dropped.
#[derive(Debug)]
struct Place {
    seats: Arc<Mutex<Seats>>,
    metrics: Arc<OverlayMetrics>,
    ticket: Ticket,
    displaced: CancellationToken,
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
        // A packet without the fixed bit is not QUIC (RFC 9000 section 17), and nobody here greases it.
        config.grease_quic_bit(false);
        // quinn also speaks the drafts 29 to 34, which nobody else here does (TLS-04).
        config.supported_versions(vec![QUIC_VERSION_1]);
        let ids = keys.clone();
        config.cid_generator(move || Box::new(ids.connection_ids()));
        let payload = transport.max_udp_payload();
        config.max_udp_payload_size(payload).map_err(|_| crate::InvalidTransport::Mtu(payload))?;
        let runtime = Arc::new(TokioRuntime);
        let quiet = Quiet::new(clock::now().into_std());
        let trains = Trains::new(runtime.wrap_udp_socket(socket)?, quiet);
        let endpoint =
            quinn::Endpoint::new_with_abstract_socket(config, Some(accept_network), trains.clone(), runtime)?;

        let now = clock::now().into_std();
        let (admission, says) = (settings.admission.clone(), Arc::new(Says::default()));
        let gate = HandshakeGate::new(admission.clone(), now);
        let stop = CancellationToken::new();
        let shared = Shared {
            endpoint,
            accept_loopback: Arc::new(accept_loopback),
            buffers,
            seats: Arc::new(Mutex::new(Seats { gate, under_way: HashMap::new() })),
            limits: Arc::new(Mutex::new(PeerLimits::new(admission, settings.load.clone()))),
            live: Live::new(metrics.clone(), says.clone()),
            says,
            trains: trains.clone(),
            judge: OnceLock::new(),
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
        overlay.start_tasks(&stop, trains);
        debug!(?buffers, payload, "tunnel endpoint bound");
        Ok(overlay)
    }

    fn start_tasks(&self, stop: &CancellationToken, trains: Arc<Trains>) {
        let shared = &self.shared;
        let keep = shared.live.clone().keep();
        let watch = shared.stalls.clone().run(shared.metrics.clone());
        let (stop_keep, stop_watch, stop_trains) = (stop.clone(), stop.clone(), stop.clone());
        shared.tasks.spawn(async move { stop_trains.run_until_cancelled(trains.conduct()).await });
        shared.tasks.spawn(async move { stop_keep.run_until_cancelled(keep).await });
        shared.tasks.spawn(async move { stop_watch.run_until_cancelled(watch).await });
    }

    /// Waits for the next handshake to begin; `None` once the endpoint is closed. Finish it in a task of
    /// its own. Cancel-safe.
    pub async fn accept(&self) -> Option<Handshake> {
        loop {
            let incoming = self.shared.endpoint.accept().await?;
            let remote = incoming.remote_address().ip();
            let proof = incoming.remote_address_validated().then(|| incoming.orig_dst_cid());
            let arrival = {
                let mut seats = self.shared.seats.lock().unwrap_or_else(PoisonError::into_inner);
                seats.gate.arrive(remote, proof, clock::now().into_std())
            };
            match arrival {
                Arrival::Proceed { ticket, displaced } => {
                    let place = self.seat(ticket, displaced);
                    return Some(Handshake { incoming, place, overlay: self.clone() });
                }
                Arrival::Retry => {
                    self.deflected("retry");
                    let _ = incoming.retry(); // an unvalidated address may always be asked
                }
                Arrival::Ignore(reason) => {
                    self.deflected(reason.label());
                    incoming.ignore();
                }
            }
        }
    }

    fn seat(&self, ticket: Ticket, displaced: Option<Ticket>) -> Place {
        let shared = &self.shared;
        let mut seats = shared.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(oldest) = displaced.and_then(|ticket| seats.under_way.remove(&ticket)) {
            oldest.cancel();
        }
        let displaced = CancellationToken::new();
        seats.under_way.insert(ticket, displaced.clone());
        shared.metrics.pending(seats.gate.pending());
        Place { seats: shared.seats.clone(), metrics: shared.metrics.clone(), ticket, displaced }
    }

    fn deflected(&self, reason: &'static str) {
        self.shared.metrics.deflected(reason);
        if let Some(left_out) = self.shared.says.deflected.may() {
            warn!(reason, left_out, "too many handshakes begin, addresses must prove themselves");
        }
    }

    /// Has every new tunnel judged once more, after [`Overlay::close_where`] can see it: `judge` says with
    /// which code to close it, if it may not stand.
    ///
    /// A peer chooses how long it takes between its certificate, which the handshake judges, and the end of
    /// the handshake; in between a root can leave the bundle. Only the first call of this has an effect.
    pub fn judge_by(&self, judge: impl Fn(&Tunnel) -> Result<(), CloseCode> + Send + Sync + 'static) {
        let _ = self.shared.judge.set(Judge(Box::new(judge)));
    }

    fn judge(&self, tunnel: &Tunnel) {
        let verdict = self.shared.judge.get().map_or(Ok(()), |judge| (judge.0)(tunnel));
        if let Err(code) = verdict {
            info!(peer = %tunnel.peer().id, code = code.name(), "tunnel closed, what it was proven by has changed");
            tunnel.close(code, "what the handshake proved no longer holds");
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
        load: Arc<PeerLoad>,
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
            load,
            says: shared.says.clone(),
        });
        shared.live.add(&tunnel);
        self.judge(&tunnel);
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
        let finished = tokio::select! {
            biased;
            () = place.displaced.cancelled() => Err(AcceptError::Displaced),
            finished = tokio::time::timeout(waited, overlay.verify(incoming)) => {
                finished.unwrap_or(Err(AcceptError::Timeout { waited }))
            }
        };
        drop(place);
        let result = finished.as_ref().map_or_else(accept_label, |_| "ok");
        shared.metrics.handshake(result, began.elapsed());
        let (tunnel, slot) = finished.inspect_err(|error| {
            let remote = canonical(remote);
            match shared.says.handshakes.may() {
                Some(left_out) => warn!(%remote, %error, left_out, "handshake failed"),
                None => debug!(%remote, %error, "handshake failed"),
            }
        })?;
        let (peer, address) = (&tunnel.peer().id, tunnel.remote_address());
        match shared.says.opened.may() {
            Some(left_out) => info!(%peer, %address, left_out, "tunnel accepted"),
            None => debug!(%peer, %address, "tunnel accepted"),
        }
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
        Ok((self.adopt(connection, peer, server_name, Role::Accepted, slot.load()), slot))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.gate.leave(self.ticket);
        seats.under_way.remove(&self.ticket);
        self.metrics.pending(seats.gate.pending());
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
        AcceptError::Displaced => "displaced",
        AcceptError::OverLimit { code, .. } => code.name(),
    }
}
