//! `weft policy allow | deny`: one edge more in the policy of that edge, and whether it has the effect.
//!
//! What stands is never narrowed: a port is added to the ports that a rule has, and a rule for every port stays so.
//! Rules that a person wrote, with networks or other sources, are left alone; the edge gets a rule of its own.

use std::process::ExitCode;

use serde_json::{Value, json};
use weft_api::{
    manifest,
    pb::management::{
        ApplyRequest, ApplyResponse, CheckPolicyRequest, CheckPolicyResponse, Document, GetRequest,
    },
};
use weft_policy::model::{Kind, authorization::Action};

use super::{ask, denial_fault, is_unknown, split_service};
use crate::{
    args::{Format, Global, groups::PolicyEditArgs},
    client::{self, Management},
    error::{CliError, Exit},
    output::Output,
    resource::{object_ref, parse_document},
};

/// One edge that a person names: who, to which service, on which ports (none: every one).
struct Edge {
    action: Action,
    name: String,
    service: String,
    namespace: String,
    source: Value,
    source_name: String,
    ports: Vec<Value>,
}

/// What the policy of an edge becomes.
#[derive(Debug, PartialEq)]
enum Edited {
    /// It says so already.
    Unchanged,
    /// It is to be written.
    Changed(Value),
}

/// Shows the policy, asks, applies, and says whether the call now is what was asked for.
pub(super) fn edit(
    args: &PolicyEditArgs,
    action: Action,
    global: &Global,
    output: &Output,
) -> Result<ExitCode, CliError> {
    let edge = Edge::new(args, action, global)?;
    let stands = client::block_on_cli(global, async |client| edge.stands(client, global).await);
    let stands = match stands {
        // A dry run needs no server: it shows what would be written where nothing stands.
        Err(error) if args.dry_run && error.is_unreachable() => None,
        other => other?,
    };
    let Edited::Changed(document) = edge.merged(stands)? else {
        output.talk(format!("{}/{} says so already", Kind::AuthorizationPolicy.name(), edge.name));
        return tell_effect(args, action, global, output);
    };
    if args.dry_run {
        print(&document, output)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !global.yes {
        output.talk(manifest::value_to_yaml(&document).map_err(CliError::internal)?.trim_end());
        if !output.confirm("apply this policy?")? {
            return Err(CliError::usage(
                "not confirmed: nothing was applied",
                "repeat with --yes, or keep the YAML: weft policy allow … --dry-run > policy.yaml",
            ));
        }
    }
    let request = ApplyRequest {
        documents: vec![Document { json: document.to_string().into_bytes() }],
        reason: format!("weft policy {} {} {}", verb(action), args.source, args.destination),
        force: args.force,
        ..ApplyRequest::default()
    };
    let response = client::block_on(global, async |client| client.apply(request).await)?;
    print_applied(&response, output)?;
    tell_effect(args, action, global, output)
}

fn print(document: &Value, output: &Output) -> Result<(), CliError> {
    match output.format() {
        Format::Json => output.object(document),
        Format::Table | Format::Wide | Format::Yaml | Format::Name => {
            output.line(manifest::value_to_yaml(document).map_err(CliError::internal)?.trim_end())
        }
    }
}

fn print_applied(response: &ApplyResponse, output: &Output) -> Result<(), CliError> {
    for result in &response.results {
        if output.is_structured() {
            output.object(
                &json!({"kind": result.kind, "namespace": result.namespace, "name": result.name,
                                  "outcome": result.outcome, "revision": response.revision,
                                  "warnings": result.warnings}),
            )?;
        } else {
            let revision = response.revision;
            output
                .line(format!("{}/{} {} (revision {revision})", result.kind, result.name, result.outcome))?;
        }
        for warning in &result.warnings {
            output.warning(warning);
        }
    }
    Ok(())
}

/// Another policy may decide otherwise: then what was written is not what happens, and the person is told.
fn tell_effect(
    args: &PolicyEditArgs,
    action: Action,
    global: &Global,
    output: &Output,
) -> Result<ExitCode, CliError> {
    if args.dry_run || args.source.contains('*') {
        return Ok(ExitCode::SUCCESS);
    }
    // A named port is the server's to resolve; the default one stands for it.
    let port = args.port.iter().find(|port| port.parse::<u16>().is_ok());
    let destination =
        port.map_or_else(|| args.destination.clone(), |port| format!("{}:{port}", args.destination));
    let question = CheckPolicyRequest::default();
    let verdict = client::block_on_cli(global, async |client| {
        ask(client, &args.source, &destination, question, global).await
    });
    // The change is made; whether it has the effect is only told.
    if let Ok(verdict) = verdict
        && let Some(surprise) = surprise(action, &verdict)
    {
        output.talk(format!("warning: {surprise}"));
        if !verdict.allowed {
            output.fault(&denial_fault(&verdict));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a person does not expect after such a change.
fn surprise(action: Action, verdict: &CheckPolicyResponse) -> Option<String> {
    match action {
        Action::Allow if !verdict.allowed && !is_unknown(&verdict.code) => {
            Some("the call is still refused".to_owned())
        }
        Action::Deny if verdict.allowed => Some(format!("the call is still allowed: {}", verdict.what)),
        Action::Allow | Action::Deny => None,
    }
}

const fn verb(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    }
}

const fn word(action: Action) -> &'static str {
    match action {
        Action::Allow => "ALLOW",
        Action::Deny => "DENY",
    }
}

impl Edge {
    fn new(args: &PolicyEditArgs, action: Action, global: &Global) -> Result<Self, CliError> {
        let (service, namespace) = split_service(&args.destination, global);
        let (source, source_name) = source_entry(&args.source, &namespace, global)?;
        let name = format!("{}-{source_name}-{service}", verb(action));
        Ok(Self {
            action,
            name: truncated(&name).to_owned(),
            service,
            namespace,
            source,
            source_name,
            ports: args.port.iter().map(|port| port_value(port)).collect(),
        })
    }

    /// The policy that stands under the edge's name.
    async fn stands(&self, client: &mut Management, global: &Global) -> Result<Option<Value>, CliError> {
        let global = Global { namespace: Some(self.namespace.clone()), ..global.clone() };
        let reference = object_ref(Kind::AuthorizationPolicy, &self.name, &global);
        match client.get(GetRequest { r#ref: Some(reference) }).await {
            Ok(answer) => Ok(Some(parse_document(&answer.into_inner().document.unwrap_or_default().json)?)),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    /// `stands` with the edge in it.
    fn merged(&self, stands: Option<Value>) -> Result<Edited, CliError> {
        let Some(mut policy) = stands else { return Ok(Edited::Changed(self.alone())) };
        let wanted = self.alone();
        let same = |part: &str| policy.pointer(part) == wanted.pointer(part);
        let target = |policy: &Value| {
            let name = policy.pointer("/spec/targetRefs/0/name").cloned();
            (policy.pointer("/spec/targetRefs").and_then(Value::as_array).map_or(0, Vec::len), name)
        };
        if !same("/spec/action") || target(&policy) != target(&wanted) {
            let what = format!("policy {} exists and is about something else", self.name);
            let fix = format!("weft describe authorizationpolicy/{} -n {}", self.name, self.namespace);
            return Err(CliError::new(
                Exit::Conflict,
                weft_api::fault::Fault::new(weft_policy::code::WRITE_CONFLICT, what).fix(fix),
            ));
        }
        let Some(rules) = policy.pointer_mut("/spec/rules").and_then(Value::as_array_mut) else {
            return Ok(Edited::Changed(wanted));
        };
        Ok(if self.join(rules) { Edited::Changed(policy) } else { Edited::Unchanged })
    }

    /// Puts the edge among `rules`; tells whether that changed them.
    fn join(&self, rules: &mut Vec<Value>) -> bool {
        let Some(rule) = rules.iter_mut().find(|rule| is_plain(rule, &self.source)) else {
            let names: Vec<_> = rules.iter().map(|rule| rule["name"].clone()).collect();
            let mut rule = self.rule();
            let free = (2..).map(|n| format!("{}-{n}", self.source_name));
            let name = std::iter::once(self.source_name.clone())
                .chain(free)
                .find(|name| !names.contains(&json!(name)));
            rule["name"] = json!(name);
            rules.push(rule);
            return true;
        };
        // Without ports it is for every port: nothing to add.
        let Some(ports) = rule.get_mut("ports").and_then(Value::as_array_mut) else { return false };
        if self.ports.is_empty() {
            if let Some(rule) = rule.as_object_mut() {
                rule.remove("ports");
            }
            return true;
        }
        let new: Vec<_> = self.ports.iter().filter(|port| !ports.contains(port)).cloned().collect();
        ports.extend(new.iter().cloned());
        !new.is_empty()
    }

    fn rule(&self) -> Value {
        let mut rule = json!({"name": self.source_name, "sources": [self.source]});
        if !self.ports.is_empty() {
            rule["ports"] = json!(self.ports);
        }
        rule
    }

    /// The policy of this edge alone, named after its verb and its two ends.
    fn alone(&self) -> Value {
        json!({
            "apiVersion": "weft.mesh/v1alpha1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "targetRefs": [{"group": "", "kind": "Service", "name": self.service}],
                "action": word(self.action),
                "rules": [self.rule()],
            },
        })
    }
}

/// Whether a rule says nothing but who, and on which ports.
fn is_plain(rule: &Value, source: &Value) -> bool {
    let known = |key: &String| matches!(key.as_str(), "name" | "sources" | "ports");
    rule["sources"] == json!([source]) && rule.as_object().is_some_and(|rule| rule.keys().all(known))
}

fn port_value(port: &str) -> Value {
    port.parse::<u16>().map_or_else(|_| json!(port), |number| json!(number))
}

/// The source of a rule, and a short name for it that differs for callers of the same name elsewhere.
fn source_entry(source: &str, destination: &str, global: &Global) -> Result<(Value, String), CliError> {
    if source.starts_with("spiffe://") {
        let short = source.rsplit('/').find(|part| !part.contains('*')).unwrap_or("pattern");
        return Ok((json!({"type": "SPIFFE", "spiffe": source}), weft_identity::spiffe::dns_label(short)));
    }
    let (name, namespace) = split_service(source, global);
    if name.is_empty() {
        return Err(CliError::usage("the caller's name is empty", "weft policy allow order charge"));
    }
    let short = if namespace == destination { name.clone() } else { format!("{name}-{namespace}") };
    let account = json!({"namespace": namespace, "name": name});
    Ok((json!({"type": "ServiceAccount", "serviceAccount": account}), truncated(&short).to_owned()))
}

/// A name is one DNS label: at most 63 characters.
fn truncated(name: &str) -> &str {
    name.get(..63).unwrap_or(name).trim_end_matches('-')
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{
        Cli, Command,
        groups::{PolicyArgs, PolicyCommand},
    };

    fn edge(line: &str) -> Edge {
        let cli = Cli::try_parse_from(format!("weft policy {line}").split(' ')).unwrap();
        let Command::Policy(PolicyArgs { command }) = cli.command else { panic!("{line}") };
        let (args, action) = match command {
            PolicyCommand::Allow(args) => (args, Action::Allow),
            PolicyCommand::Deny(args) => (args, Action::Deny),
            PolicyCommand::Check(_) => panic!("{line}"),
        };
        Edge::new(&args, action, &cli.global).unwrap()
    }

    fn after(lines: &[&str]) -> Value {
        let mut stands = None;
        for line in lines {
            if let Edited::Changed(policy) = edge(line).merged(stands.clone()).unwrap() {
                stands = Some(policy);
            }
        }
        stands.unwrap()
    }

    fn ports(policy: &Value) -> &Value {
        &policy["spec"]["rules"][0]["ports"]
    }

    #[test]
    fn a_port_is_added_and_never_narrows_what_stands() {
        assert_eq!(
            ports(&after(&["allow order charge --port 80", "allow order charge --port 81 --port 80"])),
            &json!([80, 81])
        );
        assert_eq!(ports(&after(&["allow order charge", "allow order charge --port 81"])), &Value::Null);
        assert_eq!(ports(&after(&["allow order charge --port 81", "allow order charge"])), &Value::Null);
        let stands = Some(after(&["allow order charge"]));
        assert_eq!(edge("allow order charge --port 81").merged(stands).unwrap(), Edited::Unchanged);
    }

    #[test]
    fn a_rule_that_a_person_wrote_is_left_alone() {
        let mut policy = after(&["allow order charge --port 80"]);
        policy["spec"]["rules"][0]["networks"] = json!(["10.0.0.0/8"]);
        policy["metadata"]["resourceVersion"] = json!("7");
        let Edited::Changed(merged) = edge("allow order charge").merged(Some(policy.clone())).unwrap() else {
            panic!("a rule is missing");
        };
        assert_eq!(merged["spec"]["rules"][0], policy["spec"]["rules"][0]);
        assert_eq!(merged["spec"]["rules"][1]["name"], "order-2");
        assert_eq!(merged["metadata"]["resourceVersion"], "7", "somebody else's change is a conflict");

        policy["spec"]["action"] = json!("DENY");
        assert_eq!(edge("allow order charge").merged(Some(policy)).unwrap_err().exit(), Exit::Conflict);
    }

    #[test]
    fn callers_of_one_name_in_two_namespaces_have_two_policies() {
        let names =
            ["allow order.web charge.shop", "allow order.shop charge.shop", "deny order.shop charge.shop"];
        let names = names.map(|line| edge(line).name);
        assert_eq!(names, ["allow-order-web-charge", "allow-order-charge", "deny-order-charge"]);
        assert_eq!(edge("allow order charge -n web").name, "allow-order-charge");
    }

    #[test]
    fn an_effect_that_was_not_asked_for_is_told() {
        let verdict = |allowed, code: &str| CheckPolicyResponse {
            allowed,
            code: code.to_owned(),
            ..CheckPolicyResponse::default()
        };
        assert!(surprise(Action::Allow, &verdict(false, "W2102")).is_some());
        assert!(surprise(Action::Deny, &verdict(true, "")).is_some());
        assert_eq!(surprise(Action::Allow, &verdict(true, "")), None);
        assert_eq!(surprise(Action::Allow, &verdict(false, "W1011")), None, "its service may come later");
    }
}
