//! `Workload` and `WorkloadEnrollment`.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use serde_json::Value;
use weft_policy::{
    code,
    model::{Locality, Metadata, Workload, WorkloadEnrollment, workload::UnixSelector},
    name::PortName,
    pattern::IdentityPattern,
};

use crate::{
    duration::format_duration,
    fault::Fault,
    manifest::{
        fields::At,
        metadata::{MAX_LABELS, is_label_text, label},
        node,
        object::{Object, Unserved},
        output::Output,
    },
};

/// The most services that one workload serves, and that an enrollment gives.
const MAX_SERVICES: usize = 64;
/// The most ports of a workload: those of one service.
const MAX_PORTS: usize = 64;
/// The most identity patterns of an enrollment.
const MAX_PATTERNS: usize = 64;
/// The most nodes of an enrollment.
const MAX_NODES: usize = 1_024;
/// The most selectors of an enrollment.
const MAX_SELECTORS: usize = 64;
/// The largest weight of a workload; 0 takes no new connections.
const MAX_WEIGHT: u32 = 10_000;
/// The longest name of a local user (useradd(8)).
const MAX_USER_BYTES: usize = 32;
/// The lifetimes an SVID may have; below 5 min only where the server allows it, which is the server's to say.
const TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(7 * 24 * 3_600);

const UNSERVED: [Unserved; 4] = [
    ("healthCheck", "remove it: an endpoint that fails is left out by outlier detection"),
    ("address", "say under ports where each port is served"),
    ("agent", "name the node under node"),
    ("mode", "remove it"),
];

pub(in crate::manifest) fn read(metadata: Option<Metadata>, mut spec: Object<'_>) -> Option<Workload> {
    let node = spec.required("node").and_then(|at| at.parse());
    let identity = spec.required("identity").and_then(|at| at.parse());
    let services = spec.list("services", MAX_SERVICES, |at| at.parse());
    let ports = spec.or("ports", BTreeMap::new(), ports);
    let weight = spec.or("weight", 1, |at| at.small(0..=MAX_WEIGHT));
    let locality = spec.or("locality", Locality::default(), locality);
    let label = spec.optional("label").map(|at| at.parse());
    let uid = spec.optional("uid").map(|at| at.small(0..=u32::MAX));
    spec.unserved(&UNSERVED);
    spec.finish();
    Some(Workload {
        metadata: metadata?,
        node: node?,
        identity: identity?,
        services: services?,
        ports: ports?,
        weight: weight?,
        locality: locality?,
        label: label.map_or(Some(None), |found| found.map(Some))?,
        uid: uid.map_or(Some(None), |found| found.map(Some))?,
    })
}

fn ports(at: &At<'_>) -> Option<BTreeMap<String, SocketAddr>> {
    let mut all = BTreeMap::new();
    for (key, at) in at.entries(MAX_PORTS)? {
        if !is_port_key(key) {
            at.invalid("the key is a port's name or its number from 1 to 65535");
        }
        all.insert(key.to_owned(), local_address(&at)?);
    }
    Some(all)
}

fn is_port_key(key: &str) -> bool {
    let number = key.parse::<u16>().is_ok_and(|port| port != 0 && port.to_string() == key);
    let name = key.parse::<PortName>().is_ok() && key.bytes().any(|b| b.is_ascii_lowercase());
    number || name
}

/// A port, which is then on 127.0.0.1, or `ip:port`.
fn local_address(at: &At<'_>) -> Option<SocketAddr> {
    if let node::Value::Integer(_) = at.node.value {
        return at.port().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    let address: SocketAddr = at.parse()?;
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    if address.port() == 0 || address.ip().is_unspecified() {
        at.refuse(code::BAD_ADDRESS, "it must be a port or ip:port that a program listens on");
        return None;
    }
    Some(address)
}

pub(in crate::manifest) fn locality(at: &At<'_>) -> Option<Locality> {
    let mut object = at.object()?;
    let region = object.or("region", String::new(), place_name);
    let zone = object.or("zone", String::new(), place_name);
    object.finish();
    Some(Locality { region: region?, zone: zone? })
}

fn place_name(at: &At<'_>) -> Option<String> {
    let text = at.text()?;
    if text.is_empty() || is_label_text(text) {
        return Some(text.to_owned());
    }
    at.invalid("a region or zone has at most 63 letters, digits and inner '-', '_', '.'");
    None
}

pub(in crate::manifest) fn write_locality(locality: &Locality, out: Output) -> Value {
    out.put("region", locality.region.as_str()).put("zone", locality.zone.as_str()).done()
}

pub(in crate::manifest) fn write(workload: &Workload, out: Output) -> Value {
    let ports = workload.ports.iter().map(|(key, address)| (key.clone(), address.to_string())).collect();
    let locality = write_locality(&workload.locality, out.inner());
    out.text("node", &workload.node)
        .text("identity", &workload.identity)
        .texts("services", &workload.services)
        .map("ports", &ports)
        .put("weight", workload.weight)
        .put("locality", locality)
        .optional("label", workload.label.as_ref().map(ToString::to_string))
        .optional("uid", workload.uid)
        .done()
}

pub(in crate::manifest) fn read_enrollment(
    metadata: Option<Metadata>,
    mut spec: Object<'_>,
) -> Option<WorkloadEnrollment> {
    let namespace = metadata.as_ref().and_then(|m| m.namespace.as_ref()).map(ToString::to_string);
    let identities = spec
        .required("identities")
        .and_then(|at| at.each(MAX_PATTERNS, |at| enrolled_identity(at, namespace.as_deref())));
    let nodes = spec.required("nodes").and_then(|at| at.each(MAX_NODES, |at| at.parse()));
    let selectors = spec.list("selectors", MAX_SELECTORS, selector);
    let services = spec.optional("services").map(|at| at.each(MAX_SERVICES, |at| at.parse()));
    let labels = spec.or("labels", BTreeMap::new(), |at| at.texts(MAX_LABELS, label));
    let ttl = spec.optional("ttl").map(|at| at.duration(TTL));
    spec.finish();
    Some(WorkloadEnrollment {
        metadata: metadata?,
        identities: identities?,
        nodes: nodes?,
        selectors: selectors?,
        services: services.map_or(Some(None), |found| found.map(Some))?,
        labels: labels?,
        ttl: ttl.map_or(Some(None), |found| found.map(Some))?,
    })
}

/// A pattern that stays under `/ns/<namespace>/`, so that no enrollment gives what belongs to others.
fn enrolled_identity(at: &At<'_>, namespace: Option<&str>) -> Option<IdentityPattern> {
    let pattern: IdentityPattern = at.parse()?;
    let namespace = namespace?;
    if pattern.stays_in_namespace(namespace) {
        return Some(pattern);
    }
    at.fault(
        Fault::new(code::IDENTITY_OUT_OF_SCOPE, format!("{pattern} is outside the namespace {namespace}"))
            .why("an enrollment gives identities of its own namespace only")
            .fix(format!("use spiffe://{}/ns/{namespace}/sa/NAME", pattern.trust_domain())),
    );
    None
}

fn selector(at: &At<'_>) -> Option<UnixSelector> {
    let mut object = at.object()?;
    let unix = object.required("unix");
    object.unserved(&[
        ("systemd", "select by unix: {user: NAME} or unix: {uid: NUMBER}"),
        ("kubernetes", "select by unix: {user: NAME} or unix: {uid: NUMBER}"),
    ]);
    object.finish();
    let unix = unix?;
    let mut object = unix.object()?;
    let uid = object.optional("uid").map(|at| at.small(0..=u32::MAX));
    let user = object.optional("user").map(|at| user(&at));
    object.unserved(&[("path", "remove it"), ("gid", "remove it"), ("group", "remove it")]);
    object.finish();
    if uid.is_none() && user.is_none() {
        unix.empty("an empty selector never means \"any\"");
        return None;
    }
    Some(UnixSelector {
        uid: uid.map_or(Some(None), |found| found.map(Some))?,
        user: user.map_or(Some(None), |found| found.map(Some))?,
    })
}

fn user(at: &At<'_>) -> Option<String> {
    let text = at.text()?;
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let starts = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if starts && text.len() <= MAX_USER_BYTES && text.bytes().all(legal) {
        return Some(text.to_owned());
    }
    at.invalid("a user's name has at most 32 letters, digits, '-', '_', '.', and begins with a letter");
    None
}

pub(in crate::manifest) fn write_enrollment(enrollment: &WorkloadEnrollment, out: Output) -> Value {
    let selector = |selector: &UnixSelector| {
        let unix = out.inner().optional("uid", selector.uid).optional("user", selector.user.clone()).done();
        out.inner().put("unix", unix).done()
    };
    let selectors: Vec<_> = enrollment.selectors.iter().map(selector).collect();
    let names = |names: &Vec<_>| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    out.texts("identities", &enrollment.identities)
        .texts("nodes", &enrollment.nodes)
        .optional("selectors", (!selectors.is_empty()).then_some(selectors))
        .optional("services", enrollment.services.as_ref().map(names))
        .map("labels", &enrollment.labels)
        .optional("ttl", enrollment.ttl.map(format_duration))
        .done()
}
