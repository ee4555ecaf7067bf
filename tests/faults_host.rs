//! What a host does to its processes: no descriptors, no time to run, half a network, another tenant of an address, and
//! who may look into their memory (OPS-02, OPS-03, OPS-05).
//!
//! `WEFT_LONG_STOP` sets for how many seconds a process is stopped (8 otherwise).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use weft_tests::app::{self, loopback};
use weft_tests::chance;
use weft_tests::eventually::{Stopwatch, eventually, throughout};
use weft_tests::load::{self, Echo, Flow, Traffic, failed_since};
use weft_tests::manifest::{allow, deny, service};
use weft_tests::mesh::{CTL, Mesh, Workload};
use weft_tests::netns::Fault;
use weft_tests::person::Person;
use weft_tests::process::{Finished, Process};

/// nginx of "charge" and echo server of "echo" on hostb, echo server of "other" on hostc; where "order" on hosta reaches
/// them.
const HTTP: u16 = 8081;
const ECHO: u16 = 8082;
const TO_CHARGE: u16 = 9001;
const TO_ECHO: u16 = 9002;
const TO_OTHER: u16 = 9003;

/// New flows work within this time of the end of a fault.
const BACK: Duration = Duration::from_secs(2);
/// A call over a network that answers nothing fails with its code within this time: the connect timeout is 5 s.
const REFUSED_WITHIN: Duration = Duration::from_secs(8);
/// What a quiet moment is, to see that nothing happens in it.
const A_MOMENT: Duration = Duration::from_secs(2);
/// A tunnel without a packet from its peer ends after 30 s (decisions.md).
const IDLE: Duration = Duration::from_secs(30);

#[test]
fn ops_02_an_agent_out_of_descriptors_keeps_its_flows_and_recovers() {
    let mut scene = Scene::start();
    let flow = scene.flow(TO_ECHO);
    let pid = scene.mesh.agent("hosta").pid();
    let limit = soft_limit(pid);

    set_limit(pid, first_free(pid));
    let before = cpu_time(pid);
    let mut waiting =
        Echo::open(scene.mesh.host("hosta"), loopback(TO_ECHO)).expect("the kernel holds it ready");
    throughout("the flow goes on", A_MOMENT, || flow.ended().map_or(Ok(()), |end| Err(format!("{end:?}"))));
    let burnt = cpu_time(pid).saturating_sub(before);
    assert!(burnt < A_MOMENT / 2, "it waits for descriptors and does not spin: {burnt:?}");

    set_limit(pid, limit);
    waiting.exchange(b"patience").expect("who waited is served");
    eventually("new flows work", BACK, || scene.call());
    assert_eq!(flow.ended(), None);
}

#[test]
fn ops_02_a_server_out_of_descriptors_stops_no_call_and_recovers() {
    let mut scene = Scene::start();
    let traffic = scene.traffic();
    let pid = scene.mesh.server().pid();
    let limit = soft_limit(pid);

    set_limit(pid, first_free(pid));
    let before = cpu_time(pid);
    let refused = scene.mesh.weft(CTL, &["--timeout", "2s", "get", "services", "-n", "shop"]).run();
    assert_ne!(refused.code(), Some(0), "{refused}");
    assert!(code_in(&refused).is_some(), "it says what is wrong: {refused}");
    assert!(cpu_time(pid).saturating_sub(before) < Duration::from_secs(1), "it waits and does not spin");

    set_limit(pid, limit);
    eventually("it answers again", BACK, || taken(&scene.mesh.on_server(&["get", "services", "-n", "shop"])));
    let failed = failed_since(&traffic.stop(), Duration::ZERO);
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn ops_03_a_server_that_stood_still_goes_on_and_no_call_noticed() {
    let mut scene = Scene::start();
    let flow = scene.flow(TO_ECHO);
    let traffic = scene.traffic();

    scene.mesh.server().signal(Signal::SIGSTOP);
    let late = scene.mesh.weft(CTL, &["--timeout", "2s", "get", "services", "-n", "shop"]).run();
    assert!(
        late.code() != Some(0) && code_in(&late).is_some(),
        "a question has a bound and an answer: {late}"
    );
    throughout("nothing ends while it stands still", stop_time(), || {
        flow.ended().map_or(Ok(()), |end| Err(format!("{end:?}")))
    });
    scene.mesh.server().signal(Signal::SIGCONT);
    let resumed = flow.now();
    scene.mesh.apply(&deny("order", "echo"));
    // Agents that lost it meanwhile come back within their back-off and a second of keep-alive.
    let (ended, _) = eventually("policy resumes", BACK * 2, || flow.ended().ok_or_else(|| "open".to_owned()));
    println!("policy resumed {:?} after SIGCONT", ended.saturating_sub(resumed));
    let failed = failed_since(&traffic.stop(), Duration::ZERO);
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn ops_03_an_agent_that_stood_still_serves_again_and_others_did_not_notice() {
    let mut scene = Scene::start();
    let (flow, untouched) = (scene.flow(TO_ECHO), scene.flow(TO_OTHER));

    scene.mesh.agent("hostb").signal(Signal::SIGSTOP);
    let refused = scene.weft_call();
    assert!(refused.code() != Some(0) && code_in(&refused).is_some(), "{refused}");
    assert!(refused.took < REFUSED_WITHIN, "{:?}: {refused}", refused.took);
    throughout("flows to others go on", stop_time().saturating_sub(refused.took), || {
        untouched.ended().map_or(Ok(()), |end| Err(format!("{end:?}")))
    });
    scene.mesh.agent("hostb").signal(Signal::SIGCONT);
    let watch = Stopwatch::start();
    eventually("it serves again", BACK, || scene.call());
    println!("served {:?} after SIGCONT", watch.elapsed());
    if stop_time() < IDLE {
        assert_eq!(flow.ended(), None, "shorter than the idle time-out: the flow lives");
    }
    assert_eq!(untouched.ended(), None);
}

#[test]
fn a_network_that_carries_one_direction_only_gives_a_code_in_time_and_heals() {
    let scene = Scene::start();
    let hostb = scene.mesh.host("hostb").clone();
    for fault in [Fault::Deaf(hostb.clone()), Fault::Mute(hostb)] {
        // Its calls begin on a tunnel that was heard a moment ago: their first bytes go out ahead of the answer.
        let (untouched, traffic) = (scene.flow(TO_OTHER), scene.traffic());
        scene.mesh.set_faults(std::slice::from_ref(&fault));
        let refused = scene.weft_call();
        assert!(refused.code() != Some(0) && code_in(&refused).is_some(), "{fault:?}: {refused}");
        assert!(refused.took < REFUSED_WITHIN, "{fault:?}, {:?}: {refused}", refused.took);
        for call in failed_since(&traffic.stop(), Duration::ZERO) {
            assert!(call.ended - call.began < REFUSED_WITHIN, "{fault:?}: {call:?}");
        }
        scene.mesh.set_faults(&[]);
        eventually("calls work again", BACK + Duration::from_secs(3), || scene.call());
        assert_eq!(untouched.ended(), None, "{fault:?}: another host is untouched");
    }
}

#[test]
fn an_agent_replaced_on_its_address_by_another_node_gets_no_call_of_the_first() {
    let mut scene = Scene::start();
    let token = scene.mesh.token("tenant", &[]);
    scene.mesh.kill_agent("hostb");
    // Another node has the address now. A program that would answer is behind it, under another identity.
    let state = scene.mesh.state("hostb");
    fs::remove_dir_all(state.join("agent")).unwrap();
    let workloads = format!(
        "workloads:\n  - {{service: tenant, namespace: shop, ports: {{http: \"127.0.0.1:{HTTP}\"}}, uid: 0}}\n"
    );
    scene.mesh.write_agent_config("hostb", "tenant", &workloads);
    scene.mesh.join("hostb", &token).expect_success();
    scene.mesh.start_agent("hostb");
    scene.mesh.wait_for_agent("hostb");

    let watch = Stopwatch::start();
    let refused = scene.weft_call();
    assert!(refused.code() != Some(0) && code_in(&refused).is_some(), "{refused}");
    throughout("and none gets through", A_MOMENT, || match scene.call() {
        Ok(()) => Err("a call of charge was answered at its old address".to_owned()),
        Err(_) => Ok(()),
    });
    // The service moves to hostc: callers find it there.
    let hostc = scene.mesh.host("hostc").clone();
    let program = app::nginx(&hostc, HTTP, hostc.folder());
    let workloads = "workloads:\n  - {service: charge, namespace: shop, ports: {http: \"127.0.0.1:8081\"}, uid: 0}\n\
                     \x20 - {service: other, namespace: shop, ports: {echo: \"127.0.0.1:8082\"}, uid: 0}\n";
    scene.mesh.write_agent_config("hostc", "hostc", workloads);
    scene.mesh.kill_agent("hostc");
    scene.mesh.start_agent("hostc");
    // The tunnel to the first agent ends no later than by its idle time-out.
    eventually("charge is found where it is now", IDLE + BACK * 5, || scene.call());
    println!("found after {:?}", watch.elapsed());
    drop(program);
}

#[test]
fn ops_05_server_and_agent_leave_no_core_file() {
    let mut scene = Scene::start();
    for pid in [scene.mesh.server().pid(), scene.mesh.agent("hosta").pid()] {
        assert_eq!(limit_of(pid, "Max core file size"), "0", "no core file");
    }
}

#[test]
fn ops_05_the_memory_of_a_persons_mesh_is_not_open_to_their_other_programs() {
    let person = Person::new();
    let state = person.home().join("state");
    let state = state.to_string_lossy().into_owned();
    person.weft(&["up", "--state-dir", &state]).run().expect_success();
    let pid = fs::read_to_string(format!("{state}/weft.pid")).unwrap();
    let pid = pid.trim().parse().unwrap();

    assert_eq!(limit_of(pid, "Max core file size"), "0", "no core file");
    let owner = fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid();
    assert_eq!(owner, 0, "it runs as somebody else, and only root may open its memory");
    let peek = format!("head -c1 /proc/{pid}/maps");
    let peek = person.host().program("sh").args(["-c", &peek]).as_user(4242).run();
    assert_ne!(peek.code(), Some(0), "{peek}");
    person.weft(&["down", "--state-dir", &state]).run().expect_success();
}

/// Three hosts and their programs.
struct Scene {
    mesh: Mesh,
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
            .manifest(service("tenant", &[("http", 80, "http")]))
            .manifest(allow("order", "charge"))
            .manifest(allow("order", "echo"))
            .manifest(allow("order", "other"))
            .manifest(allow("order", "tenant"))
            .node("hosta", &[order])
            .node(
                "hostb",
                &[Workload::new("charge").serves("http", HTTP), Workload::new("echo").serves("echo", ECHO)],
            )
            .node("hostc", &[Workload::new("other").serves("echo", ECHO)])
            .start();
        let (hostb, hostc) = (mesh.host("hostb"), mesh.host("hostc"));
        let programs = vec![
            app::nginx(hostb, HTTP, hostb.folder()),
            app::script(hostb, "echo.py", ECHO, &[]),
            app::script(hostc, "echo.py", ECHO, &[]),
        ];
        let scene = Self { mesh, _programs: programs };
        scene.mesh.wait_for_call("the first call", || scene.call());
        for port in [TO_ECHO, TO_OTHER] {
            scene.mesh.wait_for_call("the first echo", || scene.echo(port));
        }
        scene
    }

    fn call(&self) -> Result<(), String> {
        self.mesh.host("hosta").enter(|| load::call(loopback(TO_CHARGE)))
    }

    fn echo(&self, port: u16) -> Result<(), String> {
        Echo::open(self.mesh.host("hosta"), loopback(port))?.exchange(b"echo")
    }

    /// A call that says with a code why it failed.
    fn weft_call(&self) -> Finished {
        self.mesh.weft("hosta", &["call", "charge.shop", "/ok", "--as", "shop/order"]).run()
    }

    #[track_caller]
    fn flow(&self, port: u16) -> Flow {
        Flow::open(self.mesh.host("hosta"), loopback(port))
    }

    fn traffic(&self) -> Traffic {
        Traffic::start(self.mesh.host("hosta"), loopback(TO_CHARGE))
    }
}

/// For how long a process is stopped.
fn stop_time() -> Duration {
    Duration::from_secs(chance::number("WEFT_LONG_STOP").unwrap_or(8))
}

fn taken(done: &Finished) -> Result<(), String> {
    if done.code() == Some(0) { Ok(()) } else { Err(done.to_string()) }
}

/// The code of the catalogue in what a command said.
fn code_in(done: &Finished) -> Option<String> {
    let said = format!("{} {}", done.stdout, done.stderr);
    let is_code = |word: &&str| {
        word.len() == 5 && word.starts_with('W') && word[1..].chars().all(|digit| digit.is_ascii_digit())
    };
    said.split(|letter: char| !letter.is_ascii_alphanumeric()).find(is_code).map(ToOwned::to_owned)
}

/// The number that the next descriptor of a process will have.
fn first_free(pid: u32) -> u64 {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("root may look").flatten();
    let open: Vec<u64> = open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    (0..).find(|number| !open.contains(number)).expect("there are finitely many")
}

/// Lets a running process hold `files` descriptors and no more.
fn set_limit(pid: u32, files: u64) {
    let limits = format!("--nofile={files}:");
    let done = Command::new("prlimit").args(["--pid", &pid.to_string(), &limits]).output();
    let done = done.expect("prlimit is in util-linux");
    assert!(done.status.success(), "{done:?}");
}

fn soft_limit(pid: u32) -> u64 {
    limit_of(pid, "Max open files").parse().expect("a number of files")
}

/// The soft limit of that name, as /proc tells it.
fn limit_of(pid: u32, name: &str) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("the process runs");
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel has this limit");
    line.split_whitespace().next().expect("a value").to_owned()
}

/// The time of the processor that a process has used, in user and system mode.
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [fields[11], fields[12]].iter().map(|ticks| ticks.parse::<u64>().unwrap_or(0)).sum();
    // USER_HZ of Linux is 100.
    Duration::from_millis(ticks * 10)
}
