//! Flows that go on all the time, and what agents tell of their handshakes, bundles and calls.

use std::time::Duration;

use weft_tests::eventually::Stopwatch;
use weft_tests::load::Echo;
use weft_tests::netns::Host;

/// Between two exchanges of a flow.
const PACE: Duration = Duration::from_millis(100);

/// The handshakes of an agent that did not end well, as its metrics tell.
pub(super) fn refused_handshakes(metrics: &str) -> Vec<String> {
    let ended = metrics.lines().filter(|line| line.starts_with("weft_tunnel_handshakes_total{"));
    ended.filter(|line| !line.contains("result=\"ok\"") && !line.ends_with(" 0")).map(str::to_owned).collect()
}

/// The newest calls that an agent's access log tells a code of, for whoever looks into a failure.
pub(super) fn refusals(log: &str) -> Vec<String> {
    let coded = log.lines().filter(|line| line.contains("\"code\":\"W") || line.contains("code=W"));
    let mut told: Vec<_> =
        coded.filter(|line| !line.contains("server lost")).map(|line| format!("{line}\n")).collect();
    told.split_off(told.len().saturating_sub(20))
}

/// The sequence numbers of the bundles that an agent put in force, in the order of its log.
pub(super) fn sequences(log: &str) -> Vec<u64> {
    let told = log.lines().filter(|line| line.contains("trust bundle in force"));
    let number = |line: &str| {
        let digits = line.split("sequence").nth(1)?;
        let digits = digits.trim_start_matches(|c: char| !c.is_ascii_digit());
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    told.filter_map(number).collect()
}

/// A flow that is opened again whenever it ends.
pub(super) struct Flows {
    stop: std::sync::mpsc::Sender<()>,
    worker: std::thread::JoinHandle<Result<Vec<Duration>, String>>,
}

impl Flows {
    pub(super) fn start(host: &Host, target: std::net::SocketAddr) -> Self {
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

    /// Whether one could not be opened, or did not answer, at the first try.
    pub(super) fn has_failed(&self) -> bool {
        self.worker.is_finished()
    }

    /// How long each flow lasted that ended.
    pub(super) fn stop(self) -> Vec<Duration> {
        // It may have ended by itself: then it says why.
        let _ = self.stop.send(());
        self.worker.join().expect("the worker only returns").expect("a flow opens at the first try")
    }
}
