//! `weft demo`: a whole mesh in one process, checks that are real, and the mesh left up for play.
//!
//! Nothing listens on anything but loopback; nothing is written outside one directory; everything goes through real
//! sockets. Each check is an assertion: one that fails makes the exit code 1.

mod checks;
mod load;
mod mesh;
mod report;
mod services;

use std::{path::Path, process::ExitCode, time::Duration};

use mesh::DemoMesh;
use report::Report;

use crate::{
    args::groups::{DemoArgs, Sabotage},
    error::CliError,
    output::Output,
    paths,
    run::{secrecy, signals},
};

/// Starts the demo.
pub(crate) fn demo(args: &DemoArgs, output: &Output) -> Result<ExitCode, CliError> {
    let state = paths::demo_state_dir(args.state_dir.as_deref())?;
    if args.clean {
        return clean(&state, output);
    }
    secrecy::close_memory()?;
    let mut report = Report::new(output.clone());
    report.title(&state);
    let mesh = DemoMesh::start(&state, args.sabotage, &report)?;
    let mesh = checks::run_all(mesh, args.sabotage, &mut report)?;
    let outcome = report.outcome();
    if args.once {
        mesh.stop(Duration::from_secs(2));
        return Ok(outcome);
    }
    report.play(&mesh);
    let _stop = signals::wait()?;
    mesh.stop(Duration::from_secs(2));
    Ok(outcome)
}

/// Whether this run breaks the given thing on purpose.
fn breaks(sabotage: Option<Sabotage>, what: Sabotage) -> bool {
    sabotage == Some(what)
}

/// Removes what a demo left, and only that: a directory without the demo's mark is not touched.
fn clean(state: &Path, output: &Output) -> Result<ExitCode, CliError> {
    if !state.exists() {
        output.talk(format!("nothing to remove: {} does not exist", state.display()));
        return Ok(ExitCode::SUCCESS);
    }
    if !state.join(mesh::MARK).exists() {
        return Err(CliError::usage(
            format!("{} is not the state of a demo: it has no file {}", state.display(), mesh::MARK),
            "weft demo --clean --state-dir DIR",
        ));
    }
    let _lock = mesh::lock(state)?;
    std::fs::remove_dir_all(state).map_err(|e| CliError::file(state, &e))?;
    output.talk(format!("{} removed", state.display()));
    Ok(ExitCode::SUCCESS)
}
