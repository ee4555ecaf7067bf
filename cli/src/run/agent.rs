//! `weft agent run | join | status | drain`, and the way to `ban` and `unban`.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    io::Read as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use serde_json::json;
use tracing::info;
use weft_api::{
    fault::Fault,
    pb::agent::DrainRequest,
    token::{JoinToken, Subject},
};
use weft_node::{join::JoinError, node::Node};
use weft_policy::code;
use zeroize::Zeroizing;

use super::{background, background::Background, joined, logs, memory, secrecy, signals};
use crate::{
    args::{
        Global,
        groups::{AgentArgs, AgentCommand, JoinArgs, Purpose},
    },
    client,
    error::{CliError, Exit},
    identity::denied,
    observe::status::{agent_status_json, local_agent, print_agent},
    output::Output,
    paths,
};

/// How long flows may take to end after SIGTERM, when nothing else was asked.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// Dispatches `weft agent …`.
pub(crate) fn agent(args: &AgentArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    match &args.command {
        AgentCommand::Run { config } => run(config, global, output),
        AgentCommand::Join(join_args) => join(join_args, global, output),
        AgentCommand::Status => status(global, output),
        AgentCommand::Drain { deadline } => drain(*deadline, global, output),
        AgentCommand::Ban(args) => denied::ban(args, global, output),
        AgentCommand::Unban(args) => denied::unban(args, global, output),
    }
}

/// Runs the agent until SIGINT, SIGTERM or the end of a drain.
fn run(config: &Path, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    logs::start(global);
    secrecy::close_memory()?;
    memory::give_back()?;
    let config = background::agent_config(config)?;
    let node = Node::start(config).map_err(|e| CliError::new(Exit::Usage, e.fault()))?;
    output.talk(format!("agent ready: tunnels {}/udp, proxy {}", node.tunnels_addr(), node.proxy_addr()));
    let drained = node.drained();
    let stop = client::run(async {
        tokio::select! {
            stop = signals::wait_async() => stop.map(Some),
            () = drained => Ok(None),
        }
    })?;
    info!(?stop, "draining");
    let cut = node.drain(DRAIN_DEADLINE);
    info!(flows_cut = cut, "stopped");
    Ok(ExitCode::SUCCESS)
}

/// Joins the mesh, writes the configuration, starts the agent in the background.
fn join(args: &JoinArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    secrecy::close_memory()?;
    let token = read_token(&args.token_file, Purpose::Agent)?;
    let Subject::Node(node) = &token.subject else {
        let fault = Fault::new(code::TOKEN_OTHER_PURPOSE, "this token is for a person, not for an agent")
            .fix("weft token create --for agent --node NAME --namespace NAMESPACE");
        return Err(CliError::new(Exit::Invalid, fault));
    };
    let state = match &args.state_dir {
        Some(dir) => paths::user_state_dir(Some(dir))?,
        None => paths::user_state_dir(None)?.join("agent"),
    };
    let plan = JoinPlan::new(args, &token, node, &state)?;
    let joined = weft_node::join::join(&token, &plan.config).map_err(|e| join_failed(&e))?;
    output.done(format!("server {} reachable", joined.server));
    output.done("CA fingerprint matches the token");
    output.done(format!("identity {}, namespace {}", joined.spiffe_id, joined.namespace));
    plan.keep(output)?;
    if args.no_start {
        output.talk(format!("start it with: weft agent run --config {}", plan.path.display()));
        return Ok(ExitCode::SUCCESS);
    }
    Background::new(&state, "agent").stop()?;
    start(&plan.path, &state, global, output)
}

/// The configuration that a join goes by.
struct JoinPlan {
    path: PathBuf,
    config: weft_node::config::Config,
    /// What is to be written once the join has succeeded; `None` where a file of the person's own stands.
    text: Option<String>,
}

impl JoinPlan {
    /// The file that is named or stands there already, as a person may have edited it; else a new one.
    fn new(args: &JoinArgs, token: &JoinToken, node: &str, state: &Path) -> Result<Self, CliError> {
        if let Some(path) = &args.config {
            return Ok(Self { path: path.clone(), config: background::agent_config(path)?, text: None });
        }
        if joined::is_own(state) {
            return Err(CliError::joined_already(
                format!("{} is the state of the agent that `weft up` runs here", state.display()),
                "weft agent join --state-dir NEW_DIR --token-file FILE, with ports of its own in NEW_DIR/agent.yaml",
            ));
        }
        background::private_dir(state)?;
        let path = state.join(joined::CONFIG);
        if path.exists() {
            let config = background::agent_config(&path)?;
            if config.servers == token.servers {
                return Ok(Self { path, config, text: None });
            }
        }
        let text = new_config(args, token, node, state);
        let config = background::parse_agent_config(&text, &path)?;
        Ok(Self { path, config, text: Some(text) })
    }

    fn keep(&self, output: &Output) -> Result<(), CliError> {
        match &self.text {
            Some(text) => {
                if self.path.exists() {
                    // It leads to another mesh, or to an older address of this one.
                    let aside = self.path.with_extension("yaml.old");
                    std::fs::rename(&self.path, &aside).map_err(|e| CliError::file(&self.path, &e))?;
                    output.talk(format!("the configuration for other servers is now {}", aside.display()));
                }
                background::write_private(&self.path, text.as_bytes())?;
                output.done(format!("configuration {}", self.path.display()));
            }
            None => output.done(format!("configuration {}, kept as it is", self.path.display())),
        }
        Ok(())
    }
}

/// The exit code follows from what went wrong (cli.md 4.3).
fn join_failed(error: &JoinError) -> CliError {
    let exit = match error {
        JoinError::Refused(status) => return CliError::from_status(status),
        JoinError::NotForNode | JoinError::OtherNode { .. } => Exit::Invalid,
        JoinError::Connect(cause) if cause.is_tls_refusal() => Exit::NotAllowed,
        JoinError::Connect(_) => Exit::Unreachable,
        JoinError::TimedOut => Exit::TimedOut,
        JoinError::Bundle(_) | JoinError::Svid(_) => Exit::NotAllowed,
        JoinError::File(_) => Exit::Usage,
        JoinError::Request(_) | JoinError::Runtime(_) => Exit::Internal,
    };
    CliError::new(exit, error.fault())
}

/// Starts `weft agent run` in the background and waits until its socket answers.
pub(crate) fn start(
    config: &Path,
    state: &Path,
    global: &Global,
    output: &Output,
) -> Result<ExitCode, CliError> {
    let process = Background::new(state, "agent");
    let started = process.start(&[
        OsStr::new("agent"),
        OsStr::new("run"),
        OsStr::new("--config"),
        config.as_os_str(),
    ])?;
    let socket = background::agent_config(config)?.run_dir.join("agent.sock");
    let here = Global { agent_socket: Some(socket.clone()), ..global.clone() };
    process.wait_ready(started, || client::run(local_agent(&here)).is_ok())?;
    output.done(format!("agent runs as process {}; log {}", started.pid, process.log_file.display()));
    let found = paths::socket_candidates("agent.sock").contains(&socket);
    let name_it =
        if found { String::new() } else { format!("export WEFT_AGENT_SOCKET={}; ", socket.display()) };
    output.talk(format!("next: {name_it}weft run --service NAME --port PORT -- PROGRAM"));
    Ok(ExitCode::SUCCESS)
}

/// Reads a token for `purpose` from a file or standard input.
pub(crate) fn read_token(path: &Path, purpose: Purpose) -> Result<JoinToken, CliError> {
    let limit = weft_api::token::MAX_TOKEN_BYTES as u64 + 1;
    let mut text = Zeroizing::new(String::new());
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    read.map_err(|e| CliError::file(path, &e))?;
    text.parse().map_err(|error: weft_api::token::InvalidToken| {
        let create = match purpose {
            Purpose::Agent => "weft token create --for agent --node NAME",
            Purpose::User => "weft token create --for user --user NAME --role viewer",
            Purpose::Server => "weft token create --for server",
        };
        let fault = Fault::new(code::TOKEN_MALFORMED, "the token cannot be read")
            .why(error.to_string())
            .fix(format!("make a new one on the server's host: {create}"));
        CliError::new(Exit::Invalid, fault)
    })
}

/// The text of a new `agent.yaml`.
fn new_config(args: &JoinArgs, token: &JoinToken, node: &str, state: &Path) -> String {
    let servers: Vec<_> = token.servers.iter().map(ToString::to_string).collect();
    let advertise: Vec<_> = args.advertise.iter().map(|a| with_port(a, args.listen.port())).collect();
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "# Written by `weft agent join`; every key is explained by `weft config view --origin --agent-config FILE`.\n\
         cluster: {}\nnode: {node}\nservers: {}\nlisten: {{tunnels: \"{}\"}}\nadvertise: {}\nstateDir: {}\nrunDir: {}\n",
        token.cluster,
        json!(servers),
        args.listen,
        json!(advertise),
        json!(state),
        json!(state.join("run")),
    );
    text
}

/// A name or address with a port; without one it gets the tunnels' own.
pub(crate) fn with_port(address: &str, port: u16) -> String {
    let has_port = address.parse::<std::net::SocketAddr>().is_ok()
        || (address.matches(':').count() == 1
            && address.rsplit(':').next().is_some_and(|p| p.parse::<u16>().is_ok()));
    match (has_port, address.contains(':')) {
        (true, _) => address.to_owned(),
        (false, true) => format!("[{}]:{port}", address.trim_matches(['[', ']'])),
        (false, false) => format!("{address}:{port}"),
    }
}

fn status(global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let status = client::run(local_agent(global))?;
    if output.is_structured() {
        output.object(&agent_status_json(&status))?;
    } else {
        for problem in &status.problems {
            output.line(format!("! {}  {}", problem.code, problem.what))?;
        }
        print_agent(&status, output)?;
    }
    Ok(if status.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn drain(deadline: Duration, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    let answer = client::run(async {
        let mut agent = client::agent(global).await?;
        Ok(agent.drain(DrainRequest { deadline_ms }).await?.into_inner())
    })?;
    if output.is_structured() {
        output.object(&json!({"flowsCut": answer.flows_cut}))?;
    } else {
        output.line(format!("drained; {} flows were cut at the deadline", answer.flows_cut))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertised_address_gets_the_tunnels_port_unless_it_has_one() {
        assert_eq!(with_port("hosta.example", 7443), "hosta.example:7443");
        assert_eq!(with_port("hosta.example:9", 7443), "hosta.example:9");
        assert_eq!(with_port("10.0.0.1", 7443), "10.0.0.1:7443");
        assert_eq!(with_port("2001:db8::1", 7443), "[2001:db8::1]:7443");
        assert_eq!(with_port("[2001:db8::1]:9", 7443), "[2001:db8::1]:9");
    }
}
