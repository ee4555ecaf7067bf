//! The limits of an agent (security.md 9.3, decisions.md Tunnels), each with its default and its bounds.
//!
//! Every key is served: a limit that nothing enforces has no place here.

use std::time::Duration;

use serde::Deserialize;
use weft_overlay::{AdmissionSettings, LoadSettings, PoolSettings, TransportSettings};

use super::{
    origin::Resolver,
    value::{ByteSize, Given, Period},
};
use crate::{intercept::HeadLimits, telemetry::family::MAX_SERIES};

/// Declares one section: its fields, keys, defaults and bounds, the form in the file, and the way between them.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident, $raw:ident, $path:literal {
        $($(#[$field_doc:meta])* $field:ident: $type:ty, $key:literal = $default:expr, $bounds:expr;)+
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Eq, PartialEq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $raw {
            $(#[serde(rename = $key)] $field: Option<Given<$type>>,)+
        }

        impl $name {
            pub(super) fn resolve(raw: Option<$raw>, resolver: &mut Resolver<'_>) -> Self {
                let raw = raw.unwrap_or_default();
                Self {
                    $($field: resolver.bounded(concat!($path, ".", $key), raw.$field, $default, &$bounds),)+
                }
            }
        }
    };
}

const fn mib(count: u64) -> ByteSize {
    ByteSize(count << 20)
}

const fn kib(count: u64) -> ByteSize {
    ByteSize(count << 10)
}

const fn seconds(count: u64) -> Period {
    Period(Duration::from_secs(count))
}

const fn millis(count: u64) -> Period {
    Period(Duration::from_millis(count))
}

section! {
    /// Limits of tunnels and their flows; `weft_overlay::TransportSettings` tells the reasons.
    TunnelLimits, RawTunnelLimits, "limits.tunnels" {
        /// Bytes a peer may have in flight on one flow.
        stream_window: ByteSize, "streamWindow" = mib(2), kib(64)..=mib(64);
        /// Bytes a peer may have unread on one tunnel.
        receive_window: ByteSize, "receiveWindow" = mib(16), mib(1)..=mib(1_024);
        /// Bytes kept for retransmission.
        send_window: ByteSize, "sendWindow" = mib(16), mib(1)..=mib(1_024);
        /// Flows a peer may have open at first.
        flows_at_start: u32, "flowsAtStart" = 256, 1..=65_536;
        /// Flows a peer may have open after growth.
        flows_ceiling: u32, "flowsCeiling" = 4_096, 1..=65_536;
        /// A tunnel that hears nothing for this long is dead.
        idle_timeout: Period, "idleTimeout" = seconds(30), seconds(1)..=seconds(600);
        /// Silence after which a ping goes out.
        keep_alive: Period, "keepAlive" = seconds(10), millis(100)..=seconds(300);
        /// The longest handshake.
        handshake_timeout: Period, "handshakeTimeout" = seconds(5), millis(100)..=seconds(60);
        /// The longest time in which the header of a flow must arrive.
        header_timeout: Period, "headerTimeout" = seconds(10), millis(100)..=seconds(60);
        /// How long a program may take nothing before its flow counts as stalled.
        stall_after: Period, "stallAfter" = millis(100), millis(10)..=seconds(10);
        /// What stalled flows of one identity may hold.
        stall_budget: ByteSize, "stallBudget" = mib(256), mib(1)..=mib(16_384);
        /// The kernel's buffers of the tunnel socket.
        socket_buffer: ByteSize, "socketBuffer" = mib(4), kib(64)..=mib(64);
        /// Tunnels one identity may hold from one address.
        per_peer: u32, "perPeer" = 64, 1..=65_536;
        /// Tunnels one identity may make from one address in a second.
        per_peer_per_second: u32, "perPeerPerSecond" = 50, 1..=65_536;
        /// Handshakes under way.
        pending: u32, "pending" = 4_096, 16..=65_536;
        /// Handshakes under way above which addresses must prove themselves.
        retry_above_pending: u32, "retryAbovePending" = 256, 0..=65_536;
        /// First packets a second above which addresses must prove themselves.
        retry_above_per_second: u32, "retryAbovePerSecond" = 1_000, 0..=1_000_000;
        /// Handshakes under way from one network above which its addresses must prove themselves.
        retry_above_per_network: u32, "retryAbovePerNetwork" = 64, 0..=65_536;
        /// Handshakes under way from one network, above which its own oldest gives way.
        pending_per_network: u32, "pendingPerNetwork" = 1_024, 1..=65_536;
        /// Handshakes one network may start in a second.
        per_network_per_second: u32, "perNetworkPerSecond" = 500, 1..=1_000_000;
        /// How long the token of a Retry is good.
        retry_token_lifetime: Period, "retryTokenLifetime" = seconds(15), seconds(1)..=seconds(600);
        /// First packets kept for one handshake that was not looked at yet.
        incoming_buffer: ByteSize, "incomingBuffer" = kib(64), kib(2)..=mib(1);
        /// First packets kept for all such handshakes.
        incoming_buffers: ByteSize, "incomingBuffers" = mib(16), kib(64)..=mib(1_024);
        /// Handshake bytes kept while earlier ones are missing.
        crypto_buffer: ByteSize, "cryptoBuffer" = kib(16), kib(4)..=kib(256);
        /// Bytes kept for retransmission on all tunnels with one identity at one address.
        per_peer_send: ByteSize, "perPeerSend" = mib(64), mib(1)..=mib(16_384);
        /// Bytes unread on all tunnels with one identity at one address.
        per_peer_receive: ByteSize, "perPeerReceive" = mib(256), mib(1)..=mib(16_384);
        /// Flows one identity may open from one address in a second.
        flows_per_peer_per_second: u32, "flowsPerPeerPerSecond" = 10_000, 1..=1_000_000;
        /// Flows one identity may reset from one address in a second.
        resets_per_peer_per_second: u32, "resetsPerPeerPerSecond" = 1_000, 1..=1_000_000;
        /// The same at once.
        resets_per_peer_at_once: u32, "resetsPerPeerAtOnce" = 8_192, 1..=1_000_000;
        /// Frames of the connection itself one identity may send from one address in a second.
        control_frames_per_peer_per_second: u32, "controlFramesPerPeerPerSecond" = 5_000, 100..=1_000_000;
        /// Tunnels this agent has open to others.
        outbound: u32, "outbound" = 1_024, 1..=65_536;
    }
}

section! {
    /// Limits of requests on the proxy port.
    RequestLimits, RawRequestLimits, "limits.requests" {
        /// The whole head.
        head_bytes: ByteSize, "headBytes" = kib(16), kib(1)..=kib(1_024);
        /// Header lines.
        headers: u32, "headers" = 100, 1..=10_000;
        /// The target.
        target_bytes: ByteSize, "targetBytes" = kib(8), ByteSize(64)..=kib(1_024);
        /// Until the head is whole.
        head_timeout: Period, "headTimeout" = seconds(10), millis(100)..=seconds(600);
    }
}

section! {
    /// Limits of what this agent carries.
    FlowLimits, RawFlowLimits, "limits.flows" {
        /// Flows at a time, both directions together.
        total: u32, "total" = 65_536, 1..=1_048_576;
        /// Connections of local programs at a time, those that have not asked for anything yet included.
        local: u32, "local" = 16_384, 1..=1_048_576;
    }
}

section! {
    /// Limits of what is told.
    TelemetryLimits, RawTelemetryLimits, "limits.telemetry" {
        /// Label sets of one family of metrics.
        series: u32, "series" = MAX_SERIES as u32, 1..=100_000;
        /// Lines of the access log that may wait for the disk.
        log_lines: u32, "logLines" = crate::telemetry::access_log::DEFAULT_QUEUE as u32, 16..=1_000_000;
        /// The size at which a file of the access log is set aside; one older file is kept.
        log_file: ByteSize, "logFile" = mib(64), kib(64)..=mib(65_536);
    }
}

/// All limits of an agent.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Limits {
    /// Of tunnels.
    pub tunnels: TunnelLimits,
    /// Of requests.
    pub requests: RequestLimits,
    /// Of flows.
    pub flows: FlowLimits,
    /// Of telemetry.
    pub telemetry: TelemetryLimits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    tunnels: Option<RawTunnelLimits>,
    requests: Option<RawRequestLimits>,
    flows: Option<RawFlowLimits>,
    telemetry: Option<RawTelemetryLimits>,
}

impl Limits {
    pub(super) fn resolve(raw: Option<RawLimits>, resolver: &mut Resolver<'_>) -> Self {
        let raw = raw.unwrap_or_default();
        let limits = Self {
            tunnels: TunnelLimits::resolve(raw.tunnels, resolver),
            requests: RequestLimits::resolve(raw.requests, resolver),
            flows: FlowLimits::resolve(raw.flows, resolver),
            telemetry: TelemetryLimits::resolve(raw.telemetry, resolver),
        };
        let tunnels = &limits.tunnels;
        let rules = [
            (tunnels.keep_alive >= tunnels.idle_timeout, "keepAlive", "it must be shorter than idleTimeout"),
            (
                tunnels.stream_window > tunnels.receive_window,
                "streamWindow",
                "it must not exceed receiveWindow",
            ),
            (tunnels.flows_ceiling < tunnels.flows_at_start, "flowsCeiling", "it lies below flowsAtStart"),
        ];
        for (broken, key, what) in rules {
            if broken {
                resolver.fault(&format!("limits.tunnels.{key}"), what.to_owned(), None);
            }
        }
        limits
    }

    /// What tunnels are made with.
    #[must_use]
    pub fn transport(&self) -> TransportSettings {
        let it = &self.tunnels;
        TransportSettings {
            stream_window_bytes: it.stream_window.0,
            receive_window_bytes: it.receive_window.0,
            send_window_bytes: it.send_window.0,
            flows_at_start: it.flows_at_start,
            flows_ceiling: it.flows_ceiling,
            idle_timeout: it.idle_timeout.0,
            keep_alive: it.keep_alive.0,
            handshake_timeout: it.handshake_timeout.0,
            header_timeout: it.header_timeout.0,
            socket_buffer_bytes: size(it.socket_buffer),
            stall_after: it.stall_after.0,
            stall_budget_bytes: it.stall_budget.0,
            admission: AdmissionSettings {
                retry_above_pending: count(it.retry_above_pending),
                retry_above_per_second: it.retry_above_per_second,
                retry_above_per_network: count(it.retry_above_per_network),
                max_pending: count(it.pending),
                tunnels_per_peer: count(it.per_peer),
                tunnels_per_peer_per_second: it.per_peer_per_second,
                pending_per_network: count(it.pending_per_network),
                handshakes_per_network_per_second: it.per_network_per_second,
                retry_token_lifetime: it.retry_token_lifetime.0,
                incoming_buffer_bytes: it.incoming_buffer.0,
                incoming_buffers_bytes: it.incoming_buffers.0,
            },
            crypto_buffer_bytes: size(it.crypto_buffer),
            peer_send_bytes: it.per_peer_send.0,
            peer_receive_bytes: it.per_peer_receive.0,
            load: LoadSettings {
                flows_per_second: it.flows_per_peer_per_second,
                resets_per_second: it.resets_per_peer_per_second,
                resets_at_once: it.resets_per_peer_at_once,
                control_frames_per_second: it.control_frames_per_peer_per_second,
            },
            ..TransportSettings::default()
        }
    }

    /// What the pool of outbound tunnels is made with.
    #[must_use]
    pub fn pool(&self) -> PoolSettings {
        PoolSettings { max_tunnels: count(self.tunnels.outbound), ..PoolSettings::default() }
    }

    /// What heads of requests are read with.
    #[must_use]
    pub fn head(&self) -> HeadLimits {
        let it = &self.requests;
        HeadLimits {
            head_bytes: size(it.head_bytes),
            headers: count(it.headers),
            target_bytes: size(it.target_bytes),
            timeout: it.head_timeout.0,
        }
    }
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn size(bytes: ByteSize) -> usize {
    usize::try_from(bytes.0).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_parts_that_use_them() {
        let limits = Limits::default();
        assert_eq!(limits.transport(), TransportSettings::default());
        assert_eq!(limits.head(), HeadLimits::default());
        assert_eq!(limits.pool().max_tunnels, PoolSettings::default().max_tunnels);
        assert_eq!(limits.telemetry.series, 2_000);
    }
}
