//! How often something may be done.
//!
//! A [`TokenBucket`] for one thing, [`KeyedLimit`] for many that are told apart by a key, with a bound on the keys.

use std::{
    collections::HashMap,
    hash::Hash,
    num::NonZeroU32,
    time::{Duration, Instant},
};

/// A number of events per second, and how many at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    /// Events per second in the long run.
    pub per_second: NonZeroU32,
    /// Events that may come at once after a pause.
    pub burst: NonZeroU32,
}

/// Lets events through at a rate. Starts full.
///
/// Keeps one instant (the virtual scheduling of GCRA, ITU-T I.371): when the bucket will be full again.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    rate: Rate,
    full_at: Instant,
}

/// What a bucket says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Go on.
    Pass,
    /// Not now; after this long there is room for one.
    Wait(Duration),
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub const fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, full_at: now }
    }

    /// Asks for one event at `now`. An instant before an earlier one counts as that one.
    pub fn take(&mut self, now: Instant) -> Verdict {
        let interval = self.interval();
        let size = interval * self.rate.burst.get();
        let full_at = self.full_at.max(now) + interval;
        let ahead = full_at.saturating_duration_since(now);
        if ahead > size {
            return Verdict::Wait(ahead - size);
        }
        self.full_at = full_at;
        Verdict::Pass
    }

    /// Whether nothing was taken, or all of it has come back.
    #[must_use]
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }

    /// The time in which one event comes back, in whole nanoseconds, rounded up so that the rate is never exceeded.
    fn interval(&self) -> Duration {
        Duration::from_nanos(1_000_000_000_u64.div_ceil(u64::from(self.rate.per_second.get())))
    }
}

/// A bucket for each key, such as an address or an identity.
///
/// At most `max_keys` are kept. A full bucket says nothing and is forgotten when room is needed; when all are in use a
/// new key is refused: a flood of keys must not buy its senders more than the rate.
#[derive(Debug)]
pub struct KeyedLimit<K> {
    rate: Rate,
    max_keys: usize,
    buckets: HashMap<K, TokenBucket>,
    /// Before this instant no bucket is full, so there is nothing to sweep.
    sweep_at: Option<Instant>,
}

impl<K: Eq + Hash> KeyedLimit<K> {
    /// A limit for at most `max_keys` keys at a time.
    #[must_use]
    pub fn new(rate: Rate, max_keys: usize) -> Self {
        Self { rate, max_keys, buckets: HashMap::new(), sweep_at: None }
    }

    /// Asks for one event of `key` at `now`.
    pub fn take(&mut self, key: K, now: Instant) -> Verdict {
        let is_new = !self.buckets.contains_key(&key);
        if is_new
            && self.buckets.len() >= self.max_keys
            && let Some(wait) = self.sweep(now)
        {
            return Verdict::Wait(wait);
        }
        self.buckets.entry(key).or_insert_with(|| TokenBucket::new(self.rate, now)).take(now)
    }

    /// How many keys are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether no key is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Forgets full buckets; when none is, says how long until one will be. Costs O(keys) only once per such time.
    fn sweep(&mut self, now: Instant) -> Option<Duration> {
        if let Some(at) = self.sweep_at.filter(|at| *at > now) {
            return Some(at.saturating_duration_since(now));
        }
        self.buckets.retain(|_, bucket| !bucket.is_full(now));
        if self.buckets.len() < self.max_keys {
            self.sweep_at = None;
            return None;
        }
        let earliest = self.buckets.values().map(|bucket| bucket.full_at).min().unwrap_or(now);
        self.sweep_at = Some(earliest);
        Some(earliest.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() }
    }

    /// A base for virtual time; no test reads the clock twice.
    fn start() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "a fixed base for virtual time")]
        Instant::now()
    }

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let t0 = start();
        let mut bucket = TokenBucket::new(rate(10, 3), t0);
        for _ in 0..3 {
            assert_eq!(bucket.take(t0), Verdict::Pass);
        }
        assert_eq!(bucket.take(t0), Verdict::Wait(ms(100)));
        assert_eq!(bucket.take(t0 + ms(99)), Verdict::Wait(ms(1)));
        assert_eq!(bucket.take(t0 + ms(100)), Verdict::Pass);
        assert!(!bucket.is_full(t0 + ms(100)));
        assert!(bucket.is_full(t0 + ms(400)));
    }

    #[test]
    fn keys_do_not_share_and_a_flood_of_keys_is_refused_not_kept() {
        let t0 = start();
        let mut limit = KeyedLimit::new(rate(1, 1), 2);
        assert_eq!(limit.take("a", t0), Verdict::Pass);
        assert_eq!(limit.take("a", t0), Verdict::Wait(ms(1_000)));
        assert_eq!(limit.take("b", t0 + ms(500)), Verdict::Pass);
        assert_eq!(limit.take("c", t0 + ms(600)), Verdict::Wait(ms(400)));
        assert_eq!(limit.take("d", t0 + ms(700)), Verdict::Wait(ms(300)));
        assert_eq!(limit.take("c", t0 + ms(1_000)), Verdict::Pass, "the bucket of a is full and forgotten");
        assert_eq!(limit.len(), 2);
    }

    proptest! {
        #[test]
        fn no_window_of_time_passes_more_than_rate_and_burst(
            per_second in 1..2_000_u32, burst in 1..50_u32, gaps in prop::collection::vec(0..50_u64, 1..300),
        ) {
            let t0 = start();
            let mut bucket = TokenBucket::new(rate(per_second, burst), t0);
            let (mut at, mut passed) = (0, Vec::new());
            for gap in gaps {
                at += gap;
                if bucket.take(t0 + ms(at)) == Verdict::Pass {
                    passed.push(at);
                }
            }
            for (index, from) in passed.iter().enumerate() {
                for (count, to) in (1_u64..).zip(&passed[index..]) {
                    let most = u64::from(burst) + (to - from) * u64::from(per_second) / 1_000;
                    prop_assert!(count <= most, "{count} in {} ms", to - from);
                }
            }
        }

        #[test]
        fn after_the_wait_there_is_room(
            per_second in 1..2_000_u32, burst in 1..20_u32, takes in 1..60_u32, gap in 0..5_u64,
        ) {
            let t0 = start();
            let mut bucket = TokenBucket::new(rate(per_second, burst), t0);
            let mut now = t0;
            for _ in 0..takes {
                now += ms(gap);
                if let Verdict::Wait(wait) = bucket.take(now) {
                    now += wait;
                    prop_assert_eq!(bucket.take(now), Verdict::Pass);
                }
            }
        }

        #[test]
        fn the_keys_kept_never_exceed_the_bound(keys in prop::collection::vec((0..40_u8, 0..200_u64), 0..200)) {
            let (t0, mut at) = (start(), 0);
            let mut limit = KeyedLimit::new(rate(5, 2), 8);
            for (key, gap) in keys {
                at += gap;
                limit.take(key, t0 + ms(at));
                prop_assert!(limit.len() <= 8);
            }
        }
    }
}
