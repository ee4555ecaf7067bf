//! The pure core against random histories: what the layer wrote adds up, what anybody else wrote does not.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::{
    KeyRing, Ledger, RecordKey, draft,
    draft::{Book, Standing},
    envelope,
    group::{Group, Sealing, leaf_of, sealing},
    ledger,
};
use crate::store::{Entry, Event, EventBatch, Key, Op, Revision, Txn};

/// Keys of two namespaces, people, a node, and a workload that is in no group.
const KEYS: [&str; 9] = [
    "mesh/resources/authorizationpolicies/shop/a",
    "mesh/resources/authorizationpolicies/shop/b",
    "mesh/resources/namespaces/_/shop",
    "mesh/resources/authorizationpolicies/bank/a",
    "mesh/resources/meshes/_/mesh",
    "mesh/users/ann",
    "mesh/nodes/hosta",
    "mesh/denied/serial-1",
    "mesh/resources/workloads/shop/w",
];

/// A store as a map, with the ledger that follows it.
struct Model {
    ring: KeyRing,
    rows: BTreeMap<Key, (Bytes, Revision)>,
    revision: Revision,
    ledger: Ledger,
    seen: BTreeMap<Group, u64>,
}

/// What changed and what stood there before.
type Before = Vec<(Key, Option<Bytes>)>;

impl Model {
    fn new() -> Self {
        let ring = KeyRing::of(RecordKey::create().unwrap());
        let (rows, seen) = (BTreeMap::new(), BTreeMap::new());
        Self { ring, rows, revision: Revision::ZERO, ledger: Ledger::default(), seen }
    }

    /// A transaction of the server.
    fn commit(&mut self, ops: Vec<Op>) -> Before {
        let txn = Txn::new(Vec::new(), ops).unwrap();
        let mut standing = Standing { seen: self.seen.clone(), ..Standing::default() };
        for group in draft::groups(txn.ops()) {
            let own = self.rows.iter().filter(|(key, _)| group.has(key, false));
            let members = own.map(|(key, (value, _))| (key.clone(), leaf_of(key, value))).collect();
            let manifest = self.rows.get(group.key()).cloned();
            standing.books.insert(group, Book { manifest, members });
        }
        for (key, (value, _)) in &self.rows {
            standing.records.insert(key.clone(), draft::follows(value));
        }
        let (sealed, generations) = draft::seal(&self.ring, &txn, &standing).unwrap();
        self.seen.extend(generations.into_iter().map(|advanced| (advanced.group, advanced.generation)));
        let change = |op: &Op| match op {
            Op::Put { key, value, .. } => (key.clone(), Some(value.clone())),
            Op::Delete(key) => (key.clone(), None),
        };
        self.write(sealed.ops().iter().map(change).collect())
    }

    /// One commit of anybody, as it stands.
    fn write(&mut self, changes: Vec<(Key, Option<Bytes>)>) -> Before {
        self.revision = self.revision.next();
        let (mut events, mut before) = (Vec::new(), Vec::new());
        for (key, value) in changes {
            let old = match &value {
                Some(value) => self.rows.insert(key.clone(), (value.clone(), self.revision)),
                None => self.rows.remove(&key),
            };
            before.push((key.clone(), old.map(|(old, _)| old)));
            events.push(match value {
                Some(value) => Event::Put(self.shown(&key, &value)),
                None => Event::Delete(key),
            });
        }
        self.ledger.apply(&EventBatch { revision: self.revision, events });
        before
    }

    /// What the layer shows of a record.
    fn shown(&self, key: &Key, value: &Bytes) -> Entry {
        let (key, value, revision) = (key.clone(), value.clone(), self.revision);
        let entry =
            Entry { key, value, create_revision: revision, mod_revision: revision, version: 1, lease: None };
        ledger::shown(&self.ring, entry).0
    }

    fn broken(&self) -> Vec<String> {
        self.ledger.broken().iter().map(|(group, why)| format!("{group}: {why}")).collect()
    }
}

fn key(number: usize) -> Key {
    KEYS[number % KEYS.len()].parse().unwrap()
}

/// A few keys with what shall stand there, `None` for nothing.
fn change() -> impl Strategy<Value = BTreeMap<usize, Option<u8>>> {
    prop::collection::btree_map(0..KEYS.len(), prop::option::weighted(0.7, 0_u8..4), 1..4)
}

fn ops(change: &BTreeMap<usize, Option<u8>>) -> Vec<Op> {
    let op = |(number, content): (&usize, &Option<u8>)| match content {
        Some(content) => Op::Put { key: key(*number), value: vec![*content].into(), lease: None },
        None => Op::Delete(key(*number)),
    };
    change.iter().map(op).collect()
}

/// What somebody does by hand.
#[derive(Clone, Debug)]
enum Deed {
    /// Flips a bit of a record.
    Flip(prop::sample::Index, prop::sample::Index),
    Delete(prop::sample::Index),
    /// Copies a record to another key.
    Copy(prop::sample::Index, usize),
    /// Swaps two.
    Swap(prop::sample::Index, prop::sample::Index),
    /// Writes plain text.
    Plain(usize, u8),
    /// Signs with a key of his own.
    Forge(usize, u8),
    /// Puts back everything that the last so many commits replaced, manifests included.
    TakeBack(usize),
}

fn deed() -> impl Strategy<Value = Deed> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (index(), index()).prop_map(|(at, bit)| Deed::Flip(at, bit)),
        index().prop_map(Deed::Delete),
        (index(), 0..KEYS.len()).prop_map(|(at, to)| Deed::Copy(at, to)),
        (index(), index()).prop_map(|(one, other)| Deed::Swap(one, other)),
        (0..KEYS.len(), any::<u8>()).prop_map(|(at, content)| Deed::Plain(at, content)),
        (0..KEYS.len(), any::<u8>()).prop_map(|(at, content)| Deed::Forge(at, content)),
        (1_usize..4).prop_map(Deed::TakeBack),
    ]
}

impl Deed {
    /// What it writes, `None` when there is nothing to do it to.
    fn changes(&self, model: &Model, history: &[Before]) -> Option<Vec<(Key, Option<Bytes>)>> {
        let rows: Vec<_> = model.rows.iter().map(|(key, (value, _))| (key, value)).collect();
        let pick = |index: &prop::sample::Index| (!rows.is_empty()).then(|| rows[index.index(rows.len())]);
        Some(match self {
            Self::Flip(at, bit) => {
                let (key, value) = pick(at)?;
                let mut value = value.to_vec();
                let bit = bit.index(value.len() * 8);
                value[bit / 8] ^= 1 << (bit % 8);
                vec![(key.clone(), Some(value.into()))]
            }
            Self::Delete(at) => vec![(pick(at)?.0.clone(), None)],
            Self::Copy(at, to) => vec![(key(*to), Some(pick(at)?.1.clone()))],
            Self::Swap(one, other) => {
                let ((one, first), (other, second)) = (pick(one)?, pick(other)?);
                if one == other {
                    return None;
                }
                vec![(one.clone(), Some(second.clone())), (other.clone(), Some(first.clone()))]
            }
            Self::Plain(at, content) => vec![(key(*at), Some(vec![*content].into()))],
            Self::Forge(at, content) => {
                let (own, at) = (RecordKey::create().unwrap(), key(*at));
                let sealed = envelope::seal(&own, &at, 9, &[0; 32], &[*content]);
                vec![(at, Some(sealed))]
            }
            Self::TakeBack(count) => {
                let mut back = BTreeMap::new();
                for before in history.iter().rev().take(*count) {
                    back.extend(before.iter().cloned());
                }
                back.into_iter().collect()
            }
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_the_server_writes_always_adds_up(changes in prop::collection::vec(change(), 1..20)) {
        let mut model = Model::new();
        for change in &changes {
            model.commit(ops(change));
            prop_assert_eq!(model.broken(), Vec::<String>::new());
        }
        // A server that starts now adds up the same.
        let mut fresh = Ledger::new(model.seen.clone());
        let events = model.rows.iter().map(|(key, (value, _))| Event::Put(model.shown(key, value))).collect();
        fresh.apply(&EventBatch { revision: model.revision, events });
        prop_assert!(fresh.broken().is_empty(), "{:?}", fresh.broken());
    }

    #[test]
    fn what_anybody_else_writes_never_changes_what_is_vouched_for(
        changes in prop::collection::vec(change(), 1..12), deed in deed(),
    ) {
        let mut model = Model::new();
        let history: Vec<Before> = changes.iter().map(|change| model.commit(ops(change))).collect();
        let before = model.rows.clone();
        let Some(by_hand) = deed.changes(&model, &history) else { return Ok(()) };
        model.write(by_hand);
        for (group, _) in model.seen.clone() {
            let says = |rows: &BTreeMap<Key, (Bytes, Revision)>| -> BTreeMap<Key, Option<Bytes>> {
                let own = rows.iter().filter(|(key, _)| group.has(key, false));
                own.map(|(key, (value, _))| {
                    (key.clone(), envelope::open(&model.ring, key, value).ok().map(|opened| opened.content))
                }).collect()
            };
            // A group says what it said, or is refused; also by a server that starts only now.
            let mut fresh = Ledger::new(model.seen.clone());
            let events = model.rows.iter().map(|(key, (value, _))| Event::Put(model.shown(key, value))).collect();
            fresh.apply(&EventBatch { revision: model.revision, events });
            for ledger in [&model.ledger, &fresh] {
                let refused = ledger.broken().contains_key(&group);
                prop_assert!(refused || says(&before) == says(&model.rows), "{group} after {deed:?}");
            }
        }
        // What is in no group cannot be made up either.
        for (key, (value, _)) in &model.rows {
            if sealing(key, false) == Sealing::Signed && before.get(key).map(|row| &row.0) != Some(value) {
                let old = history.iter().flatten().any(|(at, old)| at == key && old.as_ref() == Some(value));
                prop_assert!(old || envelope::open(&model.ring, key, value).is_err(), "{key} after {deed:?}");
            }
        }
    }
}
