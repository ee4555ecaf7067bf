//! The balancer under test: shares, order of groups, ejections, the breaker, and what holds whatever happens.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::{Attempt, Balancer, Counts, NoEndpoint};
use crate::{
    model::{
        Endpoint, EndpointState,
        traffic::{Algorithm, BreakerSettings, OutlierSettings, TrafficSettings},
    },
    testing,
};

/// A base for virtual time; no test reads the clock twice.
pub(super) fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "a fixed base for virtual time")]
    Instant::now()
}

const MS: Duration = Duration::from_millis(1);

fn settings(algorithm: Algorithm) -> TrafficSettings {
    let outlier = OutlierSettings { jitter: 0.0, ..OutlierSettings::default() };
    TrafficSettings { algorithm, outlier, ..TrafficSettings::default() }
}

/// Endpoints 0.. with these weights.
fn endpoints(weights: &[u32]) -> Vec<Arc<Endpoint>> {
    let endpoint = |(number, weight): (usize, &u32)| {
        Arc::new(Endpoint { weight: *weight, ..testing::endpoint("charge", "shop", number as u32) })
    };
    weights.iter().enumerate().map(endpoint).collect()
}

fn balancer(settings: TrafficSettings, weights: &[u32], now: Instant) -> Balancer {
    let mut balancer = Balancer::new(settings);
    balancer.update(&endpoints(weights), now);
    balancer
}

fn number(attempt: &Attempt) -> usize {
    attempt.endpoint().workload.as_str().trim_start_matches("charge-").parse().unwrap()
}

/// How often each endpoint is picked in `count` connections that end at once.
fn shares(balancer: &mut Balancer, count: usize, now: Instant) -> BTreeMap<usize, usize> {
    let mut rng = StdRng::seed_from_u64(7);
    let mut shares = BTreeMap::new();
    for _ in 0..count {
        let attempt = balancer.pick(&mut rng, now, &[]).unwrap();
        *shares.entry(number(&attempt)).or_default() += 1;
        let flow = balancer.connected(attempt, 5 * MS, now);
        balancer.closed(flow);
    }
    shares
}

/// Fails `count` connections to endpoint `wanted`, giving the others back.
fn fail(balancer: &mut Balancer, wanted: usize, count: usize, now: Instant) {
    let mut rng = StdRng::seed_from_u64(8);
    let exclude: Vec<_> = (0..balancer.slots.len())
        .filter(|place| *place != wanted)
        .map(|place| balancer.slots[place].endpoint.label.clone())
        .collect();
    for _ in 0..count {
        let attempt = balancer.pick(&mut rng, now, &exclude).unwrap();
        assert_eq!(number(&attempt), wanted);
        balancer.failed(attempt, &mut rng, now);
    }
}

#[test]
fn round_robin_takes_turns_by_weight() {
    let now = start();
    let mut balancer = balancer(settings(Algorithm::RoundRobin), &[5, 1, 1], now);
    let mut rng = StdRng::seed_from_u64(1);
    let turns: Vec<_> = (0..7)
        .map(|_| {
            let attempt = balancer.pick(&mut rng, now, &[]).unwrap();
            let place = number(&attempt);
            balancer.abandoned(attempt);
            place
        })
        .collect();
    assert_eq!(turns, [0, 0, 1, 0, 2, 0, 0], "spread, not five in a row");
}

#[test]
fn among_equally_fast_endpoints_shares_are_the_weights() {
    let now = start();
    for algorithm in [Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin] {
        let shares = shares(&mut balancer(settings(algorithm), &[90, 10, 0], now), 10_000, now);
        assert!((8_700..9_300).contains(&shares[&0]), "{algorithm:?} {shares:?}");
        assert_eq!(shares.get(&2), None, "weight 0 takes none");
    }
}

#[test]
fn equal_endpoints_get_equal_shares() {
    let now = start();
    for algorithm in [Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin] {
        let shares = shares(&mut balancer(settings(algorithm), &[1, 1, 1, 1], now), 8_000, now);
        assert!(shares.values().all(|count| (1_800..2_200).contains(count)), "{algorithm:?} {shares:?}");
    }
}

#[test]
fn peak_ewma_avoids_the_slow_one() {
    let now = start();
    let mut balancer = balancer(settings(Algorithm::PeakEwma), &[1, 1, 1], now);
    let mut rng = StdRng::seed_from_u64(2);
    let mut slow = 0;
    for _ in 0..3_000 {
        let attempt = balancer.pick(&mut rng, now, &[]).unwrap();
        let latency = if number(&attempt) == 0 { 500 * MS } else { 5 * MS };
        slow += usize::from(number(&attempt) == 0);
        let flow = balancer.connected(attempt, latency, now);
        balancer.closed(flow);
    }
    assert!(slow < 10, "picked {slow} of 3,000 times");
}

#[test]
fn least_request_fills_evenly() {
    let now = start();
    let mut balancer = balancer(settings(Algorithm::LeastRequest), &[1, 1], now);
    let mut rng = StdRng::seed_from_u64(3);
    let mut held = Vec::new();
    for _ in 0..1_000 {
        let attempt = balancer.pick(&mut rng, now, &[]).unwrap();
        held.push(balancer.connected(attempt, MS, now));
    }
    assert_eq!(balancer.slots.iter().map(|slot| slot.load).collect::<Vec<_>>(), [500, 500]);
    held.into_iter().for_each(|flow| balancer.closed(flow));
    assert_eq!(balancer.counts(now), Counts { ready: 2, ..Counts::default() });
}

#[test]
fn unconfirmed_endpoints_are_dialled_last() {
    let now = start();
    let mut set = endpoints(&[1, 1]);
    set[0] = Arc::new(Endpoint { state: EndpointState::Unconfirmed, ..(*set[0]).clone() });
    let mut balancer = Balancer::new(settings(Algorithm::PeakEwma));
    balancer.update(&set, now);
    assert_eq!(shares(&mut balancer, 100, now), BTreeMap::from([(1, 100)]));

    let mut rng = StdRng::seed_from_u64(1);
    let attempt = balancer.pick(&mut rng, now, &[set[1].label.clone()]).unwrap();
    assert_eq!(number(&attempt), 0, "when the confirmed one was tried");
    balancer.abandoned(attempt);
}

#[test]
fn a_failing_endpoint_is_ejected_and_comes_back_by_a_probe() {
    let now = start();
    let mut balancer = balancer(settings(Algorithm::PeakEwma), &[1, 1], now);
    fail(&mut balancer, 0, 5, now);
    assert_eq!(balancer.counts(now).ejected, 1);
    assert_eq!(shares(&mut balancer, 100, now), BTreeMap::from([(1, 100)]));

    let later = now + Duration::from_secs(10);
    let after = shares(&mut balancer, 1_000, later);
    assert!(after.get(&0).is_some_and(|count| *count > 300), "{after:?}");
}

#[test]
fn while_the_probe_is_out_the_others_take_the_rest() {
    let now = start();
    let mut balancer = balancer(settings(Algorithm::RoundRobin), &[1, 1], now);
    fail(&mut balancer, 0, 5, now);
    let later = now + Duration::from_secs(10);
    let mut rng = StdRng::seed_from_u64(1);
    let attempts: Vec<_> = (0..10).map(|_| balancer.pick(&mut rng, later, &[]).unwrap()).collect();
    assert_eq!(attempts.iter().filter(|attempt| number(attempt) == 0).count(), 1);
    attempts.into_iter().for_each(|attempt| balancer.abandoned(attempt));
}

#[test]
fn no_more_than_the_share_is_ever_ejected() {
    let now = start();
    let mut balancer = balancer(settings(Algorithm::PeakEwma), &[1, 1, 1, 1], now);
    for place in 0..4 {
        fail(&mut balancer, place, 5, now);
    }
    assert_eq!(balancer.counts(now).ejected, 2);

    let mut alone = self::balancer(settings(Algorithm::PeakEwma), &[1], now);
    fail(&mut alone, 0, 50, now);
    assert_eq!(alone.counts(now).ready, 1, "the only endpoint is never ejected");
}

#[test]
fn when_the_others_leave_ejected_ones_are_taken_back() {
    let now = start();
    let mut balancer = balancer(settings(Algorithm::PeakEwma), &[1, 1, 1, 1], now);
    fail(&mut balancer, 0, 5, now);
    fail(&mut balancer, 1, 5, now + MS);
    balancer.update(&endpoints(&[1, 1]), now + MS);
    assert_eq!(balancer.counts(now + MS).ejected, 1);
    assert_eq!(
        shares(&mut balancer, 10, now + MS),
        BTreeMap::from([(0, 10)]),
        "the one that would return first"
    );
}

#[test]
fn an_ejected_endpoint_is_the_last_resort_unless_all_may_be_out() {
    let now = start();
    let mut rng = StdRng::seed_from_u64(1);
    let mut half = balancer(settings(Algorithm::PeakEwma), &[1, 1], now);
    fail(&mut half, 0, 5, now);
    let tried = [half.slots[1].endpoint.label.clone()];
    let attempt = half.pick(&mut rng, now, &tried).unwrap();
    assert_eq!(number(&attempt), 0);
    half.abandoned(attempt);

    let mut all = settings(Algorithm::PeakEwma);
    all.outlier.max_percent = 100;
    let mut all = balancer(all, &[1, 1], now);
    fail(&mut all, 0, 5, now);
    fail(&mut all, 1, 5, now);
    assert_eq!(all.pick(&mut rng, now, &[]).unwrap_err(), NoEndpoint::AllEjected);
    assert_eq!(NoEndpoint::AllEjected.code().as_str(), "W1006");
}

#[test]
fn a_restarted_agent_starts_with_a_clean_slate_and_others_keep_theirs() {
    let now = start();
    let mut balancer = balancer(settings(Algorithm::PeakEwma), &[1, 1, 1, 1], now);
    fail(&mut balancer, 0, 5, now);
    fail(&mut balancer, 1, 5, now);
    let mut set = endpoints(&[1, 1, 1, 1]);
    set[0] = Arc::new(Endpoint { boot: 2, ..(*set[0]).clone() });
    balancer.update(&set, now);
    assert_eq!(balancer.counts(now).ejected, 1);
    assert!(shares(&mut balancer, 100, now).contains_key(&0));
}

#[test]
fn the_breaker_bounds_pending_and_live_connections() {
    let now = start();
    let breaker = BreakerSettings { max_connections: 3, max_pending: 2 };
    let mut balancer = balancer(TrafficSettings { breaker, ..settings(Algorithm::PeakEwma) }, &[1], now);
    let mut rng = StdRng::seed_from_u64(1);
    let first = balancer.pick(&mut rng, now, &[]).unwrap();
    let second = balancer.pick(&mut rng, now, &[]).unwrap();
    assert_eq!(balancer.pick(&mut rng, now, &[]).unwrap_err(), NoEndpoint::BreakerOpen);
    let flow = balancer.connected(first, MS, now);
    let third = balancer.pick(&mut rng, now, &[]).unwrap();
    assert!(balancer.is_breaker_open());
    balancer.abandoned(second);
    balancer.abandoned(third);
    balancer.closed(flow);
    assert_eq!(balancer.counts(now), Counts { ready: 1, ..Counts::default() });
}

#[test]
fn nothing_to_try_is_told_apart() {
    let now = start();
    let mut rng = StdRng::seed_from_u64(1);
    let mut empty = balancer(settings(Algorithm::PeakEwma), &[], now);
    assert_eq!(empty.pick(&mut rng, now, &[]).unwrap_err(), NoEndpoint::None);
    let mut weightless = balancer(settings(Algorithm::PeakEwma), &[0], now);
    assert_eq!(weightless.pick(&mut rng, now, &[]).unwrap_err(), NoEndpoint::None);
    let mut one = balancer(settings(Algorithm::PeakEwma), &[1], now);
    let tried = [one.slots[0].endpoint.label.clone()];
    assert_eq!(one.pick(&mut rng, now, &tried).unwrap_err(), NoEndpoint::Exhausted);
}

#[test]
fn what_ends_after_its_endpoint_has_left_is_counted_off() {
    let now = start();
    let mut rng = StdRng::seed_from_u64(1);
    let mut balancer = balancer(settings(Algorithm::PeakEwma), &[1], now);
    let attempt = balancer.pick(&mut rng, now, &[]).unwrap();
    let flow = balancer.connected(attempt, MS, now);
    let late = balancer.pick(&mut rng, now, &[]).unwrap();
    balancer.update(&[], now);
    balancer.update(&endpoints(&[1]), now);
    balancer.closed(flow);
    assert!(!balancer.failed(late, &mut rng, now), "the endpoint that came back is another one");
    assert_eq!(balancer.counts(now), Counts { ready: 1, ..Counts::default() });
    assert_eq!(balancer.slots[0].load, 0);
}

/// One thing that happens to a balancer.
#[derive(Clone, Debug)]
enum Step {
    Pick,
    Connect(usize, u64),
    Fail(usize),
    Abandon(usize),
    Close(usize),
    Endpoints(Vec<u32>),
    Wait(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Pick),
        3 => (any::<usize>(), 0..2_000_u64).prop_map(|(which, ms)| Step::Connect(which, ms)),
        3 => any::<usize>().prop_map(Step::Fail),
        1 => any::<usize>().prop_map(Step::Abandon),
        2 => any::<usize>().prop_map(Step::Close),
        1 => prop::collection::vec(0..3_u32, 0..6).prop_map(Step::Endpoints),
        1 => (0..30_000_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_a_usable_endpoint_is_found_and_counts_add_up(
        steps in prop::collection::vec(any_step(), 0..150),
        algorithm in prop::sample::select(vec![Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin]),
        max_percent in prop::sample::select(vec![0_u8, 10, 50, 99]),
        seed in any::<u64>(),
    ) {
        let mut settings = settings(algorithm);
        settings.outlier = OutlierSettings { consecutive_failures: 2, max_percent, ..settings.outlier };
        settings.breaker = BreakerSettings { max_connections: 20, max_pending: 8 };
        let (mut now, mut rng) = (start(), StdRng::seed_from_u64(seed));
        let mut balancer = balancer(settings, &[1, 1, 2], now);
        let (mut pending, mut live) = (Vec::new(), Vec::new());
        let mut weights = vec![1, 1, 2];
        for step in steps {
            match step {
                Step::Pick => match balancer.pick(&mut rng, now, &[]) {
                    Ok(attempt) => {
                        prop_assert!(attempt.endpoint().weight > 0);
                        pending.push(attempt);
                    }
                    Err(NoEndpoint::None) => prop_assert!(weights.iter().all(|weight| *weight == 0)),
                    Err(NoEndpoint::BreakerOpen) => prop_assert!(pending.len() >= 8 || pending.len() + live.len() >= 20),
                    Err(NoEndpoint::Exhausted | NoEndpoint::AllEjected) => prop_assert!(false, "never empty"),
                },
                Step::Connect(which, ms) if !pending.is_empty() => {
                    let attempt = pending.swap_remove(which % pending.len());
                    live.push(balancer.connected(attempt, Duration::from_millis(ms), now));
                }
                Step::Fail(which) if !pending.is_empty() => {
                    let attempt = pending.swap_remove(which % pending.len());
                    balancer.failed(attempt, &mut rng, now);
                }
                Step::Abandon(which) if !pending.is_empty() => {
                    balancer.abandoned(pending.swap_remove(which % pending.len()));
                }
                Step::Close(which) if !live.is_empty() => balancer.closed(live.swap_remove(which % live.len())),
                Step::Endpoints(new) => {
                    balancer.update(&endpoints(&new), now);
                    weights = new;
                }
                Step::Wait(ms) => now += Duration::from_millis(ms),
                Step::Connect(..) | Step::Fail(_) | Step::Abandon(_) | Step::Close(_) => {}
            }
            let counts = balancer.counts(now);
            prop_assert_eq!((counts.pending as usize, counts.live as usize), (pending.len(), live.len()));
            prop_assert!(counts.ejected * 100 <= weights.len() * usize::from(max_percent));
        }
    }
}
