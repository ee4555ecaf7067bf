//! A server and many agents, each a process of the real binary, on loopback.
//!
//! Half of the agents call, all as one identity; of the other half each serves a service of its own, but for the first,
//! which serves the one that everybody calls.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::unistd::getuid;
use tempfile::TempDir;

use crate::{clock, flows};

/// The identity of every caller.
pub(crate) const CALLER: &str = "spiffe://bench.internal/ns/bench/sa/order";
/// The service that everybody calls.
pub(crate) const HUB: &str = "hub";
/// From the start of the server to its first answer.
const SERVER_START: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(50);

/// An upstream at a calling agent.
pub(crate) struct Way {
    pub(crate) service: String,
    pub(crate) at: SocketAddr,
}

/// See the module.
pub(crate) struct Mesh {
    binary: PathBuf,
    processes: Vec<Child>,
    ways: Vec<Way>,
    agents: usize,
    folder: TempDir,
}

impl Mesh {
    /// Starts everything; the agents need not be ready yet.
    pub(crate) fn start(binary: &Path, agents: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("weft-bench-control-").tempdir()?;
        let mut mesh =
            Self { binary: binary.to_owned(), processes: Vec::new(), ways: Vec::new(), agents, folder };
        let control = mesh.start_server()?;
        let echo = flows::echo()?;
        mesh.weft_with(&["apply", "-f", "-"], &resources(agents / 2))?;
        for number in 0..agents {
            mesh.start_agent(number, control, echo)?;
            eprint!("\r{} of {agents} agents", number + 1);
        }
        eprintln!();
        Ok(mesh)
    }

    /// Every flow that there should be.
    pub(crate) fn ways(&self) -> &[Way] {
        &self.ways
    }

    /// The node of the hub.
    pub(crate) fn hub(&self) -> String {
        node(self.agents / 2)
    }

    /// Runs a command of a person.
    pub(crate) fn weft(&self, arguments: &[&str]) -> Result<()> {
        self.weft_with(arguments, "")
    }

    /// The same with something on standard input.
    pub(crate) fn weft_with(&self, arguments: &[&str], input: &str) -> Result<()> {
        self.run(self.command("server").args(arguments), input).map(drop)
    }

    fn home(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command with everything that it keeps below the home of `name`.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.env("HOME", self.home(name)).env("WEFT_STATE_DIR", self.home(name)).env("RUST_LOG", "warn");
        command
    }

    fn run(&self, command: &mut Command, input: &str) -> Result<String> {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "weft failed ({}): {said}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn spawn(&mut self, name: &str, arguments: &[&str], config: &Path) -> Result<()> {
        let log = File::create(self.home(name).join("log"))?;
        let mut command = self.command(name);
        command.args(arguments).arg(config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.processes.push(command.spawn().with_context(|| format!("cannot start {name}"))?);
        Ok(())
    }

    fn start_server(&mut self) -> Result<SocketAddr> {
        let home = self.home("server");
        DirBuilder::new().recursive(true).mode(0o700).create(home.join("run"))?;
        let (control, admin, metrics) = (free_port()?, free_port()?, free_port()?);
        // One user runs the server, the agents and the programs here; all of them come from one address.
        let text = format!(
            "cluster: local\ntrustDomain: bench.internal\n\
             listen: {{control: \"{control}\", admin: \"{admin}\", metrics: \"{metrics}\"}}\n\
             advertise: [\"127.0.0.1\"]\nstore: {{embedded: {{path: {:?}}}}}\nrunDir: {:?}\n\
             allowSharedUid: true\nlimits: {{connectionsPerAddress: 4096, joinsPerSecond: 100}}\n",
            home.join("store"),
            home.join("run")
        );
        let config = write(&home, "server.yaml", &text)?;
        self.spawn("server", &["server", "run", "--config"], &config)?;
        let until = clock::now() + SERVER_START;
        while let Err(error) = self.weft(&["get", "agents"]) {
            ensure!(clock::now() < until, "the server does not answer: {error:#}");
            thread::sleep(PAUSE);
        }
        Ok(control)
    }

    fn start_agent(&mut self, number: usize, control: SocketAddr, echo: SocketAddr) -> Result<()> {
        let (name, half) = (node(number), self.agents / 2);
        let home = self.home(&name);
        DirBuilder::new().recursive(true).mode(0o700).create(home.join("run"))?;
        let (service, workload) = if number < half {
            let mut upstreams = Vec::new();
            for service in [HUB.to_owned(), service(number.max(1))] {
                let at = free_port()?;
                upstreams.push(format!("{{service: {service}, port: 7, listen: \"{at}\"}}"));
                self.ways.push(Way { service, at });
            }
            ("order".to_owned(), format!("upstreams: [{}]", upstreams.join(", ")))
        } else {
            (service(number - half), format!("ports: {{echo: \"{echo}\"}}"))
        };
        let (tunnels, proxy, admin, metrics) = (free_port()?, free_port()?, free_port()?, free_port()?);
        let text = format!(
            "cluster: local\nnode: {name}\nservers: [\"{control}\"]\n\
             listen: {{tunnels: \"{tunnels}\", proxy: \"{proxy}\", admin: \"{admin}\", metrics: \"{metrics}\"}}\n\
             advertise: [\"{tunnels}\"]\nstateDir: {:?}\nrunDir: {:?}\nworkers: 1\n\
             workloads:\n  - {{service: {service}, namespace: bench, uid: {}, {workload}}}\n",
            home.join("agent"),
            home.join("run"),
            getuid()
        );
        let config = write(&home, "agent.yaml", &text)?;
        let create = ["token", "create", "--for", "agent", "--namespace", "bench", "--node"];
        let mut create_command = self.command("server");
        let token = self.run(create_command.args(create).args([&name, "--service", &service]), "")?;
        let mut join = self.command(&name);
        join.args(["agent", "join", "--no-start", "--token-file", "-", "--config"]).arg(&config);
        self.join(&mut join, &token)?;
        self.spawn(&name, &["agent", "run", "--config"], &config)
    }

    /// All agents join from one address, from which one may join a second.
    fn join(&self, join: &mut Command, token: &str) -> Result<()> {
        let until = clock::now() + SERVER_START;
        loop {
            match self.run(join, token) {
                Ok(_) => return Ok(()),
                Err(error) => ensure!(clock::now() < until, "cannot join: {error:#}"),
            }
            thread::sleep(PAUSE * 4);
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // Fails only for one that has ended already.
            let _ = process.kill();
        }
        for process in &mut self.processes {
            let _ = process.wait();
        }
    }
}

fn node(number: usize) -> String {
    format!("node{number:03}")
}

/// The service of the serving agent of that number; the first one's is the hub.
fn service(number: usize) -> String {
    if number == 0 { HUB.to_owned() } else { format!("echo{number:03}") }
}

fn resources(services: usize) -> String {
    let mut text = "apiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {name: order, namespace: bench}\nspec:\n\
         \x20 targetRefs: [{group: \"\", kind: Namespace, name: bench}]\n  action: ALLOW\n\
         \x20 rules: [{name: order, sources: [{type: ServiceAccount, serviceAccount: {namespace: bench, name: order}}]}]\n"
        .to_owned();
    for number in 0..services {
        text.push_str(&format!(
            "---\napiVersion: weft.mesh/v1alpha1\nkind: Service\nmetadata: {{name: {}, namespace: bench}}\n\
             spec: {{ports: [{{name: echo, port: 7, appProtocol: tcp}}]}}\n",
            service(number)
        ));
    }
    text
}

/// The first port that is tried: below those that the kernel gives to callers, which could take one that is to be
/// listened on a moment later.
const FIRST_PORT: u16 = 10_000;

/// An address on which nobody listens, by TCP or by UDP, and that was not given before.
fn free_port() -> Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(FIRST_PORT);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        ensure!(port >= FIRST_PORT, "no port is free");
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok() {
            return Ok(at);
        }
    }
}

/// Writes a file that only its owner may read.
fn write(home: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = home.join(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    file.write_all(text.as_bytes())?;
    fs::metadata(&path)?;
    Ok(path)
}
