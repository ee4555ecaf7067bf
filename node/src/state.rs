//! The snapshot in force: one pointer, swapped whole.
//!
//! A flow loads it once. Before the first snapshot there is none, and every call is refused (security.md 7.2, point 11).

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::sync::watch;
use weft_policy::snapshot::{Revision, Snapshot};

/// The slot of the snapshot in force. A clone is the same slot.
#[derive(Clone, Debug)]
pub struct State {
    snapshot: Arc<ArcSwapOption<Snapshot>>,
    changed: Arc<watch::Sender<u64>>,
}

impl Default for State {
    fn default() -> Self {
        Self { snapshot: Arc::default(), changed: Arc::new(watch::Sender::new(0)) }
    }
}

impl State {
    /// The snapshot in force; `None` before the first.
    #[must_use]
    pub fn load(&self) -> Option<Arc<Snapshot>> {
        self.snapshot.load_full()
    }

    /// The revision in force, 0 before the first.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.snapshot.load().as_ref().map_or(Revision(0), |snapshot| snapshot.revision())
    }

    /// Puts a snapshot in force and wakes whoever waits for a change.
    pub fn publish(&self, snapshot: Snapshot) {
        self.snapshot.store(Some(Arc::new(snapshot)));
        self.changed.send_modify(|count| *count += 1);
    }

    /// Notes each snapshot that comes into force after this call.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
