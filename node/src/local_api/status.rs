//! The agent's state in the words of `agent.proto`.

use std::{sync::Arc, time::SystemTime};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use weft_api::pb::agent::{AgentProblem, AgentStatusResponse, TunnelStatus, WorkloadStatus};
use weft_identity::{
    rotation::{Lateness, lateness},
    spiffe::SpiffeId,
};
use weft_overlay::Role;
use weft_policy::code::{self, CodeId};

use crate::{
    control::identity::Holder, drain::Phase, listeners::Listeners, local::LocalWorkload, shared::Shared,
};

/// Tells everything at once, of the workloads that the caller `may_see`.
pub(super) fn status(
    shared: &Shared,
    listeners: &Listeners,
    may_see: impl Fn(&LocalWorkload) -> bool,
) -> AgentStatusResponse {
    let all = shared.locals.all();
    let (seen, hidden): (Vec<_>, Vec<_>) = all.into_iter().partition(|workload| may_see(workload));
    let shows = |tunnel: &TunnelStatus| {
        let is_of = |workload: &Arc<LocalWorkload>| {
            let label = workload.registration().map(|known| known.label.to_string());
            let presented = tunnel.destination.split('.').next();
            workload.identity.to_string() == tunnel.source
                || label.as_deref().is_some_and(|label| presented == Some(label))
        };
        hidden.is_empty() || seen.iter().any(is_of)
    };
    let link = shared.link.state();
    let node = shared.node_slot.load();
    let addresses = listeners.addresses();
    AgentStatusResponse {
        node: shared.config.node.to_string(),
        spiffe_id: shared.node_id.to_string(),
        trust_domain: shared.trust_domain.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        server_connected: link.channel.is_some(),
        server: link.server,
        revision: shared.state.revision().0,
        draining: shared.drain.phase() != Phase::Running,
        workloads: seen.iter().map(|workload| workload_status(workload, listeners)).collect(),
        tunnels: shared.planes().iter().flat_map(tunnels).filter(shows).collect(),
        flows: (shared.flows.len() + shared.egress.len()) as u64,
        tunnels_address: addresses.tunnels.to_string(),
        proxy_address: addresses.proxy.to_string(),
        metrics_address: addresses.metrics.to_string(),
        admin_address: addresses.admin.to_string(),
        problems: problems(shared, &seen, &link.why_not),
        svid_not_after: node.map(|held| rfc3339(held.svid().validity().not_after)).unwrap_or_default(),
        boot: shared.boot,
    }
}

fn workload_status(workload: &LocalWorkload, listeners: &Listeners) -> WorkloadStatus {
    let held = workload.slot.load();
    let svid = held.as_ref().map(|held| held.svid());
    let services =
        workload.registration().map(|known| known.services.iter().map(ToString::to_string).collect());
    WorkloadStatus {
        identity: workload.identity.to_string(),
        namespace: workload.namespace.to_string(),
        name: workload.name.to_string(),
        services: services.unwrap_or_default(),
        svid_not_before: svid.map(|svid| rfc3339(svid.validity().not_before)).unwrap_or_default(),
        svid_not_after: svid.map(|svid| rfc3339(svid.validity().not_after)).unwrap_or_default(),
        registered: workload.registration().is_some(),
        serial: svid.map(|svid| svid.serial().to_string()).unwrap_or_default(),
        chain_pem: svid.map(|svid| svid.chain_pem()).unwrap_or_default(),
        proxy_port: u32::from(listeners.proxy_port_of(workload).unwrap_or_default()),
    }
}

fn tunnels(plane: &crate::shared::Plane) -> Vec<TunnelStatus> {
    let pooled = plane.pool.tunnels();
    let source_of =
        |id: u64| pooled.iter().find(|(_, tunnel)| tunnel.id() == id).map(|(key, _)| key.source.to_string());
    let all = plane.overlay.tunnels();
    all.iter()
        .map(|tunnel| {
            let stats = tunnel.stats();
            let peer = tunnel.peer().id.to_string();
            let (source, destination, direction) = match tunnel.role() {
                Role::Dialled => (source_of(tunnel.id()).unwrap_or_default(), peer, "outbound"),
                Role::Accepted => (peer, tunnel.server_name().unwrap_or_default().to_owned(), "inbound"),
            };
            TunnelStatus {
                source,
                destination,
                address: tunnel.remote_address().to_string(),
                rtt_us: u64::try_from(stats.rtt.as_micros()).unwrap_or(u64::MAX),
                streams: tunnel.streams_active() as u64,
                mtu: u32::from(stats.mtu_bytes),
                direction: direction.to_owned(),
                group: String::new(),
            }
        })
        .collect()
}

/// What a person should see to, worst first.
fn problems(shared: &Shared, seen: &[Arc<LocalWorkload>], why_not: &str) -> Vec<AgentProblem> {
    let mut problems = Vec::new();
    let now = shared.clock.wall();
    if shared.drain.phase() != Phase::Running {
        problems.push(AgentProblem {
            code: code::DRAINING.to_string(),
            what: "this agent was drained: it takes nothing new until it is started again".to_owned(),
            fix: vec!["weft up".to_owned()],
        });
    }
    problems.extend(certificate_problem(shared, &Holder::Node, now));
    for workload in seen {
        problems.extend(certificate_problem(shared, &Holder::Workload(Arc::clone(workload)), now));
        // Without a server there is another problem; without a failure it only starts.
        let failure = workload.unregistered().filter(|_| shared.link.is_up());
        if let Some(fault) = failure.filter(|_| workload.registration().is_none()) {
            problems.push(AgentProblem {
                code: fault.code.to_string(),
                what: format!("{} is not registered: {}", workload.identity, fault.what),
                fix: fault.fix.clone(),
            });
        }
    }
    if !shared.link.is_up() {
        let why = if why_not.is_empty() { "not connected yet" } else { why_not };
        problems.push(AgentProblem {
            code: code::CONTROL_LOST.to_string(),
            what: format!("no server is connected ({why}); what is known goes on working"),
            fix: vec!["weft status".to_owned()],
        });
    }
    problems
}

/// What is wrong with somebody's certificate: there was none yet, it has expired, or its renewal is overdue.
fn certificate_problem(shared: &Shared, holder: &Holder, now: SystemTime) -> Option<AgentProblem> {
    let id = holder.id(shared);
    let problem = |code: CodeId, what: String| {
        let fix = code.row().fix.iter().map(|&fix| fix.to_owned()).collect();
        Some(AgentProblem { code: code.to_string(), what, fix })
    };
    let Some(held) = shared.slot_of(holder).load() else {
        return match shared.stored_svid(holder) {
            Some(svid) if shared.is_denied(&svid) => problem(
                code::IDENTITY_REVOKED,
                format!("the certificate of {id} is revoked: calls from and to it are refused"),
            ),
            Some(_) if matches!(holder, Holder::Node) => problem(code::MUST_JOIN_AGAIN, must_join_again(id)),
            Some(_) => problem(
                code::OWN_SVID_EXPIRED,
                format!("the certificate of {id} has expired: calls from and to it are refused"),
            ),
            None => problem(
                code::NO_SVID_YET,
                format!("{id} has no certificate yet: calls from and to it are refused"),
            ),
        };
    };
    let validity = held.svid().validity();
    if matches!(holder, Holder::Node) && validity.not_after <= now {
        return problem(code::MUST_JOIN_AGAIN, must_join_again(id));
    }
    if !validity.contains(now) {
        return problem(
            code::OWN_SVID_EXPIRED,
            format!("{id} has no valid certificate: calls from and to it are refused"),
        );
    }
    let what =
        || format!("the certificate of {id} is not being renewed and ends {}", rfc3339(validity.not_after));
    match lateness(&validity, now) {
        Lateness::OnTime => None,
        Lateness::Overdue => problem(code::RENEWAL_FAILING, what()),
        Lateness::Ending => problem(code::SVID_ENDS_SOON, what()),
    }
}

/// What is wrong with a node whose own certificate has ended.
pub(crate) fn must_join_again(id: &SpiffeId) -> String {
    format!(
        "the certificate of {id} has ended, so no server knows this node any more: it waits to be joined again"
    )
}

/// A time as people and programs read it.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .replace_nanosecond(0)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
        .format(&Rfc3339)
        .unwrap_or_default()
}
