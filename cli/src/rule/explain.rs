//! `weft explain CODE | last | codes`: the catalogue, and the last denial here.

use std::process::ExitCode;

use serde_json::json;
use weft_api::{fault::Fault, pb::agent::DenialsRequest};
use weft_policy::code::{self, Code};

use crate::{
    args::{Global, groups::ExplainArgs},
    client,
    error::{CliError, Exit},
    output::Output,
};

/// Explains.
pub(crate) fn explain(args: &ExplainArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    match args.what.as_str() {
        "last" => last(global, output),
        "codes" => all(output),
        text => one(text, output),
    }
}

fn one(text: &str, output: &Output) -> Result<ExitCode, CliError> {
    let Some(found) = code::lookup(&text.to_ascii_uppercase()) else {
        let fault = Fault::new(code::USAGE, format!("{text:?} is neither a code, nor `last`, nor `codes`"))
            .fix("weft explain codes");
        return Err(CliError::new(Exit::NotFound, fault));
    };
    if output.is_structured() {
        output.object(&as_json(found))?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line(format!("{}  {}", found.id, found.title))?;
    output.line("")?;
    output.line(found.cause)?;
    output.line("")?;
    for fix in found.fix {
        output.line(format!("  fix   {fix}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn as_json(code: &Code) -> serde_json::Value {
    json!({"code": code.id.as_str(), "level": code.level.to_string(), "title": code.title, "cause": code.cause, "fix": code.fix})
}

fn all(output: &Output) -> Result<ExitCode, CliError> {
    if output.is_structured() {
        output.object(&json!({"items": code::CATALOGUE.iter().map(as_json).collect::<Vec<_>>()}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |code: &Code| vec![code.id.to_string(), code.level.to_string(), code.title.to_owned()];
    output.table(&["CODE", "LEVEL", "TITLE"], code::CATALOGUE.iter().map(row).collect())?;
    Ok(ExitCode::SUCCESS)
}

/// The last denial that this host's agent saw for the caller's workloads.
fn last(global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let denial = client::run(async {
        let mut agent = client::agent(global).await?;
        let answer = agent.denials(DenialsRequest { limit: 1 }).await?.into_inner();
        Ok(answer.denials.into_iter().next())
    })?;
    let Some(denial) = denial else {
        output.talk("this agent has refused nothing of yours since it started");
        output.talk("ask of any call:   weft policy check CALLER SERVICE; refusals of other hosts stand with their agents");
        return Ok(ExitCode::from(Exit::NotFound as u8));
    };
    let mut fault = Fault::new(denial.code.clone(), denial.what.as_str());
    fault.why.push(format!("{} {} → {} at {}", denial.direction, denial.source, denial.service, denial.time));
    fault.why.extend(denial.why.iter().cloned());
    fault.fix.extend(denial.fix.iter().cloned());
    fault.request_id = Some(denial.id.clone());
    if output.is_structured() {
        output.object(&fault.to_json())?;
    } else {
        output.fault(&fault);
    }
    Ok(ExitCode::SUCCESS)
}
