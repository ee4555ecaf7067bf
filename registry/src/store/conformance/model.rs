//! Random histories against a model that is obviously right.
//!
//! The model is a sorted map, a list of commits and a list of leases, with no disk, no threads and
//! no groups. Bursts send several transactions at once, so that a group commit must give the same
//! verdicts as one commit after the other.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::super::{Compare, Conflict, Event, LeaseId, Ttl};
use super::*;

/// Histories for each run of the suite, and steps of each. `WEFT_STORE_SEED` replays a run.
const HISTORIES: usize = 12;
const STEPS: usize = 40;

/// What a caller does.
#[derive(Clone, Debug)]
enum Step {
    /// Several transactions at once; the store takes them in this order.
    Burst(Vec<Change>),
    Grant {
        seconds: u32,
    },
    KeepAlive {
        lease: prop::sample::Index,
    },
    Revoke {
        lease: prop::sample::Index,
    },
    Pass {
        seconds: u32,
    },
    Compact {
        part: f64,
    },
    Restart,
}

/// A transaction, in terms of what the model knows.
#[derive(Clone, Debug)]
struct Change {
    guards: Vec<(u8, Guard)>,
    ops: BTreeMap<u8, Option<(u8, Option<prop::sample::Index>)>>,
}

#[derive(Clone, Copy, Debug)]
enum Guard {
    Absent,
    Present,
    Unchanged,
    Stale,
    SameCreation,
}

pub(crate) async fn random_histories_agree_with_a_model<B: Backend>(mut backend: B) {
    let seed: u64 = match std::env::var("WEFT_STORE_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => rand::random(),
    };
    let rng = TestRng::from_seed(RngAlgorithm::XorShift, &u128::from(seed).to_be_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut store = backend.open().await;
    let mut model = Model::default();
    let histories = if B::IN_HAND { HISTORIES } else { HISTORIES / 3 };
    for history in 0..histories {
        let steps = prop::collection::vec(any_step(), STEPS).new_tree(&mut runner).unwrap().current();
        for (number, step) in steps.into_iter().enumerate() {
            let context = format!("seed {seed}, history {history}, step {number}: {step:?}");
            match step {
                Step::Burst(changes) => {
                    // Guards are resolved against what is known before the burst.
                    let txns: Vec<Txn> = changes.iter().map(|change| model.txn(change)).collect();
                    let expected: Vec<_> = txns.iter().map(|txn| model.commit(txn)).collect();
                    let mut found = Vec::new();
                    if B::IN_HAND {
                        found = join_all(txns.into_iter().map(|txn| store.commit(txn))).await;
                    } else {
                        for txn in txns {
                            found.push(store.commit(txn).await);
                        }
                    }
                    for (expected, found) in expected.into_iter().zip(found) {
                        assert_eq!(found.map_err(verdict), expected, "{context}");
                    }
                }
                Step::Grant { seconds } => {
                    // By real time no lease of the model ends by itself: none of them is that short.
                    let factor = if B::IN_HAND { 1 } else { 1000 };
                    let ttl = Ttl::try_from(Duration::from_secs(seconds.into()) * factor).unwrap();
                    let lease = store.grant(ttl).await.unwrap();
                    model.leases.push(Lease { id: lease, ttl, ends: model.now + ttl.as_duration() });
                }
                Step::KeepAlive { lease } => model.keep_alive(lease, &*store).await,
                Step::Revoke { lease } => model.revoke(lease, &*store, &context).await,
                Step::Pass { .. } if !B::IN_HAND => {}
                Step::Pass { seconds } => {
                    let period = Duration::from_secs(seconds.into());
                    backend.pass(&*store, period).await;
                    model.pass(period);
                }
                Step::Compact { part } => {
                    let revision = Revision((model.revision.0 as f64 * part) as u64);
                    store.compact(revision).await.unwrap();
                    model.compacted = model.compacted.max(revision);
                }
                Step::Restart => {
                    drop(store);
                    store = backend.open().await;
                    // A store that shares its revisions with others may have used one to open itself.
                    let opened = revision(&*store).await;
                    let gap = opened.0.checked_sub(model.revision.0);
                    assert!(gap.is_some_and(|gap| gap <= u64::from(!B::IN_HAND)), "{context}: {opened}");
                    model.revision = opened;
                    for lease in &mut model.leases {
                        lease.ends = model.now + lease.ttl.as_duration();
                    }
                }
            }
            model.check(&*store, &context).await;
        }
        model.check_watches(&*store).await;
    }
}

#[derive(Debug, Default)]
struct Model {
    now: Duration,
    revision: Revision,
    entries: BTreeMap<Key, Entry>,
    commits: Vec<EventBatch>,
    compacted: Revision,
    leases: Vec<Lease>,
}

#[derive(Debug)]
struct Lease {
    id: LeaseId,
    ttl: Ttl,
    ends: Duration,
}

/// What is compared of an error.
#[derive(Debug, PartialEq)]
enum Verdict {
    Conflict(Conflict),
    NoLease(LeaseId),
}

fn verdict(error: StoreError) -> Verdict {
    if let StoreError::NoLease { lease } = error {
        return Verdict::NoLease(lease);
    }
    Verdict::Conflict(error.conflict().unwrap_or_else(|| panic!("{error}")).clone())
}

impl Model {
    fn txn(&self, change: &Change) -> Txn {
        let compare = |(number, guard): &(u8, Guard)| {
            let key = name(*number);
            let entry = self.entries.get(&key);
            let mod_revision = entry.map_or(Revision(1), |entry| entry.mod_revision);
            let create_revision = entry.map_or(Revision(1), |entry| entry.create_revision);
            match guard {
                Guard::Absent => Compare::Absent(key),
                Guard::Present => Compare::Present(key),
                Guard::Unchanged => Compare::Unchanged { key, mod_revision },
                Guard::Stale => Compare::Unchanged { key, mod_revision: Revision(mod_revision.0 - 1) },
                Guard::SameCreation => Compare::SameCreation { key, create_revision },
            }
        };
        let op = |(number, put): (&u8, &Option<(u8, Option<prop::sample::Index>)>)| match put {
            None => Op::Delete(name(*number)),
            Some((content, lease)) => {
                let lease = lease.filter(|_| !self.leases.is_empty());
                let lease = lease.map(|index| index.get(&self.leases).id);
                Op::Put { key: name(*number), value: value(&content.to_string()), lease }
            }
        };
        let compares = change.guards.iter().map(compare).collect();
        Txn::new(compares, change.ops.iter().map(op).collect()).unwrap()
    }

    fn commit(&mut self, txn: &Txn) -> Result<Revision, Verdict> {
        for compare in txn.compares() {
            let entry = self.entries.get(compare.key());
            let holds = match compare {
                Compare::Absent(_) => entry.is_none(),
                Compare::Present(_) => entry.is_some(),
                Compare::Unchanged { mod_revision, .. } => {
                    entry.map(|entry| entry.mod_revision) == Some(*mod_revision)
                }
                Compare::SameCreation { create_revision, .. } => {
                    entry.map(|entry| entry.create_revision) == Some(*create_revision)
                }
            };
            if !holds {
                let current = entry.map(|entry| entry.mod_revision);
                return Err(Verdict::Conflict(Conflict { key: compare.key().clone(), current }));
            }
        }
        for op in txn.ops() {
            if let Op::Put { lease: Some(lease), .. } = op
                && !self.leases.iter().any(|alive| alive.id == *lease)
            {
                return Err(Verdict::NoLease(*lease));
            }
        }
        let revision = self.revision.next();
        let mut events = Vec::new();
        for op in txn.ops() {
            match op {
                Op::Put { key, value, lease } => {
                    let before = self.entries.get(key);
                    let entry = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: before.map_or(revision, |before| before.create_revision),
                        mod_revision: revision,
                        version: before.map_or(0, |before| before.version) + 1,
                        lease: *lease,
                    };
                    self.entries.insert(key.clone(), entry.clone());
                    events.push(Event::Put(entry));
                }
                Op::Delete(key) => {
                    events.extend(self.entries.remove(key).map(|gone| Event::Delete(gone.key)))
                }
            }
        }
        self.record(events);
        Ok(self.revision)
    }

    fn record(&mut self, events: Vec<Event>) {
        if !events.is_empty() {
            self.revision = self.revision.next();
            self.commits.push(EventBatch { revision: self.revision, events });
        }
    }

    async fn keep_alive(&mut self, lease: prop::sample::Index, store: &dyn Store) {
        if !self.leases.is_empty() {
            let index = lease.index(self.leases.len());
            let lease = &mut self.leases[index];
            assert_eq!(store.keep_alive(lease.id).await.unwrap(), lease.ttl);
            lease.ends = self.now + lease.ttl.as_duration();
        }
    }

    async fn revoke(&mut self, lease: prop::sample::Index, store: &dyn Store, context: &str) {
        if !self.leases.is_empty() {
            let lease = self.leases.remove(lease.index(self.leases.len()));
            self.end(lease.id);
            assert_eq!(store.revoke(lease.id).await.unwrap(), self.revision, "{context}");
        }
    }

    fn pass(&mut self, period: Duration) {
        self.now += period;
        self.leases.sort_by_key(|lease| (lease.ends, lease.id));
        while self.leases.first().is_some_and(|lease| lease.ends <= self.now) {
            let lease = self.leases.remove(0);
            self.end(lease.id);
        }
    }

    fn end(&mut self, lease: LeaseId) {
        let keys: Vec<Key> = self
            .entries
            .values()
            .filter(|entry| entry.lease == Some(lease))
            .map(|entry| entry.key.clone())
            .collect();
        for key in &keys {
            self.entries.remove(key);
        }
        self.record(keys.into_iter().map(Event::Delete).collect());
    }

    async fn check(&self, store: &dyn Store, context: &str) {
        let listing = store.list_all(&Prefix::everything()).await.unwrap();
        assert_eq!(listing.revision, self.revision, "{context}");
        assert_eq!(listing.entries, self.entries.values().cloned().collect::<Vec<_>>(), "{context}");
        assert_eq!(store.status().await.unwrap().oldest, self.compacted.next(), "{context}");
    }

    /// A watch of all, and one of two keys, from every kept revision.
    async fn check_watches(&self, store: &dyn Store) {
        for selected in [Prefix::everything(), prefix("/1")] {
            let of_prefix = |batch: &EventBatch| {
                let events = batch.events.iter().filter(|event| event.key().is_under(&selected));
                EventBatch { revision: batch.revision, events: events.cloned().collect() }
            };
            let from = self.compacted.next();
            let mut watch = store.watch(selected.clone(), from).await.unwrap();
            let kept = self.commits.iter().filter(|batch| batch.revision > self.compacted);
            for batch in kept.map(of_prefix) {
                if !batch.events.is_empty() {
                    assert_eq!(next(&mut watch).await.unwrap(), batch);
                }
            }
            let before = store.watch(selected.clone(), self.compacted).await.unwrap_err();
            assert!(matches!(before, StoreError::Compacted { .. }), "{before}");
        }
    }
}

fn name(number: u8) -> Key {
    key(&format!("/{number}"))
}

fn any_step() -> impl Strategy<Value = Step> {
    let lease = any::<prop::sample::Index>;
    prop_oneof![
        12 => prop::collection::vec(any_change(), 1..6).prop_map(Step::Burst),
        2 => (1_u32..20).prop_map(|seconds| Step::Grant { seconds }),
        1 => lease().prop_map(|lease| Step::KeepAlive { lease }),
        1 => lease().prop_map(|lease| Step::Revoke { lease }),
        2 => (1_u32..10).prop_map(|seconds| Step::Pass { seconds }),
        1 => (0.0..1.0).prop_map(|part| Step::Compact { part }),
        1 => Just(Step::Restart),
    ]
}

fn any_change() -> impl Strategy<Value = Change> {
    let guard = prop_oneof![
        1 => Just(Guard::Absent),
        2 => Just(Guard::Present),
        3 => Just(Guard::Unchanged),
        1 => Just(Guard::Stale),
        1 => Just(Guard::SameCreation),
    ];
    let put = (any::<u8>(), prop::option::of(any::<prop::sample::Index>()));
    let guards = prop::collection::vec((0_u8..12, guard), 0..3);
    let ops = prop::collection::btree_map(0_u8..12, prop::option::weighted(0.7, put), 0..4);
    (guards, ops).prop_map(|(guards, ops)| Change { guards, ops })
}
