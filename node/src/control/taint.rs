//! Leaves tunnels whose other end proved itself under a tainted root (security.md 3.3).
//!
//! The other end renews its SVID within a minute; a tunnel keeps the chain of its handshake for as long as it lives, and
//! would be closed with its flows when the root is revoked. So tunnels are replaced, make-before-break, once everybody had
//! the time to renew, and looked at again while the root is in the bundle.

use std::{sync::Arc, time::Duration};

use tracing::info;

use super::identity::TAINT_SPLAY;
use crate::shared::Shared;

/// After the longest draw of a renewal, and the request itself.
const RENEWED: Duration = TAINT_SPLAY.checked_add(Duration::from_secs(5)).expect("it is about a minute");
/// How often tunnels to peers that had not renewed are looked at again.
const AGAIN: Duration = Duration::from_secs(30);
/// How long flows may go on in the old tunnel: they end with the peer's certificate, or with its root.
const DRAIN: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Runs for the life of the agent. Cancel by dropping.
pub(crate) async fn leave_tainted(shared: Arc<Shared>) {
    let mut news = shared.bundle_news.subscribe();
    loop {
        if !has_tainted(&shared) {
            // The sender is in `shared`.
            if news.changed().await.is_err() {
                return;
            }
            continue;
        }
        let mut wait = RENEWED;
        while has_tainted(&shared) {
            tokio::select! {
                () = shared.clock.sleep(wait) => replace(&shared),
                Ok(()) = news.changed() => {}
            }
            wait = AGAIN;
        }
    }
}

fn has_tainted(shared: &Shared) -> bool {
    shared.bundles.load().get(&shared.trust_domain).is_some_and(|bundle| !bundle.tainted().is_empty())
}

/// Replaces every tunnel that an end has proven under a tainted root. One that was made in the meantime is left for the
/// next look: its peer has not renewed yet.
fn replace(shared: &Shared) {
    let bundles = shared.bundles.load();
    let Some(bundle) = bundles.get(&shared.trust_domain) else { return };
    let until = shared.clock.now() + DRAIN;
    for plane in shared.planes() {
        plane.pool.replace_where(until.into(), |key, tunnel| {
            let leaves = tunnel.age() > AGAIN && bundle.taints(&tunnel.peer_chain());
            if leaves {
                info!(destination = %key.destination, "a tunnel under a tainted root is replaced");
            }
            leaves
        });
    }
}
