//! The records of the denylist in the store.

use aws_lc_rs::digest;
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::Error as _};
use weft_identity::denied::{Denied, Subject};
use weft_policy::name::NodeName;

use crate::records::{Record, UnreadableRecord};

/// The most certificates of one record: 4,096 serial numbers of 20 octets are 180 KiB, a value has at most 256 KiB.
pub const MAX_SERIALS: usize = 4_096;

/// What a record is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum What {
    /// An identity, a certificate or a key is revoked.
    Subject(Subject),
    /// A node is banned: it gets nothing any more. Has no end.
    Node(NodeName),
    /// Certificates that were issued to a banned node: what its peers know it by.
    Certificates {
        /// The node.
        node: NodeName,
        /// Which part of them, from 0.
        part: u32,
        /// Their serial numbers.
        serials: Vec<Subject>,
    },
}

/// One record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeniedRecord {
    /// What it is about.
    pub what: What,
    /// Who wrote it.
    pub author: String,
    /// Why; empty when nobody said.
    pub reason: String,
    /// When, in seconds since 1970.
    pub at: u64,
    /// When it ends; `None` is never.
    pub until: Option<u64>,
}

impl What {
    /// Its text: that of the subject, or `node:<name>`.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Subject(subject) => subject.to_string(),
            Self::Node(node) => format!("{NODE}{node}"),
            Self::Certificates { node, part, .. } => format!("{CERTIFICATES}{node}/{part}"),
        }
    }

    /// What its key ends in: texts may be longer than a key, and hold a `/`.
    #[must_use]
    pub fn id(&self) -> String {
        id_of(&self.text())
    }
}

/// What stands before the name of a banned node.
const NODE: &str = "node:";
const CERTIFICATES: &str = "certificates:";

fn id_of(text: &str) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    // 128 bits: nobody can make two texts of one.
    digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

impl DeniedRecord {
    /// The entries that agents are told.
    pub fn entries(&self) -> impl Iterator<Item = Denied> + '_ {
        let until = self.until.unwrap_or(u64::MAX);
        let (subjects, node) = match &self.what {
            What::Subject(subject) => (std::slice::from_ref(subject), None),
            What::Node(_) => (&[][..], None),
            What::Certificates { node, serials, .. } => (&serials[..], Some(node.to_string())),
        };
        subjects.iter().map(move |subject| Denied { subject: subject.clone(), until, node: node.clone() })
    }

    /// Whether it is over at `now` (seconds since 1970).
    #[must_use]
    pub fn is_over(&self, now: u64) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// Why and by whom, as whoever is refused is told.
    #[must_use]
    pub fn because(&self) -> String {
        let reason = if self.reason.is_empty() { "no reason was given" } else { &self.reason };
        format!("{reason} (by {})", self.author)
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    subject: String,
    serials: Vec<String>,
    author: String,
    reason: String,
    at: u64,
    #[serde(deserialize_with = "Option::deserialize")]
    until: Option<u64>,
}

impl Record for DeniedRecord {
    fn encode(&self) -> Bytes {
        let serials = match &self.what {
            What::Certificates { serials, .. } => serials.iter().map(ToString::to_string).collect(),
            What::Subject(_) | What::Node(_) => Vec::new(),
        };
        let raw = Raw {
            subject: self.what.text(),
            serials,
            author: self.author.clone(),
            reason: self.reason.clone(),
            at: self.at,
            until: self.until,
        };
        serde_json::to_vec(&raw).expect("texts and numbers always serialise").into()
    }

    fn decode(bytes: &[u8]) -> Result<Self, UnreadableRecord> {
        let raw: Raw = serde_json::from_slice(bytes)?;
        let what = what(&raw).map_err(serde_json::Error::custom)?;
        Ok(Self { what, author: raw.author, reason: raw.reason, at: raw.at, until: raw.until })
    }
}

fn what(raw: &Raw) -> Result<What, String> {
    let name = |text: &str| text.parse::<NodeName>().map_err(|error| error.to_string());
    if let Some(rest) = raw.subject.strip_prefix(CERTIFICATES) {
        let (node, part) = rest.split_once('/').ok_or("certificates of no node")?;
        let serials: Result<Vec<Subject>, _> = raw.serials.iter().map(|text| text.parse()).collect();
        let serials = serials.map_err(|error| format!("{error}"))?;
        let part = part.parse().map_err(|_| "a part is a number")?;
        return Ok(What::Certificates { node: name(node)?, part, serials });
    }
    if !raw.serials.is_empty() {
        return Err("serial numbers where there can be none".to_owned());
    }
    if let Some(node) = raw.subject.strip_prefix(NODE) {
        return Ok(What::Node(name(node)?));
    }
    raw.subject.parse().map(What::Subject).map_err(|error| format!("{error}"))
}

/// Reads what a person names: the text of [`What::text`].
///
/// # Errors
///
/// Why it names nothing.
pub fn parse(text: &str) -> Result<What, String> {
    if let Some(node) = text.strip_prefix(NODE) {
        return node.parse().map(What::Node).map_err(|error| format!("{error}"));
    }
    text.parse().map(What::Subject).map_err(|error| format!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<DeniedRecord> {
        let serials = ["serial:0a", "serial:0b01"].map(|text| text.parse().unwrap()).to_vec();
        let whats = [
            What::Node("hostb".parse().unwrap()),
            What::Subject("spiffe://corp.example/ns/shop/sa/order".parse().unwrap()),
            What::Subject("serial:0a@0b".parse().unwrap()),
            What::Certificates { node: "hostb".parse().unwrap(), part: 3, serials },
        ];
        let record = |what| DeniedRecord {
            what,
            author: "uid 0".to_owned(),
            reason: "lost".to_owned(),
            at: 7,
            until: Some(9),
        };
        whats.map(record).to_vec()
    }

    #[test]
    fn every_record_comes_back_and_one_that_lost_a_field_is_not_read() {
        for record in records() {
            assert_eq!(DeniedRecord::decode(&record.encode()).unwrap(), record);
            let whole: serde_json::Map<String, serde_json::Value> =
                serde_json::from_slice(&record.encode()).unwrap();
            for lost in whole.keys() {
                let mut part = whole.clone();
                part.remove(lost);
                assert!(DeniedRecord::decode(&serde_json::to_vec(&part).unwrap()).is_err(), "without {lost}");
            }
        }
    }

    #[test]
    fn a_ban_names_the_certificates_of_its_node_and_each_thing_has_a_key_of_its_own() {
        let records = records();
        let entries: Vec<_> = records[3].entries().collect();
        assert_eq!(entries.len(), 2);
        assert!(entries.iter().all(|entry| entry.node.as_deref() == Some("hostb") && entry.until == 9));
        assert_eq!(records[0].entries().count(), 0, "a node is known by its certificates");
        let mut ids: Vec<_> = records.iter().map(|record| record.what.id()).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), records.len());
        assert!(ids.iter().all(|id| id.len() == 32));
    }

    #[test]
    fn a_full_record_fits_into_a_value() {
        let serial: Subject = format!("serial:{}", "7f".repeat(20)).parse().unwrap();
        let what = What::Certificates {
            node: "n".repeat(63).parse().unwrap(),
            part: 0,
            serials: vec![serial; MAX_SERIALS],
        };
        let reason = "\u{1}".repeat(512);
        let record = DeniedRecord { what, author: "a".repeat(2_048), reason, at: 1, until: Some(u64::MAX) };
        assert!(record.encode().len() <= crate::store::MAX_VALUE_BYTES, "{}", record.encode().len());
    }
}
