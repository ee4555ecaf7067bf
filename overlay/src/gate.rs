//! Who may start a handshake: decided before any cryptography, by addresses alone, which may be forged.
//!
//! Pure. An address proves itself by coming back with the token of a Retry. Above the thresholds only
//! proven addresses pass; a proven one is held back when its network starts handshakes faster than one
//! core could carry, and when there is no place left the oldest handshake of the most crowded network
//! gives way. So whoever stalls handshakes displaces himself, and a newcomer from elsewhere gets in.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use quinn::ConnectionId;

use crate::bucket::TokenBucket;
use crate::transport::AdmissionSettings;

/// Above this many networks, those without handshakes and with a full bucket are forgotten.
const PRUNE_ABOVE: usize = 1024;
/// Tokens remembered as used; at the rate of one network that is half a minute, twice a token's life.
const MAX_USED_TOKENS: usize = 16_384;

/// What to do with a first packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Arrival {
    /// Start the handshake; hand the ticket back at its end.
    Proceed {
        /// The place taken.
        ticket: Ticket,
        /// Whose place it was: that handshake must end now.
        displaced: Option<Ticket>,
    },
    /// Ask the address to prove itself.
    Retry,
    /// Drop it without a word: a caller in good order asks again in a moment.
    Ignore(Ignored),
}

/// Why a first packet is dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ignored {
    /// The token was used before.
    Replayed,
    /// Its network starts handshakes faster than it may.
    Rate,
}

impl Ignored {
    /// The label in metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Replayed => "replayed_token",
            Self::Rate => "network_rate",
        }
    }
}

/// A handshake under way, by the order of its start.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Ticket(u64);

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
    seats: BTreeMap<Ticket, Seat>,
    unproven: usize,
    networks: HashMap<Network, Crowd>,
    first_packets: TokenBucket,
    used: UsedTokens,
    next: u64,
}

#[derive(Clone, Copy, Debug)]
struct Seat {
    network: Network,
    proven: bool,
}

/// What one network does.
#[derive(Debug)]
struct Crowd {
    seats: BTreeSet<Ticket>,
    unproven: usize,
    handshakes: TokenBucket,
}

impl HandshakeGate {
    pub(crate) fn new(settings: AdmissionSettings, now: Instant) -> Self {
        Self {
            first_packets: TokenBucket::full(settings.retry_above_per_second, now),
            used: UsedTokens::new(settings.retry_token_lifetime),
            settings,
            seats: BTreeMap::new(),
            unproven: 0,
            networks: HashMap::new(),
            next: 0,
        }
    }

    /// Decides about a first packet from `remote`. `proof` is the connection ID that its Retry token was
    /// made for, if it came with a good one.
    pub(crate) fn arrive(&mut self, remote: IpAddr, proof: Option<ConnectionId>, now: Instant) -> Arrival {
        self.prune(now);
        let network = Network::of(remote);
        let rate = self.settings.handshakes_per_network_per_second;
        let crowd = self.networks.entry(network).or_insert_with(|| Crowd::new(rate, now));
        match proof {
            Some(token) if self.used.holds(token, now) => return Arrival::Ignore(Ignored::Replayed),
            Some(_) if !crowd.handshakes.take(now) => return Arrival::Ignore(Ignored::Rate),
            Some(token) => self.used.insert(token, now),
            None => {
                let calm = self.first_packets.take(now)
                    && self.seats.len() < self.settings.max_pending
                    && self.unproven < self.settings.retry_above_pending
                    && crowd.unproven < self.settings.retry_above_per_network
                    && crowd.handshakes.take(now);
                if !calm {
                    return Arrival::Retry;
                }
            }
        }
        let displaced = self.make_room(network);
        let ticket = self.seat(Seat { network, proven: proof.is_some() });
        Arrival::Proceed { ticket, displaced }
    }

    /// The handshake of `ticket` ended, either way. One that was displaced has left already.
    pub(crate) fn leave(&mut self, ticket: Ticket) {
        let Some(seat) = self.seats.remove(&ticket) else { return };
        self.unproven -= usize::from(!seat.proven);
        if let Some(crowd) = self.networks.get_mut(&seat.network) {
            crowd.seats.remove(&ticket);
            crowd.unproven -= usize::from(!seat.proven);
        }
    }

    /// Handshakes under way.
    pub(crate) fn pending(&self) -> usize {
        self.seats.len()
    }

    /// The ticket that gives way to a newcomer of `network`, if one must.
    fn make_room(&mut self, network: Network) -> Option<Ticket> {
        let own = self.networks.get(&network).map_or(0, |crowd| crowd.seats.len());
        let oldest = if own >= self.settings.pending_per_network {
            self.networks.get(&network)?.seats.first().copied()
        } else if self.seats.len() >= self.settings.max_pending {
            let crowded = self.networks.values().max_by_key(|crowd| crowd.seats.len())?;
            crowded.seats.first().copied()
        } else {
            None
        };
        self.leave(oldest?);
        oldest
    }

    fn seat(&mut self, seat: Seat) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.seats.insert(ticket, seat);
        self.unproven += usize::from(!seat.proven);
        if let Some(crowd) = self.networks.get_mut(&seat.network) {
            crowd.seats.insert(ticket);
            crowd.unproven += usize::from(!seat.proven);
        }
        ticket
    }

    fn prune(&mut self, now: Instant) {
        if self.networks.len() > PRUNE_ABOVE + self.seats.len() {
            self.networks.retain(|_, crowd| !crowd.seats.is_empty() || !crowd.handshakes.is_full(now));
        }
    }
}

impl Crowd {
    fn new(rate: u32, now: Instant) -> Self {
        Self { seats: BTreeSet::new(), unproven: 0, handshakes: TokenBucket::full(rate, now) }
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

/// The tokens that started a handshake and are still good: quinn itself takes one any number of times.
#[derive(Debug)]
struct UsedTokens {
    lifetime: Duration,
    known: HashMap<ConnectionId, Instant>,
    order: VecDeque<(Instant, ConnectionId)>,
}

impl UsedTokens {
    fn new(lifetime: Duration) -> Self {
        // Tokens carry whole seconds: one may be taken for a second longer than it says.
        let lifetime = lifetime + Duration::from_secs(1);
        Self { lifetime, known: HashMap::new(), order: VecDeque::new() }
    }

    fn holds(&self, token: ConnectionId, now: Instant) -> bool {
        let used = self.known.get(&token);
        used.is_some_and(|&used| now.saturating_duration_since(used) <= self.lifetime)
    }

    fn insert(&mut self, token: ConnectionId, now: Instant) {
        while let Some(&(used, oldest)) = self.order.front() {
            let dead = now.saturating_duration_since(used) > self.lifetime;
            if !dead && self.order.len() < MAX_USED_TOKENS {
                break;
            }
            self.order.pop_front();
            if self.known.get(&oldest) == Some(&used) {
                self.known.remove(&oldest);
            }
        }
        self.order.push_back((now, token));
        self.known.insert(token, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quic_01_above_the_threshold_an_unproven_address_must_retry_and_a_proven_one_passes() {
        let mut gate = gate(AdmissionSettings::default());
        for n in 0..256u32 {
            let remote = IpAddr::from([10, (n >> 6) as u8, (n & 63) as u8, 1]);
            assert!(proceeds(gate.arrive(remote, None, start())), "{n}");
        }
        assert_eq!(gate.arrive(ip("192.0.2.1"), None, start()), Arrival::Retry);
        assert!(proceeds(gate.arrive(ip("192.0.2.1"), token(1), start())));
        assert_eq!(gate.pending(), 257);
    }

    #[test]
    fn quic_01_a_thousand_first_packets_a_second_engage_retry() {
        let now = start();
        let mut gate = gate(AdmissionSettings::default());
        for n in 0..1000u32 {
            let remote = IpAddr::from([10, 0, n as u8, 1]);
            let Arrival::Proceed { ticket, .. } = gate.arrive(remote, None, now) else {
                panic!("{n} is within the rate")
            };
            gate.leave(ticket);
        }
        assert_eq!(gate.arrive(ip("10.0.0.1"), None, now), Arrival::Retry);
        assert!(proceeds(gate.arrive(ip("10.0.0.1"), None, now + Duration::from_millis(2))));
    }

    #[test]
    fn quic_02_a_token_starts_one_handshake_while_it_is_good() {
        let now = start();
        let mut gate = gate(AdmissionSettings::default());
        assert!(proceeds(gate.arrive(ip("10.0.0.1"), token(7), now)));
        let again = gate.arrive(ip("10.0.0.1"), token(7), now + Duration::from_secs(14));
        assert_eq!(again, Arrival::Ignore(Ignored::Replayed));
        assert!(proceeds(gate.arrive(ip("10.0.0.1"), token(8), now)), "another token is another matter");
        assert_eq!(gate.pending(), 2);
    }

    #[test]
    fn quic_02_used_tokens_are_forgotten_once_they_are_dead_and_never_fill_the_memory() {
        let now = start();
        let mut used = UsedTokens::new(Duration::from_secs(15));
        for n in 0..MAX_USED_TOKENS as u64 + 10 {
            used.insert(token(n).unwrap(), now);
        }
        assert_eq!((used.known.len(), used.order.len()), (MAX_USED_TOKENS, MAX_USED_TOKENS));
        used.insert(token(1 << 40).unwrap(), now + Duration::from_secs(17));
        assert_eq!((used.known.len(), used.order.len()), (1, 1));
    }

    #[test]
    fn quic_04_of_one_network_64_unproven_handshakes_pass_and_the_next_must_retry() {
        let mut gate = gate(AdmissionSettings::default());
        for n in 0..64u8 {
            assert!(proceeds(gate.arrive(IpAddr::from([10, 0, 0, n]), None, start())), "{n}");
        }
        assert_eq!(gate.arrive(ip("10.0.0.200"), None, start()), Arrival::Retry);
        assert!(proceeds(gate.arrive(ip("10.0.1.1"), None, start())));
        for n in 0..64u16 {
            let remote = IpAddr::from([0xfd77, 0, 0, 0, n, n, n, n]);
            assert!(proceeds(gate.arrive(remote, None, start())), "{remote}");
        }
        assert_eq!(gate.arrive(ip("fd77::1:2:3:4"), None, start()), Arrival::Retry);
        assert!(proceeds(gate.arrive(ip("fd77:0:0:1::1"), None, start())), "another /64");
    }

    #[test]
    fn quic_04_at_the_total_the_oldest_of_the_most_crowded_network_gives_way() {
        let settings = AdmissionSettings { max_pending: 4, ..Default::default() };
        let mut gate = gate(settings);
        let mut tickets = Vec::new();
        for (n, remote) in ["10.0.0.1", "10.0.1.1", "10.0.1.2", "10.0.1.3"].iter().enumerate() {
            let Arrival::Proceed { ticket, displaced: None } =
                gate.arrive(ip(remote), token(n as u64), start())
            else {
                panic!("{remote} has a place")
            };
            tickets.push(ticket);
        }
        assert_eq!(gate.arrive(ip("10.0.2.1"), None, start()), Arrival::Retry, "unproven: no place");
        let newcomer = gate.arrive(ip("10.0.2.1"), token(100), start());
        let Arrival::Proceed { ticket, displaced } = newcomer else { panic!("{newcomer:?}") };
        assert_eq!(displaced, Some(tickets[1]), "the oldest of 10.0.1.0/24, not of all");
        assert_eq!(gate.pending(), 4);
        gate.leave(tickets[1]);
        assert_eq!(gate.pending(), 4, "it had left already");
        gate.leave(ticket);
        assert_eq!(gate.pending(), 3);
    }

    #[test]
    fn quic_04_a_network_at_its_share_displaces_its_own_oldest() {
        let settings = AdmissionSettings { pending_per_network: 2, ..Default::default() };
        let mut gate = gate(settings);
        let mut arrive = |remote, n| match gate.arrive(ip(remote), token(n), start()) {
            Arrival::Proceed { ticket, displaced } => (ticket, displaced),
            other @ (Arrival::Retry | Arrival::Ignore(_)) => panic!("{other:?}"),
        };
        let (first, _) = arrive("10.0.0.1", 1);
        assert_eq!(arrive("10.0.0.2", 2).1, None);
        assert_eq!(arrive("10.0.0.3", 3).1, Some(first));
        assert_eq!(arrive("10.0.1.1", 4).1, None);
    }

    #[test]
    fn quic_04_proven_addresses_of_one_network_start_500_handshakes_a_second() {
        let now = start();
        let mut gate = gate(AdmissionSettings::default());
        for n in 0..500 {
            assert!(proceeds(gate.arrive(ip("10.0.0.1"), token(n), now)), "{n}");
        }
        let next = gate.arrive(ip("10.0.0.1"), token(500), now);
        assert_eq!(next, Arrival::Ignore(Ignored::Rate));
        assert!(proceeds(gate.arrive(ip("10.0.1.1"), token(501), now)), "others are not held back");
        let later = now + Duration::from_millis(2);
        assert!(proceeds(gate.arrive(ip("10.0.0.1"), token(500), later)), "its token is still unused");
    }

    #[test]
    fn quic_04_quiet_networks_are_forgotten() {
        let now = start();
        let mut gate = gate(AdmissionSettings::default());
        for n in 0..4096u32 {
            let [_, _, a, b] = n.to_be_bytes();
            if let Arrival::Proceed { ticket, .. } = gate.arrive(IpAddr::from([10, a, b, 1]), None, now) {
                gate.leave(ticket);
            }
        }
        assert!(gate.networks.len() <= 2 * PRUNE_ABOVE, "{}", gate.networks.len());
    }

    fn gate(settings: AdmissionSettings) -> HandshakeGate {
        HandshakeGate::new(settings, start())
    }

    fn proceeds(arrival: Arrival) -> bool {
        matches!(arrival, Arrival::Proceed { displaced: None, .. })
    }

    fn token(n: u64) -> Option<ConnectionId> {
        Some(ConnectionId::new(&n.to_be_bytes()))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn start() -> Instant {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(|| crate::clock::now().into_std())
    }
}
