//! How much one agent may have open towards one destination.
//!
//! Envoy's circuit breaker thresholds for TCP: a bound on connections and one on those still being opened. It protects
//! the destination from this agent and this agent from a destination that accepts slowly.

use crate::model::traffic::BreakerSettings;

/// Counts what is open, and refuses past the bounds.
#[derive(Debug)]
pub struct Breaker {
    settings: BreakerSettings,
    pending: u32,
    live: u32,
}

/// Whether one more connection may be opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Admission {
    /// It may, and counts as pending from now on.
    Pass,
    /// There are as many pending as may be.
    TooManyPending,
    /// There are as many connections as may be.
    TooManyConnections,
}

impl Breaker {
    /// A breaker with nothing open.
    #[must_use]
    pub const fn new(settings: BreakerSettings) -> Self {
        Self { settings, pending: 0, live: 0 }
    }

    /// Takes new bounds. What is open beyond them stays open.
    pub const fn configure(&mut self, settings: BreakerSettings) {
        self.settings = settings;
    }

    /// Asks to open one more. After [`Admission::Pass`] exactly one of [`Self::opened`] and [`Self::given_up`] follows.
    pub const fn admit(&mut self) -> Admission {
        if self.pending.saturating_add(self.live) >= self.settings.max_connections {
            return Admission::TooManyConnections;
        }
        if self.pending >= self.settings.max_pending {
            return Admission::TooManyPending;
        }
        self.pending += 1;
        Admission::Pass
    }

    /// A pending one is open.
    pub const fn opened(&mut self) {
        self.pending = self.pending.saturating_sub(1);
        self.live = self.live.saturating_add(1);
    }

    /// A pending one will not be opened.
    pub const fn given_up(&mut self) {
        self.pending = self.pending.saturating_sub(1);
    }

    /// An open one has ended.
    pub const fn closed(&mut self) {
        self.live = self.live.saturating_sub(1);
    }

    /// How many are being opened.
    #[must_use]
    pub const fn pending(&self) -> u32 {
        self.pending
    }

    /// How many are open.
    #[must_use]
    pub const fn live(&self) -> u32 {
        self.live
    }

    /// Whether the next one would be refused.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.pending.saturating_add(self.live) >= self.settings.max_connections
            || self.pending >= self.settings.max_pending
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_bound_refuses_at_its_limit_and_passes_below() {
        let mut breaker = Breaker::new(BreakerSettings { max_connections: 3, max_pending: 2 });
        assert_eq!(breaker.admit(), Admission::Pass);
        assert_eq!(breaker.admit(), Admission::Pass);
        assert_eq!(breaker.admit(), Admission::TooManyPending);
        breaker.opened();
        assert_eq!(breaker.admit(), Admission::Pass);
        breaker.opened();
        assert_eq!(breaker.admit(), Admission::TooManyConnections);
        breaker.closed();
        assert_eq!(breaker.admit(), Admission::Pass);
    }

    #[test]
    fn tighter_bounds_leave_what_is_open() {
        let mut breaker = Breaker::new(BreakerSettings { max_connections: 3, max_pending: 3 });
        breaker.admit();
        breaker.admit();
        breaker.configure(BreakerSettings { max_connections: 1, max_pending: 1 });
        assert!(breaker.is_open());
        breaker.given_up();
        breaker.given_up();
        assert_eq!(breaker.admit(), Admission::Pass);
    }

    proptest! {
        #[test]
        fn the_bounds_hold_whatever_happens(steps in prop::collection::vec(0..4_u8, 0..200)) {
            let settings = BreakerSettings { max_connections: 5, max_pending: 3 };
            let mut breaker = Breaker::new(settings);
            for step in steps {
                let before = (breaker.pending(), breaker.live());
                match step {
                    0 => {
                        let open = breaker.is_open();
                        prop_assert_eq!(breaker.admit() == Admission::Pass, !open);
                    }
                    1 if before.0 > 0 => breaker.opened(),
                    2 if before.0 > 0 => breaker.given_up(),
                    3 if before.1 > 0 => breaker.closed(),
                    _ => {}
                }
                prop_assert!(breaker.pending() <= settings.max_pending);
                prop_assert!(breaker.pending() + breaker.live() <= settings.max_connections);
            }
        }
    }
}
