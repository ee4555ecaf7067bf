//! Who is connected to other servers, joined with who is connected here. Pure.

use std::{collections::BTreeMap, time::Duration};

use weft_policy::name::NodeName;

use super::{AgentState, Link};
use crate::replicas::Seat;

/// What is known of agents elsewhere: those that are there, and since when those are lost that were.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    seen: BTreeMap<NodeName, (AgentState, Seat)>,
}

impl Elsewhere {
    /// Takes in where each agent is connected now, at uptime `now`.
    pub(super) fn now(&mut self, seats: BTreeMap<NodeName, Seat>, now: Duration) {
        for (node, (state, _)) in &mut self.seen {
            if matches!(state.link, Link::Up(_)) && !seats.contains_key(node) {
                state.link = Link::Lost(now);
            }
        }
        for (node, seat) in seats {
            let boot = seat.boot;
            let kept = self.seen.get(&node).map(|(state, _)| *state);
            let state = kept.filter(|state| state.boot == boot && matches!(state.link, Link::Up(_)));
            let state = state.unwrap_or(AgentState { boot, link: Link::Up(now) });
            self.seen.insert(node, (state, seat));
        }
    }

    /// The agents that are connected elsewhere.
    pub(super) fn connected(&self) -> impl Iterator<Item = (&NodeName, &Seat)> {
        let up = self.seen.iter().filter(|(_, (state, _))| matches!(state.link, Link::Up(_)));
        up.map(|(node, (_, seat))| (node, seat))
    }

    /// Everybody, as all servers together know it: who is somewhere is there, and the newer run of an agent is the one
    /// that counts.
    pub(super) fn join(&self, own: BTreeMap<NodeName, AgentState>) -> BTreeMap<NodeName, AgentState> {
        let mut all = own;
        for (node, (there, _)) in &self.seen {
            let state = all.get(node).map_or(*there, |here| newer(*here, *there));
            all.insert(node.clone(), state);
        }
        all
    }
}

fn newer(one: AgentState, other: AgentState) -> AgentState {
    if one.boot != other.boot {
        return if one.boot > other.boot { one } else { other };
    }
    let link = match (one.link, other.link) {
        (Link::Up(one), Link::Up(other)) => Link::Up(one.min(other)),
        (Link::Up(since), Link::Lost(_)) | (Link::Lost(_), Link::Up(since)) => Link::Up(since),
        (Link::Lost(one), Link::Lost(other)) => Link::Lost(one.max(other)),
    };
    AgentState { boot: one.boot, link }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn node() -> NodeName {
        "hosta".parse().unwrap()
    }

    fn seats(boot: Option<u64>) -> BTreeMap<NodeName, Seat> {
        boot.map(|boot| (node(), Seat { server: "s-2".to_owned(), boot, bundle: 5 })).into_iter().collect()
    }

    fn joined(elsewhere: &Elsewhere, own: Option<AgentState>) -> Option<AgentState> {
        elsewhere.join(own.map(|state| (node(), state)).into_iter().collect()).remove(&node())
    }

    #[test]
    fn an_agent_that_moves_was_never_lost() {
        let mut elsewhere = Elsewhere::default();
        elsewhere.now(seats(Some(3)), at(10));
        let lost_here = Some(AgentState { boot: 3, link: Link::Lost(at(11)) });
        assert_eq!(joined(&elsewhere, lost_here).unwrap().link, Link::Up(at(10)));
        let there: Vec<_> =
            elsewhere.connected().map(|(_, seat)| (seat.server.as_str(), seat.bundle)).collect();
        assert_eq!(there, [("s-2", 5)]);
        elsewhere.now(seats(None), at(12));
        let back_here = Some(AgentState { boot: 3, link: Link::Up(at(12)) });
        assert_eq!(joined(&elsewhere, back_here).unwrap().link, Link::Up(at(12)));
        assert_eq!(elsewhere.connected().count(), 0);
    }

    #[test]
    fn who_is_nowhere_is_lost_since_the_last_server_lost_it() {
        let mut elsewhere = Elsewhere::default();
        elsewhere.now(seats(Some(3)), at(10));
        elsewhere.now(seats(Some(3)), at(15));
        assert_eq!(joined(&elsewhere, None).unwrap().link, Link::Up(at(10)), "nothing has changed");
        elsewhere.now(seats(None), at(20));
        elsewhere.now(seats(None), at(30));
        let lost_here = Some(AgentState { boot: 3, link: Link::Lost(at(5)) });
        assert_eq!(joined(&elsewhere, lost_here).unwrap().link, Link::Lost(at(20)));
    }

    #[test]
    fn the_newer_run_counts_wherever_it_is() {
        let mut elsewhere = Elsewhere::default();
        elsewhere.now(seats(Some(4)), at(10));
        let old = Some(AgentState { boot: 3, link: Link::Up(at(1)) });
        assert_eq!(joined(&elsewhere, old).unwrap(), AgentState { boot: 4, link: Link::Up(at(10)) });
        elsewhere.now(seats(Some(5)), at(20));
        assert_eq!(joined(&elsewhere, None).unwrap(), AgentState { boot: 5, link: Link::Up(at(20)) });
    }
}
