//! `weft apply`: all objects in one transaction, or none.

use std::process::ExitCode;

use serde_json::json;
use weft_api::pb::management::{ApplyRequest, ApplyResponse};

use super::input;
use crate::{
    args::{
        Format, Global,
        groups::{ApplyArgs, DryRun},
    },
    client,
    error::CliError,
    output::Output,
};

/// Applies files.
pub(crate) fn apply(args: &ApplyArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let resources = input::read(&args.files, global)?;
    if args.dry_run == DryRun::Client {
        for resource in &resources {
            output.line(format!("{} valid (dry run, not sent)", resource.key()))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let request = ApplyRequest {
        documents: input::documents(&resources),
        dry_run: args.dry_run == DryRun::Server,
        reason: args.reason.clone(),
    };
    let response = client::block_on(global, async |client| client.apply(request).await)?;
    print(&response, args.dry_run, output)?;
    Ok(ExitCode::SUCCESS)
}

fn print(response: &ApplyResponse, dry_run: DryRun, output: &Output) -> Result<(), CliError> {
    if output.is_structured() {
        let items = response.results.iter().map(|r| {
            json!({"kind": r.kind, "namespace": r.namespace, "name": r.name, "outcome": r.outcome,
                   "revision": r.revision, "warnings": r.warnings})
        });
        return output.object(&json!({"revision": response.revision, "items": items.collect::<Vec<_>>()}));
    }
    let suffix = if dry_run == DryRun::Server { " (dry run by the server)" } else { "" };
    for result in &response.results {
        let name = if result.namespace.is_empty() {
            result.name.clone()
        } else {
            format!("{}.{}", result.name, result.namespace)
        };
        if output.format() == Format::Name {
            output.line(format!("{}/{name}", result.kind.to_lowercase()))?;
        } else {
            output.line(format!("{}/{name} {}{suffix}", result.kind, result.outcome))?;
        }
        for warning in &result.warnings {
            output.warning(warning);
        }
    }
    Ok(())
}
