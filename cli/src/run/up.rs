//! `weft up | down`: server and agent of this host in one background process.
//!
//! `up` is idempotent: what runs with the same flags is left alone, changed flags restart it, a flag that is not given
//! keeps its value ([`super::settings`]). The trust domain and the node's name are fixed at the first start.
//! `up --foreground` is what the background process itself runs.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use serde_json::json;
use tracing::info;
use weft_api::{
    manifest,
    pb::management::{ApplyRequest, CreateTokenRequest, Document, StatusRequest},
    token::JoinToken,
};
use weft_node::node::{Node, RunningNode};
use weft_registry::server::{RunningServer, Server};

use super::{
    background,
    background::Background,
    joined, logs, memory, secrecy,
    settings::{Flags, Settings, fixed},
    signals,
};
use crate::{
    args::{
        Global,
        groups::{DownArgs, UpArgs},
    },
    client,
    error::{CliError, Exit},
    observe::status::local_agent,
    output::Output,
    paths,
};

/// How long flows and calls may take to end after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Starts the mesh of this host.
pub(crate) fn up(args: &UpArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let state = paths::user_state_dir(args.state_dir.as_deref())?;
    if args.foreground {
        return foreground(&state, global, output);
    }
    if let Some(agent) = joined::find(&state) {
        return joined::up(&agent, args, global, output);
    }
    background::private_dir(&state)?;
    let kept = Flags::kept(&state)?;
    let flags = kept.with(args);
    let settings = Settings::new(&flags, args.trust_domain.as_deref(), &state)?;
    let process = Background::new(&state, "weft");
    let changed = settings.write(&state)?;
    let running = process.running();
    match running {
        Some(pid) if !changed && !is_drained(&state, global) => {
            output.done(format!("already up, process {pid}"));
        }
        running => {
            if running.is_some() {
                output.talk(why_restarted(&kept.changes(&flags), changed));
                process.stop()?;
            }
            start(&process, &state, global)?;
            output
                .done(format!("server and agent run in the background; log {}", process.log_file.display()));
        }
    }
    flags.keep(&state)?;
    tell(&state, &settings, global, output)
}

fn why_restarted(changes: &[String], changed: bool) -> String {
    match (changes, changed) {
        ([], true) => "the configuration changed: restarting".to_owned(),
        ([], false) => "the agent was drained: restarting".to_owned(),
        (changes, _) => format!("restarting: {}", changes.join(", ")),
    }
}

/// Whether the agent there was told to take nothing new: it does not come back by itself.
fn is_drained(state: &Path, global: &Global) -> bool {
    client::run(local_agent(&here(state, global))).is_ok_and(|agent| agent.draining)
}

/// The same flags, for the agent of the mesh in `state`.
fn here(state: &Path, global: &Global) -> Global {
    Global { agent_socket: Some(state.join("run").join("agent.sock")), ..global.clone() }
}

/// Stops the mesh of this host, and the agent that joined another.
pub(crate) fn down(args: &DownArgs, _global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let state = paths::user_state_dir(args.state_dir.as_deref())?;
    let own = Background::new(&state, "weft").stop()?;
    let joined = joined::stop(&state)?;
    output.talk(match (own, joined) {
        (false, false) => "nothing was running",
        (true, _) => "stopped; state is kept, `weft up` goes on with it",
        (false, true) => "the agent of the joined mesh is stopped; state is kept, `weft up` starts it again",
    });
    Ok(ExitCode::SUCCESS)
}

fn start(process: &Background, state: &Path, global: &Global) -> Result<(), CliError> {
    let arguments =
        [OsStr::new("up"), OsStr::new("--foreground"), OsStr::new("--state-dir"), state.as_os_str()];
    let started = process.start(&arguments)?;
    let here = here(state, global);
    process.wait_ready(started, || client::run(local_agent(&here)).is_ok_and(|agent| agent.server_connected))
}

/// What was started, and what to type next.
fn tell(state: &Path, settings: &Settings, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let socket = state.join("run").join("server.sock");
    let (status, agent) = client::run(async {
        let mut server = client::server_at(&socket).await?;
        let status = server.status(StatusRequest {}).await?.into_inner();
        Ok((status, local_agent(&here(state, global)).await?))
    })?;
    if output.is_structured() {
        output.object(&json!({
            "trustDomain": status.trust_domain, "node": agent.node, "control": settings.control,
            "tunnels": agent.tunnels_address, "proxy": agent.proxy_address, "metrics": agent.metrics_address,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output.done(format!("trust domain {}, node {}", status.trust_domain, agent.node));
    output.done(format!(
        "control {}   tunnels {}/udp   proxy {}",
        settings.control, agent.tunnels_address, agent.proxy_address
    ));
    output.talk(format!(
        "this host may run any service of namespace default (weft get workloadenrollments); processes of uid {} trust each other",
        nix::unistd::getuid()
    ));
    output.talk("next: weft run --service NAME --port PORT -- PROGRAM");
    Ok(ExitCode::SUCCESS)
}

/// Runs server and agent until SIGINT or SIGTERM.
fn foreground(state: &Path, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    logs::start(global);
    secrecy::close_memory()?;
    memory::give_back()?;
    let server = start_server(state)?;
    let node = start_agent(state)?;
    output.talk(format!("up: control {}, tunnels {}/udp", server.control_addr(), node.tunnels_addr()));
    let stop = signals::wait()?;
    info!(signal = ?stop, "stopping");
    node.drain(STOP_DEADLINE);
    server.shutdown(STOP_DEADLINE);
    Ok(stop.exit())
}

fn start_server(state: &Path) -> Result<RunningServer, CliError> {
    let path = state.join("server.yaml");
    let text = std::fs::read_to_string(&path).map_err(|e| CliError::file(&path, &e))?;
    let config = background::server_config(&text, &path.display().to_string())?;
    Server::start(config).map_err(|e| CliError::new(Exit::Usage, e.fault()))
}

fn start_agent(state: &Path) -> Result<RunningNode, CliError> {
    let config = background::agent_config(&state.join("agent.yaml"))?;
    if !weft_node::join::is_joined(&config) {
        first_start(state)?;
        join(state, &config)?;
    } else if weft_node::join::has_ended(&config) {
        // The host was off or asleep for longer than a certificate lives. Nobody but this server can let it in again, and
        // whoever starts both is its administrator.
        join(state, &config)?;
    }
    Node::start(config).map_err(|e| CliError::new(Exit::Usage, e.fault()))
}

fn server_socket(state: &Path) -> PathBuf {
    state.join("run").join("server.sock")
}

/// Lets egress pass (decisions.md: `weft up` writes Allow).
fn first_start(state: &Path) -> Result<(), CliError> {
    let trust_domain = fixed(state, "trust-domain", "")?;
    let mesh = format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: Mesh\nmetadata: {{name: mesh}}\n\
         spec: {{trustDomain: {trust_domain}, defaultAuthorization: Deny, egress: Allow}}\n"
    );
    let namespace = weft_policy::name::Namespace::default_namespace();
    let resources = manifest::parse(&mesh, Some(&namespace)).map_err(CliError::invalid)?;
    let documents =
        resources.iter().map(|r| Document { json: manifest::to_json(r).to_string().into_bytes() }).collect();
    client::run(async {
        let mut server = client::server_at(&server_socket(state)).await?;
        let request = ApplyRequest { documents, reason: "weft up".into(), ..ApplyRequest::default() };
        Ok(server.apply(request).await.map(drop)?)
    })
}

/// Enrolls this host for namespace `default` and joins.
fn join(state: &Path, config: &weft_node::config::Config) -> Result<(), CliError> {
    let node = config.node.to_string();
    let token = client::run(async {
        let mut server = client::server_at(&server_socket(state)).await?;
        let request = CreateTokenRequest {
            purpose: "agent".into(),
            node,
            namespace: "default".into(),
            // Started again after a crash between join and the first start, the node is known already.
            replace: true,
            ..CreateTokenRequest::default()
        };
        Ok(server.create_token(request).await?.into_inner().token)
    })?;
    let token: JoinToken = token.parse().map_err(CliError::internal)?;
    weft_node::join::join(&token, config).map_err(|e| CliError::new(Exit::NotAllowed, e.fault()))?;
    Ok(())
}
