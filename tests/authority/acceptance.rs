//! The acceptance run of security.md 3.4: certificates that live for seconds, issuers and roots that live not much longer,
//! calls and flows all the time.
//!
//! One server, and a handful of agents. The short form takes three minutes; `tests/long authority` asks for an hour by
//! `WEFT_LONG_AUTHORITY`, in seconds. A flow that stays in its tunnel ends with the certificates of its ends (security.md
//! 3.6, strict), so a long flow is one that is opened again at once, at the first try.

use std::time::Duration;

use weft_tests::app::loopback;
use weft_tests::eventually::{Stopwatch, throughout};
use weft_tests::load::{Echo, Traffic, failed_since};
use weft_tests::mesh::Mesh;
use weft_tests::netns::Host;

use super::{LONG, UPSTREAM, authority, scene};

/// Leaves of ten seconds, as security.md has them.
const LIVES: &str = "{leafTtl: 10s, intermediateTtl: 30s, rootTtl: 90s, allowShortLifetimes: true}";
const CALLERS: [&str; 3] = ["hosta", "hostb", "hostc"];
/// The short form: a root is replaced every 45 s.
const SHORT: Duration = Duration::from_secs(180);
/// Between two looks at what the server says.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two exchanges of a flow.
const PACE: Duration = Duration::from_millis(100);
/// The least life of a flow: tunnels are replaced that long before they end, and a little more (`overlay::pool::plan`).
const LEAST_FLOW: Duration = Duration::from_millis(500);

#[test]
fn roots_issuers_and_leaves_rotate_and_no_call_fails() {
    let asked = std::env::var("WEFT_LONG_AUTHORITY").ok().and_then(|text| text.parse().ok());
    let during = asked.map_or(SHORT, Duration::from_secs);
    let (mut mesh, _programs) = scene(LIVES, &CALLERS);
    let traffic = CALLERS.map(|host| Traffic::start(mesh.host(host), loopback(UPSTREAM)));
    let flows = CALLERS.map(|host| Flows::start(mesh.host(host), loopback(LONG)));
    let mut seen = Seen::default();

    throughout("calls and rotations go on", during, || seen.look(&mesh));

    let lives: Vec<Duration> = flows.into_iter().flat_map(Flows::stop).collect();
    let calls: Vec<_> = traffic.into_iter().flat_map(Traffic::stop).collect();
    let failed = failed_since(&calls, Duration::ZERO);
    let ended = lives.len();
    let told: String = CALLERS.iter().flat_map(|host| refusals(&mesh.agent_log(host))).collect();
    assert!(failed.is_empty(), "{} of {} calls failed: {failed:?}\n{told}", failed.len(), calls.len());
    let least = lives.iter().min().copied().unwrap_or(during);
    assert!(least >= LEAST_FLOW, "a flow lasted {least:?} only");
    for host in CALLERS.iter().chain(&["served"]) {
        let refused = refused_handshakes(&mesh.metrics(host).expect("metrics are served"));
        assert_eq!(refused, Vec::<String>::new(), "handshakes of {host} failed");
        let told = sequences(&mesh.agent_log(host));
        assert!(told.is_sorted() && told.len() > 1, "bundles went back at {host}: {told:?}");
    }
    seen.check(during);
    println!(
        "seed: {} calls, {ended} flows that ended with their certificates, {} roots, {} issuers",
        calls.len(),
        seen.roots.len(),
        seen.intermediates.len()
    );
}

/// What the server has said of its authority in the course of the run.
#[derive(Default)]
struct Seen {
    sequence: u64,
    roots: Vec<String>,
    intermediates: Vec<String>,
}

impl Seen {
    fn look(&mut self, mesh: &Mesh) -> Result<(), String> {
        std::thread::sleep(LOOK_EVERY);
        let told = authority(mesh);
        let sequence = told["bundleSequence"].as_u64().unwrap_or_default();
        if sequence < self.sequence {
            return Err(format!("the bundle went back from {} to {sequence}", self.sequence));
        }
        self.sequence = sequence;
        note(&mut self.intermediates, told["intermediateNotAfter"].as_str());
        let roots = told["roots"].as_array().cloned().unwrap_or_default();
        let active = roots.iter().filter(|root| root["state"] == "active").collect::<Vec<_>>();
        let [active] = active[..] else { return Err(format!("{} roots are active", active.len())) };
        note(&mut self.roots, active["sha256"].as_str());
        Ok(())
    }

    /// At least the rotations that the lives ask for: a root every 90 s at the latest, an issuer every 30 s.
    fn check(&self, during: Duration) {
        let at_least = |every: u64| usize::try_from(during.as_secs() / every).expect("it is small");
        assert!(self.roots.len() > at_least(90), "{} roots in {during:?}", self.roots.len());
        assert!(self.intermediates.len() > at_least(30), "{} issuers", self.intermediates.len());
    }
}

fn note(seen: &mut Vec<String>, value: Option<&str>) {
    if let Some(value) = value
        && seen.last().is_none_or(|last| last != value)
    {
        seen.push(value.to_owned());
    }
}

/// The handshakes of an agent that did not end well, as its metrics tell.
fn refused_handshakes(metrics: &str) -> Vec<String> {
    let ended = metrics.lines().filter(|line| line.starts_with("weft_tunnel_handshakes_total{"));
    ended.filter(|line| !line.contains("result=\"ok\"") && !line.ends_with(" 0")).map(str::to_owned).collect()
}

/// The calls that an agent's access log tells a code of, for whoever looks into a failure.
fn refusals(log: &str) -> Vec<String> {
    let coded = log.lines().filter(|line| line.contains("\"code\":\"W") || line.contains("code=W"));
    coded.filter(|line| !line.contains("server lost")).map(|line| format!("{line}\n")).take(20).collect()
}

/// The sequence numbers of the bundles that an agent put in force, in the order of its log.
fn sequences(log: &str) -> Vec<u64> {
    let told = log.lines().filter(|line| line.contains("trust bundle in force"));
    let number = |line: &str| {
        let digits = line.split("sequence").nth(1)?;
        let digits = digits.trim_start_matches(|c: char| !c.is_ascii_digit());
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    told.filter_map(number).collect()
}

/// A flow that is opened again whenever it ends.
struct Flows {
    stop: std::sync::mpsc::Sender<()>,
    worker: std::thread::JoinHandle<Result<Vec<Duration>, String>>,
}

impl Flows {
    fn start(host: &Host, target: std::net::SocketAddr) -> Self {
        let (stop, stopped) = std::sync::mpsc::channel();
        let host = host.clone();
        let worker = std::thread::spawn(move || {
            let mut lives = Vec::new();
            loop {
                let opened = Stopwatch::start();
                let mut echo = Echo::open(&host, target)?;
                echo.exchange(b"first").map_err(|error| format!("flow {}: {error}", lives.len()))?;
                loop {
                    match stopped.recv_timeout(PACE) {
                        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                        Ok(()) | Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Ok(lives),
                    }
                    if echo.exchange(b"more").is_err() {
                        break;
                    }
                }
                lives.push(opened.elapsed());
            }
        });
        Self { stop, worker }
    }

    /// How long each flow lasted that ended.
    fn stop(self) -> Vec<Duration> {
        // It may have ended by itself: then it says why.
        let _ = self.stop.send(());
        self.worker.join().expect("the worker only returns").expect("a flow opens at the first try")
    }
}
