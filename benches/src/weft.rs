//! Weft itself as a path: a server, two enrolled nodes and their agents, all of the real binary.
//!
//! Owns the configuration files, the resources and the commands that bring a small mesh up. The calling program is
//! the workload `load` on node `bench-a` with an upstream listener; the called one is the service `sink` on node
//! `bench-b`; one rule allows the one to call the other, everything else stays denied.
//!
//! The server and the enrollment last a whole campaign; agents are started afresh for every run, from the state
//! that they keep on disk.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::getuid;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::lane::Ground;
use crate::process::Running;
use crate::site::Place;

/// Trust domain of the mesh under test.
const TRUST_DOMAIN: &str = "bench.internal";

/// One command of the binary under test.
const COMMAND: Duration = Duration::from_secs(20);

/// From the start of the server to its first answer.
const SERVER_START: Duration = Duration::from_secs(15);

/// Pause between questions to a server that starts.
const PAUSE: Duration = Duration::from_millis(50);

/// The name of a service port, of the service that is called and of the workload that calls.
const RESOURCES: &str = "\
apiVersion: weft.mesh/v1alpha1
kind: Service
metadata: {name: sink, namespace: bench}
spec:
  ports: [{name: tcp, port: 80, appProtocol: tcp}]
---
apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {name: sink-from-load, namespace: bench}
spec:
  targetRefs: [{group: \"\", kind: Service, name: sink}]
  action: ALLOW
  rules:
    - name: load
      sources: [{type: ServiceAccount, serviceAccount: {namespace: bench, name: load}}]
";

/// A server that runs and two nodes that are enrolled with it.
pub(crate) struct Mesh {
    binary: PathBuf,
    server: Running,
    nodes: [Node; 2],
    target: SocketAddr,
}

/// One host of the mesh: a place, a home and the files in it.
struct Node {
    name: &'static str,
    place: Place,
    home: PathBuf,
}

impl Mesh {
    /// Starts the server, enrolls both nodes and applies the resources. State goes below `directory`.
    ///
    /// # Errors
    ///
    /// A binary that does not exist, or the first command that fails, with what it said.
    pub(crate) async fn prepare(ground: &Ground, binary: &Path, directory: &Path) -> Result<Self> {
        ensure!(binary.is_file(), "there is no weft at {} (build it, or give --weft)", binary.display());
        let control = Node::make("bench-server", &ground.site.server, directory)?;
        let control_port = ground.site.port()?;
        let config = control.write("server.yaml", &server_config(ground, &control, control_port)?)?;
        let server = control.command(ground, binary, &["server", "run", "--config"]);
        let server = ground.launcher.start_silent("weft-control", with(server, &config))?;

        let client = Node::make("bench-a", &ground.site.client, directory)?;
        let service = Node::make("bench-b", &ground.site.server, directory)?;
        let target = client.place.local(ground.site.port()?);
        let servers = control.place.remote(control_port);
        let calls = format!(
            "  - {{service: load, namespace: bench, uid: {uid}, upstreams: [{{service: sink, port: 80, listen: \"{target}\"}}]}}\n",
            uid = getuid()
        );
        let serves = format!(
            "  - {{service: sink, namespace: bench, uid: {uid}, ports: {{tcp: \"{}\"}}}}\n",
            service.place.local(ground.service_port),
            uid = getuid()
        );
        let mesh = Self { binary: binary.to_owned(), server, nodes: [client, service], target };
        for (node, service, workload) in [(0, "load", &calls), (1, "sink", &serves)] {
            let node = &mesh.nodes[node];
            node.write("agent.yaml", &agent_config(ground, node, servers, workload)?)?;
            mesh.enroll(ground, &control, node, service).await?;
        }
        let resources = control.write("resources.yaml", RESOURCES)?;
        let apply = with(control.command(ground, binary, &["apply", "-f"]), &resources);
        ground.launcher.finish("weft-apply", apply, COMMAND).await?;
        Ok(mesh)
    }

    /// Where the upstream listener of the calling program is.
    pub(crate) fn target(&self) -> SocketAddr {
        self.target
    }

    /// Commands for the agent beside the calling program and the one beside the called program.
    pub(crate) fn agents(&self, ground: &Ground) -> [Command; 2] {
        [0, 1].map(|index| {
            let node: &Node = &self.nodes[index];
            let command = node.command(ground, &self.binary, &["agent", "run", "--config"]);
            with(command, &node.home.join("agent.yaml"))
        })
    }

    /// Ends the server.
    pub(crate) async fn stop(self) {
        self.server.stop().await;
    }

    /// Gives `node` an identity by a token, as an operator would.
    async fn enroll(&self, ground: &Ground, control: &Node, node: &Node, service: &str) -> Result<()> {
        let create =
            ["token", "create", "--for", "agent", "--node", node.name, "--namespace", "bench", "--service"];
        let deadline = Instant::now() + SERVER_START;
        let token = loop {
            let command = with(control.command(ground, &self.binary, &create), Path::new(service));
            match ground.launcher.finish("weft-token", command, COMMAND).await {
                Ok(token) => break token,
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => sleep(PAUSE).await,
            }
        };
        let file = node.write("token", &token)?;
        let mut join = with(node.command(ground, &self.binary, &["agent", "join", "--token-file"]), &file);
        join.args(["--no-start", "--config"]).arg(node.home.join("agent.yaml"));
        ground.launcher.finish("weft-join", join, COMMAND).await.context("cannot enroll")?;
        Ok(())
    }
}

impl Node {
    fn make(name: &'static str, place: &Place, directory: &Path) -> Result<Self> {
        let home = directory.join(name);
        DirBuilder::new().recursive(true).mode(0o700).create(home.join("run"))?;
        Ok(Self { name, place: place.clone(), home })
    }

    /// A command of the binary under test on this node, with everything it keeps below the node's home.
    fn command(&self, ground: &Ground, binary: &Path, arguments: &[&str]) -> Command {
        let mut command = ground.launcher.foreign(&self.place, binary);
        // The commands of a person find the sockets below it; servers and agents take the same from their files.
        command.args(arguments).env("HOME", &self.home).env("WEFT_STATE_DIR", &self.home);
        command
    }

    /// Writes a file that only its owner may read.
    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.home.join(name);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())?;
        Ok(path)
    }
}

fn with(mut command: Command, path: &Path) -> Command {
    command.arg(path);
    command
}

fn server_config(ground: &Ground, node: &Node, control_port: u16) -> Result<String> {
    let store = node.home.join("store");
    fs::create_dir_all(&store)?;
    let (control, address) = (node.place.remote(control_port), node.place.address);
    let (admin, metrics) = (node.place.local(ground.site.port()?), node.place.local(ground.site.port()?));
    Ok(format!(
        "cluster: local\ntrustDomain: {TRUST_DOMAIN}\n\
         listen: {{control: \"{control}\", admin: \"{admin}\", metrics: \"{metrics}\"}}\n\
         advertise: [\"{address}\"]\nstore: {{embedded: {{path: \"{}\"}}}}\nrunDir: \"{}\"\n\
         allowSharedUid: true\n", // one user runs the server, the agents and the programs here
        store.display(),
        node.home.join("run").display()
    ))
}

fn agent_config(ground: &Ground, node: &Node, server: SocketAddr, workload: &str) -> Result<String> {
    let (name, tunnels) = (node.name, node.place.remote(ground.site.port()?));
    let local = || Ok::<_, anyhow::Error>(node.place.local(ground.site.port()?));
    let (proxy, admin, metrics) = (local()?, local()?, local()?);
    Ok(format!(
        "cluster: local\nnode: {name}\nservers: [\"{server}\"]\n\
         listen: {{tunnels: \"{tunnels}\", proxy: \"{proxy}\", admin: \"{admin}\", metrics: \"{metrics}\"}}\n\
         advertise: [\"{}\"]\nstateDir: \"{}\"\nrunDir: \"{}\"\nworkers: 1\nworkloads:\n{workload}",
        tunnels,
        node.home.join("agent").display(),
        node.home.join("run").display()
    ))
}
