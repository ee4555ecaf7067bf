//! Who listens to this authority: which agents have not taken a root yet.

use std::{sync::Arc, time::Duration};

use weft_policy::name::NodeName;

use crate::{
    keeper::WorldHandle,
    presence::{Link, Presence},
    store::Store,
};

/// The agents and the log, which are there once the server has started.
pub(super) struct Audience {
    pub(super) store: Arc<dyn Store>,
    pub(super) presence: Presence,
    pub(super) world: WorldHandle,
}

impl Audience {
    /// The agents that have not acknowledged a bundle of `sequence` or later ([`Presence::lacking`]).
    pub(super) fn missing(&self, sequence: u64, served: Duration) -> Vec<NodeName> {
        self.presence.lacking(&self.world.catalog(), sequence, served)
    }

    /// The agents that are known and away: what they have in force is not known either.
    pub(super) fn away(&self) -> Vec<NodeName> {
        let agents = self.presence.agents();
        let is_away =
            |node: &&NodeName| !agents.get(*node).is_some_and(|agent| matches!(agent.link, Link::Up(_)));
        self.world.catalog().nodes().keys().filter(is_away).cloned().collect()
    }

    /// The serial numbers of agents' certificates that were banned.
    pub(super) fn banned(&self) -> std::collections::BTreeSet<String> {
        let catalog = self.world.catalog();
        catalog.nodes().values().flat_map(|kept| kept.record.banned.iter().cloned()).collect()
    }
}
