//! Disks that fill up and break under a server and under an agent (OPS-02).
//!
//! What must be seen: writing is refused with a code that names the disk, reading and every call go on, and with the
//! room or the disk everything comes back by itself; nothing acknowledged is lost.

use std::time::Duration;

use weft_tests::app::{self, loopback};
use weft_tests::eventually::{Stopwatch, eventually};
use weft_tests::load::{self, Echo, Flow, Traffic, failed_since};
use weft_tests::manifest::{allow, deny, service};
use weft_tests::mesh::{CTL, Mesh, Workload};
use weft_tests::process::{Finished, Process};

/// nginx of "charge" and the echo server of "echo" on hostb, and where "order" on hosta reaches them.
const HTTP: u16 = 8081;
const ECHO: u16 = 8082;
const TO_CHARGE: u16 = 9001;
const TO_ECHO: u16 = 9002;

/// More than fit into the file of a store on a disk of [`DISK_MIB`].
const MOST_APPLIES: u32 = 200;
/// A store needs its own size again when it is saved anew.
const DISK_MIB: u64 = 48;
/// From the end of the fault until writing works: the store tries again after a second.
const BACK: Duration = Duration::from_secs(5);
/// A refusal comes at once, not after a time-out.
const REFUSED_WITHIN: Duration = Duration::from_secs(5);
/// So soon a restart is over.
const RESTART: Duration = Duration::from_secs(2);

#[test]
fn ops_02_a_full_disk_of_the_server_refuses_changes_and_nothing_else() {
    let mut scene = Scene::start(CTL);
    let flow = scene.flow();
    let traffic = scene.traffic();

    scene.mesh.disk(CTL).fill();
    // Its file has some room in it still: what fits is taken, and must be kept.
    let mut acknowledged = 0;
    let refused = loop {
        let done = apply(&scene.mesh, &large(&format!("fills-{acknowledged}")));
        if done.code() != Some(0) {
            break done;
        }
        acknowledged += 1;
        assert!(acknowledged < MOST_APPLIES, "a full disk refuses at last");
    };
    refused_for_the_disk(&refused);
    assert!(names(&scene.mesh).contains("/echo"), "reading works");
    assert_eq!(flow.ended(), None, "an existing flow does not notice");

    scene.mesh.disk(CTL).make_room();
    eventually("changes are taken again", BACK, || taken(&apply(&scene.mesh, &marker("after-full"))));
    let failed = failed_since(&traffic.stop(), Duration::ZERO);
    assert!(failed.is_empty(), "calls do not depend on the server's disk: {failed:?}");

    scene.mesh.kill_server();
    scene.mesh.start_server();
    scene.mesh.wait_for_server();
    let kept = names(&scene.mesh);
    assert!(kept.contains("/after-full"), "{kept}");
    for number in 0..acknowledged {
        assert!(kept.contains(&format!("/fills-{number}\n")), "fills-{number} was acknowledged: {kept}");
    }
}

#[test]
fn ops_02_a_server_whose_disk_breaks_goes_on_reading_and_starts_again_with_all_it_acknowledged() {
    let mut scene = Scene::start(CTL);
    taken(&apply(&scene.mesh, &marker("before"))).unwrap();
    let traffic = scene.traffic();

    scene.mesh.disk(CTL).fail();
    refused_for_the_disk(&apply(&scene.mesh, &marker("while-broken")));
    refused_for_the_disk(&apply(&scene.mesh, &marker("while-broken")));
    assert!(names(&scene.mesh).contains("/before"), "reading works");

    scene.mesh.kill_server();
    scene.mesh.disk(CTL).repair();
    let watch = Stopwatch::start();
    scene.mesh.start_server();
    scene.mesh.wait_for_server();
    assert!(watch.elapsed() < RESTART, "{:?}", watch.elapsed());
    assert!(names(&scene.mesh).contains("/before"), "what was acknowledged is there");
    taken(&apply(&scene.mesh, &marker("after"))).unwrap();
    let failed = failed_since(&traffic.stop(), Duration::ZERO);
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn ops_02_an_agent_on_a_full_or_broken_disk_serves_follows_the_rules_and_starts_again() {
    let mut scene = Scene::start("hosta");
    let flow = scene.flow();
    let traffic = scene.traffic();

    scene.mesh.disk("hosta").fill();
    // Rules come into force although they cannot be kept for a restart.
    scene.mesh.apply(&deny("order", "echo"));
    eventually("the rule cuts the flow", BACK, || flow.ended().ok_or_else(|| "open".to_owned()));
    scene.mesh.delete(&deny("order", "echo"));
    eventually("and is gone again", BACK, || scene.echo());
    let failed = failed_since(&traffic.stop(), Duration::ZERO);
    assert!(failed.is_empty(), "{failed:?}");

    // A restart must not need the disk either: the agent has its identity, and only writes down that it started.
    scene.mesh.kill_agent("hosta");
    scene.mesh.start_agent("hosta");
    eventually("a call after the restart", RESTART, || scene.call());

    let traffic = scene.traffic();
    scene.mesh.disk("hosta").fail();
    scene.mesh.apply(&deny("order", "echo"));
    eventually("rules are followed", BACK, || match scene.echo() {
        Ok(()) => Err("still allowed".to_owned()),
        Err(_) => Ok(()),
    });
    let failed = failed_since(&traffic.stop(), Duration::ZERO);
    assert!(failed.is_empty(), "{failed:?}");
}

/// A mesh in which one host's state has a disk of its own.
struct Scene {
    mesh: Mesh,
    _programs: Vec<Process>,
}

impl Scene {
    #[track_caller]
    fn start(disk_of: &str) -> Self {
        let order = Workload::new("order").upstream("charge", 80, TO_CHARGE).upstream("echo", 7, TO_ECHO);
        let mesh = Mesh::builder()
            .disk(disk_of, DISK_MIB)
            .manifest(service("charge", &[("http", 80, "http")]))
            .manifest(service("echo", &[("echo", 7, "tcp")]))
            .manifest(allow("order", "charge"))
            .manifest(allow("order", "echo"))
            .node("hosta", &[order])
            .node(
                "hostb",
                &[Workload::new("charge").serves("http", HTTP), Workload::new("echo").serves("echo", ECHO)],
            )
            .start();
        let hostb = mesh.host("hostb");
        let programs =
            vec![app::nginx(hostb, HTTP, hostb.folder()), app::script(hostb, "echo.py", ECHO, &[])];
        let scene = Self { mesh, _programs: programs };
        scene.mesh.wait_for_call("the first call", || scene.call());
        scene.mesh.wait_for_call("the first echo", || scene.echo());
        scene
    }

    fn call(&self) -> Result<(), String> {
        self.mesh.host("hosta").enter(|| load::call(loopback(TO_CHARGE)))
    }

    fn echo(&self) -> Result<(), String> {
        Echo::open(self.mesh.host("hosta"), loopback(TO_ECHO))?.exchange(b"echo")
    }

    #[track_caller]
    fn flow(&self) -> Flow {
        Flow::open(self.mesh.host("hosta"), loopback(TO_ECHO))
    }

    fn traffic(&self) -> Traffic {
        Traffic::start(self.mesh.host("hosta"), loopback(TO_CHARGE))
    }
}

/// An object of 200 KiB, near the most that one may have.
fn large(name: &str) -> String {
    let annotation =
        format!("metadata: {{annotations: {{example.org/fill: \"{}\"}}, ", "v".repeat(200 << 10));
    marker(name).replace("metadata: {", &annotation)
}

fn marker(name: &str) -> String {
    service(name, &[("http", 80, "http")])
}

fn apply(mesh: &Mesh, manifest: &str) -> Finished {
    mesh.weft(CTL, &["apply", "-f", "-"]).input(manifest).run()
}

fn taken(done: &Finished) -> Result<(), String> {
    if done.code() == Some(0) { Ok(()) } else { Err(done.to_string()) }
}

/// W6005 says that nothing was changed, W6006 that it is not known; both name the store, at once.
#[track_caller]
fn refused_for_the_disk(done: &Finished) {
    let said = format!("{}{}", done.stdout, done.stderr);
    assert_ne!(done.code(), Some(0), "{done}");
    // The audit log stands on the same disk: what could not be written down is not tried.
    let codes = ["W6005", "W6006", "W6054"];
    assert!(codes.iter().any(|code| said.contains(code)), "{done}");
    assert!(done.took < REFUSED_WITHIN, "{:?}: {done}", done.took);
}

/// The names of all services.
fn names(mesh: &Mesh) -> String {
    mesh.on_server(&["get", "services", "-n", "shop", "-o", "name"]).expect_success().stdout
}
