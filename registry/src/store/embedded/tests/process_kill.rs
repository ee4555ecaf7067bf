//! kill -9 between and during writes (OPS-01), with a real process; and how long a restart takes.
//!
//! Several writers in a child process make transactions that a seed decides; each tells what was acknowledged on
//! standard output. What a writer's keys hold after its transaction number `n` is a function of the seed, so that after
//! a kill the whole content is compared: nothing acknowledged is lost, and no transaction is there in part.
//!
//! `WEFT_SEED` repeats a run, `WEFT_LONG_KILLS` sets the number of kills (26 otherwise).

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use super::*;
use crate::store::StoreId;

/// Tells the child where to write.
const DIRECTORY: &str = "WEFT_STORE_KILL_TEST";
/// Repeats a run.
const SEED: &str = "WEFT_SEED";
/// Writers at once: their transactions share the syncs of the disk.
const WRITERS: u64 = 4;
/// Kills of the short form.
const KILLS: u64 = 26;
/// The longest life of a child: some are killed before they have opened the store.
const LONGEST_LIFE_MS: u64 = 250;
/// Of security.md 9.4 and the tests of the whole mesh: so soon a restart is over.
const RESTART: Duration = Duration::from_secs(2);

type Content = BTreeMap<String, String>;

#[tokio::test]
async fn ops_01_a_killed_process_loses_nothing_it_acknowledged() {
    let seed = std::env::var(SEED).ok().map_or_else(rand::random, |seed| seed.parse().unwrap());
    let kills = std::env::var("WEFT_LONG_KILLS").ok().map_or(KILLS, |kills| kills.parse().unwrap());
    println!("{SEED}={seed} repeats this run of {kills} kills");
    let mut chance = StdRng::seed_from_u64(seed);
    let host = Host::new();
    let mut journal = Journal::default();
    let mut slowest = Duration::ZERO;
    for round in 0..kills {
        let life = Duration::from_millis(chance.random_range(0..LONGEST_LIFE_MS));
        journal.take(kill_after(spawn_child(&host, seed), life));
        let clock = Clock::system();
        let store = host.open_here().await;
        slowest = slowest.max(clock.uptime());
        journal.check(&store, seed, round).await;
        drop(store);
        check_modes(&host.settings().directory);
    }
    let revision = journal.revision;
    println!(
        "store: seed {seed}, {kills} kills, {revision} transactions kept whole, slowest restart {slowest:?}"
    );
    assert!(revision > kills, "too little was written to prove anything: {revision}");
    assert!(slowest < RESTART, "{slowest:?}");
}

/// What was acknowledged, and what each writer's keys must hold.
#[derive(Default)]
struct Journal {
    /// The newest revision that anybody was told.
    revision: u64,
    /// The name of the store.
    id: Option<StoreId>,
    /// By writer: the number of the last transaction that was acknowledged, or found after a kill.
    acknowledged: [u64; WRITERS as usize],
    /// By writer: the transaction up to which the content below was followed.
    followed: [u64; WRITERS as usize],
    /// By writer: what its keys hold.
    contents: [Content; WRITERS as usize],
}

impl Journal {
    /// Reads the lines of a child that has ended: `acknowledged <writer> <number> <revision>`.
    fn take(&mut self, lines: Vec<String>) {
        for line in lines {
            let Some(rest) = line.strip_prefix("acknowledged ") else { continue };
            let numbers: Vec<u64> = rest.split(' ').filter_map(|number| number.parse().ok()).collect();
            // The last line may be cut off by the kill: then it does not count.
            let [writer, number, revision] = numbers[..] else { continue };
            let last = &mut self.acknowledged[usize::try_from(writer).unwrap()];
            *last = number.max(*last);
            self.revision = self.revision.max(revision);
        }
    }

    /// Compares everything that is in the store with what must be there.
    async fn check(&mut self, store: &EmbeddedStore, seed: u64, round: u64) {
        let status = store.status().await.unwrap();
        assert!(
            status.revision.0 >= self.revision,
            "round {round}: {} of {}",
            status.revision,
            self.revision
        );
        assert_eq!(*self.id.get_or_insert(status.id), status.id, "round {round}: another store");
        self.revision = status.revision.0;
        for writer in 0..WRITERS {
            let place = usize::try_from(writer).unwrap();
            let content = content_of(store, writer).await;
            let last = last_of(&content, writer);
            let known = self.acknowledged[place];
            // One more may have reached the disk before its answer reached the writer.
            assert!((known..=known + 1).contains(&last), "round {round}, writer {writer}: {last} of {known}");
            for number in self.followed[place] + 1..=last {
                change(&mut self.contents[place], transaction(seed, writer, number));
            }
            assert!(content == self.contents[place], "round {round}, writer {writer}: not as after {last}");
            (self.acknowledged[place], self.followed[place]) = (last, last);
        }
    }
}

fn change(content: &mut Content, changes: Vec<(String, Option<String>)>) {
    for (key, value) in changes {
        match value {
            Some(value) => content.insert(key, value),
            None => content.remove(&key),
        };
    }
}

/// What transaction `number` of a writer puts (`Some`) and deletes: a whole apply, a deletion of several, one object, or
/// a token made and the one before it used up; and always its number.
fn transaction(seed: u64, writer: u64, number: u64) -> Vec<(String, Option<String>)> {
    let mut chance = StdRng::seed_from_u64(seed ^ (writer << 56) ^ number);
    let document = |index: u64| format!("/w{writer}/document/{index:02}");
    let filled = |bytes: usize| Some(format!("{number} {}", "v".repeat(bytes)));
    let mut changes = match chance.random_range(0..10) {
        0..5 => (0..20).map(|index| (document(index), filled(300))).collect(),
        5 => (0..10).map(|index| (document(index * 2), None)).collect(),
        6..8 => vec![(document(chance.random_range(0..20)), filled(chance.random_range(0..20_000)))],
        _ => vec![
            (format!("/w{writer}/token/{:02}", number % 16), filled(60)),
            (format!("/w{writer}/token/{:02}", (number + chance.random_range(1..16)) % 16), None),
        ],
    };
    changes.push((format!("/w{writer}/last"), Some(number.to_string())));
    changes
}

async fn content_of(store: &EmbeddedStore, writer: u64) -> Content {
    let listing = store.list_all(&format!("/w{writer}/").parse().unwrap()).await.unwrap();
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
    listing.entries.iter().map(|entry| (entry.key.to_string(), text(&entry.value))).collect()
}

fn last_of(content: &Content, writer: u64) -> u64 {
    content.get(&format!("/w{writer}/last")).map_or(0, |number| number.parse().unwrap())
}

/// Lets the child live for `life`, kills it, and returns all it has said.
fn kill_after(mut child: Child, life: Duration) -> Vec<String> {
    let output = BufReader::new(child.stdout.take().unwrap());
    let reader = std::thread::spawn(move || output.lines().map_while(Result::ok).collect());
    std::thread::sleep(life);
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

/// Keys and tokens stand in the store: a kill must not leave a file that others can read.
fn check_modes(directory: &Path) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{:?} has mode {mode:o}", entry.path());
    }
}

/// Not a test of its own: the process that [`ops_01_a_killed_process_loses_nothing_it_acknowledged`]
/// kills. Without its directory it returns at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_child_writes_until_it_is_killed() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    let settings = Settings { directory: directory.into(), bounds: Bounds::default() };
    let store = EmbeddedStore::open(settings, Clock::system(), Arc::default()).await.unwrap();
    let store = Arc::new(store);
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write_on(Arc::clone(&store), seed, writer));
    }
    writers.join_all().await;
}

/// Goes on after the last transaction that is there.
async fn write_on(store: Arc<EmbeddedStore>, seed: u64, writer: u64) {
    for number in last_of(&content_of(&store, writer).await, writer) + 1.. {
        let op = |(key, value): (String, Option<String>)| match value {
            Some(value) => put_op(&key, &value),
            None => Op::Delete(key.parse().unwrap()),
        };
        let ops = transaction(seed, writer, number).into_iter().map(op).collect();
        let revision = store.txn(vec![], ops).await.unwrap();
        println!("acknowledged {writer} {number} {revision}");
    }
}

fn spawn_child(host: &Host, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("store::embedded::tests::process_kill::the_child_writes_until_it_is_killed")
        .env(DIRECTORY, host.settings().directory)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_restart_with_1000_resources_takes_less_than_2_seconds() {
    let host = Host::new();
    let store = host.open_here().await;
    for fifty in 0..20 {
        let name = |number| format!("/resources/Service/default/service-{fifty:02}{number:02}");
        let ops = (0..50).map(|number| put_op(&name(number), &"v".repeat(2500))).collect();
        store.txn(vec![], ops).await.unwrap();
    }
    drop(store);
    // The fastest of three, because other tests keep this machine busy.
    let mut fastest = Duration::MAX;
    for _ in 0..3 {
        let clock = Clock::system();
        let store = host.open_here().await;
        fastest = fastest.min(clock.uptime());
        assert_eq!(store.status().await.unwrap().entries, 1000);
    }
    println!("opened in {fastest:?}");
    assert!(fastest < RESTART, "{fastest:?}");
}
