//! `weft status`: one screen, problems first.

use std::process::ExitCode;

use serde_json::{Value, json};
use weft_api::pb::{
    agent::{AgentStatusRequest, AgentStatusResponse},
    management::{
        AgentStatus, ObjectRef, PendingChange, Problem, RootStatus, ServerStatus, StatusRequest,
        StatusResponse,
    },
};

use crate::{
    args::{Global, groups::StatusArgs},
    client,
    error::CliError,
    output::Output,
};

/// Shows the state of the mesh as seen from here: the server, and this host's agent.
pub(crate) fn status(_args: &StatusArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let (server, agent) = client::run(async {
        let server = match client::server(global).await {
            Ok(mut client) => {
                client.status(StatusRequest {}).await.map(tonic::Response::into_inner).map_err(Into::into)
            }
            Err(error) => Err(error),
        };
        let agent = local_agent(global).await;
        Ok((server, agent))
    })?;
    let outcome = exit(server.as_ref().ok(), agent.as_ref().ok());
    match (server, agent) {
        (Err(server), Err(agent)) => Err(both(server, agent)),
        (server, agent) if output.is_structured() => {
            output.object(&json!({
                "server": server.as_ref().map_or(Value::Null, server_json),
                "agent": agent.as_ref().map_or(Value::Null, agent_status_json),
            }))?;
            finish(server, agent, global, outcome)
        }
        (server, agent) => {
            print(&server, &agent, output)?;
            finish(server, agent, global, outcome)
        }
    }
}

/// The error of a host where nothing answers: the server's, and the agent's where it says something else.
fn both(server: CliError, agent: CliError) -> CliError {
    let silent = client::has_agent_socket();
    if silent { agent.faults().iter().cloned().fold(server, CliError::and) } else { server }
}

/// What did not answer though it should is the outcome; a host with an agent alone, or a server alone, is whole.
fn finish(
    server: Result<StatusResponse, CliError>,
    agent: Result<AgentStatusResponse, CliError>,
    global: &Global,
    outcome: ExitCode,
) -> Result<ExitCode, CliError> {
    match (server, agent) {
        (Err(error), _) if global.server.is_some() || client::local_server_socket(global).is_some() => {
            Err(error)
        }
        (_, Err(error)) if global.agent_socket.is_some() => Err(error),
        (_, Err(error)) if global.server.is_none() && client::has_agent_socket() => Err(error),
        (_, _) => Ok(outcome),
    }
}

/// Asks this host's agent.
pub(crate) async fn local_agent(global: &Global) -> Result<AgentStatusResponse, CliError> {
    let mut agent = client::agent(global).await?;
    Ok(agent.status(AgentStatusRequest {}).await?.into_inner())
}

/// Exit 1 when there is a problem to see to.
fn exit(server: Option<&StatusResponse>, agent: Option<&AgentStatusResponse>) -> ExitCode {
    let problems =
        server.is_some_and(|s| !s.problems.is_empty()) || agent.is_some_and(|a| !a.problems.is_empty());
    if problems { ExitCode::from(1) } else { ExitCode::SUCCESS }
}

fn print(
    server: &Result<StatusResponse, CliError>,
    agent: &Result<AgentStatusResponse, CliError>,
    output: &Output,
) -> Result<(), CliError> {
    for (code, what, fix) in problems(server, agent) {
        output.line(format!("! {code}  {what}"))?;
        for fix in fix {
            output.line(format!("         fix  {fix}"))?;
        }
    }
    match server {
        Ok(status) => print_server(status, output)?,
        Err(error) => {
            output.line(format!("server   {} (an agent needs none to go on)", first_words(error)))?
        }
    }
    match agent {
        Ok(status) => print_agent(status, output),
        Err(error) => output.line(format!("agent    {}", first_words(error))),
    }
}

/// What an error is about, in one clause.
fn first_words(error: &CliError) -> &str {
    error.faults().first().map_or("unknown", |fault| &fault.what)
}

fn problems(
    server: &Result<StatusResponse, CliError>,
    agent: &Result<AgentStatusResponse, CliError>,
) -> Vec<(String, String, Vec<String>)> {
    let mut found = Vec::new();
    if let Ok(status) = server {
        found.extend(
            status.problems.iter().map(|p: &Problem| (p.code.clone(), p.what.clone(), p.fix.clone())),
        );
    }
    if let Ok(status) = agent {
        found.extend(status.problems.iter().map(|p| (p.code.clone(), p.what.clone(), p.fix.clone())));
    }
    found
}

fn print_server(status: &StatusResponse, output: &Output) -> Result<(), CliError> {
    output.line(format!(
        "server   {}  trust domain {}  cluster {}  revision {}  version {}",
        status.instance, status.trust_domain, status.cluster, status.revision, status.version
    ))?;
    let others = status.servers.iter().filter(|server| server.instance != status.instance);
    for server in others {
        let signs = if server.signs { "" } else { "  does not sign yet" };
        output.line(format!(
            "beside   {}  {}  agents {}  version {}{signs}",
            server.instance,
            server.addresses.join(", "),
            server.agents,
            server.version
        ))?;
    }
    if let Some(authority) = &status.authority {
        let root = |r: &RootStatus| match r.state.as_str() {
            "" | "active" => format!("until {}", r.not_after),
            state => format!("{state} until {}", r.not_after),
        };
        let published = authority.roots.iter().filter(|root| root.state != "revoked");
        let roots = published.map(root).collect::<Vec<_>>().join(", ");
        output.line(format!(
            "ca       {} issued  intermediate until {}  roots: {roots}",
            authority.issued, authority.intermediate_not_after
        ))?;
    }
    for waiting in &status.pending {
        let objects: Vec<_> = waiting.objects.iter().map(|r| format!("{}/{}", r.kind, r.name)).collect();
        output.line(format!(
            "waits    change {} of {} is taken back at {} unless: weft confirm {}  ({})",
            waiting.change,
            waiting.author,
            waiting.confirm_by,
            waiting.change,
            objects.join(", ")
        ))?;
    }
    if status.denied > 0 {
        output.line(format!("denied   {} entries, see: weft identity svid denied", status.denied))?;
    }
    for agent in &status.agents {
        let state = state_of(agent);
        output.line(format!(
            "agent    {}  {state}  workloads {}  version {}",
            agent.node, agent.workloads, agent.version
        ))?;
    }
    for service in &status.services {
        let confirmed = if service.confirmed == service.endpoints {
            String::new()
        } else {
            format!("  ({} confirmed)", service.confirmed)
        };
        output.line(format!("service  {}  endpoints {}{confirmed}", service.service, service.endpoints))?;
    }
    Ok(())
}

/// Prints the agent's part.
pub(crate) fn print_agent(status: &AgentStatusResponse, output: &Output) -> Result<(), CliError> {
    let server =
        if status.server_connected { format!("server {}", status.server) } else { "no server".to_owned() };
    let draining = if status.draining { "  draining" } else { "" };
    output.line(format!(
        "here     {}  {server}  tunnels {}  proxy {}  flows {}{draining}",
        status.node, status.tunnels_address, status.proxy_address, status.flows
    ))?;
    for workload in &status.workloads {
        let state = if workload.registered { "registered" } else { "not registered" };
        let services =
            if workload.services.is_empty() { "-".to_owned() } else { workload.services.join(",") };
        output.line(format!(
            "         {}  serves {services}  {state}  certificate until {}",
            workload.identity, workload.svid_not_after
        ))?;
    }
    for tunnel in &status.tunnels {
        output.line(format!(
            "         tunnel {}  {} → {}  {}  rtt {} µs  mtu {}  streams {}",
            tunnel.direction,
            tunnel.source,
            tunnel.destination,
            tunnel.address,
            tunnel.rtt_us,
            tunnel.mtu,
            tunnel.streams
        ))?;
    }
    Ok(())
}

/// Whether an agent is there, in one word.
pub(crate) fn state_of(agent: &AgentStatus) -> &'static str {
    match (agent.banned.is_empty(), agent.connected) {
        (false, _) => "banned",
        (true, true) => "connected",
        (true, false) => "away",
    }
}

/// An agent in the API's own words.
pub(crate) fn agent_json(agent: &AgentStatus) -> Value {
    json!({
        "node": agent.node, "connected": agent.connected, "revision": agent.acked_revision,
        "lastNack": agent.last_nack, "version": agent.version, "workloads": agent.workloads,
        "lastSeen": agent.last_seen, "advertise": agent.advertise, "boot": agent.boot, "banned": agent.banned,
        "server": agent.server,
    })
}

fn server_json(status: &StatusResponse) -> Value {
    let service = |s: &weft_api::pb::management::ServiceStatus| json!({"service": s.service, "endpoints": s.endpoints, "confirmed": s.confirmed});
    let problem = |p: &Problem| json!({"code": p.code, "what": p.what, "fix": p.fix});
    let named = |r: &ObjectRef| json!({"kind": r.kind, "namespace": r.namespace, "name": r.name});
    let server = |s: &ServerStatus| {
        json!({"instance": s.instance, "addresses": s.addresses, "version": s.version, "signs": s.signs,
               "agents": s.agents})
    };
    let waiting = |p: &PendingChange| {
        json!({"change": p.change, "author": p.author, "reason": p.reason, "confirmBy": p.confirm_by,
               "objects": p.objects.iter().map(named).collect::<Vec<_>>(), "failed": p.failed})
    };
    json!({
        "staleSeconds": client::stale_for().map(|age| age.as_secs()),
        "trustDomain": status.trust_domain, "cluster": status.cluster, "instance": status.instance,
        "version": status.version, "revision": status.revision, "denied": status.denied, "uptimeSeconds": status.uptime_seconds,
        "agents": status.agents.iter().map(agent_json).collect::<Vec<_>>(),
        "services": status.services.iter().map(service).collect::<Vec<_>>(),
        "authority": status.authority.as_ref().map(crate::identity::show::authority_json),
        "problems": status.problems.iter().map(problem).collect::<Vec<_>>(),
        "pending": status.pending.iter().map(waiting).collect::<Vec<_>>(),
        "servers": status.servers.iter().map(server).collect::<Vec<_>>(),
    })
}

/// The local agent in the API's own words.
pub(crate) fn agent_status_json(status: &AgentStatusResponse) -> Value {
    let workload = |w: &weft_api::pb::agent::WorkloadStatus| {
        json!({"identity": w.identity, "namespace": w.namespace, "name": w.name, "services": w.services,
               "registered": w.registered, "notBefore": w.svid_not_before, "notAfter": w.svid_not_after,
               "serial": w.serial, "proxyPort": w.proxy_port})
    };
    let tunnel = |t: &weft_api::pb::agent::TunnelStatus| {
        json!({"source": t.source, "destination": t.destination, "address": t.address, "rttUs": t.rtt_us,
               "streams": t.streams, "mtu": t.mtu, "direction": t.direction, "group": t.group})
    };
    let problem =
        |p: &weft_api::pb::agent::AgentProblem| json!({"code": p.code, "what": p.what, "fix": p.fix});
    json!({
        "node": status.node, "spiffeId": status.spiffe_id, "trustDomain": status.trust_domain,
        "version": status.version, "serverConnected": status.server_connected, "server": status.server,
        "revision": status.revision, "draining": status.draining, "flows": status.flows, "boot": status.boot,
        "notAfter": status.svid_not_after,
        "addresses": {"tunnels": status.tunnels_address, "proxy": status.proxy_address,
                      "metrics": status.metrics_address, "admin": status.admin_address},
        "workloads": status.workloads.iter().map(workload).collect::<Vec<_>>(),
        "tunnels": status.tunnels.iter().map(tunnel).collect::<Vec<_>>(),
        "problems": status.problems.iter().map(problem).collect::<Vec<_>>(),
    })
}
