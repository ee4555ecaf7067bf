//! Whether the agent lives and whether it can do its work, with the reasons.
//!
//! Pure state: the parts of the plane report to it, the admin pages read it. *Live* means that every worker still turns
//! its loop. *Ready* means that calls of known services work: losing the control plane is told, and is no reason to be
//! taken out of service (architecture.md, invariant 8).

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// How long a worker may be silent before the agent counts as dead: a loop beats every second.
const SILENCE: Duration = Duration::from_secs(10);

/// What has to be in order.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Condition {
    /// The agent's own SVID is valid.
    Identity,
    /// A trust bundle is there.
    Bundle,
    /// A snapshot is in use.
    Snapshot,
    /// Every configured listener is open.
    Listeners,
    /// The local workloads have their SVIDs and are registered.
    Workloads,
    /// The control plane is connected.
    Server,
    /// The agent takes new work.
    Serving,
}

impl Condition {
    const ALL: [Self; 7] = [
        Self::Identity,
        Self::Bundle,
        Self::Snapshot,
        Self::Listeners,
        Self::Workloads,
        Self::Server,
        Self::Serving,
    ];

    /// Its name in the answer.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Bundle => "bundle",
            Self::Snapshot => "snapshot",
            Self::Listeners => "listeners",
            Self::Workloads => "workloads",
            Self::Server => "server",
            Self::Serving => "serving",
        }
    }

    /// Whether calls fail without it.
    const fn is_required(self) -> bool {
        match self {
            Self::Identity | Self::Bundle | Self::Snapshot | Self::Listeners | Self::Serving => true,
            Self::Workloads | Self::Server => false,
        }
    }
}

/// What every part of the plane reports. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    /// The reason why not, by condition; a condition that nobody reported on is not in order.
    reports: Arc<Mutex<BTreeMap<Condition, Option<String>>>>,
}

impl Readiness {
    /// `condition` is in order.
    pub fn ok(&self, condition: Condition) {
        self.report(condition, None);
    }

    /// `condition` is not in order, because of `reason`: one line for a person, without secrets.
    pub fn not(&self, condition: Condition, reason: impl Into<String>) {
        self.report(condition, Some(reason.into()));
    }

    /// Whether calls of known services work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let in_order = |condition: &Condition| matches!(reports.get(condition), Some(None));
        Condition::ALL.iter().filter(|condition| condition.is_required()).all(in_order)
    }

    /// The whole answer: `ready`, and each condition with `ok`, `required` and, if not, its `reason`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let ready = self.is_ready();
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let check = |condition: &Condition| {
            let reason = match reports.get(condition) {
                None => Some("not yet known"),
                Some(reason) => reason.as_deref(),
            };
            let required = condition.is_required();
            let mut check = json!({"name": condition.as_str(), "ok": reason.is_none(), "required": required});
            if let Some(reason) = reason {
                check["reason"] = reason.into();
            }
            check
        };
        json!({"ready": ready, "checks": Condition::ALL.iter().map(check).collect::<Vec<_>>()})
    }

    fn report(&self, condition: Condition, reason: Option<String>) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let before = reports.insert(condition, reason.clone());
        if before.as_ref() != Some(&reason) {
            tracing::info!(condition = condition.as_str(), reason, "readiness changed");
        }
    }
}

/// The heartbeats of the agent's workers. A clone is the same.
#[derive(Clone, Debug)]
pub struct Liveness {
    started: Instant,
    beats: Arc<Mutex<Vec<Expected>>>,
}

/// A worker, and when it last beat.
#[derive(Debug)]
struct Expected {
    name: String,
    last_ms: Arc<AtomicU64>,
}

/// One worker's heartbeat.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    started: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Liveness {
    /// No worker yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { started: now, beats: Arc::default() }
    }

    /// Expects a beat of the worker called `name` at least every ten seconds from `now` on, as long as the agent lives.
    #[must_use]
    pub fn expect(&self, name: &str, now: Instant) -> Heartbeat {
        let heartbeat = Heartbeat { started: self.started, last_ms: Arc::default() };
        heartbeat.beat(now);
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        beats.push(Expected { name: name.to_owned(), last_ms: Arc::clone(&heartbeat.last_ms) });
        heartbeat
    }

    /// The workers that have been silent for too long.
    #[must_use]
    pub fn silent(&self, now: Instant) -> Vec<String> {
        let now_ms = millis(now.saturating_duration_since(self.started));
        let silent = |last: &AtomicU64| now_ms.saturating_sub(last.load(Ordering::Relaxed)) > millis(SILENCE);
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        beats.iter().filter(|one| silent(&one.last_ms)).map(|one| one.name.clone()).collect()
    }
}

impl Heartbeat {
    /// The worker's loop turned.
    pub fn beat(&self, now: Instant) {
        self.last_ms.store(millis(now.saturating_duration_since(self.started)), Ordering::Relaxed);
    }
}

fn millis(period: Duration) -> u64 {
    u64::try_from(period.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn all_in_order() -> Readiness {
        let readiness = Readiness::default();
        for condition in Condition::ALL {
            readiness.ok(condition);
        }
        readiness
    }

    #[test]
    fn nothing_reported_is_not_ready() {
        let readiness = Readiness::default();
        assert!(!readiness.is_ready());
        assert_eq!(readiness.to_json()["checks"][0]["reason"], "not yet known");
    }

    #[test]
    fn losing_the_server_is_told_and_does_not_make_it_unready() {
        let readiness = all_in_order();
        readiness.not(Condition::Server, "no server answers on hostA:7444");
        assert!(readiness.is_ready());
        let answer = readiness.to_json();
        assert_eq!(answer["checks"][5]["reason"], "no server answers on hostA:7444");
        assert_eq!((&answer["ready"], &answer["checks"][5]["ok"]), (&true.into(), &false.into()));
    }

    #[test]
    fn an_expired_identity_or_a_drain_makes_it_unready() {
        for condition in [Condition::Identity, Condition::Serving] {
            let readiness = all_in_order();
            readiness.not(condition, "why");
            assert!(!readiness.is_ready(), "{condition:?}");
            readiness.ok(condition);
            assert!(readiness.is_ready(), "{condition:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_hangs_is_named() {
        let clock = Clock::system();
        let liveness = Liveness::new(clock.now());
        let turning = liveness.expect("worker-0", clock.now());
        let _hanging = liveness.expect("worker-1", clock.now());
        clock.sleep(SILENCE).await;
        assert!(liveness.silent(clock.now()).is_empty());
        turning.beat(clock.now());
        clock.sleep(Duration::from_millis(1)).await;
        assert_eq!(liveness.silent(clock.now()), ["worker-1"]);
    }
}
