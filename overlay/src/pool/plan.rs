//! Which tunnel a flow takes, and when tunnels are made, replaced and closed.
//!
//! Pure: [`super::TunnelPool`] asks, reports what happened, and carries out the [`Action`]s.
//!
//! ```text
//! (none) ──ask──▶ dialling ──dialled──▶ current ──idle──────────────────▶ closed
//!                    └─failed─▶ (none)     │  └─peer drains─▶ draining ──no flow left, or its time──▶ closed
//!                                          └─SVID renewed, expiry near─▶ replacing ──dialled──▶ draining
//! ```
//!
//! Invariants: at most one current tunnel and one dial per key; a draining tunnel is never handed out;
//! while a replacement is dialled the old tunnel serves (make before break); never more tunnels than the
//! limit, where a dial counts as a tunnel and a replacement does not.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use weft_identity::SpiffeId;

use crate::code::CloseCode;

/// A tunnel is replaced this long before its peer's certificate expires, if its life allows.
const REPLACE_BEFORE: Duration = Duration::from_secs(60);
/// Or when this fraction of its remaining life is left, beside the time that the pool needs to see it and that
/// [`crate::live`] closes it ahead of its end: a life of seconds would be over before.
const REPLACE_FRACTION: u32 = 4;
/// The least time between two attempts to replace a tunnel.
const REPLACE_RETRY: Duration = Duration::from_secs(5);

/// What a tunnel is for: one QUIC connection for each.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PoolKey {
    /// The workload that calls: the identity that this end proves.
    pub source: SpiffeId,
    /// The workload that is called: the identity that the other end must prove.
    pub destination: SpiffeId,
    /// Where it is, in the order to be tried.
    pub addresses: Arc<[SocketAddr]>,
}

/// Limits of a pool.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PoolSettings {
    /// Tunnels at a time, dials included. An idle one costs about 80 KiB at both ends together.
    pub max_tunnels: usize,
    /// Flows that wait for one dial.
    pub max_waiters: usize,
    /// A tunnel without flows is closed after this long.
    pub idle_timeout: Duration,
    /// How often the pool looks at its tunnels.
    pub look_every: Duration,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            max_tunnels: 1024,
            max_waiters: 1024,
            idle_timeout: Duration::from_secs(30),
            look_every: Duration::from_secs(1),
        }
    }
}

/// The answer to a flow that wants a tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ask {
    /// Take this one.
    Use(u64),
    /// A dial is under way: wait for its outcome.
    Wait,
    /// Dial, then report the outcome.
    Dial,
    /// As many tunnels are in use as there may be.
    Full,
    /// As many flows wait for this dial as may.
    Crowded,
}

/// What is to be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Action {
    /// Dial a replacement, then report the outcome.
    Dial(PoolKey),
    /// Close the tunnel and forget it.
    Close { tunnel: u64, code: CloseCode },
}

/// The tunnels of one pool.
#[derive(Debug)]
pub(crate) struct PoolPlan {
    settings: PoolSettings,
    routes: HashMap<PoolKey, Route>,
    slots: HashMap<u64, Slot>,
    actions: VecDeque<Action>,
}

#[derive(Debug, Default)]
struct Route {
    current: Option<u64>,
    /// A dial is under way, and so many flows wait for it.
    dial: Option<usize>,
}

#[derive(Debug)]
struct Slot {
    key: PoolKey,
    state: State,
    idle_since: Option<Instant>,
    replace_at: SystemTime,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Current,
    /// Still handed out; a replacement is tried again at `retry_at`, and at `close_at` it is too late.
    Replacing {
        retry_at: Instant,
        close_at: Option<Instant>,
    },
    /// Never handed out; closed with `code` when the last flow is gone.
    Draining {
        code: CloseCode,
        close_at: Option<Instant>,
    },
}

impl PoolPlan {
    pub(crate) fn new(settings: PoolSettings) -> Self {
        Self { settings, routes: HashMap::new(), slots: HashMap::new(), actions: VecDeque::new() }
    }

    /// A flow wants a tunnel for `key`.
    pub(crate) fn ask(&mut self, key: &PoolKey, now: Instant) -> Ask {
        let Some(route) = self.routes.get_mut(key) else { return self.first_dial(key, now) };
        if let Some(tunnel) = route.current {
            if let Some(slot) = self.slots.get_mut(&tunnel) {
                slot.idle_since = None;
            }
            return Ask::Use(tunnel);
        }
        match &mut route.dial {
            Some(waiters) if *waiters >= self.settings.max_waiters => Ask::Crowded,
            Some(waiters) => {
                *waiters += 1;
                Ask::Wait
            }
            None => self.first_dial(key, now),
        }
    }

    fn first_dial(&mut self, key: &PoolKey, now: Instant) -> Ask {
        if self.in_use() >= self.settings.max_tunnels && !self.close_longest_idle(now) {
            return Ask::Full;
        }
        self.routes.entry(key.clone()).or_default().dial = Some(1);
        Ask::Dial
    }

    /// Tunnels and first dials.
    fn in_use(&self) -> usize {
        let first = |route: &&Route| route.dial.is_some() && route.current.is_none();
        self.slots.len() + self.routes.values().filter(first).count()
    }

    fn close_longest_idle(&mut self, now: Instant) -> bool {
        let idle = self.slots.iter().filter_map(|(tunnel, slot)| Some((slot.idle_since?, *tunnel)));
        let Some((since, tunnel)) = idle.min() else { return false };
        debug_assert!(since <= now);
        self.close(tunnel, CloseCode::Idle);
        true
    }

    /// The dial for `key` made `tunnel`, whose peer is proven until `not_after`.
    pub(crate) fn handle_dialled(
        &mut self,
        key: &PoolKey,
        tunnel: u64,
        not_after: SystemTime,
        wall: SystemTime,
    ) {
        let left = not_after.duration_since(wall).unwrap_or(Duration::ZERO);
        let short = left / REPLACE_FRACTION + self.settings.look_every + crate::live::EXPIRY_MARGIN;
        let slot = Slot {
            key: key.clone(),
            state: State::Current,
            idle_since: None,
            replace_at: not_after - REPLACE_BEFORE.min(short),
        };
        self.slots.insert(tunnel, slot);
        let route = self.routes.entry(key.clone()).or_default();
        route.dial = None;
        if let Some(old) = route.current.replace(tunnel) {
            self.drain(old, CloseCode::Replaced);
        }
    }

    /// The dial for `key` failed. An old tunnel, if there is one, goes on serving.
    pub(crate) fn handle_dial_failed(&mut self, key: &PoolKey) {
        let Some(route) = self.routes.get_mut(key) else { return };
        route.dial = None;
        if route.current.is_none() {
            self.routes.remove(key);
        }
    }

    /// `tunnel` is no more.
    pub(crate) fn handle_closed(&mut self, tunnel: u64) {
        let Some(slot) = self.slots.remove(&tunnel) else { return };
        self.detach(&slot.key, tunnel);
    }

    /// The peer takes no new flows on `tunnel`.
    pub(crate) fn handle_draining(&mut self, tunnel: u64) {
        self.drain(tunnel, CloseCode::Drain);
    }

    /// The SVID of `source` was renewed: its tunnels are replaced, and closed at `close_at` at the
    /// latest, which is before the old SVID expires. `flows` counts the flows on a tunnel.
    pub(crate) fn retire_source(
        &mut self,
        source: &SpiffeId,
        close_at: Instant,
        now: Instant,
        flows: impl Fn(u64) -> usize,
    ) {
        let chosen = self.tunnels_where(|slot| slot.key.source == *source);
        self.retire(chosen, close_at, now, flows);
    }

    /// These tunnels are replaced, and closed at `close_at` at the latest.
    pub(crate) fn retire(
        &mut self,
        tunnels: BTreeSet<u64>,
        close_at: Instant,
        now: Instant,
        flows: impl Fn(u64) -> usize,
    ) {
        for tunnel in tunnels {
            if flows(tunnel) == 0 {
                self.drain(tunnel, CloseCode::Replaced); // made anew when it is needed
                continue;
            }
            let Some(slot) = self.slots.get_mut(&tunnel) else { continue };
            match &mut slot.state {
                State::Current => {
                    slot.state = State::Replacing { retry_at: now, close_at: Some(close_at) };
                }
                State::Replacing { close_at: at, .. } | State::Draining { close_at: at, .. } => {
                    *at = Some(at.map_or(close_at, |earlier| earlier.min(close_at)));
                }
            }
        }
    }

    /// Closes the tunnels of every key that `which` chooses, at once.
    pub(crate) fn close_where(&mut self, code: CloseCode, which: impl Fn(&PoolKey) -> bool) {
        for tunnel in self.tunnels_where(|slot| which(&slot.key)) {
            self.close(tunnel, code);
        }
    }

    /// Looks at every tunnel; `flows` counts the flows on it.
    pub(crate) fn look(&mut self, now: Instant, wall: SystemTime, flows: impl Fn(u64) -> usize) {
        for tunnel in self.tunnels_where(|_| true) {
            let idle = flows(tunnel) == 0;
            let Some(slot) = self.slots.get_mut(&tunnel) else { continue };
            slot.idle_since = if idle { slot.idle_since.or(Some(now)) } else { None };
            let idle_for = slot.idle_since.map(|since| now.saturating_duration_since(since));
            match slot.state {
                State::Draining { code, .. } if idle => self.close(tunnel, code),
                State::Draining { close_at: Some(at), .. } | State::Replacing { close_at: Some(at), .. }
                    if at <= now =>
                {
                    self.close(tunnel, CloseCode::IdentityExpired);
                }
                State::Draining { .. } => {}
                State::Current | State::Replacing { .. }
                    if idle_for.is_some_and(|idle| idle >= self.settings.idle_timeout) =>
                {
                    self.close(tunnel, CloseCode::Idle);
                }
                State::Current if slot.replace_at <= wall => {
                    slot.state = State::Replacing { retry_at: now, close_at: None };
                    self.replace(tunnel, now);
                }
                State::Current => {}
                State::Replacing { .. } => self.replace(tunnel, now),
            }
        }
    }

    /// The next thing to do.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Tunnels and first dials.
    pub(crate) fn len(&self) -> usize {
        self.in_use()
    }

    /// Starts the dial of a replacement if it is time and none is under way.
    fn replace(&mut self, tunnel: u64, now: Instant) {
        let Some(slot) = self.slots.get_mut(&tunnel) else { return };
        let State::Replacing { retry_at, .. } = &mut slot.state else { return };
        let Some(route) = self.routes.get_mut(&slot.key) else { return };
        if *retry_at > now || route.dial.is_some() {
            return;
        }
        *retry_at = now + REPLACE_RETRY;
        route.dial = Some(0);
        self.actions.push_back(Action::Dial(slot.key.clone()));
    }

    fn drain(&mut self, tunnel: u64, code: CloseCode) {
        let Some(slot) = self.slots.get_mut(&tunnel) else { return };
        let close_at = match slot.state {
            State::Current => None,
            State::Replacing { close_at, .. } => close_at,
            State::Draining { .. } => return,
        };
        slot.state = State::Draining { code, close_at };
        let key = slot.key.clone();
        self.detach(&key, tunnel);
    }

    fn close(&mut self, tunnel: u64, code: CloseCode) {
        self.handle_closed(tunnel);
        self.actions.push_back(Action::Close { tunnel, code });
    }

    /// `tunnel` is no longer what its key's flows get.
    fn detach(&mut self, key: &PoolKey, tunnel: u64) {
        let Some(route) = self.routes.get_mut(key) else { return };
        if route.current == Some(tunnel) {
            route.current = None;
        }
        if route.current.is_none() && route.dial.is_none() {
            self.routes.remove(key);
        }
    }

    /// In a fixed order, so that a run can be replayed.
    fn tunnels_where(&self, which: impl Fn(&Slot) -> bool) -> BTreeSet<u64> {
        self.slots.iter().filter(|(_, slot)| which(slot)).map(|(tunnel, _)| *tunnel).collect()
    }
}

#[cfg(test)]
mod tests;
