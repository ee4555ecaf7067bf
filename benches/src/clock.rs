//! The one place of the benches that reads the clock.
//!
//! Owns the reading and nothing else. A bench measures real time on purpose, so there is no second, simulated
//! source behind it.

use std::time::Instant;

/// Returns the monotonic time now.
#[expect(clippy::disallowed_methods, reason = "this is the clock module: a bench measures real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
