//! What is seen from outside: readiness that tells the truth, metrics under their names, a line per flow.

use std::time::Duration;

use weft_tests::app::{self, loopback};
use weft_tests::eventually::eventually;
use weft_tests::load::{self, http_get};
use weft_tests::manifest::{allow, service, spiffe_id};
use weft_tests::mesh::{CTL, Mesh, Workload};
use weft_tests::process::Process;

const LOCAL: u16 = 8081;
const UPSTREAM: u16 = 9001;
const SOON: Duration = Duration::from_secs(5);

/// Families that the agents of one call report (observability.md 2.2, in the Prometheus spelling).
const AGENT_METRICS: &[&str] = &[
    "weft_tunnel_active",
    "weft_tunnel_handshakes_total",
    "weft_tunnel_handshake_duration_seconds",
    "weft_tunnel_rtt_seconds",
    "weft_tunnel_streams_active",
    "weft_tunnel_io_bytes_total",
    "weft_authz_decisions_total",
    "weft_identity_certificate_expiry_seconds",
    "weft_identity_renewals_total",
    "weft_identity_renewals_overdue",
    "weft_config_revision",
];

#[test]
fn an_agent_reports_tunnels_decisions_certificates_and_its_revision() {
    let (mesh, _program) = scene();
    // What moved through a tunnel is read from QUIC now and then.
    eventually("every family is there", SOON * 4, || {
        let metrics = mesh.metrics("hostb")?;
        let missing: Vec<&&str> = AGENT_METRICS.iter().filter(|name| !metrics.contains(**name)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("missing {missing:?} in\n{metrics}")) }
    });
    assert!(mesh.metrics(CTL).expect("metrics are served").contains("weft_registry_commit_duration_seconds"));
}

#[test]
fn every_flow_leaves_one_line_with_both_identities_and_the_decision() {
    let (mut mesh, _program) = scene();
    // Which policy allowed it is the destination's to know; its caller is told that it was.
    for (node, decision) in [("hosta", "\"decision\":\"allow\""), ("hostb", "allow-order-charge")] {
        eventually("the flow is in the access log", SOON, || {
            let log = mesh.agent_log(node);
            let (order, charge) = (spiffe_id("order"), spiffe_id("charge"));
            let both =
                |line: &&str| line.contains(&order) && line.contains(&charge) && line.contains(decision);
            log.lines().find(both).map(drop).ok_or_else(|| log.lines().last().unwrap_or_default().to_owned())
        });
    }
}

#[test]
fn an_agent_without_identity_is_alive_and_not_ready() {
    let mut mesh = Mesh::builder().host("hosta").start();
    mesh.write_agent_config("hosta", "hosta", "");
    mesh.join("hosta", &mesh.token("hosta", &[])).expect_success();
    // Its server is gone before the agent has heard a single snapshot.
    mesh.kill_server();
    mesh.start_agent("hosta");

    eventually("it is alive", SOON, || status(&mesh, "/livez", 200));
    assert_eq!(status(&mesh, "/readyz", 503), Ok(()));
    mesh.start_server();
    eventually("it becomes ready", SOON, || status(&mesh, "/readyz", 200));
}

#[test]
fn status_shows_every_agent_and_exits_with_zero_when_nothing_is_wrong() {
    let (mesh, _program) = scene();
    let status = mesh.on_server(&["status"]).expect_success();

    assert!(status.stdout.contains("hosta") && status.stdout.contains("hostb"), "{status}");
}

fn status(mesh: &Mesh, path: &str, wanted: u16) -> Result<(), String> {
    match http_get(mesh.host("hosta"), loopback(7402), path)? {
        (status, _) if status == wanted => Ok(()),
        (status, body) => Err(format!("{path}: {status} {body}")),
    }
}

/// Two agents between which one call was made.
#[track_caller]
fn scene() -> (Mesh, Process) {
    let mesh = Mesh::builder()
        .manifest(service("charge", &[("http", 80, "http")]))
        .manifest(allow("order", "charge"))
        .node("hosta", &[Workload::new("order").upstream("charge", 80, UPSTREAM)])
        .node("hostb", &[Workload::new("charge").serves("http", LOCAL)])
        .start();
    let program = app::nginx(mesh.host("hostb"), LOCAL, mesh.host("hostb").folder());
    let hosta = mesh.host("hosta");
    mesh.wait_for_call("the first call", || hosta.enter(|| load::call(loopback(UPSTREAM))));
    (mesh, program)
}
