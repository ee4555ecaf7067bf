//! `weft apply`: all objects in one transaction, or none.

use std::process::ExitCode;

use serde_json::{Value, json};
use weft_api::pb::management::{ApplyRequest, ApplyResponse, Decision};

use super::input;
use crate::{
    args::{
        Format, Global,
        changes::{ApplyArgs, ChangeArgs, DryRun},
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
    let dry_run = args.dry_run == DryRun::Server;
    let request = ApplyRequest {
        documents: input::documents(&resources),
        dry_run,
        reason: args.change.reason.clone(),
        force: args.change.force,
        confirm_within_ms: confirm_within_ms(&args.change),
    };
    let response = client::block_on(global, async |client| client.apply(request).await)?;
    print(&response, dry_run, output)?;
    Ok(ExitCode::SUCCESS)
}

/// The time to confirm in as the server is told it; 0 for none.
pub(super) fn confirm_within_ms(args: &ChangeArgs) -> u64 {
    // A part of a millisecond is no time that anybody gives; the server refuses what is too short.
    args.confirm_within.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1))
}

/// Prints what became of each object.
pub(super) fn print(response: &ApplyResponse, dry_run: bool, output: &Output) -> Result<(), CliError> {
    if output.is_structured() {
        let items = response.results.iter().map(|r| {
            json!({"kind": r.kind, "namespace": r.namespace, "name": r.name, "outcome": r.outcome,
                   "revision": r.revision, "warnings": r.warnings})
        });
        return output.object(&json!({
            "revision": response.revision, "change": response.change, "confirmBy": response.confirm_by,
            "items": items.collect::<Vec<_>>(), "decisions": decisions_json(&response.decisions),
            "moreDecisions": response.more_decisions,
        }));
    }
    let suffix = if dry_run { " (dry run by the server)" } else { "" };
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
    tell_waiting(response.change, &response.confirm_by, output);
    print_decisions(&response.decisions, response.more_decisions, output)
}

/// What whoever made a change with `--confirm-within` must do next.
pub(super) fn tell_waiting(change: u64, confirm_by: &str, output: &Output) {
    if !confirm_by.is_empty() {
        output.talk(format!("change {change} is taken back at {confirm_by} unless:   weft confirm {change}"));
    }
}

/// The calls of live workloads that a dry run decides otherwise.
pub(super) fn print_decisions(decisions: &[Decision], more: u64, output: &Output) -> Result<(), CliError> {
    if output.format() == Format::Name {
        return Ok(());
    }
    for decision in decisions {
        output.line(decision_line(decision))?;
    }
    if more > 0 {
        output.line(format!("and {more} more calls would be decided otherwise"))?;
    }
    Ok(())
}

fn decision_line(decision: &Decision) -> String {
    let word = |allowed| if allowed { "allowed" } else { "denied" };
    let (before, after) = (word(decision.allowed_before), word(decision.allowed_after));
    format!("{} → {}:{}  {before} → {after}", decision.source, decision.service, decision.port)
}

/// The same in the API's own words.
pub(super) fn decisions_json(decisions: &[Decision]) -> Value {
    let one = |d: &Decision| {
        json!({"source": d.source, "service": d.service, "port": d.port,
               "allowedBefore": d.allowed_before, "allowedAfter": d.allowed_after})
    };
    decisions.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_that_changes_is_one_line() {
        let decision = Decision {
            source: "spiffe://corp.example/ns/shop/sa/order".to_owned(),
            service: "charge.shop".to_owned(),
            port: 80,
            allowed_before: true,
            allowed_after: false,
        };
        assert_eq!(
            decision_line(&decision),
            "spiffe://corp.example/ns/shop/sa/order → charge.shop:80  allowed → denied"
        );
        assert_eq!(
            decisions_json(&[decision]).to_string(),
            r#"[{"source":"spiffe://corp.example/ns/shop/sa/order","service":"charge.shop","port":80,"allowedBefore":true,"allowedAfter":false}]"#
        );
    }

    #[test]
    fn the_time_to_confirm_in_is_told_in_milliseconds_and_no_time_is_too_short_to_be_told() {
        let args = |confirm_within| ChangeArgs { reason: String::new(), force: false, confirm_within };
        let told = |nanoseconds| confirm_within_ms(&args(Some(std::time::Duration::from_nanos(nanoseconds))));
        assert_eq!((told(0), told(1), told(10_000_000_000)), (1, 1, 10_000));
        assert_eq!(confirm_within_ms(&args(None)), 0);
    }
}
