//! Rotation by a clock in the test's hand, with a real store and real files.

mod above;
mod steps;

use std::{sync::Arc, time::Duration};

use tempfile::TempDir;
use tokio::task::JoinSet;

use super::*;
use crate::{
    clock::TestClock,
    core::Authority as _,
    layout,
    store::{
        embedded::{Bounds, EmbeddedStore, Settings},
        metrics::StoreMetrics,
    },
};

const DAY: Duration = Duration::from_secs(24 * 3600);
struct Rig {
    folder: TempDir,
    clock: Clock,
    hands: TestClock,
    store: Arc<dyn Store>,
}

impl Rig {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (clock, hands) = Clock::test(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let settings = Settings { directory: folder.path().to_owned(), bounds: Bounds::default() };
        let metrics = Arc::<StoreMetrics>::default();
        let store = EmbeddedStore::open(settings, clock.clone(), metrics).await.unwrap();
        Self { folder, clock, hands, store: Arc::new(store) }
    }

    async fn open(&self) -> Result<Arc<InstanceAuthority>, AuthorityFailure> {
        self.open_over(&*self.store).await
    }

    async fn open_over(&self, store: &dyn Store) -> Result<Arc<InstanceAuthority>, AuthorityFailure> {
        let domain = "corp.example".parse().unwrap();
        let opened =
            InstanceAuthority::open(store, &self.clock, self.folder.path(), &domain, Issuing::default());
        opened.await.map(Arc::new)
    }

    /// The care that a server takes of its authority, for as long as the result lives.
    fn look_after(&self, authority: &Arc<InstanceAuthority>) -> JoinSet<()> {
        let (authority, store) = (Arc::clone(authority), Arc::clone(&self.store));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { authority.look_after(&*store).await });
        tasks
    }
}

fn serial(authority: &InstanceAuthority) -> String {
    authority.slot().load().unwrap().svid().serial().to_string()
}

/// Waits, in real time, for what the task does about a moved clock.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let looked = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), looked).await.is_ok(), "{what}");
}

#[tokio::test]
async fn the_servers_own_certificate_is_renewed_at_half_of_its_life() {
    let rig = Rig::new().await;
    let authority = rig.open().await.unwrap();
    let (first, _care) = (serial(&authority), rig.look_after(&authority));
    tokio::task::yield_now().await; // the care begins, and sleeps
    rig.hands.advance(DAY / 2 - Duration::from_secs(60));
    tokio::task::yield_now().await;
    assert_eq!(serial(&authority), first);
    rig.hands.advance(Duration::from_secs(120));
    eventually("it is renewed", || serial(&authority) != first).await;
    assert!(authority.problems().is_empty());
}

#[tokio::test]
async fn a_new_root_is_published_before_the_old_one_ends_and_the_log_forgets_the_old() {
    let rig = Rig::new().await;
    let authority = rig.open().await.unwrap();
    let (bundle, _care) = (authority.bundle(), rig.look_after(&authority));
    tokio::task::yield_now().await; // the care begins, and sleeps
    assert_eq!((bundle.borrow().sequence(), bundle.borrow().roots().len()), (1, 1));
    rig.hands.advance(336 * DAY);
    eventually("a second root is published", || bundle.borrow().roots().len() == 2).await;
    eventually("the server has a valid certificate", || {
        authority.slot().load().is_some_and(|own| own.svid().validity().contains(rig.clock.now()))
    })
    .await;
    assert_eq!(bundle.borrow().sequence(), 2);
    let old = rig.store.list_all(&layout::issuances()).await.unwrap().entries.len();
    assert!(old <= 2, "{old} certificates are in the log");

    let again = rig.open().await.unwrap();
    assert_eq!(
        again.bundle().borrow().fingerprints(),
        bundle.borrow().fingerprints(),
        "a restart keeps both"
    );
    assert_eq!(again.bundle().borrow().sequence(), 2);
}

#[tokio::test]
async fn etcd_07_a_store_that_was_set_back_never_gives_a_bundle_that_agents_have_left_behind() {
    let rig = Rig::new().await;
    let authority = rig.open().await.unwrap();
    let key = layout::bundle(&"corp.example".parse().unwrap());
    let old = rig.store.get(&key).await.unwrap().unwrap().value;
    let (bundle, care) = (authority.bundle(), rig.look_after(&authority));
    tokio::task::yield_now().await; // the care begins, and sleeps
    rig.hands.advance(336 * DAY);
    eventually("a second root is published", || bundle.borrow().roots().len() == 2).await;
    let told = bundle.borrow().clone();
    drop((authority, care));

    // Set back, and begun anew: with both agents get a newer bundle than they have, with every root of this server.
    rig.store.put(key, old, crate::store::Expected::Anything, None).await.unwrap();
    let again = rig.open().await.unwrap();
    let after = again.bundle().borrow().clone();
    assert_eq!((after.sequence(), after.fingerprints()), (told.sequence() + 1, told.fingerprints()));
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { directory: folder.path().to_owned(), bounds: Bounds::default() };
    let empty = EmbeddedStore::open(settings, rig.clock.clone(), Arc::default()).await.unwrap();
    let anew = rig.open_over(&empty).await.unwrap();
    assert_eq!(anew.bundle().borrow().sequence(), after.sequence() + 1);
    drop(anew);
    assert_eq!(rig.open().await.unwrap().bundle().borrow().sequence(), after.sequence() + 2);
}

#[tokio::test]
async fn clk_02_a_server_whose_clock_lies_behind_its_log_does_not_start() {
    let rig = Rig::new().await;
    rig.hands.advance(DAY);
    drop(rig.open().await.unwrap());
    rig.hands.set_wall(rig.clock.now() - DAY / 2);
    let refused = rig.open().await.unwrap_err();
    assert_eq!(refused.code(), code::CLOCK_WENT_BACK);
}

#[tokio::test]
async fn what_expires_unrenewed_is_a_problem_that_people_are_told() {
    let rig = Rig::new().await;
    let authority = rig.open().await.unwrap();
    rig.hands.advance(26 * DAY);
    let problems = authority.problems();
    assert_eq!(problems[0].code, code::CA_EXPIRES_SOON.as_str(), "{problems:?}");
    assert!(!problems[0].fix.is_empty());
}
