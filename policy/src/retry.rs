//! When to try again.
//!
//! Full jitter (Exponential Backoff And Jitter, AWS Architecture Blog, 2015): a uniformly random part of a bound that
//! doubles. It spreads clients that failed together best, at the price that a wait may be short.

use std::time::Duration;

use rand::Rng;

/// The most doublings that are counted; beyond it the cap is in force for any sensible base.
const MAX_DOUBLINGS: u32 = 30;

/// The waits of one thing that is tried until it works.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    tries: u32,
}

impl Backoff {
    /// The first wait is below `base`, each bound twice the one before, none above `cap`.
    #[must_use]
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, tries: 0 }
    }

    /// Reconnecting to the control plane: 100 ms base, 1.5 s cap up to 1,000 agents (decisions.md, endpoints).
    #[must_use]
    pub const fn control() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_millis(1_500))
    }

    /// Asking again after signing was refused: 1 s base, 5 min cap (decisions.md, endpoints).
    #[must_use]
    pub const fn signing() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(300))
    }

    /// How long to wait before the next try: uniform in 0 to [`Self::bound`].
    pub fn next_wait(&mut self, rng: &mut (impl Rng + ?Sized)) -> Duration {
        let bound = self.bound();
        self.tries = self.tries.saturating_add(1);
        bound.mul_f64(rng.random::<f64>()).min(bound)
    }

    /// The longest that the next wait can be.
    #[must_use]
    pub fn bound(&self) -> Duration {
        self.base.saturating_mul(1 << self.tries.min(MAX_DOUBLINGS)).min(self.cap)
    }

    /// It worked: the next wait starts from the base.
    pub const fn reset(&mut self) {
        self.tries = 0;
    }

    /// Takes a new cap, such as a server's hint to its many agents.
    pub const fn set_cap(&mut self, cap: Duration) {
        self.cap = cap;
    }

    /// How often was waited since the last success.
    #[must_use]
    pub const fn tries(&self) -> u32 {
        self.tries
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn bounds_double_up_to_the_cap_and_start_again_after_a_success() {
        let mut backoff = Backoff::control();
        let mut rng = StdRng::seed_from_u64(1);
        let bounds: Vec<_> = (0..6)
            .map(|_| {
                let bound = backoff.bound();
                backoff.next_wait(&mut rng);
                bound.as_millis()
            })
            .collect();
        assert_eq!(bounds, [100, 200, 400, 800, 1_500, 1_500]);
        backoff.reset();
        assert_eq!(backoff.bound().as_millis(), 100);
    }

    #[test]
    fn waits_of_many_clients_are_spread_over_the_whole_bound() {
        let mut rng = StdRng::seed_from_u64(2);
        let mut tenths = [0_u32; 10];
        for _ in 0..10_000 {
            let wait = Backoff::control().next_wait(&mut rng);
            tenths[usize::try_from(wait.as_millis() / 10).unwrap().min(9)] += 1;
        }
        assert!(tenths.iter().all(|count| (850..1_150).contains(count)), "{tenths:?}");
    }

    proptest! {
        #[test]
        fn no_wait_is_above_its_bound_and_no_bound_above_the_cap(
            base in 0..u64::MAX, cap in 0..u64::MAX, tries in 0..80_u32, seed in any::<u64>(),
        ) {
            let mut backoff = Backoff::new(Duration::from_millis(base), Duration::from_millis(cap));
            let mut rng = StdRng::seed_from_u64(seed);
            for _ in 0..tries {
                let bound = backoff.bound();
                prop_assert!(bound <= Duration::from_millis(cap));
                prop_assert!(backoff.next_wait(&mut rng) <= bound);
                prop_assert!(backoff.bound() >= bound, "bounds only grow");
            }
        }
    }
}
