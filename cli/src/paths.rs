//! Where things lie: state directories, sockets, a person's own identity (cli.md 4.5, decisions.md sockets).

use std::path::{Path, PathBuf};

use crate::error::{CliError, Exit};
use weft_api::fault::Fault;

/// The mesh that `weft up` makes for this user.
pub(crate) fn user_state_dir(given: Option<&Path>) -> Result<PathBuf, CliError> {
    if let Some(dir) = given {
        return std::path::absolute(dir).map_err(|e| CliError::file(dir, &e));
    }
    Ok(data_home()?.join("weft"))
}

/// The demo's own directory.
pub(crate) fn demo_state_dir(given: Option<&Path>) -> Result<PathBuf, CliError> {
    if let Some(dir) = given {
        return std::path::absolute(dir).map_err(|e| CliError::file(dir, &e));
    }
    Ok(data_home()?.join("weft").join("demo"))
}

/// `$XDG_CONFIG_HOME/weft` or `~/.config/weft`: a person's own identity and contexts.
pub(crate) fn config_dir() -> Result<PathBuf, CliError> {
    xdg("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("weft"))
}

fn data_home() -> Result<PathBuf, CliError> {
    xdg("XDG_DATA_HOME", ".local/share")
}

fn xdg(variable: &str, below_home: &str) -> Result<PathBuf, CliError> {
    match std::env::var_os(variable) {
        Some(dir) if Path::new(&dir).is_absolute() => Ok(dir.into()),
        _ => Ok(home()?.join(below_home)),
    }
}

fn home() -> Result<PathBuf, CliError> {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from).ok_or_else(|| {
        let fault = Fault::new(weft_policy::code::FILE_UNUSABLE, "no home directory is known")
            .why("HOME is not set")
            .fix("export HOME=…");
        CliError::new(Exit::Usage, fault)
    })
}

/// Where a socket of that name may lie, most specific first.
pub(crate) fn socket_candidates(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if let Some(state) = std::env::var_os("WEFT_STATE_DIR") {
        found.push(PathBuf::from(state).join("run").join(name));
    }
    if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR") {
        found.push(PathBuf::from(dir).join("weft").join(name));
    }
    if let Ok(state) = user_state_dir(None) {
        found.push(state.join("run").join(name));
        found.push(state.join("agent").join("run").join(name));
        found.push(state.join("server").join("run").join(name));
        found.push(state.join("demo").join("run").join(name));
    }
    found.push(PathBuf::from("/run/weft").join(name));
    found.push(PathBuf::from("/var/lib/weft/run").join(name));
    found.push(PathBuf::from("/var/lib/weft/agent/run").join(name));
    found.push(PathBuf::from("/var/lib/weft/server/run").join(name));
    found
}
