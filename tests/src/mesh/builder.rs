//! Describes a mesh and starts it: server, resources, tokens, agents, in the order of cli.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use super::{CTL, Mesh, install_binary, server_config, state_dir};
use crate::clock;
use crate::disk::Disk;
use crate::manifest::{NAMESPACE, TRUST_DOMAIN, documents};
use crate::netns::{Host, Network};

/// A mesh that is not there yet.
#[derive(Debug, Default)]
pub struct Builder {
    nodes: Vec<(String, Vec<Workload>)>,
    hosts: Vec<String>,
    manifests: Vec<String>,
    disks: Vec<(String, u64)>,
    clocks: BTreeMap<String, i64>,
    etcd: usize,
    server_lines: String,
    agent_lines: String,
    log: Option<String>,
}

/// A workload in the configuration of an agent. It runs as root unless [`Workload::user`] says otherwise.
#[derive(Clone, Debug)]
pub struct Workload {
    service: String,
    uid: u32,
    ports: Vec<(String, u16)>,
    upstreams: Vec<(String, u16, u16)>,
}

impl Workload {
    /// A workload with the service account `service`.
    pub fn new(service: &str) -> Self {
        Self { service: service.to_owned(), uid: 0, ports: Vec::new(), upstreams: Vec::new() }
    }

    /// Its programs run as that user.
    #[must_use]
    pub fn user(mut self, uid: u32) -> Self {
        self.uid = uid;
        self
    }

    /// Serves the service's port of that name at `127.0.0.1:local`.
    #[must_use]
    pub fn serves(mut self, name: &str, local: u16) -> Self {
        self.ports.push((name.to_owned(), local));
        self
    }

    /// Reaches `port` of `service` at `127.0.0.1:listen`.
    #[must_use]
    pub fn upstream(mut self, service: &str, port: u16, listen: u16) -> Self {
        self.upstreams.push((service.to_owned(), port, listen));
        self
    }

    /// As it stands in `agent.yaml`.
    fn yaml(&self) -> String {
        let ports: Vec<String> =
            self.ports.iter().map(|(name, local)| format!("{name}: \"127.0.0.1:{local}\"")).collect();
        let upstreams: Vec<String> = self
            .upstreams
            .iter()
            .map(|(name, port, listen)| {
                format!("{{service: {name}, port: {port}, listen: \"127.0.0.1:{listen}\"}}")
            })
            .collect();
        format!(
            "  - {{service: {}, namespace: {NAMESPACE}, ports: {{{}}}, uid: {}, upstreams: [{}]}}\n",
            self.service,
            ports.join(", "),
            self.uid,
            upstreams.join(", ")
        )
    }
}

impl Builder {
    /// Adds a host with an agent and its workloads.
    #[must_use]
    pub fn node(mut self, name: &str, workloads: &[Workload]) -> Self {
        self.nodes.push((name.to_owned(), workloads.to_vec()));
        self
    }

    /// Adds a host without an agent.
    #[must_use]
    pub fn host(mut self, name: &str) -> Self {
        self.hosts.push(name.to_owned());
        self
    }

    /// Adds a resource that is applied before the agents join.
    #[must_use]
    pub fn manifest(mut self, manifest: String) -> Self {
        self.manifests.push(manifest);
        self
    }

    /// Gives the state of `host` a disk of its own, of so many MiB. See [`Disk::new`] for who sees it.
    #[must_use]
    pub fn disk(mut self, host: &str, size_mib: u64) -> Self {
        self.disks.push((host.to_owned(), size_mib));
        self
    }

    /// Gives `host` a clock of its own, which starts `seconds` ahead; behind, when negative.
    #[must_use]
    pub fn own_clock(mut self, host: &str, seconds: i64) -> Self {
        self.clocks.insert(host.to_owned(), seconds);
        self
    }

    /// Keeps the mesh in a real etcd on the server's host, which starts before the server.
    #[must_use]
    pub fn etcd(self) -> Self {
        self.etcd_members(1)
    }

    /// The same with so many members.
    #[must_use]
    pub fn etcd_members(mut self, count: usize) -> Self {
        self.etcd = count;
        self
    }

    /// Adds a line to `server.yaml`.
    #[must_use]
    pub fn server_line(mut self, line: &str) -> Self {
        writeln!(self.server_lines, "{line}").expect("a string takes everything");
        self
    }

    /// Adds a line to every `agent.yaml`.
    #[must_use]
    pub fn agent_line(mut self, line: &str) -> Self {
        writeln!(self.agent_lines, "{line}").expect("a string takes everything");
        self
    }

    /// What every `weft` command logs, as `RUST_LOG` says it; `info` otherwise.
    #[must_use]
    pub fn log(mut self, filter: &str) -> Self {
        self.log = Some(filter.to_owned());
        self
    }

    /// Starts everything and waits until server and agents are ready.
    ///
    /// # Panics
    ///
    /// If any step fails; the message holds what the program said.
    #[track_caller]
    pub fn start(self) -> Mesh {
        let nodes = self.nodes.iter().map(|(name, _)| name.as_str());
        let names: Vec<&str> =
            [CTL].into_iter().chain(nodes).chain(self.hosts.iter().map(String::as_str)).collect();
        let network = Network::new(&names);
        let binary = install_binary(&network);
        self.clocks.iter().for_each(|(host, seconds)| clock::set(network.host(host), *seconds));
        let disk =
            |(host, size): &(String, u64)| (host.clone(), Disk::new(&state_dir(network.host(host)), *size));
        let disks = self.disks.iter().map(disk).collect();
        let clocks = self.clocks.keys().cloned().collect();
        let log = self.log.clone().unwrap_or_else(|| "info".to_owned());
        // A mesh that begins in the embedded store may move into an etcd of one member.
        let etcd = (0..self.etcd.max(1)).map(|_| None).collect();
        let mut mesh =
            Mesh { agents: BTreeMap::new(), server: None, etcd, disks, clocks, network, binary, log };
        let server_yaml = self.server_yaml(mesh.host(CTL));
        write(&server_config(mesh.host(CTL)), &server_yaml);
        if self.etcd > 0 {
            mesh.start_etcd();
            mesh.use_etcd();
        }
        mesh.start_server();
        mesh.wait_for_server();
        if !self.manifests.is_empty() {
            mesh.apply(&documents(&self.manifests));
        }
        for (node, workloads) in &self.nodes {
            let lines = format!("{}{}", self.agent_lines, workloads_yaml(workloads));
            mesh.write_agent_config(node, node, &lines);
            mesh.join(node, &mesh.token(node, &[])).expect_success();
            mesh.start_agent(node);
        }
        for (node, _) in &self.nodes {
            mesh.wait_for_agent(node);
        }
        mesh
    }

    fn server_yaml(&self, host: &Host) -> String {
        format!(
            "cluster: local\ntrustDomain: {TRUST_DOMAIN}\n\
             listen: {{control: \"[::]:7444\", admin: \"127.0.0.1:7401\", metrics: \"127.0.0.1:7402\"}}\n\
             advertise: [\"{}\"]\nstore: {{embedded: {{path: \"{}/server\"}}}}\nrunDir: \"{}/run\"\n{}",
            host.ip4(),
            state_dir(host).display(),
            state_dir(host).display(),
            self.server_lines
        )
    }
}

/// The configuration of an agent that says it is `node`; `lines` follow what every agent needs.
pub(super) fn agent_yaml(node: &str, host: &Host, server: &Host, lines: &str) -> String {
    let state = state_dir(host);
    let state = state.display();
    format!(
        "cluster: local\nnode: {node}\nservers: [\"{}:7444\"]\n\
         listen: {{tunnels: \"[::]:7443\", proxy: \"127.0.0.1:7480\", admin: \"127.0.0.1:7401\", \
         metrics: \"127.0.0.1:7402\"}}\nstateDir: \"{state}/agent\"\nrunDir: \"{state}/run\"\n{lines}",
        server.ip4()
    )
}

fn workloads_yaml(workloads: &[Workload]) -> String {
    let list: String = workloads.iter().map(Workload::yaml).collect();
    if list.is_empty() { "workloads: []\n".to_owned() } else { format!("workloads:\n{list}") }
}

#[track_caller]
fn write(path: &std::path::Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
