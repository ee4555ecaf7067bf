//! The only place where this crate reads a clock.
//!
//! [`now`] is tokio's clock, so that tests may pause it; [`wall`] is the wall clock, for certificates only.

use std::time::SystemTime;

use tokio::time::Instant;

/// The monotonic time, for timeouts, rates and idleness.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The wall clock, because `not_after` of a certificate is a wall time.
#[expect(clippy::disallowed_methods, reason = "the crate's one wall clock")]
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}
