//! Three members: the leader killed, paused, replaced and brought back, and too few of them; one that is slow or full; leases
//! that end by the thousand, and clocks that jump (ETCD-03, ETCD-04, ETCD-11).

use super::super::super::conformance::{expect_names, get, key, names, put, value};
use super::super::super::{Expected, Op, Prefix};
use super::*;

/// Three members and a server over them.
struct Cluster {
    members: Vec<Member>,
    state: TempDir,
}

impl Cluster {
    fn new() -> Self {
        Self { members: Member::start_cluster(3), state: process::folder() }
    }

    async fn open(&self) -> Arc<EtcdStore> {
        let endpoints = self.members.iter().map(Member::endpoint).collect();
        let mut settings = settings(endpoints, &self.state);
        settings.timeouts = Timeouts {
            dial: Duration::from_secs(1),
            answer: Duration::from_secs(1),
            write: Duration::from_secs(20),
            keep_alive: Duration::from_secs(1),
            ..Timeouts::default()
        };
        Arc::new(open(settings).await.unwrap())
    }

    /// The member that leads; there must be one.
    fn leader(&self) -> usize {
        let found = self.members.iter().position(Member::leads);
        found.expect("a cluster that has just taken a write has a leader")
    }
}

/// Writers that count, and note what was acknowledged.
async fn count(store: &Arc<EtcdStore>, name: &str, steps: usize) {
    let mut done = 0;
    while done < steps {
        let before = get(&**store, name).await.unwrap();
        let count: usize = std::str::from_utf8(&before.value).unwrap().parse().unwrap();
        let expected = Expected::Unchanged(before.mod_revision);
        match store.put(key(name), value(&(count + 1).to_string()), expected, None).await {
            Ok(_) => done += 1,
            Err(error) => assert!(error.conflict().is_some(), "{error:?}"),
        }
    }
}

async fn counted_through(cluster: &mut Cluster, fail: impl Fn(&mut Member), heal: impl Fn(&mut Member)) {
    const STEPS: usize = 60;
    let store = cluster.open().await;
    put(&*store, "/counter", "0").await;
    for _ in 0..2 {
        let leader = cluster.leader();
        let mut tasks = JoinSet::new();
        let counting = Arc::clone(&store);
        tasks.spawn(async move { count(&counting, "/counter", STEPS).await });
        fail(&mut cluster.members[leader]);
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        heal(&mut cluster.members[leader]);
    }
    let counter = get(&*store, "/counter").await.unwrap();
    assert_eq!(counter.value, value(&(2 * STEPS).to_string()));
    assert_eq!(counter.version, 1 + 2 * STEPS as u64, "nothing twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_03_a_killed_leader_loses_no_write_and_doubles_none() {
    counted_through(&mut Cluster::new(), Member::kill, Member::run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_03_a_paused_leader_loses_no_write_and_doubles_none() {
    counted_through(&mut Cluster::new(), |member| member.pause(), |member| member.resume()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_03_without_a_majority_reads_go_on_and_writes_say_why_they_fail() {
    let mut cluster = Cluster::new();
    let store = cluster.open().await;
    put(&*store, "/a", "1").await;
    for member in &mut cluster.members[..2] {
        member.kill();
    }
    let limited = store.put(key("/b"), value("1"), Expected::Absent, None);
    let failed = limited.await.unwrap_err();
    let code = failed.code().as_str();
    assert!(code == "W6005" || code == "W6006", "{failed:?}");
    assert_eq!(names(&*store).await, ["/a"]);
    for member in &mut cluster.members[..2] {
        member.run();
    }
    // What was unknown may have been done; it is either there or can be made, and never twice.
    let again = store.put(key("/b"), value("1"), Expected::Absent, None).await;
    assert!(again.as_ref().map_or_else(|error| error.conflict().is_some(), |_| true), "{again:?}");
    assert_eq!(get(&*store, "/b").await.unwrap().version, 1);
}

/// What a server over a full etcd may do, and how it goes on once there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_03_a_full_etcd_refuses_writes_loses_none_and_takes_them_again_once_there_is_room() {
    const LARGE: usize = 200 * 1024;
    let (member, state) = (Member::start_with(&["--quota-backend-bytes", "8388608"]), process::folder());
    let store = open(settings(vec![member.endpoint()], &state)).await.unwrap();
    let mut written: u8 = 0;
    // The one key is overwritten: it is the history that fills etcd.
    let failed = loop {
        let value = vec![written; LARGE].into();
        match store.put(key("/a"), value, Expected::Anything, None).await {
            Ok(_) => written += 1,
            Err(failed) => break failed,
        }
        assert!(written < 200, "the quota is 8 MiB");
    };
    assert_eq!(failed.code().as_str(), "W6005", "{failed}");
    let why = std::error::Error::source(&failed).unwrap().to_string();
    assert!(why.contains("database space exceeded"), "{why}");
    assert_eq!(get(&store, "/a").await.unwrap().version, u64::from(written), "reads go on");
    assert_eq!(store.stale_for(), None, "a full etcd is followed");

    // What an administrator does.
    let status = member.etcdctl(&["endpoint", "status", "--write-out", "fields"]);
    let revision = status.lines().find_map(|line| line.strip_prefix("\"Revision\" : ")).unwrap().to_owned();
    for step in [&["compact", revision.as_str()][..], &["defrag"], &["alarm", "disarm"]] {
        member.etcdctl(step);
    }
    let value = vec![255; LARGE].into();
    store.put(key("/a"), value, Expected::Anything, None).await.unwrap();
    assert_eq!(get(&store, "/a").await.unwrap().version, u64::from(written) + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_03_a_storm_of_elections_loses_no_write_and_doubles_none() {
    const STEPS: usize = 60;
    let cluster = Cluster::new();
    let store = cluster.open().await;
    put(&*store, "/counter", "0").await;
    let mut tasks = JoinSet::new();
    let counting = Arc::clone(&store);
    tasks.spawn(async move { count(&counting, "/counter", STEPS).await });
    // Longer than an election takes to begin (0.3 s), so each pause ends one reign.
    for _ in 0..5 {
        let Some(leader) = cluster.members.iter().position(Member::leads) else { continue };
        cluster.members[leader].pause();
        Clock::system().sleep(Duration::from_millis(700)).await;
        cluster.members[leader].resume();
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(get(&*store, "/counter").await.unwrap().version, 1 + STEPS as u64, "nothing twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_03_a_slow_member_fails_no_write() {
    let (member, state) = (Member::start(), process::folder());
    let store = Arc::new(open(settings(vec![member.endpoint()], &state)).await.unwrap());
    put(&*store, "/counter", "0").await;
    let mut tasks = JoinSet::new();
    let counting = Arc::clone(&store);
    tasks.spawn(async move { count(&counting, "/counter", 40).await });
    // It works for a tenth of the time, as on a disk that syncs for long.
    while tasks.try_join_next().map(|done| done.unwrap()).is_none() {
        member.pause();
        Clock::system().sleep(Duration::from_millis(90)).await;
        member.resume();
        Clock::system().sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(get(&*store, "/counter").await.unwrap().version, 41);
    assert_eq!(store.stale_for(), None, "slow is not silent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_03_a_leader_that_is_replaced_by_a_new_member_is_not_missed() {
    let mut cluster = Cluster::new();
    let store = cluster.open().await;
    put(&*store, "/counter", "0").await;
    let mut dead = cluster.members.remove(cluster.leader());
    dead.kill();
    count(&store, "/counter", 10).await;
    let replacement = Member::in_place_of(dead, &cluster.members[0]);
    count(&store, "/counter", 10).await;
    // The new one is needed from here on: with it two of three are there.
    cluster.members[0].kill();
    count(&store, "/counter", 10).await;
    assert_eq!(get(&*store, "/counter").await.unwrap().version, 31);
    drop(replacement);
}

/// The wall clock of a server is no part of a lease: neither end of the store counts by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_11_an_hour_forth_and_back_ends_no_lease_and_keeps_none() {
    const HOUR: Duration = Duration::from_secs(3600);
    const TICK: Duration = Duration::from_millis(10);
    let noon = std::time::SystemTime::UNIX_EPOCH + 500_000 * HOUR;
    let (clock, hands) = Clock::test(noon);
    let mut ticking = JoinSet::new();
    let uptime = hands.clone();
    ticking.spawn(async move {
        loop {
            Clock::system().sleep(TICK).await;
            uptime.advance(TICK);
        }
    });
    let (member, state) = (Member::start(), process::folder());
    let settings = settings(vec![member.endpoint()], &state);
    let store = EtcdStore::open(settings, clock, Arc::default()).await.unwrap();
    let lease = store.grant(Ttl::try_from(Duration::from_secs(4)).unwrap()).await.unwrap();
    let held = Op::Put { key: key("/held"), value: value("1"), lease: Some(lease) };
    store.txn(vec![], vec![held]).await.unwrap();
    for wall in [noon + HOUR, noon - HOUR, noon + HOUR, noon - HOUR, noon] {
        hands.set_wall(wall);
        store.keep_alive(lease).await.unwrap();
        Clock::system().sleep(Duration::from_millis(600)).await;
        assert_eq!(names(&store).await, ["/held"], "at {wall:?}");
    }
    assert_eq!(store.stale_for(), None);
    // Nobody keeps it from here on, and an hour back prolongs nothing.
    hands.set_wall(noon - HOUR);
    expect_names(&store, &[]).await;
}

/// Everything that a server says of its agents hangs on its one lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_04_the_end_of_a_lease_with_ten_thousand_keys_is_one_commit() {
    const KEYS: usize = 10_000;
    let mut lone = Lone::new();
    let store = lone.open().await;
    put(&*store, "/stays", "1").await;
    let lease = store.grant(Ttl::try_from(Duration::from_secs(5)).unwrap()).await.unwrap();
    let all: Vec<usize> = (0..KEYS).collect();
    for some in all.chunks(super::super::super::MAX_TXN_OPS) {
        let put = |number: &usize| Op::Put {
            key: key(&format!("/agents/a-name-of-usual-length-{number:05}")),
            value: vec![b'x'; 200].into(),
            lease: Some(lease),
        };
        store.txn(vec![], some.iter().map(put).collect()).await.unwrap();
        store.keep_alive(lease).await.unwrap();
    }
    let before = store.status().await.unwrap();
    assert_eq!(before.entries, KEYS + 1);
    let mut watch = store.watch(Prefix::everything(), before.revision.next()).await.unwrap();
    let gone = tokio::time::timeout(Duration::from_secs(30), watch.next()).await.unwrap().unwrap();
    assert_eq!(gone.events.len(), KEYS, "nobody sees a part of it");
    expect_names(&*store, &["/stays"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_04_a_storm_of_ending_leases_takes_all_keys_and_no_others() {
    const LEASES: usize = 1500;
    let mut lone = Lone::new();
    let store = lone.open().await;
    put(&*store, "/stays", "1").await;
    let ttl = Ttl::try_from(Duration::from_secs(3)).unwrap();
    let mut tasks = JoinSet::new();
    for worker in 0..16 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for number in (worker..LEASES).step_by(16) {
                let lease = store.grant(ttl).await.unwrap();
                let put =
                    Op::Put { key: key(&format!("/e/{number}")), value: value("1"), lease: Some(lease) };
                store.txn(vec![], vec![put]).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    // A pause longer than the leases: all of them end at once.
    let member = lone.member.as_ref().unwrap();
    member.pause();
    Clock::system().sleep(Duration::from_secs(4)).await;
    member.resume();
    expect_names(&*store, &["/stays"]).await;
    assert!(store.list_all(&Prefix::everything()).await.unwrap().entries.len() == 1);
    put(&*store, "/after", "1").await;
}
