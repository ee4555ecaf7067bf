//! Processes of the real binary on loopback: a server, agents, and the commands of people.
//!
//! Owns their homes below one directory, their start and their end.

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

use crate::clock;

/// From the start of the server to its first answer.
const SERVER_START: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(50);
/// The home of the server, and of the person on its host.
const SERVER: &str = "server";

/// See the module. What it started ends with it.
pub(crate) struct Plane {
    binary: PathBuf,
    processes: Vec<Child>,
    control: SocketAddr,
    folder: TempDir,
}

impl Plane {
    /// Starts a server with these `limits`, and waits until it answers. Everything here comes from one address.
    pub(crate) fn start(binary: &Path, limits: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("weft-bench-control-").tempdir()?;
        let (binary, control) = (binary.to_owned(), free_port()?);
        let mut plane = Self { binary, processes: Vec::new(), control, folder };
        plane.start_server(limits)?;
        Ok(plane)
    }

    /// Where agents reach the server.
    pub(crate) fn control(&self) -> SocketAddr {
        self.control
    }

    /// The socket of the person on the server's host.
    pub(crate) fn socket(&self) -> PathBuf {
        self.home(SERVER).join("run").join("server.sock")
    }

    /// The process of the server.
    pub(crate) fn server(&self) -> u32 {
        self.processes.first().map_or(0, Child::id)
    }

    /// Runs a command of a person.
    pub(crate) fn weft(&self, arguments: &[&str]) -> Result<()> {
        self.weft_with(arguments, "")
    }

    /// The same with something on standard input.
    pub(crate) fn weft_with(&self, arguments: &[&str], input: &str) -> Result<()> {
        self.run(self.command(SERVER).args(arguments), input).map(drop)
    }

    /// Joins a node that may run `services` of the namespace `bench`, starts its agent with these workloads, and says
    /// which process it is.
    pub(crate) fn start_agent(&mut self, name: &str, services: &[&str], workloads: &str) -> Result<u32> {
        let home = self.home(name);
        DirBuilder::new().recursive(true).mode(0o700).create(home.join("run"))?;
        let (tunnels, proxy, admin, metrics) = (free_port()?, free_port()?, free_port()?, free_port()?);
        let text = format!(
            "cluster: local\nnode: {name}\nservers: [\"{}\"]\n\
             listen: {{tunnels: \"{tunnels}\", proxy: \"{proxy}\", admin: \"{admin}\", metrics: \"{metrics}\"}}\n\
             advertise: [\"{tunnels}\"]\nstateDir: {:?}\nrunDir: {:?}\nworkers: 1\nworkloads:\n{workloads}",
            self.control,
            home.join("agent"),
            home.join("run"),
        );
        let config = write(&home, "agent.yaml", &text)?;
        let mut create = self.command(SERVER);
        create.args(["token", "create", "--for", "agent", "--namespace", "bench", "--node", name]);
        for service in services {
            create.args(["--service", service]);
        }
        let token = self.run(&mut create, "")?;
        let mut join = self.command(name);
        join.args(["agent", "join", "--no-start", "--token-file", "-", "--config"]).arg(&config);
        self.join(&mut join, &token)?;
        self.spawn(name, &["agent", "run", "--config"], &config)
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

    fn spawn(&mut self, name: &str, arguments: &[&str], config: &Path) -> Result<u32> {
        let log = File::create(self.home(name).join("log"))?;
        let mut command = self.command(name);
        command.args(arguments).arg(config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let id = child.id();
        self.processes.push(child);
        Ok(id)
    }

    fn start_server(&mut self, limits: &str) -> Result<()> {
        let home = self.home(SERVER);
        DirBuilder::new().recursive(true).mode(0o700).create(home.join("run"))?;
        let (control, admin, metrics) = (self.control, free_port()?, free_port()?);
        // One user runs the server, the agents and the programs here; all of them come from one address.
        let text = format!(
            "cluster: local\ntrustDomain: {TRUST_DOMAIN}\n\
             listen: {{control: \"{control}\", admin: \"{admin}\", metrics: \"{metrics}\"}}\n\
             advertise: [\"127.0.0.1\"]\nstore: {{embedded: {{path: {:?}}}}}\nrunDir: {:?}\n\
             allowSharedUid: true\nlimits: {{{limits}}}\n",
            home.join("store"),
            home.join("run")
        );
        let config = write(&home, "server.yaml", &text)?;
        self.spawn(SERVER, &["server", "run", "--config"], &config)?;
        let until = clock::now() + SERVER_START;
        while let Err(error) = self.weft(&["get", "agents"]) {
            ensure!(clock::now() < until, "the server does not answer: {error:#}");
            thread::sleep(PAUSE);
        }
        Ok(())
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

impl Drop for Plane {
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

/// The trust domain of the mesh.
pub(crate) const TRUST_DOMAIN: &str = "bench.internal";

/// One workload of the namespace `bench` in the configuration of an agent.
pub(crate) fn workload(service: &str, rest: &str) -> String {
    format!("  - {{service: {service}, namespace: bench, uid: {}, {rest}}}\n", getuid())
}

/// The first port that is tried: below those that the kernel gives to callers, which could take one that is to be
/// listened on a moment later.
const FIRST_PORT: u16 = 10_000;

/// An address on which nobody listens, by TCP or by UDP, and that was not given before.
pub(crate) fn free_port() -> Result<SocketAddr> {
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
