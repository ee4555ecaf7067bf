//! Connections to the server and to the agent, and the runtime of a command.

use std::path::{Path, PathBuf};

use tonic::{Status, transport::Channel};
use weft_api::{
    channel,
    fault::Fault,
    pb::{agent::agent_client::AgentClient, management::management_client::ManagementClient},
};
use weft_policy::code;

use crate::{
    args::Global,
    error::{CliError, Exit},
    paths,
};

/// The server as a person sees it.
pub(crate) type Management = ManagementClient<Channel>;
/// The host's agent as a person sees it.
pub(crate) type Agent = AgentClient<Channel>;

/// Runs a command that waits for answers, on a runtime of its own.
pub(crate) fn run<T>(future: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| CliError::internal(format!("cannot start the runtime: {e}")))?.block_on(future)
}

/// Asks the server one thing, within `--timeout`.
pub(crate) fn block_on<T>(
    global: &Global,
    ask: impl AsyncFnOnce(&mut Management) -> Result<tonic::Response<T>, Status>,
) -> Result<T, CliError> {
    let timeout = global.timeout;
    run(async {
        let mut client = server(global).await?;
        let answer = tokio::time::timeout(timeout, ask(&mut client)).await;
        let answer = answer.map_err(|_| timed_out(timeout))?;
        answer.map(tonic::Response::into_inner).map_err(CliError::from)
    })
}

/// Asks the server several things.
pub(crate) fn block_on_cli<T>(
    global: &Global,
    ask: impl AsyncFnOnce(&mut Management) -> Result<T, CliError>,
) -> Result<T, CliError> {
    run(async {
        let mut client = server(global).await?;
        ask(&mut client).await
    })
}

fn timed_out(timeout: std::time::Duration) -> CliError {
    let fault = Fault::new(code::DEADLINE, format!("no answer within {timeout:?}"))
        .why("the server accepted the connection and did not answer in time")
        .fix("weft status")
        .fix("give it longer: --timeout 2m");
    CliError::new(Exit::TimedOut, fault)
}

/// Connects to the server: `--server`, else the first socket of this host that exists.
pub(crate) async fn server(global: &Global) -> Result<Management, CliError> {
    if let Some(address) = &global.server {
        if address.starts_with('/') || address.starts_with('.') {
            return server_at(Path::new(address)).await;
        }
        let identity = crate::identity::person::load()?;
        let channel = identity.connect(address, global.timeout).await?;
        return Ok(ManagementClient::new(channel));
    }
    let candidates = paths::socket_candidates("server.sock");
    match candidates.iter().find(|path| path.exists()) {
        Some(path) => server_at(path).await,
        None => Err(no_socket("server", &candidates)),
    }
}

/// Connects to the server that listens on the socket at `path`.
pub(crate) async fn server_at(path: &Path) -> Result<Management, CliError> {
    let channel = channel::connect_unix(path).await.map_err(|e| unreachable("server", path, &e))?;
    Ok(ManagementClient::new(channel))
}

/// Connects to this host's agent.
pub(crate) async fn agent(global: &Global) -> Result<Agent, CliError> {
    let candidates = match &global.agent_socket {
        Some(path) => vec![path.clone()],
        None => paths::socket_candidates("agent.sock"),
    };
    let Some(path) = candidates.iter().find(|path| path.exists()) else {
        return Err(no_socket("agent", &candidates));
    };
    agent_at(path).await
}

/// Connects to the agent that listens on the socket at `path`.
pub(crate) async fn agent_at(path: &Path) -> Result<Agent, CliError> {
    let channel = channel::connect_unix(path).await.map_err(|e| unreachable("agent", path, &e))?;
    Ok(AgentClient::new(channel))
}

fn no_socket(what: &str, candidates: &[PathBuf]) -> CliError {
    let mut fault = Fault::new(
        if what == "server" { code::SERVER_UNREACHABLE } else { code::AGENT_NOT_RUNNING },
        format!("no {what} runs on this host"),
    );
    let looked: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
    fault = fault.why(format!("no socket at {}", looked.join(", "))).fix("weft up");
    let fault = match what {
        "server" => fault.fix("or name one: --server HOST:7444, or --server PATH/server.sock"),
        _ => fault.fix("or name its socket: --agent-socket PATH/agent.sock"),
    };
    CliError::new(Exit::Unreachable, fault)
}

fn unreachable(what: &str, path: &Path, error: &dyn std::fmt::Display) -> CliError {
    let fault = Fault::new(
        if what == "server" { code::SERVER_UNREACHABLE } else { code::AGENT_NOT_RUNNING },
        format!("cannot reach the {what}"),
    )
    .why(format!("{}: {error}", path.display()))
    .fix("weft status")
    .fix("weft up");
    CliError::new(Exit::Unreachable, fault)
}
