//! The life of an authority's roots: which state each is in, and which step may follow (security.md 3.3).
//!
//! ```text
//! prepared ──activate──▶ active ──activate of another──▶ old ──taint──▶ tainted ──revoke──▶ revoked
//!    │                     ▲                             │ ▲
//!    └──revoke──▶ revoked  └─────────roll back───────────┘ └── the one that was active until then
//! ```
//!
//! Pure: what agents have acknowledged and which certificates were not renewed is told by the caller with each step. The
//! caller writes a changed authority to disk, publishes its bundle, and only then lets it sign.
//!
//! Invariants: one root is active, and at most one prepared; every root but a revoked one is in the bundle until a while
//! after its end; the key of a root that cannot be active any more is gone.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;

use super::authority::SigningAuthority;
use super::{AuthorityError, CertificateAuthority, Roots, Upstream};
use crate::svid::Validity;
use crate::x509::fingerprint;

#[cfg(test)]
mod tests;

/// A new root is prepared this long before the active one ends, or at half of its life (security.md 3.1, SPIRE's rule).
const PREPARE_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

/// This long before the active root ends, or at a sixth of its life, the prepared one signs whoever has not taken it: an
/// agent that does not answer must not end the mesh (security.md 3.1, SPIRE's moment of activation).
const LAST_BEFORE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long an expired root stays in the bundle (security.md 3.3, 8), or a twelfth of its life if that is shorter.
const KEPT_AFTER_EXPIRY: Duration = Duration::from_secs(24 * 3600);

/// The most roots that people may let one instance publish: ten instances fit into a bundle of 64, and the schedule has
/// room for its own.
pub(super) const MAX_ROOTS: usize = 6;

/// The most revoked roots that are remembered: they are told to people, and nothing depends on them.
const MAX_REVOKED: usize = 16;

/// Where a root is in its life.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum RootState {
    /// Published, and does not sign yet.
    Prepared,
    /// Signs.
    Active,
    /// Signs no more; what it has signed is good.
    Old,
    /// What it has signed is to be renewed at once, and is good until it is.
    Tainted,
    /// Not in the bundle any more: what it has signed is refused.
    Revoked,
}

impl RootState {
    /// The word for it, in every output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Old => "old",
            Self::Tainted => "tainted",
            Self::Revoked => "revoked",
        }
    }
}

impl fmt::Display for RootState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A root as others see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Root {
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// SHA-256 of its DER.
    pub fingerprint: [u8; 32],
    /// When it is valid.
    pub validity: Validity,
    /// Where it is in its life.
    pub state: RootState,
    /// Since when.
    pub since: SystemTime,
    /// Whether signing with it can be taken up again.
    pub can_return: bool,
}

/// Why a step is not taken. Nothing has changed then.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StepError {
    /// There is no prepared root.
    #[error("no root is prepared")]
    NothingPrepared,
    /// Who lacks the prepared root would refuse everybody whose certificate is under it.
    #[error("{0} of the connected agents have not taken the prepared root yet")]
    NotEverywhere(usize),
    /// No root has that fingerprint.
    #[error("there is no such root")]
    Unknown,
    /// The root is in another state than the step needs.
    #[error("the root is {state}, and only one that is {needs} can be {wanted}")]
    WrongState {
        /// Where it is.
        state: RootState,
        /// Where it would have to be.
        needs: &'static str,
        /// Where it was to go.
        wanted: RootState,
    },
    /// Who presents one of them would be refused by everybody.
    #[error("{0} valid certificates under the root have not been renewed")]
    Unrenewed(usize),
    /// There is no earlier root whose key is still there and whose life is not over.
    #[error("there is no earlier root to go back to")]
    NothingBefore,
    /// Roots are not made here.
    #[error("the root is that of the upstream authority: another comes with its files")]
    Upstream,
    /// As many roots are published as may be.
    #[error("{0} roots are published already, at most {MAX_ROOTS} may be")]
    TooMany(usize),
    /// Clock, entropy, or encoding.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// What [`CertificateAuthority::maintain`] has changed. Store the parts, then publish the bundle.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Maintained {
    /// The intermediate was replaced; the old key is gone.
    IntermediateRenewed,
    /// The upstream authority has another certificate under the same root, which signs from now on.
    UpstreamReplaced,
    /// A new root is in the bundle, and does not sign yet.
    RootPrepared {
        /// SHA-256 of its DER.
        fingerprint: [u8; 32],
    },
    /// The prepared root signs now; the one before is old.
    RootActivated {
        /// SHA-256 of its DER.
        fingerprint: [u8; 32],
        /// There was no time left to wait for every agent.
        forced: bool,
    },
    /// The key of an old root is gone: its life is over.
    KeyForgotten {
        /// SHA-256 of its DER.
        fingerprint: [u8; 32],
    },
    /// An expired root has left the bundle, or a revoked one the memory.
    RootRemoved {
        /// SHA-256 of its DER.
        fingerprint: [u8; 32],
    },
}

/// A root that waits to sign.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) authority: Arc<SigningAuthority>,
    pub(super) since: SystemTime,
}

/// A root that signs no more.
#[derive(Clone, Debug)]
pub(super) struct Former {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) validity: Validity,
    pub(super) state: FormerState,
    pub(super) since: SystemTime,
}

/// The states of a root that signs no more.
#[derive(Clone, Debug)]
pub(super) enum FormerState {
    /// With its key, as long as it may become active again.
    Old(Option<Arc<SigningAuthority>>),
    Tainted,
    Revoked,
}

impl Former {
    fn new(authority: Arc<SigningAuthority>, now: SystemTime) -> Self {
        let (certificate, validity) = (authority.root_certificate().clone(), authority.validity());
        Self { certificate, validity, state: FormerState::Old(Some(authority)), since: now }
    }

    fn is(&self, root: &[u8; 32]) -> bool {
        fingerprint(&self.certificate) == *root
    }

    pub(super) const fn named_state(&self) -> RootState {
        match self.state {
            FormerState::Old(_) => RootState::Old,
            FormerState::Tainted => RootState::Tainted,
            FormerState::Revoked => RootState::Revoked,
        }
    }

    const fn is_published(&self) -> bool {
        !matches!(self.state, FormerState::Revoked)
    }

    const fn has_key(&self) -> bool {
        matches!(self.state, FormerState::Old(Some(_)))
    }

    /// When it is forgotten: a revoked one as soon as nothing under it could be valid.
    fn forgotten_at(&self) -> SystemTime {
        match self.state {
            FormerState::Revoked => self.validity.not_after,
            FormerState::Old(_) | FormerState::Tainted => {
                self.validity.not_after + KEPT_AFTER_EXPIRY.min(self.validity.period() / 12)
            }
        }
    }
}

impl CertificateAuthority {
    /// Prepares a new root: in the bundle from now on, signing only after [`CertificateAuthority::activate`]. Gives its
    /// fingerprint; one that is prepared already stays.
    ///
    /// # Errors
    ///
    /// [`StepError::TooMany`]; clock, entropy.
    pub fn prepare(&mut self, now: SystemTime) -> Result<[u8; 32], StepError> {
        if self.settings.roots == Roots::Upstream {
            return Err(StepError::Upstream);
        }
        let published = self.bundle_roots().len();
        if self.prepared.is_none() && published >= MAX_ROOTS {
            return Err(StepError::TooMany(published));
        }
        Ok(self.prepare_root(now)?)
    }

    /// Signs with the prepared root from now on, through a new intermediate. Gives its fingerprint.
    ///
    /// `missing` is how many connected agents have not acknowledged a bundle with the prepared root. The root before is
    /// old from now on; its key stays until the next activation, so that this one can be taken back.
    ///
    /// # Errors
    ///
    /// [`StepError::NothingPrepared`]; [`StepError::NotEverywhere`] without `force`; clock, entropy.
    pub fn activate(&mut self, missing: usize, force: bool, now: SystemTime) -> Result<[u8; 32], StepError> {
        self.check_clock(now)?;
        if self.prepared.is_none() {
            return Err(StepError::NothingPrepared);
        }
        if missing > 0 && !force {
            return Err(StepError::NotEverywhere(missing));
        }
        Ok(self.activate_root(now)?)
    }

    /// Signs with the root before again; the present one becomes old. Gives the fingerprint of the former.
    ///
    /// # Errors
    ///
    /// [`StepError::NothingBefore`]; clock, entropy.
    pub fn roll_back(&mut self, now: SystemTime) -> Result<[u8; 32], StepError> {
        self.check_clock(now)?;
        let returns = |former: &Former| match &former.state {
            FormerState::Old(key) => {
                key.clone().filter(|key| now + self.settings.lifetimes.shortest() < key.last_child_expiry())
            }
            FormerState::Tainted | FormerState::Revoked => None,
        };
        let found =
            self.former.iter().enumerate().find_map(|(place, former)| Some((place, returns(former)?)));
        let (place, before) = found.ok_or(StepError::NothingBefore)?;
        let intermediate = self.intermediate_under(&before, now)?;
        self.former.remove(place);
        Ok(self.sign_with(before, intermediate, now))
    }

    /// Says that everything under an old root is to be renewed at once. Its key is gone from now on.
    ///
    /// # Errors
    ///
    /// [`StepError::Unknown`], [`StepError::WrongState`].
    pub fn taint(&mut self, root: &[u8; 32], now: SystemTime) -> Result<(), StepError> {
        let state = self.state_of(root)?;
        let former = self.former.iter_mut().find(|former| former.is(root) && state == RootState::Old);
        let wanted = RootState::Tainted;
        let former = former.ok_or(StepError::WrongState { state, needs: "old", wanted })?;
        former.state = FormerState::Tainted;
        former.since = now;
        Ok(())
    }

    /// Takes a tainted or prepared root out of the bundle: whoever still presents a certificate under it is refused.
    ///
    /// `unrenewed` is how many certificates under it are valid and in use.
    ///
    /// # Errors
    ///
    /// [`StepError::Unknown`], [`StepError::WrongState`]; [`StepError::Unrenewed`] without `force`.
    pub fn revoke(
        &mut self,
        root: &[u8; 32],
        unrenewed: usize,
        force: bool,
        now: SystemTime,
    ) -> Result<(), StepError> {
        let state = self.state_of(root)?;
        if !matches!(state, RootState::Tainted | RootState::Prepared) {
            let (needs, wanted) = ("tainted or prepared", RootState::Revoked);
            return Err(StepError::WrongState { state, needs, wanted });
        }
        if unrenewed > 0 && !force {
            return Err(StepError::Unrenewed(unrenewed));
        }
        if let Some(prepared) = self.prepared.take_if(|_| state == RootState::Prepared) {
            self.former.push(Former::new(prepared.authority, now));
        }
        if let Some(former) = self.former.iter_mut().find(|former| former.is(root)) {
            former.state = FormerState::Revoked;
            former.since = now;
        }
        let revoked = self.former.iter().filter(|former| !former.is_published()).count();
        if revoked > MAX_REVOKED
            && let Some(oldest) = self.former.iter().position(|former| !former.is_published())
        {
            self.former.remove(oldest);
        }
        Ok(())
    }

    /// Does what is due at `now`: forgets what has expired, prepares and activates roots, renews the intermediate. Call it
    /// at start and at [`CertificateAuthority::next_due`]; store the parts if anything is returned.
    ///
    /// `missing` is how many connected agents have not acknowledged a bundle with the prepared root. While there are
    /// some, it does not sign, until so little is left of the active one that waiting would end the mesh.
    ///
    /// # Errors
    ///
    /// [`AuthorityError`]: clock, entropy. What was changed before the error stays.
    pub fn maintain(&mut self, missing: usize, now: SystemTime) -> Result<Vec<Maintained>, AuthorityError> {
        self.check_clock(now)?;
        let mut done = self.forget_expired(now);
        let missing = if self.prepared.is_some() { missing } else { usize::MAX };
        let own = self.settings.roots == Roots::Own;
        if own && self.prepared.is_none() && self.prepare_at() <= now {
            done.push(Maintained::RootPrepared { fingerprint: self.prepare_root(now)? });
        }
        let forced = missing > 0;
        let due = if forced { Some(self.last_at()) } else { self.activate_at() };
        if self.prepared.is_some() && due.is_some_and(|due| due <= now) {
            let fingerprint = self.activate_root(now)?;
            done.push(Maintained::RootActivated { fingerprint, forced });
        } else if self.intermediate.half() <= now {
            self.intermediate = self.intermediate_under(&self.active, now)?;
            done.push(Maintained::IntermediateRenewed);
        }
        Ok(done)
    }

    /// Takes in what the upstream authority's files hold. Another certificate under the same root signs from now on; another
    /// root is prepared, and signs by the rules of every root. Nothing, if it is known already.
    ///
    /// # Errors
    ///
    /// [`AuthorityError::UpstreamRevoked`]; clock, entropy. Nothing has changed then.
    pub fn adopt(
        &mut self,
        upstream: &Upstream,
        now: SystemTime,
    ) -> Result<Option<Maintained>, AuthorityError> {
        self.check_clock(now)?;
        let next = &upstream.authority;
        let known = |authority: &SigningAuthority| authority.certificate() == next.certificate();
        if known(&self.active) || self.prepared.as_ref().is_some_and(|prepared| known(&prepared.authority)) {
            return Ok(None);
        }
        let root = fingerprint(next.root_certificate());
        if self.former.iter().any(|former| former.is(&root) && !former.is_published()) {
            return Err(AuthorityError::UpstreamRevoked);
        }
        if next.root_certificate() == self.active.root_certificate() {
            self.intermediate = self.intermediate_under(next, now)?;
            self.active = Arc::clone(next);
            return Ok(Some(Maintained::UpstreamReplaced));
        }
        self.former.retain(|former| !former.is(&root));
        self.prepared = Some(Prepared { authority: Arc::clone(next), since: now });
        Ok(Some(Maintained::RootPrepared { fingerprint: root }))
    }

    /// When [`CertificateAuthority::maintain`] has something to do next, should every agent have the prepared root.
    pub fn next_due(&self) -> SystemTime {
        let rotation = self.activate_at().unwrap_or_else(|| self.prepare_at());
        let former = self.former.iter().map(Former::forgotten_at);
        former.fold(rotation.min(self.intermediate.half()), SystemTime::min)
    }

    /// What the schedule does next to a root, and when, should every agent have the prepared one.
    pub fn next_rotation(&self) -> (RootState, SystemTime) {
        match self.activate_at() {
            Some(at) => (RootState::Active, at),
            None => (RootState::Prepared, self.prepare_at()),
        }
    }

    /// Every root that is known, the active one first, then a prepared one, then former ones.
    pub fn roots(&self) -> Vec<Root> {
        let view = |authority: &SigningAuthority, state, since| Root {
            certificate: authority.root_certificate().clone(),
            fingerprint: fingerprint(authority.root_certificate()),
            validity: authority.validity(),
            state,
            since,
            can_return: false,
        };
        let active = view(&self.active, RootState::Active, self.active_since);
        let prepared =
            self.prepared.iter().map(|next| view(&next.authority, RootState::Prepared, next.since));
        let former = self.former.iter().map(|former| Root {
            certificate: former.certificate.clone(),
            fingerprint: fingerprint(&former.certificate),
            validity: former.validity,
            state: former.named_state(),
            since: former.since,
            can_return: former.has_key(),
        });
        std::iter::once(active).chain(prepared).chain(former).collect()
    }

    /// The roots to publish: all but the revoked.
    pub fn bundle_roots(&self) -> Vec<CertificateDer<'static>> {
        let published = self.roots().into_iter().filter(|root| root.state != RootState::Revoked);
        published.map(|root| root.certificate).collect()
    }

    /// SHA-256 of each root under which everything is to be renewed at once.
    pub fn tainted_roots(&self) -> Vec<[u8; 32]> {
        let tainted = self.roots().into_iter().filter(|root| root.state == RootState::Tainted);
        tainted.map(|root| root.fingerprint).collect()
    }

    /// The root that waits to be activated, and since when.
    pub fn prepared_root(&self) -> Option<(&CertificateDer<'static>, SystemTime)> {
        self.prepared.as_ref().map(|prepared| (prepared.authority.root_certificate(), prepared.since))
    }

    /// When the schedule prepares the next root.
    fn prepare_at(&self) -> SystemTime {
        if self.active.is_upstream() && self.settings.roots == Roots::Own {
            return self.active_since; // the mesh is to have a root of its own again
        }
        self.active.validity().not_after - PREPARE_BEFORE.min(self.active.life() / 2)
    }

    /// When the schedule activates the prepared root, if every agent has it.
    fn activate_at(&self) -> Option<SystemTime> {
        let prepared = self.prepared.as_ref()?;
        let settled = prepared.since + self.settings.settle;
        if prepared.authority.is_upstream() {
            return Some(settled.min(self.last_at())); // whoever has exchanged the files means it now
        }
        // What a person has prepared early waits for its time: a root is not thrown away for that.
        Some(settled.max(self.prepare_at()).min(self.last_at()))
    }

    /// When the schedule activates the prepared root, whoever has it.
    fn last_at(&self) -> SystemTime {
        self.active.validity().not_after - LAST_BEFORE.min(self.active.life() / 6)
    }

    fn state_of(&self, root: &[u8; 32]) -> Result<RootState, StepError> {
        let found = self.roots().into_iter().find(|found| found.fingerprint == *root);
        found.map(|found| found.state).ok_or(StepError::Unknown)
    }

    fn prepare_root(&mut self, now: SystemTime) -> Result<[u8; 32], AuthorityError> {
        self.check_clock(now)?;
        if let Some(prepared) = &self.prepared {
            return Ok(fingerprint(prepared.authority.root_certificate()));
        }
        let lifetime = self.settings.root_lifetime;
        let authority = SigningAuthority::root(&self.trust_domain, &self.instance, lifetime, now)?;
        let name = fingerprint(authority.certificate());
        self.prepared = Some(Prepared { authority: Arc::new(authority), since: now });
        Ok(name)
    }

    /// Signs with the prepared root; with the present one still, when none is prepared.
    fn activate_root(&mut self, now: SystemTime) -> Result<[u8; 32], AuthorityError> {
        let Some(prepared) = &self.prepared else { return Ok(fingerprint(self.active_root())) };
        let next = Arc::clone(&prepared.authority);
        let intermediate = self.intermediate_under(&next, now)?;
        self.forget_keys(|_| true);
        self.prepared = None;
        Ok(self.sign_with(next, intermediate, now))
    }

    fn intermediate_under(
        &self,
        root: &SigningAuthority,
        now: SystemTime,
    ) -> Result<Arc<SigningAuthority>, AuthorityError> {
        let lifetime = self.settings.intermediate_lifetime;
        root.intermediate(&self.trust_domain, &self.instance, lifetime, now).map(Arc::new)
    }

    fn sign_with(
        &mut self,
        root: Arc<SigningAuthority>,
        intermediate: Arc<SigningAuthority>,
        now: SystemTime,
    ) -> [u8; 32] {
        let before = std::mem::replace(&mut self.active, root);
        self.former.push(Former::new(before, now));
        self.intermediate = intermediate;
        self.active_since = now;
        fingerprint(self.active.root_certificate())
    }

    /// Drops the keys of old roots that `which` chooses. Gives their fingerprints.
    fn forget_keys(&mut self, which: impl Fn(&Former) -> bool) -> Vec<[u8; 32]> {
        let chosen = self.former.iter_mut().filter(|former| former.has_key() && which(former));
        let forget = |former: &mut Former| {
            former.state = FormerState::Old(None);
            fingerprint(&former.certificate)
        };
        chosen.map(forget).collect()
    }

    fn forget_expired(&mut self, now: SystemTime) -> Vec<Maintained> {
        let keys = self.forget_keys(|former| former.validity.not_after <= now);
        let (gone, kept) =
            std::mem::take(&mut self.former).into_iter().partition(|former| former.forgotten_at() <= now);
        self.former = kept;
        let gone: Vec<Former> = gone;
        let removed = gone.iter().map(|former| fingerprint(&former.certificate));
        let keys = keys.into_iter().map(|fingerprint| Maintained::KeyForgotten { fingerprint });
        keys.chain(removed.map(|fingerprint| Maintained::RootRemoved { fingerprint })).collect()
    }
}
