//! Deeds on a running control plane: what is denied, what stays, what a person is told, and the way out.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tempfile::TempDir;
use weft_api::{pb::management::StatusRequest, record};
use weft_policy::{
    authz::{CallRequest, Decision, DenyReason, Principal},
    model::{Key as ObjectKey, Kind, Resource, authorization::Action},
    snapshot::{Revision as ShownRevision, Snapshot, SnapshotContext},
};

use super::super::{RecordKey, envelope};
use crate::{
    clock::Clock,
    harness::Plane,
    layout,
    samples::{self, Rig},
    store::{
        Entry, Key, Op, Revision, Store, StoreError, Txn,
        embedded::{Bounds, EmbeddedStore, Settings},
    },
    view::{self, Interest},
};

#[tokio::test]
async fn whatever_is_done_by_hand_to_the_embedded_store_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let settings = Settings { directory: temp.path().join("store"), bounds: Bounds::default() };
    let store = EmbeddedStore::open(settings, Clock::system(), Arc::default()).await.unwrap();
    let store: Arc<dyn Store> = Arc::new(store);
    Scene::start(Arc::clone(&store), store).await.run("W6060").await;
}

/// A control plane over a store, and somebody who may write that store.
pub(crate) struct Scene {
    raw: Arc<dyn Store>,
    hand: Arc<dyn Store>,
    plane: Option<Plane>,
    /// What a person is told with.
    code: &'static str,
}

/// The one deed after which nothing at all is vouched for.
const LOST_KEY: &str = "a lost key";

/// What is put at a key by hand, `None` for a deletion.
type Change = (Key, Option<Bytes>);

impl Scene {
    /// `raw` is the server's handle of the store, `hand` that of somebody else.
    pub(crate) async fn start(raw: Arc<dyn Store>, hand: Arc<dyn Store>) -> Self {
        let rig = Rig::over(Arc::clone(&raw), tempfile::tempdir().unwrap(), Clock::system()).await;
        rig.put_shop().await;
        let mut other = samples::policy("vault-from-order", "bank", "vault", "order");
        other.rules = samples::policy("x", "shop", "vault", "order").rules;
        for object in [
            Resource::Namespace(samples::namespace("bank")),
            Resource::Service(samples::service("vault", "bank")),
            Resource::AuthorizationPolicy(other),
            Resource::AuthorizationPolicy(Self::deny("ledger")),
        ] {
            let revision = rig.put(&object).await;
            rig.core.world.wait_for(revision).await;
        }
        Self { raw, hand, plane: Some(Plane::over(rig)), code: "" }
    }

    /// Denies `charge` the call of `ledger`, which another policy allows.
    fn deny(service: &str) -> weft_policy::model::AuthorizationPolicy {
        let mut deny = samples::policy("no-charge", "shop", service, "charge");
        deny.action = Action::Deny;
        deny
    }

    fn plane(&self) -> &Plane {
        self.plane.as_ref().unwrap()
    }

    fn rig(&self) -> &Rig {
        &self.plane().rig
    }

    /// Everything that may be done, one after the other, each taken back before the next. A person is told of each with
    /// `code`.
    pub(crate) async fn run(mut self, code: &'static str) {
        self.code = code;
        self.every_deed().await;
        self.a_replay_while_the_server_stands_still().await;
        self.the_way_out().await;
        self.a_key_that_is_gone().await;
    }

    async fn every_deed(&self) {
        let allow = policy_key("charge-from-order");
        let (deny, wide) = (policy_key("no-charge"), policy_key("wide"));
        let own = RecordKey::create().unwrap();
        let wide_policy = record::encode_resource(&Resource::AuthorizationPolicy(samples::policy(
            "wide", "shop", "ledger", "order",
        )));
        let standing = self.entry(&allow).await.value;
        let mut edited = standing.to_vec();
        let at = edited.len() - 9;
        edited[at] ^= 1;
        let forged = envelope::seal(&own, &wide, 1, &[0; 32], &wide_policy);
        let deeds: Vec<(&str, Vec<Change>)> = vec![
            ("an edited rule", vec![(allow.clone(), Some(edited.into()))]),
            ("a cut record", vec![(allow.clone(), Some(standing.slice(..40)))]),
            ("a rule without a signature", vec![(wide.clone(), Some(wide_policy.into()))]),
            ("a rule signed with another key", vec![(wide.clone(), Some(forged))]),
            ("a rule moved to another key", vec![(wide.clone(), Some(standing.clone()))]),
            ("a deleted DENY", vec![(deny.clone(), None)]),
            (
                "two records swapped",
                vec![
                    (allow.clone(), Some(self.entry(&deny).await.value)),
                    (deny.clone(), Some(standing.clone())),
                ],
            ),
            ("a deleted manifest", vec![("mesh/_manifests/shop".parse().unwrap(), None)]),
            (
                "the manifest of another namespace",
                vec![(
                    "mesh/_manifests/shop".parse().unwrap(),
                    Some(self.entry(&"mesh/_manifests/bank".parse().unwrap()).await.value),
                )],
            ),
            (
                "an enrollment without a signature",
                vec![(
                    layout::resource(&key(Kind::WorkloadEnrollment, "wide")),
                    Some(
                        record::encode_resource(&Resource::WorkloadEnrollment(samples::enrollment(
                            "wide",
                            "shop",
                            &["hosta"],
                            "**",
                        )))
                        .into(),
                    ),
                )],
            ),
        ];
        for (what, changes) in deeds {
            let before = self.do_by_hand(&changes).await;
            self.shop_is_closed(what).await;
            self.do_by_hand(&before).await;
            self.shop_is_open(what).await;
        }
        // An older state put back, members and manifest together: signed, whole, and old.
        let keys = [deny.clone(), "mesh/_manifests/shop".parse().unwrap()];
        let before_it = self.snapshot(&keys).await;
        let narrower = Resource::AuthorizationPolicy(Self::deny("charge"));
        let revision = self.rig().put(&narrower).await;
        self.rig().core.world.wait_for(revision).await;
        let now = self.do_by_hand(&before_it).await;
        self.shop_is_closed("a replay of a record with its manifest").await;
        self.do_by_hand(&now).await;
        self.shop_is_open("a replay").await;
        let only = self.do_by_hand(&before_it[..1]).await;
        self.shop_is_closed("a replay of a record alone").await;
        self.do_by_hand(&only).await;
        self.shop_is_open("a replay of a record alone").await;
        let revision = self.rig().put(&Resource::AuthorizationPolicy(Self::deny("ledger"))).await;
        self.rig().core.world.wait_for(revision).await;
    }

    /// The same while nobody looks: the server finds it when it starts.
    async fn a_replay_while_the_server_stands_still(&mut self) {
        let keys = [policy_key("no-charge"), "mesh/_manifests/shop".parse().unwrap()];
        let old = self.snapshot(&keys).await;
        let revision = self.rig().put(&Resource::AuthorizationPolicy(Self::deny("charge"))).await;
        self.rig().core.world.wait_for(revision).await;
        let directory = self.stop();
        let now = self.do_by_hand(&old).await;
        self.start_again(directory).await;
        self.shop_is_closed("a replay while the server stood still").await;
        self.do_by_hand(&now).await;
        self.shop_is_open("a replay while the server stood still").await;
        let directory = self.stop();
        let deleted = self.do_by_hand(&[(keys[0].clone(), None)]).await;
        self.start_again(directory).await;
        self.shop_is_closed("a DENY deleted while the server stood still").await;
        self.do_by_hand(&deleted).await;
        self.shop_is_open("a DENY deleted while the server stood still").await;
    }

    /// A person may take what stands there for good; until then nothing is written beside it.
    async fn the_way_out(&self) {
        self.do_by_hand(&[(policy_key("no-charge"), None)]).await;
        self.shop_is_closed("a deleted DENY").await;
        let object = Resource::AuthorizationPolicy(samples::policy("more", "shop", "charge", "order"));
        let value = record::encode_resource(&object).into();
        let op = Op::Put { key: layout::resource(&object.key()), value, lease: None };
        let refused = self.rig().core.store.txn(Vec::new(), vec![op]).await.unwrap_err();
        assert!(matches!(&refused, StoreError::Unvouched { .. }), "{refused}");
        assert_eq!(refused.code().as_str(), "W6060");

        let accepted = self.rig().core.records.accept().await.unwrap();
        assert_eq!((accepted.records.len(), accepted.groups.len()), (0, 1), "{accepted:?}");
        self.shop_is_open("what was accepted").await;
        assert!(self.rig().core.records.inspect().await.unwrap().is_empty());
    }

    /// A server that lost its key of records takes nothing over by itself.
    async fn a_key_that_is_gone(&mut self) {
        let directory = self.stop();
        std::fs::remove_dir_all(directory.path().join("records")).unwrap();
        self.start_again(directory).await;
        self.shop_is_closed(LOST_KEY).await;
        self.rig().core.records.accept().await.unwrap();
        self.shop_is_open(LOST_KEY).await;
    }

    fn stop(&mut self) -> TempDir {
        let plane = self.plane.take().unwrap();
        let seen = Arc::clone(plane.rig.core.records.seen());
        seen.flush().unwrap();
        plane.end()
    }

    async fn start_again(&mut self, directory: TempDir) {
        let rig = Rig::over(Arc::clone(&self.raw), directory, Clock::system()).await;
        self.plane = Some(Plane::over(rig));
    }

    async fn entry(&self, key: &Key) -> Entry {
        self.raw.get(key).await.unwrap().unwrap()
    }

    async fn snapshot(&self, keys: &[Key]) -> Vec<Change> {
        let mut found = Vec::new();
        for key in keys {
            found.push((key.clone(), self.raw.get(key).await.unwrap().map(|entry| entry.value)));
        }
        found
    }

    /// Writes past the server; returns what undoes it. The server's handle has seen it then.
    async fn do_by_hand(&self, changes: &[Change]) -> Vec<Change> {
        let keys: Vec<Key> = changes.iter().map(|(key, _)| key.clone()).collect();
        let before = self.snapshot(&keys).await;
        let op = |(key, value): &Change| match value {
            Some(value) => Op::Put { key: key.clone(), value: value.clone(), lease: None },
            None => Op::Delete(key.clone()),
        };
        let txn = Txn::sealed(Vec::new(), changes.iter().map(op).collect()).unwrap();
        let revision: Revision = self.hand.commit(txn).await.unwrap();
        while self.raw.status().await.unwrap().revision < revision {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        if let Some(plane) = &self.plane {
            plane.rig.core.world.wait_for(revision).await;
        }
        before
    }

    fn decide(&self, from: (&str, &str), to: (&str, &str)) -> Decision {
        let world = self.rig().core.world.current();
        let service = samples::service_name(to.0, to.1);
        let view = view::build(&world, &Interest::of_destination(&service));
        let context = SnapshotContext { trust_domain: samples::domain() };
        let snapshot = Snapshot::build(Arc::new(view), ShownRevision(1), context).unwrap();
        let source = samples::identity(from.1, from.0);
        let call =
            CallRequest { source: Principal::Spiffe(&source), service: &service, port: 80, network: None };
        snapshot.authorize(&call).decision
    }

    async fn shop_is_closed(&self, what: &str) {
        for (from, to) in [("order", "charge"), ("charge", "ledger")] {
            let Decision::Deny(denial) = self.decide((from, "shop"), (to, "shop")) else {
                panic!("{what}: {from} may call {to}")
            };
            // Without a key not even the service is known.
            let unknown = what == LOST_KEY && matches!(denial.reason, DenyReason::UnknownService);
            let closed = matches!(denial.reason, DenyReason::PolicyUnavailable(_));
            assert!(closed || unknown, "{what}: {denial:?}");
        }
        assert!(self.is_told("namespace shop").await, "{what} is told");
        if what == LOST_KEY {
            return;
        }
        assert!(
            self.decide(("order", "shop"), ("vault", "bank")).is_allowed(),
            "{what}: others are untouched"
        );
        let catalog = self.rig().core.world.catalog();
        let wanted = samples::identity("shop", "charge");
        let enrolled = crate::enrollment::grant(&catalog, &"hostb".parse().unwrap(), &wanted);
        assert!(enrolled.is_err(), "{what}: nothing is given out by enrollments that nobody vouches for");
    }

    async fn shop_is_open(&self, what: &str) {
        let open = async {
            while !self.rig().core.world.catalog().broken().is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(10), open).await;
        waited.unwrap_or_else(|_| panic!("{what}: {:?}", self.rig().core.world.catalog().broken()));
        assert!(self.decide(("order", "shop"), ("vault", "bank")).is_allowed(), "after {what}");
        assert!(!self.is_told("namespace shop").await, "after {what}");
    }

    async fn is_told(&self, what: &str) -> bool {
        let status = self.plane().admin().await.status(StatusRequest {}).await.unwrap().into_inner();
        let mut told = status.problems.iter().filter(|problem| problem.code == self.code);
        told.any(|problem| problem.what.contains(what) && !problem.fix.is_empty())
    }
}

fn key(kind: Kind, name: &str) -> ObjectKey {
    ObjectKey { kind, namespace: "shop".parse().ok(), name: name.parse().unwrap() }
}

fn policy_key(name: &str) -> Key {
    layout::resource(&key(Kind::AuthorizationPolicy, name))
}
