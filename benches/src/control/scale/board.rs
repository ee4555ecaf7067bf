//! What all simulated agents have acknowledged, and when.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use weft_api::pb::discovery::{Delta, ObjectKey};

use super::wire::Wire;
use crate::clock;
use crate::micros;

/// Between two looks at what is not acknowledged yet.
const PAUSE: Duration = Duration::from_millis(2);
/// The longest wait for the last acknowledgement.
pub(super) const AT_MOST: Duration = Duration::from_secs(120);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Board {
    pub(super) wire: Arc<Wire>,
    updates: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Which revision of the object that a round changes each agent has, and since when.
    has: HashMap<usize, (u64, Instant)>,
    /// The kind and name of that object; an empty name is any.
    watched: (String, String),
    /// When the last change of an endpoint began, by the name of its workload.
    began: HashMap<String, Instant>,
    /// From there to each acknowledgement, in microseconds.
    lags: Vec<u32>,
    failure: Option<String>,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent of that number and name has acknowledged `delta`.
    pub(super) fn acked(&self, agent: usize, name: &str, delta: &Delta) {
        self.updates.fetch_add(1, Ordering::Relaxed);
        let now = clock::now();
        let mut state = self.lock();
        // Whoever begins or ceases to serve a service is told of endpoints that changed long before.
        let upserts = delta.upserts.iter().filter_map(|object| object.key.as_ref());
        let all = upserts.chain(&delta.removes).filter_map(endpoint_of);
        let own: Vec<_> = all.filter(|(_, workload)| workload.ends_with(name)).collect();
        let is_old = |key: &ObjectKey| {
            let is_beside = |of: &str, workload: &str| own.iter().any(|own| own.0 == of && own.1 != workload);
            endpoint_of(key).is_some_and(|(service, workload)| is_beside(service, workload))
        };
        for object in &delta.upserts {
            let Some(key) = &object.key else { continue };
            let (kind, name) = &state.watched;
            if key.kind == *kind && (name.is_empty() || key.name == *name) {
                let revision = if object.revision == 0 { delta.to } else { object.revision };
                state.has.insert(agent, (revision, now));
            }
            if !delta.full && !is_old(key) {
                state.endpoint(key, now);
            }
        }
        for key in delta.removes.iter().filter(|key| !is_old(key)) {
            state.endpoint(key, now);
        }
    }

    /// Updates that were acknowledged so far.
    pub(super) fn updates(&self) -> u64 {
        self.updates.load(Ordering::Relaxed)
    }

    /// From now on the acknowledgements of that object are noted.
    pub(super) fn watch(&self, kind: &str, name: &str) {
        let mut state = self.lock();
        state.has.clear();
        state.watched = (kind.to_owned(), name.to_owned());
    }

    /// Waits until `agents` agents have the watched object at `revision` or a later one. Says how long after `began` each
    /// acknowledged it, in microseconds.
    pub(super) async fn wait(&self, agents: usize, revision: u64, began: Instant) -> Result<Vec<u32>> {
        let until = clock::now() + AT_MOST;
        loop {
            let times = self.times(revision, began);
            if times.len() >= agents {
                return Ok(times);
            }
            self.check()?;
            if clock::now() > until {
                bail!("{} of {agents} agents have acknowledged revision {revision}", times.len());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Of those who have the watched object at `revision` or a later one: when each acknowledged it.
    fn times(&self, revision: u64, began: Instant) -> Vec<u32> {
        let state = self.lock();
        let have = state.has.values().filter(|(found, _)| *found >= revision);
        have.map(|(_, at)| micros(at.saturating_duration_since(began))).collect()
    }

    /// An endpoint is about to change.
    pub(super) fn begin(&self, workload: &str) {
        self.lock().began.insert(workload.to_owned(), clock::now());
    }

    /// How long after the beginning of a change each agent acknowledged it, since the last call.
    pub(super) fn take_lags(&self) -> Vec<u32> {
        let mut state = self.lock();
        state.began.clear();
        std::mem::take(&mut state.lags)
    }

    /// An agent failed; the first one counts.
    pub(super) fn fail(&self, error: &anyhow::Error) {
        self.lock().failure.get_or_insert_with(|| format!("{error:#}"));
    }

    /// # Errors
    ///
    /// Why the first agent failed, if one did.
    pub(super) fn check(&self) -> Result<()> {
        match &self.lock().failure {
            Some(why) => bail!("a simulated agent failed: {why}"),
            None => Ok(()),
        }
    }
}

impl State {
    fn endpoint(&mut self, key: &ObjectKey, now: Instant) {
        let workload = endpoint_of(key).map(|(_, workload)| workload);
        if let Some(began) = workload.and_then(|workload| self.began.get(workload)) {
            self.lags.push(micros(now.saturating_duration_since(*began)));
        }
    }
}

/// The service and the workload, if it is an endpoint.
fn endpoint_of(key: &ObjectKey) -> Option<(&str, &str)> {
    key.name.split_once('/').filter(|_| key.kind == "Endpoint")
}
