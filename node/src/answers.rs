//! What the admin pages show of a running agent, and the conditions that readiness is made of.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use weft_identity::{
    rotation::{Lateness, lateness},
    tls::SvidSlot,
};

use crate::{
    admin::{dump::Dump, readiness::Condition},
    drain::Phase,
    local_api::{must_join_again, rfc3339},
    shared::Shared,
    telemetry::metrics::EndpointCounts,
};

/// How often the conditions are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often series that nothing happened to are looked for.
const FORGET_EVERY: u32 = 120;

/// The plane's answers to the admin pages.
#[derive(Debug)]
pub(crate) struct Answers {
    shared: Arc<Shared>,
}

impl Answers {
    /// Answers for one agent.
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Dump for Answers {
    fn config(&self) -> Value {
        let config: Vec<_> = self
            .shared
            .config
            .origins()
            .iter()
            .map(|row| json!({"key": row.key, "value": row.value, "from": row.origin.to_string()}))
            .collect();
        let snapshot = self.shared.state.load();
        let objects: Vec<_> = snapshot
            .iter()
            .flat_map(|snapshot| snapshot.view().iter().map(|(key, _)| key.to_string()).collect::<Vec<_>>())
            .collect();
        json!({"config": config, "revision": self.shared.state.revision().0, "objects": objects})
    }

    fn flows(&self, limit: usize) -> Value {
        let mut all = self.shared.flows.all();
        all.sort_by_key(|(id, _)| *id);
        let now = self.shared.clock.now();
        let rows = all.into_iter().take(limit).map(|(id, facts)| {
            json!({
                "id": id, "direction": facts.direction.name(), "source": facts.source.to_string(),
                "target": facts.target.to_string(),
                "ageSeconds": now.saturating_duration_since(facts.started).as_secs_f64(),
            })
        });
        Value::Array(rows.collect())
    }

    fn tunnels(&self) -> Value {
        let rows = self.shared.planes().into_iter().flat_map(|plane| plane.overlay.tunnels()).map(|tunnel| {
            let stats = tunnel.stats();
            json!({
                "peer": tunnel.peer().id.to_string(), "address": tunnel.remote_address().to_string(),
                "rttMicros": stats.rtt.as_micros(), "mtu": stats.mtu_bytes, "flows": tunnel.streams_active(),
                "ageSeconds": tunnel.age().as_secs_f64(), "peerExpires": rfc3339(tunnel.peer().not_after),
            })
        });
        Value::Array(rows.collect())
    }
}

/// Keeps readiness and the gauges true. Cancel by dropping.
pub(crate) async fn keep_conditions(shared: Arc<Shared>) {
    let mut rounds = 0_u32;
    let heartbeat = shared.report.liveness.expect("control", shared.clock.now());
    loop {
        heartbeat.beat(shared.clock.now());
        look(&shared);
        rounds = rounds.wrapping_add(1);
        if rounds.is_multiple_of(FORGET_EVERY) {
            shared.report.metrics.forget_idle();
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn look(shared: &Shared) {
    let readiness = &shared.report.readiness;
    let told = |condition, problem: Option<String>| match problem {
        None => readiness.ok(condition),
        Some(reason) => readiness.not(condition, reason),
    };
    let now = shared.clock.wall();
    let valid = shared.node_slot.load().is_some_and(|held| held.svid().validity().contains(now));
    told(Condition::Identity, (!valid).then(|| must_join_again(&shared.node_id)));
    let anchored =
        shared.bundles.load().get(&shared.trust_domain).is_some_and(|b| !b.anchors(now).is_empty());
    told(Condition::Bundle, (!anchored).then(|| "no root of the trust domain is valid".to_owned()));
    let snapshot = shared.state.load();
    told(Condition::Snapshot, snapshot.is_none().then(|| "no snapshot has come yet".to_owned()));
    readiness.ok(Condition::Listeners);
    let waiting: Vec<_> = shared
        .locals
        .all()
        .iter()
        .filter(|workload| {
            let held = workload.slot.load();
            workload.registration().is_none()
                || !held.is_some_and(|held| held.svid().validity().contains(now))
        })
        .map(|workload| workload.identity.to_string())
        .collect();
    told(
        Condition::Workloads,
        (!waiting.is_empty()).then(|| format!("without certificate or registration: {}", waiting.join(", "))),
    );
    shared.report.metrics.overdue(count_late(shared, now));
    let link = shared.link.state();
    told(Condition::Server, link.channel.is_none().then(|| format!("not connected: {}", link.why_not)));
    told(Condition::Serving, (shared.drain.phase() != Phase::Running).then(|| "draining".to_owned()));
    let mut open = 0;
    for (service, counts, is_open) in shared.balancers.counts(shared.clock.now()) {
        open += usize::from(is_open);
        let counts =
            EndpointCounts { ready: counts.ready, pending: counts.unconfirmed, ejected: counts.ejected };
        shared.report.metrics.endpoints(&service, Some(counts));
    }
    shared.report.metrics.circuits_open(open);
}

/// How many certificates are overdue, and how many of them end soon or have ended. What never had one is not late.
fn count_late(shared: &Shared, now: SystemTime) -> [usize; 2] {
    let late = |slot: &SvidSlot, had_one: bool| match slot.load() {
        Some(held) => lateness(&held.svid().validity(), now),
        None if had_one => Lateness::Ending,
        None => Lateness::OnTime,
    };
    let locals = shared.locals.all();
    let workloads = locals.iter().map(|workload| late(&workload.slot, workload.registration().is_some()));
    let late: Vec<_> = workloads.chain([late(&shared.node_slot, true)]).collect();
    [Lateness::Overdue, Lateness::Ending].map(|least| late.iter().filter(|late| **late >= least).count())
}
