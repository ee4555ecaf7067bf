//! The balancers of all destinations, kept in step with the snapshot.
//!
//! What was learnt of an endpoint that stays is kept; destinations that nobody knows any more are dropped.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rand::rngs::StdRng;
use weft_policy::{
    balance::{Attempt, Balancer, Counts, LiveFlow, NoEndpoint},
    model::Endpoint,
    name::{EndpointLabel, ServiceName},
    snapshot::{Destination, Snapshot},
};

/// All balancers of one agent. A clone is the same ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Balancers(Arc<Mutex<HashMap<ServiceName, Arc<Mutex<Balancer>>>>>);

/// A connection being opened. Dropped without an outcome it counts as abandoned: it says nothing of the endpoint.
#[derive(Debug)]
pub(crate) struct Try {
    balancer: Arc<Mutex<Balancer>>,
    attempt: Option<Attempt>,
    endpoint: Arc<Endpoint>,
    began: Instant,
}

/// A connection that is open; dropped, it gives its place back.
#[derive(Debug)]
pub(crate) struct Load {
    balancer: Arc<Mutex<Balancer>>,
    flow: Option<LiveFlow>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every method of a balancer leaves it whole, whatever it is given.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Balancers {
    /// Takes the endpoints and settings of every destination of `snapshot`.
    pub(crate) fn reconcile(&self, snapshot: &Snapshot, now: Instant) {
        let mut all = lock(&self.0);
        all.retain(|service, _| snapshot.destination(service).is_some());
        for (service, destination) in snapshot.destinations() {
            if let Some(balancer) = all.get(service) {
                refresh(&mut lock(balancer), destination, now);
            }
        }
    }

    /// The balancer of a destination, made at its first use.
    fn of(&self, destination: &Destination, now: Instant) -> Arc<Mutex<Balancer>> {
        let mut all = lock(&self.0);
        let entry = all.entry(destination.service().service_name()).or_insert_with(|| {
            let mut balancer = Balancer::new(*destination.settings());
            refresh(&mut balancer, destination, now);
            Arc::new(Mutex::new(balancer))
        });
        Arc::clone(entry)
    }

    /// Chooses an endpoint for one connection, none of those tried before for it.
    pub(crate) fn pick(
        &self,
        destination: &Destination,
        rng: &mut StdRng,
        now: Instant,
        tried: &[EndpointLabel],
    ) -> Result<Try, NoEndpoint> {
        let balancer = self.of(destination, now);
        let attempt = lock(&balancer).pick(rng, now, tried)?;
        let endpoint = Arc::clone(attempt.endpoint());
        Ok(Try { balancer, attempt: Some(attempt), endpoint, began: now })
    }

    /// How the endpoints of each used destination stand.
    pub(crate) fn counts(&self, now: Instant) -> Vec<(ServiceName, Counts, bool)> {
        let all = lock(&self.0);
        let row = |(service, balancer): (&ServiceName, &Arc<Mutex<Balancer>>)| {
            let balancer = lock(balancer);
            (service.clone(), balancer.counts(now), balancer.is_breaker_open())
        };
        all.iter().map(row).collect()
    }
}

fn refresh(balancer: &mut Balancer, destination: &Destination, now: Instant) {
    balancer.configure(*destination.settings(), now);
    balancer.update(destination.endpoints(), now);
}

impl Try {
    /// Whom to dial.
    pub(crate) const fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// For how long it has been tried.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    /// The destination's program has accepted.
    pub(crate) fn connected(mut self, now: Instant) -> Load {
        let latency = self.age(now);
        let flow = self.attempt.take().map(|attempt| lock(&self.balancer).connected(attempt, latency, now));
        Load { balancer: Arc::clone(&self.balancer), flow }
    }

    /// The endpoint failed. Says whether that ejects it.
    pub(crate) fn failed(mut self, rng: &mut StdRng, now: Instant) -> bool {
        let attempt = self.attempt.take();
        attempt.is_some_and(|attempt| lock(&self.balancer).failed(attempt, rng, now))
    }
}

impl Drop for Try {
    fn drop(&mut self) {
        if let Some(attempt) = self.attempt.take() {
            lock(&self.balancer).abandoned(attempt);
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(flow) = self.flow.take() {
            lock(&self.balancer).closed(flow);
        }
    }
}
