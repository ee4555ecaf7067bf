//! The tunnels of one endpoint that are up: attended, sampled, and closed before they expire.
//!
//! One task per tunnel hears its control messages and its end ([`attend`]); one task per endpoint looks
//! at all of them once a second ([`Live::keep`]). Neither keeps a tunnel alive.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tracing::{debug, info};
use weft_identity::SpiffeId;

use crate::admission::PeerSlot;
use crate::clock;
use crate::code::{CloseCode, PeerCode};
use crate::control::{Control, MAX_CONTROL_BYTES};
use crate::error::{By, CloseReason};
use crate::load::Work;
use crate::metrics::{OverlayMetrics, Sample};
use crate::say::Says;
use crate::tunnel::{Phase, Role, Tunnel, TunnelCore};

/// How often expiry is checked and figures are sampled. The wall clock may jump; a second later it is
/// noticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A tunnel is closed this long before `not_after`: one look, so that none is ever late.
pub(crate) const EXPIRY_MARGIN: Duration = LOOK_EVERY;
/// A control message must be whole within this time, or its stream is given up.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(1);
/// More control messages than any honest peer sends in the life of a tunnel.
const MAX_CONTROLS: usize = 64;

/// All tunnels of one endpoint.
#[derive(Debug)]
pub(crate) struct Live {
    tunnels: Mutex<HashMap<u64, Entry>>,
    metrics: Arc<OverlayMetrics>,
    says: Arc<Says>,
}

#[derive(Debug)]
struct Entry {
    core: Weak<TunnelCore>,
    peer: SpiffeId,
    remote: IpAddr,
    counted: Sample,
}

impl Live {
    pub(crate) fn new(metrics: Arc<OverlayMetrics>, says: Arc<Says>) -> Arc<Self> {
        Arc::new(Self { tunnels: Mutex::default(), metrics, says })
    }

    pub(crate) fn add(&self, tunnel: &Tunnel) {
        self.metrics.tunnel_up(&tunnel.peer().id);
        let (peer, remote) = (tunnel.peer().id.clone(), tunnel.remote_address().ip());
        let core = Arc::downgrade(tunnel.core());
        let entry = Entry { core, peer: peer.clone(), remote, counted: Sample::default() };
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner).insert(tunnel.id(), entry);
        self.share_windows(&peer, remote);
    }

    /// Divides what one peer at one address may hold among its tunnels.
    fn share_windows(&self, peer: &SpiffeId, remote: IpAddr) {
        let tunnels = self.tunnels.lock().unwrap_or_else(PoisonError::into_inner);
        let its = tunnels.values().filter(|entry| entry.remote == remote && entry.peer == *peer);
        let its: Vec<_> = its.filter_map(|entry| entry.core.upgrade()).collect();
        drop(tunnels);
        for core in &its {
            core.share(its.len() as u64);
        }
    }

    /// Every tunnel that is up.
    pub(crate) fn tunnels(&self) -> Vec<Tunnel> {
        let tunnels = self.tunnels.lock().unwrap_or_else(PoisonError::into_inner);
        tunnels.values().filter_map(|entry| entry.core.upgrade().map(Tunnel::of)).collect()
    }

    /// Watches over the tunnels for as long as it is polled. Cancel-safe.
    pub(crate) async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.close_expiring();
            self.sample();
        }
    }

    fn close_expiring(&self) {
        let soon = clock::wall() + EXPIRY_MARGIN;
        for tunnel in self.tunnels() {
            if tunnel.peer().not_after <= soon && tunnel.close_reason().is_none() {
                debug!(peer = %tunnel.peer().id, "tunnel closed, the peer's certificate expires");
                tunnel.close(CloseCode::IdentityExpired, "the certificate of the tunnel expires");
            }
        }
    }

    fn sample(&self) {
        let (mut rtt, mut mtu, mut count) = (Duration::ZERO, u16::MAX, 0u32);
        for tunnel in self.tunnels() {
            let stats = tunnel.core().connection.stats();
            let Some(moved) = self.count(tunnel.id(), &stats) else { continue };
            // Either closes the tunnel, which is all that follows from it.
            let _ = tunnel.core().charge(Work::Resets(moved.resets));
            let _ = tunnel.core().charge(Work::Control(moved.control_frames));
            rtt += stats.path.rtt;
            mtu = mtu.min(stats.path.current_mtu);
            count += 1;
        }
        if let Some(mean) = rtt.checked_div(count) {
            self.metrics.path(mean, mtu);
        }
    }

    /// Reports what moved on one tunnel since the last look, and returns it.
    fn count(&self, id: u64, stats: &quinn::ConnectionStats) -> Option<Sample> {
        let mut tunnels = self.tunnels.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = tunnels.get_mut(&id)?;
        let now = Sample::of(stats);
        let moved = now.since(&entry.counted);
        entry.counted = now;
        drop(tunnels);
        self.metrics.moved(moved);
        Some(moved)
    }

    fn remove(&self, id: u64, stats: &quinn::ConnectionStats) {
        self.count(id, stats);
        let removed = self.tunnels.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(Entry { peer, remote, .. }) = removed {
            self.share_windows(&peer, remote);
        }
    }
}

/// Hears the control messages of a tunnel, sends ours, and clears up at its end.
///
/// `slot` is the peer's place among the accepted tunnels; it is free again when this returns.
pub(crate) async fn attend(live: Arc<Live>, tunnel: Tunnel, slot: Option<PeerSlot>) {
    let core = tunnel.core().clone();
    let (id, connection, peer, role) = (core.id, core.connection.clone(), core.peer.id.clone(), core.role());
    let phase = core.phase.subscribe();
    let weak = Arc::downgrade(&core);
    drop((core, tunnel)); // from here on this task keeps the tunnel alive for nobody

    let reason = tokio::select! {
        biased;
        error = connection.closed() => closing_reason(&weak, error),
        () = hear(&connection, &weak) => {
            connection.close(CloseCode::ExcessiveLoad.varint(), b"too many control messages");
            CloseReason::ours(CloseCode::ExcessiveLoad, "too many control messages")
        }
        () = tell(&connection, phase) => unreachable_end(&connection, &weak).await,
    };
    live.remove(id, &connection.stats());
    live.metrics.tunnel_down(&peer, reason.label());
    drop(slot);
    match live.says.closed.may() {
        Some(left_out) => {
            info!(%peer, dialled = role == Role::Dialled, %reason, left_out, "tunnel closed");
        }
        None => debug!(%peer, dialled = role == Role::Dialled, %reason, "tunnel closed"),
    }
}

/// `tell` only returns when its tunnel is gone: what is left is the end of the connection.
async fn unreachable_end(connection: &quinn::Connection, core: &Weak<TunnelCore>) -> CloseReason {
    closing_reason(core, connection.closed().await)
}

fn closing_reason(core: &Weak<TunnelCore>, error: quinn::ConnectionError) -> CloseReason {
    match core.upgrade() {
        Some(core) => core.close_reason(error),
        None => error.into(),
    }
}

/// Takes the peer's control messages; returns when there were too many.
async fn hear(connection: &quinn::Connection, core: &Weak<TunnelCore>) {
    for _ in 0..MAX_CONTROLS {
        let Ok(mut stream) = connection.accept_uni().await else {
            return std::future::pending().await; // the end of the connection is heard elsewhere
        };
        let read = tokio::time::timeout(CONTROL_TIMEOUT, stream.read_to_end(MAX_CONTROL_BYTES)).await;
        let Ok(Ok(bytes)) = read else { continue };
        let Some(core) = core.upgrade() else { continue };
        match Control::decode(&bytes) {
            Some(Control::GoAway(code)) => {
                debug!(peer = %core.peer.id, %code, "peer takes no new flows");
                core.start_drain(By::Peer, code);
            }
            None => debug!(peer = %core.peer.id, "unknown control message ignored"),
        }
    }
}

/// Tells the peer once that this end drains; returns when the tunnel has no handle left.
async fn tell(connection: &quinn::Connection, mut phase: tokio::sync::watch::Receiver<Phase>) {
    let ours = |phase: &Phase| matches!(phase, Phase::Draining { by: By::Us, .. });
    let draining = phase.wait_for(ours).await.map(|phase| *phase);
    if let Ok(Phase::Draining { code: PeerCode::Known(code), .. }) = draining
        && let Ok(mut stream) = connection.open_uni().await
        && stream.write_all(&Control::go_away(code)).await.is_ok()
    {
        let _ = stream.finish(); // just written to: it is open
        std::future::pending().await
    }
}
