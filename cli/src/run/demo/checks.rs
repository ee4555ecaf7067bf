//! The demo's assertions, in the order a newcomer asks: does it work, does it refuse, does it hold.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, response::Parts};
use http_body_util::Full;
use weft_api::pb::agent::SpeakRequest;
use weft_node::{clock::Clock, probe};

use super::{
    breaks,
    load::{self, Background},
    mesh::DemoMesh,
    report::Report,
};
use crate::{args::groups::Sabotage, client, error::CliError, program::http::exchange};

/// Bytes of the echo check.
const ECHO_BYTES: usize = 64 << 20;
/// Calls after a fault, none of which may fail.
const CALLS_AFTER: u32 = 200;
/// How long a mesh may take to be whole again after a fault (decisions.md, faults: 2 s; the demo waits longer to tell
/// "late" from "never").
const RECOVERY: Duration = Duration::from_secs(10);

/// Runs every check; the mesh that comes back is whole again.
pub(super) fn run_all(
    mut mesh: DemoMesh,
    sabotage: Option<Sabotage>,
    report: &mut Report,
) -> Result<DemoMesh, CliError> {
    let before = report.elapsed();
    report.check("allowed call", |clock| allowed_call(&mesh, before, clock))?;
    report.check("denied call", |clock| denied_port(&mesh, clock))?;
    report.check("denied caller", |clock| denied_caller(&mesh, clock))?;
    report.check("stranger", |_| stranger(&mesh, sabotage))?;
    report.check("echo of 64 MiB", |clock| echo(&mesh, clock))?;
    report.check("rotation under load", |clock| rotation(&mut mesh, sabotage, clock))?;
    report.check("agent killed and restarted", |clock| agent_restart(&mut mesh, sabotage, clock))?;
    report.check("registry stopped", |clock| registry_stopped(&mut mesh, sabotage, clock))?;
    Ok(mesh)
}

/// Repeats `attempt` until it succeeds or `limit` has passed; the last error is the answer then.
fn eventually<T>(
    clock: &Clock,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T, String>,
) -> Result<(T, Duration), String> {
    let start = clock.now();
    loop {
        let outcome = attempt();
        let took = clock.now().saturating_duration_since(start);
        match outcome {
            Ok(value) => return Ok((value, took)),
            Err(why) if took >= limit => return Err(format!("not within {limit:?}: {why}")),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn charge_once(upstream: SocketAddr) -> Result<(), String> {
    match load::wait_for(load::charge(upstream))?? {
        200 => Ok(()),
        status => Err(format!("order → charge answered {status}")),
    }
}

fn allowed_call(mesh: &DemoMesh, since_start: Duration, clock: &Clock) -> Result<String, String> {
    let upstream = mesh.upstream("charge")?;
    let ((), waited) = eventually(clock, RECOVERY, || charge_once(upstream))?;
    let start = clock.now();
    charge_once(upstream)?;
    let took = clock.now().saturating_duration_since(start);
    let verdict = mesh.verdict("order", "charge", 80)?;
    if !verdict.allowed || verdict.policy != "charge-from-order.shop" {
        return Err(format!("the call passed, but the rules say: {}", verdict.what));
    }
    Ok(format!(
        "order → charge  POST /api/v1/charge  200 in {:.1} ms, allowed by {} rule {}\n\
         first secured call {:.0} ms after the start",
        took.as_secs_f64() * 1e3,
        verdict.policy,
        verdict.rule,
        (since_start + waited).as_secs_f64() * 1e3,
    ))
}

/// `GET http://<service>.shop…` through a proxy port that speaks as `identity`.
fn get_as(mesh: &DemoMesh, identity: &str, authority: &str) -> Result<Parts, String> {
    let socket = mesh.state_dir().join("run").join("agent.sock");
    let outcome = client::run(async {
        let mut agent = client::agent_at(&socket).await?;
        let request = SpeakRequest { identity: identity.to_owned() };
        let mut events = agent.speak(request).await?.into_inner();
        let event =
            events.message().await?.ok_or_else(|| CliError::internal("the agent gave no proxy port"))?;
        let port = u16::try_from(event.proxy_port).map_err(CliError::internal)?;
        let request = Request::get(format!("http://{authority}/"))
            .header("host", authority)
            .body(Full::new(Bytes::new()))
            .map_err(CliError::internal)?;
        let answer = exchange(port, request, Duration::from_secs(5), 0).await.map_err(CliError::internal)?;
        Ok(answer.head)
    });
    outcome.map_err(|error| error.faults()[0].what.clone())
}

/// Asserts a 403 with the code that the rules give, and returns the explanation.
fn expect_denied(mesh: &DemoMesh, source: &str, port: u32, authority: &str) -> Result<String, String> {
    let response = get_as(mesh, &format!("shop/{source}"), authority)?;
    let code =
        response.headers.get("x-weft-code").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    if response.status != 403 {
        return Err(format!("{source} → {authority} answered {} where 403 was due", response.status));
    }
    let verdict = mesh.verdict(source, "charge", port)?;
    if verdict.allowed || verdict.code != code {
        return Err(format!("refused with {code}, but the rules say {} {}", verdict.code, verdict.what));
    }
    let why: String = verdict.why.iter().map(|line| format!("\n{line}")).collect();
    Ok(format!("{source} → {authority}  403  {code} {}{why}\n(weft explain {code})", verdict.what))
}

fn denied_port(mesh: &DemoMesh, _clock: &Clock) -> Result<String, String> {
    expect_denied(mesh, "order", 9090, "charge.shop.svc.weft:9090")
}

fn denied_caller(mesh: &DemoMesh, _clock: &Clock) -> Result<String, String> {
    expect_denied(mesh, "guest", 80, "charge.shop.svc.weft")
}

/// Dials agent b with a certificate of the right name from an authority that the mesh does not know, and with none.
fn stranger(mesh: &DemoMesh, sabotage: Option<Sabotage>) -> Result<String, String> {
    let address = mesh.b_tunnels()?;
    if breaks(sabotage, Sabotage::TrustStranger) {
        let label = mesh.label_of("spiffe://demo.weft.internal/ns/shop/sa/charge")?;
        return match mesh.a.dial_as_local("shop/order", address, &label) {
            Ok(()) => {
                Err("a caller with a certificate of the mesh was accepted, as sabotage asked".to_owned())
            }
            Err(why) => Err(format!("the sabotage itself failed: {why}")),
        };
    }
    let name = "spiffe://demo.weft.internal/ns/shop/sa/order";
    // The name on the wire is no secret: the stranger dials as an agent that has seen it would.
    let label = mesh.label_of("spiffe://demo.weft.internal/ns/shop/sa/charge")?;
    let forged = probe::stranger(address, &label, probe::Certificate::ForeignAuthority(name))?;
    let bare = probe::stranger(address, &label, probe::Certificate::None)?;
    match (forged, bare) {
        (probe::Outcome::Refused(forged), probe::Outcome::Refused(bare)) => Ok(format!(
            "a certificate for order from another authority: refused ({forged})\nno certificate: refused ({bare})"
        )),
        (probe::Outcome::Accepted, _) => Err("a certificate of an unknown authority was accepted".to_owned()),
        (_, probe::Outcome::Accepted) => Err("a caller without a certificate was accepted".to_owned()),
    }
}

fn echo(mesh: &DemoMesh, clock: &Clock) -> Result<String, String> {
    let upstream = mesh.upstream("ledger")?;
    // The first check has waited for charge alone; agent b registers its two services one after the other.
    eventually(clock, RECOVERY, || load::answers(upstream))?;
    let start = clock.now();
    let sum = load::echo(upstream, ECHO_BYTES)?;
    let took = clock.now().saturating_duration_since(start).as_secs_f64();
    let rate = ECHO_BYTES as f64 * 2.0 * 8.0 / took / 1e9;
    Ok(format!("order → ledger  SHA-256 {sum}… equal both ways, {rate:.2} Gbit/s there and back"))
}

fn rotation(mesh: &mut DemoMesh, sabotage: Option<Sabotage>, clock: &Clock) -> Result<String, String> {
    let before = serials(mesh)?;
    let load = Background::start(mesh.upstream("charge")?, 4);
    eventually(clock, RECOVERY, || enough(load.done(), 50))?;
    mesh.a.rotate_now();
    if let Some(b) = mesh.b() {
        b.rotate_now();
    }
    if breaks(sabotage, Sabotage::CutRotation) {
        mesh.kill_b();
    }
    let rotated = eventually(clock, RECOVERY, || match serials(mesh)? {
        now if now.iter().zip(&before).all(|(now, before)| now != before) => Ok(()),
        _ => Err("a certificate has not changed".to_owned()),
    });
    let goal = load.done() + 100;
    let went_on = eventually(clock, RECOVERY, || enough(load.done(), goal));
    let (done, failed) = load.finish();
    rotated?;
    went_on?;
    if failed > 0 {
        return Err(format!("{failed} of {} calls failed while certificates changed", done + failed));
    }
    Ok(format!("{} certificates replaced, 0 of {done} calls failed", before.len()))
}

fn enough(done: u64, goal: u64) -> Result<(), String> {
    if done >= goal { Ok(()) } else { Err(format!("{done} of {goal} calls done")) }
}

/// The serial numbers of every workload's certificate, in a fixed order.
fn serials(mesh: &DemoMesh) -> Result<Vec<String>, String> {
    let b = mesh.b().ok_or("agent b does not run")?;
    let mut found: Vec<_> = mesh.a.svid_serials().into_iter().chain(b.svid_serials()).collect();
    found.sort();
    Ok(found.into_iter().map(|(identity, serial)| format!("{identity} {serial}")).collect())
}

fn agent_restart(mesh: &mut DemoMesh, sabotage: Option<Sabotage>, clock: &Clock) -> Result<String, String> {
    let upstream = mesh.upstream("charge")?;
    let load = Background::start(upstream, 2);
    eventually(clock, RECOVERY, || enough(load.done(), 20))?;
    mesh.kill_b();
    if !breaks(sabotage, Sabotage::NoRestart) {
        mesh.restart_b()?;
    }
    let back = eventually(clock, RECOVERY, || charge_once(upstream));
    let (_, during) = load.finish();
    let ((), took) = back?;
    let (failed, last) = load::calls(upstream, CALLS_AFTER)?;
    if failed > 0 {
        return Err(format!("{failed} of {CALLS_AFTER} calls failed after it: {}", last.unwrap_or_default()));
    }
    Ok(format!(
        "calls work again {:.0} ms after the restart; {during} failed while it was away, 0 of {CALLS_AFTER} after it",
        took.as_secs_f64() * 1e3
    ))
}

fn registry_stopped(
    mesh: &mut DemoMesh,
    sabotage: Option<Sabotage>,
    clock: &Clock,
) -> Result<String, String> {
    let upstream = mesh.upstream("charge")?;
    mesh.kill_server();
    if breaks(sabotage, Sabotage::StopAll) {
        mesh.kill_b();
    }
    let (failed, last) = load::calls(upstream, CALLS_AFTER)?;
    mesh.restart_server()?;
    if failed > 0 {
        return Err(format!(
            "{failed} of {CALLS_AFTER} calls failed without it: {}",
            last.unwrap_or_default()
        ));
    }
    let (_, took) = eventually(clock, RECOVERY, || {
        if mesh.a.is_server_connected() {
            Ok(())
        } else {
            Err("agent a has not come back to the server".to_owned())
        }
    })?;
    Ok(format!(
        "0 of {CALLS_AFTER} calls failed without it; agents were back {:.0} ms after its return",
        took.as_secs_f64() * 1e3
    ))
}
