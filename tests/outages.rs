//! The outage matrix (security.md 3.5): what goes on while the control plane or its store is away, what fails and how that
//! is told, and that everything comes back by itself. Servers away for less than half a life are in `rotation`, clocks and
//! hosts that slept in `faults_clock`, an etcd that was set back in `etcd` and beside the store.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use weft_tests::app::{self, loopback};
use weft_tests::eventually::{Stopwatch, eventually, throughout};
use weft_tests::load::{self, Flow, Traffic, failed_since};
use weft_tests::manifest::{allow, deny, service};
use weft_tests::mesh::{Builder, CTL, Mesh, Workload};
use weft_tests::process::{Finished, Process};

const HTTP: u16 = 8081;
const ECHO: u16 = 8082;
const TO_CHARGE: u16 = 9001;
const TO_ECHO: u16 = 9002;

/// The life of certificates where they end in the test, and where they must not.
const SHORT: Duration = Duration::from_secs(16);
const LONG: Duration = Duration::from_secs(60);
/// Within this time everything is back: agents and servers try again every 1.5 s at the latest.
const BACK: Duration = Duration::from_secs(5);
/// A connection that nothing is heard on is given up after its keep-alive, 4 s, or the 3 s of a call.
const NOTICED: Duration = Duration::from_secs(8);
/// A write is given up after 10 s, and what became of it is looked for as long again.
const GIVEN_UP: Duration = Duration::from_secs(25);

#[test]
fn past_the_end_of_certificates_everything_fails_closed_and_says_why_and_a_join_brings_it_back() {
    let mut scene = Scene::start(SHORT, |mesh| mesh);
    let flow = scene.flow();
    scene.mesh.kill_server();
    // Told while there is time, louder when there is little, and nothing fails until the end.
    for (code, level) in [("W3012", "warning"), ("W3028", "alarm")] {
        eventually(code, SHORT, || {
            scene.call().map_err(|error| format!("a call failed before the end: {error}"))?;
            let told = scene.agent_says("hosta");
            if told.contains(code) && scene.overdue("hosta", level) > 0 { Ok(()) } else { Err(told) }
        });
    }
    assert_eq!((flow.ended(), scene.page("hosta", "/readyz").0), (None, 200));

    let refused = eventually("calls are refused at the end", SHORT, || match scene.weft_call() {
        done if done.code() == Some(0) => Err("a call passed".to_owned()),
        done => Ok(done),
    });
    assert!(said(&refused).contains("W3011"), "the end of the certificate is the reason: {refused}");
    eventually("flows end with the certificate", Duration::from_secs(2), || {
        flow.ended().ok_or_else(|| "open".to_owned())
    });
    let (ready, why) = eventually("readiness falls", Duration::from_secs(2), || {
        let page = scene.page("hosta", "/readyz");
        if page.0 == 200 { Err(page.1) } else { Ok(page) }
    });
    assert!(ready == 503 && why.contains("joined again"), "{ready}: {why}");
    assert_eq!(scene.page("hosta", "/livez").0, 200, "the agent itself is in order");
    assert!(scene.overdue("hosta", "alarm") > 0, "an alarm does not end with what it warned of");

    // A start with nothing valid: it waits, and says for what.
    scene.mesh.kill_agent("hosta");
    scene.mesh.start_agent("hosta");
    eventually("it says what it needs", BACK, || {
        let told = scene.agent_says("hosta");
        if told.contains("W3029") { Ok(()) } else { Err(told) }
    });
    scene.mesh.start_server();
    scene.mesh.wait_for_server();
    let pids = ["hosta", "hostb"].map(|node| scene.mesh.agent(node).pid());
    throughout("it waits and fails closed", Duration::from_secs(2), || {
        scene.mesh.agent("hosta").assert_running();
        scene.call().map_or(Ok(()), |()| Err("a call passed".to_owned()))
    });
    // A new join is taken up by the agents as they run.
    for node in ["hosta", "hostb"] {
        scene.mesh.join(node, &scene.mesh.token(node, &["--replace"])).expect_success();
    }
    eventually("calls work again", BACK, || scene.call());
    eventually("it is ready", BACK, || match scene.page("hosta", "/readyz") {
        (200, _) => Ok(()),
        (_, why) => Err(why),
    });
    assert_eq!(["hosta", "hostb"].map(|node| scene.mesh.agent(node).pid()), pids, "nobody was restarted");
    let again = scene.mesh.join("hosta", &scene.mesh.token("hosta", &["--replace"]));
    assert_ne!(again.code(), Some(0), "an agent that works has its directory for itself: {again}");
}

#[test]
fn while_etcd_is_silent_calls_pass_reads_say_how_old_they_are_and_changes_are_refused() {
    let mut scene = Scene::start(LONG, |mesh| mesh.host("late").etcd());
    scene.mesh.write_agent_config("late", "late", "workloads: []\n");
    let token = scene.mesh.token("late", &[]);
    let current = scene.mesh.on_server(&["get", "services", "-n", "shop", "-o", "json"]).expect_success();
    let current: Value = serde_json::from_str(&current.stdout).unwrap();
    assert!(current["staleSeconds"].is_null(), "{current}");
    let (flow, traffic) = (scene.flow(), scene.traffic());

    scene.mesh.etcd_member(0).signal(Signal::SIGSTOP);
    let silent = Stopwatch::start();
    let first = eventually("reads say that they are old", NOTICED, || {
        let done = scene.mesh.on_server(&["get", "services", "-n", "shop"]).expect_success();
        if done.stderr.contains("as of ") { Ok(done) } else { Err(done.to_string()) }
    });
    assert!(
        first.stdout.contains("charge") && first.stderr.contains("the store does not answer (W6005)"),
        "{first}"
    );
    scene.answers_say_their_age(silent);
    // A change and a certificate need the store: both are refused with their reason, and together, as each waits for it.
    scene.mesh.kill_etcd();
    let change = scene.mesh.weft(CTL, &["apply", "-f", "-"]).input(deny("order", "charge")).start();
    let issued = scene.mesh.join("late", &token);
    let change = change.finish(GIVEN_UP);
    for refused in [&change, &issued] {
        assert!(refused.code() != Some(0) && refused.stderr.contains("W6005"), "{refused}");
    }
    scene.answers_say_their_age(silent);
    assert_eq!(flow.ended(), None);

    scene.mesh.start_etcd();
    let back = Stopwatch::start();
    eventually("reads are current", BACK, || {
        let done = scene.mesh.on_server(&["get", "services", "-n", "shop"]).expect_success();
        if done.stderr.contains("as of ") { Err(done.to_string()) } else { Ok(()) }
    });
    scene.mesh.join("late", &token).expect_success();
    assert_eq!(flow.ended(), None);
    let failed = failed_since(&traffic.stop(), Duration::ZERO);
    assert!(failed.is_empty(), "{failed:?}");
    scene.mesh.apply(&deny("order", "charge"));
    eventually("the change is in force", BACK, || match scene.call() {
        Ok(()) => Err("the call is allowed".to_owned()),
        Err(_) => Ok(()),
    });
    println!("everything was back {:?} after etcd", back.elapsed());
}

/// Two hosts with their programs, and what a test adds.
struct Scene {
    mesh: Mesh,
    _programs: [Process; 2],
}

impl Scene {
    #[track_caller]
    fn start(life: Duration, more: impl FnOnce(Builder) -> Builder) -> Self {
        let order = Workload::new("order").upstream("charge", 80, TO_CHARGE).upstream("echo", 7, TO_ECHO);
        let served =
            [Workload::new("charge").serves("http", HTTP), Workload::new("echo").serves("echo", ECHO)];
        let mesh = Mesh::builder()
            .server_line(&format!("identity: {{leafTtl: {}s, allowShortLifetimes: true}}", life.as_secs()))
            .manifest(service("charge", &[("http", 80, "http")]))
            .manifest(service("echo", &[("echo", 7, "tcp")]))
            .manifest(allow("order", "charge"))
            .manifest(allow("order", "echo"))
            .node("hosta", &[order])
            .node("hostb", &served);
        let mesh = more(mesh).start();
        let hostb = mesh.host("hostb");
        let programs = [app::nginx(hostb, HTTP, hostb.folder()), app::script(hostb, "echo.py", ECHO, &[])];
        let scene = Self { mesh, _programs: programs };
        scene.mesh.wait_for_call("the first call", || scene.call());
        let first = || load::Echo::open(scene.mesh.host("hosta"), loopback(TO_ECHO))?.exchange(b"first");
        scene.mesh.wait_for_call("the first echo", first);
        scene
    }

    fn call(&self) -> Result<(), String> {
        self.mesh.host("hosta").enter(|| load::call(loopback(TO_CHARGE)))
    }

    fn flow(&self) -> Flow {
        Flow::open(self.mesh.host("hosta"), loopback(TO_ECHO))
    }

    fn traffic(&self) -> Traffic {
        Traffic::start(self.mesh.host("hosta"), loopback(TO_CHARGE))
    }

    fn weft_call(&self) -> Finished {
        self.mesh.weft("hosta", &["call", "charge.shop", "/ok", "--as", "shop/order"]).run()
    }

    fn agent_says(&self, node: &str) -> String {
        said(&self.mesh.weft(node, &["agent", "status"]).run())
    }

    fn page(&self, node: &str, path: &str) -> (u16, String) {
        self.mesh.page(node, path).unwrap()
    }

    /// How many certificates of `node` are as late as `level` says.
    fn overdue(&self, node: &str, level: &str) -> u64 {
        let text = self.mesh.metrics(node).unwrap();
        let name = format!("weft_identity_renewals_overdue{{level=\"{level}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or("0").parse().unwrap()
    }

    /// Whatever is asked while the store is silent has an age, which grows, in every form.
    fn answers_say_their_age(&self, silent: Stopwatch) {
        let list = self.mesh.on_server(&["get", "services", "-n", "shop", "-o", "json"]).expect_success();
        let age = parsed(&list.stdout)["staleSeconds"].as_u64().unwrap();
        assert!(age > 0 && age <= silent.elapsed().as_secs() + 5, "{age} s: {list}");
        assert_eq!(parsed(&list.stderr)["code"], "W6005", "{list}");
        let status = self.mesh.on_server(&["status", "-o", "json"]).expect_code(1);
        let told = parsed(&status.stdout)["server"].clone();
        assert!(told["staleSeconds"].as_u64().unwrap() >= age, "{status}");
        assert!(told["problems"].to_string().contains("the store has not answered for"), "{status}");
        let none = self.mesh.on_server(&["get", "service/none", "-n", "shop"]);
        assert!(
            none.code() != Some(0) && none.stderr.contains("as of "),
            "that it is not there is old too: {none}"
        );
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn said(done: &Finished) -> String {
    format!("{}{}", done.stdout, done.stderr)
}
