//! The real agent, attacked from another host, while an honest caller goes on.

use std::time::Duration;

use serde_json::Value;
use weft_overlay::CloseCode;
use weft_tests::app::{self, loopback};
use weft_tests::load;
use weft_tests::manifest::{allow, service};
use weft_tests::mesh::{Mesh, Workload};
use weft_tests::process::Process;
use weft_tests::python;

use crate::lab::{parse, tools};
use crate::notice::Notice;

/// Where "charge" listens on its host, and where "order" reaches it on its own.
const LOCAL: u16 = 8081;
const UPSTREAM: u16 = 9001;
const TUNNELS: &str = "7443";
const ATTACKER: &str = "mallory";
const VICTIM: &str = "hostb";
const HONEST: (&str, u16) = ("hosta", UPSTREAM);
/// Forged first packets, at 5,000 a second (decisions.md, Tests and benches).
const INITIALS: u32 = 15_000;
/// CPU of the victim for one of them in this build, which is not optimised; in a release build it is under 20 µs.
const CPU_PER_INITIAL: Duration = Duration::from_micros(150);

#[test]
fn quic_01_03_forged_first_packets_leave_established_peers_alone() {
    let (mut mesh, _nginx) = scene("");
    // Answers to forged addresses are to reach the attacker, who counts them.
    let via = mesh.host(ATTACKER).ip4().to_string();
    mesh.host(VICTIM).program("ip").args(["route", "add", "default", "via", &via]).run().expect_success();

    let counter = "weft_tunnel_handshakes_deflected_total";
    let (notice, outcome) = Notice::of(&mut mesh, HONEST, VICTIM, counter, |mesh| {
        let count = INITIALS.to_string();
        raw(mesh, "initials", &["--count", &count, "--rate", "5000"])
    });

    let (sent, back) = (outcome["sent_bytes"].as_u64().unwrap(), outcome["back_bytes"].as_u64().unwrap());
    assert!(back > 0 && back <= 3 * sent, "amplified: {outcome}");
    let each = notice.cpu / INITIALS;
    println!("{outcome}; {each:?} of CPU for each, honest calls included; {:?} in all", notice.took);
    assert!(each < CPU_PER_INITIAL, "{each:?} of CPU for each forged packet");
}

#[test]
fn quic_03_junk_does_not_starve_anybody() {
    let (mut mesh, _nginx) = scene("");
    let (_, outcome) = Notice::of(&mut mesh, HONEST, VICTIM, "weft_tunnel_handshakes_total", |mesh| {
        raw(mesh, "junk", &["--count", "20000"])
    });
    assert!(outcome["back_bytes"].as_u64() < outcome["sent_bytes"].as_u64(), "{outcome}");
}

#[test]
fn quic_09_10_floods_of_flows_and_resets_cost_their_sender_the_tunnel_and_nobody_else_anything() {
    let limits = "limits: {tunnels: {flowsPerPeerPerSecond: 500, resetsPerPeerPerSecond: 100, resetsPerPeerAtOnce: 500}}";
    let (mut mesh, _nginx) = scene(limits);
    let (notice, outcomes) = Notice::of(&mut mesh, HONEST, VICTIM, "weft_tunnel_excess_total", |mesh| {
        attack(mesh, "stream_flood,reset_flood,stream_flood", &["--count", "20000"])
    });
    for outcome in &outcomes {
        assert_eq!(outcome["code"], CloseCode::ExcessiveLoad.number(), "{outcome}");
    }
    amplification(&notice, &outcomes);
}

#[test]
fn quic_12_a_peer_that_never_reads_holds_no_more_than_its_windows() {
    let (mut mesh, _nginx) = scene("");
    let (notice, _) = Notice::of(&mut mesh, HONEST, VICTIM, "weft_tunnel_handshakes_total", |mesh| {
        let request = "GET /large HTTP/1.0\r\n\r\n";
        attack(mesh, "never_read", &["--count", "200", "--seconds", "4", "--request", request])
    });
    let held = notice.peak_kib.saturating_sub(notice.before_kib);
    println!("a peer that never reads held {held} KiB");
    // 16 MiB of send window, as much again on the way to it, and 64 KiB for each of 200 flows.
    assert!(held < 64 * 1024, "{held} KiB");
}

#[test]
fn quic_06_07_13_14_frames_against_a_real_agent() {
    let (mut mesh, _nginx) = scene("");
    let names = "challenges,id_flood,pings,gaps,datagram,unknown_frame,twice,key_updates,crypto_past_limit,closed_flood";
    let (notice, outcomes) = Notice::of(&mut mesh, HONEST, VICTIM, "weft_tunnel_closes_total", |mesh| {
        attack(mesh, names, &["--count", "1500"])
    });
    amplification(&notice, &outcomes);
}

#[test]
fn tls_06_no_variable_makes_an_agent_write_its_secrets_down() {
    let (mut mesh, _nginx) = scene("");
    let keys = mesh.host(VICTIM).folder().join("sslkeys");
    mesh.kill_agent(VICTIM);
    mesh.start_agent_with(VICTIM, "SSLKEYLOGFILE", &keys);
    mesh.wait_for_agent(VICTIM);
    let hosta = mesh.host("hosta").clone();
    mesh.wait_for_call("a call", || hosta.enter(|| load::call(loopback(UPSTREAM))));
    assert!(!keys.exists(), "{}", keys.display());
}

/// The victim does no twenty times the work of its attacker, and keeps no twenty bytes for each of his.
#[track_caller]
fn amplification(notice: &Notice, outcomes: &[Value]) {
    let sum = |field: &str| outcomes.iter().filter_map(|outcome| outcome[field].as_u64()).sum::<u64>();
    let cpu = outcomes.last().and_then(|outcome| outcome["cpu_ms"].as_u64()).unwrap_or(0);
    let (sent, grown) = (sum("sent"), 1024 * notice.peak_kib.saturating_sub(notice.before_kib));
    println!("attacker {cpu} ms and {sent} B; victim {:?} and {grown} B", notice.cpu);
    assert!(notice.cpu < Duration::from_millis(20 * cpu.max(50)), "{:?} for {cpu} ms", notice.cpu);
    assert!(grown < 20 * sent.max(1 << 20), "{grown} B for {sent} B");
}

/// Runs attacks of aioquic from the attacker's host, with the SVID of a workload that he has taken.
fn attack(mesh: &Mesh, names: &str, more: &[&str]) -> Vec<Value> {
    let (svid, label) = (mesh.stolen_svid("hosta", "mallory"), mesh.label(VICTIM, "charge"));
    let sni = format!("{label}.local.weft");
    let mut tool = program(mesh, "quic_attack.py", names);
    tool = tool.args(["--label", &label, "--sni", &sni]).arg("--chain").arg(&svid).arg("--key").arg(&svid);
    let said = tool.args(more).limit(Duration::from_secs(120)).run().expect_success().stdout;
    parse(&said).into_iter().filter(|line| line.get("attack").is_some()).collect()
}

/// Runs a mode of the raw attacker from his host.
fn raw(mesh: &Mesh, mode: &str, more: &[&str]) -> Value {
    let tool = program(mesh, "quic_raw.py", mode).args(more).limit(Duration::from_secs(120));
    parse(&tool.run().expect_success().stdout).pop().expect("the tool says what it did")
}

fn program(mesh: &Mesh, script: &str, what: &str) -> weft_tests::process::Program {
    let target = mesh.host(VICTIM).ip4().to_string();
    let tool = mesh.host(ATTACKER).program(python::interpreter()).arg(tools().join(script)).arg(what);
    tool.args(["--host", &target, "--port", TUNNELS])
}

/// "order" on one host calls "charge" on another; the attacker has a third, and the SVID of a workload of the first.
fn scene(limits: &str) -> (Mesh, Process) {
    let mesh = Mesh::builder()
        .manifest(service("charge", &[("http", 80, "http")]))
        .manifest(allow("order", "charge"))
        .manifest(allow("mallory", "charge"))
        .node("hosta", &[Workload::new("order").upstream("charge", 80, UPSTREAM), Workload::new("mallory")])
        .node(VICTIM, &[Workload::new("charge").serves("http", LOCAL)])
        .host(ATTACKER)
        .agent_line(if limits.is_empty() { "limits: {}" } else { limits })
        .start();
    let hostb = mesh.host(VICTIM);
    app::random_file(hostb, &hostb.folder().join("large"), 32);
    let program = app::nginx(hostb, LOCAL, hostb.folder());
    let hosta = mesh.host("hosta");
    mesh.wait_for_call("the first call", || hosta.enter(|| load::call(loopback(UPSTREAM))));
    (mesh, program)
}
