//! `AuthorizationPolicy`, the one schema of decisions.md, at the level Network.

use ipnet::IpNet;
use serde_json::{Value, json};
use weft_policy::{
    code,
    model::{
        AuthorizationPolicy, Metadata,
        authorization::{Action, Mode, PortRef, Rule, Source},
    },
    name::{Namespace, ObjectName},
};

use super::{
    service,
    target::{self, MAX_TARGETS},
};
use crate::{
    fault::Fault,
    manifest::{
        fields::At,
        node,
        object::{Object, Unserved},
        output::Output,
        quoted,
    },
};

/// The most rules of a policy (security.md 7.2, point 12).
const MAX_RULES: usize = 256;
/// The most sources of a rule.
const MAX_SOURCES: usize = 512;
/// The most exceptions of a source, and the most ports and networks of a rule.
const MAX_PARTS: usize = 64;

const UNSERVED: [Unserved; 3] = [
    ("http", "rules see identities, ports and networks: remove http, or deny the caller"),
    ("grpc", "rules see identities, ports and networks: remove grpc, or deny the caller"),
    ("when", "rules see identities, ports and networks: remove when, or deny the caller"),
];

/// The words of the two levels.
const NETWORK: &str = "Network";
const APPLICATION: &str = "Application";

pub(in crate::manifest) fn read(
    metadata: Option<Metadata>,
    mut spec: Object<'_>,
) -> Option<AuthorizationPolicy> {
    let own = metadata.as_ref().and_then(|metadata| metadata.namespace.clone());
    let targets =
        spec.required("targetRefs").and_then(|at| at.each(MAX_TARGETS, |at| target::read(at, own.as_ref())));
    let action =
        spec.required("action").and_then(|at| at.choice(&[("ALLOW", Action::Allow), ("DENY", Action::Deny)]));
    let mode = spec
        .or("mode", Mode::default(), |at| at.choice(&[("Enforce", Mode::Enforce), ("DryRun", Mode::DryRun)]));
    let level = spec.or("enforcementLevel", (), level);
    let rules = spec.required("rules").and_then(|at| rules(&at));
    spec.finish();
    level?;
    Some(AuthorizationPolicy {
        metadata: metadata?,
        targets: targets?,
        action: action?,
        mode: mode?,
        rules: rules?,
    })
}

fn level(at: &At<'_>) -> Option<()> {
    if at.text()? == APPLICATION {
        at.not_served("the enforcementLevel Application", "use Network: identities, ports and networks");
        return None;
    }
    at.choice(&[(NETWORK, ()), (APPLICATION, ())])
}

fn rules(at: &At<'_>) -> Option<Vec<Rule>> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut complete = true;
    for item in at.list(MAX_RULES)? {
        match rule(&item) {
            Some(rule) if rules.iter().any(|other| other.name == rule.name) => {
                let what = format!("the rule {} is given twice", rule.name);
                item.fault(Fault::new(code::DUPLICATE_KEY, what).fix("give it another name"));
            }
            Some(rule) => rules.push(rule),
            None => complete = false,
        }
    }
    complete.then_some(rules)
}

fn rule(at: &At<'_>) -> Option<Rule> {
    let mut object = at.object()?;
    let name = object.required("name").and_then(|at| at.parse());
    let sources = object.required("sources").and_then(|at| at.each(MAX_SOURCES, source));
    let ports = object.optional("ports").map(|at| at.each(MAX_PARTS, port));
    let networks = object.optional("networks").map(|at| at.each(MAX_PARTS, network));
    object.unserved(&UNSERVED);
    object.finish();
    let rule = Rule {
        name: name?,
        sources: sources?,
        ports: ports.map_or(Some(None), |found| found.map(Some))?,
        networks: networks.map_or(Some(None), |found| found.map(Some))?,
    };
    if rule.networks.is_some() && rule.sources.contains(&Source::Unauthenticated) {
        at.fault(
            Fault::new(code::NETWORK_ALONE, "networks stand beside an unauthenticated source")
                .why("an address proves nobody: networks narrow authenticated callers only")
                .fix("remove networks, or the source of type Unauthenticated"),
        );
        return None;
    }
    Some(rule)
}

const TYPES: [(&str, Type); 4] = [
    ("SPIFFE", Type::Spiffe),
    ("ServiceAccount", Type::ServiceAccount),
    ("Any", Type::Any),
    ("Unauthenticated", Type::Unauthenticated),
];

#[derive(Clone, Copy)]
enum Type {
    Spiffe,
    ServiceAccount,
    Any,
    Unauthenticated,
}

fn source(at: &At<'_>) -> Option<Source> {
    let mut object = at.object()?;
    let kind = object.required("type").and_then(|at| at.choice(&TYPES));
    // A source whose type is unknown cannot say which other fields it may have.
    let source = match kind? {
        Type::Spiffe => spiffe(&mut object),
        Type::ServiceAccount => service_account(&mut object),
        Type::Any => Some(Source::Any),
        Type::Unauthenticated => Some(Source::Unauthenticated),
    };
    object.finish();
    source
}

fn spiffe(object: &mut Object<'_>) -> Option<Source> {
    let pattern = object.required("spiffe").and_then(|at| at.parse());
    let except = object.list("except", MAX_PARTS, |at| at.parse());
    Some(Source::Spiffe { pattern: pattern?, except: except? })
}

fn service_account(object: &mut Object<'_>) -> Option<Source> {
    let account = object.required("serviceAccount")?;
    let mut account = account.object()?;
    let namespace: Option<Namespace> = account.required("namespace").and_then(|at| at.parse());
    let name: Option<ObjectName> = account.required("name").and_then(|at| at.parse());
    account.finish();
    Some(Source::ServiceAccount { namespace: namespace?, name: name? })
}

fn port(at: &At<'_>) -> Option<PortRef> {
    match at.node.value {
        node::Value::Integer(_) => at.port().map(PortRef::Number),
        node::Value::Null
        | node::Value::Bool(_)
        | node::Value::Float(_)
        | node::Value::Text(_)
        | node::Value::List(_)
        | node::Value::Map(_) => service::port_name(at).map(PortRef::Name),
    }
}

/// A network in its one spelling, so that what a person reads is what matches.
fn network(at: &At<'_>) -> Option<IpNet> {
    let text = at.text()?;
    let Ok(network) = text.parse::<IpNet>() else {
        let fault = Fault::new(code::BAD_ADDRESS, format!("{} is not a network", quoted(text)));
        at.fault(match text.parse::<std::net::IpAddr>() {
            Ok(address) => fault.fix(format!("write {}", IpNet::from(address))),
            Err(_) => fault.fix("write an address and its prefix length, such as 10.0.0.0/8"),
        });
        return None;
    };
    let mapped = matches!(network, IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some());
    if mapped {
        at.refuse(code::BAD_ADDRESS, "IPv4 networks are written as IPv4, such as 10.0.0.0/8");
        return None;
    }
    if network.trunc() != network {
        let fault = Fault::new(code::BAD_ADDRESS, format!("{text} has bits beyond its prefix"));
        at.fault(fault.fix(format!("write {}", network.trunc())));
        return None;
    }
    Some(network)
}

pub(in crate::manifest) fn write(policy: &AuthorizationPolicy, out: Output) -> Value {
    let targets: Vec<_> = policy.targets.iter().map(|target| target::write(target, out.inner())).collect();
    let rules: Vec<_> = policy.rules.iter().map(|rule| write_rule(rule, out.inner())).collect();
    let action = match policy.action {
        Action::Allow => "ALLOW",
        Action::Deny => "DENY",
    };
    let mode = match policy.mode {
        Mode::Enforce => "Enforce",
        Mode::DryRun => "DryRun",
    };
    out.put("targetRefs", targets)
        .put("action", action)
        .put("mode", mode)
        .put("enforcementLevel", NETWORK)
        .put("rules", rules)
        .done()
}

fn write_rule(rule: &Rule, out: Output) -> Value {
    let sources: Vec<_> = rule.sources.iter().map(|source| write_source(source, out.inner())).collect();
    let port = |port: &PortRef| match port {
        PortRef::Number(number) => json!(number),
        PortRef::Name(name) => json!(name.as_str()),
    };
    let ports = rule.ports.as_ref().map(|ports| ports.iter().map(port).collect::<Vec<_>>());
    let texts = |networks: &Vec<IpNet>| networks.iter().map(ToString::to_string).collect::<Vec<_>>();
    out.text("name", &rule.name)
        .put("sources", sources)
        .optional("ports", ports)
        .optional("networks", rule.networks.as_ref().map(texts))
        .done()
}

fn write_source(source: &Source, out: Output) -> Value {
    match source {
        Source::Spiffe { pattern, except } => {
            out.put("type", "SPIFFE").text("spiffe", pattern).texts("except", except).done()
        }
        Source::ServiceAccount { namespace, name } => {
            let account = out.inner().text("namespace", namespace).text("name", name).done();
            out.put("type", "ServiceAccount").put("serviceAccount", account).done()
        }
        Source::Any => out.put("type", "Any").done(),
        Source::Unauthenticated => out.put("type", "Unauthenticated").done(),
    }
}
