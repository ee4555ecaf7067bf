//! Says that this server is there, and which agents are connected to it, for as long as it is so.
//!
//! One lease carries all of it. When it is lost (etcd was away longer than it lasts) everything is written again under a
//! new one. An agent that went to another server is that server's to tell: its entry is deleted only as it was written here.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tracing::{debug, warn};
use weft_policy::name::NodeName;

use super::{LEASE, LiveServer, Seat};
use crate::{
    core::Core,
    layout,
    presence::{Agents, Link},
    store::{Expected, LeaseId, MAX_TXN_OPS, Op, Revision, StoreError, Ttl},
};

/// How often the lease is prolonged: two tries may fail.
const KEEP_EVERY: Duration = Duration::from_secs(4);
/// The wait after the store failed.
const RETRY: Duration = Duration::from_secs(1);
/// Agents come and go by the hundred when a server is lost; their entries are written together.
const GATHER: Duration = Duration::from_millis(50);

/// Runs until the server drains; then it is gone at once for the others.
pub async fn run(core: Arc<Core>, own: LiveServer) {
    let mut lease = None;
    let draining = core.draining.clone();
    let announced = async {
        loop {
            let failure = announce(&core, &own, &mut lease).await;
            if matches!(failure, StoreError::Closed) {
                return;
            }
            warn!(error = %failure, "others cannot be told that this server is there; trying again");
            core.clock.sleep(RETRY).await;
        }
    };
    tokio::select! {
        () = draining.cancelled() => {}
        () = announced => {}
    }
    if let Some(lease) = lease
        && let Err(error) = core.store.revoke(lease).await
    {
        debug!(%error, "the lease of this server ends by itself");
    }
}

/// Takes a lease and keeps everything under it current, until something fails.
async fn announce(core: &Core, own: &LiveServer, held: &mut Option<LeaseId>) -> StoreError {
    match Announcer::start(core, own, held).await {
        Ok(mut announcer) => match announcer.keep().await {
            Ok(()) => StoreError::Closed,
            Err(failure) => failure,
        },
        Err(failure) => failure,
    }
}

struct Announcer<'a> {
    core: &'a Core,
    own: LiveServer,
    lease: LeaseId,
    /// What stands in the store, with the commit that wrote it.
    written: BTreeMap<NodeName, (Seat, Revision)>,
}

impl<'a> Announcer<'a> {
    async fn start(
        core: &'a Core,
        own: &'a LiveServer,
        held: &mut Option<LeaseId>,
    ) -> Result<Self, StoreError> {
        let ttl = Ttl::try_from(LEASE).expect("15 s is a length of a lease");
        let lease = core.store.grant(ttl).await?;
        if let Some(before) = held.replace(lease) {
            // What still hangs on it is written anew; it ends by itself if this fails.
            let _ = core.store.revoke(before).await;
        }
        let own = LiveServer { signs: core.signs(), ..own.clone() };
        let announcer = Self { core, own, lease, written: BTreeMap::new() };
        announcer.tell_self().await?;
        Ok(announcer)
    }

    async fn tell_self(&self) -> Result<(), StoreError> {
        let key = layout::present_server(&self.own.instance);
        let told = self.core.store.put(key, self.own.record(), Expected::Anything, Some(self.lease)).await;
        told.map(drop)
    }

    /// Ends without an error when the server's presence has ended.
    async fn keep(&mut self) -> Result<(), StoreError> {
        let mut agents = self.core.presence.watch_own();
        let mut due = self.core.clock.uptime();
        loop {
            let now = agents.borrow_and_update().clone();
            self.tell(&now).await?;
            if self.core.clock.uptime() >= due {
                self.core.store.keep_alive(self.lease).await?;
                if self.own.signs != self.core.signs() {
                    self.own.signs = self.core.signs();
                    self.tell_self().await?;
                }
                due = self.core.clock.uptime() + KEEP_EVERY;
            }
            tokio::select! {
                changed = agents.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    tokio::time::sleep(GATHER).await;
                }
                () = self.core.clock.sleep_until_uptime(due) => {}
            }
        }
    }

    /// Writes who came and went since the last time.
    async fn tell(&mut self, agents: &Agents) -> Result<(), StoreError> {
        let reports = self.core.presence.reports();
        let seat = |node: &NodeName, boot| Seat {
            server: self.own.instance.clone(),
            boot,
            bundle: reports.get(node).map_or(0, |report| report.bundle),
        };
        let there: BTreeMap<_, _> = agents
            .iter()
            .filter(|(_, agent)| matches!(agent.link, Link::Up(_)))
            .map(|(node, agent)| (node.clone(), seat(node, agent.boot)))
            .collect();
        let is_new =
            |node: &NodeName, seat: &Seat| self.written.get(node).is_none_or(|(told, _)| told != seat);
        let came: Vec<_> = there.iter().filter(|(node, seat)| is_new(node, seat)).collect();
        for some in came.chunks(MAX_TXN_OPS) {
            let put = |(node, seat): &(&NodeName, &Seat)| Op::Put {
                key: layout::present_agent(node),
                value: seat.record(),
                lease: Some(self.lease),
            };
            let revision = self.core.store.txn(Vec::new(), some.iter().map(put).collect()).await?;
            let told = some.iter().map(|(node, seat)| ((*node).clone(), ((*seat).clone(), revision)));
            self.written.extend(told);
        }
        let gone: Vec<_> = self.written.keys().filter(|node| !there.contains_key(*node)).cloned().collect();
        for node in gone {
            let Some((_, revision)) = self.written.remove(&node) else { continue };
            match self.core.store.delete(layout::present_agent(&node), Expected::Unchanged(revision)).await {
                // Another server has it, or had it and lost it.
                Ok(_) | Err(StoreError::Conflict(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }
}
