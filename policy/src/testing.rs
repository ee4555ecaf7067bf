//! Small objects for the tests of this crate, and strategies that draw many.

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use weft_identity::spiffe::{SpiffeId, TrustDomain};

use crate::{
    model::{
        AuthorizationPolicy, DefaultAuthorization, EgressMode, Endpoint, EndpointState, Locality, Mesh,
        Metadata, NamespaceSettings, Service, TargetRef, TcpRoute, TrafficPolicy,
        authorization::{Action, Mode, PortRef, Rule, Source},
        route::{BackendRef, ParentRef},
        service::ServicePort,
        traffic::TrafficSettings,
    },
    name::{Namespace, ServiceName},
    pattern::IdentityPattern,
    snapshot::{Revision, Snapshot, SnapshotContext, SnapshotError, View, ViewObject},
};

pub(crate) fn domain() -> TrustDomain {
    "corp.example".parse().unwrap()
}

pub(crate) fn namespace(name: &str) -> Namespace {
    name.parse().unwrap()
}

pub(crate) fn service_name(name: &str, namespace: &str) -> ServiceName {
    ServiceName::new(namespace.parse().unwrap(), name.parse().unwrap())
}

pub(crate) fn metadata(name: &str, namespace: Option<&str>) -> Metadata {
    Metadata {
        namespace: namespace.map(|name| name.parse().unwrap()),
        name: name.parse().unwrap(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        revision: 7,
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

pub(crate) fn settings_of(namespace: &str, default: Option<DefaultAuthorization>) -> NamespaceSettings {
    NamespaceSettings { metadata: metadata(namespace, None), default_authorization: default, egress: None }
}

pub(crate) fn port(number: u16, name: Option<&str>) -> ServicePort {
    ServicePort { number, name: name.map(|name| name.parse().unwrap()), app_protocol: None }
}

/// A service with port 80, named `http`.
pub(crate) fn service(name: &str, namespace: &str) -> Service {
    Service {
        metadata: metadata(name, Some(namespace)),
        ports: vec![port(80, Some("http"))],
        selector: None,
        identities: Vec::new(),
        default_authorization: None,
    }
}

pub(crate) fn endpoint(service: &str, namespace: &str, number: u32) -> Endpoint {
    Endpoint {
        service: service_name(service, namespace),
        workload: format!("{service}-{number}").parse().unwrap(),
        node: "hostb".parse().unwrap(),
        identity: SpiffeId::workload(&domain(), namespace, service).unwrap(),
        label: format!("label-{namespace}-{service}-{number}").parse().unwrap(),
        addresses: vec!["192.0.2.1:7443".parse().unwrap()],
        weight: 1,
        locality: Locality::default(),
        labels: BTreeMap::new(),
        boot: 1,
        state: EndpointState::Confirmed,
    }
}

pub(crate) fn parent(service: &str, namespace: &str, port: Option<u16>) -> ParentRef {
    ParentRef { service: service_name(service, namespace), port }
}

pub(crate) fn route(name: &str, parents: Vec<ParentRef>, backends: &[&str]) -> TcpRoute {
    let backend = |name: &&str| BackendRef { service: service_name(name, "shop"), port: 80, weight: 1 };
    let backends = backends.iter().map(backend).collect();
    TcpRoute { metadata: metadata(name, Some("shop")), parents, backends }
}

pub(crate) fn traffic(name: &str, service: &str) -> TrafficPolicy {
    TrafficPolicy {
        metadata: metadata(name, Some("shop")),
        targets: vec![TargetRef::Service(service.parse().unwrap())],
        settings: TrafficSettings::default(),
    }
}

pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

/// `/ns/shop/sa/<name>` of the local trust domain.
pub(crate) fn shop(name: &str) -> SpiffeId {
    SpiffeId::workload(&domain(), "shop", name).unwrap()
}

pub(crate) fn from(pattern: &str) -> Source {
    Source::Spiffe { pattern: pattern.parse().unwrap(), except: Vec::new() }
}

pub(crate) fn rule(name: &str, sources: Vec<Source>) -> Rule {
    Rule { name: name.parse().unwrap(), sources, ports: None, networks: None }
}

/// A policy of namespace `shop` about service `charge`.
pub(crate) fn policy(name: &str, action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    AuthorizationPolicy {
        metadata: metadata(name, Some("shop")),
        targets: vec![TargetRef::Service("charge".parse().unwrap())],
        action,
        mode: Mode::Enforce,
        rules,
    }
}

/// A view with the mesh and these services.
pub(crate) fn view(services: impl IntoIterator<Item = Service>) -> View {
    let mut view: View = services.into_iter().collect();
    view.insert(mesh());
    view
}

pub(crate) fn build(view: View) -> Result<Snapshot, SnapshotError> {
    Snapshot::build(Arc::new(view), Revision(41), SnapshotContext { trust_domain: domain() })
}

pub(crate) fn snapshot(view: View) -> Snapshot {
    build(view).unwrap()
}

/// A snapshot of service `charge.shop` with these policies.
pub(crate) fn charge_with(policies: impl IntoIterator<Item = AuthorizationPolicy>) -> Snapshot {
    let mut view = view([service("charge", "shop")]);
    view.extend(policies);
    snapshot(view)
}

/// Short segments of few letters, so that drawn names meet.
fn any_segment() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "ns", "sa", "a.b", "aXb"]).prop_map(str::to_owned)
}

fn any_domain() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["corp.example", "corpxexample", "other.example"]).prop_map(str::to_owned)
}

/// An identity of a few segments.
pub(crate) fn any_id() -> impl Strategy<Value = SpiffeId> {
    (any_domain(), prop::collection::vec(any_segment(), 1..5))
        .prop_map(|(domain, path)| id(&format!("spiffe://{domain}/{}", path.join("/"))))
}

/// A pattern of a few segments.
pub(crate) fn any_pattern() -> impl Strategy<Value = IdentityPattern> {
    let segment = prop_oneof![3 => any_segment(), 1 => Just("*".to_owned())];
    (any_domain(), prop::collection::vec(segment, 0..4), any::<bool>()).prop_map(
        |(domain, mut path, open)| {
            if open || path.is_empty() {
                path.push("**".to_owned());
            }
            format!("spiffe://{domain}/{}", path.join("/")).parse().unwrap()
        },
    )
}

fn any_source() -> impl Strategy<Value = Source> {
    prop_oneof![
        6 => (any_pattern(), prop::collection::vec(any_pattern(), 0..2))
            .prop_map(|(pattern, except)| Source::Spiffe { pattern, except }),
        1 => Just(Source::ServiceAccount { namespace: namespace("a"), name: "b".parse().unwrap() }),
        1 => Just(Source::Any),
        1 => Just(Source::Unauthenticated),
    ]
}

fn any_port_ref() -> impl Strategy<Value = PortRef> {
    prop_oneof![
        prop::sample::select(vec![80_u16, 81, 9]).prop_map(PortRef::Number),
        prop::sample::select(vec!["http", "admin", "gone"])
            .prop_map(|name| PortRef::Name(name.parse().unwrap())),
    ]
}

/// A rule; lists may be empty, as they are when a part was lost.
pub(crate) fn any_rule(name: usize) -> impl Strategy<Value = Rule> {
    let networks = prop::sample::select(vec!["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"]);
    let networks = prop::collection::vec(networks.prop_map(|text| text.parse().unwrap()), 0..3);
    (
        prop::collection::vec(any_source(), 0..4),
        prop::option::weighted(0.4, prop::collection::vec(any_port_ref(), 0..3)),
        prop::option::weighted(0.3, networks),
    )
        .prop_map(move |(sources, ports, networks)| Rule {
            name: format!("r{name}").parse().unwrap(),
            sources,
            ports,
            networks,
        })
}

/// A policy of namespace `shop` about `charge`, about the whole namespace, or (lost) about nothing.
pub(crate) fn any_policy(name: usize) -> impl Strategy<Value = AuthorizationPolicy> {
    let rules = (0..4_usize).prop_flat_map(|count| (0..count).map(any_rule).collect::<Vec<_>>());
    let targets = prop_oneof![
        8 => Just(vec![TargetRef::Service("charge".parse().unwrap())]),
        4 => Just(vec![TargetRef::Namespace(namespace("shop"))]),
        1 => Just(Vec::new()),
    ];
    let action = prop_oneof![2 => Just(Action::Allow), 1 => Just(Action::Deny)];
    let mode = prop_oneof![3 => Just(Mode::Enforce), 1 => Just(Mode::DryRun)];
    (rules, targets, action, mode).prop_map(move |(rules, targets, action, mode)| AuthorizationPolicy {
        metadata: metadata(&format!("p{name}"), Some("shop")),
        targets,
        action,
        mode,
        rules,
    })
}

/// A few policies of different names.
pub(crate) fn any_policies() -> impl Strategy<Value = Vec<AuthorizationPolicy>> {
    (0..6_usize).prop_flat_map(|count| (0..count).map(any_policy).collect::<Vec<_>>())
}

/// A view of a few objects of few names, so that two of them share some. It need not make sense as a whole.
pub(crate) fn any_view() -> impl Strategy<Value = View> {
    let object = prop_oneof![
        any::<bool>().prop_map(|open| {
            let egress = if open { EgressMode::Allow } else { EgressMode::Deny };
            ViewObject::from(Mesh { egress, ..mesh() })
        }),
        (0..3_u8, any::<bool>()).prop_map(|(name, open)| {
            let default = open.then_some(DefaultAuthorization::Allow);
            settings_of(&format!("n{name}"), default).into()
        }),
        (0..3_u8, 80..82_u16).prop_map(|(name, number)| {
            let mut service = service(&format!("s{name}"), "shop");
            service.ports = vec![port(number, None)];
            service.into()
        }),
        (0..3_u8, 0..3_u32, 0..2_u32).prop_map(|(name, number, weight)| {
            Endpoint { weight, ..endpoint(&format!("s{name}"), "shop", number) }.into()
        }),
        (0..3_u8, 1..3_usize).prop_map(|(name, backends)| {
            let parents = vec![parent("s0", "shop", None)];
            route(&format!("t{name}"), parents, &["s1", "s2"][..backends]).into()
        }),
        (0..3_u8, 0..3_u8).prop_map(|(name, of)| traffic(&format!("t{name}"), &format!("s{of}")).into()),
        (0..3_usize).prop_flat_map(any_policy).prop_map(ViewObject::from),
    ];
    prop::collection::vec(object, 0..12).prop_map(|objects| objects.into_iter().collect())
}
