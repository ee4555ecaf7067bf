//! Whether the destination has accepted a flow, and what its endpoint is credited with.
//!
//! A program that speaks at once has its bytes on the way before the other end has answered. Until then the endpoint has
//! proven nothing: it is neither quick nor well, and the flow ends when no answer comes within the connect timeout.

use std::time::{Duration, Instant};

use weft_overlay::FlowHandle;

use super::balancers::{Load, Try};
use crate::{
    error::{FlowError, Retry},
    relay::End,
    shared::Shared,
};

/// How an opened flow stands with its endpoint. Dropped, it gives back what it holds.
#[derive(Debug)]
pub(crate) enum Standing {
    /// The destination has accepted.
    Accepted {
        /// The endpoint's load.
        _load: Load,
    },
    /// Bytes of the program went ahead of the answer.
    Awaited(Awaited),
    /// What was awaited came to nothing.
    Over,
}

/// What is awaited, and until when.
#[derive(Debug)]
pub(crate) struct Awaited {
    /// The endpoint's attempt.
    pub(crate) attempt: Try,
    /// The answer must have come by then.
    pub(crate) by: Instant,
    /// The connect timeout that ends then.
    pub(crate) within: Duration,
}

impl Standing {
    /// Credits the endpoint when the flow is accepted, and then waits for ever; returns when the time for that is over.
    /// Cancel-safe.
    pub(crate) async fn watch(&mut self, shared: &Shared, flow: &FlowHandle) -> End {
        if let Self::Awaited(Awaited { by, .. }) = self {
            let by = *by;
            tokio::select! {
                biased;
                () = flow.answered() => self.accept(shared),
                () = shared.clock.sleep_until(by) => return End::Unanswered,
            }
        }
        std::future::pending().await
    }

    /// Takes note of how the flow ended, and returns the error if it ended because no answer came.
    pub(crate) fn ended(self, shared: &Shared, end: &End) -> Option<FlowError> {
        let Self::Awaited(Awaited { attempt, within, .. }) = self else { return None };
        let error = match end {
            End::Unanswered => FlowError::ConnectTimeout { after: within },
            End::Far(error) => FlowError::from(error.clone()),
            // What the program or a rule did to the flow says nothing of the endpoint.
            End::Clean
            | End::App(_)
            | End::Neighbour(_)
            | End::Stalled
            | End::Exchange(_)
            | End::Idle
            | End::Cut(_) => return None,
        };
        blame(shared, attempt, &error);
        matches!(end, End::Unanswered).then_some(error)
    }

    fn accept(&mut self, shared: &Shared) {
        if let Self::Awaited(Awaited { attempt, .. }) = std::mem::replace(self, Self::Over) {
            *self = Self::Accepted { _load: attempt.connected(shared.clock.now()) };
        }
    }
}

/// Counts a failure against the endpoint if it was the endpoint's.
pub(super) fn blame(shared: &Shared, attempt: Try, error: &FlowError) {
    let is_its_own = if let FlowError::ConnectTimeout { after } = error {
        // Attempts share one time: who got a small rest of it could not have answered.
        attempt.age(shared.clock.now()) >= *after / 2
    } else {
        error.class().retry == Retry::OtherEndpoint
    };
    if !is_its_own {
        return;
    }
    let endpoint = std::sync::Arc::clone(attempt.endpoint());
    if shared.with_rng(|rng| attempt.failed(rng, shared.clock.now())) {
        tracing::debug!(endpoint = %endpoint.workload, node = %endpoint.node, "endpoint ejected");
    }
}
