//! What follows from everything that is configured and everybody who is there: the endpoints of each service, and what
//! each node hosts.
//!
//! Pure, and made once per change for all readers: sessions of a thousand agents share its endpoints. What did not change
//! is taken over from the world before, so that one registration among ten thousand costs next to nothing, and an
//! endpoint that did not change stays the same object in memory, so that comparing views costs as little.

mod changes;
mod place;
mod targets;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_identity::denied::Denylist;
use weft_policy::{
    model::{AuthorizationPolicy, Endpoint, TcpRoute, TrafficPolicy},
    name::{Namespace, NodeName, ServiceName},
};

pub use self::{changes::Mark, targets::Targeted};
use self::{
    changes::{Changes, Touched},
    place::{Ground, Placed},
    targets::Targets,
};
use crate::{catalog::Catalog, enrollment::Enrollments, liveness::Standings};

/// See the module.
#[derive(Clone, Debug)]
pub struct World {
    catalog: Arc<Catalog>,
    standings: Standings,
    enrollments: Arc<Enrollments>,
    /// In the order of the workloads' names.
    placed: Vec<Arc<Placed>>,
    endpoints: BTreeMap<ServiceName, Arc<[Arc<Endpoint>]>>,
    hosts: BTreeMap<NodeName, Arc<Hosted>>,
    targets: Targets,
    denied: Denylist,
    changes: Changes,
}

/// What runs on one node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Hosted {
    /// The services that its workloads may serve.
    pub services: BTreeSet<ServiceName>,
    /// The namespaces of its workloads.
    pub namespaces: BTreeSet<Namespace>,
    /// How many workloads it registered.
    pub workloads: u32,
}

impl World {
    /// What follows from `catalog` and `standings`. `before` is the world that this one replaces.
    #[must_use]
    pub fn derive(catalog: Arc<Catalog>, standings: Standings, before: Option<&Self>) -> Self {
        let kept = before.filter(|before| before.catalog.shares_enrollments_with(&catalog));
        let enrollments = kept
            .map_or_else(|| Arc::new(Enrollments::of(&catalog)), |before| Arc::clone(&before.enrollments));
        let is_same =
            before.is_some_and(|before| before.catalog.places_as(&catalog) && before.standings == standings);
        let ground = Ground { catalog: &catalog, standings: &standings, enrollments: &enrollments, is_same };
        let mut touched = Touched::default();
        let placed = place_all(&ground, before, &mut touched);
        let mut endpoints = before.map(|before| before.endpoints.clone()).unwrap_or_default();
        replace_endpoints(&mut endpoints, &placed, &touched.services);
        let mut hosts = before.map(|before| before.hosts.clone()).unwrap_or_default();
        replace_hosts(&mut hosts, &placed, &touched.nodes);
        let old = before.map(|before| (&*before.catalog, &before.targets));
        let targets = Targets::of(&catalog, old, &mut touched);
        touched.common |= before.is_none_or(|before| !before.catalog.tells_as(&catalog));
        let changes = before.map_or_else(Changes::first, |before| before.changes.next(touched));
        let denied = denylist(&catalog, before);
        Self { catalog, standings, enrollments, placed, endpoints, hosts, targets, denied, changes }
    }

    /// What is configured.
    #[must_use]
    pub const fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Which workloads are in doubt.
    #[must_use]
    pub const fn standings(&self) -> &Standings {
        &self.standings
    }

    /// The endpoints of a service that callers are shown, in the order of their workloads' names.
    #[must_use]
    pub fn endpoints(&self, service: &ServiceName) -> &[Arc<Endpoint>] {
        self.endpoints.get(service).map_or(&[], |endpoints| endpoints)
    }

    /// Who is refused by every agent.
    #[must_use]
    pub const fn denied(&self) -> &Denylist {
        &self.denied
    }

    /// What runs on a node; `None` when nothing does.
    #[must_use]
    pub fn hosted(&self, node: &NodeName) -> Option<&Hosted> {
        self.hosts.get(node).map(|hosted| &**hosted)
    }

    /// The policies by what they are about.
    #[must_use]
    pub fn policies(&self) -> &Targeted<AuthorizationPolicy> {
        &self.targets.policies
    }

    /// The settings of destinations by what they are about.
    #[must_use]
    pub fn traffic(&self) -> &Targeted<TrafficPolicy> {
        &self.targets.traffic
    }

    /// The routes that take connections of a service.
    #[must_use]
    pub fn routes(&self, service: &ServiceName) -> &[Arc<TcpRoute>] {
        self.targets.routes.get(service).map_or(&[], Vec::as_slice)
    }

    /// Where this world stands among those that follow one another.
    #[must_use]
    pub const fn mark(&self) -> &Mark {
        self.changes.now()
    }

    /// Whether the view of `node` of `services` may differ from the one that was built at `mark`. The services are all that
    /// the view was about: those asked for, those hosted, and those to which routes lead.
    pub fn concerns<'a>(
        &self,
        mark: &Mark,
        node: &NodeName,
        services: impl IntoIterator<Item = &'a ServiceName>,
    ) -> bool {
        self.changes.concern(mark, node, services)
    }
}

/// What follows from each workload, and whom that which differs touches.
fn place_all(ground: &Ground<'_>, before: Option<&World>, touched: &mut Touched) -> Vec<Arc<Placed>> {
    let mut all = Vec::with_capacity(ground.catalog.workloads().len());
    let mut touch = |placed: &Placed| {
        touched.services.extend(placed.hosts.iter().cloned());
        touched.nodes.push(placed.workload.node.clone());
    };
    // Both are in the order of the names.
    let mut old = before.map_or(&[][..], |before| &before.placed).iter().peekable();
    for (name, workload) in ground.catalog.workloads() {
        while let Some(gone) = old.next_if(|old| old.name < *name) {
            touch(gone);
        }
        let known = old.next_if(|old| old.name == *name);
        let placed = ground.place(name, workload, known);
        if !known.is_some_and(|known| Arc::ptr_eq(known, &placed)) {
            known.into_iter().for_each(|known| touch(known));
            touch(&placed);
        }
        all.push(placed);
    }
    old.for_each(|gone| touch(gone));
    all
}

/// Collects the endpoints of those services anew.
fn replace_endpoints(
    endpoints: &mut BTreeMap<ServiceName, Arc<[Arc<Endpoint>]>>,
    placed: &[Arc<Placed>],
    services: &[ServiceName],
) {
    let mut lists: BTreeMap<&ServiceName, Vec<Arc<Endpoint>>> =
        services.iter().map(|service| (service, Vec::new())).collect();
    if lists.is_empty() {
        return;
    }
    for endpoint in placed.iter().flat_map(|placed| &placed.endpoints) {
        if let Some(list) = lists.get_mut(&endpoint.service) {
            list.push(Arc::clone(endpoint));
        }
    }
    for (service, list) in lists {
        if list.is_empty() {
            endpoints.remove(service);
        } else {
            endpoints.insert(service.clone(), list.into());
        }
    }
}

/// Collects what those nodes host anew.
fn replace_hosts(hosts: &mut BTreeMap<NodeName, Arc<Hosted>>, placed: &[Arc<Placed>], nodes: &[NodeName]) {
    let mut found: BTreeMap<&NodeName, Hosted> = nodes.iter().map(|node| (node, Hosted::default())).collect();
    if found.is_empty() {
        return;
    }
    for placed in placed {
        if let Some(host) = found.get_mut(&placed.workload.node) {
            host.workloads += 1;
            host.namespaces.insert(placed.name.0.clone());
            host.services.extend(placed.hosts.iter().cloned());
        }
    }
    for (node, host) in found {
        if host.workloads == 0 {
            hosts.remove(node);
        } else {
            hosts.insert(node.clone(), Arc::new(host));
        }
    }
}

/// The denylist that agents are told. Made anew only when a record has changed; its pages stay the same objects.
fn denylist(catalog: &Catalog, before: Option<&World>) -> Denylist {
    let none = Denylist::new();
    if let Some(before) = before.filter(|before| Arc::ptr_eq(before.catalog.denied(), catalog.denied())) {
        return before.denied.clone();
    }
    let entries = catalog.denied().values().flat_map(|kept| kept.record.entries());
    Denylist::of(entries, before.map_or(&none, |before| &before.denied))
}
