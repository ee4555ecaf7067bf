//! A token as the store keeps it: everything but its secret, of which only the hash is known (it is the key).

use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weft_api::{pb::management::TokenInfo, token::Subject};
use weft_policy::name::{Namespace, NodeName};

use crate::{
    records::{Record, UnreadableRecord},
    roles::Role,
    timestamp::{from_unix_seconds, rfc3339, unix_seconds},
};

/// See the module.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct TokenRecord {
    /// Its public name.
    pub(super) id: String,
    /// Who may use it, and what they get.
    pub(super) purpose: Purpose,
    /// Whether it can still be used.
    pub(super) state: State,
    /// When it ends.
    pub(super) expires: SystemTime,
    /// Who made it.
    pub(super) created_by: String,
    /// When.
    pub(super) created: SystemTime,
}

/// Who may use a token, and what they get.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Purpose {
    /// The agent of a node.
    Agent {
        /// The node.
        node: NodeName,
        /// Its default namespace.
        namespace: Namespace,
    },
    /// A person.
    Person {
        /// Their name.
        name: String,
        /// Their role.
        role: Role,
        /// Where it holds; `None` means everywhere.
        namespace: Option<Namespace>,
    },
    /// A further server of the mesh.
    Server,
}

impl Purpose {
    /// Who may use it, for people.
    pub(super) const fn who(&self) -> &'static str {
        match self {
            Self::Agent { .. } => "an agent",
            Self::Person { .. } => "a person",
            Self::Server => "a server",
        }
    }
}

/// What became of a token.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum State {
    /// It waits.
    Unused,
    /// Somebody joined with it.
    Used,
    /// An admin withdrew it.
    Revoked,
}

impl TokenRecord {
    /// Whether nobody can use it any more at `now`.
    pub(super) fn is_over(&self, now: SystemTime) -> bool {
        self.state != State::Unused || self.expires <= now
    }

    /// Who may use it.
    pub(super) fn subject(&self) -> Subject {
        match &self.purpose {
            Purpose::Agent { node, .. } => Subject::Node(node.to_string()),
            Purpose::Person { name, .. } => Subject::User(name.clone()),
            Purpose::Server => Subject::Server,
        }
    }

    /// The row of a list.
    pub(super) fn info(&self, now: SystemTime) -> TokenInfo {
        let (purpose, subject) = match &self.purpose {
            Purpose::Agent { node, .. } => ("agent", node.to_string()),
            Purpose::Person { name, .. } => ("user", name.clone()),
            Purpose::Server => ("server", String::new()),
        };
        let state = match self.state {
            State::Unused if self.expires <= now => "expired",
            State::Unused => "unused",
            State::Used => "used",
            State::Revoked => "revoked",
        };
        TokenInfo {
            id: self.id.clone(),
            purpose: purpose.to_owned(),
            subject,
            state: state.to_owned(),
            expires: rfc3339(self.expires),
            created_by: self.created_by.clone(),
        }
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawToken {
    id: String,
    purpose: RawPurpose,
    state: State,
    expires: u64,
    created_by: String,
    created: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
enum RawPurpose {
    Agent {
        node: String,
        namespace: String,
    },
    Person {
        name: String,
        role: String,
        #[serde(deserialize_with = "present")]
        namespace: Option<String>,
    },
    Server {},
}

/// An optional value that must be written, be it as `null`: a lost scope never reads as "everywhere".
fn present<'de, D: serde::Deserializer<'de>>(reader: D) -> Result<Option<String>, D::Error> {
    Option::deserialize(reader)
}

impl Record for TokenRecord {
    fn encode(&self) -> Bytes {
        let purpose = match &self.purpose {
            Purpose::Agent { node, namespace } => {
                RawPurpose::Agent { node: node.to_string(), namespace: namespace.to_string() }
            }
            Purpose::Person { name, role, namespace } => RawPurpose::Person {
                name: name.clone(),
                role: role.as_str().to_owned(),
                namespace: namespace.as_ref().map(ToString::to_string),
            },
            Purpose::Server => RawPurpose::Server {},
        };
        let raw = RawToken {
            id: self.id.clone(),
            purpose,
            state: self.state,
            expires: unix_seconds(self.expires),
            created_by: self.created_by.clone(),
            created: unix_seconds(self.created),
        };
        serde_json::to_vec(&raw).expect("texts and numbers always serialise").into()
    }

    fn decode(bytes: &[u8]) -> Result<Self, UnreadableRecord> {
        fn custom(error: &dyn std::fmt::Display) -> UnreadableRecord {
            let error: serde_json::Error = serde::de::Error::custom(error);
            error.into()
        }
        let raw: RawToken = serde_json::from_slice(bytes)?;
        let time = |seconds| from_unix_seconds(seconds).ok_or_else(|| custom(&"not a time"));
        let purpose = match raw.purpose {
            RawPurpose::Agent { node, namespace } => Purpose::Agent {
                node: node.parse().map_err(|error| custom(&error))?,
                namespace: namespace.parse().map_err(|error| custom(&error))?,
            },
            RawPurpose::Person { name, role, namespace } => Purpose::Person {
                name,
                role: Role::person(&role).ok_or_else(|| custom(&"not a role"))?,
                namespace: namespace.map(|name| name.parse()).transpose().map_err(|error| custom(&error))?,
            },
            RawPurpose::Server {} => Purpose::Server,
        };
        Ok(Self {
            id: raw.id,
            purpose,
            state: raw.state,
            expires: time(raw.expires)?,
            created_by: raw.created_by,
            created: time(raw.created)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn token(purpose: Purpose) -> TokenRecord {
        TokenRecord {
            id: "t-1".to_owned(),
            purpose,
            state: State::Unused,
            expires: at(900),
            created_by: "uid 1000".to_owned(),
            created: at(0),
        }
    }

    #[test]
    fn a_token_comes_back_as_it_was_written() {
        let agent = Purpose::Agent { node: "hostb".parse().unwrap(), namespace: "shop".parse().unwrap() };
        let person = Purpose::Person { name: "ada".to_owned(), role: Role::Editor, namespace: None };
        for purpose in [agent, person, Purpose::Server] {
            let token = token(purpose);
            assert_eq!(TokenRecord::decode(&token.encode()).unwrap(), token);
        }
    }

    #[test]
    fn a_persons_token_that_lost_its_scope_is_not_read() {
        let person = Purpose::Person { name: "ada".to_owned(), role: Role::Editor, namespace: None };
        let text = String::from_utf8(token(person).encode().to_vec()).unwrap();
        assert!(TokenRecord::decode(text.replace(",\"namespace\":null", "").as_bytes()).is_err());
        assert!(TokenRecord::decode(text.replace("editor", "node").as_bytes()).is_err());
    }

    #[test]
    fn a_token_is_over_at_its_end_and_when_it_was_used() {
        let agent = Purpose::Agent { node: "hostb".parse().unwrap(), namespace: "shop".parse().unwrap() };
        let mut token = token(agent);
        assert!(!token.is_over(at(899)) && token.is_over(at(900)));
        assert_eq!((token.info(at(1)).state, token.info(at(900)).state), ("unused".into(), "expired".into()));
        token.state = State::Revoked;
        assert!(token.is_over(at(1)));
    }
}
