//! `weft identity svid show | ca show`, and the way to the denylist.

use std::process::ExitCode;

use serde_json::{Value, json};
use weft_api::pb::management::{AuthorityStatus, RootStatus, ShowAuthorityRequest};

use super::denied;
use crate::{
    args::{
        Global,
        groups::SvidCommand,
        identity::{AuthorityCommand, IdentityArgs, IdentityCommand},
    },
    client,
    error::CliError,
    observe::status::local_agent,
    output::Output,
};

/// Dispatches `weft identity …`.
pub(crate) fn identity(args: &IdentityArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    match &args.command {
        IdentityCommand::Svid { command } => match command {
            SvidCommand::Show { pem } => svids(*pem, global, output),
            SvidCommand::Revoke(args) => denied::revoke(args, global, output),
            SvidCommand::Denied => denied::list(global, output),
            SvidCommand::Restore(args) => denied::restore(args, global, output),
        },
        IdentityCommand::Ca { command: AuthorityCommand::Show { pem } } => authority(*pem, global, output),
        IdentityCommand::Ca { command: AuthorityCommand::Rotate(args) } => {
            super::rotate::rotate(args, global, output)
        }
    }
}

/// The certificates that this host's agent holds; never a key.
fn svids(pem: bool, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let status = client::run(local_agent(global))?;
    if output.is_structured() {
        let item = |w: &weft_api::pb::agent::WorkloadStatus| {
            json!({"spiffeId": w.identity, "serial": w.serial, "notBefore": w.svid_not_before,
                   "notAfter": w.svid_not_after, "chain": w.chain_pem})
        };
        let agent = json!({"spiffeId": status.spiffe_id, "notAfter": status.svid_not_after});
        let items: Vec<_> = status.workloads.iter().map(item).collect();
        output.object(&json!({"agent": agent, "items": items}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![vec![status.spiffe_id, "-".to_owned(), "-".to_owned(), status.svid_not_after]];
    for workload in &status.workloads {
        rows.push(vec![
            workload.identity.clone(),
            workload.serial.clone(),
            workload.svid_not_before.clone(),
            workload.svid_not_after.clone(),
        ]);
    }
    output.table(&["SPIFFE_ID", "SERIAL", "NOT_BEFORE", "NOT_AFTER"], rows)?;
    if pem {
        for workload in &status.workloads {
            output.line(workload.chain_pem.trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn authority(pem: bool, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let answer =
        client::block_on(global, async |client| client.show_authority(ShowAuthorityRequest {}).await)?;
    let authority = answer.authority.unwrap_or_default();
    if output.is_structured() {
        let mut object = authority_json(&authority);
        object["trustDomain"] = json!(answer.trust_domain);
        object["rootsPem"] = json!(answer.roots_pem);
        output.object(&object)?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line(format!("trust domain    {}", answer.trust_domain))?;
    output.line(format!("bundle          sequence {}", authority.bundle_sequence))?;
    output.line(format!("leaf lifetime   {}", authority.leaf_ttl))?;
    output.line(format!("issued          {}", authority.issued))?;
    output.line(format!("intermediate    until {}", authority.intermediate_not_after))?;
    output.line(format!("next            {} at {}", authority.next_step, authority.next_step_at))?;
    print_roots(&authority.roots, output)?;
    if pem {
        for root in &answer.roots_pem {
            output.line(root.trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Each root with its state, and what it waits for.
pub(crate) fn print_roots(roots: &[RootStatus], output: &Output) -> Result<(), CliError> {
    for root in roots {
        let state = if root.state.is_empty() { "other" } else { &root.state };
        let of = if root.instance.is_empty() { "another server" } else { &root.instance };
        output.line(format!(
            "root            {state}  {} … {}  sha256 {}  of {of}",
            root.not_before, root.not_after, root.fingerprint
        ))?;
        if !root.missing.is_empty() {
            output.line(format!("                not taken by {}", root.missing.join(", ")))?;
        }
        if root.unrenewed > 0 {
            output.line(format!(
                "                {} certificates under it are not renewed yet",
                root.unrenewed
            ))?;
        }
    }
    Ok(())
}

/// The authority in the API's own words.
pub(crate) fn authority_json(authority: &AuthorityStatus) -> Value {
    let root = |r: &RootStatus| {
        json!({"sha256": r.fingerprint, "notBefore": r.not_before, "notAfter": r.not_after, "instance": r.instance,
               "active": r.active, "state": r.state, "since": r.since, "missing": r.missing,
               "unrenewed": r.unrenewed, "canReturn": r.can_return})
    };
    json!({
        "roots": authority.roots.iter().map(root).collect::<Vec<_>>(),
        "intermediateNotAfter": authority.intermediate_not_after,
        "issued": authority.issued,
        "bundleSequence": authority.bundle_sequence,
        "leafTtl": authority.leaf_ttl,
        "nextStep": authority.next_step,
        "nextStepAt": authority.next_step_at,
    })
}
