//! What is in force: a view, checked, indexed and immutable.
//!
//! A snapshot is complete or it does not exist ([`SnapshotError`]); the last good one then stays in force. One flow uses
//! one snapshot. Reading is lock-free and allocates nothing but the answers.
//!
//! [`View`] is the data, [`Delta`] the difference between two, [`Snapshot::build`] the only way from there to here.

mod build;
mod delta;
mod fault;
#[cfg(test)]
mod tests;
mod view;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use rand::Rng;
use weft_identity::{denied::Denylist, spiffe::TrustDomain};

pub use self::{
    delta::{Delta, DeltaError},
    fault::{Fault, Notice, SnapshotError},
    view::{Revision, Unreadable, View, ViewKey, ViewObject},
};
use crate::{
    authz::matcher::RuleSet,
    model::{
        AuthorizationPolicy, DefaultAuthorization, Endpoint, Mesh, NamespaceSettings, Service,
        traffic::TrafficSettings,
    },
    name::{Namespace, ServiceName},
    route::{NoBackend, Route, Target},
};

/// The most policies that one destination may have (security.md 7.2, point 12).
pub const MAX_POLICIES: usize = 1_024;

/// What a snapshot needs to know beside the view.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SnapshotContext {
    /// The trust domain that this agent or server belongs to; the mesh of the view must be the same.
    pub trust_domain: TrustDomain,
}

/// Everything that decides, of one revision.
#[derive(Debug)]
pub struct Snapshot {
    revision: Revision,
    view: Arc<View>,
    context: SnapshotContext,
    mesh: Arc<Mesh>,
    namespaces: HashMap<Namespace, Arc<NamespaceSettings>>,
    destinations: HashMap<ServiceName, Arc<Destination>>,
    compiled: Compiled,
    denied: Denylist,
    notices: Vec<Notice>,
}

/// The rules by what they are attached to, kept so that the next snapshot need not compile what has not changed.
#[derive(Debug, Default)]
struct Compiled {
    of_namespace: HashMap<Namespace, Arc<RuleSet>>,
    of_service: HashMap<ServiceName, Arc<RuleSet>>,
}

/// One service with all that concerns calls to it.
#[derive(Debug)]
pub struct Destination {
    service: Arc<Service>,
    endpoints: Vec<Arc<Endpoint>>,
    settings: TrafficSettings,
    /// By port; `None` for the ports that no route names.
    routes: BTreeMap<Option<u16>, Route>,
    default: (DefaultOrigin, DefaultAuthorization),
    /// The rules of its namespace, then its own.
    rules: Vec<Arc<RuleSet>>,
    unreadable: Vec<Arc<Unreadable>>,
}

/// Which object a default comes from.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum DefaultOrigin {
    /// The mesh.
    Mesh,
    /// The service's namespace.
    Namespace,
    /// The service itself.
    Service,
}

impl DefaultOrigin {
    /// The word for it: `mesh`, `namespace` or `service`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Namespace => "namespace",
            Self::Service => "service",
        }
    }
}

impl Snapshot {
    /// The revision that it shows.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// What it was made from.
    #[must_use]
    pub const fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// The trust domain of the mesh.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.context.trust_domain
    }

    /// The mesh's own settings.
    #[must_use]
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The settings of a namespace, if it has an object of its own.
    #[must_use]
    pub fn namespace(&self, name: &Namespace) -> Option<&NamespaceSettings> {
        self.namespaces.get(name).map(Arc::as_ref)
    }

    /// A service that is known here.
    #[must_use]
    pub fn destination(&self, service: &ServiceName) -> Option<&Arc<Destination>> {
        self.destinations.get(service)
    }

    /// Every service that is known here, in no order.
    pub fn destinations(&self) -> impl Iterator<Item = (&ServiceName, &Arc<Destination>)> {
        self.destinations.iter()
    }

    /// Who is refused whatever certificate is shown.
    #[must_use]
    pub const fn denied(&self) -> &Denylist {
        &self.denied
    }

    /// What was left out while building, and why. Worth a warning each.
    #[must_use]
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }
}

impl Destination {
    /// The service.
    #[must_use]
    pub const fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Its endpoints, in the order of their workloads' names: only such as may serve it.
    #[must_use]
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// How its connections are balanced, bounded and timed.
    #[must_use]
    pub const fn settings(&self) -> &TrafficSettings {
        &self.settings
    }

    /// What happens to calls that no rule speaks of, and which object says so.
    #[must_use]
    pub const fn default_authorization(&self) -> (DefaultOrigin, DefaultAuthorization) {
        self.default
    }

    /// Policies about it that cannot be read. While there is one, every call is refused.
    #[must_use]
    pub fn unreadable(&self) -> &[Arc<Unreadable>] {
        &self.unreadable
    }

    /// Policies about it, those of its namespace first.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.rules.iter().flat_map(|set| set.policies())
    }

    /// The route that takes the connections of `port`, if there is one. A route for the port goes before one for all.
    #[must_use]
    pub fn route_of(&self, port: u16) -> Option<&Route> {
        self.routes.get(&Some(port)).or_else(|| self.routes.get(&None))
    }

    /// Where one connection to `port` goes: a backend of its route, chosen by weight, or the service itself. Routes do
    /// not chain: a backend's own route is not asked (Gateway API), so there are no loops.
    ///
    /// # Errors
    ///
    /// [`NoBackend`] when the route gives none.
    pub fn route(&self, port: u16, rng: &mut (impl Rng + ?Sized)) -> Result<Target, NoBackend> {
        match self.route_of(port) {
            Some(route) => route.choose(rng).cloned(),
            None => Ok(Target { service: self.service.service_name(), port }),
        }
    }

    /// Its compiled rules.
    pub(crate) fn rules(&self) -> &[Arc<RuleSet>] {
        &self.rules
    }
}
