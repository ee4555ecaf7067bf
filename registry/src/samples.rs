//! A small shop for the tests of this crate: `order` on hosta calls `charge` on hostb, which calls `ledger`.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use tokio::{sync::watch, task::JoinSet};
use weft_api::record;
use weft_identity::{
    bundle::TrustBundle,
    spiffe::{SpiffeId, TrustDomain},
};
use weft_policy::{
    model::{
        AuthorizationPolicy, DefaultAuthorization, EgressMode, Key, Kind, Locality, Mesh, Metadata,
        NamespaceSettings, Resource, Service, TargetRef, TcpRoute, Workload, WorkloadEnrollment,
        authorization::{Action, Mode, Rule, Source},
        route::{BackendRef, ParentRef},
        service::ServicePort,
    },
    name::ServiceName,
};

use crate::{
    alarms::Alarms,
    audit,
    catalog::Catalog,
    clock::Clock,
    core::Core,
    keeper, layout,
    metrics::RegistryMetrics,
    presence::Presence,
    records::{NodeRecord, Record, RegistrationRecord},
    seal::SealedStore,
    store::{
        Entry, Event, EventBatch, Expected, Revision, Store,
        embedded::{Bounds, EmbeddedStore, Settings},
        metrics::StoreMetrics,
    },
};

pub(crate) fn domain() -> TrustDomain {
    "corp.example".parse().unwrap()
}

pub(crate) fn identity(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::workload(&domain(), namespace, account).unwrap()
}

pub(crate) fn service_name(name: &str, namespace: &str) -> ServiceName {
    ServiceName::new(namespace.parse().unwrap(), name.parse().unwrap())
}

fn metadata(name: &str, namespace: Option<&str>) -> Metadata {
    Metadata {
        namespace: namespace.map(|name| name.parse().unwrap()),
        name: name.parse().unwrap(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        revision: 0,
    }
}

pub(crate) fn mesh() -> Mesh {
    Mesh {
        metadata: metadata("mesh", None),
        trust_domain: domain(),
        default_authorization: DefaultAuthorization::Deny,
        egress: EgressMode::Deny,
    }
}

pub(crate) fn namespace(name: &str) -> NamespaceSettings {
    NamespaceSettings { metadata: metadata(name, None), default_authorization: None, egress: None }
}

pub(crate) fn service(name: &str, namespace: &str) -> Service {
    Service {
        metadata: metadata(name, Some(namespace)),
        ports: vec![ServicePort { number: 80, name: "http".parse().ok(), app_protocol: None }],
        selector: None,
        identities: Vec::new(),
        default_authorization: None,
    }
}

/// A workload of the first service's account.
pub(crate) fn workload(name: &str, namespace: &str, node: &str, services: &[&str]) -> Workload {
    Workload {
        metadata: metadata(name, Some(namespace)),
        node: node.parse().unwrap(),
        identity: identity(namespace, services.first().unwrap_or(&"nobody")),
        services: services.iter().map(|name| name.parse().unwrap()).collect(),
        ports: BTreeMap::from([("http".to_owned(), "127.0.0.1:8081".parse().unwrap())]),
        weight: 1,
        locality: Locality::default(),
        label: Some(format!("label-{name}").parse().unwrap()),
        uid: None,
    }
}

/// `path` is what follows the namespace, such as `sa/charge` or `**`.
pub(crate) fn enrollment(name: &str, namespace: &str, nodes: &[&str], path: &str) -> WorkloadEnrollment {
    WorkloadEnrollment {
        metadata: metadata(name, Some(namespace)),
        identities: vec![format!("spiffe://corp.example/ns/{namespace}/{path}").parse().unwrap()],
        nodes: nodes.iter().map(|node| node.parse().unwrap()).collect(),
        selectors: Vec::new(),
        services: None,
        labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
        ttl: None,
    }
}

/// Allows `caller` of the namespace to call `service`.
pub(crate) fn policy(name: &str, namespace: &str, service: &str, caller: &str) -> AuthorizationPolicy {
    let source =
        Source::ServiceAccount { namespace: namespace.parse().unwrap(), name: caller.parse().unwrap() };
    let rule = Rule { name: caller.parse().unwrap(), sources: vec![source], ports: None, networks: None };
    AuthorizationPolicy {
        metadata: metadata(name, Some(namespace)),
        targets: vec![TargetRef::Service(service.parse().unwrap())],
        action: Action::Allow,
        mode: Mode::Enforce,
        rules: vec![rule],
    }
}

pub(crate) fn route(name: &str, namespace: &str, parent: &str, backend: &str) -> TcpRoute {
    let backend = BackendRef { service: service_name(backend, namespace), port: 80, weight: 1 };
    TcpRoute {
        metadata: metadata(name, Some(namespace)),
        parents: vec![ParentRef { service: service_name(parent, namespace), port: None }],
        backends: vec![backend],
    }
}

pub(crate) fn node(address: &str, boot: u64) -> NodeRecord {
    NodeRecord {
        advertise: vec![address.parse().unwrap()],
        boot,
        version: "0.1.0".to_owned(),
        ..NodeRecord::new("shop".parse().unwrap())
    }
}

/// A catalog with a Mesh and nothing else.
pub(crate) fn catalog() -> Catalog {
    let mut catalog = Catalog::new(domain());
    catalog.put(Resource::Mesh(mesh()));
    catalog
}

/// The objects of the shop.
pub(crate) fn shop_objects() -> Vec<Resource> {
    let mut objects = vec![Resource::Mesh(mesh()), Resource::Namespace(namespace("shop"))];
    for (name, host) in [("charge", "hostb"), ("ledger", "hostc"), ("order", "hosta")] {
        objects.push(Resource::Service(service(name, "shop")));
        objects.push(Resource::WorkloadEnrollment(enrollment(name, "shop", &[host], &format!("sa/{name}"))));
        objects.push(Resource::Workload(workload(&format!("{name}-1"), "shop", host, &[name])));
    }
    objects.push(Resource::AuthorizationPolicy(policy("charge-from-order", "shop", "charge", "order")));
    objects.push(Resource::AuthorizationPolicy(policy("ledger-from-charge", "shop", "ledger", "charge")));
    objects
}

const NODES: [(&str, &str); 3] =
    [("hosta", "192.0.2.1:7443"), ("hostb", "192.0.2.2:7443"), ("hostc", "192.0.2.3:7443")];

/// The shop, all of it registered at boot 1.
pub(crate) fn shop() -> Catalog {
    let mut catalog = catalog();
    shop_objects().into_iter().for_each(|object| catalog.put(object));
    for (name, address) in NODES {
        take(&mut catalog, layout::node(&name.parse().unwrap()), node(address, 1).encode());
    }
    for (name, host) in [("charge", "hostb"), ("ledger", "hostc"), ("order", "hosta")] {
        register(&mut catalog, &format!("{name}-1"), "shop", host, 1);
    }
    catalog
}

/// Puts a record in as if it came from the store.
fn take(catalog: &mut Catalog, key: crate::store::Key, value: bytes::Bytes) {
    let revision = catalog.revision().next();
    let entry =
        Entry { key, value, create_revision: revision, mod_revision: revision, version: 1, lease: None };
    catalog.apply(EventBatch { revision, events: vec![Event::Put(entry)] });
}

/// Says that `host` registered the workload at that boot.
pub(crate) fn register(catalog: &mut Catalog, name: &str, namespace: &str, host: &str, boot: u64) {
    let label = format!("label-{name}").parse().unwrap();
    let record = RegistrationRecord { node: host.parse().unwrap(), boot, label };
    let key = layout::registration(&namespace.parse().unwrap(), &name.parse().unwrap());
    take(catalog, key, record.encode());
}

/// Damages the record of a policy.
pub(crate) fn damage(catalog: &mut Catalog, policy: &str, namespace: &str) {
    let key = Key {
        kind: Kind::AuthorizationPolicy,
        namespace: Some(namespace.parse().unwrap()),
        name: policy.parse().unwrap(),
    };
    take(catalog, layout::resource(&key), "{".into());
}

/// A running core over a store in a temporary directory.
pub(crate) struct Rig {
    pub(crate) core: Arc<Core>,
    pub(crate) bundle: watch::Sender<Arc<TrustBundle>>,
    pub(crate) directory: tempfile::TempDir,
    _keeper: JoinSet<()>,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::with_clock(Clock::system()).await
    }

    pub(crate) async fn with_clock(clock: Clock) -> Self {
        Self::with_bounds(clock, Bounds::default()).await
    }

    /// Over a store that holds so much.
    pub(crate) async fn with_bounds(clock: Clock, bounds: Bounds) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { directory: directory.path().to_owned(), bounds };
        let store = EmbeddedStore::open(settings, clock.clone(), Arc::new(StoreMetrics::default())).await;
        Self::over(Arc::new(store.unwrap()), directory, clock).await
    }

    /// Over a store that is open, with the server's own files in `directory`.
    pub(crate) async fn over(store: Arc<dyn Store>, directory: tempfile::TempDir, clock: Clock) -> Self {
        let records = Arc::new(SealedStore::open(store, directory.path()).await.unwrap());
        let store: Arc<dyn Store> = records.clone();
        let presence = Presence::new(clock.clone());
        let metrics = Arc::new(RegistryMetrics::default());
        let started =
            keeper::start(Arc::clone(&records), clock.clone(), &presence, domain(), Arc::clone(&metrics));
        let (world, keep) = started.await.unwrap();
        let mut keeper = JoinSet::new();
        keeper.spawn(async move {
            let _ = keep.await;
        });
        // Small files, so that a test sees what happens when a new one cannot be made.
        let log =
            audit::Settings { directory: directory.path().join("audit"), file_bytes: 4_096, files: 1_000 };
        let opened = audit::open(log, Arc::clone(&store), clock.clone(), "one", Arc::clone(&metrics));
        let (audit, writing) = opened.await.unwrap();
        keeper.spawn(writing);
        let empty = Arc::new(TrustBundle::new(domain(), Vec::new(), 1).unwrap());
        let (bundle, told) = watch::channel(empty);
        let core = Core {
            audit,
            alarms: Arc::new(Alarms::new(clock.clone())),
            changes: weft_policy::limit::Rate {
                per_second: 2.try_into().unwrap(),
                burst: 300.try_into().unwrap(),
            },
            list_page: 500,
            store,
            records,
            clock,
            trust_domain: domain(),
            cluster: "local".parse().unwrap(),
            instance: "one".to_owned(),
            world,
            presence,
            bundle: told,
            metrics,
            addresses: Arc::new([]),
            signing: Arc::default(),
            servers: watch::Sender::default().subscribe(),
            shared_uid: Default::default(),
            draining: Default::default(),
        };
        Self { core: Arc::new(core), bundle, directory, _keeper: keeper }
    }

    /// Writes an object as it is, past all checks.
    pub(crate) async fn put(&self, object: &Resource) -> Revision {
        let value = record::encode_resource(object).into();
        let key = layout::resource(&object.key());
        self.core.store.put(key, value, Expected::Anything, None).await.unwrap()
    }

    /// Writes the shop, all of it registered at boot 1.
    pub(crate) async fn put_shop(&self) {
        for object in shop_objects() {
            self.put(&object).await;
        }
        let put = |key, value| self.core.store.put(key, value, Expected::Anything, None);
        let mut revision = Revision::ZERO;
        for (name, address) in NODES {
            put(layout::node(&name.parse().unwrap()), node(address, 1).encode()).await.unwrap();
        }
        for (name, host) in [("charge-1", "hostb"), ("ledger-1", "hostc"), ("order-1", "hosta")] {
            let label: weft_policy::name::EndpointLabel = format!("label-{name}").parse().unwrap();
            let owner = format!("Workload/{name}.shop");
            put(layout::label(&label), owner.into()).await.unwrap();
            let record = RegistrationRecord { node: host.parse().unwrap(), boot: 1, label };
            let key = layout::registration(&"shop".parse().unwrap(), &name.parse().unwrap());
            revision = put(key, record.encode()).await.unwrap();
        }
        self.core.world.wait_for(revision).await;
    }
}

/// When certificates of tests end: in 2096.
pub(crate) fn far() -> SystemTime {
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(4_000_000_000)
}
