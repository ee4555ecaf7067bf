//! Whether a change opens what was closed: that needs an admin, tightening only an editor (decisions.md, people). Giving
//! identities to nodes counts as opening, as making tokens does.
//!
//! Pure. Compared is what is in force for the scope of each object, so that taking an override away counts as what it
//! does.

use weft_policy::{
    model::{DefaultAuthorization, EgressMode, Key, Kind, Resource},
    name::{Namespace, ServiceName},
};

use crate::catalog::Catalog;

/// What is in force in some scope.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct InForce {
    default: DefaultAuthorization,
    egress: EgressMode,
}

/// Says what the change of `key` opens, from how it is in `before` to `after` (`None`: deleted); `None` when nothing.
pub(super) fn loosening(before: &Catalog, key: &Key, after: Option<&Resource>) -> Option<String> {
    // Whoever names the nodes that may be somebody is as good as that somebody everywhere it is let in (API-13).
    if let Some(Resource::WorkloadEnrollment(_)) = after {
        return Some(format!("{key} gives identities to nodes"));
    }
    let old = in_force(before, key);
    let new = changed(before, key, after);
    if openness(new.default) > openness(old.default) {
        let (from, to) = (default_name(old.default), default_name(new.default));
        return Some(format!("defaultAuthorization goes from {from} to {to} by {key}"));
    }
    if egress_openness(new.egress) > egress_openness(old.egress) {
        return Some(format!("egress goes from {:?} to {:?} by {key}", old.egress, new.egress));
    }
    None
}

/// What is in force for the scope of `key` at present, be there an object or not.
fn in_force(catalog: &Catalog, key: &Key) -> InForce {
    match key.kind {
        Kind::Service => of_service(catalog, key),
        Kind::Namespace => {
            key.name.as_str().parse().map_or_else(|_| of_mesh(catalog), |name| of_namespace(catalog, &name))
        }
        Kind::Mesh
        | Kind::Workload
        | Kind::WorkloadEnrollment
        | Kind::TcpRoute
        | Kind::TrafficPolicy
        | Kind::AuthorizationPolicy => of_mesh(catalog),
    }
}

/// What would be in force for the scope of `key`, the scopes around it being as they are.
fn changed(before: &Catalog, key: &Key, after: Option<&Resource>) -> InForce {
    match after {
        Some(Resource::Mesh(mesh)) => InForce { default: mesh.default_authorization, egress: mesh.egress },
        Some(Resource::Namespace(settings)) => {
            let around = of_mesh(before);
            InForce {
                default: settings.default_authorization.unwrap_or(around.default),
                egress: settings.egress.unwrap_or(around.egress),
            }
        }
        Some(Resource::Service(service)) => {
            let around = of_namespace(before, &service.metadata.owner());
            InForce { default: service.default_authorization.unwrap_or(around.default), ..around }
        }
        Some(
            Resource::Workload(_)
            | Resource::WorkloadEnrollment(_)
            | Resource::TcpRoute(_)
            | Resource::TrafficPolicy(_)
            | Resource::AuthorizationPolicy(_),
        ) => in_force(before, key),
        None => match (key.kind, &key.namespace) {
            (Kind::Namespace, _) => of_mesh(before),
            // Whoever may delete a tighter service may create it again without its override: the first step opens it.
            (Kind::Service, Some(namespace)) => of_namespace(before, namespace),
            (
                Kind::Mesh
                | Kind::Service
                | Kind::Workload
                | Kind::WorkloadEnrollment
                | Kind::TcpRoute
                | Kind::TrafficPolicy
                | Kind::AuthorizationPolicy,
                _,
            ) => in_force(before, key),
        },
    }
}

fn of_mesh(catalog: &Catalog) -> InForce {
    let closed = InForce { default: DefaultAuthorization::Deny, egress: EgressMode::Deny };
    catalog.mesh().map_or(closed, |mesh| InForce { default: mesh.default_authorization, egress: mesh.egress })
}

fn of_namespace(catalog: &Catalog, name: &Namespace) -> InForce {
    let around = of_mesh(catalog);
    catalog.namespaces().get(name).map_or(around, |settings| InForce {
        default: settings.default_authorization.unwrap_or(around.default),
        egress: settings.egress.unwrap_or(around.egress),
    })
}

fn of_service(catalog: &Catalog, key: &Key) -> InForce {
    let namespace = key.namespace.clone().unwrap_or_else(Namespace::default_namespace);
    let around = of_namespace(catalog, &namespace);
    let service = catalog.services().get(&ServiceName::new(namespace, key.name.clone()));
    let own = service.and_then(|service| service.default_authorization);
    InForce { default: own.unwrap_or(around.default), ..around }
}

const fn openness(default: DefaultAuthorization) -> u8 {
    match default {
        DefaultAuthorization::Deny => 0,
        DefaultAuthorization::Audit => 1,
        DefaultAuthorization::Allow => 2,
    }
}

const fn default_name(default: DefaultAuthorization) -> &'static str {
    match default {
        DefaultAuthorization::Deny => "Deny",
        DefaultAuthorization::Audit => "Audit",
        DefaultAuthorization::Allow => "Allow",
    }
}

const fn egress_openness(egress: EgressMode) -> u8 {
    match egress {
        EgressMode::Deny => 0,
        EgressMode::Log => 1,
        EgressMode::Allow => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn opens(before: &Catalog, after: Resource) -> bool {
        loosening(before, &after.key(), Some(&after)).is_some()
    }

    fn settings(default: Option<DefaultAuthorization>, egress: Option<EgressMode>) -> Resource {
        let mut settings = samples::namespace("shop");
        (settings.default_authorization, settings.egress) = (default, egress);
        Resource::Namespace(settings)
    }

    fn service(default: Option<DefaultAuthorization>) -> Resource {
        let mut service = samples::service("charge", "shop");
        service.default_authorization = default;
        Resource::Service(service)
    }

    #[test]
    fn going_towards_allow_opens_and_going_towards_deny_does_not() {
        use DefaultAuthorization::{Allow, Audit, Deny};
        let order = [Deny, Audit, Allow];
        for (from, before) in order.into_iter().enumerate() {
            for (to, after) in order.into_iter().enumerate() {
                let mut catalog = samples::shop();
                catalog.put(settings(Some(before), None));
                assert_eq!(
                    opens(&catalog, settings(Some(after), None)),
                    to > from,
                    "{before:?} -> {after:?}"
                );
                assert_eq!(opens(&catalog, service(Some(after))), to > from, "{before:?} -> {after:?}");
            }
        }
    }

    #[test]
    fn egress_towards_allow_opens() {
        let catalog = samples::shop();
        assert!(opens(&catalog, settings(None, Some(EgressMode::Log))));
        assert!(!opens(&catalog, settings(None, Some(EgressMode::Deny))));
        let mut mesh = samples::mesh();
        mesh.egress = EgressMode::Allow;
        assert!(opens(&catalog, Resource::Mesh(mesh)));
    }

    #[test]
    fn taking_a_tighter_override_away_opens() {
        let mut catalog = samples::shop();
        let mut mesh = samples::mesh();
        mesh.default_authorization = DefaultAuthorization::Allow;
        catalog.put(Resource::Mesh(mesh));
        let closed = settings(Some(DefaultAuthorization::Deny), None);
        catalog.put(closed.clone());
        assert!(opens(&catalog, settings(None, None)));
        assert!(loosening(&catalog, &closed.key(), None).is_some(), "deleted");
        assert!(loosening(&catalog, &service(None).key(), None).is_none());
    }

    #[test]
    fn deleting_a_service_opens_what_its_own_default_closed() {
        use DefaultAuthorization::{Allow, Audit, Deny};
        let deleted = |mesh: DefaultAuthorization, around, own| {
            let mut catalog = samples::shop();
            let mut settings_of_mesh = samples::mesh();
            settings_of_mesh.default_authorization = mesh;
            catalog.put(Resource::Mesh(settings_of_mesh));
            catalog.put(settings(around, None));
            catalog.put(service(own));
            loosening(&catalog, &service(own).key(), None).is_some()
        };
        assert!(deleted(Deny, Some(Allow), Some(Deny)), "the namespace says less");
        assert!(deleted(Allow, None, Some(Deny)), "the mesh says less");
        assert!(deleted(Allow, Some(Audit), Some(Deny)));
        assert!(!deleted(Allow, Some(Deny), Some(Deny)));
        assert!(!deleted(Deny, None, Some(Allow)), "a looser one goes");
        assert!(!deleted(Allow, None, None), "one without its own");
    }

    #[test]
    fn objects_without_a_default_open_nothing() {
        let policy = Resource::AuthorizationPolicy(samples::policy("p", "shop", "charge", "order"));
        assert!(!opens(&samples::shop(), policy));
    }
}
