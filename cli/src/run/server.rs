//! `weft server run`: the control plane in the foreground; its audit log.

use std::{path::Path, process::ExitCode, time::Duration};

use tracing::info;
use weft_registry::server::Server;

use super::{background, logs, secrecy, signals};
use crate::{
    args::{
        Global,
        groups::{ServerArgs, ServerCommand},
    },
    error::{CliError, Exit},
    observe::audit::audit,
    output::Output,
};

/// How long open calls may take to end after SIGTERM.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// Dispatches `weft server …`.
pub(crate) fn server(args: &ServerArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    match &args.command {
        ServerCommand::Run { config } => run(config, global, output),
        ServerCommand::Audit { command } => audit(command, global, output),
    }
}

/// Runs the server until SIGINT or SIGTERM.
fn run(config: &Path, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    logs::start(global);
    secrecy::close_memory()?;
    let text = std::fs::read_to_string(config).map_err(|e| CliError::file(config, &e))?;
    let config = background::server_config(&text, &config.display().to_string())?;
    let server = Server::start(config).map_err(|e| CliError::new(Exit::Usage, e.fault()))?;
    output.talk(format!("server ready: control {} (Ctrl-C stops it)", server.control_addr()));
    let stop = signals::wait()?;
    info!(signal = ?stop, "stopping");
    server.shutdown(SHUTDOWN_DEADLINE);
    Ok(stop.exit())
}
