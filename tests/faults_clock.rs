//! Clocks that are wrong, that are stepped while everything runs, and hosts that slept past their certificates (CLK-01 to
//! CLK-03, CLK-06). Leaps are steps of a second; years past 2038 and 2050 are tested where certificates are read.
//!
//! What must be seen: within the minute that certificates are dated back nothing is noticed; beyond it nothing flaps, who
//! is refused is told that it is the clock, and with the clock everything comes back by itself.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use weft_tests::app::{self, loopback};
use weft_tests::eventually::{eventually, throughout};
use weft_tests::load::{self, Echo, Flow, Traffic, failed_since};
use weft_tests::manifest::{allow, service};
use weft_tests::mesh::{Builder, CTL, Mesh, Workload};
use weft_tests::process::{Finished, Process};

const HTTP: u16 = 8081;
const ECHO: u16 = 8082;
const TO_CHARGE: u16 = 9001;
const TO_ECHO: u16 = 9002;

const HOUR: i64 = 3_600;
/// With a right clock everything works within this time.
const BACK: Duration = Duration::from_secs(3);
/// How long a step is in force before it is looked at what it did.
const A_MOMENT: Duration = Duration::from_secs(3);
/// The shortest life that an enrollment may ask for, and twice that and a bit.
const WORKLOAD_LIFE: &str = "10s";
const TWICE_WORKLOAD: Duration = Duration::from_secs(21);
/// The same for a whole mesh.
const NODE_LIFE: &str = "6s";
const TWICE_NODE: Duration = Duration::from_secs(13);

/// A laptop that was closed for two days: `weft up` lets its own node in again, and changes nothing else.
#[test]
fn clk_03_a_host_that_was_off_for_longer_than_a_certificate_lives_comes_up_again() {
    let mesh = Mesh::builder().host("own").own_clock("own", 0).start();
    let run = |args: &[&str]| mesh.weft("own", args).run();
    run(&["up"]).expect_success();
    let before = run(&["get", "meshes", "-o", "yaml"]).expect_success().stdout;
    run(&["down"]).expect_success();
    mesh.set_clock("own", 48 * HOUR);
    run(&["up"]).expect_success();
    eventually("everything is well", BACK, || match run(&["status"]) {
        well if well.code() == Some(0) => Ok(()),
        not => Err(not.to_string()),
    });
    assert_eq!(run(&["get", "meshes", "-o", "yaml"]).expect_success().stdout, before);
    run(&["down"]).expect_success();
}

#[test]
fn clk_01_agents_half_a_minute_off_work_and_the_skew_is_told() {
    let scene = Scene::start(|mesh| mesh.own_clock("hosta", 30).own_clock("hostb", -30));
    for _ in 0..5 {
        scene.call().unwrap();
    }
    for (node, expected) in [("hosta", -30.0), ("hostb", 30.0)] {
        let skew = skew(&scene.mesh, node);
        assert!((skew - expected).abs() < 3.0_f64, "{node}: {skew}");
    }
}

#[test]
fn clk_01_a_node_that_joins_with_a_wrong_clock_is_told_so_and_keeps_its_token() {
    let mut scene = Scene::start(|mesh| mesh.host("late").own_clock("late", 0));
    let token = scene.mesh.token("late", &[]);
    scene.mesh.write_agent_config("late", "late", "workloads: []\n");
    for (seconds, code) in [(-5 * 60, "W3003"), (-24 * HOUR, "W3003"), (25 * HOUR, "W3002")] {
        scene.mesh.set_clock("late", seconds);
        let refused = scene.mesh.join("late", &token);
        assert!(refused.code() != Some(0) && said(&refused).contains(code), "{seconds} s: {refused}");
        assert!(said(&refused).contains("clock"), "{seconds} s: {refused}");
    }
    // Five minutes ahead certificates only seem shorter: it joins, works, and says that the clocks differ.
    scene.mesh.set_clock("late", 5 * 60);
    scene.mesh.join("late", &token).expect_success();
    scene.mesh.start_agent("late");
    scene.mesh.wait_for_agent("late");
}

#[test]
fn clk_02_the_clock_of_an_agent_is_set_an_hour_back_and_forth_and_no_call_fails() {
    let mut scene = Scene::start(|mesh| mesh.own_clock("hosta", 0));
    let flow = scene.flow();
    let traffic = scene.traffic();
    let before = issued(&scene.mesh, "hosta");
    for seconds in [-HOUR, 0, HOUR, 0] {
        scene.mesh.set_clock("hosta", seconds);
        throughout("the flow goes on", A_MOMENT, || lives(&flow));
    }
    assert_eq!(flow.ended(), None);
    let failed = failed_since(&traffic.stop(), Duration::ZERO);
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(issued(&scene.mesh, "hosta"), before, "nothing flaps: no certificate is asked for anew");

    // A start with a clock an hour behind: the certificates of others are not valid yet by it. Fails closed, and says why.
    scene.mesh.set_clock("hosta", -HOUR);
    scene.mesh.kill_agent("hosta");
    scene.mesh.start_agent("hosta");
    let refused = eventually("the agent answers", BACK * 3, || {
        let done = scene.mesh.weft("hosta", &["call", "charge.shop", "/ok", "--as", "shop/order"]).run();
        if said(&done).contains("W3") { Ok(done) } else { Err(done.to_string()) }
    });
    assert_ne!(refused.code(), Some(0), "{refused}");
    scene.mesh.set_clock("hosta", 0);
    eventually("calls work with the right clock", BACK, || scene.call());
}

#[test]
fn clk_02_the_clock_of_the_server_is_set_an_hour_back_and_forth_and_no_call_fails() {
    let scene = Scene::start(|mesh| mesh.own_clock(CTL, 0).host("late"));
    let flow = scene.flow();
    let traffic = scene.traffic();
    scene.mesh.write_agent_config("late", "late", "workloads: []\n");

    scene.mesh.set_clock(CTL, -HOUR);
    // Rules do not depend on clocks; certificates do: none is signed that others might take for a later one.
    scene.mesh.apply(&allow("order", "late"));
    let refused = scene.mesh.join("late", &scene.mesh.token("late", &[]));
    assert!(refused.code() != Some(0) && said(&refused).contains("W3013"), "{refused}");

    scene.mesh.set_clock(CTL, 0);
    scene.mesh.join("late", &scene.mesh.token("late", &[])).expect_success();
    scene.mesh.set_clock(CTL, HOUR);
    scene.mesh.apply(&allow("order", "later"));
    throughout("the flow goes on", A_MOMENT, || lives(&flow));
    scene.mesh.set_clock(CTL, 0);
    throughout("the flow goes on", A_MOMENT, || lives(&flow));
    let failed = failed_since(&traffic.stop(), Duration::ZERO);
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn clk_03_a_workload_that_slept_past_its_certificate_renews_it_by_itself() {
    let mut scene = Scene::start(|mesh| mesh.server_line("identity: {allowShortLifetimes: true}"));
    shorten(&scene.mesh, "hosta");
    scene.mesh.kill_agent("hosta");
    fs::remove_dir_all(scene.mesh.state("hosta").join("agent/svids")).unwrap();
    scene.mesh.start_agent("hosta");
    eventually("calls with a short certificate", BACK * 2, || scene.call());
    let flow = scene.flow();

    scene.mesh.agent("hosta").signal(Signal::SIGSTOP);
    // The other end does not wait for it: nobody is served past the end of a certificate.
    let open =
        || scene.echo.stdout().matches("open ").count() - scene.echo.stdout().matches("closed ").count();
    eventually("the flow is cut at the expiry", TWICE_WORKLOAD, || {
        if open() == 0 { Ok(()) } else { Err(open().to_string()) }
    });
    let hostb = scene.mesh.host("hostb").clone();
    throughout("the program itself is up", TWICE_WORKLOAD / 2, || hostb.enter(|| load::call(loopback(HTTP))));
    scene.mesh.agent("hosta").signal(Signal::SIGCONT);
    eventually("calls work again", BACK * 2, || scene.call());
    eventually("the flow has ended here too", BACK, || flow.ended().ok_or_else(|| "open".to_owned()));
}

#[test]
fn clk_03_a_node_that_slept_past_its_own_certificate_fails_closed_and_joins_again() {
    let line = format!("identity: {{leafTtl: {NODE_LIFE}, allowShortLifetimes: true}}");
    let mut scene = Scene::start(|mesh| mesh.server_line(&line));

    scene.mesh.agent("hosta").signal(Signal::SIGSTOP);
    let hostb = scene.mesh.host("hostb").clone();
    throughout("the program itself is up", TWICE_NODE, || hostb.enter(|| load::call(loopback(HTTP))));
    scene.mesh.agent("hosta").signal(Signal::SIGCONT);
    let told = eventually("calls fail with a reason", BACK, || {
        let done = scene.mesh.weft("hosta", &["call", "charge.shop", "/ok", "--as", "shop/order"]).run();
        if done.code() == Some(0) { Err("answered".to_owned()) } else { Ok(done) }
    });
    assert!(said(&told).contains("W3"), "its identity is what it lacks: {told}");

    let token = scene.mesh.token("hosta", &["--replace"]);
    scene.mesh.kill_agent("hosta");
    scene.mesh.join("hosta", &token).expect_success();
    scene.mesh.start_agent("hosta");
    eventually("calls work after a new join", BACK * 2, || scene.call());
}

/// Two hosts with their programs, and what a test adds.
struct Scene {
    mesh: Mesh,
    echo: Process,
    _charge: Process,
}

impl Scene {
    #[track_caller]
    fn start(more: impl FnOnce(Builder) -> Builder) -> Self {
        let order = Workload::new("order").upstream("charge", 80, TO_CHARGE).upstream("echo", 7, TO_ECHO);
        let mesh = Mesh::builder()
            .manifest(service("charge", &[("http", 80, "http")]))
            .manifest(service("echo", &[("echo", 7, "tcp")]))
            .manifest(service("late", &[("http", 80, "http")]))
            .manifest(service("later", &[("http", 80, "http")]))
            .manifest(allow("order", "charge"))
            .manifest(allow("order", "echo"))
            .node("hosta", &[order])
            .node(
                "hostb",
                &[Workload::new("charge").serves("http", HTTP), Workload::new("echo").serves("echo", ECHO)],
            );
        let mesh = more(mesh).start();
        let hostb = mesh.host("hostb");
        let charge = app::nginx(hostb, HTTP, hostb.folder());
        let echo = app::script(hostb, "echo.py", ECHO, &[]);
        let scene = Self { mesh, echo, _charge: charge };
        scene.mesh.wait_for_call("the first call", || scene.call());
        let first = || Echo::open(scene.mesh.host("hosta"), loopback(TO_ECHO))?.exchange(b"first");
        scene.mesh.wait_for_call("the first echo", first);
        scene
    }

    fn call(&self) -> Result<(), String> {
        self.mesh.host("hosta").enter(|| load::call(loopback(TO_CHARGE)))
    }

    #[track_caller]
    fn flow(&self) -> Flow {
        Flow::open(self.mesh.host("hosta"), loopback(TO_ECHO))
    }

    fn traffic(&self) -> Traffic {
        Traffic::start(self.mesh.host("hosta"), loopback(TO_CHARGE))
    }
}

fn lives(flow: &Flow) -> Result<(), String> {
    flow.ended().map_or(Ok(()), |end| Err(format!("{end:?}")))
}

fn said(done: &Finished) -> String {
    format!("{}{}", done.stdout, done.stderr)
}

/// How far ahead the server's clock is for the agent of `node`, as its metric says.
fn skew(mesh: &Mesh, node: &str) -> f64 {
    metric(mesh, node, "weft_clock_skew_seconds ")
}

/// How many certificates the agent of `node` has got.
fn issued(mesh: &Mesh, node: &str) -> f64 {
    metric(mesh, node, "weft_identity_renewals_total{result=\"issued\"} ")
}

#[track_caller]
fn metric(mesh: &Mesh, node: &str, name: &str) -> f64 {
    let text = mesh.metrics(node).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or("0").parse().unwrap_or_else(|error| panic!("{name}{line:?}: {error}"))
}

/// From now on the workloads of `node` get certificates of [`WORKLOAD_LIFE`].
#[track_caller]
fn shorten(mesh: &Mesh, node: &str) {
    let name = format!("agent-{node}");
    let get =
        mesh.on_server(&["get", "workloadenrollments", &name, "-n", "shop", "-o", "json"]).expect_success();
    let found: Value = serde_json::from_str(&get.stdout).unwrap();
    let mut spec = found["spec"].clone();
    spec["ttl"] = WORKLOAD_LIFE.into();
    let metadata = serde_json::json!({"name": name, "namespace": "shop"});
    let wanted = serde_json::json!({"apiVersion": found["apiVersion"], "kind": found["kind"], "metadata": metadata, "spec": spec});
    mesh.apply(&wanted.to_string());
}
