//! The shell of [`crate::budget`]: one flow's counters, and the one task per endpoint that looks at them.
//!
//! The data path only stores atomics: no clock, no timer and no task per flow. Time is counted in ticks
//! that the task makes while some flow is blocked; while none is, the task sleeps. A flow registers
//! itself at most once a tick.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::budget::{Action, FlowId, Glance, StallBudget, StallRule};
use crate::code::ResetCode;
use crate::metrics::OverlayMetrics;
use crate::tunnel::TunnelCore;

/// Ticks in one `stall_after`: a stall is noticed after 100 to 125 ms.
const TICKS: u32 = 4;
/// `blocked_at` of a flow that is not blocked; ticks count from 1.
const NOT_BLOCKED: u64 = 0;

/// What both halves of a flow, its handle and the stall watch share.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) id: FlowId,
    pub(crate) tunnel: Arc<TunnelCore>,
    halves: AtomicU8,
    blocked_at: AtomicU64,
    read_bytes: AtomicU64,
    receive_ended: AtomicBool,
    listed: AtomicBool,
    evicted: AtomicBool,
    eviction: Notify,
    /// The other end has accepted the flow; on the side that accepts nobody asks.
    answered: AtomicBool,
    answer: Notify,
    /// The number that a half sends if it is dropped before its end.
    drop_code: AtomicU64,
}

impl Flow {
    pub(crate) fn new(id: FlowId, tunnel: Arc<TunnelCore>) -> Arc<Self> {
        tunnel.flow_started();
        Arc::new(Self {
            id,
            tunnel,
            halves: AtomicU8::new(2),
            blocked_at: AtomicU64::new(NOT_BLOCKED),
            read_bytes: AtomicU64::new(0),
            receive_ended: AtomicBool::new(false),
            listed: AtomicBool::new(false),
            evicted: AtomicBool::new(false),
            eviction: Notify::new(),
            answered: AtomicBool::new(false),
            answer: Notify::new(),
            drop_code: AtomicU64::new(ResetCode::Cancelled.number()),
        })
    }

    pub(crate) fn count_read(&self, bytes: usize) {
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn receive_ended(&self) {
        self.receive_ended.store(true, Ordering::Relaxed);
    }

    /// A half was dropped; with the second one the flow no longer counts.
    pub(crate) fn half_dropped(&self) {
        if self.halves.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.tunnel.flow_ended();
        }
    }

    pub(crate) fn set_drop_code(&self, code: ResetCode) {
        self.drop_code.store(code.number(), Ordering::Relaxed);
    }

    pub(crate) fn drop_code(&self) -> ResetCode {
        ResetCode::try_from(self.drop_code.load(Ordering::Relaxed)).unwrap_or(ResetCode::Internal)
    }

    pub(crate) fn set_answered(&self) {
        self.answered.store(true, Ordering::Release);
        self.answer.notify_one();
    }

    pub(crate) async fn answered(&self) {
        while !self.answered.load(Ordering::Acquire) {
            self.answer.notified().await;
        }
    }

    pub(crate) fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Relaxed)
    }

    fn glance(&self, tick: u64, per_tick: Duration) -> Glance {
        let blocked_at = self.blocked_at.load(Ordering::Relaxed);
        // Blocked somewhere within its first tick: only whole ticks after it count.
        let whole = tick.saturating_sub(blocked_at).saturating_sub(1);
        let blocked_for = per_tick.saturating_mul(u32::try_from(whole).unwrap_or(u32::MAX));
        Glance {
            flow: self.id,
            tunnel: self.tunnel.id,
            peer: self.tunnel.peer.id.clone(),
            blocked_for: (blocked_at != NOT_BLOCKED).then_some(blocked_for),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            ended: self.receive_ended.load(Ordering::Relaxed),
        }
    }

    fn evict(&self) {
        self.set_drop_code(ResetCode::Stalled);
        self.evicted.store(true, Ordering::Relaxed);
        self.eviction.notify_one();
    }
}

/// Held while the local socket of a flow takes nothing; dropping it says that it takes again.
///
/// Its flow may be chosen for eviction meanwhile, see [`StallGuard::evicted`].
#[derive(Debug)]
#[must_use = "the flow counts as blocked while the guard lives"]
pub struct StallGuard<'a> {
    flow: &'a Flow,
}

impl<'a> StallGuard<'a> {
    pub(crate) fn new(flow: &'a Arc<Flow>) -> Self {
        flow.tunnel.stalls.blocked(flow);
        Self { flow }
    }

    /// Waits until the flow is evicted: its identity used up its receive budget and this flow has been
    /// stalled longest. The owner then drops both halves, which tells the peer [`ResetCode::Stalled`].
    ///
    /// Cancel-safe; one waiter at a time.
    pub async fn evicted(&self) {
        while !self.flow.is_evicted() {
            self.flow.eviction.notified().await;
        }
    }
}

impl Drop for StallGuard<'_> {
    fn drop(&mut self) {
        self.flow.blocked_at.store(NOT_BLOCKED, Ordering::Relaxed);
    }
}

/// The flows of one endpoint that are blocked or hold a grant.
#[derive(Debug)]
pub(crate) struct StallWatch {
    rule: StallRule,
    tick: AtomicU64,
    listed: Mutex<Vec<Arc<Flow>>>,
    wake: Notify,
}

impl StallWatch {
    pub(crate) fn new(rule: StallRule) -> Arc<Self> {
        Arc::new(Self { rule, tick: AtomicU64::new(1), listed: Mutex::default(), wake: Notify::new() })
    }

    fn blocked(&self, flow: &Arc<Flow>) {
        flow.blocked_at.store(self.tick.load(Ordering::Relaxed), Ordering::Relaxed);
        if !flow.listed.swap(true, Ordering::AcqRel) {
            self.listed.lock().unwrap_or_else(PoisonError::into_inner).push(flow.clone());
            self.wake.notify_one();
        }
    }

    /// Looks at blocked flows four times per `stall_after`, for as long as it is polled. Cancel-safe.
    pub(crate) async fn run(self: Arc<Self>, metrics: Arc<OverlayMetrics>) {
        let mut budget = StallBudget::new(self.rule);
        let per_tick = (self.rule.stall_after / TICKS).max(Duration::from_millis(1));
        loop {
            self.wake.notified().await;
            while !self.listed.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
                tokio::time::sleep(per_tick).await;
                let tick = self.tick.fetch_add(1, Ordering::Relaxed) + 1;
                self.look(&mut budget, tick, per_tick, &metrics);
            }
        }
    }

    fn look(&self, budget: &mut StallBudget, tick: u64, per_tick: Duration, metrics: &OverlayMetrics) {
        let flows = std::mem::take(&mut *self.listed.lock().unwrap_or_else(PoisonError::into_inner));
        let glances: Vec<Glance> = flows.iter().map(|flow| flow.glance(tick, per_tick)).collect();
        for action in budget.look(&glances) {
            carry_out(&action, &flows, metrics);
        }
        metrics.stalled_flows(budget.granted());
        let mut keep = Vec::with_capacity(flows.len());
        for flow in flows {
            let blocked = |flow: &Flow| flow.blocked_at.load(Ordering::Relaxed) != NOT_BLOCKED;
            let watched = budget.holds(flow.id) || (blocked(&flow) && !flow.is_evicted());
            if watched {
                keep.push(flow);
                continue;
            }
            flow.listed.store(false, Ordering::Release);
            // It may have blocked in between and found itself listed.
            if blocked(&flow) && !flow.is_evicted() && !flow.listed.swap(true, Ordering::AcqRel) {
                keep.push(flow);
            }
        }
        self.listed.lock().unwrap_or_else(PoisonError::into_inner).append(&mut keep);
    }
}

fn carry_out(action: &Action, flows: &[Arc<Flow>], metrics: &OverlayMetrics) {
    match action {
        Action::Widen { tunnel, extra_bytes } => {
            if let Some(flow) = flows.iter().find(|flow| flow.tunnel.id == *tunnel) {
                flow.tunnel.widen(*extra_bytes);
                debug!(peer = %flow.tunnel.peer.id, extra_bytes, "receive window follows stalled flows");
            }
        }
        Action::Evict { flow } => {
            if let Some(flow) = flows.iter().find(|other| other.id == *flow) {
                flow.evict();
                metrics.evicted();
                warn!(peer = %flow.tunnel.peer.id, "receive budget used up, longest-stalled flow reset");
            }
        }
    }
}
