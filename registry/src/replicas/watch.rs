//! Reads who else serves and which agents are connected there, and asks agents to go when a server has joined.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::watch;
use tracing::{info, warn};
use weft_policy::name::NodeName;

use super::{LiveServer, Place, Seat, balance, everything, place};
use crate::{
    core::Core,
    store::{Event, EventBatch, Mirror, StoreError},
};

/// The wait after the store failed to read.
const RETRY: Duration = Duration::from_secs(1);
/// So long after a server joined or left it is looked whether agents should move: those who lost theirs choose first.
const SETTLE: Duration = Duration::from_secs(3);
/// How often it is looked otherwise.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The servers that are there, in the order of their names; this one among them once it has said so itself.
pub type Servers = Arc<Vec<LiveServer>>;

/// Runs until the store is closed. `servers` is told whenever a server comes or goes.
pub async fn run(core: Arc<Core>, servers: watch::Sender<Servers>) {
    let mut mirror = Mirror::new(Arc::clone(&core.store), everything());
    let mut known = Known::default();
    let mut look = core.clock.uptime() + LOOK_EVERY;
    loop {
        tokio::select! {
            batch = mirror.next() => match batch {
                Ok(batch) => {
                    known.apply(batch);
                    core.presence.elsewhere(known.agents_but_of(&core.instance));
                    if known.tell(&servers) {
                        look = core.clock.uptime() + SETTLE;
                    }
                }
                Err(StoreError::Closed) => return,
                Err(error) => {
                    warn!(%error, "cannot read which servers are there; trying again");
                    core.clock.sleep(RETRY).await;
                }
            },
            () = core.clock.sleep_until_uptime(look) => {
                make_room(&core, &known);
                look = core.clock.uptime() + LOOK_EVERY;
            }
        }
    }
}

/// Asks as many agents to go as this server has too many.
fn make_room(core: &Core, known: &Known) {
    let own = core.presence.connected();
    let elsewhere = known.agents_but_of(&core.instance).len();
    let surplus = balance::surplus(own, own + elsewhere, known.servers.len());
    if surplus > 0 {
        let within = balance::within(surplus);
        let asked = core.presence.ask_to_go(surplus, within);
        info!(
            agents = asked,
            servers = known.servers.len(),
            ?within,
            "agents are asked to use another server"
        );
    }
}

/// What the store says.
#[derive(Debug, Default)]
struct Known {
    servers: BTreeMap<String, LiveServer>,
    agents: BTreeMap<NodeName, Seat>,
}

impl Known {
    fn apply(&mut self, batch: EventBatch) {
        for event in batch.events {
            let put = match &event {
                Event::Put(entry) => Some(&entry.value),
                Event::Delete(_) => None,
            };
            match place(event.key()) {
                Some(Place::Server(name)) => match put.and_then(|record| LiveServer::read(&name, record)) {
                    Some(server) => drop(self.servers.insert(name, server)),
                    None => drop(self.servers.remove(&name)),
                },
                Some(Place::Agent(node)) => match put.and_then(|record| Seat::read(record)) {
                    Some(seat) => drop(self.agents.insert(node, seat)),
                    None => drop(self.agents.remove(&node)),
                },
                None => {}
            }
        }
    }

    /// Where each agent is connected that is connected elsewhere.
    fn agents_but_of(&self, own: &str) -> BTreeMap<NodeName, Seat> {
        let elsewhere = self.agents.iter().filter(|(_, seat)| seat.server != own);
        elsewhere.map(|(node, seat)| (node.clone(), seat.clone())).collect()
    }

    /// Says who is there; whether that has changed.
    fn tell(&self, servers: &watch::Sender<Servers>) -> bool {
        let now: Vec<_> = self.servers.values().cloned().collect();
        servers.send_if_modified(|before| {
            let changed = **before != now;
            if changed {
                info!(servers = ?now.iter().map(|server| &server.instance).collect::<Vec<_>>(), "the servers of the mesh");
                *before = Arc::new(now);
            }
            changed
        })
    }
}
