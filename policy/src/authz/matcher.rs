//! Rules compiled for one target, and their three-valued evaluation.
//!
//! A clause is true, false, or [`Truth::Unknown`] when the fact it asks for is missing or it says nothing itself. An
//! ALLOW needs true, a DENY fires on true and on unknown (security.md 7.2, point 2): what is lost or cannot be decided
//! never opens anything. Order of policies and rules never matters: ties go to the smaller name.

use std::{cmp::Ordering, net::IpAddr, sync::Arc};

use weft_identity::spiffe::{SpiffeId, TrustDomain};

use super::{
    CallRequest, Principal,
    trie::{Candidate, Entry, IdentityTrie, Near},
};
use crate::{
    model::{
        AuthorizationPolicy, Service,
        authorization::{Action, Mode, PortRef, Rule, Source},
    },
    name::ObjectName,
    pattern::IdentityPattern,
};

/// What is known of a clause: Kleene's three values, ordered so that `and` is the minimum and `or` the maximum.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Truth {
    /// It does not hold.
    False,
    /// It cannot be said.
    Unknown,
    /// It holds.
    True,
}

impl Truth {
    /// Whether any of `parts` holds. No part at all says nothing: unknown, so that an emptied list never widens.
    fn any(parts: impl IntoIterator<Item = Self>) -> Self {
        parts.into_iter().max().unwrap_or(Self::Unknown)
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// A clause of a rule, in the order in which clauses are told.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Clause {
    /// Who calls.
    Source,
    /// Which port.
    Ports,
    /// From where.
    Networks,
}

/// One rule of one policy. Cloning shares it. Ordered by namespace, policy and rule name.
#[derive(Clone, Debug)]
pub struct RuleRef {
    policy: Arc<AuthorizationPolicy>,
    index: usize,
}

impl RuleRef {
    /// The policy it stands in.
    #[must_use]
    pub fn policy(&self) -> &AuthorizationPolicy {
        &self.policy
    }

    /// The rule itself.
    #[must_use]
    pub fn rule(&self) -> &Rule {
        &self.policy.rules[self.index]
    }

    /// The rule's name.
    #[must_use]
    pub fn name(&self) -> &ObjectName {
        &self.rule().name
    }

    /// The policy as `name.namespace`, for labels, logs and messages between the planes.
    #[must_use]
    pub fn policy_id(&self) -> String {
        format!("{}.{}", self.policy.metadata.name, self.policy.metadata.owner())
    }

    fn sort_key(&self) -> (Option<&str>, &str, &str) {
        let metadata = &self.policy.metadata;
        let namespace = metadata.namespace.as_ref().map(crate::name::Namespace::as_str);
        (namespace, metadata.name.as_str(), self.name().as_str())
    }
}

impl PartialEq for RuleRef {
    fn eq(&self, other: &Self) -> bool {
        self.sort_key() == other.sort_key()
    }
}

impl Eq for RuleRef {}

impl PartialOrd for RuleRef {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RuleRef {
    fn cmp(&self, other: &Self) -> Ordering {
        self.sort_key().cmp(&other.sort_key())
    }
}

/// How the clauses of one rule stood against one call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RuleMatch {
    /// The rule.
    pub rule: RuleRef,
    /// Whether the caller is one of its sources.
    pub source: Truth,
    /// Whether the port is one of its ports.
    pub ports: Truth,
    /// Whether the caller dials from one of its networks.
    pub networks: Truth,
}

impl RuleMatch {
    /// Whether the whole rule matches: all of its clauses.
    #[must_use]
    pub fn verdict(&self) -> Truth {
        self.source.min(self.ports).min(self.networks)
    }

    /// The first clause that does not hold, in the order source, ports, networks.
    #[must_use]
    pub fn first_failing(&self) -> Option<Clause> {
        let clauses =
            [(Clause::Source, self.source), (Clause::Ports, self.ports), (Clause::Networks, self.networks)];
        clauses.into_iter().find(|(_, truth)| *truth != Truth::True).map(|(clause, _)| clause)
    }
}

/// The rules that are attached to one target, indexed by who they speak of.
#[derive(Debug)]
pub(crate) struct RuleSet {
    policies: Vec<Arc<AuthorizationPolicy>>,
    /// In the order of their names.
    rules: Vec<RuleRef>,
    identities: IdentityTrie,
    /// Sources that any authenticated caller is.
    authenticated: Vec<Entry>,
    /// Rules whose list of sources is lost: nobody knows whom they mean.
    sourceless: Vec<u32>,
    /// The first rule that could allow, named when no other comes nearer.
    first_allow: Option<u32>,
}

/// What an evaluation found, over all sets of a destination.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// The first enforced DENY that fires.
    pub(crate) deny: Option<RuleMatch>,
    /// The first enforced ALLOW that matches.
    pub(crate) allow: Option<RuleMatch>,
    /// The enforced ALLOW that came nearest without matching.
    pub(crate) nearest: Option<Nearest>,
    /// Rules in DryRun that would have had an effect, in order.
    pub(crate) shadow: Vec<RuleMatch>,
}

/// A rule that did not match, and how much of it did.
#[derive(Debug)]
pub(crate) struct Nearest {
    pub(crate) found: RuleMatch,
    /// How much of the caller's name the rule's source shares; all of it when the source matches.
    depth: usize,
}

impl Nearest {
    /// Greater is nearer: first who, then how nearly who, then the rest in the order of the clauses.
    fn rank(&self) -> (bool, usize, bool, bool) {
        let holds = |truth| truth == Truth::True;
        (holds(self.found.source), self.depth, holds(self.found.ports), holds(self.found.networks))
    }
}

impl RuleSet {
    /// Compiles the rules of `policies`. `local` is the trust domain that service accounts belong to.
    pub(crate) fn compile(policies: &[Arc<AuthorizationPolicy>], local: &TrustDomain) -> Self {
        let mut rules: Vec<_> = policies
            .iter()
            .flat_map(|policy| {
                (0..policy.rules.len()).map(|index| RuleRef { policy: Arc::clone(policy), index })
            })
            .collect();
        rules.sort();
        let mut set = Self {
            policies: policies.to_vec(),
            rules: Vec::new(),
            identities: IdentityTrie::default(),
            authenticated: Vec::new(),
            sourceless: Vec::new(),
            first_allow: None,
        };
        for (rule, index) in rules.iter().zip(0..) {
            set.index(rule, index, local);
        }
        set.rules = rules;
        set
    }

    /// Whether it was compiled from these very objects, so that it can be used again.
    pub(crate) fn is_of(&self, policies: &[Arc<AuthorizationPolicy>]) -> bool {
        let same = |(a, b): (&Arc<AuthorizationPolicy>, &Arc<AuthorizationPolicy>)| Arc::ptr_eq(a, b);
        self.policies.len() == policies.len() && self.policies.iter().zip(policies).all(same)
    }

    /// The policies it was compiled from.
    pub(crate) fn policies(&self) -> &[Arc<AuthorizationPolicy>] {
        &self.policies
    }

    fn index(&mut self, rule: &RuleRef, index: u32, local: &TrustDomain) {
        let candidate = if is_enforced_allow(rule) { Candidate::Nearest } else { Candidate::No };
        if candidate == Candidate::Nearest && self.first_allow.is_none() {
            self.first_allow = Some(index);
        }
        if rule.rule().sources.is_empty() {
            self.sourceless.push(index);
        }
        for (source, number) in rule.rule().sources.iter().zip(0..) {
            let entry = Entry { rule: index, source: number };
            match source {
                Source::Spiffe { pattern, .. } => self.identities.insert(pattern, entry, candidate),
                Source::ServiceAccount { .. } => match service_account(source, local) {
                    Some(id) => self.identities.insert(&IdentityPattern::exactly(&id), entry, candidate),
                    None => self.sourceless.push(index),
                },
                Source::Any => self.authenticated.push(entry),
                // Only plain callers are, and for them every rule is looked at.
                Source::Unauthenticated => {}
            }
        }
    }

    fn at(&self, index: u32) -> &RuleRef {
        &self.rules[index as usize]
    }

    /// Tells `visit` each rule that may matter to the caller and whether the caller is one of its sources; gives the
    /// rule whose source came nearest.
    fn for_caller(&self, principal: Principal<'_>, mut visit: impl FnMut(&RuleRef, Truth)) -> Option<Near> {
        let Principal::Spiffe(id) = principal else {
            self.rules.iter().for_each(|rule| visit(rule, plain_caller(rule.rule())));
            return None;
        };
        let near = self.identities.walk(id, |entry| {
            let rule = self.at(entry.rule);
            visit(rule, (!is_excepted(&rule.rule().sources[entry.source as usize], id)).into());
        });
        for entry in &self.authenticated {
            visit(self.at(entry.rule), Truth::True);
        }
        for index in &self.sourceless {
            visit(self.at(*index), Truth::Unknown);
        }
        near
    }
}

/// Evaluates one call against all `sets` of its destination.
pub(crate) fn evaluate(sets: &[Arc<RuleSet>], service: &Service, request: &CallRequest<'_>) -> Findings {
    let mut findings = Findings::default();
    for set in sets {
        let near = set.for_caller(request.source, |rule, source| {
            findings.consider(clauses(rule, source, service, request));
        });
        let named =
            near.map(|near| (near.rule, near.depth)).or_else(|| set.first_allow.map(|rule| (rule, 0)));
        if let (None, Some((index, depth))) = (&findings.allow, named) {
            let found = clauses(set.at(index), Truth::False, service, request);
            findings.offer_nearest(Nearest { found, depth });
        }
    }
    findings.shadow.sort_by(|a, b| a.rule.cmp(&b.rule));
    findings.shadow.dedup_by(|a, b| a.rule == b.rule);
    findings
}

impl Findings {
    fn consider(&mut self, found: RuleMatch) {
        let fires = match found.rule.policy.action {
            Action::Allow => found.verdict() == Truth::True,
            Action::Deny => found.verdict() != Truth::False,
        };
        match (found.rule.policy.mode, found.rule.policy.action, fires) {
            (Mode::Enforce, Action::Deny, true) => keep_first(&mut self.deny, found),
            (Mode::Enforce, Action::Allow, true) => keep_first(&mut self.allow, found),
            (Mode::Enforce, Action::Allow, false) => self.offer_nearest(Nearest { found, depth: usize::MAX }),
            (Mode::DryRun, _, true) => self.shadow.push(found),
            (Mode::Enforce, Action::Deny, false) | (Mode::DryRun, _, false) => {}
        }
    }

    /// Takes `offered` if it is nearer than the one at hand, or as near and of a smaller name.
    fn offer_nearest(&mut self, offered: Nearest) {
        let nearer = self.nearest.as_ref().is_none_or(|held| match offered.rank().cmp(&held.rank()) {
            Ordering::Greater => true,
            Ordering::Less => false,
            Ordering::Equal => offered.found.rule < held.found.rule,
        });
        if nearer {
            self.nearest = Some(offered);
        }
    }
}

fn keep_first(held: &mut Option<RuleMatch>, found: RuleMatch) {
    if held.as_ref().is_none_or(|held| found.rule < held.rule) {
        *held = Some(found);
    }
}

fn is_enforced_allow(rule: &RuleRef) -> bool {
    rule.policy.action == Action::Allow && rule.policy.mode == Mode::Enforce
}

fn clauses(rule: &RuleRef, source: Truth, service: &Service, request: &CallRequest<'_>) -> RuleMatch {
    let ports = ports_hold(rule.rule(), service, request.port);
    let networks = networks_hold(rule.rule(), request.network);
    RuleMatch { rule: rule.clone(), source, ports, networks }
}

/// Whether the port is one of the rule's. A name that the service does not have is a reference to nothing: unknown.
fn ports_hold(rule: &Rule, service: &Service, port: u16) -> Truth {
    rule.ports.as_ref().map_or(Truth::True, |ports| {
        Truth::any(ports.iter().map(|reference| {
            match reference {
                PortRef::Number(number) => (*number == port).into(),
                PortRef::Name(name) => service
                    .port_named(name.as_str())
                    .map_or(Truth::Unknown, |named| (named.number == port).into()),
            }
        }))
    })
}

fn networks_hold(rule: &Rule, address: Option<IpAddr>) -> Truth {
    let Some(networks) = &rule.networks else { return Truth::True };
    let Some(address) = address.map(|address| address.to_canonical()) else { return Truth::Unknown };
    Truth::any(networks.iter().map(|network| network.contains(&address).into()))
}

/// Whether a caller without identity is one of the rule's sources. Whether it is authenticated is known; who it is, is
/// not: so a DENY of an identity cannot be escaped by leaving the certificate away.
fn plain_caller(rule: &Rule) -> Truth {
    Truth::any(rule.sources.iter().map(|source| match source {
        Source::Spiffe { .. } | Source::ServiceAccount { .. } => Truth::Unknown,
        Source::Any => Truth::False,
        Source::Unauthenticated => Truth::True,
    }))
}

fn is_excepted(source: &Source, id: &SpiffeId) -> bool {
    match source {
        Source::Spiffe { except, .. } => except.iter().any(|pattern| pattern.matches(id)),
        Source::ServiceAccount { .. } | Source::Any | Source::Unauthenticated => false,
    }
}

/// The SPIFFE ID that a service account source means; `None` for other sources, and for names too long to be one.
fn service_account(source: &Source, local: &TrustDomain) -> Option<SpiffeId> {
    match source {
        Source::ServiceAccount { namespace, name } => {
            SpiffeId::workload(local, namespace.as_str(), name.as_str()).ok()
        }
        Source::Spiffe { .. } | Source::Any | Source::Unauthenticated => None,
    }
}

/// Whether one source alone names the caller; for texts, after the rule as a whole was evaluated.
pub(super) fn names_caller(source: &Source, principal: Principal<'_>, local: &TrustDomain) -> bool {
    match (source, principal) {
        (Source::Spiffe { pattern, .. }, Principal::Spiffe(id)) => {
            pattern.matches(id) && !is_excepted(source, id)
        }
        (Source::ServiceAccount { .. }, Principal::Spiffe(id)) => {
            service_account(source, local).as_ref() == Some(id)
        }
        (Source::Any, Principal::Spiffe(_)) | (Source::Unauthenticated, Principal::Unauthenticated) => true,
        (Source::Unauthenticated, Principal::Spiffe(_))
        | (Source::Spiffe { .. } | Source::ServiceAccount { .. } | Source::Any, Principal::Unauthenticated) => {
            false
        }
    }
}

/// Whether the caller falls under an exception of one of the rule's sources; for texts.
pub(super) fn excepts_caller(rule: &Rule, principal: Principal<'_>) -> bool {
    match principal {
        Principal::Spiffe(id) => rule.sources.iter().any(|source| match source {
            Source::Spiffe { pattern, .. } => pattern.matches(id) && is_excepted(source, id),
            Source::ServiceAccount { .. } | Source::Any | Source::Unauthenticated => false,
        }),
        Principal::Unauthenticated => false,
    }
}
