//! Agents that stand still, are killed, drained or without a server; clocks that go back. What is broken here stays so.

use nix::sys::signal::Signal;
use weft_tests::eventually::eventually;
use weft_tests::manifest::{NAMESPACE, allow};
use weft_tests::mesh::CTL;
use weft_tests::told::{Told, with_code};

use crate::case::{Case, case};
use crate::inventory::TO_SMALL;
use crate::scene::{PROXY, SOON, Scene, in_answer};

const HOUR: i64 = 3_600;

/// In this order, and the first three within the time that the server waits for a sign of life.
pub(crate) const CASES: &[Case] = &[
    case("W1022", "an agent that does not answer any more", |s| {
        let mark = s.mark("hosta");
        let patient = s.settled_flow("hostb", TO_SMALL);
        let impatient = s.settled_flow("hosta", TO_SMALL);
        s.mesh.agent("hostc").signal(Signal::SIGSTOP);
        // What concerns hostc changes while it cannot take it.
        s.mesh.apply(&allow("late", "small"));
        let told = s.logged(&mark, "W1022");
        drop(impatient);
        s.flows.push(("of hostb", patient));
        told
    }),
    case("W6032", "a change that an agent does not take", |s| {
        Ok(eventually("the server sees that it lags", SOON, || problem(s, CTL, &["status"], "W6032")))
    }),
    case("W1023", "a flow to an earlier run of an agent", |s| {
        let mark = s.mark("hostb");
        s.mesh.kill_agent("hostc");
        s.mesh.start_agent("hostc");
        let told = s.logged(&mark, "W1023");
        s.flows.clear();
        s.mesh.wait_for_agent("hostc");
        told
    }),
    case("W1020", "a program on an agent that drains", |s| {
        let held = s.settled_flow("hosta", TO_SMALL);
        let drain = s.mesh.weft("hostc", &["agent", "drain", "--deadline", "20s"]).start();
        let run = ["run", "--service", "small", "-n", NAMESPACE, "--", "true"];
        let told = eventually("it drains", SOON, || s.told("hostc", &run, "W1020"));
        drop((held, drain));
        Ok(told)
    }),
    case("W3013", "a server whose clock went back", |s| {
        s.mesh.set_clock(CTL, -HOUR);
        let told = problem(s, CTL, &["status"], "W3013");
        s.mesh.set_clock(CTL, 0);
        told
    }),
    case("W6029", "a server that ends in good order", |s| {
        let mark = s.mark("hosta");
        s.mesh.server().signal(Signal::SIGTERM);
        s.logged(&mark, "W6029")
    }),
    case("W2108", "an agent that has never heard of a server", |s| {
        s.mesh.start_agent("fresh");
        let request = format!(
            "GET http://charge.{NAMESPACE}.svc.weft/ HTTP/1.1\r\nHost: charge.{NAMESPACE}.svc.weft\r\n\r\n"
        );
        Ok(eventually("the agent answers", SOON, || {
            in_answer(&s.exchange("fresh", PROXY, request.as_bytes()), "W2108")
        }))
    }),
    case("W3012", "a certificate that is not renewed", |s| {
        // Fifteen of its 24 hours have passed, and nobody answers.
        s.mesh.set_clock("late", 15 * HOUR);
        problem(s, "late", &["agent", "status"], "W3012")
    }),
    case("W3028", "a certificate that is not renewed and ends soon", |s| {
        s.mesh.set_clock("late", 19 * HOUR);
        problem(s, "late", &["agent", "status"], "W3028")
    }),
    case("W3029", "a node whose own certificate has expired", |s| {
        s.mesh.set_clock("late", 25 * HOUR);
        problem(s, "late", &["agent", "status"], "W3029")
    }),
];

/// What `weft status` or `weft agent status` tells.
fn problem(scene: &Scene, host: &str, args: &[&str], code: &str) -> Result<Told, String> {
    let status = scene.mesh.weft(host, args).args(["-o", "json"]).run();
    with_code(Told::in_status(&status.stdout), code).map_err(|why| format!("{why}: {status}"))
}
