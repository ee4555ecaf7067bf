//! The states of roots: single steps first, then random sequences of them with a crash at every point between two writes.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::bundle::{TrustBundle, TrustBundles};
use crate::ca::{AuthorityParts, CaSettings, IssuedSvid, LeafLifetimes, Roots};
use crate::csr::SigningRequest;
use crate::forge::{at, domain, id};
use crate::tls::{PeerRole, verify_chain};

const ID: &str = "spiffe://td/ns/shop/sa/charge";
const LEAF: Duration = Duration::from_secs(100);

/// Lives that a test sees the ends of.
fn settings() -> CaSettings {
    CaSettings {
        root_lifetime: Duration::from_secs(6000),
        intermediate_lifetime: Duration::from_secs(1200),
        longest_leaf: LEAF,
        settle: LEAF,
        lifetimes: LeafLifetimes::AllowShort,
        roots: Roots::Own,
    }
}

fn new_ca() -> CertificateAuthority {
    CertificateAuthority::create_with(&domain("td"), "a", settings(), at(0)).unwrap()
}

fn issue(ca: &mut CertificateAuthority, now: SystemTime) -> IssuedSvid {
    let (_, der) = SigningRequest::create().unwrap();
    ca.issue(&SigningRequest::parse(&der).unwrap(), &id(ID), LEAF, now).unwrap()
}

fn states(ca: &CertificateAuthority) -> Vec<RootState> {
    ca.roots().iter().map(|root| root.state).collect()
}

fn active(ca: &CertificateAuthority) -> [u8; 32] {
    fingerprint(ca.active_root())
}

fn is_trusted(ca: &CertificateAuthority, svid: &IssuedSvid, now: SystemTime) -> bool {
    let bundle = TrustBundle::new(domain("td"), ca.bundle_roots(), 1).unwrap();
    verify_chain(&bundle.into(), &svid.chain, PeerRole::Server, now).is_ok()
}

#[test]
fn a_root_goes_from_prepared_to_revoked_and_what_it_signed_is_good_until_then() {
    let mut ca = new_ca();
    let (first, under_first) = (active(&ca), issue(&mut ca, at(0)));
    let second = ca.prepare(at(0)).unwrap();
    assert_eq!(ca.prepare(at(5)), Ok(second), "one is prepared at a time");
    assert_eq!((active(&ca), ca.bundle_roots().len()), (first, 2));
    assert_eq!(ca.activate(2, false, at(6)), Err(StepError::NotEverywhere(2)));
    assert_eq!(ca.activate(0, false, at(6)), Ok(second));
    assert_eq!(ca.activate(0, false, at(6)), Err(StepError::NothingPrepared));
    assert_eq!(states(&ca), [RootState::Active, RootState::Old]);
    let under_second = issue(&mut ca, at(7));
    assert!(is_trusted(&ca, &under_first, at(7)) && is_trusted(&ca, &under_second, at(7)));

    assert!(matches!(ca.revoke(&first, 0, true, at(8)), Err(StepError::WrongState { .. })));
    assert!(matches!(ca.taint(&second, at(8)), Err(StepError::WrongState { .. })), "the active one");
    assert_eq!(ca.taint(&[7; 32], at(8)), Err(StepError::Unknown));
    ca.taint(&first, at(8)).unwrap();
    assert_eq!(ca.tainted_roots(), [first]);
    assert!(is_trusted(&ca, &under_first, at(9)), "tainted is still valid");
    assert_eq!(ca.revoke(&first, 1, false, at(9)), Err(StepError::Unrenewed(1)));
    ca.revoke(&first, 1, true, at(9)).unwrap();
    assert_eq!(states(&ca), [RootState::Active, RootState::Revoked]);
    assert!(!is_trusted(&ca, &under_first, at(9)) && is_trusted(&ca, &under_second, at(9)));
    assert!(matches!(ca.revoke(&first, 0, true, at(9)), Err(StepError::WrongState { .. })));
}

#[test]
fn a_prepared_root_may_be_revoked_and_another_takes_its_place() {
    let mut ca = new_ca();
    let unwanted = ca.prepare(at(0)).unwrap();
    assert!(matches!(ca.taint(&unwanted, at(1)), Err(StepError::WrongState { .. })), "nothing is under it");
    ca.revoke(&unwanted, 0, false, at(1)).unwrap();
    assert_eq!(ca.bundle_roots().len(), 1);
    assert_ne!(ca.prepare(at(2)).unwrap(), unwanted);
}

#[test]
fn an_activation_is_taken_back_while_the_key_is_there_and_only_then() {
    let mut ca = new_ca();
    let first = active(&ca);
    assert_eq!(ca.roll_back(at(0)), Err(StepError::NothingBefore));
    let second = ca.prepare(at(0)).unwrap();
    ca.activate(0, false, at(1)).unwrap();
    let under_second = issue(&mut ca, at(2));
    assert_eq!(ca.roll_back(at(3)), Ok(first));
    assert_eq!((active(&ca), states(&ca)), (first, vec![RootState::Active, RootState::Old]));
    assert!(is_trusted(&ca, &under_second, at(4)), "what was signed meanwhile is good");
    assert_eq!(ca.roll_back(at(5)), Ok(second), "the one taken back is the root before, now");

    let third = ca.prepare(at(6)).unwrap();
    ca.activate(0, false, at(7)).unwrap();
    let keys =
        |ca: &CertificateAuthority| ca.to_parts().former.iter().filter(|f| f.key_pem.is_some()).count();
    assert_eq!(keys(&ca), 1, "the key of the root before alone is kept");
    ca.taint(&second, at(8)).unwrap();
    assert_eq!((keys(&ca), active(&ca)), (0, third));
    assert_eq!(ca.roll_back(at(9)), Err(StepError::NothingBefore), "its key is gone");
}

#[test]
fn a_root_that_is_over_is_not_gone_back_to() {
    let mut ca = new_ca();
    ca.prepare(at(5000)).unwrap();
    ca.activate(0, false, at(5000)).unwrap();
    assert_eq!(ca.roll_back(at(5990)), Err(StepError::NothingBefore));
}

#[test]
fn the_schedule_prepares_waits_for_agents_and_activates() {
    let mut ca = new_ca();
    let first = active(&ca);
    let at_most = |ca: &mut CertificateAuthority, missing, time| {
        let done = ca.maintain(missing, at(time)).unwrap();
        done.into_iter().filter(|done| !matches!(done, Maintained::IntermediateRenewed)).collect::<Vec<_>>()
    };
    assert_eq!(at_most(&mut ca, 0, 2999), []);
    let prepared = at_most(&mut ca, 0, 3000);
    assert!(
        matches!(prepared[..], [Maintained::RootPrepared { .. }]),
        "half of its life is over: {prepared:?}"
    );
    assert_eq!(at_most(&mut ca, 0, 3099), [], "published for less than the life of a leaf");
    assert_eq!(at_most(&mut ca, 1, 4000), [], "somebody has not taken it");
    let activated = at_most(&mut ca, 0, 4001);
    assert!(matches!(activated[..], [Maintained::RootActivated { forced: false, .. }]), "{activated:?}");
    let leaves = at(6000) + Duration::from_secs(505); // a twelfth of its life, as the certificate states it
    let forgotten = Maintained::KeyForgotten { fingerprint: first };
    assert!(at_most(&mut ca, 0, 6000).contains(&forgotten), "there is no going back to what is over");
    assert!(ca.maintain(0, leaves - Duration::from_secs(1)).unwrap().iter().all(|done| !removes(done)));
    assert!(ca.maintain(0, leaves).unwrap().iter().any(removes), "an expired root leaves the bundle");
}

fn removes(done: &Maintained) -> bool {
    matches!(done, Maintained::RootRemoved { .. })
}

#[test]
fn an_agent_that_never_answers_does_not_end_the_mesh() {
    let mut ca = new_ca();
    ca.maintain(0, at(3000)).unwrap();
    assert!(ca.maintain(1, at(4999)).unwrap().iter().all(|done| *done == Maintained::IntermediateRenewed));
    let done = ca.maintain(1, at(5000)).unwrap();
    assert!(matches!(done[..], [Maintained::RootActivated { forced: true, .. }]), "{done:?}");
}

#[test]
fn people_cannot_fill_the_bundle() {
    let mut ca = new_ca();
    for step in 0..i64::try_from(MAX_ROOTS).unwrap() - 1 {
        ca.prepare(at(step)).unwrap();
        ca.activate(0, false, at(step)).unwrap();
    }
    assert_eq!(ca.prepare(at(10)), Err(StepError::TooMany(MAX_ROOTS)));
    assert!(
        ca.maintain(0, at(3010)).unwrap().iter().any(|done| matches!(done, Maintained::RootPrepared { .. }))
    );
}

#[test]
fn lives_of_maintenance_never_leave_a_valid_leaf_without_a_root() {
    let mut ca = new_ca();
    let (mut live, mut renewed, mut activated): (Vec<IssuedSvid>, _, _) = (Vec::new(), 0, 0);
    for step in 0..2000 {
        let now = at(step * 10);
        for done in ca.maintain(0, now).unwrap() {
            match done {
                Maintained::IntermediateRenewed => renewed += 1,
                Maintained::RootActivated { forced, .. } => activated += i32::from(!forced),
                Maintained::RootPrepared { .. }
                | Maintained::RootRemoved { .. }
                | Maintained::UpstreamReplaced
                | Maintained::KeyForgotten { .. } => {}
            }
        }
        live.push(issue(&mut ca, now));
        live.retain(|issued| issued.validity.contains(now));
        if step % 20 == 0 {
            assert!(live.iter().all(|svid| is_trusted(&ca, svid, now)));
            assert!(ca.bundle_roots().len() <= 3);
        }
    }
    assert!(renewed > 20 && activated >= 5, "{renewed} {activated}");
}

/// What is done to a world.
#[derive(Clone, Debug)]
enum Step {
    Pass(u16),
    Prepare,
    Activate { force: bool },
    RollBack,
    Taint(usize),
    Revoke { root: usize, force: bool },
    Maintain,
    Issue,
    Renew,
    Acknowledge(usize),
    Connect(usize),
    Leave(usize),
}

/// Where a change stops: between two writes, or not at all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Crash {
    Never,
    BeforeDisk,
    BeforePublishing,
    BeforeUse,
}

struct Leaf {
    svid: IssuedSvid,
    root: [u8; 32],
    renewed: bool,
}

/// A server with its disk and its store, and the agents that listen to it.
struct World {
    disk: AuthorityParts,
    store: TrustBundle,
    memory: CertificateAuthority,
    /// The sequence from which on each root has been published.
    since: Vec<([u8; 32], u64)>,
    /// What each agent has acknowledged; `None` while it is away.
    agents: [Option<u64>; 3],
    leaves: Vec<Leaf>,
    now: SystemTime,
}

impl World {
    fn new() -> Self {
        let memory = new_ca();
        let store = following(None, &memory).unwrap();
        let mut world = Self {
            disk: memory.to_parts(),
            store: store.clone(),
            memory,
            since: Vec::new(),
            agents: [Some(1), Some(1), None],
            leaves: Vec::new(),
            now: at(0),
        };
        world.published(store);
        world
    }

    fn missing(&self) -> usize {
        let Some((prepared, _)) = self.memory.prepared_root() else { return 0 };
        let prepared = fingerprint(prepared);
        let since =
            self.since.iter().find(|(root, _)| *root == prepared).map_or(u64::MAX, |(_, since)| *since);
        self.agents.iter().flatten().filter(|acked| **acked < since).count()
    }

    fn unrenewed(&self, root: &[u8; 32]) -> usize {
        let counts =
            |leaf: &&Leaf| leaf.root == *root && !leaf.renewed && leaf.svid.validity.contains(self.now);
        self.leaves.iter().filter(counts).count()
    }

    /// A bundle is what the store says: its sequence has grown (invariants 2 and 7).
    fn published(&mut self, next: TrustBundle) {
        assert!(self.since.is_empty() || next.sequence() > self.store.sequence());
        for root in next.fingerprints() {
            if self.since.iter().all(|(known, _)| *known != root) {
                self.since.push((root, next.sequence()));
            }
        }
        self.store = next;
    }

    /// Writes a changed authority down, publishes, and uses it; a crash leads to a start from what was written.
    fn commit(&mut self, next: CertificateAuthority, crash: Crash) {
        if crash != Crash::BeforeDisk {
            self.disk = next.to_parts();
            if crash != Crash::BeforePublishing {
                if let Some(bundle) = following(Some(&self.store), &next) {
                    self.published(bundle);
                }
                if crash != Crash::BeforeUse {
                    self.memory = next;
                    return;
                }
            }
        }
        self.restart();
    }

    /// What a start does: read, maintain, write, publish, use.
    fn restart(&mut self) {
        let mut read = CertificateAuthority::load(&self.disk, settings()).unwrap();
        read.signed_at(self.memory.high_water());
        read.maintain(usize::MAX, self.now).unwrap();
        self.disk = read.to_parts();
        if let Some(bundle) = following(Some(&self.store), &read) {
            self.published(bundle);
        }
        self.memory = read;
        // Nobody is connected to a server that has just started; what they had acknowledged is not known to it.
        self.agents = self.agents.map(|agent| agent.map(|_| 0));
    }

    fn take(&mut self, step: &Step, crash: Crash) {
        let (before, missing) = (self.memory.roots(), self.missing());
        let mut next = self.memory.clone();
        let chosen = |root: usize| before[root % before.len()].clone();
        let now = self.now;
        match *step {
            Step::Pass(seconds) => self.now += Duration::from_secs(seconds.into()),
            Step::Prepare => drop(next.prepare(now)),
            Step::Activate { force } => {
                let done = next.activate(missing, force, now);
                assert!(done.is_err() || missing == 0 || force, "invariant 3");
            }
            Step::RollBack => {
                let open = before.iter().find(|root| root.can_return && root.validity.contains(now));
                let done = next.roll_back(now);
                assert!(done.is_err() || open.map(|root| root.fingerprint) == done.ok(), "invariant 6");
            }
            Step::Taint(root) => {
                let done = next.taint(&chosen(root).fingerprint, now);
                assert!(done.is_err() || chosen(root).state == RootState::Old, "invariant 4");
            }
            Step::Revoke { root, force } => {
                let (root, left) = (chosen(root), self.unrenewed(&chosen(root).fingerprint));
                let done = next.revoke(&root.fingerprint, left, force, now);
                let may = matches!(root.state, RootState::Tainted | RootState::Prepared);
                assert_eq!(done.is_ok(), may && (left == 0 || force), "invariant 5");
            }
            Step::Maintain => {
                for done in next.maintain(missing, now).unwrap() {
                    if let Maintained::RootActivated { forced, .. } = done {
                        assert_eq!(forced, missing > 0 || self.memory.prepared_root().is_none());
                    }
                    if let Maintained::RootRemoved { fingerprint } = done {
                        let root = before.iter().find(|root| root.fingerprint == fingerprint).unwrap();
                        assert!(root.validity.not_after <= now, "invariant 8");
                    }
                }
            }
            Step::Issue => {
                let root = active(&self.memory);
                let svid = issue(&mut self.memory, now);
                self.leaves.push(Leaf { svid, root, renewed: false });
                return;
            }
            Step::Renew => {
                let tainted = self.memory.tainted_roots();
                self.leaves.iter_mut().for_each(|leaf| leaf.renewed |= tainted.contains(&leaf.root));
                return;
            }
            Step::Acknowledge(agent) => {
                let newest = self.store.sequence();
                self.agents[agent % 3].iter_mut().for_each(|acked| *acked = newest);
                return;
            }
            Step::Connect(agent) => {
                self.agents[agent % 3].get_or_insert(0);
                return;
            }
            Step::Leave(agent) => {
                self.agents[agent % 3] = None;
                return;
            }
        }
        self.commit(next, crash);
    }

    fn check(&self) {
        let roots = self.memory.roots();
        let in_state = |state| roots.iter().filter(move |root| root.state == state);
        assert_eq!(in_state(RootState::Active).count(), 1, "invariant 1");
        assert!(in_state(RootState::Prepared).count() <= 1);
        assert!(roots.iter().filter(|root| root.can_return).count() <= 1, "one key beyond the active one");
        let published: BTreeSet<_> = self.store.fingerprints().into_iter().collect();
        for root in &roots {
            let belongs = root.state != RootState::Revoked;
            assert_eq!(published.contains(&root.fingerprint), belongs, "invariant 2: {root:?}");
        }
        assert!(published.contains(&active(&self.memory)), "invariants 7 and 8");
        let bundles = TrustBundles::from(self.store.clone());
        for leaf in self.leaves.iter().filter(|leaf| leaf.svid.validity.contains(self.now)) {
            let root = roots.iter().find(|root| root.fingerprint == leaf.root).expect("it is remembered");
            let good = verify_chain(&bundles, &leaf.svid.chain, PeerRole::Client, self.now).is_ok();
            assert_eq!(good, root.state != RootState::Revoked, "{root:?}");
            assert_eq!(self.store.taints(&leaf.svid.chain[..]), root.state == RootState::Tainted);
        }
    }
}

fn following(before: Option<&TrustBundle>, ca: &CertificateAuthority) -> Option<TrustBundle> {
    TrustBundle::following(before, domain("td"), ca.bundle_roots(), ca.tainted_roots()).unwrap()
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..400_u16).prop_map(Step::Pass),
        (1..3000_u16).prop_map(Step::Pass),
        Just(Step::Prepare),
        any::<bool>().prop_map(|force| Step::Activate { force }),
        Just(Step::RollBack),
        any::<usize>().prop_map(Step::Taint),
        (any::<usize>(), any::<bool>()).prop_map(|(root, force)| Step::Revoke { root, force }),
        Just(Step::Maintain),
        Just(Step::Issue),
        Just(Step::Renew),
        any::<usize>().prop_map(Step::Acknowledge),
        any::<usize>().prop_map(Step::Acknowledge),
        any::<usize>().prop_map(Step::Connect),
        any::<usize>().prop_map(Step::Leave),
    ]
}

fn crash() -> impl Strategy<Value = Crash> {
    prop_oneof![
        6 => Just(Crash::Never),
        1 => Just(Crash::BeforeDisk),
        1 => Just(Crash::BeforePublishing),
        1 => Just(Crash::BeforeUse),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// security.md 3.3: the eight invariants, over random steps, each with a crash between any two writes.
    #[test]
    fn the_invariants_hold_whatever_is_done_and_wherever_it_stops(
        steps in proptest::collection::vec((step(), crash()), 1..60),
    ) {
        let mut world = World::new();
        for (step, crash) in &steps {
            // A server looks after its authority at least as often as this.
            world.take(&Step::Maintain, Crash::Never);
            world.take(step, *crash);
            world.check();
        }
    }
}
