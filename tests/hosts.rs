//! Two hosts, each with a person without privileges: the second fifteen minutes.
//!
//! hostA has the server and an agent (`weft up`), hostB joins by one token and serves.

use std::time::Duration;

use weft_tests::app::{self, loopback, wait_for_port};
use weft_tests::eventually::eventually;
use weft_tests::person::Person;
use weft_tests::process::{Finished, Process};

/// Where the program of "charge" listens on hostB.
const LOCAL: u16 = 8081;
const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_second_host_joins_by_one_token_and_is_called_from_the_first() {
    let pair = Pair::start(&["--allow-shared-uid"]);
    let call = || pair.a.weft(&["call", "charge", "/", "--as", "order"]).run();
    let _order = pair.a.weft(&["run", "--service", "order", "--", "sleep", "600"]).start();
    eventually("the call is refused by policy", SOON, || names(&call(), "W2101"));

    pair.a.weft(&["policy", "allow", "order", "charge", "--yes"]).run().expect_success();
    let called = eventually("the call succeeds", SOON, || succeeded(call()));
    assert!(called.stdout.starts_with("200 "), "{called}");
    let status = pair.a.weft(&["status"]).run();
    assert!(status.stdout.contains("hostb"), "{status}");
    let all = pair.a.weft(&["get", "workloads", "-A"]).run().expect_success();
    assert!(all.stdout.contains("hostb") && all.stdout.contains("default"), "{all}");
}

#[test]
fn a_token_alone_refuses_nobody_and_says_what_will_be_refused() {
    let a = Person::new();
    a.weft(&["up"]).run().expect_success();
    let token = a.weft(&["token", "create", "--for", "agent", "--node", "hostb"]).run().expect_success();
    assert!(token.stderr.contains("W2208") && token.stderr.contains("loopback"), "{token}");

    a.weft(&["run", "--service", "order", "--", "true"]).run().expect_success();
}

#[test]
fn a_joined_agent_is_stopped_and_started_by_down_and_up() {
    let pair = Pair::start(&["--allow-shared-uid"]);
    pair.a.weft(&["policy", "allow", "order", "charge", "--yes"]).run().expect_success();
    let call = || succeeded(pair.a.weft(&["call", "charge", "/", "--as", "order"]).run());
    eventually("the call succeeds", SOON, call);

    let own = pair.b_weft(&["up", "--listen", "0.0.0.0"]).expect_code(2);
    assert!(own.stderr.contains("has joined a mesh"), "{own}");
    pair.b_weft(&["down"]).expect_success();
    pair.b_weft(&["agent", "status"]).expect_code(6);
    let up = pair.b_weft(&["up"]).expect_success();
    assert!(up.stderr.contains("agent runs as process"), "{up}");
    // The program went on without its agent, and is registered with it again.
    eventually("the call succeeds again", SOON, call);
}

#[test]
fn once_a_second_node_has_joined_the_uid_of_the_server_gets_no_workload_on_its_host() {
    let pair = Pair::start(&[]);
    let run = pair.a.weft(&["run", "--service", "order", "--", "true"]).run();

    assert!(names(&run, "W2208").is_ok(), "{run}");
    // The number means nothing on another host, where nobody reaches the server's socket.
    pair.a.weft(&["policy", "allow", "order", "charge", "--yes"]).run().expect_success();
    eventually("the second host calls itself", SOON, || {
        succeeded(pair.b_weft(&["call", "charge", "/", "--as", "order"]))
    });
}

#[test]
fn a_drained_agent_ends_and_its_service_with_it() {
    let pair = Pair::start(&["--allow-shared-uid"]);
    pair.a.weft(&["policy", "allow", "order", "charge", "--yes"]).run().expect_success();
    let _order = pair.a.weft(&["run", "--service", "order", "--", "sleep", "600"]).start();
    let call = || pair.a.weft(&["call", "charge", "/", "--as", "order"]).run();
    eventually("the call succeeds", SOON, || succeeded(call()));

    pair.b_weft(&["agent", "drain", "--deadline", "2s"]).expect_success();
    eventually("the agent is gone", SOON, || match pair.b_weft(&["agent", "status"]).code() {
        Some(6) => Ok(()),
        code => Err(format!("{code:?}")),
    });
    assert_ne!(call().code(), Some(0));
}

/// A mesh over two hosts, whose program "charge" runs on the second.
struct Pair {
    _charge: Process,
    b: Person,
    a: Person,
}

impl Pair {
    #[track_caller]
    fn start(flags: &[&str]) -> Self {
        let [a, b] = Person::on(["hosta", "hostb"]);
        let address = a.host().ip4().to_string();
        a.weft(&["up", "--listen", "0.0.0.0", "--advertise", &address]).args(flags).run().expect_success();
        let create = ["token", "create", "--for", "agent", "--node", "hostb", "--namespace", "default"];
        let token = a.weft(&create).run().expect_success().stdout;
        let advertise = b.host().ip4().to_string();
        let join = b.weft(&["agent", "join", "--token-file", "-", "--advertise", &advertise]).input(&token);
        join.run().expect_success();

        let port = LOCAL.to_string();
        let server = ["--", app::python(), "-m", "http.server", "--bind", "127.0.0.1", &port];
        let charge = b.weft(&["run", "--service", "charge", "--port", &port]).args(server).start();
        wait_for_port(b.host(), loopback(LOCAL), SOON * 2);
        Self { _charge: charge, b, a }
    }

    /// `weft` on hostB.
    #[track_caller]
    fn b_weft(&self, args: &[&str]) -> Finished {
        self.b.weft(args).run()
    }
}

/// `Ok` if the command succeeded.
fn succeeded(finished: Finished) -> Result<Finished, String> {
    if finished.code() == Some(0) { Ok(finished) } else { Err(finished.to_string()) }
}

/// `Ok` if the command failed and named `code`.
fn names(finished: &Finished, code: &str) -> Result<(), String> {
    let text = format!("{}{}", finished.stdout, finished.stderr);
    if finished.code() != Some(0) && text.contains(code) { Ok(()) } else { Err(finished.to_string()) }
}
