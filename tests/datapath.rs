//! Real programs call each other through two agents, by an upstream listener, and every byte is right.
//!
//! ```text
//! hosta: program of "order" -> 127.0.0.1:9001 -> agent ═══ QUIC ═══ agent -> 127.0.0.1:80xx of hostb
//! ```

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use weft_tests::app::{self, loopback};
use weft_tests::eventually::eventually;
use weft_tests::load::{self, Echo};
use weft_tests::manifest::{allow, service, spiffe_id};
use weft_tests::mesh::{Mesh, Workload};
use weft_tests::netns::Fault;

/// The port of the service on hostb.
const LOCAL: u16 = 8081;
/// Where "order" reaches the service on hosta.
const UPSTREAM: u16 = 9001;
/// Where "stranger", whom no rule allows, reaches the same service on hosta.
const STRANGERS_UPSTREAM: u16 = 9002;

#[test]
fn curl_gets_a_page_of_python_http_server() {
    let mesh = mesh("http");
    let folder = mesh.host("hostb").folder().join("www");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("page"), "a page of charge\n").unwrap();
    let _server = app::http_server(mesh.host("hostb"), LOCAL, &folder);
    let curl = || app::curl(mesh.host("hosta")).arg(format!("http://{}/page", upstream())).run();
    mesh.wait_for_call("the first call", || {
        let finished = curl();
        if finished.code() == Some(0) { Ok(()) } else { Err(finished.stderr) }
    });

    assert_eq!(curl().expect_success().stdout, "a page of charge\n");
}

#[test]
fn a_caller_without_a_rule_is_refused_and_the_log_names_the_code() {
    let mut mesh = mesh("http");
    let _server = app::nginx(mesh.host("hostb"), LOCAL, mesh.host("hostb").folder());
    wait_for_nginx(&mesh);
    let hosta = mesh.host("hosta").clone();

    assert!(hosta.enter(|| load::call(loopback(STRANGERS_UPSTREAM))).is_err());
    eventually("the denial is in the access log", Duration::from_secs(5), || {
        let log = mesh.agent_log("hosta");
        let line = log.lines().find(|line| line.contains("W2101") && line.contains(&spiffe_id("stranger")));
        line.map(drop).ok_or_else(|| log.lines().last().unwrap_or_default().to_owned())
    });
}

#[test]
fn a_local_user_who_is_not_the_workload_is_refused() {
    let mesh = mesh("http");
    let _server = app::nginx(mesh.host("hostb"), LOCAL, mesh.host("hostb").folder());
    wait_for_nginx(&mesh);
    let url = format!("http://{}/ok", upstream());

    assert_eq!(app::curl(mesh.host("hosta")).arg(&url).run().expect_success().stdout, "ok");
    let stranger = app::curl(mesh.host("hosta")).arg(&url).as_user(4242).run();
    assert_ne!(stranger.code(), Some(0), "{stranger}");
}

#[test]
fn redis_benchmark_gets_every_reply_and_every_reply_is_right() {
    let mesh = mesh("tcp");
    let _redis = app::redis(mesh.host("hostb"), LOCAL);
    let hosta = mesh.host("hosta");
    let port = UPSTREAM.to_string();
    let ping = || hosta.program("redis-cli").args(["-p", &port, "PING"]).run();
    mesh.wait_for_call("the first PING", || {
        let answer = ping().stdout;
        if answer == "PONG\n" { Ok(()) } else { Err(answer) }
    });

    let checked = app::script_program(hosta, "redis_check.py").args(["127.0.0.1", &port, "20000"]);
    assert_eq!(
        checked.limit(Duration::from_secs(120)).run().expect_success().stdout,
        "40000 replies right\n"
    );

    let benchmark = hosta.program("redis-benchmark").args(["-p", &port, "-c", "50", "-q"]);
    let many = benchmark.args(["-n", "20000", "-t", "ping,set,get,lpush,lrange_100"]);
    let report = many.limit(Duration::from_secs(180)).run().expect_success();
    assert!(!report.stdout.contains("rror") && report.stderr.is_empty(), "{report}");
    assert_eq!(report.stdout.matches("requests per second").count(), 7, "{report}");

    let counted = hosta
        .program("redis-benchmark")
        .args(["-p", &port, "-c", "50", "-q", "-n", "20000", "incr", "calls"]);
    counted.limit(Duration::from_secs(60)).run().expect_success();
    let calls = hosta.program("redis-cli").args(["-p", &port, "GET", "calls"]).run();
    assert_eq!(calls.expect_success().stdout, "20000\n");
}

#[test]
fn a_file_of_one_gibibyte_arrives_with_its_sha256() {
    let mesh = mesh("http");
    let (hosta, hostb) = (mesh.host("hosta"), mesh.host("hostb"));
    let folder = hostb.folder().join("www");
    fs::create_dir(&folder).unwrap();
    app::random_file(hostb, &folder.join("large"), 1024);
    let _server = app::nginx(hostb, LOCAL, &folder);
    wait_for_nginx(&mesh);
    let arrived = hosta.folder().join("large");

    let curl = app::curl(hosta).args(["--max-time", "300", "-o"]).arg(&arrived);
    curl.arg(format!("http://{}/large", upstream())).limit(Duration::from_secs(310)).run().expect_success();

    assert_eq!(app::sha256(hosta, &arrived), app::sha256(hostb, &folder.join("large")));
}

#[test]
fn a_client_that_ends_its_output_still_reads_the_answer() {
    let mesh = mesh("tcp");
    let _server = app::script(mesh.host("hostb"), "half_close.py", LOCAL, &["reads"]);
    let sent = vec![b'x'; 5_000_000];
    let mut answer = Vec::new();
    mesh.wait_for_call("the answer after the end of the input", || {
        answer = load::send_then_read(mesh.host("hosta"), upstream(), &sent)?;
        if answer.is_empty() { Err("no answer".to_owned()) } else { Ok(()) }
    });

    let digest = "03a7bd518f3e4ecac11f2e77f7437928ba5d80ac0b2b26a523d90e7628bfd59b";
    assert_eq!(String::from_utf8_lossy(&answer), format!("5000000 {digest}\n"));
}

#[test]
fn a_server_that_ends_its_output_still_reads_the_input() {
    let mesh = mesh("tcp");
    let server = app::script(mesh.host("hostb"), "half_close.py", LOCAL, &["writes"]);
    let sent = vec![b'y'; 1_000_000];
    mesh.wait_for_call("all of the output", || {
        let read = load::read_then_send(mesh.host("hosta"), upstream(), &sent)?;
        if read.len() == 1 << 20 { Ok(()) } else { Err(format!("{} bytes", read.len())) }
    });

    eventually("the server has read the input to its end", Duration::from_secs(10), || {
        let printed = server.stdout();
        if printed.lines().any(|line| line.starts_with("1000000 ")) { Ok(()) } else { Err(printed) }
    });
}

#[test]
fn a_server_that_speaks_first_is_heard_before_the_client_speaks() {
    let mesh = mesh("tcp");
    let _server = app::script(mesh.host("hostb"), "banner.py", LOCAL, &[]);
    let hosta = mesh.host("hosta");
    // Reads the banner before it writes anything; `-w` bounds the wait.
    let talk = "exec 3<>/dev/tcp/127.0.0.1/9001; read -t 5 -r banner <&3 && echo \"$banner\"; \
                echo QUIT >&3; read -t 5 -r answer <&3 && echo \"$answer\"";
    let talk = || hosta.program("bash").args(["-c", talk]).run();
    mesh.wait_for_call("a banner", || {
        let said = talk().stdout.replace('\r', "");
        if said == "220 banner ready\n250 you said QUIT\n" { Ok(()) } else { Err(said) }
    });
}

#[test]
fn none_of_ten_thousand_short_connections_fails() {
    let mesh = mesh("http");
    let _server = app::nginx(mesh.host("hostb"), LOCAL, mesh.host("hostb").folder());
    wait_for_nginx(&mesh);

    let failures = load::short_calls(mesh.host("hosta"), upstream(), 10_000, 8);

    assert_eq!(failures.len(), 0, "{:?}", failures.iter().take(5).collect::<Vec<_>>());
}

#[test]
fn two_thousand_idle_connections_stay_open_and_all_answer() {
    let mut mesh = mesh("tcp");
    let server = app::script(mesh.host("hostb"), "echo.py", LOCAL, &[]);
    wait_for_echo(&mesh);
    load::raise_file_limit();
    let hosta = mesh.host("hosta").clone();
    let mut connections: Vec<Echo> = (0..2_000)
        .map(|number| {
            let mut connection =
                Echo::open(&hosta, upstream()).unwrap_or_else(|error| panic!("{number}: {error}"));
            connection.exchange(b"hello").unwrap_or_else(|error| panic!("{number}: {error}"));
            connection
        })
        .collect();
    mesh.agent("hosta").assert_running();
    let open = |text: &str| text.matches("open ").count() - text.matches("closed ").count();
    assert!(open(&server.stdout()) >= 2_000);

    for (number, connection) in connections.iter_mut().enumerate() {
        connection.exchange(b"still here").unwrap_or_else(|error| panic!("{number}: {error}"));
    }
    drop(connections);
    eventually("all connections are closed on the server", Duration::from_secs(20), || {
        let still = open(&server.stdout());
        if still == 0 { Ok(()) } else { Err(format!("{still} open")) }
    });
}

#[test]
fn quic_19_a_path_that_loses_long_packets_without_a_word_carries_a_transfer_to_its_end() {
    // The least that a path must carry is 1,200 bytes of UDP payload (RFC 9000 section 14).
    const LONGEST: u16 = 1_200 + 28;
    let mesh = mesh("tcp");
    let _server = app::script(mesh.host("hostb"), "echo.py", LOCAL, &[]);
    wait_for_echo(&mesh);
    for host in ["hosta", "hostb"] {
        mesh.host(host).cut_up_segments();
    }
    let word = vec![b'w'; 512 * 1024];
    let mut flow = Echo::open(mesh.host("hosta"), upstream()).unwrap();
    flow.exchange(&word).unwrap();

    mesh.set_faults(&[Fault::LongerThan(LONGEST)]);
    for round in 0..4 {
        flow.exchange(&word).unwrap_or_else(|error| panic!("the flow goes on, round {round}: {error}"));
    }
    let mut other = Echo::open(mesh.host("hosta"), upstream()).unwrap();
    other.exchange(&word).expect("and so does a new one");
}

/// Two hosts and one service: "order" on hosta may call "charge" on hostb, "stranger" on hosta may not.
#[track_caller]
fn mesh(protocol: &str) -> Mesh {
    let order = Workload::new("order").upstream("charge", 80, UPSTREAM);
    let stranger = Workload::new("stranger").upstream("charge", 80, STRANGERS_UPSTREAM);
    Mesh::builder()
        .manifest(service("charge", &[("main", 80, protocol)]))
        .manifest(allow("order", "charge"))
        .node("hosta", &[order, stranger])
        .node("hostb", &[Workload::new("charge").serves("main", LOCAL)])
        .start()
}

fn upstream() -> SocketAddr {
    loopback(UPSTREAM)
}

#[track_caller]
fn wait_for_nginx(mesh: &Mesh) {
    mesh.wait_for_call("the first call", || mesh.host("hosta").enter(|| load::call(upstream())));
}

#[track_caller]
fn wait_for_echo(mesh: &Mesh) {
    mesh.wait_for_call("the first echo", || Echo::open(mesh.host("hosta"), upstream())?.exchange(b"first"));
}
