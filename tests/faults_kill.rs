//! kill -9 at random moments of server and agents, start-up included, while a person writes (OPS-01).
//!
//! What was acknowledged is kept in a journal, and after each restart everything is compared with it: nothing
//! acknowledged is lost, no apply is there in part, revisions only grow, and keys are nobody else's to read. The store
//! alone is killed many times a second in a test of its own crate.
//!
//! `WEFT_SEED` repeats a run; `WEFT_LONG_KILLS` sets the number of kills (24 otherwise).

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use weft_tests::app::{self, loopback};
use weft_tests::chance::{self, Chance};
use weft_tests::eventually::{Stopwatch, eventually};
use weft_tests::load;
use weft_tests::manifest::{allow, documents, service};
use weft_tests::mesh::{CTL, Mesh, Workload};
use weft_tests::process::{Process, Program};

/// Kills of the short form, of server and agents together.
const KILLS: u64 = 24;
/// So soon a restart is over: the process says that it is ready.
const RESTART: Duration = Duration::from_secs(2);
/// So soon the first call through a restarted agent is answered. Later than ready, when its peer had begun to dial the
/// run before, which was killed while it started: the handshake's packets are repeated after 1 s and 3 s.
const FIRST_CALL: Duration = Duration::from_secs(6);
/// A process lives at least so long and at most three times that: some are killed while they start.
const LIFE: Duration = Duration::from_millis(200);
/// Objects of one apply.
const OBJECTS: u64 = 6;
/// nginx of "charge" on hostb, and where "order" on hosta reaches it.
const HTTP: u16 = 8081;
const TO_CHARGE: u16 = 9001;

#[test]
fn ops_01_nothing_acknowledged_is_lost_when_server_and_agents_are_killed_at_random_moments() {
    let mut chance = Chance::new();
    let kills = chance::number("WEFT_LONG_KILLS").unwrap_or(KILLS);
    let (mut mesh, _charge) = start();
    let writer = Writer::start(&mesh);
    let mut slowest = BTreeMap::from([("server", Duration::ZERO), ("agent", Duration::ZERO)]);
    for round in 0..kills {
        chance.pause(LIFE * 2);
        let (what, took) = match chance.below(4) {
            0 | 1 => ("server", kill_server(&mut mesh, &mut chance)),
            2 => ("agent", kill_agent(&mut mesh, "hosta", &mut chance)),
            _ => ("agent", kill_agent(&mut mesh, "hostb", &mut chance)),
        };
        assert!(took < RESTART, "round {round}: {what} took {took:?} (seed {})", chance.seed());
        slowest.entry(what).and_modify(|slowest| *slowest = took.max(*slowest));
        writer.check(&mesh, round);
        private(&mesh.state(CTL).join("server"));
        for node in ["hosta", "hostb"] {
            private(&mesh.state(node).join("agent"));
            undamaged(&mesh.agent_log(node), node);
        }
    }
    let (applied, tokens) = writer.stop();
    println!(
        "server and agents: seed {}, {kills} kills, {applied} applies and {tokens} tokens acknowledged, \
         slowest restart {slowest:?}",
        chance.seed()
    );
    assert!(applied >= kills / 2, "too little was written to prove anything: {applied}");
    one_use(&mesh);
}

/// Kills the server, starts it again, maybe kills that one while it starts, and returns how long the last start took
/// until it was ready.
fn kill_server(mesh: &mut Mesh, chance: &mut Chance) -> Duration {
    mesh.kill_server();
    while chance.below(3) == 0 {
        mesh.start_server();
        chance.pause(LIFE);
        mesh.kill_server();
    }
    let watch = Stopwatch::start();
    mesh.start_server();
    mesh.wait_for_server();
    watch.elapsed()
}

/// The same for the agent of `node`; a call through it is answered soon after.
fn kill_agent(mesh: &mut Mesh, node: &str, chance: &mut Chance) -> Duration {
    mesh.kill_agent(node);
    while chance.below(3) == 0 {
        mesh.start_agent(node);
        chance.pause(LIFE);
        mesh.kill_agent(node);
    }
    let hosta = mesh.host("hosta").clone();
    let watch = Stopwatch::start();
    mesh.start_agent(node);
    mesh.wait_for_agent(node);
    let took = watch.elapsed();
    eventually("the first call is served", FIRST_CALL, || hosta.enter(|| load::call(loopback(TO_CHARGE))));
    took
}

/// Whoever gets hold of the directory must find nothing that is open to others, and nothing half-written but marked as such.
fn private(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
        let entry = entry.unwrap();
        // A file that is being replaced may be gone by now.
        let Ok(metadata) = entry.metadata() else { continue };
        let mode = metadata.permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", entry.path().display());
        if metadata.is_dir() {
            private(&entry.path());
        }
    }
}

/// An agent that finds its own state unreadable says so, and this is what it says.
fn undamaged(log: &str, node: &str) {
    for words in ["damaged", "cannot be read", "is not one", "cannot be used", "panicked"] {
        let line = log.lines().find(|line| line.contains(words));
        assert_eq!(line, None, "{node} found its state unusable after a kill");
    }
}

/// A token that was made amid all this is good for one join, and only one.
fn one_use(mesh: &Mesh) {
    let token = mesh.token("spare", &[]);
    mesh.write_agent_config("spare", "spare", "workloads: []\n");
    mesh.join("spare", &token).expect_success();
    let again = mesh.join("spare", &token);
    assert_ne!(again.code(), Some(0), "{again}");
}

fn start() -> (Mesh, Process) {
    let mesh = Mesh::builder()
        .manifest(service("charge", &[("http", 80, "http")]))
        .manifest(allow("order", "charge"))
        .node("hosta", &[Workload::new("order").upstream("charge", 80, TO_CHARGE)])
        .node("hostb", &[Workload::new("charge").serves("http", HTTP)])
        .host("spare")
        // Renewed every few seconds, so that kills meet keys that are being written.
        .server_line("identity: {leafTtl: 20s, allowShortLifetimes: true}")
        .start();
    let charge = app::nginx(mesh.host("hostb"), HTTP, mesh.host("hostb").folder());
    let hosta = mesh.host("hosta").clone();
    mesh.wait_for_call("the first call", || hosta.enter(|| load::call(loopback(TO_CHARGE))));
    (mesh, charge)
}

/// A person who writes all the time, and the journal of what the server has acknowledged.
struct Writer {
    journal: Arc<Mutex<Journal>>,
    attempted: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Journal {
    /// The number of the last apply that was acknowledged, and how many were.
    applied: u64,
    applies: u64,
    /// The newest revision that was told.
    revision: u64,
    /// Enrollments that came with acknowledged tokens.
    tokens: Vec<String>,
}

impl Writer {
    fn start(mesh: &Mesh) -> Self {
        let (journal, attempted, stop) = <(Arc<Mutex<Journal>>, Arc<AtomicU64>, Arc<AtomicBool>)>::default();
        let weft = mesh.weft(CTL, &["--timeout", "5s"]);
        let (notes, count, stopped) = (Arc::clone(&journal), Arc::clone(&attempted), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                write(&weft, number, &notes);
            }
        });
        Self { journal, attempted, stop, thread }
    }

    /// Compares what the server holds with what it has acknowledged before this was asked.
    fn check(&self, mesh: &Mesh, round: u64) {
        let known = self.journal();
        let list = ["get", "services", "-n", "shop", "-o", "json"];
        let listed = mesh.on_server(&list).expect_success();
        let attempted = self.attempted.load(Ordering::SeqCst);
        let generations = generations(&listed.stdout);
        let (first, last) = (generations.values().min(), generations.values().max());
        let missing = known.applied > 0 && generations.len() as u64 != OBJECTS;
        assert!(!missing && first == last, "round {round}: an apply is there in part: {generations:?}");
        let found = last.copied().unwrap_or(0);
        let possible = known.applied..=attempted;
        assert!(possible.contains(&found), "round {round}: apply {found} is there, {possible:?} may be");
        let enrolled = mesh.on_server(&["get", "workloadenrollments", "-n", "shop", "-o", "name"]);
        let enrolled = enrolled.expect_success().stdout;
        for token in &known.tokens {
            assert!(
                enrolled.lines().any(|line| line.ends_with(&format!("/{token}"))),
                "round {round}: {token} is lost"
            );
        }
    }

    fn journal(&self) -> Journal {
        let journal = self.journal.lock().unwrap();
        let Journal { applied, applies, revision, tokens } = &*journal;
        Journal { applied: *applied, applies: *applies, revision: *revision, tokens: tokens.clone() }
    }

    /// Ends it; returns how many applies and tokens were acknowledged.
    fn stop(self) -> (u64, usize) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the writer only returns, or has found a fault");
        let journal = self.journal.lock().unwrap();
        (journal.applies, journal.tokens.len())
    }
}

/// Applies all objects with `number` on them; each eighth time a token is made instead.
fn write(weft: &Program, number: u64, journal: &Mutex<Journal>) {
    if number.is_multiple_of(8) {
        let node = format!("node-{number}");
        let create = ["token", "create", "--for", "agent", "--node", &node, "--namespace", "shop"];
        if weft.clone().args(create).run().code() == Some(0) {
            journal.lock().unwrap().tokens.push(format!("agent-{node}"));
        }
        return;
    }
    let done = weft.clone().args(["apply", "-o", "json", "-f", "-"]).input(objects(number)).run();
    if done.code() != Some(0) {
        // Killed meanwhile: it was made or not, and nobody was told.
        return;
    }
    let told: Value = serde_json::from_str(&done.stdout).expect("apply -o json is JSON");
    let revision = told["revision"].as_u64().expect("it tells a revision");
    let mut journal = journal.lock().unwrap();
    assert!(revision > journal.revision, "revision {revision} after {}: it went back", journal.revision);
    (journal.applied, journal.revision) = (number, revision);
    journal.applies += 1;
}

fn objects(number: u64) -> String {
    let object = |index| {
        let text = service(&format!("kept-{index}"), &[("http", 80, "http")]);
        text.replace("metadata: {", &format!("metadata: {{labels: {{apply: \"{number}\"}}, "))
    };
    documents(&(0..OBJECTS).map(object).collect::<Vec<_>>())
}

/// By name: the number of the apply that wrote each object of the writer.
fn generations(listed: &str) -> BTreeMap<String, u64> {
    let listed: Value = serde_json::from_str(listed).expect("get -o json is JSON");
    let items = listed["items"].as_array().cloned().unwrap_or_default();
    let one = |item: Value| {
        let number = item["metadata"]["labels"]["apply"].as_str()?.parse().ok()?;
        Some((item["metadata"]["name"].as_str()?.to_owned(), number))
    };
    items.into_iter().filter_map(one).collect()
}
