//! Who may start a handshake, and how many tunnels a peer may hold.
//!
//! Two gates, both pure. [`HandshakeGate`] stands before any cryptography and knows only addresses,
//! which may be forged: above its thresholds an address must first prove itself by a Retry, and only
//! the total is a refusal. [`PeerLimits`] stands behind the handshake and knows identities. Its key is
//! the identity *and* the address, because all replicas of a caller share one identity and one host
//! must not use up the share of another.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use weft_identity::SpiffeId;

use crate::code::CloseCode;
use crate::transport::AdmissionSettings;

/// Above this many idle entries, those without tunnels and with a full bucket are forgotten.
const PRUNE_ABOVE: usize = 1024;

/// What to do with a first packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Arrival {
    /// Start the handshake; hand the ticket back at its end.
    Proceed(Ticket),
    /// Ask the address to prove itself.
    Retry,
    /// Refuse.
    Refuse,
}

/// A handshake under way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Ticket {
    /// Set while the address is unproven.
    unvalidated: Option<Network>,
}

/// A /24 or a /64: what one party can be assumed to own.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Network {
    V4([u8; 3]),
    V6([u8; 8]),
}

/// Handshakes under way, by address.
#[derive(Debug)]
pub(crate) struct HandshakeGate {
    settings: AdmissionSettings,
    pending: usize,
    unvalidated: usize,
    by_network: HashMap<Network, usize>,
    first_packets: TokenBucket,
}

impl HandshakeGate {
    pub(crate) fn new(settings: AdmissionSettings, now: Instant) -> Self {
        let first_packets = TokenBucket::full(settings.retry_above_per_second, now);
        Self { settings, pending: 0, unvalidated: 0, by_network: HashMap::new(), first_packets }
    }

    /// Decides about a first packet from `remote`. `validated` says that the address came back with the
    /// token of a Retry.
    pub(crate) fn arrive(&mut self, remote: IpAddr, validated: bool, now: Instant) -> Arrival {
        if self.pending >= self.settings.max_pending {
            return Arrival::Refuse;
        }
        if validated {
            self.pending += 1;
            return Arrival::Proceed(Ticket { unvalidated: None });
        }
        let network = Network::of(remote);
        let crowd = self.by_network.get(&network).copied().unwrap_or(0);
        let calm = self.first_packets.take(now)
            && self.unvalidated < self.settings.retry_above_pending
            && crowd < self.settings.retry_above_per_network;
        if !calm {
            return Arrival::Retry;
        }
        self.pending += 1;
        self.unvalidated += 1;
        *self.by_network.entry(network).or_default() += 1;
        Arrival::Proceed(Ticket { unvalidated: Some(network) })
    }

    /// The handshake of `ticket` ended, either way.
    pub(crate) fn leave(&mut self, ticket: Ticket) {
        self.pending -= 1;
        let Some(network) = ticket.unvalidated else { return };
        self.unvalidated -= 1;
        if let Some(crowd) = self.by_network.get_mut(&network) {
            *crowd -= 1;
            if *crowd == 0 {
                self.by_network.remove(&network);
            }
        }
    }

    /// Handshakes under way.
    pub(crate) fn pending(&self) -> usize {
        self.pending
    }
}

impl Network {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => {
                let [a, b, c, _] = v4.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// Accepted tunnels, by identity and address.
#[derive(Debug)]
pub(crate) struct PeerLimits {
    settings: AdmissionSettings,
    peers: HashMap<(SpiffeId, IpAddr), Peer>,
}

#[derive(Debug)]
struct Peer {
    tunnels: usize,
    handshakes: TokenBucket,
}

impl PeerLimits {
    pub(crate) fn new(settings: AdmissionSettings) -> Self {
        Self { settings, peers: HashMap::new() }
    }

    /// Takes a place for one more tunnel of `peer` from `remote`.
    ///
    /// # Errors
    ///
    /// The code to close the tunnel with.
    fn admit(&mut self, peer: &SpiffeId, remote: IpAddr, now: Instant) -> Result<(), CloseCode> {
        if self.peers.len() > PRUNE_ABOVE {
            self.peers.retain(|_, peer| peer.tunnels > 0 || !peer.handshakes.is_full(now));
        }
        let rate = self.settings.tunnels_per_peer_per_second;
        let entry = self.peers.entry((peer.clone(), remote.to_canonical()));
        let peer = entry.or_insert_with(|| Peer { tunnels: 0, handshakes: TokenBucket::full(rate, now) });
        if !peer.handshakes.take(now) {
            return Err(CloseCode::TooManyHandshakes);
        }
        if peer.tunnels >= self.settings.tunnels_per_peer {
            return Err(CloseCode::TooManyTunnels);
        }
        peer.tunnels += 1;
        Ok(())
    }

    fn leave(&mut self, peer: &SpiffeId, remote: IpAddr) {
        if let Some(peer) = self.peers.get_mut(&(peer.clone(), remote.to_canonical())) {
            peer.tunnels = peer.tunnels.saturating_sub(1);
        }
    }
}

/// A place among the accepted tunnels; free again when dropped.
#[derive(Debug)]
pub(crate) struct PeerSlot {
    limits: Arc<Mutex<PeerLimits>>,
    peer: SpiffeId,
    remote: IpAddr,
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
        limits.lock().unwrap_or_else(PoisonError::into_inner).admit(peer, remote, now)?;
        Ok(Self { limits: limits.clone(), peer: peer.clone(), remote })
    }
}

impl Drop for PeerSlot {
    fn drop(&mut self) {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).leave(&self.peer, self.remote);
    }
}

/// So many a second, and as many at once after a quiet second.
#[derive(Clone, Debug)]
struct TokenBucket {
    per_second: f64,
    level: f64,
    at: Instant,
}

impl TokenBucket {
    fn full(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, level: per_second, at: now }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.per_second).min(self.per_second);
        self.at = now;
    }

    fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let may = self.level >= 1.0;
        if may {
            self.level -= 1.0;
        }
        may
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.level >= self.per_second
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn quic_01_above_the_threshold_an_unproven_address_must_retry_and_a_proven_one_passes() {
        let now = start();
        let mut gate = HandshakeGate::new(AdmissionSettings::default(), now);
        for n in 0..256u32 {
            let remote = IpAddr::from([10, (n >> 6) as u8, (n & 63) as u8, 1]);
            assert!(matches!(gate.arrive(remote, false, now), Arrival::Proceed(_)), "{n}");
        }
        assert_eq!(gate.arrive(ip("192.0.2.1"), false, now), Arrival::Retry);
        assert!(matches!(gate.arrive(ip("192.0.2.1"), true, now), Arrival::Proceed(_)));
        assert_eq!(gate.pending(), 257);
    }

    #[test]
    fn quic_01_a_thousand_first_packets_a_second_engage_retry() {
        let now = start();
        let mut gate = HandshakeGate::new(AdmissionSettings::default(), now);
        for n in 0..1000u32 {
            let Arrival::Proceed(ticket) = gate.arrive(ip("10.0.0.1"), false, now) else {
                panic!("{n} is within the rate")
            };
            gate.leave(ticket);
        }
        assert_eq!(gate.arrive(ip("10.0.0.1"), false, now), Arrival::Retry);
        let later = now + Duration::from_millis(2);
        assert!(matches!(gate.arrive(ip("10.0.0.1"), false, later), Arrival::Proceed(_)));
    }

    #[test]
    fn quic_04_one_network_does_not_use_up_the_places_of_all() {
        let now = start();
        let mut gate = HandshakeGate::new(AdmissionSettings::default(), now);
        for n in 0..64u8 {
            assert!(matches!(gate.arrive(IpAddr::from([10, 0, 0, n]), false, now), Arrival::Proceed(_)));
        }
        assert_eq!(gate.arrive(ip("10.0.0.200"), false, now), Arrival::Retry);
        assert!(matches!(gate.arrive(ip("10.0.1.1"), false, now), Arrival::Proceed(_)));
    }

    #[test]
    fn quic_04_the_total_is_a_refusal_even_for_proven_addresses() {
        let now = start();
        let settings = AdmissionSettings { max_pending: 2, ..Default::default() };
        let mut gate = HandshakeGate::new(settings, now);
        let Arrival::Proceed(ticket) = gate.arrive(ip("10.0.0.1"), true, now) else { panic!("first") };
        assert!(matches!(gate.arrive(ip("10.0.0.2"), true, now), Arrival::Proceed(_)));
        assert_eq!(gate.arrive(ip("10.0.0.3"), true, now), Arrival::Refuse);
        gate.leave(ticket);
        assert!(matches!(gate.arrive(ip("10.0.0.3"), true, now), Arrival::Proceed(_)));
    }

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

    fn limits(settings: AdmissionSettings) -> Arc<Mutex<PeerLimits>> {
        Arc::new(Mutex::new(PeerLimits::new(settings)))
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
