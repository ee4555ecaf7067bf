//! Keeps what a daemon holds in memory out of files and out of the reach of other processes of its user.
//!
//! Keys are wiped when they are dropped; those in use are not written to a core file either (security.md, OPS-05), and
//! no other process of the same user may attach or read the memory. Programs that `weft run` starts are not concerned:
//! their core files are their own.

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

use crate::error::CliError;

/// From now on this process leaves no core file, and only root may look into it.
pub(crate) fn close_memory() -> Result<(), CliError> {
    let failed = |errno| CliError::internal(format!("cannot keep keys out of core files: {errno}"));
    prctl::set_dumpable(false).map_err(failed)?;
    // A core file that a pipe takes does not heed the flag everywhere; no process takes one of zero bytes.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(failed)
}
