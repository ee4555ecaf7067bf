//! Whether an endpoint is shown to callers, from what is known of its owner (decisions.md, endpoints and leases).
//!
//! ```text
//! Confirmed ──owner unheard of for 60 s──▶ Unconfirmed ──10 min──▶ Withdrawn
//!     ▲                                        │                      │
//!     └────────── its agent is connected, at the boot that registered it ──────┘
//! ```
//!
//! Silence is weak evidence: the server may be the one that was away. So time is counted from when this server began to
//! serve, at the earliest, and never is more than half of a service withdrawn at once: when all of its endpoints are
//! silent, half of them stay; when some are confirmed, each further half waits another 10 min.
//!
//! Pure: times are uptimes of the server's clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use weft_policy::{
    model::Workload,
    name::{ObjectName, ServiceName},
};

use crate::{
    catalog::{Catalog, Scoped},
    presence::{AgentState, Agents, Link},
    records::RegistrationRecord,
};

/// How long silence means nothing.
pub const GRACE: Duration = Duration::from_secs(60);
/// How long an endpoint whose owner is silent is still shown, dialled last.
pub const UNCONFIRMED: Duration = Duration::from_secs(600);

/// Which workloads are in doubt. Those that are not named are confirmed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Standings {
    unconfirmed: BTreeSet<Scoped>,
    withdrawn: BTreeSet<(ServiceName, ObjectName)>,
}

/// How an endpoint is shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// As good as known.
    Confirmed,
    /// Dialled last.
    Unconfirmed,
    /// Not at all.
    Withdrawn,
}

impl Standings {
    /// How `workload` is shown as an endpoint of `service`.
    #[must_use]
    pub fn of(&self, service: &ServiceName, workload: &ObjectName) -> Standing {
        if self.withdrawn.contains(&(service.clone(), workload.clone())) {
            Standing::Withdrawn
        } else if self.unconfirmed.contains(&(service.namespace.clone(), workload.clone())) {
            Standing::Unconfirmed
        } else {
            Standing::Confirmed
        }
    }

    /// Whether a workload is vouched for.
    #[must_use]
    pub fn is_confirmed(&self, workload: &Scoped) -> bool {
        !self.unconfirmed.contains(workload)
    }
}

/// Judges every workload at uptime `now`, on a server that serves since uptime `serving`. Also says when the next
/// judgement differs if nothing else happens.
#[must_use]
pub fn judge(
    catalog: &Catalog,
    agents: &Agents,
    serving: Duration,
    now: Duration,
) -> (Standings, Option<Duration>) {
    let mut verdict = Verdict { now, standings: Standings::default(), next: None };
    let doubts = doubts(catalog, agents, serving);
    if doubts.is_empty() {
        return (verdict.standings, None);
    }
    let mut services: BTreeMap<ServiceName, Silence> = BTreeMap::new();
    for (scoped, workload) in catalog.workloads() {
        let doubt = doubts.get(scoped).copied();
        if let Some(since) = doubt
            && verdict.is_due(since + GRACE)
        {
            verdict.standings.unconfirmed.insert(scoped.clone());
        }
        for service in &workload.services {
            let name = ServiceName::new(scoped.0.clone(), service.clone());
            let silence = services.entry(name).or_default();
            silence.members += 1;
            silence.silent.extend(doubt.map(|since| (since, scoped.1.clone())));
        }
    }
    for (service, silence) in services {
        verdict.withdraw(&service, silence);
    }
    (verdict.standings, verdict.next)
}

/// The workloads for which nothing vouches, and since when; almost always there are none.
fn doubts<'a>(catalog: &'a Catalog, agents: &Agents, serving: Duration) -> BTreeMap<&'a Scoped, Duration> {
    let mut doubts = BTreeMap::new();
    // Both are in the order of the names.
    let mut registrations = catalog.registrations().iter().peekable();
    for (scoped, workload) in catalog.workloads() {
        while registrations.next_if(|(name, _)| *name < scoped).is_some() {}
        let registered = registrations.next_if(|(name, _)| *name == scoped).map(|(_, kept)| &*kept.record);
        if let Some(since) = silent_since(agents, workload, registered) {
            doubts.insert(scoped, since.max(serving));
        }
    }
    doubts
}

/// Since when nothing vouches for a workload; `None` when its agent does.
fn silent_since(
    agents: &Agents,
    workload: &Workload,
    registered: Option<&RegistrationRecord>,
) -> Option<Duration> {
    // One written by hand has no registration: its node's presence is all there is.
    let node = registered.map_or(&workload.node, |record| &record.node);
    match agents.get(node) {
        None => Some(Duration::ZERO),
        Some(AgentState { link: Link::Lost(at), .. }) => Some(*at),
        Some(AgentState { link: Link::Up(since), boot }) => {
            registered.is_some_and(|record| record.boot < *boot).then_some(*since)
        }
    }
}

/// The silent endpoints of one service.
#[derive(Default)]
struct Silence {
    members: usize,
    silent: Vec<(Duration, ObjectName)>,
}

struct Verdict {
    now: Duration,
    standings: Standings,
    next: Option<Duration>,
}

impl Verdict {
    /// Whether `time` has come; if not, it is noted as the next change.
    fn is_due(&mut self, time: Duration) -> bool {
        if time > self.now {
            self.next = Some(self.next.map_or(time, |next| next.min(time)));
        }
        time <= self.now
    }

    /// Withdraws those that were silent longest, half of what is shown in each step.
    fn withdraw(&mut self, service: &ServiceName, mut silence: Silence) {
        let all_are_silent = silence.silent.len() == silence.members;
        silence.silent.sort();
        let mut silent = silence.silent.into_iter().peekable();
        let mut shown = silence.members;
        let mut wait = GRACE + UNCONFIRMED;
        loop {
            let mut room = shown / 2;
            while room > 0 {
                let Some((since, _)) = silent.peek() else { return };
                let due = *since + wait;
                if !self.is_due(due) {
                    return;
                }
                self.standings.withdrawn.extend(silent.next().map(|(_, name)| (service.clone(), name)));
                room -= 1;
                shown -= 1;
            }
            if all_are_silent || shown < 2 {
                return;
            }
            wait += UNCONFIRMED;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use weft_policy::model::Resource;

    use super::*;
    use crate::samples;

    const MINUTE: Duration = Duration::from_secs(60);

    /// A service with one workload for each of `nodes`, registered at boot 1.
    fn catalog(nodes: usize) -> Catalog {
        let mut catalog = samples::catalog();
        for number in 0..nodes {
            let name = format!("charge-{number:02}");
            let node = format!("host{number:02}");
            catalog.put(Resource::Workload(samples::workload(&name, "shop", &node, &["charge"])));
            samples::register(&mut catalog, &name, "shop", &node, 1);
        }
        catalog
    }

    fn agents(states: impl IntoIterator<Item = (usize, u64, Link)>) -> Agents {
        let state =
            |(number, boot, link)| (format!("host{number:02}").parse().unwrap(), AgentState { boot, link });
        Arc::new(states.into_iter().map(state).collect())
    }

    fn charge() -> ServiceName {
        samples::service_name("charge", "shop")
    }

    fn count(standings: &Standings, nodes: usize, wanted: Standing) -> usize {
        let name = |number| format!("charge-{number:02}").parse().unwrap();
        (0..nodes).filter(|number| standings.of(&charge(), &name(*number)) == wanted).count()
    }

    #[test]
    fn nothing_is_withdrawn_for_60_s_after_a_server_start() {
        let catalog = catalog(4);
        let serving = MINUTE;
        let at = |now| judge(&catalog, &Agents::default(), serving, now);
        let (standings, next) = at(serving + GRACE - Duration::from_millis(1));
        assert_eq!(count(&standings, 4, Standing::Confirmed), 4);
        assert_eq!(next, Some(serving + GRACE));
        let (standings, next) = at(serving + GRACE);
        assert_eq!(count(&standings, 4, Standing::Unconfirmed), 4);
        assert_eq!(next, Some(serving + GRACE + UNCONFIRMED));
    }

    #[test]
    fn half_of_a_service_is_never_withdrawn_at_once() {
        let long = Duration::from_secs(7 * 24 * 3600);
        for nodes in 1..=9 {
            let (standings, next) = judge(&catalog(nodes), &Agents::default(), Duration::ZERO, long);
            assert_eq!(count(&standings, nodes, Standing::Withdrawn), nodes / 2, "{nodes}");
            assert_eq!(next, None, "all are silent: the rest stays");
        }
    }

    #[test]
    fn when_some_are_confirmed_the_silent_ones_leave_by_halves() {
        let catalog = catalog(8);
        let agents = agents([(0, 1, Link::Up(Duration::ZERO))]);
        let withdrawn = |minutes: u32| {
            let (standings, _) = judge(&catalog, &agents, Duration::ZERO, minutes * MINUTE);
            count(&standings, 8, Standing::Withdrawn)
        };
        let over_time: Vec<_> = [10, 11, 20, 21, 31, 41, 1_000].into_iter().map(withdrawn).collect();
        assert_eq!(over_time, [0, 4, 4, 6, 7, 7, 7]);
    }

    #[test]
    fn an_agent_that_comes_back_confirms_at_once_and_one_that_restarted_must_register_again() {
        let catalog = catalog(2);
        let late = 5 * MINUTE;
        let up = agents([(0, 1, Link::Up(late)), (1, 2, Link::Up(late))]);
        let (standings, next) = judge(&catalog, &up, Duration::ZERO, late);
        assert_eq!(count(&standings, 2, Standing::Confirmed), 2);
        assert_eq!(next, Some(late + GRACE), "the restarted one has a minute to register");
        let (standings, _) = judge(&catalog, &up, Duration::ZERO, late + GRACE);
        assert_eq!(standings.of(&charge(), &"charge-01".parse().unwrap()), Standing::Unconfirmed);
        assert_eq!(standings.of(&charge(), &"charge-00".parse().unwrap()), Standing::Confirmed);
    }

    proptest! {
        #[test]
        fn in_any_history_no_step_withdraws_more_than_half_of_what_was_shown(
            lost in proptest::collection::vec(0_u64..3_000, 1..12),
            up in 0_usize..3,
            steps in proptest::collection::vec(1_u64..600, 1..40),
        ) {
            let nodes = lost.len() + up;
            let catalog = catalog(nodes);
            let mut states: Vec<_> = lost
                .iter()
                .enumerate()
                .map(|(number, at)| (number, 1, Link::Lost(Duration::from_secs(*at))))
                .collect();
            states.extend((lost.len()..nodes).map(|number| (number, 1, Link::Up(Duration::ZERO))));
            let agents = agents(states);
            let mut now = Duration::ZERO;
            let mut before = 0;
            for step in steps {
                now += Duration::from_secs(step);
                let (standings, next) = judge(&catalog, &agents, Duration::ZERO, now);
                let after = count(&standings, nodes, Standing::Withdrawn);
                prop_assert!(after >= before);
                prop_assert!(after - before <= (nodes - before) / 2, "{before} -> {after} of {nodes}");
                prop_assert!(next.is_none_or(|next| next > now));
                if let Some(next) = next {
                    let (same, _) = judge(&catalog, &agents, Duration::ZERO, next - Duration::from_nanos(1));
                    prop_assert_eq!(same, standings, "nothing changes before the time that was told");
                }
                before = after;
            }
            prop_assert!(nodes < 2 || nodes - before >= 1);
        }
    }
}
