//! The agent that `weft agent join` left on this host, as `weft up` and `weft down` see it.
//!
//! A joined agent belongs to somebody else's mesh. `up` starts it again and never puts a mesh of its own over it; `down`
//! stops it.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::{agent, background::Background};
use crate::{
    args::{Global, groups::UpArgs},
    error::CliError,
    output::Output,
};

/// What a node that joined keeps (`weft_node::join`).
const JOIN_RECORD: &str = "join.json";
/// The configuration that `agent join` writes beside its state.
pub(crate) const CONFIG: &str = "agent.yaml";

/// Where a joined agent may have its state, when `weft up` would use `state`.
pub(crate) fn places(state: &Path) -> [PathBuf; 2] {
    [state.join("agent"), state.to_owned()]
}

/// The state directory of the joined agent that `weft up` would meet in `state`.
pub(crate) fn find(state: &Path) -> Option<PathBuf> {
    places(state).into_iter().find(|place| place.join(JOIN_RECORD).exists() && !is_own(place))
}

/// Whether `agent` is the state of the agent that a `weft up` of this host runs: that one has its configuration
/// beside the server's.
pub(crate) fn is_own(agent: &Path) -> bool {
    let beside_server = agent.parent().is_some_and(|state| state.join("server.yaml").exists());
    beside_server && !agent.join(CONFIG).exists()
}

/// `weft up` where an agent has joined: starts that agent.
pub(crate) fn up(
    agent_state: &Path,
    args: &UpArgs,
    global: &Global,
    output: &Output,
) -> Result<ExitCode, CliError> {
    let config = agent_state.join(CONFIG);
    let flags = args.listen.is_some()
        || !args.advertise.is_empty()
        || args.port_base.is_some()
        || args.trust_domain.is_some()
        || args.allow_shared_uid.is_some();
    if flags || !config.exists() {
        let what =
            format!("this host's agent has joined a mesh already; its state is {}", agent_state.display());
        let fix = if config.exists() {
            "start it:   weft up, without flags; a mesh of its own:   weft up --state-dir NEW_DIR --port-base PORT"
        } else {
            "start it:   weft agent run --config FILE; a mesh of its own:   weft up --state-dir NEW_DIR --port-base PORT"
        };
        return Err(CliError::joined_already(what, fix));
    }
    if let Some(pid) = Background::new(agent_state, "agent").running() {
        output.done(format!("already up, process {pid}: the agent of a joined mesh"));
        return Ok(ExitCode::SUCCESS);
    }
    agent::start(&config, agent_state, global, output)
}

/// Stops the agents that `weft agent join` started below `state`. Tells whether there was one.
pub(crate) fn stop(state: &Path) -> Result<bool, CliError> {
    let mut stopped = false;
    for place in places(state) {
        stopped |= Background::new(&place, "agent").stop()?;
    }
    Ok(stopped)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_joined_agent_is_told_from_the_one_of_up() {
        let dir = tempfile::tempdir().unwrap();
        let agent = dir.path().join("agent");
        fs::create_dir(&agent).unwrap();
        assert_eq!(find(dir.path()), None);

        fs::write(agent.join(JOIN_RECORD), "{}").unwrap();
        assert_eq!(find(dir.path()), Some(agent.clone()), "no server was ever configured here");
        fs::write(dir.path().join("server.yaml"), "").unwrap();
        assert_eq!(find(dir.path()), None, "it is the agent of `weft up`");
        fs::write(agent.join(CONFIG), "").unwrap();
        assert_eq!(find(dir.path()), Some(agent.clone()), "agent join writes its configuration there");
        assert_eq!(find(&agent), Some(agent.clone()), "as the state directory itself");
    }
}
