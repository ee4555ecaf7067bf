//! Keeps the world current: store events and the coming and going of agents in, one [`World`] after another out.
//!
//! One task feeds all readers. Changes that come together are taken together, and while many come the world is made anew
//! at most every 10 ms, and every 10 us for each agent more, so that a thousand registrations are not a thousand
//! comparisons for each agent.

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::sync::watch;
use tracing::{error, warn};
use weft_identity::spiffe::TrustDomain;

use crate::{
    catalog::Catalog,
    clock::Clock,
    layout,
    liveness::{self, Standings},
    metrics::RegistryMetrics,
    presence::{Agents, Link, Presence},
    seal::{Ledger, SealedStore},
    store::{EventBatch, Mirror, Op, Revision, StoreError},
    world::World,
};

/// The shortest time between two worlds: well below what a person or a cut of flows notices (1 s, decisions.md).
const PACE: Duration = Duration::from_millis(10);
/// What each connected agent adds to it: about what it takes to find out whether a world concerns it, so that this is never
/// more than half of the work of one processor.
const PACE_OF_AGENT: Duration = Duration::from_micros(10);
/// The most that it is, however many agents there are: a fifth of the second in which a change is to be in force.
const LONGEST_PACE: Duration = Duration::from_millis(200);
/// The most commits that are taken together.
const MAX_TOGETHER: usize = 1_024;
/// The wait after the store failed to read.
const RETRY: Duration = Duration::from_secs(1);
/// How long a writer waits for the world to show its change; the world is one store event behind, so this is generous.
const CATCH_UP: Duration = Duration::from_secs(5);

/// Where every reader gets the newest world. A clone is the same.
#[derive(Clone, Debug)]
pub struct WorldHandle {
    newest: watch::Receiver<Arc<World>>,
}

impl WorldHandle {
    /// The newest world.
    #[must_use]
    pub fn current(&self) -> Arc<World> {
        Arc::clone(&self.newest.borrow())
    }

    /// What is configured in the newest world.
    #[must_use]
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(self.newest.borrow().catalog())
    }

    /// Tells of every new world.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<World>> {
        self.newest.clone()
    }

    /// Waits until the world shows the commit `revision` of `ops`: who writes reads their own write next. A commit with
    /// nothing under `mesh/` is never shown, so it is not waited for. Cancel-safe.
    pub async fn wait_for_commit(&self, revision: Revision, ops: &[Op]) {
        let mesh = layout::mesh();
        if ops.iter().any(|op| op.key().as_str().starts_with(mesh.as_str())) {
            self.wait_for(revision).await;
        }
    }

    /// Waits until the world shows the commit `revision`, which must have changed something under `mesh/`: who writes
    /// reads their own write next. Gives up after 5 s, or when the keeper has ended. Cancel-safe.
    pub async fn wait_for(&self, revision: Revision) {
        let mut newest = self.newest.clone();
        let shown = newest.wait_for(|world| world.catalog().revision() >= revision);
        if tokio::time::timeout(CATCH_UP, shown).await.is_err() {
            warn!(%revision, "the world does not show a commit yet");
        }
    }
}

/// Reads the store and makes the first world. The returned future keeps it current until the store is closed; it must
/// run for as long as anybody reads.
///
/// # Errors
///
/// [`StoreError`] when the store cannot be read.
pub async fn start(
    store: Arc<SealedStore>,
    clock: Clock,
    presence: &Presence,
    trust_domain: TrustDomain,
    metrics: Arc<RegistryMetrics>,
) -> Result<(WorldHandle, impl Future<Output = Result<(), StoreError>> + Send + 'static), StoreError> {
    let mut catalog = Catalog::new(trust_domain);
    // What was seen when the server started: from here on the ledger sees every manifest itself, in order.
    let mut ledger = Ledger::new(store.seen().all());
    let mut mirror = Mirror::new(store, layout::mesh());
    let batch = mirror.next().await?;
    take(&mut catalog, &mut ledger, batch, &metrics);
    let agents = presence.watch();
    let serving = clock.uptime();
    let world = World::derive(Arc::new(catalog.clone()), Standings::default(), None);
    let sender = watch::Sender::new(Arc::new(world));
    let handle = WorldHandle { newest: sender.subscribe() };
    let keeper = Keeper { mirror, catalog, ledger, agents, clock, serving, sender, metrics };
    Ok((handle, keeper.run()))
}

struct Keeper {
    mirror: Mirror,
    catalog: Catalog,
    ledger: Ledger,
    agents: watch::Receiver<Agents>,
    clock: Clock,
    /// The uptime at which this server began to serve.
    serving: Duration,
    sender: watch::Sender<Arc<World>>,
    metrics: Arc<RegistryMetrics>,
}

impl Keeper {
    /// Runs until the store is closed (`Ok`) or turns out to be older than what was seen.
    async fn run(mut self) -> Result<(), StoreError> {
        loop {
            let next = self.publish();
            tokio::time::sleep(self.pace()).await;
            match self.change(next).await {
                Ok(()) => {}
                Err(StoreError::Closed) => return Ok(()),
                Err(failure @ StoreError::Ahead { .. }) => {
                    error!(error = %failure, "the store lies behind what agents were told");
                    return Err(failure);
                }
                Err(failure) => {
                    warn!(error = %failure, "cannot read the store, trying again");
                    self.clock.sleep(RETRY).await;
                }
            }
        }
    }

    /// The shortest time until the next world.
    fn pace(&self) -> Duration {
        let connected =
            self.agents.borrow().values().filter(|agent| matches!(agent.link, Link::Up(_))).count();
        pace_with(connected)
    }

    /// Waits until something changes, and takes in what came with it.
    async fn change(&mut self, next: Option<Duration>) -> Result<(), StoreError> {
        let clock = self.clock.clone();
        let due = async {
            match next {
                Some(time) => clock.sleep_until_uptime(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            batch = self.mirror.next() => take(&mut self.catalog, &mut self.ledger, batch?, &self.metrics),
            changed = self.agents.changed() => {
                if changed.is_err() {
                    return Err(StoreError::Closed);
                }
            }
            () = due => {}
        }
        for _ in 0..MAX_TOGETHER {
            match self.mirror.next().now_or_never() {
                Some(batch) => take(&mut self.catalog, &mut self.ledger, batch?, &self.metrics),
                None => break,
            }
        }
        Ok(())
    }

    /// Makes the world anew if anything in it differs. Says when time alone changes it next.
    fn publish(&mut self) -> Option<Duration> {
        let agents = self.agents.borrow_and_update().clone();
        let (standings, next) = liveness::judge(&self.catalog, &agents, self.serving, self.clock.uptime());
        let before = Arc::clone(&self.sender.borrow());
        let same = before.catalog().revision() == self.catalog.revision() && *before.standings() == standings;
        if !same {
            let world = World::derive(Arc::new(self.catalog.clone()), standings, Some(&before));
            self.metrics.revision.set(i64::try_from(self.catalog.revision().0).unwrap_or(i64::MAX));
            self.metrics.denied.set(i64::try_from(self.catalog.denied().len()).unwrap_or(i64::MAX));
            self.sender.send_replace(Arc::new(world));
        }
        next
    }
}

fn pace_with(agents: usize) -> Duration {
    let agents = u32::try_from(agents).unwrap_or(u32::MAX);
    PACE.saturating_add(PACE_OF_AGENT.saturating_mul(agents)).min(LONGEST_PACE)
}

/// Takes a commit in and cries for each record that cannot be read, and each group that does not add up.
fn take(catalog: &mut Catalog, ledger: &mut Ledger, batch: EventBatch, metrics: &RegistryMetrics) {
    let revision = batch.revision;
    for (group, why) in ledger.apply(&batch) {
        metrics.refused_groups.inc();
        error!(%group, why, %revision, "alarm: records of the store are not as the server wrote them; they are closed");
    }
    metrics.closed_groups.set(i64::try_from(ledger.broken().len()).unwrap_or(i64::MAX));
    catalog.judge(ledger.broken());
    for (place, why) in catalog.apply(batch) {
        metrics.unreadable_records.inc();
        error!(?place, why, %revision, "a record of the store cannot be read; it is set aside");
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use weft_policy::model::{EndpointState, Resource};

    use super::*;
    use crate::{liveness::GRACE, samples, store::Expected};

    #[test]
    fn worlds_follow_more_slowly_when_many_are_to_be_told_and_never_too_slowly() {
        assert_eq!(pace_with(0), PACE);
        assert_eq!(pace_with(1_000), PACE * 2);
        assert_eq!(pace_with(1_000_000), LONGEST_PACE);
    }

    #[tokio::test]
    async fn a_commit_is_in_the_world_when_its_writer_reads() {
        let rig = samples::Rig::start().await;
        for number in 0..20 {
            let service = Resource::Service(samples::service(&format!("s{number}"), "shop"));
            let revision = rig.put(&service).await;
            rig.core.world.wait_for(revision).await;
            let found = rig.core.world.catalog().get(&service.key()).unwrap();
            assert_eq!(found.metadata().revision, revision.0);
        }
    }

    #[tokio::test]
    async fn a_commit_that_the_world_never_shows_is_not_waited_for() {
        let rig = samples::Rig::start().await;
        let op = |key| Op::Put { key, value: "{}".into(), lease: None };
        let beside = vec![op(layout::token(&[7; 32]))];
        let revision = rig.core.store.txn(Vec::new(), beside.clone()).await.unwrap();
        let waited = rig.core.world.wait_for_commit(revision, &beside);
        tokio::time::timeout(CATCH_UP / 2, waited).await.expect("a token is no part of the world");

        let service = Resource::Service(samples::service("charge", "shop"));
        let ops = vec![op(layout::token(&[8; 32])), op(layout::resource(&service.key()))];
        let revision = rig.core.store.txn(Vec::new(), ops.clone()).await.unwrap();
        rig.core.world.wait_for_commit(revision, &ops).await;
        assert!(rig.core.world.catalog().revision() >= revision);
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_read_is_set_aside_and_the_rest_is_in_force() {
        let rig = samples::Rig::start().await;
        let service = Resource::Service(samples::service("charge", "shop"));
        let key = layout::resource(&service.key());
        rig.core.store.put(key, "{}".into(), Expected::Absent, None).await.unwrap();
        let revision = rig.put(&Resource::Service(samples::service("order", "shop"))).await;
        rig.core.world.wait_for(revision).await;
        let catalog = rig.core.world.catalog();
        assert_eq!(catalog.services().len(), 1);
        assert!(catalog.unreadable().contains_key(&service.key()));
        assert_eq!(rig.core.metrics.unreadable_records.get(), 1);
    }

    #[tokio::test]
    async fn time_alone_makes_a_silent_endpoint_unconfirmed() {
        let (clock, hands) = Clock::test(SystemTime::UNIX_EPOCH);
        let rig = samples::Rig::with_clock(clock).await;
        rig.put_shop().await;
        let charge = samples::service_name("charge", "shop");
        let mut changes = rig.core.world.changes();
        let shows = |world: &Arc<World>, state| {
            world.endpoints(&charge).first().is_some_and(|endpoint| endpoint.state == state)
        };
        changes.wait_for(|world| shows(world, EndpointState::Confirmed)).await.unwrap();
        hands.advance(GRACE);
        changes.wait_for(|world| shows(world, EndpointState::Unconfirmed)).await.unwrap();
    }
}
