//! The algorithms, over candidates that may all be used.

use std::time::Instant;

use rand::Rng;

use super::Slot;
use crate::model::traffic::Algorithm;

/// Chooses one of `candidates` (places in `slots`, at least one, each of a weight above 0).
pub(super) fn choose(
    algorithm: Algorithm,
    slots: &mut [Slot],
    candidates: &[usize],
    rng: &mut (impl Rng + ?Sized),
    now: Instant,
) -> usize {
    let load = |slot: &Slot| f64::from(slot.load) + 1.0;
    match algorithm {
        Algorithm::RoundRobin => in_turn(slots, candidates),
        Algorithm::LeastRequest => better_of_two(slots, candidates, rng, load),
        Algorithm::PeakEwma => {
            better_of_two(slots, candidates, rng, |slot| slot.latency.seconds(now) * load(slot))
        }
    }
}

/// Smooth weighted round robin (nginx, `ngx_http_upstream_get_peer`): each saves its weight, the richest pays the sum.
/// Shares are exact over each round, and turns are spread evenly within it.
fn in_turn(slots: &mut [Slot], candidates: &[usize]) -> usize {
    let mut sum = 0;
    let mut richest = candidates[0];
    for place in candidates {
        let weight = i64::from(slots[*place].endpoint.weight);
        slots[*place].credit += weight;
        sum += weight;
        if slots[*place].credit > slots[richest].credit {
            richest = *place;
        }
    }
    slots[richest].credit -= sum;
    richest
}

/// The cheaper of two random candidates; the first drawn when they cost the same.
///
/// With equal weights the two are different ones (Mitzenmacher, "The Power of Two Choices"). With unequal weights each
/// is drawn by its weight, with replacement, so that among equally cheap endpoints the shares are exactly the weights,
/// and cost shifts them from there.
fn better_of_two(
    slots: &[Slot],
    candidates: &[usize],
    rng: &mut (impl Rng + ?Sized),
    cost: impl Fn(&Slot) -> f64,
) -> usize {
    let weight = |place: &usize| u64::from(slots[*place].endpoint.weight);
    let first_weight = weight(&candidates[0]);
    let (first, second) = if candidates.iter().all(|place| weight(place) == first_weight) {
        let first = rng.random_range(0..candidates.len());
        // A step of 1 to len - 1 from the first never leads back to it; with one candidate both are that one.
        let step = if candidates.len() > 1 { rng.random_range(1..candidates.len()) } else { 0 };
        (candidates[first], candidates[(first + step) % candidates.len()])
    } else {
        let total: u64 = candidates.iter().map(weight).sum();
        let mut draw = || by_weight(candidates, weight, rng.random_range(0..total));
        (draw(), draw())
    };
    if cost(&slots[second]) < cost(&slots[first]) { second } else { first }
}

/// The candidate in whose share `drawn` lies.
fn by_weight(candidates: &[usize], weight: impl Fn(&usize) -> u64, mut drawn: u64) -> usize {
    for place in candidates {
        let share = weight(place);
        if drawn < share {
            return *place;
        }
        drawn -= share;
    }
    candidates[candidates.len() - 1]
}
