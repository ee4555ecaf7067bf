//! Where each record of the registry stands in the store.
//!
//! ```text
//! mesh/resources/<plural>/<namespace or _>/<name>   an object of the resource model
//! mesh/registrations/<namespace>/<workload>         who registered the workload, at which boot
//! mesh/labels/<label>                               which workload has that endpoint label
//! mesh/nodes/<node>                                 what is known of an agent
//! mesh/users/<name>                                 which role a person has
//! mesh/denied/<id>                                  who is refused, and why; the id is a hash of whom
//! mesh/servers/<instance>                           who let a further server in, and from when on it signs
//! guard/resources                                   the number of the newest change of resources
//! changes/<number>  replaced/<number>/<part>        what each change was, and what it replaced
//! audit/<server>                                    where the audit log of a server ends
//! unconfirmed/<number>                              changes that are taken back unless they are confirmed
//! present/servers/<instance>  present/agents/<node>  who is there, as long as it is so
//! tokens/<sha-256>  issued/<serial>  certified/<key>  renewals/<node>  bundle/<trust domain>
//! ```
//!
//! Everything under `mesh/` is mirrored in memory by [`crate::catalog`]; what only grows (issued certificates) or must
//! not be spread (token hashes) is not. No part of a key holds a `/`: each is one label of the name grammar, a
//! hexadecimal text, or was checked here.

use weft_identity::spiffe::TrustDomain;
use weft_policy::{
    model::{self, Kind},
    name::{EndpointLabel, Namespace, NodeName, ObjectName},
};

use crate::store::{Key, Prefix};

/// Stands for the namespace of a kind that has none; no namespace can be named so.
const NO_NAMESPACE: &str = "_";
const RESOURCES: &str = "mesh/resources/";
const REGISTRATIONS: &str = "mesh/registrations/";
const LABELS: &str = "mesh/labels/";
const NODES: &str = "mesh/nodes/";
const USERS: &str = "mesh/users/";
const DENIED: &str = "mesh/denied/";
const SERVERS: &str = "mesh/servers/";
/// An ID of the denylist: 128 bits in hexadecimal.
const DENIED_CHARS: usize = 32;
const CHANGES: &str = "changes/";
const UNCONFIRMED: &str = "unconfirmed/";

/// Where the presence of servers and agents stands (see [`crate::replicas`]).
pub(crate) const PRESENT: &str = "present/";

/// What a key of the mirrored part names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// An object of the resource model.
    Resource(model::Key),
    /// The registration of a workload.
    Registration(Namespace, ObjectName),
    /// The owner of an endpoint label.
    Label(EndpointLabel),
    /// An agent.
    Node(NodeName),
    /// A person.
    User(String),
    /// An entry of the denylist.
    Denied(String),
    /// A server that was admitted beside the first one.
    Server(String),
    /// Nothing that this version knows.
    Unknown,
}

/// Selects all that is mirrored in memory.
#[must_use]
pub fn mesh() -> Prefix {
    prefix("mesh/")
}

/// The key of an object.
#[must_use]
pub fn resource(object: &model::Key) -> Key {
    let namespace = object.namespace.as_ref().map_or(NO_NAMESPACE, Namespace::as_str);
    key(&format!("{RESOURCES}{}/{namespace}/{}", object.kind.plural(), object.name))
}

/// Selects the objects of a kind, of one namespace or of all.
#[must_use]
pub fn resources(kind: Kind, namespace: Option<&Namespace>) -> Prefix {
    let kind = kind.plural();
    prefix(
        &namespace.map_or_else(
            || format!("{RESOURCES}{kind}/"),
            |namespace| format!("{RESOURCES}{kind}/{namespace}/"),
        ),
    )
}

/// The key of a workload's registration.
#[must_use]
pub fn registration(namespace: &Namespace, workload: &ObjectName) -> Key {
    key(&format!("{REGISTRATIONS}{namespace}/{workload}"))
}

/// The key that reserves an endpoint label.
#[must_use]
pub fn label(label: &EndpointLabel) -> Key {
    key(&format!("{LABELS}{label}"))
}

/// The key of an agent's record.
#[must_use]
pub fn node(name: &NodeName) -> Key {
    key(&format!("{NODES}{name}"))
}

/// The key of a person's record. `None` when the name begins with a dash or dot, or is not one segment of a SPIFFE ID's path.
#[must_use]
pub fn user(name: &str) -> Option<Key> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    // A name that begins with a dash would be a flag of the command that is given it.
    let fits = name.starts_with(|first: char| first.is_ascii_alphanumeric()) && name.len() <= 128;
    let fits = fits && name.bytes().all(legal);
    fits.then(|| key(&format!("{USERS}{name}")))
}

/// The key of a further server. `None` when its name is not one that a server draws: one segment of a SPIFFE ID's path.
#[must_use]
pub fn server(instance: &str) -> Option<Key> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = (1..=64).contains(&instance.len()) && instance.bytes().all(legal);
    fits.then(|| key(&format!("{SERVERS}{instance}")))
}

/// Selects the servers that were admitted.
#[must_use]
pub fn servers() -> Prefix {
    prefix(SERVERS)
}

/// Selects every person's record.
#[must_use]
pub fn users() -> Prefix {
    prefix(USERS)
}

/// The key of a record of the denylist; `id` is that of [`crate::denied::What::id`].
#[must_use]
pub fn denied(id: &str) -> Key {
    key(&format!("{DENIED}{id}"))
}

/// Written by each change of resources, so that two changes that were each checked alone cannot both be committed.
#[must_use]
pub fn guard() -> Key {
    key("guard/resources")
}

/// The key of a change in the history. Twenty digits hold every number, so keys are in the order of the numbers.
#[must_use]
pub fn change(number: u64) -> Key {
    key(&format!("{CHANGES}{number:020}"))
}

/// Selects every change of the history.
#[must_use]
pub fn changes() -> Prefix {
    prefix(CHANGES)
}

/// The number of the change that stands under a key of the history.
#[must_use]
pub fn change_number(key: &Key) -> Option<u64> {
    let digits = key.as_str().strip_prefix(CHANGES).or_else(|| key.as_str().strip_prefix(UNCONFIRMED))?;
    digits.parse().ok()
}

/// The key of one part of what a change replaced.
#[must_use]
pub fn replaced(number: u64, part: usize) -> Key {
    key(&format!("replaced/{number:020}/{part:03}"))
}

/// The key of a change that waits for its confirmation.
#[must_use]
pub fn unconfirmed(number: u64) -> Key {
    key(&format!("{UNCONFIRMED}{number:020}"))
}

/// Selects every change that waits for its confirmation.
#[must_use]
pub fn all_unconfirmed() -> Prefix {
    prefix(UNCONFIRMED)
}

/// The key that says where the audit log of a server ends. The name of a server is one segment of a SPIFFE ID's path.
#[must_use]
pub fn audit_anchor(instance: &str) -> Key {
    key(&format!("audit/{instance}"))
}

/// The key that says that a server is there.
#[must_use]
pub fn present_server(instance: &str) -> Key {
    key(&format!("{PRESENT}servers/{instance}"))
}

/// The key that says where an agent is connected.
#[must_use]
pub fn present_agent(node: &NodeName) -> Key {
    key(&format!("{PRESENT}agents/{node}"))
}

/// Selects the presence of servers and agents.
#[must_use]
pub fn present() -> Prefix {
    prefix(PRESENT)
}

/// The key of a token, by the SHA-256 of its secret.
#[must_use]
pub fn token(hash: &[u8; 32]) -> Key {
    key(&format!("tokens/{}", hex(hash)))
}

/// Selects every token.
#[must_use]
pub fn tokens() -> Prefix {
    prefix("tokens/")
}

/// The key of an issued certificate in the issuance log, by its serial number (at most 20 bytes, RFC 5280 §4.1.2.2).
#[must_use]
pub fn issued(serial: &[u8]) -> Key {
    key(&format!("issued/{}", hex(serial.get(..20).unwrap_or(serial))))
}

/// Selects the issuance log.
#[must_use]
pub fn issuances() -> Prefix {
    prefix("issued/")
}

/// The key that says for whom a public key was certified, by the SHA-256 of the key.
#[must_use]
pub fn certified_key(fingerprint: &[u8; 32]) -> Key {
    key(&format!("certified/{}", hex(fingerprint)))
}

/// Selects every certified public key.
#[must_use]
pub fn certified_keys() -> Prefix {
    prefix("certified/")
}

/// The key of a node's renewal chain (ISS-04).
#[must_use]
pub fn renewals(node: &NodeName) -> Key {
    key(&format!("renewals/{node}"))
}

/// The key of a trust domain's bundle.
#[must_use]
pub fn bundle(trust_domain: &TrustDomain) -> Key {
    key(&format!("bundle/{trust_domain}"))
}

/// Selects the bundles.
#[must_use]
pub fn bundles() -> Prefix {
    prefix("bundle/")
}

/// Reads a key of the mirrored part.
#[must_use]
pub fn place(key: &Key) -> Place {
    let text = key.as_str();
    let read = || -> Option<Place> {
        if let Some(rest) = text.strip_prefix(RESOURCES) {
            return object(rest).map(Place::Resource);
        }
        if let Some(rest) = text.strip_prefix(REGISTRATIONS) {
            let (namespace, name) = rest.split_once('/')?;
            return Some(Place::Registration(namespace.parse().ok()?, name.parse().ok()?));
        }
        if let Some(rest) = text.strip_prefix(LABELS) {
            return Some(Place::Label(rest.parse().ok()?));
        }
        if let Some(rest) = text.strip_prefix(NODES) {
            return Some(Place::Node(rest.parse().ok()?));
        }
        if let Some(id) = text.strip_prefix(DENIED) {
            let legal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            let fits = id.len() == DENIED_CHARS && id.bytes().all(legal);
            return fits.then(|| Place::Denied(id.to_owned()));
        }
        if let Some(instance) = text.strip_prefix(SERVERS) {
            return server(instance).map(|_| Place::Server(instance.to_owned()));
        }
        let name = text.strip_prefix(USERS)?;
        user(name).map(|_| Place::User(name.to_owned()))
    };
    read().unwrap_or(Place::Unknown)
}

fn object(rest: &str) -> Option<model::Key> {
    let mut parts = rest.split('/');
    let (plural, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
    let kind = Kind::ALL.into_iter().find(|kind| kind.plural() == plural)?;
    let namespace = match namespace {
        NO_NAMESPACE => None,
        name => Some(name.parse().ok()?),
    };
    let fits = parts.next().is_none() && kind.is_namespaced() == namespace.is_some();
    Some(model::Key { kind, namespace, name: name.parse().ok()? }).filter(|_| fits)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn key(text: &str) -> Key {
    text.parse().expect("every part is a bounded name without control characters, so the whole is a key")
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("every part is a bounded name without control characters, so the whole is a prefix")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_as_what_it_names() {
        let (shop, charge): (Namespace, ObjectName) = ("shop".parse().unwrap(), "charge".parse().unwrap());
        for kind in Kind::ALL {
            let namespace = kind.is_namespaced().then(|| shop.clone());
            let object = model::Key { kind, namespace: namespace.clone(), name: charge.clone() };
            assert_eq!(place(&resource(&object)), Place::Resource(object.clone()));
            assert!(resource(&object).is_under(&resources(kind, None)));
            assert_eq!(resource(&object).is_under(&resources(kind, Some(&shop))), namespace.is_some());
            assert!(resource(&object).is_under(&mesh()));
        }
        assert_eq!(place(&registration(&shop, &charge)), Place::Registration(shop, charge));
        assert_eq!(place(&node(&"hostb".parse().unwrap())), Place::Node("hostb".parse().unwrap()));
        assert_eq!(place(&label(&"abc".parse().unwrap())), Place::Label("abc".parse().unwrap()));
        assert_eq!(place(&server("s-0a1b").unwrap()), Place::Server("s-0a1b".to_owned()));
        assert_eq!(place(&user("Ada.L").unwrap()), Place::User("Ada.L".to_owned()));
        let id = "0a".repeat(16);
        assert_eq!(place(&denied(&id)), Place::Denied(id));
    }

    #[test]
    fn keys_of_a_newer_version_are_unknown_and_no_name_can_reach_outside_its_folder() {
        for text in [
            "mesh/new/thing",
            "mesh/resources/services/charge",
            "mesh/resources/services/_/charge",
            "mesh/resources/meshes/shop/mesh",
            "mesh/resources/services/shop/charge/x",
            "mesh/resources/things/shop/charge",
            "mesh/users/a/b",
            "mesh/nodes/",
            "mesh/servers/",
            "mesh/servers/S 1",
            "mesh/denied/0a",
            "mesh/denied/0A0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a",
        ] {
            assert_eq!(place(&text.parse().unwrap()), Place::Unknown, "{text}");
        }
        for name in ["", "a/b", "a\n", "../x y", &"u".repeat(129)] {
            assert_eq!(user(name), None, "{name:?}");
        }
    }

    #[test]
    fn changes_are_in_the_order_of_their_numbers() {
        let numbers = [0, 9, 10, 99, u64::MAX];
        let keys = numbers.map(change);
        assert!(keys.is_sorted_by(|one, next| one.as_str() < next.as_str()));
        assert_eq!(keys.map(|key| change_number(&key)), numbers.map(Some));
        assert_eq!(change_number(&unconfirmed(7)), Some(7));
        assert_eq!(change_number(&guard()), None);
    }

    #[test]
    fn what_only_grows_is_not_mirrored() {
        let of_changes = [guard(), change(7), replaced(7, 0), unconfirmed(7)];
        let others = [token(&[7; 32]), issued(&[1, 2]), bundle(&"corp.example".parse().unwrap())];
        for key in of_changes.into_iter().chain(others) {
            assert!(!key.is_under(&mesh()), "{key}");
        }
        assert_eq!(issued(&[0xab; 64]), issued(&[0xab; 20]));
    }
}
