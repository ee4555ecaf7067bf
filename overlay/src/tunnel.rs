//! One tunnel: a QUIC connection between two SPIFFE IDs, and the flows on it.
//!
//! A [`Tunnel`] is a handle; when the last handle and the last flow are gone, the connection closes. The
//! end that dialled opens flows, the end that accepted takes them. An end that goes tells the other
//! ([`Tunnel::drain`]) and lets the flows end; [`Tunnel::close`] cuts them.
//!
//! Invariant: a tunnel is closed before the `not_after` of the peer's chain. [`crate::live`] watches
//! it, on both ends.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use quinn::VarInt;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tracing::{debug, warn};
use weft_identity::tls::PeerIdentity;

use crate::budget::TunnelId;
use crate::clock;
use crate::code::{CloseCode, PeerCode};
use crate::error::{By, CloseReason, OpenError, StreamError};
use crate::header::StreamHeader;
use crate::load::{Excess, PeerLoad, Work};
use crate::metrics::OverlayMetrics;
use crate::opening::Opening;
use crate::say::Says;
use crate::stall::{Flow, StallWatch};
use crate::stream::TunnelStream;
use crate::transport::TransportSettings;

/// How long an opener waits for the peer to raise its limit, which it does by itself within a round trip
/// until the ceiling is reached.
const LIMIT_GROWTH_WAIT: Duration = Duration::from_secs(1);
/// A peer that was silent for longer may be gone, and another run of it in its place: shorter than any agent takes to
/// start again (50 to 100 ms from the kill to its first packet), long against the pauses of a tunnel in use.
const QUIET: Duration = Duration::from_millis(40);
/// The longest reason that goes into a CONNECTION_CLOSE frame; it must fit one packet.
const MAX_REASON_BYTES: usize = 256;

/// A handle to one tunnel. Clones are cheap and mean the same tunnel.
#[derive(Clone, Debug)]
pub struct Tunnel {
    core: Arc<TunnelCore>,
}

/// Which end of the tunnel this process is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Role {
    /// This end dialled, and opens flows.
    Dialled,
    /// This end was dialled, and takes flows.
    Accepted,
}

/// Whether a tunnel takes new flows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// It does.
    Open,
    /// It does not; the present ones go on.
    Draining {
        /// Which end is going.
        by: By,
        /// Why.
        code: PeerCode<CloseCode>,
    },
}

/// Figures of one tunnel.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TunnelStats {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// UDP payload size in use, in bytes.
    pub mtu_bytes: u16,
    /// Packets declared lost.
    pub lost_packets: u64,
    /// UDP payload sent.
    pub sent_bytes: u64,
    /// UDP payload received.
    pub received_bytes: u64,
    /// Congestion window.
    pub congestion_window_bytes: u64,
}

/// What all handles and flows of a tunnel share.
#[derive(Debug)]
pub(crate) struct TunnelCore {
    pub(crate) id: TunnelId,
    pub(crate) connection: quinn::Connection,
    pub(crate) peer: PeerIdentity,
    pub(crate) stalls: Arc<StallWatch>,
    pub(crate) phase: watch::Sender<Phase>,
    server_name: Option<String>,
    role: Role,
    opened: tokio::time::Instant,
    closing: OnceLock<(CloseCode, String)>,
    flows: AtomicUsize,
    flow_limit: AtomicU32,
    heard: Mutex<Heard>,
    next_flow: Arc<AtomicU64>,
    /// What the window of the tunnel is without stalled flows, and what they add.
    receive_window: AtomicU64,
    receive_extra: AtomicU64,
    settings: Arc<TransportSettings>,
    metrics: Arc<OverlayMetrics>,
    load: Arc<PeerLoad>,
    says: Arc<Says>,
}

/// What is known of when the peer was last heard, from looks at the count of its packets.
#[derive(Debug)]
struct Heard {
    packets: u64,
    /// The last look.
    looked: tokio::time::Instant,
    /// The look before the count last grew: the peer was heard after it.
    after: tokio::time::Instant,
}

/// What a new tunnel is made of.
pub(crate) struct TunnelParts {
    pub(crate) id: TunnelId,
    pub(crate) connection: quinn::Connection,
    pub(crate) peer: PeerIdentity,
    pub(crate) server_name: Option<String>,
    pub(crate) role: Role,
    pub(crate) stalls: Arc<StallWatch>,
    pub(crate) next_flow: Arc<AtomicU64>,
    pub(crate) settings: Arc<TransportSettings>,
    pub(crate) metrics: Arc<OverlayMetrics>,
    pub(crate) load: Arc<PeerLoad>,
    pub(crate) says: Arc<Says>,
}

impl Tunnel {
    pub(crate) fn new(parts: TunnelParts) -> Self {
        let opened = clock::now();
        let core = TunnelCore {
            id: parts.id,
            connection: parts.connection,
            peer: parts.peer,
            stalls: parts.stalls,
            phase: watch::Sender::new(Phase::Open),
            server_name: parts.server_name,
            role: parts.role,
            opened,
            closing: OnceLock::new(),
            flows: AtomicUsize::new(0),
            flow_limit: AtomicU32::new(parts.settings.flows_at_start),
            heard: Mutex::new(Heard { packets: 0, looked: opened, after: opened }),
            next_flow: parts.next_flow,
            receive_window: AtomicU64::new(parts.settings.receive_window_bytes),
            receive_extra: AtomicU64::new(0),
            settings: parts.settings,
            metrics: parts.metrics,
            load: parts.load,
            says: parts.says,
        };
        Self { core: Arc::new(core) }
    }

    pub(crate) fn of(core: Arc<TunnelCore>) -> Self {
        Self { core }
    }

    pub(crate) fn core(&self) -> &Arc<TunnelCore> {
        &self.core
    }

    /// A number for the tunnel, unique within its endpoint.
    pub fn id(&self) -> u64 {
        self.core.id
    }

    /// Who is at the other end: the one identity of every flow on this tunnel.
    pub fn peer(&self) -> &PeerIdentity {
        &self.core.peer
    }

    /// The chain that the peer presented, leaf first, to be judged again when bundles change.
    pub fn peer_chain(&self) -> Vec<CertificateDer<'static>> {
        let presented = self.core.connection.peer_identity();
        let chain = presented.and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        chain.map(|chain| *chain).unwrap_or_default()
    }

    /// The server name that the dialler asked for; `None` on the side that dialled. It chose the SVID
    /// that this end presented.
    pub fn server_name(&self) -> Option<&str> {
        self.core.server_name.as_deref()
    }

    /// Which end this is.
    pub fn role(&self) -> Role {
        self.core.role
    }

    /// Where the peer is, never as an IPv4-mapped address.
    pub fn remote_address(&self) -> SocketAddr {
        canonical(self.core.connection.remote_address())
    }

    /// For how long the tunnel is up.
    pub fn age(&self) -> Duration {
        clock::now().saturating_duration_since(self.core.opened)
    }

    /// Whether the peer may have been silent for longer than 40 ms: it may be idle, or gone.
    pub fn is_quiet(&self) -> bool {
        let packets = self.core.connection.stats().udp_rx.datagrams;
        let mut heard = self.core.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.look(packets, clock::now()) > QUIET
    }

    /// Opens a flow and sends its header. Application bytes may follow at once.
    ///
    /// Waits up to a second if the peer permits no more flows for now. Cancel-safe: a flow that was not
    /// returned is reset.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; nothing of the application was sent.
    pub async fn open(&self, header: &StreamHeader) -> Result<TunnelStream, OpenError> {
        let core = &self.core;
        if *core.phase.borrow() != Phase::Open {
            return Err(OpenError::Draining);
        }
        let limited = || OpenError::FlowLimit { flows: self.streams_active() };
        if self.streams_active() >= core.settings.flows_ceiling as usize {
            return Err(limited());
        }
        let opened = tokio::time::timeout(LIMIT_GROWTH_WAIT, core.connection.open_bi()).await;
        let (send, recv) = opened.map_err(|_| limited())?.map_err(|error| core.open_error(error))?;
        let mut stream = TunnelStream::opened(send, recv, core.new_flow());
        let (send, _) = stream.halves();
        send.write_all_chunks(&mut [header.encode()]).await.map_err(|error| core.refused_at_once(error))?;
        Ok(stream)
    }

    /// Waits for the next flow of the peer. Its header may not have arrived yet: read it in the flow's
    /// own task, so that a slow peer delays only itself.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`CloseReason`] when the tunnel is no more, such as because the peer opens flows faster than it may.
    pub async fn accept(&self) -> Result<Opening, CloseReason> {
        let (send, recv) =
            self.core.connection.accept_bi().await.map_err(|error| self.core.close_reason(error))?;
        self.core.charge(Work::Flow)?;
        let flow = self.core.new_flow();
        self.core.grow_limit();
        Ok(Opening::new(self.clone(), send, recv, flow, self.core.settings.header_timeout))
    }

    /// Flows that are open now.
    pub fn streams_active(&self) -> usize {
        self.core.flows.load(Ordering::Relaxed)
    }

    /// Flows that the peer may have open now; grows by doubling up to the ceiling.
    pub fn flow_limit(&self) -> u32 {
        self.core.flow_limit.load(Ordering::Relaxed)
    }

    /// Whether the tunnel takes new flows.
    pub fn phase(&self) -> Phase {
        *self.core.phase.borrow()
    }

    /// Waits until the tunnel takes no new flows, by either end's will. Cancel-safe.
    pub async fn draining(&self) -> Phase {
        let mut phase = self.core.phase.subscribe();
        let draining = phase.wait_for(|phase| *phase != Phase::Open).await;
        draining.map_or(Phase::Open, |phase| *phase)
    }

    /// Tells the peer to open no new flows here. Present flows go on until somebody closes the tunnel.
    pub fn drain(&self, code: CloseCode) {
        self.core.start_drain(By::Us, PeerCode::Known(code));
    }

    /// Closes the tunnel and cuts its flows; the peer is told `code` and `detail` (at most 256 bytes).
    /// Only the first call counts.
    pub fn close(&self, code: CloseCode, detail: &str) {
        self.core.close(code, detail);
    }

    /// Waits for the end of the tunnel. Cancel-safe.
    pub async fn closed(&self) -> CloseReason {
        let error = self.core.connection.closed().await;
        self.core.close_reason(error)
    }

    /// Why the tunnel is no more, or `None` while it lives.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.core.connection.close_reason().map(|error| self.core.close_reason(error))
    }

    /// The tunnel's figures now.
    pub fn stats(&self) -> TunnelStats {
        let stats = self.core.connection.stats();
        TunnelStats {
            rtt: stats.path.rtt,
            mtu_bytes: stats.path.current_mtu,
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            congestion_window_bytes: stats.path.cwnd,
        }
    }
}

impl Heard {
    /// The longest time for which the peer can have been silent, when `packets` of it have come until `now`.
    fn look(&mut self, packets: u64, now: tokio::time::Instant) -> Duration {
        if packets != self.packets {
            (self.packets, self.after) = (packets, self.looked);
        }
        self.looked = now;
        now.saturating_duration_since(self.after)
    }
}

impl TunnelCore {
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    fn new_flow(self: &Arc<Self>) -> Arc<Flow> {
        Flow::new(self.next_flow.fetch_add(1, Ordering::Relaxed), self.clone())
    }

    pub(crate) fn flow_started(&self) {
        self.flows.fetch_add(1, Ordering::Relaxed);
        self.metrics.flow_up();
    }

    pub(crate) fn flow_ended(&self) {
        self.flows.fetch_sub(1, Ordering::Relaxed);
        self.metrics.flow_down();
    }

    /// Doubles the peer's limit when three quarters are used: a permitted stream costs memory at once.
    fn grow_limit(&self) {
        let limit = self.flow_limit.load(Ordering::Relaxed);
        let used = self.flows.load(Ordering::Relaxed) as u64;
        if used * 4 < u64::from(limit) * 3 || limit >= self.settings.flows_ceiling {
            return;
        }
        let grown = limit.saturating_mul(2).min(self.settings.flows_ceiling);
        self.flow_limit.store(grown, Ordering::Relaxed);
        self.connection.set_max_concurrent_bi_streams(grown.into());
        debug!(peer = %self.peer.id, used, grown, "flow limit grows");
    }

    /// Gives the tunnel's flows `extra_bytes` of credit beyond its own window.
    pub(crate) fn widen(&self, extra_bytes: u64) {
        self.receive_extra.store(extra_bytes, Ordering::Relaxed);
        self.apply_receive_window();
    }

    /// The tunnel is one of `tunnels` with this peer at this address: it gets its share of what they may
    /// hold together, and never more than its own windows.
    pub(crate) fn share(&self, tunnels: u64) {
        let (send, receive) = self.settings.share(tunnels);
        self.connection.set_send_window(send);
        if self.receive_window.swap(receive, Ordering::Relaxed) != receive {
            self.apply_receive_window();
        }
    }

    fn apply_receive_window(&self) {
        let extra = self.receive_extra.load(Ordering::Relaxed);
        let window = self.receive_window.load(Ordering::Relaxed).saturating_add(extra);
        self.connection.set_receive_window(VarInt::from_u64(window).unwrap_or(VarInt::MAX));
    }

    /// Writes `work` on the peer's account, and closes the tunnel if that is more than it may do.
    ///
    /// # Errors
    ///
    /// The reason with which the tunnel was closed.
    pub(crate) fn charge(&self, work: Work) -> Result<(), CloseReason> {
        let charged = self.load.take(work, clock::now().into_std());
        charged.map_err(|excess| self.close_for(excess))
    }

    fn close_for(&self, excess: Excess) -> CloseReason {
        self.metrics.excess(excess.label());
        if let Some(left_out) = self.says.excess.may() {
            let (peer, reason) = (&self.peer.id, excess.label());
            warn!(%peer, reason, left_out, "tunnel closed, its peer asks for too much");
        }
        self.close(CloseCode::ExcessiveLoad, excess.detail());
        CloseReason::ours(CloseCode::ExcessiveLoad, excess.detail())
    }

    pub(crate) fn start_drain(&self, by: By, code: PeerCode<CloseCode>) {
        self.phase.send_if_modified(|phase| {
            let first = *phase == Phase::Open;
            if first {
                *phase = Phase::Draining { by, code };
            }
            first
        });
    }

    pub(crate) fn close(&self, code: CloseCode, detail: &str) {
        let end = detail.char_indices().map(|(at, c)| at + c.len_utf8());
        let end = end.take_while(|&end| end <= MAX_REASON_BYTES).last().unwrap_or(0);
        let detail = &detail[..end];
        if self.closing.set((code, detail.to_owned())).is_ok() {
            self.connection.close(code.varint(), detail.as_bytes());
        }
    }

    /// quinn forgets what this end closed with.
    pub(crate) fn close_reason(&self, error: quinn::ConnectionError) -> CloseReason {
        match (&error, self.closing.get()) {
            (quinn::ConnectionError::LocallyClosed, Some((code, detail))) => CloseReason::ours(*code, detail),
            _ => error.into(),
        }
    }

    /// The error of a read or a write, with this end's own reason if this end closed the tunnel.
    pub(crate) fn stream_error(&self, error: impl Into<StreamError>) -> StreamError {
        match (error.into(), self.connection.close_reason()) {
            (StreamError::TunnelClosed(_), Some(reason)) => {
                StreamError::TunnelClosed(self.close_reason(reason))
            }
            (other, _) => other,
        }
    }

    fn open_error(&self, error: quinn::ConnectionError) -> OpenError {
        OpenError::TunnelClosed(self.close_reason(error))
    }

    /// The header could not be sent: only the end of the tunnel, or a peer that refuses every flow.
    fn refused_at_once(&self, error: StreamError) -> OpenError {
        match error {
            StreamError::TunnelClosed(reason) => OpenError::TunnelClosed(reason),
            StreamError::Refused(_)
            | StreamError::Reset(_)
            | StreamError::Stopped(_)
            | StreamError::Reply(_)
            | StreamError::Ended => OpenError::Draining,
        }
    }
}

impl Drop for TunnelCore {
    fn drop(&mut self) {
        self.close(CloseCode::Done, "");
    }
}

/// The address without IPv4 mapping, as policy, quotas and logs want it.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_never_taken_for_shorter_than_it_may_be() {
        let start = clock::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut heard = Heard { packets: 0, looked: start, after: start };
        // Packets came at some time after the start, as far as anybody knows.
        assert_eq!(heard.look(5, at(30)), Duration::from_millis(30));
        assert_eq!(heard.look(5, at(35)), Duration::from_millis(35), "nothing new: the silence goes on");
        assert_eq!(heard.look(6, at(45)), Duration::from_millis(10), "heard since the look before");
        assert_eq!(heard.look(6, at(90)), Duration::from_millis(55));
        assert_eq!(heard.look(7, at(2_000)), Duration::from_millis(1_910), "at any time since");
    }
}
