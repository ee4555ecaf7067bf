//! Wakes the writer when the next lease ends.
//!
//! Owns nothing but the wait: which leases have ended is the writer's own reading of the clock, so
//! a ring too early or too often does no harm.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::writer::Request;
use crate::clock::Clock;

/// Rings until the store is dropped. `next_end` holds the uptime at which the writer has work.
///
/// A full queue needs no ring: the writer looks at the leases before each group of requests. The
/// weak sender keeps the queue closable. Cancel-safe.
pub(super) async fn ring(
    clock: Clock,
    mut next_end: watch::Receiver<Option<Duration>>,
    requests: mpsc::WeakSender<Request>,
) {
    loop {
        let wait = *next_end.borrow_and_update();
        let ended = async {
            match wait {
                Some(end) => clock.sleep_until_uptime(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ended => {
                let Some(requests) = requests.upgrade() else { return };
                let _ = requests.try_send(Request::LeaseEnded);
                drop(requests);
                if next_end.changed().await.is_err() {
                    return;
                }
            }
            changed = next_end.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}
