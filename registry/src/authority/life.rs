//! Changes of the authority, one after another: by the schedule, and by people.
//!
//! ```text
//! copy ──step──▶ parts on disk ──▶ bundle in the store ──▶ in use: slots, watchers, signatures
//! ```
//!
//! Invariants: nothing that is not on disk is published, and nothing that is not published signs; a crash anywhere
//! between leaves an authority whose next start completes the step (security.md 3.3, 7).

use std::time::{Duration, SystemTime};

use tonic::Code;
use tracing::{error, info, warn};
use weft_api::pb::management::{RotateAuthorityRequest, RotateAuthorityResponse};
use weft_identity::{
    bundle::TrustBundle,
    ca::{CertificateAuthority, Maintained, Root, RootState, StepError},
};
use weft_policy::{code, name::NodeName};

use super::{AuthorityFailure, InstanceAuthority, bundle, disk, hex, upstream};
use crate::{
    core::Authority as _,
    issuance,
    refusal::{Refusal, catalogued},
    store::Store,
    timestamp::rfc3339,
};

/// The least digits of a fingerprint that name a root: as many as a person compares.
const LEAST_DIGITS: usize = 8;
/// From the tainting of a root until flows have left it: agents renew within 60 s, and replace tunnels 5 s later.
const FLOWS_MOVE: Duration = Duration::from_secs(90);
/// The most nodes that a refusal names.
const MAX_NAMED: usize = 10;

/// What a person asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Prepare,
    Activate,
    Taint([u8; 32]),
    Revoke([u8; 32]),
    RollBack,
}

impl Step {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Activate => "activate",
            Self::Taint(_) => "taint",
            Self::Revoke(_) => "revoke",
            Self::RollBack => "rollback",
        }
    }
}

/// Why a step was not taken.
#[derive(Debug)]
enum NotTaken {
    Step(StepError),
    Failure(AuthorityFailure),
}

impl InstanceAuthority {
    /// Does what the schedule says.
    pub(super) async fn maintain(&self, store: &dyn Store) -> Result<(), AuthorityFailure> {
        let now = self.clock.now();
        let _turn = self.turn.lock().await;
        let missing = self.missing_prepared();
        let mut next = self.ca().clone();
        let mut done = self.adopt(&mut next, now).await?.into_iter().collect::<Vec<_>>();
        done.extend(next.maintain(missing.map_or(usize::MAX, |missing| missing.len()), now)?);
        // Published even when nothing was done: a publication that failed before is made up for.
        self.commit(store, next, !done.is_empty()).await?;
        done.iter().for_each(tell);
        if self.own_is_due(now) {
            self.renew_own(store).await?;
        }
        issuance::prune(store, now).await?;
        Ok(())
    }

    /// Looks at the upstream authority's files. What they hold is used or told; what signed before goes on until then.
    async fn adopt(
        &self,
        ca: &mut CertificateAuthority,
        now: SystemTime,
    ) -> Result<Option<Maintained>, AuthorityFailure> {
        if self.settings.upstream.is_none() {
            return Ok(None);
        }
        let (settings, domain) = (self.settings.clone(), self.trust_domain.clone());
        let read = tokio::task::spawn_blocking(move || upstream::read(&settings, &domain, now)).await;
        let read = read.map_err(|_| AuthorityFailure::Interrupted)?;
        let adopted = read.and_then(|upstream| match upstream {
            Some(upstream) => Ok(ca.adopt(&upstream, now)?),
            None => Ok(None),
        });
        let mut fault = self.upstream_fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match adopted {
            Ok(done) => {
                *fault = None;
                Ok(done)
            }
            Err(failure) => {
                error!(error = %failure, code = %failure.code(), "the upstream authority's files are not used");
                *fault = Some(failure.fault());
                Ok(None)
            }
        }
    }

    /// The agents that lack the prepared root; `None` when that is not known. Nobody lacks one that is not there.
    pub(super) fn missing_prepared(&self) -> Option<Vec<NodeName>> {
        let prepared = self.ca().roots().into_iter().find(|root| root.state == RootState::Prepared);
        let Some(prepared) = prepared else { return Some(Vec::new()) };
        self.missing(&prepared.fingerprint)
    }

    /// The agents that have acknowledged no bundle with `root`; `None` when that is not known.
    pub(super) fn missing(&self, root: &[u8; 32]) -> Option<Vec<NodeName>> {
        let since =
            self.published.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(root).copied()?;
        let served = self.clock.uptime().saturating_sub(self.serving);
        Some(self.audience.get()?.missing(since, served))
    }

    /// Writes `next` down, publishes it, and puts it to use.
    pub(super) async fn commit(
        &self,
        store: &dyn Store,
        next: CertificateAuthority,
        changed: bool,
    ) -> Result<(), AuthorityFailure> {
        if changed {
            let (path, parts) = (self.path.clone(), next.to_parts());
            let written = tokio::task::spawn_blocking(move || disk::store(&path, &parts)).await;
            written.map_err(|_| AuthorityFailure::Interrupted)??;
        }
        let own = bundle::Own::of(&next, Some(&self.ca().clone()));
        match bundle::publish(store, &self.trust_domain, next.instance(), own, self.highest.get()).await {
            Ok(bundle) => self.in_force(bundle),
            Err(failure) => {
                // What stands on disk counts, unless it would sign with what nobody has been told of.
                if self.bundle.borrow().roots().any(|root| root == next.active_root()) {
                    self.put_to_use(next);
                }
                return Err(failure);
            }
        }
        self.put_to_use(next);
        Ok(())
    }

    fn put_to_use(&self, mut next: CertificateAuthority) {
        let mut ca = self.ca();
        next.signed_at(ca.high_water());
        *ca = next;
    }

    /// Notes from which bundle on each root is published, as far as this process knows: never too early.
    pub(super) fn note_published(&self, bundle: &TrustBundle) {
        let mut published = self.published.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let roots = bundle.fingerprints();
        published.retain(|root, _| roots.contains(root));
        for root in roots {
            published.entry(root).or_insert_with(|| bundle.sequence());
        }
    }

    /// Takes the step that a person asks for.
    pub(super) async fn step(
        &self,
        request: &RotateAuthorityRequest,
    ) -> Result<RotateAuthorityResponse, Refusal> {
        let Some(audience) = self.audience.get() else {
            return Err(Refusal::new(Code::Unavailable, catalogued(code::STORE_CLOSED, "the server starts")));
        };
        let (now, store) = (self.clock.now(), &*audience.store);
        let _turn = self.turn.lock().await;
        let roots = self.ca().roots();
        let step = wanted(&request.step, &request.root, &roots)?;
        let missing = self.missing_prepared();
        let in_use = match step {
            Step::Revoke(root) if state_of(&roots, &root) == Some(RootState::Tainted) => {
                issuance::in_use_under(store, &root, &audience.banned(), now).await?
            }
            Step::Prepare | Step::Activate | Step::Taint(_) | Step::Revoke(_) | Step::RollBack => Vec::new(),
        };
        if let Step::Revoke(root) = step
            && !request.force
        {
            self.check_moved(&roots, &root, now)?;
        }
        let lacking = missing.as_ref().map_or(usize::MAX, Vec::len);
        let mut next = self.ca().clone();
        let root = take(&mut next, step, (lacking, in_use.len()), request.force, now);
        let taken = match root {
            Ok(root) => self.commit(store, next, true).await.map(|()| root).map_err(NotTaken::Failure),
            Err(error) => Err(NotTaken::Step(error)),
        };
        let root = taken.map_err(|error| refusal(error, &missing.clone().unwrap_or_default(), &in_use))?;
        info!(target: "audit", step = step.as_str(), root = %hex(&root), forced = request.force, "the authority took a step");
        if self.own_is_due(now) {
            self.renew_own(store).await.map_err(|failure| Refusal::new(Code::Internal, failure.fault()))?;
        }
        let mut warnings = Vec::new();
        if step == Step::Activate {
            warnings.extend(self.left_behind(&missing.unwrap_or_default()));
        }
        let next = following(&self.ca().roots());
        Ok(RotateAuthorityResponse {
            step: step.as_str().to_owned(),
            root: hex(&root),
            next: next.map_or_else(String::new, |step| step.as_str().to_owned()),
            warnings,
            authority: Some(self.status()),
        })
    }

    /// Refuses to revoke a root that was tainted just now: every certificate under it is renewed within a minute, and then
    /// flows leave the tunnels in which an end has shown the old one.
    fn check_moved(&self, roots: &[Root], fingerprint: &[u8; 32], now: SystemTime) -> Result<(), Refusal> {
        let tainted = |root: &&Root| root.fingerprint == *fingerprint && root.state == RootState::Tainted;
        let Some(root) = roots.iter().find(tainted) else { return Ok(()) };
        let from = root.since + FLOWS_MOVE.min(self.settings.leaf_ttl);
        match from.duration_since(now) {
            Ok(left) if !left.is_zero() => {
                let what = "agents still move their flows away from the tainted root";
                let why =
                    format!("it was tainted at {}; {} s are left", rfc3339(root.since), left.as_secs() + 1);
                let fault = catalogued(code::ROTATION_WAITS, what).why(why);
                Err(Refusal::new(Code::FailedPrecondition, fault))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Who may be cut off by an activation that was taken all the same.
    fn left_behind(&self, missing: &[NodeName]) -> Vec<String> {
        let id = code::ROTATION_FORCED;
        let mut warnings = Vec::new();
        if !missing.is_empty() {
            warnings.push(format!("{id} these agents have not taken the root: {}", named(missing)));
        }
        let away = self.audience.get().map(super::audience::Audience::away).unwrap_or_default();
        if !away.is_empty() {
            let away = named(&away);
            warnings
                .push(format!("{id} these agents are away, and join anew unless they know the root: {away}"));
        }
        warnings
    }
}

fn state_of(roots: &[Root], fingerprint: &[u8; 32]) -> Option<RootState> {
    roots.iter().find(|root| root.fingerprint == *fingerprint).map(|root| root.state)
}

/// The oldest of this server's roots in `state`.
fn oldest(roots: &[Root], state: RootState) -> Option<[u8; 32]> {
    roots.iter().find(|root| root.state == state).map(|root| root.fingerprint)
}

/// The step that a rotation takes next: one that was begun is completed before another begins.
fn following(roots: &[Root]) -> Option<Step> {
    if oldest(roots, RootState::Prepared).is_some() {
        return Some(Step::Activate);
    }
    let revoke = oldest(roots, RootState::Tainted).map(Step::Revoke);
    revoke.or_else(|| oldest(roots, RootState::Old).map(Step::Taint))
}

fn wanted(step: &str, root: &str, roots: &[Root]) -> Result<Step, Refusal> {
    let only = |state| match find(root, roots)? {
        Some(root) => Ok(root),
        None => oldest(roots, state).ok_or_else(|| no_such_step(format!("no root is {state}"))),
    };
    match step {
        "" => Ok(following(roots).unwrap_or(Step::Prepare)),
        "prepare" => Ok(Step::Prepare),
        "activate" => Ok(Step::Activate),
        "rollback" => Ok(Step::RollBack),
        "taint" => only(RootState::Old).map(Step::Taint),
        "revoke" => only(RootState::Tainted).map(Step::Revoke),
        _ => Err(Refusal::bad_value("step", "a step is prepare, activate, taint, revoke or rollback")),
    }
}

/// The root whose fingerprint begins with `digits`.
fn find(digits: &str, roots: &[Root]) -> Result<Option<[u8; 32]>, Refusal> {
    if digits.is_empty() {
        return Ok(None);
    }
    let digits = digits.to_ascii_lowercase();
    if digits.len() < LEAST_DIGITS {
        let what = format!("a root is named by {LEAST_DIGITS} or more digits of its fingerprint");
        return Err(Refusal::bad_value("root", what));
    }
    let mut found = roots.iter().filter(|root| hex(&root.fingerprint).starts_with(&digits));
    match (found.next(), found.next()) {
        (Some(root), None) => Ok(Some(root.fingerprint)),
        (Some(_), Some(_)) => Err(Refusal::bad_value("root", "several roots begin with these digits")),
        (None, _) => Err(no_such_step("no root of this server has that fingerprint".to_owned())),
    }
}

/// Takes a step on a copy; gives the root that it was about.
fn take(
    ca: &mut CertificateAuthority,
    step: Step,
    (missing, in_use): (usize, usize),
    force: bool,
    now: SystemTime,
) -> Result<[u8; 32], StepError> {
    match step {
        Step::Prepare => ca.prepare(now),
        Step::Activate => ca.activate(missing, force, now),
        Step::RollBack => ca.roll_back(now),
        Step::Taint(root) => ca.taint(&root, now).map(|()| root),
        Step::Revoke(root) => ca.revoke(&root, in_use, force, now).map(|()| root),
    }
}

fn no_such_step(what: String) -> Refusal {
    Refusal::new(Code::FailedPrecondition, catalogued(code::NO_SUCH_STEP, what))
}

/// Why a step was not taken, with whom it waits for.
fn refusal(error: NotTaken, missing: &[NodeName], in_use: &[String]) -> Refusal {
    let error = match error {
        NotTaken::Failure(failure) => return Refusal::new(Code::Unavailable, failure.fault()),
        NotTaken::Step(StepError::Authority(error)) => {
            return Refusal::new(Code::Internal, AuthorityFailure::from(error).fault());
        }
        NotTaken::Step(error) => error,
    };
    let waits = |what: String, who: String| {
        Refusal::new(Code::FailedPrecondition, catalogued(code::ROTATION_WAITS, what).why(who))
    };
    match &error {
        StepError::NotEverywhere(_) if missing.is_empty() => waits(
            "the server has just started and does not know who has the root".to_owned(),
            error.to_string(),
        ),
        StepError::NotEverywhere(_) => {
            let what = format!("{} agents have not taken the prepared root yet", missing.len());
            waits(what, format!("waiting for {}", named(missing)))
        }
        StepError::Unrenewed(_) => waits(error.to_string(), format!("waiting for {}", named(in_use))),
        StepError::NothingPrepared
        | StepError::Unknown
        | StepError::WrongState { .. }
        | StepError::NothingBefore
        | StepError::Upstream
        | StepError::TooMany(_)
        | StepError::Authority(_) => no_such_step(error.to_string()),
    }
}

/// A few names, and how many more there are.
fn named<T: ToString>(names: &[T]) -> String {
    let first: Vec<_> = names.iter().take(MAX_NAMED).map(ToString::to_string).collect();
    match names.len().saturating_sub(MAX_NAMED) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

fn tell(done: &Maintained) {
    match done {
        Maintained::IntermediateRenewed => info!("the intermediate was renewed"),
        Maintained::UpstreamReplaced => info!("another certificate of the upstream authority signs"),
        Maintained::RootPrepared { fingerprint } => {
            info!(root = %hex(fingerprint), "a new root is in the bundle");
        }
        Maintained::RootActivated { fingerprint, forced: false } => {
            info!(root = %hex(fingerprint), "the new root signs");
        }
        Maintained::RootActivated { fingerprint, forced: true } => {
            let code = code::ROTATION_FORCED;
            error!(target: "audit", root = %hex(fingerprint), %code, "the new root signs although not every agent has taken it: the one before ends");
        }
        Maintained::KeyForgotten { fingerprint } => {
            info!(root = %hex(fingerprint), "the key of a former root is gone");
        }
        Maintained::RootRemoved { fingerprint } => {
            warn!(root = %hex(fingerprint), "a former root left the bundle");
        }
    }
}
