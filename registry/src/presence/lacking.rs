//! Which agents have not taken a trust bundle yet, wherever they are connected.

use std::time::Duration;

use weft_policy::name::NodeName;

use super::{Link, Presence};
use crate::{catalog::Catalog, liveness::GRACE};

impl Presence {
    /// The agents that have not acknowledged a bundle of `sequence` or later: the connected ones, to whichever server, and
    /// while this one has served for less than a minute, those that are still on their way back to it.
    ///
    /// `served` is for how long it has.
    #[must_use]
    pub fn lacking(&self, catalog: &Catalog, sequence: u64, served: Duration) -> Vec<NodeName> {
        let (reports, agents) = (self.reports(), self.agents());
        let elsewhere = self.connected_elsewhere();
        let is_up = |link: Link| matches!(link, Link::Up(_));
        let lacks = |node: &NodeName| match reports.get(node) {
            Some(report) if is_up(report.state.link) => report.bundle < sequence,
            Some(_) | None if elsewhere.contains_key(node) => elsewhere[node].bundle < sequence,
            Some(_) | None => served < GRACE || agents.get(node).is_some_and(|agent| is_up(agent.link)),
        };
        let mut nodes: Vec<NodeName> = catalog.nodes().keys().chain(agents.keys()).cloned().collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.retain(lacks);
        nodes
    }
}
