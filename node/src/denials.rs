//! The last refusals, for `weft explain last`.
//!
//! A ring of bounded size, each entry with the uid that may see it.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

/// Refusals kept; a person looks at the last few.
const KEPT: usize = 1_000;

/// One refusal as told to people.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) time: SystemTime,
    /// The flow's number here.
    pub(crate) id: String,
    pub(crate) code: String,
    pub(crate) source: String,
    pub(crate) service: String,
    pub(crate) port: u16,
    pub(crate) what: String,
    pub(crate) why: Vec<String>,
    pub(crate) fix: Vec<String>,
    pub(crate) direction: &'static str,
    /// The uid of the local workload; `None` when only the agent's own user and root may see it.
    pub(crate) uid: Option<u32>,
}

/// The ring.
#[derive(Debug, Default)]
pub(crate) struct Denials(Mutex<VecDeque<Refusal>>);

impl Denials {
    /// Notes a refusal; the oldest goes.
    pub(crate) fn note(&self, refusal: Refusal) {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() >= KEPT {
            ring.pop_back();
        }
        ring.push_front(refusal);
    }

    /// The newest `limit` refusals that `may_see` passes.
    pub(crate) fn latest(&self, limit: usize, may_see: impl Fn(&Refusal) -> bool) -> Vec<Refusal> {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.iter().filter(|refusal| may_see(refusal)).take(limit).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(uid: u32, id: usize) -> Refusal {
        Refusal {
            time: SystemTime::UNIX_EPOCH,
            id: id.to_string(),
            code: "W2101".into(),
            source: String::new(),
            service: String::new(),
            port: 80,
            what: String::new(),
            why: Vec::new(),
            fix: Vec::new(),
            direction: "inbound",
            uid: Some(uid),
        }
    }

    #[test]
    fn the_newest_come_first_and_only_ones_own() {
        let ring = Denials::default();
        for id in 0..KEPT + 10 {
            ring.note(refusal(u32::try_from(id % 2).unwrap(), id));
        }
        let found = ring.latest(2, |r| r.uid == Some(1));
        assert_eq!(found.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(), ["1009", "1007"]);
        assert_eq!(ring.latest(usize::MAX, |_| true).len(), KEPT);
    }
}
