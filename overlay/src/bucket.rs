//! So many a second, and so many at once after a quiet time. Pure.

use std::time::Instant;

/// A token bucket.
#[derive(Clone, Debug)]
pub(crate) struct TokenBucket {
    per_second: f64,
    capacity: f64,
    level: f64,
    at: Instant,
}

impl TokenBucket {
    /// A full bucket that takes as many at once as in a second.
    pub(crate) fn full(per_second: u32, now: Instant) -> Self {
        Self::with_burst(per_second, per_second, now)
    }

    /// A full bucket that takes `burst` at once.
    pub(crate) fn with_burst(per_second: u32, burst: u32, now: Instant) -> Self {
        let capacity = f64::from(burst);
        Self { per_second: f64::from(per_second), capacity, level: capacity, at: now }
    }

    /// Takes one, if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.take_many(1, now)
    }

    /// Takes `count`, or nothing.
    pub(crate) fn take_many(&mut self, count: u64, now: Instant) -> bool {
        self.refill(now);
        let count = count as f64;
        let may = self.level >= count;
        if may {
            self.level -= count;
        }
        may
    }

    /// Whether nobody has taken anything of late.
    pub(crate) fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.level >= self.capacity
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.per_second).min(self.capacity);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_its_rate_after_that() {
        let now = crate::clock::now().into_std();
        let mut bucket = TokenBucket::with_burst(10, 3, now);
        assert!(bucket.take(now) && bucket.take_many(2, now));
        assert!(!bucket.take(now), "the burst is used up");
        let later = now + Duration::from_millis(100);
        assert!(bucket.take(later), "ten a second are one in 100 ms");
        assert!(!bucket.take(later));
        assert!(!bucket.is_full(later + Duration::from_millis(200)));
        assert!(bucket.is_full(later + Duration::from_secs(1)));
    }

    #[test]
    fn more_than_the_burst_never_passes_and_costs_nothing() {
        let now = crate::clock::now().into_std();
        let mut bucket = TokenBucket::full(5, now);
        assert!(!bucket.take_many(6, now));
        assert!(bucket.take_many(5, now));
    }
}
