//! What the registry keeps beside objects: agents, people, registrations.
//!
//! Each is JSON in which every field is present; one that lacks a field or has an unknown one is not read (CFG-03), and
//! what cannot be read gives nothing: no role, no endpoint, no identity.

use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use weft_policy::{
    model::HostPort,
    name::{EndpointLabel, Namespace, NodeName},
};

use crate::{
    roles::Role,
    timestamp::{from_unix_seconds, unix_seconds},
};

/// Why bytes of the store are not a record.
#[derive(Debug, thiserror::Error)]
#[error("the record cannot be read")]
pub struct UnreadableRecord(#[from] serde_json::Error);

/// What is known of an agent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeRecord {
    /// The namespace of what it starts without naming one: its token's.
    pub namespace: Namespace,
    /// Where it takes tunnels, in order of preference.
    pub advertise: Vec<HostPort>,
    /// Its newest boot number; an agent with an older one is refused.
    pub boot: u64,
    /// The version it runs, empty when it never connected.
    pub version: String,
    /// The serial number of its newest SVID, in hexadecimal: only its holder may renew (ISS-04). `None` before the join.
    pub serial: Option<String>,
    /// Serial numbers of its SVIDs that are refused, in hexadecimal.
    pub banned: Vec<String>,
}

/// Which role a person has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UserRecord {
    /// Viewer, editor or admin.
    pub role: Role,
    /// Where it holds; `None` means everywhere.
    pub namespaces: Option<Vec<Namespace>>,
}

/// Who registered a workload.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RegistrationRecord {
    /// The agent.
    pub node: NodeName,
    /// The agent's boot number at the newest registration.
    pub boot: u64,
    /// The workload's label, whose key is deleted with this record.
    pub label: EndpointLabel,
}

/// A server that was admitted beside the first one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerRecord {
    /// SHA-256 of its first root, in hexadecimal.
    pub root: String,
    /// The Ed25519 key that signs its records, in hexadecimal.
    pub record_key: String,
    /// The server that let it in.
    pub admitted_by: String,
    /// With which token.
    pub token: String,
    /// When.
    pub admitted: SystemTime,
    /// Before that it has others sign: agents that were away must have come back for its root.
    pub signs_from: SystemTime,
    /// The sequence of the first trust bundle with its root, which connected agents must have acknowledged as well.
    pub bundle: u64,
}

/// A record of the store.
pub trait Record: Sized {
    /// Its form on disk.
    fn encode(&self) -> Bytes;

    /// Reads it.
    ///
    /// # Errors
    ///
    /// [`UnreadableRecord`] when a field is missing, unknown or not what it should be.
    fn decode(bytes: &[u8]) -> Result<Self, UnreadableRecord>;
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    namespace: String,
    advertise: Vec<String>,
    boot: u64,
    version: String,
    #[serde(deserialize_with = "present")]
    serial: Option<String>,
    banned: Vec<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawUser {
    role: String,
    #[serde(deserialize_with = "present")]
    namespaces: Option<Vec<String>>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawRegistration {
    node: String,
    boot: u64,
    label: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawServer {
    root: String,
    record_key: String,
    admitted_by: String,
    token: String,
    admitted: u64,
    signs_from: u64,
    bundle: u64,
}

/// Reads an optional value that must be written, be it as `null`: one that was lost never reads as "none" or "any".
fn present<'de, D, T>(reader: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(reader)
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, UnreadableRecord> {
    Ok(serde_json::from_slice(bytes)?)
}

fn write(raw: &impl Serialize) -> Bytes {
    serde_json::to_vec(raw).expect("these records are texts, numbers and lists, which JSON can hold").into()
}

fn parsed<T: std::str::FromStr>(text: &str) -> Result<T, UnreadableRecord>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error| UnreadableRecord(serde::de::Error::custom(error)))
}

fn all<T: std::str::FromStr>(texts: &[String]) -> Result<Vec<T>, UnreadableRecord>
where
    T::Err: std::fmt::Display,
{
    texts.iter().map(|text| parsed(text)).collect()
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

impl Record for NodeRecord {
    fn encode(&self) -> Bytes {
        write(&RawNode {
            namespace: self.namespace.to_string(),
            advertise: texts(&self.advertise),
            boot: self.boot,
            version: self.version.clone(),
            serial: self.serial.clone(),
            banned: self.banned.clone(),
        })
    }

    fn decode(bytes: &[u8]) -> Result<Self, UnreadableRecord> {
        let raw: RawNode = read(bytes)?;
        Ok(Self {
            namespace: parsed(&raw.namespace)?,
            advertise: all(&raw.advertise)?,
            boot: raw.boot,
            version: raw.version,
            serial: raw.serial,
            banned: raw.banned,
        })
    }
}

impl Record for UserRecord {
    fn encode(&self) -> Bytes {
        let role = match self.role {
            Role::Admin => "admin",
            Role::Editor => "editor",
            Role::Viewer => "viewer",
            Role::Anonymous | Role::Node | Role::Server => "none",
        };
        let namespaces = self.namespaces.as_deref().map(texts);
        write(&RawUser { role: role.to_owned(), namespaces })
    }

    fn decode(bytes: &[u8]) -> Result<Self, UnreadableRecord> {
        let raw: RawUser = read(bytes)?;
        let role = match raw.role.as_str() {
            "admin" => Role::Admin,
            "editor" => Role::Editor,
            "viewer" => Role::Viewer,
            "none" => Role::Anonymous,
            _ => return Err(UnreadableRecord(serde::de::Error::custom("unknown role"))),
        };
        let namespaces = raw.namespaces.map(|names| all(&names)).transpose()?;
        Ok(Self { role, namespaces })
    }
}

impl Record for RegistrationRecord {
    fn encode(&self) -> Bytes {
        let (node, label) = (self.node.to_string(), self.label.to_string());
        write(&RawRegistration { node, boot: self.boot, label })
    }

    fn decode(bytes: &[u8]) -> Result<Self, UnreadableRecord> {
        let raw: RawRegistration = read(bytes)?;
        Ok(Self { node: parsed(&raw.node)?, boot: raw.boot, label: parsed(&raw.label)? })
    }
}

impl Record for ServerRecord {
    fn encode(&self) -> Bytes {
        write(&RawServer {
            root: self.root.clone(),
            record_key: self.record_key.clone(),
            admitted_by: self.admitted_by.clone(),
            token: self.token.clone(),
            admitted: unix_seconds(self.admitted),
            signs_from: unix_seconds(self.signs_from),
            bundle: self.bundle,
        })
    }

    fn decode(bytes: &[u8]) -> Result<Self, UnreadableRecord> {
        let raw: RawServer = read(bytes)?;
        let time = |seconds| {
            let none = || UnreadableRecord(serde::de::Error::custom("not a time"));
            from_unix_seconds(seconds).ok_or_else(none)
        };
        Ok(Self {
            root: raw.root,
            record_key: raw.record_key,
            admitted_by: raw.admitted_by,
            token: raw.token,
            admitted: time(raw.admitted)?,
            signs_from: time(raw.signs_from)?,
            bundle: raw.bundle,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeRecord {
        NodeRecord {
            namespace: "shop".parse().unwrap(),
            advertise: vec!["[2001:db8::1]:7443".parse().unwrap(), "hostb.example:7443".parse().unwrap()],
            boot: 7,
            version: "0.1.0".to_owned(),
            serial: None,
            banned: vec!["0a".to_owned()],
        }
    }

    fn user() -> UserRecord {
        UserRecord { role: Role::Editor, namespaces: Some(vec!["shop".parse().unwrap()]) }
    }

    fn registration() -> RegistrationRecord {
        let (node, label) = ("hostb".parse().unwrap(), "abc".parse().unwrap());
        RegistrationRecord { node, boot: 7, label }
    }

    fn server() -> ServerRecord {
        let at = |seconds| from_unix_seconds(seconds).unwrap();
        ServerRecord {
            root: "0a".to_owned(),
            record_key: "0b".repeat(32),
            admitted_by: "s-1".to_owned(),
            token: "t-1".to_owned(),
            admitted: at(1_800_000_000),
            signs_from: at(1_800_086_400),
            bundle: 7,
        }
    }

    #[test]
    fn every_record_comes_back_as_it_was_written() {
        assert_eq!(NodeRecord::decode(&node().encode()).unwrap(), node());
        assert_eq!(UserRecord::decode(&user().encode()).unwrap(), user());
        assert_eq!(RegistrationRecord::decode(&registration().encode()).unwrap(), registration());
        assert_eq!(ServerRecord::decode(&server().encode()).unwrap(), server());
    }

    #[test]
    fn a_record_that_lost_a_field_or_has_one_too_many_is_not_read() {
        fn check<R: Record + std::fmt::Debug>(record: &R) {
            let whole: serde_json::Map<String, serde_json::Value> =
                serde_json::from_slice(&record.encode()).unwrap();
            for lost in whole.keys() {
                let mut part = whole.clone();
                part.remove(lost);
                assert!(R::decode(&serde_json::to_vec(&part).unwrap()).is_err(), "without {lost}");
            }
            let mut more = whole;
            more.insert("newer".to_owned(), true.into());
            assert!(R::decode(&serde_json::to_vec(&more).unwrap()).is_err());
        }
        check(&node());
        check(&user());
        check(&registration());
        check(&server());
    }

    #[test]
    fn a_role_that_is_not_known_is_no_role() {
        assert!(UserRecord::decode(br#"{"role":"root","namespaces":null}"#).is_err());
        assert!(UserRecord::decode(br#"{"role":"admin","namespaces":["a b"]}"#).is_err());
    }
}
