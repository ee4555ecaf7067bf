//! The parts of a server: started in order, run together, ended together.

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    net::{TcpListener, UnixListener},
    sync::{oneshot, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};
use tracing::{error, info, warn};
use weft_api::channel::{ALPN_H2, Limits, grpc_server_with, serve_incoming, serve_unix};
use weft_identity::tls::{ClientAuth, server_config};

use super::{ServerError, Stop};
use crate::{
    alarms::Alarms,
    attest::join_token::JoinTokens,
    audit::{
        self, Audit,
        chain::{Event, Outcome},
    },
    authority::{self, AuthorityFailure, InstanceAuthority},
    bootstrap,
    clock::Clock,
    config::{Config, StoreConfig},
    confirmation,
    core::{Core, VERSION},
    discovery::DiscoveryService,
    gate::{self, Gate},
    identity_service::IdentityService,
    issuer::Issuer,
    keeper,
    listeners::{self, Addresses, Listeners},
    management::ManagementService,
    metrics::RegistryMetrics,
    presence::Presence,
    private,
    replicas::{self, LiveServer},
    roles,
    seal::{SealedStore, Seen, keys::Acceptances, vouch},
    shared_uid::SharedUid,
    store::{
        Store,
        embedded::{Bounds, EmbeddedStore, Settings},
        etcd::EtcdStore,
        metrics::StoreMetrics,
        transfer,
    },
    telemetry::{GateMetrics, IdentityMetrics, Metrics, Plane, serve_admin, serve_metrics},
    throttle::Throttle,
};

/// The largest question about health: the name of a service.
const MAX_HEALTH_BYTES: usize = 1024;

/// So long the audit log may take to be anchored at the end.
const SETTLE: Duration = Duration::from_secs(1);

/// A server whose every part runs.
pub(super) struct Parts {
    pub(super) addresses: Addresses,
    draining: CancellationToken,
    /// gRPC on both listeners: they end when the server drains.
    doors: JoinSet<()>,
    /// What must run for as long as anybody is served. The first to end ends the server.
    vital: JoinSet<&'static str>,
    audit: Audit,
    seen: Arc<Seen>,
    /// Holds the store open until everything else is dropped.
    _store: Arc<dyn Store>,
}

/// Starts every part, in the order of the module.
///
/// # Errors
///
/// [`ServerError`]: the first part that does not start.
pub(super) async fn build(config: &Config, clock: &Clock) -> Result<Parts, ServerError> {
    config.warnings().iter().for_each(|fault| warn!(code = %fault.code, "{}", fault.what));
    let table = roles::check_table()?;
    let store_metrics = Arc::new(StoreMetrics::default());
    let store = open_store(config, clock, &store_metrics).await?;
    transfer::check_finished(&*store).await?;
    let is_sealed = vouch::has_manifests(&*store).await?;
    if is_sealed && !authority::exists(&config.state_dir) {
        // Before it makes a key of its own: it is a stranger to this mesh, or has lost all that it was.
        return Err(AuthorityFailure::lost(&config.state_dir).into());
    }
    let records = Arc::new(SealedStore::open(store, &config.state_dir).await?);
    if records.is_stranger().await? {
        return Err(AuthorityFailure::not_admitted(&config.state_dir).into());
    }
    let store: Arc<dyn Store> = records.clone();
    replicas::trust::admitted(&records).await?;
    private::directory(&config.run_dir)?;
    let listeners = Listeners::open(config)?;
    let addresses = listeners.addresses.clone();
    let authority = InstanceAuthority::open(
        &*store,
        clock,
        &config.state_dir,
        &config.trust_domain,
        config.identity.clone(),
    )
    .await?;
    let authority = Arc::new(authority);
    let metrics = Arc::new(RegistryMetrics::default());
    let presence = Presence::new(clock.clone());
    let domain = config.trust_domain.clone();
    let started =
        keeper::start(Arc::clone(&records), clock.clone(), &presence, domain, Arc::clone(&metrics)).await;
    let (world, keeping) = started?;
    authority.listen_to(Arc::clone(&store), presence.clone(), world.clone());
    let draining = CancellationToken::new();
    let mut vital = JoinSet::new();
    vital.spawn(named("the keeper of the world", async move {
        if let Err(failure) = keeping.await {
            error!(error = %failure, "the world cannot be kept current");
        }
    }));
    let log = audit::Settings::in_directory(config.state_dir.join("audit"));
    let (own, counted) = (authority.instance(), Arc::clone(&metrics));
    let (audit, writing) = audit::open(log, Arc::clone(&store), clock.clone(), &own, counted).await?;
    vital.spawn(named("the writer of the audit log", writing));
    vital.spawn(named("what was seen of records", Arc::clone(records.seen()).keep(clock.clone())));
    tell_acceptances(&audit, &records, &config.state_dir).await?;
    let servers = watch::Sender::default();
    let core = Core {
        audit: audit.clone(),
        store: Arc::clone(&store),
        records: Arc::clone(&records),
        clock: clock.clone(),
        trust_domain: config.trust_domain.clone(),
        cluster: config.cluster.clone(),
        instance: authority.instance(),
        world,
        presence: presence.clone(),
        bundle: authority.bundle(),
        metrics: Arc::clone(&metrics),
        alarms: Arc::new(Alarms::new(clock.clone())),
        changes: config.limits.changes,
        list_page: config.limits.list_page,
        addresses: listeners::advertised(config, addresses.control).into(),
        signing: Arc::default(),
        servers: servers.subscribe(),
        shared_uid: if config.allow_shared_uid { SharedUid::Accepted } else { SharedUid::Refused },
        draining: draining.clone(),
    };
    let services = Services::new(config, &core, &authority);
    bootstrap::run(&core, &services.management, config.manifests.as_deref()).await?;

    let shared = Arc::new(core.clone());
    vital.spawn(named("the keeper of unconfirmed changes", confirmation::keep::run(shared)));
    if let StoreConfig::Etcd(_) = config.store {
        let own = LiveServer {
            instance: core.instance.clone(),
            addresses: core.addresses.to_vec(),
            version: VERSION.to_owned(),
            signs: core.signs(),
        };
        let (reader, writer) = (Arc::new(core.clone()), Arc::new(core.clone()));
        vital.spawn(named("the watch over the servers", replicas::watch::run(reader, servers)));
        let (own_bundle, kept) = (Arc::clone(&authority), Arc::clone(&store));
        let whose = replicas::trust::keep(Arc::clone(&records), clock.clone());
        vital.spawn(named("the watch over whose records are taken", whose));
        vital.spawn(named("the watch over the bundle", async move { own_bundle.follow(kept).await }));
        vital.spawn(named("the presence of this server", replicas::announce::run(writer, own)));
    }
    vital.spawn(named("the care of the denylist", crate::denied::keep(Arc::new(core.clone()))));
    let gate_metrics = GateMetrics::default();
    let gate = Gate::new(gate::Settings {
        table,
        clock: clock.clone(),
        world: core.world.clone(),
        trust_domain: config.trust_domain.clone(),
        bundles: authority.bundles(),
        metrics: gate_metrics.clone(),
        alarms: Arc::clone(&core.alarms),
        audit: audit.clone(),
        per_client: config.limits.streams_per_client,
    });
    let mut told =
        Metrics::new(&store_metrics, &metrics, &gate_metrics, &services.metrics, &authority, &core.alarms);
    let tls =
        server_config(Arc::new(authority.slot()), authority.bundles(), ClientAuth::Optional, &[ALPN_H2])?;
    let sockets = (listeners.control, listeners.unix);
    let doors = open_doors(&services, &gate, tls, sockets, config.limits.channel, &mut told);
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
    Ok(Parts { addresses, draining, doors, vital, audit, seen: Arc::clone(records.seen()), _store: store })
}

/// Writes down that records were signed that the server had not written: those from before there were signatures, and
/// those that a person has accepted.
async fn tell_acceptances(audit: &Audit, records: &SealedStore, state_dir: &Path) -> Result<(), ServerError> {
    let acceptances = Acceptances::of(state_dir);
    let untold = acceptances.untold()?;
    let taken_over = records.taken_over();
    let taken_over = (taken_over > 0)
        .then(|| format!("{taken_over} records from before there were signatures were signed as they stand"));
    for what in taken_over.iter().chain(&untold) {
        let event = Event::unknown("server", "records", Outcome::Allowed).because(what);
        if audit.write(event).await.is_err() {
            warn!(what, "the audit log cannot be told; it is told at the next start");
            return Ok(());
        }
    }
    acceptances.told();
    Ok(())
}

/// Opens the store that the configuration names.
pub(super) async fn open_store(
    config: &Config,
    clock: &Clock,
    metrics: &Arc<StoreMetrics>,
) -> Result<Arc<dyn Store>, ServerError> {
    let (clock, metrics) = (clock.clone(), Arc::clone(metrics));
    match &config.store {
        StoreConfig::Embedded => {
            let settings = Settings { directory: config.state_dir.clone(), bounds: Bounds::default() };
            Ok(Arc::new(EmbeddedStore::open(settings, clock, metrics).await?))
        }
        StoreConfig::Etcd(etcd) => {
            let settings = etcd.settings(&config.state_dir)?;
            Ok(Arc::new(EtcdStore::open(settings, clock, metrics).await?))
        }
    }
}

/// What is served by gRPC.
struct Services {
    core: Core,
    issuer: Arc<Issuer>,
    tokens: Arc<JoinTokens>,
    metrics: IdentityMetrics,
    management: ManagementService,
    discovery: DiscoveryService,
}

impl Services {
    fn new(config: &Config, core: &Core, authority: &Arc<InstanceAuthority>) -> Self {
        let throttle = Arc::new(Throttle::new(&config.limits, core.clock.clone()));
        let queue = config.limits.signing_queue;
        let issuer = Issuer::new(core.clone(), Arc::clone(authority), Arc::clone(&throttle), queue);
        let issuer = Arc::new(issuer);
        let open = config.limits.open_tokens;
        let tokens = Arc::new(JoinTokens::new(core.clone(), Arc::clone(&issuer), throttle, open));
        let shared = Arc::new(core.clone());
        let authority: Arc<InstanceAuthority> = Arc::clone(authority);
        Self {
            management: ManagementService::new(Arc::clone(&shared), tokens.clone(), authority),
            discovery: DiscoveryService::new(shared),
            core: core.clone(),
            issuer,
            tokens,
            metrics: IdentityMetrics::default(),
        }
    }

    /// All services behind the gate, with the limits of the channel.
    fn router(&self, gate: &Gate, limits: &Limits) -> Router<Stack<Gate, Identity>> {
        let (tokens, issuer) = (Arc::clone(&self.tokens), Arc::clone(&self.issuer));
        let identity = IdentityService::new(self.core.clone(), tokens, issuer, self.metrics.clone());
        let (_reporter, health) = tonic_health::server::health_reporter();
        grpc_server_with(limits)
            .layer(gate.clone())
            .add_service(health.max_decoding_message_size(MAX_HEALTH_BYTES))
            .add_service(identity.into_server())
            .add_service(self.discovery.clone().into_server())
            .add_service(self.management.clone().into_server())
    }
}

/// Opens gRPC on both listeners; they end when the server drains.
fn open_doors(
    services: &Services,
    gate: &Gate,
    tls: rustls::ServerConfig,
    (control, unix): (TcpListener, UnixListener),
    limits: Limits,
    told: &mut Metrics,
) -> JoinSet<()> {
    let control = serve_incoming(control, Arc::new(tls), limits);
    let unix = serve_unix(unix, limits);
    told.add_channel("control", control.stats());
    told.add_channel("socket", unix.stats());
    let mut doors = JoinSet::new();
    let (remote, local) = (services.router(gate, &limits), services.router(gate, &limits));
    let end = services.core.draining.clone().cancelled_owned();
    doors.spawn(async move {
        ended("control port", remote.serve_with_incoming_shutdown(control, end).await);
    });
    let end = services.core.draining.clone().cancelled_owned();
    doors.spawn(async move { ended("socket", local.serve_with_incoming_shutdown(unix, end).await) });
    doors
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
    pub(super) async fn serve(mut self, stopped: oneshot::Receiver<Stop>) {
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
                if tokio::time::timeout(SETTLE, self.audit.settle()).await.is_err() {
                    warn!("the audit log could not be anchored before the end");
                }
                if let Err(error) = self.seen.flush() {
                    warn!(%error, "it could not be kept which records were seen");
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
