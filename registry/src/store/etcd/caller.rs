//! One call to etcd, or the same call until it is answered.
//!
//! Owns how long an answer may take, and that a member which does not answer is given up for the next one. Only calls
//! that may be made twice are repeated here; what became of a write is found out in `writes`.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};

use super::contact::Contact;
use super::error::{Failure, Verdict};
use super::link::{Link, Session};
use super::settings::Timeouts;
use crate::clock::Clock;

/// Between two attempts: long enough that a cluster without a leader is not flooded, short beside an election (1 s).
const PAUSE: Duration = Duration::from_millis(50);

/// The largest answer that is read: a transaction of 1 MiB, or a page of as many records as fit.
pub(super) const MAX_ANSWER_BYTES: usize = 16 << 20;

/// See the module.
pub(super) struct Caller {
    pub(super) link: Link,
    pub(super) timeouts: Timeouts,
    pub(super) clock: Clock,
    /// Cancelled when the store is closed.
    pub(super) closed: CancellationToken,
    /// When etcd was last heard of.
    pub(super) contact: Contact,
}

impl Caller {
    /// Makes one call on `session`, which is given up when it does not answer. Cancel-safe as far as `call` is.
    pub(super) async fn once<T>(
        &self,
        session: &Session,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        let limit = self.timeouts.answer;
        let outcome = match tokio::time::timeout(limit, call).await {
            Ok(answer) => answer.map(Response::into_inner).map_err(Failure::from),
            Err(_) => Err(Failure::TimedOut(limit)),
        };
        match &outcome {
            Err(failure) if matches!(failure.verdict(), Verdict::Unknown | Verdict::Unserved) => {
                self.link.failed(session, failure);
            }
            Ok(_) | Err(_) => self.contact.heard(self.clock.uptime()),
        }
        outcome
    }

    /// Makes a call that may be made twice, on one member after the other, until `deadline` (an uptime).
    pub(super) async fn repeat<T, F>(
        &self,
        deadline: Duration,
        call: impl Fn(Arc<Session>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        loop {
            let failure = match self.link.session().await {
                Ok(session) => match self.once(&session, call(Arc::clone(&session))).await {
                    Ok(answer) => return Ok(answer),
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            self.again(deadline, failure).await?;
        }
    }

    /// Pauses before another attempt.
    ///
    /// # Errors
    ///
    /// `failure`, when the deadline has passed, the store is closed, or another attempt would fail the same way.
    pub(super) async fn again(&self, deadline: Duration, failure: Failure) -> Result<(), Failure> {
        let passes = matches!(failure.verdict(), Verdict::Unknown | Verdict::Unserved);
        if !passes || self.closed.is_cancelled() || self.clock.uptime() >= deadline {
            return Err(failure);
        }
        self.clock.sleep(PAUSE).await;
        Ok(())
    }

    /// The uptime at which a write that starts now is given up.
    pub(super) fn deadline(&self) -> Duration {
        self.clock.uptime().saturating_add(self.timeouts.write)
    }
}

/// What several parts of a store share.
pub(super) type SharedCaller = Arc<Caller>;
