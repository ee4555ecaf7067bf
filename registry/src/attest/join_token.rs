//! One-use tokens: an admin makes one, whoever it names joins with it, once (security.md T3).
//!
//! ```text
//! unused ──join──▶ used        unused ──revoke──▶ revoked        unused ──end──▶ expired
//! ```
//!
//! Only the SHA-256 of a secret is stored. Using a token is one compare-and-put together with everything that joining
//! writes, so of a hundred who present it at once exactly one joins (ISS-05). A token for an agent comes with the
//! WorkloadEnrollment of what that node may run. Making is `making.rs`, joining is here.

use std::{net::IpAddr, sync::Arc};

use aws_lc_rs::digest;
use tonic::Code;
use tracing::{info, warn};
use weft_api::pb::identity::{GetBundleResponse, JoinRequest, JoinResponse};
use weft_identity::{ca::IssuedSvid, csr::SigningRequest, spiffe::SpiffeId};
use weft_policy::{
    code::{self, CodeId},
    name::{Namespace, NodeName},
};
use zeroize::Zeroizing;

use super::{
    record::{Purpose, State, TokenRecord},
    server,
};
use crate::{
    alarms::Alarm,
    core::Core,
    issuer::{self, Asked, Beside, Issuer, Outcome},
    layout,
    records::{NodeRecord, Record, UserRecord},
    refusal::{Refusal, catalogued},
    renewals,
    store::{Compare, Entry, Op},
    throttle::Throttle,
};

/// How often something is tried again because a record that it was checked against changed meanwhile.
pub(super) const MAX_TRIES: usize = 16;
/// How much of a name that somebody claims is written to the log; node names have at most 63 letters.
const SHOWN_CHARS: usize = 64;

/// Makes tokens and takes them. See the module.
#[derive(Debug)]
pub struct JoinTokens {
    pub(super) core: Core,
    pub(super) issuer: Arc<Issuer>,
    throttle: Arc<Throttle>,
    pub(super) open_tokens: usize,
    /// Tokens are counted and made by one caller at a time, so that their bound holds.
    pub(super) making: tokio::sync::Mutex<()>,
}

impl JoinTokens {
    /// Tokens of which at most `open_tokens` wait at a time.
    #[must_use]
    pub fn new(core: Core, issuer: Arc<Issuer>, throttle: Arc<Throttle>, open_tokens: u32) -> Self {
        let open_tokens = usize::try_from(open_tokens).unwrap_or(usize::MAX);
        Self { core, issuer, throttle, open_tokens, making: tokio::sync::Mutex::default() }
    }

    /// Lets the holder of a token in: one certificate, once.
    ///
    /// # Errors
    ///
    /// A refusal that says what is wrong with the token; an unknown secret learns nothing.
    pub async fn join(&self, from: IpAddr, request: JoinRequest) -> Result<JoinResponse, Refusal> {
        self.throttle.join(from)?;
        let _place = self.issuer.place(None)?;
        let mut request = request;
        let hash = hash(&Zeroizing::new(std::mem::take(&mut request.secret)));
        let csr = if request.root.is_empty() { Some(issuer::parse(&request.csr)?) } else { None };
        for _ in 0..MAX_TRIES {
            let (record, entry) = self.presented(&hash, from).await?;
            self.check(&record, &request)?;
            let answer = match &csr {
                Some(csr) => self.admit(&record, &entry, csr, &request.version).await?,
                None => self.admit_server(&record, &entry, &request).await?,
            };
            if let Some(answer) = answer {
                return Ok(answer);
            }
        }
        Err(Refusal::new(Code::Aborted, catalogued(code::WRITE_CONFLICT, "too many use this token at once")))
    }

    async fn presented(&self, hash: &[u8; 32], from: IpAddr) -> Result<(TokenRecord, Entry), Refusal> {
        let entry = self.core.store.get(&layout::token(hash)).await?;
        let found = entry.and_then(|entry| Some((TokenRecord::decode(&entry.value).ok()?, entry)));
        found.ok_or_else(|| {
            self.throttle.guessed(from);
            if let Some(untold) = self.core.alarms.raise(Alarm::UnknownToken) {
                warn!(target: "audit", %from, untold, "refused: somebody joins with an unknown token");
            }
            refused(code::TOKEN_UNKNOWN, "no such token")
        })
    }

    /// Whether the token may be used now, by whom `request` is of: a server sends its root, an agent its node, a person
    /// neither.
    fn check(&self, record: &TokenRecord, request: &JoinRequest) -> Result<(), Refusal> {
        let (id, now) = (&record.id, self.core.clock.now());
        let is_server = !request.root.is_empty();
        if is_server != (record.purpose == Purpose::Server) {
            let what = format!("token {id} is for {}", record.purpose.who());
            return Err(refused(code::TOKEN_OTHER_PURPOSE, what));
        }
        match (&record.purpose, request.node.as_str()) {
            (Purpose::Agent { .. }, "") => {
                return Err(refused(code::TOKEN_OTHER_PURPOSE, format!("token {id} is for an agent")));
            }
            (Purpose::Person { .. }, node) if !node.is_empty() => {
                return Err(refused(code::TOKEN_OTHER_PURPOSE, format!("token {id} is for a person")));
            }
            (Purpose::Agent { node: bound, .. }, node) if bound.as_str() != node => {
                if let Some(untold) = self.core.alarms.raise(Alarm::TokenElsewhere) {
                    let node: String = node.chars().take(SHOWN_CHARS).collect();
                    warn!(target: "audit", id, %bound, ?node, untold, "refused: a token is used for another node");
                }
                return Err(refused(code::TOKEN_OTHER_NODE, format!("token {id} is for node {bound}")));
            }
            (Purpose::Agent { .. } | Purpose::Person { .. } | Purpose::Server, _) => {}
        }
        match record.state {
            State::Used => {
                if let Some(untold) = self.core.alarms.raise(Alarm::TokenAgain) {
                    warn!(target: "audit", id, untold, "alarm: a token is presented a second time; one of the two has stolen it");
                }
                Err(refused(code::TOKEN_USED, format!("token {id} was used already")))
            }
            State::Revoked => Err(refused(code::TOKEN_REVOKED, format!("token {id} was revoked"))),
            State::Unused if record.expires <= now => {
                Err(refused(code::TOKEN_EXPIRED, format!("token {id} has expired")))
            }
            State::Unused => Ok(()),
        }
    }

    /// Signs, and writes all that joining writes in one commit; `None` when something moved meanwhile.
    async fn admit(
        &self,
        record: &TokenRecord,
        entry: &Entry,
        csr: &SigningRequest,
        version: &str,
    ) -> Result<Option<JoinResponse>, Refusal> {
        let used = TokenRecord { state: State::Used, ..record.clone() };
        let mut beside = Beside::default();
        beside.compares.push(unchanged(entry));
        beside.ops.push(put(entry.key.clone(), used.encode()));
        let (id, ttl, namespace) = match &record.purpose {
            Purpose::Agent { node, namespace } => {
                let id = SpiffeId::node(&self.core.trust_domain, node.as_str()).map_err(unusable)?;
                (id, self.issuer.leaf_ttl(), namespace.to_string())
            }
            Purpose::Person { name, role, namespace } => {
                let id = SpiffeId::user(&self.core.trust_domain, name).map_err(unusable)?;
                let user = UserRecord { role: *role, namespaces: namespace.clone().map(|name| vec![name]) };
                let key = layout::user(name).ok_or_else(|| unusable(name))?;
                beside.ops.push(put(key, user.encode()));
                (id, self.issuer.person_ttl(), String::new())
            }
            Purpose::Server => return Err(Refusal::not_permitted("a server joins with its root")),
        };
        let known = match &record.purpose {
            Purpose::Agent { node, namespace } => {
                match self.new_node(node, namespace, version, &mut beside).await {
                    Ok(known) => Some(known),
                    // The node may be known because this very token was used between the two looks.
                    Err(refusal) => {
                        let now = self.core.store.get(&entry.key).await?;
                        let moved = now.is_none_or(|now| now.mod_revision != entry.mod_revision);
                        return if moved { Ok(None) } else { Err(refusal) };
                    }
                }
            }
            Purpose::Person { .. } | Purpose::Server => None,
        };
        let with = |svid: &IssuedSvid| match known {
            Some((node, record)) => beside.with_node(&node, record, svid),
            None => beside,
        };
        let asked = Asked { by: format!("token {}", record.id), replaces: None };
        let Outcome::Issued(logged) = self.issuer.sign_and_log(csr, &id, ttl, asked, with).await? else {
            return Ok(None);
        };
        info!(target: "audit", %id, token = record.id, serial = %logged.svid.serial, revision = %logged.revision, "joined");
        self.core.world.wait_for(logged.revision).await;
        Ok(Some(JoinResponse {
            chain: issuer::chain(logged.svid),
            bundle: Some(bundle(&self.core)),
            spiffe_id: id.to_string(),
            namespace,
            cluster: self.core.cluster.to_string(),
            record_keys: Vec::new(),
        }))
    }

    /// The record of an agent that joins. One that is there already was not replaced, and stays.
    async fn new_node(
        &self,
        node: &NodeName,
        namespace: &Namespace,
        version: &str,
        beside: &mut Beside,
    ) -> Result<(NodeName, NodeRecord), Refusal> {
        let (before, compare) = self.node(node).await?;
        beside.compares.push(compare);
        if before.as_ref().is_some_and(|record| record.serial.is_some()) {
            return Err(known(node));
        }
        let mut record = before.unwrap_or_else(|| NodeRecord::new(namespace.clone()));
        record.namespace = namespace.clone();
        record.version = version.chars().filter(|letter| !letter.is_control()).take(64).collect();
        Ok((node.clone(), record))
    }

    /// The stored record of a node, and that it is still that.
    pub(super) async fn node(&self, node: &NodeName) -> Result<(Option<NodeRecord>, Compare), Refusal> {
        let key = layout::node(node);
        let Some(entry) = self.core.store.get(&key).await? else { return Ok((None, Compare::Absent(key))) };
        let record = NodeRecord::decode(&entry.value).map_err(|_| {
            let what = format!("the record of node {node} cannot be read");
            Refusal::new(Code::DataLoss, catalogued(code::UNREADABLE_RECORD, what))
        })?;
        Ok((Some(record), unchanged(&entry)))
    }
}

impl Beside {
    /// Adds the record and the renewal chain of an agent that joins with `svid`.
    fn with_node(mut self, node: &NodeName, mut record: NodeRecord, svid: &IssuedSvid) -> Self {
        record.serial = Some(svid.serial.to_string());
        self.ops.push(put(layout::node(node), record.encode()));
        self.ops.push(renewals::start(node, &renewals::first(&svid.serial)));
        self
    }
}

/// The bundle as agents are told it.
#[must_use]
pub fn bundle(core: &Core) -> GetBundleResponse {
    server::message(&core.bundle.borrow())
}

pub(super) fn known(node: &NodeName) -> Refusal {
    Refusal::new(
        Code::FailedPrecondition,
        catalogued(code::NODE_KNOWN, format!("node {node} has joined already")),
    )
}

fn refused(id: CodeId, what: impl Into<String>) -> Refusal {
    Refusal::denied(id, what)
}

pub(super) fn unusable(error: impl std::fmt::Display) -> Refusal {
    Refusal::invalid(vec![catalogued(code::TOKEN_SCOPE, error.to_string())])
}

pub(super) fn unchanged(entry: &Entry) -> Compare {
    Compare::Unchanged { key: entry.key.clone(), mod_revision: entry.mod_revision }
}

pub(super) fn put(key: crate::store::Key, value: bytes::Bytes) -> Op {
    Op::Put { key, value, lease: None }
}

pub(super) fn hash(secret: &Zeroizing<String>) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, secret.as_bytes());
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    hash
}
