//! The agent's places for connections of local programs: bounded, and nobody can take all of them from the others.
//!
//! Owns the counting. A caller whose user has no workload behind the port gets none of the places: it waits in a small
//! room of its own to be told why it is refused. Each user with a workload may go on with a few connections however
//! many others hold (WL-04).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Connections that a user may have even when all places are taken: a person at a terminal needs a handful.
const GUARANTEED: usize = 16;
/// Connections of strangers that are told why they are refused, at once; further ones are reset.
const STRANGERS: usize = 64;

/// All places of one agent. A clone is the same ones.
#[derive(Clone, Debug)]
pub(super) struct Slots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    by_uid: HashMap<u32, usize>,
    strangers: usize,
}

/// One of the agent's connections; bounded by the limit given to [`super::Interception::new`].
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    /// Whose; `None` for a stranger's.
    uid: Option<u32>,
}

impl Slots {
    pub(super) fn new(limit: usize) -> Self {
        Self(Arc::new(Inner { limit, held: Mutex::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Every change under the lock is whole before anything can panic.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection of `uid`, which has a workload; `None` is a stranger.
    pub(super) fn take(&self, uid: Option<u32>) -> Option<Slot> {
        let mut guard = self.lock();
        let held = &mut *guard;
        match uid {
            Some(uid) => {
                let limit = self.0.limit;
                let total = held.total;
                let own = held.by_uid.entry(uid).or_default();
                let has_room = total < limit || *own < GUARANTEED.min(limit);
                if has_room {
                    *own += 1;
                    held.total += 1;
                }
                has_room.then(|| Slot { slots: self.clone(), uid: Some(uid) })
            }
            None => {
                let has_room = held.strangers < STRANGERS;
                held.strangers += usize::from(has_room);
                has_room.then(|| Slot { slots: self.clone(), uid: None })
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = self.slots.lock();
        let Some(uid) = self.uid else {
            held.strangers -= 1;
            return;
        };
        held.total -= 1;
        if let Some(own) = held.by_uid.get_mut(&uid) {
            *own -= 1;
            if *own == 0 {
                held.by_uid.remove(&uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wl_04_one_user_cannot_take_the_places_of_another() {
        let slots = Slots::new(100);
        let greedy: Vec<_> = std::iter::from_fn(|| slots.take(Some(1_000))).collect();
        assert_eq!(greedy.len(), 100);
        let modest: Vec<_> = std::iter::from_fn(|| slots.take(Some(1_001))).collect();
        assert_eq!(modest.len(), GUARANTEED);
        drop(greedy);
        assert!(slots.take(Some(1_001)).is_some());
        drop(modest);
        assert_eq!(slots.lock().total, 0);
        assert!(slots.lock().by_uid.values().all(|count| *count == 0));
    }

    #[test]
    fn strangers_share_a_room_of_their_own() {
        let slots = Slots::new(1);
        let strangers: Vec<_> = std::iter::from_fn(|| slots.take(None)).collect();
        assert_eq!(strangers.len(), STRANGERS);
        let mine = slots.take(Some(1_000));
        assert!(mine.is_some() && slots.take(Some(1_000)).is_none());
        drop(strangers);
        assert!(slots.take(None).is_some());
    }
}
