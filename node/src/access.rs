//! What is noted of one flow from its first byte to its last, and told once at its end.
//!
//! One access-log line, the flow's counters, and nothing while it lives.

use std::{
    net::SocketAddr,
    time::{Instant, SystemTime},
};

use weft_identity::spiffe::SpiffeId;
use weft_overlay::Accepted;
use weft_policy::{
    authz::{
        Authorization, Basis, Decision,
        explain::{EXPLAIN_ANNOTATION, TO_CALLER},
    },
    code::CodeId,
    model::Endpoint,
    route::Target,
};

use crate::{error::FlowError, flows::Direction, relay::Transfer, report::side_of, shared::Shared};

/// What was decided about a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// It may go on.
    Allow,
    /// It may not.
    Deny,
}

/// The notes of one flow.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) direction: Direction,
    /// Who calls, proven.
    pub(crate) source: SpiffeId,
    pub(crate) started: Instant,
    pub(crate) time: SystemTime,
    /// The flow's number on this agent, 0 when it did not get that far.
    pub(crate) id: u64,
    /// The other side's address: the program's at the caller, the agent's at the destination.
    pub(crate) address: Option<SocketAddr>,
    pub(crate) target: Option<Target>,
    /// Who serves: the local workload inbound, the chosen endpoint outbound.
    pub(crate) local: Option<SpiffeId>,
    /// A destination outside the mesh.
    pub(crate) outside: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) tunnel: Option<(u64, SocketAddr)>,
    /// tunnel | local | egress.
    pub(crate) path: &'static str,
    /// How the program said where it wants to go.
    pub(crate) protocol: &'static str,
    pub(crate) attempt: usize,
    /// What was decided here, or what the other agent said.
    pub(crate) verdict: Option<Verdict>,
    /// Whether the flow was counted as live.
    pub(crate) began: bool,
    pub(crate) policy: String,
    pub(crate) rule: String,
    pub(crate) code: Option<CodeId>,
    /// Whether the deciding policy lets the caller see it.
    pub(crate) explained: bool,
}

impl Record {
    /// Notes of a flow that begins.
    pub(crate) const fn new(
        direction: Direction,
        source: SpiffeId,
        started: Instant,
        time: SystemTime,
    ) -> Self {
        Self {
            direction,
            source,
            started,
            time,
            id: 0,
            address: None,
            target: None,
            local: None,
            outside: None,
            node: None,
            tunnel: None,
            path: "tunnel",
            protocol: "tcp",
            attempt: 0,
            verdict: None,
            began: false,
            policy: String::new(),
            rule: String::new(),
            code: None,
            explained: false,
        }
    }

    /// The endpoint that is tried now.
    pub(crate) fn endpoint(&mut self, endpoint: &Endpoint, attempt: usize) {
        self.local = Some(endpoint.identity.clone());
        self.node = Some(endpoint.node.to_string());
        self.attempt = attempt;
    }

    /// The tunnel that carries it.
    pub(crate) const fn tunnel(&mut self, id: u64, address: SocketAddr) {
        self.tunnel = Some((id, address));
    }

    /// What the other agent said with its acceptance.
    pub(crate) fn accepted(&mut self, accepted: &Accepted) {
        self.verdict = Some(Verdict::Allow);
        if let Some(policy) = &accepted.policy {
            self.policy.clone_from(&policy.policy);
            self.rule.clone_from(&policy.rule);
        }
    }

    /// What was decided here.
    pub(crate) fn decided(&mut self, authorization: &Authorization) {
        let rule = authorization.decision.rule();
        if let Some(rule) = rule {
            self.policy = rule.policy_id();
            self.rule = rule.name().to_string();
            let told = rule.policy().metadata.annotations.get(EXPLAIN_ANNOTATION);
            self.explained = told.is_some_and(|value| value == TO_CALLER);
        }
        match &authorization.decision {
            Decision::Allow(permit) => {
                self.verdict = Some(Verdict::Allow);
                if let Basis::Default(origin, _) = permit.basis() {
                    self.policy = format!("default:{}", origin.name());
                }
                self.code = authorization.audit.as_ref().map(|denial| denial.code);
            }
            Decision::Deny(denial) => {
                self.verdict = Some(Verdict::Deny);
                self.code = Some(denial.code);
            }
        }
    }

    /// The flow counts as live from now on.
    pub(crate) fn begins(&mut self, shared: &Shared) {
        self.began = true;
        shared.report.metrics.flow_began(side_of(self.direction));
    }

    /// The destination's program has accepted, or bytes may flow towards it.
    pub(crate) fn connected(&self, shared: &Shared) {
        let took = shared.clock.now().saturating_duration_since(self.started);
        shared.report.metrics.flow_opened(took);
    }

    /// Tells the log and the counters.
    pub(crate) fn finish(mut self, shared: &Shared, outcome: Result<Transfer, FlowError>) {
        if let Err(error) = &outcome {
            let class = error.class();
            self.code = Some(class.code);
            if matches!(error, FlowError::Denied(_)) {
                self.verdict = Some(Verdict::Deny);
            }
        }
        shared.report.flow_ended(&self, &outcome, shared.clock.now());
    }
}
