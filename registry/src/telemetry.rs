//! What the control plane tells of itself over plain HTTP on loopback: metrics, liveness, readiness.
//!
//! | listener | paths |
//! |---|---|
//! | metrics | `/metrics` (Prometheus text), `/livez`, `/readyz` |
//! | admin | `/livez`, `/readyz`, `/version`, `/config` |
//!
//! `/livez` answers while the process runs; `/readyz` while the server is not ending and its certificate is valid.
//! Nothing here shows a secret, and nothing here changes anything.

use std::{
    fmt,
    future::Future,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
    },
    registry::Registry,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use weft_api::channel::ChannelStats;
use weft_identity::ca::RootState;

use crate::{
    alarms::Alarms,
    authority::InstanceAuthority,
    clock::Clock,
    core::{Authority, VERSION},
    metrics::{OutcomeLabels, RegistryMetrics},
    plain::Bounded,
    presence::Presence,
    refusal::Refusal,
    store::metrics::StoreMetrics,
    timestamp::unix_seconds,
};

/// What the gate counts.
#[derive(Clone, Debug, Default)]
pub struct GateMetrics {
    refusals: Family<CodeLabels, Counter>,
}

/// Which code of the catalogue.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct CodeLabels {
    code: String,
}

impl GateMetrics {
    /// Counts a refusal by its code, of which there are few.
    pub fn refused(&self, code: &str) {
        self.refusals.get_or_create(&CodeLabels { code: code.to_owned() }).inc();
    }
}

/// What joining and issuing count.
#[derive(Clone, Debug, Default)]
pub struct IdentityMetrics {
    joins: Family<OutcomeLabels, Counter>,
    issues: Family<OutcomeLabels, Counter>,
}

impl IdentityMetrics {
    /// Counts an attempt to join.
    pub fn joined<T>(&self, answer: &Result<T, Refusal>) {
        self.joins.get_or_create(&outcome(answer)).inc();
    }

    /// Counts a request for a certificate.
    pub fn issued<T>(&self, answer: &Result<T, Refusal>) {
        self.issues.get_or_create(&outcome(answer)).inc();
    }
}

/// `ok` or the code of the refusal, of which there are few.
fn outcome<T>(answer: &Result<T, Refusal>) -> OutcomeLabels {
    let code = |refusal: &Refusal| refusal.faults().first().map_or("", |fault| &fault.code).to_owned();
    OutcomeLabels { outcome: answer.as_ref().err().map_or_else(|| "ok".to_owned(), code) }
}

/// What the authority reports, read at each scrape.
struct AuthorityCollector {
    authority: Arc<InstanceAuthority>,
}

impl fmt::Debug for AuthorityCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityCollector").finish_non_exhaustive()
    }
}

impl Collector for AuthorityCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.authority.status();
        let expiry = Family::<KindLabels, prometheus_client::metrics::gauge::Gauge>::default();
        for (kind, at) in self.authority.expiries() {
            let seconds = at.map_or(0, unix_seconds);
            expiry.get_or_create(&KindLabels { kind }).set(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
        let name = "weft_identity_certificate_expiry_seconds";
        let help = "When the server's own certificates end, in Unix seconds";
        expiry.encode(encoder.encode_descriptor(name, help, None, expiry.metric_type())?)?;
        let roots = Family::<StateLabels, prometheus_client::metrics::gauge::Gauge>::default();
        for state in [RootState::Prepared, RootState::Active, RootState::Old, RootState::Tainted] {
            let state = state.as_str();
            let count = status.roots.iter().filter(|root| root.state == state).count();
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            roots.get_or_create(&StateLabels { state }).set(count);
        }
        let help = "Roots of this server that are in the bundle, by state";
        roots.encode(encoder.encode_descriptor("weft_identity_roots", help, None, roots.metric_type())?)?;
        let lacking = status.roots.iter().filter(|root| root.state == RootState::Prepared.as_str());
        let lacking: usize = lacking.map(|root| root.missing.len()).sum();
        let lacking = ConstGauge::new(i64::try_from(lacking).unwrap_or(i64::MAX));
        let name = "weft_identity_agents_without_prepared_root";
        let help = "Agents that have not taken the prepared root, counted up to 100";
        lacking.encode(encoder.encode_descriptor(name, help, None, lacking.metric_type())?)?;
        let issued = ConstCounter::new(status.issued);
        let help = "Certificates in the issuance log";
        issued.encode(encoder.encode_descriptor(
            "weft_identity_issued",
            help,
            None,
            issued.metric_type(),
        )?)?;
        let sequence = ConstGauge::new(i64::try_from(status.bundle_sequence).unwrap_or(i64::MAX));
        let help = "Sequence number of the trust bundle";
        sequence.encode(encoder.encode_descriptor(
            "weft_trust_bundle_sequence",
            help,
            None,
            sequence.metric_type(),
        )?)
    }
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct StateLabels {
    state: &'static str,
}

/// What a listener reports, read at each scrape.
#[derive(Debug)]
struct ChannelCollector {
    name: &'static str,
    stats: Arc<ChannelStats>,
}

impl Collector for ChannelCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stats = &self.stats;
        for (what, value, help) in [
            ("accepted", stats.accepted(), "Connections taken"),
            ("refused", stats.refused(), "Connections closed because a limit was reached"),
            ("handshake_failures", stats.handshake_failures(), "Handshakes that failed"),
            ("accept_errors", stats.accept_errors(), "Times that accepting failed"),
        ] {
            let name = format!("weft_registry_{}_{what}", self.name);
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(&name, help, None, counter.metric_type())?)?;
        }
        let open = ConstGauge::new(i64::try_from(stats.open()).unwrap_or(i64::MAX));
        let name = format!("weft_registry_{}_open", self.name);
        open.encode(encoder.encode_descriptor(
            &name,
            "Connections that are open",
            None,
            open.metric_type(),
        )?)
    }
}

/// Everything that is reported.
#[derive(Debug, Default)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// The metrics of all parts of the plane.
    #[must_use]
    pub fn new(
        store: &StoreMetrics,
        services: &RegistryMetrics,
        gate: &GateMetrics,
        identity: &IdentityMetrics,
        authority: &Arc<InstanceAuthority>,
        alarms: &Alarms,
    ) -> Self {
        let mut registry = Registry::default();
        store.register(&mut registry);
        services.register(&mut registry);
        let help = "Requests refused before a service saw them, by code";
        registry.register("weft_registry_gate_refusals", help, gate.refusals.clone());
        let help = "Attempts to join, by outcome";
        registry.register("weft_identity_joins", help, identity.joins.clone());
        let help = "Requests for certificates, by outcome";
        registry.register("weft_identity_requests", help, identity.issues.clone());
        alarms.register(&mut registry);
        registry.register_collector(Box::new(AuthorityCollector { authority: Arc::clone(authority) }));
        Self { registry }
    }

    /// Adds a listener.
    pub fn add_channel(&mut self, name: &'static str, stats: Arc<ChannelStats>) {
        self.registry.register_collector(Box::new(ChannelCollector { name, stats }));
    }

    fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry).map(|()| text)
    }
}

/// What the plain listeners tell of.
pub struct Plane {
    /// What is counted.
    pub metrics: Metrics,
    /// For the readiness of the server's certificate.
    pub authority: Arc<InstanceAuthority>,
    /// Which agents are there.
    pub presence: Presence,
    /// The time.
    pub clock: Clock,
    /// Cancelled when the server begins to end.
    pub draining: CancellationToken,
    /// The settings in force, with where each came from.
    pub origins: Vec<(String, String, String)>,
    /// Set when everything is served.
    pub serving: OnceLock<()>,
}

impl fmt::Debug for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plane").finish_non_exhaustive()
    }
}

impl Plane {
    /// Why the server is not ready; `Ok` when it is.
    fn ready(&self) -> Result<(), &'static str> {
        let now: SystemTime = self.clock.now();
        let [(_, own), ..] = self.authority.expiries();
        if self.draining.is_cancelled() {
            return Err("ending");
        }
        if self.serving.get().is_none() {
            return Err("starting");
        }
        if own.is_none_or(|not_after| not_after <= now) {
            return Err("the server's certificate has expired");
        }
        Ok(())
    }
}

/// Serves the metrics listener until the server ends.
pub fn serve_metrics(listener: TcpListener, plane: Arc<Plane>) -> impl Future<Output = ()> + Send {
    let routes = Router::new().route("/metrics", get(metrics)).merge(health());
    serve(listener, routes, plane)
}

/// Serves the admin listener until the server ends.
pub fn serve_admin(listener: TcpListener, plane: Arc<Plane>) -> impl Future<Output = ()> + Send {
    let routes = Router::new().route("/version", get(version)).route("/config", get(config)).merge(health());
    serve(listener, routes, plane)
}

fn health() -> Router<Arc<Plane>> {
    Router::new().route("/livez", get(|| async { "ok\n" })).route("/readyz", get(readyz))
}

async fn serve(listener: TcpListener, routes: Router<Arc<Plane>>, plane: Arc<Plane>) {
    let ended = plane.draining.clone().cancelled_owned();
    let served =
        axum::serve(Bounded::new(listener), routes.with_state(plane)).with_graceful_shutdown(ended).await;
    if let Err(error) = served {
        tracing::error!(%error, "a plain listener ended");
    }
}

async fn metrics(State(plane): State<Arc<Plane>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match plane.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn readyz(State(plane): State<Arc<Plane>>) -> Response {
    match plane.ready() {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn version(State(plane): State<Arc<Plane>>) -> Response {
    let agents = plane.presence.connected();
    Json(serde_json::json!({ "version": VERSION, "agents": agents })).into_response()
}

async fn config(State(plane): State<Arc<Plane>>) -> Response {
    let row = |(key, value, from): &(String, String, String)| format!("{key}: {value}    # {from}\n");
    plane.origins.iter().map(row).collect::<String>().into_response()
}
