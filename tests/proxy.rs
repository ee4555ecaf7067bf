//! One host, no privileges: `weft up`, `weft run`, the proxy port and `weft call`, as in the first five minutes.

use std::time::Duration;

use weft_tests::app::{self, loopback, wait_for_port};
use weft_tests::eventually::eventually;
use weft_tests::person::Person;
use weft_tests::process::{Finished, Process};

/// Where the program of "charge" listens.
const LOCAL: u16 = 8081;
/// A name of the service as curl takes it, with the proxy's own port.
const URL: &str = "http://charge.weft.localhost:7480/";

#[test]
fn two_programs_of_one_host_call_each_other_after_three_commands() {
    let scene = Scene::start();
    let order = |url: &str| scene.run_order(&["curl", "-sS", "--fail-with-body", "--max-time", "10", url]);

    let denied = order(URL);
    assert_ne!(denied.code(), Some(0), "{denied}");
    assert!(denied.stdout.contains("W2101") && denied.stdout.contains("weft policy allow"), "{denied}");

    scene.allow();
    assert!(eventually_ok(|| order(URL)).stdout.contains("Directory listing"));
    let called = scene.person.weft(&["call", "charge", "/", "--as", "order"]).run().expect_success();
    assert!(called.stdout.starts_with("200 ") && called.stdout.contains("allow-order-charge"), "{called}");
}

#[test]
fn the_proxy_takes_socks_connect_absolute_and_origin_form() {
    let scene = Scene::start();
    scene.allow();
    let by = |script: &str| scene.run_order(&["sh", "-c", script]);
    let proxy = "proxy=${http_proxy#http://}; proxy=${proxy%/}; get='curl -sS --fail --max-time 10'";
    eventually_ok(|| by(&format!("{proxy}; $get http://charge.default/")));

    for (form, script) in [
        ("absolute-form", "$get http://charge.default.svc.weft/"),
        ("absolute-form with a port", "$get http://charge.default:80/"),
        ("CONNECT", "$get --proxytunnel http://charge.default:80/"),
        ("SOCKS5 by name", "$get --proxy \"socks5h://$proxy\" http://charge:80/"),
        ("origin-form", "$get --noproxy '*' -H 'Host: charge.weft.localhost' \"http://$proxy/\""),
    ] {
        let finished = by(&format!("{proxy}; {script}"));
        assert!(finished.stdout.contains("Directory listing"), "{form}: {finished}");
    }
    for (case, script) in [
        ("no such service", "$get http://nobody.default/"),
        ("no such port", "$get http://charge.default:81/"),
        (
            "a page of another site",
            "$get --noproxy '*' -H 'Host: charge.weft.localhost' -H 'Origin: http://evil.example' \"http://$proxy/\"",
        ),
    ] {
        let finished = by(&format!("{proxy}; {script}"));
        assert_ne!(finished.code(), Some(0), "{case}: {finished}");
    }
}

#[test]
fn a_child_finds_its_upstream_and_its_identity_in_the_environment() {
    let scene = Scene::start();
    scene.allow();
    let script = "echo \"$WEFT_WORKLOAD_ID $WEFT_WORKLOAD_NAMESPACE $no_proxy\"; \
                  curl -sS --fail --max-time 10 --noproxy '*' \"http://$WEFT_UPSTREAM_CHARGE/\"";
    let run = || {
        scene
            .person
            .weft(&["run", "--service", "order", "--upstream", "charge=0", "--", "sh", "-c", script])
            .run()
    };

    let finished = eventually_ok(run);
    assert!(finished.stdout.contains("/ns/default/sa/order default 127.0.0.1,::1\n"), "{finished}");
    assert!(finished.stdout.contains("Directory listing"), "{finished}");
}

#[test]
fn the_registration_goes_with_the_program() {
    let mut scene = Scene::start();
    scene.allow();
    let call = || scene.person.weft(&["call", "charge", "/", "--as", "order"]).run();
    let _caller = scene.person.weft(&["run", "--service", "order", "--", "sleep", "600"]).start();
    eventually_ok(call);

    scene.charge.signal(nix::sys::signal::Signal::SIGTERM);
    eventually("the service has no endpoint", Duration::from_secs(5), || {
        let finished = scene.person.weft(&["call", "charge", "/", "--as", "order"]).run();
        let text = format!("{}{}", finished.stdout, finished.stderr);
        if text.contains("W1005") || text.contains("W1011") { Ok(()) } else { Err(text) }
    });
}

#[test]
fn the_exit_code_of_the_program_is_the_exit_code_of_run() {
    let scene = Scene::start();

    scene.run_order(&["sh", "-c", "exit 7"]).expect_code(7);
}

#[test]
fn another_user_of_the_host_gets_nothing_from_the_proxy() {
    let scene = Scene::start();
    scene.allow();

    let stranger =
        app::curl(scene.person.host()).args(["-x", "http://127.0.0.1:7480", URL]).as_user(4343).run();
    assert_ne!(stranger.code(), Some(0), "{stranger}");
}

#[test]
fn up_and_down_may_be_said_twice() {
    let person = Person::new();
    for _ in 0..2 {
        person.weft(&["up"]).run().expect_success();
    }
    person.weft(&["status"]).run().expect_success();
    for _ in 0..2 {
        person.weft(&["down"]).run().expect_success();
    }
    person.weft(&["status"]).run().expect_code(6);
}

#[test]
fn nothing_of_one_host_listens_for_others() {
    let scene = Scene::start();
    let listing = scene.person.host().program("ss").args(["-lntuH"]).run().expect_success().stdout;
    let public: Vec<&str> = listing
        .lines()
        .filter(|line| {
            let local = line.split_whitespace().nth(4).unwrap_or_default();
            !local.starts_with("127.") && !local.starts_with("[::1]")
        })
        .collect();

    assert!(public.is_empty(), "{public:?}");
}

/// A person whose mesh is up, and whose program "charge" runs in it.
struct Scene {
    charge: Process,
    person: Person,
}

impl Scene {
    #[track_caller]
    fn start() -> Self {
        let person = Person::new();
        person.weft(&["up"]).run().expect_success();
        let port = LOCAL.to_string();
        let server = ["--", app::python(), "-m", "http.server", "--bind", "127.0.0.1", &port];
        let charge = person.weft(&["run", "--service", "charge", "--port", &port]).args(server).start();
        wait_for_port(person.host(), loopback(LOCAL), Duration::from_secs(20));
        Self { charge, person }
    }

    #[track_caller]
    fn allow(&self) {
        self.person.weft(&["policy", "allow", "order", "charge", "--yes"]).run().expect_success();
    }

    /// `weft run --service order -- PROGRAM…`.
    #[track_caller]
    fn run_order(&self, program: &[&str]) -> Finished {
        self.person.weft(&["run", "--service", "order", "--"]).args(program).run()
    }
}

/// Runs until it succeeds: a rule and an endpoint need a moment to be known.
#[track_caller]
fn eventually_ok(mut run: impl FnMut() -> Finished) -> Finished {
    eventually("the call succeeds", Duration::from_secs(10), || {
        let finished = run();
        if finished.code() == Some(0) { Ok(finished) } else { Err(finished.to_string()) }
    })
}
