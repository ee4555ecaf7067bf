//! The tunnels of one endpoint to all destinations, made when first needed and shared by all flows.
//!
//! [`TunnelPool`] carries out what its plan decides. Dials run in tasks of their own, so that a flow that
//! gives up does not take the dial from the others that wait for it. One task looks at all tunnels once
//! a second.

mod plan;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::debug;
use weft_identity::SpiffeId;

use plan::{Action, Ask, PoolPlan};
pub use plan::{PoolKey, PoolSettings};

use crate::clock;
use crate::code::CloseCode;
use crate::endpoint::Overlay;
use crate::error::{CloseReason, DialError, OpenError, StreamError};
use crate::header::StreamHeader;
use crate::metrics::OverlayMetrics;
use crate::stream::TunnelStream;
use crate::tunnel::{Phase, Tunnel};

/// Pooled tunnels that may turn out to be dead before a flow gives up.
const MAX_STALE: usize = 4;

/// A handle to a pool. Clones are cheap and mean the same pool.
#[derive(Clone, Debug)]
pub struct TunnelPool {
    inner: Arc<Inner>,
    /// Ends the pool's tasks with the last handle.
    _stop: Arc<DropGuard>,
}

/// How a tunnel is dialled, if it must be.
#[derive(Clone, Debug)]
pub struct DialWith {
    /// `<label>.<cluster>.weft`: chooses the SVID that the other end presents.
    pub server_name: String,
    /// Presents the source's SVID and accepts the destination's identity only. It is kept for the
    /// replacement of the tunnel, so its SVID must come from a slot.
    pub client: Arc<rustls::ClientConfig>,
}

/// Why a flow got no tunnel. No byte of the application was sent.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PoolError {
    /// No tunnel could be made.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The tunnel took no flow.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The pool holds as many tunnels as it may, and all are in use.
    #[error("the pool holds {tunnels} tunnels, its limit, and all are in use")]
    Full {
        /// The limit.
        tunnels: usize,
    },
    /// As many flows wait for the same dial as may.
    #[error("{waiters} flows wait for the same tunnel already")]
    Crowded {
        /// The limit.
        waiters: usize,
    },
    /// The pool has been dropped.
    #[error("the pool is shutting down")]
    Closing,
}

#[derive(Debug)]
struct Inner {
    overlay: Overlay,
    settings: PoolSettings,
    metrics: Arc<OverlayMetrics>,
    state: Mutex<Pooled>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Pooled {
    plan: PoolPlan,
    tunnels: HashMap<u64, (PoolKey, Tunnel)>,
    dials: HashMap<PoolKey, Outcome>,
    dialled_with: HashMap<PoolKey, DialWith>,
}

/// The outcome of a dial, once it is there.
type Outcome = watch::Receiver<Option<Result<Tunnel, DialError>>>;

/// A tunnel for a flow.
enum Way {
    Pooled(Tunnel),
    Dialled(Outcome),
}

impl TunnelPool {
    /// A pool over `overlay`, on the current tokio runtime.
    pub fn new(overlay: Overlay, settings: PoolSettings, metrics: Arc<OverlayMetrics>) -> Self {
        let stop = CancellationToken::new();
        let state = Pooled {
            plan: PoolPlan::new(settings.clone()),
            tunnels: HashMap::new(),
            dials: HashMap::new(),
            dialled_with: HashMap::new(),
        };
        let inner = Arc::new(Inner {
            overlay,
            settings,
            metrics,
            state: Mutex::new(state),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
        });
        let keeper = inner.clone();
        inner.tasks.spawn(async move { keeper.stop.run_until_cancelled(keeper.keep()).await });
        Self { inner, _stop: Arc::new(stop.drop_guard()) }
    }

    /// Opens a flow for `key`, on the tunnel that is there or on a new one, and sends its header.
    ///
    /// On a tunnel that may have been quiet for longer than a restart takes the reply is awaited, so that a peer
    /// that restarted meanwhile costs the flow a new handshake and not its life; else this does not wait for the
    /// peer.
    ///
    /// Cancel-safe: a flow that was not returned is reset, a dial goes on for others.
    ///
    /// # Errors
    ///
    /// [`PoolError`]; nothing of the application was sent, another endpoint may be tried.
    pub async fn open(
        &self,
        key: &PoolKey,
        with: &DialWith,
        header: &StreamHeader,
    ) -> Result<(TunnelStream, Tunnel), PoolError> {
        for _ in 0..MAX_STALE {
            match self.way(key, with)? {
                Way::Pooled(tunnel) => match open_on(&tunnel, header).await {
                    Ok(stream) => return Ok((stream, tunnel)),
                    Err(error @ OpenError::FlowLimit { .. }) => return Err(error.into()),
                    Err(OpenError::TunnelClosed(reason)) => self.inner.forget(&tunnel, &reason),
                    Err(OpenError::Draining) => self.inner.lock().plan.handle_draining(tunnel.id()),
                },
                Way::Dialled(outcome) => {
                    let tunnel = dialled(outcome).await?;
                    let stream = tunnel.open(header).await?;
                    return Ok((stream, tunnel));
                }
            }
        }
        Err(OpenError::Draining.into())
    }

    fn way(&self, key: &PoolKey, with: &DialWith) -> Result<Way, PoolError> {
        let inner = &self.inner;
        let mut state = inner.lock();
        let ask = state.plan.ask(key, now());
        let way = match ask {
            Ask::Use(id) => match state.tunnels.get(&id) {
                Some((_, tunnel)) => Ok(Way::Pooled(tunnel.clone())),
                None => Err(PoolError::Closing),
            },
            Ask::Wait => state.dials.get(key).cloned().map(Way::Dialled).ok_or(PoolError::Closing),
            Ask::Dial => {
                state.dialled_with.insert(key.clone(), with.clone());
                Ok(Way::Dialled(inner.start_dial(&mut state, key, with.clone())))
            }
            Ask::Full => {
                inner.metrics.pool_refused("full");
                Err(PoolError::Full { tunnels: inner.settings.max_tunnels })
            }
            Ask::Crowded => {
                inner.metrics.pool_refused("crowded");
                Err(PoolError::Crowded { waiters: inner.settings.max_waiters })
            }
        };
        if ask == Ask::Dial {
            inner.carry_out(&mut state); // a full pool may have closed an idle tunnel for this dial
        }
        way
    }

    /// The SVID of `source` was renewed: make-before-break. Its tunnels are replaced by ones under the
    /// new SVID; flows on the old ones go on until `drain_until`, which must lie before the old SVID's
    /// `not_after`. Publish the new SVID first.
    pub fn retire_source(&self, source: &SpiffeId, drain_until: tokio::time::Instant) {
        let mut state = self.inner.lock();
        let Pooled { plan, tunnels, .. } = &mut *state;
        plan.retire_source(source, drain_until.into_std(), now(), flows_of(tunnels));
        self.inner.look(&mut state);
    }

    /// Replaces the tunnels that `which` chooses, make-before-break; flows on the old ones go on until `drain_until`.
    pub fn replace_where(
        &self,
        drain_until: tokio::time::Instant,
        which: impl Fn(&PoolKey, &Tunnel) -> bool,
    ) {
        let mut state = self.inner.lock();
        let Pooled { plan, tunnels, .. } = &mut *state;
        let chosen = tunnels.iter().filter(|(_, (key, tunnel))| which(key, tunnel)).map(|(id, _)| *id);
        let chosen = chosen.collect();
        plan.retire(chosen, drain_until.into_std(), now(), flows_of(tunnels));
        self.inner.look(&mut state);
    }

    /// Closes the tunnels of every key that `which` chooses, such as those of a revoked identity.
    pub fn close_where(&self, code: CloseCode, which: impl Fn(&PoolKey) -> bool) {
        let mut state = self.inner.lock();
        state.plan.close_where(code, which);
        self.inner.carry_out(&mut state);
    }

    /// Every tunnel of the pool, draining ones included.
    pub fn tunnels(&self) -> Vec<(PoolKey, Tunnel)> {
        self.inner.lock().tunnels.values().cloned().collect()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Pooled> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the tunnels for as long as it is polled. Cancel-safe.
    async fn keep(self: &Arc<Self>) {
        loop {
            tokio::time::sleep(self.settings.look_every).await;
            self.look(&mut self.lock());
        }
    }

    /// Notices tunnels that ended or drain, and does what is due.
    fn look(self: &Arc<Self>, state: &mut Pooled) {
        let Pooled { plan, tunnels, .. } = state;
        tunnels.retain(|id, (_, tunnel)| {
            let up = tunnel.close_reason().is_none();
            if !up {
                plan.handle_closed(*id);
            } else if tunnel.phase() != Phase::Open {
                plan.handle_draining(*id);
            }
            up
        });
        plan.look(now(), clock::wall(), flows_of(tunnels));
        self.carry_out(state);
    }

    fn carry_out(self: &Arc<Self>, state: &mut Pooled) {
        while let Some(action) = state.plan.poll_action() {
            match action {
                Action::Close { tunnel, code } => {
                    if let Some((key, tunnel)) = state.tunnels.remove(&tunnel) {
                        debug!(source = %key.source, destination = %key.destination, %code, "tunnel retired");
                        tunnel.close(code, "");
                    }
                }
                Action::Dial(key) => match state.dialled_with.get(&key).cloned() {
                    Some(with) => drop(self.start_dial(state, &key, with)),
                    None => state.plan.handle_dial_failed(&key),
                },
            }
        }
        let used: std::collections::HashSet<&PoolKey> =
            state.tunnels.values().map(|(key, _)| key).chain(state.dials.keys()).collect();
        if state.dialled_with.len() > used.len() {
            let used: std::collections::HashSet<PoolKey> = used.into_iter().cloned().collect();
            state.dialled_with.retain(|key, _| used.contains(key));
        }
        self.metrics.pool_size(state.plan.len());
    }

    fn start_dial(self: &Arc<Self>, state: &mut Pooled, key: &PoolKey, with: DialWith) -> Outcome {
        let (tell, outcome) = watch::channel(None);
        state.dials.insert(key.clone(), outcome.clone());
        let (inner, key) = (self.clone(), key.clone());
        self.tasks.spawn(async move {
            let dial = inner.overlay.dial(&key.addresses, &with.server_name, with.client);
            let dialled = inner.stop.run_until_cancelled(dial).await;
            let dialled = dialled.unwrap_or(Err(DialError::Closing));
            inner.handle_dialled(&key, &dialled);
            let _ = tell.send(Some(dialled)); // nobody waits any more: the tunnel is pooled all the same
        });
        outcome
    }

    fn handle_dialled(self: &Arc<Self>, key: &PoolKey, dialled: &Result<Tunnel, DialError>) {
        let mut state = self.lock();
        state.dials.remove(key);
        match dialled {
            Ok(tunnel) => {
                let not_after = tunnel.peer().not_after;
                state.tunnels.insert(tunnel.id(), (key.clone(), tunnel.clone()));
                state.plan.handle_dialled(key, tunnel.id(), not_after, clock::wall());
            }
            Err(error) => {
                debug!(source = %key.source, destination = %key.destination, %error, "dial failed");
                state.plan.handle_dial_failed(key);
            }
        }
        self.carry_out(&mut state);
    }

    /// A pooled tunnel turned out to be gone.
    fn forget(self: &Arc<Self>, tunnel: &Tunnel, reason: &CloseReason) {
        debug!(peer = %tunnel.peer().id, %reason, "pooled tunnel was gone");
        let mut state = self.lock();
        state.tunnels.remove(&tunnel.id());
        state.plan.handle_closed(tunnel.id());
        self.carry_out(&mut state);
    }
}

/// Opens a flow on a tunnel that was there before.
async fn open_on(tunnel: &Tunnel, header: &StreamHeader) -> Result<TunnelStream, OpenError> {
    let quiet = tunnel.is_quiet();
    let mut stream = tunnel.open(header).await?;
    if quiet && let Err(StreamError::TunnelClosed(reason)) = stream.reply().await {
        return Err(OpenError::TunnelClosed(reason));
    }
    Ok(stream) // a refusal stays in the stream: its reads tell
}

async fn dialled(mut outcome: Outcome) -> Result<Tunnel, PoolError> {
    let ended = outcome.wait_for(Option::is_some).await.map_err(|_| PoolError::Closing)?;
    match &*ended {
        Some(Ok(tunnel)) => Ok(tunnel.clone()),
        Some(Err(error)) => Err(error.clone().into()),
        None => Err(PoolError::Closing),
    }
}

fn flows_of(tunnels: &HashMap<u64, (PoolKey, Tunnel)>) -> impl Fn(u64) -> usize {
    |id| tunnels.get(&id).map_or(0, |(_, tunnel)| tunnel.streams_active())
}

fn now() -> Instant {
    clock::now().into_std()
}
