//! Several users of one host: what each may run and speak as, and what none can borrow from the agent.
//!
//! The agent runs as root and its socket's folder is open to everybody, as an administrator would do it for a group.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use weft_tests::app::{self, loopback, wait_for_port};
use weft_tests::eventually::eventually;
use weft_tests::manifest::{NAMESPACE, TRUST_DOMAIN, allow, service};
use weft_tests::mesh::{CTL, Mesh, Workload};
use weft_tests::netns::Host;
use weft_tests::person::Person;
use weft_tests::process::{Finished, Process, Program};

/// A user whom the enrollment names, and one whom it does not.
const ANN: u32 = 4_242;
const BOB: u32 = 4_343;
const NODE: &str = "hosta";
/// Where the program of "charge" listens, and the upstream of root's own workload that leads to it.
const LOCAL: u16 = 8081;
const UPSTREAM: u16 = 9001;
const SOON: Duration = Duration::from_secs(10);

#[test]
fn wl_02_only_users_whom_the_enrollment_names_run_an_identity() {
    let scene = Scene::start(&[]);
    let issued = scene.issued();
    for (user, identity) in [(BOB, "order"), (ANN, "charge"), (BOB, "charge")] {
        let refused = scene.weft(user, &["run", "--service", identity, "--", "true"]).run();
        assert!(names(&refused, "W2206").is_ok(), "{user} {identity}: {refused}");
    }
    assert_eq!(scene.issued(), issued, "nothing was issued for a user who may not have it");
    scene.weft(ANN, &["run", "--service", "order", "--", "true"]).run().expect_success();
    assert!(scene.issued() > issued);
}

#[test]
fn wl_02_what_one_user_holds_is_refused_to_another_that_is_named_too() {
    let scene = Scene::start(&[BOB]);
    let _order = scene.holds(ANN, &["--service", "order"]);
    let run = scene.weft(BOB, &["run", "--service", "order", "--", "true"]).run();
    assert!(names(&run, "W2206").is_ok(), "{run}");
    let call = scene.weft(BOB, &["call", "charge", "/", "--as", "shop/order"]).run();
    assert!(names(&call, "W2206").is_ok(), "{call}");

    let status = |user| scene.weft(user, &["agent", "status"]).run();
    let (own, other) = (status(ANN), status(BOB));
    assert!(format!("{own}").contains("sa/order"), "{own}");
    assert!(!format!("{other}").contains("sa/order"), "{other}");
}

#[test]
fn explain_last_tells_the_caller_of_the_callers_host_and_nobody_else() {
    let scene = Scene::start(&[]);
    let denied = scene.order("curl -s http://charge/");
    assert!(denied.stdout.contains("W2101"), "{denied}");
    let told = scene.weft(ANN, &["explain", "last"]).run();
    let text = told.to_string();
    assert!(text.contains("W2101") && text.contains("sa/order"), "{text}");
    let other = scene.weft(BOB, &["explain", "last"]).run().to_string();
    assert!(!other.contains("W2101"), "{other}");
}

#[test]
fn http_15_egress_does_not_lead_to_ports_that_trust_the_agents_user() {
    let scene = Scene::start(&[]);
    scene.mesh.apply(&allow("backup", "charge"));
    scene.mesh.apply(&egress("Allow"));
    let roots =
        || succeeds(&app::curl(scene.mesh.host(NODE)).arg(format!("http://127.0.0.1:{UPSTREAM}/")).run());
    eventually("root's own upstream works", SOON, roots);

    let address = scene.mesh.host(NODE).ip4().to_string();
    for inward in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254", &address] {
        for (port, path) in [(UPSTREAM, "/"), (7401, "/config_dump")] {
            let to = format!("http://{inward}:{port}{path}");
            let got = scene.order(&format!("curl -sv --max-time 10 --noproxy none --proxytunnel '{to}'"));
            assert_ne!(got.code(), Some(0), "{to}: {got}");
            assert!(got.stderr.contains("W1013"), "{to}: {got}");
        }
    }
}

#[test]
fn t1_a_port_of_the_agent_is_no_program_of_a_workload() {
    let scene = Scene::start(&[]);
    scene.mesh.apply(&allow("backup", "charge"));
    scene.mesh.apply(&allow("order", "order"));
    for port in [UPSTREAM, 7401, 7402, 7480] {
        let port = port.to_string();
        let refused = scene.weft(ANN, &["run", "--service", "order", "--port", &port, "--", "true"]).run();
        assert_ne!(refused.code(), Some(0), "{port}: {refused}");
        assert!(refused.stderr.contains("not of a program"), "{port}: {refused}");
    }
    // The port becomes the agent's after the workload named it: the connection is the agent's, and proves nobody.
    let later = 9002;
    let _order = scene.holds(ANN, &["--service", "order", "--port", &later.to_string()]);
    let upstream = format!("charge={later}");
    let _backup = scene.holds(0, &["--service", "backup", "--upstream", &upstream]);
    wait_for_port(scene.mesh.host(NODE), loopback(later), SOON);
    let roots =
        || succeeds(&app::curl(scene.mesh.host(NODE)).arg(format!("http://127.0.0.1:{later}/")).run());
    eventually("root's own upstream works", SOON, roots);

    let own = || scene.weft(ANN, &["call", "order", "/", "--as", "shop/order", "-n", NAMESPACE]).run();
    eventually("the call is allowed and leads nowhere", SOON, || {
        let called = own();
        let text = called.to_string();
        assert!(!text.contains("Directory listing"), "{called}");
        if text.contains("W2101") || text.contains("W1005") { Err(text) } else { Ok(()) }
    });
    assert_ne!(own().code(), Some(0));
}

#[test]
fn a_live_egress_flow_is_cut_when_the_mode_becomes_deny() {
    let scene = Scene::start(&[]);
    scene.mesh.apply(&egress("Allow"));
    let outside = scene.mesh.host(CTL);
    let server =
        "import socket, time; s = socket.create_server(('0.0.0.0', 8081)); c = s.accept(); time.sleep(600)";
    let _server = outside.program(app::python()).args(["-c", server]).start();
    wait_for_listener(outside, LOCAL);
    // One line for the proxy's answer, one for the end of the connection.
    let script = format!(
        "proxy=${{http_proxy#http://}}; exec 3<>/dev/tcp/${{proxy%%:*}}/${{proxy##*:}}; \
         printf 'CONNECT {}:{LOCAL} HTTP/1.1\\r\\n\\r\\n' >&3; read -r line <&3; echo \"$line\"; cat <&3; echo ended",
        outside.ip4()
    );
    let client = scene.weft(ANN, &["run", "--service", "order", "--", "bash", "-c", &script]).start();
    let says = |word: &str| if client.stdout().contains(word) { Ok(()) } else { Err(client.tail()) };
    eventually("the connection stands", SOON, || says(" 200 "));
    scene.mesh.apply(&egress("Deny"));
    eventually("the connection is cut", SOON, || says("ended"));
}

#[test]
fn sixty_kills_of_weft_run_leave_no_workload_and_no_key() {
    let person = Person::new();
    person.weft(&["up"]).run().expect_success();
    for round in 0_u64..60 {
        let run = person.weft(&["run", "--service", "order", "--", "sleep", "600"]).start();
        std::thread::sleep(Duration::from_millis(5 + (round * 7) % 200));
        run.kill();
    }
    let none = || {
        let listed = person.weft(&["get", "workloads", "-n", "default", "-o", "name"]).run().expect_success();
        // Exit code 1 as long as something is wrong, such as a workload that is on its way out.
        let agent = person.weft(&["agent", "status"]).run();
        assert!(matches!(agent.code(), Some(0 | 1)), "{agent}");
        if listed.stdout.contains("order") || agent.stdout.contains("sa/order") {
            return Err(format!("{listed}{agent}"));
        }
        Ok(())
    };
    eventually("no workload is left", SOON, none);
    let left = person.host().program("find").arg(person.home()).args(["-path", "*/svids/*"]).run();
    assert_eq!(left.expect_success().stdout, "", "keys outlive their programs");

    person.weft(&["down"]).run().expect_success();
    let sockets = person.host().program("find").arg(person.home()).args(["-name", "agent.sock"]).run();
    assert_eq!(sockets.expect_success().stdout, "", "a socket that nobody answers stays");
}

/// A mesh of one agent, run by root. "order" is Ann's by the enrollment, "backup" is declared as root's own, and "charge"
/// is served by root.
struct Scene {
    _charge: Process,
    mesh: Mesh,
}

impl Scene {
    /// `also` may run "order" like Ann.
    #[track_caller]
    fn start(also: &[u32]) -> Self {
        let mesh = Mesh::builder()
            .manifest(service("charge", &[("http", 80, "tcp")]))
            .manifest(enrollment(also))
            .node(
                NODE,
                &[
                    Workload::new("charge").serves("http", LOCAL),
                    Workload::new("backup").upstream("charge", 80, UPSTREAM),
                ],
            )
            .start();
        let folder = mesh.host(NODE).folder().join("web");
        fs::create_dir(&folder).expect("the folder is ours");
        let charge = app::http_server(mesh.host(NODE), LOCAL, &folder);
        let state = mesh.host(NODE).folder().join("state");
        for folder in [state.clone(), state.join("run")] {
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("the folder is ours");
        }
        Self { _charge: charge, mesh }
    }

    /// A `weft` command of that user, against the agent's socket.
    fn weft(&self, user: u32, args: &[&str]) -> Program {
        let socket = self.mesh.host(NODE).folder().join("state/run/agent.sock");
        let home = self.mesh.host(NODE).folder().join(format!("home-{user}"));
        let program = self.mesh.weft(NODE, &["--agent-socket"]).arg(socket).args(args);
        program.env("HOME", &home).env("WEFT_STATE_DIR", &home).as_user(user)
    }

    /// `weft run` of that user, whose program stays; waits until it runs.
    #[track_caller]
    fn holds(&self, user: u32, args: &[&str]) -> Process {
        let run = self.weft(user, &["run", "-n", NAMESPACE]).args(args);
        let process = run.args(["--", "sh", "-c", "echo running; exec sleep 600"]).start();
        eventually("the program runs", SOON, || {
            if process.stdout().contains("running") { Ok(()) } else { Err(process.stderr()) }
        });
        process
    }

    /// Runs a line of shell as Ann's "order".
    #[track_caller]
    fn order(&self, line: &str) -> Finished {
        self.weft(ANN, &["run", "--service", "order", "--", "sh", "-c", line]).run()
    }

    /// How many certificates the server has issued.
    #[track_caller]
    fn issued(&self) -> u64 {
        let metrics = self.mesh.metrics(CTL).expect("the server tells its metrics");
        let line = metrics.lines().find_map(|line| line.strip_prefix("weft_identity_issued_total "));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or_else(|| panic!("no count in\n{metrics}"))
    }
}

/// Waits for a listener without connecting to it: it takes one connection only.
#[track_caller]
fn wait_for_listener(host: &Host, port: u16) {
    let filter = format!("sport = :{port}");
    eventually("something listens", SOON, || {
        let listed = host.program("ss").args(["-ltnH", &filter]).run().expect_success().stdout;
        if listed.is_empty() { Err("nothing yet".to_owned()) } else { Ok(()) }
    });
}

fn enrollment(also: &[u32]) -> String {
    let users: Vec<String> =
        [ANN].iter().chain(also).map(|uid| format!("{{unix: {{uid: {uid}}}}}")).collect();
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: WorkloadEnrollment\n\
         metadata: {{name: people, namespace: {NAMESPACE}}}\n\
         spec: {{nodes: [{NODE}], identities: [\"spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/order\"], selectors: [{}]}}\n",
        users.join(", ")
    )
}

fn egress(mode: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: Mesh\nmetadata: {{name: mesh}}\n\
         spec: {{trustDomain: {TRUST_DOMAIN}, defaultAuthorization: Deny, egress: {mode}}}\n"
    )
}

/// `Ok` if the command succeeded.
fn succeeds(finished: &Finished) -> Result<(), String> {
    if finished.code() == Some(0) { Ok(()) } else { Err(finished.to_string()) }
}

/// `Ok` if the command failed and named `code`.
fn names(finished: &Finished, code: &str) -> Result<(), String> {
    let text = format!("{}{}", finished.stdout, finished.stderr);
    if finished.code() != Some(0) && text.contains(code) { Ok(()) } else { Err(finished.to_string()) }
}
