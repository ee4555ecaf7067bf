//! Who may call: one decision per flow, with its reasons.
//!
//! ```text
//! a policy of the target cannot be read ─▶ Deny(PolicyUnavailable)
//! an enforced DENY fires               ─▶ Deny(DenyRule)      DENY wins, whatever the order
//! an enforced ALLOW matches            ─▶ Permit
//! nothing does                         ─▶ the default: Deny(NoAllow), or Permit when it is Audit or Allow
//! ```
//!
//! Invariant: only [`Snapshot::authorize`] and [`Snapshot::permit_outbound`] make a [`Permit`], and nothing is dialled
//! without one. The decision that counts is the destination's; the source's side refuses only what cannot be decided.

pub mod explain;
pub(crate) mod matcher;
#[cfg(test)]
mod tests;
mod trie;

use std::{net::IpAddr, sync::Arc};

use weft_identity::spiffe::SpiffeId;

pub use self::matcher::{Clause, RuleMatch, RuleRef, Truth};
use crate::{
    code::{self, CodeId},
    model::{DefaultAuthorization, authorization::Action},
    name::ServiceName,
    route::Target,
    snapshot::{DefaultOrigin, Destination, Revision, Snapshot, Unreadable},
};

/// Who calls, as proven by the handshake.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Principal<'a> {
    /// The SPIFFE ID of the certificate.
    Spiffe(&'a SpiffeId),
    /// A plain caller of a permissive service.
    Unauthenticated,
}

/// A call to be decided.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CallRequest<'a> {
    /// Who calls.
    pub source: Principal<'a>,
    /// What it calls.
    pub service: &'a ServiceName,
    /// The service's port, not the program's.
    pub port: u16,
    /// The address that the caller's node dials from, if known. Only rules with networks ask for it.
    pub network: Option<IpAddr>,
}

/// The answer, and what rules in DryRun would have said.
#[derive(Clone, Debug, PartialEq)]
pub struct Authorization {
    /// What is to be done.
    pub decision: Decision,
    /// Rules in DryRun that would have had an effect, in the order of their names.
    pub shadow: Vec<ShadowVerdict>,
    /// With the default Audit: what Deny would have refused.
    pub audit: Option<Box<Denial>>,
}

/// Whether the call may go on.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It may.
    Allow(Permit),
    /// It may not.
    Deny(Box<Denial>),
}

/// Leave to connect one caller to one service port. Only this module makes one.
#[derive(Clone, Debug, PartialEq)]
pub struct Permit {
    source: Option<SpiffeId>,
    target: Target,
    basis: Basis,
    revision: Revision,
}

/// What a permit rests on.
#[derive(Clone, Debug, PartialEq)]
pub enum Basis {
    /// An ALLOW rule of the destination.
    Rule(RuleMatch),
    /// No rule: the default is Audit or Allow.
    Default(DefaultOrigin, DefaultAuthorization),
    /// The source's side, where the destination is known and it is the destination that decides.
    Outbound,
}

impl Permit {
    /// Who may call; `None` for a plain caller.
    #[must_use]
    pub const fn source(&self) -> Option<&SpiffeId> {
        self.source.as_ref()
    }

    /// What it may call.
    #[must_use]
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// What it rests on.
    #[must_use]
    pub const fn basis(&self) -> &Basis {
        &self.basis
    }

    /// The rule it rests on; `None` for a default or the source's side.
    #[must_use]
    pub const fn rule(&self) -> Option<&RuleRef> {
        match &self.basis {
            Basis::Rule(found) => Some(&found.rule),
            Basis::Default(..) | Basis::Outbound => None,
        }
    }

    /// The revision of the snapshot that decided.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }
}

/// A refusal: what an operator needs to find the reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Denial {
    /// Its code in the catalogue.
    pub code: CodeId,
    /// Why.
    pub reason: DenyReason,
    /// Who called; `None` for a plain caller.
    pub source: Option<SpiffeId>,
    /// What was called.
    pub target: Target,
    /// The ALLOW rule that came nearest, if no rule allowed.
    pub nearest: Option<RuleMatch>,
    /// The revision of the snapshot that decided; `None` when there was none.
    pub revision: Option<Revision>,
}

/// Why a call is refused. One variant per cause an operator would treat differently.
#[derive(Clone, Debug, PartialEq)]
pub enum DenyReason {
    /// This agent has never had a snapshot.
    NoSnapshot,
    /// The snapshot does not know the service.
    UnknownService,
    /// The service has no such port.
    UnknownPort,
    /// A policy of the service cannot be read.
    PolicyUnavailable(Arc<Unreadable>),
    /// A DENY rule fires.
    DenyRule(Box<RuleMatch>),
    /// No ALLOW rule matches and the default is Deny (or Audit, in [`Authorization::audit`]).
    NoAllow(DefaultOrigin, DefaultAuthorization),
}

/// What a rule in DryRun would have done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ShadowVerdict {
    /// The rule and how its clauses stood.
    pub found: RuleMatch,
    /// Whether enforcing it would change the decision.
    pub impact: Impact,
}

/// Whether enforcing a rule in DryRun would change the decision.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Impact {
    /// An allowed call would be refused.
    WouldDeny,
    /// A refused call would be allowed.
    WouldAllow,
    /// The decision would stay.
    None,
}

impl Decision {
    /// Whether it is a permit.
    #[must_use]
    pub const fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// The permit, or the refusal.
    ///
    /// # Errors
    ///
    /// The denial.
    pub fn into_result(self) -> Result<Permit, Box<Denial>> {
        match self {
            Self::Allow(permit) => Ok(permit),
            Self::Deny(denial) => Err(denial),
        }
    }

    /// The rule that decided: the ALLOW of a permit or the DENY of a refusal.
    #[must_use]
    pub fn rule(&self) -> Option<&RuleRef> {
        match self {
            Self::Allow(permit) => permit.rule(),
            Self::Deny(denial) => denial.rule(),
        }
    }
}

impl Denial {
    /// The refusal of everything by an agent that has no snapshot yet (fail closed; ztunnel#77).
    #[must_use]
    pub fn without_snapshot(request: &CallRequest<'_>) -> Box<Self> {
        Self::new(request, DenyReason::NoSnapshot, None, None)
    }

    /// The DENY rule that fired, if that is the reason.
    #[must_use]
    pub fn rule(&self) -> Option<&RuleRef> {
        match &self.reason {
            DenyReason::DenyRule(found) => Some(&found.rule),
            DenyReason::NoSnapshot
            | DenyReason::UnknownService
            | DenyReason::UnknownPort
            | DenyReason::PolicyUnavailable(_)
            | DenyReason::NoAllow(..) => None,
        }
    }

    fn new(
        request: &CallRequest<'_>,
        reason: DenyReason,
        nearest: Option<RuleMatch>,
        revision: Option<Revision>,
    ) -> Box<Self> {
        let code = match &reason {
            DenyReason::NoSnapshot => code::NO_SNAPSHOT,
            DenyReason::UnknownService => code::UNKNOWN_SERVICE,
            DenyReason::UnknownPort => code::UNKNOWN_PORT,
            DenyReason::PolicyUnavailable(_) => code::POLICY_UNAVAILABLE,
            DenyReason::DenyRule(_) => code::DENY_RULE,
            DenyReason::NoAllow(..) => code_without_allow(request, nearest.as_ref()),
        };
        Box::new(Self { code, reason, source: request.owner(), target: request.target(), nearest, revision })
    }
}

/// The code of a call that no rule allows: what the nearest rule lacks.
fn code_without_allow(request: &CallRequest<'_>, nearest: Option<&RuleMatch>) -> CodeId {
    match (nearest.and_then(RuleMatch::first_failing), request.source) {
        (Some(Clause::Ports), _) => code::PORT_NOT_ALLOWED,
        (Some(Clause::Networks), _) => code::NETWORK_NOT_ALLOWED,
        (Some(Clause::Source) | None, Principal::Unauthenticated) => code::UNAUTHENTICATED_CALLER,
        (Some(Clause::Source) | None, Principal::Spiffe(_)) => code::NO_ALLOW,
    }
}

impl CallRequest<'_> {
    fn owner(&self) -> Option<SpiffeId> {
        match self.source {
            Principal::Spiffe(id) => Some(id.clone()),
            Principal::Unauthenticated => None,
        }
    }

    fn target(&self) -> Target {
        Target { service: self.service.clone(), port: self.port }
    }
}

impl Snapshot {
    /// Decides a call at its destination.
    #[must_use]
    pub fn authorize(&self, request: &CallRequest<'_>) -> Authorization {
        let Some(destination) = self.destination(request.service) else {
            let denial = Denial::new(request, DenyReason::UnknownService, None, Some(self.revision()));
            return Authorization { decision: Decision::Deny(denial), shadow: Vec::new(), audit: None };
        };
        let findings = matcher::evaluate(destination.rules(), destination.service(), request);
        let nearest = findings.nearest.map(|nearest| nearest.found);
        let mut audit = None;
        let verdict = if let Some(object) = destination.unreadable().first() {
            Err((DenyReason::PolicyUnavailable(Arc::clone(object)), None))
        } else if let Some(found) = findings.deny {
            Err((DenyReason::DenyRule(Box::new(found)), None))
        } else if let Some(found) = findings.allow {
            Ok(Basis::Rule(found))
        } else {
            let (origin, default) = destination.default_authorization();
            let refusal = DenyReason::NoAllow(origin, default);
            match default {
                DefaultAuthorization::Deny => Err((refusal, nearest)),
                DefaultAuthorization::Audit => {
                    audit = Some(Denial::new(request, refusal, nearest, Some(self.revision())));
                    Ok(Basis::Default(origin, default))
                }
                DefaultAuthorization::Allow => Ok(Basis::Default(origin, default)),
            }
        };
        let decision = self.conclude(destination, request, verdict);
        let shadow = findings.shadow.into_iter().map(|found| ShadowVerdict::new(found, &decision)).collect();
        Authorization { decision, shadow, audit }
    }

    /// Turns the verdict of the rules into a decision. Whoever is refused does not learn which ports there are, so the
    /// port is looked at last.
    fn conclude(
        &self,
        destination: &Destination,
        request: &CallRequest<'_>,
        verdict: Result<Basis, (DenyReason, Option<RuleMatch>)>,
    ) -> Decision {
        let deny =
            |reason, nearest| Decision::Deny(Denial::new(request, reason, nearest, Some(self.revision())));
        match verdict {
            Err((reason, nearest)) => deny(reason, nearest),
            Ok(_) if destination.service().port(request.port).is_none() => {
                deny(DenyReason::UnknownPort, None)
            }
            Ok(basis) => Decision::Allow(Permit {
                source: request.owner(),
                target: request.target(),
                basis,
                revision: self.revision(),
            }),
        }
    }

    /// Leave for a local workload to open a connection towards `target`.
    ///
    /// # Errors
    ///
    /// A denial when the destination is unknown, has no such port, or is closed because a policy of it cannot be read.
    /// Everything else is the destination's to decide.
    pub fn permit_outbound(&self, source: &SpiffeId, target: &Target) -> Result<Permit, Box<Denial>> {
        let request = CallRequest {
            source: Principal::Spiffe(source),
            service: &target.service,
            port: target.port,
            network: None,
        };
        let refuse = |reason| Err(Denial::new(&request, reason, None, Some(self.revision())));
        let Some(destination) = self.destination(&target.service) else {
            return refuse(DenyReason::UnknownService);
        };
        if let Some(object) = destination.unreadable().first() {
            return refuse(DenyReason::PolicyUnavailable(Arc::clone(object)));
        }
        if destination.service().port(target.port).is_none() {
            return refuse(DenyReason::UnknownPort);
        }
        Ok(Permit {
            source: Some(source.clone()),
            target: target.clone(),
            basis: Basis::Outbound,
            revision: self.revision(),
        })
    }
}

impl ShadowVerdict {
    fn new(found: RuleMatch, decision: &Decision) -> Self {
        let impact = match (found.rule.policy().action, decision) {
            (Action::Deny, Decision::Allow(_)) => Impact::WouldDeny,
            (Action::Allow, Decision::Deny(denial)) => match denial.reason {
                DenyReason::NoAllow(..) => Impact::WouldAllow,
                DenyReason::NoSnapshot
                | DenyReason::UnknownService
                | DenyReason::UnknownPort
                | DenyReason::PolicyUnavailable(_)
                | DenyReason::DenyRule(_) => Impact::None,
            },
            (Action::Deny, Decision::Deny(_)) | (Action::Allow, Decision::Allow(_)) => Impact::None,
        };
        Self { found, impact }
    }
}
