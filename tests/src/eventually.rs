//! Waiting for a condition, and the only clock of the harness.
//!
//! A scenario never sleeps for a guessed time: it says what must become true and by when.

use std::time::{Duration, Instant};

/// Between two looks at a condition: short against every limit a scenario names.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Measures time that has passed.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts to measure.
    #[expect(
        clippy::disallowed_methods,
        reason = "scenarios run real programs in real time; this is their one clock"
    )]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Waits until `look` gives a value, and returns it.
///
/// `look` says in its error what it saw instead, for the message.
///
/// # Panics
///
/// If there is none `within` that time: the message names `what` and the last thing that was seen.
#[track_caller]
pub fn eventually<T>(what: &str, within: Duration, look: impl FnMut() -> Result<T, String>) -> T {
    match looked_for(within, look) {
        Ok(value) => value,
        Err(seen) => panic!("not within {within:?}: {what}; last seen: {seen}"),
    }
}

/// The same for a scenario that goes on either way: what was seen last, if `look` gives no value `within` that time.
///
/// # Errors
///
/// The last error of `look`.
pub fn looked_for<T, E>(within: Duration, mut look: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let watch = Stopwatch::start();
    loop {
        match look() {
            Err(_) if watch.elapsed() <= within => std::thread::sleep(LOOK_EVERY),
            outcome => return outcome,
        }
    }
}

/// Checks that `look` stays free of errors for `during`.
///
/// # Panics
///
/// At its first error.
#[track_caller]
pub fn throughout(what: &str, during: Duration, mut look: impl FnMut() -> Result<(), String>) {
    let watch = Stopwatch::start();
    while watch.elapsed() < during {
        if let Err(seen) = look() {
            panic!("after {:?} no longer true: {what}; seen: {seen}", watch.elapsed());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_ends_the_wait() {
        let mut looks = 0;
        let third = eventually("a third look", Duration::from_secs(5), || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(format!("look {looks}")) }
        });

        assert_eq!(third, 3);
    }

    #[test]
    #[should_panic(expected = "not within 1ms: rain; last seen: sun")]
    fn the_message_says_what_was_seen_instead() {
        eventually::<()>("rain", Duration::from_millis(1), || Err("sun".to_owned()));
    }

    #[test]
    #[should_panic(expected = "no longer true: calm; seen: storm")]
    fn a_condition_that_breaks_is_reported() {
        throughout("calm", Duration::from_secs(5), || Err("storm".to_owned()));
    }
}
