//! `weft policy allow | deny | check`.

mod edit;

use std::process::ExitCode;

use serde_json::json;
use weft_api::{
    fault::Fault,
    pb::management::{CheckPolicyRequest, CheckPolicyResponse, StatusRequest},
};
use weft_policy::{code, model::authorization::Action};

use crate::{
    args::{
        Global,
        groups::{PolicyArgs, PolicyCheckArgs, PolicyCommand},
    },
    client::{self, Management},
    error::{CliError, Exit},
    output::Output,
    resource::{input, namespace_of},
};

/// Dispatches `weft policy …`.
pub(crate) fn policy(args: &PolicyArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    match &args.command {
        PolicyCommand::Allow(args) => edit::edit(args, Action::Allow, global, output),
        PolicyCommand::Deny(args) => edit::edit(args, Action::Deny, global, output),
        PolicyCommand::Check(check) => check_call(check, global, output),
    }
}

/// Reads `name` or `name.namespace`.
pub(crate) fn split_service(text: &str, global: &Global) -> (String, String) {
    match text.split_once('.') {
        Some((name, namespace)) => {
            let namespace = namespace.strip_suffix(".svc.weft").unwrap_or(namespace);
            (name.to_owned(), namespace.to_owned())
        }
        None => (text.to_owned(), namespace_of(global)),
    }
}

/// Reads `SERVICE[.NAMESPACE][:PORT]`; port 0 means the service's default port.
pub(crate) fn split_target(text: &str, global: &Global) -> Result<(String, String, u16), CliError> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => {
            let port =
                port.parse().map_err(|_| CliError::usage(format!("{port:?} is not a port"), "charge:80"))?;
            (host, port)
        }
        None => (text, 0),
    };
    let (name, namespace) = split_service(host, global);
    Ok((name, namespace, port))
}

fn check_call(args: &PolicyCheckArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let overlay =
        if args.files.is_empty() { Vec::new() } else { input::documents(&input::read(&args.files, global)?) };
    let source_ip = args.source_ip.map(|ip| ip.to_string()).unwrap_or_default();
    let answer = client::block_on_cli(global, async |client| {
        let question = CheckPolicyRequest { source_ip, overlay, ..CheckPolicyRequest::default() };
        ask(client, &args.source, &args.destination, question, global).await
    })?;
    print_verdict(&answer, output)?;
    Ok(match (answer.allowed, answer.code.as_str()) {
        (true, _) => ExitCode::SUCCESS,
        (false, code) if is_unknown(code) => ExitCode::from(Exit::NotFound as u8),
        (false, _) => ExitCode::from(1),
    })
}

/// Whether a code says that what was asked about does not exist.
pub(crate) fn is_unknown(code: &str) -> bool {
    code == code::UNKNOWN_SERVICE.as_str() || code == code::UNKNOWN_PORT.as_str()
}

/// Asks the server whether `source` may call `destination`, both as a person writes them.
async fn ask(
    client: &mut Management,
    source: &str,
    destination: &str,
    question: CheckPolicyRequest,
    global: &Global,
) -> Result<CheckPolicyResponse, CliError> {
    let (service, namespace, port) = split_target(destination, global)?;
    let source = if source.starts_with("spiffe://") || source.is_empty() {
        source.to_owned()
    } else {
        let trust_domain = client.status(StatusRequest {}).await?.into_inner().trust_domain;
        let (name, namespace) = split_service(source, global);
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{name}")
    };
    let service = format!("{service}.{namespace}");
    let request = CheckPolicyRequest { source, service, port: u32::from(port), ..question };
    Ok(client.check_policy(request).await?.into_inner())
}

fn print_verdict(answer: &CheckPolicyResponse, output: &Output) -> Result<(), CliError> {
    if output.is_structured() {
        return output.object(&json!({
            "allowed": answer.allowed, "code": answer.code, "what": answer.what, "why": answer.why, "fix": answer.fix,
            "policy": answer.policy, "rule": answer.rule, "revision": answer.revision, "shadow": answer.shadow,
            "default": {"mode": answer.default_mode, "from": answer.default_from},
        }));
    }
    if answer.allowed {
        output.line(format!("allowed  {}", answer.what))?;
        if answer.code.is_empty() {
            answer.why.iter().try_for_each(|why| output.line(format!("      {why}")))?;
        } else {
            output.fault(&denial_fault(answer));
        }
    } else {
        output.line(format!("denied   {}", answer.what))?;
        output.fault(&denial_fault(answer));
    }
    for shadow in &answer.shadow {
        output.line(format!("shadow   {shadow}"))?;
    }
    Ok(())
}

/// The denial as an error block.
pub(crate) fn denial_fault(answer: &CheckPolicyResponse) -> Fault {
    let mut fault = Fault::new(answer.code.clone(), answer.what.as_str());
    fault.why.clone_from(&answer.why);
    fault.fix.clone_from(&answer.fix);
    fault
}
