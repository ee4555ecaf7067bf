//! What strangers and misbehaving peers can make the log say: one line of each kind a second.
//!
//! Metrics count everything; the log tells a person that it happens, to whom, and how much was left out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;

/// Between two lines of one kind.
const EVERY: Duration = Duration::from_secs(1);
/// Tunnels that come and go in good order have a line each up to so many a second: a node starts with one
/// for each peer, and no person reads more.
const TUNNELS_PER_SECOND: u32 = 20;

/// The kinds of lines of one endpoint.
#[derive(Debug)]
pub(crate) struct Says {
    /// Handshakes that failed.
    pub(crate) handshakes: Seldom,
    /// First packets that were asked to prove their address, or refused.
    pub(crate) deflected: Seldom,
    /// Peers cut for their load.
    pub(crate) excess: Seldom,
    /// Tunnels that came up.
    pub(crate) opened: Seldom,
    /// Tunnels that ended.
    pub(crate) closed: Seldom,
}

impl Default for Says {
    fn default() -> Self {
        Self {
            handshakes: Seldom::new(1),
            deflected: Seldom::new(1),
            excess: Seldom::new(1),
            opened: Seldom::new(TUNNELS_PER_SECOND),
            closed: Seldom::new(TUNNELS_PER_SECOND),
        }
    }
}

/// Lets so many lines a second through and counts the others.
#[derive(Debug)]
pub(crate) struct Seldom {
    per_second: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Seldom {
    fn new(per_second: u32) -> Self {
        Self { per_second, state: Mutex::default() }
    }

    /// Whether to say something now, and how many lines have been left out since the last one.
    pub(crate) fn may(&self) -> Option<u64> {
        self.may_at(clock::now().into_std())
    }

    fn may_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let over = state.since.is_none_or(|since| now.saturating_duration_since(since) >= EVERY);
        if over {
            (state.since, state.lines) = (Some(now), 0);
        }
        if state.lines >= self.per_second {
            state.left_out += 1;
            return None;
        }
        state.lines += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_leaves_one_line_a_second_that_tells_how_much_was_left_out() {
        let now = clock::now().into_std();
        let seldom = Seldom::new(1);
        assert_eq!(seldom.may_at(now), Some(0));
        for _ in 0..1000 {
            assert_eq!(seldom.may_at(now + EVERY / 2), None);
        }
        assert_eq!(seldom.may_at(now + EVERY), Some(1000));
        assert_eq!(seldom.may_at(now + EVERY), None);
    }
}
