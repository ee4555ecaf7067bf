//! A decision in words: what happened, why, and what to type next (cli.md 5.1).
//!
//! Says nothing that the evaluation did not find: the clauses and their values come from the [`Authorization`] itself,
//! here they only get their texts. `weft policy check`, logs and refusals all read from here.

use std::{fmt::Display, sync::Arc};

use weft_identity::spiffe::{IdKind, SpiffeId};

use super::{
    Authorization, Basis, CallRequest, Clause, Decision, Denial, DenyReason, Impact, Permit, Principal,
    RuleMatch, RuleRef, Truth, matcher,
};
use crate::{
    code::{self, CodeId},
    model::{
        AuthorizationPolicy, DefaultAuthorization, Service,
        authorization::{Action, PortRef, Source},
    },
    name::Namespace,
    route::Target,
    snapshot::{DefaultOrigin, Destination, Snapshot, Unreadable},
};

/// The annotation that lets callers see policy and rule, with the value [`TO_CALLER`].
pub const EXPLAIN_ANNOTATION: &str = "weft.mesh/explain-denials";
/// The value of [`EXPLAIN_ANNOTATION`] that does.
pub const TO_CALLER: &str = "to-caller";
/// The annotation that says why an object exists.
pub const REASON_ANNOTATION: &str = "weft.mesh/reason";

/// The most items of one list that are told; the rest is counted.
const TOLD: usize = 3;

/// A decision for a person.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Explanation {
    /// The code: of the refusal, or of a warning about an allowed call.
    pub code: Option<CodeId>,
    /// What happened, in one line.
    pub what: String,
    /// The facts, one line each; clauses stand in columns.
    pub why: Vec<String>,
    /// What to do next, one line each, with a command that can be pasted.
    pub fix: Vec<String>,
}

impl Snapshot {
    /// Decides a call and says why: exactly what [`Snapshot::authorize`] decides.
    #[must_use]
    pub fn explain(&self, request: &CallRequest<'_>) -> (Authorization, Explanation) {
        let authorization = self.authorize(request);
        let explanation = explain(self, request, &authorization);
        (authorization, explanation)
    }
}

/// Puts a decision into words. `authorization` must be what `snapshot` answered to `request`.
#[must_use]
pub fn explain(snapshot: &Snapshot, request: &CallRequest<'_>, authorization: &Authorization) -> Explanation {
    let teller =
        Teller { snapshot, request, destination: snapshot.destination(request.service).map(Arc::as_ref) };
    let mut explanation = match &authorization.decision {
        Decision::Allow(permit) => teller.allowed(permit, authorization.audit.as_deref()),
        Decision::Deny(denial) => teller.denied(denial),
    };
    for verdict in &authorization.shadow {
        let effect = match verdict.found.rule.policy().action {
            Action::Allow => "would allow it",
            Action::Deny => "would refuse it",
        };
        let changes = match verdict.impact {
            Impact::WouldDeny | Impact::WouldAllow => "",
            Impact::None => ", as the decision is anyway",
        };
        let (policy, rule) = (policy_title(verdict.found.rule.policy()), verdict.found.rule.name());
        explanation.why.push(format!("{policy} is in DryRun: its rule {rule} {effect}{changes}"));
        if verdict.impact == Impact::WouldDeny && explanation.code.is_none() {
            explanation.code = Some(code::DRY_RUN_DENY);
        }
    }
    explanation
}

impl Denial {
    /// The reason in one clause, for one-line output, logs and stream replies inside the mesh's operators' view.
    #[must_use]
    pub fn summary(&self) -> String {
        match &self.reason {
            DenyReason::NoSnapshot => self.code.title().to_owned(),
            DenyReason::UnknownService => format!("no service {} is known here", self.target.service),
            DenyReason::UnknownPort => format!("{} has no port {}", self.target.service, self.target.port),
            DenyReason::PolicyUnavailable(object) => format!("{} cannot be read: {}", object.key, object.why),
            DenyReason::DenyRule(found) => {
                format!("rule {} of {} denies it", found.rule.name(), found.rule.policy().metadata.name)
            }
            DenyReason::NoAllow(origin, default) => self.nearest_summary().unwrap_or_else(|| {
                let who = if self.source.is_some() { "this caller" } else { "plain callers" };
                let origin = origin_title(*origin, &self.target);
                format!("no policy allows {who} ({origin}, mode {})", default_title(*default).to_lowercase())
            }),
        }
    }

    /// What may be told to the caller: the code's title, and policy and rule only where the policy says so
    /// ([`EXPLAIN_ANNOTATION`]). A refused stranger learns nothing about the rules.
    #[must_use]
    pub fn caller_detail(&self) -> String {
        let open = |rule: &RuleRef| {
            rule.policy().metadata.annotations.get(EXPLAIN_ANNOTATION).is_some_and(|value| value == TO_CALLER)
        };
        let concerned = self.rule().or_else(|| self.nearest.as_ref().map(|found| &found.rule));
        if concerned.is_some_and(open) { self.summary() } else { self.code.title().to_owned() }
    }

    /// The nearest rule, when it names the caller and something else fails.
    fn nearest_summary(&self) -> Option<String> {
        let nearest = self.nearest.as_ref()?;
        let lacking = match nearest.first_failing()? {
            Clause::Source => return None,
            Clause::Ports => format!("port {}", self.target.port),
            Clause::Networks => "its network".to_owned(),
        };
        let policy = &nearest.rule.policy().metadata.name;
        Some(format!("rule {} of {policy} matches the caller but not {lacking}", nearest.rule.name()))
    }
}

/// One decision with what is needed to tell it.
struct Teller<'a> {
    snapshot: &'a Snapshot,
    request: &'a CallRequest<'a>,
    destination: Option<&'a Destination>,
}

impl Teller<'_> {
    fn allowed(&self, permit: &Permit, audit: Option<&Denial>) -> Explanation {
        let what = format!("connection allowed: {} may reach {}", self.caller(), self.callee());
        let mut explanation = Explanation { code: None, what, why: Vec::new(), fix: Vec::new() };
        match permit.basis() {
            Basis::Rule(found) => {
                let (policy, rule) = (policy_title(found.rule.policy()), found.rule.name());
                explanation.why.push(format!("{policy} allows it by its rule {rule}"));
                explanation.why.extend(self.clauses(found));
                explanation.why.extend(reason_given(found.rule.policy()));
            }
            Basis::Default(origin, default) => {
                explanation.why.push(self.default_line(*origin, *default));
            }
            Basis::Outbound => explanation.why.push("the destination's agent decides".to_owned()),
        }
        if let Some(denial) = audit {
            explanation.code = Some(code::AUDITED);
            explanation.why.extend(denial.nearest.iter().flat_map(|nearest| self.nearest(nearest)));
            explanation.fix.push(line("allow it for good:", &self.allow_command()));
        }
        explanation
    }

    fn denied(&self, denial: &Denial) -> Explanation {
        let verb = match denial.reason {
            DenyReason::UnknownService | DenyReason::UnknownPort => "connection refused",
            DenyReason::NoSnapshot
            | DenyReason::PolicyUnavailable(_)
            | DenyReason::DenyRule(_)
            | DenyReason::NoAllow(..) => "connection denied",
        };
        let what = format!("{verb}: {} may not reach {}", self.caller(), self.callee());
        let (why, fix) = match &denial.reason {
            DenyReason::NoSnapshot => catalogue_words(denial.code),
            DenyReason::UnknownService => self.unknown_service(denial),
            DenyReason::UnknownPort => self.unknown_port(denial),
            DenyReason::PolicyUnavailable(object) => self.unavailable(object),
            DenyReason::DenyRule(found) => self.deny_rule(found),
            DenyReason::NoAllow(origin, default) => self.no_allow(denial, *origin, *default),
        };
        Explanation { code: Some(denial.code), what, why, fix }
    }

    fn unknown_service(&self, denial: &Denial) -> (Vec<String>, Vec<String>) {
        let why = vec![denial.summary()];
        (why, vec![line("see what exists:", "weft get services -A")])
    }

    fn unknown_port(&self, denial: &Denial) -> (Vec<String>, Vec<String>) {
        let ports =
            self.destination.map(|destination| ports_title(destination.service())).unwrap_or_default();
        let why = vec![format!("{}; it has {ports}", denial.summary())];
        (
            why,
            vec![line(
                "see its ports:",
                &self.on_namespace(&format!("weft describe service/{}", self.name())),
            )],
        )
    }

    fn unavailable(&self, object: &Unreadable) -> (Vec<String>, Vec<String>) {
        let why = vec![
            format!("{} cannot be read: {}", object.key, object.why),
            "a policy that cannot be read closes its targets; other services go on".to_owned(),
        ];
        let name = match &object.key {
            crate::snapshot::ViewKey::AuthorizationPolicy(_, name) => name.as_str(),
            crate::snapshot::ViewKey::Mesh
            | crate::snapshot::ViewKey::Namespace(_)
            | crate::snapshot::ViewKey::Service(_)
            | crate::snapshot::ViewKey::Endpoint(..)
            | crate::snapshot::ViewKey::TcpRoute(..)
            | crate::snapshot::ViewKey::TrafficPolicy(..)
            | crate::snapshot::ViewKey::Denied(_) => "<policy>",
        };
        let show = self.on_namespace(&format!("weft get authorizationpolicy/{name} -o yaml"));
        (why, vec![line("see it:", &show), line("write it again:", "weft apply -f <file>")])
    }

    fn deny_rule(&self, found: &RuleMatch) -> (Vec<String>, Vec<String>) {
        let policy = found.rule.policy();
        let (title, rule) = (policy_title(policy), found.rule.name());
        let mut why = vec![format!("{title} denies it by its rule {rule}; DENY wins over every ALLOW")];
        why.extend(self.clauses(found));
        if found.verdict() == Truth::Unknown {
            why.push("a DENY whose clause cannot be decided refuses".to_owned());
        }
        why.extend(reason_given(policy));
        let remove = self.on_namespace(&format!("weft delete authorizationpolicy/{}", policy.metadata.name));
        (why, vec![line("see the rule:", &self.describe(policy)), line("remove it:", &remove)])
    }

    fn no_allow(
        &self,
        denial: &Denial,
        origin: DefaultOrigin,
        default: DefaultAuthorization,
    ) -> (Vec<String>, Vec<String>) {
        let mut why = match &denial.nearest {
            Some(nearest) => self.nearest(nearest),
            None => vec![format!("no policy allows anybody to reach {}", self.name())],
        };
        why.push(self.default_line(origin, default));
        let first = match self.request.source {
            Principal::Spiffe(_) => line("allow it:", &self.allow_command()),
            Principal::Unauthenticated => {
                line("give it an identity:", "weft run --service <caller> -- <command>")
            }
        };
        let rule =
            denial.nearest.as_ref().map(|near| line("see the rule:", &self.describe(near.rule.policy())));
        (why, std::iter::once(first).chain(rule).collect())
    }

    /// The nearest rule: its policy among how many, and its clauses.
    fn nearest(&self, nearest: &RuleMatch) -> Vec<String> {
        let title = policy_title(nearest.rule.policy());
        let count = self.destination.map_or(0, |destination| destination.policies().count());
        let place = match count {
            0 | 1 => "is the only policy".to_owned(),
            _ => format!("comes nearest of the {count} policies"),
        };
        let mut lines = vec![format!("{title} {place} for {}", self.name())];
        lines.extend(self.clauses(nearest));
        lines
    }

    /// The clauses of a rule in columns: what it asks for, whether it holds, and the fact if it does not.
    fn clauses(&self, found: &RuleMatch) -> Vec<String> {
        let rule = found.rule.rule();
        let mut rows = vec![("from", self.sources_text(found), found.source, self.source_fact(found))];
        if let Some(ports) = &rule.ports {
            let text = listed(ports.iter().map(|port| self.port_text(port)));
            rows.push(("to", text, found.ports, format!("port is {}", self.request.port)));
        }
        if let Some(networks) = &rule.networks {
            let fact = self.request.network.map_or_else(
                || "the caller's address is not known".to_owned(),
                |address| format!("caller dials from {}", address.to_canonical()),
            );
            rows.push(("in", listed(networks), found.networks, fact));
        }
        let width = rows.iter().map(|row| row.1.chars().count()).max().unwrap_or_default();
        let head = format!("rule {}  ", rule.name);
        let lines = rows.into_iter().enumerate().map(|(index, (label, text, truth, fact))| {
            let head = if index == 0 { head.clone() } else { " ".repeat(head.chars().count()) };
            let verdict = match truth {
                Truth::True => "✓ matches".to_owned(),
                Truth::False => format!("✗ {fact}"),
                Truth::Unknown => format!("? {fact}"),
            };
            format!("  {head}{label:<4} {text:<width$}   {verdict}")
        });
        lines.collect()
    }

    /// The sources of the rule: the one that names the caller, else the first few.
    fn sources_text(&self, found: &RuleMatch) -> String {
        let sources = &found.rule.rule().sources;
        let local = self.snapshot.trust_domain();
        let naming = sources.iter().find(|source| matcher::names_caller(source, self.request.source, local));
        match naming {
            Some(source) => source_text(source),
            None if sources.is_empty() => "nobody (the list is lost)".to_owned(),
            None => listed(sources.iter().map(source_text)),
        }
    }

    fn source_fact(&self, found: &RuleMatch) -> String {
        match self.request.source {
            Principal::Spiffe(_) if matcher::excepts_caller(found.rule.rule(), self.request.source) => {
                "caller is excepted".to_owned()
            }
            Principal::Spiffe(id) => format!("caller is {id}"),
            Principal::Unauthenticated => "caller has no identity".to_owned(),
        }
    }

    fn port_text(&self, port: &PortRef) -> String {
        match port {
            PortRef::Number(number) => format!("port {number}"),
            PortRef::Name(name) => {
                let service = self.destination.map(Destination::service);
                match service.and_then(|service| service.port_named(name.as_str())) {
                    Some(named) => format!("port {name} ({})", named.number),
                    None => format!("port {name} (which the service does not have)"),
                }
            }
        }
    }

    fn default_line(&self, origin: DefaultOrigin, default: DefaultAuthorization) -> String {
        let place = match origin {
            DefaultOrigin::Mesh => "the mesh".to_owned(),
            DefaultOrigin::Namespace => format!("namespace {}", self.request.service.namespace),
            DefaultOrigin::Service => format!("service {}", self.name()),
        };
        format!("no rule allows it, and the default of {place} is {}", default_title(default))
    }

    /// The caller as short as it is unambiguous.
    fn caller(&self) -> String {
        match self.request.source {
            Principal::Spiffe(id) => self.short(id),
            Principal::Unauthenticated => "a caller without identity".to_owned(),
        }
    }

    fn short(&self, id: &SpiffeId) -> String {
        let own = &self.request.service.namespace;
        match id.kind() {
            IdKind::Workload { namespace, service_account }
                if id.trust_domain() == self.snapshot.trust_domain() =>
            {
                if namespace == own.as_str() {
                    service_account.to_owned()
                } else {
                    format!("{service_account}.{namespace}")
                }
            }
            IdKind::Workload { .. }
            | IdKind::Node(_)
            | IdKind::Server(_)
            | IdKind::User(_)
            | IdKind::Other => id.to_string(),
        }
    }

    fn name(&self) -> &str {
        self.request.service.name.as_str()
    }

    /// The service, with its port where it has several or none of that number.
    fn callee(&self) -> String {
        let port = self.request.port;
        if self.needs_port() { format!("{} port {port}", self.name()) } else { self.name().to_owned() }
    }

    fn needs_port(&self) -> bool {
        match self.destination {
            // The default port of a service that does not exist has no number.
            None => self.request.port != 0,
            Some(destination) => {
                let service = destination.service();
                service.ports.len() > 1 || service.port(self.request.port).is_none()
            }
        }
    }

    fn allow_command(&self) -> String {
        let port = if self.needs_port() { format!(" --port {}", self.request.port) } else { String::new() };
        self.on_namespace(&format!("weft policy allow {} {}{port}", self.caller(), self.name()))
    }

    fn describe(&self, policy: &AuthorizationPolicy) -> String {
        self.on_namespace(&format!("weft describe authorizationpolicy/{}", policy.metadata.name))
    }

    /// A command that works whatever the namespace at hand: names the service's, unless it is the default one.
    fn on_namespace(&self, command: &str) -> String {
        let namespace = &self.request.service.namespace;
        if *namespace == Namespace::default_namespace() {
            command.to_owned()
        } else {
            format!("{command} -n {namespace}")
        }
    }
}

/// Cause and fixes of the catalogue, where one occurrence has no more to tell.
fn catalogue_words(code: CodeId) -> (Vec<String>, Vec<String>) {
    let row = code.row();
    (vec![row.cause.to_owned()], row.fix.iter().map(|&fix| fix.to_owned()).collect())
}

fn line(label: &str, command: &str) -> String {
    format!("{label:<16} {command}")
}

/// `policy shop/charge-from-order (rev 7)`.
fn policy_title(policy: &AuthorizationPolicy) -> String {
    let metadata = &policy.metadata;
    format!("policy {}/{} (rev {})", metadata.owner(), metadata.name, metadata.revision)
}

fn reason_given(policy: &AuthorizationPolicy) -> Option<String> {
    policy.metadata.annotations.get(REASON_ANNOTATION).map(|reason| format!("its reason: {reason}"))
}

const fn default_title(default: DefaultAuthorization) -> &'static str {
    match default {
        DefaultAuthorization::Deny => "Deny",
        DefaultAuthorization::Audit => "Audit",
        DefaultAuthorization::Allow => "Allow",
    }
}

fn origin_title(origin: DefaultOrigin, target: &Target) -> String {
    match origin {
        DefaultOrigin::Mesh | DefaultOrigin::Namespace => format!("namespace {}", target.service.namespace),
        DefaultOrigin::Service => format!("service {}", target.service.name),
    }
}

fn ports_title(service: &Service) -> String {
    let port = |port: &crate::model::service::ServicePort| match &port.name {
        Some(name) => format!("{} ({name})", port.number),
        None => port.number.to_string(),
    };
    format!("port {}", listed(service.ports.iter().map(port)))
}

fn source_text(source: &Source) -> String {
    match source {
        Source::Spiffe { pattern, except } if except.is_empty() => pattern.to_string(),
        Source::Spiffe { pattern, except } => format!("{pattern} except {}", listed(except)),
        Source::ServiceAccount { namespace, name } => format!("service account {namespace}/{name}"),
        Source::Any => "any authenticated caller".to_owned(),
        Source::Unauthenticated => "plain callers".to_owned(),
    }
}

/// The first few items and how many more there are.
fn listed<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut items = items.into_iter();
    let told: Vec<_> = items.by_ref().take(TOLD).map(|item| item.to_string()).collect();
    match items.count() {
        0 => told.join(", "),
        more => format!("{} and {more} more", told.join(", ")),
    }
}
