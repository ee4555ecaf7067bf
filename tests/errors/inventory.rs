//! What stands where: the workloads of each agent, the services and rules, and the programs behind them.

use weft_tests::app::{self, loopback};
use weft_tests::manifest::{NAMESPACE, allow, deny, service, spiffe_id};
use weft_tests::mesh::Mesh;
use weft_tests::process::Process;

use crate::scene::{PROXY, SOON};

/// A user whom no enrollment names and who has no workload, and the users of "ghost", of the twins and of "loop".
pub(crate) const NOBODY: u32 = 4_399;
pub(crate) const GHOST: u32 = 4_301;
pub(crate) const TWINS: u32 = 4_302;
pub(crate) const LOOP: u32 = 4_303;

/// Upstreams of "order" on hosta, and of "tiny" on hostc.
pub(crate) const TO_ECHO: u16 = 9_001;
pub(crate) const TO_SMALL: u16 = 9_002;
pub(crate) const TO_CRASH: u16 = 9_003;
pub(crate) const TO_QUIET: u16 = 9_004;
pub(crate) const TO_MAL: u16 = 9_005;
pub(crate) const TO_LOOP: u16 = 9_006;
pub(crate) const TO_ONE: u16 = 9_007;

/// The node of hostd: "pay-x" on hosta and "pay" here have one workload name.
pub(crate) const X_HOSTA: &str = "x-hosta";

/// The programs of the services on hostb: nginx, an echo, one that answers nonsense, one that breaks off.
const HTTP: u16 = 8_081;
const ECHO: u16 = 8_082;
const ODD: u16 = 8_084;
const CRASH: u16 = 8_086;

/// Starts them, and waits until they listen.
pub(crate) fn programs(mesh: &Mesh) -> Vec<(&'static str, Process)> {
    let hostb = mesh.host("hostb");
    let inline = |port: u16, script: &str| {
        let text = format!(
            "import socket, struct\ns = socket.create_server(('127.0.0.1', {port}))\nwhile True:\n c, _ = s.accept()\n{script}"
        );
        hostb.program(app::python()).args(["-c", &text]).start()
    };
    let reset = " c.recv(1)\n c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\n c.close()\n";
    let all = vec![
        ("nginx", app::nginx(hostb, HTTP, hostb.folder())),
        ("echo", app::script(hostb, "echo.py", ECHO, &[])),
        ("echo of hostc", app::script(mesh.host("hostc"), "echo.py", ECHO, &[])),
        ("odd", inline(ODD, " c.recv(65536)\n c.sendall(b'nonsense\\n')\n c.close()\n")),
        ("crash", inline(CRASH, reset)),
    ];
    for port in [ODD, CRASH] {
        app::wait_for_port(hostb, loopback(port), SOON);
    }
    all
}

/// One workload of `agent.yaml`.
fn workload(name: &str, namespace: &str, uid: u32, ports: &str, upstreams: &[(&str, u16, u16)]) -> String {
    let upstream = |(service, port, listen): &(&str, u16, u16)| {
        format!("{{service: {service}, port: {port}, listen: \"127.0.0.1:{listen}\"}}")
    };
    let upstreams: Vec<_> = upstreams.iter().map(upstream).collect();
    format!(
        "  - {{service: {name}, namespace: {namespace}, ports: {{{ports}}}, uid: {uid}, upstreams: [{}]}}\n",
        upstreams.join(", ")
    )
}

/// Host, node and lines of `agent.yaml`.
pub(crate) fn agents() -> Vec<(&'static str, &'static str, String)> {
    let own =
        |name: &str, port: u16| workload(name, NAMESPACE, 0, &format!("http: \"127.0.0.1:{port}\""), &[]);
    let calls = [
        ("echo", 7, TO_ECHO),
        ("small", 7, TO_SMALL),
        ("crash", 7, TO_CRASH),
        ("quiet", 7, TO_QUIET),
        ("loop", 80, TO_LOOP),
        ("one", 7, TO_ONE),
    ];
    let callers = [
        workload("order", NAMESPACE, 0, "", &calls),
        workload("ghost", "bank", GHOST, "", &[]),
        workload("twin-a", NAMESPACE, TWINS, "", &[]),
        workload("twin-b", NAMESPACE, TWINS, "", &[]),
        // Its program's address is a port of the agent itself.
        workload("loop", NAMESPACE, LOOP, &format!("http: \"127.0.0.1:{PROXY}\""), &[]),
    ];
    let services: String = [
        own("charge", HTTP),
        own("closed", HTTP),
        own("barred", HTTP),
        own("echo", ECHO),
        own("quiet", ECHO),
        own("one", ECHO),
        own("dead", 8_083),
        own("odd", ODD),
        own("flaky", 8_085),
        own("crash", CRASH),
        workload(
            "portly",
            NAMESPACE,
            0,
            &format!("web: \"127.0.0.1:{HTTP}\", admin: \"127.0.0.1:{HTTP}\""),
            &[],
        ),
        // An address of the network that nobody has: connecting to it takes until the timeout.
        workload("slow", NAMESPACE, 0, "http: \"10.77.0.250:80\"", &[]),
        workload("buyer", NAMESPACE, 0, "", &[("small", 7, TO_SMALL)]),
    ]
    .concat();
    let small = workload("small", NAMESPACE, 0, &format!("http: \"127.0.0.1:{ECHO}\""), &[])
        + &workload("tiny", NAMESPACE, 0, "", &[("echo", 7, TO_ECHO), ("mal", 80, TO_MAL)]);
    let impatient = "limits: {requests: {headTimeout: 1s}, \
                     tunnels: {idleTimeout: 3s, keepAlive: 1s, handshakeTimeout: 1s}}";
    let patient = "limits: {tunnels: {idleTimeout: 60s, keepAlive: 50s}}";
    let tight = "limits: {flows: {total: 2, local: 3}, tunnels: {outbound: 1}}";
    let lines = |limits: &str, workloads: &str| format!("{limits}\nworkloads:\n{workloads}");
    vec![
        ("hosta", "hosta", lines(impatient, &callers.concat())),
        ("hostb", "hostb", lines(patient, &services)),
        ("hostc", "hostc", lines(tight, &small)),
        ("hostd", X_HOSTA, lines("advertise: [nowhere.invalid]", &own("lost", HTTP))),
        ("mal", "mal", lines("limits: {}", &own("mal", HTTP))),
        ("late", "late", lines("limits: {}", &own("late", HTTP))),
        ("fresh", "fresh", lines("limits: {}", &workload("fresh", NAMESPACE, 0, "", &[]))),
    ]
}

/// Services, whom they take, and how they are reached.
pub(crate) fn manifests() -> Vec<String> {
    let http = [
        "charge", "closed", "barred", "dead", "odd", "flaky", "slow", "lost", "mal", "loop", "empty",
        "routed", "zero",
    ];
    let tcp = ["echo", "quiet", "one", "crash", "small"];
    let mut all: Vec<String> = http.iter().map(|name| service(name, &[("http", 80, "http")])).collect();
    all.extend(tcp.iter().map(|name| service(name, &[("http", 7, "tcp")])));
    all.push(service("portly", &[("web", 80, "http"), ("admin", 81, "http")]));
    all.push(
        service("watched", &[("http", 80, "http")])
            .replace("spec: {", "spec: {defaultAuthorization: Audit, "),
    );
    all.push(service("rehearsed", &[("http", 80, "http")]));
    let open = http.iter().chain(&tcp).filter(|name| !["closed", "barred"].contains(name));
    all.extend(open.map(|name| allow("order", name)));
    all.extend(["small", "echo"].map(|name| allow("buyer", name)));
    all.extend(["mal", "echo"].map(|name| allow("tiny", name)));
    all.push(deny("order", "barred"));
    all.push(allow("order", "rehearsed"));
    all.push(deny("order", "rehearsed").replace("action: DENY", "action: DENY, mode: DryRun"));
    all.push(allow("order", "portly").replace("sources:", "ports: [web], sources:"));
    all.push(allow("twin-a", "portly").replace("sources:", "networks: [\"192.0.2.0/24\"], sources:"));
    all.push(traffic("one", "circuitBreaker: {maxConnections: 1}"));
    all.push(traffic("quiet", "timeouts: {idle: 1s}"));
    all.push(traffic("slow", "timeouts: {connect: 500ms}"));
    all.push(traffic(
        "flaky",
        "outlierDetection: {consecutiveFailures: 2, ejection: {base: 60s, maxPercent: 100}}",
    ));
    all.push(route("routed", "{name: gone, port: 80}"));
    all.push(route("zero", "{name: charge, port: 80, weight: 0}"));
    all
}

pub(crate) fn traffic(service: &str, settings: &str) -> String {
    object(
        "TrafficPolicy",
        service,
        &format!("targetRefs: [{{group: \"\", kind: Service, name: {service}}}], {settings}"),
    )
}

fn route(service: &str, backend: &str) -> String {
    let parent = format!("{{group: \"\", kind: Service, name: {service}}}");
    let route = object(
        "TCPRoute",
        service,
        &format!("parentRefs: [{parent}], rules: [{{backendRefs: [{backend}]}}]"),
    );
    route.replace("weft.mesh/v1alpha1", "gateway.networking.k8s.io/v1")
}

pub(crate) fn object(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec: {{{spec}}}\n"
    )
}

/// The identity of a service account, for manifests.
pub(crate) fn id(account: &str) -> String {
    spiffe_id(account)
}
