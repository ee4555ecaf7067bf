//! The certificate authority of one control plane instance.
//!
//! Owns a self-signed root, an intermediate under it and the rules of signing. The life of its roots is in `life.rs`. Who
//! may ask for which identity is the registry's decision, made before [`CertificateAuthority::issue`]; where keys lie on
//! disk is the registry's too, which gets them as [`AuthorityParts`].
//!
//! ```text
//! root:          prepared ──activate──▶ active ──activate──▶ old ──taint──▶ tainted ──revoke──▶ revoked
//! intermediate:  always under the active root, replaced at half of its life
//! ```
//!
//! Invariants: a root is in [`CertificateAuthority::bundle_roots`] from before its first signature until it is revoked or
//! has long expired; nothing outlives its issuer; time only goes forward.

mod authority;
mod life;
mod parts;
mod profile;
mod sibling;
mod upstream;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;

use crate::csr::SigningRequest;
use crate::spiffe::{InvalidSpiffeId, SpiffeId, TrustDomain};
use crate::svid::{self, Serial, SvidError, Validity};
use crate::x509::certificate::Certificate;
use crate::x509::fingerprint;

use authority::{SigningAuthority, backdated};
use life::{Former, Prepared};
pub use life::{Maintained, Root, RootState, StepError};
pub use parts::{AuthorityParts, FormerPart, KeyPart, PreparedPart};
pub use profile::BACKDATE;
pub use sibling::{NotASibling, SiblingRoot, is_root_of};
pub use upstream::{Upstream, UpstreamError};

/// Shortest leaf life (security.md 3.2): below it a renewal that fails twice ends the identity.
pub const SHORTEST_LEAF: Duration = Duration::from_secs(5 * 60);

/// Longest leaf life (security.md 3.2): that long a stolen key would last where denylists do not reach.
pub const LONGEST_LEAF: Duration = Duration::from_secs(7 * 24 * 3600);

/// The clock may go back that far between two signatures before signing stops (security.md 3.2).
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// Whether leaves may live shorter than [`SHORTEST_LEAF`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LeafLifetimes {
    /// From 5 minutes.
    #[default]
    Standard,
    /// From 1 second: for tests and demonstrations; the configuration that says so warns.
    AllowShort,
}

impl LeafLifetimes {
    /// The shortest leaf life.
    pub fn shortest(self) -> Duration {
        match self {
            Self::Standard => SHORTEST_LEAF,
            Self::AllowShort => Duration::from_secs(1),
        }
    }
}

/// Lifetimes of an authority.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CaSettings {
    /// Life of a root; one year by default.
    pub root_lifetime: Duration,
    /// Life of an intermediate; 30 days by default.
    pub intermediate_lifetime: Duration,
    /// Longest life of a leaf, at most [`LONGEST_LEAF`].
    pub longest_leaf: Duration,
    /// A root is published at least that long before the schedule lets it sign: the life of an agent's own certificate,
    /// so that whoever was away for all of that time has to join anew anyway. 24 h by default.
    pub settle: Duration,
    /// Shortest life of a leaf.
    pub lifetimes: LeafLifetimes,
    /// Where roots come from.
    pub roots: Roots,
}

/// Where the roots of an authority come from.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Roots {
    /// It makes them.
    #[default]
    Own,
    /// They are those of an authority above it ([`CertificateAuthority::adopt`]).
    Upstream,
}

impl Default for CaSettings {
    fn default() -> Self {
        Self {
            root_lifetime: Duration::from_secs(365 * 24 * 3600),
            intermediate_lifetime: Duration::from_secs(30 * 24 * 3600),
            longest_leaf: LONGEST_LEAF,
            settle: Duration::from_secs(24 * 3600),
            lifetimes: LeafLifetimes::Standard,
            roots: Roots::Own,
        }
    }
}

/// Why an authority cannot be made, loaded or changed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AuthorityError {
    /// The instance name cannot be part of a SPIFFE ID.
    #[error("the instance name is not usable: {0}")]
    Instance(InvalidSpiffeId),
    /// The crypto provider has no entropy.
    #[error("the crypto provider could not make a key")]
    Provider,
    /// The time is before 1970 or after 9999.
    #[error("the clock is outside of what certificates can say")]
    Clock,
    /// The clock is more than [`CLOCK_TOLERANCE`] behind the last signature.
    #[error("the clock went back by {} s since the last signature", .0.as_secs())]
    ClockWentBack(Duration),
    /// A stored certificate or key is not PEM, or not exactly one.
    #[error("a stored certificate or key is not PEM")]
    Pem,
    /// A stored certificate is not one of a Weft authority.
    #[error("a stored certificate is not one of a certificate authority")]
    Certificate,
    /// A stored key is not a P-256 key in PKCS#8.
    #[error("a stored key is not a P-256 key")]
    Key,
    /// A stored key belongs to another certificate.
    #[error("a stored key does not belong to its certificate")]
    KeyMismatch,
    /// The stored intermediate is not signed by the stored active root.
    #[error("the stored intermediate is not signed by the active root")]
    BrokenChain,
    /// The root of the upstream authority was revoked here.
    #[error("the root of the upstream authority was revoked")]
    UpstreamRevoked,
    /// A stored former root is in a state that none can be in.
    #[error("a stored former root has no state of its own")]
    State,
    /// rcgen could not write a certificate.
    #[error("a certificate cannot be written: {0}")]
    Encoding(rcgen::Error),
}

/// Why a leaf was not issued.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IssueError {
    /// The identity is of another trust domain than the authority.
    #[error("{id} is not in trust domain {trust_domain}")]
    ForeignTrustDomain {
        /// The identity that was asked for.
        id: SpiffeId,
        /// The authority's own trust domain.
        trust_domain: TrustDomain,
    },
    /// The asked life is out of range.
    #[error("a life of {} s is not from {} s to {} s", asked.as_secs(), shortest.as_secs(), longest.as_secs())]
    Lifetime {
        /// What was asked for.
        asked: Duration,
        /// The shortest that is allowed.
        shortest: Duration,
        /// The longest that is allowed.
        longest: Duration,
    },
    /// The intermediate expires too soon for even the shortest leaf; `maintain` was not called.
    #[error("the intermediate expires too soon to sign")]
    IssuerExpiring,
    /// Clock, entropy or encoding.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The signed leaf does not obey the profile; it is not given out.
    #[error("the signed leaf breaks the profile: {0}")]
    Profile(#[from] SvidError),
}

/// A signed leaf with the chain up to, but without, the root.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IssuedSvid {
    /// Leaf first, then the intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's serial number.
    pub serial: Serial,
    /// The leaf's validity, in whole seconds.
    pub validity: Validity,
    /// SHA-256 of the root that it leads to.
    pub root: [u8; 32],
}

/// The authority of one instance. See the module for its states. `Debug` shows no key.
///
/// A clone is made before a change: the change is written down whole, and takes effect only then.
#[derive(Clone, Debug)]
pub struct CertificateAuthority {
    trust_domain: TrustDomain,
    instance: String,
    settings: CaSettings,
    active: Arc<SigningAuthority>,
    active_since: SystemTime,
    prepared: Option<Prepared>,
    /// In the order in which they ceased to be active or prepared.
    former: Vec<Former>,
    intermediate: Arc<SigningAuthority>,
    high_water: SystemTime,
}

impl CertificateAuthority {
    /// Makes root and intermediate for `instance` of `trust_domain`, with default lifetimes.
    ///
    /// # Errors
    ///
    /// [`AuthorityError`]: the name, the entropy or the clock.
    pub fn create(
        trust_domain: &TrustDomain,
        instance: &str,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        Self::create_with(trust_domain, instance, CaSettings::default(), now)
    }

    /// As [`CertificateAuthority::create`], with other lifetimes.
    ///
    /// # Errors
    ///
    /// As [`CertificateAuthority::create`].
    pub fn create_with(
        trust_domain: &TrustDomain,
        instance: &str,
        settings: CaSettings,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        SpiffeId::server(trust_domain, instance).map_err(AuthorityError::Instance)?;
        let active = SigningAuthority::root(trust_domain, instance, settings.root_lifetime, now)?;
        Self::under(Arc::new(active), trust_domain, instance, settings, now)
    }

    /// As [`CertificateAuthority::create_with`], under an upstream authority instead of a root of its own.
    ///
    /// # Errors
    ///
    /// As [`CertificateAuthority::create`].
    pub fn create_under(
        upstream: &Upstream,
        trust_domain: &TrustDomain,
        instance: &str,
        settings: CaSettings,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        SpiffeId::server(trust_domain, instance).map_err(AuthorityError::Instance)?;
        let settings = CaSettings { roots: Roots::Upstream, ..settings };
        Self::under(Arc::clone(&upstream.authority), trust_domain, instance, settings, now)
    }

    fn under(
        active: Arc<SigningAuthority>,
        trust_domain: &TrustDomain,
        instance: &str,
        settings: CaSettings,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let intermediate =
            active.intermediate(trust_domain, instance, settings.intermediate_lifetime, now)?;
        Ok(Self {
            trust_domain: trust_domain.clone(),
            instance: instance.to_owned(),
            settings,
            active,
            active_since: now,
            prepared: None,
            former: Vec::new(),
            intermediate: Arc::new(intermediate),
            high_water: now,
        })
    }

    /// Signs a leaf that says `id` over the request's key, from a minute ago until `ttl` from now.
    ///
    /// Nothing of the request but its key is used. The life is cut where the intermediate ends, less a
    /// minute. What was signed is read back and checked before it is given out.
    ///
    /// # Errors
    ///
    /// [`IssueError`]. Nothing is signed if the clock went back by more than [`CLOCK_TOLERANCE`].
    pub fn issue(
        &mut self,
        request: &SigningRequest,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<IssuedSvid, IssueError> {
        self.check_clock(now)?;
        if id.trust_domain() != &self.trust_domain {
            let trust_domain = self.trust_domain.clone();
            return Err(IssueError::ForeignTrustDomain { id: id.clone(), trust_domain });
        }
        let shortest = self.settings.lifetimes.shortest();
        let longest = self.settings.longest_leaf.min(LONGEST_LEAF);
        if !(shortest..=longest).contains(&ttl) {
            return Err(IssueError::Lifetime { asked: ttl, shortest, longest });
        }
        let not_after = (now + ttl).min(self.intermediate.last_child_expiry());
        if not_after < now + shortest {
            return Err(IssueError::IssuerExpiring);
        }
        let validity = Validity { not_before: backdated(now), not_after };
        let leaf = self.intermediate.leaf(request, id, validity)?;
        let issued = check_issued(&leaf, id)?;
        self.high_water = self.high_water.max(now);
        let issuer = self.intermediate.certificate();
        let chain = [&leaf, issuer].into_iter().chain(self.active.presented()).cloned().collect();
        Ok(IssuedSvid { chain, root: fingerprint(self.active.root_certificate()), ..issued })
    }

    /// The trust domain that is signed for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The name of the control plane instance.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The lifetimes in force.
    pub fn settings(&self) -> &CaSettings {
        &self.settings
    }

    /// The root that new leaves lead to. The control listener appends it to the chain that it presents.
    pub fn active_root(&self) -> &CertificateDer<'static> {
        self.active.root_certificate()
    }

    /// Whether what signs now is under the root of somebody else.
    pub fn is_under_upstream(&self) -> bool {
        self.active.is_upstream()
    }

    /// What signs leaves, under the active root.
    pub fn intermediate(&self) -> &CertificateDer<'static> {
        self.intermediate.certificate()
    }

    /// When the active root is valid.
    pub fn root_validity(&self) -> Validity {
        self.active.validity()
    }

    /// When the intermediate is valid.
    pub fn intermediate_validity(&self) -> Validity {
        self.intermediate.validity()
    }

    /// The latest moment of a signature. Store it; it is part of [`AuthorityParts`].
    pub fn high_water(&self) -> SystemTime {
        self.high_water
    }

    /// Takes in when others of this authority's lineage have signed: no earlier time is believed.
    pub fn signed_at(&mut self, high_water: SystemTime) {
        self.high_water = self.high_water.max(high_water);
    }

    fn check_clock(&self, now: SystemTime) -> Result<(), AuthorityError> {
        match self.high_water.duration_since(now) {
            Ok(back) if back > CLOCK_TOLERANCE => Err(AuthorityError::ClockWentBack(back)),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

impl IssuedSvid {
    /// Reads a leaf for `id` over the key of `request` that another instance has signed, with the chain above it and the
    /// fingerprint of the `root` that it leads to.
    ///
    /// # Errors
    ///
    /// [`SvidError`]: it is none, is for somebody else, or over another key.
    pub fn read(
        chain: Vec<CertificateDer<'static>>,
        id: &SpiffeId,
        request: &SigningRequest,
        root: [u8; 32],
    ) -> Result<Self, SvidError> {
        svid::profile::check_size(&chain)?;
        let issued = check_issued(chain.first().ok_or(SvidError::Empty)?, id)?;
        if Certificate::parse(&chain[0])?.spki != request.public_key() {
            return Err(SvidError::KeyMismatch);
        }
        Ok(Self { chain, root, ..issued })
    }
}

/// Reads a signed leaf as a stranger would. The chain and the root of the result are left empty.
fn check_issued(leaf: &CertificateDer<'static>, id: &SpiffeId) -> Result<IssuedSvid, SvidError> {
    let parsed = Certificate::parse(leaf)?;
    let said = svid::profile::check_leaf(&parsed)?;
    svid::profile::check_leaf_purposes(&parsed)?;
    let names_are_critical = parsed.alternative_names()?.is_some_and(|names| names.critical);
    if &said != id || !names_are_critical {
        return Err(SvidError::Malformed);
    }
    Ok(IssuedSvid {
        chain: Vec::new(),
        root: [0; 32],
        serial: Serial::from_integer(parsed.serial)?,
        validity: Validity { not_before: parsed.not_before, not_after: parsed.not_after },
    })
}
