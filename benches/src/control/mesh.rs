//! A mesh of many agents, each a process of the real binary, that carries flows.
//!
//! Half of the agents call, all as one identity; of the other half each serves a service of its own, but for the first,
//! which serves the one that everybody calls.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use crate::flows;
use crate::plane::{Plane, free_port, workload};

/// The identity of every caller.
pub(crate) const CALLER: &str = "spiffe://bench.internal/ns/bench/sa/order";
/// The service that everybody calls.
pub(crate) const HUB: &str = "hub";
/// All agents come from one address.
const LIMITS: &str = "connectionsPerAddress: 4096, joinsPerSecond: 100";

/// An upstream at a calling agent.
pub(crate) struct Way {
    pub(crate) service: String,
    pub(crate) at: SocketAddr,
}

/// See the module.
pub(crate) struct Mesh {
    plane: Plane,
    ways: Vec<Way>,
    agents: usize,
}

impl Mesh {
    /// Starts everything; the agents need not be ready yet.
    pub(crate) fn start(binary: &Path, agents: usize) -> Result<Self> {
        let mut mesh = Self { plane: Plane::start(binary, LIMITS)?, ways: Vec::new(), agents };
        let echo = flows::echo()?;
        mesh.weft_with(&["apply", "-f", "-"], &resources(agents / 2))?;
        for number in 0..agents {
            mesh.start_agent(number, echo)?;
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
        self.plane.weft(arguments)
    }

    /// The same with something on standard input.
    pub(crate) fn weft_with(&self, arguments: &[&str], input: &str) -> Result<()> {
        self.plane.weft_with(arguments, input)
    }

    fn start_agent(&mut self, number: usize, echo: SocketAddr) -> Result<()> {
        let half = self.agents / 2;
        let (service, rest) = if number < half {
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
        self.plane.start_agent(&node(number), &[&service], &workload(&service, &rest)).map(drop)
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
