//! Watch: changes as they are made, from a revision on.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::stream::{BoxStream, unfold};
use tokio::sync::watch;
use tonic::Status;
use weft_api::{
    convert::management as convert,
    pb::management::{WatchEvent, WatchRequest},
    record,
};
use weft_policy::code;

use super::{query::Scope, who};
use crate::{
    clock::Clock,
    core::Core,
    denied,
    layout::{self, Place},
    metrics::Counted,
    refusal::{Refusal, catalogued},
    roles::Caller,
    store::{Event, EventBatch, Revision, Watch},
    world::World,
};

/// The most watches that one caller has open (API-07; security.md 9.3, streams per client).
const MAX_PER_CALLER: usize = 64;
/// The most watches of the server.
const MAX_TOTAL: usize = 4_096;

/// Who has how many watches open.
#[derive(Debug, Default)]
pub(super) struct Places {
    taken: Mutex<BTreeMap<String, usize>>,
}

impl Places {
    fn take(self: &Arc<Self>, caller: &Caller) -> Result<Taken, Refusal> {
        let who = who(caller);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = taken.values().sum();
        let own = taken.get(&who).copied().unwrap_or(0);
        if own >= MAX_PER_CALLER || total >= MAX_TOTAL {
            let what = format!("{own} watches are open, at most {MAX_PER_CALLER} for each caller");
            return Err(Refusal::exhausted(code::TOO_MANY_STREAMS, what));
        }
        taken.insert(who.clone(), own + 1);
        Ok(Taken { places: Arc::clone(self), who })
    }
}

/// One place, until it is dropped.
struct Taken {
    places: Arc<Places>,
    who: String,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.who);
            }
        }
    }
}

pub(super) async fn watch(
    core: &Arc<Core>,
    places: &Arc<Places>,
    caller: Caller,
    request: WatchRequest,
) -> Result<BoxStream<'static, Result<WatchEvent, Status>>, Refusal> {
    let scope = Scope::read(&caller, &request.kind, &request.namespace, request.all_namespaces)?;
    let taken = places.take(&caller)?;
    let from = match request.from_revision {
        // What comes next.
        0 => core.store.status().await?.revision.next(),
        revision => Revision(revision),
    };
    let events = core.store.watch(layout::resources(scope.kind, scope.namespace()), from).await?;
    let watcher = Watcher {
        clock: core.clock.clone(),
        worlds: core.world.changes(),
        draining: core.draining.clone(),
        caller,
        scope,
        events,
        ready: VecDeque::new(),
        ended: false,
        _taken: taken,
        _counted: Counted::new(&core.metrics.watches),
    };
    Ok(Box::pin(unfold(watcher, |mut watcher| async move {
        let event = watcher.next().await?;
        Some((event, watcher))
    })))
}

struct Watcher {
    clock: Clock,
    worlds: watch::Receiver<Arc<World>>,
    draining: tokio_util::sync::CancellationToken,
    caller: Caller,
    scope: Scope,
    events: Watch,
    ready: VecDeque<WatchEvent>,
    ended: bool,
    _taken: Taken,
    _counted: Counted,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<WatchEvent, Status>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.ended {
                return None;
            }
            match self.batch().await {
                Ok(batch) => self.take(batch),
                Err(refusal) => {
                    self.ended = true;
                    return Some(Err(refusal.into()));
                }
            }
        }
    }

    async fn batch(&mut self) -> Result<EventBatch, Refusal> {
        let not_after = self.caller.peer.as_ref().map(|peer| peer.not_after);
        let expired = async {
            match not_after {
                Some(time) => self.clock.sleep_until(time).await,
                None => std::future::pending().await,
            }
        };
        // Whoever is denied meanwhile hears nothing more (ISS-02).
        let (caller, worlds, clock) = (&self.caller, &mut self.worlds, &self.clock);
        let refused = async {
            loop {
                let world = Arc::clone(&worlds.borrow_and_update());
                if let Err(refusal) = denied::check_caller(&world, caller, clock.now()) {
                    return refusal;
                }
                if worlds.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            biased;
            refusal = refused => Err(refusal),
            batch = self.events.next() => Ok(batch?),
            () = self.draining.cancelled() => {
                let fault = catalogued(code::STORE_CLOSED, "the server ends");
                Err(Refusal::new(tonic::Code::Unavailable, fault))
            }
            () = expired => {
                let fault = catalogued(code::UNAUTHENTICATED, "the caller's certificate has expired");
                Err(Refusal::new(tonic::Code::Unauthenticated, fault))
            }
        }
    }

    fn take(&mut self, batch: EventBatch) {
        for event in batch.events {
            let Place::Resource(key) = layout::place(event.key()) else { continue };
            if !self.scope.holds(&self.caller, &key) {
                continue;
            }
            let (kind, document) = match event {
                // One that cannot be read is told by its name alone.
                Event::Put(entry) => {
                    let read = record::decode_resource(&entry.value, entry.mod_revision.0).ok();
                    ("put", read.map(|resource| convert::document(&resource)))
                }
                Event::Delete(_) => ("delete", None),
            };
            let revision = batch.revision.0;
            let r#ref = Some(convert::reference(&key));
            self.ready.push_back(WatchEvent { r#type: kind.to_owned(), revision, r#ref, document });
        }
    }
}
