//! How much an address is sent that has not proven to be the caller's.
//!
//! Whoever forges an address has the answer sent to somebody else; so a server may send at most three times what came
//! from an address, until the address is proven (RFC 9000 section 8.1). quinn keeps to that but for one packet: while a
//! byte of the budget is left, it lets a whole packet go. Here every byte counts.
//!
//! What belongs to a handshake has a long header, and nothing else has; so it is counted by address, heard and sent, and
//! nobody need say when an address is proven: a caller who shows a certificate of his own has sent enough by then.
//!
//! Pure.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// RFC 9000 section 8.1.
const AT_MOST_TIMES: u64 = 3;
/// Accounts live this long at least, and twice as long at most: a handshake has 5 s (decisions.md, Tunnels).
const LIFE: Duration = Duration::from_secs(10);
/// Accounts of one life: above 256 handshakes under way every address is first asked to prove itself, so those that are
/// sent more than such a question are far fewer. 64 bytes each; of what comes on top quinn's own limit holds.
const MAX_ACCOUNTS: usize = 8_192;
/// A long header has this bit (RFC 8999 section 5.1).
const LONG_HEADER: u8 = 0x80;

/// See the module.
#[derive(Debug)]
pub(crate) struct Unproven {
    young: HashMap<SocketAddr, Account>,
    old: HashMap<SocketAddr, Account>,
    since: Instant,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Account {
    heard: u64,
    sent: u64,
    /// We dial it, so it is no stranger's choice what is sent there.
    ours: bool,
}

impl Unproven {
    pub(crate) fn new(now: Instant) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), since: now }
    }

    /// Notes that the handshake packet of `bytes` came from `address`.
    pub(crate) fn heard(&mut self, address: SocketAddr, bytes: usize, now: Instant) {
        if let Some(account) = self.account(address, now) {
            account.heard += bytes as u64;
        }
    }

    /// Notes that `address` is dialled from here.
    pub(crate) fn dialled(&mut self, address: SocketAddr, now: Instant) {
        if let Some(account) = self.account(address, now) {
            account.ours = true;
        }
    }

    /// How many of the `bytes` of handshake packets, which are `segment` long each, may go to `address`. They count as sent.
    pub(crate) fn lets_out(
        &mut self,
        address: SocketAddr,
        bytes: usize,
        segment: usize,
        now: Instant,
    ) -> usize {
        self.turn(now);
        let address = canonical(address);
        let known = if self.young.contains_key(&address) { &mut self.young } else { &mut self.old };
        let Some(account) = known.get_mut(&address).filter(|account| !account.ours) else {
            return bytes;
        };
        let left = (AT_MOST_TIMES * account.heard).saturating_sub(account.sent);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let may = if bytes <= left { bytes } else { left / segment * segment };
        account.sent += may as u64;
        may
    }

    /// Takes back that `bytes` were sent: the socket had no room for them.
    pub(crate) fn not_sent(&mut self, address: SocketAddr, bytes: usize) {
        let address = canonical(address);
        let known = if self.young.contains_key(&address) { &mut self.young } else { &mut self.old };
        if let Some(account) = known.get_mut(&address) {
            account.sent = account.sent.saturating_sub(bytes as u64);
        }
    }

    /// The account of an address; none when there are too many.
    fn account(&mut self, address: SocketAddr, now: Instant) -> Option<&mut Account> {
        self.turn(now);
        let address = canonical(address);
        if self.young.len() >= MAX_ACCOUNTS && !self.young.contains_key(&address) {
            return self.old.get_mut(&address);
        }
        let kept = self.old.remove(&address).unwrap_or_default();
        Some(self.young.entry(address).or_insert(kept))
    }

    /// Forgets what is over.
    fn turn(&mut self, now: Instant) {
        let lives = now.saturating_duration_since(self.since).as_secs() / LIFE.as_secs();
        if lives > 0 {
            self.old = std::mem::take(&mut self.young);
            if lives > 1 {
                self.old = HashMap::new();
            }
            self.since = now;
        }
    }
}

/// A socket for both families writes IPv4 addresses as IPv6 ones.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether `packet` belongs to a handshake.
pub(crate) fn has_long_header(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first & LONG_HEADER != 0)
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a test owns its time: it only needs some instant to count from"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn caller(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 7], port))
    }

    #[test]
    fn only_handshakes_have_long_headers() {
        assert!(has_long_header(&[0xc0]) && has_long_header(&[0x80, 0]));
        assert!(!has_long_header(&[0x40, 0xc0]) && !has_long_header(&[]));
    }

    #[test]
    fn a_stranger_is_sent_three_times_what_he_sent_and_no_byte_more() {
        let now = Instant::now();
        let mut unproven = Unproven::new(now);
        unproven.heard(caller(1), 1252, now);
        assert_eq!(unproven.lets_out(caller(1), 4800, 1200, now), 3600, "3756 bytes are due");
        assert_eq!(unproven.lets_out(caller(1), 156, 156, now), 156);
        assert_eq!(unproven.lets_out(caller(1), 1200, 1200, now), 0);
        unproven.heard(caller(1), 400, now);
        assert_eq!(unproven.lets_out(caller(1), 1200, 1200, now), 1200);
    }

    #[test]
    fn whom_we_dial_is_not_limited() {
        let now = Instant::now();
        let mut unproven = Unproven::new(now);
        unproven.heard(caller(1), 1200, now);
        assert_eq!(unproven.lets_out(caller(2), 9_000, 1200, now), 9_000, "the first word is ours");
        unproven.dialled(caller(1), now);
        assert_eq!(unproven.lets_out(caller(1), 60_000, 1200, now), 60_000);
    }

    #[test]
    fn accounts_outlast_a_handshake_and_are_bounded() {
        let begin = Instant::now();
        let mut unproven = Unproven::new(begin);
        unproven.heard(caller(1), 1200, begin);
        let later = begin + LIFE + Duration::from_secs(5);
        assert_eq!(unproven.lets_out(caller(1), 4800, 1200, later), 3600);
        for port in 0..=u16::MAX {
            unproven.heard(caller(port), 1200, later);
        }
        assert_eq!((unproven.young.len(), unproven.old.len()), (MAX_ACCOUNTS, 0));
        unproven.heard(caller(1), 1200, later + 2 * LIFE);
        assert_eq!((unproven.young.len(), unproven.old.len()), (1, 0));
    }

    proptest! {
        #[test]
        fn never_more_than_three_times_what_was_heard(
            steps in proptest::collection::vec((any::<bool>(), 1_usize..5_000, 1_usize..1_500, 0_u64..4), 1..60),
        ) {
            let mut now = Instant::now();
            let mut unproven = Unproven::new(now);
            unproven.heard(caller(1), 1, now);
            let (mut heard, mut sent) = (1, 0);
            for (comes, length, segment, seconds) in steps {
                now += Duration::from_secs(seconds);
                unproven.turn(now);
                if comes {
                    heard += length;
                    unproven.heard(caller(1), length, now);
                } else if unproven.young.contains_key(&caller(1)) || unproven.old.contains_key(&caller(1)) {
                    let may = unproven.lets_out(caller(1), length, segment, now);
                    prop_assert!(may == length || may.is_multiple_of(segment));
                    sent += may;
                }
                prop_assert!(sent <= 3 * heard, "{} of {}", sent, heard);
            }
        }
    }
}
