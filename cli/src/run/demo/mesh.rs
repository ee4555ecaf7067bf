//! The demo's mesh: one server, two agents, their identities and rules, by the same doors that a person uses.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use weft_api::{
    fault::Fault,
    manifest,
    pb::management::{ApplyRequest, CheckPolicyRequest, CheckPolicyResponse, CreateTokenRequest, Document},
    token::JoinToken,
};
use weft_node::node::{Node, RunningNode};
use weft_policy::code;
use weft_registry::server::{RunningServer, Server};

use super::{
    breaks,
    report::Report,
    services::{Echo, Services},
};
use crate::{
    args::groups::Sabotage,
    client::{self, Management},
    error::{CliError, Exit},
    run::background,
};

/// The file that tells a demo's directory from any other.
pub(super) const MARK: &str = ".weft-demo";

/// The demo's trust domain (decisions.md, names and defaults).
const TRUST_DOMAIN: &str = "demo.weft.internal";

/// A mesh in this process.
pub(super) struct DemoMesh {
    state: PathBuf,
    server: Option<RunningServer>,
    /// The callers' agent.
    pub(super) a: RunningNode,
    b: Option<RunningNode>,
    /// Dropped with the mesh: they serve as long as it lives.
    _services: Services,
    /// Nobody else uses or removes the directory as long as this lives.
    _lock: Flock<File>,
}

impl DemoMesh {
    /// Starts everything and prints a line for each step.
    pub(super) fn start(state: &Path, sabotage: Option<Sabotage>, report: &Report) -> Result<Self, CliError> {
        let lock = prepare(state)?;
        let echo = if breaks(sabotage, Sabotage::CorruptEcho) { Echo::Corrupt } else { Echo::Faithful };
        let services = Services::start(echo)?;
        let (server, took) = timed(report, || start_server(state))?;
        report.step(
            &format!("server, authority and registry   {}   {TRUST_DOMAIN}", server.control_addr()),
            took,
        );
        apply(state, &manifests(sabotage))?;
        write_agent_config(state, "a", &server, &workloads_a(&services))?;
        write_agent_config(state, "b", &server, &workloads_b(&services))?;
        let (a, took) = timed(report, || start_agent(state, "a"))?;
        report.step(&format!("agent a   tunnels {}/udp   order, guest", a.tunnels_addr()), took);
        let (b, took) = timed(report, || start_agent(state, "b"))?;
        report.step(&format!("agent b   tunnels {}/udp   charge, ledger", b.tunnels_addr()), took);
        Ok(Self {
            state: state.to_owned(),
            server: Some(server),
            a,
            b: Some(b),
            _services: services,
            _lock: lock,
        })
    }

    /// The directory that holds all state.
    pub(super) fn state_dir(&self) -> &Path {
        &self.state
    }

    /// Where agent a tells its metrics.
    pub(super) fn metrics_address(&self) -> SocketAddr {
        self.a.metrics_addr()
    }

    /// The loopback port at agent a that leads order to a service.
    pub(super) fn upstream(&self, service: &str) -> Result<SocketAddr, String> {
        let found = self.a.upstreams().into_iter().find(|(name, _)| name == service);
        found.map(|(_, address)| address).ok_or_else(|| format!("agent a has no upstream {service}"))
    }

    /// The name by which tunnels ask agent b for an identity.
    pub(super) fn label_of(&self, identity: &str) -> Result<String, String> {
        let b = self.b.as_ref().ok_or("agent b does not run")?;
        let found = b.labels().into_iter().find(|(id, _)| id == identity);
        found.map(|(_, label)| label).ok_or_else(|| format!("agent b has no label for {identity}"))
    }

    /// Where agent b takes tunnels.
    pub(super) fn b_tunnels(&self) -> Result<SocketAddr, String> {
        self.b.as_ref().map(RunningNode::tunnels_addr).ok_or_else(|| "agent b does not run".to_owned())
    }

    /// Agent b, when it runs.
    pub(super) const fn b(&self) -> Option<&RunningNode> {
        self.b.as_ref()
    }

    /// Ends agent b as kill -9 would: every task and socket is gone at once, nothing is said to anybody.
    pub(super) fn kill_b(&mut self) {
        if let Some(b) = self.b.take() {
            b.kill();
        }
    }

    /// Starts agent b again from what is on disk.
    pub(super) fn restart_b(&mut self) -> Result<(), String> {
        let b = start_agent(&self.state, "b").map_err(|e| e.faults()[0].what.clone())?;
        self.b = Some(b);
        Ok(())
    }

    /// Stops the server at once.
    pub(super) fn kill_server(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill();
        }
    }

    /// Starts the server again from what is on disk.
    pub(super) fn restart_server(&mut self) -> Result<(), String> {
        let server = start_server(&self.state).map_err(|e| e.faults()[0].what.clone())?;
        self.server = Some(server);
        Ok(())
    }

    /// What the rules say of a call: the server runs the code that the destination's agent runs.
    pub(super) fn verdict(
        &self,
        source: &str,
        service: &str,
        port: u32,
    ) -> Result<CheckPolicyResponse, String> {
        let request = CheckPolicyRequest {
            source: format!("spiffe://{TRUST_DOMAIN}/ns/shop/sa/{source}"),
            service: format!("{service}.shop"),
            port,
            source_ip: String::new(),
            overlay: Vec::new(),
        };
        let asked =
            with_server(&self.state, async |client| Ok(client.check_policy(request).await?.into_inner()));
        asked.map_err(|error| error.faults()[0].what.clone())
    }

    /// Ends everything in good order.
    pub(super) fn stop(mut self, deadline: Duration) {
        self.a.drain(deadline);
        if let Some(b) = self.b.take() {
            b.drain(deadline);
        }
        if let Some(server) = self.server.take() {
            server.shutdown(deadline);
        }
    }
}

fn timed<T>(report: &Report, run: impl FnOnce() -> Result<T, CliError>) -> Result<(T, Duration), CliError> {
    let before = report.elapsed();
    let made = run()?;
    Ok((made, report.elapsed().saturating_sub(before)))
}

/// Makes a fresh, private directory: what a demo left there before is removed, anything else is not touched. One that
/// a running demo uses is refused.
fn prepare(state: &Path) -> Result<Flock<File>, CliError> {
    let failed = |e: std::io::Error| CliError::file(state, &e);
    let _left = lock(state)?;
    if state.join(MARK).exists() {
        std::fs::remove_dir_all(state).map_err(failed)?;
    } else if state.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(CliError::usage(
            format!("{} holds something that is not a demo's", state.display()),
            "weft demo --state-dir NEW_DIR",
        ));
    }
    background::private_dir(state)?;
    std::fs::write(state.join(MARK), std::process::id().to_string()).map_err(failed)?;
    lock(state)?.ok_or_else(|| CliError::internal("the demo's directory has gone"))
}

/// Locks the directory of a demo for as long as the answer lives; `None` when no demo was there.
///
/// # Errors
///
/// When a running demo uses it.
pub(super) fn lock(state: &Path) -> Result<Option<Flock<File>>, CliError> {
    let path = state.join(MARK);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CliError::file(&path, &error)),
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err(_) => {
            let pid = std::fs::read_to_string(&path).unwrap_or_default();
            let what = format!("a demo runs with {}, as process {}", state.display(), pid.trim());
            let fault = Fault::new(code::STATE_IN_USE, what)
                .fix("stop it: Ctrl-C where it runs")
                .fix("start another beside it: weft demo --state-dir NEW_DIR");
            Err(CliError::new(Exit::Conflict, fault))
        }
    }
}

fn start_server(state: &Path) -> Result<RunningServer, CliError> {
    // Server, two nodes and their programs are this one process, so they are one user.
    let text = format!(
        "cluster: local\ntrustDomain: {TRUST_DOMAIN}\n\
         listen: {{control: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", metrics: \"127.0.0.1:0\"}}\n\
         store: {{embedded: {{path: {:?}}}}}\nrunDir: {:?}\nallowSharedUid: true\n",
        state.join("server"),
        state.join("run"),
    );
    let config = background::server_config(&text, "demo")?;
    Server::start(config).map_err(|e| CliError::new(Exit::Internal, e.fault()))
}

/// The agent's configuration: the first start draws the tunnel port, later ones keep it, as a host's agent would.
fn write_agent_config(
    state: &Path,
    node: &str,
    server: &RunningServer,
    workloads: &str,
) -> Result<(), CliError> {
    let text = format!(
        "cluster: local\nnode: {node}\nservers: [\"{}\"]\n\
         listen: {{tunnels: \"127.0.0.1:{}\", proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", metrics: \"127.0.0.1:0\"}}\n\
         stateDir: {:?}\nrunDir: {:?}\nworkloads:\n{workloads}",
        server.control_addr(),
        background::free_udp_port()?,
        state.join("agents").join(node),
        // Agent a is the one that `weft call` and `weft status` find while the demo is up.
        if node == "a" { state.join("run") } else { state.join("agents").join(node).join("run") },
    );
    let path = agent_config_path(state, node);
    background::private_dir(&state.join("agents"))?;
    background::write_private(&path, text.as_bytes())
}

fn agent_config_path(state: &Path, node: &str) -> PathBuf {
    state.join("agents").join(format!("{node}.yaml"))
}

fn start_agent(state: &Path, node: &str) -> Result<RunningNode, CliError> {
    let config = background::agent_config(&agent_config_path(state, node))?;
    if !weft_node::join::is_joined(&config) {
        let request = CreateTokenRequest {
            purpose: "agent".into(),
            node: node.into(),
            namespace: "shop".into(),
            services: services_of(node).iter().map(|&name| name.to_owned()).collect(),
            ..CreateTokenRequest::default()
        };
        let made = with_server(state, async |client| Ok(client.create_token(request).await?.into_inner()))?;
        let token: JoinToken = made.token.parse().map_err(CliError::internal)?;
        weft_node::join::join(&token, &config).map_err(|e| CliError::new(Exit::Internal, e.fault()))?;
    }
    Node::start(config).map_err(|e| CliError::new(Exit::Internal, e.fault()))
}

fn services_of(node: &str) -> &'static [&'static str] {
    if node == "a" { &["order", "guest"] } else { &["charge", "ledger"] }
}

fn workloads_a(services: &Services) -> String {
    let uid = nix::unistd::getuid();
    format!(
        "  - {{service: order, namespace: shop, uid: {uid}, ports: {{http: \"{}\"}}, upstreams: [\
         {{service: charge, port: 80, listen: \"127.0.0.1:0\"}}, {{service: ledger, port: 7, listen: \"127.0.0.1:0\"}}]}}\n\
         \x20 - {{service: guest, namespace: shop, uid: {uid}}}\n",
        services.order
    )
}

fn workloads_b(services: &Services) -> String {
    format!(
        "  - {{service: charge, namespace: shop, ports: {{http: \"{}\", admin: \"{}\"}}}}\n\
         \x20 - {{service: ledger, namespace: shop, ports: {{echo: \"{}\"}}}}\n",
        services.charge, services.admin, services.ledger
    )
}

/// The services and the rules of the demo, as a person would write them.
fn manifests(sabotage: Option<Sabotage>) -> String {
    let allow = |name: &str, target: &str, port: &str| {
        format!(
            "---\napiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}, namespace: shop, annotations: {{weft.mesh/explain-denials: to-caller}}}}\n\
             spec:\n  targetRefs: [{{group: \"\", kind: Service, name: {target}}}]\n  action: ALLOW\n  rules:\n\
             \x20   - name: order\n\
             \x20     sources: [{{type: ServiceAccount, serviceAccount: {{namespace: shop, name: order}}}}]\n\
             \x20     ports: [{port}]\n"
        )
    };
    let mode = if breaks(sabotage, Sabotage::AllowAll) { "Allow" } else { "Deny" };
    let mut text = format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: Namespace\nmetadata: {{name: shop}}\n\
         spec: {{defaultAuthorization: {mode}}}\n"
    );
    for (name, ports) in [
        ("order", "{name: http, port: 80}"),
        ("charge", "{name: http, port: 80}, {name: admin, port: 9090}"),
        ("ledger", "{name: echo, port: 7, appProtocol: tcp}"),
    ] {
        text.push_str(&format!(
            "---\napiVersion: weft.mesh/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{ports: [{ports}]}}\n"
        ));
    }
    if !breaks(sabotage, Sabotage::NoPolicy) {
        text.push_str(&allow("charge-from-order", "charge", "http"));
    }
    text.push_str(&allow("ledger-from-order", "ledger", "echo"));
    text
}

fn apply(state: &Path, yaml: &str) -> Result<(), CliError> {
    let namespace = weft_policy::name::Namespace::default_namespace();
    let resources = manifest::parse(yaml, Some(&namespace)).map_err(CliError::invalid)?;
    let document = |r| Document { json: manifest::to_json(r).to_string().into_bytes() };
    let documents = resources.iter().map(document).collect();
    let request = ApplyRequest { documents, reason: "weft demo".into(), ..ApplyRequest::default() };
    with_server(state, async |client| client.apply(request).await.map_err(Into::into))?;
    Ok(())
}

fn with_server<T>(
    state: &Path,
    ask: impl AsyncFnOnce(&mut Management) -> Result<T, CliError>,
) -> Result<T, CliError> {
    client::run(async {
        let mut client = client::server_at(&state.join("run").join("server.sock")).await?;
        ask(&mut client).await
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_a_demo_uses_is_neither_cleared_nor_used_twice() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("demo");
        let first = prepare(&state).unwrap();
        std::fs::write(state.join("kept"), "x").unwrap();

        let refused = prepare(&state).unwrap_err();
        assert!(refused.faults()[0].what.contains(&std::process::id().to_string()), "{refused:?}");
        assert!(lock(&state).is_err() && state.join("kept").exists());
        drop(first);
        let _second = prepare(&state).unwrap();
        assert!(!state.join("kept").exists());
    }
}
