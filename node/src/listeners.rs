//! The loopback ports of local workloads, and who serves them.
//!
//! Owns opening and closing: a port is open as long as its guard lives. The sockets themselves live on a worker, because
//! a tokio socket belongs to its runtime; here is the handle that every other thread uses.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_api::fault::Fault;
use weft_policy::{
    code,
    name::{Namespace, ObjectName, ServiceName},
};

use crate::{
    control::identity::{Holder, keep_fresh},
    intercept::{Lookup, caller},
    local::LocalWorkload,
    outbound::egress::is_inward,
    shared::Shared,
};

/// Requests to a worker that wait; opening a port is rare.
pub(crate) const WORKER_QUEUE: usize = 64;
/// Ports that guards may hold open at once on one agent.
const MAX_PORTS: usize = 10_000;

/// Where the agent's own ports are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) tunnels: SocketAddr,
    pub(crate) proxy: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) metrics: SocketAddr,
}

/// What a port leads to.
#[derive(Clone, Debug)]
pub(crate) enum PortKind {
    /// The proxy port of every workload: a credential or the uid tells which.
    SharedProxy,
    /// A proxy port of one workload; `uid` is who may use it.
    Proxy { workload: Arc<LocalWorkload>, uid: u32 },
    /// One service, for one workload.
    Upstream { workload: Arc<LocalWorkload>, uid: Option<u32>, service: ServiceName, port: NonZeroU16 },
}

/// A request to a worker: listen there, until the token is cancelled.
pub(crate) struct OpenPort {
    pub(crate) address: SocketAddr,
    pub(crate) kind: PortKind,
    pub(crate) stop: CancellationToken,
    pub(crate) reply: oneshot::Sender<Result<SocketAddr, Fault>>,
}

/// A port to a service that somebody wants.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamSpec {
    pub(crate) service: ServiceName,
    pub(crate) port: NonZeroU16,
    pub(crate) listen: SocketAddr,
}

/// An open port; dropping it closes it. Connections that were accepted go on.
#[derive(Debug)]
pub(crate) struct PortGuard {
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    /// Whose port it is; `None` for the shared one.
    owner: Option<(Namespace, ObjectName)>,
    listeners: Listeners,
}

/// An open proxy port.
pub(crate) type ProxyGuard = PortGuard;
/// An open upstream port.
pub(crate) type UpstreamGuard = PortGuard;

impl Drop for PortGuard {
    fn drop(&mut self) {
        self.stop.cancel();
        self.listeners.0.open.fetch_sub(1, Ordering::Relaxed);
        self.listeners.0.ports.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.address.port());
        let mut ports = self.listeners.0.proxies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(owner) = &self.owner
            && ports.get(owner) == Some(&self.address.port())
        {
            ports.remove(owner);
        }
    }
}

/// The handle. A clone is the same one.
#[derive(Clone, Debug)]
pub(crate) struct Listeners(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    workers: Vec<mpsc::Sender<OpenPort>>,
    next: AtomicUsize,
    open: AtomicUsize,
    addresses: OnceLock<Addresses>,
    proxies: Mutex<HashMap<(Namespace, ObjectName), u16>>,
    /// Every port that a guard holds open.
    ports: Mutex<HashSet<u16>>,
    rotations: Mutex<HashMap<(Namespace, ObjectName), CancellationToken>>,
    renew_now: watch::Sender<u64>,
    tasks: TaskTracker,
    selectable: caller::LocalWorkloads,
    lookup: Arc<Lookup>,
}

impl Listeners {
    /// `tasks` runs on the control thread.
    pub(crate) fn new(
        shared: Arc<Shared>,
        workers: Vec<mpsc::Sender<OpenPort>>,
        selectable: caller::LocalWorkloads,
        lookup: Arc<Lookup>,
        tasks: TaskTracker,
    ) -> Self {
        Self(Arc::new(Inner {
            shared,
            workers,
            next: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            addresses: OnceLock::new(),
            proxies: Mutex::default(),
            ports: Mutex::default(),
            rotations: Mutex::default(),
            renew_now: watch::Sender::new(0),
            tasks,
            selectable,
            lookup,
        }))
    }

    /// Notes where the agent's own ports are, once they are open.
    pub(crate) fn set_addresses(&self, addresses: Addresses) {
        // The second call of a start would say the same.
        let _ = self.0.addresses.set(addresses);
    }

    /// Where the agent's own ports are; unspecified until they are open.
    pub(crate) fn addresses(&self) -> Addresses {
        let none = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let unknown = Addresses { tunnels: none, proxy: none, admin: none, metrics: none };
        self.0.addresses.get().copied().unwrap_or(unknown)
    }

    /// Whether `address` is on this host and names a TCP port of the agent or of its server.
    pub(crate) fn is_of_the_mesh(&self, address: SocketAddr) -> bool {
        if !is_inward(address.ip()) {
            return false;
        }
        let own = self.addresses();
        let servers = self.0.shared.link.servers().iter().map(|server| server.port);
        let known = [own.proxy, own.admin, own.metrics].map(|own| own.port());
        let opened = self.0.ports.lock().unwrap_or_else(PoisonError::into_inner);
        servers.chain(known).chain(opened.iter().copied()).any(|port| port == address.port())
    }

    /// Asks the kernel who a local caller is.
    pub(crate) fn lookup(&self) -> Arc<Lookup> {
        Arc::clone(&self.0.lookup)
    }

    /// The tasks of the control thread.
    pub(crate) fn tasks(&self) -> TaskTracker {
        self.0.tasks.clone()
    }

    /// The proxy port of a workload, if one is open.
    pub(crate) fn proxy_port_of(&self, workload: &LocalWorkload) -> Option<u16> {
        let ports = self.0.proxies.lock().unwrap_or_else(PoisonError::into_inner);
        ports.get(&(workload.namespace.clone(), workload.name.clone())).copied()
    }

    /// Opens the proxy port that all workloads share.
    pub(crate) async fn open_shared_proxy(&self, address: SocketAddr) -> Result<PortGuard, Fault> {
        let stop = CancellationToken::new();
        let address = self.ask_worker(address, PortKind::SharedProxy, stop.clone()).await?;
        self.0.open.fetch_add(1, Ordering::Relaxed);
        Ok(PortGuard { address, stop, owner: None, listeners: self.clone() })
    }

    /// Opens a proxy port that speaks as `workload`, for programs of user `uid`: `wanted` if it is free, else any.
    pub(crate) async fn open_proxy(
        &self,
        workload: &Arc<LocalWorkload>,
        uid: u32,
        wanted: u16,
    ) -> Result<ProxyGuard, Fault> {
        let kind = PortKind::Proxy { workload: Arc::clone(workload), uid };
        let at = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let guard = match self.open(at(wanted), kind.clone(), workload).await {
            Err(_) if wanted != 0 => self.open(at(0), kind, workload).await?,
            opened => opened?,
        };
        let mut ports = self.0.proxies.lock().unwrap_or_else(PoisonError::into_inner);
        ports.insert((workload.namespace.clone(), workload.name.clone()), guard.address.port());
        drop(ports);
        Ok(guard)
    }

    /// Opens a port that leads `workload` to one service. Without `uid` the listener alone tells the workload, and the
    /// configuration's declared uid, if there is one, is what callers must prove.
    pub(crate) async fn open_upstream(
        &self,
        workload: &Arc<LocalWorkload>,
        uid: impl Into<Option<u32>>,
        spec: UpstreamSpec,
    ) -> Result<UpstreamGuard, Fault> {
        let UpstreamSpec { service, port, listen } = spec;
        self.0.shared.demand.want(&service, self.0.shared.clock.now());
        let kind = PortKind::Upstream { workload: Arc::clone(workload), uid: uid.into(), service, port };
        self.open(listen, kind, workload).await
    }

    async fn open(
        &self,
        address: SocketAddr,
        kind: PortKind,
        workload: &LocalWorkload,
    ) -> Result<PortGuard, Fault> {
        if self.0.open.fetch_add(1, Ordering::Relaxed) >= MAX_PORTS {
            self.0.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Fault::new(
                code::OVER_LIMIT,
                format!("{MAX_PORTS} ports are open already, the limit of one agent"),
            ));
        }
        let stop = CancellationToken::new();
        let opened = self.ask_worker(address, kind, stop.clone()).await;
        let address = opened.inspect_err(|_| {
            self.0.open.fetch_sub(1, Ordering::Relaxed);
        })?;
        let owner = Some((workload.namespace.clone(), workload.name.clone()));
        self.0.ports.lock().unwrap_or_else(PoisonError::into_inner).insert(address.port());
        Ok(PortGuard { address, stop, owner, listeners: self.clone() })
    }

    async fn ask_worker(
        &self,
        address: SocketAddr,
        kind: PortKind,
        stop: CancellationToken,
    ) -> Result<SocketAddr, Fault> {
        let index = self.0.next.fetch_add(1, Ordering::Relaxed) % self.0.workers.len().max(1);
        let gone = || Fault::new(code::INTERNAL, "the agent is stopping");
        let worker = self.0.workers.get(index).ok_or_else(gone)?;
        let (reply, answer) = oneshot::channel();
        worker.send(OpenPort { address, kind, stop, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Starts keeping a workload's SVID current.
    pub(crate) fn start_rotation(&self, workload: &Arc<LocalWorkload>) {
        let stop = CancellationToken::new();
        let key = (workload.namespace.clone(), workload.name.clone());
        let mut rotations = self.0.rotations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = rotations.insert(key, stop.clone()) {
            old.cancel();
        }
        drop(rotations);
        let (shared, holder) = (Arc::clone(&self.0.shared), Holder::Workload(Arc::clone(workload)));
        let renew_now = self.0.renew_now.subscribe();
        self.0
            .tasks
            .spawn(async move { stop.run_until_cancelled(keep_fresh(shared, holder, renew_now)).await });
    }

    /// Stops keeping it.
    pub(crate) fn stop_rotation(&self, workload: &LocalWorkload) {
        let key = (workload.namespace.clone(), workload.name.clone());
        let mut rotations = self.0.rotations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stop) = rotations.remove(&key) {
            stop.cancel();
        }
    }

    /// Notes calls for an early renewal of everything.
    pub(crate) fn renewals(&self) -> watch::Receiver<u64> {
        self.0.renew_now.subscribe()
    }

    /// Renews every SVID now.
    pub(crate) fn rotate_now(&self) {
        self.0.renew_now.send_modify(|count| *count += 1);
    }

    /// Tells the shared proxy port which workloads there are.
    pub(crate) fn workloads_changed(&self) {
        crate::worker::publish_selectable(&self.0.shared, &self.0.selectable);
    }
}
