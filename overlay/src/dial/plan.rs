//! In which order, and when, the addresses of an endpoint are tried.
//!
//! Each address gets a head start of 250 ms over the next (Happy Eyeballs, RFC 8305 section 5); one that
//! fails for certain gives way at once. While nobody answers, the round begins again each second with a
//! fresh attempt: a dial that met a restarting agent then finds it within a second of its return,
//! where the retransmission timer of the first attempt would by now wait for longer. Pure.

use std::time::{Duration, Instant};

/// The recommended delay of RFC 8305 section 8.
const HEAD_START: Duration = Duration::from_millis(250);
/// The shortest time between two rounds.
const ROUND: Duration = Duration::from_secs(1);

/// The attempts of one dial.
#[derive(Debug)]
pub(crate) struct DialPlan {
    addresses: Vec<Standing>,
    round_began: Instant,
    next: usize,
    next_at: Instant,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Standing {
    /// Nothing heard.
    Silent,
    /// A handshake is under way: a second one would not help.
    Answered,
    /// It will not become a tunnel.
    Failed,
}

/// What to do next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Next {
    /// Try the address of this index now.
    Start(usize),
    /// Come again then.
    WaitUntil(Instant),
    /// Only attempts that have been answered are under way.
    Wait,
    /// Every address has failed.
    GiveUp,
}

impl DialPlan {
    pub(crate) fn new(addresses: usize, now: Instant) -> Self {
        Self { addresses: vec![Standing::Silent; addresses], round_began: now, next: 0, next_at: now }
    }

    pub(crate) fn next(&mut self, now: Instant) -> Next {
        if self.addresses.iter().all(|standing| *standing == Standing::Failed) {
            return Next::GiveUp;
        }
        if !self.addresses.contains(&Standing::Silent) {
            return Next::Wait;
        }
        if now < self.next_at {
            return Next::WaitUntil(self.next_at);
        }
        while self.addresses.get(self.next).is_some_and(|standing| *standing != Standing::Silent) {
            self.next += 1;
        }
        if self.next >= self.addresses.len() {
            return self.new_round(now);
        }
        let index = self.next;
        self.next += 1;
        self.next_at = now + HEAD_START;
        Next::Start(index)
    }

    fn new_round(&mut self, now: Instant) -> Next {
        let begins = (self.round_began + ROUND).max(self.next_at);
        self.next = 0;
        self.next_at = begins;
        self.round_began = begins;
        if begins <= now { self.next(now) } else { Next::WaitUntil(begins) }
    }

    /// The address of `index` sent something back.
    pub(crate) fn handle_answer(&mut self, index: usize) {
        if let Some(standing @ Standing::Silent) = self.addresses.get_mut(index) {
            *standing = Standing::Answered;
        }
    }

    /// The address of `index` cannot become a tunnel; the next one need not wait.
    pub(crate) fn handle_failure(&mut self, index: usize, now: Instant) {
        if let Some(standing) = self.addresses.get_mut(index) {
            *standing = Standing::Failed;
        }
        if self.next < self.addresses.len() {
            self.next_at = self.next_at.min(now);
        }
    }

    /// The first address that answered and has not failed.
    pub(crate) fn answered(&self) -> Option<usize> {
        self.addresses.iter().position(|standing| *standing == Standing::Answered)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_address_has_a_head_start_over_the_next() {
        let at = clock();
        let mut plan = DialPlan::new(2, at(0));
        assert_eq!(plan.next(at(0)), Next::Start(0));
        assert_eq!(plan.next(at(0)), Next::WaitUntil(at(250)));
        assert_eq!(plan.next(at(250)), Next::Start(1));
        assert_eq!(plan.next(at(500)), Next::WaitUntil(at(1000)));
    }

    #[test]
    fn a_failed_address_gives_way_at_once_and_is_not_tried_again() {
        let at = clock();
        let mut plan = DialPlan::new(2, at(0));
        plan.next(at(0));
        plan.handle_failure(0, at(10));
        assert_eq!(plan.next(at(10)), Next::Start(1));
        assert_eq!(plan.next(at(1010)), Next::Start(1));
        plan.handle_failure(1, at(1020));
        assert_eq!(plan.next(at(1020)), Next::GiveUp);
    }

    #[test]
    fn a_silent_address_is_tried_afresh_each_second() {
        let at = clock();
        let mut plan = DialPlan::new(1, at(0));
        let mut starts = Vec::new();
        let mut now = at(0);
        while now < at(4500) {
            match plan.next(now) {
                Next::Start(0) => starts.push(now),
                Next::WaitUntil(then) => now = then,
                wrong @ (Next::Start(_) | Next::Wait | Next::GiveUp) => panic!("{wrong:?}"),
            }
        }
        assert_eq!(starts, [at(0), at(1000), at(2000), at(3000), at(4000)]);
    }

    #[test]
    fn an_address_that_answered_is_left_to_finish() {
        let at = clock();
        let mut plan = DialPlan::new(1, at(0));
        plan.next(at(0));
        plan.handle_answer(0);
        assert_eq!(plan.next(at(3000)), Next::Wait);
        assert_eq!(plan.answered(), Some(0));
    }

    #[test]
    fn no_address_is_no_dial() {
        assert_eq!(DialPlan::new(0, clock()(0)).next(clock()(0)), Next::GiveUp);
    }

    proptest! {
        #[test]
        fn the_plan_always_moves_on_and_never_tries_a_failed_address(
            addresses in 1..5usize,
            events in proptest::collection::vec((0..5usize, 0..3u8, 0..700u64), 0..40),
        ) {
            let at = clock();
            let mut plan = DialPlan::new(addresses, at(0));
            let mut millis = 0;
            let mut failed = vec![false; addresses];
            for (index, event, wait) in events {
                millis += wait;
                match plan.next(at(millis)) {
                    Next::Start(started) => prop_assert!(!failed[started]),
                    Next::WaitUntil(then) => prop_assert!(then > at(millis)),
                    Next::Wait => prop_assert!(plan.answered().is_some()),
                    Next::GiveUp => prop_assert!(failed.iter().all(|failed| *failed)),
                }
                if event == 1 && index < addresses {
                    plan.handle_failure(index, at(millis));
                    failed[index] = true;
                } else if event == 2 {
                    plan.handle_answer(index);
                }
            }
        }
    }

    fn clock() -> impl Fn(u64) -> Instant {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        let start = *START.get_or_init(|| crate::clock::now().into_std());
        move |millis| start + Duration::from_millis(millis)
    }
}
