//! The issuance log: every certificate of this authority, written before it leaves the process (ISS-07).
//!
//! Owns the records of the log and of certified keys, and how long both are kept. A key is certified once: whoever
//! presents it for another identity has stolen it, or was sent it by mistake, and a request that comes a second time is a
//! replay (ISS-03), since every renewal makes a new key.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weft_identity::{ca::IssuedSvid, csr::SigningRequest, spiffe::SpiffeId, svid::Serial};

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
        }
    }

    /// Writes it to the log and claims its key.
    #[must_use]
    pub fn ops(&self) -> Vec<Op> {
        let raw = RawIssuance {
            id: self.id.to_string(),
            serial: self.serial.to_string(),
            key: self.key.iter().map(|byte| format!("{byte:02x}")).collect(),
            not_after: unix_seconds(self.not_after),
            at: unix_seconds(self.at),
            asked_by: self.asked_by.clone(),
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

fn decode(entry: &Entry) -> Option<RawIssuance> {
    serde_json::from_slice(&entry.value).ok()
}

fn json(raw: &impl Serialize) -> Bytes {
    serde_json::to_vec(raw).expect("texts and numbers always serialise").into()
}
