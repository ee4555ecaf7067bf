//! `weft config view`: the configuration in force, and where each value came from.

use std::process::ExitCode;

use super::background;
use crate::{
    args::groups::{ConfigArgs, ConfigCommand},
    error::CliError,
    output::Output,
};

/// Prints a configuration with its defaults filled in.
pub(crate) fn config(args: &ConfigArgs, output: &Output) -> Result<ExitCode, CliError> {
    let ConfigCommand::View { agent_config, server_config, origin } = &args.command;
    let rows = match (agent_config, server_config) {
        (Some(path), _) => {
            let config = background::agent_config(path)?;
            config
                .origins()
                .iter()
                .map(|row| (row.key.clone(), row.value.clone(), row.origin.to_string()))
                .collect()
        }
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).map_err(|e| CliError::file(path, &e))?;
            background::server_config(&text, &path.display().to_string())?.origins()
        }
        (None, None) => {
            return Err(CliError::usage(
                "say whose configuration",
                "weft config view --agent-config FILE, or --server-config FILE",
            ));
        }
    };
    for (key, value, from) in rows {
        if *origin {
            output.line(format!("{key}: {value}    # {from}"))?;
        } else {
            output.line(format!("{key}: {value}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
