//! How many tunnels a peer may hold, how fast it may make them, and the account of what it does on them.
//!
//! Pure. Stands behind the handshake and knows identities ([`crate::gate`] stands before it). The key is
//! the identity *and* the address, because all replicas of a caller share one identity and one host must
//! not use up the share of another.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use weft_identity::SpiffeId;

use crate::bucket::TokenBucket;
use crate::code::CloseCode;
use crate::load::PeerLoad;
use crate::transport::{AdmissionSettings, LoadSettings};

/// Above this many entries, those without tunnels and with full buckets are forgotten.
const PRUNE_ABOVE: usize = 1024;

/// Accepted tunnels, by identity and address.
#[derive(Debug)]
pub(crate) struct PeerLimits {
    settings: AdmissionSettings,
    load: LoadSettings,
    peers: HashMap<(SpiffeId, IpAddr), Peer>,
}

#[derive(Debug)]
struct Peer {
    tunnels: usize,
    handshakes: TokenBucket,
    load: Arc<PeerLoad>,
}

impl PeerLimits {
    pub(crate) fn new(settings: AdmissionSettings, load: LoadSettings) -> Self {
        Self { settings, load, peers: HashMap::new() }
    }

    /// Takes a place for one more tunnel of `peer` from `remote`, and yields the peer's account.
    ///
    /// # Errors
    ///
    /// The code to close the tunnel with.
    fn admit(&mut self, peer: &SpiffeId, remote: IpAddr, now: Instant) -> Result<Arc<PeerLoad>, CloseCode> {
        if self.peers.len() > PRUNE_ABOVE {
            self.peers.retain(|_, peer| !peer.is_settled(now));
        }
        let (rate, load) = (self.settings.tunnels_per_peer_per_second, &self.load);
        let entry = self.peers.entry((peer.clone(), remote.to_canonical()));
        let peer = entry.or_insert_with(|| Peer {
            tunnels: 0,
            handshakes: TokenBucket::full(rate, now),
            load: Arc::new(PeerLoad::new(load, now)),
        });
        if !peer.handshakes.take(now) {
            return Err(CloseCode::TooManyHandshakes);
        }
        if peer.tunnels >= self.settings.tunnels_per_peer {
            return Err(CloseCode::TooManyTunnels);
        }
        peer.tunnels += 1;
        Ok(peer.load.clone())
    }

    fn leave(&mut self, peer: &SpiffeId, remote: IpAddr) {
        if let Some(peer) = self.peers.get_mut(&(peer.clone(), remote.to_canonical())) {
            peer.tunnels = peer.tunnels.saturating_sub(1);
        }
    }
}

impl Peer {
    /// Whether nothing of it need be kept.
    fn is_settled(&mut self, now: Instant) -> bool {
        self.tunnels == 0 && self.handshakes.is_full(now) && self.load.is_settled(now)
    }
}

/// A place among the accepted tunnels; free again when dropped.
#[derive(Debug)]
pub(crate) struct PeerSlot {
    limits: Arc<Mutex<PeerLimits>>,
    peer: SpiffeId,
    remote: IpAddr,
    load: Arc<PeerLoad>,
}

impl PeerSlot {
    /// Takes a place.
    ///
    /// # Errors
    ///
    /// The code to close the tunnel with.
    pub(crate) fn take(
        limits: &Arc<Mutex<PeerLimits>>,
        peer: &SpiffeId,
        remote: IpAddr,
        now: Instant,
    ) -> Result<Self, CloseCode> {
        let load = limits.lock().unwrap_or_else(PoisonError::into_inner).admit(peer, remote, now)?;
        Ok(Self { limits: limits.clone(), peer: peer.clone(), remote, load })
    }

    /// The account of the peer.
    pub(crate) fn load(&self) -> Arc<PeerLoad> {
        self.load.clone()
    }
}

impl Drop for PeerSlot {
    fn drop(&mut self) {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).leave(&self.peer, self.remote);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::{Excess, Work};

    #[test]
    fn a_peer_holds_64_tunnels_and_no_more_until_one_ends() {
        let now = start();
        let limits = limits(AdmissionSettings { tunnels_per_peer_per_second: 1000, ..Default::default() });
        let take = |remote| PeerSlot::take(&limits, &id(), ip(remote), now);
        let mut slots: Vec<_> = (0..64).map(|_| take("10.0.0.1").unwrap()).collect();
        assert_eq!(take("10.0.0.1").unwrap_err(), CloseCode::TooManyTunnels);
        assert!(take("10.0.0.2").is_ok(), "another host has a share of its own");
        slots.pop();
        assert!(take("10.0.0.1").is_ok());
    }

    #[test]
    fn a_peer_makes_50_tunnels_a_second() {
        let now = start();
        let limits = limits(AdmissionSettings::default());
        for _ in 0..50 {
            drop(PeerSlot::take(&limits, &id(), ip("10.0.0.1"), now).unwrap());
        }
        let refused = PeerSlot::take(&limits, &id(), ip("10.0.0.1"), now).unwrap_err();
        assert_eq!(refused, CloseCode::TooManyHandshakes);
        let later = now + Duration::from_millis(20);
        assert!(PeerSlot::take(&limits, &id(), ip("10.0.0.1"), later).is_ok());
    }

    #[test]
    fn peers_without_tunnels_are_forgotten() {
        let now = start();
        let limits = limits(AdmissionSettings::default());
        for n in 0..=PRUNE_ABOVE as u32 {
            drop(PeerSlot::take(&limits, &id(), IpAddr::from(n.to_be_bytes()), now).unwrap());
        }
        let later = now + Duration::from_secs(2);
        let _slot = PeerSlot::take(&limits, &id(), ip("10.0.0.1"), later).unwrap();
        assert_eq!(limits.lock().unwrap().peers.len(), 1);
    }

    #[test]
    fn quic_09_all_tunnels_of_a_peer_share_one_account_that_outlives_them() {
        let now = start();
        let load = LoadSettings { flows_per_second: 2, ..Default::default() };
        let limits = Arc::new(Mutex::new(PeerLimits::new(AdmissionSettings::default(), load)));
        let take = |remote| PeerSlot::take(&limits, &id(), ip(remote), now).unwrap();
        let (one, two) = (take("10.0.0.1"), take("10.0.0.1"));
        assert_eq!(one.load().take(Work::Flow, now), Ok(()));
        assert_eq!(two.load().take(Work::Flow, now), Ok(()));
        drop((one, two));
        let again = take("10.0.0.1");
        assert_eq!(again.load().take(Work::Flow, now), Err(Excess::Flows), "a new tunnel is no new account");
        assert_eq!(take("10.0.0.2").load().take(Work::Flow, now), Ok(()), "another host has its own");
    }

    fn limits(settings: AdmissionSettings) -> Arc<Mutex<PeerLimits>> {
        Arc::new(Mutex::new(PeerLimits::new(settings, LoadSettings::default())))
    }

    fn id() -> SpiffeId {
        "spiffe://test.example/ns/shop/sa/order".parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn start() -> Instant {
        crate::clock::now().into_std()
    }
}
