//! The table of contents of the plane: what it is made of, in which order it starts, how it ends.
//!
//! ```text
//! store ─▶ listeners ─▶ authority ─▶ keeper ─▶ services ─▶ gate ─▶ gRPC over TLS and over the Unix socket
//! ```
//!
//! A server has a thread and a runtime of its own, so that it starts, ends and can be killed as one thing, also in a
//! process with an agent. The store's lock is taken first: of two servers on one directory the second changes nothing.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{runtime::Runtime, sync::oneshot, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};
use tracing::{error, info, warn};
use weft_api::{
    channel::{ALPN_H2, grpc_server, serve_incoming, serve_unix},
    fault::Fault,
};
use weft_identity::{
    spiffe::TrustDomain,
    tls::{ClientAuth, server_config},
};
use weft_policy::code;

use crate::{
    attest::join_token::JoinTokens,
    authority::{AuthorityFailure, InstanceAuthority},
    bootstrap::{self, BootstrapError},
    clock::Clock,
    config::Config,
    core::Core,
    discovery::DiscoveryService,
    gate::{self, Gate},
    identity_service::IdentityService,
    issuer::Issuer,
    keeper,
    listeners::{self, Addresses, ListenError, Listeners},
    management::ManagementService,
    metrics::RegistryMetrics,
    presence::Presence,
    private::{self, PrivateError},
    refusal::catalogued,
    roles::{self, MethodsWithoutRole},
    store::{
        Store, StoreError,
        embedded::{Bounds, EmbeddedStore, OpenError, Settings},
        metrics::StoreMetrics,
    },
    telemetry::{GateMetrics, Metrics, Plane, serve_admin, serve_metrics},
    throttle::Throttle,
};

/// Threads of the runtime: one may sign or compare views while the other answers.
const WORKERS: usize = 2;
/// How long tasks may take to be dropped.
const DROP_WITHIN: Duration = Duration::from_secs(5);

/// Starts servers.
#[derive(Debug)]
pub struct Server;

/// A server that serves. Dropping it kills it.
#[derive(Debug)]
pub struct RunningServer {
    addresses: Addresses,
    trust_domain: TrustDomain,
    stop: Option<oneshot::Sender<Stop>>,
    thread: Option<JoinHandle<()>>,
}

/// How a server ends.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// Agents are asked to go, calls may end within this time.
    Drain(Duration),
    /// Everything is dropped at once.
    Kill,
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The store does not open.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The store cannot be read.
    #[error("the store cannot be read: {0}")]
    Read(#[from] StoreError),
    /// A listener does not open.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The directory of the socket.
    #[error(transparent)]
    RunDir(#[from] PrivateError),
    /// The authority cannot work.
    #[error(transparent)]
    Authority(#[from] AuthorityFailure),
    /// A method has no role.
    #[error(transparent)]
    Roles(#[from] MethodsWithoutRole),
    /// The TLS configuration is refused by its library.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// What stands in the store or the directory of manifests cannot be in force.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The system gives no thread.
    #[error("the server's thread cannot be started: {0}")]
    Thread(io::Error),
    /// The server ended before it was ready.
    #[error("the server ended while it was starting")]
    Ended,
}

impl ServerError {
    /// What to tell a person.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let id = match self {
            Self::Store(error) => error.code(),
            Self::Read(error) => error.code(),
            Self::Listen(error) => error.code(),
            Self::RunDir(_) => code::SOCKET_UNSAFE,
            Self::Authority(error) => error.code(),
            Self::Roles(_) => code::METHOD_WITHOUT_ROLE,
            Self::Bootstrap(error) => return error.fault(),
            Self::Tls(_) | Self::Thread(_) | Self::Ended => code::INTERNAL,
        };
        let fault = catalogued(id, self.to_string());
        match std::error::Error::source(self) {
            Some(source) => fault.why(source.to_string()),
            None => fault,
        }
    }
}

impl Server {
    /// Starts a server by the clock of the machine; returns when it serves.
    ///
    /// # Errors
    ///
    /// [`ServerError`]; then nothing of it is left running.
    pub fn start(config: Config) -> Result<RunningServer, ServerError> {
        Self::start_with(config, Clock::system())
    }

    /// Starts a server by `clock`. TLS handshakes are judged by the machine's all the same.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub fn start_with(config: Config, clock: Clock) -> Result<RunningServer, ServerError> {
        let trust_domain = config.trust_domain.clone();
        let (ready, started) = mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let body = move || run(&config, &clock, &ready, stopped);
        let thread = thread::Builder::new().name("weft-server".to_owned()).spawn(body);
        let thread = thread.map_err(ServerError::Thread)?;
        match started.recv() {
            Ok(Ok(addresses)) => {
                Ok(RunningServer { addresses, trust_domain, stop: Some(stop), thread: Some(thread) })
            }
            Ok(Err(refused)) => {
                join(thread);
                Err(refused)
            }
            Err(mpsc::RecvError) => {
                join(thread);
                Err(ServerError::Ended)
            }
        }
    }
}

impl RunningServer {
    /// Where agents and people elsewhere connect.
    #[must_use]
    pub const fn control_addr(&self) -> SocketAddr {
        self.addresses.control
    }

    /// Where Prometheus asks.
    #[must_use]
    pub const fn metrics_addr(&self) -> SocketAddr {
        self.addresses.metrics
    }

    /// Where people of this host look.
    #[must_use]
    pub const fn admin_addr(&self) -> SocketAddr {
        self.addresses.admin
    }

    /// Where this user and root connect.
    #[must_use]
    pub fn socket_path(&self) -> &Path {
        &self.addresses.socket
    }

    /// The trust domain.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Whether it has ended by itself, as it does when its store fails for good.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends it in good order: agents are asked to go, calls may end within `deadline`, then everything is dropped.
    /// Blocks until it is gone.
    pub fn shutdown(mut self, deadline: Duration) {
        self.end(Stop::Drain(deadline));
    }

    /// Drops everything at once, as if the process had been killed. Blocks until the store is closed.
    pub fn kill(mut self) {
        self.end(Stop::Kill);
    }

    fn end(&mut self, how: Stop) {
        if let Some(stop) = self.stop.take() {
            // It may have ended by itself.
            let _ = stop.send(how);
        }
        if let Some(thread) = self.thread.take() {
            join(thread);
        }
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.end(Stop::Kill);
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        error!("the server's thread panicked");
    }
}

/// The whole life of a server, on its thread.
fn run(
    config: &Config,
    clock: &Clock,
    ready: &mpsc::SyncSender<Result<Addresses, ServerError>>,
    stopped: oneshot::Receiver<Stop>,
) {
    let built = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("weft-server-io")
        .enable_all()
        .build();
    let runtime: Runtime = match built {
        Ok(runtime) => runtime,
        Err(error) => {
            // Nobody waits only when the caller's thread died.
            let _ = ready.send(Err(ServerError::Thread(error)));
            return;
        }
    };
    runtime.block_on(async {
        match build(config, clock).await {
            Ok(parts) => {
                let addresses = parts.addresses.clone();
                info!(control = %addresses.control, socket = %addresses.socket.display(), "server ready");
                let _ = ready.send(Ok(addresses));
                parts.serve(stopped).await;
            }
            Err(refused) => drop(ready.send(Err(refused))),
        }
    });
    runtime.shutdown_timeout(DROP_WITHIN);
}

/// A server whose every part runs.
struct Parts {
    addresses: Addresses,
    draining: CancellationToken,
    /// gRPC on both listeners: they end when the server drains.
    doors: JoinSet<()>,
    /// What must run for as long as anybody is served. The first to end ends the server.
    vital: JoinSet<&'static str>,
    /// Holds the store open until everything else is dropped.
    _store: Arc<dyn Store>,
}

async fn build(config: &Config, clock: &Clock) -> Result<Parts, ServerError> {
    config.warnings().iter().for_each(|fault| warn!(code = %fault.code, "{}", fault.what));
    let table = roles::check_table()?;
    let store_metrics = Arc::new(StoreMetrics::default());
    let store = open_store(config, clock, &store_metrics).await?;
    private::directory(&config.run_dir)?;
    let listeners = Listeners::open(config)?;
    let addresses = listeners.addresses.clone();
    let authority =
        InstanceAuthority::open(&*store, clock, &config.state_dir, &config.trust_domain, config.identity)
            .await?;
    let authority = Arc::new(authority);
    let metrics = Arc::new(RegistryMetrics::default());
    let presence = Presence::new(clock.clone());
    let domain = config.trust_domain.clone();
    let started =
        keeper::start(Arc::clone(&store), clock.clone(), &presence, domain, Arc::clone(&metrics)).await;
    let (world, keeping) = started?;
    let draining = CancellationToken::new();
    let mut vital = JoinSet::new();
    vital.spawn(named("the keeper of the world", async move {
        if let Err(failure) = keeping.await {
            error!(error = %failure, "the world cannot be kept current");
        }
    }));
    let core = Core {
        store: Arc::clone(&store),
        clock: clock.clone(),
        trust_domain: config.trust_domain.clone(),
        cluster: config.cluster.clone(),
        instance: authority.instance(),
        world,
        presence: presence.clone(),
        bundle: authority.bundle(),
        metrics: Arc::clone(&metrics),
        draining: draining.clone(),
    };
    let services = Services::new(config, &core, &authority, &addresses);
    bootstrap::run(&core, &services.management, config.manifests.as_deref()).await?;

    let gate_metrics = GateMetrics::default();
    let gate = Gate::new(gate::Settings {
        table,
        clock: clock.clone(),
        world: core.world.clone(),
        trust_domain: config.trust_domain.clone(),
        bundles: authority.bundles(),
        metrics: gate_metrics.clone(),
        per_client: config.limits.streams_per_client,
    });
    let mut told = Metrics::new(&store_metrics, &metrics, &gate_metrics, &authority, &services.issuer);
    let doors = open_doors(
        config,
        &services,
        &gate,
        &authority,
        &draining,
        listeners.control,
        listeners.unix,
        &mut told,
    )?;
    let plane = Arc::new(Plane {
        metrics: told,
        authority: Arc::clone(&authority),
        presence,
        clock: clock.clone(),
        draining: draining.clone(),
        origins: config.origins(),
        serving: OnceLock::from(()),
    });
    let (for_metrics, for_admin) = (Arc::clone(&plane), plane);
    vital.spawn(named("the metrics listener", serve_metrics(listeners.metrics, for_metrics)));
    vital.spawn(named("the admin listener", serve_admin(listeners.admin, for_admin)));
    let kept = Arc::clone(&store);
    vital.spawn(named("the care of the authority", async move { authority.look_after(&*kept).await }));
    Ok(Parts { addresses, draining, doors, vital, _store: store })
}

async fn open_store(
    config: &Config,
    clock: &Clock,
    metrics: &Arc<StoreMetrics>,
) -> Result<Arc<dyn Store>, OpenError> {
    let settings = Settings { directory: config.state_dir.clone(), bounds: Bounds::default() };
    Ok(Arc::new(EmbeddedStore::open(settings, clock.clone(), Arc::clone(metrics)).await?))
}

/// What is served by gRPC.
struct Services {
    core: Core,
    issuer: Arc<Issuer>,
    tokens: Arc<JoinTokens>,
    management: ManagementService,
    discovery: DiscoveryService,
}

impl Services {
    fn new(config: &Config, core: &Core, authority: &Arc<InstanceAuthority>, addresses: &Addresses) -> Self {
        let throttle = Arc::new(Throttle::new(&config.limits, core.clock.clone()));
        let queue = config.limits.signing_queue;
        let issuer = Issuer::new(core.clone(), Arc::clone(authority), Arc::clone(&throttle), queue);
        let issuer = Arc::new(issuer);
        let servers = listeners::advertised(config, addresses.control);
        let open = config.limits.open_tokens;
        let tokens = Arc::new(JoinTokens::new(core.clone(), Arc::clone(&issuer), throttle, servers, open));
        let shared = Arc::new(core.clone());
        let authority: Arc<InstanceAuthority> = Arc::clone(authority);
        Self {
            management: ManagementService::new(Arc::clone(&shared), tokens.clone(), authority),
            discovery: DiscoveryService::new(shared),
            core: core.clone(),
            issuer,
            tokens,
        }
    }

    /// All services behind the gate, with the limits of the channel.
    fn router(&self, gate: &Gate) -> Router<Stack<Gate, Identity>> {
        let identity =
            IdentityService::new(self.core.clone(), Arc::clone(&self.tokens), Arc::clone(&self.issuer));
        let (_reporter, health) = tonic_health::server::health_reporter();
        grpc_server()
            .layer(gate.clone())
            .add_service(health)
            .add_service(identity.into_server())
            .add_service(self.discovery.clone().into_server())
            .add_service(self.management.clone().into_server())
    }
}

#[expect(clippy::too_many_arguments, reason = "the doors need what the house is made of")]
fn open_doors(
    config: &Config,
    services: &Services,
    gate: &Gate,
    authority: &InstanceAuthority,
    draining: &CancellationToken,
    control: tokio::net::TcpListener,
    unix: tokio::net::UnixListener,
    told: &mut Metrics,
) -> Result<JoinSet<()>, ServerError> {
    let slot = Arc::new(authority.slot());
    let tls = server_config(slot, authority.bundles(), ClientAuth::Optional, &[ALPN_H2])?;
    let control = serve_incoming(control, Arc::new(tls), config.limits.channel);
    let unix = serve_unix(unix, config.limits.channel);
    told.add_channel("control", control.stats());
    told.add_channel("socket", unix.stats());
    let mut doors = JoinSet::new();
    let (remote, local) = (services.router(gate), services.router(gate));
    let end = draining.clone().cancelled_owned();
    doors
        .spawn(async move { ended("control port", remote.serve_with_incoming_shutdown(control, end).await) });
    let end = draining.clone().cancelled_owned();
    doors.spawn(async move { ended("socket", local.serve_with_incoming_shutdown(unix, end).await) });
    Ok(doors)
}

fn ended(door: &str, how: Result<(), tonic::transport::Error>) {
    if let Err(error) = how {
        error!(door, %error, "a listener ended");
    }
}

/// Says which part it was when it ends.
async fn named(name: &'static str, part: impl Future<Output = ()>) -> &'static str {
    part.await;
    name
}

impl Parts {
    /// Serves until it is told to stop or a vital part ends.
    async fn serve(mut self, stopped: oneshot::Receiver<Stop>) {
        let how = tokio::select! {
            how = stopped => how.unwrap_or(Stop::Kill),
            Some(part) = self.vital.join_next() => {
                error!(?part, "a vital part of the server has ended, so the server ends");
                Stop::Drain(Duration::ZERO)
            }
        };
        match how {
            Stop::Kill => {}
            Stop::Drain(deadline) => {
                self.draining.cancel();
                let over = async { while self.doors.join_next().await.is_some() {} };
                if tokio::time::timeout(deadline, over).await.is_err() {
                    warn!(?deadline, "calls were cut at the end of the deadline");
                }
                remove_socket(&self.addresses.socket);
                info!("server ended");
            }
        }
    }
}

/// A socket that nobody listens on any more would only puzzle.
fn remove_socket(path: &PathBuf) {
    if let Err(error) = std::fs::remove_file(path) {
        warn!(%error, path = %path.display(), "the socket could not be removed");
    }
}

#[cfg(test)]
mod tests;
