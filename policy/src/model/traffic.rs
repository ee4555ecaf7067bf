//! How connections to a destination are balanced, bounded and timed.

use std::time::Duration;

use super::{Metadata, TargetRef};

/// A `TrafficPolicy`: at most one per service; every absent part takes the default of its type.
#[derive(Clone, Debug, PartialEq)]
pub struct TrafficPolicy {
    /// Namespace and name.
    pub metadata: Metadata,
    /// 1 to 16 services of the namespace.
    pub targets: Vec<TargetRef>,
    /// What is served of it.
    pub settings: TrafficSettings,
}

/// The settings of one destination.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TrafficSettings {
    /// How an endpoint is chosen.
    pub algorithm: Algorithm,
    /// When no more connections are opened.
    pub breaker: BreakerSettings,
    /// When an endpoint is left out for a while; `None` never.
    pub outlier: OutlierSettings,
    /// How long things may take.
    pub timeouts: TimeoutSettings,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Algorithm {
    /// The better of two random ones by peak EWMA of connect latency times live flows (Finagle, Linkerd).
    #[default]
    PeakEwma,
    /// The better of two random ones by live flows.
    LeastRequest,
    /// In turn.
    RoundRobin,
}

/// Bounds on what one agent has open towards one destination (Envoy's circuit breaker thresholds).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BreakerSettings {
    /// Live connections, 1 to 1,000,000. The default, 4,096, is the ceiling of one tunnel's streams.
    pub max_connections: u32,
    /// Connections being opened, 1 to 1,000,000. The default is 1,024, Envoy's.
    pub max_pending: u32,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self { max_connections: 4_096, max_pending: 1_024 }
    }
}

/// When an endpoint that fails is left out (Envoy's outlier detection, Linkerd's failure accrual).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutlierSettings {
    /// Failures in a row that eject, 1 to 1,000; 5 by default.
    pub consecutive_failures: u32,
    /// The first ejection lasts this long, then doubles; 10 s by default.
    pub base: Duration,
    /// The longest ejection; 60 s by default.
    pub max: Duration,
    /// Share of the ejection added at random, 0 to 1; 0.5 by default.
    pub jitter: f64,
    /// Share of a service's endpoints that may be out at once, 0 to 100; 50 by default.
    pub max_percent: u8,
}

impl Default for OutlierSettings {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            base: Duration::from_secs(10),
            max: Duration::from_secs(60),
            jitter: 0.5,
            max_percent: 50,
        }
    }
}

/// How long things may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TimeoutSettings {
    /// Until the destination's program has accepted, all attempts together; 5 s by default.
    pub connect: Duration,
    /// Without a byte in either direction; 1 h by default, as ztunnel and Envoy's TCP proxy.
    pub idle: Duration,
}

impl Default for TimeoutSettings {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), idle: Duration::from_secs(3_600) }
    }
}
