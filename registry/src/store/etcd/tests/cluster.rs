//! Three members: the leader killed, paused and brought back, and too few of them (ETCD-03, ETCD-04).

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
