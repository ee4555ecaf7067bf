//! The issuance log: every certificate of this authority, written before it leaves the process (ISS-07).
//!
//! Owns the records of the log and of certified keys, and how long both are kept. A key is certified once: whoever
//! presents it for another identity has stolen it, or was sent it by mistake, and a request that comes a second time is a
//! replay (ISS-03), since every renewal makes a new key.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weft_identity::{
    ca::IssuedSvid,
    csr::SigningRequest,
    spiffe::{IdKind, SpiffeId},
    svid::Serial,
};

use crate::{
    layout,
    store::{Compare, Entry, MAX_TXN_OPS, Op, Store, StoreError},
    timestamp::{from_unix_seconds, unix_seconds},
};

/// How long an expired certificate stays in the log: long enough to look into what happened yesterday.
const KEPT_AFTER_EXPIRY: Duration = Duration::from_secs(24 * 3600);

/// One certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Issuance {
    /// Whom it names.
    pub id: SpiffeId,
    /// Its serial number.
    pub serial: Serial,
    /// SHA-256 of its public key.
    pub key: [u8; 32],
    /// When it ends.
    pub not_after: SystemTime,
    /// When it was signed.
    pub at: SystemTime,
    /// Who asked for it: an identity, or `token <id>`.
    pub asked_by: String,
    /// SHA-256 of the root that it leads to; `None` in records of earlier versions.
    pub root: Option<[u8; 32]>,
    /// The serial number of the certificate that it takes the place of, as its holder says.
    pub replaces: Option<Serial>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawIssuance {
    id: String,
    serial: String,
    key: String,
    not_after: u64,
    at: u64,
    asked_by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaces: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawKey {
    id: String,
    not_after: u64,
}

/// What the log says as a whole.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Summary {
    /// How many certificates are in it.
    pub count: u64,
    /// When the newest was signed: no time before it is believed.
    pub newest: Option<SystemTime>,
}

impl Issuance {
    /// The record of a certificate that was just signed.
    #[must_use]
    pub fn new(
        request: &SigningRequest,
        id: &SpiffeId,
        issued: &IssuedSvid,
        at: SystemTime,
        asked_by: String,
    ) -> Self {
        Self {
            id: id.clone(),
            serial: issued.serial.clone(),
            key: request.key_fingerprint(),
            not_after: issued.validity.not_after,
            at,
            asked_by,
            root: Some(issued.root),
            replaces: None,
        }
    }

    /// The same, in the place of an earlier certificate of its holder.
    #[must_use]
    pub fn replacing(mut self, earlier: Option<Serial>) -> Self {
        self.replaces = earlier;
        self
    }

    /// Writes it to the log and claims its key.
    #[must_use]
    pub fn ops(&self) -> Vec<Op> {
        let raw = RawIssuance {
            id: self.id.to_string(),
            serial: self.serial.to_string(),
            key: hex(&self.key),
            not_after: unix_seconds(self.not_after),
            at: unix_seconds(self.at),
            asked_by: self.asked_by.clone(),
            root: self.root.as_ref().map(hex),
            replaces: self.replaces.as_ref().map(ToString::to_string),
        };
        let key = RawKey { id: raw.id.clone(), not_after: raw.not_after };
        let put = |key, value| Op::Put { key, value, lease: None };
        vec![
            put(layout::issued(self.serial.as_bytes()), json(&raw)),
            put(layout::certified_key(&self.key), json(&key)),
        ]
    }
}

/// Whether a public key may be certified for an identity.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeyClaim {
    /// Yes, if this still holds when the certificate is written to the log.
    Free(Compare),
    /// It was certified for the same identity: the request is one that was answered before.
    Again,
    /// It was certified for somebody else.
    Taken,
}

/// Asks whether the key of `request` may be certified for `id`.
///
/// # Errors
///
/// [`StoreError`] when the store cannot be read.
pub async fn claim(
    store: &dyn Store,
    request: &SigningRequest,
    id: &SpiffeId,
) -> Result<KeyClaim, StoreError> {
    let key = layout::certified_key(&request.key_fingerprint());
    let Some(entry) = store.get(&key).await? else { return Ok(KeyClaim::Free(Compare::Absent(key))) };
    let owner = serde_json::from_slice::<RawKey>(&entry.value).map(|raw| raw.id);
    // A record that cannot be read belongs to nobody who could ask.
    let same = owner.is_ok_and(|owner| owner == id.to_string());
    Ok(if same { KeyClaim::Again } else { KeyClaim::Taken })
}

/// Looks through the log.
///
/// # Errors
///
/// [`StoreError`] when the store cannot be read.
pub async fn summary(store: &dyn Store) -> Result<Summary, StoreError> {
    let log = store.list_all(&layout::issuances()).await?;
    let newest = log.entries.iter().filter_map(|entry| from_unix_seconds(decode(entry)?.at)).max();
    Ok(Summary { count: u64::try_from(log.entries.len()).unwrap_or(u64::MAX), newest })
}

/// The serial numbers of `id` that are still valid at `now`, in hexadecimal.
///
/// # Errors
///
/// [`StoreError`] when the store cannot be read.
pub async fn valid_serials(
    store: &dyn Store,
    id: &SpiffeId,
    now: SystemTime,
) -> Result<Vec<String>, StoreError> {
    let (log, id, now) = (store.list_all(&layout::issuances()).await?, id.to_string(), unix_seconds(now));
    let own = log.entries.iter().filter_map(decode).filter(|raw| raw.id == id && raw.not_after > now);
    Ok(own.map(|raw| raw.serial).collect())
}

/// What the log knows of one certificate, or of those of one key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Known {
    /// Whom it names.
    pub id: String,
    /// When it ends, in seconds since 1970.
    pub not_after: u64,
}

/// A certificate that is still valid.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Leaf {
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// When it ends, in seconds since 1970.
    pub not_after: u64,
}

/// The certificate with that serial number, if the log has it.
///
/// # Errors
///
/// [`StoreError`] when the store cannot be read.
pub async fn of_serial(store: &dyn Store, serial: &[u8]) -> Result<Option<Known>, StoreError> {
    let raw = store.get(&layout::issued(serial)).await?.and_then(|entry| decode(&entry));
    Ok(raw.map(|raw| Known { id: raw.id, not_after: raw.not_after }))
}

/// For whom the public key with that SHA-256 was certified, if it was.
///
/// # Errors
///
/// [`StoreError`] when the store cannot be read.
pub async fn of_key(store: &dyn Store, key: &[u8; 32]) -> Result<Option<Known>, StoreError> {
    let entry = store.get(&layout::certified_key(key)).await?;
    let raw = entry.and_then(|entry| serde_json::from_slice::<RawKey>(&entry.value).ok());
    Ok(raw.map(|raw| Known { id: raw.id, not_after: raw.not_after }))
}

/// Every certificate that was issued to `node`, for itself or for its workloads, and is valid at `now`.
///
/// # Errors
///
/// [`StoreError`] when the store cannot be read.
pub async fn issued_to(store: &dyn Store, node: &SpiffeId, now: SystemTime) -> Result<Vec<Leaf>, StoreError> {
    let (log, node, now) = (store.list_all(&layout::issuances()).await?, node.to_string(), unix_seconds(now));
    // Its own first certificate was asked for by a token.
    let its = |raw: &RawIssuance| (raw.asked_by == node || raw.id == node) && raw.not_after > now;
    let leaves = log.entries.iter().filter_map(decode).filter(its);
    Ok(leaves.map(|raw| Leaf { serial: raw.serial, not_after: raw.not_after }).collect())
}

/// Forgets what expired more than a day ago.
///
/// # Errors
///
/// [`StoreError`] when the store cannot be read or written; what was forgotten before stays so.
pub async fn prune(store: &dyn Store, now: SystemTime) -> Result<(), StoreError> {
    let horizon = unix_seconds(now.checked_sub(KEPT_AFTER_EXPIRY).unwrap_or(SystemTime::UNIX_EPOCH));
    let log = store.list_all(&layout::issuances()).await?;
    let keys = store.list_all(&layout::certified_keys()).await?;
    let old_issuances =
        log.entries.iter().filter(|entry| decode(entry).is_some_and(|raw| raw.not_after < horizon));
    let key_is_old = |entry: &&Entry| {
        serde_json::from_slice::<RawKey>(&entry.value).is_ok_and(|raw| raw.not_after < horizon)
    };
    let old: Vec<&Entry> = old_issuances.chain(keys.entries.iter().filter(key_is_old)).collect();
    for part in old.chunks(MAX_TXN_OPS) {
        let unchanged =
            |entry: &&Entry| Compare::Unchanged { key: entry.key.clone(), mod_revision: entry.mod_revision };
        let ops = part.iter().map(|entry| Op::Delete(entry.key.clone())).collect();
        match store.txn(part.iter().map(unchanged).collect(), ops).await {
            // Somebody renewed one of them just now; the next round takes the rest.
            Ok(_) | Err(StoreError::Conflict(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The certificates under `root` that are valid at `now` and in use, as far as the log knows: whose each is. `void` are
/// the serial numbers of banned ones.
///
/// # Errors
///
/// [`StoreError`] when the store cannot be read.
pub async fn in_use_under(
    store: &dyn Store,
    root: &[u8; 32],
    void: &BTreeSet<String>,
    now: SystemTime,
) -> Result<Vec<String>, StoreError> {
    let log = store.list_all(&layout::issuances()).await?;
    let log: Vec<RawIssuance> = log.entries.iter().filter_map(decode).collect();
    Ok(in_use(&log, &hex(root), void, unix_seconds(now)))
}

/// A certificate is in use until its holder says that another took its place. Servers and nodes use their newest alone
/// (see [`crate::renewals`]). An answer that was lost was replaced with the request that repeats it. Records that do not
/// name their root are of every root: better to wait too long than to refuse a workload.
fn in_use(log: &[RawIssuance], root: &str, void: &BTreeSet<String>, now: u64) -> Vec<String> {
    let mut replaced: BTreeMap<&str, Vec<&RawIssuance>> = BTreeMap::new();
    let mut newest: BTreeMap<&str, (u64, &str)> = BTreeMap::new();
    for record in log {
        if let Some(earlier) = &record.replaces {
            replaced.entry(earlier).or_default().push(record);
        }
        let newer = newest.entry(&record.id).or_insert((record.at, &record.serial));
        *newer = (*newer).max((record.at, &record.serial));
    }
    let followed = |record: &RawIssuance, by: &RawIssuance| {
        by.id == record.id && (by.asked_by == record.asked_by || record.asked_by.starts_with("token "))
    };
    let is_over = |record: &RawIssuance| {
        let successors = replaced.get(record.serial.as_str()).into_iter().flatten();
        let siblings = record.replaces.as_ref().and_then(|earlier| replaced.get(earlier.as_str()));
        let mut later = siblings.into_iter().flatten().filter(|other| other.at > record.at);
        let single = is_single(&record.id)
            && newest.get(record.id.as_str()).is_some_and(|newest| newest.0 > record.at);
        single
            || successors.into_iter().any(|by| followed(record, by))
            || later.any(|by| followed(record, by))
    };
    let under = |record: &&RawIssuance| record.root.as_deref().is_none_or(|own| own == root);
    let valid = |record: &&RawIssuance| record.not_after > now && !void.contains(&record.serial);
    log.iter()
        .filter(under)
        .filter(valid)
        .filter(|record| !is_over(record))
        .map(|record| record.id.clone())
        .collect()
}

/// Whether an identity has one certificate at a time.
fn is_single(id: &str) -> bool {
    let kind = id.parse::<SpiffeId>().map(|id| matches!(id.kind(), IdKind::Node(_) | IdKind::Server(_)));
    kind.unwrap_or(false)
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(entry: &Entry) -> Option<RawIssuance> {
    serde_json::from_slice(&entry.value).ok()
}

fn json(raw: &impl Serialize) -> Bytes {
    serde_json::to_vec(raw).expect("texts and numbers always serialise").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "aa";
    const CHARGE: &str = "spiffe://corp.example/ns/shop/sa/charge";
    const NODE: &str = "spiffe://corp.example/node/hosta";

    fn record(id: &str, serial: &str, at: u64, root: Option<&str>, replaces: Option<&str>) -> RawIssuance {
        RawIssuance {
            id: id.to_owned(),
            serial: serial.to_owned(),
            key: String::new(),
            not_after: 1_000,
            at,
            asked_by: NODE.to_owned(),
            root: root.map(str::to_owned),
            replaces: replaces.map(str::to_owned),
        }
    }

    fn left(log: &[RawIssuance], now: u64) -> usize {
        in_use(log, ROOT, &BTreeSet::from(["banned".to_owned()]), now).len()
    }

    #[test]
    fn a_certificate_is_in_use_until_another_takes_its_place_or_it_ends() {
        let mut log = vec![record(CHARGE, "1", 5, Some(ROOT), None)];
        assert_eq!((left(&log, 999), left(&log, 1_000)), (1, 0));
        log.push(record(CHARGE, "2", 6, Some("bb"), None));
        assert_eq!(left(&log, 10), 1, "two workloads may have one identity");
        log.push(record(CHARGE, "3", 7, Some("bb"), Some("1")));
        assert_eq!(left(&log, 10), 0);
        log.push(record(CHARGE, "banned", 8, Some(ROOT), None));
        assert_eq!(left(&log, 10), 0);
        log.push(record(CHARGE, "5", 9, None, None));
        assert_eq!(left(&log, 10), 1, "who does not say its root may be under this one");
    }

    #[test]
    fn a_lost_answer_is_over_when_the_request_is_repeated() {
        let log = [
            record(CHARGE, "1", 5, Some(ROOT), None),
            record(CHARGE, "2", 6, Some(ROOT), Some("1")),
            record(CHARGE, "3", 7, Some("bb"), Some("1")),
        ];
        assert_eq!(left(&log[..2], 10), 1, "the lost one may not be lost");
        assert_eq!(left(&log, 10), 0);
    }

    #[test]
    fn nobody_says_that_the_certificate_of_another_was_replaced() {
        let other = RawIssuance {
            asked_by: "spiffe://corp.example/node/hostb".to_owned(),
            ..record(CHARGE, "2", 6, Some("bb"), Some("1"))
        };
        assert_eq!(left(&[record(CHARGE, "1", 5, Some(ROOT), None), other], 10), 1);
        let foreign = record("spiffe://corp.example/ns/shop/sa/order", "2", 6, Some("bb"), Some("1"));
        assert_eq!(left(&[record(CHARGE, "1", 5, Some(ROOT), None), foreign], 10), 1);
    }

    #[test]
    fn a_node_uses_its_newest_alone() {
        let joined = RawIssuance { asked_by: "token t".to_owned(), ..record(NODE, "1", 5, Some(ROOT), None) };
        assert_eq!(left(&[joined], 10), 1);
        let log = [record(NODE, "1", 5, Some(ROOT), None), record(NODE, "2", 6, Some("bb"), None)];
        assert_eq!(left(&log, 10), 0);
    }
}
