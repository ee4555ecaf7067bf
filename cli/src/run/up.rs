//! `weft up | down`: server and agent of this host in one background process.
//!
//! `up` is idempotent: what runs with the same flags is left alone, changed flags restart it. The trust domain and the
//! node's name are fixed at the first start. `up --foreground` is what the background process itself runs.

use std::{
    ffi::OsString,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::Path,
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
use weft_identity::spiffe::dns_label;
use weft_node::node::{Node, RunningNode};
use weft_registry::server::{RunningServer, Server};

use super::{background, background::Background, logs, signals};
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
    background::private_dir(&state)?;
    let settings = Settings::from_args(args, &state)?;
    let process = Background::new(&state, "weft");
    let changed = settings.write(&state)?;
    match process.running() {
        Some(pid) if !changed => output.done(format!("already up, process {pid}")),
        running => {
            if running.is_some() {
                output.talk("flags changed: restarting");
                process.stop()?;
            }
            start(&process, &state, args, global)?;
            output
                .done(format!("server and agent run in the background; log {}", process.log_file.display()));
        }
    }
    tell(&state, &settings, global, output)
}

/// Stops the mesh of this host.
pub(crate) fn down(args: &DownArgs, _global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let state = paths::user_state_dir(args.state_dir.as_deref())?;
    let stopped = Background::new(&state, "weft").stop()?;
    output.talk(if stopped {
        "stopped; state is kept, `weft up` goes on with it"
    } else {
        "nothing was running"
    });
    Ok(ExitCode::SUCCESS)
}

fn start(process: &Background, state: &Path, args: &UpArgs, global: &Global) -> Result<(), CliError> {
    let mut arguments: Vec<OsString> =
        vec!["up".into(), "--foreground".into(), "--state-dir".into(), state.into()];
    if args.allow_shared_uid {
        arguments.push("--allow-shared-uid".into());
    }
    let arguments: Vec<_> = arguments.iter().map(OsString::as_os_str).collect();
    let pid = process.start(&arguments)?;
    let here = Global { agent_socket: Some(state.join("run").join("agent.sock")), ..global.clone() };
    process.wait_ready(pid, || client::run(local_agent(&here)).is_ok_and(|agent| agent.server_connected))
}

/// What was started, and what to type next.
fn tell(state: &Path, settings: &Settings, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let socket = state.join("run").join("server.sock");
    let (status, agent) = client::run(async {
        let mut server = client::server_at(&socket).await?;
        let status = server.status(StatusRequest {}).await?.into_inner();
        let here = Global { agent_socket: Some(state.join("run").join("agent.sock")), ..global.clone() };
        Ok((status, local_agent(&here).await?))
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

/// The values of `up`, as the two configuration files say them.
struct Settings {
    trust_domain: String,
    node: String,
    control: String,
    server_yaml: String,
    agent_yaml: String,
}

impl Settings {
    fn from_args(args: &UpArgs, state: &Path) -> Result<Self, CliError> {
        let host =
            nix::unistd::gethostname().map_err(|e| CliError::internal(format!("no host name: {e}")))?;
        let label = dns_label(&host.to_string_lossy());
        let node = fixed(state, "node", &label)?;
        let wanted = args.trust_domain.clone().unwrap_or_else(|| format!("{label}.weft.internal"));
        let trust_domain = fixed(state, "trust-domain", &wanted)?;
        if args.trust_domain.as_ref().is_some_and(|given| *given != trust_domain) {
            return Err(CliError::usage(
                format!("the trust domain is {trust_domain} since the first start and cannot change"),
                "weft up --state-dir NEW_DIR --trust-domain …",
            ));
        }
        let ip = args.listen.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let port =
            |offset: u16, standard: u16| args.port_base.map_or(standard, |base| base.saturating_add(offset));
        let control = std::net::SocketAddr::new(ip, port(1, 7444)).to_string();
        let server_yaml = server_yaml(args, state, &trust_domain, &control, &port);
        let agent_yaml = agent_yaml(args, state, &node, ip, &port);
        Ok(Self { trust_domain, node, control, server_yaml, agent_yaml })
    }

    /// Writes both files; tells whether either changed.
    fn write(&self, state: &Path) -> Result<bool, CliError> {
        let mut changed = false;
        for (name, text) in [("server.yaml", &self.server_yaml), ("agent.yaml", &self.agent_yaml)] {
            let path = state.join(name);
            if std::fs::read_to_string(&path).is_ok_and(|old| old == *text) {
                continue;
            }
            changed = true;
            background::write_private(&path, text.as_bytes())?;
        }
        info!(trust_domain = %self.trust_domain, node = %self.node, changed, "configuration written");
        Ok(changed)
    }
}

/// A value that the first start fixes.
fn fixed(state: &Path, name: &str, wanted: &str) -> Result<String, CliError> {
    let path = state.join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Ok(_) | Err(_) => {
            background::write_private(&path, wanted.as_bytes())?;
            Ok(wanted.to_owned())
        }
    }
}

fn server_yaml(
    args: &UpArgs,
    state: &Path,
    trust_domain: &str,
    control: &str,
    port: &impl Fn(u16, u16) -> u16,
) -> String {
    let mut text = String::from("# Written by `weft up`, which overwrites it.\n");
    let advertise: Vec<_> = args.advertise.iter().map(|a| host_of(a)).collect();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "cluster: local\ntrustDomain: {trust_domain}\n\
         listen: {{control: \"{control}\", admin: \"127.0.0.1:{}\", metrics: \"127.0.0.1:{}\"}}\n\
         advertise: {}\nstore: {{embedded: {{path: {}}}}}\nrunDir: {}\nallowSharedUid: {}\n",
        port(2, 7401),
        port(3, 7402),
        json!(advertise),
        json!(state.join("server")),
        json!(state.join("run")),
        args.allow_shared_uid,
    );
    text
}

fn agent_yaml(
    args: &UpArgs,
    state: &Path,
    node: &str,
    ip: IpAddr,
    port: &impl Fn(u16, u16) -> u16,
) -> String {
    let tunnels = std::net::SocketAddr::new(ip, port(0, 7443));
    let advertise: Vec<_> =
        args.advertise.iter().map(|a| super::agent::with_port(&host_of(a), tunnels.port())).collect();
    let control = std::net::SocketAddr::new(
        if ip.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { ip },
        port(1, 7444),
    );
    let mut text = String::from("# Written by `weft up`, which overwrites it.\n");
    // The agent's own admin and metrics listeners take the next free loopback ports (decisions.md, one host).
    let _ = write!(
        text,
        "cluster: local\nnode: {node}\nservers: [\"{control}\"]\n\
         listen: {{tunnels: \"{tunnels}\", proxy: \"127.0.0.1:{}\", admin: \"127.0.0.1:0\", metrics: \"127.0.0.1:0\"}}\n\
         advertise: {}\nstateDir: {}\nrunDir: {}\n",
        port(4, 7480),
        json!(advertise),
        json!(state.join("agent")),
        json!(state.join("run")),
    );
    text
}

/// The host of `host`, `host:port`, `[v6]` or `[v6]:port`.
fn host_of(address: &str) -> String {
    if let Ok(socket) = address.parse::<std::net::SocketAddr>() {
        return socket.ip().to_string();
    }
    match address.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() && !host.contains(':') => host.to_owned(),
        Some(_) | None => address.trim_matches(['[', ']']).to_owned(),
    }
}

/// Runs server and agent until SIGINT or SIGTERM.
fn foreground(state: &Path, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    logs::start(global);
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
        first_start(state, &config)?;
    }
    Node::start(config).map_err(|e| CliError::new(Exit::Usage, e.fault()))
}

/// Enrolls this host for namespace `default`, lets egress pass (decisions.md: `weft up` writes Allow), and joins.
fn first_start(state: &Path, config: &weft_node::config::Config) -> Result<(), CliError> {
    let socket = state.join("run").join("server.sock");
    let trust_domain = fixed(state, "trust-domain", "")?;
    let mesh = format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: Mesh\nmetadata: {{name: mesh}}\n\
         spec: {{trustDomain: {trust_domain}, defaultAuthorization: Deny, egress: Allow}}\n"
    );
    let namespace = weft_policy::name::Namespace::default_namespace();
    let resources = manifest::parse(&mesh, Some(&namespace)).map_err(CliError::invalid)?;
    let documents =
        resources.iter().map(|r| Document { json: manifest::to_json(r).to_string().into_bytes() }).collect();
    let node = config.node.to_string();
    let token = client::run(async {
        let mut server = client::server_at(&socket).await?;
        let request = ApplyRequest { documents, dry_run: false, reason: "weft up".into() };
        server.apply(request).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_an_advertised_address() {
        for (given, host) in [
            ("hosta.example", "hosta.example"),
            ("hosta.example:7443", "hosta.example"),
            ("10.0.0.1:7443", "10.0.0.1"),
            ("[2001:db8::1]:7443", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
        ] {
            assert_eq!(host_of(given), host, "{given}");
        }
    }
}
