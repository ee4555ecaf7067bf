//! `weft identity ca rotate`: one step in the life of the server's root.

use std::process::ExitCode;

use serde_json::json;
use weft_api::pb::management::RotateAuthorityRequest;

use super::show::{authority_json, print_roots};
use crate::{
    args::{Global, identity::RotateArgs},
    client,
    error::CliError,
    output::Output,
};

/// Takes the step that comes next, or the one that is named. Asks first: who lacks a new root is cut off by it.
pub(crate) fn rotate(args: &RotateArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let step = args.phase.map_or("", |phase| phase.as_str());
    if !global.yes {
        let named = if step.is_empty() { "the next step" } else { step };
        let forced = if args.force { ", whoever that cuts off" } else { "" };
        if !output.confirm(&format!("rotate the authority of the mesh: {named}{forced}?"))? {
            return Err(CliError::usage(
                "not confirmed: nothing was changed",
                "weft identity ca rotate --yes",
            ));
        }
    }
    let request = RotateAuthorityRequest {
        step: step.to_owned(),
        root: args.root.clone().unwrap_or_default(),
        force: args.force,
        reason: args.reason.clone(),
    };
    let answer = client::block_on(global, async |client| client.rotate_authority(request).await)?;
    let authority = answer.authority.unwrap_or_default();
    for warning in &answer.warnings {
        output.warning(warning);
    }
    if output.is_structured() {
        output.object(&json!({
            "step": answer.step, "root": answer.root, "next": answer.next, "warnings": answer.warnings,
            "authority": authority_json(&authority),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line(format!("{} done: root sha256 {}", answer.step, answer.root))?;
    print_roots(&authority.roots, output)?;
    let next = match answer.next.as_str() {
        "" => "the rotation is complete".to_owned(),
        step => format!("next: {step}, by weft identity ca rotate"),
    };
    output.line(next)?;
    Ok(ExitCode::SUCCESS)
}
