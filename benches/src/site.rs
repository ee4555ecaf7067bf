//! Where a campaign runs: two network namespaces joined by a veth pair, or loopback.
//!
//! Owns the namespaces, their addresses and routes, and the ports handed out in them. The host's own network is
//! never touched: the veth pair is born inside its namespaces, and the loopback network has a namespace of its own
//! where this process may make one.
//!
//! TCP runs CUBIC here, chosen per route: where the kernel's default is `bbr` and no `fq` qdisc stands below, local
//! TCP is throttled five times (12.8 against 61 Gbit/s direct), and both the baseline and the programs' own legs
//! would measure that instead of a relay.
//!
//! Invariant: a namespace made here is deleted when its [`Site`] is dropped. One that a killed process left behind
//! is deleted by the next campaign.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use nix::unistd::geteuid;

use crate::host;

/// Addresses of the two ends; seen by nobody outside the two namespaces.
const CLIENT_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const SERVER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// Where iproute2 keeps named namespaces.
const NAMESPACE_DIRECTORY: &str = "/run/netns";

/// First port handed out in a namespace; below [`EPHEMERAL`], so that no outgoing flow takes it.
const FIRST_PORT: u16 = 7_100;

/// Ports of outgoing flows in a namespace: twice the default, because each short flow leaves one in TIME_WAIT.
const EPHEMERAL: &str = "10240 65535";

/// A kind of network to measure on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Network {
    /// Two namespaces, one veth pair, MTU 1500, default offloads.
    Pair,
    /// Everything on 127.0.0.1.
    Loopback,
}

/// A network that exists.
pub(crate) struct Site {
    /// Where the calling program and its relay run.
    pub(crate) client: Place,
    /// Where the called program and its relay run.
    pub(crate) server: Place,
    /// What a reader should know about the network, for the heading.
    pub(crate) description: String,
    next_port: Cell<u16>,
    namespaces: Vec<Namespace>,
}

/// One end of a [`Site`].
#[derive(Clone)]
pub(crate) struct Place {
    namespace: Option<String>,
    /// The address that the other end reaches.
    pub(crate) address: IpAddr,
}

/// A named namespace; deleted when dropped.
struct Namespace(String);

/// Returns the networks `asked` for, or those that this process can have.
pub(crate) fn choose(asked: &[Network]) -> Vec<Network> {
    match (asked, may_make_namespaces()) {
        ([], true) => vec![Network::Pair, Network::Loopback],
        ([], false) => {
            eprintln!("weft-bench: not root, so no namespaces: measuring on loopback alone");
            vec![Network::Loopback]
        }
        (asked, _) => asked.to_vec(),
    }
}

impl Network {
    /// The name in the table and in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pair => "pair",
            Self::Loopback => "loopback",
        }
    }
}

impl Site {
    /// Makes the network.
    ///
    /// # Errors
    ///
    /// Whatever `ip` says; what was made until then is deleted again.
    pub(crate) fn make(network: Network) -> Result<Self> {
        match network {
            Network::Pair => {
                ensure!(may_make_namespaces(), "the pair network needs root; try --net loopback");
                Self::pair()
            }
            Network::Loopback if may_make_namespaces() => Self::own_loopback(),
            Network::Loopback => Ok(Self::host_loopback()),
        }
    }

    fn pair() -> Result<Self> {
        delete_leftovers();
        let (client, server) = (Namespace::make('a')?, Namespace::make('b')?);
        let (a, b) = (&client.0, &server.0);
        ip(format!("link add wb0 mtu 1500 netns {a} type veth peer name wb0 mtu 1500 netns {b}"))?;
        for (name, address) in [(a, CLIENT_ADDRESS), (b, SERVER_ADDRESS)] {
            prepare_loopback(name)?;
            ip(format!("-n {name} addr add {address}/24 dev wb0"))?;
            ip(format!("-n {name} link set wb0 up"))?;
            ip(format!(
                "-n {name} route replace 10.77.0.0/24 dev wb0 proto kernel scope link src {address} congctl cubic"
            ))?;
            ip(format!(
                "-n {name} route replace table local local {address} dev wb0 proto kernel scope host \
                 src {address} congctl cubic"
            ))?;
        }
        Ok(Self {
            client: Place { namespace: Some(a.clone()), address: CLIENT_ADDRESS.into() },
            server: Place { namespace: Some(b.clone()), address: SERVER_ADDRESS.into() },
            description: "two namespaces, veth pair, MTU 1500, default offloads, TCP legs CUBIC".to_owned(),
            next_port: Cell::new(FIRST_PORT),
            namespaces: vec![client, server],
        })
    }

    fn own_loopback() -> Result<Self> {
        delete_leftovers();
        let namespace = Namespace::make('l')?;
        prepare_loopback(&namespace.0)?;
        let place = Place { namespace: Some(namespace.0.clone()), address: Ipv4Addr::LOCALHOST.into() };
        Ok(Self {
            client: place.clone(),
            server: place,
            description: "loopback of a namespace, MTU 65536, TCP legs CUBIC".to_owned(),
            next_port: Cell::new(FIRST_PORT),
            namespaces: vec![namespace],
        })
    }

    /// The host's own loopback, for who may make no namespace. Nothing of it is changed, so TCP runs what the host
    /// runs.
    fn host_loopback() -> Self {
        let place = Place { namespace: None, address: Ipv4Addr::LOCALHOST.into() };
        let congestion = host::default_congestion_control();
        Self {
            client: place.clone(),
            server: place,
            description: format!(
                "loopback of the host, MTU 65536, TCP legs {congestion} (the host's default)"
            ),
            next_port: Cell::new(FIRST_PORT),
            namespaces: Vec::new(),
        }
    }

    /// Whether the TCP legs were given CUBIC here, so that anything else is a fault of the bench.
    pub(crate) fn sets_cubic(&self) -> bool {
        !self.namespaces.is_empty()
    }

    /// Returns a port that nothing listens on, at either end, and that was not handed out before.
    pub(crate) fn port(&self) -> Result<u16> {
        if self.namespaces.is_empty() {
            return Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port());
        }
        let port = self.next_port.get();
        self.next_port.set(port.checked_add(1).context("no port left")?);
        Ok(port)
    }

    /// The address to listen on so that both ends reach it: every one in a namespace of the bench, else loopback.
    pub(crate) fn reachable_by_both(&self) -> IpAddr {
        if self.namespaces.len() == 2 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv4Addr::LOCALHOST.into() }
    }
}

impl Place {
    /// Returns a command that runs `program` at this place. Its process is `program` itself, not a parent of it:
    /// `ip netns exec` replaces itself.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> tokio::process::Command {
        match &self.namespace {
            None => tokio::process::Command::new(program),
            Some(name) => {
                let mut command = tokio::process::Command::new("ip");
                command.args(["netns", "exec", name]).arg(program);
                command
            }
        }
    }

    /// The socket address of `port` at this place's own loopback.
    pub(crate) fn local(&self, port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// The socket address of `port` as the other end sees it.
    pub(crate) fn remote(&self, port: u16) -> SocketAddr {
        (self.address, port).into()
    }
}

impl Namespace {
    /// `wb-<end>-<pid>`: named after this process, so that a leftover can be told from one in use.
    fn make(end: char) -> Result<Self> {
        let name = format!("wb-{end}-{}", std::process::id());
        ip(format!("netns add {name}"))?;
        Ok(Self(name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(format!("netns del {}", self.0)) {
            eprintln!("weft-bench: namespace {} stays behind: {error:#}", self.0);
        }
    }
}

fn may_make_namespaces() -> bool {
    geteuid().is_root()
}

/// Brings loopback up with CUBIC and gives short flows room.
fn prepare_loopback(name: &str) -> Result<()> {
    ip(format!("-n {name} link set lo up"))?;
    for prefix in ["127.0.0.0/8", "127.0.0.1"] {
        ip(format!(
            "-n {name} route replace table local local {prefix} dev lo proto kernel scope host \
             src 127.0.0.1 congctl cubic"
        ))?;
    }
    set(name, "ip_local_port_range", EPHEMERAL)?;
    // Reuse ports in TIME_WAIT after a second on every interface, as the default does on loopback alone.
    set(name, "tcp_tw_reuse", "1")
}

fn set(name: &str, key: &str, value: &str) -> Result<()> {
    let write = format!("echo {value} > /proc/sys/net/ipv4/{key}");
    run(Command::new("ip").args(["netns", "exec", name, "sh", "-c", &write]))
}

/// Runs `ip` with the words of `arguments`.
fn ip(arguments: impl AsRef<str>) -> Result<()> {
    run(Command::new("ip").args(arguments.as_ref().split_whitespace()))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().context("cannot start ip (package iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(())
}

/// Deletes namespaces of campaigns whose process is gone.
fn delete_leftovers() {
    let Ok(entries) = fs::read_dir(NAMESPACE_DIRECTORY) else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        if owner(&name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            drop(Namespace(name));
        }
    }
}

/// The process that a namespace of this bench is named after.
fn owner(name: &str) -> Option<u32> {
    let (end, pid) = name.strip_prefix("wb-")?.split_once('-')?;
    matches!(end, "a" | "b" | "l").then(|| pid.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_bench_have_an_owner() {
        assert_eq!(owner("wb-a-42"), Some(42));
        assert_eq!(owner("wb-l-7"), Some(7));
        for foreign in ["wb-c-42", "wb-a-", "wb-a-x", "weft-a-42", "wb-42"] {
            assert_eq!(owner(foreign), None, "{foreign}");
        }
    }
}
