//! The certificate authority of this server at work.
//!
//! Owns the authority's file (`disk.rs`), the bundle record (`bundle.rs`), the server's own SVID, and the timer that
//! renews all of them. Who may have which identity is [`crate::issuer`]'s question; how a certificate is made is
//! [`weft_identity::ca`]'s.
//!
//! ```text
//! maintain: parts on disk ──▶ bundle in the store ──▶ slots and watchers
//! ```
//!
//! Invariants: a root is on disk before it is published, and published before it signs; the bundle's sequence never
//! falls; the server's SVID is never shown after its end.

mod bundle;
mod disk;
mod siblings;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::sync::watch;
use tracing::{error, info, warn};
use weft_api::{
    duration::format_duration,
    fault::Fault,
    pb::management::{AuthorityStatus, Problem, RootStatus, ShowAuthorityResponse},
};
use weft_identity::{
    bundle::{BundleError, TrustBundle, TrustBundles},
    ca::{
        AuthorityError, CLOCK_TOLERANCE, CaSettings, CertificateAuthority, IssueError, IssuedSvid, Maintained,
    },
    csr::{CsrError, SigningRequest},
    spiffe::{InvalidSpiffeId, SpiffeId, TrustDomain},
    svid::{Svid, SvidError, Validity},
    tls::{BundleSlot, SvidSlot},
};
use weft_policy::code::{self, CodeId};

pub use self::{disk::DiskError, siblings::Newcomer};
use crate::{
    clock::Clock,
    config::Issuing,
    core::Authority,
    issuance::{self, Issuance},
    refusal::catalogued,
    seal::SealError,
    store::{Store, StoreError},
    timestamp::rfc3339,
};

/// How often the authority looks after itself, at the latest (see [`CertificateAuthority::maintain`]).
const MAINTAIN_EVERY: Duration = Duration::from_secs(3600);
/// The shortest pause between two rounds, which only lives of a second or two would ask for.
const LEAST_PAUSE: Duration = Duration::from_millis(250);
/// The wait after maintenance failed.
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
    /// A task that wrote a file did not end.
    #[error("the server is shutting down")]
    Interrupted,
}

impl AuthorityFailure {
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

/// The authority of this server. See the module.
#[derive(Debug)]
pub struct InstanceAuthority {
    ca: Mutex<CertificateAuthority>,
    path: PathBuf,
    trust_domain: TrustDomain,
    own: SpiffeId,
    settings: Issuing,
    clock: Clock,
    bundle: watch::Sender<Arc<TrustBundle>>,
    bundles: BundleSlot,
    slot: SvidSlot,
    issued: AtomicU64,
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
        let mut ca = load_or_create(&path, trust_domain, settings, known.as_ref(), log.newest, clock.now())?;
        siblings::check_admitted(&ca, known.as_ref())?;
        ca.maintain(clock.now())?;
        disk::store(&path, &ca.to_parts())?;
        let bundle = bundle::publish(store, trust_domain, ca.instance(), ca.bundle_roots()).await?;
        let own = SpiffeId::server(trust_domain, ca.instance())?;
        let bundles = BundleSlot::new(TrustBundles::from(bundle.clone()));
        let authority = Self {
            ca: Mutex::new(ca),
            path,
            trust_domain: trust_domain.clone(),
            own,
            settings,
            clock: clock.clone(),
            bundle: watch::Sender::new(Arc::new(bundle)),
            bundles,
            slot: SvidSlot::empty(),
            issued: AtomicU64::new(log.count),
        };
        authority.renew_own(store).await?;
        Ok(authority)
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

    /// Half of what is left of the server's own SVID, or an hour.
    fn next_due(&self, now: SystemTime) -> SystemTime {
        let validity = self.slot.load().map(|credential| credential.svid().validity());
        let half = validity.map_or(now, |validity| half_life(&validity));
        half.clamp(now + LEAST_PAUSE, now + MAINTAIN_EVERY)
    }

    async fn maintain(&self, store: &dyn Store) -> Result<(), AuthorityFailure> {
        let now = self.clock.now();
        let (done, parts, roots) = {
            let mut ca = self.ca();
            let done = ca.maintain(now)?;
            (done, ca.to_parts(), ca.bundle_roots())
        };
        if !done.is_empty() {
            let path = self.path.clone();
            let written = tokio::task::spawn_blocking(move || disk::store(&path, &parts)).await;
            written.map_err(|_| AuthorityFailure::Interrupted)??;
        }
        // Asked even when nothing was done: a publication that failed before is made up for.
        let instance = self.instance();
        self.in_force(bundle::publish(store, &self.trust_domain, &instance, roots).await?);
        done.iter().for_each(tell);
        if self.own_is_due(now) || !done.is_empty() {
            self.renew_own(store).await?;
        }
        issuance::prune(store, now).await?;
        Ok(())
    }

    fn own_is_due(&self, now: SystemTime) -> bool {
        self.slot.load().is_none_or(|credential| half_life(&credential.svid().validity()) <= now)
    }

    async fn renew_own(&self, store: &dyn Store) -> Result<(), AuthorityFailure> {
        let now = self.clock.now();
        let (key, csr) = SigningRequest::create()?;
        let request = SigningRequest::parse(&csr)?;
        let issued = self.sign(&request, &self.own, self.settings.leaf_ttl, now)?;
        let record = Issuance::new(&request, &self.own, &issued, now, self.own.to_string());
        store.txn(Vec::new(), record.ops()).await?;
        self.count();
        let svid = Svid::parse(issued.chain, key)?;
        let root = self.ca().active_root().clone();
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

impl Authority for InstanceAuthority {
    fn status(&self) -> AuthorityStatus {
        let bundle = self.bundle.borrow().clone();
        let ca = self.ca();
        let active = ca.active_root();
        let root = |((certificate, fingerprint), validity): ((_, [u8; 32]), Validity)| RootStatus {
            fingerprint: hex(&fingerprint),
            not_before: rfc3339(validity.not_before),
            not_after: rfc3339(validity.not_after),
            instance: ca.instance().to_owned(),
            active: certificate == active,
        };
        let rows = bundle.roots().zip(bundle.fingerprints()).zip(bundle.validities());
        AuthorityStatus {
            roots: rows.map(root).collect(),
            intermediate_not_after: rfc3339(ca.intermediate_validity().not_after),
            issued: self.issued.load(Ordering::Relaxed),
            bundle_sequence: bundle.sequence(),
            leaf_ttl: format_duration(self.settings.leaf_ttl),
        }
    }

    fn show(&self) -> ShowAuthorityResponse {
        let bundle = self.bundle.borrow().clone();
        ShowAuthorityResponse {
            authority: Some(self.status()),
            roots_pem: bundle.roots().map(|root| pem(root)).collect(),
            trust_domain: self.trust_domain.to_string(),
        }
    }

    fn problems(&self) -> Vec<Problem> {
        let now = self.clock.now();
        let ca = self.ca();
        let is_late = |validity: &Validity| validity.remaining(now) < validity.period() / 6;
        let mut problems = Vec::new();
        let mut tell = |id: CodeId, what: String| {
            let fix = id.row().fix.iter().map(|&fix| fix.to_owned()).collect();
            problems.push(Problem { code: id.as_str().to_owned(), what, fix });
        };
        if is_late(&ca.intermediate_validity()) {
            let at = rfc3339(ca.intermediate_validity().not_after);
            tell(
                code::CA_EXPIRES_SOON,
                format!("the intermediate of {} ends {at} and was not renewed", ca.instance()),
            );
        }
        if is_late(&ca.root_validity()) && ca.prepared_root().is_none() {
            let at = rfc3339(ca.root_validity().not_after);
            tell(
                code::CA_EXPIRES_SOON,
                format!("the root of {} ends {at} and no new one is prepared", ca.instance()),
            );
        }
        if ca.high_water().duration_since(now).is_ok_and(|back| back > CLOCK_TOLERANCE) {
            let at = rfc3339(ca.high_water());
            tell(code::CLOCK_WENT_BACK, format!("the last certificate was signed at {at}, which lies ahead"));
        }
        if self.slot.load().is_none() {
            tell(code::OWN_SVID_EXPIRED, "the server's own certificate has expired".to_owned());
        }
        problems
    }
}

fn load_or_create(
    path: &Path,
    trust_domain: &TrustDomain,
    settings: Issuing,
    known: Option<&TrustBundle>,
    newest: Option<SystemTime>,
    now: SystemTime,
) -> Result<CertificateAuthority, AuthorityFailure> {
    // Leaves may be as long as an enrollment asks, so retired roots stay for the longest life there is.
    let ca = CaSettings { lifetimes: settings.lifetimes, ..CaSettings::default() };
    let Some(mut parts) = disk::load(path)? else {
        if known.is_some_and(|bundle| bundle.roots().len() > 0) {
            return Err(AuthorityFailure::Lost { path: path.into() });
        }
        let made = CertificateAuthority::create_with(trust_domain, &instance_name()?, ca, now)?;
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

fn tell(done: &Maintained) {
    match done {
        Maintained::IntermediateRenewed => info!("the intermediate was renewed"),
        Maintained::RootPrepared { fingerprint } => {
            info!(fingerprint = %hex(fingerprint), "a new root is in the bundle");
        }
        Maintained::RootActivated { fingerprint } => {
            info!(fingerprint = %hex(fingerprint), "the new root signs");
        }
        Maintained::RootRemoved { fingerprint } => {
            warn!(fingerprint = %hex(fingerprint), "a former root left the bundle");
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 7468 §5.1.
fn pem(certificate: &[u8]) -> String {
    let text = STANDARD.encode(certificate);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
