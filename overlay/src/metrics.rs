//! What the tunnels report. Names and units are public interface: dashboards depend on them.
//!
//! Peers are the only open set among the labels; beyond [`MAX_PEERS`] they share the label `other`.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use weft_identity::SpiffeId;

/// Series per family, as the security limits say.
const MAX_PEERS: usize = 2000;
/// The label of every peer beyond them.
const OTHER: &str = "other";
/// Seconds; a handshake takes 2 ms on one host, 5 s is its timeout.
const HANDSHAKE_BUCKETS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// The metrics of one process's tunnels, shared by its endpoints and pools.
#[derive(Debug)]
pub struct OverlayMetrics {
    active: Family<PeerLabels, Gauge>,
    peers: Mutex<BTreeMap<String, usize>>,
    handshakes: Family<HandshakeLabels, Counter>,
    handshake_duration: Histogram,
    rtt: Gauge<f64, AtomicU64>,
    packets_lost: Counter,
    migrations: Counter,
    mtu: Gauge,
    streams_active: Gauge,
    io: Family<IoLabels, Counter>,
    closes: Family<ReasonLabels, Counter>,
    handshakes_pending: Gauge,
    handshakes_deflected: Family<ReasonLabels, Counter>,
    excess: Family<ReasonLabels, Counter>,
    flows_stalled: Gauge,
    flows_evicted: Counter,
    pool_tunnels: Gauge,
    pool_refused: Family<ReasonLabels, Counter>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct PeerLabels {
    peer: String,
    path: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct HandshakeLabels {
    result: &'static str,
    resumed: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct IoLabels {
    direction: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// What happened on all tunnels since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) lost_packets: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    /// RESET_STREAM and STOP_SENDING frames of the peer.
    pub(crate) resets: u64,
    /// The peer's frames that carry neither flows nor acknowledgements nor credit.
    pub(crate) control_frames: u64,
}

impl Sample {
    /// All that moved on a connection so far.
    pub(crate) fn of(stats: &quinn::ConnectionStats) -> Self {
        let frames = &stats.frame_rx;
        let control = [
            frames.ping,
            frames.crypto,
            frames.path_challenge,
            frames.path_response,
            frames.new_connection_id,
            frames.retire_connection_id,
            frames.new_token,
            frames.immediate_ack,
            frames.ack_frequency,
            frames.data_blocked,
            frames.stream_data_blocked,
            frames.streams_blocked_bidi,
            frames.streams_blocked_uni,
            frames.max_streams_bidi,
            frames.max_streams_uni,
        ];
        Self {
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            resets: frames.reset_stream + frames.stop_sending,
            control_frames: control.iter().sum(),
        }
    }

    /// What moved since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            lost_packets: self.lost_packets.saturating_sub(before.lost_packets),
            sent_bytes: self.sent_bytes.saturating_sub(before.sent_bytes),
            received_bytes: self.received_bytes.saturating_sub(before.received_bytes),
            resets: self.resets.saturating_sub(before.resets),
            control_frames: self.control_frames.saturating_sub(before.control_frames),
        }
    }
}

impl OverlayMetrics {
    /// Registers every metric under its name of the observability page, with dots as underscores.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::unregistered();
        let tunnel = registry.sub_registry_with_prefix("weft_tunnel");
        tunnel.register("active", "Tunnels that are up, by peer", metrics.active.clone());
        tunnel.register("handshakes", "Handshakes that ended, by result", metrics.handshakes.clone());
        tunnel.register_with_unit(
            "handshake_duration",
            "From the first packet to a verified peer",
            Unit::Seconds,
            metrics.handshake_duration.clone(),
        );
        tunnel.register_with_unit(
            "rtt",
            "Mean round-trip time of the tunnels",
            Unit::Seconds,
            metrics.rtt.clone(),
        );
        tunnel.register("packets_lost", "Packets declared lost", metrics.packets_lost.clone());
        tunnel.register("migrations", "Paths that changed under a tunnel", metrics.migrations.clone());
        tunnel.register_with_unit("mtu", "Smallest UDP payload in use", Unit::Bytes, metrics.mtu.clone());
        tunnel.register("streams_active", "Flows that are open", metrics.streams_active.clone());
        tunnel.register_with_unit("io", "UDP payload moved", Unit::Bytes, metrics.io.clone());
        tunnel.register("closes", "Tunnels that ended, by reason", metrics.closes.clone());
        let pending = metrics.handshakes_pending.clone();
        tunnel.register("handshakes_pending", "Incoming handshakes under way", pending);
        let deflected = metrics.handshakes_deflected.clone();
        tunnel.register(
            "handshakes_deflected",
            "First packets asked to prove themselves or dropped",
            deflected,
        );
        let excess = metrics.excess.clone();
        tunnel.register("excess", "Tunnels closed because their peer was over a rate", excess);
        let stalled = metrics.flows_stalled.clone();
        tunnel.register("flows_stalled", "Flows whose local socket takes nothing", stalled);
        let evicted = metrics.flows_evicted.clone();
        tunnel.register("flows_evicted", "Stalled flows reset for their identity's budget", evicted);
        tunnel.register("pool_size", "Tunnels held by the pool", metrics.pool_tunnels.clone());
        tunnel.register("pool_refused", "Flows the pool refused, by reason", metrics.pool_refused.clone());
        metrics
    }

    /// Metrics that nobody reads, for tests and tools.
    pub fn unregistered() -> Self {
        Self {
            active: Family::default(),
            peers: Mutex::default(),
            handshakes: Family::default(),
            handshake_duration: Histogram::new(HANDSHAKE_BUCKETS),
            rtt: Gauge::default(),
            packets_lost: Counter::default(),
            migrations: Counter::default(),
            mtu: Gauge::default(),
            streams_active: Gauge::default(),
            io: Family::default(),
            closes: Family::default(),
            handshakes_pending: Gauge::default(),
            handshakes_deflected: Family::default(),
            excess: Family::default(),
            flows_stalled: Gauge::default(),
            flows_evicted: Counter::default(),
            pool_tunnels: Gauge::default(),
            pool_refused: Family::default(),
        }
    }

    pub(crate) fn handshake(&self, result: &'static str, took: Duration) {
        self.handshakes.get_or_create(&HandshakeLabels { result, resumed: "false" }).inc();
        if result == "ok" {
            self.handshake_duration.observe(took.as_secs_f64());
        }
    }

    pub(crate) fn pending(&self, handshakes: usize) {
        self.handshakes_pending.set(clamp(handshakes));
    }

    pub(crate) fn deflected(&self, reason: &'static str) {
        self.handshakes_deflected.get_or_create(&ReasonLabels { reason }).inc();
    }

    pub(crate) fn excess(&self, reason: &'static str) {
        self.excess.get_or_create(&ReasonLabels { reason }).inc();
    }

    pub(crate) fn tunnel_up(&self, peer: &SpiffeId) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let label = peer.to_string();
        let label = if peers.contains_key(&label) || peers.len() < MAX_PEERS { label } else { OTHER.into() };
        *peers.entry(label.clone()).or_default() += 1;
        self.active.get_or_create(&PeerLabels { peer: label, path: "direct" }).inc();
    }

    pub(crate) fn tunnel_down(&self, peer: &SpiffeId, reason: &'static str) {
        self.closes.get_or_create(&ReasonLabels { reason }).inc();
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let label = peer.to_string();
        let label = if peers.contains_key(&label) { label } else { OTHER.into() };
        let labels = PeerLabels { peer: label, path: "direct" };
        let Some(tunnels) = peers.get_mut(&labels.peer) else { return };
        *tunnels -= 1;
        if *tunnels == 0 {
            peers.remove(&labels.peer);
            self.active.remove(&labels);
        } else {
            self.active.get_or_create(&labels).dec();
        }
    }

    pub(crate) fn flow_up(&self) {
        self.streams_active.inc();
    }

    pub(crate) fn flow_down(&self) {
        self.streams_active.dec();
    }

    pub(crate) fn moved(&self, sample: Sample) {
        self.packets_lost.inc_by(sample.lost_packets);
        self.io.get_or_create(&IoLabels { direction: "sent" }).inc_by(sample.sent_bytes);
        self.io.get_or_create(&IoLabels { direction: "received" }).inc_by(sample.received_bytes);
    }

    pub(crate) fn path(&self, mean_rtt: Duration, smallest_mtu: u16) {
        self.rtt.set(mean_rtt.as_secs_f64());
        self.mtu.set(i64::from(smallest_mtu));
    }

    pub(crate) fn stalled_flows(&self, flows: usize) {
        self.flows_stalled.set(clamp(flows));
    }

    pub(crate) fn evicted(&self) {
        self.flows_evicted.inc();
    }

    pub(crate) fn pool_size(&self, tunnels: usize) {
        self.pool_tunnels.set(clamp(tunnels));
    }

    pub(crate) fn pool_refused(&self, reason: &'static str) {
        self.pool_refused.get_or_create(&ReasonLabels { reason }).inc();
    }
}

fn clamp(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_observability_page() {
        let mut registry = Registry::default();
        let metrics = OverlayMetrics::register(&mut registry);
        metrics.tunnel_up(&"spiffe://test.example/ns/a/sa/b".parse().unwrap());
        metrics.handshake("ok", Duration::from_millis(2));
        metrics.moved(Sample { lost_packets: 1, sent_bytes: 2, received_bytes: 3, ..Sample::default() });
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "weft_tunnel_active{peer=\"spiffe://test.example/ns/a/sa/b\",path=\"direct\"} 1",
            "weft_tunnel_handshakes_total{result=\"ok\",resumed=\"false\"} 1",
            "# TYPE weft_tunnel_handshake_duration_seconds histogram",
            "# TYPE weft_tunnel_rtt_seconds gauge",
            "weft_tunnel_packets_lost_total 1",
            "weft_tunnel_migrations_total 0",
            "# TYPE weft_tunnel_mtu_bytes gauge",
            "# TYPE weft_tunnel_streams_active gauge",
            "weft_tunnel_io_bytes_total{direction=\"sent\"} 2",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn a_peer_without_tunnels_leaves_no_series_and_the_set_is_bounded() {
        let metrics = OverlayMetrics::unregistered();
        let peer = |n: usize| format!("spiffe://test.example/ns/a/sa/s{n}").parse().unwrap();
        for n in 0..MAX_PEERS + 5 {
            metrics.tunnel_up(&peer(n));
        }
        assert_eq!(metrics.peers.lock().unwrap().len(), MAX_PEERS + 1);
        assert_eq!(metrics.peers.lock().unwrap()[OTHER], 5);
        for n in 0..MAX_PEERS + 5 {
            metrics.tunnel_down(&peer(n), "done");
        }
        assert!(metrics.peers.lock().unwrap().is_empty());
    }
}
