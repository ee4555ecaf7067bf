//! Graceful stop: who still works, who is told, and when patience ends.
//!
//! Owns one switch with three positions. *Running*: everything is taken. *Draining*: nothing new is taken, what lives
//! may end by itself. *Cut*: the deadline passed, what still lives ends now. Work holds a [`Live`] guard; the owner of
//! [`Drain`] waits for the guards. Who accepts asks [`Watch`].

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::clock::Clock;

/// The switch's position.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Phase {
    /// Everything is taken.
    Running,
    /// Nothing new is taken.
    Draining,
    /// What still lives ends now.
    Cut,
}

/// The owner's end: starts the drain and waits for it.
#[derive(Debug)]
pub struct Drain {
    phase: Arc<watch::Sender<Phase>>,
    live: Arc<watch::Sender<usize>>,
}

/// The workers' end: sees the phase and registers what lives. A clone watches the same switch.
#[derive(Clone, Debug)]
pub struct Watch {
    phase: watch::Receiver<Phase>,
    live: Arc<watch::Sender<usize>>,
}

/// One living piece of work; dropped when it ended.
#[derive(Debug)]
pub struct Live {
    live: Arc<watch::Sender<usize>>,
}

impl Drain {
    /// Makes a switch in the position [`Phase::Running`].
    #[must_use]
    pub fn new() -> Self {
        Self { phase: Arc::new(watch::Sender::new(Phase::Running)), live: Arc::new(watch::Sender::new(0)) }
    }

    /// Returns a watcher of this switch.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch { phase: self.phase.subscribe(), live: Arc::clone(&self.live) }
    }

    /// Stops taking new work, waits up to `deadline` for the living, cuts the rest and waits for it to end.
    ///
    /// Returns how many pieces of work were cut. A cut piece must end by itself soon; it is not waited for longer than
    /// [`CUT_GRACE`]. Not cancel-safe in its meaning: a dropped drain leaves the switch where it was.
    pub async fn drain(&self, deadline: Duration, clock: &Clock) -> usize {
        self.phase.send_replace(Phase::Draining);
        if self.ended_within(deadline, clock).await {
            return 0;
        }
        let cut = *self.live.borrow();
        self.phase.send_replace(Phase::Cut);
        self.ended_within(CUT_GRACE, clock).await;
        cut
    }

    /// The current position.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    async fn ended_within(&self, limit: Duration, clock: &Clock) -> bool {
        let mut live = self.live.subscribe();
        tokio::select! {
            biased;
            ended = live.wait_for(|count| *count == 0) => ended.is_ok(),
            () = clock.sleep(limit) => false,
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

/// How long cut work may take to tell its peers, after the deadline: some packets, not a conversation.
pub const CUT_GRACE: Duration = Duration::from_millis(500);

impl Watch {
    /// Registers a piece of work, or refuses it because the plane is draining.
    #[must_use]
    pub fn enter(&self) -> Option<Live> {
        if self.phase() != Phase::Running {
            return None;
        }
        self.live.send_modify(|count| *count += 1);
        Some(Live { live: Arc::clone(&self.live) })
    }

    /// The current position. A switch whose owner is gone counts as cut.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.phase.has_changed().is_err() { Phase::Cut } else { *self.phase.borrow() }
    }

    /// How many pieces of work live.
    #[must_use]
    pub fn living(&self) -> usize {
        *self.live.borrow()
    }

    /// Waits until the switch is at `phase` or beyond; at once if its owner is gone. Cancel-safe.
    pub async fn reached(&mut self, phase: Phase) {
        // An error means that the owner is gone, which is the end of everything it watched over.
        let _ = self.phase.wait_for(|now| *now >= phase).await;
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.live.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_with_the_last_living_work() {
        let (clock, drain) = (Clock::system(), Drain::new());
        let live = drain.watch().enter().unwrap();
        let started = clock.now();
        let work = async {
            clock.sleep(Duration::from_secs(3)).await;
            drop(live);
        };
        let (cut, ()) = tokio::join!(drain.drain(DEADLINE, &clock), work);
        assert_eq!((cut, clock.now() - started), (0, Duration::from_secs(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_outlives_the_deadline_is_cut_and_counted() {
        let (clock, drain) = (Clock::system(), Drain::new());
        let mut watch = drain.watch();
        let live = watch.enter().unwrap();
        let started = clock.now();
        let work = async {
            watch.reached(Phase::Cut).await;
            drop(live);
        };
        let (cut, ()) = tokio::join!(drain.drain(DEADLINE, &clock), work);
        assert_eq!((cut, clock.now() - started), (1, DEADLINE));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_ignores_the_cut_does_not_hold_the_end_up() {
        let (clock, drain) = (Clock::system(), Drain::new());
        let _stuck = drain.watch().enter();
        let started = clock.now();
        assert_eq!(drain.drain(DEADLINE, &clock).await, 1);
        assert_eq!(clock.now() - started, DEADLINE + CUT_GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_new_is_taken_while_draining_or_after_the_owner_is_gone() {
        let (clock, drain) = (Clock::system(), Drain::new());
        let watch = drain.watch();
        drain.drain(DEADLINE, &clock).await;
        assert!(watch.enter().is_none());

        let drain = Drain::new();
        let mut watch = drain.watch();
        drop(drain);
        assert!(watch.enter().is_none());
        watch.reached(Phase::Cut).await;
    }
}
