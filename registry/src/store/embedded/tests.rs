//! What only the embedded store has: files, a lock, bounds, and disks that fail.

mod disk_faults;
mod files;
mod process_kill;

use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::super::conformance::{Backend, conformance, names, next, put, put_op};
use super::super::{Expected, Op};
use super::*;
use crate::clock::TestClock;

conformance!(Host::new());

/// A directory, a clock, and the store that is opened there.
pub(super) struct Host {
    directory: TempDir,
    clock: Clock,
    hands: TestClock,
    bounds: Bounds,
    metrics: Arc<StoreMetrics>,
}

impl Host {
    fn new() -> Self {
        Self::with_bounds(Bounds::default())
    }

    fn with_bounds(bounds: Bounds) -> Self {
        let (clock, hands) = Clock::test(SystemTime::UNIX_EPOCH);
        let directory = tempfile::tempdir().unwrap();
        Self { directory, clock, hands, bounds, metrics: Arc::default() }
    }

    fn settings(&self) -> Settings {
        Settings { directory: self.directory.path().join("store"), bounds: self.bounds }
    }

    async fn try_open(&self) -> Result<EmbeddedStore, OpenError> {
        EmbeddedStore::open(self.settings(), self.clock.clone(), Arc::clone(&self.metrics)).await
    }

    async fn open_here(&self) -> EmbeddedStore {
        self.try_open().await.unwrap()
    }
}

impl Backend for Host {
    const IN_HAND: bool = true;

    async fn open(&mut self) -> Arc<dyn Store> {
        Arc::new(self.open_here().await)
    }

    async fn disturb(&mut self, store: Arc<dyn Store>, _roll: u32) -> Arc<dyn Store> {
        drop(store);
        self.open().await
    }

    async fn pass(&mut self, store: &dyn Store, period: Duration) {
        self.hands.advance(period);
        // The writer looks at the clock before each group. The first request may still join a group
        // from before the advance, the second comes after it.
        store.compact(Revision::ZERO).await.unwrap();
        store.compact(Revision::ZERO).await.unwrap();
    }
}

#[tokio::test]
async fn an_ended_lease_needs_no_other_write_to_be_noticed() {
    let host = Host::new();
    let store = host.open_here().await;
    let lease = store.grant(Ttl::try_from(Duration::from_secs(5)).unwrap()).await.unwrap();
    let key: Key = "/e".parse().unwrap();
    let written = store.put(key, "1".into(), Expected::Absent, Some(lease)).await.unwrap();
    let mut watch = store.watch(Prefix::everything(), written.next()).await.unwrap();

    host.hands.advance(Duration::from_secs(5));
    assert_eq!(next(&mut watch).await.unwrap().revision, written.next());
}

#[tokio::test]
async fn etcd_11_a_step_of_the_wall_clock_ends_no_lease() {
    let mut host = Host::new();
    let store = host.open_here().await;
    let lease = store.grant(Ttl::try_from(Duration::from_secs(5)).unwrap()).await.unwrap();
    host.hands.set_wall(SystemTime::UNIX_EPOCH + Duration::from_secs(3600));
    host.pass(&store, Duration::from_secs(4)).await;
    assert!(store.keep_alive(lease).await.is_ok());
}

#[tokio::test]
async fn the_history_keeps_its_bound_and_says_what_it_forgot() {
    let host = Host::with_bounds(Bounds { max_history: 10, ..Bounds::default() });
    let store = host.open_here().await;
    let mut slow = store.watch(Prefix::everything(), Revision(1)).await.unwrap();
    for number in 1..=25 {
        assert_eq!(put(&store, "/a", &number.to_string()).await, Revision(number));
    }
    assert_eq!(store.status().await.unwrap().oldest, Revision(16));
    let error = next(&mut slow).await.unwrap_err();
    assert!(matches!(error, StoreError::Compacted { wanted: Revision(1), oldest: Revision(16) }), "{error}");
    assert_eq!(error.code().as_str(), "W6008");
    drop(store);

    let store = host.open_here().await;
    assert_eq!(store.status().await.unwrap().oldest, Revision(16));
    let mut kept = store.watch(Prefix::everything(), Revision(16)).await.unwrap();
    for expected in 16..=25 {
        assert_eq!(next(&mut kept).await.unwrap().revision, Revision(expected));
    }
}

#[tokio::test]
async fn the_history_is_bounded_in_bytes_but_keeps_the_newest_commit() {
    let host = Host::with_bounds(Bounds { max_history_bytes: 1000, ..Bounds::default() });
    let store = host.open_here().await;
    for number in 1..=20 {
        put(&store, &format!("/k/{number:02}"), &"v".repeat(96)).await;
    }
    assert_eq!(store.status().await.unwrap().oldest, Revision(12), "9 commits of 101 bytes");
    put(&store, "/large", &"v".repeat(5000)).await;
    assert_eq!(store.status().await.unwrap().oldest, Revision(21));
}

#[tokio::test]
async fn a_full_store_takes_deletions_and_smaller_values_only() {
    let host = Host::with_bounds(Bounds { max_bytes: 1000, ..Bounds::default() });
    let store = host.open_here().await;
    for bytes in [499 - 2, 500 - 2] {
        put(&store, "/1", &"v".repeat(bytes)).await;
        put(&store, "/2", &"v".repeat(bytes)).await;
    }
    assert_eq!(store.status().await.unwrap().bytes, 1000);
    let refused = store.txn(vec![], vec![put_op("/3", "")]).await.unwrap_err();
    assert!(matches!(refused, StoreError::Full { limit_bytes: 1000 }), "{refused}");
    assert_eq!(refused.code().as_str(), "W6009");

    put(&store, "/1", &"w".repeat(498)).await;
    let swap = vec![Op::Delete("/2".parse().unwrap()), put_op("/3", &"v".repeat(498))];
    store.txn(vec![], swap).await.unwrap();
    assert_eq!(names(&store).await, ["/1", "/3"]);
}

#[tokio::test]
async fn leases_end_at_their_bound() {
    let host = Host::with_bounds(Bounds { max_leases: 2, ..Bounds::default() });
    let store = host.open_here().await;
    let ttl = Ttl::try_from(Duration::from_secs(5)).unwrap();
    let first = store.grant(ttl).await.unwrap();
    store.grant(ttl).await.unwrap();
    assert!(matches!(store.grant(ttl).await, Err(StoreError::TooManyLeases { limit: 2 })));
    store.revoke(first).await.unwrap();
    assert!(store.grant(ttl).await.is_ok());
}

#[tokio::test]
async fn a_closed_store_refuses_writes_ends_watches_and_still_reads() {
    let host = Host::new();
    let store = host.open_here().await;
    let written = put(&store, "/a", "1").await;
    let mut watch = store.watch(Prefix::everything(), written.next()).await.unwrap();
    store.close().await;
    store.close().await;

    assert!(matches!(next(&mut watch).await, Err(StoreError::Closed)));
    assert!(matches!(store.delete("/a".parse().unwrap(), Expected::Anything).await, Err(StoreError::Closed)));
    assert_eq!(names(&store).await, ["/a"]);
    assert_eq!(names(&host.open_here().await).await, ["/a"], "the lock is free");
}

#[tokio::test]
async fn the_gauges_tell_size_revision_and_open_watches() {
    let host = Host::new();
    let store = host.open_here().await;
    put(&store, "/abc", "12345").await;
    let watch = store.watch(Prefix::everything(), Revision(1)).await.unwrap();
    let metrics = &host.metrics;
    assert_eq!((metrics.revision.get(), metrics.bytes.get(), metrics.watches.get()), (1, 9, 1));
    assert_eq!((metrics.commits.get(), metrics.commit_failures.get()), (1, 0));
    drop(watch);
    assert_eq!((metrics.watches.get(), metrics.waiting.get()), (0, 0));
}
