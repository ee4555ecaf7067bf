//! Which endpoint of a destination takes the next connection.
//!
//! One [`Balancer`] per destination and agent. It owns what is learnt from outcomes: latencies, live flows, failures,
//! and the destination's breaker. Asks nobody and waits for nothing.
//!
//! ```text
//! pick ─▶ Attempt ──connected──▶ LiveFlow ──closed──▶ (gone)
//!            └──failed, abandoned──▶ (gone)
//! ```
//!
//! Endpoints are used in this order, each group only when the one before has none left: confirmed ones in use,
//! unconfirmed ones in use (decisions.md, endpoints and leases), ejected ones. The last group is closed when the settings
//! allow all endpoints to be ejected at once; else at most `max_percent` of them ever are.

mod choose;
mod ewma;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::Rng;

use self::ewma::PeakEwma;
use crate::{
    code::{self, CodeId},
    health::{
        breaker::{Admission, Breaker},
        outlier::{Outlier, Standing},
    },
    model::{Endpoint, EndpointState, traffic::TrafficSettings},
    name::EndpointLabel,
};

/// Chooses endpoints and remembers how they did.
#[derive(Debug)]
pub struct Balancer {
    settings: TrafficSettings,
    breaker: Breaker,
    slots: Vec<Slot>,
    /// Where each slot stands, by its number.
    places: HashMap<u64, usize>,
    /// The number of the next new slot; an endpoint that left and came back gets a new one.
    next: u64,
}

/// One endpoint and what is known of it.
#[derive(Debug)]
struct Slot {
    endpoint: Arc<Endpoint>,
    number: u64,
    /// Connections to it that are open or being opened.
    load: u32,
    latency: PeakEwma,
    outlier: Outlier,
    /// What it has saved up of its turns (smooth weighted round robin).
    credit: i64,
}

/// A connection being opened to an endpoint. Give it back to the balancer: [`Balancer::connected`],
/// [`Balancer::failed`] or [`Balancer::abandoned`].
#[derive(Debug)]
#[must_use = "an attempt that is not given back counts as pending for ever"]
pub struct Attempt {
    endpoint: Arc<Endpoint>,
    number: u64,
}

impl Attempt {
    /// Whom to dial.
    #[must_use]
    pub const fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

/// An open connection to an endpoint. Give it back to the balancer when it ends: [`Balancer::closed`].
#[derive(Debug)]
#[must_use = "a flow that is not given back counts as live for ever"]
pub struct LiveFlow {
    number: u64,
}

/// Why there is no endpoint to try.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoEndpoint {
    /// The destination has none, or none with a weight.
    #[error("the service has no endpoint")]
    None,
    /// Every endpoint was tried for this connection.
    #[error("every endpoint was tried")]
    Exhausted,
    /// Every endpoint is ejected, and the settings allow that.
    #[error("every endpoint is ejected")]
    AllEjected,
    /// As many connections are open or being opened as may be.
    #[error("the circuit breaker is open")]
    BreakerOpen,
}

impl NoEndpoint {
    /// The code in the catalogue.
    #[must_use]
    pub const fn code(self) -> CodeId {
        match self {
            Self::None => code::NO_ENDPOINT,
            Self::Exhausted => code::CONNECT_TIMEOUT,
            Self::AllEjected => code::ALL_EJECTED,
            Self::BreakerOpen => code::BREAKER_OPEN,
        }
    }
}

/// How the endpoints of a destination stand, for gauges.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Confirmed and in use.
    pub ready: usize,
    /// Not confirmed since the server's start, in use as the second choice.
    pub unconfirmed: usize,
    /// Left out for a while.
    pub ejected: usize,
    /// Connections being opened.
    pub pending: u32,
    /// Open connections.
    pub live: u32,
}

impl Balancer {
    /// A balancer without endpoints.
    #[must_use]
    pub fn new(settings: TrafficSettings) -> Self {
        let breaker = Breaker::new(settings.breaker);
        Self { settings, breaker, slots: Vec::new(), places: HashMap::new(), next: 0 }
    }

    /// Takes new settings. What was learnt of the endpoints stays.
    pub fn configure(&mut self, settings: TrafficSettings, now: Instant) {
        self.settings = settings;
        self.breaker.configure(settings.breaker);
        self.keep_enough(now);
    }

    /// Takes the present set of endpoints. What was learnt of those that stay is kept; one whose agent has restarted
    /// is taken back into use.
    pub fn update(&mut self, endpoints: &[Arc<Endpoint>], now: Instant) {
        let mut known: HashMap<EndpointLabel, Slot> =
            self.slots.drain(..).map(|slot| (slot.endpoint.label.clone(), slot)).collect();
        for endpoint in endpoints {
            let slot = match known.remove(&endpoint.label) {
                Some(slot) => slot.replaced(Arc::clone(endpoint)),
                None => {
                    self.next += 1;
                    Slot::new(Arc::clone(endpoint), self.next, now)
                }
            };
            self.slots.push(slot);
        }
        self.places = self.slots.iter().enumerate().map(|(place, slot)| (slot.number, place)).collect();
        self.keep_enough(now);
    }

    /// Chooses an endpoint for one connection, none of those in `exclude` (tried before for the same connection).
    ///
    /// # Errors
    ///
    /// [`NoEndpoint`], when there is none to try or the breaker is open.
    pub fn pick(
        &mut self,
        rng: &mut (impl Rng + ?Sized),
        now: Instant,
        exclude: &[EndpointLabel],
    ) -> Result<Attempt, NoEndpoint> {
        let candidates = self.candidates(now, exclude)?;
        match self.breaker.admit() {
            Admission::Pass => {}
            Admission::TooManyConnections | Admission::TooManyPending => return Err(NoEndpoint::BreakerOpen),
        }
        let place = choose::choose(self.settings.algorithm, &mut self.slots, &candidates, rng, now);
        let slot = &mut self.slots[place];
        slot.load = slot.load.saturating_add(1);
        let attempt = Attempt { endpoint: Arc::clone(&slot.endpoint), number: slot.number };
        if slot.outlier.standing(now) != Standing::Closed {
            slot.outlier.tried(now);
            // While its probe is out an endpoint counts as ejected, also towards the share that may be.
            self.keep_enough(now);
        }
        Ok(attempt)
    }

    /// The destination's program has accepted, `latency` after the attempt began.
    pub fn connected(&mut self, attempt: Attempt, latency: Duration, now: Instant) -> LiveFlow {
        self.breaker.opened();
        if let Some(slot) = self.slot(attempt.number) {
            slot.latency.observe(latency, now);
            slot.outlier.succeeded();
        }
        LiveFlow { number: attempt.number }
    }

    /// The endpoint could not be reached, did not answer in time, or its program refused. Returns whether this ejects
    /// the endpoint.
    pub fn failed(&mut self, attempt: Attempt, rng: &mut (impl Rng + ?Sized), now: Instant) -> bool {
        self.breaker.given_up();
        let (settings, draw) = (self.settings.outlier, rng.random::<f64>());
        let Some(slot) = self.slot(attempt.number) else { return false };
        slot.load = slot.load.saturating_sub(1);
        if !slot.outlier.failed(&settings, draw, now) {
            return false;
        }
        let too_many = self.ejected(now).count() > self.most_ejected();
        if let (true, Some(slot)) = (too_many, self.slot(attempt.number)) {
            slot.outlier.reinstate();
        }
        !too_many
    }

    /// The attempt ended in a way that says nothing about the endpoint: the caller went away, or was refused.
    pub fn abandoned(&mut self, attempt: Attempt) {
        self.breaker.given_up();
        self.release(attempt.number);
    }

    /// An open connection has ended.
    pub fn closed(&mut self, flow: LiveFlow) {
        self.breaker.closed();
        self.release(flow.number);
    }

    /// How the endpoints stand at `now`.
    #[must_use]
    pub fn counts(&self, now: Instant) -> Counts {
        let mut counts =
            Counts { pending: self.breaker.pending(), live: self.breaker.live(), ..Counts::default() };
        for slot in &self.slots {
            match (slot.outlier.standing(now), slot.endpoint.state) {
                (Standing::Ejected(_), _) => counts.ejected += 1,
                (Standing::Closed | Standing::Probe, EndpointState::Confirmed) => counts.ready += 1,
                (Standing::Closed | Standing::Probe, EndpointState::Unconfirmed) => counts.unconfirmed += 1,
            }
        }
        counts
    }

    /// Whether the next connection would be refused by the breaker.
    #[must_use]
    pub const fn is_breaker_open(&self) -> bool {
        self.breaker.is_open()
    }

    /// The places of the endpoints to choose from: the best group that is not empty.
    fn candidates(&self, now: Instant, exclude: &[EndpointLabel]) -> Result<Vec<usize>, NoEndpoint> {
        let mut groups: [Vec<usize>; 3] = Default::default();
        let mut weighty = 0;
        for (place, slot) in self.slots.iter().enumerate().filter(|(_, slot)| slot.endpoint.weight > 0) {
            weighty += 1;
            if exclude.contains(&slot.endpoint.label) {
                continue;
            }
            let group = match (slot.outlier.standing(now), slot.endpoint.state) {
                (Standing::Closed | Standing::Probe, EndpointState::Confirmed) => 0,
                (Standing::Closed | Standing::Probe, EndpointState::Unconfirmed) => 1,
                (Standing::Ejected(_), _) => 2,
            };
            groups[group].push(place);
        }
        let [confirmed, unconfirmed, ejected] = groups;
        let may_use_ejected = self.settings.outlier.max_percent < 100;
        match (weighty, [confirmed, unconfirmed].into_iter().find(|group| !group.is_empty())) {
            (0, _) => Err(NoEndpoint::None),
            (_, Some(group)) => Ok(group),
            (_, None) if ejected.is_empty() => Err(NoEndpoint::Exhausted),
            (_, None) if may_use_ejected => Ok(ejected),
            (_, None) => Err(NoEndpoint::AllEjected),
        }
    }

    fn slot(&mut self, number: u64) -> Option<&mut Slot> {
        self.places.get(&number).map(|place| &mut self.slots[*place])
    }

    fn release(&mut self, number: u64) {
        if let Some(slot) = self.slot(number) {
            slot.load = slot.load.saturating_sub(1);
        }
    }

    /// How many endpoints may be ejected at once, rounded down: of one, none, unless the share is all.
    fn most_ejected(&self) -> usize {
        self.slots.len() * usize::from(self.settings.outlier.max_percent.min(100)) / 100
    }

    /// The ejected endpoints: when each returns, and its number.
    fn ejected(&self, now: Instant) -> impl Iterator<Item = (Instant, u64)> {
        self.slots.iter().filter_map(move |slot| match slot.outlier.standing(now) {
            Standing::Ejected(until) => Some((until, slot.number)),
            Standing::Closed | Standing::Probe => None,
        })
    }

    /// Takes back those that would return first, when others have left and too many are ejected.
    fn keep_enough(&mut self, now: Instant) {
        let mut ejected: Vec<_> = self.ejected(now).collect();
        let too_many = ejected.len().saturating_sub(self.most_ejected());
        ejected.sort_unstable();
        for (_, number) in ejected.into_iter().take(too_many) {
            if let Some(slot) = self.slot(number) {
                slot.outlier.reinstate();
            }
        }
    }
}

impl Slot {
    fn new(endpoint: Arc<Endpoint>, number: u64, now: Instant) -> Self {
        let latency = PeakEwma::new(now);
        Self { endpoint, number, load: 0, latency, outlier: Outlier::default(), credit: 0 }
    }

    /// The same endpoint as the registry describes it now.
    fn replaced(mut self, endpoint: Arc<Endpoint>) -> Self {
        if endpoint.boot != self.endpoint.boot {
            self.outlier.reinstate();
        }
        self.endpoint = endpoint;
        self
    }
}

#[cfg(test)]
mod tests;
