//! What one peer may make this end do in a second, on all its tunnels together.
//!
//! Windows and limits bound what a peer *holds*. This bounds what it *churns*: flows opened and ended at
//! once, resets, control frames. A peer beyond a rate loses the tunnel on which it went over, with
//! [`CloseCode::ExcessiveLoad`](crate::CloseCode::ExcessiveLoad). The rates lie far above what an agent
//! does in good order (see [`LoadSettings`]), so that no honest peer is cut for being busy.
//!
//! Flows are counted as they arrive; resets and control frames by quinn's own counters once a second,
//! because frames do not pass through this crate.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::bucket::TokenBucket;
use crate::transport::LoadSettings;

/// Something a peer made this end do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Work {
    /// It opened a flow.
    Flow,
    /// It opened a flow and never said what for.
    Fruitless,
    /// It sent that many RESET_STREAM and STOP_SENDING frames.
    Resets(u64),
    /// It sent that many frames of the connection itself, such as PING and PATH_CHALLENGE.
    Control(u64),
}

/// A rate that a peer has exceeded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Excess {
    Flows,
    Resets,
    Control,
}

impl Excess {
    /// The label in metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Flows => "flows",
            Self::Resets => "resets",
            Self::Control => "control_frames",
        }
    }

    /// What the peer is told.
    pub(crate) fn detail(self) -> &'static str {
        match self {
            Self::Flows => "opens flows faster than it may",
            Self::Resets => "resets flows faster than it may",
            Self::Control => "sends control frames faster than it may",
        }
    }
}

/// The account of one peer, shared by its tunnels.
#[derive(Debug)]
pub(crate) struct PeerLoad {
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    flows: TokenBucket,
    resets: TokenBucket,
    control: TokenBucket,
}

impl PeerLoad {
    pub(crate) fn new(settings: &LoadSettings, now: Instant) -> Self {
        let resets = TokenBucket::with_burst(settings.resets_per_second, settings.resets_at_once, now);
        Self {
            buckets: Mutex::new(Buckets {
                flows: TokenBucket::full(settings.flows_per_second, now),
                resets,
                control: TokenBucket::full(settings.control_frames_per_second, now),
            }),
        }
    }

    /// Writes `work` on the account.
    ///
    /// # Errors
    ///
    /// The rate that is exceeded by it.
    pub(crate) fn take(&self, work: Work, now: Instant) -> Result<(), Excess> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let (may, excess) = match work {
            Work::Flow => (buckets.flows.take(now), Excess::Flows),
            Work::Fruitless => (buckets.resets.take(now), Excess::Resets),
            Work::Resets(count) => (buckets.resets.take_many(count, now), Excess::Resets),
            Work::Control(count) => (buckets.control.take_many(count, now), Excess::Control),
        };
        if may { Ok(()) } else { Err(excess) }
    }

    /// Whether the peer has been quiet for so long that its account need not be kept.
    pub(crate) fn is_settled(&self, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.flows.is_full(now) && buckets.resets.is_full(now) && buckets.control.is_full(now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn quic_09_flows_pass_up_to_the_rate_and_not_one_more() {
        let now = start();
        let load = PeerLoad::new(&LoadSettings { flows_per_second: 100, ..Default::default() }, now);
        for n in 1..=100 {
            assert_eq!(load.take(Work::Flow, now), Ok(()), "flow {n}");
        }
        assert_eq!(load.take(Work::Flow, now), Err(Excess::Flows));
        assert_eq!(load.take(Work::Flow, now + Duration::from_millis(10)), Ok(()));
    }

    #[test]
    fn quic_10_resets_pass_up_to_a_burst_then_up_to_their_rate() {
        let now = start();
        let settings = LoadSettings { resets_per_second: 10, resets_at_once: 50, ..Default::default() };
        let load = PeerLoad::new(&settings, now);
        assert_eq!(load.take(Work::Resets(49), now), Ok(()));
        assert_eq!(load.take(Work::Fruitless, now), Ok(()), "the fiftieth");
        assert_eq!(load.take(Work::Fruitless, now), Err(Excess::Resets));
        let later = now + Duration::from_secs(1);
        assert_eq!(load.take(Work::Resets(11), later), Err(Excess::Resets));
        assert_eq!(load.take(Work::Resets(10), later), Ok(()));
    }

    #[test]
    fn quic_06_control_frames_have_an_account_of_their_own() {
        let now = start();
        let settings = LoadSettings { control_frames_per_second: 1000, ..Default::default() };
        let load = PeerLoad::new(&settings, now);
        assert_eq!(load.take(Work::Control(1000), now), Ok(()));
        assert_eq!(load.take(Work::Control(1), now), Err(Excess::Control));
        assert_eq!(load.take(Work::Flow, now), Ok(()), "flows are counted apart");
        assert!(!load.is_settled(now));
        assert!(load.is_settled(now + Duration::from_secs(1)));
    }

    #[test]
    fn what_an_agent_does_in_good_order_fits_the_defaults() {
        let (now, settings) = (start(), LoadSettings::default());
        let load = PeerLoad::new(&settings, now);
        // A program with as many connections as a tunnel carries dies: each flow is reset and stopped.
        assert_eq!(load.take(Work::Resets(2 * 4096), now), Ok(()));
        // As many tunnels as a peer may hold come up: a few dozen frames each.
        assert_eq!(load.take(Work::Control(64 * 40), now), Ok(()));
    }

    fn start() -> Instant {
        crate::clock::now().into_std()
    }
}
