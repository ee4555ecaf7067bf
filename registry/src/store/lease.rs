//! Leases: keys that vanish together when their holder falls silent.
//!
//! Owns the names and lengths of leases and, in [`Deadlines`], when each ends. Does not delete
//! anything: the backend commits the deletion of the keys of a lease as one revision.
//!
//! [`Deadlines`] performs no I/O and reads no clock. Times are uptimes of [`crate::clock::Clock`],
//! so a step of the wall clock neither ends nor prolongs a lease (ETCD-11).

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

/// Names one lease. Given by the store, never used twice.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LeaseId(pub NonZeroU64);

impl fmt::Display for LeaseId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

/// How long a lease lasts without a keep-alive: [`Ttl::MIN`] to [`Ttl::MAX`].
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ttl(Duration);

impl Ttl {
    /// etcd counts leases in whole seconds; less would be 0 there.
    pub const MIN: Duration = Duration::from_secs(1);
    /// Longest lifetime of a leaf certificate (7 days) and some days to spare: nothing that must
    /// outlive an identity may hang on a keep-alive.
    pub const MAX: Duration = Duration::from_secs(30 * 24 * 3600);

    /// Returns the length.
    pub fn as_duration(self) -> Duration {
        self.0
    }
}

/// A lease may not be shorter than [`Ttl::MIN`] or longer than [`Ttl::MAX`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a lease of {0:?} is not between 1 s and 30 days")]
pub struct InvalidTtl(pub Duration);

impl TryFrom<Duration> for Ttl {
    type Error = InvalidTtl;

    fn try_from(length: Duration) -> Result<Self, Self::Error> {
        if (Self::MIN..=Self::MAX).contains(&length) { Ok(Self(length)) } else { Err(InvalidTtl(length)) }
    }
}

/// When each lease ends, as an uptime.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    by_lease: HashMap<LeaseId, Duration>,
    by_time: BTreeSet<(Duration, LeaseId)>,
}

impl Deadlines {
    /// Starts or prolongs a lease: it ends at `now + ttl`.
    pub(crate) fn renew(&mut self, lease: LeaseId, ttl: Ttl, now: Duration) {
        self.remove(lease);
        let end = now.saturating_add(ttl.as_duration());
        self.by_lease.insert(lease, end);
        self.by_time.insert((end, lease));
    }

    /// Forgets a lease that is gone.
    pub(crate) fn remove(&mut self, lease: LeaseId) {
        if let Some(end) = self.by_lease.remove(&lease) {
            self.by_time.remove(&(end, lease));
        }
    }

    /// Returns the leases that have ended at `now`, the earliest first, at most `limit`.
    pub(crate) fn due(&self, now: Duration, limit: usize) -> Vec<LeaseId> {
        self.by_time.iter().take_while(|(end, _)| *end <= now).map(|(_, lease)| *lease).take(limit).collect()
    }

    /// Returns when the next lease ends.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.by_time.first().map(|(end, _)| *end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lasts_1_second_to_30_days() {
        let nanosecond = Duration::from_nanos(1);
        assert!(Ttl::try_from(Ttl::MIN - nanosecond).is_err());
        assert!(Ttl::try_from(Ttl::MIN).is_ok());
        assert!(Ttl::try_from(Ttl::MAX).is_ok());
        assert!(Ttl::try_from(Ttl::MAX + nanosecond).is_err());
    }

    #[test]
    fn a_keep_alive_moves_the_end_and_the_earliest_is_due_first() {
        let mut deadlines = Deadlines::default();
        deadlines.renew(lease(1), ttl(5), seconds(0));
        deadlines.renew(lease(2), ttl(3), seconds(0));
        assert_eq!(deadlines.next(), Some(seconds(3)));
        assert_eq!(deadlines.due(seconds(5), 9), [lease(2), lease(1)]);
        assert_eq!(deadlines.due(seconds(5), 1), [lease(2)]);

        deadlines.renew(lease(2), ttl(3), seconds(2));
        assert_eq!(deadlines.due(seconds(4), 9), []);
        deadlines.remove(lease(1));
        deadlines.remove(lease(1));
        assert_eq!(deadlines.next(), Some(seconds(5)));
        assert_eq!(deadlines.due(seconds(5), 9), [lease(2)]);
    }

    fn lease(number: u64) -> LeaseId {
        LeaseId(NonZeroU64::new(number).unwrap())
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn ttl(count: u64) -> Ttl {
        Ttl::try_from(seconds(count)).unwrap()
    }
}
