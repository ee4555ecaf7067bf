//! What agents held when their stream ended, so that those who come back are told only what changed.
//!
//! Bounded; views share their objects, so one costs its map. An agent that was away longer, or comes to another server,
//! shows by its digest what it holds, or gets everything.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use weft_policy::name::NodeName;

use super::session::Held;

/// The most agents that are remembered.
const MAX_KEPT: usize = 4_096;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Kept {
    views: Mutex<Views>,
}

#[derive(Debug, Default)]
struct Views {
    by_node: BTreeMap<NodeName, (u64, Held)>,
    /// Grows with each that is put in; the smallest is the oldest.
    next: u64,
}

impl Kept {
    /// Remembers what `node` was left with; forgets the oldest when there are too many.
    pub(super) fn put(&self, node: NodeName, held: Held) {
        let mut views = self.lock();
        let age = views.next;
        views.next += 1;
        views.by_node.insert(node, (age, held));
        if views.by_node.len() > MAX_KEPT {
            let oldest = views.by_node.iter().min_by_key(|(_, (age, _))| *age).map(|(node, _)| node.clone());
            if let Some(oldest) = oldest {
                views.by_node.remove(&oldest);
            }
        }
    }

    /// What `node` was left with, which is then forgotten.
    pub(super) fn take(&self, node: &NodeName) -> Option<Held> {
        self.lock().by_node.remove(node).map(|(_, held)| held)
    }

    fn lock(&self) -> MutexGuard<'_, Views> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
