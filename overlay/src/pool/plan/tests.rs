//! The plan of the pool under a clock of its own: reuse, dial, wait, retire.

use proptest::prelude::*;

use super::*;

#[test]
fn flows_share_one_dial_and_then_one_tunnel() {
    let (mut plan, key) = (plan(), key("order", 1));
    assert_eq!(plan.ask(&key, at(0)), Ask::Dial);
    assert_eq!(plan.ask(&key, at(0)), Ask::Wait);
    plan.handle_dialled(&key, 7, wall(86_400), wall(0));
    assert_eq!(plan.ask(&key, at(1)), Ask::Use(7));
}

#[test]
fn another_source_or_address_never_shares_a_tunnel() {
    let mut plan = plan();
    dialled(&mut plan, &key("order", 1), 7);
    assert_eq!(plan.ask(&key("cart", 1), at(0)), Ask::Dial);
    assert_eq!(plan.ask(&key("order", 2), at(0)), Ask::Dial);
}

#[test]
fn after_a_failed_dial_the_next_flow_dials_again() {
    let (mut plan, key) = (plan(), key("order", 1));
    plan.ask(&key, at(0));
    plan.handle_dial_failed(&key);
    assert_eq!(plan.ask(&key, at(1)), Ask::Dial);
}

#[test]
fn waiters_are_bounded() {
    let mut plan = PoolPlan::new(PoolSettings { max_waiters: 2, ..Default::default() });
    let key = key("order", 1);
    assert_eq!(plan.ask(&key, at(0)), Ask::Dial);
    assert_eq!(plan.ask(&key, at(0)), Ask::Wait);
    assert_eq!(plan.ask(&key, at(0)), Ask::Crowded);
}

#[test]
fn an_idle_tunnel_is_closed_after_the_timeout_and_a_used_one_is_not() {
    let (mut plan, key) = (plan(), key("order", 1));
    dialled(&mut plan, &key, 7);
    plan.look(at(0), wall(0), |_| 1);
    plan.look(at(100), wall(0), |_| 0);
    plan.look(at(129), wall(0), |_| 0);
    assert_eq!(plan.poll_action(), None);
    assert_eq!(plan.ask(&key, at(129)), Ask::Use(7), "which makes it busy again");
    plan.look(at(131), wall(0), |_| 0);
    assert_eq!(plan.poll_action(), None);
    plan.look(at(161), wall(0), |_| 0);
    assert_eq!(plan.poll_action(), Some(Action::Close { tunnel: 7, code: CloseCode::Idle }));
    assert_eq!(plan.ask(&key, at(161)), Ask::Dial);
}

#[test]
fn a_renewed_svid_replaces_busy_tunnels_make_before_break() {
    let (mut plan, key) = (plan(), key("order", 1));
    dialled(&mut plan, &key, 7);
    plan.retire_source(&key.source, at(1000), at(0), |_| 3);
    plan.look(at(0), wall(0), |_| 3);
    assert_eq!(plan.poll_action(), Some(Action::Dial(key.clone())));
    assert_eq!(plan.ask(&key, at(0)), Ask::Use(7), "the old one serves until the new one is there");
    plan.handle_dialled(&key, 8, wall(86_400), wall(0));
    assert_eq!(plan.ask(&key, at(1)), Ask::Use(8));
    plan.look(at(2), wall(0), |tunnel| usize::from(tunnel == 7));
    assert_eq!(plan.poll_action(), None, "flows on the old one go on");
    plan.look(at(3), wall(0), |tunnel| usize::from(tunnel == 8));
    assert_eq!(plan.poll_action(), Some(Action::Close { tunnel: 7, code: CloseCode::Replaced }));
}

#[test]
fn a_retired_tunnel_is_cut_before_its_svid_expires() {
    let (mut plan, key) = (plan(), key("order", 1));
    dialled(&mut plan, &key, 7);
    plan.retire_source(&key.source, at(100), at(0), |_| 3);
    plan.look(at(0), wall(0), |_| 3);
    plan.handle_dialled(&key, 8, wall(86_400), wall(0));
    while plan.poll_action().is_some() {}
    plan.look(at(99), wall(0), |_| 3);
    assert_eq!(plan.poll_action(), None);
    plan.look(at(100), wall(0), |_| 3);
    let cut = Action::Close { tunnel: 7, code: CloseCode::IdentityExpired };
    assert_eq!(plan.poll_action(), Some(cut));
}

#[test]
fn a_replacement_that_fails_is_tried_again_and_the_old_tunnel_serves_meanwhile() {
    let (mut plan, key) = (plan(), key("order", 1));
    dialled(&mut plan, &key, 7);
    plan.retire_source(&key.source, at(1000), at(0), |_| 1);
    plan.look(at(0), wall(0), |_| 1);
    assert_eq!(plan.poll_action(), Some(Action::Dial(key.clone())));
    plan.handle_dial_failed(&key);
    plan.look(at(4), wall(0), |_| 1);
    assert_eq!(plan.poll_action(), None);
    assert_eq!(plan.ask(&key, at(4)), Ask::Use(7));
    plan.look(at(5), wall(0), |_| 1);
    assert_eq!(plan.poll_action(), Some(Action::Dial(key)));
}

#[test]
fn a_retired_tunnel_without_flows_is_not_replaced_but_dropped() {
    let (mut plan, key) = (plan(), key("order", 1));
    dialled(&mut plan, &key, 7);
    plan.retire_source(&key.source, at(1000), at(0), |_| 0);
    assert_eq!(plan.ask(&key, at(0)), Ask::Dial);
    plan.look(at(1), wall(0), |_| 0);
    assert_eq!(plan.poll_action(), Some(Action::Close { tunnel: 7, code: CloseCode::Replaced }));
}

#[test]
fn retiring_one_source_leaves_the_others_alone() {
    let mut plan = plan();
    dialled(&mut plan, &key("order", 1), 7);
    dialled(&mut plan, &key("cart", 1), 8);
    plan.retire_source(&key("order", 1).source, at(1), at(0), |_| 1);
    plan.look(at(2), wall(0), |_| 1);
    assert_eq!(plan.ask(&key("cart", 1), at(2)), Ask::Use(8));
}

#[test]
fn a_tunnel_is_replaced_before_the_peers_certificate_expires() {
    let (mut plan, key) = (plan(), key("order", 1));
    plan.ask(&key, at(0));
    plan.handle_dialled(&key, 7, wall(3600), wall(0));
    plan.look(at(1), wall(3539), |_| 1);
    assert_eq!(plan.poll_action(), None);
    plan.look(at(2), wall(3540), |_| 1);
    assert_eq!(plan.poll_action(), Some(Action::Dial(key)));
}

#[test]
fn a_tunnel_to_a_peer_with_seconds_to_live_is_replaced_before_it_is_closed_ahead_of_its_end() {
    let (mut plan, key) = (plan(), key("order", 1));
    plan.ask(&key, at(0));
    plan.handle_dialled(&key, 7, wall(8), wall(0));
    plan.look(at(1), wall(3), |_| 1);
    assert_eq!(plan.poll_action(), None);
    // The tunnel is closed at 7, and the look before this one may have come just too early: two seconds are left.
    plan.look(at(2), wall(4), |_| 1);
    assert_eq!(plan.poll_action(), Some(Action::Dial(key)));
}

#[test]
fn a_peer_that_drains_gets_no_new_flow() {
    let (mut plan, key) = (plan(), key("order", 1));
    dialled(&mut plan, &key, 7);
    plan.handle_draining(7);
    assert_eq!(plan.ask(&key, at(0)), Ask::Dial);
    plan.look(at(1), wall(0), |_| 1);
    assert_eq!(plan.poll_action(), None);
    plan.look(at(2), wall(0), |_| 0);
    assert_eq!(plan.poll_action(), Some(Action::Close { tunnel: 7, code: CloseCode::Drain }));
}

#[test]
fn a_full_pool_gives_up_its_longest_idle_tunnel_or_refuses() {
    let mut plan = PoolPlan::new(PoolSettings { max_tunnels: 2, ..Default::default() });
    dialled(&mut plan, &key("order", 1), 1);
    dialled(&mut plan, &key("order", 2), 2);
    assert_eq!(plan.ask(&key("order", 3), at(0)), Ask::Full);
    plan.look(at(1), wall(0), |tunnel| usize::from(tunnel != 2));
    assert_eq!(plan.ask(&key("order", 3), at(2)), Ask::Dial);
    assert_eq!(plan.poll_action(), Some(Action::Close { tunnel: 2, code: CloseCode::Idle }));
    assert_eq!(plan.len(), 2);
}

#[test]
fn a_revoked_source_is_closed_at_once() {
    let (mut plan, key) = (plan(), key("order", 1));
    dialled(&mut plan, &key, 7);
    plan.close_where(CloseCode::IdentityRevoked, |other| other.source == key.source);
    assert_eq!(plan.poll_action(), Some(Action::Close { tunnel: 7, code: CloseCode::IdentityRevoked }));
    assert_eq!(plan.ask(&key, at(0)), Ask::Dial);
}

#[derive(Clone, Debug)]
enum Event {
    Ask(usize),
    Dialled,
    DialFailed,
    Closed(usize),
    Draining(usize),
    Retire(usize),
    Look(u64, usize),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..6usize).prop_map(Event::Ask),
        3 => Just(Event::Dialled),
        1 => Just(Event::DialFailed),
        1 => (0..8usize).prop_map(Event::Closed),
        1 => (0..8usize).prop_map(Event::Draining),
        1 => (0..2usize).prop_map(Event::Retire),
        3 => (0..40u64, 0..3usize).prop_map(|(seconds, busy)| Event::Look(seconds, busy)),
    ]
}

proptest! {
    #[test]
    fn the_invariants_hold_whatever_happens(events in proptest::collection::vec(any_event(), 0..120)) {
        let settings = PoolSettings { max_tunnels: 4, ..Default::default() };
        let mut plan = PoolPlan::new(settings);
        let keys: Vec<_> = (0..6).map(|n| key(["order", "cart"][n % 2], (n / 2) as u16)).collect();
        let mut dials: Vec<PoolKey> = Vec::new();
        let mut up: Vec<u64> = Vec::new();
        let mut drained: Vec<u64> = Vec::new();
        let (mut seconds, mut next) = (0, 1);
        for event in events {
            match event {
                Event::Ask(index) => match plan.ask(&keys[index], at(seconds)) {
                    Ask::Dial => {
                        prop_assert!(!dials.contains(&keys[index]), "one dial per key");
                        dials.push(keys[index].clone());
                    }
                    Ask::Use(tunnel) => {
                        prop_assert!(up.contains(&tunnel), "only a tunnel that is up");
                        prop_assert!(!drained.contains(&tunnel), "never a draining one");
                    }
                    Ask::Wait => prop_assert!(dials.contains(&keys[index])),
                    Ask::Full | Ask::Crowded => {}
                },
                Event::Dialled => if let Some(key) = dials.pop() {
                    plan.handle_dialled(&key, next, wall(seconds + 100), wall(seconds));
                    up.push(next);
                    next += 1;
                },
                Event::DialFailed => if let Some(key) = dials.pop() {
                    plan.handle_dial_failed(&key);
                },
                Event::Closed(index) => if !up.is_empty() {
                    let tunnel = up.remove(index % up.len());
                    plan.handle_closed(tunnel);
                },
                Event::Draining(index) => if !up.is_empty() {
                    let tunnel = up[index % up.len()];
                    plan.handle_draining(tunnel);
                    drained.push(tunnel);
                },
                Event::Retire(source) => {
                    let source = &keys[source].source;
                    plan.retire_source(source, at(seconds + 20), at(seconds), |tunnel| tunnel as usize % 2);
                }
                Event::Look(passed, busy) => {
                    seconds += passed;
                    plan.look(at(seconds), wall(seconds), |tunnel| (tunnel as usize + busy) % 3);
                }
            }
            while let Some(action) = plan.poll_action() {
                match action {
                    Action::Dial(key) => {
                        prop_assert!(!dials.contains(&key), "one dial per key");
                        dials.push(key);
                    }
                    Action::Close { tunnel, .. } => {
                        let place = up.iter().position(|other| *other == tunnel);
                        prop_assert!(place.is_some(), "closed once");
                        up.remove(place.unwrap());
                    }
                }
            }
            let slots: BTreeSet<u64> = plan.slots.keys().copied().collect();
            prop_assert_eq!(&slots, &up.iter().copied().collect());
            for (key, route) in &plan.routes {
                prop_assert!(route.current.is_some() || route.dial.is_some(), "no empty route is kept");
                prop_assert_eq!(route.dial.is_some(), dials.contains(key));
            }
        }
        // Left alone, every tunnel ends and nothing is kept.
        for key in dials {
            plan.handle_dial_failed(&key);
        }
        for step in 1..4 {
            plan.look(at(seconds + step * 1000), wall(seconds + step), |_| 0);
        }
        prop_assert!(plan.slots.is_empty());
    }
}

fn plan() -> PoolPlan {
    PoolPlan::new(PoolSettings::default())
}

fn dialled(plan: &mut PoolPlan, key: &PoolKey, tunnel: u64) {
    assert_eq!(plan.ask(key, at(0)), Ask::Dial);
    plan.handle_dialled(key, tunnel, wall(86_400), wall(0));
}

fn key(source: &str, port: u16) -> PoolKey {
    PoolKey {
        source: format!("spiffe://test.example/ns/shop/sa/{source}").parse().unwrap(),
        destination: "spiffe://test.example/ns/shop/sa/charge".parse().unwrap(),
        addresses: [SocketAddr::from(([10, 0, 0, 1], port))].into(),
    }
}

fn at(seconds: u64) -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(|| crate::clock::now().into_std()) + Duration::from_secs(seconds)
}

fn wall(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}
