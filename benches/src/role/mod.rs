//! The processes of a measurement, each one role of this same binary.
//!
//! Owns the hidden subcommand: its arguments and the protocol with the coordinator (a role that serves prints
//! `ready` once it can be connected to; a load prints one JSON line with its outcome).
//!
//! Invariant: no role outlives its coordinator. Each asks the kernel to be killed with its parent, and a role that
//! serves ends by itself after [`LIFETIME`].

pub(crate) mod load;
mod probe;
mod relay;
mod serve;
mod tls;

use std::ffi::OsString;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use tokio::net::{TcpListener, TcpSocket};

/// How long a serving role lives at most. A campaign of 101 runs with 60 s a measurement stays below it per run.
const LIFETIME: Duration = Duration::from_secs(3_600);

/// Pending connections of a listener: more than any row opens at once.
const BACKLOG: u32 = 4_096;

/// One process of a measurement.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Role {
    /// The program that is called: answers requests, swallows bulk.
    Serve {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// One half of a baseline relay pair.
    Relay(relay::Arguments),
    /// The program that calls.
    Load(load::Arguments),
    /// Calls until the first answer.
    Probe {
        #[arg(long)]
        to: SocketAddr,
    },
    /// Another program, tied to the life of the coordinator.
    Exec {
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// Runs the role to its end on one thread.
pub(crate) fn run(role: Role) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match role {
        Role::Serve { listen } => runtime.block_on(bounded(serve::run(listen))),
        Role::Relay(arguments) => runtime.block_on(bounded(relay::run(arguments))),
        Role::Load(arguments) => runtime.block_on(load::run(arguments)),
        Role::Probe { to } => runtime.block_on(probe::run(to)),
        Role::Exec { command } => exec(&command),
    }
}

/// Replaces this process; the parent-death signal survives that.
fn exec(command: &[OsString]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no program to start")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// Runs a serving role for [`LIFETIME`] at most.
async fn bounded(role: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::time::timeout(LIFETIME, role).await.context("nobody stopped this role")?
}

/// Listens on `address` and tells the coordinator so.
fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    ensure!(address.is_ipv4(), "the benches run on IPv4");
    socket.set_reuseaddr(true)?;
    socket.bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let listener = socket.listen(BACKLOG)?;
    say("ready")?;
    Ok(listener)
}

/// Writes one line to the coordinator.
fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
