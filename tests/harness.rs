//! The harness itself: that its network carries and cuts, and that its programs serve.
//!
//! A scenario is worth what its tools are: a cut that does not cut makes every fault test pass.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use weft_tests::app::{self, loopback};
use weft_tests::eventually::eventually;
use weft_tests::load::{self, Echo, Flow, Traffic};
use weft_tests::netns::{Fault, Host, Network};

const SOON: Duration = Duration::from_secs(5);

#[test]
fn hosts_reach_each_other_over_ipv4_and_ipv6_until_they_are_cut() {
    let network = Network::new(&["a", "b"]);
    let (a, b) = (network.host("a"), network.host("b"));
    for address in b.addresses() {
        assert!(eventually_sends(a, b, (address, 7443).into()));
    }

    network.set_faults(&[Fault::NoUdp]);
    assert!(!sends(a, b, (b.ip4(), 7443).into()));
    assert!(!sends(a, b, (b.ip6(), 7443).into()));

    network.set_faults(&[Fault::Cut(b.clone())]);
    assert!(!sends(a, b, (b.ip4(), 7443).into()));

    network.set_faults(&[]);
    assert!(eventually_sends(a, b, (b.ip4(), 7443).into()));
}

#[test]
fn a_network_takes_its_programs_with_it() {
    let network = Network::new(&["a"]);
    let echo = app::script(network.host("a"), "echo.py", 7001, &[]);
    let entry = format!("/proc/{}", echo.pid());
    drop(network);

    eventually("the program is gone", SOON, || {
        let state = fs::read_to_string(format!("{entry}/stat")).unwrap_or_default();
        if state.is_empty() || state.contains(") Z ") { Ok(()) } else { Err(state) }
    });
}

#[test]
fn the_programs_of_the_scenarios_serve() {
    let network = Network::new(&["a"]);
    let a = network.host("a");
    let folder = a.folder().join("www");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("hello"), "hello").unwrap();

    let _python = app::http_server(a, 8001, &folder);
    let _nginx = app::nginx(a, 8002, &folder);
    let _redis = app::redis(a, 8003);
    let _banner = app::script(a, "banner.py", 8004, &[]);
    let _echo = app::script(a, "echo.py", 8005, &[]);
    let _reads = app::script(a, "half_close.py", 8006, &["reads"]);

    for port in [8001, 8002] {
        let url = format!("http://127.0.0.1:{port}/hello");
        assert_eq!(app::curl(a).arg(url).run().expect_success().stdout, "hello");
    }
    let checked = app::script_program(a, "redis_check.py").args(["127.0.0.1", "8003", "250"]).run();
    assert_eq!(checked.expect_success().stdout, "500 replies right\n");
    assert_eq!(load::short_calls(a, loopback(8002), 200, 4), Vec::<String>::new());
    let answer = load::send_then_read(a, loopback(8006), b"abc").unwrap();
    assert!(answer.starts_with(b"3 ba7816bf"));
}

#[test]
fn a_client_notices_that_its_server_is_gone() {
    let network = Network::new(&["a"]);
    let a = network.host("a");
    let echo = app::script(a, "echo.py", 8005, &[]);
    let nginx = app::nginx(a, 8002, a.folder());
    let mut idle = Echo::open(a, loopback(8005)).unwrap();
    let (flow, traffic) = (Flow::open(a, loopback(8005)), Traffic::start(a, loopback(8002)));
    assert!(idle.ended(Duration::from_millis(50)).is_err());
    echo.kill();
    nginx.kill();

    idle.ended(SOON).unwrap();
    eventually("the flow ended", SOON, || flow.ended().ok_or_else(|| "open".to_owned()));
    let calls = eventually_failed(traffic);
    assert!(calls.last().unwrap().outcome.is_err());
}

/// Whether a datagram from `a` arrives at `target` on `b` within a moment.
fn sends(a: &Host, b: &Host, target: SocketAddr) -> bool {
    let any: SocketAddr =
        if target.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let receiver = b.enter(|| UdpSocket::bind(target)).expect("the address is free");
    let sender = a.enter(|| UdpSocket::bind(any)).expect("a free port");
    sender.send_to(b"x", target).expect("a host is not told of a fault in the hub");
    receiver.set_read_timeout(Some(Duration::from_millis(300))).expect("a time above zero");
    receiver.recv(&mut [0; 1]).is_ok()
}

fn eventually_sends(a: &Host, b: &Host, target: SocketAddr) -> bool {
    eventually("a datagram arrives", SOON, || {
        sends(a, b, target).then_some(true).ok_or_else(|| "none".to_owned())
    })
}

fn eventually_failed(traffic: Traffic) -> Vec<load::Call> {
    let killed = traffic.now();
    eventually("a call was made since", SOON, || {
        if traffic.now() > killed + Duration::from_millis(300) { Ok(()) } else { Err("early".to_owned()) }
    });
    traffic.stop()
}
