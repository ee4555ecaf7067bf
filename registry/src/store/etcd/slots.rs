//! How a writer learns what became of a transaction whose answer was lost (ETCD-10).
//!
//! Each transaction also writes one *slot*, a key that only this writer writes, on the condition that the slot is as the
//! writer left it. If no answer comes, the slot is written by a second transaction, the *fence*, on the same condition:
//! either the fence is applied, and then the first transaction never will be, or the slot says that it was.
//!
//! A writer has as many slots as it has transactions under way; further ones wait.

use std::sync::{Mutex, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::super::StoreError;

/// Transactions under way at once. Each costs etcd one small key; 64 of them share a fsync.
pub(super) const SLOTS: usize = 64;

/// One slot, as this writer left it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) number: usize,
    /// etcd's revision of its last change; 0 if it was never written.
    pub(super) changed: i64,
    /// Whether `changed` is certain: not while an answer is outstanding.
    pub(super) sure: bool,
}

/// The slots of this writer that are free.
pub(super) struct Slots {
    room: Semaphore,
    free: Mutex<Vec<Slot>>,
}

/// A slot in use, free again when dropped.
pub(super) struct Taken<'a> {
    slots: &'a Slots,
    slot: Option<Slot>,
    _room: SemaphorePermit<'a>,
}

impl Slots {
    /// `changed` holds the revision of each slot's last change.
    pub(super) fn new(changed: [i64; SLOTS]) -> Self {
        let slot = |(number, changed)| Slot { number, changed, sure: true };
        // The last one is taken first, so that a writer with little to do uses few.
        let free = changed.into_iter().enumerate().rev().map(slot).collect();
        Self { room: Semaphore::new(SLOTS), free: Mutex::new(free) }
    }

    /// Waits for a free slot. Cancel-safe.
    pub(super) async fn take(&self) -> Result<Taken<'_>, StoreError> {
        let room = self.room.acquire().await.map_err(|_| StoreError::Closed)?;
        let slot = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Ok(Taken { slots: self, slot: Some(slot.ok_or(StoreError::Closed)?), _room: room })
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.slots.free.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        }
    }
}

impl std::ops::Deref for Taken<'_> {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        self.slot.as_ref().expect("it is there until the drop")
    }
}

impl std::ops::DerefMut for Taken<'_> {
    fn deref_mut(&mut self) -> &mut Slot {
        self.slot.as_mut().expect("it is there until the drop")
    }
}
