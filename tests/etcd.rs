//! A mesh that is kept in a real etcd: it lives through the loss of etcd, and it can be moved there and back into being.

use std::fs;
use std::time::Duration;

use weft_tests::app::{self, loopback};
use weft_tests::eventually::eventually;
use weft_tests::load::{self, Traffic, failed_since};
use weft_tests::manifest::{allow, deny, service};
use weft_tests::mesh::{CTL, Mesh, Workload};
use weft_tests::process::Process;

/// nginx of "charge" on hostb.
const HTTP: u16 = 8081;
/// Where "order" on hosta reaches it.
const TO_CHARGE: u16 = 9001;
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
}
