//! The life of the server's roots, over real processes: a rotation by hand that no call notices, a root that is revoked
//! with what is under it, and the acceptance run of security.md 3.4 with certificates that live for seconds.

mod acceptance;
mod by_hand;
mod told;

use serde_json::Value;
use weft_tests::app::{self, loopback};
use weft_tests::load;
use weft_tests::manifest::{allow, service};
use weft_tests::mesh::{Builder, Mesh, Workload};
use weft_tests::process::Process;

const LOCAL: u16 = 8081;
const ECHO: u16 = 8082;
/// Where callers reach nginx.
pub(crate) const UPSTREAM: u16 = 9001;
/// Where callers reach the echo server.
pub(crate) const LONG: u16 = 9002;

/// What the server says of its authority.
#[track_caller]
pub(crate) fn authority(mesh: &Mesh) -> Value {
    let shown = mesh.on_server(&["identity", "ca", "show", "-o", "json"]).expect_success().stdout;
    serde_json::from_str(&shown).expect("JSON")
}

/// A mesh whose server has that `identity:`, with callers on `hosts` and what they call on another.
#[track_caller]
pub(crate) fn scene(identity: &str, hosts: &[&str]) -> (Mesh, Vec<Process>) {
    let mesh = describe(identity, hosts).start();
    let programs = programs_and_first_calls(&mesh, hosts);
    (mesh, programs)
}

/// The mesh of [`scene`], before it starts.
pub(crate) fn describe(identity: &str, hosts: &[&str]) -> Builder {
    let calling = Workload::new("order").upstream("charge", 80, UPSTREAM).upstream("charge", 81, LONG);
    let builder = Mesh::builder()
        .server_line(&format!("identity: {identity}"))
        .manifest(service("charge", &[("http", 80, "http"), ("echo", 81, "tcp")]))
        .manifest(allow("order", "charge"))
        .node("served", &[Workload::new("charge").serves("http", LOCAL).serves("echo", ECHO)]);
    hosts.iter().fold(builder, |builder, host| builder.node(host, std::slice::from_ref(&calling)))
}

/// What is called in the mesh of [`scene`], once it can be called from all of `hosts`.
#[track_caller]
pub(crate) fn programs_and_first_calls(mesh: &Mesh, hosts: &[&str]) -> Vec<Process> {
    let served = mesh.host("served");
    let programs =
        vec![app::nginx(served, LOCAL, served.folder()), app::script(served, "echo.py", ECHO, &[])];
    for host in hosts {
        let call = || mesh.host(host).enter(|| load::call(loopback(UPSTREAM)));
        mesh.wait_for_call("the first call", call);
    }
    programs
}
