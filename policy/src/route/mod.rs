//! From the name a program asked for to a service port, and from there along routes to a backend.

mod split;

use std::fmt;

pub use split::{BackendChoice, NoBackend, Route};

use crate::{
    model::EgressMode,
    name::{self, Namespace, ServiceName},
    snapshot::Snapshot,
};

/// A port of a service.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Target {
    /// The service.
    pub service: ServiceName,
    /// The service's port, not the program's.
    pub port: u16,
}

impl fmt::Display for Target {
    /// `charge.shop:80`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.port)
    }
}

/// What a host and port mean to a program of one namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Resolution {
    /// A port of a service that is known here.
    Service(Target),
    /// A mesh name (it has the mesh's suffix) of no service known here: never egress.
    UnknownService(ServiceName),
    /// A name that could be a service, of none known here. If the registry knows none either, it is outside the mesh.
    MaybeOutside(ServiceName),
    /// A known service without that port, or with several of which none is called `http` when none was asked for.
    UnknownPort {
        /// The service.
        service: ServiceName,
        /// The port asked for.
        port: Option<u16>,
    },
    /// A name with the mesh's suffix that no service can have: never egress.
    NotAName(String),
    /// A destination outside the mesh.
    Outside,
}

impl Snapshot {
    /// Says what `host` and `port` mean to a workload of namespace `caller`. Without a port the service's default port
    /// is meant: its only one, else the one named `http`.
    #[must_use]
    pub fn resolve(&self, caller: &Namespace, host: &str, port: Option<u16>) -> Resolution {
        let only_mesh = name::is_mesh_suffix(host);
        let Some(service) = name::parse_host(host, caller) else {
            return if only_mesh { Resolution::NotAName(host.to_owned()) } else { Resolution::Outside };
        };
        let Some(destination) = self.destination(&service) else {
            return if only_mesh {
                Resolution::UnknownService(service)
            } else {
                Resolution::MaybeOutside(service)
            };
        };
        let found = match port {
            Some(number) => destination.service().port(number),
            None => destination.service().default_port(),
        };
        match found {
            Some(found) => Resolution::Service(Target { service, port: found.number }),
            None => Resolution::UnknownPort { service, port },
        }
    }

    /// What happens to destinations outside the mesh, for workloads of namespace `caller`.
    #[must_use]
    pub fn egress(&self, caller: &Namespace) -> EgressMode {
        self.namespace(caller).and_then(|settings| settings.egress).unwrap_or_else(|| self.mesh().egress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::NamespaceSettings,
        testing::{self, namespace, service_name},
    };

    fn resolve(host: &str, port: Option<u16>) -> Resolution {
        let mut two = testing::service("two", "shop");
        two.ports = vec![testing::port(80, Some("web")), testing::port(81, Some("admin"))];
        let snapshot = testing::snapshot(testing::view([testing::service("charge", "shop"), two]));
        snapshot.resolve(&namespace("shop"), host, port)
    }

    #[test]
    fn every_spelling_leads_to_the_service_and_its_only_port() {
        let charge = Resolution::Service(Target { service: service_name("charge", "shop"), port: 80 });
        for host in ["charge", "charge.shop", "charge.shop.svc.weft", "charge.weft.localhost"] {
            assert_eq!(resolve(host, None), charge, "{host}");
            assert_eq!(resolve(host, Some(80)), charge, "{host}");
        }
    }

    #[test]
    fn a_port_that_is_not_declared_is_never_guessed() {
        let unknown = |name, port| Resolution::UnknownPort { service: service_name(name, "shop"), port };
        assert_eq!(resolve("charge", Some(81)), unknown("charge", Some(81)));
        assert_eq!(resolve("two", None), unknown("two", None));
    }

    #[test]
    fn a_name_with_the_mesh_suffix_is_never_egress() {
        let none = Resolution::UnknownService(service_name("none", "shop"));
        assert_eq!(resolve("none.shop.svc.weft", None), none);
        assert_eq!(resolve("a.b.c.svc.weft", None), Resolution::NotAName("a.b.c.svc.weft".into()));
        assert_eq!(
            resolve("example.com", Some(443)),
            Resolution::MaybeOutside(service_name("example", "com"))
        );
        assert_eq!(resolve("www.example.com", Some(443)), Resolution::Outside);
        assert_eq!(resolve("192.0.2.1", Some(443)), Resolution::Outside);
    }

    #[test]
    fn a_namespace_overrides_the_egress_mode_of_the_mesh() {
        let metadata = testing::metadata("shop", None);
        let shop = NamespaceSettings { metadata, default_authorization: None, egress: Some(EgressMode::Log) };
        let mut view = testing::view([testing::service("charge", "shop")]);
        view.insert(shop);
        let snapshot = testing::snapshot(view);
        assert_eq!(snapshot.egress(&namespace("shop")), EgressMode::Log);
        assert_eq!(snapshot.egress(&namespace("other")), EgressMode::Deny);
    }
}
