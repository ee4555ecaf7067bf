//! One-use tokens: an admin makes one, whoever it names joins with it, once (security.md T3).
//!
//! ```text
//! unused ──join──▶ used        unused ──revoke──▶ revoked        unused ──end──▶ expired
//! ```
//!
//! Only the SHA-256 of a secret is stored. Using a token is one compare-and-put together with everything that joining
//! writes, so of a hundred who present it at once exactly one joins (ISS-05). A token for an agent comes with the
//! WorkloadEnrollment of what that node may run.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{digest, rand};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::future::BoxFuture;
use tonic::Code;
use tracing::{info, warn};
use weft_api::{
    convert::management as convert,
    pb::{
        identity::{GetBundleResponse, JoinRequest, JoinResponse},
        management::{CreateTokenRequest, CreateTokenResponse, ListTokensResponse},
    },
    record,
    token::{JoinToken, SECRET_BYTES},
};
use weft_identity::{ca::IssuedSvid, csr::SigningRequest, spiffe::SpiffeId};
use weft_policy::{
    code::{self, CodeId},
    model::{HostPort, Key, Metadata, Resource, WorkloadEnrollment, workload::UnixSelector},
    name::{Namespace, NodeName, ObjectName},
};
use zeroize::Zeroizing;

use super::record::{Purpose, State, TokenRecord};
use crate::{
    core::{Core, Tokens},
    issuance,
    issuer::{self, Beside, Issuer, Outcome},
    layout,
    records::{NodeRecord, Record, UserRecord},
    refusal::{Refusal, catalogued},
    renewals,
    roles::{Caller, Role},
    store::{Compare, Entry, Expected, Op, Revision, StoreError},
    throttle::Throttle,
};

/// How long a token is good for by default (decisions.md, tokens).
const DEFAULT_TTL: Duration = Duration::from_secs(15 * 60);
/// The longest that a token may be good for.
const LONGEST_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long a token that is over stays in the list.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// The most services and the most local users of one token: what an enrollment takes.
const MAX_LISTED: usize = 64;
/// How often something is tried again because a record that it was checked against changed meanwhile.
const MAX_TRIES: usize = 16;

/// Makes tokens and takes them. See the module.
#[derive(Debug)]
pub struct JoinTokens {
    core: Core,
    issuer: Arc<Issuer>,
    throttle: Arc<Throttle>,
    servers: Vec<HostPort>,
    open_tokens: usize,
    /// Tokens are counted and made by one caller at a time, so that their bound holds.
    making: tokio::sync::Mutex<()>,
}

/// What an admin asks for, checked.
#[derive(Clone, Debug)]
struct Wanted {
    purpose: Purpose,
    services: Vec<ObjectName>,
    uids: Vec<u32>,
    ttl: Duration,
    replace: bool,
}

/// What a new token writes, if everything that it was checked against is still there.
#[derive(Default)]
struct Plan {
    compares: Vec<Compare>,
    ops: Vec<Op>,
    enrollments: Vec<Key>,
    replaced: bool,
}

impl JoinTokens {
    /// Tokens that lead to `servers`, at most `open_tokens` of them waiting at a time.
    #[must_use]
    pub fn new(
        core: Core,
        issuer: Arc<Issuer>,
        throttle: Arc<Throttle>,
        servers: Vec<HostPort>,
        open_tokens: u32,
    ) -> Self {
        let open_tokens = usize::try_from(open_tokens).unwrap_or(usize::MAX);
        Self { core, issuer, throttle, servers, open_tokens, making: tokio::sync::Mutex::default() }
    }

    /// Lets the holder of a token in: one certificate, once.
    ///
    /// # Errors
    ///
    /// A refusal that says what is wrong with the token; an unknown secret learns nothing.
    pub async fn join(&self, from: IpAddr, request: JoinRequest) -> Result<JoinResponse, Refusal> {
        self.throttle.join(from)?;
        let _place = self.issuer.place()?;
        let JoinRequest { secret, node, csr, version } = request;
        let hash = hash(&Zeroizing::new(secret));
        let csr = issuer::parse(&csr)?;
        for _ in 0..MAX_TRIES {
            let (record, entry) = self.presented(&hash, from).await?;
            self.check(&record, &node)?;
            if let Some(answer) = self.admit(&record, &entry, &csr, &version).await? {
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
            warn!(target: "audit", %from, "refused: somebody joins with an unknown token");
            refused(code::TOKEN_UNKNOWN, "no such token")
        })
    }

    /// Whether the token may be used now, by an agent that says it is `node` (empty: by a person).
    fn check(&self, record: &TokenRecord, node: &str) -> Result<(), Refusal> {
        let (id, now) = (&record.id, self.core.clock.now());
        match (&record.purpose, node) {
            (Purpose::Agent { .. }, "") => {
                return Err(refused(code::TOKEN_OTHER_PURPOSE, format!("token {id} is for an agent")));
            }
            (Purpose::Person { .. }, node) if !node.is_empty() => {
                return Err(refused(code::TOKEN_OTHER_PURPOSE, format!("token {id} is for a person")));
            }
            (Purpose::Agent { node: bound, .. }, node) if bound.as_str() != node => {
                warn!(target: "audit", id, %bound, node, "refused: a token is used for another node");
                return Err(refused(code::TOKEN_OTHER_NODE, format!("token {id} is for node {bound}")));
            }
            (Purpose::Agent { .. } | Purpose::Person { .. }, _) => {}
        }
        match record.state {
            State::Used => {
                warn!(target: "audit", id, "alarm: a token is presented a second time; one of the two has stolen it");
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
        };
        let known = match &record.purpose {
            Purpose::Agent { node, namespace } => {
                Some(self.new_node(node, namespace, version, &mut beside).await?)
            }
            Purpose::Person { .. } => None,
        };
        let with = |svid: &IssuedSvid| match known {
            Some((node, record)) => beside.with_node(&node, record, svid),
            None => beside,
        };
        let asked_by = format!("token {}", record.id);
        let Outcome::Issued(logged) = self.issuer.sign_and_log(csr, &id, ttl, asked_by, with).await? else {
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
    async fn node(&self, node: &NodeName) -> Result<(Option<NodeRecord>, Compare), Refusal> {
        let key = layout::node(node);
        let Some(entry) = self.core.store.get(&key).await? else { return Ok((None, Compare::Absent(key))) };
        let record = NodeRecord::decode(&entry.value).map_err(|_| {
            let what = format!("the record of node {node} cannot be read");
            Refusal::new(Code::DataLoss, catalogued(code::UNREADABLE_RECORD, what))
        })?;
        Ok((Some(record), unchanged(&entry)))
    }

    async fn make(
        &self,
        caller: &Caller,
        request: CreateTokenRequest,
    ) -> Result<CreateTokenResponse, Refusal> {
        if caller.role_in(None) != Role::Admin {
            return Err(Refusal::not_permitted("only an admin of the whole mesh makes tokens"));
        }
        let wanted = Wanted::read(request)?;
        let _one = self.making.lock().await;
        self.make_room().await?;
        let now = self.core.clock.now();
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(Zeroizing::new(random::<SECRET_BYTES>()?)));
        let record = TokenRecord {
            id: format!("t-{}", hex(&random::<5>()?)),
            purpose: wanted.purpose.clone(),
            state: State::Unused,
            expires: now + wanted.ttl,
            created_by: caller.to_string(),
            created: now,
        };
        let key = layout::token(&hash(&secret));
        for _ in 0..MAX_TRIES {
            let mut plan = self.plan(&wanted, now).await?;
            plan.compares.push(Compare::Absent(key.clone()));
            plan.ops.push(put(key.clone(), record.encode()));
            match self.core.store.txn(plan.compares, plan.ops).await {
                Ok(revision) => {
                    self.core.world.wait_for(revision).await;
                    info!(
                        target: "audit", who = %caller, id = record.id, subject = ?record.subject(),
                        replaced = plan.replaced, %revision, "token made"
                    );
                    return Ok(self.answer(&record, secret, &plan.enrollments));
                }
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Refusal::new(Code::Aborted, catalogued(code::WRITE_CONFLICT, "too many changes come at once")))
    }

    fn answer(
        &self,
        record: &TokenRecord,
        secret: Zeroizing<String>,
        enrollments: &[Key],
    ) -> CreateTokenResponse {
        let token = JoinToken::new(
            record.id.clone(),
            record.subject(),
            self.core.cluster.to_string(),
            self.servers.clone(),
            self.core.trust_domain.clone(),
            self.core.bundle.borrow().fingerprints(),
            crate::timestamp::unix_seconds(record.expires),
            secret,
        );
        CreateTokenResponse {
            id: record.id.clone(),
            token: token.to_text().to_string(),
            expires: crate::timestamp::rfc3339(record.expires),
            enrollments: enrollments.iter().map(convert::reference).collect(),
        }
    }

    /// What a token writes beside itself: enrollment and ban.
    async fn plan(&self, wanted: &Wanted, now: SystemTime) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        let Purpose::Agent { node, namespace } = &wanted.purpose else { return Ok(plan) };
        let (record, compare) = self.node(node).await?;
        if let Some(mut record) = record.filter(|record| record.serial.is_some()) {
            if !wanted.replace {
                return Err(known(node));
            }
            let id = SpiffeId::node(&self.core.trust_domain, node.as_str()).map_err(unusable)?;
            record.banned = issuance::valid_serials(&*self.core.store, &id, now).await?;
            record.serial = None;
            plan.compares.push(compare);
            plan.ops.push(put(layout::node(node), record.encode()));
            plan.ops.push(Op::Delete(layout::renewals(node)));
            plan.replaced = true;
        }
        self.enroll(wanted, node, namespace, &mut plan).await?;
        Ok(plan)
    }

    /// Writes the enrollment of a node, unless the same one stands there.
    async fn enroll(
        &self,
        wanted: &Wanted,
        node: &NodeName,
        namespace: &Namespace,
        plan: &mut Plan,
    ) -> Result<(), Refusal> {
        let guard = layout::guard();
        let before = self.core.store.get(&guard).await?;
        self.core.world.wait_for(before.as_ref().map_or(Revision::ZERO, |entry| entry.mod_revision)).await;
        let catalog = self.core.world.catalog();
        let enrollment = self.enrollment(wanted, node, namespace)?;
        let resource = Resource::WorkloadEnrollment(enrollment);
        let key = resource.key();
        plan.enrollments.push(key.clone());
        let stands = catalog.get(&key);
        if stands.as_ref().is_some_and(|found| same(found, &resource)) {
            return Ok(());
        }
        if stands.is_some() && !wanted.replace {
            let what = format!("{key} gives node {node} something else");
            let fault =
                catalogued(code::TOKEN_SCOPE, what).fix("replace it:   weft token create … --replace");
            return Err(Refusal::new(Code::FailedPrecondition, fault));
        }
        let expected = catalog.revision_of(&key).map_or(Expected::Absent, Expected::Unchanged);
        let stored = layout::resource(&key);
        plan.compares.extend(expected.compare(&stored));
        plan.ops.push(put(stored, record::encode_resource(&resource).into()));
        plan.compares.push(before.as_ref().map_or_else(|| Compare::Absent(guard.clone()), unchanged));
        plan.ops.push(put(guard, bytes::Bytes::new()));
        Ok(())
    }

    fn enrollment(
        &self,
        wanted: &Wanted,
        node: &NodeName,
        namespace: &Namespace,
    ) -> Result<WorkloadEnrollment, Refusal> {
        let trust_domain = &self.core.trust_domain;
        let pattern = |account: &str| format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}").parse();
        let identities = if wanted.services.is_empty() {
            vec![pattern("*")]
        } else {
            wanted.services.iter().map(|service| pattern(service.as_str())).collect()
        };
        Ok(WorkloadEnrollment {
            metadata: Metadata {
                namespace: Some(namespace.clone()),
                name: enrollment_name(node)?,
                labels: std::collections::BTreeMap::new(),
                annotations: [(
                    "weft.mesh/reason".to_owned(),
                    format!("written with a token for node {node}"),
                )]
                .into(),
                revision: 0,
            },
            identities: identities.into_iter().collect::<Result<_, _>>().map_err(unusable)?,
            nodes: vec![node.clone()],
            selectors: wanted.uids.iter().map(|uid| UnixSelector { uid: Some(*uid), user: None }).collect(),
            services: None,
            labels: std::collections::BTreeMap::new(),
            ttl: None,
        })
    }

    /// Forgets tokens that have been over for a day, and refuses when too many others wait.
    async fn make_room(&self) -> Result<(), Refusal> {
        let now = self.core.clock.now();
        let mut open = 0;
        for (record, entry) in self.all().await? {
            if !record.is_over(now) {
                open += 1;
            } else if record.expires + REMEMBERED < now {
                let forgotten =
                    self.core.store.delete(entry.key, Expected::Unchanged(entry.mod_revision)).await;
                match forgotten {
                    Ok(_) | Err(StoreError::Conflict(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        if open >= self.open_tokens {
            return Err(Refusal::exhausted(code::TOO_MANY_TOKENS, format!("{open} tokens wait to be used")));
        }
        Ok(())
    }

    /// Every token that can be read.
    async fn all(&self) -> Result<Vec<(TokenRecord, Entry)>, Refusal> {
        let listing = self.core.store.list_all(&layout::tokens()).await?;
        let read = |entry: Entry| Some((TokenRecord::decode(&entry.value).ok()?, entry));
        Ok(listing.entries.into_iter().filter_map(read).collect())
    }

    async fn withdraw(&self, caller: &Caller, id: &str) -> Result<(), Refusal> {
        if caller.role_in(None) != Role::Admin {
            return Err(Refusal::not_permitted("only an admin of the whole mesh revokes tokens"));
        }
        for _ in 0..MAX_TRIES {
            let found = self.all().await?.into_iter().find(|(record, _)| record.id == id);
            let Some((record, entry)) = found else {
                let shown: String = id.chars().take(64).collect();
                return Err(Refusal::new(
                    Code::NotFound,
                    catalogued(code::TOKEN_UNKNOWN, format!("no token {shown:?}")),
                ));
            };
            match record.state {
                State::Revoked => return Ok(()),
                State::Used => {
                    let what = format!("token {id} was used already");
                    return Err(Refusal::new(Code::FailedPrecondition, catalogued(code::TOKEN_USED, what)));
                }
                State::Unused => {}
            }
            let revoked = TokenRecord { state: State::Revoked, ..record };
            let expected = Expected::Unchanged(entry.mod_revision);
            match self.core.store.put(entry.key, revoked.encode(), expected, None).await {
                Ok(revision) => {
                    info!(target: "audit", who = %caller, id, %revision, "token revoked");
                    return Ok(());
                }
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Refusal::new(Code::Aborted, catalogued(code::WRITE_CONFLICT, "the token changes all the time")))
    }
}

impl Tokens for JoinTokens {
    fn create<'a>(
        &'a self,
        caller: &'a Caller,
        request: CreateTokenRequest,
    ) -> BoxFuture<'a, Result<CreateTokenResponse, Refusal>> {
        Box::pin(self.make(caller, request))
    }

    fn list(&self) -> BoxFuture<'_, Result<ListTokensResponse, Refusal>> {
        Box::pin(async move {
            let now = self.core.clock.now();
            let mut tokens = self.all().await?;
            tokens.sort_by_key(|(record, _)| (record.created, record.id.clone()));
            Ok(ListTokensResponse { tokens: tokens.iter().map(|(record, _)| record.info(now)).collect() })
        })
    }

    fn revoke<'a>(&'a self, caller: &'a Caller, id: &'a str) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(self.withdraw(caller, id))
    }
}

impl Wanted {
    fn read(request: CreateTokenRequest) -> Result<Self, Refusal> {
        let ttl = match request.ttl_seconds {
            0 => DEFAULT_TTL,
            seconds => Duration::from_secs(seconds),
        };
        if ttl > LONGEST_TTL {
            let what = format!("a token lives at most {} h", LONGEST_TTL.as_secs() / 3600);
            return Err(Refusal::invalid(vec![
                catalogued(code::TOKEN_LIFETIME, what).at("ttl_seconds", None),
            ]));
        }
        let scoped = |path: &str, error: &dyn std::fmt::Display| {
            Refusal::invalid(vec![catalogued(code::TOKEN_SCOPE, error.to_string()).at(path, None)])
        };
        let namespace =
            (!request.namespace.is_empty()).then(|| request.namespace.parse::<Namespace>()).transpose();
        let namespace = namespace.map_err(|error| scoped("namespace", &error))?;
        let purpose = match request.purpose.as_str() {
            "agent" => Purpose::Agent {
                node: request.node.parse().map_err(|error| scoped("node", &error))?,
                namespace: namespace.unwrap_or_else(Namespace::default_namespace),
            },
            "user" => Purpose::Person {
                name: layout::user(&request.user).map(|_| request.user.clone()).ok_or_else(|| {
                    scoped("user", &"a user's name has letters, digits, '.', '_' and '-' only")
                })?,
                role: Role::person(&request.role)
                    .ok_or_else(|| scoped("role", &"a role is viewer, editor or admin"))?,
                namespace,
            },
            _ => return Err(Refusal::bad_value("purpose", "a token is for an agent or a user")),
        };
        if request.services.len().max(request.uids.len()) > MAX_LISTED {
            return Err(Refusal::bad_value("services", format!("at most {MAX_LISTED} services and users")));
        }
        let mut services = Vec::with_capacity(request.services.len());
        for service in &request.services {
            services.push(service.parse().map_err(|error| scoped("services", &error))?);
        }
        Ok(Self { purpose, services, uids: request.uids, ttl, replace: request.replace })
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
    let bundle = core.bundle.borrow();
    GetBundleResponse {
        trust_domain: bundle.trust_domain().to_string(),
        sequence: bundle.sequence(),
        roots: bundle.roots().map(|root| root.to_vec()).collect(),
    }
}

/// `agent-<node>`, cut and told apart by a hash where that is too long for a name.
fn enrollment_name(node: &NodeName) -> Result<ObjectName, Refusal> {
    let whole = format!("agent-{node}");
    if let Ok(name) = whole.parse() {
        return Ok(name);
    }
    let hash = digest::digest(&digest::SHA256, node.as_str().as_bytes());
    let start: String = node.as_str().chars().take(40).collect();
    format!("agent-{}-{}", start.trim_end_matches('-'), hex(&hash.as_ref()[..4])).parse().map_err(unusable)
}

/// Whether two enrollments give the same, whenever and why they were written.
fn same(one: &Resource, other: &Resource) -> bool {
    let bare = |resource: &Resource| {
        let mut resource = resource.clone();
        let metadata = resource.metadata_mut();
        metadata.revision = 0;
        metadata.annotations.clear();
        resource
    };
    bare(one) == bare(other)
}

fn known(node: &NodeName) -> Refusal {
    Refusal::new(
        Code::FailedPrecondition,
        catalogued(code::NODE_KNOWN, format!("node {node} has joined already")),
    )
}

fn refused(id: CodeId, what: impl Into<String>) -> Refusal {
    Refusal::denied(id, what)
}

fn unusable(error: impl std::fmt::Display) -> Refusal {
    Refusal::invalid(vec![catalogued(code::TOKEN_SCOPE, error.to_string())])
}

fn unchanged(entry: &Entry) -> Compare {
    Compare::Unchanged { key: entry.key.clone(), mod_revision: entry.mod_revision }
}

fn put(key: crate::store::Key, value: bytes::Bytes) -> Op {
    Op::Put { key, value, lease: None }
}

fn hash(secret: &Zeroizing<String>) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, secret.as_bytes());
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    hash
}

fn random<const N: usize>() -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| {
        Refusal::new(Code::Unavailable, catalogued(code::ENTROPY, "the system gives no random numbers"))
    })?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
