//! `weft-bench-control scale`: what a change costs in a mesh of a thousand agents, on one server.
//!
//! The server is the real binary. The agents are simulated in this process ([`agent`]), each with an SVID, a connection
//! and a discovery stream of its own; a few real ones beside them show what a mesh costs one of its agents. Time runs from
//! before the call of `Apply` until an agent has handed its acknowledgement to its connection.

mod agent;
mod board;
mod fleet;
mod person;
mod report;
mod usage;
mod wire;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::task::JoinSet;

use self::fleet::{EACH, Fleet, service};
use self::person::{NAMESPACE, Person};
use self::report::{Report, Times};
use crate::plane::{Plane, TRUST_DOMAIN, free_port, workload};
use crate::{clock, stats};

/// The target for a change of policy (decisions.md), here from the call to the last of all agents.
const TARGET: Duration = Duration::from_secs(1);
/// The most that the server may have in memory.
const SERVER_MIB: f64 = 1_024.0;
/// What an agent may have in memory in a mesh of ten times the size, as a multiple of what it has in the smaller one.
const AGENT_RATIO: f64 = 1.1;
/// Real agents that are started in each size of the mesh: the median counts.
const REAL: usize = 3;
/// From the start of a real agent until its memory is read: it gives free pages back every 15 s.
const REST: Duration = Duration::from_secs(35);
/// Between two changes of policy while endpoints change.
const EVERY: Duration = Duration::from_secs(1);
/// All agents come from one address, and join at once.
const LIMITS: &str = "connectionsPerAddress: 4096, connectionAge: 12h, anonymousPerAddress: 512, \
    joinsPerSecond: 10000, joinBurst: 10000, openTokens: 10000";
/// Calls that fill the denylist at the same time.
const DENIED_AT_ONCE: usize = 64;
/// Entries that are added one by one to the full list.
const DENIED_ROUNDS: u32 = 20;
/// The policy that a round changes.
const POLICY: &str = "round";

/// A mesh of many agents, services and endpoints
#[derive(Debug, Args)]
pub(crate) struct Scale {
    /// Simulated agents, and as many services; ten times as many endpoints. A multiple of ten
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(20..=3_000))]
    agents: u16,
    /// Changes of policy while nothing else changes
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    rounds: u16,
    /// Seconds in which endpoints change, 1 % of them each second
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..=3_600))]
    churn: u16,
    /// Seconds after which the memory of a real agent is read
    #[arg(long, default_value_t = REST.as_secs())]
    rest: u64,
    /// Entries of the denylist; 0 leaves that row out
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=99_000))]
    denied: u32,
    /// Print an object for programs instead of the tables
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Runs everything and prints it. With `gate` the exit code is 1 when a bound is missed.
pub(crate) fn measure(binary: &Path, arguments: &Scale, gate: bool) -> Result<ExitCode> {
    ensure!(usize::from(arguments.agents).is_multiple_of(EACH), "the agents come in tens");
    // Every simulated agent has a connection here, and one at the server, which inherits the bound.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let plane = Plane::start(binary, LIMITS)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut report = runtime.block_on(async {
        let person = Person::at(&plane.socket()).await?;
        let mut bench = Bench { plane, person, fleet: Fleet::new(), report: Report::default(), round: 0 };
        bench.run(arguments).await?;
        anyhow::Ok(bench.report)
    })?;
    report.print(arguments.output == Output::Json)?;
    let missed = report.missed();
    if !missed.is_empty() {
        eprintln!("weft-bench-control: missed: {}", missed.join(", "));
    }
    Ok(if gate && !missed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

struct Bench {
    plane: Plane,
    person: Person,
    fleet: Fleet,
    report: Report,
    round: u64,
}

/// What a round changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Whom {
    /// A rule for every service.
    All,
    /// A rule for one.
    One,
}

impl Bench {
    async fn run(&mut self, arguments: &Scale) -> Result<()> {
        let agents = usize::from(arguments.agents);
        let small = (agents / EACH / EACH * EACH).max(EACH);
        self.report.agents = agents;
        let rest = Duration::from_secs(arguments.rest);
        self.fleet.grow(small, &mut self.person, &self.plane).await?;
        let before = self.real_agents("small", rest).await?;
        self.fleet.grow(agents - small, &mut self.person, &self.plane).await?;
        let after = self.real_agents("large", rest).await?;
        self.report.figure("agent-small-mesh", "MiB", before, None);
        self.report.figure("agent-large-mesh", "MiB", after, None);
        self.report.figure("agent-large-to-small", "", after / before, Some(AGENT_RATIO));
        self.server_memory("server-at-rest", usage::resident_kib(self.plane.server())?);
        self.quiet("policy-all", Whom::All, arguments.rounds).await?;
        self.quiet("policy-one", Whom::One, arguments.rounds).await?;
        self.churning(Duration::from_secs(arguments.churn.into())).await?;
        if arguments.denied > 0 {
            self.denied(arguments.denied, rest).await?;
        }
        Ok(())
    }

    /// Starts real agents that call ten services, and says how much memory they have, in MiB.
    async fn real_agents(&mut self, mesh: &str, rest: Duration) -> Result<f64> {
        self.fleet.settle().await?;
        let mut processes = Vec::new();
        for number in 0..REAL {
            let mut upstreams = Vec::new();
            for called in 0..EACH {
                upstreams.push(format!(
                    "{{service: {}, port: 7, listen: \"{}\"}}",
                    service(called),
                    free_port()?
                ));
            }
            let workloads = workload("order", &format!("upstreams: [{}]", upstreams.join(", ")));
            processes.push(self.plane.start_agent(&format!("{mesh}{number}"), &["order"], &workloads)?);
        }
        tokio::time::sleep(rest).await;
        let resident: Vec<_> = processes.into_iter().map(usage::resident_kib).collect::<Result<_>>()?;
        let spread = stats::spread(resident.into_iter().map(|kib| kib as f64 / 1_024.0));
        Ok(spread.context("there are agents")?.median)
    }

    fn server_memory(&mut self, row: &'static str, kib: u64) {
        self.report.figure(row, "MiB", kib as f64 / 1_024.0, Some(SERVER_MIB));
    }

    /// Changes a policy `rounds` times while nothing else changes.
    async fn quiet(&mut self, row: &'static str, whom: Whom, rounds: u16) -> Result<()> {
        let mut times = Times::new(row, Some(TARGET));
        self.fleet.settle().await?;
        let before = self.fleet.board().wire.received();
        for _ in 0..rounds {
            change(&self.fleet, &mut self.person, &mut self.round, whom, &mut times).await?;
        }
        self.fleet.settle().await?;
        let bytes = self.fleet.board().wire.received() - before;
        times.bytes = Some(bytes / u64::from(rounds));
        self.report.times(times);
        Ok(())
    }
}

impl Bench {
    /// The same while endpoints come and go.
    async fn churning(&mut self, lasts: Duration) -> Result<()> {
        self.fleet.settle().await?;
        let (board, server) = (Arc::clone(self.fleet.board()), self.plane.server());
        board.take_lags();
        let (began, until) = (clock::now(), clock::now() + lasts);
        let (received, updates, cpu) = (board.wire.received(), board.updates(), usage::cpu(server)?);
        let (fleet, person) = (&self.fleet, &mut self.person);
        let rate = u32::try_from(fleet.agents() * EACH / 100)?;
        let mut times = Times::new("policy-all-in-churn", Some(TARGET));
        let policies = changes(fleet, person, &mut self.round, &mut times, until);
        let (churn, ()) = tokio::try_join!(fleet.churn(rate, until), policies)?;
        let seconds = clock::now().saturating_duration_since(began).as_secs_f64();
        let cpu = usage::cpu(server)?.saturating_sub(cpu).as_secs_f64() / seconds;
        let bytes = board.wire.received() - received;
        let each = board.take_lags();
        self.report.times(times);
        let changes = churn.len();
        let row = |row, each| Times { changes, each, ..Times::new(row, None) };
        let bytes = Some(bytes / changes.max(1) as u64);
        self.report.times(Times { bytes, ..row("endpoint-in-churn", each) });
        self.report.times(row("registration-in-churn", churn));
        self.report.figure("churn", "endpoints/s", changes as f64 / lasts.as_secs_f64(), None);
        self.report.figure("updates-in-churn", "/s", (board.updates() - updates) as f64 / seconds, None);
        self.report.figure("server-cpu-in-churn", "processors", cpu, None);
        self.server_memory("server-after-churn", usage::resident_kib(server)?);
        self.server_memory("server-peak", usage::peak_kib(server)?);
        Ok(())
    }

    /// Fills the denylist, and measures what it costs and how fast one more entry is in force.
    async fn denied(&mut self, entries: u32, rest: Duration) -> Result<()> {
        let mut calls = JoinSet::new();
        for number in 0..entries {
            let mut person = self.person.clone();
            calls.spawn(async move { person.deny(stranger(number)).await });
            if calls.len() >= DENIED_AT_ONCE {
                calls.join_next().await.context("there are calls")???;
                eprint!("\r{number} of {entries} entries");
            }
        }
        while let Some(call) = calls.join_next().await {
            call??;
        }
        let agent = self.real_agents("denied", rest).await?;
        self.report.figure("agent-with-denylist", "MiB", agent, None);
        self.server_memory("server-with-denylist", usage::resident_kib(self.plane.server())?);
        let mut times = Times::new("denied", Some(TARGET));
        let board = Arc::clone(self.fleet.board());
        board.watch("Denied", "");
        let before = board.wire.received();
        for number in 0..DENIED_ROUNDS {
            let began = clock::now();
            let revision = self.person.deny(stranger(entries + number)).await?;
            times.take(board.wait(self.fleet.agents(), revision, began).await?);
        }
        self.fleet.settle().await?;
        times.bytes = Some((board.wire.received() - before) / u64::from(DENIED_ROUNDS));
        self.report.times(times);
        self.server_memory("server-peak-with-denylist", usage::peak_kib(self.plane.server())?);
        Ok(())
    }
}

/// An identity that nobody has.
fn stranger(number: u32) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/stranger-{number}")
}

/// Changes the policy, and waits until it is in force at everybody whom it concerns.
async fn change(
    fleet: &Fleet,
    person: &mut Person,
    round: &mut u64,
    whom: Whom,
    times: &mut Times,
) -> Result<()> {
    *round += 1;
    let account = format!("caller-{round}");
    let (policy, agents) = match whom {
        Whom::All => (person::for_all(POLICY, &account), fleet.agents()),
        Whom::One => (person::for_one(POLICY, &service(0), &account), EACH),
    };
    let board = fleet.board();
    board.watch("AuthorizationPolicy", POLICY);
    let began = clock::now();
    let revision = person.apply(&[policy]).await?;
    times.take(board.wait(agents, revision, began).await?);
    Ok(())
}

/// A change of the policy for all each second, until `until`.
async fn changes(
    fleet: &Fleet,
    person: &mut Person,
    round: &mut u64,
    times: &mut Times,
    until: Instant,
) -> Result<()> {
    let mut tick = tokio::time::interval(EVERY);
    while clock::now() < until {
        tick.tick().await;
        change(fleet, person, round, Whom::All, times).await?;
    }
    Ok(())
}
