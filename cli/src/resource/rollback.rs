//! `weft rollback`: resources as they stood at an earlier revision, in one transaction.

use std::process::ExitCode;

use weft_api::pb::management::RollbackRequest;

use super::{
    apply::{confirm_within_ms, print},
    history::refs,
};
use crate::{
    args::{Global, changes::RollbackArgs},
    client,
    error::CliError,
    output::Output,
};

/// Brings resources back.
pub(crate) fn rollback(args: &RollbackArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let request = RollbackRequest {
        refs: refs(&args.what, "weft rollback service/charge", global)?,
        to_revision: args.to,
        dry_run: args.dry_run,
        reason: args.change.reason.clone(),
        force: args.change.force,
        confirm_within_ms: confirm_within_ms(&args.change),
    };
    let response = client::block_on(global, async |client| client.rollback(request).await)?;
    print(&response, args.dry_run, output)?;
    Ok(ExitCode::SUCCESS)
}
