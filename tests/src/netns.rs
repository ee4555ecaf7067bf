//! Hosts as network namespaces on one bridge, with links that can be cut.
//!
//! ```text
//!   hostA (eth0 10.77.0.1, fd77::1) ──┐
//!   hostB (eth0 10.77.0.2, fd77::2) ──┤ br0 in the namespace "hub", which filters
//!   hostC (eth0 10.77.0.3, fd77::3) ──┘
//! ```
//!
//! Packets are dropped in the hub and not on a host, as a firewall or a broken switch does: the
//! sender is told nothing. Names carry the pid of the test, so that tests do not meet; namespaces
//! of tests that died are removed when the next network is made, by that prefix and pid only.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::process::Program;

/// What the names of all namespaces of this harness start with; the pid of the test follows.
const PREFIX: &str = "weft-test-";

static NETWORKS: AtomicU32 = AtomicU32::new(0);

/// What the hub drops of the packets that cross it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fault {
    /// Every UDP packet between any two hosts; TCP passes.
    NoUdp,
    /// Everything from and to this host.
    Cut(Host),
    /// Everything to this host: it can speak, and hears nothing.
    Deaf(Host),
    /// Everything from this host: it hears, and nobody hears it.
    Mute(Host),
    /// Every IP packet of more bytes than this, without a word to its sender: a black hole for path MTU discovery. Hosts
    /// that send segments must cut them up themselves ([`Host::cut_up_segments`]), or all of a batch is one packet.
    LongerThan(u16),
}

/// Hosts that can reach each other. Dropping it ends what still runs on them and removes them.
#[derive(Debug)]
pub struct Network {
    hub: String,
    hosts: Vec<Host>,
    folder: TempDir,
}

/// One host: a network namespace with a folder of its own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Host {
    name: String,
    netns: String,
    number: u8,
    folder: PathBuf,
}

impl Network {
    /// Makes a network with a host for each of `names`.
    ///
    /// # Panics
    ///
    /// If this is not run as root, or `ip` or `nft` is missing: end-to-end tests are never silently skipped.
    #[track_caller]
    pub fn new(names: &[&str]) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "end-to-end tests make network namespaces: run them as root, or only the others with `tests/run --unit`"
        );
        remove_stale();
        let id = format!("{PREFIX}{}-{}", std::process::id(), NETWORKS.fetch_add(1, Ordering::Relaxed));
        let mut folder = tempfile::Builder::new().prefix("weft-").tempdir().expect("a temporary folder");
        // To look at configurations, logs and state after a test, run it with WEFT_KEEP=1.
        folder.disable_cleanup(std::env::var_os("WEFT_KEEP").is_some());
        // Programs of other users work in here.
        run(&["chmod", "755", &folder.path().to_string_lossy()]);
        let hosts = names.iter().zip(1..).map(|(name, number)| {
            let folder = folder.path().join(name);
            fs::create_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
            Host { name: (*name).to_owned(), netns: format!("{id}-{name}"), number, folder }
        });
        let network = Self { hub: format!("{id}-hub"), hosts: hosts.collect(), folder };
        network.build();
        network
    }

    /// The host of that name.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[track_caller]
    pub fn host(&self, name: &str) -> &Host {
        let host = self.hosts.iter().find(|host| host.name == name);
        host.unwrap_or_else(|| panic!("no host {name} in this network"))
    }

    /// The folder that holds the folders of the hosts; removed with the network.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// From now on the hub drops what `faults` say, and nothing else. `&[]` heals everything.
    ///
    /// # Panics
    ///
    /// If the filter cannot be set.
    #[track_caller]
    pub fn set_faults(&self, faults: &[Fault]) {
        let rules: String = faults.iter().map(Fault::rules).collect();
        let table = format!(
            "table bridge weft\ndelete table bridge weft\n\
             table bridge weft {{\n chain forward {{\n  type filter hook forward priority 0; policy accept;\n{rules} }}\n}}\n"
        );
        Program::new("nft", self.folder.path())
            .in_netns(&self.hub)
            .args(["-f", "-"])
            .input(&table)
            .run()
            .expect_success();
    }

    fn build(&self) {
        let hub = self.hub.as_str();
        run(&["ip", "netns", "add", hub]);
        run(&[
            "ip",
            "-n",
            hub,
            "link",
            "add",
            "br0",
            "type",
            "bridge",
            "stp_state",
            "0",
            "forward_delay",
            "0",
        ]);
        run(&["ip", "-n", hub, "link", "set", "br0", "up"]);
        for host in &self.hosts {
            let (netns, port) = (host.netns.as_str(), host.port());
            let (ip4, ip6) = (format!("{}/24", host.ip4()), format!("{}/64", host.ip6()));
            run(&["ip", "netns", "add", netns]);
            run(&[
                "ip", "-n", hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", netns,
            ]);
            run(&["ip", "-n", hub, "link", "set", &port, "master", "br0", "up"]);
            run(&["ip", "-n", netns, "link", "set", "lo", "up"]);
            run(&["ip", "-n", netns, "link", "set", "eth0", "up"]);
            run(&["ip", "-n", netns, "addr", "add", &ip4, "dev", "eth0"]);
            run(&["ip", "-n", netns, "addr", "add", &ip6, "dev", "eth0", "nodad"]);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for netns in self.hosts.iter().map(|host| &host.netns).chain([&self.hub]) {
            remove(netns);
        }
    }
}

impl Host {
    /// Lets no packet leave this host that is several in one (UDP segmentation offload).
    ///
    /// # Panics
    ///
    /// If the link cannot be set so.
    #[track_caller]
    pub fn cut_up_segments(&self) {
        run(&["ip", "-n", &self.netns, "link", "set", "eth0", "gso_max_segs", "1"]);
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its IPv4 address on the network.
    pub fn ip4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    /// Its IPv6 address on the network.
    pub fn ip6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, self.number.into())
    }

    /// Both addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.ip4().into(), self.ip6().into()]
    }

    /// A folder for its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A program to run on this host.
    pub fn program(&self, program: impl AsRef<std::ffi::OsStr>) -> Program {
        Program::new(program, &self.folder).in_netns(&self.netns)
    }

    /// Runs `work` in a thread of this process that stands on this host: its sockets are this host's.
    ///
    /// # Panics
    ///
    /// If the namespace cannot be entered, or `work` panics.
    #[track_caller]
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(netns_file(&self.netns)).expect("the namespace is there while its network is");
        let outcome = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
                work()
            });
            thread.join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The interface in the hub that leads to this host.
    fn port(&self) -> String {
        format!("to-{}", self.number)
    }
}

impl Fault {
    fn rules(&self) -> String {
        match self {
            Self::NoUdp => "  meta l4proto udp drop\n".to_owned(),
            Self::Cut(host) => {
                format!("{}{}", Self::Deaf(host.clone()).rules(), Self::Mute(host.clone()).rules())
            }
            Self::Deaf(host) => format!("  oifname \"{}\" drop\n", host.port()),
            Self::Mute(host) => format!("  iifname \"{}\" drop\n", host.port()),
            Self::LongerThan(bytes) => format!("  ip length > {bytes} drop\n"),
        }
    }
}

/// Removes the namespaces of tests whose process is gone, and what still runs in them.
fn remove_stale() {
    let Ok(entries) = fs::read_dir("/run/netns") else { return };
    for name in entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()) {
        let Some(owner) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        if owner.parse::<u32>().is_ok() && !Path::new("/proc").join(owner).exists() {
            remove(&name);
        }
    }
}

/// Ends every process in a namespace of this harness, and removes it. Another test may be at it too,
/// so what is gone already is no failure.
fn remove(netns: &str) {
    let pids = Command::new("ip").args(["netns", "pids", netns]).output();
    let pids = pids.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = Command::new("ip").args(["netns", "del", netns]).output();
}

fn netns_file(netns: &str) -> PathBuf {
    Path::new("/run/netns").join(netns)
}

/// Runs a short command on the machine itself.
#[track_caller]
fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output =
        output.unwrap_or_else(|error| panic!("cannot start {}: {error} (tests/run installs it)", words[0]));
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}
