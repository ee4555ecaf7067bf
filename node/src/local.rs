//! The workloads of this node: who they are, where they serve, whose programs they are.
//!
//! Owns the table that interception, both corridors and the control clients read. A value of it is immutable; adding or
//! removing a workload swaps the pointer.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::{ArcSwap, ArcSwapOption};
use weft_api::fault::Fault;
use weft_identity::{spiffe::SpiffeId, tls::SvidSlot};
use weft_policy::{
    model::service::ServicePort,
    name::{EndpointLabel, Namespace, ObjectName, ServiceName},
};

/// One workload of this node.
#[derive(Debug)]
pub struct LocalWorkload {
    /// Its SPIFFE ID.
    pub identity: SpiffeId,
    /// Its namespace.
    pub namespace: Namespace,
    /// The name of its Workload object.
    pub name: ObjectName,
    /// Its service account: also the service it asks to serve, when it has ports.
    pub account: ObjectName,
    /// Where it serves: by the service port's name or number; the empty key stands for the service's only port.
    pub ports: BTreeMap<String, SocketAddr>,
    /// The uid that its programs run as; `None` when only the listener tells.
    pub uid: Option<u32>,
    /// Its SVID; empty until the first one is issued.
    pub slot: SvidSlot,
    registration: ArcSwapOption<Registration>,
    announced: ArcSwapOption<Registration>,
    unregistered: ArcSwapOption<Fault>,
    expired: AtomicBool,
}

/// What the server answered to a registration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Registration {
    /// The endpoint's label.
    pub label: EndpointLabel,
    /// The services it serves.
    pub services: Vec<ServiceName>,
    /// Users who may start it beside the agent's own and root.
    pub allowed_uids: Vec<u32>,
}

impl LocalWorkload {
    /// A workload that is not registered yet.
    #[must_use]
    pub fn new(
        identity: SpiffeId,
        namespace: Namespace,
        name: ObjectName,
        account: ObjectName,
        ports: BTreeMap<String, SocketAddr>,
        uid: Option<u32>,
    ) -> Self {
        Self {
            identity,
            namespace,
            name,
            account,
            ports,
            uid,
            slot: SvidSlot::empty(),
            registration: ArcSwapOption::empty(),
            announced: ArcSwapOption::empty(),
            unregistered: ArcSwapOption::empty(),
            expired: AtomicBool::new(false),
        }
    }

    /// Whether it has no SVID because the last one expired.
    #[must_use]
    pub fn has_expired(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }

    /// Notes that its SVID has expired, or that it has a new one.
    pub(crate) fn set_expired(&self, expired: bool) {
        self.expired.store(expired, Ordering::Relaxed);
    }

    /// What the server said last, if it ever did.
    #[must_use]
    pub fn registration(&self) -> Option<Arc<Registration>> {
        self.registration.load_full()
    }

    /// By what label peers reach it, and for what: what the server said last, else what it is being asked for. The
    /// server publishes an endpoint before its answer is here, and a peer may dial at once.
    #[must_use]
    pub fn reachable(&self) -> Option<Arc<Registration>> {
        self.registration().or_else(|| self.announced.load_full())
    }

    /// Why the last attempt to register it failed; `None` while none has, such as at its start.
    #[must_use]
    pub fn unregistered(&self) -> Option<Arc<Fault>> {
        self.unregistered.load_full()
    }

    /// Notes why it could not be registered.
    pub(crate) fn set_unregistered(&self, fault: Fault) {
        self.unregistered.store(Some(Arc::new(fault)));
    }

    /// Takes the server's answer in.
    pub(crate) fn set_registration(&self, registration: Registration) {
        self.registration.store(Some(Arc::new(registration)));
    }

    /// Notes what the server is going to be asked for.
    pub(crate) fn set_announced(&self, announced: Registration) {
        self.announced.store(Some(Arc::new(announced)));
    }

    /// Where it serves `port` of a service: by the port's name, its number, or as the only one.
    #[must_use]
    pub fn address_of(&self, port: &ServicePort) -> Option<SocketAddr> {
        let by_name = port.name.as_ref().and_then(|name| self.ports.get(name.as_str()));
        let by_number = || self.ports.get(&port.number.to_string());
        by_name.or_else(by_number).or_else(|| self.ports.get("")).copied()
    }
}

/// The table of this node's workloads. A clone reads and writes the same one.
#[derive(Clone, Debug, Default)]
pub struct LocalWorkloads(Arc<ArcSwap<Table>>);

#[derive(Clone, Debug, Default)]
struct Table {
    by_name: BTreeMap<(Namespace, ObjectName), Arc<LocalWorkload>>,
    by_label: HashMap<String, Arc<LocalWorkload>>,
}

impl LocalWorkloads {
    /// Adds a workload; one of the same name is replaced.
    pub fn insert(&self, workload: &Arc<LocalWorkload>) {
        let key = (workload.namespace.clone(), workload.name.clone());
        self.0.rcu(|old| {
            let mut table = Table::clone(old);
            table.by_name.insert(key.clone(), Arc::clone(workload));
            table.index()
        });
    }

    /// Removes a workload.
    pub fn remove(&self, namespace: &Namespace, name: &ObjectName) -> Option<Arc<LocalWorkload>> {
        let key = (namespace.clone(), name.clone());
        let removed = self.0.load().by_name.get(&key).cloned();
        self.0.rcu(|old| {
            let mut table = Table::clone(old);
            table.by_name.remove(&key);
            table.index()
        });
        removed
    }

    /// Builds the index of labels anew after a registration changed one.
    pub(crate) fn reindex(&self) {
        self.0.rcu(|old| Table::clone(old).index());
    }

    /// Every workload, in the order of their names.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<LocalWorkload>> {
        self.0.load().by_name.values().cloned().collect()
    }

    /// The workload of that name.
    #[must_use]
    pub fn named(&self, namespace: &Namespace, name: &ObjectName) -> Option<Arc<LocalWorkload>> {
        self.0.load().by_name.get(&(namespace.clone(), name.clone())).cloned()
    }

    /// The workload that the endpoint label stands for.
    #[must_use]
    pub fn labelled(&self, label: &str) -> Option<Arc<LocalWorkload>> {
        self.0.load().by_label.get(label).cloned()
    }

    /// A workload of that identity; the first by name when there are several.
    #[must_use]
    pub fn of_identity(&self, identity: &SpiffeId) -> Option<Arc<LocalWorkload>> {
        self.0.load().by_name.values().find(|workload| workload.identity == *identity).cloned()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.load().by_name.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Table {
    fn index(mut self) -> Self {
        let labelled = |workload: &Arc<LocalWorkload>| {
            Some((workload.reachable()?.label.as_str().to_owned(), Arc::clone(workload)))
        };
        self.by_label = self.by_name.values().filter_map(labelled).collect();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(name: &str, ports: &[(&str, &str)]) -> Arc<LocalWorkload> {
        Arc::new(LocalWorkload::new(
            format!("spiffe://corp.example/ns/shop/sa/{name}").parse().unwrap(),
            "shop".parse().unwrap(),
            name.parse().unwrap(),
            name.parse().unwrap(),
            ports.iter().map(|(key, address)| ((*key).to_owned(), address.parse().unwrap())).collect(),
            None,
        ))
    }

    #[test]
    fn a_workload_is_found_by_its_label_once_it_is_registered() {
        let table = LocalWorkloads::default();
        let charge = workload("charge", &[]);
        table.insert(&charge);
        assert!(table.labelled("abc").is_none());

        let label = "abc".parse().unwrap();
        charge.set_registration(Registration { label, services: Vec::new(), allowed_uids: Vec::new() });
        table.reindex();
        assert_eq!(table.labelled("abc").unwrap().name.as_str(), "charge");

        table.remove(&charge.namespace, &charge.name);
        assert!(table.labelled("abc").is_none());
    }

    #[test]
    fn a_workload_answers_to_the_label_it_announces_until_the_server_gives_it_another() {
        let table = LocalWorkloads::default();
        let charge = workload("charge", &[]);
        table.insert(&charge);
        let named = |label: &str| {
            let label = label.parse().unwrap();
            Registration { label, services: Vec::new(), allowed_uids: Vec::new() }
        };
        charge.set_announced(named("drawn"));
        table.reindex();
        assert!(charge.registration().is_none(), "nobody has said yes to it");
        assert!(table.labelled("drawn").is_some());

        charge.set_registration(named("given"));
        table.reindex();
        assert!(table.labelled("drawn").is_none() && table.labelled("given").is_some());
    }

    #[test]
    fn a_port_is_found_by_name_then_number_then_as_the_only_one() {
        let port = |number, name: Option<&str>| ServicePort {
            number,
            name: name.map(|name| name.parse().unwrap()),
            app_protocol: None,
        };
        let both = workload("a", &[("http", "127.0.0.1:1"), ("81", "127.0.0.1:2")]);
        assert_eq!(both.address_of(&port(80, Some("http"))).unwrap().port(), 1);
        assert_eq!(both.address_of(&port(81, None)).unwrap().port(), 2);
        assert_eq!(both.address_of(&port(82, None)), None);
        let only = workload("b", &[("", "127.0.0.1:3")]);
        assert_eq!(only.address_of(&port(80, Some("http"))).unwrap().port(), 3);
    }
}
