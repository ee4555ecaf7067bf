//! Carries the bytes of one flow, both ways, until it ends.
//!
//! Owns how a flow lives and ends between two byte streams: half-close in either direction, resets that stay resets,
//! idle flows, flows that are cut. Where the bytes come from and go to is `tcp`'s and `tunnel`'s; one direction is a
//! `pump`.
//!
//! ```text
//! program ──▶ app source ─ request gate ─▶ far sink ──▶      up
//! program ◀── app sink ◀─ response gate ── far source ◀──    down
//! ```
//!
//! - The end of one direction is passed on, and the other goes on.
//! - A sink that refuses ends its own direction: what comes back is still delivered.
//! - A source that breaks ends the flow, and everybody sees a reset: a cut flow never looks like a complete one.
//!
//! Invariant: dropping the future, or the [`AppStream`] after any end but [`End::Clean`], resets the program's socket.

mod chunks;
mod pump;
mod tcp;
mod tunnel;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use weft_overlay::{ResetCode, StreamError, TunnelStream};

use self::{
    chunks::Chunks,
    pump::{Broken, Direction, Gate, Sink, Source, pump},
    tcp::{TcpSink, TcpSource},
    tunnel::{TunnelSink, TunnelSource},
};
use crate::{app::AppStream, clock::Clock, intercept::exchange::ExchangeError};

/// Which end of the mesh this agent is for a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// Its program called.
    Caller,
    /// Its program serves.
    Service,
}

impl Side {
    /// What the other end is told when the program here breaks its connection.
    const fn app_reset(self) -> ResetCode {
        match self {
            Self::Caller => ResetCode::Cancelled,
            Self::Service => ResetCode::UpstreamReset,
        }
    }

    /// The word for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "outbound",
            Self::Service => "inbound",
        }
    }
}

/// How one flow is carried.
#[derive(Clone, Debug)]
pub struct Relay {
    /// Which end this is.
    pub side: Side,
    /// The longest time without a byte in either direction.
    pub idle: Duration,
    /// What moves is counted here.
    pub meter: Arc<FlowMeter>,
    /// The plane's clock.
    pub clock: Clock,
}

/// What a flow has moved so far; read while it lives.
#[derive(Debug, Default)]
pub struct FlowMeter {
    sent: AtomicU64,
    received: AtomicU64,
    totals: Option<Totals>,
}

/// Counters that many flows share.
#[derive(Clone, Debug)]
pub struct Totals {
    /// Bytes from local programs.
    pub sent: Counter,
    /// Bytes to local programs.
    pub received: Counter,
}

impl FlowMeter {
    /// A meter that adds to `totals` as well.
    #[must_use]
    pub fn with_totals(totals: Totals) -> Self {
        Self { totals: Some(totals), ..Self::default() }
    }

    /// Bytes from the program of this agent towards the other end.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes from the other end towards the program of this agent.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn add(&self, direction: Direction, bytes: u64) {
        let total = match direction {
            Direction::Up => {
                self.sent.fetch_add(bytes, Ordering::Relaxed);
                self.totals.as_ref().map(|totals| &totals.sent)
            }
            Direction::Down => {
                self.received.fetch_add(bytes, Ordering::Relaxed);
                self.totals.as_ref().map(|totals| &totals.received)
            }
        };
        if let Some(total) = total {
            total.inc_by(bytes);
        }
    }
}

/// What a flow moved and how it ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Transfer {
    /// Bytes from the program of this agent.
    pub sent_bytes: u64,
    /// Bytes to the program of this agent.
    pub received_bytes: u64,
    /// How it ended.
    pub end: End,
}

/// How a flow ended. One variant per cause an operator would treat differently.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum End {
    /// Both directions ended in good order.
    Clean,
    /// The connection of this agent's program broke.
    App(io::ErrorKind),
    /// The connection of the other program broke, which is on this agent too.
    Neighbour(io::ErrorKind),
    /// The other end refused, reset or stopped the flow, or the tunnel under it is gone.
    Far(StreamError),
    /// The program here took nothing for so long that the flow had to go (decisions.md, tunnels).
    Stalled,
    /// A forwarded HTTP exchange broke its rules.
    Exchange(ExchangeError),
    /// No byte moved for the idle timeout.
    Idle,
    /// The other end said neither yes nor no within the connect timeout; bytes of the program were under way already.
    Unanswered,
    /// The owner of the flow cut it.
    Cut(ResetCode),
}

impl End {
    /// The bounded word for the access log and metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::App(_) => "app_reset",
            Self::Neighbour(_) => "neighbour_reset",
            Self::Far(StreamError::Refused(_)) => "refused",
            Self::Far(StreamError::Reset(_) | StreamError::Stopped(_)) => "far_reset",
            Self::Far(StreamError::TunnelClosed(_)) => "tunnel_closed",
            Self::Far(StreamError::Reply(_) | StreamError::Ended) => "protocol",
            Self::Stalled => "stalled",
            Self::Exchange(_) => "exchange",
            Self::Idle => "idle",
            Self::Unanswered => "connect_timeout",
            Self::Cut(_) => "cut",
        }
    }

    /// What the other end is told.
    #[must_use]
    pub const fn reset_code(&self, side: Side) -> ResetCode {
        match self {
            Self::App(_) => side.app_reset(),
            Self::Stalled => ResetCode::Stalled,
            Self::Exchange(_) => ResetCode::Protocol,
            Self::Idle => ResetCode::Idle,
            Self::Unanswered => ResetCode::UpstreamTimeout,
            Self::Cut(code) => *code,
            Self::Clean | Self::Neighbour(_) | Self::Far(_) => ResetCode::Cancelled,
        }
    }
}

impl From<Broken> for End {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::App(error) => Self::App(error),
            Broken::Neighbour(error) => Self::Neighbour(error),
            Broken::Far(error) => Self::Far(error),
            Broken::Stalled => Self::Stalled,
            Broken::Exchange(error) => Self::Exchange(error),
        }
    }
}

/// Carries a flow between a program of this agent and a tunnel.
///
/// `stop` ends it from outside, for that reason; the other end sees its code. When it ends with [`StreamError::Refused`] and
/// nothing received, `app` can still be refused in its own protocol. Dropping the future resets both ends.
pub async fn both_ways(
    app: &mut AppStream,
    tunnel: &mut TunnelStream,
    relay: &Relay,
    stop: impl Future<Output = End>,
) -> Transfer {
    let (send, recv) = tunnel.halves();
    let outcome = {
        let far = (TunnelSource::new(recv), TunnelSink::new(send));
        carry(app, far, relay, stop).await
    };
    if outcome.broken {
        let code = outcome.end.reset_code(relay.side);
        send.reset(code);
        recv.stop(code);
    }
    relay.transfer(outcome.end)
}

/// Carries a flow between two programs of this agent, with the same meaning as through a tunnel.
pub async fn within_host(
    app: &mut AppStream,
    other: &mut AppStream,
    relay: &Relay,
    stop: impl Future<Output = End>,
) -> Transfer {
    let outcome = {
        let (read, write) = other.io.split();
        let far = (TcpSource::new(read, Broken::Neighbour), TcpSink::new(write, Broken::Neighbour));
        carry(app, far, relay, stop).await
    };
    if outcome.up_finished && !outcome.broken {
        other.ended();
    }
    relay.transfer(outcome.end)
}

impl Relay {
    fn transfer(&self, end: End) -> Transfer {
        let (sent_bytes, received_bytes) = (self.meter.sent_bytes(), self.meter.received_bytes());
        Transfer { sent_bytes, received_bytes, end }
    }
}

/// The time of the last byte, shared by both directions.
#[derive(Debug)]
struct Activity<'a> {
    relay: &'a Relay,
    started: Instant,
    last_ns: AtomicU64,
}

impl Activity<'_> {
    fn moved(&self, direction: Direction, bytes: usize) {
        self.relay.meter.add(direction, u64::try_from(bytes).unwrap_or(u64::MAX));
        self.touch();
    }

    fn touch(&self) {
        let since = self.relay.clock.now().saturating_duration_since(self.started);
        self.last_ns.store(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Resolves when nothing has moved for the idle timeout.
    async fn idle(&self) {
        loop {
            let last = self.started + Duration::from_nanos(self.last_ns.load(Ordering::Relaxed));
            let deadline = last + self.relay.idle;
            if deadline <= self.relay.clock.now() {
                return;
            }
            self.relay.clock.sleep_until(deadline).await;
        }
    }
}

/// How a flow ended, for those who own its two ends.
#[derive(Debug)]
struct Outcome {
    end: End,
    /// The far end was told the clean end of what the program sent.
    up_finished: bool,
    /// The program was told the clean end of what it is sent: closing its socket loses nothing.
    down_finished: bool,
    /// The flow was broken off: nothing of it may look complete.
    broken: bool,
}

/// Runs both directions to the end of the flow.
async fn carry(
    app: &mut AppStream,
    (mut far_source, mut far_sink): (impl Source, impl Sink),
    relay: &Relay,
    stop: impl Future<Output = End>,
) -> Outcome {
    let activity = Activity { relay, started: relay.clock.now(), last_ns: AtomicU64::new(0) };
    let (head, behind) = (std::mem::take(&mut app.head), std::mem::take(&mut app.behind));
    let (read, write) = app.io.split();
    let (mut app_source, mut app_sink) =
        (TcpSource::new(read, Broken::App), TcpSink::new(write, Broken::App));
    let (mut request, mut response) = match &mut app.gates {
        Some((request, response)) => (Gate::Request(request), Gate::Response(response)),
        None => (Gate::Open, Gate::Open),
    };
    let outcome = {
        let code = relay.side.app_reset();
        let first = Chunks::starting_with(head);
        let up = pump(
            &mut app_source,
            &mut request,
            &mut far_sink,
            &activity,
            (Direction::Up, code),
            (first, behind),
        );
        let first = Default::default();
        let down =
            pump(&mut far_source, &mut response, &mut app_sink, &activity, (Direction::Down, code), first);
        until_the_end(up, down, &activity, stop).await
    };
    if outcome.down_finished && !outcome.broken {
        app.ended();
    }
    outcome
}

async fn until_the_end(
    up: impl Future<Output = pump::Ended>,
    down: impl Future<Output = pump::Ended>,
    activity: &Activity<'_>,
    stop: impl Future<Output = End>,
) -> Outcome {
    let idle = activity.idle();
    tokio::pin!(up, down, idle, stop);
    let (mut up_lives, mut down_lives) = (true, true);
    let mut outcome = Outcome { end: End::Clean, up_finished: false, down_finished: false, broken: false };
    let mut refused = None;
    while up_lives || down_lives {
        let (ended, finished) = tokio::select! {
            ended = &mut up, if up_lives => {
                up_lives = false;
                (ended, &mut outcome.up_finished)
            }
            ended = &mut down, if down_lives => {
                down_lives = false;
                (ended, &mut outcome.down_finished)
            }
            () = &mut idle => return Outcome { end: End::Idle, broken: true, ..outcome },
            end = &mut stop => return Outcome { end, broken: true, ..outcome },
        };
        match ended {
            pump::Ended::Cleanly => *finished = true,
            pump::Ended::SinkRefused(cause) => {
                refused.get_or_insert(cause);
            }
            pump::Ended::SourceBroke(cause) => {
                return Outcome { end: told_best(refused, cause), broken: true, ..outcome };
            }
        }
    }
    Outcome { end: refused.map_or(End::Clean, End::from), ..outcome }
}

/// The far end's own words say more than the broken pipe that followed from them.
fn told_best(refused: Option<Broken>, broke: Broken) -> End {
    match (refused, broke) {
        (Some(Broken::App(first)), Broken::Far(_)) => End::App(first),
        (_, broke) => broke.into(),
    }
}

#[cfg(test)]
mod tests;
