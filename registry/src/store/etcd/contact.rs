//! When etcd was last heard of, and whether it is followed now: how old what is read may be.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Told by every answer of etcd, asked by every reader. All times are uptimes, so a step of the clock changes no age.
#[derive(Debug, Default)]
pub(super) struct Contact {
    heard_ms: AtomicU64,
    followed: AtomicBool,
}

impl Contact {
    /// etcd answered at `now`.
    pub(super) fn heard(&self, now: Duration) {
        self.heard_ms.fetch_max(millis(now), Ordering::Relaxed);
    }

    /// Whether changes of others are seen as they happen, from now on.
    pub(super) fn follow(&self, followed: bool) {
        self.followed.store(followed, Ordering::Relaxed);
    }

    /// How long before `now` etcd was last heard of, if it is not followed.
    pub(super) fn stale_for(&self, now: Duration) -> Option<Duration> {
        let heard = Duration::from_millis(self.heard_ms.load(Ordering::Relaxed));
        (!self.followed.load(Ordering::Relaxed)).then(|| now.saturating_sub(heard))
    }
}

fn millis(uptime: Duration) -> u64 {
    u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_counts_from_the_last_answer_and_only_while_nobody_follows() {
        let (contact, seconds) = (Contact::default(), Duration::from_secs);
        contact.follow(true);
        contact.heard(seconds(10));
        assert_eq!(contact.stale_for(seconds(60)), None, "an idle etcd is no silent one");
        contact.follow(false);
        assert_eq!(contact.stale_for(seconds(52)), Some(seconds(42)));
        contact.heard(seconds(9));
        assert_eq!(contact.stale_for(seconds(52)), Some(seconds(42)), "an answer that was slow to be told");
        contact.follow(true);
        assert_eq!(contact.stale_for(seconds(53)), None);
    }
}
