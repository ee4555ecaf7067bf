//! Who may hold how much of the receive credit: a stalled reader must not starve the other flows of its
//! tunnel.
//!
//! All flows of a tunnel share its receive window. A flow whose local socket takes nothing keeps up to
//! one stream window of it. So, once it has taken nothing for a while, the window of its tunnel grows by
//! that much: the flow then stands on credit of its own. What stalled flows of one identity hold in this
//! way is bounded across all its tunnels; past the bound the longest-stalled one is evicted.
//!
//! ```text
//! blocked ──stall_after──▶ stalled: granted ──one window read, or ended──▶ released
//!                                     └──budget used up, longest of all──▶ evicted
//! ```
//!
//! Pure: [`crate::stall`] looks at the flows, and carries out the [`Action`]s.
//!
//! A grant ends only after the flow has read a whole window since (or is gone), not when it first takes
//! a byte again: QUIC cannot take credit back, a window shrinks only as data is read. Otherwise a flow
//! that takes one byte every 100 ms would earn a new window each time.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use weft_identity::SpiffeId;

/// A flow, within one endpoint.
pub(crate) type FlowId = u64;
/// A tunnel, within one endpoint.
pub(crate) type TunnelId = u64;

/// The rule's three numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StallRule {
    /// How long a local socket may take nothing.
    pub(crate) stall_after: Duration,
    /// What one stalled flow can hold: the stream receive window.
    pub(crate) window_bytes: u64,
    /// What all stalled flows of one identity may hold.
    pub(crate) budget_bytes: u64,
}

/// One flow, as it is now.
#[derive(Clone, Debug)]
pub(crate) struct Glance {
    pub(crate) flow: FlowId,
    pub(crate) tunnel: TunnelId,
    pub(crate) peer: SpiffeId,
    /// How long its local socket has taken nothing; `None` while it takes.
    pub(crate) blocked_for: Option<Duration>,
    /// All that was read from the tunnel so far.
    pub(crate) read_bytes: u64,
    /// The receiving half is gone.
    pub(crate) ended: bool,
}

/// What is to be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Action {
    /// The tunnel's receive window is to be its own size plus `extra_bytes`.
    Widen { tunnel: TunnelId, extra_bytes: u64 },
    /// The flow is to be reset with [`crate::ResetCode::Stalled`].
    Evict { flow: FlowId },
}

impl StallRule {
    /// The credit that a stalled flow earns its tunnel: what it can hold, and a seventh more.
    ///
    /// quinn announces new credit only when an eighth of the window has been read since
    /// (quinn-proto 0.11, `add_read_credits`). By 8/7 the window grows as fast as that eighth: without it
    /// 57 stalled flows would push the eighth beyond the 16 MiB that the others share, which could then
    /// read it all and wait for each other for ever.
    fn grant_bytes(&self) -> u64 {
        self.window_bytes.saturating_add(self.window_bytes.div_ceil(7))
    }
}

/// Grants of one endpoint.
#[derive(Debug)]
pub(crate) struct StallBudget {
    rule: StallRule,
    grants: HashMap<FlowId, Grant>,
    held_by_peer: HashMap<SpiffeId, u64>,
    extra_of_tunnel: HashMap<TunnelId, u64>,
    changed: BTreeSet<TunnelId>,
}

#[derive(Clone, Debug)]
struct Grant {
    tunnel: TunnelId,
    peer: SpiffeId,
    read_before: u64,
}

impl StallBudget {
    pub(crate) fn new(rule: StallRule) -> Self {
        Self {
            rule,
            grants: HashMap::new(),
            held_by_peer: HashMap::new(),
            extra_of_tunnel: HashMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Whether the flow must be looked at again even if it is not blocked.
    pub(crate) fn holds(&self, flow: FlowId) -> bool {
        self.grants.contains_key(&flow)
    }

    /// How many flows stand on a grant.
    pub(crate) fn granted(&self) -> usize {
        self.grants.len()
    }

    /// Looks at every flow that is blocked or holds a grant, once.
    pub(crate) fn look(&mut self, glances: &[Glance]) -> Vec<Action> {
        for glance in glances {
            self.release_if_over(glance);
        }
        let mut stalled: Vec<&Glance> = glances.iter().filter(|glance| self.is_stalled(glance)).collect();
        // The longest-stalled first; among equals the older flow.
        stalled.sort_by_key(|glance| (std::cmp::Reverse(glance.blocked_for), glance.flow));
        let mut evicted = BTreeSet::new();
        for glance in &stalled {
            if !self.holds(glance.flow) && !evicted.contains(&glance.flow) {
                self.provide(glance, &stalled, &mut evicted);
            }
        }
        let widen = std::mem::take(&mut self.changed).into_iter().map(|tunnel| {
            let extra_bytes = self.extra_of_tunnel.get(&tunnel).copied().unwrap_or(0);
            Action::Widen { tunnel, extra_bytes }
        });
        evicted.into_iter().map(|flow| Action::Evict { flow }).chain(widen).collect()
    }

    fn is_stalled(&self, glance: &Glance) -> bool {
        !glance.ended && glance.blocked_for.is_some_and(|blocked| blocked >= self.rule.stall_after)
    }

    /// Grants to a stalled flow, evicting the longest-stalled of its identity if the budget is used up.
    fn provide(&mut self, glance: &Glance, stalled: &[&Glance], evicted: &mut BTreeSet<FlowId>) {
        while !self.has_room(&glance.peer) {
            let longest = stalled
                .iter()
                .find(|other| other.peer == glance.peer && !evicted.contains(&other.flow))
                .map_or(glance.flow, |other| other.flow);
            evicted.insert(longest);
            if longest == glance.flow {
                return;
            }
            self.release(longest);
        }
        self.grant(glance);
    }

    fn has_room(&self, peer: &SpiffeId) -> bool {
        let held = self.held_by_peer.get(peer).copied().unwrap_or(0);
        held.saturating_add(self.rule.grant_bytes()) <= self.rule.budget_bytes
    }

    fn grant(&mut self, glance: &Glance) {
        let grant =
            Grant { tunnel: glance.tunnel, peer: glance.peer.clone(), read_before: glance.read_bytes };
        *self.held_by_peer.entry(grant.peer.clone()).or_default() += self.rule.grant_bytes();
        *self.extra_of_tunnel.entry(grant.tunnel).or_default() += self.rule.grant_bytes();
        self.changed.insert(grant.tunnel);
        self.grants.insert(glance.flow, grant);
    }

    fn release_if_over(&mut self, glance: &Glance) {
        let Some(grant) = self.grants.get(&glance.flow) else { return };
        let read_since = glance.read_bytes.saturating_sub(grant.read_before);
        if glance.ended || read_since >= self.rule.window_bytes {
            self.release(glance.flow);
        }
    }

    fn release(&mut self, flow: FlowId) {
        let Some(grant) = self.grants.remove(&flow) else { return };
        subtract(&mut self.held_by_peer, &grant.peer, self.rule.grant_bytes());
        subtract(&mut self.extra_of_tunnel, &grant.tunnel, self.rule.grant_bytes());
        self.changed.insert(grant.tunnel);
    }
}

/// Takes `bytes` off and forgets the entry at zero, so that the maps hold only what is in use.
fn subtract<K: std::hash::Hash + Eq>(map: &mut HashMap<K, u64>, key: &K, bytes: u64) {
    if let Some(held) = map.get_mut(key) {
        *held = held.saturating_sub(bytes);
        if *held == 0 {
            map.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: u64 = 7;
    const GRANT: u64 = 8;
    const RULE: StallRule =
        StallRule { stall_after: Duration::from_millis(100), window_bytes: WINDOW, budget_bytes: 3 * GRANT };

    #[test]
    fn credit_is_announced_before_the_flows_that_move_run_out_of_it() {
        const MIB: u64 = 1024 * 1024;
        let rule = StallRule { window_bytes: 2 * MIB, ..RULE };
        for stalled in 0..=128 {
            let window = 16 * MIB + stalled * rule.grant_bytes();
            let free = window - stalled * rule.window_bytes;
            assert!(free >= window / 8 + 14 * MIB, "with {stalled} stalled flows");
        }
    }

    #[test]
    fn a_flow_that_takes_nothing_for_the_time_gets_a_window_of_its_own() {
        let mut budget = StallBudget::new(RULE);
        assert_eq!(budget.look(&[blocked(1, 99)]), []);
        assert_eq!(budget.look(&[blocked(1, 100)]), [widen(GRANT)]);
        assert_eq!(budget.look(&[blocked(1, 500)]), [], "and only once");
    }

    #[test]
    fn a_grant_ends_when_a_whole_window_was_read_and_not_before() {
        let mut budget = StallBudget::new(RULE);
        budget.look(&[blocked(1, 100)]);
        let reading = |read_bytes| Glance { blocked_for: None, read_bytes, ..blocked(1, 0) };
        assert_eq!(budget.look(&[reading(WINDOW - 1)]), []);
        assert!(budget.holds(1));
        assert_eq!(budget.look(&[reading(WINDOW)]), [widen(0)]);
        assert!(!budget.holds(1));
    }

    #[test]
    fn a_flow_that_toggles_never_earns_a_second_window() {
        let mut budget = StallBudget::new(RULE);
        for byte in 0..WINDOW {
            let stalled = Glance { read_bytes: byte, ..blocked(1, 100) };
            let expected: &[Action] = if byte == 0 { &[widen(GRANT)] } else { &[] };
            assert_eq!(budget.look(&[stalled]), expected);
        }
    }

    #[test]
    fn past_the_budget_the_longest_stalled_flow_is_evicted() {
        let mut budget = StallBudget::new(RULE);
        let three = [blocked(1, 300), blocked(2, 400), blocked(3, 200)];
        assert_eq!(budget.look(&three), [widen(3 * GRANT)]);
        let four = [blocked(1, 400), blocked(2, 500), blocked(3, 300), blocked(4, 100)];
        assert_eq!(budget.look(&four), [Action::Evict { flow: 2 }, widen(3 * GRANT)]);
        assert!(!budget.holds(2) && budget.holds(4));
    }

    #[test]
    fn the_newcomer_itself_goes_if_nobody_else_is_stalled() {
        let mut budget = StallBudget::new(RULE);
        budget.look(&[blocked(1, 100), blocked(2, 100), blocked(3, 100)]);
        let slow = |flow| Glance { blocked_for: None, ..blocked(flow, 0) };
        let actions = budget.look(&[slow(1), slow(2), slow(3), blocked(4, 100)]);
        assert_eq!(actions, [Action::Evict { flow: 4 }]);
    }

    #[test]
    fn identities_do_not_share_a_budget_and_an_ended_flow_gives_back() {
        let mut budget = StallBudget::new(RULE);
        budget.look(&[blocked(1, 100), blocked(2, 100), blocked(3, 100)]);
        let other = Glance { peer: id("other"), tunnel: 8, ..blocked(4, 100) };
        assert_eq!(budget.look(&[other]), [Action::Widen { tunnel: 8, extra_bytes: GRANT }]);
        let ended = Glance { ended: true, ..blocked(2, 200) };
        assert_eq!(budget.look(&[ended, blocked(5, 100)]), [widen(3 * GRANT)]);
        assert_eq!(budget.granted(), 4);
    }

    proptest! {
        #[test]
        fn nobody_ever_holds_more_than_the_budget(
            rounds in proptest::collection::vec(
                proptest::collection::vec((0..8u64, 0..2u64, 0..300u64, 0..6u64, any::<bool>()), 0..8), 0..20),
        ) {
            let mut budget = StallBudget::new(RULE);
            for round in rounds {
                let mut glances: Vec<Glance> = round.into_iter().map(|(flow, peer, ms, read_bytes, ended)| {
                    // A flow never changes its peer or tunnel.
                    let peer = (flow + peer * 8) % 2;
                    Glance {
                        flow,
                        tunnel: peer,
                        peer: id(if peer == 0 { "a" } else { "b" }),
                        blocked_for: (ms > 50).then(|| Duration::from_millis(ms)),
                        read_bytes,
                        ended,
                    }
                }).collect();
                glances.sort_by_key(|glance| glance.flow);
                glances.dedup_by_key(|glance| glance.flow);
                budget.look(&glances);
                for held in budget.held_by_peer.values() {
                    prop_assert!(*held <= RULE.budget_bytes);
                }
                let total: u64 = budget.held_by_peer.values().sum();
                prop_assert_eq!(total, budget.grants.len() as u64 * GRANT);
                prop_assert_eq!(total, budget.extra_of_tunnel.values().sum::<u64>());
            }
        }
    }

    fn blocked(flow: FlowId, millis: u64) -> Glance {
        Glance {
            flow,
            tunnel: 7,
            peer: id("order"),
            blocked_for: Some(Duration::from_millis(millis)),
            read_bytes: 0,
            ended: false,
        }
    }

    fn widen(extra_bytes: u64) -> Action {
        Action::Widen { tunnel: 7, extra_bytes }
    }

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://test.example/ns/shop/sa/{name}").parse().unwrap()
    }
}
