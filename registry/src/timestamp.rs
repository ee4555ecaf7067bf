//! Times as people and records write them.

use std::time::{Duration, SystemTime};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// RFC 3339 in UTC, in whole seconds; empty for a time that it cannot write (after the year 9999).
#[must_use]
pub fn rfc3339(at: SystemTime) -> String {
    from_unix_seconds(unix_seconds(at))
        .and_then(|at| OffsetDateTime::from(at).format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// Whole seconds since 1970; 0 before.
#[must_use]
pub fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The time that many seconds after 1970; `None` beyond the year 9999, which RFC 3339 and X.509 cannot write.
#[must_use]
pub fn from_unix_seconds(seconds: u64) -> Option<SystemTime> {
    const YEAR_10000: u64 = 253_402_300_800;
    (seconds < YEAR_10000).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_whole_seconds_of_utc() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_500);
        assert_eq!(rfc3339(at), "2027-01-15T08:00:00Z");
        assert_eq!(from_unix_seconds(unix_seconds(at)), Some(at - Duration::from_millis(500)));
        assert_eq!(from_unix_seconds(u64::MAX), None);
    }
}
