//! Who listens to this authority: which agents have not taken a root yet.

use std::{sync::Arc, time::Duration};

use weft_policy::name::NodeName;

use crate::{
    keeper::WorldHandle,
    liveness::GRACE,
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
    /// The agents that have not acknowledged a bundle of `sequence` or later: the connected ones, to whichever server, and
    /// while this one has served for less than a minute, those that are still on their way back to it.
    ///
    /// `served` is for how long it has.
    pub(super) fn missing(&self, sequence: u64, served: Duration) -> Vec<NodeName> {
        let (reports, agents) = (self.presence.reports(), self.presence.agents());
        let elsewhere = self.presence.connected_elsewhere();
        let is_up = |link: Link| matches!(link, Link::Up(_));
        let lacks = |node: &NodeName| match reports.get(node) {
            Some(report) if is_up(report.state.link) => report.bundle < sequence,
            Some(_) | None if elsewhere.contains_key(node) => elsewhere[node].bundle < sequence,
            Some(_) | None => served < GRACE || agents.get(node).is_some_and(|agent| is_up(agent.link)),
        };
        let catalog = self.world.catalog();
        let mut nodes: Vec<NodeName> = catalog.nodes().keys().chain(agents.keys()).cloned().collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.retain(lacks);
        nodes
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
