//! What a fault must look like from outside: the outcomes that the decisions of the project name.
//!
//! An agent killed: its flows end on both sides within 1 s of its restart, new ones work within 2 s,
//! flows of other agents do not notice. The server killed: no flow notices, and it is back within 2 s.

use std::net::SocketAddr;
use std::time::Duration;

use weft_tests::app::{self, loopback};
use weft_tests::eventually::{Stopwatch, eventually, throughout};
use weft_tests::load::{self, Echo, Flow, Traffic, failed_since};
use weft_tests::manifest::{allow, deny, service};
use weft_tests::mesh::{Mesh, Workload};
use weft_tests::netns::Fault;
use weft_tests::process::Process;

/// nginx of "charge" on hostb and hostc.
const HTTP: u16 = 8081;
/// The echo server of "echo" on hostb, and of "other" on hostc.
const ECHO: u16 = 8082;
/// Where "order" on hosta reaches charge, echo and other.
const TO_CHARGE: u16 = 9001;
const TO_ECHO: u16 = 9002;
const TO_OTHER: u16 = 9003;

/// Flows that carry traffic end within this time of the restart of a killed agent.
const FLOWS_END: Duration = Duration::from_secs(1);
/// New flows work within this time of a restart; so does what needs the server.
const BACK: Duration = Duration::from_secs(2);
/// What a quiet moment is, to see that nothing happens in it.
const A_MOMENT: Duration = Duration::from_secs(3);
/// Longer than the idle timeout of a tunnel (30 s).
const PAST_IDLE: Duration = Duration::from_secs(36);

#[test]
fn flows_of_a_killed_destination_agent_end_and_new_ones_work_after_its_restart() {
    let mut scene = Scene::start();
    let (hosta, flow) = (scene.mesh.host("hosta").clone(), scene.flow(TO_ECHO));
    let untouched = scene.flow(TO_OTHER);

    scene.mesh.kill_agent("hostb");
    scene.mesh.start_agent("hostb");
    let restarted = flow.now();
    let (ended, how) =
        eventually("the flow ends", FLOWS_END + A_MOMENT, || flow.ended().ok_or_else(|| "open".to_owned()));
    assert!(
        ended.saturating_sub(restarted) <= FLOWS_END,
        "ended {ended:?} ({how}), restarted at {restarted:?}"
    );
    scene.echo_closes(1);
    within(BACK + FLOWS_END, restarted, &flow, || Echo::open(&hosta, loopback(TO_ECHO))?.exchange(b"again"));
    let again = scene.flow(TO_ECHO);
    throughout("late news of the restart ends no flow of the new run", A_MOMENT, || {
        again.ended().map_or(Ok(()), |end| Err(format!("{end:?}")))
    });

    assert_eq!(untouched.ended(), None, "the flow to another agent is untouched");
}

#[test]
fn no_call_that_begins_after_the_restart_of_its_destination_fails() {
    let mut scene = Scene::start();
    let hosta = scene.mesh.host("hosta").clone();
    for round in 0..3 {
        // The tunnel is in use until the kill, so that nothing about it looks stale.
        let traffic = Traffic::start(&hosta, loopback(TO_CHARGE));
        eventually("calls go on", BACK, || {
            if traffic.now() > BACK / 8 { Ok(()) } else { Err("few".to_owned()) }
        });
        scene.mesh.kill_agent("hostb");
        scene.mesh.start_agent("hostb");
        scene.mesh.wait_for_agent("hostb");
        let ready = traffic.now();
        eventually("calls go on", BACK * 2, || {
            if traffic.now() > ready + BACK / 4 { Ok(()) } else { Err("few".to_owned()) }
        });
        let failed = failed_since(&traffic.stop(), ready);
        assert!(failed.is_empty(), "round {round}, ready at {ready:?}: {failed:?}");
    }
}

#[test]
fn flows_of_a_killed_source_agent_end_and_new_ones_work_after_its_restart() {
    let mut scene = Scene::start();
    let (hosta, flow) = (scene.mesh.host("hosta").clone(), scene.flow(TO_ECHO));

    scene.mesh.kill_agent("hosta");
    eventually("the program sees its connection end", FLOWS_END, || {
        flow.ended().ok_or_else(|| "open".to_owned())
    });
    scene.mesh.start_agent("hosta");
    let watch = Stopwatch::start();
    eventually("a new flow works", BACK, || Echo::open(&hosta, loopback(TO_ECHO))?.exchange(b"again"));
    assert!(watch.elapsed() <= BACK, "{:?}", watch.elapsed());
    scene.echo_closes(1);
}

#[test]
fn no_call_fails_while_the_server_is_killed_and_away() {
    let mut scene = Scene::start();
    let (hosta, flow) = (scene.mesh.host("hosta").clone(), scene.flow(TO_ECHO));
    let traffic = Traffic::start(&hosta, loopback(TO_CHARGE));

    scene.mesh.kill_server();
    throughout("the flow lives without a server", A_MOMENT, || {
        flow.ended().map_or(Ok(()), |end| Err(format!("{end:?}")))
    });
    scene.mesh.start_server();
    scene.mesh.wait_for_server();
    throughout("nothing happens when it returns", A_MOMENT, || {
        flow.ended().map_or(Ok(()), |end| Err(format!("{end:?}")))
    });

    let failed = failed_since(&traffic.stop(), Duration::ZERO);
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn policy_resumes_within_two_seconds_of_the_return_of_the_server() {
    let mut scene = Scene::start();
    let flow = scene.flow(TO_ECHO);

    scene.mesh.kill_server();
    scene.mesh.start_server();
    scene.mesh.wait_for_server();
    let back = flow.now();
    scene.mesh.apply(&deny("order", "echo"));
    let (ended, _) =
        eventually("the new policy cuts the flow", BACK, || flow.ended().ok_or_else(|| "open".to_owned()));

    assert!(ended.saturating_sub(back) <= BACK, "cut {:?} after the return", ended.saturating_sub(back));
}

#[test]
fn agents_that_restart_without_a_server_serve_from_what_they_kept() {
    let mut scene = Scene::start();
    let hosta = scene.mesh.host("hosta").clone();
    scene.mesh.kill_server();

    for node in ["hosta", "hostb"] {
        scene.mesh.kill_agent(node);
        scene.mesh.start_agent(node);
        eventually("a call works without a server", BACK, || hosta.enter(|| load::call(loopback(TO_CHARGE))));
    }
    assert!(hosta.enter(|| load::call(loopback(TO_CHARGE))).is_ok());
}

#[test]
fn an_agent_that_was_cut_off_past_the_idle_timeout_serves_again() {
    let scene = Scene::start();
    let (hosta, hostb) = (scene.mesh.host("hosta").clone(), scene.mesh.host("hostb").clone());
    let flow = scene.flow(TO_ECHO);
    let untouched = scene.flow(TO_OTHER);

    scene.mesh.set_faults(&[Fault::Cut(hostb)]);
    eventually("the flow over the cut ends", PAST_IDLE, || flow.ended().ok_or_else(|| "open".to_owned()));
    throughout("the other host is untouched", A_MOMENT, || {
        untouched.ended().map_or(Ok(()), |end| Err(format!("{end:?}")))
    });
    scene.mesh.set_faults(&[]);

    eventually("calls work again", Duration::from_secs(5), || {
        Echo::open(&hosta, loopback(TO_ECHO))?.exchange(b"again")
    });
}

#[test]
fn blocked_udp_is_named_within_five_seconds() {
    let scene = Scene::start();
    scene.mesh.set_faults(&[Fault::NoUdp]);
    // A tunnel that stands would hide the fault, so the caller starts anew.
    let mut mesh = scene.mesh;
    mesh.kill_agent("hosta");
    mesh.start_agent("hosta");
    mesh.wait_for_agent("hosta");

    let call = mesh.weft("hosta", &["call", "charge.shop", "/ok", "--as", "shop/order"]).run();

    assert_ne!(call.code(), Some(0), "{call}");
    assert!(call.took < Duration::from_secs(5), "{:?}: {call}", call.took);
    let said = format!("{}{}", call.stdout, call.stderr);
    assert!(said.contains("W1003") && said.contains("UDP"), "{call}");
}

/// A mesh with three hosts and their programs.
struct Scene {
    mesh: Mesh,
    echo: Process,
    _programs: Vec<Process>,
}

impl Scene {
    #[track_caller]
    fn start() -> Self {
        let order = Workload::new("order")
            .upstream("charge", 80, TO_CHARGE)
            .upstream("echo", 7, TO_ECHO)
            .upstream("other", 7, TO_OTHER);
        let mesh = Mesh::builder()
            .manifest(service("charge", &[("http", 80, "http")]))
            .manifest(service("echo", &[("echo", 7, "tcp")]))
            .manifest(service("other", &[("echo", 7, "tcp")]))
            .manifest(allow("order", "charge"))
            .manifest(allow("order", "echo"))
            .manifest(allow("order", "other"))
            .node("hosta", &[order])
            .node(
                "hostb",
                &[Workload::new("charge").serves("http", HTTP), Workload::new("echo").serves("echo", ECHO)],
            )
            .node("hostc", &[Workload::new("other").serves("echo", ECHO)])
            .start();
        let (hostb, hostc) = (mesh.host("hostb"), mesh.host("hostc"));
        let echo = app::script(hostb, "echo.py", ECHO, &[]);
        let programs =
            vec![app::nginx(hostb, HTTP, hostb.folder()), app::script(hostc, "echo.py", ECHO, &[])];
        let hosta = mesh.host("hosta");
        mesh.wait_for_call("the first call", || hosta.enter(|| load::call(loopback(TO_CHARGE))));
        for target in [TO_ECHO, TO_OTHER].map(loopback) {
            mesh.wait_for_call("the first echo", || first_echo(&mesh, target));
        }
        Self { mesh, echo, _programs: programs }
    }

    #[track_caller]
    fn flow(&self, port: u16) -> Flow {
        Flow::open(self.mesh.host("hosta"), loopback(port))
    }

    /// Waits until at most `left` connections are open on the echo server of hostb: those of new flows.
    #[track_caller]
    fn echo_closes(&self, left: usize) {
        eventually("the flow ends on the side of the server too", FLOWS_END + BACK, || {
            let text = self.echo.stdout();
            let open = text.matches("open ").count() - text.matches("closed ").count();
            if open <= left { Ok(()) } else { Err(format!("{open} open")) }
        });
    }
}

/// Waits until `look` succeeds, at most until `limit` after `from` on the watch of `flow`.
#[track_caller]
fn within(limit: Duration, from: Duration, flow: &Flow, look: impl FnMut() -> Result<(), String>) {
    let left = (from + limit).saturating_sub(flow.now());
    eventually("a new flow works", left, look);
}

fn first_echo(mesh: &Mesh, target: SocketAddr) -> Result<(), String> {
    Echo::open(mesh.host("hosta"), target)?.exchange(b"first")
}
