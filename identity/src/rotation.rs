//! Decides when the SVID of one workload is renewed.
//!
//! Owns the schedule from first request to expiry. Does not talk to the issuer (that is the node's
//! control plane client), does not make keys and does not hand them to rustls (that is [`crate::tls`]).
//!
//! [`Rotation`] performs no I/O and has no randomness: the caller passes `now` and a uniform draw in,
//! carries out the returned [`Action`] and reports the answer. All times are wall clock times, looked at
//! anew at least every 30 s, because a monotonic clock stands still while a machine sleeps.
//!
//! ```text
//! Empty ──issued──▶ Fresh ──0.45..0.55 of life──▶ Renewing ──issued──▶ Fresh
//!                     └───────not_after──────────────┴──▶ Expired ──issued──▶ Fresh
//! ```
//!
//! Invariants: an SVID is never published at or after its `not_after`; a valid one is kept until another
//! takes its place, and one that is not valid yet takes no place; at most one request is under way.

use std::time::{Duration, SystemTime};

use crate::spiffe::SpiffeId;
use crate::svid::{Svid, Validity};

/// Renewal starts between these fractions of the life (security.md 3.2): 10.8 h in reserve at 24 h, and
/// workloads that were started together do not renew together.
pub const RENEWAL_WINDOW: (f64, f64) = (0.45, 0.55);

/// Longest wait that is ever returned (security.md 3.2): the wall clock is looked at again after it.
pub const RECHECK: Duration = Duration::from_secs(30);

/// First back-off ceiling; each failure doubles it (security.md 3.2).
pub const BACKOFF_BASE: Duration = Duration::from_secs(1);

/// Last back-off ceiling, also for a wait that the issuer asks for (security.md 3.2).
pub const BACKOFF_CAP: Duration = Duration::from_secs(300);

/// Shortest wait after a failure, so that an unlucky draw does not ask again at once.
pub const BACKOFF_FLOOR: Duration = Duration::from_millis(100);

/// How far issuers date notBefore back; that part of the validity was never usable.
pub const BACKDATE: Duration = Duration::from_secs(60);

/// The part of its usable life that an SVID has left when its renewal is overdue: a twentieth of it after the last moment
/// at which it is asked for.
const OVERDUE: f64 = 1.0 - RENEWAL_WINDOW.1 - 0.05;

/// The part that is left when somebody must see to it at once (security.md 3.5).
const ENDING: f64 = 0.25;

/// How late the renewal of an SVID is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Lateness {
    /// It is not late.
    OnTime,
    /// Less than 0.4 of its usable life is left: it should have been renewed.
    Overdue,
    /// Less than a quarter is left.
    Ending,
}

/// How late the renewal of an SVID is at `now`; one that has expired is [`Lateness::Ending`].
pub fn lateness(validity: &Validity, now: SystemTime) -> Lateness {
    let life = validity.period().saturating_sub(BACKDATE);
    let left = validity.remaining(now);
    if left < life.mul_f64(ENDING) || left.is_zero() {
        Lateness::Ending
    } else if left < life.mul_f64(OVERDUE) {
        Lateness::Overdue
    } else {
        Lateness::OnTime
    }
}

/// What the caller has to do next.
#[derive(Clone, Debug)]
pub enum Action {
    /// Make a key, ask the issuer, and report with [`Rotation::handle_answer`].
    Request,
    /// Present this SVID from now on.
    Publish(Svid),
    /// Present none any more: the SVID has expired.
    Withdraw,
    /// Call [`Rotation::next`] again then, at most [`RECHECK`] from now, or after an answer.
    WaitUntil(SystemTime),
}

/// The issuer did not issue.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Refusal {
    /// How long the issuer asked to be left alone, if it did.
    pub retry_after: Option<Duration>,
}

/// What is wrong with an SVID that the issuer gave. It is dropped, and asked for again later.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RotationError {
    /// The SVID is for somebody else.
    #[error("the issuer gave an SVID of {given} instead of {expected}")]
    WrongId {
        /// Whom it was asked for.
        expected: SpiffeId,
        /// Whom it names.
        given: SpiffeId,
    },
    /// The SVID has expired already: the clocks of node and issuer disagree, or the answer was old.
    #[error("the issuer gave an SVID of {0} that has expired")]
    Expired(SpiffeId),
    /// The SVID is not valid yet: the issuer's clock is ahead of this one by more than [`BACKDATE`]. The one
    /// that is held serves better.
    #[error("the issuer gave an SVID of {id} that is valid only in {} s: the clocks disagree", early.as_secs())]
    NotYetValid {
        /// Whose SVID it is.
        id: SpiffeId,
        /// How far its notBefore lies in the future.
        early: Duration,
    },
}

/// Where a rotation stands, for readiness and `weft status`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// There was no SVID yet.
    Empty,
    /// The SVID is valid and young.
    Fresh,
    /// The SVID is valid, another is being asked for.
    Renewing,
    /// The SVID has expired; nothing is presented.
    Expired,
}

/// Keeps one SVID current. See the module for the states.
#[derive(Clone, Debug)]
pub struct Rotation {
    id: SpiffeId,
    state: State,
    unpublished: Option<Svid>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Empty(Attempt),
    Fresh { validity: Validity, renew_at: SystemTime },
    Renewing { validity: Validity, attempt: Attempt },
    Expired(Attempt),
}

#[derive(Clone, Copy, Debug)]
enum Attempt {
    Due { failures: u32 },
    UnderWay { failures: u32 },
    BackOff { failures: u32, until: SystemTime },
}

impl Rotation {
    /// Starts without an SVID: the first action is a request.
    pub fn new(id: SpiffeId) -> Self {
        Self { id, state: State::Empty(Attempt::Due { failures: 0 }), unpublished: None }
    }

    /// Starts with an SVID that was kept on disk. `draw` is uniform in `0.0..1.0`.
    ///
    /// One that is not valid yet is presented all the same, while another is asked for: it is this clock that
    /// may be behind, and whether the SVID is valid is the peer's to say.
    ///
    /// # Errors
    ///
    /// [`RotationError`] if it cannot be used any more; start with [`Rotation::new`] then.
    pub fn resume(id: SpiffeId, svid: Svid, now: SystemTime, draw: f64) -> Result<Self, RotationError> {
        let mut rotation = Self::new(id);
        rotation.accept(svid, now, draw)?;
        Ok(rotation)
    }

    /// Whose SVID this is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Where the rotation stands. Expiry shows after the next call of [`Rotation::next`].
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Empty(_) => Phase::Empty,
            State::Fresh { .. } => Phase::Fresh,
            State::Renewing { .. } => Phase::Renewing,
            State::Expired(_) => Phase::Expired,
        }
    }

    /// When the current SVID expires, `None` without a valid one.
    pub fn not_after(&self) -> Option<SystemTime> {
        match self.state {
            State::Fresh { validity, .. } | State::Renewing { validity, .. } => Some(validity.not_after),
            State::Empty(_) | State::Expired(_) => None,
        }
    }

    /// What to do at `now`. Call again after each action is carried out.
    pub fn next(&mut self, now: SystemTime) -> Action {
        if let Some(svid) = self.unpublished.take()
            && now < svid.validity().not_after
        {
            return Action::Publish(svid);
        }
        if self.not_after().is_some_and(|not_after| not_after <= now) {
            self.state = State::Expired(self.attempt());
            return Action::Withdraw;
        }
        if let State::Fresh { validity, renew_at } = self.state
            && renew_at <= now
        {
            self.state = State::Renewing { validity, attempt: Attempt::Due { failures: 0 } };
        }
        self.request_or_wait(now)
    }

    /// Takes the answer to a request in. `draw` is uniform in `0.0..1.0`.
    ///
    /// A refusal is answered by a back-off with full jitter: uniform up to 1 s, 2 s, 4 s … 5 min, or what
    /// the issuer asked for if that is longer, up to the same cap.
    ///
    /// # Errors
    ///
    /// [`RotationError`] if the SVID cannot be used; it counts as a refusal.
    pub fn handle_answer(
        &mut self,
        answer: Result<Svid, Refusal>,
        now: SystemTime,
        draw: f64,
    ) -> Result<(), RotationError> {
        match answer {
            Ok(svid) => self.accept(svid, now, draw).inspect_err(|_| self.back_off(None, now, draw)),
            Err(refusal) => {
                self.back_off(refusal.retry_after, now, draw);
                Ok(())
            }
        }
    }

    /// Asks for a new SVID not later than `at`: the authority is to be replaced, or the entry changed.
    ///
    /// The caller spreads `at` over workloads. The valid SVID is kept meanwhile.
    pub fn renew_by(&mut self, at: SystemTime) {
        if let State::Fresh { renew_at, .. } = &mut self.state {
            *renew_at = at.min(*renew_at);
        }
    }

    fn accept(&mut self, svid: Svid, now: SystemTime, draw: f64) -> Result<(), RotationError> {
        if svid.id() != &self.id {
            return Err(RotationError::WrongId { expected: self.id.clone(), given: svid.id().clone() });
        }
        let validity = svid.validity();
        if validity.not_after <= now {
            return Err(RotationError::Expired(self.id.clone()));
        }
        let early = validity.not_before.duration_since(now).unwrap_or_default();
        if !early.is_zero() && self.not_after().is_some_and(|not_after| now < not_after) {
            return Err(RotationError::NotYetValid { id: self.id.clone(), early });
        }
        self.state = if early.is_zero() {
            State::Fresh { validity, renew_at: renew_at(&validity, now, draw) }
        } else {
            State::Renewing { validity, attempt: Attempt::BackOff { failures: 1, until: now + BACKOFF_BASE } }
        };
        self.unpublished = Some(svid);
        Ok(())
    }

    fn back_off(&mut self, retry_after: Option<Duration>, now: SystemTime, draw: f64) {
        let failures = match self.attempt() {
            Attempt::Due { failures }
            | Attempt::UnderWay { failures }
            | Attempt::BackOff { failures, .. } => failures.saturating_add(1),
        };
        let wait = back_off(failures, draw).max(retry_after.unwrap_or_default()).min(BACKOFF_CAP);
        self.set_attempt(Attempt::BackOff { failures, until: now + wait });
    }

    fn request_or_wait(&mut self, now: SystemTime) -> Action {
        let soon = now + RECHECK;
        if let State::Fresh { renew_at, .. } = self.state {
            return Action::WaitUntil(renew_at.min(soon));
        }
        let failures = match self.attempt() {
            Attempt::Due { failures } => failures,
            Attempt::BackOff { failures, until } if until <= now => failures,
            // The clock was set back: no wait is longer than the cap.
            Attempt::BackOff { failures, until } if now + BACKOFF_CAP < until => failures,
            Attempt::BackOff { until, .. } => return self.wait(until, soon),
            Attempt::UnderWay { .. } => return self.wait(soon, soon),
        };
        self.set_attempt(Attempt::UnderWay { failures });
        Action::Request
    }

    /// Waits for `until`, but never past expiry.
    fn wait(&self, until: SystemTime, soon: SystemTime) -> Action {
        Action::WaitUntil(until.min(soon).min(self.not_after().unwrap_or(soon)))
    }

    fn attempt(&self) -> Attempt {
        match self.state {
            State::Empty(attempt) | State::Expired(attempt) | State::Renewing { attempt, .. } => attempt,
            State::Fresh { .. } => Attempt::Due { failures: 0 },
        }
    }

    fn set_attempt(&mut self, attempt: Attempt) {
        self.state = match self.state {
            State::Empty(_) => State::Empty(attempt),
            State::Expired(_) => State::Expired(attempt),
            State::Fresh { validity, .. } | State::Renewing { validity, .. } => {
                State::Renewing { validity, attempt }
            }
        };
    }
}

/// When renewal starts for an SVID received at `received`: within [`RENEWAL_WINDOW`] of its usable life.
///
/// `draw`, uniform in `0.0..1.0`, picks the point. The usable life starts [`BACKDATE`] after notBefore,
/// else the renewal of a very short SVID would be due on arrival; or at `received` if the clock is behind.
pub fn renew_at(validity: &Validity, received: SystemTime, draw: f64) -> SystemTime {
    let start = received.min(validity.not_before + BACKDATE).max(validity.not_before);
    let (from, to) = RENEWAL_WINDOW;
    let fraction = from + (to - from) * unit(draw);
    start + validity.remaining(start).mul_f64(fraction)
}

/// How long to wait after the `failures`-th failure in a row: full jitter, so uniform from (nearly) zero.
pub fn back_off(failures: u32, draw: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let ceiling = BACKOFF_BASE.saturating_mul(1 << doublings).min(BACKOFF_CAP);
    ceiling.mul_f64(unit(draw)).max(BACKOFF_FLOOR)
}

/// A draw outside `0.0..=1.0`, or none at all (NaN), counts as the nearest bound.
fn unit(draw: f64) -> f64 {
    if draw.is_nan() { 1.0 } else { draw.clamp(0.0, 1.0) }
}

#[cfg(test)]
#[cfg(feature = "ca")]
mod tests;
