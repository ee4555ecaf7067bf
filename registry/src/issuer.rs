//! Who may have which certificate, and the way of each from request to log to caller.
//!
//! ```text
//! rate ──▶ queue ──▶ entitled? ──▶ key free? ──▶ sign ──▶ log (one transaction) ──▶ caller
//! ```
//!
//! An agent gets what an enrollment gives its node, and renews its own; a person renews their own; nobody gets anything
//! else. Joining is [`crate::attest`]'s.
//!
//! Invariants: what is not in the log was not given out; each renewal of an agent presents its newest SVID, so a copied
//! state directory shows (ISS-04).

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::Code;
use tracing::{error, info, warn};
use weft_api::pb::identity::{IssueSvidRequest, IssueSvidResponse};
use weft_identity::{
    ca::{AuthorityError, IssueError, IssuedSvid, LONGEST_LEAF},
    csr::SigningRequest,
    spiffe::{IdKind, SpiffeId},
};
use weft_policy::{
    code,
    name::{MAX_LABEL_BYTES, NodeName},
};

use crate::{
    authority::InstanceAuthority,
    config::LEAF_TTL,
    core::Core,
    enrollment,
    issuance::{self, Issuance, KeyClaim},
    nodes,
    refusal::{Refusal, catalogued},
    renewals::{self, Renewal},
    roles::{Caller, Role, Source},
    store::{Compare, Op, Revision, StoreError},
    throttle::Throttle,
};

/// How often an issuance is tried again because a record that it was checked against changed meanwhile.
const MAX_TRIES: usize = 8;

/// Signs for callers. See the module.
#[derive(Debug)]
pub struct Issuer {
    core: Core,
    authority: Arc<InstanceAuthority>,
    throttle: Arc<Throttle>,
    room: Semaphore,
    /// Refused because an agent asked for what no enrollment gives it: a sign of a taken-over node (ISS-01).
    overreaches: AtomicU64,
}

/// What one certificate changes beside the log.
#[derive(Debug, Default)]
pub struct Beside {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What changes.
    pub ops: Vec<Op>,
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
        let room = Semaphore::new(usize::try_from(queue).unwrap_or(Semaphore::MAX_PERMITS));
        Self { core, authority, throttle, room, overreaches: AtomicU64::new(0) }
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
        let _place = self.place()?;
        let wanted = wanted(&own, &request.spiffe_id)?;
        let csr = parse(&request.csr)?;
        let mut tries = 0;
        loop {
            let (ttl, renewal) = self.entitlement(caller, &own, &wanted).await?;
            let beside =
                |svid: &IssuedSvid| renewal.map_or_else(Beside::default, |renewal| renewal.with(svid));
            match self.sign_and_log(&csr, &wanted, ttl, own.to_string(), beside).await? {
                Outcome::Issued(logged) => {
                    self.told(&wanted, &own, &logged);
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

    /// A place in the queue, held until dropped.
    ///
    /// # Errors
    ///
    /// A refusal when all are taken: a flood waits at its sender, not here (ISS-06).
    pub fn place(&self) -> Result<SemaphorePermit<'_>, Refusal> {
        self.room.try_acquire().map_err(|_| {
            Refusal::exhausted(code::TOO_MANY_ATTEMPTS, "the authority has as many requests as it takes")
        })
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
        asked_by: String,
        beside: impl FnOnce(&IssuedSvid) -> Beside,
    ) -> Result<Outcome, Refusal> {
        let claim = match issuance::claim(&*self.core.store, csr, id).await? {
            KeyClaim::Free(compare) => compare,
            KeyClaim::Taken => {
                warn!(target: "audit", %id, %asked_by, "refused: the key was certified for another identity");
                let what = "this key was certified for another identity already";
                return Err(Refusal::denied(code::BAD_SIGNING_REQUEST, what));
            }
        };
        let now = self.core.clock.now();
        let ttl = ttl.clamp(self.authority.shortest_ttl(), LONGEST_LEAF);
        let svid = self.authority.sign(csr, id, ttl, now).map_err(|error| refused(&error))?;
        let mut beside = beside(&svid);
        beside.compares.push(claim);
        beside.ops.extend(Issuance::new(csr, id, &svid, now, asked_by).ops());
        match self.core.store.txn(beside.compares, beside.ops).await {
            Ok(revision) => {
                self.authority.count();
                Ok(Outcome::Issued(Logged { svid, revision }))
            }
            Err(StoreError::Conflict(_)) => Ok(Outcome::Conflict),
            Err(error) => Err(error.into()),
        }
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

    /// How often agents asked for what no enrollment gives them.
    #[must_use]
    pub fn overreaches(&self) -> u64 {
        self.overreaches.load(Ordering::Relaxed)
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
                self.overreaches.fetch_add(1, Ordering::Relaxed);
                warn!(target: "audit", %own, %wanted, %reason, "refused: no enrollment gives this identity");
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
