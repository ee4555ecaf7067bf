//! The table of contents of the plane: what it is made of, in which order it starts, how it ends.
//!
//! ```text
//! store ─▶ listeners ─▶ authority ─▶ keeper ─▶ services ─▶ gate ─▶ gRPC over TLS and over the Unix socket
//! ```
//!
//! A server has a thread and a runtime of its own, so that it starts, ends and can be killed as one thing, also in a
//! process with an agent. The store's lock is taken first: of two servers on one directory the second changes nothing.

mod error;
mod joining;
mod moving;
mod parts;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    path::Path,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{runtime::Runtime, sync::oneshot};
use tracing::{error, info};
use weft_identity::spiffe::TrustDomain;

pub use self::error::ServerError;
pub use self::joining::{JoinFailure, Joined, join as join_mesh};
pub use self::moving::{Moved, accept_audit, accept_records, back_up, check_records, migrate, restore};
use crate::{clock::Clock, config::Config, listeners::Addresses};

/// Threads of the runtime: one may sign or compare views while the other answers.
const WORKERS: usize = 2;
/// How long tasks may take to be dropped.
const DROP_WITHIN: Duration = Duration::from_secs(5);

/// Starts servers.
#[derive(Debug)]
pub struct Server;

/// A server that serves. Dropping it kills it.
#[derive(Debug)]
pub struct RunningServer {
    addresses: Addresses,
    trust_domain: TrustDomain,
    stop: Option<oneshot::Sender<Stop>>,
    thread: Option<JoinHandle<()>>,
}

/// How a server ends.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// Agents are asked to go, calls may end within this time.
    Drain(Duration),
    /// Everything is dropped at once.
    Kill,
}

impl Server {
    /// Starts a server by the clock of the machine; returns when it serves.
    ///
    /// # Errors
    ///
    /// [`ServerError`]; then nothing of it is left running.
    pub fn start(config: Config) -> Result<RunningServer, ServerError> {
        Self::start_with(config, Clock::system())
    }

    /// Starts a server by `clock`. TLS handshakes are judged by the machine's all the same.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub fn start_with(config: Config, clock: Clock) -> Result<RunningServer, ServerError> {
        let trust_domain = config.trust_domain.clone();
        let (ready, started) = mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let body = move || run(&config, &clock, &ready, stopped);
        let thread = thread::Builder::new().name("weft-server".to_owned()).spawn(body);
        let thread = thread.map_err(ServerError::Thread)?;
        match started.recv() {
            Ok(Ok(addresses)) => {
                Ok(RunningServer { addresses, trust_domain, stop: Some(stop), thread: Some(thread) })
            }
            Ok(Err(refused)) => {
                join(thread);
                Err(refused)
            }
            Err(mpsc::RecvError) => {
                join(thread);
                Err(ServerError::Ended)
            }
        }
    }
}

impl RunningServer {
    /// Where agents and people elsewhere connect.
    #[must_use]
    pub const fn control_addr(&self) -> SocketAddr {
        self.addresses.control
    }

    /// Where Prometheus asks.
    #[must_use]
    pub const fn metrics_addr(&self) -> SocketAddr {
        self.addresses.metrics
    }

    /// Where people of this host look.
    #[must_use]
    pub const fn admin_addr(&self) -> SocketAddr {
        self.addresses.admin
    }

    /// Where this user and root connect.
    #[must_use]
    pub fn socket_path(&self) -> &Path {
        &self.addresses.socket
    }

    /// The trust domain.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Whether it has ended by itself, as it does when its store fails for good.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends it in good order: agents are asked to go, calls may end within `deadline`, then everything is dropped.
    /// Blocks until it is gone.
    pub fn shutdown(mut self, deadline: Duration) {
        self.end(Stop::Drain(deadline));
    }

    /// Drops everything at once, as if the process had been killed. Blocks until the store is closed.
    pub fn kill(mut self) {
        self.end(Stop::Kill);
    }

    fn end(&mut self, how: Stop) {
        if let Some(stop) = self.stop.take() {
            // It may have ended by itself.
            let _ = stop.send(how);
        }
        if let Some(thread) = self.thread.take() {
            join(thread);
        }
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.end(Stop::Kill);
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        error!("the server's thread panicked");
    }
}

/// The whole life of a server, on its thread.
fn run(
    config: &Config,
    clock: &Clock,
    ready: &mpsc::SyncSender<Result<Addresses, ServerError>>,
    stopped: oneshot::Receiver<Stop>,
) {
    let built = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("weft-server-io")
        .enable_all()
        .build();
    let runtime: Runtime = match built {
        Ok(runtime) => runtime,
        Err(error) => {
            // Nobody waits only when the caller's thread died.
            let _ = ready.send(Err(ServerError::Thread(error)));
            return;
        }
    };
    runtime.block_on(async {
        match parts::build(config, clock).await {
            Ok(parts) => {
                let addresses = parts.addresses.clone();
                info!(control = %addresses.control, socket = %addresses.socket.display(), "server ready");
                let _ = ready.send(Ok(addresses));
                parts.serve(stopped).await;
            }
            Err(refused) => drop(ready.send(Err(refused))),
        }
    });
    runtime.shutdown_timeout(DROP_WITHIN);
}
