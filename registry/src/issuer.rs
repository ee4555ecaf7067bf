//! Who may have which certificate, and the way of each from request to log to caller.
//!
//! ```text
//! rate ──▶ queue ──▶ entitled? ──▶ key free? ──▶ sign ──▶ log (one transaction) ──▶ caller
//! ```
//!
//! An agent gets what an enrollment gives its node, and renews its own; a person renews their own; nobody gets anything
//! else. Joining is [`crate::attest`]'s.
//!
//! Invariants: what is not in the log was not given out; a key is certified once; each renewal of an agent presents its
//! newest SVID, so a copied state directory shows (ISS-04).

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::Code;
use tracing::{error, info, warn};
use weft_api::pb::identity::{IssueSvidRequest, IssueSvidResponse, SignForRequest, SignForResponse};
use weft_identity::{
    ca::{AuthorityError, IssueError, IssuedSvid, LONGEST_LEAF},
    csr::SigningRequest,
    spiffe::{IdKind, SpiffeId},
    svid::Serial,
};
use weft_policy::{
    code,
    name::{MAX_LABEL_BYTES, NodeName},
};

use crate::{
    alarms::Alarm,
    authority::InstanceAuthority,
    config::LEAF_TTL,
    core::Core,
    denied, enrollment,
    issuance::{self, Issuance, KeyClaim},
    nodes,
    refusal::{Refusal, catalogued},
    renewals::{self, Renewal},
    replicas::signing::Elsewhere,
    roles::{Caller, Role, Source},
    store::{Compare, Op, Revision, StoreError},
    throttle::Throttle,
};

/// How often an issuance is tried again because a record that it was checked against changed meanwhile.
const MAX_TRIES: usize = 8;

/// Nobody holds more than this part of the queue: one node that floods, or all who join together, leave the rest to
/// others (ISS-06). An agent asks on one connection, which has no more streams than that by default.
const SHARE: usize = 4;

/// Signs for callers. See the module.
#[derive(Debug)]
pub struct Issuer {
    core: Core,
    authority: Arc<InstanceAuthority>,
    throttle: Arc<Throttle>,
    elsewhere: Elsewhere,
    room: Semaphore,
    share: usize,
    held: Mutex<HashMap<Option<SpiffeId>, usize>>,
}

/// A place in the queue, until it is dropped.
#[derive(Debug)]
pub struct Place<'a> {
    issuer: &'a Issuer,
    who: Option<SpiffeId>,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut held = self.issuer.held();
        if let Some(count) = held.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.who);
            }
        }
    }
}

/// What one certificate changes beside the log.
#[derive(Debug, Default)]
pub struct Beside {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What changes.
    pub ops: Vec<Op>,
}

/// Who asks for a certificate.
#[derive(Clone, Debug)]
pub struct Asked {
    /// An identity, or `token <id>`.
    pub by: String,
    /// What the new certificate takes the place of.
    pub replaces: Option<Serial>,
}

/// A certificate that is in the log.
#[derive(Debug)]
pub struct Logged {
    /// The certificate.
    pub svid: IssuedSvid,
    /// The commit of the log.
    pub revision: Revision,
}

impl Issuer {
    /// An issuer with room for `queue` requests at a time.
    #[must_use]
    pub fn new(core: Core, authority: Arc<InstanceAuthority>, throttle: Arc<Throttle>, queue: u32) -> Self {
        let places = usize::try_from(queue).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let (room, share) = (Semaphore::new(places), (places / SHARE).max(1));
        let elsewhere = Elsewhere::new(authority.slot(), authority.bundles());
        Self { core, authority, throttle, elsewhere, room, share, held: Mutex::default() }
    }

    /// The authority of this server.
    pub(crate) fn authority(&self) -> &InstanceAuthority {
        &self.authority
    }

    /// Signs what another server, which was admitted, has decided and writes down itself.
    ///
    /// # Errors
    ///
    /// A refusal: the request is none, or this server does not sign itself.
    pub fn sign_for(&self, caller: &Caller, request: &SignForRequest) -> Result<SignForResponse, Refusal> {
        if !self.core.signs() {
            let what = format!("server {} does not sign itself", self.core.instance);
            return Err(Refusal::new(Code::Unavailable, catalogued(code::SERVER_TOO_NEW, what)));
        }
        let _place = self.place(caller.identity.as_ref())?;
        let csr = parse(&request.csr)?;
        let id: SpiffeId = request.spiffe_id.parse().map_err(|error| {
            Refusal::invalid(vec![catalogued(code::BAD_SPIFFE_ID, format!("{error}")).at("spiffe_id", None)])
        })?;
        let ttl = Duration::from_secs(request.ttl_seconds).clamp(self.authority.shortest_ttl(), LONGEST_LEAF);
        let svid = self.authority.sign(&csr, &id, ttl, self.core.clock.now());
        let svid = svid.map_err(|error| refused(&error))?;
        info!(target: "audit", %id, asked_by = %caller, serial = %svid.serial, "signed for another server");
        Ok(SignForResponse { root: svid.root.to_vec(), chain: chain(svid) })
    }

    /// Issues what `request` asks for, if the caller may have it.
    ///
    /// # Errors
    ///
    /// A refusal with its reason.
    pub async fn issue(
        &self,
        caller: &Caller,
        request: IssueSvidRequest,
    ) -> Result<IssueSvidResponse, Refusal> {
        let own = caller.identity.clone();
        let own =
            own.ok_or_else(|| Refusal::not_permitted("a certificate of the mesh is needed to get another"))?;
        let address = match caller.source {
            Source::Remote { addr } => Some(addr.ip()),
            Source::Local { .. } => None,
        };
        self.throttle.issue(address, &own)?;
        let _place = self.place(Some(&own))?;
        let wanted = wanted(&own, &request.spiffe_id)?;
        let csr = parse(&request.csr)?;
        let replaces = replaced(&request.replaces)?;
        let mut tries = 0;
        loop {
            let (ttl, renewal) = self.entitlement(caller, &own, &wanted).await?;
            let renews = renewal.is_some();
            let beside =
                |svid: &IssuedSvid| renewal.map_or_else(Beside::default, |renewal| renewal.with(svid));
            let asked = Asked { by: own.to_string(), replaces: replaces.clone() };
            match self.sign_and_log(&csr, &wanted, ttl, asked, beside).await? {
                Outcome::Issued(logged) => {
                    self.told(&wanted, &own, &logged);
                    if renews {
                        // What was banned with it is banned by the time the agent has its answer.
                        self.core.world.wait_for(logged.revision).await;
                    }
                    return Ok(IssueSvidResponse { chain: chain(logged.svid) });
                }
                Outcome::Conflict if tries < MAX_TRIES => tries += 1,
                Outcome::Conflict => {
                    let what = format!("the records of {own} change all the time");
                    return Err(Refusal::new(Code::Aborted, catalogued(code::WRITE_CONFLICT, what)));
                }
            }
        }
    }

    /// A place in the queue for `who`, held until dropped; `None` are all who join.
    ///
    /// # Errors
    ///
    /// A refusal when all are taken, or the share of one caller is: a flood waits at its sender, not here (ISS-06).
    pub fn place(&self, who: Option<&SpiffeId>) -> Result<Place<'_>, Refusal> {
        let full = || {
            let what = "the authority has as many requests as it takes";
            Refusal::exhausted(code::TOO_MANY_ATTEMPTS, what)
        };
        let mut held = self.held();
        // All who join share one part, which is twice as large.
        let share = if who.is_some() { self.share } else { 2 * self.share };
        if held.get(&who.cloned()).is_some_and(|count| *count >= share) {
            return Err(full());
        }
        let permit = self.room.try_acquire().map_err(|_| full())?;
        *held.entry(who.cloned()).or_insert(0) += 1;
        Ok(Place { issuer: self, who: who.cloned(), _permit: permit })
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<Option<SpiffeId>, usize>> {
        // Counting cannot panic half-way.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signs `csr` for `id` and writes the log, with what `beside` says about the certificate.
    ///
    /// # Errors
    ///
    /// A refusal: the key is somebody else's, the authority does not sign, or the store does not write. Then nothing
    /// was given out.
    pub async fn sign_and_log(
        &self,
        csr: &SigningRequest,
        id: &SpiffeId,
        ttl: Duration,
        asked: Asked,
        beside: impl FnOnce(&IssuedSvid) -> Beside,
    ) -> Result<Outcome, Refusal> {
        let asked_by = asked.by;
        let claim = match issuance::claim(&*self.core.store, csr, id).await? {
            KeyClaim::Free(compare) => compare,
            KeyClaim::Taken => {
                let what = "this key was certified for another identity already";
                return Err(self.used_key(Alarm::ForeignKey, what, id, &asked_by));
            }
            KeyClaim::Again => {
                let what = "this request was answered before: each one needs a new key";
                return Err(self.used_key(Alarm::Replay, what, id, &asked_by));
            }
        };
        // What is denied from here on is a conflict.
        let free = denied::free(&self.core, id, node_of(&asked_by).as_ref()).await?;
        let now = self.core.clock.now();
        let ttl = ttl.clamp(self.authority.shortest_ttl(), LONGEST_LEAF);
        let svid = if self.core.signs() {
            self.authority.sign(csr, id, ttl, now).map_err(|error| refused(&error))?
        } else {
            self.elsewhere.sign(&self.core, csr, id, ttl).await?
        };
        let mut beside = beside(&svid);
        beside.compares.push(claim);
        beside.compares.extend(free);
        beside.ops.extend(Issuance::new(csr, id, &svid, now, asked_by).replacing(asked.replaces).ops());
        match self.core.store.txn(beside.compares, beside.ops).await {
            Ok(revision) => {
                self.authority.count();
                Ok(Outcome::Issued(Logged { svid, revision }))
            }
            Err(StoreError::Conflict(_)) => Ok(Outcome::Conflict),
            Err(error) => Err(error.into()),
        }
    }

    /// The refusal of a key that was certified before.
    fn used_key(&self, alarm: Alarm, what: &str, id: &SpiffeId, asked_by: &str) -> Refusal {
        if let Some(untold) = self.core.alarms.raise(alarm) {
            warn!(target: "audit", %id, %asked_by, kind = alarm.label(), untold, "refused: the key was certified before");
        }
        Refusal::denied(code::BAD_SIGNING_REQUEST, what)
    }

    /// The life of agents' and workloads' certificates.
    #[must_use]
    pub fn leaf_ttl(&self) -> Duration {
        self.authority.leaf_ttl()
    }

    /// The life of people's certificates: 24 h (decisions.md, people).
    #[must_use]
    pub const fn person_ttl(&self) -> Duration {
        LEAF_TTL
    }

    /// Whether `caller`, who is `own`, may have `wanted`: for how long, and as which renewal of an agent.
    async fn entitlement(
        &self,
        caller: &Caller,
        own: &SpiffeId,
        wanted: &SpiffeId,
    ) -> Result<(Duration, Option<Renewal>), Refusal> {
        match own.kind() {
            IdKind::Node(_) if caller.role == Role::Node => {
                let node = nodes::node_of(&self.core, caller)?;
                if own == wanted {
                    let renewal = renewals::check(&self.core, caller, &node).await?;
                    return Ok((self.leaf_ttl(), Some(renewal)));
                }
                renewals::seen(&self.core, caller, &node).await?;
                Ok((self.grant(&node, own, wanted)?, None))
            }
            IdKind::User(name) if own == wanted => {
                let catalog = self.core.world.catalog();
                if !catalog.users().contains_key(name) {
                    return Err(Refusal::denied(
                        code::IDENTITY_BANNED,
                        format!("user {name} has no role any more"),
                    ));
                }
                Ok((self.person_ttl(), None))
            }
            IdKind::Node(_)
            | IdKind::User(_)
            | IdKind::Server(_)
            | IdKind::Workload { .. }
            | IdKind::Other => {
                Err(Refusal::denied(code::ISSUANCE_REFUSED, format!("{own} may not have {wanted}")))
            }
        }
    }

    /// The life that enrollments give `wanted` on `node`.
    fn grant(&self, node: &NodeName, own: &SpiffeId, wanted: &SpiffeId) -> Result<Duration, Refusal> {
        let catalog = self.core.world.catalog();
        match enrollment::grant(&catalog, node, wanted) {
            Ok(grant) => Ok(grant.ttl.unwrap_or_else(|| self.leaf_ttl())),
            Err(reason) => {
                if let Some(untold) = self.core.alarms.raise(Alarm::Overreach) {
                    warn!(target: "audit", %own, %wanted, %reason, untold, "alarm: no enrollment gives this identity");
                }
                let id = match wanted.kind() {
                    IdKind::Workload { .. } => code::ISSUANCE_REFUSED,
                    IdKind::Node(_) | IdKind::Server(_) | IdKind::User(_) | IdKind::Other => {
                        code::FOREIGN_IDENTITY
                    }
                };
                let mut fault =
                    catalogued(id, format!("node {node} may not have {wanted}")).why(reason.to_string());
                fault.fix.splice(0..0, widening(node, wanted));
                Err(Refusal::new(Code::PermissionDenied, fault))
            }
        }
    }

    fn told(&self, wanted: &SpiffeId, own: &SpiffeId, logged: &Logged) {
        let (serial, revision) = (&logged.svid.serial, logged.revision);
        info!(target: "audit", id = %wanted, asked_by = %own, %serial, %revision, "certificate issued");
    }
}

/// The node that asks, if one does.
fn node_of(asked_by: &str) -> Option<NodeName> {
    let id: SpiffeId = asked_by.parse().ok()?;
    match id.kind() {
        IdKind::Node(name) => name.parse().ok(),
        IdKind::Workload { .. } | IdKind::Server(_) | IdKind::User(_) | IdKind::Other => None,
    }
}

/// The serial number of the certificate that the caller gives up.
fn replaced(text: &str) -> Result<Option<Serial>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    let serial =
        text.parse().map_err(|_| Refusal::bad_value("replaces", "a serial number is hexadecimal"))?;
    Ok(Some(serial))
}

/// The command that gives a workload's identity to a node, beside what the node has already.
fn widening(node: &NodeName, wanted: &SpiffeId) -> Option<String> {
    let IdKind::Workload { namespace, service_account } = wanted.kind() else { return None };
    let mut name = format!("{node}-{service_account}");
    name.truncate(MAX_LABEL_BYTES);
    let enrollment = json!({
        "apiVersion": "weft.mesh/v1alpha1",
        "kind": "WorkloadEnrollment",
        "metadata": {"name": name.trim_end_matches('-'), "namespace": namespace},
        "spec": {"nodes": [node.as_str()], "identities": [wanted.to_string()]},
    });
    Some(format!("give it:               echo '{enrollment}' | weft apply -f -"))
}

/// How one round of signing ended.
#[derive(Debug)]
pub enum Outcome {
    /// The certificate is in the log and may be given out.
    Issued(Logged),
    /// Something that it was checked against changed; the certificate is forgotten.
    Conflict,
}

/// The identity that is asked for; an empty text is the caller's own.
fn wanted(own: &SpiffeId, text: &str) -> Result<SpiffeId, Refusal> {
    if text.is_empty() {
        return Ok(own.clone());
    }
    let wanted: SpiffeId = text.parse().map_err(|error| {
        let fault = catalogued(code::BAD_SPIFFE_ID, format!("{error}")).at("spiffe_id", None);
        Refusal::invalid(vec![fault])
    })?;
    if wanted.trust_domain() != own.trust_domain() {
        return Err(Refusal::denied(code::FOREIGN_IDENTITY, format!("{wanted} is of another trust domain")));
    }
    Ok(wanted)
}

/// Reads a signing request.
///
/// # Errors
///
/// A refusal when it is not one, or not signed by its own key.
pub fn parse(csr: &[u8]) -> Result<SigningRequest, Refusal> {
    SigningRequest::parse(csr).map_err(|error| {
        Refusal::invalid(vec![catalogued(code::BAD_SIGNING_REQUEST, error.to_string()).at("csr", None)])
    })
}

/// The certificates of an answer, leaf first.
#[must_use]
pub fn chain(svid: IssuedSvid) -> Vec<Vec<u8>> {
    svid.chain.iter().map(|certificate| certificate.to_vec()).collect()
}

/// Where a caller comes from, for limits; local callers share loopback's.
#[must_use]
pub fn address_of(caller: &Caller) -> IpAddr {
    match caller.source {
        Source::Remote { addr } => addr.ip(),
        Source::Local { .. } => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    }
}

/// Why the authority did not sign. What lies on the server's side is said in its log too.
fn refused(error: &IssueError) -> Refusal {
    let (grpc, id) = match error {
        IssueError::ForeignTrustDomain { .. } => (Code::PermissionDenied, code::FOREIGN_IDENTITY),
        IssueError::Lifetime { .. } => (Code::InvalidArgument, code::LIFETIME_REFUSED),
        IssueError::IssuerExpiring => (Code::Unavailable, code::CA_EXPIRED),
        IssueError::Authority(AuthorityError::ClockWentBack(_)) => (Code::Unavailable, code::CLOCK_WENT_BACK),
        IssueError::Authority(_) | IssueError::Profile(_) => (Code::Internal, code::INTERNAL),
    };
    error!(%error, code = %id, "the authority does not sign");
    Refusal::new(grpc, catalogued(id, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_the_authority_does_not_sign_has_a_code_of_its_own() {
        let unsigned = IssueError::Authority(AuthorityError::Pem);
        for (error, id) in [(IssueError::IssuerExpiring, code::CA_EXPIRED), (unsigned, code::INTERNAL)] {
            let refusal = refused(&error);
            let fault = &refusal.faults()[0];
            assert_eq!(&*fault.code, id.as_str());
            assert!(!fault.why.is_empty() && !fault.fix.is_empty(), "{fault:?}");
        }
    }
}
