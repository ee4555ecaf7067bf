//! A log line that strangers can cause, told seldom.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// One line of a kind in so long: enough to see that something is going on, too little to fill a disk.
const EVERY: Duration = Duration::from_secs(10);

/// Lets one line through in [`EVERY`], and counts the others.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    withheld: u64,
}

impl Seldom {
    /// Whether a line may be written now, and how many were not since the last.
    pub(crate) fn now(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < EVERY) {
            state.withheld += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_lines_is_one_line_with_a_count() {
        let seldom = Seldom::default();
        let told: Vec<_> = (0..1_000).filter_map(|_| seldom.now()).collect();
        assert_eq!(told, [0]);
        tokio::time::advance(EVERY).await;
        assert_eq!((seldom.now(), seldom.now()), (Some(999), None));
    }
}
