//! What points at an attack: counted always, told at a bounded rate.
//!
//! Owns the counter of each kind and how often its line is written, so that a flood of refusals is one number and a few
//! lines, not a full disk. What happened and to whom stands in the line, which the place of the refusal writes.

use std::sync::{Mutex, PoisonError};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use weft_policy::limit::{Rate, TokenBucket, Verdict};

use crate::clock::Clock;

/// Lines of one kind: one a second, ten at once. A person reads the first ones and the count.
const LINES: Rate = Rate {
    per_second: std::num::NonZeroU32::MIN,
    burst: std::num::NonZeroU32::new(10).expect("it is not zero"),
};

/// A kind of event that a person should look at.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Alarm {
    /// An agent asks for an identity that no enrollment gives it: a taken-over node does (ISS-01).
    Overreach,
    /// An agent presents a certificate that it has replaced: a copy of its state does (ISS-04).
    OlderCopy,
    /// A key that was certified for another identity is presented: it was stolen, or sent by mistake (CERT-30).
    ForeignKey,
    /// A signing request that was answered before is presented again (ISS-03).
    Replay,
    /// A used token is presented again: one of the two has stolen it (ISS-05).
    TokenAgain,
    /// A token is used by another node than it is for.
    TokenElsewhere,
    /// Somebody joins with a secret that is no token's (ISS-05).
    UnknownToken,
    /// A caller asks for a method that is not theirs.
    NotPermitted,
}

impl Alarm {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Overreach,
        Self::OlderCopy,
        Self::ForeignKey,
        Self::Replay,
        Self::TokenAgain,
        Self::TokenElsewhere,
        Self::UnknownToken,
        Self::NotPermitted,
    ];

    /// Its name in the metric.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Overreach => "overreach",
            Self::OlderCopy => "older_copy",
            Self::ForeignKey => "foreign_key",
            Self::Replay => "replay",
            Self::TokenAgain => "token_again",
            Self::TokenElsewhere => "token_elsewhere",
            Self::UnknownToken => "unknown_token",
            Self::NotPermitted => "not_permitted",
        }
    }
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Labels {
    kind: &'static str,
}

/// The alarms of one server.
#[derive(Debug)]
pub struct Alarms {
    clock: Clock,
    raised: Family<Labels, Counter>,
    lines: [Mutex<Line>; Alarm::ALL.len()],
}

/// What is written of one kind.
#[derive(Debug)]
struct Line {
    bucket: TokenBucket,
    untold: u64,
}

impl Alarms {
    /// Nothing was raised yet.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let raised = Family::<Labels, Counter>::default();
        for alarm in Alarm::ALL {
            // Shown as 0 from the start: a rate over a counter that appears with its first event misses that event.
            drop(raised.get_or_create(&Labels { kind: alarm.label() }));
        }
        let now = clock.instant();
        let lines = Alarm::ALL.map(|_| Mutex::new(Line { bucket: TokenBucket::new(LINES, now), untold: 0 }));
        Self { clock, raised, lines }
    }

    /// Counts one. `Some` says that its line is to be written, with how many before it were not.
    #[must_use]
    pub fn raise(&self, alarm: Alarm) -> Option<u64> {
        self.raised.get_or_create(&Labels { kind: alarm.label() }).inc();
        let mut line = self.lines[alarm as usize].lock().unwrap_or_else(PoisonError::into_inner);
        match line.bucket.take(self.clock.instant()) {
            Verdict::Pass => Some(std::mem::take(&mut line.untold)),
            Verdict::Wait(_) => {
                line.untold = line.untold.saturating_add(1);
                None
            }
        }
    }

    /// How often one was raised.
    #[must_use]
    pub fn count(&self, alarm: Alarm) -> u64 {
        self.raised.get_or_create(&Labels { kind: alarm.label() }).get()
    }

    /// Registers the counters.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Events that point at an attack, by kind";
        registry.register("weft_registry_alarms", help, self.raised.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn each_kind_has_its_own_lines_which_are_few_and_say_how_many_were_left_out() {
        let (clock, hands) = Clock::test(SystemTime::UNIX_EPOCH);
        let alarms = Alarms::new(clock);
        let told = (0..1_000).filter(|_| alarms.raise(Alarm::Overreach).is_some()).count();
        assert_eq!((told, alarms.count(Alarm::Overreach)), (10, 1_000));
        assert_eq!(alarms.raise(Alarm::Replay), Some(0), "another kind is told");
        hands.advance(Duration::from_secs(1));
        assert_eq!(alarms.raise(Alarm::Overreach), Some(990));
        assert_eq!(alarms.raise(Alarm::Overreach), None);
    }

    #[test]
    fn every_kind_has_its_place_and_its_name() {
        for (place, alarm) in Alarm::ALL.into_iter().enumerate() {
            assert_eq!(alarm as usize, place);
        }
        let names: std::collections::BTreeSet<_> = Alarm::ALL.map(Alarm::label).into();
        assert_eq!(names.len(), Alarm::ALL.len());
    }
}
