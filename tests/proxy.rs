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
fn a_flag_of_up_holds_until_another_is_given() {
    let person = Person::new();
    let up = |flags: &[&str]| person.weft(&["up"]).args(flags).run().expect_success().stderr;
    assert!(up(&["--port-base", "9440"]).contains("control 127.0.0.1:9441"));
    let again = up(&[]);
    assert!(again.contains("already up") && again.contains("control 127.0.0.1:9441"), "{again}");
    let changed = up(&["--allow-shared-uid"]);
    assert!(changed.contains("restarting: allow-shared-uid false → true"), "{changed}");
    assert!(up(&[]).contains("already up"));
}

#[test]
fn a_program_outlives_its_agent_and_is_in_the_mesh_again() {
    let scene = Scene::start();
    scene.allow();
    let script = "while sleep 0.2; do curl -sS --fail --max-time 5 http://charge/ > $HOME/got.tmp && mv $HOME/got.tmp $HOME/got; done";
    let order = scene.person.weft(&["run", "--service", "order", "--", "sh", "-c", script]).start();
    let got = scene.person.home().join("got");
    let take = || std::fs::remove_file(&got).map_err(|error| format!("{error}: {}", order.tail()));
    eventually("the program calls", Duration::from_secs(10), take);

    scene.person.weft(&["up", "--allow-shared-uid"]).run().expect_success();
    eventually("both programs are registered again", Duration::from_secs(15), || {
        let told = |process: &Process| process.stderr().contains("in the mesh again");
        if told(&order) && told(&scene.charge) { Ok(()) } else { Err(order.stderr()) }
    });
    // Its proxy port is the one that its environment names.
    let _ = take();
    eventually("the program calls again", Duration::from_secs(10), take);
}

#[test]
fn a_program_gets_the_signals_of_its_run_and_ends_with_it() {
    let person = Person::new();
    person.weft(&["up"]).run().expect_success();
    let start =
        || person.weft(&["run", "--service", "order", "--", "sh", "-c", "echo $$; exec sleep 600"]).start();
    let pid_of = |run: &Process| {
        eventually("the program runs", Duration::from_secs(10), || {
            run.stdout().trim().parse::<u32>().map_err(|error| format!("{error}: {}", run.tail()))
        })
    };

    let mut hung_up = start();
    pid_of(&hung_up);
    hung_up.signal(nix::sys::signal::Signal::SIGHUP);
    hung_up.finish(Duration::from_secs(5)).expect_code(129);

    let killed = start();
    let program = pid_of(&killed);
    killed.kill();
    eventually("the program has ended", Duration::from_secs(5), || {
        let stat = std::fs::read_to_string(format!("/proc/{program}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") { Ok(()) } else { Err(stat) }
    });
}

#[test]
fn a_drained_agent_is_told_and_started_again_by_up() {
    let person = Person::new();
    person.weft(&["up"]).run().expect_success();
    person.weft(&["agent", "drain", "--deadline", "1s"]).run().expect_success();
    let status = person.weft(&["status"]).run().expect_code(1);
    assert!(status.stdout.contains("W1020"), "{status}");
    let refused = person.weft(&["run", "--service", "order", "--", "true"]).run();
    assert!(refused.stderr.contains("error[W1020]"), "{refused}");

    let up = person.weft(&["up"]).run().expect_success();
    assert!(up.stderr.contains("drained: restarting"), "{up}");
    person.weft(&["run", "--service", "order", "--", "true"]).run().expect_success();
}

#[test]
fn a_call_that_fails_says_by_whom_and_exits_accordingly() {
    let scene = Scene::start();
    let call = |target: &str| scene.person.weft(&["call", target, "/", "--as", "order"]).run();
    let denied = eventually("the denial", Duration::from_secs(5), || {
        let finished = call("charge");
        if finished.code() == Some(1) { Ok(finished) } else { Err(finished.to_string()) }
    });
    assert!(denied.stdout.contains("denied W2101") && !denied.stdout.contains("mTLS"), "{denied}");
    let unknown = call("nosuch").expect_code(3);
    assert!(unknown.stdout.contains("failed W1011"), "{unknown}");
    scene.person.weft(&["policy", "check", "order", "nosuch"]).run().expect_code(3);
}

#[test]
fn a_port_that_is_taken_is_told_in_one_error_with_its_exit_code() {
    let person = Person::new();
    let taken = person.host().enter(|| std::net::TcpListener::bind(loopback(7480))).unwrap();
    let failed = person.weft(&["up"]).run().expect_code(2);
    assert_eq!(failed.stderr.matches("error[").count(), 1, "{failed}");
    assert!(failed.stderr.contains("error[W5006]") && failed.stderr.contains("7480"), "{failed}");
    drop(taken);
    person.weft(&["up"]).run().expect_success();
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
