//! Connections to the server and to the agent, and the runtime of a command.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tonic::{Status, body::Body, transport::Channel};
use tower::{ServiceExt as _, util::MapResponse};
use weft_api::{
    channel,
    fault::Fault,
    pb::{agent::agent_client::AgentClient, management::management_client::ManagementClient},
    staleness,
};
use weft_policy::code;

use crate::{
    args::Global,
    error::{CliError, Exit},
    paths,
};

/// The server as a person sees it.
pub(crate) type Management = ManagementClient<MapResponse<Channel, Note>>;
/// Looks at the headers of an answer.
type Note = fn(http::Response<Body>) -> http::Response<Body>;
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

/// Asks the server several things, within `--timeout` together.
pub(crate) fn block_on_cli<T>(
    global: &Global,
    ask: impl AsyncFnOnce(&mut Management) -> Result<T, CliError>,
) -> Result<T, CliError> {
    run(async {
        let mut client = server(global).await?;
        within(global.timeout, ask(&mut client)).await
    })
}

/// What `ask` answers, if it does so in time.
pub(crate) async fn within<T>(
    timeout: Duration,
    ask: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    tokio::time::timeout(timeout, ask).await.map_err(|_| timed_out(timeout))?
}

fn timed_out(timeout: Duration) -> CliError {
    let fault = Fault::new(code::DEADLINE, format!("no answer within {timeout:?}"))
        .why("the server accepted the connection and did not answer in time")
        .fix("weft status")
        .fix("give it longer: --timeout 2m");
    CliError::new(Exit::TimedOut, fault)
}

/// Connects to the server: `--server`, else the first socket of this host that answers.
pub(crate) async fn server(global: &Global) -> Result<Management, CliError> {
    if let Some(address) = &global.server {
        if address.starts_with('/') || address.starts_with('.') {
            return server_at(Path::new(address)).await;
        }
        let identity = crate::identity::person::load()?;
        return Ok(management(identity.connect(address, global.timeout).await?));
    }
    let (channel, _) = first_that_answers(Peer::Server, &paths::socket_candidates("server.sock")).await?;
    Ok(management(channel))
}

fn management(channel: Channel) -> Management {
    let note: Note = |answer| {
        if let Some(age) = staleness::of(answer.headers()) {
            STALE_MS.store(u64::try_from(age.as_millis()).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
        }
        answer
    };
    ManagementClient::new(channel.map_response(note))
}

/// The age of the newest answer that was out of date, in milliseconds; 0 for none. A process is one command.
static STALE_MS: AtomicU64 = AtomicU64::new(0);

/// How old what the server has answered is, if its store does not answer it.
pub(crate) fn stale_for() -> Option<Duration> {
    match STALE_MS.load(Ordering::Relaxed) {
        0 => None,
        millis => Some(Duration::from_millis(millis)),
    }
}

/// Connects to the server that listens on the socket at `path`.
pub(crate) async fn server_at(path: &Path) -> Result<Management, CliError> {
    let (channel, _) = first_that_answers(Peer::Server, &[path.to_owned()]).await?;
    Ok(management(channel))
}

/// The socket by which [`server`] reaches a server of this host.
pub(crate) fn local_server_socket(global: &Global) -> Option<PathBuf> {
    match &global.server {
        Some(address) if address.starts_with('/') || address.starts_with('.') => Some(address.into()),
        Some(_) => None,
        None => paths::socket_candidates("server.sock").into_iter().find(|path| path.exists()),
    }
}

/// Whether this host has the socket of an agent, be it left over.
pub(crate) fn has_agent_socket() -> bool {
    paths::socket_candidates("agent.sock").iter().any(|path| path.exists())
}

/// Connects to this host's agent.
pub(crate) async fn agent(global: &Global) -> Result<Agent, CliError> {
    Ok(agent_and_socket(global).await?.0)
}

/// Connects to this host's agent, and says by which socket.
pub(crate) async fn agent_and_socket(global: &Global) -> Result<(Agent, PathBuf), CliError> {
    let candidates = match &global.agent_socket {
        Some(path) => vec![path.clone()],
        None => paths::socket_candidates("agent.sock"),
    };
    let (channel, socket) = first_that_answers(Peer::Agent, &candidates).await?;
    Ok((AgentClient::new(channel), socket))
}

/// Connects to the agent that listens on the socket at `path`.
pub(crate) async fn agent_at(path: &Path) -> Result<Agent, CliError> {
    Ok(AgentClient::new(first_that_answers(Peer::Agent, &[path.to_owned()]).await?.0))
}

/// Who is looked for on this host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Peer {
    Server,
    Agent,
}

/// A socket may be left over from a process that was killed, so the first that answers is taken, not the first that
/// is there.
async fn first_that_answers(peer: Peer, candidates: &[PathBuf]) -> Result<(Channel, PathBuf), CliError> {
    let mut silent = Vec::new();
    for path in candidates.iter().filter(|path| path.exists()) {
        match channel::connect_unix(path).await {
            Ok(channel) => return Ok((channel, path.clone())),
            Err(error) => silent.push(format!("{}: {}", path.display(), innermost(&error))),
        }
    }
    Err(absent(peer, candidates, silent))
}

/// What the system said.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn absent(peer: Peer, candidates: &[PathBuf], silent: Vec<String>) -> CliError {
    let (code, what, name_it) = match peer {
        Peer::Server => (
            code::SERVER_UNREACHABLE,
            "server",
            "or name one: --server HOST:7444, or --server PATH/server.sock",
        ),
        Peer::Agent => {
            (code::AGENT_NOT_RUNNING, "agent", "or name its socket: --agent-socket PATH/agent.sock")
        }
    };
    let mut fault = if silent.is_empty() {
        let looked: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
        Fault::new(code, format!("no {what} runs on this host"))
            .why(format!("no socket at {}", looked.join(", ")))
    } else {
        Fault::new(code, format!("cannot reach the {what}"))
    };
    fault.why.extend(silent);
    CliError::new(Exit::Unreachable, fault.fix("weft up").fix(name_it))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_was_left_over_does_not_hide_one_that_answers() {
        let dir = tempfile::tempdir().unwrap();
        let [dead, live, gone] = ["dead.sock", "live.sock", "gone.sock"].map(|name| dir.path().join(name));
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        let listener = tokio::net::UnixListener::bind(&live).unwrap();

        let paths = [gone.clone(), dead.clone(), live];
        let (found, accepted) = tokio::join!(first_that_answers(Peer::Server, &paths), listener.accept());
        accepted.unwrap();
        assert_eq!(found.unwrap().1, paths[2]);

        let refused = first_that_answers(Peer::Server, &[gone.clone(), dead]).await.unwrap_err();
        let why = refused.faults()[0].why.join("\n");
        assert!(why.contains("dead.sock: Connection refused") && !why.contains("gone"), "{why}");
        let none = first_that_answers(Peer::Agent, &[gone]).await.unwrap_err();
        assert!(none.faults()[0].why[0].contains("no socket at"), "{none:?}");
    }
}
