//! The denylist: who is refused at once, everywhere, though the certificate is good (security.md 3.7, R2).
//!
//! ```text
//! weft … revoke, ban ──▶ record under mesh/denied ──▶ world ──▶ view of every agent ──▶ its handshakes and tunnels
//!                                   └──▶ the gate of this server, the issuer, registrations
//! ```
//!
//! An agent cannot see from a certificate which node asked for it. So a ban is written down together with the serial
//! numbers of all that the issuance log says was issued to the node and is valid: peers know those. What is issued at the
//! same moment is either seen by the ban or refused by it, since each issuance compares the ban's key.
//!
//! A record ends by itself once nothing that it is about can be valid; a ban stays until it is lifted.

mod keep;
mod record;

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use tonic::Code;
use tracing::info;
use weft_api::pb::management::{
    DeniedEntry, DenyRequest, DenyResponse, ListDeniedRequest, ListDeniedResponse, UndenyRequest,
    UndenyResponse,
};
use weft_identity::{
    ca::LONGEST_LEAF,
    denied::Subject,
    spiffe::{IdKind, SpiffeId},
};
use weft_policy::{code, name::NodeName};

pub use self::{
    keep::run as keep,
    record::{DeniedRecord, MAX_SERIALS, What, parse},
};
use crate::{
    catalog::Catalog,
    core::Core,
    issuance, layout,
    records::Record,
    refusal::{Refusal, catalogued},
    roles::Caller,
    store::{Compare, Entry, Op, Revision, StoreError},
    timestamp::{from_unix_seconds, rfc3339, unix_seconds},
    world::World,
};

/// The most entries (security.md 9.3): every agent holds all of them, some 12 MiB.
pub const MAX_ENTRIES: usize = 100_000;
/// The longest reason.
pub const MAX_REASON_CHARS: usize = 512;
/// The most entries of one page of a list.
const MAX_PAGE: usize = 500;
/// How often a change is tried again because somebody else changed the same.
const MAX_TRIES: usize = 8;

/// Puts `request`'s subject on the list.
///
/// # Errors
///
/// A refusal when it names nothing, or this server itself, or the list is full.
pub async fn deny(core: &Core, caller: &Caller, request: &DenyRequest) -> Result<DenyResponse, Refusal> {
    let what = parse(&request.subject).map_err(|why| invalid(&request.subject, &why))?;
    check_reason(&request.reason)?;
    let now = core.clock.now();
    let until = check(core, &what, now).await?;
    let already = core.world.catalog().denied().contains_key(&what.id());
    if !already && core.world.current().denied().len() >= MAX_ENTRIES {
        return Err(full());
    }
    let record = DeniedRecord {
        author: caller.to_string(),
        reason: request.reason.clone(),
        at: unix_seconds(now),
        until,
        what,
    };
    let revision = match &record.what {
        What::Node(node) => ban(core, node, &record, now).await?,
        What::Subject(_) | What::Certificates { .. } => commit(core, Vec::new(), vec![put(&record)]).await?,
    };
    let (who, subject, reason) = (&record.author, record.what.text(), &record.reason);
    info!(target: "audit", who, subject, ?reason, %revision, "denied");
    let outcome = if already { "configured" } else { "created" };
    Ok(DenyResponse { entry: Some(told(core, &record)), revision: revision.0, outcome: outcome.to_owned() })
}

/// Takes a subject off the list.
///
/// # Errors
///
/// A refusal when it is not on it.
pub async fn undeny(
    core: &Core,
    caller: &Caller,
    request: &UndenyRequest,
) -> Result<UndenyResponse, Refusal> {
    let what = parse(&request.subject).map_err(|why| invalid(&request.subject, &why))?;
    check_reason(&request.reason)?;
    let catalog = core.world.catalog();
    let mut found = with_certificates(&catalog, &what);
    found.extend(catalog.denied().contains_key(&what.id()).then(|| what.id()));
    if found.is_empty() {
        let fault = catalogued(code::NOT_DENIED, format!("{} is not denied", what.text()));
        return Err(Refusal::new(Code::NotFound, fault));
    }
    let ops = found.iter().map(|id| Op::Delete(layout::denied(id))).collect();
    let revision = commit(core, Vec::new(), ops).await?;
    let (who, subject, reason) = (caller.to_string(), what.text(), &request.reason);
    info!(target: "audit", who, subject, ?reason, %revision, "denied no more");
    Ok(UndenyResponse { revision: revision.0 })
}

/// What is on the list, in the order of the keys.
///
/// # Errors
///
/// A refusal when the page is not one of this list.
pub fn list(core: &Core, request: &ListDeniedRequest) -> ListDeniedResponse {
    let size = match usize::try_from(request.page_size) {
        Ok(0) | Err(_) => MAX_PAGE,
        Ok(size) => size.min(MAX_PAGE),
    };
    let catalog = core.world.catalog();
    let mut after = catalog
        .denied()
        .range::<String, _>((
            std::ops::Bound::Excluded(request.page_token.clone()),
            std::ops::Bound::Unbounded,
        ))
        .filter(|(_, kept)| !matches!(kept.record.what, What::Certificates { .. }));
    let page: Vec<_> = after.by_ref().take(size).collect();
    let more = after.next().is_some();
    let next_page_token = page.last().filter(|_| more).map(|(id, _)| (*id).clone()).unwrap_or_default();
    let entries = page.iter().map(|(_, kept)| told(core, &kept.record)).collect();
    ListDeniedResponse { entries, next_page_token }
}

fn told(core: &Core, record: &DeniedRecord) -> DeniedEntry {
    let catalog = core.world.catalog();
    let keys = with_certificates(&catalog, &record.what);
    let certificates = keys.iter().filter_map(|id| match &catalog.denied().get(id)?.record.what {
        What::Certificates { serials, .. } => u32::try_from(serials.len()).ok(),
        What::Subject(_) | What::Node(_) => None,
    });
    let time = |seconds| from_unix_seconds(seconds).map(rfc3339).unwrap_or_default();
    DeniedEntry {
        subject: record.what.text(),
        author: record.author.clone(),
        reason: record.reason.clone(),
        at: time(record.at),
        until: record.until.map(time).unwrap_or_default(),
        certificates: certificates.sum(),
    }
}

/// The keys of the records that name the certificates of a node.
fn with_certificates(catalog: &Catalog, what: &What) -> Vec<String> {
    let What::Node(banned) = what else { return Vec::new() };
    let of_node = |what: &What| matches!(what, What::Certificates { node, .. } if node == banned);
    let all = catalog.denied().iter().filter(|(_, kept)| of_node(&kept.record.what));
    all.map(|(id, _)| id.clone()).collect()
}

/// Checks that the subject may be denied here, and says when the entry ends.
async fn check(core: &Core, what: &What, now: SystemTime) -> Result<Option<u64>, Refusal> {
    // Whatever is valid now was signed before now, and nothing is signed for what is denied.
    let longest = unix_seconds(now + LONGEST_LEAF);
    let issued = match what {
        What::Node(_) | What::Certificates { .. } => return Ok(None),
        What::Subject(Subject::Identity(id)) => {
            if *id.trust_domain() != core.trust_domain {
                return Err(Refusal::denied(
                    code::FOREIGN_IDENTITY,
                    format!("{id} is of another trust domain"),
                ));
            }
            Some(issuance::Known { id: id.to_string(), not_after: longest })
        }
        What::Subject(Subject::Serial { serial, .. }) => issuance::of_serial(&*core.store, serial).await?,
        What::Subject(Subject::Key(key)) => issuance::of_key(&*core.store, key).await?,
    };
    let Some(issued) = issued else { return Ok(Some(longest)) };
    let own = SpiffeId::server(&core.trust_domain, &core.instance).map(|id| id.to_string());
    if own.is_ok_and(|own| own == issued.id) {
        let what = format!("{} is of this server: no agent could be told otherwise any more", issued.id);
        return Err(Refusal::new(Code::FailedPrecondition, catalogued(code::NOT_DENIED, what)));
    }
    Ok(Some(issued.not_after))
}

/// Bans a node, then its certificates. The first commit ends signing, so that the second look at the log sees all.
async fn ban(
    core: &Core,
    node: &NodeName,
    record: &DeniedRecord,
    now: SystemTime,
) -> Result<Revision, Refusal> {
    let known = core.world.catalog();
    if !known.nodes().contains_key(node) {
        let fault = catalogued(code::NOT_FOUND, format!("no node {node} is known"));
        return Err(Refusal::new(Code::NotFound, fault));
    }
    let (mut ops, _) = certificates(core, node, record, now).await?;
    // What does not fit beside the ban is written after it.
    ops.truncate(1);
    ops.insert(0, put(record));
    let revision = commit(core, Vec::new(), ops).await?;
    let written = complete(core, node, record, now).await?;
    Ok(written.unwrap_or(revision))
}

/// Writes down the certificates of a banned node that are not yet; `None` when all are.
///
/// # Errors
///
/// A refusal when they do not all fit; the ban is in force all the same.
pub(crate) async fn complete(
    core: &Core,
    node: &NodeName,
    record: &DeniedRecord,
    now: SystemTime,
) -> Result<Option<Revision>, Refusal> {
    let (ops, left_out) = certificates(core, node, record, now).await?;
    let mut revision = None;
    for op in ops {
        // One at a time: a commit of etcd holds at most 1.5 MiB.
        revision = Some(commit(core, Vec::new(), vec![op]).await?);
    }
    if left_out > 0 {
        let what =
            format!("node {node} is banned, but the list has no room for {left_out} of its certificates");
        return Err(Refusal::exhausted(code::DENYLIST_FULL, what));
    }
    Ok(revision)
}

/// What must be written so that every valid certificate of a node is denied, and how many do not fit.
async fn certificates(
    core: &Core,
    node: &NodeName,
    ban: &DeniedRecord,
    now: SystemTime,
) -> Result<(Vec<Op>, usize), Refusal> {
    let id = SpiffeId::node(&core.trust_domain, node.as_str())
        .map_err(|error| Refusal::bad_value("subject", error.to_string()))?;
    let live = issuance::issued_to(&*core.store, &id, now).await?;
    let catalog = core.world.catalog();
    let mut known = BTreeSet::new();
    let mut parts: u32 = 0;
    for key in with_certificates(&catalog, &ban.what) {
        if let Some(What::Certificates { serials, part, .. }) =
            catalog.denied().get(&key).map(|kept| &kept.record.what)
        {
            known.extend(serials.iter().cloned());
            parts = parts.max(part + 1);
        }
    }
    let until = live.iter().map(|leaf| leaf.not_after).max();
    let missing = live.into_iter().filter_map(|leaf| Subject::serial(&leaf.serial, None).ok());
    let mut missing: Vec<_> = missing.filter(|serial| !known.contains(serial)).collect();
    let room = MAX_ENTRIES.saturating_sub(core.world.current().denied().len());
    let left_out = missing.len().saturating_sub(room);
    missing.truncate(room);
    let part = |(serials, part): (&[Subject], u32)| {
        let what = What::Certificates { node: node.clone(), part, serials: serials.to_vec() };
        put(&DeniedRecord { what, until, ..ban.clone() })
    };
    Ok((missing.chunks(MAX_SERIALS).zip(parts..).map(part).collect(), left_out))
}

/// Whether `id` may be given a certificate, on behalf of `node` if it asks: what must still hold when that is written.
///
/// # Errors
///
/// A refusal when either is denied.
pub async fn free(core: &Core, id: &SpiffeId, node: Option<&NodeName>) -> Result<Vec<Compare>, Refusal> {
    let own = match id.kind() {
        IdKind::Node(name) => name.parse().ok(),
        IdKind::Workload { .. } | IdKind::Server(_) | IdKind::User(_) | IdKind::Other => None,
    };
    let nodes = node.into_iter().chain(own.as_ref()).map(|node| What::Node(node.clone()));
    let asked: BTreeSet<_> =
        nodes.chain([What::Subject(Subject::Identity(id.clone()))]).map(|w| w.text()).collect();
    let mut compares = Vec::new();
    for text in asked {
        let what = parse(&text).map_err(|why| invalid(&text, &why))?;
        let key = layout::denied(&what.id());
        let Some(entry) = core.store.get(&key).await? else {
            compares.push(Compare::Absent(key));
            continue;
        };
        let record = DeniedRecord::decode(&entry.value);
        match record {
            Ok(record) if record.is_over(unix_seconds(core.clock.now())) => compares.push(unchanged(&entry)),
            Ok(record) => return Err(refusal(&what, &record)),
            // Whom it is about is known from its key.
            Err(error) => {
                let what = format!("the record that denies {text} cannot be read: {error}");
                return Err(Refusal::new(Code::DataLoss, catalogued(code::UNREADABLE_RECORD, what)));
            }
        }
    }
    Ok(compares)
}

/// Refuses a caller whose certificate, identity or node is denied, on a connection that was open before as well (ISS-02).
///
/// # Errors
///
/// The refusal, with the reason that was given.
pub fn check_caller(world: &World, caller: &Caller, now: SystemTime) -> Result<(), Refusal> {
    let Some(peer) = &caller.peer else { return Ok(()) };
    let catalog = world.catalog();
    if let IdKind::Node(name) = peer.id.kind()
        && let Ok(node) = name.parse::<NodeName>()
        && let Some(record) = banned(catalog, &node)
    {
        return Err(refusal(&record.what, record));
    }
    let Some(entry) = world.denied().find(peer.presented(), now) else { return Ok(()) };
    let what = match entry.node.as_ref().and_then(|node| node.parse().ok()) {
        Some(node) => What::Node(node),
        None => What::Subject(entry.subject.clone()),
    };
    Err(catalog
        .denied()
        .get(&what.id())
        .map_or_else(|| refused(&what, ""), |kept| refusal(&what, &kept.record)))
}

/// What a token for `node` does to its ban: one with `--replace` ends it.
///
/// # Errors
///
/// A refusal when the node is banned and the token does not replace it.
pub fn lifted_by_token(core: &Core, node: &NodeName, replace: bool) -> Result<Option<Op>, Refusal> {
    let catalog = core.world.catalog();
    match banned(&catalog, node) {
        Some(record) if !replace => Err(refusal(&record.what, record)),
        Some(record) => Ok(Some(Op::Delete(layout::denied(&record.what.id())))),
        None => Ok(None),
    }
}

/// The ban of a node.
#[must_use]
pub fn banned<'a>(catalog: &'a Catalog, node: &NodeName) -> Option<&'a DeniedRecord> {
    if catalog.denied().is_empty() {
        return None;
    }
    catalog.denied().get(&What::Node(node.clone()).id()).map(|kept| &*kept.record)
}

fn refusal(what: &What, record: &DeniedRecord) -> Refusal {
    refused(what, &record.because())
}

fn refused(what: &What, because: &str) -> Refusal {
    let (id, mut said) = match what {
        What::Node(node) | What::Certificates { node, .. } => {
            (code::IDENTITY_BANNED, format!("node {node} is banned"))
        }
        What::Subject(subject) => (code::IDENTITY_REVOKED, format!("{subject} is revoked")),
    };
    if !because.is_empty() {
        said = format!("{said}: {because}");
    }
    Refusal::denied(id, said)
}

fn check_reason(reason: &str) -> Result<(), Refusal> {
    if reason.chars().count() > MAX_REASON_CHARS {
        return Err(Refusal::bad_value("reason", format!("a reason has at most {MAX_REASON_CHARS} letters")));
    }
    Ok(())
}

fn invalid(text: &str, why: &str) -> Refusal {
    let text: String = text.chars().take(128).collect();
    Refusal::invalid(vec![
        catalogued(code::BAD_SPIFFE_ID, format!("{text:?} cannot be denied: {why}")).at("subject", None),
    ])
}

fn full() -> Refusal {
    Refusal::exhausted(code::DENYLIST_FULL, format!("the denylist has {MAX_ENTRIES} entries, its limit"))
}

fn put(record: &DeniedRecord) -> Op {
    Op::Put { key: layout::denied(&record.what.id()), value: record.encode(), lease: None }
}

fn unchanged(entry: &Entry) -> Compare {
    Compare::Unchanged { key: entry.key.clone(), mod_revision: entry.mod_revision }
}

async fn commit(core: &Core, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Revision, Refusal> {
    let mut tries = 0;
    loop {
        match core.store.txn(compares.clone(), ops.clone()).await {
            Ok(revision) => {
                core.world.wait_for(revision).await;
                return Ok(revision);
            }
            Err(StoreError::Conflict(_)) if tries < MAX_TRIES => tries += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

/// An entry is kept for so long after its end: clocks of the mesh may differ by 10 min (security.md 5.9), and one that
/// lies behind believes the certificate for as long.
const KEPT_AFTER: Duration = Duration::from_secs(15 * 60);

#[cfg(test)]
mod tests;
