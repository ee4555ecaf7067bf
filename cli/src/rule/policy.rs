//! `weft policy allow | deny | check`.

use std::process::ExitCode;

use serde_json::{Value, json};
use weft_api::{
    fault::Fault,
    manifest,
    pb::management::{ApplyRequest, CheckPolicyRequest, CheckPolicyResponse, Document, StatusRequest},
};

use crate::{
    args::{
        Global,
        groups::{PolicyArgs, PolicyCheckArgs, PolicyCommand, PolicyEditArgs},
    },
    client,
    error::CliError,
    output::Output,
    resource::{input, namespace_of},
};

/// Dispatches `weft policy …`.
pub(crate) fn policy(args: &PolicyArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    match &args.command {
        PolicyCommand::Allow(edit) => apply_rule(edit, "ALLOW", global, output),
        PolicyCommand::Deny(edit) => apply_rule(edit, "DENY", global, output),
        PolicyCommand::Check(check) => check_call(check, global, output),
    }
}

/// Shows the policy, asks, applies.
fn apply_rule(
    args: &PolicyEditArgs,
    action: &str,
    global: &Global,
    output: &Output,
) -> Result<ExitCode, CliError> {
    let document = policy_document(args, action, global)?;
    let yaml = manifest::value_to_yaml(&document).map_err(CliError::internal)?;
    if args.dry_run {
        output.line(yaml.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    if !global.yes {
        output.talk(yaml.trim_end());
        if !output.confirm("apply this policy?")? {
            return Err(CliError::usage(
                "not confirmed: nothing was applied",
                "repeat with --yes, or keep the YAML: weft policy allow … --dry-run > policy.yaml",
            ));
        }
    }
    let verb = if action == "ALLOW" { "allow" } else { "deny" };
    let request = ApplyRequest {
        documents: vec![Document { json: document.to_string().into_bytes() }],
        dry_run: false,
        reason: format!("weft policy {verb} {} {}", args.source, args.destination),
    };
    let response = client::block_on(global, async |client| client.apply(request).await)?;
    for result in &response.results {
        output.line(format!(
            "{}/{} {} (revision {})",
            result.kind, result.name, result.outcome, response.revision
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The policy of one edge, named after its verb and its two ends.
fn policy_document(args: &PolicyEditArgs, action: &str, global: &Global) -> Result<Value, CliError> {
    let (service, namespace) = split_service(&args.destination, global);
    let (source, source_name) = source_entry(&args.source, global)?;
    let verb = if action == "ALLOW" { "allow" } else { "deny" };
    let ports: Vec<Value> = args.port.iter().map(|port| port_value(port)).collect();
    let mut rule = json!({"name": source_name, "sources": [source]});
    if !ports.is_empty() {
        rule["ports"] = Value::Array(ports);
    }
    let name = format!("{verb}-{source_name}-{service}");
    Ok(json!({
        "apiVersion": "weft.mesh/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": truncate_name(&name), "namespace": namespace},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": service}],
            "action": action,
            "rules": [rule],
        },
    }))
}

fn port_value(port: &str) -> Value {
    port.parse::<u16>().map_or_else(|_| json!(port), |number| json!(number))
}

/// The source of a rule, and a short name for it.
fn source_entry(source: &str, global: &Global) -> Result<(Value, String), CliError> {
    if source.starts_with("spiffe://") {
        let short = source.rsplit('/').find(|part| !part.contains('*')).unwrap_or("pattern");
        return Ok((json!({"type": "SPIFFE", "spiffe": source}), weft_identity::spiffe::dns_label(short)));
    }
    let (name, namespace) = split_service(source, global);
    if name.is_empty() {
        return Err(CliError::usage("the caller's name is empty", "weft policy allow order charge"));
    }
    let short = if namespace == namespace_of(global) { name.clone() } else { format!("{name}-{namespace}") };
    let account = json!({"namespace": namespace, "name": name});
    Ok((json!({"type": "ServiceAccount", "serviceAccount": account}), short))
}

/// A name is one DNS label: at most 63 characters.
fn truncate_name(name: &str) -> &str {
    name.get(..63).unwrap_or(name).trim_end_matches('-')
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
    let (service, namespace, port) = split_target(&args.destination, global)?;
    let overlay =
        if args.files.is_empty() { Vec::new() } else { input::documents(&input::read(&args.files, global)?) };
    let source = args.source.clone();
    let source_ip = args.source_ip.map(|ip| ip.to_string()).unwrap_or_default();
    let answer = client::block_on_cli(global, async |client| {
        let source = if source.starts_with("spiffe://") || source.is_empty() {
            source.clone()
        } else {
            let trust_domain = client.status(StatusRequest {}).await?.into_inner().trust_domain;
            let (name, namespace) = split_service(&source, global);
            format!("spiffe://{trust_domain}/ns/{namespace}/sa/{name}")
        };
        let request = CheckPolicyRequest {
            source,
            service: format!("{service}.{namespace}"),
            port: u32::from(port),
            source_ip: source_ip.clone(),
            overlay: overlay.clone(),
        };
        Ok(client.check_policy(request).await?.into_inner())
    })?;
    print_verdict(&answer, output)?;
    Ok(if answer.allowed { ExitCode::SUCCESS } else { ExitCode::from(1) })
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
        for why in &answer.why {
            output.line(format!("      {why}"))?;
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
