//! The certificate authority of this server at work.
//!
//! Owns the authority's file (`disk.rs`), the bundle record (`bundle.rs`), the steps between its states (`life.rs`), the
//! server's own SVID, and the timer that renews all of them. Who may have which identity is [`crate::issuer`]'s question; how a certificate is made is
//! [`weft_identity::ca`]'s.
//!
//! ```text
//! maintain: parts on disk ──▶ bundle in the store ──▶ slots and watchers
//! ```
//!
//! Invariants: a root is on disk before it is published, and published before it signs; the bundle's sequence never
//! falls, whatever becomes of the store; the server's SVID is never shown after its end.

mod audience;
mod bundle;
mod disk;
mod highest;
mod life;
mod siblings;
mod told;
mod upstream;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::sync::watch;
use tracing::{error, info};
use weft_api::fault::Fault;
use weft_identity::{
    bundle::{BundleError, TrustBundle, TrustBundles},
    ca::{
        AuthorityError, CaSettings, CertificateAuthority, IssueError, IssuedSvid, Roots, Upstream,
        UpstreamError,
    },
    csr::{CsrError, SigningRequest},
    spiffe::{InvalidSpiffeId, SpiffeId, TrustDomain},
    svid::{Svid, SvidError, Validity},
    tls::{BundleSlot, SvidSlot},
};
use weft_policy::code::{self, CodeId};

use self::{audience::Audience, highest::Highest};
pub use self::{disk::DiskError, siblings::Newcomer};
use crate::{
    clock::Clock,
    config::Issuing,
    issuance::{self, Issuance},
    keeper::WorldHandle,
    presence::Presence,
    refusal::catalogued,
    seal::SealError,
    store::{Store, StoreError},
    timestamp::rfc3339,
};

/// How often the authority looks after itself, at the latest (see [`CertificateAuthority::maintain`]).
const MAINTAIN_EVERY: Duration = Duration::from_secs(3600);
/// How often the files of an upstream authority are read again.
const LOOK_UPSTREAM: Duration = Duration::from_secs(60);
/// The shortest pause between two rounds, which only lives of a second or two would ask for.
const LEAST_PAUSE: Duration = Duration::from_millis(250);
/// The wait after maintenance failed, and the longest between two looks at who has the prepared root.
const RETRY: Duration = Duration::from_secs(10);

/// Why the authority cannot work.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityFailure {
    /// Its file.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The authority itself.
    #[error("the certificate authority cannot work: {0}")]
    Authority(#[from] AuthorityError),
    /// It does not sign.
    #[error("the server's own certificate cannot be issued: {0}")]
    Issue(#[from] IssueError),
    /// The server's own certificate.
    #[error("the server's own certificate cannot be used: {0}")]
    Svid(#[from] SvidError),
    /// No key could be made for the server's own certificate.
    #[error("no key for the server's own certificate: {0}")]
    Key(#[from] CsrError),
    /// The server's name.
    #[error("the server's name is not usable: {0}")]
    Name(#[from] InvalidSpiffeId),
    /// The store.
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    /// The keys of records.
    #[error("the keys of records: {0}")]
    Records(#[from] SealError),
    /// The roots do not make a bundle.
    #[error("the roots do not make a bundle: {0}")]
    Bundle(#[from] BundleError),
    /// The stored bundle cannot be read.
    #[error("the stored bundle cannot be read: {why}")]
    BundleDamaged {
        /// What is wrong with it.
        why: String,
    },
    /// Others change the bundle all the time.
    #[error("the bundle is changed by others all the time")]
    BundleContended,
    /// The state directory is that of another mesh.
    #[error("the state directory is of trust domain {found}, the configuration says {wanted}")]
    OtherTrustDomain {
        /// On disk.
        found: TrustDomain,
        /// In the configuration.
        wanted: TrustDomain,
    },
    /// The store knows roots, and the keys are gone: a new authority would lock out every agent.
    #[error("{} is not there, and the store knows roots: restore it, or let this server in as a further one (weft server join)", path.display())]
    Lost {
        /// Where the authority should be.
        path: PathBuf,
    },
    /// The mesh has roots, and none of them is of this server.
    #[error("the mesh has servers, and server {instance} was not let in by one of them")]
    NotAdmitted {
        /// This server.
        instance: String,
    },
    /// The upstream authority's files cannot be read.
    #[error("identity.upstream.disk: {}: {source}", path.display())]
    UpstreamFile {
        /// Which of them.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The upstream authority's key lies open, or is not there.
    #[error("identity.upstream.disk.key: {0}")]
    UpstreamKey(String, CodeId),
    /// Nothing can be signed under the upstream authority.
    #[error("identity.upstream.disk: {0}")]
    Upstream(#[from] UpstreamError),
    /// A task that wrote a file did not end.
    #[error("the server is shutting down")]
    Interrupted,
}

impl AuthorityFailure {
    /// The authority of the server with `state_dir` is gone.
    pub(crate) fn lost(state_dir: &Path) -> Self {
        Self::Lost { path: disk::path(state_dir) }
    }

    /// The server with `state_dir` was not let in.
    pub(crate) fn not_admitted(state_dir: &Path) -> Self {
        match instance_of(state_dir) {
            Ok(instance) => Self::NotAdmitted { instance: instance.unwrap_or_default() },
            Err(error) => error,
        }
    }

    /// Its code in the catalogue.
    #[must_use]
    pub fn code(&self) -> CodeId {
        match self {
            Self::Disk(DiskError::File(error)) => error.code(),
            Self::Disk(DiskError::Damaged { .. }) | Self::BundleDamaged { .. } | Self::Lost { .. } => {
                code::STATE_DAMAGED
            }
            Self::Authority(AuthorityError::ClockWentBack(_))
            | Self::Issue(IssueError::Authority(AuthorityError::ClockWentBack(_))) => code::CLOCK_WENT_BACK,
            Self::Authority(_) | Self::Issue(_) | Self::Svid(_) | Self::Bundle(_) | Self::BundleContended => {
                code::STATE_DAMAGED
            }
            Self::Key(_) => code::ENTROPY,
            Self::UpstreamFile { .. } | Self::Upstream(_) => code::UPSTREAM_REFUSED,
            Self::UpstreamKey(_, code) => *code,
            Self::Name(_) => code::BAD_SPIFFE_ID,
            Self::Store(error) => error.code(),
            Self::OtherTrustDomain { .. } => code::OTHER_TRUST_DOMAIN,
            Self::Records(error) => error.code(),
            Self::NotAdmitted { .. } => code::SERVER_NOT_ADMITTED,
            Self::Interrupted => code::STORE_CLOSED,
        }
    }

    /// What to tell a person.
    #[must_use]
    pub fn fault(&self) -> Fault {
        catalogued(self.code(), self.to_string())
    }
}

/// Whether the server with `state_dir` has an authority, and so has run before.
#[must_use]
pub fn exists(state_dir: &Path) -> bool {
    disk::path(state_dir).exists()
}

/// The name of the server with `state_dir`; `None` when it never ran.
///
/// # Errors
///
/// [`AuthorityFailure::Disk`].
pub fn instance_of(state_dir: &Path) -> Result<Option<String>, AuthorityFailure> {
    Ok(disk::load(&disk::path(state_dir))?.map(|parts| parts.instance))
}

/// The authority of this server. See the module.
pub struct InstanceAuthority {
    ca: Mutex<CertificateAuthority>,
    /// Held from reading to writing: changes are made one after another.
    turn: tokio::sync::Mutex<()>,
    /// The highest sequence of a bundle that was in force here, in this run or before.
    highest: Highest,
    /// The sequence of the first bundle with each root, as far as this process knows: never too low.
    published: Mutex<BTreeMap<[u8; 32], u64>>,
    /// Set when there is somebody to be told.
    audience: OnceLock<Audience>,
    /// The uptime at which this server began to serve.
    serving: Duration,
    path: PathBuf,
    trust_domain: TrustDomain,
    own: SpiffeId,
    settings: Issuing,
    clock: Clock,
    bundle: watch::Sender<Arc<TrustBundle>>,
    bundles: BundleSlot,
    slot: SvidSlot,
    issued: AtomicU64,
    /// Why the upstream authority's files are not used, since the last look at them.
    upstream_fault: Mutex<Option<Fault>>,
}

impl fmt::Debug for InstanceAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstanceAuthority").field("own", &self.own).finish_non_exhaustive()
    }
}

impl InstanceAuthority {
    /// Loads the authority of `state_dir`, or makes it at the first start; publishes its bundle and the server's SVID.
    ///
    /// # Errors
    ///
    /// [`AuthorityFailure`]; the server must not start.
    pub async fn open(
        store: &dyn Store,
        clock: &Clock,
        state_dir: &Path,
        trust_domain: &TrustDomain,
        settings: Issuing,
    ) -> Result<Self, AuthorityFailure> {
        let path = disk::path(state_dir);
        let log = issuance::summary(store).await?;
        let known = bundle::stored(store, trust_domain).await?;
        let upstream = upstream::read(&settings, trust_domain, clock.now())?;
        let above = upstream.as_ref();
        let mut ca =
            load_or_create(&path, trust_domain, &settings, above, known.as_ref(), log.newest, clock.now())?;
        siblings::check_admitted(&ca, known.as_ref())?;
        let before = ca.clone();
        if let Some(upstream) = &upstream {
            ca.adopt(upstream, clock.now())?;
        }
        // Who has a prepared root is not known before agents are back.
        ca.maintain(usize::MAX, clock.now())?;
        disk::store(&path, &ca.to_parts())?;
        let own = bundle::Own::of(&ca, Some(&before));
        let highest = Highest::load(state_dir)?;
        let bundle = bundle::publish(store, trust_domain, ca.instance(), own, highest.get()).await?;
        let own = SpiffeId::server(trust_domain, ca.instance())?;
        let bundles = BundleSlot::new(TrustBundles::from(bundle.clone()));
        let authority = Self {
            ca: Mutex::new(ca),
            turn: tokio::sync::Mutex::default(),
            highest,
            published: Mutex::default(),
            audience: OnceLock::new(),
            serving: clock.uptime(),
            path,
            trust_domain: trust_domain.clone(),
            own,
            settings,
            clock: clock.clone(),
            bundle: watch::Sender::new(Arc::new(bundle.clone())),
            bundles,
            slot: SvidSlot::empty(),
            issued: AtomicU64::new(log.count),
            upstream_fault: Mutex::default(),
        };
        authority.in_force(bundle);
        authority.renew_own(store).await?;
        Ok(authority)
    }

    /// Says where the agents are found that must take a root before it signs, and the log of what was signed. Called once;
    /// before that, no root is activated but at the last moment.
    pub fn listen_to(&self, store: Arc<dyn Store>, presence: Presence, world: WorldHandle) {
        // A second audience would be the same one.
        let _ = self.audience.set(Audience { store, presence, world });
    }

    /// Signs a leaf. The caller writes it to the issuance log before it leaves the process, and says so with
    /// [`Self::count`].
    ///
    /// # Errors
    ///
    /// [`IssueError`].
    pub fn sign(
        &self,
        request: &SigningRequest,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<IssuedSvid, IssueError> {
        self.ca().issue(request, id, ttl, now)
    }

    /// Counts a certificate that was written to the log.
    pub fn count(&self) {
        self.issued.fetch_add(1, Ordering::Relaxed);
    }

    /// The life of certificates that no enrollment limits.
    #[must_use]
    pub const fn leaf_ttl(&self) -> Duration {
        self.settings.leaf_ttl
    }

    /// The shortest life that is signed.
    #[must_use]
    pub fn shortest_ttl(&self) -> Duration {
        self.settings.lifetimes.shortest()
    }

    /// The name of this server, the last segment of its SPIFFE ID.
    #[must_use]
    pub fn instance(&self) -> String {
        self.ca().instance().to_owned()
    }

    /// Tells the bundle, now and whenever it changes.
    #[must_use]
    pub fn bundle(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.bundle.subscribe()
    }

    /// What handshakes are verified against.
    #[must_use]
    pub fn bundles(&self) -> BundleSlot {
        self.bundles.clone()
    }

    /// What the control listener presents: the server's SVID with its root behind it, for joiners.
    #[must_use]
    pub fn slot(&self) -> SvidSlot {
        self.slot.clone()
    }

    /// When the server's own SVID, the intermediate and the active root end.
    #[must_use]
    pub fn expiries(&self) -> [(&'static str, Option<SystemTime>); 3] {
        let own = self.slot.load().map(|credential| credential.svid().validity().not_after);
        let ca = self.ca();
        let (intermediate, root) = (ca.intermediate_validity().not_after, ca.root_validity().not_after);
        [("server", own), ("intermediate", Some(intermediate)), ("root", Some(root))]
    }

    /// Renews what is due, for as long as the server runs. Ends only by being dropped.
    pub async fn look_after(&self, store: &dyn Store) {
        loop {
            self.clock.sleep_until(self.next_due(self.clock.now())).await;
            if let Err(failure) = self.maintain(store).await {
                error!(error = %failure, code = %failure.code(), "the certificate authority could not be maintained");
                self.withdraw_expired(self.clock.now());
                self.clock.sleep(RETRY).await;
            }
        }
    }

    /// Half of what is left of the server's own SVID, the next change of the authority, or an hour.
    fn next_due(&self, now: SystemTime) -> SystemTime {
        let validity = self.slot.load().map(|credential| credential.svid().validity());
        let half = validity.map_or(now, |validity| half_life(&validity));
        let authority = match self.ca().next_due() {
            // It waits for an agent: looked at again soon, but not without a pause.
            due if due <= now => now + (self.settings.leaf_ttl / 20).clamp(LEAST_PAUSE, RETRY),
            due => due,
        };
        // The files of an upstream authority are looked at again more often than our own parts change.
        let most = if self.settings.upstream.is_some() { LOOK_UPSTREAM } else { MAINTAIN_EVERY };
        half.min(authority).clamp(now + LEAST_PAUSE, now + most)
    }

    /// Whether the server's own SVID is half over, or is not under what signs now.
    fn own_is_due(&self, now: SystemTime) -> bool {
        let intermediate = self.ca().intermediate().clone();
        self.slot.load().is_none_or(|credential| {
            let own = credential.svid();
            half_life(&own.validity()) <= now || own.chain().get(1) != Some(&intermediate)
        })
    }

    async fn renew_own(&self, store: &dyn Store) -> Result<(), AuthorityFailure> {
        let now = self.clock.now();
        let (key, csr) = SigningRequest::create()?;
        let request = SigningRequest::parse(&csr)?;
        let (issued, root) = {
            let mut ca = self.ca();
            (ca.issue(&request, &self.own, self.settings.leaf_ttl, now)?, ca.active_root().clone())
        };
        let before = self.slot.load().map(|credential| credential.svid().serial().clone());
        let record = Issuance::new(&request, &self.own, &issued, now, self.own.to_string()).replacing(before);
        store.txn(Vec::new(), record.ops()).await?;
        self.count();
        let svid = Svid::parse(issued.chain, key)?;
        info!(serial = %svid.serial(), not_after = %rfc3339(svid.validity().not_after), "the server has a new SVID");
        self.slot.publish_with(svid, &[root]);
        Ok(())
    }

    fn withdraw_expired(&self, now: SystemTime) {
        if self.slot.load().is_some_and(|credential| !credential.svid().validity().contains(now)) {
            error!("the server's own SVID has expired; nobody can connect until it is renewed");
            self.slot.withdraw();
        }
    }

    fn ca(&self) -> MutexGuard<'_, CertificateAuthority> {
        // A panic while signing leaves the authority as it was: it changes only by whole values.
        self.ca.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load_or_create(
    path: &Path,
    trust_domain: &TrustDomain,
    settings: &Issuing,
    upstream: Option<&Upstream>,
    known: Option<&TrustBundle>,
    newest: Option<SystemTime>,
    now: SystemTime,
) -> Result<CertificateAuthority, AuthorityFailure> {
    let ca = CaSettings {
        lifetimes: settings.lifetimes,
        root_lifetime: settings.root_ttl,
        intermediate_lifetime: settings.intermediate_ttl,
        settle: settings.leaf_ttl,
        roots: if upstream.is_some() { Roots::Upstream } else { Roots::Own },
        ..CaSettings::default()
    };
    let Some(mut parts) = disk::load(path)? else {
        // Under an upstream authority nothing is lost that its files do not bring back.
        let is_back = |bundle: &TrustBundle| {
            upstream.is_some_and(|upstream| bundle.roots().any(|root| root == upstream.root()))
        };
        if known.is_some_and(|bundle| bundle.roots().len() > 0 && !is_back(bundle)) {
            return Err(AuthorityFailure::Lost { path: path.into() });
        }
        let name = instance_name()?;
        let made = match upstream {
            Some(upstream) => CertificateAuthority::create_under(upstream, trust_domain, &name, ca, now)?,
            None => CertificateAuthority::create_with(trust_domain, &name, ca, now)?,
        };
        // On disk before anything is signed with it.
        disk::store(path, &made.to_parts())?;
        info!(instance = made.instance(), %trust_domain, "a new certificate authority was made");
        return Ok(made);
    };
    if parts.trust_domain != *trust_domain {
        let (found, wanted) = (parts.trust_domain, trust_domain.clone());
        return Err(AuthorityFailure::OtherTrustDomain { found, wanted });
    }
    // The file is not written for each signature; the log is.
    parts.high_water = newest.map_or(parts.high_water, |newest| newest.max(parts.high_water));
    Ok(CertificateAuthority::load(&parts, ca)?)
}

/// A name for this instance: random, since two servers of one mesh must differ and hosts are renamed.
fn instance_name() -> Result<String, AuthorityFailure> {
    let mut bytes = [0_u8; 5];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| AuthorityFailure::Key(CsrError::Provider))?;
    Ok(format!("s-{}", hex(&bytes)))
}

/// The middle of a validity, not counting the minute that it is dated back.
fn half_life(validity: &Validity) -> SystemTime {
    let start = validity.not_before + weft_identity::ca::BACKDATE;
    start + validity.not_after.duration_since(start).unwrap_or_default() / 2
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
