//! How many of its agents a server asks to go, so that another one gets its part. Pure.
//!
//! Agents choose among servers at random, so what joins fills by itself as agents come back; asking is for those who stay
//! connected for months. Only who has clearly more than its part asks, and never below its part, so two servers do not
//! play with agents between them.

use std::time::Duration;

/// The part may be exceeded by a quarter before anybody is moved: each move costs a full view.
const SLACK: usize = 4;
/// Agents that move within a second, at most: each is a handshake and a full view for the other server.
const A_SECOND: usize = 50;
/// The shortest time over which they spread.
const LEAST: Duration = Duration::from_secs(2);

/// How many of `own` agents go when `servers` serve `all` agents together.
#[must_use]
pub fn surplus(own: usize, all: usize, servers: usize) -> usize {
    let part = all.max(own).div_ceil(servers.max(1));
    if own > part + part / SLACK { own - part } else { 0 }
}

/// The time within which `count` agents are to be gone, each at a moment that it draws.
#[must_use]
pub fn within(count: usize) -> Duration {
    LEAST.max(Duration::from_secs((count / A_SECOND) as u64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_server_that_joins_gets_its_part() {
        assert_eq!(surplus(1_000, 1_000, 2), 500);
        assert_eq!(surplus(4, 4, 2), 2);
        assert_eq!(surplus(2, 2, 2), 1);
        assert_eq!(within(500), Duration::from_secs(10));
    }

    #[test]
    fn who_is_alone_or_near_its_part_asks_nobody() {
        for (own, all, servers) in
            [(0, 0, 0), (1, 1, 1), (1, 1, 2), (900, 900, 1), (600, 1_000, 2), (7, 13, 2)]
        {
            assert_eq!(surplus(own, all, servers), 0, "{own} of {all} at {servers}");
        }
    }

    proptest! {
        #[test]
        fn asking_ends_and_nobody_goes_below_its_part(
            mut held in proptest::collection::vec(0_usize..500, 1..6),
        ) {
            let all: usize = held.iter().sum();
            let part = all.div_ceil(held.len());
            for _ in 0..20 {
                let Some(from) = (0..held.len()).find(|&at| surplus(held[at], all, held.len()) > 0) else { break };
                let moved = surplus(held[from], all, held.len());
                held[from] -= moved;
                prop_assert!(held[from] >= part);
                // They choose at random; the worst is that all choose the same.
                let to = (0..held.len()).min_by_key(|&at| held[at]).unwrap();
                held[to] += moved;
            }
            prop_assert!(held.iter().all(|own| surplus(*own, all, held.len()) == 0), "{:?}", held);
        }
    }
}
