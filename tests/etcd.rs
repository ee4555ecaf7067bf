//! A mesh that is kept in a real etcd: it lives through the loss of etcd, and it can be moved there and back into being.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use weft_tests::app::{self, loopback};
use weft_tests::eventually::{eventually, throughout};
use weft_tests::load::{self, Traffic, failed_since};
use weft_tests::manifest::{NAMESPACE, allow, deny, service};
use weft_tests::mesh::{CTL, ETCD, Mesh, Workload};
use weft_tests::process::Process;

/// nginx of "charge" on hostb.
const HTTP: u16 = 8081;
/// Where "order" on hosta reaches it.
const TO_CHARGE: u16 = 9001;
/// What a quiet moment is, to see that nothing happens in it.
const A_MOMENT: Duration = Duration::from_secs(1);
/// Within this time a change is in force, also after an outage.
const SOON: Duration = Duration::from_secs(15);

#[test]
fn a_mesh_in_etcd_outlives_its_etcd_and_its_server() {
    let mut scene = Scene::start(true);
    let hosta = scene.mesh.host("hosta").clone();
    let traffic = Traffic::start(&hosta, loopback(TO_CHARGE));

    scene.mesh.kill_etcd();
    let listed = scene.mesh.on_server(&["get", "services", "-A"]).expect_success();
    assert!(listed.stdout.contains("charge"), "reads go on without etcd: {listed}");
    scene.mesh.start_etcd();
    scene.mesh.kill_server();
    scene.mesh.start_server();
    scene.mesh.wait_for_server();
    scene.mesh.wait_for_agent("hosta");
    let failed = failed_since(&traffic.stop(), Duration::ZERO);
    assert!(failed.is_empty(), "{failed:?}");

    scene.mesh.apply(&deny("order", "charge"));
    eventually("the denial is in force", SOON, || match hosta.enter(|| load::call(loopback(TO_CHARGE))) {
        Ok(()) => Err("the call is allowed".to_owned()),
        Err(_) => Ok(()),
    });
}

#[test]
fn a_mesh_moves_from_the_embedded_store_into_etcd_with_agents_attached_and_no_failed_call() {
    let mut scene = Scene::start(false);
    let hosta = scene.mesh.host("hosta").clone();
    let traffic = Traffic::start(&hosta, loopback(TO_CHARGE));
    let before = scene.mesh.on_server(&["get", "services", "-A"]).expect_success().stdout;

    let config = scene.mesh.host(CTL).folder().join("server.yaml");
    let config = config.to_str().unwrap();
    let migrate = ["server", "migrate", "--config", config, "--to", "etcd://127.0.0.1:2379"];
    let running = scene.mesh.on_server(&migrate).expect_code(2);
    assert!(running.stderr.contains("W6002"), "not under a running server: {running}");
    scene.mesh.stop_server(SOON);
    scene.mesh.start_etcd();
    let moved = scene.mesh.on_server(&migrate).expect_success();
    assert!(moved.stdout.starts_with("store: {etcd: {path: "), "it says what to configure: {moved}");
    let again = scene.mesh.on_server(&migrate).expect_code(2);
    assert!(again.stderr.contains("W6036"), "never into a store that holds something: {again}");
    scene.mesh.use_etcd();
    scene.mesh.start_server();
    scene.mesh.wait_for_server();
    for node in ["hosta", "hostb"] {
        scene.mesh.wait_for_agent(node);
    }
    assert_eq!(scene.mesh.on_server(&["get", "services", "-A"]).expect_success().stdout, before);
    let failed = failed_since(&traffic.stop(), Duration::ZERO);
    assert!(failed.is_empty(), "{failed:?}");

    scene.mesh.apply(&deny("order", "charge"));
    eventually("the agents follow the server", SOON, || {
        match hosta.enter(|| load::call(loopback(TO_CHARGE))) {
            Ok(()) => Err("the call is allowed".to_owned()),
            Err(_) => Ok(()),
        }
    });
}

#[test]
fn a_mesh_whose_etcd_was_lost_is_refused_and_then_restored_from_its_backup() {
    let mut scene = Scene::start(true);
    let hosta = scene.mesh.host("hosta").clone();
    let folder = scene.mesh.host(CTL).folder().to_path_buf();
    let (config, backup) = (folder.join("server.yaml"), folder.join("mesh.backup"));
    let (config, backup) = (config.to_str().unwrap(), backup.to_str().unwrap());
    let before = scene.mesh.on_server(&["get", "services", "-A"]).expect_success().stdout;
    let traffic = Traffic::start(&hosta, loopback(TO_CHARGE));

    scene.mesh.stop_server(SOON);
    scene.mesh.on_server(&["server", "backup", backup, "--config", config]).expect_success();
    scene.mesh.kill_etcd();
    fs::remove_dir_all(folder.join("etcd")).unwrap();
    scene.mesh.start_etcd();
    let restore = ["server", "restore", backup, "--config", config];
    let refused = scene.mesh.on_server(&restore).expect_code(2);
    assert!(refused.stderr.contains("W6033"), "the server knows another store: {refused}");

    // A person says that the empty etcd is meant.
    let state = scene.mesh.state(CTL).join("server");
    fs::rename(state.join("etcd.json"), state.join("etcd.json.old")).unwrap();
    scene.mesh.on_server(&restore).expect_success();
    scene.mesh.start_server();
    scene.mesh.wait_for_server();
    for node in ["hosta", "hostb"] {
        scene.mesh.wait_for_agent(node);
    }
    assert_eq!(scene.mesh.on_server(&["get", "services", "-A"]).expect_success().stdout, before);
    let failed = failed_since(&traffic.stop(), Duration::ZERO);
    assert!(failed.is_empty(), "{failed:?}");
}

/// A writer of etcd takes a DENY rule away, puts an older record back and makes one up: nothing opens, it is told, and a
/// person who stands at the server says what holds.
#[test]
fn what_a_writer_of_etcd_does_by_hand_opens_nothing_until_a_person_accepts_it() {
    let mut scene = Scene::start(true);
    scene.mesh.apply(&deny("order", "charge"));
    scene.refused("the denial is in force");
    let policies = scene.keys("authorizationpolicies");
    let (denial, allowance) = match policies.as_slice() {
        [one, other] if one.contains("deny") => (one, other),
        [one, other] if other.contains("deny") => (other, one),
        _ => panic!("{policies:?}"),
    };
    let (denied, allowed) = (scene.record(denial), scene.record(allowance));

    scene.etcdctl(&["del", denial], &[]);
    scene.is_told(true);
    scene.refused("the rule is gone, and nothing is open");
    scene.etcdctl(&["put", denial], &denied);
    scene.is_told(false);
    scene.refused("the rule is back");
    // The record of another rule under its key; then one that nobody has signed.
    scene.etcdctl(&["put", denial], &allowed);
    scene.is_told(true);
    scene.refused("a record was replayed under another key");
    let widened: Vec<u8> = String::from_utf8_lossy(&allowed).replace("sa/order", "sa/order2").into_bytes();
    scene.etcdctl(&["put", denial], &denied);
    scene.is_told(false);
    scene.etcdctl(&["put", &format!("{denial}-2")], &widened);
    scene.is_told(true);
    scene.refused("a record was made up");
    scene.etcdctl(&["del", &format!("{denial}-2")], &[]);
    scene.is_told(false);

    // The server does not lose it by a restart, and whoever administers its host has the last word.
    scene.etcdctl(&["del", denial], &[]);
    scene.is_told(true);
    scene.mesh.stop_server(SOON);
    let config = scene.mesh.host(CTL).folder().join("server.yaml");
    let config = config.to_str().unwrap();
    let checked = scene.mesh.on_server(&["server", "records", "check", "--config", config]).expect_code(1);
    assert!(checked.stdout.contains(NAMESPACE), "{checked}");
    scene.mesh.on_server(&["server", "records", "accept", "--config", config]).expect_success();
    scene.mesh.on_server(&["server", "records", "check", "--config", config]).expect_success();
    scene.mesh.start_server();
    scene.mesh.wait_for_server();
    scene.is_told(false);
    let hosta = scene.mesh.host("hosta").clone();
    eventually("what was accepted is in force", SOON, || hosta.enter(|| load::call(loopback(TO_CHARGE))));
    let audit = scene.mesh.on_server(&["server", "audit", "show", "-o", "json"]).expect_success();
    assert!(audit.stdout.contains("accepted"), "{audit}");
}

/// A mesh in which order on hosta may call charge on hostb.
struct Scene {
    mesh: Mesh,
    _nginx: Process,
}

impl Scene {
    fn start(etcd: bool) -> Self {
        let builder = Mesh::builder()
            .node("hosta", &[Workload::new("order").upstream("charge", 80, TO_CHARGE)])
            .node("hostb", &[Workload::new("charge").serves("http", HTTP)])
            .manifest(service("charge", &[("http", 80, "http")]))
            .manifest(allow("order", "charge"));
        let mesh = if etcd { builder.etcd() } else { builder }.start();
        let hostb = mesh.host("hostb").clone();
        let nginx = app::nginx(&hostb, HTTP, hostb.folder());
        app::wait_for_port(&hostb, loopback(HTTP), SOON);
        let hosta = mesh.host("hosta").clone();
        mesh.wait_for_call("order calls charge", || hosta.enter(|| load::call(loopback(TO_CHARGE))));
        Self { mesh, _nginx: nginx }
    }

    /// What a person who may write to etcd does there; `input` is the value of a put.
    #[track_caller]
    fn etcdctl(&self, args: &[&str], input: &[u8]) -> String {
        let etcdctl = self.mesh.host(CTL).program("etcdctl").env("ETCDCTL_API", "3");
        let etcdctl = etcdctl.args(["--endpoints", ETCD]).args(args).input(input);
        etcdctl.run().expect_success().stdout
    }

    /// The keys of a kind.
    #[track_caller]
    fn keys(&self, plural: &str) -> Vec<String> {
        let all = self.etcdctl(&["get", "/weft/", "--prefix", "--keys-only"], &[]);
        all.lines().filter(|key| key.contains(&format!("/{plural}/"))).map(str::to_owned).collect()
    }

    /// What stands under `key`.
    #[track_caller]
    fn record(&self, key: &str) -> Vec<u8> {
        let found = self.etcdctl(&["get", key, "--write-out", "json"], &[]);
        let found: serde_json::Value = serde_json::from_str(&found).unwrap();
        BASE64_STANDARD.decode(found["kvs"][0]["value"].as_str().unwrap()).unwrap()
    }

    /// Waits until the server says that something in the store is not as it was written, or does not say it any more.
    #[track_caller]
    fn is_told(&self, expected: bool) {
        eventually(if expected { "it is told" } else { "it is told no more" }, SOON, || {
            let status = self.mesh.on_server(&["status"]);
            if status.stdout.contains("W6060") == expected { Ok(()) } else { Err(status.to_string()) }
        });
    }

    /// Waits until calls are refused, and sees that they stay so for a moment.
    #[track_caller]
    fn refused(&self, what: &str) {
        let hosta = self.mesh.host("hosta");
        let call = || match hosta.enter(|| load::call(loopback(TO_CHARGE))) {
            Ok(()) => Err("the call is allowed".to_owned()),
            Err(_) => Ok(()),
        };
        eventually(what, SOON, call);
        throughout(what, A_MOMENT, call);
    }
}
