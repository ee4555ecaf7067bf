//! The control thread: everything of the agent that carries no traffic.
//!
//! Talks to the server, serves `agent.sock`, metrics, health and admin, and keeps identities fresh. It opens the declared
//! workloads' ports on the workers.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, mpsc as std_mpsc},
    thread::JoinHandle,
};

use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, warn};
use weft_api::{
    channel::{self, Limits, bind_unix, serve_unix},
    fault::Fault,
    pb::agent::agent_server::AgentServer,
};
use weft_policy::code;

use crate::{
    admin::{Bounded, Pages, admin_router, local::LocalListener, metrics_router},
    answers::{Answers, keep_conditions},
    control::{discovery, identity, registration, taint},
    listen::{self, Purpose},
    listeners::{Listeners, PortGuard, UpstreamSpec},
    local::LocalWorkload,
    local_api::{LocalApi, free_name},
    node::{Declared, declared},
    shared::Shared,
};

/// What the control thread is made of.
pub(crate) struct ControlParts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) listeners: Listeners,
    pub(crate) tasks: TaskTracker,
    pub(crate) kill: CancellationToken,
    pub(crate) drained: watch::Sender<bool>,
    pub(crate) ready: std_mpsc::Sender<Result<Ready, Fault>>,
}

/// What is open once the thread serves.
pub(crate) struct Ready {
    pub(crate) proxy: PortGuard,
    pub(crate) upstreams: Vec<(String, PortGuard)>,
    pub(crate) metrics: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) socket: PathBuf,
}

/// Starts the thread.
pub(crate) fn spawn(parts: ControlParts) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("weft-control".to_owned()).spawn(move || run(parts))
}

fn run(parts: ControlParts) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            // The one who waits may have given up: then there is nobody to tell.
            let _ = parts.ready.send(Err(Fault::new(code::INTERNAL, error.to_string())));
            return;
        }
    };
    let kill = parts.kill.clone();
    runtime.block_on(kill.run_until_cancelled(serve(parts)));
    runtime.shutdown_background();
}

async fn serve(parts: ControlParts) {
    let ControlParts { shared, listeners, tasks, drained, ready, .. } = parts;
    match open(&shared, &listeners, &tasks, drained).await {
        Ok(opened) => {
            // An agent whose starter has gone is about to be killed.
            let _ = ready.send(Ok(opened));
        }
        Err(fault) => {
            let _ = ready.send(Err(fault));
            return;
        }
    }
    let holder = identity::Holder::Node;
    tokio::join!(
        discovery::keep_current(Arc::clone(&shared)),
        registration::keep_registered(Arc::clone(&shared)),
        identity::keep_fresh(Arc::clone(&shared), holder, listeners.renewals()),
        taint::leave_tainted(Arc::clone(&shared)),
        keep_conditions(Arc::clone(&shared)),
    );
    error!("the control tasks ended by themselves");
}

async fn open(
    shared: &Arc<Shared>,
    listeners: &Listeners,
    tasks: &TaskTracker,
    drained: watch::Sender<bool>,
) -> Result<Ready, Fault> {
    let socket = serve_socket(shared, listeners, tasks, drained)?;
    let config = &shared.config;
    let metrics = listen::tcp_or_next(config.listen.metrics, &Purpose::Metrics).map_err(|e| e.fault())?;
    let admin = listen::tcp_or_next(config.listen.admin, &Purpose::Admin).map_err(|e| e.fault())?;
    let addresses = (address(&metrics)?, address(&admin)?);
    note_address(shared, "metrics.addr", addresses.0);
    note_address(shared, "admin.addr", addresses.1);
    serve_pages(shared, listeners, tasks, metrics, admin);
    let proxy = listeners.open_shared_proxy(config.listen.proxy).await?;
    let mut upstreams = Vec::new();
    for workload in declared(shared)? {
        upstreams.extend(open_declared(shared, listeners, workload).await?);
    }
    shared.sweep_secrets();
    listeners.workloads_changed();
    Ok(Ready { proxy, upstreams, metrics: addresses.0, admin: addresses.1, socket })
}

/// Serves metrics, health and the admin pages, the latter to the agent's own user and root.
fn serve_pages(
    shared: &Arc<Shared>,
    listeners: &Listeners,
    tasks: &TaskTracker,
    metrics: tokio::net::TcpListener,
    admin: tokio::net::TcpListener,
) {
    let report = &shared.report;
    let pages = Pages {
        registry: Arc::clone(&report.registry),
        readiness: report.readiness.clone(),
        liveness: report.liveness.clone(),
        dump: Arc::new(Answers::new(Arc::clone(shared))),
        clock: shared.clock.clone(),
    };
    let (for_metrics, for_admin) = (metrics_router(pages.clone()), admin_router(pages));
    let local = LocalListener::new(admin, listeners.lookup());
    tasks.spawn(async move {
        if let Err(error) = axum::serve(Bounded::new(metrics), for_metrics).await {
            error!(%error, "the metrics port ended");
        }
    });
    tasks.spawn(async move {
        if let Err(error) = axum::serve(local, for_admin).await {
            error!(%error, "the admin port ended");
        }
    });
}

/// A port that moved because its own was taken must be findable (decisions.md, one host).
fn note_address(shared: &Shared, name: &str, address: SocketAddr) {
    if let Err(error) = shared.files.write(name, address.to_string().as_bytes()) {
        warn!(%error, name, "the address cannot be written to the state directory");
    }
}

fn address(listener: &tokio::net::TcpListener) -> Result<SocketAddr, Fault> {
    listener.local_addr().map_err(|e| Fault::new(code::INTERNAL, e.to_string()))
}

async fn open_declared(
    shared: &Arc<Shared>,
    listeners: &Listeners,
    declared: Declared,
) -> Result<Vec<(String, PortGuard)>, Fault> {
    let Declared { identity, namespace, account, ports, uid, upstreams } = declared;
    let name = free_name(shared, &namespace, &account)
        .ok_or_else(|| Fault::new(code::BAD_NAME, format!("no name is left for {account}")))?;
    let workload = Arc::new(LocalWorkload::new(identity, namespace, name, account, ports, uid));
    if uid.is_none() && !upstreams.is_empty() {
        warn!(
            workload = %workload.identity,
            "it declares no uid and the agent runs as root: nobody can prove to be it (set `uid:` in agent.yaml)"
        );
    }
    shared.locals.insert(&workload);
    if let Some(label) = shared.kept_label(&workload) {
        // Known from before: it serves at once, with or without a server.
        shared.restored(&workload, label);
    }
    listeners.start_rotation(&workload);
    let mut open = Vec::new();
    for (service, port, listen) in upstreams {
        let name = service.name.to_string();
        shared.demand.pin(&service, shared.clock.now());
        let spec = UpstreamSpec { service, port, listen };
        open.push((name, listeners.open_upstream(&workload, uid, spec).await?));
    }
    Ok(open)
}

/// Serves `agent.sock`. Everybody may connect; what one may do there is decided by who the kernel says it is.
fn serve_socket(
    shared: &Arc<Shared>,
    listeners: &Listeners,
    tasks: &TaskTracker,
    drained: watch::Sender<bool>,
) -> Result<PathBuf, Fault> {
    let path = shared.config.run_dir.join("agent.sock");
    let listener = bind_unix(&path, 0o666).map_err(|error| {
        let what = format!("cannot listen on {}", path.display());
        let unsafe_folder = [ErrorKind::AlreadyExists, ErrorKind::PermissionDenied].contains(&error.kind());
        let id = if unsafe_folder { code::SOCKET_UNSAFE } else { code::STATE_IN_USE };
        Fault::new(id, what).why(error.to_string()).fix("weft agent status")
    })?;
    let (sender, mut receiver) = mpsc::channel(1);
    let api = LocalApi::new(Arc::clone(shared), listeners.clone(), sender);
    let incoming = serve_unix(listener, Limits::default());
    let server = channel::grpc_server().add_service(AgentServer::new(api));
    tasks.spawn(async move {
        if let Err(error) = server.serve_with_incoming(incoming).await {
            error!(%error, "the agent's socket ended");
        }
    });
    tasks.spawn(async move {
        if receiver.recv().await.is_some() {
            drained.send_replace(true);
        }
    });
    Ok(path)
}
