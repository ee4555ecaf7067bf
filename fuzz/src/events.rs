//! f14: commits of the store, by the server and by somebody else, up to what an agent decides by.
//!
//! An input is a sequence of commits: the server writes and deletes objects with their manifests, somebody else flips,
//! deletes, copies and takes back whatever stands there. The catalog that followed them one by one must be the one that
//! a server makes of what stands there in the end; a namespace that says something else than the server wrote is closed;
//! the others decide as the objects that the server wrote do, by a plain map.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use weft_api::{manifest, record};
use weft_identity::{SpiffeId, TrustDomain};
use weft_policy::authz::{CallRequest, Principal};
use weft_policy::model::Resource;
use weft_policy::name::{Namespace, ServiceName};
use weft_policy::snapshot::{Revision as Shown, Snapshot, SnapshotContext};
use weft_registry::catalog::Catalog;
use weft_registry::layout;
use weft_registry::liveness::Standings;
use weft_registry::seal::envelope::{seal, successor};
use weft_registry::seal::group::{Count, Sealing, leaf, sealing};
use weft_registry::seal::{Group, KeyRing, Ledger, RecordKey, ledger};
use weft_registry::store::{Entry, Event, EventBatch, Key, Revision};
use weft_registry::view::{self, Interest};
use weft_registry::world::World;

use crate::choice::Choice;

/// What the server may write: two namespaces, rules that allow and deny.
const OBJECTS: &str = include_str!("events.yaml");
/// The most commits of one input.
const MAX_COMMITS: usize = 24;

static RING: LazyLock<KeyRing> =
    LazyLock::new(|| KeyRing::of(RecordKey::create().expect("there is entropy")));

static WRITTEN: LazyLock<Vec<(Key, Resource)>> = LazyLock::new(|| {
    let all = manifest::parse(OBJECTS, None).expect("the objects are in order");
    all.into_iter().map(|object| (layout::resource(&object.key()), object)).collect()
});

/// A store, what followed it, and what the server believes to stand there.
struct Followed {
    rows: BTreeMap<Key, (Bytes, Revision)>,
    revision: Revision,
    believed: BTreeMap<Key, Resource>,
    seen: BTreeMap<Group, u64>,
    catalog: Catalog,
    ledger: Ledger,
    history: Vec<(Key, Option<Bytes>)>,
}

/// Each commit is a byte that says what, and one or two that say to whom.
pub fn f14_store_events(data: &[u8]) {
    let mut choice = Choice::new(data);
    let mut store = Followed::new();
    // The mesh and its services are there; what comes and goes are rules.
    let first: Vec<usize> = (0..WRITTEN.len()).filter(|at| !is_rule(*at)).collect();
    store.serve(&first, false);
    for _ in 0..MAX_COMMITS {
        if choice.is_empty() {
            break;
        }
        match choice.below(8) {
            0..=2 => store.serve(&[choice.below(WRITTEN.len())], false),
            3 => store.serve(&[choice.below(WRITTEN.len())], true),
            4 => store.serve(&[choice.below(WRITTEN.len()), choice.below(WRITTEN.len())], false),
            _ => store.by_hand(&mut choice),
        }
        store.check();
    }
}

fn is_rule(at: usize) -> bool {
    matches!(WRITTEN[at].1, Resource::AuthorizationPolicy(_))
}

impl Followed {
    fn new() -> Self {
        Self {
            rows: BTreeMap::new(),
            revision: Revision::ZERO,
            believed: BTreeMap::new(),
            seen: BTreeMap::new(),
            catalog: Catalog::new(domain()),
            ledger: Ledger::default(),
            history: Vec::new(),
        }
    }

    /// A commit of the server, which refuses to write into a group that does not add up.
    fn serve(&mut self, which: &[usize], delete: bool) {
        let mut changes: BTreeMap<Key, Option<Bytes>> = BTreeMap::new();
        for at in which {
            let (key, object) = &WRITTEN[*at];
            let Sealing::Member(group) = sealing(key, false) else { continue };
            if self.ledger.broken().contains_key(&group) || delete && !self.believed.contains_key(key) {
                return;
            }
            let value = (!delete).then(|| {
                let (generation, before) = successor(self.rows.get(key).map(|(sealed, _)| sealed));
                seal(RING.own(), key, generation, &before, &record::encode_resource(object))
            });
            changes.insert(key.clone(), value);
        }
        for at in which {
            let (key, object) = &WRITTEN[*at];
            match delete {
                true => drop(self.believed.remove(key)),
                false => drop(self.believed.insert(key.clone(), object.clone())),
            }
        }
        let groups: Vec<Group> = changes.keys().filter_map(group_of).collect();
        for group in groups {
            let own = self.believed.iter().filter(|(key, _)| group.has(key, false));
            let members =
                own.map(|(key, object)| (key.clone(), leaf(key, &record::encode_resource(object)))).collect();
            let (generation, before) = successor(self.rows.get(group.key()).map(|(sealed, _)| sealed));
            let content = Count::of(&members).encode();
            let value = seal(RING.own(), group.key(), generation, &before, &content);
            changes.insert(group.key().clone(), Some(value));
            self.seen.insert(group, generation);
        }
        self.commit(changes);
    }

    /// A commit of somebody else.
    fn by_hand(&mut self, choice: &mut Choice<'_>) {
        let what = choice.below(5);
        let at = choice.below(self.rows.len().max(1));
        let Some((key, (value, _))) = self.rows.iter().nth(at) else { return };
        let (key, value) = (key.clone(), value.clone());
        let mut changes = BTreeMap::new();
        match what {
            0 => drop(changes.insert(key, None)),
            1 => {
                let mut bent = value.to_vec();
                let at = usize::from(choice.short()) % bent.len();
                bent[at] ^= choice.byte() | 1;
                changes.insert(key, Some(bent.into()));
            }
            2 => drop(changes.insert(WRITTEN[choice.below(WRITTEN.len())].0.clone(), Some(value))),
            3 => {
                let count = choice.below(6) + 1;
                changes.extend(self.history.iter().rev().take(count).cloned());
            }
            _ => {
                let (key, object) = &WRITTEN[choice.below(WRITTEN.len())];
                changes.insert(key.clone(), Some(record::encode_resource(object).into()));
            }
        }
        self.commit(changes);
    }

    fn commit(&mut self, changes: BTreeMap<Key, Option<Bytes>>) {
        self.revision = self.revision.next();
        let mut events = Vec::new();
        for (key, value) in changes {
            let before = match &value {
                Some(value) => self.rows.insert(key.clone(), (value.clone(), self.revision)),
                None => self.rows.remove(&key),
            };
            self.history.push((key.clone(), before.map(|(before, _)| before)));
            events.push(match value {
                Some(value) => Event::Put(shown(key, value, self.revision)),
                None => Event::Delete(key),
            });
        }
        follow(&mut self.catalog, &mut self.ledger, EventBatch { revision: self.revision, events });
    }

    fn check(&self) {
        let mut fresh = (Catalog::new(domain()), Ledger::new(self.seen.clone()));
        let rows = self.rows.iter();
        let events =
            rows.map(|(key, (value, at))| Event::Put(shown(key.clone(), value.clone(), *at))).collect();
        follow(&mut fresh.0, &mut fresh.1, EventBatch { revision: self.revision, events });
        let broken = |ledger: &Ledger| ledger.broken().keys().cloned().collect::<Vec<_>>();
        assert_eq!(broken(&self.ledger), broken(&fresh.1), "followed and read anew");
        let followed = World::derive(Arc::new(self.catalog.clone()), Standings::default(), None);
        let anew = World::derive(Arc::new(fresh.0), Standings::default(), None);
        let everything = |world: &World| view::build(world, &Interest::everything(world));
        assert_eq!(objects(&everything(&followed)), objects(&everything(&anew)), "followed and read anew");
        self.decided(&followed);
    }

    /// Every call is refused where something else stands than the server wrote, and decided by that elsewhere.
    fn decided(&self, followed: &World) {
        let mut plain = Catalog::new(domain());
        self.believed.values().cloned().for_each(|object| plain.put(object));
        let plain = World::derive(Arc::new(plain), Standings::default(), None);
        let touched = self.touched();
        let everywhere = touched.iter().any(|group| group.name() == "_mesh");
        for (namespace, service) in [("shop", "charge"), ("bank", "vault")] {
            let name: Namespace = namespace.parse().expect("it is one");
            let closed = everywhere || touched.iter().any(|group| group.name() == namespace);
            assert_eq!(followed.catalog().closed(&name).is_some(), closed, "{namespace}");
            let service = ServiceName::new(name, service.parse().expect("it is a name"));
            for caller in ["spiffe://corp.example/ns/shop/sa/order", "spiffe://corp.example/ns/shop/sa/evil"]
            {
                let allowed = allows(followed, caller, &service);
                let wanted = !closed && allows(&plain, caller, &service);
                assert_eq!(allowed, wanted, "{caller} calls {service}");
            }
        }
    }

    /// The groups in which something else stands than the server wrote, or not its newest manifest.
    fn touched(&self) -> Vec<Group> {
        let seen = self.seen.keys().filter(|group| {
            let own = |key: &Key| group.has(key, false);
            let stands: BTreeMap<_, _> = self
                .rows
                .iter()
                .filter(|(key, _)| own(key))
                .map(|(key, (value, at))| (key.clone(), shown(key.clone(), value.clone(), *at).value))
                .collect();
            let believed: BTreeMap<Key, Bytes> = self
                .believed
                .iter()
                .filter(|(key, _)| own(key))
                .map(|(key, object)| (key.clone(), record::encode_resource(object).into()))
                .collect();
            let manifest = self.rows.get(group.key()).and_then(|(value, at)| {
                ledger::shown(&RING, entry(group.key().clone(), value.clone(), *at)).1
            });
            stands != believed || manifest.map(|(_, generation)| generation) != self.seen.get(group).copied()
        });
        let strange = self.rows.keys().filter_map(group_of).filter(|group| !self.seen.contains_key(group));
        seen.cloned().chain(strange).collect()
    }
}

fn follow(catalog: &mut Catalog, ledger: &mut Ledger, batch: EventBatch) {
    ledger.apply(&batch);
    catalog.judge(ledger.broken());
    catalog.apply(batch);
}

fn group_of(key: &Key) -> Option<Group> {
    match sealing(key, false) {
        Sealing::Member(group) => Some(group),
        Sealing::Open | Sealing::Signed | Sealing::Manifest(_) => None,
    }
}

fn entry(key: Key, value: Bytes, at: Revision) -> Entry {
    Entry { key, value, create_revision: at, mod_revision: at, version: 1, lease: None }
}

fn shown(key: Key, value: Bytes, at: Revision) -> Entry {
    ledger::shown(&RING, entry(key, value, at)).0
}

/// A view as text: what is refused says why, which may differ by what was seen first.
fn objects(view: &weft_policy::snapshot::View) -> Vec<String> {
    view.iter().map(|(key, _)| key.to_string()).collect()
}

fn allows(world: &World, caller: &str, service: &ServiceName) -> bool {
    let view = view::build(world, &Interest::of_destination(service));
    let context = SnapshotContext { trust_domain: domain() };
    let Ok(snapshot) = Snapshot::build(Arc::new(view), Shown(1), context) else { return false };
    let source: SpiffeId = caller.parse().expect("it is one");
    let call = CallRequest { source: Principal::Spiffe(&source), service, port: 80, network: None };
    snapshot.authorize(&call).decision.is_allowed()
}

fn domain() -> TrustDomain {
    "corp.example".parse().expect("it is one")
}
