//! The corridor of a tunnel stream: from the tunnel to the program, if the rules allow it.
//!
//! Who calls is who the tunnel's handshake proved, and nothing else. The flow enters the table before it is decided, so
//! that no rule can come into force between the two.

pub(crate) mod connect;

use std::{sync::Arc, time::Instant};

use tokio_util::task::TaskTracker;
use tracing::debug;
use weft_overlay::{
    Accepted as FlowAccepted, CloseReason, Handshake, Incoming, Opening, Overlay, PolicyRef, Refused, Tunnel,
};
use weft_policy::{
    authz::{Authorization, CallRequest, Decision, Denial, Impact, Permit, Principal, explain::explain},
    code,
    name::ServiceName,
    route::Target,
    snapshot::Snapshot,
};

use crate::{
    access::Record,
    carry,
    error::{FlowError, code_of_accept},
    flows::{Direction, FlowFacts, FlowPlace},
    local::LocalWorkload,
    relay::Transfer,
    shared::{Shared, canonical},
    telemetry::metrics::Decided,
};

/// The inbound side of one worker.
#[derive(Clone)]
pub(crate) struct Inbound {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

/// What a header asks for, found here.
struct Destination {
    workload: Arc<LocalWorkload>,
    target: Target,
}

impl Inbound {
    /// `tasks` owns every flow.
    pub(crate) const fn new(shared: Arc<Shared>, tasks: TaskTracker) -> Self {
        Self { shared, tasks }
    }

    /// Accepts tunnels until the endpoint closes. Cancel-safe: flows go on.
    pub(crate) async fn accept_tunnels(&self, overlay: &Overlay) {
        while let Some(handshake) = overlay.accept().await {
            let this = self.clone();
            self.tasks.spawn(async move { this.handshake(handshake).await });
        }
    }

    async fn handshake(&self, handshake: Handshake) {
        let address = canonical(handshake.remote_address());
        match handshake.finish().await {
            Ok(tunnel) => {
                let reason = self.accept_flows(&tunnel).await;
                debug!(peer = %tunnel.peer().id, %address, %reason, "tunnel ended");
            }
            // The overlay counts and rate-limits what strangers can make it say.
            Err(error) => debug!(%address, code = %code_of_accept(&error), %error, "handshake failed"),
        }
    }

    async fn accept_flows(&self, tunnel: &Tunnel) -> CloseReason {
        loop {
            match tunnel.accept().await {
                Ok(opening) => {
                    let (this, tunnel) = (self.clone(), tunnel.clone());
                    self.tasks.spawn(async move { this.opening(opening, &tunnel).await });
                }
                Err(reason) => return reason,
            }
        }
    }

    async fn opening(&self, opening: Opening, tunnel: &Tunnel) {
        let started = self.shared.clock.now();
        match opening.header().await {
            Ok(incoming) => self.serve(incoming, tunnel, started).await,
            Err(error) => {
                let error = FlowError::from(error);
                debug!(peer = %tunnel.peer().id, code = %error.class().code, %error, "flow without a header");
            }
        }
    }

    /// Carries one flow from a tunnel to the program it is for.
    async fn serve(&self, incoming: Incoming, tunnel: &Tunnel, started: Instant) {
        let peer = tunnel.peer().id.clone();
        let mut record = Record::new(Direction::Inbound, peer, started, self.shared.clock.wall());
        record.address = Some(canonical(tunnel.remote_address()));
        record.path = "tunnel";
        let outcome = self.decide_and_carry(incoming, tunnel, &mut record).await;
        record.finish(&self.shared, outcome);
    }

    async fn decide_and_carry(
        &self,
        incoming: Incoming,
        tunnel: &Tunnel,
        record: &mut Record,
    ) -> Result<Transfer, FlowError> {
        let destination = match self.find(&incoming, tunnel) {
            Ok(destination) => destination,
            Err(error) => return Err(refuse(incoming, error, "")),
        };
        record.target = Some(destination.target.clone());
        record.local = Some(destination.workload.identity.clone());
        let facts = FlowFacts {
            direction: Direction::Inbound,
            source: record.source.clone(),
            target: destination.target.clone(),
            network: Some(canonical(tunnel.remote_address()).ip()),
            served_by: Some(destination.workload.identity.clone()),
            started: record.started,
        };
        let place = match self.shared.flows.enter(facts) {
            Ok(place) => place,
            Err(full) => return Err(refuse(incoming, FlowError::from(full), "")),
        };
        record.id = place.id();
        record.begins(&self.shared);
        let Some(live) = self.shared.drain.watch().enter() else {
            return Err(refuse(incoming, FlowError::Draining, ""));
        };
        // Loaded after the flow entered the table: a newer snapshot will find it there.
        let snapshot = self.shared.state.load();
        let permit = match self.decide(snapshot.as_deref(), &place, record) {
            Ok(permit) => permit,
            Err(denial) => {
                let detail = denial.caller_detail();
                return Err(refuse(incoming, FlowError::Denied(denial), &detail));
            }
        };
        let carried = self.carry(incoming, &destination, &permit, &place, snapshot.as_deref(), record).await;
        drop(live);
        carried
    }

    /// Finds the workload and the service port that the header names. The endpoint must be one of the identity that this
    /// end proved in the handshake.
    fn find(&self, incoming: &Incoming, tunnel: &Tunnel) -> Result<Destination, FlowError> {
        let header = incoming.header();
        let wrong = || FlowError::WrongEndpoint { label: header.endpoint.to_string() };
        let workload = self.shared.locals.labelled(header.endpoint.as_str()).ok_or_else(wrong)?;
        let presented = tunnel.server_name().and_then(|name| name.split('.').next());
        let proven = presented.and_then(|label| self.shared.locals.labelled(label)).ok_or_else(wrong)?;
        if proven.identity != workload.identity {
            return Err(wrong());
        }
        let not_served = || FlowError::NotServed {
            service: format!("{}.{}", header.service, header.namespace),
            port: header.port.get(),
        };
        let namespace = header.namespace.as_str().parse().map_err(|_| not_served())?;
        let name = header.service.as_str().parse().map_err(|_| not_served())?;
        let service = ServiceName::new(namespace, name);
        let serves = workload.reachable().is_some_and(|known| known.services.contains(&service));
        if !serves {
            return Err(not_served());
        }
        Ok(Destination { workload, target: Target { service, port: header.port.get() } })
    }

    fn decide(
        &self,
        snapshot: Option<&Snapshot>,
        place: &FlowPlace,
        record: &mut Record,
    ) -> Result<Permit, Box<Denial>> {
        decide(&self.shared, snapshot, place, record)
    }

    async fn carry(
        &self,
        incoming: Incoming,
        destination: &Destination,
        permit: &Permit,
        place: &FlowPlace,
        snapshot: Option<&Snapshot>,
        record: &Record,
    ) -> Result<Transfer, FlowError> {
        let settings = crate::outbound::settings_of(snapshot, &destination.target.service);
        let Some(address) = program_address(snapshot, &destination.workload, &destination.target) else {
            return Err(refuse(incoming, not_served(&destination.target), ""));
        };
        let io = match connect::connect(permit, &self.shared.own_sockets, address, settings.connect).await {
            Ok(io) => io,
            Err(error) => return Err(refuse(incoming, error, "")),
        };
        let accepted = FlowAccepted { policy: record.explained.then(|| policy_ref(permit)).flatten() };
        let stream = incoming.accept(accepted).await?;
        record.connected(&self.shared);
        Ok(carry::tunnel_to_program(&self.shared, io, stream, settings.idle, &place.cut).await)
    }
}

/// Decides an inbound flow (or one by the short cut), and notes the decision for the log, the metrics and `explain`.
pub(crate) fn decide(
    shared: &Shared,
    snapshot: Option<&Snapshot>,
    place: &FlowPlace,
    record: &mut Record,
) -> Result<Permit, Box<Denial>> {
    let facts = &place.facts;
    let request = CallRequest {
        source: Principal::Spiffe(&facts.source),
        service: &facts.target.service,
        port: facts.target.port,
        network: facts.network,
    };
    let Some(snapshot) = snapshot else { return Err(Denial::without_snapshot(&request)) };
    let authorization = snapshot.authorize(&request);
    record.decided(&authorization);
    count(shared, &facts.target.service, &authorization);
    if !authorization.decision.is_allowed() {
        note_denial(shared, snapshot, &request, &authorization, place);
    }
    for shadow in &authorization.shadow {
        debug!(rule = %shadow.found.rule.policy_id(), impact = ?shadow.impact, "rule in DryRun");
    }
    match authorization.decision {
        Decision::Allow(permit) => Ok(permit),
        Decision::Deny(denial) => Err(denial),
    }
}

/// Counts a decision, and what rules in DryRun would have refused.
fn count(shared: &Shared, service: &ServiceName, authorization: &Authorization) {
    let rule = authorization.decision.rule().map(|rule| (rule.policy_id(), rule.name().to_string()));
    let rule = rule.as_ref().map(|(policy, rule)| (policy.as_str(), rule.as_str()));
    let (decided, code) = match &authorization.decision {
        Decision::Allow(_) => (Decided::Allow, authorization.audit.as_ref().map(|denial| denial.code)),
        Decision::Deny(denial) => (Decided::Deny, Some(denial.code)),
    };
    shared.report.metrics.decided(service, decided, rule, code);
    for shadow in authorization.shadow.iter().filter(|shadow| shadow.impact == Impact::WouldDeny) {
        let (policy, rule) = (shadow.found.rule.policy_id(), shadow.found.rule.name());
        let rule = Some((policy.as_str(), rule.as_str()));
        shared.report.metrics.decided(service, Decided::DryRunDeny, rule, Some(code::DRY_RUN_DENY));
    }
}

/// Keeps a refusal with its full explanation for `weft explain last`.
fn note_denial(
    shared: &Shared,
    snapshot: &Snapshot,
    request: &CallRequest<'_>,
    authorization: &Authorization,
    place: &FlowPlace,
) {
    let told = explain(snapshot, request, authorization);
    shared.denials.note(crate::denials::Refusal {
        time: shared.clock.wall(),
        id: format!("{}-{}", shared.config.node, place.id()),
        code: told.code.unwrap_or(code::NO_ALLOW).to_string(),
        source: place.facts.source.to_string(),
        service: place.facts.target.service.to_string(),
        port: place.facts.target.port,
        what: told.what,
        why: told.why,
        fix: told.fix,
        direction: place.facts.direction.name(),
        uid: None,
    });
}

/// Where the program serves the port.
pub(crate) fn program_address(
    snapshot: Option<&Snapshot>,
    workload: &LocalWorkload,
    target: &Target,
) -> Option<std::net::SocketAddr> {
    let destination = snapshot?.destination(&target.service)?;
    workload.address_of(destination.service().port(target.port)?)
}

/// The endpoint does not serve that port.
pub(crate) fn not_served(target: &Target) -> FlowError {
    FlowError::NotServed { service: target.service.to_string(), port: target.port }
}

/// Policy and rule, for the caller's log.
fn policy_ref(permit: &Permit) -> Option<PolicyRef> {
    let rule = permit.rule()?;
    Some(PolicyRef { policy: rule.policy_id(), rule: rule.name().to_string() })
}

/// Refuses the flow with the code of its error, and gives the error back.
fn refuse(incoming: Incoming, error: FlowError, detail: &str) -> FlowError {
    let class = error.class();
    incoming.refuse(Refused::new(class.reset, class.code.as_str(), detail));
    error
}
