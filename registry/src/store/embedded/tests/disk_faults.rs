//! Full disks, lost power, slow syncs (ETCD-03, ETCD-10, OPS-02).

use std::sync::Arc;

use tokio::task::JoinSet;

use super::super::faults::{Effect, Switch};
use super::*;

/// A host whose disk has a switch.
struct FaultyHost {
    host: Host,
    switch: Switch,
}

impl FaultyHost {
    fn new() -> Self {
        Self { host: Host::new(), switch: Switch::default() }
    }

    async fn open(&self) -> Result<EmbeddedStore, OpenError> {
        let switch = self.switch.clone();
        let build = Box::new(move |file| switch.database(file));
        let files = Files::with_database(self.host.settings().directory, build);
        let (clock, metrics) = (self.host.clock.clone(), Arc::clone(&self.host.metrics));
        EmbeddedStore::open_files(files, self.host.bounds, clock, metrics).await
    }

    /// Lets the pause after a failure end.
    fn wait(&self) {
        self.host.hands.advance(Duration::from_secs(2));
    }
}

#[tokio::test]
async fn ops_02_a_disk_that_is_full_broken_or_read_only_fails_writes_and_only_writes() {
    for effect in [Effect::Full, Effect::Broken, Effect::ReadOnly] {
        fails_writes_and_only_writes(effect).await;
    }
}

async fn fails_writes_and_only_writes(effect: Effect) {
    let faulty = FaultyHost::new();
    let store = faulty.open().await.unwrap();
    let ttl = Ttl::try_from(Duration::from_secs(10)).unwrap();
    let lease = store.grant(ttl).await.unwrap();
    let written = put(&store, "/a", "1").await;

    faulty.switch.break_after(0, u64::MAX, effect);
    for _ in 0..3 {
        let error = store.txn(vec![], vec![put_op("/b", "1")]).await.unwrap_err();
        assert!(["W6005", "W6006"].contains(&error.code().as_str()), "{error}");
        assert_eq!(store.status().await.unwrap().revision, written);
        assert_eq!(names(&store).await, ["/a"]);
        assert_eq!(store.keep_alive(lease).await.unwrap(), ttl, "agents do not suffer from our disk");
        faulty.wait();
    }
    let mut watch = store.watch(Prefix::everything(), Revision(1)).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, written);

    faulty.switch.repair();
    faulty.wait();
    assert_eq!(put(&store, "/c", "1").await, written.next());
    assert_eq!(next(&mut watch).await.unwrap().revision, written.next());
    drop(store);
    assert_eq!(names(&faulty.open().await.unwrap()).await, ["/a", "/c"]);
}

#[tokio::test]
async fn a_failed_commit_is_told_as_unknown_and_what_follows_at_once_as_not_made() {
    let faulty = FaultyHost::new();
    let store = faulty.open().await.unwrap();
    faulty.switch.break_after(0, u64::MAX, Effect::Full);
    let first = store.txn(vec![], vec![put_op("/b", "1")]).await.unwrap_err();
    assert_eq!(first.code().as_str(), "W6006", "{first}");
    let second = store.txn(vec![], vec![put_op("/b", "1")]).await.unwrap_err();
    assert_eq!(second.code().as_str(), "W6005", "the disk is not asked again so soon: {second}");
}

#[tokio::test]
async fn a_failed_write_says_why_down_to_the_disk() {
    let faulty = FaultyHost::new();
    let store = faulty.open().await.unwrap();
    faulty.switch.break_after(0, u64::MAX, Effect::Full);
    let error = store.txn(vec![], vec![put_op("/b", "1")]).await.unwrap_err();
    let mut chain = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        chain = format!("{chain}: {cause}");
        source = cause.source();
    }
    assert!(chain.contains("os error 28"), "{chain}");
}

#[tokio::test]
async fn leases_that_end_while_the_disk_fails_end_after_it() {
    let faulty = FaultyHost::new();
    let store = faulty.open().await.unwrap();
    let lease = store.grant(Ttl::try_from(Duration::from_secs(10)).unwrap()).await.unwrap();
    let written = store.put("/e".parse().unwrap(), "1".into(), Expected::Absent, Some(lease)).await.unwrap();
    faulty.switch.break_after(0, u64::MAX, Effect::Full);
    faulty.host.hands.advance(Duration::from_secs(30));
    let error = store.compact(written).await.unwrap_err();
    assert!(["W6005", "W6006"].contains(&error.code().as_str()), "{error}");
    assert_eq!(names(&store).await, ["/e"]);

    let mut watch = store.watch(Prefix::everything(), written.next()).await.unwrap();
    faulty.switch.repair();
    faulty.wait();
    assert_eq!(next(&mut watch).await.unwrap().revision, written.next(), "without another write");
}

#[tokio::test]
async fn a_failure_at_any_moment_loses_nothing_acknowledged() {
    // One operation fails; a store that survives it in memory must also survive a restart after it.
    for moment in 0..40 {
        let faulty = FaultyHost::new();
        let store = faulty.open().await.unwrap();
        put(&store, "/first", "1").await;
        faulty.switch.break_after(moment, 1, Effect::Full);
        let mut kept = vec!["/first".to_owned()];
        for number in 0..4 {
            let name = format!("/k/{number}");
            match store.txn(vec![], vec![put_op(&name, "1"), put_op(&format!("{name}/too"), "1")]).await {
                Ok(_) => kept.extend([name.clone(), format!("{name}/too")]),
                Err(_) => faulty.wait(),
            }
            assert_eq!(names(&store).await, kept, "failure at operation {moment}");
        }
        drop(store);
        assert_eq!(names(&faulty.open().await.unwrap()).await, kept, "failure at operation {moment}");
    }
}

#[tokio::test]
async fn ops_01_lost_power_loses_nothing_acknowledged_and_splits_no_transaction() {
    let mut settled = 0;
    for seed in 0..150 {
        let faulty = FaultyHost::new();
        faulty.switch.break_after(seed, u64::MAX, Effect::PowerCut(seed));
        let mut acknowledged = 0;
        if let Ok(store) = faulty.open().await {
            for number in 1..=6_u64 {
                let ops = vec![put_op("/a", &number.to_string()), put_op(&format!("/b/{number}"), "1")];
                match store.txn(vec![], ops).await {
                    Ok(revision) => acknowledged = revision.0,
                    Err(_) => break,
                }
            }
        }
        faulty.switch.repair();

        let store = faulty.open().await.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
        let kept = store.status().await.unwrap().revision.0;
        assert!((acknowledged..=acknowledged + 1).contains(&kept), "seed {seed}: {kept} of {acknowledged}");
        let found = names(&store).await;
        assert_eq!(found.len() as u64, if kept == 0 { 0 } else { kept + 1 }, "seed {seed}: {found:?}");
        put(&store, "/after", "1").await;
        settled += acknowledged;
    }
    assert!(settled > 100, "the power was cut too early to prove anything: {settled}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_wait_for_the_disk_share_the_next_sync() {
    const WRITES: u64 = 100;
    let faulty = FaultyHost::new();
    let store = Arc::new(faulty.open().await.unwrap());
    faulty.switch.hold();
    let mut tasks = JoinSet::new();
    for number in 0..WRITES {
        let store = Arc::clone(&store);
        tasks.spawn(async move { put(&*store, &format!("/k/{number}"), "1").await });
    }
    let all_wait = async {
        while faulty.host.metrics.waiting.get() < WRITES as i64 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all_wait).await.expect("nothing waits for the disk");
    faulty.switch.release();
    let mut revisions: Vec<u64> = tasks.join_all().await.into_iter().map(|revision| revision.0).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=WRITES).collect::<Vec<_>>(), "each has a revision of its own");
    let commits = faulty.host.metrics.commits.get();
    assert!(commits <= 3, "{commits} disk transactions for {WRITES} writes");
    assert!(faulty.switch.operations() > 0);
}
