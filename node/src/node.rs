//! Builds every part of the agent in order and runs them: the table of contents of the plane.
//!
//! Workers carry traffic, each on a thread of its own; one more thread talks to the server, to local people and to the
//! metrics scraper. Nothing here waits for a server: what was kept on disk serves.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicU64, mpsc as std_mpsc},
    thread::JoinHandle,
    time::Duration,
};

use rand::{SeedableRng as _, rngs::StdRng};
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};
use weft_api::fault::Fault;
use weft_identity::{
    bundle::TrustBundles,
    spiffe::SpiffeId,
    tls::{BundleSlot, InboundSvids, SvidSlot, tunnel_config},
};
use weft_overlay::{ALPN, CloseCode, EndpointKeys, OverlayMetrics};
use weft_policy::{
    code,
    model::HostPort,
    name::{Namespace, ServiceName},
    snapshot::SnapshotContext,
};

use crate::{
    clock::Clock,
    config::Config,
    control::{demand::Demand, link::Link, registration::Withdrawals},
    denials::Denials,
    drain::Drain,
    files::{FileError, StateDir},
    flows::FlowTable,
    intercept::{Interception, LocalWorkloads as Selectables, Lookup},
    kept::Kept,
    listen::{self, Purpose, Sharing},
    listeners::{Addresses, Listeners, PortGuard, WORKER_QUEUE},
    local::LocalWorkloads,
    own_sockets::OwnSockets,
    plane::{self, ControlParts},
    report::Report,
    shared::{self, Shared},
    state::State,
    worker,
};

/// How long the parts of an agent may take to start.
const START_WITHIN: Duration = Duration::from_secs(10);

/// Why an agent does not start. Nothing runs then.
#[derive(Debug)]
pub struct NodeError(Fault);

impl NodeError {
    /// The error as a person meets it.
    #[must_use]
    pub fn fault(&self) -> Fault {
        self.0.clone()
    }
}

impl std::fmt::Display for NodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.0.code, self.0.what)
    }
}

impl std::error::Error for NodeError {}

impl From<Fault> for NodeError {
    fn from(fault: Fault) -> Self {
        Self(fault)
    }
}

impl From<FileError> for NodeError {
    fn from(error: FileError) -> Self {
        Self(error.fault())
    }
}

/// The agent, before it runs.
#[derive(Debug)]
pub struct Node;

/// A running agent. Dropping it ends it as a kill would.
#[derive(Debug)]
pub struct RunningNode {
    shared: Arc<Shared>,
    listeners: Listeners,
    socket: PathBuf,
    kill: CancellationToken,
    drained: watch::Receiver<bool>,
    threads: Vec<JoinHandle<()>>,
    upstreams: Vec<(String, PortGuard)>,
    proxy: Option<PortGuard>,
}

impl Node {
    /// Starts an agent from its configuration and its state directory; returns once its ports are open.
    ///
    /// # Errors
    ///
    /// [`NodeError`], with what to do about it.
    pub fn start(config: Config) -> Result<RunningNode, NodeError> {
        let files = StateDir::open(&config.state_dir)?;
        let kept = Kept::read(&files)?;
        let workers = config.workers.max(1);
        let sockets = bind_tunnels(&config, workers)?;
        let tunnels = listen::local_addr(&sockets).map_err(internal)?;
        let report = Report::new(&config, Clock::system().now())?;
        let overlay_metrics = Arc::clone(&report.overlay);
        let kill = CancellationToken::new();
        let shared = make_shared(config, files, &kept, tunnels, report)?;
        let selectable = Selectables::default();
        let interception = interception(&shared)?;
        let server = tunnel_server(&shared)?;
        let mut starting = Starting { shared, kill, threads: Vec::new(), workers: Vec::new() };
        for (index, socket) in sockets.into_iter().enumerate() {
            let keys = kept.keys.clone();
            starting.worker(index, socket, &server, keys, &overlay_metrics, &selectable, &interception)?;
        }
        starting.control(selectable, interception.lookup(), tunnels)
    }
}

/// The parts that run already; dropped, they end.
struct Starting {
    shared: Arc<Shared>,
    kill: CancellationToken,
    threads: Vec<JoinHandle<()>>,
    workers: Vec<mpsc::Sender<crate::listeners::OpenPort>>,
}

impl Drop for Starting {
    fn drop(&mut self) {
        // Nothing is left of it when the start has succeeded.
        if !self.threads.is_empty() {
            self.kill.cancel();
        }
    }
}

impl Starting {
    #[expect(clippy::too_many_arguments, reason = "the parts of a worker, each used once")]
    fn worker(
        &mut self,
        index: usize,
        socket: std::net::UdpSocket,
        server: &Arc<rustls::ServerConfig>,
        keys: EndpointKeys,
        overlay_metrics: &Arc<OverlayMetrics>,
        selectable: &Selectables,
        interception: &Interception,
    ) -> Result<(), NodeError> {
        let (sender, ports) = mpsc::channel(WORKER_QUEUE);
        let (ready, started) = std_mpsc::channel();
        let parts = worker::Parts {
            index,
            shared: Arc::clone(&self.shared),
            socket,
            server: Arc::clone(server),
            keys,
            overlay_metrics: Arc::clone(overlay_metrics),
            selectable: selectable.clone(),
            interception: interception.clone(),
            ports,
            kill: self.kill.clone(),
            ready,
        };
        self.threads.push(worker::spawn(parts).map_err(internal)?);
        let plane = started.recv_timeout(START_WITHIN).map_err(internal)??;
        self.shared.planes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(plane);
        self.workers.push(sender);
        Ok(())
    }

    /// Starts the control thread, which opens the remaining ports.
    fn control(
        mut self,
        selectable: Selectables,
        lookup: Arc<Lookup>,
        tunnels: SocketAddr,
    ) -> Result<RunningNode, NodeError> {
        let tasks = TaskTracker::new();
        let workers = std::mem::take(&mut self.workers);
        let listeners = Listeners::new(Arc::clone(&self.shared), workers, selectable, lookup, tasks.clone());
        let (drained_sender, drained) = watch::channel(false);
        let (ready, started) = std_mpsc::channel();
        let parts = ControlParts {
            shared: Arc::clone(&self.shared),
            listeners: listeners.clone(),
            tasks,
            kill: self.kill.clone(),
            drained: drained_sender,
            ready,
        };
        self.threads.push(plane::spawn(parts).map_err(internal)?);
        let ready = started.recv_timeout(START_WITHIN).map_err(internal)??;
        let addresses =
            Addresses { tunnels, proxy: ready.proxy.address, admin: ready.admin, metrics: ready.metrics };
        listeners.set_addresses(addresses);
        info!(
            node = %self.shared.config.node, %tunnels, proxy = %addresses.proxy, metrics = %addresses.metrics,
            boot = self.shared.boot, "agent up"
        );
        Ok(RunningNode {
            shared: Arc::clone(&self.shared),
            listeners,
            socket: ready.socket,
            kill: self.kill.clone(),
            drained,
            threads: std::mem::take(&mut self.threads),
            upstreams: ready.upstreams,
            proxy: Some(ready.proxy),
        })
    }
}

fn internal(error: impl std::fmt::Display) -> NodeError {
    NodeError(Fault::new(code::TASK_FAILED, format!("a part of the agent did not start: {error}")))
}

/// One UDP socket for each worker, all on one port.
fn bind_tunnels(config: &Config, workers: usize) -> Result<Vec<std::net::UdpSocket>, NodeError> {
    let sharing = if workers > 1 { Sharing::Workers } else { Sharing::Alone };
    let first =
        listen::udp(config.listen.tunnels, &Purpose::Tunnels, sharing).map_err(|e| NodeError(e.fault()))?;
    let address = first.local_addr().map_err(internal)?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(listen::udp(address, &Purpose::Tunnels, sharing).map_err(|e| NodeError(e.fault()))?);
    }
    Ok(sockets)
}

fn interception(shared: &Shared) -> Result<Interception, NodeError> {
    let config = &shared.config;
    let port = Some(config.listen.proxy.port()).filter(|port| *port != 0);
    Interception::new(config.head_limits(), config.connections(), port, shared.own_sockets.clone()).map_err(
        |error| {
            let what = "this host does not tell who a local caller is";
            NodeError(Fault::new(code::NOT_SUPPORTED_HERE, what).why(error.to_string()))
        },
    )
}

fn tunnel_server(shared: &Shared) -> Result<Arc<rustls::ServerConfig>, NodeError> {
    let resolver = Arc::new(shared.inbound_svids.clone());
    tunnel_config(resolver, shared.bundles.clone(), &[ALPN]).map(Arc::new).map_err(internal)
}

fn make_shared(
    config: Config,
    files: StateDir,
    kept: &Kept,
    tunnels: SocketAddr,
    report: Report,
) -> Result<Arc<Shared>, NodeError> {
    let advertise = advertised(&config, tunnels);
    let node_slot = SvidSlot::empty();
    let clock = Clock::system();
    if kept.node_svid.validity().contains(clock.wall()) {
        node_slot.publish(kept.node_svid.clone());
    }
    let bundles = BundleSlot::new(TrustBundles::from(kept.bundle.clone()));
    let servers = if config.servers.is_empty() {
        kept.record.servers.iter().filter_map(|text| text.parse().ok()).collect()
    } else {
        config.servers.clone()
    };
    let link = Link::new(servers, kept.trust_domain.clone(), node_slot.clone(), bundles.clone());
    let namespace: Namespace =
        kept.record.namespace.parse().unwrap_or_else(|_| Namespace::default_namespace());
    let state = State::default();
    let context = SnapshotContext { trust_domain: kept.trust_domain.clone() };
    if let Some(snapshot) = shared::read_snapshot(&files, context) {
        info!(revision = %snapshot.revision(), "the snapshot on disk is in force until a server sends a newer one");
        bundles.deny(snapshot.denied());
        state.publish(snapshot);
    }
    Ok(Arc::new(Shared {
        labels: Mutex::new(shared::read_labels(&files)),
        sequence: AtomicU64::new(kept.bundle.sequence()),
        node_id: kept.node_id.clone(),
        trust_domain: kept.trust_domain.clone(),
        cluster: kept.record.cluster.clone(),
        boot: kept.boot,
        flows: FlowTable::new(config.max_flows()),
        egress: FlowTable::new(config.max_flows()),
        own_sockets: OwnSockets::default(),
        withdrawals: Withdrawals::default(),
        rng: Mutex::new(StdRng::from_os_rng()),
        planes: Mutex::default(),
        locals: LocalWorkloads::default(),
        inbound_svids: InboundSvids::new(),
        demand: Demand::default(),
        balancers: crate::outbound::balancers::Balancers::default(),
        denials: Denials::default(),
        drain: Drain::new(),
        advertise,
        namespace,
        link,
        state,
        bundles,
        node_slot,
        report,
        proven: watch::Sender::new(0),
        denylists: watch::Sender::new(0),
        bundle_news: watch::Sender::new(0),
        clock,
        files,
        config,
    }))
}

/// How peers reach the tunnels: as configured, else the socket's own address, else the source address of the route to a
/// server (decisions.md, addresses).
fn advertised(config: &Config, tunnels: SocketAddr) -> Vec<HostPort> {
    if !config.advertise.is_empty() {
        return config.advertise.iter().map(|address| address.with_port(tunnels.port())).collect();
    }
    if !tunnels.ip().is_unspecified() {
        return vec![tunnels.into()];
    }
    let routed = config.servers.iter().find_map(source_towards);
    routed.map_or_else(Vec::new, |ip| vec![SocketAddr::new(ip, tunnels.port()).into()])
}

/// The address that this host uses towards `server`. A UDP socket's connect sends nothing.
fn source_towards(server: &HostPort) -> Option<IpAddr> {
    use std::net::{ToSocketAddrs as _, UdpSocket};
    let target = (server.host.as_str(), server.port).to_socket_addrs().ok()?.next()?;
    let any: SocketAddr =
        if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(target).ok()?;
    socket.local_addr().ok().map(|address| address.ip().to_canonical())
}

impl RunningNode {
    /// Where tunnels are taken.
    #[must_use]
    pub fn tunnels_addr(&self) -> SocketAddr {
        self.listeners.addresses().tunnels
    }

    /// The proxy port of every workload.
    #[must_use]
    pub fn proxy_addr(&self) -> SocketAddr {
        self.listeners.addresses().proxy
    }

    /// Where metrics and health are told.
    #[must_use]
    pub fn metrics_addr(&self) -> SocketAddr {
        self.listeners.addresses().metrics
    }

    /// The admin port.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.listeners.addresses().admin
    }

    /// The agent's socket.
    #[must_use]
    pub fn socket_path(&self) -> &Path {
        &self.socket
    }

    /// The declared upstreams: the service's name and the loopback address that leads to it.
    #[must_use]
    pub fn upstreams(&self) -> Vec<(String, SocketAddr)> {
        self.upstreams.iter().map(|(service, guard)| (service.clone(), guard.address)).collect()
    }

    /// Renews every SVID now, as if half its life had passed.
    pub fn rotate_now(&self) {
        self.listeners.rotate_now();
    }

    /// The identity and the serial number of each workload's SVID in use.
    #[must_use]
    pub fn svid_serials(&self) -> Vec<(String, String)> {
        let one = |workload: Arc<crate::local::LocalWorkload>| {
            let held = workload.slot.load()?;
            Some((workload.identity.to_string(), held.svid().serial().to_string()))
        };
        self.shared.locals.all().into_iter().filter_map(one).collect()
    }

    /// The identity and the label of each registered workload: the label is what tunnels ask for in clear.
    #[must_use]
    pub fn labels(&self) -> Vec<(String, String)> {
        let one = |workload: Arc<crate::local::LocalWorkload>| {
            Some((workload.identity.to_string(), workload.reachable()?.label.to_string()))
        };
        self.shared.locals.all().into_iter().filter_map(one).collect()
    }

    /// Whether a server is connected.
    #[must_use]
    pub fn is_server_connected(&self) -> bool {
        self.shared.link.is_up()
    }

    /// Dials an agent as a workload of this node, accepting whoever answers: what a stranger with a stolen certificate
    /// would do. Blocks.
    ///
    /// # Errors
    ///
    /// Why no tunnel came to be.
    pub fn dial_as_local(&self, workload: &str, address: SocketAddr, label: &str) -> Result<(), String> {
        let (namespace, account) = workload.split_once('/').ok_or("namespace/name")?;
        let all = self.shared.locals.all();
        let found = all.iter().find(|w| w.namespace.as_str() == namespace && w.account.as_str() == account);
        let found = found.ok_or_else(|| format!("no workload {workload} here"))?;
        crate::probe::insider(address, label, found.slot.clone(), self.shared.bundles.clone())
    }

    /// Completes when the agent was drained through its socket. Cancel-safe.
    pub fn drained(&self) -> impl Future<Output = ()> + use<> {
        let mut drained = self.drained.clone();
        async move {
            if drained.wait_for(|done| *done).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Ends everything at once, as a kill would: every task and socket is gone, nothing is said to anybody. Blocks until
    /// the sockets are closed.
    pub fn kill(mut self) {
        self.end();
    }

    /// Ends in good order: no new work, flows may end within `deadline`, then they are cut. Blocks. Returns how many
    /// flows were cut.
    pub fn drain(mut self, deadline: Duration) -> u64 {
        self.proxy = None;
        self.upstreams.clear();
        for plane in self.shared.planes() {
            plane.overlay.drain(CloseCode::Drain);
        }
        let cut = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => runtime.block_on(self.shared.drain.drain(deadline, &self.shared.clock)),
            // Without a runtime nothing can be waited for: everything is cut.
            Err(_) => self.shared.flows.len(),
        };
        if cut > 0 {
            warn!(flows = cut, "flows cut at the deadline");
            self.shared.flows.cut_where(|_| true);
            self.shared.egress.cut_where(|_| true);
        }
        for plane in self.shared.planes() {
            plane.overlay.close(CloseCode::Drain);
        }
        // The packets that say so leave the sockets within a round trip.
        std::thread::sleep(Duration::from_millis(50));
        self.end();
        // A socket that nobody listens on any more would only puzzle; one that is gone already is as good.
        let _ = std::fs::remove_file(&self.socket);
        cut as u64
    }

    fn end(&mut self) {
        self.kill.cancel();
        for thread in self.threads.drain(..) {
            // A part that panicked has ended, too.
            let _ = thread.join();
        }
        self.shared.report.finish();
        // The state directory's lock goes with the last handle.
        self.shared.planes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
    }
}

impl Drop for RunningNode {
    fn drop(&mut self) {
        self.end();
    }
}

/// The workloads and upstreams of the configuration, for the control thread.
pub(crate) fn declared(shared: &Shared) -> Result<Vec<Declared>, Fault> {
    let mut all = Vec::new();
    for (index, workload) in shared.config.workloads.iter().enumerate() {
        let namespace = workload.namespace.clone().unwrap_or_else(|| shared.namespace.clone());
        let identity =
            SpiffeId::workload(&shared.trust_domain, namespace.as_str(), workload.service.as_str())
                .map_err(|e| Fault::new(code::CONFIG_BAD_VALUE, format!("workloads[{index}]: {e}")))?;
        let ports: BTreeMap<String, SocketAddr> = workload.ports.clone();
        all.push(Declared {
            identity,
            account: workload.service.clone(),
            uid: workload.uid.or_else(own_uid),
            upstreams: workload
                .upstreams
                .iter()
                .map(|upstream| {
                    let namespace = upstream.namespace.clone().unwrap_or_else(|| namespace.clone());
                    (ServiceName::new(namespace, upstream.service.clone()), upstream.port, upstream.listen)
                })
                .collect(),
            namespace,
            ports,
        });
    }
    Ok(all)
}

/// One workload of the configuration.
pub(crate) struct Declared {
    pub(crate) identity: SpiffeId,
    pub(crate) namespace: Namespace,
    pub(crate) account: weft_policy::name::ObjectName,
    pub(crate) ports: BTreeMap<String, SocketAddr>,
    pub(crate) uid: Option<u32>,
    pub(crate) upstreams: Vec<(ServiceName, std::num::NonZeroU16, SocketAddr)>,
}

/// The uid of a declared workload that names none: the agent's own. Never root: uid 0 must be declared.
fn own_uid() -> Option<u32> {
    Some(nix::unistd::geteuid().as_raw()).filter(|uid| *uid != 0)
}
