//! The transport values of a tunnel, each with its reason.
//!
//! [`TransportSettings`] is what an operator may change; it becomes quinn's configuration only through
//! [`Transport`], which checks that the values agree. Sources: the project's measurements on quinn
//! 0.11.12 / quinn-proto 0.11.19 (MTU 1500 and 9000, 2 cores), and security limits where so marked.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

const MIB: u64 = 1024 * 1024;

/// Segments in one GSO batch of quinn (`MAX_TRANSMIT_SEGMENTS` of quinn-proto's connection).
pub(crate) const GSO_SEGMENTS: u32 = 10;
/// A batch must fit one UDP datagram, or `sendmsg` fails with EMSGSIZE, which quinn-udp takes for a
/// probe that got lost: black-hole detection then drops the MTU to 1200 without an error.
pub(crate) const MAX_BATCH_BYTES: u32 = 65_507;
/// A tunnel's least share of what a peer's tunnels may hold together: it still moves 25 Mbit/s over 20 ms.
const MIN_SHARE_BYTES: u64 = 64 * 1024;
/// The least payload that QUIC guarantees (RFC 9000 section 14).
const MIN_MTU: u16 = 1200;

/// Limits and timers of a tunnel. [`Default`] holds the values that the project measured and decided.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TransportSettings {
    /// Bytes a peer may have in flight on one flow: 800 Mbit/s at 20 ms. More lets heavy loss leave over
    /// 1,024 gaps in a stream, at which quinn-proto 0.11 ends the whole connection (RUSTSEC-2026-0185).
    pub stream_window_bytes: u64,
    /// Bytes a peer may have unread on one tunnel. quinn's default is unlimited.
    pub receive_window_bytes: u64,
    /// Bytes kept for retransmission; also the only bound on a congestion window that runs away while
    /// the sender is limited by CPU (quinn #1126).
    pub send_window_bytes: u64,
    /// Flows a peer may have open at first. quinn allocates for each permitted stream at once: 100,000
    /// cost 6 ms of CPU a handshake, 4,096 cost 369 KiB a connection.
    pub flows_at_start: u32,
    /// Flows a peer may have open after growth; the limit doubles when three quarters are used.
    pub flows_ceiling: u32,
    /// Unidirectional streams a peer may have open: control messages only.
    pub control_streams: u32,
    /// A tunnel that hears nothing for this long is dead.
    pub idle_timeout: Duration,
    /// Silence after which a ping goes out; a third of the idle timeout, so that two may be lost.
    pub keep_alive: Duration,
    /// The longest handshake, from the first packet to the last check.
    pub handshake_timeout: Duration,
    /// The longest time in which the header of a new flow must arrive.
    pub header_timeout: Duration,
    /// The largest UDP payload on an unknown path: Ethernet's 1500 less IPv6 and UDP headers. Discovery
    /// starts from 1200 (RFC 9000 section 14) and searches up to here.
    pub mtu_ceiling: u16,
    /// The same between two processes of one host, whose loopback device carries 64 KiB: 2.2 times the
    /// bytes per CPU second of 1452, and still ten of them fit one batch.
    pub loopback_mtu_ceiling: u16,
    /// A kernel buffer of this size loses nothing at 8 Gbit/s; the default of 208 KiB lost 3,000 packets.
    pub socket_buffer_bytes: usize,
    /// How long a flow's local socket may take nothing before the flow counts as stalled.
    pub stall_after: Duration,
    /// What stalled flows of one identity may hold beyond the windows of their tunnels.
    pub stall_budget_bytes: u64,
    /// Handshake bytes kept while earlier ones are missing. quinn's own default, five times the longest
    /// chain that is accepted in good order.
    pub crypto_buffer_bytes: usize,
    /// Bytes kept for retransmission on all tunnels with one identity at one address: with more than four
    /// of them the send window is divided. A peer that never reads costs no more than this.
    pub peer_send_bytes: u64,
    /// Bytes unread on all tunnels with one identity at one address, stalled flows apart: with more than
    /// sixteen the receive window is divided.
    pub peer_receive_bytes: u64,
    /// Guards against floods of handshakes and tunnels.
    pub admission: AdmissionSettings,
    /// Guards against peers that churn.
    pub load: LoadSettings,
}

/// Limits on handshakes under way and on tunnels per peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AdmissionSettings {
    /// Unvalidated handshakes under way above which addresses must prove themselves by a Retry.
    pub retry_above_pending: usize,
    /// First packets per second above which the same holds.
    pub retry_above_per_second: u32,
    /// Unvalidated handshakes under way from one /24 or /64 above which the same holds for it.
    pub retry_above_per_network: usize,
    /// All handshakes under way; beyond it the oldest of the most crowded network gives way.
    pub max_pending: usize,
    /// Handshakes under way from one /24 or /64, proven addresses included; beyond it its own oldest gives
    /// way. A quarter of all: a rack that restarts dials from one network, all at once.
    pub pending_per_network: usize,
    /// Handshakes one /24 or /64 may start in a second: at a millisecond each, half a core.
    pub handshakes_per_network_per_second: u32,
    /// How long the token of a Retry is good: it comes back at once, or never.
    pub retry_token_lifetime: Duration,
    /// First packets kept for one handshake that was not looked at yet.
    pub incoming_buffer_bytes: u64,
    /// First packets kept for all of them.
    pub incoming_buffers_bytes: u64,
    /// Tunnels one identity may hold from one address.
    pub tunnels_per_peer: usize,
    /// New tunnels one identity may make from one address in a second.
    pub tunnels_per_peer_per_second: u32,
}

/// What one identity at one address may make this end do in a second, on all its tunnels together; beyond
/// it the tunnel is closed with [`CloseCode::ExcessiveLoad`](crate::CloseCode::ExcessiveLoad).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LoadSettings {
    /// Flows opened, and as many at once: several times what two cores carry through a whole flow each.
    pub flows_per_second: u32,
    /// Flows reset or stopped, or opened and left without a header. Programs that give up do so too, but
    /// a thousand a second for long is no program's way to work.
    pub resets_per_second: u32,
    /// The same at once: a program with as many flows as a tunnel carries dies, and each of its flows is
    /// reset in both directions.
    pub resets_at_once: u32,
    /// Frames of the connection itself: PING, PATH_CHALLENGE, NEW_CONNECTION_ID and their like. A tunnel
    /// in good order sends a few dozen at its start and one in ten seconds then.
    pub control_frames_per_second: u32,
}

impl Default for LoadSettings {
    fn default() -> Self {
        Self {
            flows_per_second: 10_000,
            resets_per_second: 1_000,
            resets_at_once: 8_192,
            control_frames_per_second: 5_000,
        }
    }
}

impl Default for TransportSettings {
    fn default() -> Self {
        Self {
            stream_window_bytes: 2 * MIB,
            receive_window_bytes: 16 * MIB,
            send_window_bytes: 16 * MIB,
            flows_at_start: 256,
            flows_ceiling: 4096,
            control_streams: 8,
            idle_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(10),
            mtu_ceiling: 1452,
            loopback_mtu_ceiling: 6500,
            socket_buffer_bytes: 4 * MIB as usize,
            stall_after: Duration::from_millis(100),
            stall_budget_bytes: 256 * MIB,
            crypto_buffer_bytes: 16 * 1024,
            peer_send_bytes: 64 * MIB,
            peer_receive_bytes: 256 * MIB,
            admission: AdmissionSettings::default(),
            load: LoadSettings::default(),
        }
    }
}

impl Default for AdmissionSettings {
    /// The limits of the security specification, section 9.3.
    fn default() -> Self {
        Self {
            retry_above_pending: 256,
            retry_above_per_second: 1000,
            retry_above_per_network: 64,
            max_pending: 4096,
            pending_per_network: 1024,
            handshakes_per_network_per_second: 500,
            retry_token_lifetime: Duration::from_secs(15),
            incoming_buffer_bytes: 64 * 1024,
            incoming_buffers_bytes: 16 * MIB,
            tunnels_per_peer: 64,
            tunnels_per_peer_per_second: 50,
        }
    }
}

/// Settings that contradict each other or QUIC.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidTransport {
    /// A value is zero or beyond QUIC's 62 bits.
    #[error("{0} is out of range")]
    OutOfRange(&'static str),
    /// A keep-alive that comes after the idle timeout keeps nothing alive.
    #[error("keep-alive must be shorter than the idle timeout")]
    KeepAlive,
    /// One flow could take the credit of all.
    #[error("the window of a flow must not exceed the window of its tunnel")]
    Windows,
    /// A growth that goes down.
    #[error("the ceiling of flows lies below their start")]
    Flows,
    /// Below QUIC's 1200, or too large for a batch of ten (6,550).
    #[error("an MTU of {0} is below 1200 or too large for a batch of {GSO_SEGMENTS}")]
    Mtu(u16),
}

/// Checked settings in quinn's form, built once per endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    pub(crate) settings: TransportSettings,
    dialled: [Arc<TransportConfig>; 2],
    accepted: [Arc<TransportConfig>; 2],
}

/// Which paths a configuration is for; the index into [`Transport`]'s pairs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Path {
    Network = 0,
    Loopback = 1,
}

impl Path {
    /// The path to a peer at `remote`.
    pub(crate) fn to(remote: IpAddr) -> Self {
        if remote.to_canonical().is_loopback() { Self::Loopback } else { Self::Network }
    }
}

impl Transport {
    pub(crate) fn new(settings: TransportSettings) -> Result<Self, InvalidTransport> {
        let network = settings.mtu_ceiling;
        let loopback = settings.loopback_mtu_ceiling;
        let accepted = |mtu| settings.config(settings.flows_at_start, mtu).map(Arc::new);
        // Flows run from the caller to the service: the dialled end lets the peer open none.
        let dialled = |mtu| settings.config(0, mtu).map(Arc::new);
        let accepted = [accepted(network)?, accepted(loopback)?];
        let dialled = [dialled(network)?, dialled(loopback)?];
        Ok(Self { settings, dialled, accepted })
    }

    pub(crate) fn dialled(&self, path: Path) -> Arc<TransportConfig> {
        self.dialled[path as usize].clone()
    }

    pub(crate) fn accepted(&self, path: Path) -> Arc<TransportConfig> {
        self.accepted[path as usize].clone()
    }

    /// The largest UDP payload that this end takes: quinn's default of 1472 would drop larger probes.
    pub(crate) fn max_udp_payload(&self) -> u16 {
        self.settings.mtu_ceiling.max(self.settings.loopback_mtu_ceiling).max(1472)
    }
}

impl TransportSettings {
    /// Send and receive window of each of `tunnels` with one peer at one address: its share of what they may
    /// hold together, and never more than one tunnel alone may.
    pub(crate) fn share(&self, tunnels: u64) -> (u64, u64) {
        let part = |all: u64, own: u64| (all / tunnels.max(1)).clamp(MIN_SHARE_BYTES.min(own), own);
        let send = part(self.peer_send_bytes, self.send_window_bytes);
        (send, part(self.peer_receive_bytes, self.receive_window_bytes))
    }

    fn config(&self, flows: u32, mtu: u16) -> Result<TransportConfig, InvalidTransport> {
        self.check(mtu)?;
        let window = |bytes: u64, name| {
            let varint = VarInt::from_u64(bytes).map_err(|_| InvalidTransport::OutOfRange(name))?;
            if bytes == 0 { Err(InvalidTransport::OutOfRange(name)) } else { Ok(varint) }
        };
        let idle = IdleTimeout::try_from(self.idle_timeout)
            .map_err(|_| InvalidTransport::OutOfRange("idle timeout"))?;
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(mtu);

        let mut config = TransportConfig::default();
        config
            .stream_receive_window(window(self.stream_window_bytes, "window of a flow")?)
            .receive_window(window(self.receive_window_bytes, "receive window")?)
            .send_window(self.send_window_bytes)
            // Streams of equal priority take turns; FIFO would let one bulk flow delay all others.
            .send_fairness(true)
            .max_concurrent_bidi_streams(flows.into())
            .max_concurrent_uni_streams(self.control_streams.into())
            .crypto_buffer_size(self.crypto_buffer_bytes)
            .max_idle_timeout(Some(idle))
            .keep_alive_interval(Some(self.keep_alive))
            // A third of the RFC's 333 ms, fit for a mesh: the first retransmission of a handshake goes
            // out after 0.3 s, so a dial that meets a restarting agent finds it soon.
            .initial_rtt(Duration::from_millis(100))
            .initial_mtu(MIN_MTU)
            .mtu_discovery_config(Some(discovery))
            // GSO is worth 3x (2.85 against 8.4 Gbit/s); GRO follows on the receiving side.
            .enable_segmentation_offload(true)
            // Measured: fewer acks, but not faster.
            .ack_frequency_config(None)
            // quinn's BBR lost 40 % on a shallow queue; CUBIC until Weft's own controller is proven.
            .congestion_controller_factory(Arc::new(CubicConfig::default()))
            // A passive observer learns nothing from us.
            .allow_spin(false)
            // No UDP service is in use yet: datagrams are off.
            .datagram_receive_buffer_size(None)
            .datagram_send_buffer_size(0);
        Ok(config)
    }

    fn check(&self, mtu: u16) -> Result<(), InvalidTransport> {
        if self.keep_alive.is_zero() || self.keep_alive >= self.idle_timeout {
            return Err(InvalidTransport::KeepAlive);
        }
        if self.stream_window_bytes > self.receive_window_bytes {
            return Err(InvalidTransport::Windows);
        }
        if self.flows_at_start == 0 || self.flows_ceiling < self.flows_at_start {
            return Err(InvalidTransport::Flows);
        }
        if self.send_window_bytes == 0 {
            return Err(InvalidTransport::OutOfRange("send window"));
        }
        // A chain of our own, with its signature and Finished, must fit.
        if self.crypto_buffer_bytes < 4096 {
            return Err(InvalidTransport::OutOfRange("crypto buffer"));
        }
        if mtu < MIN_MTU || u32::from(mtu) * GSO_SEGMENTS >= MAX_BATCH_BYTES {
            return Err(InvalidTransport::Mtu(mtu));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_agree_and_say_what_was_decided() {
        let settings = TransportSettings::default();
        assert!(Transport::new(settings.clone()).is_ok());
        assert_eq!(settings.stream_window_bytes, 2_097_152);
        assert_eq!(settings.receive_window_bytes, 16_777_216);
        assert_eq!((settings.flows_at_start, settings.flows_ceiling), (256, 4096));
    }

    #[test]
    fn a_batch_never_exceeds_one_datagram() {
        let with =
            |mtu| Transport::new(TransportSettings { loopback_mtu_ceiling: mtu, ..Default::default() });
        assert!(with(6550).is_ok());
        assert_eq!(with(6551).unwrap_err(), InvalidTransport::Mtu(6551));
        assert_eq!(with(8952).unwrap_err(), InvalidTransport::Mtu(8952));
        assert_eq!(with(1199).unwrap_err(), InvalidTransport::Mtu(1199));
    }

    #[test]
    fn a_keep_alive_as_long_as_the_idle_timeout_is_refused() {
        let idle_timeout = Duration::from_secs(10);
        let settings = TransportSettings { idle_timeout, ..Default::default() };
        assert_eq!(Transport::new(settings).unwrap_err(), InvalidTransport::KeepAlive);
    }

    #[test]
    fn contradicting_windows_and_limits_are_refused() {
        let base = TransportSettings::default;
        let wide = TransportSettings { stream_window_bytes: 17 * MIB, ..base() };
        assert_eq!(Transport::new(wide).unwrap_err(), InvalidTransport::Windows);
        let falling = TransportSettings { flows_ceiling: 255, ..base() };
        assert_eq!(Transport::new(falling).unwrap_err(), InvalidTransport::Flows);
        let none = TransportSettings { stream_window_bytes: 0, ..base() };
        assert_eq!(Transport::new(none).unwrap_err(), InvalidTransport::OutOfRange("window of a flow"));
    }

    #[test]
    fn quic_12_the_tunnels_of_a_peer_hold_no_more_together_than_a_peer_may() {
        let settings = TransportSettings::default();
        assert_eq!(settings.share(1), (16 * MIB, 16 * MIB));
        assert_eq!(settings.share(4), (16 * MIB, 16 * MIB), "the most that have whole send windows");
        assert_eq!(settings.share(5).0, 64 * MIB / 5);
        assert_eq!(settings.share(16).1, 16 * MIB, "the most that have whole receive windows");
        assert_eq!(settings.share(17).1, 256 * MIB / 17);
        assert_eq!(settings.share(64), (MIB, 4 * MIB));
        let narrow = TransportSettings { send_window_bytes: 1000, ..Default::default() };
        assert_eq!(narrow.share(64).0, 1000, "a window that is small already stays");
    }

    #[test]
    fn the_crypto_buffer_holds_at_least_a_handshake_of_our_own() {
        let with = |bytes| {
            Transport::new(TransportSettings { crypto_buffer_bytes: bytes, ..Default::default() }).is_ok()
        };
        assert_eq!((with(4095), with(4096), with(4097)), (false, true, true));
    }

    #[test]
    fn only_loopback_addresses_get_the_larger_packets() {
        assert_eq!(Path::to("127.0.0.1".parse().unwrap()), Path::Loopback);
        assert_eq!(Path::to("::ffff:127.0.0.9".parse().unwrap()), Path::Loopback);
        assert_eq!(Path::to("::1".parse().unwrap()), Path::Loopback);
        assert_eq!(Path::to("10.0.0.1".parse().unwrap()), Path::Network);
    }
}
