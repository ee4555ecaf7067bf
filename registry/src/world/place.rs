//! What follows from one workload: which services its node hosts because of it, and the endpoints that callers see.

use std::sync::Arc;

use weft_identity::{denied::Subject, spiffe::SpiffeId};
use weft_policy::{
    model::{Endpoint, EndpointState, Service, Workload},
    name::ServiceName,
};

use crate::{
    catalog::{Catalog, Scoped},
    denied::{self, What},
    enrollment::{Enrollments, Grant},
    liveness::{Standing, Standings},
    records::NodeRecord,
};

/// See the module.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) name: Scoped,
    pub(super) workload: Arc<Workload>,
    node: Option<Arc<NodeRecord>>,
    pub(super) hosts: Vec<ServiceName>,
    pub(super) endpoints: Vec<Arc<Endpoint>>,
}

/// From what it follows, beside the workload.
pub(super) struct Ground<'a> {
    pub(super) catalog: &'a Catalog,
    pub(super) standings: &'a Standings,
    pub(super) enrollments: &'a Enrollments,
    /// Whether all of it is as it was in the world before.
    pub(super) is_same: bool,
}

impl Ground<'_> {
    /// What follows from `workload`. What followed `before` is the same object when nothing differs, and so is each
    /// endpoint.
    pub(super) fn place(
        &self,
        name: &Scoped,
        workload: &Arc<Workload>,
        before: Option<&Arc<Placed>>,
    ) -> Arc<Placed> {
        let node = self.catalog.nodes().get(&workload.node).map(|kept| &kept.record);
        let same = before.filter(|before| self.is_same && before.follows_from(workload, node));
        if let Some(same) = same {
            return Arc::clone(same);
        }
        let mut placed = Placed {
            name: name.clone(),
            workload: Arc::clone(workload),
            node: node.cloned(),
            hosts: Vec::new(),
            endpoints: Vec::new(),
        };
        if let Some(grant) = self.grant(workload) {
            for service in served(self.catalog, name, workload, &grant) {
                let endpoint = self.endpoint(workload, node.map(|node| &**node), &grant, &service);
                let kept = before.into_iter().flat_map(|before| &before.endpoints);
                let shared = |endpoint| match kept.clone().find(|old| ***old == endpoint) {
                    Some(old) => Arc::clone(old),
                    None => Arc::new(endpoint),
                };
                placed.endpoints.extend(endpoint.map(shared));
                placed.hosts.push(service.service_name());
            }
        }
        let same = before.filter(|before| before.follows_from(workload, node) && before.gives_as(&placed));
        same.map_or_else(|| Arc::new(placed), Arc::clone)
    }

    /// What its enrollments give it; nothing when it is denied.
    fn grant(&self, workload: &Workload) -> Option<Grant> {
        let denied = is_denied(self.catalog, workload);
        let grant = || self.enrollments.grant(self.catalog, &workload.node, &workload.identity);
        if denied { None } else { grant() }
    }

    /// The endpoint as callers see it; `None` while it has no label, no address, or is withdrawn.
    fn endpoint(
        &self,
        workload: &Workload,
        node: Option<&NodeRecord>,
        grant: &Grant,
        service: &Service,
    ) -> Option<Endpoint> {
        let name = service.service_name();
        let state = match self.standings.of(&name, &workload.metadata.name) {
            Standing::Confirmed => EndpointState::Confirmed,
            Standing::Unconfirmed => EndpointState::Unconfirmed,
            Standing::Withdrawn => return None,
        };
        let node = node.filter(|node| !node.advertise.is_empty())?;
        Some(Endpoint {
            service: name,
            workload: workload.metadata.name.clone(),
            node: workload.node.clone(),
            identity: workload.identity.clone(),
            label: workload.label.clone()?,
            addresses: node.advertise.clone(),
            weight: workload.weight,
            locality: workload.locality.clone(),
            labels: grant.labels.clone(),
            boot: node.boot,
            state,
        })
    }
}

impl Placed {
    fn follows_from(&self, workload: &Arc<Workload>, node: Option<&Arc<NodeRecord>>) -> bool {
        let same_node = match (&self.node, node) {
            (Some(own), Some(node)) => Arc::ptr_eq(own, node),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        same_node && Arc::ptr_eq(&self.workload, workload)
    }

    fn gives_as(&self, other: &Self) -> bool {
        let same = |(one, other)| Arc::ptr_eq(one, other);
        self.hosts == other.hosts
            && self.endpoints.len() == other.endpoints.len()
            && self.endpoints.iter().zip(&other.endpoints).all(same)
    }
}

/// Whether nobody is to be sent to a workload, because its node is banned or its identity is revoked.
fn is_denied(catalog: &Catalog, workload: &Workload) -> bool {
    if catalog.denied().is_empty() {
        return false;
    }
    let identity = What::Subject(Subject::Identity(workload.identity.clone()));
    denied::banned(catalog, &workload.node).is_some() || catalog.denied().contains_key(&identity.id())
}

/// The services that a workload says it serves, that its enrollments let it serve, and that take it.
fn served(catalog: &Catalog, scoped: &Scoped, workload: &Workload, grant: &Grant) -> Vec<Arc<Service>> {
    if grant.namespace != scoped.0 {
        return Vec::new();
    }
    let own = workload.services.iter().filter(|service| grant.services.contains(*service));
    let found = own.filter_map(|name| {
        catalog.services().get(&ServiceName::new(scoped.0.clone(), name.clone())).cloned()
    });
    // What a closed namespace says of others that may serve may be what somebody else wrote.
    let closed = catalog.closed(&scoped.0).is_some();
    let own_account = |service: &Service| {
        SpiffeId::workload(catalog.trust_domain(), scoped.0.as_str(), service.metadata.name.as_str())
            .is_ok_and(|own| own == workload.identity)
    };
    let takes = |service: &Arc<Service>| {
        (!closed || own_account(service))
            && service.may_be_served_by(&workload.identity, catalog.trust_domain())
            && service.selects(&grant.labels)
    };
    found.filter(takes).collect()
}
