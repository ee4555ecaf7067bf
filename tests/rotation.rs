//! Identities renew while traffic flows, with and without servers. What happens when nobody renews them is in `outages`.

use std::time::Duration;

use weft_tests::app::{self, loopback};
use weft_tests::eventually::{Stopwatch, eventually, throughout};
use weft_tests::load::{self, Traffic, failed_since};
use weft_tests::manifest::{allow, service};
use weft_tests::mesh::{Mesh, Workload};
use weft_tests::process::Process;

const LOCAL: u16 = 8081;
const UPSTREAM: u16 = 9001;

/// A life so short that a test sees several; the setting that allows it warns.
const LIFE: Duration = Duration::from_secs(20);

#[test]
fn no_call_fails_over_three_lives_of_a_certificate() {
    let (mesh, _program) = scene();
    let expiry = |mesh: &Mesh| last_expiry(&mesh.metrics("hosta").expect("metrics are served"));
    let (first, watch) = (expiry(&mesh), Stopwatch::start());
    let traffic = Traffic::start(mesh.host("hosta"), loopback(UPSTREAM));

    throughout("the traffic goes on", LIFE * 3, || Ok(()));
    let calls = traffic.stop();

    let failed = failed_since(&calls, Duration::ZERO);
    assert!(failed.is_empty(), "{} of {} calls failed: {:?}", failed.len(), calls.len(), failed.first());
    let moved = expiry(&mesh) - first;
    assert!(moved > LIFE.as_secs_f64(), "expiry moved by {moved} s in {:?}", watch.elapsed());
}

#[test]
fn no_call_fails_while_the_server_is_away_for_nearly_half_a_life_and_agents_restart_meanwhile() {
    let (mut mesh, _program) = scene();
    let hosta = mesh.host("hosta").clone();
    // A certificate is renewed before 0.55 of its life are over, so 0.45 are left at any moment (security.md 3.2).
    let away = LIFE.mul_f64(0.45);
    let traffic = Traffic::start(&hosta, loopback(UPSTREAM));
    mesh.kill_server();
    throughout("the server is away", away, || Ok(()));
    let calls = traffic.stop();
    let failed = failed_since(&calls, Duration::ZERO);
    assert!(failed.is_empty(), "{} of {} calls failed: {:?}", failed.len(), calls.len(), failed.first());
    mesh.start_server();
    mesh.wait_for_server();
    throughout("certificates are renewed", LIFE / 2, || hosta.enter(|| load::call(loopback(UPSTREAM))));

    let watch = Stopwatch::start();
    mesh.kill_server();
    mesh.kill_agent("hosta");
    mesh.start_agent("hosta");
    eventually("an agent serves from its disk", away, || hosta.enter(|| load::call(loopback(UPSTREAM))));
    while watch.elapsed() < away {
        let called = hosta.enter(|| load::call(loopback(UPSTREAM)));
        assert!(called.is_ok(), "{called:?} {:?} after the loss of the server", watch.elapsed());
    }
}

/// The latest expiry that an agent reports, as Unix time in seconds.
#[track_caller]
fn last_expiry(metrics: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with("weft_identity_certificate_expiry_seconds"));
    let values = lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    values.fold(0.0, f64::max)
}

#[track_caller]
fn scene() -> (Mesh, Process) {
    let mesh = Mesh::builder()
        .server_line(&format!("identity: {{leafTtl: {}s, allowShortLifetimes: true}}", LIFE.as_secs()))
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
