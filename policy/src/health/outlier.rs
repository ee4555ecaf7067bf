//! Whether one endpoint is left out for a while (Envoy's outlier detection, Linkerd's failure accrual).
//!
//! ```text
//! Closed ──n failures in a row──▶ Open ──time over, one is let through──▶ HalfOpen ──success──▶ Closed
//!                                  ▲                                        │
//!                                  └────────────── failure, or no answer ───┘
//! ```
//!
//! A closed detector passes, as a closed circuit does. Knows one endpoint; that not too many are out at once is the
//! balancer's to see to.

use std::time::{Duration, Instant};

use crate::model::traffic::OutlierSettings;

/// How long the one connection that is let through after an ejection may take before the next is.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The most doublings that are counted; 2^16 times the base is beyond any maximum.
const MAX_DOUBLINGS: u32 = 16;

/// The state of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outlier {
    state: State,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Closed { failures: u32 },
    Open { trips: u32, until: Instant },
    HalfOpen { trips: u32, until: Instant }, // at `until` the probe counts as lost
}

impl Default for State {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

/// How an endpoint stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// In use.
    Closed,
    /// Its time is over: the next connection is the probe.
    Probe,
    /// Left out until then.
    Ejected(Instant),
}

impl Outlier {
    /// How the endpoint stands at `now`.
    #[must_use]
    pub fn standing(&self, now: Instant) -> Standing {
        match self.state {
            State::Closed { .. } => Standing::Closed,
            State::Open { until, .. } | State::HalfOpen { until, .. } if until <= now => Standing::Probe,
            State::Open { until, .. } | State::HalfOpen { until, .. } => Standing::Ejected(until),
        }
    }

    /// A connection to the endpoint is being opened: after an ejection it is the probe, and the only one for now.
    pub fn tried(&mut self, now: Instant) {
        if let State::Open { trips, .. } | State::HalfOpen { trips, .. } = self.state {
            self.state = State::HalfOpen { trips, until: now + PROBE_TIMEOUT };
        }
    }

    /// A connection was made. One that was begun before an ejection does not end it.
    pub const fn succeeded(&mut self) {
        self.state = match self.state {
            State::Open { .. } => self.state,
            State::Closed { .. } | State::HalfOpen { .. } => State::Closed { failures: 0 },
        };
    }

    /// A connection could not be made. `draw` is a random number in 0..1, the part of the jitter that is added.
    /// Returns whether this ejects the endpoint.
    pub fn failed(&mut self, settings: &OutlierSettings, draw: f64, now: Instant) -> bool {
        let ejected = |trips| State::Open { trips, until: now + ejection(settings, trips, draw) };
        let before = self.state;
        self.state = match before {
            State::Open { .. } => before,
            State::HalfOpen { trips, .. } => ejected(trips.saturating_add(1)),
            State::Closed { failures } if failures + 1 < settings.consecutive_failures => {
                State::Closed { failures: failures + 1 }
            }
            State::Closed { .. } => ejected(1),
        };
        matches!(self.state, State::Open { .. }) && before != self.state
    }

    /// Takes the endpoint back into use: there are too few others.
    pub const fn reinstate(&mut self) {
        self.state = State::Closed { failures: 0 };
    }
}

/// The length of the ejection after `trips` in a row: base, doubled each time, at most max, plus its jitter.
fn ejection(settings: &OutlierSettings, trips: u32, draw: f64) -> Duration {
    let doublings = trips.saturating_sub(1).min(MAX_DOUBLINGS);
    let plain = settings.base.saturating_mul(1 << doublings).min(settings.max);
    // A fraction that is no number adds nothing.
    let share = (settings.jitter * draw).clamp(0.0, 1.0);
    if share > 0.0 { plain.saturating_add(plain.mul_f64(share)) } else { plain }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(failures: u32) -> OutlierSettings {
        OutlierSettings { consecutive_failures: failures, jitter: 0.0, ..OutlierSettings::default() }
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// A base for virtual time; no test reads the clock twice.
    fn start() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "a fixed base for virtual time")]
        Instant::now()
    }

    #[test]
    fn failures_in_a_row_eject_and_a_success_between_forgets_them() {
        let (mut endpoint, t0) = (Outlier::default(), start());
        for _ in 0..2 {
            assert!(!endpoint.failed(&settings(3), 0.0, t0));
        }
        endpoint.succeeded();
        assert!(!endpoint.failed(&settings(3), 0.0, t0));
        assert!(!endpoint.failed(&settings(3), 0.0, t0));
        assert!(endpoint.failed(&settings(3), 0.0, t0));
        assert_eq!(endpoint.standing(t0), Standing::Ejected(t0 + seconds(10)));
    }

    #[test]
    fn after_its_time_one_probe_decides() {
        let (mut endpoint, t0) = (Outlier::default(), start());
        endpoint.failed(&settings(1), 0.0, t0);
        assert_eq!(endpoint.standing(t0 + seconds(10)), Standing::Probe);
        endpoint.tried(t0 + seconds(10));
        assert_eq!(endpoint.standing(t0 + seconds(11)), Standing::Ejected(t0 + seconds(20)));

        let mut well = endpoint;
        well.succeeded();
        assert_eq!(well.standing(t0 + seconds(11)), Standing::Closed);

        assert!(endpoint.failed(&settings(1), 0.0, t0 + seconds(12)));
        assert_eq!(endpoint.standing(t0 + seconds(12)), Standing::Ejected(t0 + seconds(32)), "twice as long");
    }

    #[test]
    fn a_lost_probe_is_replaced_after_the_probe_timeout() {
        let (mut endpoint, t0) = (Outlier::default(), start());
        endpoint.failed(&settings(1), 0.0, t0);
        endpoint.tried(t0 + seconds(10));
        assert_eq!(endpoint.standing(t0 + seconds(20)), Standing::Probe);
    }

    #[test]
    fn a_success_from_before_the_ejection_does_not_end_it() {
        let (mut endpoint, t0) = (Outlier::default(), start());
        endpoint.failed(&settings(1), 0.0, t0);
        endpoint.succeeded();
        assert_eq!(endpoint.standing(t0), Standing::Ejected(t0 + seconds(10)));
    }

    proptest! {
        #[test]
        fn an_ejection_is_between_its_base_and_its_maximum_with_jitter(
            trips in 1..40_u32, draw in 0.0..1.0_f64, jitter in prop_oneof![Just(f64::NAN), -1.0..2.0_f64],
        ) {
            let settings = OutlierSettings { jitter, ..OutlierSettings::default() };
            let length = ejection(&settings, trips, draw);
            prop_assert!(length >= settings.base && length <= settings.max * 2);
            prop_assert!(ejection(&settings, trips + 1, draw) >= length);
        }
    }
}
