//! Who is denied is out at once, on both ends and with a code of its own, and nobody else is (security.md 3.6, 3.7).
//!
//! hosta runs `order`, `cart` and the service `shelf`; hostb runs `echo`; hostc runs `guest`.

#![expect(clippy::unwrap_used, reason = "a test; the lint's exemption does not reach its helpers")]

use std::time::Duration;

use rustls_pki_types::{CertificateDer, pem::PemObject};
use weft_identity::tls::peer_id;
use weft_tests::app::{self, loopback};
use weft_tests::eventually::{eventually, throughout};
use weft_tests::load::{Echo, Flow};
use weft_tests::manifest::{allow, deny, documents, service, spiffe_id};
use weft_tests::mesh::{CTL, Mesh, Workload};
use weft_tests::process::Process;

const ECHO: u16 = 8_081;
const SHELF: u16 = 8_082;
/// Upstreams on hosta to `echo`, of `order` and of `cart`; on hostc to `shelf` and `echo`, of `guest`.
const ORDER: u16 = 9_001;
const CART: u16 = 9_002;
const TO_SHELF: u16 = 9_003;
const GUEST: u16 = 9_004;

/// From a committed change to the end of the last flow: an order of magnitude; `benches/run control` measures it.
const AT_ONCE: Duration = Duration::from_secs(5);
/// What a quiet moment is, to see that nothing happens in it.
const A_MOMENT: Duration = Duration::from_secs(2);
/// For news of a server that has just come back, and for an agent that waits between two tries.
const LATER: Duration = Duration::from_secs(30);

struct Scene {
    mesh: Mesh,
    _programs: [Process; 2],
}

#[track_caller]
fn scene() -> Scene {
    let rules = [("order", "echo"), ("cart", "echo"), ("guest", "echo"), ("guest", "shelf")];
    let rules: Vec<String> = rules.iter().map(|(from, to)| allow(from, to)).collect();
    let mesh = Mesh::builder()
        .manifest(service("echo", &[("echo", 7, "tcp")]))
        .manifest(service("shelf", &[("shelf", 7, "tcp")]))
        .manifest(documents(&rules))
        .node(
            "hosta",
            &[
                Workload::new("order").upstream("echo", 7, ORDER),
                Workload::new("cart").upstream("echo", 7, CART),
                Workload::new("shelf").serves("shelf", SHELF),
            ],
        )
        .node("hostb", &[Workload::new("echo").serves("echo", ECHO)])
        .node("hostc", &[Workload::new("guest").upstream("shelf", 7, TO_SHELF).upstream("echo", 7, GUEST)])
        .start();
    let programs = [
        app::script(mesh.host("hostb"), "echo.py", ECHO, &[]),
        app::script(mesh.host("hosta"), "echo.py", SHELF, &[]),
    ];
    let scene = Scene { mesh, _programs: programs };
    for (host, port) in [("hosta", ORDER), ("hosta", CART), ("hostc", TO_SHELF), ("hostc", GUEST)] {
        scene.mesh.wait_for_call("the first echo", || scene.call(host, port));
    }
    scene
}

impl Scene {
    fn call(&self, host: &str, port: u16) -> Result<(), String> {
        Echo::open(self.mesh.host(host), loopback(port))?.exchange(b"call")
    }

    #[track_caller]
    fn flow(&self, host: &str, port: u16) -> Flow {
        Flow::open(self.mesh.host(host), loopback(port))
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> String {
        self.mesh.weft(CTL, args).run().expect_success().stdout
    }

    /// Waits until the agents of `nodes` have both told of a flow that ended with `code`.
    #[track_caller]
    fn both_tell(&self, nodes: [&str; 2], code: &str) {
        for node in nodes {
            eventually(&format!("{node} tells {code}"), AT_ONCE, || {
                let log = std::fs::read_to_string(self.mesh.state(node).join("agent/access.log"));
                let told = log.is_ok_and(|log| log.lines().any(|line| line.contains(&format!("\"{code}\""))));
                if told { Ok(()) } else { Err("not yet".to_owned()) }
            });
        }
    }

    #[track_caller]
    fn refused_throughout(&self, what: &str, host: &str, port: u16) {
        throughout(what, A_MOMENT, || match self.call(host, port) {
            Ok(()) => Err("a call passed".to_owned()),
            Err(_) => Ok(()),
        });
    }

    /// The certificate that `workload` of hosta presents now.
    #[track_caller]
    fn certificate(&self, workload: &str) -> (String, String) {
        let shown =
            self.mesh.weft("hosta", &["identity", "svid", "show", "-o", "json"]).run().expect_success();
        let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
        let items = shown["items"].as_array().unwrap();
        let own = items.iter().find(|item| item["spiffeId"] == spiffe_id(workload)).unwrap();
        let pem = own["chain"].as_str().unwrap().as_bytes();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(pem).map(Result::unwrap).collect();
        let peer = peer_id(&chain).unwrap();
        (peer.serial.to_string(), peer.key.iter().map(|octet| format!("{octet:02x}")).collect())
    }
}

#[track_caller]
fn ends(what: &str, flow: &Flow) {
    eventually(what, AT_ONCE, || flow.ended().ok_or_else(|| "it is open".to_owned()));
}

#[track_caller]
fn lives(what: &str, flow: &Flow) {
    throughout(what, A_MOMENT, || flow.ended().map_or(Ok(()), |end| Err(format!("{end:?}"))));
}

#[test]
fn a_revoked_identity_is_out_at_once_and_stays_out_when_agents_restart_without_a_server() {
    let mut scene = scene();
    let (order, cart) = (scene.flow("hosta", ORDER), scene.flow("hosta", CART));

    let id = spiffe_id("order");
    scene.run(&["identity", "svid", "revoke", &id, "--reason", "its key leaked", "--yes"]);
    ends("the flow of order", &order);
    scene.both_tell(["hosta", "hostb"], "W3026");
    lives("the flow of cart", &cart);
    scene.refused_throughout("order is refused", "hosta", ORDER);

    let listed = scene.run(&["identity", "svid", "denied"]);
    assert!(listed.contains(&id) && listed.contains("its key leaked"), "{listed}");
    for (host, told) in [("hosta", "weft_identity_denied 1"), (CTL, "weft_registry_denied 1")] {
        let metrics = scene.mesh.metrics(host).unwrap();
        assert!(metrics.lines().any(|line| line == told), "{told} is missing in\n{metrics}");
    }
    let status = scene.mesh.weft("hosta", &["agent", "status"]).run();
    assert!(format!("{status}").contains("W3026"), "{status}");

    // Nobody can tell the agents anything: what they keep on their disks decides.
    scene.mesh.kill_server();
    for node in ["hosta", "hostb"] {
        scene.mesh.kill_agent(node);
        scene.mesh.start_agent(node);
    }
    scene.mesh.wait_for_call("cart calls again", || scene.call("hosta", CART));
    scene.refused_throughout("order is refused after the restart", "hosta", ORDER);

    scene.mesh.start_server();
    scene.mesh.wait_for_server();
    scene.run(&["identity", "svid", "restore", &id]);
    eventually("order calls again", LATER, || scene.call("hosta", ORDER));
}

#[test]
fn a_revoked_certificate_or_key_is_replaced_by_another_and_refused_itself() {
    let scene = scene();
    let (order, cart) = (scene.flow("hosta", ORDER), scene.flow("hosta", CART));
    let (serial, key) = scene.certificate("order");

    scene.run(&["identity", "svid", "revoke", "--serial", &serial, "--yes"]);
    ends("the flow under the revoked certificate", &order);
    scene.both_tell(["hosta", "hostb"], "W3026");
    eventually("order calls with another certificate", LATER, || scene.call("hosta", ORDER));
    let (next, other_key) = scene.certificate("order");
    assert!(next != serial && other_key != key);

    let order = scene.flow("hosta", ORDER);
    scene.run(&["identity", "svid", "revoke", "--spki", &other_key, "--yes"]);
    ends("the flow under the revoked key", &order);
    eventually("order calls with another key", LATER, || scene.call("hosta", ORDER));
    assert_ne!(scene.certificate("order").1, other_key);
    lives("the flow of cart", &cart);

    let own = scene
        .mesh
        .weft(CTL, &["identity", "svid", "revoke", "spiffe://corp.example/server/nobody", "--yes"])
        .run();
    own.expect_success();
    let unknown = scene.mesh.weft(CTL, &["identity", "svid", "restore", "--serial", "0a"]).run();
    assert!(unknown.code() != Some(0) && unknown.stderr.contains("W3041"), "{unknown}");
}

#[test]
fn iss_02_a_banned_node_loses_its_connections_and_gets_nothing_until_it_is_let_in_again() {
    let mut scene = scene();
    let (order, to_shelf) = (scene.flow("hosta", ORDER), scene.flow("hostc", TO_SHELF));
    let guest = scene.flow("hostc", GUEST);

    scene.run(&["agent", "ban", "hosta", "--reason", "stolen laptop", "--yes"]);
    ends("the flow of order", &order);
    ends("the flow to shelf", &to_shelf);
    scene.both_tell(["hosta", "hostb"], "W3017");
    scene.both_tell(["hosta", "hostc"], "W3017");
    lives("the flow of guest to echo", &guest);
    scene.refused_throughout("hosta is refused", "hosta", ORDER);
    scene.refused_throughout("nobody is sent to hosta", "hostc", TO_SHELF);

    let agents = scene.run(&["get", "agents"]);
    assert!(agents.lines().any(|line| line.contains("hosta") && line.contains("banned")), "{agents}");
    let status = scene.mesh.weft(CTL, &["status"]).run();
    assert!(status.stdout.contains("W3017") && status.stdout.contains("stolen laptop"), "{status}");
    // Its old connection was cut, a new one is refused, with the reason.
    eventually("the node hears why", LATER, || {
        let own = scene.mesh.weft("hosta", &["agent", "status"]).run();
        let said = format!("{own}");
        if said.contains("banned") && said.contains("stolen laptop") { Ok(()) } else { Err(said) }
    });

    scene.run(&["agent", "unban", "hosta"]);
    eventually("hosta calls again", LATER, || scene.call("hosta", ORDER));
    eventually("hosta is called again", LATER, || scene.call("hostc", TO_SHELF));

    // A new token with --replace ends the ban as well; what the node had before stays refused.
    let (serial, _) = scene.certificate("order");
    scene.run(&["agent", "ban", "hosta", "--yes"]);
    let plain =
        scene.mesh.weft(CTL, &["token", "create", "--for", "agent", "--node", "hosta", "-n", "shop"]).run();
    assert!(plain.code() != Some(0) && plain.stderr.contains("W3017"), "{plain}");
    scene.mesh.kill_agent("hosta");
    let token = scene.mesh.token("hosta", &["--replace"]);
    scene.mesh.join("hosta", &token).expect_success();
    scene.mesh.start_agent("hosta");
    eventually("hosta calls with new certificates", LATER, || scene.call("hosta", ORDER));
    assert_ne!(scene.certificate("order").0, serial);
}

#[test]
fn a_policy_change_ends_flows_with_a_code_of_its_own_on_both_ends() {
    let scene = scene();
    let (order, cart) = (scene.flow("hosta", ORDER), scene.flow("hosta", CART));
    scene.mesh.apply(&deny("order", "echo"));
    ends("the flow of order", &order);
    scene.both_tell(["hosta", "hostb"], "W2110");
    lives("the flow of cart", &cart);
}
