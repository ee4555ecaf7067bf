//! Services: what callers name.

use std::collections::BTreeMap;

use weft_identity::spiffe::{IdKind, SpiffeId, TrustDomain};

use super::{DefaultAuthorization, Metadata};
use crate::name::{PortName, ServiceName};

/// A service that callers reach by name and port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Service {
    /// Namespace and name are the service's name.
    pub metadata: Metadata,
    /// 1 to 64 ports; numbers and names are unique.
    pub ports: Vec<ServicePort>,
    /// Labels an endpoint must have, beside its identity; `None` asks for none.
    pub selector: Option<BTreeMap<String, String>>,
    /// Identities that may serve it beside `/ns/<namespace>/sa/<name>`.
    pub identities: Vec<SpiffeId>,
    /// Overrides the namespace's and the mesh's default.
    pub default_authorization: Option<DefaultAuthorization>,
}

/// One port of a service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServicePort {
    /// What callers dial, 1 to 65535.
    pub number: u16,
    /// Its name; required when there is more than one port.
    pub name: Option<PortName>,
    /// What is spoken there; `None` is detected once HTTP is served, and carried as bytes until then.
    pub app_protocol: Option<AppProtocol>,
}

/// The application protocol of a port, in the words of core/v1 `appProtocol`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AppProtocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
    /// Bytes.
    Tcp,
    /// TLS that is carried as it is.
    Tls,
}

impl Service {
    /// The name callers use.
    ///
    /// A service always has a namespace: manifests and records without one are refused before this type exists; one
    /// made by hand without it falls into `default`.
    #[must_use]
    pub fn service_name(&self) -> ServiceName {
        ServiceName { namespace: self.metadata.owner(), name: self.metadata.name.clone() }
    }

    /// The port of that number.
    #[must_use]
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// The port of that name.
    #[must_use]
    pub fn port_named(&self, name: &str) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.name.as_ref().is_some_and(|found| found.as_str() == name))
    }

    /// Whether `identity` may serve this service: `/ns/<namespace>/sa/<name>` of `local`, the mesh's own trust domain,
    /// or one listed in the service (decisions.md, being an endpoint). Registry and dialling agent both ask.
    #[must_use]
    pub fn may_be_served_by(&self, identity: &SpiffeId, local: &TrustDomain) -> bool {
        let own = match identity.kind() {
            IdKind::Workload { namespace, service_account } => {
                identity.trust_domain() == local
                    && service_account == self.metadata.name.as_str()
                    && namespace == self.metadata.owner().as_str()
            }
            IdKind::Node(_) | IdKind::Server(_) | IdKind::User(_) | IdKind::Other => false,
        };
        own || self.identities.contains(identity)
    }

    /// Whether an endpoint with these labels has all that the selector asks for.
    #[must_use]
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let asked = self.selector.iter().flatten();
        asked.into_iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// The port a caller means who names none: the only one, else the one named `http` (decisions.md, ports).
    #[must_use]
    pub fn default_port(&self) -> Option<&ServicePort> {
        match self.ports.as_slice() {
            [only] => Some(only),
            _ => self.port_named("http"),
        }
    }
}
