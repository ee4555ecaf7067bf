//! Which destinations this agent needs to know: those its workloads host, declare, or asked for lately.
//!
//! Owns the set and its bound; the discovery stream tells the server of its changes. A destination that nobody used for
//! ten minutes is forgotten, unless it is pinned (hosted here or declared as an upstream).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use weft_policy::name::ServiceName;

/// Destinations one agent may know at once, so that a program which calls made-up names cannot fill memory.
pub(crate) const MAX_DESTINATIONS: usize = 1_000;
/// Without use for so long, a destination is forgotten.
pub(crate) const FORGET_AFTER: Duration = Duration::from_secs(600);
/// For so long "there is no such service" is believed without asking again.
const UNKNOWN_FOR: Duration = Duration::from_secs(1);

/// The set of wanted destinations.
#[derive(Debug)]
pub(crate) struct Demand {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    wanted: BTreeMap<ServiceName, Use>,
    unknown: BTreeMap<ServiceName, Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Use {
    last: Instant,
    pins: usize,
}

/// Whether a destination may be waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wanted {
    /// The server was, or will be, asked for it.
    Asked,
    /// The server said a moment ago that there is none.
    Unknown,
    /// The agent knows too many destinations already.
    Full,
}

impl Default for Demand {
    fn default() -> Self {
        Self { inner: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Demand {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while holding the lock leaves a set that is still a set.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a flow uses `service` at `now`, and asks for it when it is new.
    pub(crate) fn want(&self, service: &ServiceName, now: Instant) -> Wanted {
        let mut inner = self.lock();
        if let Some(found) = inner.wanted.get_mut(service) {
            found.last = now;
        }
        if let Some(since) = inner.unknown.get(service) {
            if now.saturating_duration_since(*since) < UNKNOWN_FOR {
                return Wanted::Unknown;
            }
            inner.unknown.remove(service);
            // Ask again: the stream compares the set with what it told the server.
            inner.wanted.remove(service);
        }
        if inner.wanted.contains_key(service) {
            return Wanted::Asked;
        }
        if inner.wanted.len() >= MAX_DESTINATIONS {
            return Wanted::Full;
        }
        inner.wanted.insert(service.clone(), Use { last: now, pins: 0 });
        drop(inner);
        self.changed.send_modify(|count| *count += 1);
        Wanted::Asked
    }

    /// Keeps `service` known until [`Demand::unpin`]. Pins are the configuration's, so they are not refused.
    pub(crate) fn pin(&self, service: &ServiceName, now: Instant) {
        let mut inner = self.lock();
        let entry = inner.wanted.entry(service.clone()).or_insert(Use { last: now, pins: 0 });
        entry.pins += 1;
        drop(inner);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Takes one pin away.
    pub(crate) fn unpin(&self, service: &ServiceName) {
        let mut inner = self.lock();
        if let Some(found) = inner.wanted.get_mut(service) {
            found.pins = found.pins.saturating_sub(1);
        }
    }

    /// The server says that there is no such service.
    pub(crate) fn mark_unknown(&self, service: ServiceName, now: Instant) {
        let mut inner = self.lock();
        if inner.unknown.len() < MAX_DESTINATIONS {
            inner.unknown.insert(service, now);
        }
        drop(inner);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Whether the server said lately that there is no such service.
    pub(crate) fn is_unknown(&self, service: &ServiceName) -> bool {
        self.lock().unknown.contains_key(service)
    }

    /// Forgets what nobody used for [`FORGET_AFTER`].
    pub(crate) fn forget(&self, now: Instant) {
        let mut inner = self.lock();
        let before = inner.wanted.len();
        inner
            .wanted
            .retain(|_, used| used.pins > 0 || now.saturating_duration_since(used.last) < FORGET_AFTER);
        inner.unknown.retain(|_, since| now.saturating_duration_since(*since) < UNKNOWN_FOR);
        let changed = inner.wanted.len() != before;
        drop(inner);
        if changed {
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// The set as it is now.
    pub(crate) fn all(&self) -> BTreeSet<ServiceName> {
        self.lock().wanted.keys().cloned().collect()
    }

    /// Notes each change of the set, and of what is unknown, from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a test owns its time: it only needs some instant to count from"
)]
mod tests {
    use super::*;

    fn service(name: &str) -> ServiceName {
        ServiceName::new("shop".parse().unwrap(), name.parse().unwrap())
    }

    #[test]
    fn an_unused_destination_is_forgotten_and_a_pinned_one_is_not() {
        let (demand, start) = (Demand::default(), Instant::now());
        demand.want(&service("a"), start);
        demand.pin(&service("b"), start);
        demand.forget(start + FORGET_AFTER);
        assert_eq!(demand.all(), BTreeSet::from([service("b")]));
        demand.unpin(&service("b"));
        demand.forget(start + FORGET_AFTER);
        assert!(demand.all().is_empty());
    }

    #[test]
    fn made_up_names_cannot_fill_the_set() {
        let (demand, now) = (Demand::default(), Instant::now());
        for index in 0..MAX_DESTINATIONS {
            assert_eq!(demand.want(&service(&format!("s{index}")), now), Wanted::Asked);
        }
        assert_eq!(demand.want(&service("one-more"), now), Wanted::Full);
        assert_eq!(demand.want(&service("s1"), now), Wanted::Asked);
    }

    #[test]
    fn an_unknown_service_is_asked_for_again_after_a_second() {
        let (demand, now) = (Demand::default(), Instant::now());
        assert_eq!(demand.want(&service("a"), now), Wanted::Asked);
        demand.mark_unknown(service("a"), now);
        assert_eq!(demand.want(&service("a"), now), Wanted::Unknown);
        assert_eq!(demand.want(&service("a"), now + UNKNOWN_FOR), Wanted::Asked);
        assert!(!demand.is_unknown(&service("a")));
    }
}
