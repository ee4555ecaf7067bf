//! The resources an operator writes, already valid.
//!
//! Text and wire forms are `weft-api`'s; a value here obeys every rule that one object alone can obey. What needs the
//! other objects (references, overlaps) is [`crate::snapshot`]'s and the registry's.

pub mod authorization;
pub mod endpoint;
pub mod mesh;
pub mod route;
pub mod service;
pub mod traffic;
pub mod workload;

use std::{collections::BTreeMap, fmt, str::FromStr};

pub use authorization::AuthorizationPolicy;
pub use endpoint::{Endpoint, EndpointState, HostPort, Locality, TunnelAddresses};
pub use mesh::{DefaultAuthorization, EgressMode, Mesh, NamespaceSettings};
pub use route::TcpRoute;
pub use service::Service;
pub use traffic::TrafficPolicy;
pub use workload::{Workload, WorkloadEnrollment};

use crate::name::{Namespace, ObjectName};

/// What every object carries beside its spec.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Metadata {
    /// The owning namespace; `None` for the kinds that have none (`Mesh`, `Namespace`).
    pub namespace: Option<Namespace>,
    /// The name, unique for the kind in its namespace.
    pub name: ObjectName,
    /// Labels to select by.
    pub labels: BTreeMap<String, String>,
    /// Notes for people and tools; `weft.mesh/reason` says why the object exists.
    pub annotations: BTreeMap<String, String>,
    /// The store's revision of this object, 0 when it was never stored. A writer that sends one writes only over it.
    pub revision: u64,
}

impl Metadata {
    /// The namespace that owns the object; one made by hand without any falls into `default`.
    #[must_use]
    pub fn owner(&self) -> Namespace {
        self.namespace.clone().unwrap_or_else(Namespace::default_namespace)
    }
}

/// The kinds of the registry.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// The mesh's own settings, one object named `mesh`.
    Mesh,
    /// A namespace's defaults.
    Namespace,
    /// A service that callers name.
    Service,
    /// One running program behind a service.
    Workload,
    /// Who may get which identity on which node.
    WorkloadEnrollment,
    /// Where the connections of a service go (Gateway API).
    TcpRoute,
    /// Balancing, breaker, outlier ejection, timeouts of a destination.
    TrafficPolicy,
    /// Who may call.
    AuthorizationPolicy,
}

impl Kind {
    /// Every kind, in the order in which a set is applied (a thing after what it refers to).
    pub const ALL: [Self; 8] = [
        Self::Mesh,
        Self::Namespace,
        Self::Service,
        Self::WorkloadEnrollment,
        Self::Workload,
        Self::TcpRoute,
        Self::TrafficPolicy,
        Self::AuthorizationPolicy,
    ];

    /// The kind as written in a manifest.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mesh => "Mesh",
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::Workload => "Workload",
            Self::WorkloadEnrollment => "WorkloadEnrollment",
            Self::TcpRoute => "TCPRoute",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
        }
    }

    /// The `apiVersion` of the kind.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::TcpRoute => "gateway.networking.k8s.io/v1",
            Self::Mesh
            | Self::Namespace
            | Self::Service
            | Self::Workload
            | Self::WorkloadEnrollment
            | Self::TrafficPolicy
            | Self::AuthorizationPolicy => "weft.mesh/v1alpha1",
        }
    }

    /// Whether objects of the kind live in a namespace.
    #[must_use]
    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Mesh | Self::Namespace)
    }

    /// The word on the command line and in keys: plural, lower case.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Mesh => "meshes",
            Self::Namespace => "namespaces",
            Self::Service => "services",
            Self::Workload => "workloads",
            Self::WorkloadEnrollment => "workloadenrollments",
            Self::TcpRoute => "tcproutes",
            Self::TrafficPolicy => "trafficpolicies",
            Self::AuthorizationPolicy => "authorizationpolicies",
        }
    }

    /// The short name on the command line, if there is one.
    #[must_use]
    pub const fn short(self) -> Option<&'static str> {
        match self {
            Self::Service => Some("svc"),
            Self::Workload => Some("wl"),
            Self::WorkloadEnrollment => Some("we"),
            Self::TrafficPolicy => Some("tp"),
            Self::AuthorizationPolicy => Some("ap"),
            Self::Namespace => Some("ns"),
            Self::Mesh | Self::TcpRoute => None,
        }
    }
}

/// The text names no kind.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not a kind")]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;

    /// Accepts the manifest's name, its lower case, the plural and the short name.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        let named = |kind: &Self| {
            kind.name().eq_ignore_ascii_case(&lower) || kind.plural() == lower || kind.short() == Some(&lower)
        };
        Self::ALL.into_iter().find(named).ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What tells one object from all others.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, `None` for the kinds that have none.
    pub namespace: Option<Namespace>,
    /// Its name.
    pub name: ObjectName,
}

impl fmt::Display for Key {
    /// `Service/charge.shop`, as a person would say it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)?;
        self.namespace.as_ref().map_or(Ok(()), |namespace| write!(f, ".{namespace}"))
    }
}

/// One object of the registry.
#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    /// See [`Mesh`].
    Mesh(Mesh),
    /// See [`NamespaceSettings`].
    Namespace(NamespaceSettings),
    /// See [`Service`].
    Service(Service),
    /// See [`Workload`].
    Workload(Workload),
    /// See [`WorkloadEnrollment`].
    WorkloadEnrollment(WorkloadEnrollment),
    /// See [`TcpRoute`].
    TcpRoute(TcpRoute),
    /// See [`TrafficPolicy`].
    TrafficPolicy(TrafficPolicy),
    /// See [`AuthorizationPolicy`].
    AuthorizationPolicy(AuthorizationPolicy),
}

impl Resource {
    /// The kind of the object.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Mesh(_) => Kind::Mesh,
            Self::Namespace(_) => Kind::Namespace,
            Self::Service(_) => Kind::Service,
            Self::Workload(_) => Kind::Workload,
            Self::WorkloadEnrollment(_) => Kind::WorkloadEnrollment,
            Self::TcpRoute(_) => Kind::TcpRoute,
            Self::TrafficPolicy(_) => Kind::TrafficPolicy,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
        }
    }

    /// Its metadata.
    #[must_use]
    pub const fn metadata(&self) -> &Metadata {
        match self {
            Self::Mesh(r) => &r.metadata,
            Self::Namespace(r) => &r.metadata,
            Self::Service(r) => &r.metadata,
            Self::Workload(r) => &r.metadata,
            Self::WorkloadEnrollment(r) => &r.metadata,
            Self::TcpRoute(r) => &r.metadata,
            Self::TrafficPolicy(r) => &r.metadata,
            Self::AuthorizationPolicy(r) => &r.metadata,
        }
    }

    /// Its metadata, to set the revision or the namespace.
    pub const fn metadata_mut(&mut self) -> &mut Metadata {
        match self {
            Self::Mesh(r) => &mut r.metadata,
            Self::Namespace(r) => &mut r.metadata,
            Self::Service(r) => &mut r.metadata,
            Self::Workload(r) => &mut r.metadata,
            Self::WorkloadEnrollment(r) => &mut r.metadata,
            Self::TcpRoute(r) => &mut r.metadata,
            Self::TrafficPolicy(r) => &mut r.metadata,
            Self::AuthorizationPolicy(r) => &mut r.metadata,
        }
    }

    /// What tells it from all others.
    #[must_use]
    pub fn key(&self) -> Key {
        let metadata = self.metadata();
        Key { kind: self.kind(), namespace: metadata.namespace.clone(), name: metadata.name.clone() }
    }
}

/// What a policy or route is attached to.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum TargetRef {
    /// One service of the object's own namespace.
    Service(ObjectName),
    /// Every service of the object's own namespace.
    Namespace(Namespace),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_kind_is_that_kind_and_no_two_kinds_share_one() {
        for kind in Kind::ALL {
            let spellings = [Some(kind.name()), Some(kind.plural()), kind.short()];
            for spelling in spellings.into_iter().flatten() {
                assert_eq!(spelling.parse(), Ok(kind));
                assert_eq!(spelling.to_ascii_uppercase().parse(), Ok(kind));
            }
        }
        assert_eq!("pod".parse::<Kind>(), Err(UnknownKind("pod".to_owned())));
    }

    #[test]
    fn a_key_is_said_with_kind_name_and_namespace() {
        let metadata = crate::testing::metadata("charge", Some("shop"));
        let service = Resource::Service(Service { metadata, ..crate::testing::service("x", "y") });
        assert_eq!(service.key().to_string(), "Service/charge.shop");
        assert_eq!(Resource::Mesh(crate::testing::mesh()).key().to_string(), "Mesh/mesh");
    }
}
