//! Everything that is configured, decoded, as one value.
//!
//! [`Catalog`] is what every reader of the plane looks at: immutable, cheap to clone, of one revision. It is made of
//! batches of store events and performs no I/O; the task that feeds it is [`crate::keeper`]'s.
//!
//! A record that cannot be read is set aside under its key ([`Catalog::unreadable`]): it is not in force, the rest is
//! (ETCD-09). A policy among them closes what it is about; so does a group of records that does not add up
//! ([`Catalog::broken`]).

mod sameness;

use std::{collections::BTreeMap, sync::Arc};

use weft_api::record;
use weft_identity::spiffe::TrustDomain;
use weft_policy::{
    model::{
        AuthorizationPolicy, Key, Kind, Mesh, NamespaceSettings, Resource, Service, TcpRoute, TrafficPolicy,
        Workload, WorkloadEnrollment,
    },
    name::{EndpointLabel, Namespace, NodeName, ObjectName, ServiceName},
};

use crate::{
    denied::DeniedRecord,
    layout::{self, Place},
    records::{NodeRecord, Record, RegistrationRecord, ServerRecord, UserRecord},
    seal::{
        self, Group,
        group::{self, Closes, Sealing},
    },
    store::{Entry, Event, EventBatch, Revision},
};

/// The name of an object in a namespace.
pub type Scoped = (Namespace, ObjectName);

/// A record beside the objects, with the revision that wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept<R> {
    /// The record.
    pub record: Arc<R>,
    /// Its `mod_revision`.
    pub revision: Revision,
}

/// Why an object is not in force.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SetAside {
    /// What is wrong with its record.
    pub why: String,
    /// Its `mod_revision`.
    pub revision: Revision,
    /// Whether the server did not write it, rather than wrote what it cannot read.
    pub refused: bool,
}

/// See the module. Maps are shared between clones until one of them changes.
#[derive(Clone, Debug)]
pub struct Catalog {
    trust_domain: TrustDomain,
    revision: Revision,
    mesh: Option<Arc<Mesh>>,
    namespaces: Arc<BTreeMap<Namespace, Arc<NamespaceSettings>>>,
    services: Arc<BTreeMap<ServiceName, Arc<Service>>>,
    workloads: Arc<BTreeMap<Scoped, Arc<Workload>>>,
    enrollments: Arc<BTreeMap<Scoped, Arc<WorkloadEnrollment>>>,
    routes: Arc<BTreeMap<Scoped, Arc<TcpRoute>>>,
    traffic: Arc<BTreeMap<Scoped, Arc<TrafficPolicy>>>,
    policies: Arc<BTreeMap<Scoped, Arc<AuthorizationPolicy>>>,
    unreadable: Arc<BTreeMap<Key, SetAside>>,
    registrations: Arc<BTreeMap<Scoped, Kept<RegistrationRecord>>>,
    labels: Arc<BTreeMap<EndpointLabel, Revision>>,
    /// All there are; `nodes` and `users` are those of groups that add up.
    known_nodes: Arc<BTreeMap<NodeName, Kept<NodeRecord>>>,
    nodes: Arc<BTreeMap<NodeName, Kept<NodeRecord>>>,
    known_users: Arc<BTreeMap<String, Kept<UserRecord>>>,
    users: Arc<BTreeMap<String, Kept<UserRecord>>>,
    servers: Arc<BTreeMap<String, Kept<ServerRecord>>>,
    denied: Arc<BTreeMap<String, Kept<DeniedRecord>>>,
    broken: Arc<BTreeMap<Group, String>>,
}

impl Catalog {
    /// The catalog of an empty store.
    #[must_use]
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            revision: Revision::ZERO,
            mesh: None,
            namespaces: Arc::default(),
            services: Arc::default(),
            workloads: Arc::default(),
            enrollments: Arc::default(),
            routes: Arc::default(),
            traffic: Arc::default(),
            policies: Arc::default(),
            unreadable: Arc::default(),
            registrations: Arc::default(),
            labels: Arc::default(),
            known_nodes: Arc::default(),
            nodes: Arc::default(),
            known_users: Arc::default(),
            users: Arc::default(),
            servers: Arc::default(),
            denied: Arc::default(),
            broken: Arc::default(),
        }
    }

    /// The trust domain of the server that reads it.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The newest commit that it shows.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// The mesh's settings; `None` before the first start, or while its record cannot be read.
    #[must_use]
    pub const fn mesh(&self) -> Option<&Arc<Mesh>> {
        self.mesh.as_ref()
    }

    /// The settings of namespaces, by name.
    #[must_use]
    pub fn namespaces(&self) -> &BTreeMap<Namespace, Arc<NamespaceSettings>> {
        &self.namespaces
    }

    /// The services, by name.
    #[must_use]
    pub fn services(&self) -> &BTreeMap<ServiceName, Arc<Service>> {
        &self.services
    }

    /// The workloads, by name.
    #[must_use]
    pub fn workloads(&self) -> &BTreeMap<Scoped, Arc<Workload>> {
        &self.workloads
    }

    /// The enrollments, by name.
    #[must_use]
    pub fn enrollments(&self) -> &BTreeMap<Scoped, Arc<WorkloadEnrollment>> {
        &self.enrollments
    }

    /// The routes, by name.
    #[must_use]
    pub fn routes(&self) -> &BTreeMap<Scoped, Arc<TcpRoute>> {
        &self.routes
    }

    /// The settings of destinations, by name.
    #[must_use]
    pub fn traffic(&self) -> &BTreeMap<Scoped, Arc<TrafficPolicy>> {
        &self.traffic
    }

    /// The policies, by name.
    #[must_use]
    pub fn policies(&self) -> &BTreeMap<Scoped, Arc<AuthorizationPolicy>> {
        &self.policies
    }

    /// The objects that cannot be read, and why.
    #[must_use]
    pub fn unreadable(&self) -> &BTreeMap<Key, SetAside> {
        &self.unreadable
    }

    /// Who registered each workload.
    #[must_use]
    pub fn registrations(&self) -> &BTreeMap<Scoped, Kept<RegistrationRecord>> {
        &self.registrations
    }

    /// The commit that reserved an endpoint label, if it is taken.
    #[must_use]
    pub fn label(&self, label: &EndpointLabel) -> Option<Revision> {
        self.labels.get(label).copied()
    }

    /// The agents whose records are vouched for.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeName, Kept<NodeRecord>> {
        &self.nodes
    }

    /// All agents that are on record, vouched for or not.
    #[must_use]
    pub fn all_nodes(&self) -> &BTreeMap<NodeName, Kept<NodeRecord>> {
        &self.known_nodes
    }

    /// The people whose records are vouched for.
    #[must_use]
    pub fn users(&self) -> &BTreeMap<String, Kept<UserRecord>> {
        &self.users
    }

    /// Who is denied, by the ID of the record. A clone of the catalog shares it until it changes.
    #[must_use]
    pub const fn denied(&self) -> &Arc<BTreeMap<String, Kept<DeniedRecord>>> {
        &self.denied
    }

    /// The servers that were admitted beside the first one.
    #[must_use]
    pub fn servers(&self) -> &BTreeMap<String, Kept<ServerRecord>> {
        &self.servers
    }

    /// The groups of records that do not add up, and why.
    #[must_use]
    pub fn broken(&self) -> &BTreeMap<Group, String> {
        &self.broken
    }

    /// Why nothing of a namespace may be called, join or be enrolled: its records, or those of the whole mesh, are not as
    /// the server wrote them. `None` when they are.
    #[must_use]
    pub fn closed(&self, namespace: &Namespace) -> Option<String> {
        let closes = |group: &Group| match group.closes() {
            Closes::Namespace(own) => own == *namespace,
            Closes::Everything => true,
            Closes::People | Closes::Nodes => false,
        };
        let (group, why) = self.broken.iter().find(|(group, _)| closes(group))?;
        Some(format!("{group} is not as the server wrote it: {why}"))
    }

    /// The trust domain, when the records of the whole mesh are not as the server wrote them.
    #[must_use]
    pub fn closed_mesh(&self) -> Option<&TrustDomain> {
        let closed = self.broken.keys().any(|group| group.closes() == Closes::Everything);
        closed.then_some(&self.trust_domain)
    }

    /// Says which groups do not add up.
    pub fn judge(&mut self, broken: &BTreeMap<Group, String>) {
        if *self.broken != *broken {
            self.broken = Arc::new(broken.clone());
        }
        let stands = |key: &crate::store::Key| match group::sealing(key, false) {
            Sealing::Member(group) => !self.broken.contains_key(&group),
            Sealing::Open | Sealing::Signed | Sealing::Manifest(_) => true,
        };
        let people = self.broken.keys().any(|group| group.closes() == Closes::People);
        self.users = if people { Arc::default() } else { Arc::clone(&self.known_users) };
        self.nodes = if self.broken.keys().any(|group| group.closes() == Closes::Nodes) {
            let own = self.known_nodes.iter().filter(|(name, _)| stands(&layout::node(name)));
            Arc::new(own.map(|(name, kept)| (name.clone(), kept.clone())).collect())
        } else {
            Arc::clone(&self.known_nodes)
        };
    }

    /// The object of that key, with its revision in its metadata.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Resource> {
        let own = |namespace: &Namespace| (namespace.clone(), key.name.clone());
        match (key.kind, &key.namespace) {
            (Kind::Mesh, None) => {
                let mesh = self.mesh.as_ref().filter(|mesh| mesh.metadata.name == key.name)?;
                Some(Resource::Mesh(mesh.as_ref().clone()))
            }
            (Kind::Namespace, None) => {
                let found = self.namespaces.get(key.name.as_str())?;
                Some(Resource::Namespace(found.as_ref().clone()))
            }
            (Kind::Service, Some(namespace)) => {
                let name = ServiceName::new(namespace.clone(), key.name.clone());
                Some(Resource::Service(self.services.get(&name)?.as_ref().clone()))
            }
            (Kind::Workload, Some(namespace)) => {
                Some(Resource::Workload(self.workloads.get(&own(namespace))?.as_ref().clone()))
            }
            (Kind::WorkloadEnrollment, Some(namespace)) => {
                let found = self.enrollments.get(&own(namespace))?;
                Some(Resource::WorkloadEnrollment(found.as_ref().clone()))
            }
            (Kind::TcpRoute, Some(namespace)) => {
                Some(Resource::TcpRoute(self.routes.get(&own(namespace))?.as_ref().clone()))
            }
            (Kind::TrafficPolicy, Some(namespace)) => {
                Some(Resource::TrafficPolicy(self.traffic.get(&own(namespace))?.as_ref().clone()))
            }
            (Kind::AuthorizationPolicy, Some(namespace)) => {
                let found = self.policies.get(&own(namespace))?;
                Some(Resource::AuthorizationPolicy(found.as_ref().clone()))
            }
            // A kind with a namespace that it cannot have, or without one that it needs.
            (Kind::Mesh | Kind::Namespace, Some(_))
            | (
                Kind::Service
                | Kind::Workload
                | Kind::WorkloadEnrollment
                | Kind::TcpRoute
                | Kind::TrafficPolicy
                | Kind::AuthorizationPolicy,
                None,
            ) => None,
        }
    }

    /// The keys of a kind's objects, in order.
    #[must_use]
    pub fn keys(&self, kind: Kind) -> Vec<Key> {
        let scoped = |names: Vec<Scoped>| {
            let key = |(namespace, name)| Key { kind, namespace: Some(namespace), name };
            names.into_iter().map(key).collect()
        };
        match kind {
            Kind::Mesh => self.mesh.iter().map(|mesh| Resource::Mesh(mesh.as_ref().clone()).key()).collect(),
            Kind::Namespace => {
                let name = |settings: &Arc<NamespaceSettings>| settings.metadata.name.clone();
                let key = |name| Key { kind, namespace: None, name };
                self.namespaces.values().map(name).map(key).collect()
            }
            Kind::Service => {
                let names = self.services.keys().map(|name| (name.namespace.clone(), name.name.clone()));
                scoped(names.collect())
            }
            Kind::Workload => scoped(self.workloads.keys().cloned().collect()),
            Kind::WorkloadEnrollment => scoped(self.enrollments.keys().cloned().collect()),
            Kind::TcpRoute => scoped(self.routes.keys().cloned().collect()),
            Kind::TrafficPolicy => scoped(self.traffic.keys().cloned().collect()),
            Kind::AuthorizationPolicy => scoped(self.policies.keys().cloned().collect()),
        }
    }

    /// The commit that wrote the object, readable or not; `None` when there is none.
    #[must_use]
    pub fn revision_of(&self, key: &Key) -> Option<Revision> {
        let aside = self.unreadable.get(key).map(|aside| aside.revision);
        aside.or_else(|| self.get(key).map(|resource| Revision(resource.metadata().revision)))
    }

    /// Puts an object in, as if it stood in the store.
    pub fn put(&mut self, resource: Resource) {
        self.readable(&resource.key());
        let metadata = resource.metadata();
        let scoped = (metadata.owner(), metadata.name.clone());
        match resource {
            Resource::Mesh(mesh) => self.mesh = Some(Arc::new(mesh)),
            Resource::Namespace(settings) => {
                // Both are one label of the same grammar, so the name of a namespace is always one.
                if let Ok(name) = settings.metadata.name.as_str().parse() {
                    Arc::make_mut(&mut self.namespaces).insert(name, Arc::new(settings));
                }
            }
            Resource::Service(service) => {
                Arc::make_mut(&mut self.services).insert(service.service_name(), Arc::new(service));
            }
            Resource::Workload(workload) => {
                Arc::make_mut(&mut self.workloads).insert(scoped, Arc::new(workload));
            }
            Resource::WorkloadEnrollment(enrollment) => {
                Arc::make_mut(&mut self.enrollments).insert(scoped, Arc::new(enrollment));
            }
            Resource::TcpRoute(route) => {
                Arc::make_mut(&mut self.routes).insert(scoped, Arc::new(route));
            }
            Resource::TrafficPolicy(policy) => {
                Arc::make_mut(&mut self.traffic).insert(scoped, Arc::new(policy));
            }
            Resource::AuthorizationPolicy(policy) => {
                Arc::make_mut(&mut self.policies).insert(scoped, Arc::new(policy));
            }
        }
    }

    /// Forgets that an object could not be read. What all share is not copied for that.
    fn readable(&mut self, key: &Key) {
        if self.unreadable.contains_key(key) {
            Arc::make_mut(&mut self.unreadable).remove(key);
        }
    }

    /// Takes an object out.
    pub fn remove(&mut self, key: &Key) {
        self.readable(key);
        let scoped = (key.namespace.clone().unwrap_or_else(Namespace::default_namespace), key.name.clone());
        match key.kind {
            Kind::Mesh => self.mesh = None,
            Kind::Namespace => drop(Arc::make_mut(&mut self.namespaces).remove(key.name.as_str())),
            Kind::Service => {
                let name = ServiceName::new(scoped.0, scoped.1);
                Arc::make_mut(&mut self.services).remove(&name);
            }
            Kind::Workload => drop(Arc::make_mut(&mut self.workloads).remove(&scoped)),
            Kind::WorkloadEnrollment => drop(Arc::make_mut(&mut self.enrollments).remove(&scoped)),
            Kind::TcpRoute => drop(Arc::make_mut(&mut self.routes).remove(&scoped)),
            Kind::TrafficPolicy => drop(Arc::make_mut(&mut self.traffic).remove(&scoped)),
            Kind::AuthorizationPolicy => drop(Arc::make_mut(&mut self.policies).remove(&scoped)),
        }
    }

    /// Takes a commit in. Returns the places whose record cannot be read, each worth an alarm.
    pub fn apply(&mut self, batch: EventBatch) -> Vec<(Place, String)> {
        let mut alarms = Vec::new();
        // A second owner of the maps would have each change copy them; `judge` puts both back.
        (self.nodes, self.users) = (Arc::default(), Arc::default());
        for event in batch.events {
            if Group::of_manifest(event.key()).is_some() {
                continue;
            }
            let place = layout::place(event.key());
            let failed = match event {
                Event::Put(entry) => self.put_entry(&place, &entry).err(),
                Event::Delete(_) => {
                    self.remove_place(&place);
                    None
                }
            };
            alarms.extend(failed.map(|why| (place, why)));
        }
        self.revision = self.revision.max(batch.revision);
        let broken = Arc::clone(&self.broken);
        self.judge(&broken);
        alarms
    }

    fn put_entry(&mut self, place: &Place, entry: &Entry) -> Result<(), String> {
        let revision = entry.mod_revision;
        if let Some(why) = seal::refusal(&entry.value) {
            // Nobody is set free by that: what an entry of the denylist said before stays in force.
            if !matches!(place, Place::Denied(_)) {
                self.remove_place(place);
            }
            if let Place::Resource(key) = place {
                let aside = SetAside { why: why.to_owned(), revision, refused: true };
                Arc::make_mut(&mut self.unreadable).insert(key.clone(), aside);
            }
            return Err(why.to_owned());
        }
        let said = |error: &dyn std::error::Error| {
            error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
        };
        match place {
            Place::Resource(key) => match self.decode(key, entry) {
                Ok(resource) => self.put(resource),
                Err(why) => {
                    self.remove(key);
                    let aside = SetAside { why: why.clone(), revision, refused: false };
                    Arc::make_mut(&mut self.unreadable).insert(key.clone(), aside);
                    return Err(why);
                }
            },
            Place::Registration(namespace, name) => {
                let scoped = (namespace.clone(), name.clone());
                let kept = kept(entry);
                replace(&mut self.registrations, scoped, kept).map_err(|error| said(&error))?;
            }
            Place::Label(label) => {
                Arc::make_mut(&mut self.labels).insert(label.clone(), revision);
            }
            Place::Node(name) => {
                replace(&mut self.known_nodes, name.clone(), kept(entry)).map_err(|error| said(&error))?;
            }
            Place::Server(name) => {
                replace(&mut self.servers, name.clone(), kept(entry)).map_err(|error| said(&error))?;
            }
            Place::User(name) => {
                replace(&mut self.known_users, name.clone(), kept(entry)).map_err(|error| said(&error))?;
            }
            Place::Denied(id) => {
                // One that cannot be read any more does not set anybody free: what it said before stays in force.
                let kept: Kept<DeniedRecord> = kept(entry).map_err(|error| said(&error))?;
                if kept.record.what.id() != *id {
                    return Err(format!("the record holds {}", kept.record.what.text()));
                }
                Arc::make_mut(&mut self.denied).insert(id.clone(), kept);
            }
            Place::Unknown => return Err("a record that this version does not know".to_owned()),
        }
        Ok(())
    }

    /// Reads an object and checks that it is the one its key names.
    fn decode(&self, key: &Key, entry: &Entry) -> Result<Resource, String> {
        let revision = entry.mod_revision.0;
        let resource = record::decode_resource(&entry.value, revision).map_err(|error| error.to_string())?;
        if resource.key() != *key {
            return Err(format!("the record of {key} holds {}", resource.key()));
        }
        if let Resource::Mesh(mesh) = &resource
            && mesh.trust_domain != self.trust_domain
        {
            return Err(format!("the store is of trust domain {}", mesh.trust_domain));
        }
        Ok(resource)
    }

    fn remove_place(&mut self, place: &Place) {
        match place {
            Place::Resource(key) => self.remove(key),
            Place::Registration(namespace, name) => {
                Arc::make_mut(&mut self.registrations).remove(&(namespace.clone(), name.clone()));
            }
            Place::Label(label) => drop(Arc::make_mut(&mut self.labels).remove(label)),
            Place::Node(name) => drop(Arc::make_mut(&mut self.known_nodes).remove(name)),
            Place::Server(name) => drop(Arc::make_mut(&mut self.servers).remove(name)),
            Place::User(name) => drop(Arc::make_mut(&mut self.known_users).remove(name)),
            Place::Denied(id) => drop(Arc::make_mut(&mut self.denied).remove(id)),
            Place::Unknown => {}
        }
    }
}

/// Reads a record with its revision.
fn kept<R: Record>(entry: &Entry) -> Result<Kept<R>, crate::records::UnreadableRecord> {
    let record = Arc::new(R::decode(&entry.value)?);
    Ok(Kept { record, revision: entry.mod_revision })
}

/// Puts a record that was read, or takes out the older one: what cannot be read is not in force.
fn replace<K: Ord + Clone, R: Clone, E>(
    map: &mut Arc<BTreeMap<K, R>>,
    key: K,
    read: Result<R, E>,
) -> Result<(), E> {
    let map = Arc::make_mut(map);
    match read {
        Ok(record) => drop(map.insert(key, record)),
        Err(error) => {
            map.remove(&key);
            return Err(error);
        }
    }
    Ok(())
}
