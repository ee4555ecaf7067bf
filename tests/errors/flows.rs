//! Calls that fail, break or are cut on their way to a service: W1, and W2 of the rules.

use std::io::{Read as _, Write as _};

use weft_tests::app;
use weft_tests::eventually::eventually;
use weft_tests::manifest::{NAMESPACE, deny};
use weft_tests::netns::Fault;
use weft_tests::told::Told;

use crate::case::{Case, case};
use crate::inventory::{TO_CRASH, TO_ECHO, TO_MAL, TO_ONE, TO_QUIET, TO_SMALL, object};
use crate::scene::{PROXY, SOON, Scene, in_answer};

/// In this order: those that open the egress stand together, those that fill hostc too.
pub(crate) const CASES: &[Case] = &[
    case("W2101", "no rule", |s| s.refused("closed", "W2101")),
    case("W2102", "a rule that denies", |s| s.refused("barred", "W2102")),
    case("W2105", "a rule for another port", |s| s.refused("portly:81", "W2105")),
    case("W1005", "a service without a program", |s| s.refused("empty", "W1005")),
    case("W1008", "a program that does not listen", |s| s.refused("dead", "W1008")),
    case("W8014", "a program that answers nonsense", |s| s.refused("odd", "W8014")),
    case("W1006", "a service whose only endpoint is ejected", |s| {
        Ok(eventually("the endpoint is ejected", SOON, || s.refused("flaky", "W1006")))
    }),
    case("W1007", "one connection more than the breaker takes", |s| {
        let held = s.settled_flow("hosta", TO_ONE);
        let told = s.refused("one:7", "W1007");
        drop(held);
        told
    }),
    case("W1009", "a program that does not answer, at its agent", |s| {
        let mark = s.mark("hostb");
        s.get("slow", "/");
        s.logged(&mark, "W1009")
    }),
    case("W1010", "a program that does not answer, at the caller", |s| s.refused("slow", "W1010")),
    case("W1011", "a service that nobody declared", |s| s.refused("nobody", "W1011")),
    case("W1012", "a port that the service does not have", |s| s.refused("charge:81", "W1012")),
    case("W1014", "a route to a service that is gone", |s| s.refused("routed", "W1014")),
    case("W1015", "a route without weight", |s| s.refused("zero", "W1015")),
    case("W1013", "a destination outside", |s| outside(s, "10.77.0.3:9", "W1013")),
    case("W1021", "a destination outside that refuses", |s| {
        s.mesh.apply(&namespace("Allow"));
        Ok(eventually("the egress is open", SOON, || outside(s, "10.77.0.3:9", "W1021")))
    }),
    case("W1016", "a name outside that nobody has", |s| {
        let told = outside(s, "nothing.invalid", "W1016");
        s.mesh.apply(&namespace("Deny"));
        told
    }),
    case("W1017", "a connection on which nothing moves", |s| {
        let mark = s.mark("hosta");
        let _held = s.settled_flow("hosta", TO_QUIET);
        s.logged(&mark, "W1017")
    }),
    case("W1025", "a program that breaks off", |s| {
        let mark = s.mark("hosta");
        // No byte comes back: the program resets the connection when it has read one.
        let broken = s.flow("hosta", TO_CRASH);
        if broken.is_ok() { Err("the program answered".to_owned()) } else { s.logged(&mark, "W1025") }
    }),
    case("W1028", "a caller that breaks off", |s| {
        let mark = s.mark("hostb");
        let script = format!(
            "import socket, struct\nc = socket.create_connection(('127.0.0.1', {TO_ECHO}))\nc.sendall(b'a')\nc.recv(1)\n\
             c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\nc.close()\n"
        );
        s.host("hosta").program(app::python()).args(["-c", &script]).run().expect_success();
        s.logged(&mark, "W1028")
    }),
    case("W2110", "a flow that the rules refuse by now", |s| {
        let mut flow = s.settled_flow("hosta", TO_ECHO);
        let mark = s.mark("hosta");
        s.mesh.apply(&deny("order", "echo"));
        let told = s.logged(&mark, "W2110");
        s.mesh.delete(&deny("order", "echo"));
        // The program sees a broken connection, not an end.
        let ended = flow.write_all(b"a").is_err() || !matches!(flow.read(&mut [0]), Ok(1..));
        if ended { told } else { Err("the flow goes on".to_owned()) }
    }),
    case("W1026", "an endpoint at a name that nobody has", |s| s.refused("lost", "W1026")),
    case("W1019", "an agent that carries as much as it may", |s| {
        let held = [s.settled_flow("hosta", TO_SMALL), s.settled_flow("hosta", TO_SMALL)];
        let told = s.refused("small:7", "W1019");
        drop(held);
        told
    }),
    case("W1027", "one tunnel more than the agent may have", |s| {
        let held = s.settled_flow("hostc", TO_ECHO);
        let mark = s.mark("hostc");
        s.exchange("hostc", TO_MAL, b"GET / HTTP/1.0\r\n\r\n");
        let told = s.logged(&mark, "W1027");
        drop(held);
        told
    }),
    case("W1003", "a network that drops UDP", |s| {
        // A tunnel that stands would hide it: the one to mal was not used yet.
        s.mesh.set_faults(&[Fault::NoUdp]);
        let told = s.refused("mal", "W1003");
        s.mesh.set_faults(&[]);
        told
    }),
];

/// What the proxy answers to a GET of something that is not the mesh's.
fn outside(scene: &Scene, authority: &str, code: &str) -> Result<Told, String> {
    let request =
        format!("GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    in_answer(&scene.exchange("hosta", PROXY, request.as_bytes()), code)
}

fn namespace(egress: &str) -> String {
    let object = object("Namespace", NAMESPACE, &format!("egress: {egress}"));
    object.replace(&format!(", namespace: {NAMESPACE}"), "")
}
