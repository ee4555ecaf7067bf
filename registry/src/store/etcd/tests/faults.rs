//! One member behind a wire that fails: what is lost on the way, and what etcd forgets meanwhile (ETCD-01, 02, 05, 10).

use std::collections::BTreeSet;

use rand::{Rng as _, SeedableRng as _};

use super::super::super::conformance::{delete, expect_names, get, key, names, next, put, revision, value};
use super::super::super::{Event, Expected, Mirror, Prefix};
use super::relay::Wire;
use super::*;

/// A member, a wire to it, and quick timeouts.
struct Bench {
    lone: Lone,
    other: TempDir,
}

impl Bench {
    async fn new() -> Self {
        let mut lone = Lone::new();
        drop(lone.open().await);
        Self { lone, other: process::folder() }
    }

    fn wire(&self, wire: Wire) {
        self.lone.relay.as_ref().unwrap().set(wire);
    }

    /// A server whose way to etcd is the wire.
    async fn far(&self, metrics: &Arc<StoreMetrics>) -> Arc<EtcdStore> {
        let mut settings = self.lone.settings();
        let millis = Duration::from_millis;
        settings.timeouts = Timeouts {
            dial: millis(500),
            answer: millis(500),
            write: Duration::from_secs(10),
            keep_alive: millis(500),
            reconcile: millis(500),
        };
        Arc::new(EtcdStore::open(settings, Clock::system(), Arc::clone(metrics)).await.unwrap())
    }

    /// Another server with a way of its own.
    async fn near(&self) -> EtcdStore {
        let endpoint = self.lone.member.as_ref().unwrap().endpoint();
        open(settings(vec![endpoint], &self.other)).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_01_no_deletion_is_lost_in_a_compaction_while_etcd_was_away() {
    let bench = Bench::new().await;
    let metrics = Arc::default();
    let far = bench.far(&metrics).await;
    let near = bench.near().await;
    for name in ["/deleted", "/kept", "/rewritten"] {
        put(&*far, name, "1").await;
    }
    let mut mirror = Mirror::new(Arc::clone(&far) as Arc<dyn Store>, Prefix::everything());
    assert_eq!(mirror.next().await.unwrap().events.len(), 3);
    let mut watch = far.watch(Prefix::everything(), revision(&*far).await.next()).await.unwrap();

    bench.wire(Wire::Cut);
    put(&near, "/rewritten", "2").await;
    put(&near, "/new", "1").await;
    let newest = delete(&near, "/deleted").await;
    near.compact(newest).await.unwrap();
    assert_eq!(names(&*far).await, ["/deleted", "/kept", "/rewritten"], "reads go on");
    bench.wire(Wire::Whole);

    let batch = mirror.next().await.unwrap();
    let told: BTreeSet<String> = batch.events.iter().map(|event| event.key().to_string()).collect();
    assert_eq!(told, ["/deleted", "/new", "/rewritten"].map(str::to_owned).into());
    assert!(batch.events.contains(&Event::Delete(key("/deleted"))));
    assert!(matches!(next(&mut watch).await, Err(StoreError::Compacted { .. })), "a gap is never silent");
    assert_eq!(names(&*far).await, ["/kept", "/new", "/rewritten"]);
    assert_eq!(metrics.relists.get(), 1);
    put(&*far, "/after", "1").await;
    assert_eq!(mirror.next().await.unwrap().events.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_resumes_without_a_gap_after_etcd_was_away() {
    let bench = Bench::new().await;
    let metrics = Arc::default();
    let far = bench.far(&metrics).await;
    let near = bench.near().await;
    let first = put(&*far, "/a", "0").await;
    let mut watch = far.watch(Prefix::everything(), first.next()).await.unwrap();
    for number in 1..=20 {
        if number % 5 == 0 {
            bench.wire(if number % 10 == 0 { Wire::Whole } else { Wire::Cut });
        }
        put(&near, "/a", &number.to_string()).await;
    }
    for number in 1..=20 {
        let batch = next(&mut watch).await.unwrap();
        let [Event::Put(entry)] = batch.events.as_slice() else { panic!("{batch:?}") };
        assert_eq!(entry.value, value(&number.to_string()));
    }
    assert_eq!(metrics.relists.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_02_an_event_that_the_watch_lost_is_found_by_comparing() {
    let bench = Bench::new().await;
    let metrics = Arc::default();
    let far = bench.far(&metrics).await;
    for name in ["/a", "/b"] {
        put(&*far, name, "1").await;
    }
    let at = revision(&*far).await;
    let mut watch = far.watch(Prefix::everything(), at.next()).await.unwrap();
    // As if etcd had never told of the put: the image is without it.
    let lost = super::super::super::EventBatch { revision: at, events: vec![Event::Delete(key("/a"))] };
    let changes = Changes::watched(&far.shared.read().unwrap(), Bounds::default(), at, vec![lost]);
    far.shared.apply(changes);
    assert_eq!(names(&*far).await, ["/b"]);

    assert!(matches!(next(&mut watch).await, Err(StoreError::Compacted { .. })), "watches are told");
    expect_names(&*far, &["/a", "/b"]).await;
    assert_eq!(metrics.relists.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_05_more_than_one_answer_holds_is_read_in_smaller_pages() {
    let mut lone = Lone::new();
    let store = lone.open().await;
    // 20 MiB in 81 values at the limit; one answer holds 16 MiB.
    for number in 0..27 {
        let put = |part| super::super::super::Op::Put {
            key: key(&format!("/large/{number:02}-{part}")),
            value: vec![7; super::super::super::MAX_VALUE_BYTES].into(),
            lease: None,
        };
        store.txn(vec![], (0..3).map(put).collect()).await.unwrap();
    }
    let all = store.list_all(&Prefix::everything()).await.unwrap();
    drop(store);
    let store = lone.open().await;
    assert_eq!(store.list_all(&Prefix::everything()).await.unwrap(), all);
    assert_eq!(all.entries.len(), 81);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_10_a_commit_whose_answer_is_lost_is_found_to_be_done() {
    let bench = Bench::new().await;
    let metrics = Arc::default();
    let far = bench.far(&metrics).await;
    let near = bench.near().await;
    let before = put(&*far, "/before", "1").await;
    let mut seen = near.watch(Prefix::everything(), before.next()).await.unwrap();

    bench.wire(Wire::NoAnswers);
    let store = Arc::clone(&far);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { store.put(key("/once"), value("1"), Expected::Absent, None).await });
    let done = next(&mut seen).await.unwrap().revision;
    bench.wire(Wire::Cut);
    bench.wire(Wire::Whole);
    assert_eq!(tasks.join_next().await.unwrap().unwrap().unwrap(), done, "its own commit is no conflict");
    assert_eq!(get(&*far, "/once").await.unwrap().version, 1);
    assert!(metrics.in_doubt.get() >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_10_a_commit_that_never_arrived_is_made_once() {
    let bench = Bench::new().await;
    let metrics = Arc::default();
    let far = bench.far(&metrics).await;
    put(&*far, "/before", "1").await;
    bench.wire(Wire::NoRequests);
    let store = Arc::clone(&far);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { store.put(key("/once"), value("1"), Expected::Absent, None).await });
    while metrics.in_doubt.get() == 0 {
        tokio::task::yield_now().await;
    }
    bench.wire(Wire::Cut);
    bench.wire(Wire::Whole);
    tasks.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(get(&*far, "/once").await.unwrap().version, 1);
}

/// Every success counts once and every failure not at all, whatever is lost on the wire. `WEFT_STORE_SEED` replays a run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_10_a_counter_over_a_failing_wire_counts_each_success_once() {
    const TASKS: u64 = 4;
    const STEPS: u64 = 15;
    let seed = std::env::var("WEFT_STORE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("WEFT_STORE_SEED={seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let bench = Bench::new().await;
    let metrics: Arc<StoreMetrics> = Arc::default();
    let far = bench.far(&metrics).await;
    put(&*far, "/counter", "0").await;
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let store = Arc::clone(&far);
        tasks.spawn(async move {
            let mut done = 0;
            while done < STEPS {
                let before = get(&*store, "/counter").await.unwrap();
                let count: u64 = std::str::from_utf8(&before.value).unwrap().parse().unwrap();
                let expected = Expected::Unchanged(before.mod_revision);
                match store.put(key("/counter"), value(&(count + 1).to_string()), expected, None).await {
                    Ok(_) => done += 1,
                    Err(error) => assert!(error.conflict().is_some(), "{error:?}"),
                }
            }
        });
    }
    let clock = Clock::system();
    let mut wire = Wire::Whole;
    while !tasks.is_empty() {
        tokio::select! {
            Some(done) = tasks.join_next() => done.unwrap(),
            () = clock.sleep(Duration::from_millis(random.random_range(10..150))) => {
                wire = match (wire, random.random_range(0..4)) {
                    (Wire::Whole, 0) => Wire::Cut,
                    (Wire::Whole, 1) => Wire::NoAnswers,
                    (Wire::Whole, 2) => Wire::NoRequests,
                    (Wire::NoAnswers | Wire::NoRequests, _) => Wire::Cut,
                    _ => Wire::Whole,
                };
                bench.wire(wire);
            }
        }
    }
    bench.wire(Wire::Whole);
    let near = bench.near().await;
    let counter = get(&near, "/counter").await.unwrap();
    assert_eq!(counter.value, value(&(TASKS * STEPS).to_string()), "seed {seed}");
    assert_eq!(counter.version, 1 + TASKS * STEPS, "seed {seed}");
}
