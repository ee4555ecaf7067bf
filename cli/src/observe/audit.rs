//! `weft server audit`: who called what, and whether that log is as it was written.

use std::process::ExitCode;

use serde_json::{Value, json};
use weft_api::{
    fault::Fault,
    pb::management::{AuditEntry, ListAuditRequest, VerifyAuditRequest, VerifyAuditResponse},
};
use weft_policy::code;

use crate::{
    args::{Global, server::AuditCommand},
    client,
    error::CliError,
    output::Output,
};

/// The columns, stable (cli.md 4.2).
const COLUMNS: [&str; 7] = ["SEQUENCE", "TIME", "WHO", "METHOD", "OUTCOME", "OBJECTS", "CHANGE"];

/// Dispatches `weft server audit …`.
pub(crate) fn audit(command: &AuditCommand, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    match command {
        AuditCommand::Show { limit } => show(*limit, global, output),
        AuditCommand::Verify => verify(global, output),
        // It opens the store, and so belongs to what is done while no server runs.
        AuditCommand::Accept { config } => crate::run::server::accept_audit(config, output),
    }
}

fn show(limit: u32, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let request = ListAuditRequest { limit };
    let found = client::block_on(global, async |client| client.list_audit(request).await)?;
    if output.is_structured() {
        let items: Vec<_> = found.entries.iter().map(as_json).collect();
        output.object(&json!({"items": items}))?;
    } else {
        output.table(&COLUMNS, found.entries.iter().map(row).collect())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(entry: &AuditEntry) -> Vec<String> {
    let dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let outcome = if entry.code.is_empty() {
        entry.outcome.clone()
    } else {
        format!("{} {}", entry.outcome, entry.code)
    };
    let change = if entry.change == 0 { String::new() } else { entry.change.to_string() };
    vec![
        entry.sequence.to_string(),
        entry.time.clone(),
        dash(entry.who.clone()),
        entry.method.clone(),
        outcome,
        dash(entry.objects.join(",")),
        dash(change),
    ]
}

fn as_json(entry: &AuditEntry) -> Value {
    json!({
        "sequence": entry.sequence, "time": entry.time, "who": entry.who, "role": entry.role,
        "from": entry.from, "method": entry.method, "outcome": entry.outcome, "code": entry.code,
        "objects": entry.objects, "reason": entry.reason, "change": entry.change, "untold": entry.untold,
        "hash": entry.hash,
    })
}

/// Exit 0 when every entry stands as it was written, else 1.
fn verify(global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let request = VerifyAuditRequest {};
    let found = client::block_on(global, async |client| client.verify_audit(request).await)?;
    if output.is_structured() {
        output.object(&json!({
            "first": found.first, "last": found.last, "hash": found.hash, "faults": found.faults,
        }))?;
    } else {
        output.line(summary(&found))?;
    }
    if found.faults.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let mut fault = Fault::new(code::AUDIT_BROKEN, "the audit log is not as it was written");
    for what in &found.faults {
        fault = fault.why(what.clone());
    }
    output.fault(
        &fault.fix("compare with what was exported, and find out who had access to the server's disk"),
    );
    Ok(ExitCode::from(1))
}

fn summary(found: &VerifyAuditResponse) -> String {
    let state = if found.faults.is_empty() { "whole" } else { "broken" };
    format!("audit log {state}: entries {} to {}, newest hash {}", found.first, found.last, found.hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> AuditEntry {
        AuditEntry {
            sequence: 7,
            time: "2026-11-20T09:12:00Z".to_owned(),
            who: "spiffe://corp.example/user/ada".to_owned(),
            role: "editor in shop".to_owned(),
            from: "192.0.2.1:40000".to_owned(),
            method: "Apply".to_owned(),
            outcome: "denied".to_owned(),
            code: "W6015".to_owned(),
            objects: vec!["Service/vault.bank".to_owned()],
            reason: "ticket 7".to_owned(),
            change: 0,
            untold: 0,
            hash: "ab".to_owned(),
        }
    }

    #[test]
    fn the_columns_and_the_json_of_an_entry_are_stable() {
        assert_eq!(COLUMNS, ["SEQUENCE", "TIME", "WHO", "METHOD", "OUTCOME", "OBJECTS", "CHANGE"]);
        let cells = [
            "7",
            "2026-11-20T09:12:00Z",
            "spiffe://corp.example/user/ada",
            "Apply",
            "denied W6015",
            "Service/vault.bank",
            "-",
        ];
        assert_eq!(row(&entry()), cells);
        assert_eq!(
            as_json(&entry()).to_string(),
            r#"{"sequence":7,"time":"2026-11-20T09:12:00Z","who":"spiffe://corp.example/user/ada","role":"editor in shop","from":"192.0.2.1:40000","method":"Apply","outcome":"denied","code":"W6015","objects":["Service/vault.bank"],"reason":"ticket 7","change":0,"untold":0,"hash":"ab"}"#
        );
    }

    #[test]
    fn a_whole_log_and_a_broken_one_are_told_apart_in_one_line() {
        let mut found = VerifyAuditResponse { first: 1, last: 9, hash: "ab".to_owned(), faults: Vec::new() };
        assert_eq!(summary(&found), "audit log whole: entries 1 to 9, newest hash ab");
        found.faults.push("x".to_owned());
        assert!(summary(&found).starts_with("audit log broken"));
    }
}
