//! Arbitrary valid objects, for the property tests of manifests and records.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use proptest::{collection, option, prelude::*, sample};
use weft_policy::{
    model::{
        AuthorizationPolicy, DefaultAuthorization, EgressMode, Endpoint, EndpointState, Locality, Mesh,
        Metadata, NamespaceSettings, Resource, Service, TargetRef, TcpRoute, TrafficPolicy, Workload,
        WorkloadEnrollment,
        authorization::{Action, Mode, PortRef, Rule, Source},
        route::{BackendRef, ParentRef},
        service::{AppProtocol, ServicePort},
        traffic::{Algorithm, BreakerSettings, OutlierSettings, TimeoutSettings, TrafficSettings},
        workload::UnixSelector,
    },
    name::{ObjectName, PortName, ServiceName},
};

/// The namespace of all samples.
const SHOP: &str = "shop";

fn name<T: std::str::FromStr<Err: std::fmt::Debug> + std::fmt::Debug>() -> impl Strategy<Value = T> {
    // Words that YAML could take for something else are names too.
    let tricky = sample::select(vec!["true", "null", "1e3", "0x1f", "12", "y", "no", "on", "123-4", "0"]);
    prop_oneof![4 => "[a-z]([a-z0-9-]{0,10}[a-z0-9])?", 1 => tricky.prop_map(str::to_owned)]
        .prop_map(|text| text.parse().unwrap())
}

fn port_name() -> impl Strategy<Value = PortName> {
    "[a-z][a-z0-9]{0,8}".prop_map(|text| text.parse().unwrap())
}

fn several<T: PartialEq + std::fmt::Debug>(
    item: impl Strategy<Value = T>,
    sizes: std::ops::Range<usize>,
) -> impl Strategy<Value = Vec<T>> {
    collection::vec(item, sizes).prop_map(|items| {
        let mut unique = Vec::new();
        for item in items {
            if !unique.contains(&item) {
                unique.push(item);
            }
        }
        unique
    })
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let key = prop_oneof!["[a-z]{1,5}", "[a-z]{1,4}\\.example/[A-Za-z0-9]([a-z_.-]{0,4}[a-z0-9])?"];
    let tricky = sample::select(vec!["true", "1.10", "~", "0755", "1e3", "no", "-0"]);
    let text = prop_oneof![
        3 => "([A-Za-z0-9]([A-Za-z0-9_.-]{0,8}[A-Za-z0-9])?)?",
        1 => tricky.prop_filter("a label", |t| super::metadata::is_label_text(t)).prop_map(str::to_owned),
    ];
    collection::btree_map(key, text, 0..4)
}

fn annotations() -> impl Strategy<Value = BTreeMap<String, String>> {
    let text = "[ -~äß😀\n\t#:'\"\\\\-]{0,40}";
    collection::btree_map(
        "[a-z]{1,6}(\\.[a-z]{1,4}/[a-z]{1,3})?".prop_filter("a key", |k| !k.contains('.') || k.contains('/')),
        text,
        0..3,
    )
    .prop_map(|map| {
        let plain = |(key, text): (String, String)| {
            (if key.contains('/') { key } else { format!("x.example/{key}") }, text)
        };
        map.into_iter().map(plain).collect()
    })
}

fn metadata() -> impl Strategy<Value = Metadata> {
    (name::<ObjectName>(), labels(), annotations(), any::<u64>()).prop_map(
        |(name, labels, annotations, revision)| Metadata {
            namespace: Some(SHOP.parse().unwrap()),
            name,
            labels,
            annotations,
            revision,
        },
    )
}

fn cluster_metadata() -> impl Strategy<Value = Metadata> {
    metadata().prop_map(|metadata| Metadata { namespace: None, ..metadata })
}

fn default() -> impl Strategy<Value = DefaultAuthorization> {
    use DefaultAuthorization::{Allow, Audit, Deny};
    sample::select(vec![Deny, Audit, Allow])
}

fn egress() -> impl Strategy<Value = EgressMode> {
    sample::select(vec![EgressMode::Deny, EgressMode::Log, EgressMode::Allow])
}

fn mesh() -> impl Strategy<Value = Resource> {
    (cluster_metadata(), default(), egress()).prop_map(|(metadata, default_authorization, egress)| {
        Resource::Mesh(Mesh {
            metadata: Metadata { name: "mesh".parse().unwrap(), ..metadata },
            trust_domain: "corp.example".parse().unwrap(),
            default_authorization,
            egress,
        })
    })
}

fn namespace() -> impl Strategy<Value = Resource> {
    (cluster_metadata(), option::of(default()), option::of(egress())).prop_map(
        |(metadata, default_authorization, egress)| {
            Resource::Namespace(NamespaceSettings { metadata, default_authorization, egress })
        },
    )
}

fn service() -> impl Strategy<Value = Resource> {
    use AppProtocol::{Grpc, Http, Http2, Tcp, Tls};
    let protocol = option::of(sample::select(vec![Http, Http2, Grpc, Tcp, Tls]));
    let ports = collection::btree_map(1_u16.., (port_name(), protocol), 1..4).prop_map(|ports| {
        let port = |(index, (number, (name, app_protocol))): (usize, (u16, (PortName, _)))| ServicePort {
            number,
            name: Some(format!("{name}{index}").parse().unwrap()),
            app_protocol,
        };
        ports.into_iter().enumerate().map(port).collect::<Vec<_>>()
    });
    let unnamed = (1_u16..).prop_map(|number| vec![ServicePort { number, name: None, app_protocol: None }]);
    let ports = prop_oneof![3 => ports, 1 => unnamed];
    let selector = option::of(labels().prop_filter("not empty", |labels| !labels.is_empty()));
    (metadata(), ports, selector, several(identity(), 0..3), option::of(default())).prop_map(
        |(metadata, ports, selector, identities, default_authorization)| {
            Resource::Service(Service { metadata, ports, selector, identities, default_authorization })
        },
    )
}

fn identity() -> impl Strategy<Value = weft_identity::spiffe::SpiffeId> {
    "spiffe://corp\\.example/ns/shop/sa/[a-z]{1,6}".prop_map(|text| text.parse().unwrap())
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let text = prop_oneof![
        (1_u16..).prop_map(|port| format!("127.0.0.1:{port}")),
        (1_u16..).prop_map(|port| format!("[2001:db8::1]:{port}")),
    ];
    text.prop_map(|text| text.parse().unwrap())
}

fn workload() -> impl Strategy<Value = Resource> {
    let key =
        prop_oneof![port_name().prop_map(|name| name.to_string()), (1_u16..).prop_map(|p| p.to_string())];
    let ports = collection::btree_map(key, address(), 0..3);
    let label = option::of("[a-z2-7]{26}".prop_map(|text| text.parse().unwrap()));
    let place = (name(), identity(), several(name(), 0..3), ports, locality());
    (metadata(), place, 0_u32..=10_000, label, option::of(any::<u32>())).prop_map(
        |(metadata, (node, identity, services, ports, locality), weight, label, uid)| {
            Resource::Workload(Workload {
                metadata,
                node,
                identity,
                services,
                ports,
                weight,
                locality,
                label,
                uid,
            })
        },
    )
}

fn locality() -> impl Strategy<Value = Locality> {
    ("([a-z]{2}-[a-z]{4})?", "([a-z0-9]{1,8})?").prop_map(|(region, zone)| Locality { region, zone })
}

fn enrollment() -> impl Strategy<Value = Resource> {
    let patterns = several(
        prop_oneof![
            identity().prop_map(|id| id.to_string()),
            Just("spiffe://corp.example/ns/shop/**".to_owned()),
            Just("spiffe://corp.example/ns/shop/sa/*".to_owned()),
        ]
        .prop_map(|text| text.parse().unwrap()),
        1..3,
    );
    let user = "[a-z_][a-z0-9_-]{0,6}";
    let selector = (option::of(any::<u32>()), option::of(user))
        .prop_filter("not empty", |(uid, user)| uid.is_some() || user.is_some())
        .prop_map(|(uid, user)| UnixSelector { uid, user });
    let ttl = option::of((10_u64..600_000, 0_u32..1_000_000_000).prop_map(|(s, n)| Duration::new(s, n)));
    let services = option::of(several(name(), 1..3));
    (metadata(), patterns, several(name(), 1..4), several(selector, 0..3), services, labels(), ttl).prop_map(
        |(metadata, identities, nodes, selectors, services, labels, ttl)| {
            Resource::WorkloadEnrollment(WorkloadEnrollment {
                metadata,
                identities,
                nodes,
                selectors,
                services,
                labels,
                ttl,
            })
        },
    )
}

fn service_name() -> impl Strategy<Value = ServiceName> {
    name().prop_map(|name| ServiceName::new(SHOP.parse().unwrap(), name))
}

fn route() -> impl Strategy<Value = Resource> {
    let parent =
        (service_name(), option::of(1_u16..)).prop_map(|(service, port)| ParentRef { service, port });
    let backend = (service_name(), 1_u16.., 0_u32..=1_000_000)
        .prop_map(|(service, port, weight)| BackendRef { service, port, weight });
    (metadata(), several(parent, 1..3), collection::vec(backend, 1..4)).prop_map(
        |(metadata, parents, backends)| Resource::TcpRoute(TcpRoute { metadata, parents, backends }),
    )
}

fn service_target() -> impl Strategy<Value = TargetRef> {
    name().prop_map(TargetRef::Service)
}

fn traffic() -> impl Strategy<Value = Resource> {
    use Algorithm::{LeastRequest, PeakEwma, RoundRobin};
    let algorithm = sample::select(vec![PeakEwma, LeastRequest, RoundRobin]);
    let breaker = (1_u32..=1_000_000, 1_u32..=1_000_000)
        .prop_map(|(max_connections, max_pending)| BreakerSettings { max_connections, max_pending });
    let outlier = (1_u32..=1_000, 100_u64..60_000, 0_u64..60_000, 0.0..=1.0, 0_u8..=100).prop_map(
        |(consecutive_failures, base, more, jitter, max_percent)| OutlierSettings {
            consecutive_failures,
            base: Duration::from_millis(base),
            max: Duration::from_millis(base + more),
            jitter,
            max_percent,
        },
    );
    let timeouts = (10_u64..300_000, 1_u64..1_000_000).prop_map(|(c, i)| TimeoutSettings {
        connect: Duration::from_millis(c),
        idle: Duration::from_secs(i),
    });
    (metadata(), several(service_target(), 1..3), algorithm, breaker, outlier, timeouts).prop_map(
        |(metadata, targets, algorithm, breaker, outlier, timeouts)| {
            let settings = TrafficSettings { algorithm, breaker, outlier, timeouts };
            Resource::TrafficPolicy(TrafficPolicy { metadata, targets, settings })
        },
    )
}

fn pattern() -> impl Strategy<Value = weft_policy::pattern::IdentityPattern> {
    prop_oneof![
        identity().prop_map(|id| id.to_string()),
        Just("spiffe://corp.example/**".to_owned()),
        Just("spiffe://other.example/ns/*/sa/order".to_owned()),
    ]
    .prop_map(|text| text.parse().unwrap())
}

fn source() -> impl Strategy<Value = Source> {
    prop_oneof![
        (pattern(), several(pattern(), 0..3))
            .prop_map(|(pattern, except)| Source::Spiffe { pattern, except }),
        (name(), name()).prop_map(|(namespace, name)| Source::ServiceAccount { namespace, name }),
        Just(Source::Any),
        Just(Source::Unauthenticated),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let port = prop_oneof![(1_u16..).prop_map(PortRef::Number), port_name().prop_map(PortRef::Name)];
    let network = sample::select(vec!["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32", "0.0.0.0/0"])
        .prop_map(|text| text.parse().unwrap());
    let parts = (option::of(several(port, 1..3)), option::of(several(network, 1..3)));
    (name(), several(source(), 1..4), parts).prop_map(|(name, sources, (ports, networks))| {
        let open = sources.contains(&Source::Unauthenticated);
        Rule { name, sources, ports, networks: networks.filter(|_| !open) }
    })
}

pub(crate) fn policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let target = prop_oneof![4 => service_target(), 1 => Just(TargetRef::Namespace(SHOP.parse().unwrap()))];
    let rules = collection::vec(rule(), 1..4).prop_map(|rules| {
        let numbered = |(index, rule): (usize, Rule)| Rule {
            name: format!("r{index}-{}", rule.name).parse().unwrap(),
            ..rule
        };
        rules.into_iter().enumerate().map(numbered).collect()
    });
    let action = sample::select(vec![Action::Allow, Action::Deny]);
    let mode = sample::select(vec![Mode::Enforce, Mode::DryRun]);
    (metadata(), several(target, 1..3), action, mode, rules).prop_map(
        |(metadata, targets, action, mode, rules)| AuthorizationPolicy {
            metadata,
            targets,
            action,
            mode,
            rules,
        },
    )
}

pub(crate) fn endpoint() -> impl Strategy<Value = Endpoint> {
    let host = sample::select(vec!["hostb.example:7443", "10.0.0.7:7443", "[2001:db8::7]:7443"])
        .prop_map(|text| text.parse().unwrap());
    let state = sample::select(vec![EndpointState::Confirmed, EndpointState::Unconfirmed]);
    let label = "[a-z2-7]{26}".prop_map(|text| text.parse().unwrap());
    let place = (service_name(), name(), name(), identity(), label);
    (place, several(host, 1..3), 0_u32..=10_000, locality(), labels(), any::<u64>(), state).prop_map(
        |((service, workload, node, identity, label), addresses, weight, locality, labels, boot, state)| {
            Endpoint {
                service,
                workload,
                node,
                identity,
                label,
                addresses,
                weight,
                locality,
                labels,
                boot,
                state,
            }
        },
    )
}

/// Any object of any kind.
pub(crate) fn resource() -> impl Strategy<Value = Resource> {
    prop_oneof![
        mesh(),
        namespace(),
        service(),
        workload(),
        enrollment(),
        route(),
        traffic(),
        policy().prop_map(Resource::AuthorizationPolicy),
    ]
}
