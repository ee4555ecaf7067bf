//! The chain of an agent's own certificates: each renewal presents the newest one (ISS-04).
//!
//! Two copies of one state directory cannot both go on: when one has renewed and used what it got, the other's
//! certificate is no longer the newest, and good for nothing that an agent asks of the issuer or of discovery. The answer
//! to a renewal can be lost, so the one before is good for one more try, until the new one has been presented.
//!
//! ```text
//! confirmed ──renewal──▶ confirmed + pending ──pending is presented──▶ confirmed (the former pending)
//!                              └──confirmed is presented again──▶ the pending one is banned, another is pending
//! ```

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tonic::Code;
use tracing::warn;
use weft_identity::{ca::IssuedSvid, svid::Serial};
use weft_policy::{code, name::NodeName};

use crate::{
    alarms::Alarm,
    core::Core,
    issuer::Beside,
    layout,
    records::{NodeRecord, Record},
    refusal::{Refusal, catalogued},
    roles::Caller,
    store::{Compare, Entry, Key, Op, StoreError},
};

/// The most banned serial numbers of one node. An agent that loses that many answers within the life of a certificate
/// is broken; the oldest, which expire first, are forgotten.
const MAX_BANNED: usize = 256;
/// How often a chain is read again because it changed meanwhile: an agent renews one certificate at a time.
const MAX_TRIES: usize = 4;

/// Serial numbers of an agent's own certificates, in hexadecimal.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    /// The newest that was presented.
    pub confirmed: String,
    /// The one issued after it, which may have been lost on the way.
    pub pending: Option<String>,
}

/// A renewal that is allowed: what it was checked against, and what changes with the new certificate.
#[derive(Clone, Debug)]
pub struct Renewal {
    node: NodeName,
    record: NodeRecord,
    confirmed: String,
    compares: Vec<Compare>,
}

/// Whether the agent of `node` that presents `caller`'s certificate may renew it.
///
/// # Errors
///
/// A refusal when the certificate is not the newest, is banned, or the node is not known.
pub async fn check(core: &Core, caller: &Caller, node: &NodeName) -> Result<Renewal, Refusal> {
    let Some(presented) = presented(caller) else {
        return Err(Refusal::not_permitted("a certificate is renewed on a connection that proves it"));
    };
    let node_key = layout::node(node);
    let Some(node_entry) = core.store.get(&node_key).await? else { return Err(banned(node)) };
    let mut record = NodeRecord::decode(&node_entry.value).map_err(|_| unreadable(&node_key))?;
    if record.banned.contains(&presented) {
        return Err(banned(node));
    }
    let Some((chain_entry, chain)) = chain(core, node, &presented).await? else { return Err(banned(node)) };
    if chain.confirmed == presented {
        // What was pending is lost, or in the hands of a copy: it is not good any more.
        record.banned.extend(chain.pending);
        record.banned.drain(..record.banned.len().saturating_sub(MAX_BANNED));
    }
    let compares = [node_entry, chain_entry].into_iter().map(unchanged).collect();
    Ok(Renewal { node: node.clone(), record, confirmed: presented, compares })
}

/// Notes that the agent of `node` came with `caller`'s certificate: from its first use on the newest one is confirmed,
/// so that a copy which still has the one before is found out with its next request.
///
/// A node without a chain, which none that joined is, has nothing to be compared with.
///
/// # Errors
///
/// A refusal when the certificate is older than one that was presented since.
pub async fn seen(core: &Core, caller: &Caller, node: &NodeName) -> Result<(), Refusal> {
    let Some(presented) = presented(caller) else { return Ok(()) };
    for _ in 0..MAX_TRIES {
        let Some((entry, chain)) = chain(core, node, &presented).await? else { return Ok(()) };
        if chain.confirmed == presented {
            return Ok(());
        }
        let confirmed = Chain { confirmed: presented.clone(), pending: None };
        match core.store.txn(vec![unchanged(entry)], vec![start(node, &confirmed)]).await {
            Ok(_) => return Ok(()),
            // It renewed at the same time; what it presented may be older by now.
            Err(StoreError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(changing(node))
}

/// The chain of `node`, in which `presented` has its place.
///
/// Another server may have renewed the certificate a moment ago, and what this one reads is what has come to it so far. So
/// before a certificate is taken for a copy's, the store is asked whether that is all: or the newest of all, used at once
/// at another server, would be refused and the alarm raised.
async fn chain(core: &Core, node: &NodeName, presented: &str) -> Result<Option<(Entry, Chain)>, Refusal> {
    let key = layout::renewals(node);
    for _ in 0..MAX_TRIES {
        let Some(entry) = core.store.get(&key).await? else { return Ok(None) };
        let chain = decode(&entry, &key)?;
        if chain.has(presented) {
            return Ok(Some((entry, chain)));
        }
        match core.store.txn(vec![unchanged(entry)], Vec::new()).await {
            Ok(_) => return Err(older(core, node, presented)),
            Err(StoreError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(changing(node))
}

fn changing(node: &NodeName) -> Refusal {
    let what = format!("the renewals of node {node} change all the time");
    Refusal::new(Code::Aborted, catalogued(code::WRITE_CONFLICT, what))
}

fn presented(caller: &Caller) -> Option<String> {
    caller.peer.as_ref().map(|peer| peer.serial.to_string())
}

fn banned(node: &NodeName) -> Refusal {
    let what = format!("node {node} may not renew this certificate; it must join again");
    Refusal::denied(code::IDENTITY_BANNED, what)
}

fn older(core: &Core, node: &NodeName, presented: &str) -> Refusal {
    if let Some(untold) = core.alarms.raise(Alarm::OlderCopy) {
        warn!(target: "audit", %node, %presented, untold, "alarm: an older certificate comes back; the agent's state may have been copied");
    }
    let what = format!("node {node} has replaced the certificate {presented} since");
    Refusal::denied(code::OLDER_COPY, what)
}

impl Chain {
    /// Whether it is the newest that was presented, or the one that was issued after it.
    fn has(&self, serial: &str) -> bool {
        self.confirmed == serial || self.pending.as_deref() == Some(serial)
    }
}

impl Renewal {
    /// What changes with the new certificate.
    #[must_use]
    pub fn with(mut self, issued: &IssuedSvid) -> Beside {
        let serial = issued.serial.to_string();
        self.record.serial = Some(serial.clone());
        let chain = Chain { confirmed: self.confirmed, pending: Some(serial) };
        Beside {
            compares: self.compares,
            ops: vec![put(layout::node(&self.node), self.record.encode()), start(&self.node, &chain)],
        }
    }
}

/// Writes a chain.
#[must_use]
pub fn start(node: &NodeName, chain: &Chain) -> Op {
    put(layout::renewals(node), serde_json::to_vec(chain).expect("texts always serialise").into())
}

/// The chain of an agent that has just joined.
#[must_use]
pub fn first(serial: &Serial) -> Chain {
    Chain { confirmed: serial.to_string(), pending: None }
}

fn put(key: Key, value: Bytes) -> Op {
    Op::Put { key, value, lease: None }
}

fn unchanged(entry: Entry) -> Compare {
    Compare::Unchanged { key: entry.key, mod_revision: entry.mod_revision }
}

fn decode(entry: &Entry, key: &Key) -> Result<Chain, Refusal> {
    serde_json::from_slice(&entry.value).map_err(|_| unreadable(key))
}

fn unreadable(key: &Key) -> Refusal {
    Refusal::new(
        Code::DataLoss,
        catalogued(code::UNREADABLE_RECORD, format!("the record {key} cannot be read")),
    )
}
