//! The live flows, and the right to cut them.
//!
//! Every flow enters the table before it is decided, and every new snapshot is put in force before the table is asked
//! again; so no flow can slip between an old decision and a new rule (security.md 3.6). A cut flow ends by itself: its
//! future sees the token and resets both sides.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio_util::sync::CancellationToken;
use weft_identity::spiffe::SpiffeId;
use weft_overlay::ResetCode;
use weft_policy::{
    authz::{CallRequest, Decision, Denial, DenyReason, Principal},
    model::EgressMode,
    name::Namespace,
    route::Target,
    snapshot::Snapshot,
};

use crate::error::FlowError;

/// Which way a flow goes, seen from this agent.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Direction {
    /// From a program here to another node, or to a program here by the short cut.
    Outbound,
    /// From a tunnel to a program here.
    Inbound,
}

impl Direction {
    /// The word in logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// What a flow is, for deciding it again.
#[derive(Clone, Debug)]
pub struct FlowFacts {
    /// Which way it goes.
    pub direction: Direction,
    /// Who calls.
    pub source: SpiffeId,
    /// What is called.
    pub target: Target,
    /// Where the caller's node dials from, at the destination.
    pub network: Option<IpAddr>,
    /// Who serves it, when that is a program of this host.
    pub served_by: Option<SpiffeId>,
    /// When it began.
    pub started: Instant,
}

/// What a flow to a destination outside the mesh is, for deciding it again.
#[derive(Clone, Debug)]
pub struct EgressFacts {
    /// Who goes there.
    pub source: SpiffeId,
    /// Whose mode holds.
    pub namespace: Namespace,
}

/// The table is full: the agent carries as many flows as it may.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the agent carries {limit} flows already, its limit")]
pub struct TooManyFlows {
    /// The limit.
    pub limit: usize,
}

impl From<TooManyFlows> for FlowError {
    fn from(_: TooManyFlows) -> Self {
        Self::Overloaded
    }
}

/// The live flows of one agent. A clone is the same table.
#[derive(Clone, Debug)]
pub struct FlowTable<F = FlowFacts>(Arc<Inner<F>>);

#[derive(Debug)]
struct Inner<F> {
    limit: usize,
    next: AtomicU64,
    live: Mutex<HashMap<u64, Entry<F>>>,
}

#[derive(Clone, Debug)]
struct Entry<F> {
    facts: Arc<F>,
    cut: Cut,
}

/// How a flow learns that it must end.
#[derive(Clone, Debug, Default)]
pub struct Cut {
    token: CancellationToken,
    denial: Arc<OnceLock<Box<Denial>>>,
    by_rule: Arc<AtomicBool>,
    code: Arc<OnceLock<ResetCode>>,
}

impl Cut {
    /// Waits until the flow must end, and says why. Cancel-safe.
    pub async fn cut(&self) -> Option<Box<Denial>> {
        self.token.cancelled().await;
        self.denial.get().cloned()
    }

    /// Whether the flow must end.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Whether it must end because a rule or a mode refuses it now.
    #[must_use]
    pub fn is_by_rule(&self) -> bool {
        self.by_rule.load(Ordering::Relaxed)
    }

    /// Why it must end, when no rule is the reason.
    #[must_use]
    pub fn code(&self) -> Option<ResetCode> {
        self.code.get().copied()
    }

    fn by_rule(&self) {
        self.by_rule.store(true, Ordering::Relaxed);
        self.token.cancel();
    }
}

/// A flow's place in the table; given back when it is dropped.
#[derive(Debug)]
pub struct FlowPlace<F = FlowFacts> {
    table: FlowTable<F>,
    id: u64,
    /// What the flow is.
    pub facts: Arc<F>,
    /// How it learns that it must end.
    pub cut: Cut,
}

impl<F> FlowPlace<F> {
    /// A number that no other flow of this agent's life has.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }
}

impl<F> Drop for FlowPlace<F> {
    fn drop(&mut self) {
        self.table.lock().remove(&self.id);
    }
}

impl<F> FlowTable<F> {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Entry<F>>> {
        // No code that holds the lock can leave the map half-changed.
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Clone> FlowTable<F> {
    /// An empty table for at most `limit` flows.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner { limit, next: AtomicU64::new(1), live: Mutex::default() }))
    }

    /// Enters a flow. Decide it only after this, with a snapshot loaded after this.
    ///
    /// # Errors
    ///
    /// [`TooManyFlows`] at the limit.
    pub fn enter(&self, facts: F) -> Result<FlowPlace<F>, TooManyFlows> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (facts, cut) = (Arc::new(facts), Cut::default());
        let mut live = self.lock();
        if live.len() >= self.0.limit {
            return Err(TooManyFlows { limit: self.0.limit });
        }
        live.insert(id, Entry { facts: Arc::clone(&facts), cut: cut.clone() });
        drop(live);
        Ok(FlowPlace { table: Self(Arc::clone(&self.0)), id, facts, cut })
    }

    /// How many flows live.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none lives.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the live flows are, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<(u64, Arc<F>)> {
        self.lock().iter().map(|(id, entry)| (*id, Arc::clone(&entry.facts))).collect()
    }

    /// Cuts every flow that `which` names, without a denial (drain, shutdown). Returns how many.
    pub fn cut_where(&self, which: impl Fn(&F) -> bool) -> usize {
        let entries: Vec<_> = self.lock().values().filter(|entry| which(&entry.facts)).cloned().collect();
        entries.iter().for_each(|entry| entry.cut.token.cancel());
        entries.len()
    }

    /// Cuts every flow that `which` names, and says by `code` why. Returns how many.
    pub fn cut_with(&self, code: ResetCode, which: impl Fn(&F) -> bool) -> usize {
        let entries: Vec<_> = self.lock().values().filter(|entry| which(&entry.facts)).cloned().collect();
        for entry in &entries {
            // The first reason is the one that is told.
            let _ = entry.cut.code.set(code);
            entry.cut.token.cancel();
        }
        entries.len()
    }
}

impl FlowTable {
    /// Decides every live flow again with `snapshot`, which is in force already, and cuts those it refuses. Returns how
    /// many were cut.
    pub fn decide_again(&self, snapshot: &Snapshot) -> usize {
        let entries: Vec<_> = self.lock().values().cloned().collect();
        let refused = |entry: &Entry<FlowFacts>| {
            refusal(snapshot, &entry.facts).map(|denial| (entry.cut.clone(), denial))
        };
        let cuts: Vec<_> = entries.iter().filter_map(refused).collect();
        let count = cuts.len();
        for (cut, denial) in cuts {
            // The first refusal is the one that is told.
            let _ = cut.denial.set(denial);
            cut.by_rule();
        }
        count
    }
}

impl FlowTable<EgressFacts> {
    /// Cuts every live flow to the outside whose namespace may not go there any more. Returns how many.
    pub fn decide_again(&self, snapshot: &Snapshot) -> usize {
        let entries: Vec<_> = self.lock().values().cloned().collect();
        let refused: Vec<_> = entries
            .iter()
            .filter(|entry| snapshot.egress(&entry.facts.namespace) == EgressMode::Deny)
            .collect();
        refused.iter().for_each(|entry| entry.cut.by_rule());
        refused.len()
    }
}

/// Why `snapshot` refuses a live flow, if it does.
fn refusal(snapshot: &Snapshot, facts: &FlowFacts) -> Option<Box<Denial>> {
    match facts.direction {
        Direction::Inbound => {
            let request = CallRequest {
                source: Principal::Spiffe(&facts.source),
                service: &facts.target.service,
                port: facts.target.port,
                network: facts.network,
            };
            match snapshot.authorize(&request).decision {
                Decision::Allow(_) => None,
                Decision::Deny(denial) => Some(denial),
            }
        }
        // The destination decides; a destination that this agent forgot is no reason to cut a flow that lives.
        Direction::Outbound => match snapshot.permit_outbound(&facts.source, &facts.target) {
            Err(denial) if matches!(denial.reason, DenyReason::PolicyUnavailable(_)) => Some(denial),
            Ok(_) | Err(_) => None,
        },
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a test owns its time: it only needs some instant to count from"
)]
mod tests {
    use std::collections::BTreeMap;

    use weft_policy::model::{DefaultAuthorization, EgressMode, Mesh, Metadata};

    use super::*;

    fn facts() -> FlowFacts {
        FlowFacts {
            direction: Direction::Outbound,
            source: "spiffe://corp.example/ns/shop/sa/order".parse().unwrap(),
            target: Target {
                service: weft_policy::name::ServiceName::new(
                    "shop".parse().unwrap(),
                    "charge".parse().unwrap(),
                ),
                port: 80,
            },
            network: None,
            served_by: None,
            started: Instant::now(),
        }
    }

    fn mesh(egress: EgressMode) -> Mesh {
        let metadata = Metadata {
            namespace: None,
            name: "mesh".parse().unwrap(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            revision: 1,
        };
        let trust_domain = "corp.example".parse().unwrap();
        Mesh { metadata, trust_domain, default_authorization: DefaultAuthorization::Deny, egress }
    }

    #[test]
    fn a_dropped_flow_gives_its_place_back() {
        let table = FlowTable::new(2);
        let first = table.enter(facts()).unwrap();
        let _second = table.enter(facts()).unwrap();
        assert_eq!(table.enter(facts()).unwrap_err(), TooManyFlows { limit: 2 });
        drop(first);
        assert!(table.enter(facts()).is_ok());
    }

    #[tokio::test]
    async fn a_flow_to_the_outside_is_cut_when_its_namespace_may_not_go_there_any_more() {
        let table = FlowTable::new(2);
        let source: SpiffeId = "spiffe://corp.example/ns/shop/sa/order".parse().unwrap();
        let place = table.enter(EgressFacts { source, namespace: "shop".parse().unwrap() }).unwrap();
        let context =
            weft_policy::snapshot::SnapshotContext { trust_domain: "corp.example".parse().unwrap() };
        let with = |egress| {
            let mut view = weft_policy::snapshot::View::new();
            view.insert(weft_policy::snapshot::ViewObject::Mesh(Arc::new(mesh(egress))));
            Snapshot::build(Arc::new(view), weft_policy::snapshot::Revision(1), context.clone()).unwrap()
        };
        assert_eq!(table.decide_again(&with(EgressMode::Allow)), 0);
        assert_eq!(table.decide_again(&with(EgressMode::Deny)), 1);
        assert!(place.cut.is_cut() && place.cut.is_by_rule());
        assert_eq!(place.cut.cut().await, None);
    }

    #[tokio::test]
    async fn a_cut_flow_learns_of_it() {
        let table = FlowTable::new(2);
        let place = table.enter(facts()).unwrap();
        assert!(!place.cut.is_cut());
        assert_eq!(table.cut_where(|facts| facts.direction == Direction::Outbound), 1);
        assert_eq!(place.cut.cut().await, None);
    }

    #[tokio::test]
    async fn a_flow_that_is_cut_for_a_reason_tells_the_first_one() {
        let table = FlowTable::new(2);
        let place = table.enter(facts()).unwrap();
        assert_eq!(place.cut.code(), None);
        let mine: SpiffeId = "spiffe://corp.example/ns/shop/sa/order".parse().unwrap();
        assert_eq!(table.cut_with(ResetCode::IdentityRevoked, |facts| facts.source == mine), 1);
        assert_eq!(table.cut_with(ResetCode::Drain, |_| true), 1);
        assert_eq!(place.cut.cut().await, None);
        assert_eq!((place.cut.code(), place.cut.is_by_rule()), (Some(ResetCode::IdentityRevoked), false));
    }
}
