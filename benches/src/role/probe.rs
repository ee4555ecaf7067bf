//! Calls until the first answer: the far end of a cold-start measurement.
//!
//! Owns the retrying. Says `ready` when it starts and `answered` at the first answer; the coordinator, which also
//! starts what is probed, holds the clock.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{sleep, timeout};

use super::{load, say};

/// Pause between attempts; the resolution of the measurement.
const PAUSE: Duration = Duration::from_millis(1);

/// One attempt at most, so that a flow accepted by a relay that is not whole yet does not hold the rest up.
const ATTEMPT: Duration = Duration::from_secs(1);

/// The whole probe at most.
const PATIENCE: Duration = Duration::from_secs(30);

/// Calls `to` until it answers once.
pub(crate) async fn run(to: SocketAddr) -> Result<()> {
    say("ready")?;
    timeout(PATIENCE, until_answered(to))
        .await
        .with_context(|| format!("no answer from {to} in {PATIENCE:?}"))?;
    say("answered")
}

async fn until_answered(to: SocketAddr) {
    while !matches!(timeout(ATTEMPT, load::short_flow(to)).await, Ok(Ok(()))) {
        sleep(PAUSE).await;
    }
}
