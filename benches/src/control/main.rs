//! `weft-bench-control`: how long the control plane takes until something is in force everywhere.
//!
//! Owns the command line and the rows. A mesh of real processes on loopback ([`mesh`]) carries long flows ([`flows`]);
//! a row changes something, waits for the end of the last flow that it concerns, and undoes it. Time runs from before
//! the command is started, so a figure holds the start of that process and the commit as well.
//!
//! `scale` measures a mesh of a thousand simulated agents instead ([`scale`]).
//!
//! A further row is a variant of [`Row`] and what it does in [`Row::change`] and [`Row::undo`].

#[path = "../clock.rs"]
mod clock;
mod flows;
mod mesh;
mod plane;
mod scale;
#[path = "../stats.rs"]
#[allow(dead_code, reason = "the medians are for the other binary")]
mod stats;
#[path = "../table.rs"]
mod table;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};

use crate::flows::Flows;
use crate::mesh::{HUB, Mesh};

/// The target for 100 agents (decisions.md): p99 from the commit to the last connection closed.
const TARGET: Duration = Duration::from_secs(1);
/// The longest wait for the end of a flow, and for its return.
const AT_MOST: Duration = Duration::from_secs(60);

/// Measures how fast a change is in force everywhere.
#[derive(Debug, Parser)]
#[command(name = "weft-bench-control", version)]
struct Arguments {
    /// Agents, half of which call and half of which serve
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(4..=400))]
    agents: u16,
    /// Rounds of each row
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    rounds: u16,
    /// Row to measure; repeatable. All, if absent
    #[arg(long, value_enum)]
    only: Vec<Row>,
    /// Exit with 1 when the target is missed
    #[arg(long, global = true)]
    gate: bool,
    /// The `weft` binary to measure; the one beside this binary, if absent
    #[arg(long, global = true, env = "WEFT_BENCH_BINARY")]
    weft: Option<PathBuf>,
    #[command(subcommand)]
    what: Option<What>,
}

/// What is measured instead of the rows.
#[derive(Debug, Subcommand)]
enum What {
    Scale(scale::Scale),
}

/// What is changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Row {
    /// A DENY for every caller
    Policy,
    /// The identity of every caller is revoked
    Revoke,
    /// The node that serves every caller is banned
    Ban,
}

const DENY: &str = "\
apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: bench}
spec:
  targetRefs: [{group: \"\", kind: Namespace, name: bench}]
  action: DENY
  rules: [{name: order, sources: [{type: ServiceAccount, serviceAccount: {namespace: bench, name: order}}]}]
";

impl Row {
    const ALL: [Self; 3] = [Self::Policy, Self::Revoke, Self::Ban];

    fn change(self, mesh: &Mesh) -> Result<()> {
        match self {
            Self::Policy => mesh.weft_with(&["apply", "--force", "-f", "-"], DENY),
            Self::Revoke => mesh.weft(&["identity", "svid", "revoke", "--yes", mesh::CALLER]),
            Self::Ban => mesh.weft(&["agent", "ban", "--yes", &mesh.hub()]),
        }
    }

    fn undo(self, mesh: &Mesh) -> Result<()> {
        match self {
            Self::Policy => mesh.weft(&["delete", "--yes", "-n", "bench", "authorizationpolicy/nobody"]),
            Self::Revoke => mesh.weft(&["identity", "svid", "restore", mesh::CALLER]),
            Self::Ban => mesh.weft(&["agent", "unban", &mesh.hub()]),
        }
    }

    /// Whether the flow to a service is concerned.
    fn concerns(self, service: &str) -> bool {
        match self {
            Self::Policy | Self::Revoke => true,
            // The node of the hub serves nothing else.
            Self::Ban => service == HUB,
        }
    }
}

/// What the rounds of a row took, in microseconds.
#[derive(Default)]
struct Measured {
    flows: usize,
    each: Vec<u32>,
    last: Vec<u32>,
}

fn main() -> ExitCode {
    measure(&Arguments::parse()).unwrap_or_else(|error| {
        eprintln!("weft-bench-control: {error:#}");
        ExitCode::FAILURE
    })
}

fn measure(arguments: &Arguments) -> Result<ExitCode> {
    let binary = match &arguments.weft {
        Some(binary) => binary.clone(),
        None => std::env::current_exe()?.with_file_name("weft"),
    };
    ensure!(binary.is_file(), "there is no weft at {} (build it, or give --weft)", binary.display());
    if let Some(What::Scale(scale)) = &arguments.what {
        return scale::measure(&binary, scale, arguments.gate);
    }
    let mesh = Mesh::start(&binary, usize::from(arguments.agents))?;
    let rows = if arguments.only.is_empty() { Row::ALL.to_vec() } else { arguments.only.clone() };
    let heading =
        ["ROW", "AGENTS", "FLOWS", "ROUNDS", "EACH_P50", "EACH_P99", "LAST_P50", "LAST_P99", "LAST_MAX"];
    let mut table = table::Table::new(&heading);
    let mut missed = false;
    for row in rows {
        let mut measured = Measured::default();
        for round in 0..arguments.rounds {
            eprintln!("{row:?}, round {} of {}", round + 1, arguments.rounds);
            measured.round(row, &mesh)?;
        }
        missed |= stats::quantile(&mut measured.last, 0.99) > micros(TARGET);
        table.push(measured.cells(row, arguments));
    }
    std::io::stdout().write_all(table.text().as_bytes())?;
    if missed {
        eprintln!("weft-bench-control: the target of {TARGET:?} for the last connection (p99) is missed");
    }
    Ok(if missed && arguments.gate { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Measured {
    fn round(&mut self, row: Row, mesh: &Mesh) -> Result<()> {
        let flows = Flows::open(mesh.ways(), AT_MOST)?;
        let began = clock::now();
        row.change(mesh)?;
        let ended = flows.wait(|service| row.concerns(service), began, AT_MOST)?;
        let open = flows.open_now();
        ensure!(
            open + ended.len() == mesh.ways().len(),
            "{open} flows live and {} ended of {}: others were cut",
            ended.len(),
            mesh.ways().len()
        );
        row.undo(mesh)?;
        self.flows = ended.len();
        self.last.extend(ended.iter().max().copied().map(micros));
        self.each.extend(ended.into_iter().map(micros));
        Ok(())
    }

    fn cells(&mut self, row: Row, arguments: &Arguments) -> Vec<String> {
        let ms = |micros: u32| format!("{:.0} ms", f64::from(micros) / 1_000.0);
        vec![
            format!("{row:?}").to_lowercase(),
            arguments.agents.to_string(),
            self.flows.to_string(),
            arguments.rounds.to_string(),
            ms(stats::quantile(&mut self.each, 0.5)),
            ms(stats::quantile(&mut self.each, 0.99)),
            ms(stats::quantile(&mut self.last, 0.5)),
            ms(stats::quantile(&mut self.last, 0.99)),
            ms(stats::quantile(&mut self.last, 1.0)),
        ]
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
