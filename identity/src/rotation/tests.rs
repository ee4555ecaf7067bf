//! The schedule with a clock of its own, and its invariants over random histories.

use proptest::prelude::*;

use super::*;
use crate::forge::{Authority, at, id};

const ID: &str = "spiffe://td/ns/shop/sa/charge";
const DAY: i64 = 24 * 3600;

#[test]
fn an_svid_is_asked_for_published_and_renewed_in_the_middle_of_its_life() {
    let mut rotation = Rotation::new(id(ID));
    assert_eq!(rotation.phase(), Phase::Empty);
    assert!(matches!(rotation.next(at(0)), Action::Request));
    rotation.handle_answer(Ok(svid(0, DAY)), at(0), 0.5).unwrap();
    assert!(matches!(rotation.next(at(0)), Action::Publish(_)));
    assert_eq!(rotation.phase(), Phase::Fresh);
    assert_eq!(rotation.not_after(), Some(at(DAY)));
    assert_eq!(waits_until(&mut rotation, at(0)), at(30));
    assert_eq!(waits_until(&mut rotation, at(DAY / 2 - 1)), at(DAY / 2));
    assert!(matches!(rotation.next(at(DAY / 2)), Action::Request));
    assert_eq!(rotation.phase(), Phase::Renewing);
}

#[test]
fn a_renewal_is_late_by_what_is_left_of_the_life_that_could_be_used() {
    for life in [20, 300, DAY] {
        let validity = Validity { not_before: at(0) - BACKDATE, not_after: at(life) };
        let late = |part: f64| lateness(&validity, at(0) + Duration::from_secs(life as u64).mul_f64(part));
        for (part, expected) in [
            (0.0, Lateness::OnTime),
            (0.55, Lateness::OnTime),
            (0.59, Lateness::OnTime),
            (0.61, Lateness::Overdue),
            (0.74, Lateness::Overdue),
            (0.76, Lateness::Ending),
            (1.0, Lateness::Ending),
            (2.0, Lateness::Ending),
        ] {
            assert_eq!(late(part), expected, "{part} of {life} s");
        }
    }
}

#[test]
fn one_request_is_under_way_at_a_time() {
    let mut rotation = Rotation::new(id(ID));
    assert!(matches!(rotation.next(at(0)), Action::Request));
    assert_eq!(waits_until(&mut rotation, at(0)), at(30));
    assert_eq!(waits_until(&mut rotation, at(1000)), at(1030));
}

#[test]
fn refusals_back_off_up_to_five_minutes_and_the_valid_svid_is_kept() {
    let mut rotation = with_svid(0, DAY, 0.0);
    let renewal = at(DAY * 45 / 100);
    let mut now = renewal;
    for ceiling in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
        assert!(matches!(rotation.next(now), Action::Request));
        rotation.handle_answer(Err(Refusal::default()), now, 1.0).unwrap();
        let until = now + Duration::from_secs(ceiling);
        assert_eq!(waits_until(&mut rotation, now), until.min(now + RECHECK));
        assert_eq!(rotation.not_after(), Some(at(DAY)));
        now = until;
    }
}

#[test]
fn the_back_off_has_full_jitter_and_a_floor() {
    assert_eq!(back_off(4, 0.0), BACKOFF_FLOOR);
    assert_eq!(back_off(4, 0.5), Duration::from_secs(4));
    assert_eq!(back_off(u32::MAX, 1.0), BACKOFF_CAP);
    for draw in [-1.0, f64::NAN, f64::INFINITY] {
        assert!((BACKOFF_FLOOR..=BACKOFF_CAP).contains(&back_off(9, draw)), "{draw}");
    }
}

#[test]
fn an_issuer_that_asks_for_patience_gets_it_up_to_the_cap() {
    let wait_after = |seconds| {
        let mut rotation = Rotation::new(id(ID));
        rotation.next(at(0));
        let refusal = Refusal { retry_after: Some(Duration::from_secs(seconds)) };
        rotation.handle_answer(Err(refusal), at(0), 0.0).unwrap();
        (1..).find(|second| matches!(rotation.next(at(*second)), Action::Request))
    };
    assert_eq!(wait_after(20), Some(20));
    assert_eq!(wait_after(86_400), Some(300));
}

#[test]
fn an_expired_svid_is_withdrawn_once_and_asked_for_again() {
    let mut rotation = with_svid(0, 600, 0.5);
    assert!(matches!(rotation.next(at(300)), Action::Request));
    assert_eq!(waits_until(&mut rotation, at(590)), at(600), "expiry is not slept through");
    assert!(matches!(rotation.next(at(600)), Action::Withdraw));
    assert_eq!((rotation.phase(), rotation.not_after()), (Phase::Expired, None));
    assert_eq!(waits_until(&mut rotation, at(600)), at(630));
    rotation.handle_answer(Ok(svid(601, DAY)), at(601), 0.5).unwrap();
    assert!(matches!(rotation.next(at(601)), Action::Publish(_)));
    assert_eq!(rotation.phase(), Phase::Fresh);
}

#[test]
fn clk_03_an_svid_that_expired_in_a_long_sleep_is_withdrawn_at_the_first_look() {
    let mut rotation = with_svid(0, DAY, 0.5);
    assert!(matches!(rotation.next(at(2 * DAY)), Action::Withdraw));
    assert!(matches!(rotation.next(at(2 * DAY)), Action::Request));
}

#[test]
fn clk_02_a_clock_set_back_an_hour_does_not_stop_the_asking() {
    let mut rotation = Rotation::new(id(ID));
    rotation.next(at(3600));
    rotation.handle_answer(Err(Refusal::default()), at(3600), 1.0).unwrap();
    assert!(matches!(rotation.next(at(0)), Action::Request));
}

#[test]
fn clk_04_a_second_that_comes_twice_asks_once_and_publishes_once() {
    // As a kernel inserts a leap second: 43,200, and the same again.
    let half = DAY / 2;
    let mut rotation = with_svid(0, DAY, 0.5);
    assert_eq!(waits_until(&mut rotation, at(half - 1)), at(half));
    assert!(matches!(rotation.next(at(half)), Action::Request));
    rotation.handle_answer(Ok(svid(half - 60, half + DAY)), at(half), 0.5).unwrap();
    assert!(matches!(rotation.next(at(half)), Action::Publish(_)));
    for second in [half, half - 1, half] {
        waits_until(&mut rotation, at(second)); // or it asked, or published, again
    }
    assert_eq!((rotation.phase(), rotation.not_after()), (Phase::Fresh, Some(at(half + DAY))));
}

#[test]
fn clk_01_an_svid_of_an_issuer_whose_clock_is_ahead_does_not_replace_a_valid_one() {
    let mut rotation = with_svid(0, DAY, 0.5);
    let now = DAY / 2;
    assert!(matches!(rotation.next(at(now)), Action::Request));
    // An hour ahead: notBefore lies 59 min in the future, and every peer with a right clock would refuse it.
    let ahead = rotation.handle_answer(Ok(svid(now + 3600, now + DAY)), at(now), 0.5);
    assert_eq!(ahead, Err(RotationError::NotYetValid { id: id(ID), early: Duration::from_secs(3540) }));
    assert_eq!((rotation.phase(), rotation.not_after()), (Phase::Renewing, Some(at(DAY))));
    assert_eq!(waits_until(&mut rotation, at(now)), at(now) + Duration::from_millis(500), "it backs off");
    // Within the backdate the clocks may disagree.
    assert!(matches!(rotation.next(at(now + 1)), Action::Request));
    rotation.handle_answer(Ok(svid(now + 61, now + DAY)), at(now + 1), 0.5).unwrap();
    assert!(matches!(rotation.next(at(now + 1)), Action::Publish(_)));
    assert_eq!(rotation.phase(), Phase::Fresh);
}

#[test]
fn clk_01_without_a_valid_svid_an_early_one_is_shown_once_and_a_better_one_is_asked_for() {
    let mut rotation = Rotation::new(id(ID));
    rotation.next(at(0));
    rotation.handle_answer(Ok(svid(3600, DAY)), at(0), 0.5).unwrap();
    assert!(matches!(rotation.next(at(0)), Action::Publish(_)));
    assert!(matches!(rotation.next(at(1)), Action::Request), "a better one is asked for at once");
    let again = rotation.handle_answer(Ok(svid(3601, DAY)), at(1), 0.5);
    assert!(matches!(again, Err(RotationError::NotYetValid { .. })), "no flapping between early ones");
    let next = (2..600).find(|second| matches!(rotation.next(at(*second)), Action::Request)).unwrap();
    rotation.handle_answer(Ok(svid(next, DAY)), at(next), 0.5).unwrap();
    assert!(matches!(rotation.next(at(next)), Action::Publish(_)));
    assert_eq!(rotation.phase(), Phase::Fresh);
}

#[test]
fn clk_02_a_kept_svid_is_shown_although_the_clock_was_set_back_before_it() {
    let mut rotation = Rotation::resume(id(ID), svid(0, DAY), at(-3600), 0.5).unwrap();
    assert!(matches!(rotation.next(at(-3600)), Action::Publish(_)));
    assert_eq!(rotation.not_after(), Some(at(DAY)));
}

#[test]
fn an_svid_of_somebody_else_or_of_the_past_is_not_published() {
    let mut rotation = Rotation::new(id(ID));
    rotation.next(at(0));
    let other = Authority::root("td").svid("spiffe://td/ns/shop/sa/order");
    let error = rotation.handle_answer(Ok(other), at(0), 0.5).unwrap_err();
    assert!(matches!(error, RotationError::WrongId { .. }));
    assert_eq!(waits_until(&mut rotation, at(0)), at(0) + Duration::from_millis(500));

    assert!(matches!(rotation.next(at(1)), Action::Request));
    let stale = rotation.handle_answer(Ok(svid(-100, 2)), at(2), 0.5);
    assert_eq!(stale, Err(RotationError::Expired(id(ID))));
    assert_eq!(rotation.phase(), Phase::Empty);
}

#[test]
fn an_svid_that_expires_between_answer_and_publication_is_not_published() {
    let mut rotation = Rotation::new(id(ID));
    rotation.next(at(0));
    rotation.handle_answer(Ok(svid(0, 10)), at(9), 0.5).unwrap();
    assert!(matches!(rotation.next(at(10)), Action::Withdraw));
}

#[test]
fn a_kept_svid_is_resumed_and_an_expired_one_is_not() {
    let mut rotation = Rotation::resume(id(ID), svid(0, DAY), at(3600), 0.5).unwrap();
    assert!(matches!(rotation.next(at(3600)), Action::Publish(_)));
    assert!(matches!(rotation.next(at(DAY / 2 - 1)), Action::WaitUntil(_)));
    assert!(matches!(rotation.next(at(DAY / 2)), Action::Request));
    assert!(Rotation::resume(id(ID), svid(0, 60), at(60), 0.5).is_err());
}

#[test]
fn a_replaced_authority_moves_the_renewal_forward_only() {
    let mut rotation = with_svid(0, DAY, 0.5);
    rotation.renew_by(at(100));
    assert!(matches!(rotation.next(at(99)), Action::WaitUntil(_)));
    rotation.renew_by(at(DAY));
    assert!(matches!(rotation.next(at(100)), Action::Request));
}

#[test]
fn a_short_life_is_not_renewed_on_arrival() {
    // Ten seconds, dated back by a minute: half of the whole period would lie in the past.
    let validity = Validity { not_before: at(-60), not_after: at(10) };
    assert_eq!(renew_at(&validity, at(0), 0.0), at(0) + Duration::from_millis(4500));
    assert_eq!(renew_at(&validity, at(0), 1.0), at(0) + Duration::from_millis(5500));
    // A node whose clock is behind counts from its own now.
    assert_eq!(renew_at(&validity, at(-30), 0.5), at(-10));
}

proptest! {
    #[test]
    fn renewal_leaves_the_promised_reserve(life in 1_i64..700_000, draw in 0.0..1.0_f64) {
        let validity = Validity { not_before: at(-60), not_after: at(life) };
        let renewal = renew_at(&validity, at(0), draw);
        let reserve = validity.remaining(renewal).as_secs_f64() / life as f64;
        prop_assert!((0.449..=0.551).contains(&reserve), "{}", reserve);
    }

    /// Whatever the issuer does and whenever the caller looks.
    #[test]
    fn invariants_hold_over_any_history(steps in proptest::collection::vec((0_i64..5000, 0_u8..4, 0.0..1.0_f64), 1..60)) {
        let root = Authority::root("td");
        let mut rotation = Rotation::new(id(ID));
        let (mut clock, mut under_way, mut published) = (0, false, None);
        for (advance, answer, draw) in steps {
            clock += advance;
            let now = at(clock);
            if under_way && answer < 3 {
                under_way = false;
                let life = [4000, 40, 0][usize::from(answer)];
                let issued = root.svid_valid(ID, at(clock - 60), at(clock + life));
                let answer = if answer == 2 { Err(Refusal::default()) } else { Ok(issued) };
                rotation.handle_answer(answer, now, draw).unwrap();
            }
            // The caller carries out actions until it is told to wait.
            for round in 0.. {
                prop_assert!(round < 4, "no rest");
                match rotation.next(now) {
                    Action::Request => {
                        prop_assert!(!under_way, "two requests at once");
                        under_way = true;
                    }
                    Action::Publish(svid) => {
                        prop_assert!(now < svid.validity().not_after);
                        published = Some(svid.validity().not_after);
                    }
                    Action::Withdraw => {
                        prop_assert!(published.take().is_some_and(|not_after| not_after <= now));
                    }
                    Action::WaitUntil(until) => {
                        prop_assert!(now < until && until <= now + RECHECK);
                        break;
                    }
                }
            }
            prop_assert!(published.is_none_or(|not_after| now < not_after), "an expired SVID is presented");
            prop_assert_eq!(published, rotation.not_after());
        }
    }
}

fn svid(from: i64, to: i64) -> Svid {
    Authority::root("td").svid_valid(ID, at(from - 60), at(to))
}

/// A rotation that holds a published SVID from `from` to `to`.
fn with_svid(from: i64, to: i64, draw: f64) -> Rotation {
    let mut rotation = Rotation::new(id(ID));
    rotation.next(at(from));
    rotation.handle_answer(Ok(svid(from, to)), at(from), draw).unwrap();
    assert!(matches!(rotation.next(at(from)), Action::Publish(_)));
    rotation
}

fn waits_until(rotation: &mut Rotation, now: SystemTime) -> SystemTime {
    match rotation.next(now) {
        Action::WaitUntil(until) => until,
        other @ (Action::Request | Action::Publish(_) | Action::Withdraw) => panic!("no wait but {other:?}"),
    }
}
