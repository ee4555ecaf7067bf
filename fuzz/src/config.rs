//! f17: what is read from files: server.yaml, agent.yaml and manifests.
//!
//! A configuration that is accepted keeps every rule between its values, so that nothing is refused later that could have
//! been refused here. A manifest that is accepted comes back from its own YAML and JSON; emptied, voided or mistyped in
//! one place it is refused, so that nothing ever reads as "any" (never widens).

use std::time::Duration;

use serde_json::{Map, Value, json};
use weft_api::fault::Fault;
use weft_api::manifest;
use weft_identity::ca::LONGEST_LEAF;
use weft_policy::code;
use weft_policy::name::Namespace;

/// The first byte: which of the three files the rest is.
pub fn f17_config(data: &[u8]) {
    let Some((which, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    match which % 4 {
        0 => server(text),
        1 => agent(text),
        2 => manifests(text),
        _ => json_manifest(rest),
    }
}

fn server(text: &str) {
    use weft_registry::config::Config;
    let config = match Config::parse(text, "server.yaml") {
        Ok(config) => config,
        Err(faults) => return told(&faults),
    };
    told_once(config.origins().into_iter().map(|(key, ..)| key).collect());
    assert!(config.listen.admin.ip().is_loopback() && config.listen.metrics.ip().is_loopback());
    let life = config.identity.leaf_ttl;
    assert!((config.identity.lifetimes.shortest()..=LONGEST_LEAF).contains(&life), "a leaf of {life:?}");
    let channel = &config.limits.channel;
    assert!(!channel.handshake_timeout.is_zero() && channel.handshakes > 0 && channel.connections > 0);
    assert!(config.limits.streams_per_client > 0 && config.limits.signing_queue > 0);
    for advertised in &config.advertise {
        let address = advertised.with_port(7444);
        assert!(address.to_string().parse().as_ref() == Ok(&address), "{address} cannot be told to others");
    }
    config.warnings().iter().for_each(|fault| told(std::slice::from_ref(fault)));
}

fn agent(text: &str) {
    use weft_node::config::{Config, Host, Overrides};
    let host = Host { name: "web-1".to_owned(), uid: 1_000, state_dir: "/state".into(), runtime_dir: None };
    let config = match Config::read(text, "agent.yaml", &Overrides::default(), &host) {
        Ok(config) => config,
        Err(faults) => return told(&faults),
    };
    told_once(config.origins().iter().map(|setting| setting.key.to_string()).collect());
    assert!(config.listen.proxy.ip().to_canonical().is_loopback(), "an open proxy");
    assert!(config.listen.admin.ip().to_canonical().is_loopback());
    for upstream in config.workloads.iter().flat_map(|workload| &workload.upstreams) {
        assert!(upstream.listen.ip().to_canonical().is_loopback(), "an upstream that others reach");
    }
    assert!(config.workers > 0 && config.max_flows() > 0 && config.connections() > 0);
    // What `weft_overlay` refuses when it binds: a file that passes here must not stop the agent there.
    let it = config.transport();
    assert!(!it.keep_alive.is_zero() && it.keep_alive < it.idle_timeout, "keep-alive {:?}", it.keep_alive);
    assert!(it.stream_window_bytes > 0 && it.stream_window_bytes <= it.receive_window_bytes, "windows");
    assert!(it.flows_at_start > 0 && it.flows_at_start <= it.flows_ceiling, "flows");
    assert!(it.send_window_bytes > 0 && it.handshake_timeout > Duration::ZERO);
    assert!(config.pool().max_tunnels > 0 && config.head_limits().head_bytes > 0);
}

/// Each key is told once.
fn told_once(mut keys: Vec<String>) {
    let count = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), count, "a key with two origins");
}

fn manifests(text: &str) {
    let shop: Namespace = "shop".parse().expect("it is one");
    let resources = match manifest::parse(text, Some(&shop)) {
        Ok(resources) => resources,
        Err(faults) => return told(&faults),
    };
    for resource in resources.iter().take(4) {
        let yaml = manifest::to_yaml(resource);
        assert_eq!(manifest::parse(&yaml, None).as_deref(), Ok(std::slice::from_ref(resource)), "{yaml}");
        never_wider(&manifest::to_json(resource));
    }
}

fn json_manifest(text: &[u8]) {
    match manifest::parse_json(text, None) {
        Ok(resource) => {
            let json = manifest::to_json(&resource);
            assert_eq!(manifest::parse_json(json.to_string().as_bytes(), None), Ok(resource));
            never_wider(&json);
        }
        Err(faults) => told(&faults),
    }
}

/// Every refusal has a code, says something, and stays short whatever was in the file.
fn told(faults: &[Fault]) {
    assert!(!faults.is_empty(), "refused without a word");
    for fault in faults {
        assert!(code::lookup(&fault.code).is_some(), "{} is not in the catalogue", fault.code);
        assert!(!fault.what.is_empty());
        let longest = fault.why.iter().chain(&fault.fix).map(String::len).max().unwrap_or(0);
        assert!(fault.what.len().max(longest) <= 4_096, "a fault of {} bytes", fault.what.len().max(longest));
    }
}

/// An object with one list emptied, one value voided or one key added is not an object.
fn never_wider(object: &Value) {
    for path in places(object, String::new()) {
        let at = object.pointer(&path).expect("it was just found");
        if at.as_array().is_some_and(|list| !list.is_empty()) {
            refused(object, &path, json!([]));
        }
        if let Some(map) = at.as_object() {
            // Labels and annotations take any key.
            if !path.starts_with("/metadata/") && !is_free(&path) {
                let mut wider: Map<_, _> = map.clone();
                wider.insert("unheardOf".to_owned(), json!(1));
                refused(object, &path, Value::Object(wider));
            }
        }
        refused(object, &path, Value::Null);
    }
}

/// Maps whose keys are the writer's own.
fn is_free(path: &str) -> bool {
    ["/ports", "/labels", "/matchLabels", "/selector"].iter().any(|end| path.ends_with(end))
}

fn refused(object: &Value, path: &str, instead: Value) {
    let mut bent = object.clone();
    *bent.pointer_mut(path).expect("the same object") = instead;
    let answer = manifest::parse_json(bent.to_string().as_bytes(), None);
    assert!(answer.is_err(), "{bent} with {path} replaced was accepted");
}

/// JSON pointers to everything in `value`, at most 200.
fn places(value: &Value, path: String) -> Vec<String> {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (escaped(key), value)).collect(),
        Value::Array(list) => list.iter().enumerate().map(|(at, value)| (at.to_string(), value)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    let mut all = vec![path.clone()];
    for (key, value) in inner {
        if all.len() < 200 {
            all.extend(places(value, format!("{path}/{key}")));
        }
    }
    all
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}
