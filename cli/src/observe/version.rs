//! `weft version`.

use std::process::ExitCode;

use serde_json::json;
use weft_api::pb::management::StatusRequest;

use crate::{
    args::{Global, groups::VersionArgs},
    client,
    error::CliError,
    output::Output,
};

/// The version of this binary.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Prints versions; a server that cannot be reached is not an error here.
pub(crate) fn version(args: &VersionArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let server = if args.client {
        None
    } else {
        client::block_on(global, async |client| client.status(StatusRequest {}).await).ok().map(|s| s.version)
    };
    if output.is_structured() {
        output.object(&json!({"client": VERSION, "server": server}))?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line(format!("client  {VERSION}"))?;
    if let Some(server) = server {
        output.line(format!("server  {server}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
