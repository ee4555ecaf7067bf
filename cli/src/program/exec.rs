//! `weft exec-program`: becomes the program of a `weft run`, bound to it.
//!
//! Hidden: `weft run` starts itself so. Between fork and exec the kernel is asked to end the program when its `weft run`
//! is gone (prctl(2), PR_SET_PDEATHSIG): killed outright it could not do so, and the program would run on outside the
//! mesh with nobody to wait for it. The wish outlives the exec.

use std::{os::unix::process::CommandExt as _, process::ExitCode};

use nix::{
    sys::{prctl, signal::Signal},
    unistd::{Pid, getppid},
};
use weft_api::fault::Fault;
use weft_policy::code;

use crate::{
    args::groups::ExecArgs,
    error::{CliError, Exit},
};

/// Becomes the program; returns only when it cannot be started.
pub(crate) fn exec(args: &ExecArgs) -> Result<ExitCode, CliError> {
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(CliError::usage("no program given", "weft run --service charge -- ./charge"));
    };
    prctl::set_pdeathsig(Signal::SIGTERM).map_err(CliError::internal)?;
    if getppid() != Pid::from_raw(args.parent) {
        // It went before the kernel was asked.
        return Ok(ExitCode::from(143));
    }
    let error = std::process::Command::new(program).args(arguments).exec();
    let fault = Fault::new(code::COMMAND_NOT_FOUND, format!("cannot start {program}")).why(error.to_string());
    Err(CliError::new(Exit::Usage, fault.fix("check the program's path after --")))
}
