//! A whole mesh of `weft` processes: a server, agents that joined by token, and their resources.
//!
//! ```text
//!   ctl (weft server run)      hosta (weft agent run)      hostb (weft agent run)
//!    └─────────────────────── one Network, all can reach all ────────────────┘
//! ```
//!
//! Everything goes through what a person has: configuration files, the command line, signals. The
//! commands and paths that the scenarios rely on stand in this file only.
//!
//! When the test fails, the logs of server and agents are printed on drop.

mod builder;
mod second;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

pub use builder::{Builder, Workload};
pub use second::{SECOND_METRICS, Second};

use crate::app::loopback;
use crate::clock;
use crate::disk::Disk;
use crate::eventually::eventually;
use crate::load::http_get;
use crate::manifest::NAMESPACE;
use crate::netns::{Fault, Host, Network};
use crate::process::{Finished, Process, Program};

/// The host of the server.
pub const CTL: &str = "ctl";

/// Where etcd is asked, on the server's host: its first member.
pub const ETCD: &str = "http://127.0.0.1:2379";

/// The port of that member; each further one has ports higher by 100.
pub const ETCD_PORT: u16 = 2379;

/// Where each process tells whether it is ready.
const METRICS: u16 = 7402;

/// How long a server or an agent may take from its start until it is ready.
const READY: Duration = Duration::from_secs(30);

/// A running mesh. Dropping it ends everything.
#[derive(Debug)]
pub struct Mesh {
    agents: BTreeMap<String, Option<Process>>,
    server: Option<Process>,
    etcd: Vec<Option<Process>>,
    disks: BTreeMap<String, Disk>,
    clocks: BTreeSet<String>,
    network: Network,
    binary: PathBuf,
    log: String,
}

impl Mesh {
    /// Begins to describe a mesh.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The host of that name.
    pub fn host(&self, name: &str) -> &Host {
        self.network.host(name)
    }

    /// The folder of the run, which holds those of the hosts; removed with the mesh.
    pub fn folder(&self) -> &Path {
        self.network.folder()
    }

    /// A `weft` command of the person who owns `host`, not started.
    pub fn weft(&self, host: &str, args: &[&str]) -> Program {
        let host = self.host(host);
        let program = weft_program(&self.binary, host, host.folder());
        let program = program.env("WEFT_STATE_DIR", state_dir(host)).env("RUST_LOG", &self.log);
        let own_clock = self.clocks.contains(host.name());
        let program = if own_clock { clock::under_clock_of(host, program) } else { program };
        program.args(args)
    }

    /// Applies `manifest` from the server's host and waits until both ends of the command agree.
    #[track_caller]
    pub fn apply(&self, manifest: &str) {
        self.weft(CTL, &["apply", "-f", "-"]).input(manifest).run().expect_success();
    }

    /// Deletes what `manifest` names, also when it is the last that lets somebody in: the tests mean it.
    #[track_caller]
    pub fn delete(&self, manifest: &str) {
        let file = self.host(CTL).folder().join("delete.yaml");
        fs::write(&file, manifest).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.weft(CTL, &["delete", "--yes", "--force", "-f"]).arg(&file).run().expect_success();
    }

    /// Runs `weft` on the server's host with `args` and returns what it left.
    #[track_caller]
    pub fn on_server(&self, args: &[&str]) -> Finished {
        self.weft(CTL, args).run()
    }

    /// From now on the network drops what `faults` say; `&[]` heals it.
    #[track_caller]
    pub fn set_faults(&self, faults: &[Fault]) {
        self.network.set_faults(faults);
    }

    /// The disk under the state of `host`, which was asked for with [`Builder::disk`].
    ///
    /// # Panics
    ///
    /// If it has none of its own.
    #[track_caller]
    pub fn disk(&self, host: &str) -> &Disk {
        self.disks.get(host).unwrap_or_else(|| panic!("{host} has no disk of its own"))
    }

    /// From now on the clock of `host`, which was asked for with [`Builder::own_clock`], is `seconds` ahead.
    ///
    /// # Panics
    ///
    /// If it has none of its own.
    #[track_caller]
    pub fn set_clock(&self, host: &str, seconds: i64) {
        assert!(self.clocks.contains(host), "{host} has no clock of its own");
        clock::set(self.host(host), seconds);
    }

    /// The state directory of `host`.
    pub fn state(&self, host: &str) -> PathBuf {
        state_dir(self.host(host))
    }

    /// The running agent of `node`.
    ///
    /// # Panics
    ///
    /// If it does not run.
    #[track_caller]
    pub fn agent(&mut self, node: &str) -> &mut Process {
        let agent = self.agents.get_mut(node).and_then(Option::as_mut);
        agent.unwrap_or_else(|| panic!("no agent runs on {node}"))
    }

    /// The running server.
    ///
    /// # Panics
    ///
    /// If it does not run.
    #[track_caller]
    pub fn server(&mut self) -> &mut Process {
        self.server.as_mut().expect("the server runs")
    }

    /// Kills the agent of `node` as `kill -9` does.
    ///
    /// # Panics
    ///
    /// If it does not run.
    #[track_caller]
    pub fn kill_agent(&mut self, node: &str) {
        let agent = self.agents.get_mut(node).and_then(Option::take);
        agent.unwrap_or_else(|| panic!("no agent runs on {node}")).kill();
    }

    /// Starts every member of etcd on the server's host; what they kept at an earlier start is still there. They need not be
    /// ready yet.
    ///
    /// # Panics
    ///
    /// If one cannot be started.
    #[track_caller]
    pub fn start_etcd(&mut self) {
        (0..self.etcd.len()).for_each(|member| self.start_etcd_member(member));
    }

    /// Starts the member of that number.
    ///
    /// # Panics
    ///
    /// If it cannot be started, or there is none of that number.
    #[track_caller]
    pub fn start_etcd_member(&mut self, member: usize) {
        let host = self.host(CTL);
        let peer = |member| format!("http://127.0.0.1:{}", etcd_port(member) + 1);
        let all: Vec<_> = (0..self.etcd.len()).map(|each| format!("m{each}={}", peer(each))).collect();
        let (client, peer) = (etcd_endpoint(member), peer(member));
        let program = host
            .program("etcd")
            .args(["--name", &format!("m{member}"), "--data-dir"])
            .arg(host.folder().join(format!("etcd/{member}")))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &all.join(",")])
            .args(["--heartbeat-interval", "50", "--election-timeout", "300"]);
        self.etcd[member] = Some(program.start());
    }

    /// The running member of that number, to be sent signals.
    ///
    /// # Panics
    ///
    /// If it does not run.
    #[track_caller]
    pub fn etcd_member(&mut self, member: usize) -> &mut Process {
        self.etcd[member].as_mut().expect("the member runs")
    }

    /// Kills every member of etcd as `kill -9` does.
    ///
    /// # Panics
    ///
    /// If one does not run.
    #[track_caller]
    pub fn kill_etcd(&mut self) {
        (0..self.etcd.len()).for_each(|member| self.kill_etcd_member(member));
    }

    /// Kills the member of that number.
    ///
    /// # Panics
    ///
    /// If it does not run.
    #[track_caller]
    pub fn kill_etcd_member(&mut self, member: usize) {
        self.etcd[member].take().expect("the member runs").kill();
    }

    /// From its next start on the server keeps the mesh in etcd.
    ///
    /// # Panics
    ///
    /// If its configuration cannot be written.
    #[track_caller]
    pub fn use_etcd(&self) {
        let file = server_config(self.host(CTL));
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let path = state_dir(self.host(CTL)).join("server");
        let endpoints: Vec<_> = (0..self.etcd.len()).map(etcd_endpoint).collect();
        let store = format!("store: {{etcd: {{path: {path:?}, endpoints: {endpoints:?}}}}}");
        let line = |line: &str| if line.starts_with("store:") { store.clone() } else { line.to_owned() };
        let text: Vec<String> = text.lines().map(line).collect();
        fs::write(&file, text.join("\n") + "\n")
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    /// Asks the server to end, as an administrator does, and waits until it has.
    ///
    /// # Panics
    ///
    /// If it does not run or does not end.
    #[track_caller]
    pub fn stop_server(&mut self, within: Duration) -> Finished {
        let mut server = self.server.take().expect("the server runs");
        server.signal(Signal::SIGTERM);
        server.finish(within)
    }

    /// Kills the server as `kill -9` does.
    ///
    /// # Panics
    ///
    /// If it does not run.
    #[track_caller]
    pub fn kill_server(&mut self) {
        self.server.take().expect("the server runs").kill();
    }

    /// Ends the agent of `node` as a service manager does, and waits for its end.
    #[track_caller]
    pub fn stop_agent(&mut self, node: &str, within: Duration) -> Finished {
        self.agent(node).signal(Signal::SIGTERM);
        let agent = self.agents.get_mut(node).and_then(Option::take);
        agent.expect("it was just there").finish(within)
    }

    /// Starts the agent of `node` again, without waiting for anything.
    #[track_caller]
    pub fn start_agent(&mut self, node: &str) {
        let config = agent_config(self.host(node));
        let agent = self.weft(node, &["agent", "run", "--config"]).arg(config).start();
        self.agents.insert(node.to_owned(), Some(agent));
    }

    /// The same with a variable in its environment.
    #[track_caller]
    pub fn start_agent_with(&mut self, node: &str, variable: &str, value: &Path) {
        let config = agent_config(self.host(node));
        let agent = self.weft(node, &["agent", "run", "--config"]).arg(config).env(variable, value).start();
        self.agents.insert(node.to_owned(), Some(agent));
    }

    /// Starts the server again, without waiting for anything.
    #[track_caller]
    pub fn start_server(&mut self) {
        let config = server_config(self.host(CTL));
        self.server = Some(self.weft(CTL, &["server", "run", "--config"]).arg(config).start());
    }

    /// Waits until the agent of `node` says that it is ready.
    #[track_caller]
    pub fn wait_for_agent(&mut self, node: &str) {
        let host = self.host(node).clone();
        wait_until_ready(&host, self.agent(node));
    }

    /// Waits until the server says that it is ready.
    #[track_caller]
    pub fn wait_for_server(&mut self) {
        let host = self.host(CTL).clone();
        wait_until_ready(&host, self.server());
    }

    /// The metrics of the process on `host`, in the Prometheus text form.
    ///
    /// # Errors
    ///
    /// If they cannot be read.
    pub fn metrics(&self, host: &str) -> Result<String, String> {
        get(self.host(host), "/metrics")
    }

    /// Status and body of `path` at the metrics port of the process on `host`: `/readyz`, `/livez`.
    ///
    /// # Errors
    ///
    /// If nothing answers.
    pub fn page(&self, host: &str, path: &str) -> Result<(u16, String), String> {
        http_get(self.host(host), loopback(METRICS), path)
    }

    /// The access log of the agent on `node`, and what it has said otherwise, so far.
    #[track_caller]
    pub fn agent_log(&mut self, node: &str) -> String {
        let access = state_dir(self.host(node)).join("agent/access.log");
        let access = fs::read_to_string(access).unwrap_or_default();
        let agent = self.agent(node);
        format!("{}{}{access}", agent.stdout(), agent.stderr())
    }

    /// The SVID of `workload` with its key, as whoever has taken the host of `node` can read it.
    pub fn stolen_svid(&self, node: &str, workload: &str) -> PathBuf {
        state_dir(self.host(node)).join(format!("agent/svids/{NAMESPACE}.{workload}-{node}.pem"))
    }

    /// The endpoint label of `workload` on `node`.
    ///
    /// # Panics
    ///
    /// If it has none.
    #[track_caller]
    pub fn label(&self, node: &str, workload: &str) -> String {
        let path = state_dir(self.host(node)).join("agent/labels.json");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let labels: BTreeMap<String, String> = serde_json::from_str(&text).expect("a table of labels");
        labels
            .get(&format!("{NAMESPACE}/{workload}-{node}"))
            .unwrap_or_else(|| panic!("{workload}: {text}"))
            .clone()
    }

    /// Writes the configuration of an agent on `host` that says it is `node`, and returns its path.
    ///
    /// # Panics
    ///
    /// If it cannot be written.
    #[track_caller]
    pub fn write_agent_config(&self, host: &str, node: &str, lines: &str) -> PathBuf {
        let path = agent_config(self.host(host));
        let text = builder::agent_yaml(node, self.host(host), self.host(CTL), lines);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// A one-use token for `node`, with more arguments for `weft token create`.
    #[track_caller]
    pub fn token(&self, node: &str, args: &[&str]) -> String {
        let create = ["token", "create", "--for", "agent", "--node", node, "--namespace", NAMESPACE];
        self.weft(CTL, &create).args(args).run().expect_success().stdout
    }

    /// `weft agent join` on `host` with `token` and the configuration there; it starts no agent.
    #[track_caller]
    pub fn join(&self, host: &str, token: &str) -> Finished {
        let config = agent_config(self.host(host));
        let join = self.weft(host, &["agent", "join", "--no-start", "--token-file", "-", "--config"]);
        join.arg(config).input(token).run()
    }

    /// Waits until `call` succeeds for the first time: services, policies and endpoints are known everywhere.
    #[track_caller]
    pub fn wait_for_call(&self, what: &str, call: impl FnMut() -> Result<(), String>) {
        eventually(what, READY, call);
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let agents =
                self.agents.iter().filter_map(|(node, agent)| Some((node.as_str(), agent.as_ref()?)));
            let server = self.server.as_ref().map(|server| (CTL, server));
            for (host, process) in agents.chain(server) {
                eprintln!("──── {host}\n{}", process.tail());
            }
        }
    }
}

/// The `weft` binary: `WEFT_BIN`, or the one that cargo built beside this test.
///
/// # Panics
///
/// If it is not there: an end-to-end test without the program under test says nothing.
#[track_caller]
pub fn weft_binary() -> PathBuf {
    let path = std::env::var_os("WEFT_BIN").map_or_else(beside_this_test, PathBuf::from);
    let hint = "build it with `cargo build --locked -p weft-cli`, or name another with WEFT_BIN";
    assert!(path.is_file(), "no weft binary at {}: {hint}", path.display());
    path
}

/// A `weft` command on `host` as root, with configuration, state and sockets under `home`.
pub fn weft_program(binary: &Path, host: &Host, home: &Path) -> Program {
    let program = host.program(binary).env("HOME", home).env("XDG_CONFIG_HOME", home.join("config"));
    let program = program.env("XDG_DATA_HOME", home.join("data")).env("XDG_RUNTIME_DIR", home.join("run"));
    program.env("RUST_LOG", "info").env("NO_COLOR", "1")
}

/// Makes the binary reachable for programs of every user, in a folder that they may enter.
///
/// # Panics
///
/// If it can be neither linked nor copied.
#[track_caller]
pub fn install_binary(network: &Network) -> PathBuf {
    let (from, to) = (weft_binary(), network.folder().join("weft"));
    if fs::hard_link(&from, &to).is_err() {
        fs::copy(&from, &to).unwrap_or_else(|error| panic!("{}: {error}", to.display()));
    }
    to
}

/// Where the configuration of the server stands.
fn server_config(host: &Host) -> PathBuf {
    host.folder().join("server.yaml")
}

/// Where the configuration of an agent stands.
fn agent_config(host: &Host) -> PathBuf {
    host.folder().join("agent.yaml")
}

fn etcd_port(member: usize) -> u16 {
    ETCD_PORT + 100 * u16::try_from(member).expect("a cluster has few members")
}

fn etcd_endpoint(member: usize) -> String {
    format!("http://127.0.0.1:{}", etcd_port(member))
}

/// Where the process on `host` keeps its state.
fn state_dir(host: &Host) -> PathBuf {
    host.folder().join("state")
}

#[track_caller]
fn wait_until_ready(host: &Host, process: &mut Process) {
    eventually(&format!("weft on {} is ready", host.name()), READY, || {
        process.assert_running();
        get(host, "/readyz").map(drop)
    });
}

/// The body at `path` of the metrics listener on `host`.
fn get(host: &Host, path: &str) -> Result<String, String> {
    let address: SocketAddr = loopback(METRICS);
    match http_get(host, address, path)? {
        (200, body) => Ok(body),
        (status, body) => Err(format!("{path}: {status} {body}")),
    }
}

/// `target/<profile>/weft`, seen from `target/<profile>/deps/<this test>`.
fn beside_this_test() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let deps = test.parent().expect("it stands in a folder");
    deps.parent().unwrap_or(deps).join("weft")
}
