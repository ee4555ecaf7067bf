//! A control plane without sockets: the management service over a store in a directory that ends with the process.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};

use futures_util::future::BoxFuture;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use weft_api::pb::management::{
    AuthorityStatus, CreateTokenRequest, CreateTokenResponse, ListTokensResponse, Problem,
    RotateAuthorityRequest, RotateAuthorityResponse, ShowAuthorityResponse,
};
use weft_api::{manifest, record};
use weft_identity::TrustDomain;
use weft_identity::bundle::TrustBundle;
use weft_policy::limit::Rate;
use weft_policy::name::Namespace;
use weft_registry::alarms::Alarms;
use weft_registry::clock::Clock;
use weft_registry::core::{Authority, Core, Tokens};
use weft_registry::management::ManagementService;
use weft_registry::metrics::RegistryMetrics;
use weft_registry::presence::Presence;
use weft_registry::refusal::Refusal;
use weft_registry::roles::{Caller, Role, Source};
use weft_registry::seal::SealedStore;
use weft_registry::store::embedded::{EmbeddedStore, Settings};
use weft_registry::store::metrics::StoreMetrics;
use weft_registry::store::{Expected, Store};
use weft_registry::{audit, keeper, layout};

/// What is in the mesh before anybody asks.
const SHOP: &str = include_str!("shop.yaml");

/// See the module.
pub(crate) struct Plane {
    pub(crate) runtime: Runtime,
    pub(crate) core: Arc<Core>,
    pub(crate) service: ManagementService,
    _directory: tempfile::TempDir,
    _bundle: watch::Sender<Arc<TrustBundle>>,
}

/// The one plane of the process.
pub(crate) fn plane() -> &'static Plane {
    static PLANE: OnceLock<Plane> = OnceLock::new();
    PLANE.get_or_init(start)
}

fn start() -> Plane {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let directory = tempfile::tempdir().expect("a directory");
    let (core, bundle) = runtime.block_on(core(directory.path()));
    let core = Arc::new(core);
    let service = ManagementService::new(Arc::clone(&core), Arc::new(Silent), Arc::new(Silent));
    Plane { runtime, core, service, _directory: directory, _bundle: bundle }
}

async fn core(directory: &std::path::Path) -> (Core, watch::Sender<Arc<TrustBundle>>) {
    let clock = Clock::system();
    let settings = Settings { directory: directory.to_owned(), bounds: Default::default() };
    let store = EmbeddedStore::open(settings, clock.clone(), Arc::new(StoreMetrics::default())).await;
    let records = SealedStore::open(Arc::new(store.expect("a new store")), directory).await;
    let records = Arc::new(records.expect("a new key"));
    let store: Arc<dyn Store> = records.clone();
    let domain: TrustDomain = "corp.example".parse().expect("it is one");
    let presence = Presence::new(clock.clone());
    let metrics = Arc::new(RegistryMetrics::default());
    let started =
        keeper::start(Arc::clone(&records), clock.clone(), &presence, domain.clone(), Arc::clone(&metrics))
            .await;
    let (world, keep) = started.expect("an empty store");
    for_the_process(async move {
        let _ = keep.await;
    });
    let mut last = None;
    for resource in manifest::parse(SHOP, None).expect("the shop is in order") {
        let value = record::encode_resource(&resource).into();
        let key = layout::resource(&resource.key());
        last = Some(store.put(key, value, Expected::Anything, None).await.expect("the store takes it"));
    }
    world.wait_for(last.expect("the shop has objects")).await;
    let empty = TrustBundle::new(domain.clone(), Vec::new(), 1).expect("an empty bundle");
    let (bundle, told) = watch::channel(Arc::new(empty));
    let log = audit::Settings::in_directory(directory.join("audit"));
    let opened = audit::open(log, Arc::clone(&store), clock.clone(), "one", Arc::clone(&metrics)).await;
    let (audit, writing) = opened.expect("a new log");
    for_the_process(writing);
    let core = Core {
        audit,
        store,
        records,
        clock: clock.clone(),
        trust_domain: domain,
        cluster: "local".parse().expect("it is one"),
        instance: "one".to_owned(),
        world,
        presence,
        bundle: told,
        metrics,
        alarms: Arc::new(Alarms::new(clock.clone())),
        // The shop fills several pages.
        // What is judged is how messages are read, not how often.
        changes: Rate { per_second: NonZeroU32::MAX, burst: NonZeroU32::MAX },
        list_page: 3,
        addresses: Arc::new([]),
        signing: Arc::default(),
        servers: watch::Sender::default().subscribe(),
        shared_uid: Default::default(),
        draining: Default::default(),
    };
    (core, bundle)
}

/// Runs what lives as long as the process, which owns this plane.
#[expect(clippy::disallowed_methods, reason = "the process owns it, and nothing drains a fuzz target")]
fn for_the_process(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

/// Somebody on the server's host; the role holds in `scope`, or everywhere.
pub(crate) fn caller(role: Role, scope: Option<&str>) -> Caller {
    let scope = scope.map(|name| BTreeSet::from([name.parse::<Namespace>().expect("it is one")]));
    Caller { identity: None, role, scope, source: Source::Local { uid: 1_000 }, peer: None }
}

/// An authority and a token office that have nothing to tell.
struct Silent;

impl Tokens for Silent {
    fn create<'a>(
        &'a self,
        _caller: &'a Caller,
        _request: CreateTokenRequest,
    ) -> BoxFuture<'a, Result<CreateTokenResponse, Refusal>> {
        Box::pin(async { Ok(CreateTokenResponse::default()) })
    }

    fn list(&self) -> BoxFuture<'_, Result<ListTokensResponse, Refusal>> {
        Box::pin(async { Ok(ListTokensResponse::default()) })
    }

    fn revoke<'a>(&'a self, _caller: &'a Caller, _id: &'a str) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(async { Ok(()) })
    }
}

impl Authority for Silent {
    fn status(&self) -> AuthorityStatus {
        AuthorityStatus::default()
    }

    fn show(&self) -> BoxFuture<'_, Result<ShowAuthorityResponse, Refusal>> {
        Box::pin(async { Ok(ShowAuthorityResponse::default()) })
    }

    fn rotate(
        &self,
        _request: RotateAuthorityRequest,
    ) -> BoxFuture<'_, Result<RotateAuthorityResponse, Refusal>> {
        Box::pin(async { Ok(RotateAuthorityResponse::default()) })
    }

    fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }
}
