//! How often somebody may try: joining and signing, by address and by identity (security.md 9.3).
//!
//! Owns the buckets and the lock of addresses that keep guessing secrets. An address is an IPv4 address or an IPv6 /64.
//! All maps are bounded; when one is full of busy keys a new key is refused, so that a flood of addresses buys nothing.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use weft_api::channel::client_network;
use weft_identity::spiffe::SpiffeId;
use weft_policy::{
    code,
    limit::{KeyedLimit, Verdict},
};

use crate::{clock::Clock, config::Limits, refusal::Refusal};

/// The most addresses, and the most identities, that are kept apart at a time.
const MAX_KEYS: usize = 16_384;
/// That many unknown secrets from one address within [`LOCK_WINDOW`] lock it.
const GUESSES: u32 = 10;
/// How long guesses are remembered, and how long a lock lasts.
const LOCK_WINDOW: Duration = Duration::from_secs(600);

/// The limits of one server.
#[derive(Debug)]
pub struct Throttle {
    clock: Clock,
    joins: Mutex<KeyedLimit<IpAddr>>,
    issues_by_address: Mutex<KeyedLimit<IpAddr>>,
    issues_by_identity: Mutex<KeyedLimit<SpiffeId>>,
    guesses: Mutex<HashMap<IpAddr, Guesses>>,
}

#[derive(Clone, Copy, Debug)]
struct Guesses {
    count: u32,
    last: Instant,
}

impl Throttle {
    /// Limits with nothing counted yet.
    #[must_use]
    pub fn new(limits: &Limits, clock: Clock) -> Self {
        Self {
            clock,
            joins: Mutex::new(KeyedLimit::new(limits.joins, MAX_KEYS)),
            issues_by_address: Mutex::new(KeyedLimit::new(limits.issues_per_address, MAX_KEYS)),
            issues_by_identity: Mutex::new(KeyedLimit::new(limits.issues_per_node, MAX_KEYS)),
            guesses: Mutex::default(),
        }
    }

    /// Asks for one attempt to join from `address`.
    ///
    /// # Errors
    ///
    /// A refusal when attempts come too fast, or the address is locked for guessing.
    pub fn join(&self, address: IpAddr) -> Result<(), Refusal> {
        let (network, now) = (client_network(address), self.clock.instant());
        if self.is_locked(network, now) {
            let what = "too many unknown tokens came from this address; it is locked for 10 minutes";
            return Err(Refusal::exhausted(code::TOO_MANY_ATTEMPTS, what));
        }
        pass(lock(&self.joins).take(network, now), "attempts to join from this address")
    }

    /// Counts an unknown secret from `address`.
    pub fn guessed(&self, address: IpAddr) {
        let (network, now) = (client_network(address), self.clock.instant());
        let mut guesses = lock(&self.guesses);
        if guesses.len() >= MAX_KEYS {
            guesses.retain(|_, found| now.saturating_duration_since(found.last) < LOCK_WINDOW);
        }
        if guesses.len() >= MAX_KEYS && !guesses.contains_key(&network) {
            return; // the bucket of joins holds for this address all the same
        }
        let found = guesses.entry(network).or_insert(Guesses { count: 0, last: now });
        if now.saturating_duration_since(found.last) >= LOCK_WINDOW {
            found.count = 0;
        }
        *found = Guesses { count: found.count.saturating_add(1), last: now };
    }

    /// Asks for one certificate for `identity` at `address`.
    ///
    /// # Errors
    ///
    /// A refusal when requests come too fast.
    pub fn issue(&self, address: Option<IpAddr>, identity: &SpiffeId) -> Result<(), Refusal> {
        let now = self.clock.instant();
        if let Some(address) = address {
            let verdict = lock(&self.issues_by_address).take(client_network(address), now);
            pass(verdict, "certificates asked for from this address")?;
        }
        pass(
            lock(&self.issues_by_identity).take(identity.clone(), now),
            "certificates asked for by this identity",
        )
    }

    fn is_locked(&self, network: IpAddr, now: Instant) -> bool {
        lock(&self.guesses).get(&network).is_some_and(|found| {
            found.count >= GUESSES && now.saturating_duration_since(found.last) < LOCK_WINDOW
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can panic half-way; should it, the counts are still counts.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The refusal of what comes too fast.
pub(crate) fn pass(verdict: Verdict, of_what: &str) -> Result<(), Refusal> {
    match verdict {
        Verdict::Pass => Ok(()),
        Verdict::Wait(wait) => {
            let what = format!("too many {of_what}; try again in {} ms", wait.as_millis().max(1));
            Err(Refusal::exhausted(code::TOO_MANY_ATTEMPTS, what))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::config::Config;

    fn throttle() -> (Throttle, crate::clock::TestClock) {
        let text = "trustDomain: corp.example\nstore: {embedded: {path: /x}}\n";
        let limits = Config::parse(text, "test").unwrap().limits;
        let (clock, hands) = Clock::test(SystemTime::UNIX_EPOCH);
        (Throttle::new(&limits, clock), hands)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn iss_05_five_joins_at_once_then_one_a_second_per_address() {
        let (throttle, hands) = throttle();
        for _ in 0..5 {
            throttle.join(ip("10.0.0.1")).unwrap();
        }
        assert!(throttle.join(ip("::ffff:10.0.0.1")).is_err(), "the mapped form is the same address");
        throttle.join(ip("10.0.0.2")).unwrap();
        hands.advance(Duration::from_secs(1));
        throttle.join(ip("10.0.0.1")).unwrap();
        assert!(throttle.join(ip("10.0.0.1")).is_err());
    }

    #[test]
    fn iss_05_an_address_that_guesses_is_locked_and_later_free_again() {
        let (throttle, hands) = throttle();
        for _ in 0..GUESSES {
            throttle.guessed(ip("2001:db8::1"));
        }
        assert!(throttle.join(ip("2001:db8::2")).is_err(), "one network is one address");
        throttle.join(ip("2001:db8:0:1::1")).unwrap();
        hands.advance(LOCK_WINDOW);
        throttle.join(ip("2001:db8::2")).unwrap();
    }

    #[test]
    fn iss_06_one_identity_that_floods_leaves_room_for_others() {
        let (throttle, _hands) = throttle();
        let [flood, other] =
            ["a", "b"].map(|node| format!("spiffe://corp.example/node/{node}").parse().unwrap());
        let passed = (0..5_000).filter(|_| throttle.issue(None, &flood).is_ok()).count();
        assert_eq!(passed, 1_000);
        throttle.issue(None, &other).unwrap();
    }
}
