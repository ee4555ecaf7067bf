//! `weft confirm`: keeps a change that waits for it, or takes it back at once.

use std::process::ExitCode;

use serde_json::json;
use weft_api::pb::management::{Applied, ConfirmRequest};

use crate::{
    args::{Global, changes::ConfirmArgs},
    client,
    error::CliError,
    output::Output,
};

/// Confirms a change, or aborts it.
pub(crate) fn confirm(args: &ConfirmArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let request = ConfirmRequest { change: args.change.unwrap_or(0), abort: args.abort };
    let response = client::block_on(global, async |client| client.confirm(request).await)?;
    let outcome = if args.abort { "taken-back" } else { "confirmed" };
    if output.is_structured() {
        let item = |r: &Applied| {
            json!({"kind": r.kind, "namespace": r.namespace, "name": r.name, "outcome": r.outcome,
                   "revision": r.revision, "warnings": r.warnings})
        };
        output.object(&json!({
            "change": response.change, "outcome": outcome, "undoneBy": response.undone_by,
            "items": response.results.iter().map(item).collect::<Vec<_>>(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line(format!("change/{} {outcome}", response.change))?;
    for result in &response.results {
        let dot = if result.namespace.is_empty() { "" } else { "." };
        output
            .line(format!("{}/{}{dot}{} {}", result.kind, result.name, result.namespace, result.outcome))?;
        for warning in &result.warnings {
            output.warning(warning);
        }
    }
    Ok(ExitCode::SUCCESS)
}
