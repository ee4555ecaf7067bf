//! Completion scripts and manual pages, both made from the command tree.

use std::process::ExitCode;

use clap::CommandFactory as _;

use super::{
    Cli,
    groups::{CompletionArgs, ManArgs},
};
use crate::{error::CliError, output::Output};

/// `weft completion SHELL`.
pub(crate) fn completion(args: &CompletionArgs, output: &Output) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "weft", &mut script);
    output.bytes(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// `weft man`.
pub(crate) fn man(args: &ManArgs, output: &Output) -> Result<ExitCode, CliError> {
    let command = Cli::command();
    if let Some(dir) = &args.dir {
        std::fs::create_dir_all(dir).map_err(|e| CliError::file(dir, &e))?;
        clap_mangen::generate_to(command, dir).map_err(|e| CliError::file(dir, &e))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).map_err(CliError::output)?;
    output.bytes(&page)?;
    Ok(ExitCode::SUCCESS)
}
