//! What the agent counts. Names and units are public interface: dashboards depend on them.
//!
//! Owns the OTel names of observability.md 2.2, translated for Prometheus: dots become underscores, the unit is a suffix,
//! counters end in `_total`. Flows have names of the same kind, since that page has none for TCP. Labels come from the
//! snapshot and from bounded words, never from what a caller sends.

use std::{
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use weft_identity::spiffe::SpiffeId;
use weft_policy::{code::CodeId, name::ServiceName};

use super::family::{CappedFamily, Labels, OTHER};
use crate::relay::{FlowMeter, Side, Totals};

/// Seconds: from a connect on one host to a long-lived connection.
const FLOW_BUCKETS: [f64; 10] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 600.0, 3_600.0];
/// Seconds: an open tunnel answers within one, a new one within ten round trips; 5 s is the connect timeout.
const OPEN_BUCKETS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

type Seconds = Gauge<f64, AtomicU64>;

/// The metrics of one agent, shared by its workers. A clone is the same.
#[derive(Clone, Debug)]
pub struct NodeMetrics {
    decisions: CappedFamily<DecisionLabels, Counter>,
    certificate_expiry: CappedFamily<IdentityLabels, Seconds>,
    renewals: Family<ResultLabels, Counter>,
    renewals_overdue: Family<LevelLabels, Gauge>,
    clock_skew: Seconds,
    bundle_age: Seconds,
    denied: Gauge,
    endpoints: CappedFamily<EndpointLabels, Gauge>,
    circuits_open: Gauge,
    retries: Family<OutcomeLabels, Counter>,
    sync_lag: Seconds,
    revision: Gauge,
    flows_active: Family<DirectionLabels, Gauge>,
    flows_completed: CappedFamily<FlowLabels, Counter>,
    flow_duration: Histogram,
    flow_open_duration: Histogram,
    flow_io: Family<IoLabels, Counter>,
    intercept_refused: Family<ReasonLabels, Counter>,
    log_dropped: Counter,
    metrics_dropped: Counter,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct DecisionLabels {
    service: String,
    decision: &'static str,
    policy: String,
    rule: String,
    code: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct IdentityLabels {
    identity: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct EndpointLabels {
    service: String,
    state: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct FlowLabels {
    direction: &'static str,
    service: String,
    error_type: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct LevelLabels {
    level: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct DirectionLabels {
    direction: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct IoLabels {
    direction: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabels {
    reason: &'static str,
}

impl Labels for DecisionLabels {
    fn overflow(&self) -> Self {
        let other = || OTHER.to_owned();
        Self { service: other(), policy: other(), rule: other(), decision: self.decision, code: self.code }
    }
}

impl Labels for IdentityLabels {
    fn overflow(&self) -> Self {
        Self { identity: OTHER.to_owned() }
    }
}

impl Labels for EndpointLabels {
    fn overflow(&self) -> Self {
        Self { service: OTHER.to_owned(), state: self.state }
    }
}

impl Labels for FlowLabels {
    fn overflow(&self) -> Self {
        Self { service: OTHER.to_owned(), ..self.clone() }
    }
}

/// What was decided about a call.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Decided {
    /// It may go on.
    Allow,
    /// It may not.
    Deny,
    /// It may, and a policy in DryRun would have refused it.
    DryRunDeny,
}

impl Decided {
    /// The word for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::DryRunDeny => "dryrun_deny",
        }
    }
}

/// How an attempt to renew an SVID ended.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Renewal {
    /// A new one is in use.
    Issued,
    /// The server refused.
    Refused,
    /// No answer.
    Failed,
}

/// Whether a second attempt at an endpoint helped.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum RetryOutcome {
    /// It connected.
    Success,
    /// It failed as well.
    Failure,
    /// It was not made: the budget is spent.
    NoBudget,
}

/// Endpoints of one service by what may be done with them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EndpointCounts {
    /// Take connections.
    pub ready: usize,
    /// Not confirmed by their owner.
    pub pending: usize,
    /// Left out for a while.
    pub ejected: usize,
}

impl NodeMetrics {
    /// Registers every metric under its name, with at most `series` label sets per open family.
    pub fn register(registry: &mut Registry, series: usize) -> Self {
        let metrics = Self::unregistered(series);
        let it = metrics.clone();
        let weft = registry.sub_registry_with_prefix("weft");
        weft.register("authz_decisions", "Decisions about calls", it.decisions);
        let help = "When the certificate expires, in Unix time";
        weft.register_with_unit("identity_certificate_expiry", help, Unit::Seconds, it.certificate_expiry);
        weft.register("identity_renewals", "Attempts to renew an SVID, by result", it.renewals);
        let help =
            "SVIDs that should have been renewed; level alarm: those with less than a quarter of their life";
        weft.register("identity_renewals_overdue", help, it.renewals_overdue);
        let help = "How far the issuer's clock was ahead of this one when it last signed";
        weft.register_with_unit("clock_skew", help, Unit::Seconds, it.clock_skew);
        weft.register_with_unit(
            "trust_bundle_age",
            "Since the trust bundle came",
            Unit::Seconds,
            it.bundle_age,
        );
        weft.register("identity_denied", "Entries of the denylist in force", it.denied);
        weft.register("lb_endpoints", "Endpoints by state", it.endpoints);
        weft.register("circuit_open", "Destinations whose circuit breaker is open", it.circuits_open);
        weft.register("retries", "Second attempts at another endpoint, by outcome", it.retries);
        let help = "From a change at the server to its use here";
        weft.register_with_unit("config_sync_lag", help, Unit::Seconds, it.sync_lag);
        weft.register("config_revision", "Revision of the snapshot in use", it.revision);
        weft.register("flow_active", "Flows that live", it.flows_active);
        weft.register("flow_completed", "Flows that ended, failed ones with error_type", it.flows_completed);
        let help = "From the first byte to the end of a flow";
        weft.register_with_unit("flow_duration", help, Unit::Seconds, it.flow_duration);
        let help = "From a program's request to the answer of the other agent";
        weft.register_with_unit("flow_open_duration", help, Unit::Seconds, it.flow_open_duration);
        weft.register_with_unit("flow_io", "Bytes of local programs", Unit::Bytes, it.flow_io);
        weft.register("intercept_refused", "Local connections that were not taken", it.intercept_refused);
        weft.register("log_dropped", "Lines of the access log that found no room", it.log_dropped);
        weft.register("metrics_dropped", "Label sets that fell to \"other\"", it.metrics_dropped);
        metrics
    }

    /// Metrics that nobody reads, for tests and tools.
    #[must_use]
    pub fn unregistered(series: usize) -> Self {
        let dropped = Counter::default();
        Self {
            decisions: CappedFamily::new(Counter::default, series, dropped.clone()),
            certificate_expiry: CappedFamily::new(Seconds::default, series, dropped.clone()),
            renewals: Family::default(),
            renewals_overdue: Family::default(),
            clock_skew: Seconds::default(),
            bundle_age: Seconds::default(),
            denied: Gauge::default(),
            endpoints: CappedFamily::new(Gauge::default, series, dropped.clone()),
            circuits_open: Gauge::default(),
            retries: Family::default(),
            sync_lag: Seconds::default(),
            revision: Gauge::default(),
            flows_active: Family::default(),
            flows_completed: CappedFamily::new(Counter::default, series, dropped.clone()),
            flow_duration: Histogram::new(FLOW_BUCKETS),
            flow_open_duration: Histogram::new(OPEN_BUCKETS),
            flow_io: Family::default(),
            intercept_refused: Family::default(),
            log_dropped: Counter::default(),
            metrics_dropped: dropped,
        }
    }

    /// A decision about a call to `service`; `rule` is (policy, rule) where one decided.
    pub fn decided(
        &self,
        service: &ServiceName,
        decision: Decided,
        rule: Option<(&str, &str)>,
        code: Option<CodeId>,
    ) {
        let (policy, rule) = rule.unwrap_or_default();
        let labels = DecisionLabels {
            service: service.to_string(),
            decision: decision.as_str(),
            policy: policy.to_owned(),
            rule: rule.to_owned(),
            code: code.map_or("", CodeId::as_str),
        };
        self.decisions.of(&labels).inc();
    }

    /// A local identity's certificate expires at `not_after`; `None` when the identity is no longer held.
    pub fn certificate(&self, identity: &SpiffeId, not_after: Option<SystemTime>) {
        let labels = IdentityLabels { identity: identity.to_string() };
        match not_after {
            Some(at) => {
                let unix = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                self.certificate_expiry.of(&labels).set(unix.as_secs_f64());
            }
            None => self.certificate_expiry.remove(&labels),
        }
    }

    /// An attempt to renew an SVID ended.
    pub fn renewal(&self, renewal: Renewal) {
        let result = match renewal {
            Renewal::Issued => "issued",
            Renewal::Refused => "refused",
            Renewal::Failed => "failed",
        };
        self.renewals.get_or_create(&ResultLabels { result }).inc();
    }

    /// So many SVIDs should have been renewed, and so many of them have less than a quarter of their life left.
    pub fn overdue(&self, [warning, alarm]: [usize; 2]) {
        for (level, count) in [("warning", warning), ("alarm", alarm)] {
            let gauge = self.renewals_overdue.get_or_create(&LevelLabels { level });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// The issuer's clock was ahead of this one by so many seconds; behind, when negative.
    pub fn clock_skew(&self, ahead_seconds: f64) {
        self.clock_skew.set(ahead_seconds);
    }

    /// How long ago the trust bundle came.
    pub fn bundle_age(&self, age: Duration) {
        self.bundle_age.set(age.as_secs_f64());
    }

    /// How many entries the denylist in force has.
    pub fn denied(&self, entries: usize) {
        self.denied.set(clamp(entries));
    }

    /// The endpoints of `service`; `None` when it is no longer used.
    pub fn endpoints(&self, service: &ServiceName, counts: Option<EndpointCounts>) {
        let states = |counts: EndpointCounts| {
            [("ready", counts.ready), ("pending", counts.pending), ("ejected", counts.ejected)]
        };
        for (state, count) in states(counts.unwrap_or_default()) {
            let labels = EndpointLabels { service: service.to_string(), state };
            match counts {
                Some(_) => drop(self.endpoints.of(&labels).set(clamp(count))),
                None => self.endpoints.remove(&labels),
            }
        }
    }

    /// How many destinations have an open circuit breaker.
    pub fn circuits_open(&self, count: usize) {
        self.circuits_open.set(clamp(count));
    }

    /// A second attempt at another endpoint.
    pub fn retry(&self, outcome: RetryOutcome) {
        let outcome = match outcome {
            RetryOutcome::Success => "success",
            RetryOutcome::Failure => "failure",
            RetryOutcome::NoBudget => "no_budget",
        };
        self.retries.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// A snapshot is in use.
    pub fn snapshot(&self, revision: u64, lag: Duration) {
        self.revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
        self.sync_lag.set(lag.as_secs_f64());
    }

    /// A flow began.
    pub fn flow_began(&self, side: Side) {
        self.flows_active.get_or_create(&DirectionLabels { direction: side.as_str() }).inc();
    }

    /// A flow that began has ended; `error_type` is empty for a good end.
    pub fn flow_ended(&self, side: Side, service: &str, error_type: &'static str, took: Duration) {
        let direction = side.as_str();
        self.flows_active.get_or_create(&DirectionLabels { direction }).dec();
        self.flow_failed(side, service, error_type);
        self.flow_duration.observe(took.as_secs_f64());
    }

    /// A flow ended before it began.
    pub fn flow_failed(&self, side: Side, service: &str, error_type: &'static str) {
        let labels = FlowLabels { direction: side.as_str(), service: service.to_owned(), error_type };
        self.flows_completed.of(&labels).inc();
    }

    /// The other agent accepted a flow after `took`.
    pub fn flow_opened(&self, took: Duration) {
        self.flow_open_duration.observe(took.as_secs_f64());
    }

    /// A meter for one flow that adds to the agent's totals.
    #[must_use]
    pub fn meter(&self) -> FlowMeter {
        let of = |direction| self.flow_io.get_or_create_owned(&IoLabels { direction });
        FlowMeter::with_totals(Totals { sent: of("sent"), received: of("received") })
    }

    /// A local connection was not taken; `reason` is [`crate::intercept::InterceptError::label`].
    pub fn intercept_refused(&self, reason: &'static str) {
        self.intercept_refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// The counter of lost log lines, for [`super::AccessLog`].
    #[must_use]
    pub fn log_dropped(&self) -> Counter {
        self.log_dropped.clone()
    }

    /// Ends series that nothing happened to for ten minutes. To be called once a minute.
    pub fn forget_idle(&self) {
        self.decisions.forget_idle();
        self.flows_completed.forget_idle();
    }
}

fn clamp(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;
    use weft_policy::code;

    use super::*;

    fn charge() -> ServiceName {
        ServiceName::new("shop".parse().unwrap(), "charge".parse().unwrap())
    }

    #[test]
    fn the_names_are_those_of_the_observability_page() {
        let mut registry = Registry::default();
        let metrics = NodeMetrics::register(&mut registry, 100);
        metrics.decided(&charge(), Decided::Allow, Some(("charge-from-order", "order")), None);
        metrics.decided(&charge(), Decided::Deny, None, Some(code::NO_ALLOW));
        let id = "spiffe://demo.example/ns/shop/sa/order".parse().unwrap();
        metrics.certificate(&id, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(7)));
        metrics.renewal(Renewal::Issued);
        metrics.denied(3);
        metrics.overdue([2, 1]);
        metrics.endpoints(&charge(), Some(EndpointCounts { ready: 2, pending: 0, ejected: 1 }));
        metrics.retry(RetryOutcome::Success);
        metrics.snapshot(41, Duration::from_millis(250));
        metrics.flow_began(Side::Caller);
        metrics.flow_ended(Side::Caller, "charge.shop", "", Duration::from_secs(1));
        assert_eq!(metrics.meter().sent_bytes(), 0);
        metrics.intercept_refused("no_socket");
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        for line in [
            "weft_authz_decisions_total{service=\"charge.shop\",decision=\"allow\",policy=\"charge-from-order\",rule=\"order\",code=\"\"} 1",
            "weft_authz_decisions_total{service=\"charge.shop\",decision=\"deny\",policy=\"\",rule=\"\",code=\"W2101\"} 1",
            "weft_identity_certificate_expiry_seconds{identity=\"spiffe://demo.example/ns/shop/sa/order\"} 7.0",
            "weft_identity_renewals_total{result=\"issued\"} 1",
            "weft_identity_renewals_overdue{level=\"warning\"} 2",
            "weft_identity_renewals_overdue{level=\"alarm\"} 1",
            "# TYPE weft_trust_bundle_age_seconds gauge",
            "weft_identity_denied 3",
            "weft_lb_endpoints{service=\"charge.shop\",state=\"ejected\"} 1",
            "weft_circuit_open 0",
            "weft_retries_total{outcome=\"success\"} 1",
            "weft_config_sync_lag_seconds 0.25",
            "weft_config_revision 41",
            "weft_flow_active{direction=\"outbound\"} 0",
            "weft_flow_completed_total{direction=\"outbound\",service=\"charge.shop\",error_type=\"\"} 1",
            "weft_flow_io_bytes_total{direction=\"sent\"} 0",
            "weft_intercept_refused_total{reason=\"no_socket\"} 1",
            "weft_log_dropped_total 0",
            "weft_metrics_dropped_total 0",
        ] {
            assert!(page.contains(line), "{line} in\n{page}");
        }
        metrics.certificate(&id, None);
        metrics.endpoints(&charge(), None);
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        assert!(!page.contains("ns/shop/sa/order") && !page.contains("weft_lb_endpoints{"), "{page}");
    }

    #[test]
    fn t13_services_beyond_the_bound_share_one_series() {
        let metrics = NodeMetrics::unregistered(10);
        for n in 0..50 {
            metrics.flow_failed(Side::Caller, &format!("s{n}.shop"), "denied");
        }
        assert_eq!(metrics.flows_completed.len(), 11);
        assert_eq!(metrics.metrics_dropped.get(), 40);
    }
}
