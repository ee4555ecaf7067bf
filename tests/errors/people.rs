//! Tokens, joins, roles and calls of gRPC: W7, W6 of the gate, and W3 of the issuer.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use weft_identity::csr::SigningRequest;
use weft_tests::eventually::{Stopwatch, eventually};
use weft_tests::grpc::{self, Target};
use weft_tests::manifest::{NAMESPACE, TRUST_DOMAIN, service};
use weft_tests::mesh::CTL;
use weft_tests::process::Program;
use weft_tests::told::{Told, with_code};

use crate::case::{Case, case};
use crate::inventory::{X_HOSTA, object};
use crate::scene::{SOON, Scene, copy_folder, told_by};

const CREATE: [&str; 6] = ["token", "create", "--for", "agent", "--namespace", NAMESPACE];
const ISSUE: &str = "/weft.identity.v1.Identity/IssueSvid";
const WATCH: &str = "/weft.management.v1.Management/Watch";

/// The shortest life of a token, and what the server rounds up.
const LIFE: Duration = Duration::from_secs(2);

/// In this order: the last ones replace an agent.
pub(crate) const CASES: &[Case] = &[
    case("W7001", "a token that was used", |s| {
        let token = s.mesh.token("second", &[]);
        s.mesh.write_agent_config("spare", "second", "workloads: []\n");
        s.mesh.join("spare", &token).expect_success();
        told_by(&s.mesh.join("spare", &token), "W7001")
    }),
    case("W7002", "a token that has expired", |s| {
        let token = s.mesh.token("third", &["--ttl", "1s"]);
        s.mesh.write_agent_config("spare", "third", "workloads: []\n");
        let made = Stopwatch::start();
        eventually("its second is over", SOON, || {
            if made.elapsed() > LIFE { Ok(()) } else { Err("not yet".to_owned()) }
        });
        told_by(&s.mesh.join("spare", &token), "W7002")
    }),
    case("W7003", "a token for another node", |s| {
        told_by(&s.mesh.join("spare", &s.mesh.token("fourth", &[])), "W7003")
    }),
    case("W7004", "a token that the server does not know", |s| {
        s.told(CTL, &["token", "revoke", "t-unknown"], "W7004")
    }),
    case("W7005", "a text that is no token", |s| told_by(&s.mesh.join("spare", "not a token\n"), "W7005")),
    case("W7007", "a token that was revoked", |s| {
        let made = s.mesh.token("third", &["-o", "json"]);
        let made: serde_json::Value = serde_json::from_str(&made).map_err(|error| error.to_string())?;
        let (id, token) =
            (made["id"].as_str().unwrap_or_default(), made["token"].as_str().unwrap_or_default());
        s.mesh.on_server(&["token", "revoke", id]).expect_success();
        told_by(&s.mesh.join("spare", token), "W7007")
    }),
    case("W3041", "something that is not on the denylist", |s| {
        s.told(CTL, &["identity", "svid", "restore", "--serial", "0a"], "W3041")
    }),
    case("W7009", "a token for a node that has joined", |s| {
        told_by(&s.mesh.weft(CTL, &CREATE).args(["--node", "hosta"]).run(), "W7009")
    }),
    case("W7010", "a person's token for an agent", |s| {
        let token = user_token(s, "eve", "viewer");
        told_by(&s.mesh.join("spare", &token), "W7010")
    }),
    case("W3051", "a rotation whose root is not prepared", |s| {
        s.told(CTL, &["identity", "ca", "rotate", "--phase", "activate", "--yes"], "W3051")
    }),
    case("W7011", "a token among the arguments", token_in_arguments),
    case("W7012", "a mesh of its own where an agent has joined", |s| {
        s.told("hosta", &["up", "--listen", "0.0.0.0"], "W7012")
    }),
    case("W7013", "a token that lives two days", |s| {
        told_by(&s.mesh.weft(CTL, &CREATE).args(["--node", "x", "--ttl", "48h"]).run(), "W7013")
    }),
    case("W7015", "a token for a service that is no name", |s| {
        told_by(&s.mesh.weft(CTL, &CREATE).args(["--node", "x", "--service", "Not_A_Name"]).run(), "W7015")
    }),
    case("W6014", "a person without an identity", |s| {
        let server = remote(s);
        told_by(&person(s, "nobody", &["--server", &server, "get", "services"]).run(), "W6014")
    }),
    case("W6015", "a viewer who changes something", |s| {
        let server = login(s, "vera", "viewer");
        let apply = person(s, "vera", &["--server", &server, "apply", "-f", "-"]);
        told_by(&apply.input(service("veras", &[("http", 80, "http")])).run(), "W6015")
    }),
    case("W6016", "an editor who opens the mesh", |s| {
        let server = login(s, "eddy", "editor");
        let open =
            object("Namespace", NAMESPACE, "egress: Allow").replace(&format!(", namespace: {NAMESPACE}"), "");
        told_by(&person(s, "eddy", &["--server", &server, "apply", "-f", "-"]).input(&open).run(), "W6016")
    }),
    case("W3011", "a person whose certificate has expired", |s| {
        login(s, "late", "viewer");
        let server = remote(s);
        s.mesh.set_clock("late", 25 * 3_600);
        let home = home(s, "late");
        let told =
            told_by(&as_person(s.mesh.weft("late", &["--server", &server, "status"]), &home).run(), "W3011");
        s.mesh.set_clock("late", 0);
        told
    }),
    case("W6022", "a workload name that another node has", |s| {
        let held = s
            .mesh
            .weft("hosta", &["run", "--service", "pay-x", "-n", NAMESPACE, "--", "sleep", "600"])
            .start();
        eventually("it is registered", SOON, || {
            let named = s.mesh.on_server(&["get", "workload/pay-x-hosta", "-n", NAMESPACE]);
            if named.code() == Some(0) { Ok(()) } else { Err(named.to_string()) }
        });
        let told = s.told("hostd", &["run", "--service", "pay", "-n", NAMESPACE, "--", "true"], "W6022");
        drop(held);
        told
    }),
    case("W2208", "a program of the server's own user on its host", |s| {
        s.mesh.write_agent_config(CTL, "control", "workloads: []\n");
        s.mesh.join(CTL, &s.mesh.token("control", &[])).expect_success();
        s.mesh.start_agent(CTL);
        Ok(eventually("the agent answers", SOON, || {
            s.told(CTL, &["run", "--service", "own", "-n", NAMESPACE, "--", "true"], "W2208")
        }))
    }),
    case("W6024", "a server that stands still", |s| {
        s.mesh.server().signal(Signal::SIGSTOP);
        let told = s.told(CTL, &["--timeout", "1s", "get", "services"], "W6024");
        s.mesh.server().signal(Signal::SIGCONT);
        told
    }),
    case("W6026", "a method that the server does not have", |s| {
        let socket = s.mesh.state(CTL).join("run/server.sock");
        with_code(
            grpc::call(s.host(CTL), &Target::Socket(&socket), "/weft.management.v1.Management/New", &[]),
            "W6026",
        )
    }),
    case("W9004", "an answer of the wrong kind of process", |s| {
        let socket = s.mesh.state("hosta").join("run/agent.sock");
        s.told("hosta", &["--server", &socket.display().to_string(), "get", "services"], "W9004")
    }),
    case("W6030", "a message that is too large", |s| {
        let many: Vec<String> = (0..1_500).map(|n| format!("--service=a{n}{}", "x".repeat(50))).collect();
        told_by(&s.mesh.weft(CTL, &CREATE).args(["--node", "x"]).args(many).run(), "W6030")
    }),
    case("W3023", "an agent that asks for another node", |s| {
        let (_, request) = SigningRequest::create().map_err(|error| error.to_string())?;
        let wanted = format!("spiffe://{TRUST_DOMAIN}/node/hostb");
        issue(s, &[grpc::bytes(1, wanted.as_bytes()), grpc::bytes(2, &request)].concat(), "W3023")
    }),
    case("W3024", "a signing request that is none", |s| {
        issue(s, &[grpc::bytes(1, b""), grpc::bytes(2, b"not a request")].concat(), "W3024")
    }),
    case("W6012", "a watch from a revision to come", |s| {
        let socket = s.mesh.state(CTL).join("run/server.sock");
        let watch = [grpc::bytes(1, b"Service"), grpc::number(3, 1), grpc::number(4, 1 << 40)].concat();
        with_code(grpc::call(s.host(CTL), &Target::Socket(&socket), WATCH, &watch), "W6012")
    }),
    case("W9002", "an output that takes nothing", |s| {
        let weft = s.mesh.weft(CTL, &["get", "services", "-A"]);
        told_by(&weft.output_to(Path::new("/dev/full")).run(), "W9002")
    }),
    case("W6001", "an agent that is not connected", |s| {
        s.mesh.kill_agent("hostd");
        Ok(eventually("the server knows", SOON, || {
            with_code(Told::in_status(&s.mesh.on_server(&["status", "-o", "json"]).stdout), "W6001")
        }))
    }),
    case("W6023", "an agent of which a newer run is connected", |s| {
        let copy = s.mesh.state("spare").join("agent");
        let _ = fs::remove_dir_all(&copy);
        copy_folder(&s.mesh.state("hostd").join("agent"), &copy);
        s.mesh.start_agent("hostd");
        s.mesh.wait_for_agent("hostd");
        let mark = s.mark("hostd");
        s.mesh.write_agent_config("spare", X_HOSTA, "advertise: [nowhere.invalid]\nworkloads: []\n");
        // Boot numbers are seconds: the copy's is the newer one from the next second on.
        fs::write(copy.join("boot"), "4102444800").map_err(|error| error.to_string())?;
        s.mesh.start_agent("spare");
        let told = s.logged(&mark, "W6023");
        s.mesh.kill_agent("spare");
        told
    }),
    case("W3017", "an agent that another has replaced", |s| {
        let mark = s.mark("hostd");
        s.mesh.token(X_HOSTA, &["--replace"]);
        s.logged(&mark, "W3017")
    }),
];

fn token_in_arguments(scene: &mut Scene) -> Result<Told, String> {
    let token = scene.mesh.token("fifth", &[]);
    let refused = scene.mesh.weft("spare", &["agent", "join", "--token-file", token.trim()]).run();
    let said = format!("{}{}", refused.stdout, refused.stderr);
    if said.contains(&token.trim()[..60]) {
        Err("it repeats the token".to_owned())
    } else {
        told_by(&refused, "W7011")
    }
}

/// The server as others reach it.
fn remote(scene: &Scene) -> String {
    format!("{}:7444", scene.host(CTL).ip4())
}

fn user_token(scene: &Scene, name: &str, role: &str) -> String {
    let create = ["token", "create", "--for", "user", "--user", name, "--role", role, "-n", NAMESPACE];
    scene.mesh.on_server(&create).expect_success().stdout
}

fn home(scene: &Scene, name: &str) -> PathBuf {
    scene.host("spare").folder().join(format!("home-{name}"))
}

fn as_person(program: Program, home: &Path) -> Program {
    program.env("HOME", home).env("XDG_CONFIG_HOME", home.join("config"))
}

/// A `weft` command of a person on the spare host.
fn person(scene: &Scene, name: &str, args: &[&str]) -> Program {
    as_person(scene.mesh.weft("spare", args), &home(scene, name))
}

/// Makes them a person of the mesh; returns the server that they ask.
fn login(scene: &Scene, name: &str, role: &str) -> String {
    let token = user_token(scene, name, role);
    person(scene, name, &["user", "login", "--token-file", "-"]).input(&token).run().expect_success();
    remote(scene)
}

/// What the issuer tells the agent of hosta, which asks with its own certificate.
fn issue(scene: &Scene, message: &[u8], code: &str) -> Result<Told, String> {
    let (pem, server) = (scene.mesh.state("hosta").join("agent/node.pem"), remote(scene));
    with_code(grpc::call(scene.host("hosta"), &Target::Tls(&server, &pem), ISSUE, message), code)
}
