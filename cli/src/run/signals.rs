//! Waiting for the signals that end a long-running command.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use crate::{client, error::CliError};

/// Which signal came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stop {
    /// SIGINT, Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl Stop {
    /// The exit code of a command that a signal ended in good order: 0, as service managers expect.
    pub(crate) const fn exit(self) -> ExitCode {
        ExitCode::SUCCESS
    }
}

/// Blocks until SIGINT or SIGTERM.
pub(crate) fn wait() -> Result<Stop, CliError> {
    client::run(wait_async())
}

/// Waits for SIGINT or SIGTERM. Cancel-safe.
pub(crate) async fn wait_async() -> Result<Stop, CliError> {
    let listen =
        |kind| signal(kind).map_err(|e| CliError::internal(format!("cannot listen for signals: {e}")));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => Ok(Stop::Interrupt),
        _ = terminate.recv() => Ok(Stop::Terminate),
    }
}
