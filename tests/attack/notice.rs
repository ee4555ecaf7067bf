//! What an attack may cost, measured: the outcome rules G of the catalogue.
//!
//! An honest caller makes calls all the time. [`Notice::of`] measures before, during and after an attack:
//!
//! - the agent lives, and nothing in it has panicked;
//! - no honest call fails, and the slowest hundredth takes no longer than twice what it took before;
//! - its memory is back within a minute, to within a tenth of what it was;
//! - a counter has moved; the log has at most one line of a kind a second; no key stands in it.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use weft_tests::app::loopback;
use weft_tests::eventually::{Stopwatch, eventually};
use weft_tests::load::{Call, Traffic};
use weft_tests::mesh::Mesh;

/// How long the time before an attack is watched.
const BEFORE: Duration = Duration::from_secs(2);
/// The slowest hundredth of the calls may always take this long: on two cores that run the attacker, three agents, a
/// server and other tests, the scheduler alone is good for that.
const NOISE: Duration = Duration::from_millis(400);
const BACK_WITHIN: Duration = Duration::from_secs(60);
const COUNTED_WITHIN: Duration = Duration::from_secs(15);
/// Lines that come and go with any tunnel.
const USUAL_LINES: u64 = 20;

/// What was seen.
pub(crate) struct Notice {
    pub(crate) cpu: Duration,
    pub(crate) took: Duration,
    pub(crate) peak_kib: u64,
    pub(crate) before_kib: u64,
}

impl Notice {
    /// Runs `attack` against the agent of `node` while `caller` calls at `port`, and holds it to the rules. `counter` is
    /// the beginning of the metric that must move.
    #[track_caller]
    pub(crate) fn of<T>(
        mesh: &mut Mesh,
        (caller, port): (&str, u16),
        node: &str,
        counter: &str,
        attack: impl FnOnce(&Mesh) -> T,
    ) -> (Self, T) {
        let pid = mesh.agent(node).pid();
        let target: SocketAddr = loopback(port);
        let traffic = Traffic::start(mesh.host(caller), target);
        std::thread::sleep(BEFORE);
        let (before_kib, counted) = (rss_kib(pid), count(mesh, node, counter));
        let lines = mesh.agent(node).stderr().lines().count();
        let (began, watch, cpu) = (traffic.now(), Stopwatch::start(), cpu_time(pid));
        let outcome = attack(mesh);
        let (took, cpu) = (watch.elapsed(), cpu_time(pid).saturating_sub(cpu));
        let peak_kib = rss_kib(pid);
        let calls = traffic.stop();

        mesh.agent(node).assert_running();
        // A handshake that nobody finishes is counted when its five seconds are over.
        eventually("the counter moves", COUNTED_WITHIN, || match count(mesh, node, counter) {
            moved if moved > counted => Ok(()),
            still => Err(format!("{counter} was {counted} and is {still}")),
        });
        let log = mesh.agent(node).stderr();
        assert!(!log.contains("panicked") && !log.contains("PRIVATE KEY"), "{log}");
        // Four kinds of lines may each come once a second.
        let more = (log.lines().count() - lines) as u64;
        assert!(more <= USUAL_LINES + 4 * (took.as_secs() + 1), "{more} lines in {took:?}:\n{log}");
        judge(&calls, began);
        let bound = before_kib + before_kib / 10;
        eventually("its memory is given back", BACK_WITHIN, || match rss_kib(pid) {
            now if now <= bound => Ok(()),
            now => Err(format!(
                "{now} KiB, before it was {before_kib} KiB, at the end of the attack {peak_kib} KiB"
            )),
        });
        println!("memory: {before_kib} KiB before, {peak_kib} KiB at the end, {} KiB after", rss_kib(pid));
        (Self { cpu, took, peak_kib, before_kib }, outcome)
    }
}

/// No call failed, and during the attack the slowest hundredth was no slower than twice as before.
#[track_caller]
fn judge(calls: &[Call], began: Duration) {
    let failed: Vec<&Call> = calls.iter().filter(|call| call.outcome.is_err()).collect();
    assert!(failed.is_empty(), "{} of {} calls failed, first {:?}", failed.len(), calls.len(), failed[0]);
    let (before, during): (Vec<&Call>, Vec<&Call>) = calls.iter().partition(|call| call.began < began);
    let (before, during) = (p99(&before), p99(&during));
    println!("p99 of honest calls: {before:?} before, {during:?} during the attack");
    assert!(during <= NOISE.max(2 * before), "p99 was {before:?} and is {during:?}");
}

fn p99(calls: &[&Call]) -> Duration {
    let mut took: Vec<Duration> = calls.iter().map(|call| call.ended - call.began).collect();
    took.sort_unstable();
    took.get(took.len() * 99 / 100).copied().unwrap_or_default()
}

/// The sum of all series that begin with `counter`.
fn count(mesh: &Mesh, node: &str, counter: &str) -> u64 {
    let text = mesh.metrics(node).expect("metrics are served");
    let values =
        text.lines().filter(|line| line.starts_with(counter)).filter_map(|line| line.split(' ').next_back());
    values.filter_map(|value| value.parse::<u64>().ok()).sum()
}

fn rss_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the agent runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("every process has one");
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number")
}

/// User and system time, in the kernel's hundredths of a second.
fn cpu_time(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the agent runs");
    let fields = text.rsplit_once(')').expect("the name stands in brackets").1;
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
    Duration::from_millis(10 * ticks.sum::<u64>())
}
