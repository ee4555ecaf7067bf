//! A latency that rises at once and falls slowly (Finagle's peak EWMA).

use std::time::{Duration, Instant};

/// In this time an old latency loses all but 1/e of its say: Finagle's and Linkerd's value.
const DECAY: Duration = Duration::from_secs(10);

/// What is assumed of an endpoint that was never tried: Linkerd's value. High enough that a new endpoint is not flooded,
/// low enough that it is tried.
const UNTRIED: Duration = Duration::from_millis(30);

/// The least latency that counts, so that an endpoint nobody asked for long is cheap, not free.
const LEAST_SECONDS: f64 = 1e-6;

/// The latency of one endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeakEwma {
    seconds: f64,
    at: Instant,
}

impl PeakEwma {
    pub(super) const fn new(now: Instant) -> Self {
        Self { seconds: UNTRIED.as_secs_f64(), at: now }
    }

    /// Takes in one latency: a peak counts whole, anything less by the time since the last one.
    pub(super) fn observe(&mut self, latency: Duration, now: Instant) {
        let latency = latency.as_secs_f64();
        self.seconds = if latency > self.seconds {
            latency
        } else {
            let kept = self.kept(now);
            self.seconds * kept + latency * (1.0 - kept)
        };
        self.at = self.at.max(now);
    }

    /// The latency to reckon with at `now`, in seconds: it fades while nothing is observed, so that an endpoint that
    /// was slow once is tried again.
    pub(super) fn seconds(&self, now: Instant) -> f64 {
        (self.seconds * self.kept(now)).max(LEAST_SECONDS)
    }

    fn kept(&self, now: Instant) -> f64 {
        (-now.saturating_duration_since(self.at).as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::balance::tests::start;

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let t0 = start();
        let mut latency = PeakEwma::new(t0);
        latency.observe(Duration::from_secs(1), t0);
        assert!((latency.seconds(t0) - 1.0).abs() < 1e-9);
        assert!((latency.seconds(t0 + DECAY) - 1.0 / std::f64::consts::E).abs() < 1e-9);
        latency.observe(Duration::from_millis(10), t0 + Duration::from_millis(100));
        assert!(latency.seconds(t0 + Duration::from_millis(100)) > 0.9, "one fast answer does not hide it");
    }

    proptest! {
        #[test]
        fn it_stays_between_the_least_and_the_greatest_seen(
            seen in prop::collection::vec((0..5_000_u64, 0..60_000_u64), 0..50),
        ) {
            let t0 = start();
            let mut latency = PeakEwma::new(t0);
            let greatest = seen.iter().map(|(ms, _)| *ms).max().unwrap_or(0).max(30);
            let mut now = t0;
            for (ms, gap) in seen {
                now += Duration::from_millis(gap);
                latency.observe(Duration::from_millis(ms), now);
                let seconds = latency.seconds(now);
                prop_assert!(seconds >= LEAST_SECONDS && seconds <= greatest as f64 / 1e3 + 1e-9);
                prop_assert!(seconds >= ms as f64 / 1e3 - 1e-9, "a peak is never hidden");
            }
        }
    }
}
