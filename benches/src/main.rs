//! `weft-bench`: what a mesh costs, against a baseline measured in the same run.
//!
//! Owns the command line. The coordinator ([`campaign`]) makes the networks ([`site`]), starts one process per
//! role (the same binary again, hidden subcommand [`role`]), interleaves the measurements and hands them to
//! [`report`].
//!
//! Invariant: all traffic stays on loopback and in namespaces that this process made, and both are gone when it
//! ends, by error and signal too.

mod campaign;
mod clock;
mod host;
mod json;
mod lane;
mod measure;
mod pki;
mod process;
mod report;
mod results;
mod role;
mod row;
mod site;
mod stats;
mod table;
mod weft;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::campaign::{Campaign, Plan};
use crate::lane::Path;
use crate::row::Row;
use crate::site::Network;

/// Measures Weft, a TLS-over-TCP relay pair, a plain relay pair and no relay at all, side by side.
#[derive(Debug, Parser)]
#[command(name = "weft-bench", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Network to measure on; repeatable. Both, if this may make namespaces, else loopback.
    #[arg(long, value_enum)]
    net: Vec<Network>,
    /// Row to measure; repeatable. All, if absent.
    #[arg(long, value_enum, value_name = "ROW")]
    only: Vec<Row>,
    /// Path to measure; repeatable. All, if absent; ratios need `weft`, `tls` and `direct`.
    #[arg(long, value_enum)]
    path: Vec<Path>,
    /// Interleaved runs; a figure is the median of them.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=101))]
    runs: u16,
    /// Seconds of load per measurement.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=60))]
    seconds: u16,
    /// What goes to standard output.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Exit with 1 when a bound is missed too, not only when a row failed or the run is void.
    #[arg(long)]
    gate: bool,
    /// The `weft` binary to measure; the one beside this binary, if absent.
    #[arg(long, env = "WEFT_BENCH_BINARY")]
    weft: Option<PathBuf>,
    #[command(subcommand)]
    hidden: Option<Hidden>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
enum Hidden {
    /// One process of a measurement; started by the coordinator, not by people.
    #[command(subcommand, hide = true)]
    Role(role::Role),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.hidden {
        Some(Hidden::Role(role)) => role::run(role).map(|()| ExitCode::SUCCESS),
        None => coordinate(arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("weft-bench: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs the whole campaign on one thread: children get their parent-death signal when that thread ends.
fn coordinate(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let (mut hangup, mut interrupt, mut terminate) = (
            signal(SignalKind::hangup())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        );
        // Dropping the campaign kills its children and deletes its namespaces; nothing else cleans up.
        tokio::select! {
            outcome = measure_and_print(arguments) => outcome,
            _ = hangup.recv() => Ok(ExitCode::from(129)),
            _ = interrupt.recv() => Ok(ExitCode::from(130)),
            _ = terminate.recv() => Ok(ExitCode::from(143)),
        }
    })
}

async fn measure_and_print(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let plan = Plan {
        networks: site::choose(&arguments.net),
        rows: if arguments.only.is_empty() { Row::ALL.to_vec() } else { row::ordered(&arguments.only) },
        paths: if arguments.path.is_empty() { Path::ALL.to_vec() } else { lane::ordered(&arguments.path) },
        runs: arguments.runs,
        seconds: arguments.seconds,
        weft: match arguments.weft {
            Some(path) => path,
            None => std::env::current_exe()?.with_file_name("weft"),
        },
    };
    let results = Campaign::new(plan)?.run().await?;
    match arguments.output {
        Output::Table => report::print(&results)?,
        Output::Json => json::print(&results)?,
    }
    let problems = results.problems(arguments.gate);
    for problem in &problems {
        eprintln!("weft-bench: {problem}");
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
