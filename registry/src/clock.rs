//! The only time source of the control plane.
//!
//! Owns two readings and the waits on them. *Wall time* ([`Clock::now`]) is what certificates and
//! records carry; a person or NTP may move it. *Uptime* ([`Clock::uptime`]) only grows, whatever
//! happens to the wall clock, so leases and retries are measured by it. Everything else in the
//! plane takes its time from a [`Clock`], and a test holds the hands of it ([`TestClock`]).

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

/// The longest nap of [`Clock::sleep_until`] before the wall clock is read again, so that a step
/// of the clock or a suspended machine delays a deadline by no more than this (decisions.md: 30 s).
const RECHECK: Duration = Duration::from_secs(30);

/// Reads and waits for time. A clone reads the same clock.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    /// The instant at which uptime was zero.
    started: Instant,
}

#[derive(Clone, Debug)]
enum Source {
    System,
    Test(Arc<watch::Sender<Reading>>),
}

/// What both hands of a clock show.
#[derive(Clone, Copy, Debug)]
struct Reading {
    wall: SystemTime,
    uptime: Duration,
}

impl Clock {
    /// Returns the clock of the machine, with an uptime that starts now.
    #[expect(clippy::disallowed_methods, reason = "this is the time source of the plane")]
    pub fn system() -> Self {
        Self { source: Source::System, started: Instant::now() }
    }

    /// Returns a clock that stands at `wall` until its [`TestClock`] moves it.
    #[expect(
        clippy::disallowed_methods,
        reason = "an origin for instants; nothing is measured from it but uptime"
    )]
    pub fn test(wall: SystemTime) -> (Self, TestClock) {
        let hands = Arc::new(watch::Sender::new(Reading { wall, uptime: Duration::ZERO }));
        let source = Source::Test(Arc::clone(&hands));
        (Self { source, started: Instant::now() }, TestClock { hands })
    }

    /// Returns the wall time. It may go backwards between two calls.
    #[expect(clippy::disallowed_methods, reason = "this is the time source of the plane")]
    pub fn now(&self) -> SystemTime {
        match &self.source {
            Source::System => SystemTime::now(),
            Source::Test(hands) => hands.borrow().wall,
        }
    }

    /// Returns the time since this clock was made. It never goes backwards.
    pub fn uptime(&self) -> Duration {
        match &self.source {
            Source::System => self.started.elapsed(),
            Source::Test(hands) => hands.borrow().uptime,
        }
    }

    /// Returns uptime as an instant, for deciders that take one. Only instants of one clock are comparable.
    pub fn instant(&self) -> Instant {
        self.started + self.uptime()
    }

    /// Waits until the wall clock shows `deadline`; returns at once if it does already.
    ///
    /// The wall clock is read again at least every 30 s. Cancel-safe.
    pub async fn sleep_until(&self, deadline: SystemTime) {
        match &self.source {
            Source::System => {
                while let Ok(left) = deadline.duration_since(self.now()) {
                    if left.is_zero() {
                        return;
                    }
                    tokio::time::sleep(left.min(RECHECK)).await;
                }
            }
            Source::Test(hands) => wait(hands, |reading| reading.wall >= deadline).await,
        }
    }

    /// Waits until [`Self::uptime`] is at least `deadline`. Cancel-safe.
    pub async fn sleep_until_uptime(&self, deadline: Duration) {
        match &self.source {
            Source::System => {
                while let Some(left) = deadline.checked_sub(self.uptime()).filter(|left| !left.is_zero()) {
                    tokio::time::sleep(left).await;
                }
            }
            Source::Test(hands) => wait(hands, |reading| reading.uptime >= deadline).await,
        }
    }

    /// Waits for `period`, measured by [`Self::uptime`]. Cancel-safe.
    pub async fn sleep(&self, period: Duration) {
        self.sleep_until_uptime(self.uptime().saturating_add(period)).await;
    }
}

/// Waits for a test clock to show what `reached` asks for.
async fn wait(hands: &watch::Sender<Reading>, reached: impl Fn(&Reading) -> bool) {
    let mut reading = hands.subscribe();
    // The sender is borrowed for the whole wait, so the only error (it is gone) cannot happen.
    let _ = reading.wait_for(|reading| reached(reading)).await;
}

/// The hands of a test clock. A clone moves the same clock.
#[derive(Clone, Debug)]
pub struct TestClock {
    hands: Arc<watch::Sender<Reading>>,
}

impl TestClock {
    /// Lets `period` pass: wall time and uptime move together, and the sleepers that are due wake.
    pub fn advance(&self, period: Duration) {
        self.hands.send_modify(|reading| {
            reading.wall += period;
            reading.uptime += period;
        });
    }

    /// Moves the wall clock alone, as a person or NTP does; uptime stays.
    pub fn set_wall(&self, wall: SystemTime) {
        self.hands.send_modify(|reading| reading.wall = wall);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_sleeper_wakes_when_the_test_clock_reaches_its_deadline() {
        let (clock, hands) = Clock::test(SystemTime::UNIX_EPOCH);
        let mut sleeper = Box::pin(clock.sleep_until(SystemTime::UNIX_EPOCH + HOUR));

        assert!(is_pending(&mut sleeper).await);
        hands.advance(HOUR - Duration::from_nanos(1));
        assert!(is_pending(&mut sleeper).await);
        hands.advance(Duration::from_nanos(1));
        sleeper.await;
    }

    #[tokio::test]
    async fn clk_02_a_step_of_the_wall_clock_does_not_move_uptime() {
        let (clock, hands) = Clock::test(SystemTime::UNIX_EPOCH + HOUR);
        let mut sleeper = Box::pin(clock.sleep(HOUR));
        hands.set_wall(SystemTime::UNIX_EPOCH);
        assert_eq!((clock.now(), clock.uptime()), (SystemTime::UNIX_EPOCH, Duration::ZERO));
        assert!(is_pending(&mut sleeper).await);
        hands.set_wall(SystemTime::UNIX_EPOCH + 9 * HOUR);
        assert!(is_pending(&mut sleeper).await);
        hands.advance(HOUR);
        sleeper.await;
    }

    #[tokio::test]
    async fn a_deadline_in_the_past_returns_at_once() {
        let clock = Clock::system();
        clock.sleep_until(SystemTime::UNIX_EPOCH).await;
        clock.sleep_until_uptime(Duration::ZERO).await;
        assert!(clock.now() > SystemTime::UNIX_EPOCH);
    }

    async fn is_pending(sleeper: &mut std::pin::Pin<Box<impl Future<Output = ()>>>) -> bool {
        poll_fn(|context| Poll::Ready(sleeper.as_mut().poll(context).is_pending())).await
    }
}
