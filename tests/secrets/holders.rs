//! The files of a run: which of them are meant to hold a secret, and how those are kept.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Every regular file under `folder` that a program wrote, in no order: not what the test itself gave to programs to
/// read (`*.in`), nor the program. Links are not followed.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        // A folder may go while we look: then it holds nothing any more.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() && !is_ours(&entry.path()) => found.push(entry.path()),
                Ok(_) | Err(_) => {}
            }
        }
    }
    found
}

/// What people are handed.
pub(crate) const TOKEN: &str = "a token";

/// What the file is meant to hold, by its path within the run's folder. `None`: no secret at all.
pub(crate) fn meant_for(path: &Path) -> Option<&'static str> {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    match parts.as_slice() {
        // What people hold: the tokens as they were handed over.
        ["handed", _] => Some(TOKEN),
        [_, "state", "server", "ca", "authority.json"] => Some("the keys of the authority"),
        [_, "state", "server", "records", "key.json"] => Some("the key of records"),
        // One that joined by its own command keeps it without the folder "agent".
        [_, "state", rest @ ..] => of_agent(rest.strip_prefix(&["agent"]).unwrap_or(rest)),
        [_, _, "config", "weft", "identity.pem"] => Some("the key of a person"),
        _ => None,
    }
}

fn of_agent(path: &[&str]) -> Option<&'static str> {
    match path {
        ["node.pem"] => Some("the key of the node"),
        ["keys"] => Some("the keys of its tunnels' port"),
        ["svids", file] if is_pem(file) => Some("the key of a workload"),
        ["credentials", _] => Some("a proxy credential"),
        _ => None,
    }
}

fn is_ours(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "in") || file.ends_with("weft") && file.is_file()
}

fn is_pem(file: &str) -> bool {
    Path::new(file).extension().is_some_and(|extension| extension == "pem")
}

/// Checks that nobody but its owner can read `file`, nor enter the folder that it is in.
pub(crate) fn check_private(file: &Path) -> Result<(), String> {
    let mode = |path: &Path| {
        let read = fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok::<_, String>(read.permissions().mode() & 0o7777)
    };
    let folder = file.parent().ok_or("it stands in no folder")?;
    match (mode(file)?, mode(folder)?) {
        (0o600, 0o700) => Ok(()),
        (own, above) => Err(format!("{} has mode {own:o} in a folder of mode {above:o}", file.display())),
    }
}
