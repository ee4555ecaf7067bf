//! Which records belong together, and what their manifest says.
//!
//! | key | group |
//! |---|---|
//! | `mesh/resources/<plural>/<namespace>/…`, `mesh/resources/namespaces/_/<namespace>` | the namespace |
//! | `mesh/resources/<plural>/_/…` otherwise | `_mesh` |
//! | `mesh/nodes/<node>`, `renewals/<node>` | one of 64 by the hash of the node's name: agents that start together do not wait for each other |
//! | `mesh/<kind>/…`, `<kind>/…` otherwise | `_<kind>` |
//!
//! So a kind that comes later has a group without being named here. Signed and in no group: what agents write by the
//! thousand and what follows from an enrollment (Workloads, registrations, labels), what only grows (issued certificates
//! and their keys, the history), what hangs on a lease (it goes by itself), and the ends of audit logs, which each server
//! writes for itself. Neither signed nor in a group is the mark of a transfer, which stands only while no server runs.
//!
//! Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weft_policy::{model::Kind, name::Namespace};

use super::{Digest, NOTHING_BEFORE, envelope, sha256};
use crate::{
    layout,
    store::{Key, Prefix},
};

/// Manifests of what is mirrored. `_` sorts before the kinds, so a listing has the manifests first.
pub(super) const IN_MESH: &str = "mesh/_manifests/";
/// Manifests of everything else.
pub(super) const BESIDE: &str = "manifests/";
const MESH: &str = "mesh/";
const RESOURCES: &str = "mesh/resources/";
/// What is signed and in no group; see the module.
const SIGNED_ONLY: [&str; 10] = [
    "mesh/resources/workloads/",
    "mesh/registrations/",
    "mesh/labels/",
    "changes/",
    "replaced/",
    "guard/",
    "issued/",
    "certified/",
    "audit/",
    layout::PRESENT,
];
/// What is divided by the hash of the last part of its key.
const DIVIDED: [&str; 2] = ["mesh/nodes/", "renewals/"];
/// Into how many: with a thousand agents 16 are in one, and 16 durable commits one after the other take 0.1 s.
const DIVISIONS: u8 = 64;
/// What is not signed.
const OPEN: &str = "transfer/";

/// A group of records that have one manifest, by the key of that manifest.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Group(Key);

/// What is denied when a mirrored group does not add up.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Closes {
    /// What one namespace holds.
    Namespace(Namespace),
    /// The roles of people; the socket of the server stays.
    People,
    /// The agents in it.
    Nodes,
    /// The whole mesh: the group is about all of it, or nobody knows what it is about.
    Everything,
}

/// How the record of a key is protected.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Sealing {
    /// Not at all.
    Open,
    /// It is signed.
    Signed,
    /// It is signed, and counted in the manifest of a group.
    Member(Group),
    /// It is the manifest of a group.
    Manifest(Group),
}

/// How the record of `key` is protected. What hangs on a lease is never counted.
#[must_use]
pub fn sealing(key: &Key, leased: bool) -> Sealing {
    if let Some(group) = Group::of_manifest(key) {
        return Sealing::Manifest(group);
    }
    let text = key.as_str();
    if text.starts_with(OPEN) {
        return Sealing::Open;
    }
    if leased || SIGNED_ONLY.iter().any(|prefix| text.starts_with(prefix)) {
        return Sealing::Signed;
    }
    Sealing::Member(Group::of_member(text))
}

impl Group {
    fn new(folder: &str, name: &str) -> Self {
        // The name is a part of a key that exists; only one at the limit of its length could grow beyond it.
        let key = format!("{folder}{name}").parse();
        Self(key.unwrap_or_else(|_| format!("{folder}_long").parse().expect("it is a key")))
    }

    /// The group whose manifest stands at `key`, if that is a manifest.
    #[must_use]
    pub fn of_manifest(key: &Key) -> Option<Self> {
        let text = key.as_str();
        (text.starts_with(IN_MESH) || text.starts_with(BESIDE)).then(|| Self(key.clone()))
    }

    fn of_member(text: &str) -> Self {
        if let Some(prefix) = DIVIDED.iter().find(|prefix| text.starts_with(**prefix)) {
            let rest = text.strip_prefix(prefix).unwrap_or_default();
            let division = sha256(&[rest.as_bytes()])[0] % DIVISIONS;
            let (folder, kind) = divide(prefix);
            return Self::new(folder, &format!("_{kind}-{division:02x}"));
        }
        if let Some(rest) = text.strip_prefix(RESOURCES) {
            let mut parts = rest.split('/');
            let (plural, namespace) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let name = match namespace {
                "_" if plural == Kind::Namespace.plural() => parts.next().unwrap_or("_mesh"),
                "_" => "_mesh",
                namespace => namespace,
            };
            return Self::new(IN_MESH, name);
        }
        let (folder, rest) = divide(text);
        Self::new(folder, &format!("_{}", rest.split('/').next().unwrap_or_default()))
    }

    /// Where its manifest stands.
    #[must_use]
    pub const fn key(&self) -> &Key {
        &self.0
    }

    /// Whether its members are mirrored in memory.
    #[must_use]
    pub fn is_in_mesh(&self) -> bool {
        self.0.as_str().starts_with(IN_MESH)
    }

    /// Its name: that of a namespace, or one that begins with `_`.
    #[must_use]
    pub fn name(&self) -> &str {
        let text = self.0.as_str();
        text.strip_prefix(IN_MESH).or_else(|| text.strip_prefix(BESIDE)).unwrap_or(text)
    }

    /// Whether it is one of several that a kind is divided into.
    #[must_use]
    pub(super) fn is_division(&self) -> bool {
        self.prefixes().iter().any(|prefix| DIVIDED.contains(&prefix.as_str()))
    }

    /// What follows when it does not add up.
    #[must_use]
    pub fn closes(&self) -> Closes {
        match self.name().strip_prefix('_') {
            None => self.name().parse().map_or(Closes::Everything, Closes::Namespace),
            Some("users") => Closes::People,
            Some(_) if self.is_division() => Closes::Nodes,
            Some(_) => Closes::Everything,
        }
    }

    /// Where its members stand; other groups may have members there too.
    #[must_use]
    pub fn prefixes(&self) -> Vec<Prefix> {
        let name = self.name();
        let texts: Vec<String> = match name.strip_prefix('_') {
            None => {
                let kinds = Kind::ALL.into_iter().filter(|kind| kind.is_namespaced());
                let own = kinds.map(|kind| format!("{RESOURCES}{}/{name}/", kind.plural()));
                own.chain([format!("{RESOURCES}{}/_/{name}", Kind::Namespace.plural())]).collect()
            }
            Some("mesh") if self.is_in_mesh() => {
                let kinds = Kind::ALL.into_iter().filter(|kind| !kind.is_namespaced());
                kinds.map(|kind| format!("{RESOURCES}{}/_/", kind.plural())).collect()
            }
            Some(kind) => {
                let folder = if self.is_in_mesh() { MESH } else { "" };
                let divided = kind.rsplit_once('-').map(|(kind, _)| format!("{folder}{kind}/"));
                let divided = divided.filter(|prefix| DIVIDED.contains(&prefix.as_str()));
                vec![divided.unwrap_or_else(|| format!("{folder}{kind}/"))]
            }
        };
        texts.iter().filter_map(|text| text.parse().ok()).collect()
    }

    /// Whether the record of `key` is counted in this group.
    #[must_use]
    pub fn has(&self, key: &Key, leased: bool) -> bool {
        sealing(key, leased) == Sealing::Member(self.clone())
    }
}

impl std::fmt::Display for Group {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name().strip_prefix('_') {
            Some(kind) => write!(formatter, "the records of {kind}"),
            None => write!(formatter, "namespace {}", self.name()),
        }
    }
}

/// Where the manifest of such a key belongs, and what is left of the key there.
fn divide(text: &str) -> (&'static str, &str) {
    let (folder, rest) = match text.strip_prefix(MESH) {
        Some(rest) => (IN_MESH, rest),
        None => (BESIDE, text),
    };
    (folder, rest.trim_end_matches('/'))
}

/// What a member contributes to the hash of its group.
pub type Leaf = Digest;

/// The leaf of what stands at `key` in the store; one that is no envelope fits no manifest.
#[must_use]
pub fn leaf_of(key: &Key, sealed: &bytes::Bytes) -> Leaf {
    envelope::peek(sealed).map_or(NOTHING_BEFORE, |opened| leaf(key, &opened.content))
}

/// The leaf of a record that says `content`.
#[must_use]
pub fn leaf(key: &Key, content: &[u8]) -> Leaf {
    let key = key.as_str().as_bytes();
    let length = u64::try_from(key.len()).unwrap_or(u64::MAX).to_be_bytes();
    sha256(&[b"weft leaf 1\0", &length, key, content])
}

/// What a manifest says: how many members a group has, and the hash of all of them in the order of their keys.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// How many.
    pub count: u64,
    /// In hexadecimal.
    pub set: String,
}

impl Count {
    /// That of `members`.
    #[must_use]
    pub fn of(members: &BTreeMap<Key, Leaf>) -> Self {
        let leaves: Vec<&[u8]> = members.values().map(Leaf::as_slice).collect();
        let set = sha256(&[b"weft set 1\0", &leaves.concat()]);
        let count = u64::try_from(members.len()).unwrap_or(u64::MAX);
        Self { count, set: set.iter().map(|byte| format!("{byte:02x}")).collect() }
    }

    /// Its form in an envelope.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers always serialise")
    }

    /// Reads it.
    #[must_use]
    pub fn decode(content: &[u8]) -> Option<Self> {
        serde_json::from_slice(content).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(text: &str) -> Option<String> {
        match sealing(&text.parse().unwrap(), false) {
            Sealing::Member(group) => Some(group.key().to_string()),
            Sealing::Open | Sealing::Signed | Sealing::Manifest(_) => None,
        }
    }

    #[test]
    fn a_kind_that_nobody_named_here_is_counted_by_the_rule() {
        for (key, manifest) in [
            ("mesh/resources/authorizationpolicies/shop/a", "mesh/_manifests/shop"),
            ("mesh/resources/namespaces/_/shop", "mesh/_manifests/shop"),
            ("mesh/resources/meshes/_/mesh", "mesh/_manifests/_mesh"),
            ("mesh/users/ann", "mesh/_manifests/_users"),
            ("mesh/denied/serial/0a", "mesh/_manifests/_denied"),
            ("bundle/corp.example", "manifests/_bundle"),
            ("unconfirmed/00000000000000000007", "manifests/_unconfirmed"),
            ("tokens/aa", "manifests/_tokens"),
            ("servers/s-1", "manifests/_servers"),
        ] {
            assert_eq!(member(key).as_deref(), Some(manifest), "{key}");
        }
        for key in ["mesh/labels/abc", "mesh/resources/workloads/shop/a", "changes/1", "issued/0a", "audit/s"]
        {
            assert_eq!(sealing(&key.parse().unwrap(), false), Sealing::Signed, "{key}");
        }
        assert_eq!(sealing(&"servers/s-1".parse().unwrap(), true), Sealing::Signed, "it goes with its lease");
        assert_eq!(sealing(&"transfer/unfinished".parse().unwrap(), false), Sealing::Open);
    }

    #[test]
    fn the_members_of_a_group_stand_under_its_prefixes() {
        let shop = "shop".parse().unwrap();
        let resource = |kind: Kind| {
            let namespace = kind.is_namespaced().then(|| Clone::clone(&shop));
            let name = if kind == Kind::Namespace { "shop" } else { "a" }.parse().unwrap();
            layout::resource(&weft_policy::model::Key { kind, namespace, name })
        };
        let others = ["mesh/users/ann", "mesh/nodes/hosta", "mesh/denied/x/y", "renewals/hosta", "tokens/aa"];
        let keys = Kind::ALL.into_iter().map(resource).chain(others.map(|key| key.parse().unwrap()));
        for key in keys {
            let Sealing::Member(group) = sealing(&key, false) else { continue };
            assert!(group.prefixes().iter().any(|prefix| key.is_under(prefix)), "{key} in {group}");
            assert!(group.has(&key, false) && !group.has(&key, true));
            assert_eq!(Group::of_manifest(group.key()), Some(group.clone()));
            assert_eq!(group.is_in_mesh(), group.key().is_under(&layout::mesh()));
        }
    }
}
