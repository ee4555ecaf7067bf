//! f08: authorization policies from their records to decisions, at the level Network.
//!
//! An input picks a set of policies and bends the JSON of their records: fields go, lists are emptied, values are exchanged.
//! The SHA-256 is made anew, so that it is the reader that must notice. Then every call of a table is decided twice: by
//! catalog, view, snapshot and index, and by a plain reading of the bent text. A record that lost a field or whose list was
//! emptied must be refused, and what is refused must deny; nothing else may differ.

use std::sync::{Arc, LazyLock};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::Value;
use weft_api::{manifest, record};
use weft_identity::{SpiffeId, TrustDomain};
use weft_policy::authz::{CallRequest, Principal};
use weft_policy::model::Resource;
use weft_policy::name::ServiceName;
use weft_policy::snapshot::{Revision as Shown, Snapshot, SnapshotContext};
use weft_registry::catalog::Catalog;
use weft_registry::layout;
use weft_registry::liveness::Standings;
use weft_registry::store::{Entry, Event, EventBatch, Revision};
use weft_registry::view::{self, Interest};
use weft_registry::world::World;

use crate::choice::Choice;

const OBJECTS: &str = include_str!("policy.yaml");

static ALL: LazyLock<Vec<Resource>> =
    LazyLock::new(|| manifest::parse(OBJECTS, None).expect("the objects are in order"));

/// What values are exchanged for.
const WORDS: [&str; 24] = [
    "ALLOW",
    "DENY",
    "Enforce",
    "DryRun",
    "Network",
    "Application",
    "Any",
    "Unauthenticated",
    "SPIFFE",
    "ServiceAccount",
    "spiffe://corp.example/ns/shop/sa/order",
    "spiffe://corp.example/ns/*/sa/order",
    "spiffe://corp.example/**",
    "spiffe://corp.example/ns/shop/**",
    "spiffe://other.example/ns/shop/sa/order",
    "http",
    "admin",
    "10.0.0.0/8",
    "192.0.2.0/24",
    "2001:db8::/32",
    "charge",
    "ledger",
    "shop",
    "",
];

/// Which policies, then what is done to which of them: a way into its JSON and a deed.
pub fn f08_policy_record(data: &[u8]) {
    let mut choice = Choice::new(data);
    let policies: Vec<&Resource> =
        ALL.iter().filter(|object| matches!(object, Resource::AuthorizationPolicy(_))).collect();
    let wanted = choice.byte();
    let mut texts: Vec<(&Resource, Value, bool)> = policies
        .into_iter()
        .enumerate()
        .filter(|(at, _)| wanted >> (at % 8) & 1 == 0)
        .map(|(_, policy)| (policy, json(policy), false))
        .collect();
    for _ in 0..6 {
        if choice.is_empty() || texts.is_empty() {
            break;
        }
        let at = choice.below(texts.len());
        let (_, text, lost) = &mut texts[at];
        *lost |= bend(text, &mut choice);
    }
    let mut catalog = Catalog::new(domain());
    ALL.iter().filter(|object| !matches!(object, Resource::AuthorizationPolicy(_))).cloned().for_each(
        |object| {
            catalog.put(object);
        },
    );
    let mut read = Vec::new();
    for (number, (policy, text, lost)) in texts.iter().enumerate() {
        let key = layout::resource(&policy.key());
        let at = Revision(number as u64 + 1);
        let value = sealed(text).into();
        let entry = Entry { key, value, create_revision: at, mod_revision: at, version: 1, lease: None };
        catalog.apply(EventBatch { revision: at, events: vec![Event::Put(entry)] });
        let refused = catalog.unreadable().contains_key(&policy.key());
        assert!(refused || !lost, "a record that lost a part is read: {text}");
        assert!(
            refused || *text == json(catalog.get(&policy.key()).as_ref().expect("it was read")),
            "{text}"
        );
        read.push((!refused).then_some(text));
    }
    decided(catalog, &read);
}

/// The JSON of a record.
fn json(object: &Resource) -> Value {
    let mut object = object.clone();
    object.metadata_mut().revision = 0;
    let bytes = record::encode_resource(&object);
    let at = bytes.iter().position(|byte| *byte == b'\n').expect("a record has a header");
    serde_json::from_slice(&bytes[at + 1..]).expect("the rest is JSON")
}

/// JSON as a record.
fn sealed(text: &Value) -> Vec<u8> {
    let text = text.to_string();
    let sum: String =
        digest(&SHA256, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("weft-record/1 {sum}\n{text}").into_bytes()
}

/// One deed at the end of a way into the tree; whether a field or the content of a list is lost.
fn bend(text: &mut Value, choice: &mut Choice<'_>) -> bool {
    let deed = choice.below(6);
    let mut at = text;
    loop {
        let count = match &*at {
            Value::Array(list) => list.len(),
            Value::Object(map) => map.len(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
        };
        // Half of the numbers end the way here.
        let next = usize::from(choice.byte());
        if count == 0 || next % 2 == 1 {
            return change(at, deed, choice);
        }
        let next = next / 2 % count;
        if deed == 0 && choice.byte() % 2 == 1 {
            return remove(at, next);
        }
        at = match at {
            Value::Array(list) => &mut list[next],
            Value::Object(map) => map.values_mut().nth(next).expect("it is one of them"),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return false,
        };
    }
}

/// Takes out one part; a list with fewer elements says something else, and is read as it stands.
fn remove(from: &mut Value, which: usize) -> bool {
    match from {
        Value::Array(list) => {
            list.remove(which);
            list.is_empty()
        }
        Value::Object(map) => {
            let key = map.keys().nth(which).expect("it is one of them").clone();
            map.remove(&key);
            // Names of labels are data, and none are used here.
            true
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn change(at: &mut Value, deed: usize, choice: &mut Choice<'_>) -> bool {
    match deed {
        1 => *at = Value::Null,
        2 => {
            // Emptied: a list that had something in it.
            if let Value::Array(list) = at {
                let had = !list.is_empty();
                list.clear();
                return had;
            }
        }
        3 => {
            if let Value::Array(list) = at
                && let Some(first) = list.first().cloned()
            {
                list.push(first);
            }
        }
        4 => *at = Value::from(choice.short()),
        _ => *at = Value::from(WORDS[choice.below(WORDS.len())]),
    }
    false
}

/// Every call of the table, by the mesh and by reading.
fn decided(catalog: Catalog, read: &[Option<&Value>]) {
    let world = World::derive(Arc::new(catalog), Standings::default(), None);
    let callers = [
        None,
        Some("spiffe://corp.example/ns/shop/sa/order"),
        Some("spiffe://corp.example/ns/bank/sa/order"),
        Some("spiffe://corp.example/ns/shop/sa/evil"),
        Some("spiffe://other.example/ns/shop/sa/order"),
    ];
    for name in ["charge", "ledger"] {
        let service = ServiceName::new("shop".parse().expect("it is one"), name.parse().expect("it is one"));
        let view = view::build(&world, &Interest::of_destination(&service));
        let context = SnapshotContext { trust_domain: domain() };
        let snapshot =
            Snapshot::build(Arc::new(view), Shown(1), context).expect("policies alone fail no snapshot");
        for caller in callers {
            for port in [80, 81] {
                for network in [None, Some("10.1.2.3"), Some("192.0.2.9"), Some("2001:db8::1")] {
                    let id: Option<SpiffeId> = caller.map(|caller| caller.parse().expect("it is one"));
                    let source = id.as_ref().map_or(Principal::Unauthenticated, Principal::Spiffe);
                    let network = network.map(|network| network.parse().expect("it is an address"));
                    let call = CallRequest { source, service: &service, port, network };
                    let found = snapshot.authorize(&call).decision.is_allowed();
                    let wanted = allowed(read, &Call { caller, service: name, port, network });
                    assert_eq!(found, wanted, "{caller:?} calls {name}:{port} from {network:?}: {read:?}");
                }
            }
        }
    }
}

struct Call<'a> {
    caller: Option<&'a str>,
    service: &'a str,
    port: u16,
    network: Option<std::net::IpAddr>,
}

/// The plain reading: `None` is what cannot be known.
type Truth = Option<bool>;

/// What security.md 7.2 says of these texts, where a refused one closes its namespace.
fn allowed(read: &[Option<&Value>], call: &Call<'_>) -> bool {
    if read.iter().any(Option::is_none) {
        return false;
    }
    let about = read.iter().flatten().map(|text| &text["spec"]).filter(|spec| {
        spec["mode"] == "Enforce"
            && list(&spec["targetRefs"])
                .any(|target| target["kind"] == "Namespace" || target["name"] == call.service)
    });
    let (mut denied, mut granted) = (false, false);
    for spec in about {
        for rule in list(&spec["rules"]) {
            let holds = rule_holds(rule, call);
            denied |= spec["action"] == "DENY" && holds != Some(false);
            granted |= spec["action"] == "ALLOW" && holds == Some(true);
        }
    }
    granted && !denied
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn any(parts: impl Iterator<Item = Truth>) -> Truth {
    let parts: Vec<Truth> = parts.collect();
    if parts.contains(&Some(true)) {
        return Some(true);
    }
    (!parts.contains(&None)).then_some(false)
}

fn rule_holds(rule: &Value, call: &Call<'_>) -> Truth {
    let source = any(list(&rule["sources"]).map(|source| source_is(source, call.caller)));
    let ports = if rule["ports"].is_null() {
        Some(true)
    } else {
        any(list(&rule["ports"]).map(|port| match port.as_str() {
            Some("http") => Some(call.port == 80),
            Some("admin") => Some(call.port == 81),
            Some(_) => None,
            None => Some(port.as_u64() == Some(call.port.into())),
        }))
    };
    let networks = match (&rule["networks"], call.network) {
        (Value::Null, _) => Some(true),
        (_, None) => None,
        (networks, Some(address)) => {
            any(list(networks).map(|network| Some(contains(network.as_str().unwrap_or_default(), address))))
        }
    };
    let parts = [source, ports, networks];
    if parts.contains(&Some(false)) {
        return Some(false);
    }
    (!parts.contains(&None)).then_some(true)
}

fn source_is(source: &Value, caller: Option<&str>) -> Truth {
    match (source["type"].as_str(), caller) {
        (Some("Unauthenticated"), caller) => Some(caller.is_none()),
        // Anybody of a trust domain that is trusted, and that is the own one alone.
        (Some("Any"), caller) => Some(caller.is_some()),
        (_, None) => None,
        (Some("ServiceAccount"), Some(caller)) => {
            let account = &source["serviceAccount"];
            let text = |field: &str| account[field].as_str().unwrap_or_default().to_owned();
            Some(caller == format!("spiffe://corp.example/ns/{}/sa/{}", text("namespace"), text("name")))
        }
        (_, Some(caller)) => {
            let fits = |pattern: &Value| matches(pattern.as_str().unwrap_or_default(), caller);
            Some(fits(&source["spiffe"]) && !list(&source["except"]).any(fits))
        }
    }
}

/// Segment by segment: `*` is one, a last `**` one or more.
fn matches(pattern: &str, caller: &str) -> bool {
    let mut segments = caller.split('/');
    let mut parts = pattern.split('/').peekable();
    while let Some(part) = parts.next() {
        if part == "**" && parts.peek().is_none() {
            return segments.next().is_some();
        }
        match segments.next() {
            Some(segment) if part == segment || part == "*" => {}
            Some(_) | None => return false,
        }
    }
    segments.next().is_none()
}

fn contains(network: &str, address: std::net::IpAddr) -> bool {
    let Some((base, bits)) = network.split_once('/') else { return false };
    let (Ok(base), Ok(bits)) = (base.parse::<std::net::IpAddr>(), bits.parse::<u32>()) else { return false };
    match (base, address) {
        (std::net::IpAddr::V4(base), std::net::IpAddr::V4(address)) => {
            let shift = 32 - bits.min(32);
            u64::from(base.to_bits()) >> shift == u64::from(address.to_bits()) >> shift
        }
        (std::net::IpAddr::V6(base), std::net::IpAddr::V6(address)) => {
            let shift = 128 - bits.min(128);
            base.to_bits().checked_shr(shift) == address.to_bits().checked_shr(shift)
        }
        _ => false,
    }
}

fn domain() -> TrustDomain {
    "corp.example".parse().expect("it is one")
}
