//! The only time source of the data plane.
//!
//! Owns two readings and the waits on them. [`Clock::now`] only grows; timeouts, loads and ejections are measured by
//! it. [`Clock::wall`] is what certificates carry; a person or NTP may move it. Everything else in the plane takes its
//! time from a [`Clock`].
//!
//! The growing reading is tokio's, so a test with `start_paused = true` holds it; the wall reading of a test stands on
//! the same hand and is stepped by a [`WallHand`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

/// The longest nap of [`Clock::sleep_until_wall`] before the wall clock is read again, so that a step of the clock or a
/// suspended machine delays a deadline by no more than this (decisions.md: 30 s).
pub const WALL_RECHECK: Duration = Duration::from_secs(30);

/// Reads and waits for time. A clone reads the same clock.
#[derive(Clone, Debug)]
pub struct Clock {
    wall: Wall,
}

#[derive(Clone, Debug)]
enum Wall {
    System,
    Test { base: SystemTime, started: tokio::time::Instant, step_ms: Arc<AtomicI64> },
}

impl Clock {
    /// Returns the clock of the machine.
    #[must_use]
    pub const fn system() -> Self {
        Self { wall: Wall::System }
    }

    /// Returns a clock whose wall time starts at `wall`, moves with tokio's time and is stepped by the hand.
    #[must_use]
    pub fn test(wall: SystemTime) -> (Self, WallHand) {
        let step_ms = Arc::new(AtomicI64::new(0));
        let started = tokio::time::Instant::now();
        let test = Wall::Test { base: wall, started, step_ms: Arc::clone(&step_ms) };
        (Self { wall: test }, WallHand { step_ms })
    }

    /// Returns the time that only grows.
    #[must_use]
    pub fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// Returns the wall time. It may go backwards between two calls.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the time source of the plane")]
    pub fn wall(&self) -> SystemTime {
        match &self.wall {
            Wall::System => SystemTime::now(),
            Wall::Test { base, started, step_ms } => {
                let step = step_ms.load(Ordering::Relaxed);
                let size = Duration::from_millis(step.unsigned_abs());
                let reached = *base + started.elapsed();
                if step < 0 { reached - size } else { reached + size }
            }
        }
    }

    /// Waits for `period`. Cancel-safe.
    pub async fn sleep(&self, period: Duration) {
        tokio::time::sleep(period).await;
    }

    /// Waits until [`Self::now`] is at least `deadline`. Cancel-safe.
    pub async fn sleep_until(&self, deadline: Instant) {
        tokio::time::sleep_until(deadline.into()).await;
    }

    /// Waits until the wall clock shows `deadline`, reading it again at least every [`WALL_RECHECK`]. Cancel-safe.
    pub async fn sleep_until_wall(&self, deadline: SystemTime) {
        while let Ok(left) = deadline.duration_since(self.wall()) {
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(WALL_RECHECK)).await;
        }
    }
}

/// Moves the wall clock of a test alone, as a person or NTP does.
#[derive(Clone, Debug)]
pub struct WallHand {
    step_ms: Arc<AtomicI64>,
}

impl WallHand {
    /// Steps the wall clock forwards.
    pub fn forward(&self, by: Duration) {
        self.step(i64::try_from(by.as_millis()).unwrap_or(i64::MAX));
    }

    /// Steps the wall clock back.
    pub fn back(&self, by: Duration) {
        self.step(-i64::try_from(by.as_millis()).unwrap_or(i64::MAX));
    }

    fn step(&self, by_ms: i64) {
        self.step_ms.fetch_add(by_ms, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const EPOCH: SystemTime = SystemTime::UNIX_EPOCH;

    #[tokio::test(start_paused = true)]
    async fn wall_time_of_a_test_moves_with_tokio() {
        let (clock, _hand) = Clock::test(EPOCH);
        let started = clock.now();
        clock.sleep(HOUR).await;
        assert_eq!((clock.wall(), clock.now() - started), (EPOCH + HOUR, HOUR));
    }

    #[tokio::test(start_paused = true)]
    async fn clk_02_a_step_of_the_wall_clock_does_not_move_now_and_is_seen_within_30_s() {
        let (clock, hand) = Clock::test(EPOCH + HOUR);
        let started = clock.now();
        hand.back(HOUR);
        assert_eq!((clock.wall(), clock.now()), (EPOCH, started));
        let step = async {
            clock.sleep(Duration::from_secs(45)).await;
            hand.forward(9 * HOUR);
        };
        tokio::join!(clock.sleep_until_wall(EPOCH + HOUR), step);
        assert_eq!(clock.now() - started, Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_deadline_in_the_past_returns_at_once() {
        let clock = Clock::system();
        let started = clock.now();
        clock.sleep_until_wall(EPOCH).await;
        assert_eq!(clock.now(), started);
    }
}
