//! Waits for the deadlines, and takes back what nobody has confirmed by then.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tracing::{error, warn};

use super::Pending;
use crate::{
    core::Core,
    layout,
    management::unconfirmed,
    store::{Store, StoreError, Watch},
};

/// The wait after the store failed, or a change could not be taken back.
const RETRY: Duration = Duration::from_secs(60);
/// The wait after the store could not be read.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// Runs until the server drains. Whatever waited when the server was last up is seen at the start.
pub async fn run(core: Arc<Core>) {
    let mut keeper = Keeper { core, due: BTreeMap::new() };
    let draining = keeper.core.draining.clone();
    tokio::select! {
        () = draining.cancelled() => {}
        () = keeper.run() => {}
    }
}

struct Keeper {
    core: Arc<Core>,
    /// By which uptime each change is taken back. A clock that somebody sets back must not prolong a deadline, and one
    /// that is set forward is believed: late is worse than early for those who locked themselves out.
    due: BTreeMap<u64, Duration>,
}

impl Keeper {
    async fn run(&mut self) {
        loop {
            match self.follow().await {
                Ok(()) | Err(StoreError::Closed) => return,
                Err(failure) => warn!(error = %failure, "cannot read which changes wait; trying again"),
            }
            self.core.clock.sleep(READ_AGAIN).await;
        }
    }

    /// Follows the coming and going of waiting changes.
    async fn follow(&mut self) -> Result<(), StoreError> {
        let mut watch = watch(&*self.core.store).await?;
        loop {
            let waiting = super::all(&*self.core.store).await?;
            self.core.metrics.unconfirmed.set(i64::try_from(waiting.len()).unwrap_or(i64::MAX));
            let now = self.core.clock.uptime();
            self.due.retain(|change, _| waiting.iter().any(|pending| pending.change == *change));
            for pending in &waiting {
                let left = pending.deadline.duration_since(self.core.clock.now()).unwrap_or_default();
                self.due.entry(pending.change).or_insert_with(|| now + left.min(super::LONGEST));
            }
            let next = waiting.iter().min_by_key(|pending| self.due.get(&pending.change)).cloned();
            tokio::select! {
                changed = watch.next() => match changed {
                    Ok(_) => {}
                    // Too many came at once: all of them are read again.
                    Err(StoreError::Compacted { .. }) => watch = self::watch(&*self.core.store).await?,
                    Err(failure) => return Err(failure),
                },
                pending = self.wait(next) => self.take_back(&pending).await,
            }
        }
    }

    /// Waits until a change is due; for ever when none waits.
    async fn wait(&self, next: Option<Pending>) -> Pending {
        let Some(pending) = next else { return std::future::pending().await };
        let due = self.due.get(&pending.change).copied().unwrap_or_default();
        // One that could not be taken back waits for its next try alone: its deadline is over.
        let deadline = if pending.failed.is_some() { far() } else { pending.deadline };
        tokio::select! {
            () = self.core.clock.sleep_until(deadline) => {}
            () = self.core.clock.sleep_until_uptime(due) => {}
        }
        pending
    }

    async fn take_back(&mut self, pending: &Pending) {
        if let Err(refusal) = unconfirmed::expire(&self.core, pending).await {
            let why = refusal.faults()[0].what.clone();
            error!(
                target: "audit", change = pending.change, author = pending.author, why,
                "an unconfirmed change could not be taken back; it is tried again"
            );
            // Tried again after a while; in between whoever asks for the status is told.
            self.due.insert(pending.change, self.core.clock.uptime() + RETRY);
            unconfirmed::note_failure(&self.core, pending, why).await;
        }
    }
}

/// A time that never comes: clocks of records end with the year 9999.
fn far() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799)
}

async fn watch(store: &dyn Store) -> Result<Watch, StoreError> {
    let from = store.status().await?.revision.next();
    store.watch(layout::all_unconfirmed(), from).await
}
