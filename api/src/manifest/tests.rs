//! What manifests may and may not say.

use proptest::prelude::*;

use super::{samples, *};

fn shop() -> Namespace {
    "shop".parse().unwrap()
}

fn read(text: &str) -> Resource {
    let mut all = parse(text, Some(&shop())).unwrap_or_else(|faults| panic!("{faults:#?}\n{text}"));
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// The faults as `code path line`.
fn faults(text: &str) -> Vec<String> {
    let faults = parse(text, Some(&shop())).unwrap_err();
    let line = |fault: &Fault| fault.place().map_or(0, |place| place.line);
    faults.iter().map(|fault| format!("{} {} {}", fault.code, fault.path(), line(fault))).collect()
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec:\n  \
         targetRefs: [{{kind: Service, name: charge}}]\n  action: ALLOW\n{spec}"
    )
}

fn rules(rule: &str) -> String {
    policy(&format!("  rules: [{{name: r, {rule}}}]\n"))
}

fn object(kind: &str, spec: &str) -> String {
    let version = if kind == "TCPRoute" { "gateway.networking.k8s.io/v1" } else { "weft.mesh/v1alpha1" };
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {spec}\n")
}

#[test]
fn the_policy_of_decisions_md_is_read() {
    let text = "
apiVersion: weft.mesh/v1alpha1
kind: AuthorizationPolicy
metadata: {name: charge-from-order, namespace: shop}
spec:
  targetRefs: [{group: \"\", kind: Service, name: charge}]   # required
  action: ALLOW
  mode: Enforce
  enforcementLevel: Network
  rules:
    - name: order
      sources:
        - {type: SPIFFE, spiffe: \"spiffe://corp.example/ns/shop/sa/order\"}
        - {type: ServiceAccount, serviceAccount: {namespace: shop, name: order}}
        - {type: Any}
      ports: [http, 8080]
      networks: [\"10.0.0.0/8\"]
";
    let Resource::AuthorizationPolicy(policy) = read(text) else { panic!("a policy") };
    assert_eq!(policy.rules[0].sources.len(), 3);
    assert_eq!(policy.rules[0].ports.as_ref().unwrap().len(), 2);
}

#[test]
fn the_examples_of_resources_md_are_read() {
    let text = "
apiVersion: weft.mesh/v1alpha1
kind: Service
metadata: {name: charge, namespace: shop, labels: {team: payments}}
spec:
  ports: [{name: http, port: 80, appProtocol: http}]
  selector: {matchLabels: {app: charge}}
---
apiVersion: weft.mesh/v1alpha1
kind: Workload
metadata: {name: charge-hostb-1, namespace: shop, labels: {app: charge, version: v2}}
spec:
  node: hostb
  identity: spiffe://corp.example/ns/shop/sa/charge
  services: [charge]
  ports: {http: 8081, \"9090\": \"127.0.0.1:9091\"}
  locality: {region: eu-west, zone: eu-west-1a}
  weight: 1
---
apiVersion: weft.mesh/v1alpha1
kind: WorkloadEnrollment
metadata: {name: charge, namespace: shop}
spec:
  identities: [\"spiffe://corp.example/ns/shop/sa/charge\"]
  nodes: [hostb]
  selectors: [{unix: {user: charge}}]
  ttl: 1h
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: postgres, namespace: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: postgres, port: 5432}]
  rules: [{backendRefs: [{name: postgres-primary, port: 5432}]}]
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {name: charge, namespace: shop}
spec:
  targetRefs: [{group: \"\", kind: Service, name: charge}]
  loadBalancing: {algorithm: PeakEwma}
  circuitBreaker: {maxConnections: 100, maxPendingRequests: 50}
  outlierDetection:
    consecutiveFailures: 5
    ejection: {base: 10s, max: 60s, jitter: 0.5, maxPercent: 50}
  timeouts: {connect: 1s, idle: 5m}
---
apiVersion: weft.mesh/v1alpha1
kind: Namespace
metadata: {name: shop}
---
apiVersion: weft.mesh/v1alpha1
kind: Mesh
metadata: {name: mesh}
spec: {trustDomain: corp.example}
";
    let all = parse(text, None).unwrap();
    assert_eq!(all.len(), 7);
    let Resource::Workload(workload) = &all[1] else { panic!("a workload") };
    assert_eq!(workload.ports["http"].to_string(), "127.0.0.1:8081");
}

#[test]
fn all_faults_of_a_text_are_told_at_once() {
    let text = policy(
        "  mode: enforce\n  rules:\n    - name: R\n      sources: []\n      prots: [http]\n    - sources: [{type: Any}]\n",
    );
    assert_eq!(
        faults(&text),
        [
            "W4016 spec.mode 7",
            "W4014 spec.rules[0].name 9",
            "W4006 spec.rules[0].sources 10",
            "W4004 spec.rules[0].prots 11",
            "W4005 spec.rules[1] 12",
        ]
    );
}

#[test]
fn pol_01_an_empty_list_or_field_is_a_fault_everywhere() {
    for (text, expected) in [
        (policy("  rules: []\n"), "W4006 spec.rules 7"),
        (policy("  rules:\n"), "W4029 spec.rules 7"),
        (rules("sources: []"), "W4006 spec.rules[0].sources 7"),
        (rules("sources: null"), "W4029 spec.rules[0].sources 7"),
        (rules("sources: [{type: Any}], ports: []"), "W4006 spec.rules[0].ports 7"),
        (rules("sources: [{type: Any}], ports: "), "W4029 spec.rules[0].ports 7"),
        (rules("sources: [{type: Any}], networks: []"), "W4006 spec.rules[0].networks 7"),
        (
            rules("sources: [{type: SPIFFE, spiffe: 'spiffe://a/**', except: []}]"),
            "W4006 spec.rules[0].sources[0].except 7",
        ),
        (object("Service", "{ports: []}"), "W4006 spec.ports 4"),
        (
            object("Service", "{ports: [{port: 1}], selector: {matchLabels: {}}}"),
            "W4006 spec.selector.matchLabels 4",
        ),
        (object("Service", "{ports: [{port: 1}], selector: {}}"), "W4005 spec.selector 4"),
        (object("Service", "{ports: [{port: 1}], identities: []}"), "W4006 spec.identities 4"),
        (object("TrafficPolicy", "{targetRefs: []}"), "W4006 spec.targetRefs 4"),
        (object("TCPRoute", "{parentRefs: [], rules: [{backendRefs: []}]}"), "W4006 spec.parentRefs 4"),
        (object("WorkloadEnrollment", "{identities: [], nodes: []}"), "W4006 spec.identities 4"),
        (
            object(
                "WorkloadEnrollment",
                "{identities: ['spiffe://a/ns/shop/sa/b'], nodes: [b], selectors: [{unix: {}}], services: []}",
            ),
            "W4006 spec.selectors[0].unix 4",
        ),
        (object("Service", "{}"), "W4005 spec 4"),
        (object("Service", ""), "W4029 spec 4"),
    ] {
        let found = faults(&text);
        assert!(found.contains(&expected.to_owned()), "{expected}: {found:?}\n{text}");
    }
}

#[test]
fn pol_02_what_cannot_be_known_or_typed_is_refused() {
    for (text, expected) in [
        (policy("  rulez: []\n"), "W4004 spec.rulez 7"),
        (policy("  action: PERMIT\n"), "W4008  7"),
        (rules("sources: [{type: Spiffe}]"), "W4016 spec.rules[0].sources[0].type 7"),
        (rules("sources: [{type: Any, spiffe: x}]"), "W4004 spec.rules[0].sources[0].spiffe 7"),
        (rules("sources: [{type: SPIFFE, spiffe: 'spiffe://a'}]"), "W4015 spec.rules[0].sources[0].spiffe 7"),
        (rules("sources: {type: Any}"), "W4007 spec.rules[0].sources 7"),
        (rules("sources: [{type: Any}], ports: ['80']"), "W4014 spec.rules[0].ports[0] 7"),
        (rules("sources: [{type: Any}], ports: [0]"), "W4016 spec.rules[0].ports[0] 7"),
        (rules("sources: [{type: Any}], ports: [65536]"), "W4016 spec.rules[0].ports[0] 7"),
        (rules("sources: [{type: Any}], ports: [80.0]"), "W4007 spec.rules[0].ports[0] 7"),
        (rules("sources: [{type: Any}], ports: [http, http]"), "W4008 spec.rules[0].ports[1] 7"),
        (rules("sources: [{type: Any}], networks: [10.0.0.1]"), "W4020 spec.rules[0].networks[0] 7"),
        (rules("sources: [{type: Any}], networks: [10.0.0.1/8]"), "W4020 spec.rules[0].networks[0] 7"),
        (
            rules("sources: [{type: Any}], networks: ['::ffff:10.0.0.0/104']"),
            "W4020 spec.rules[0].networks[0] 7",
        ),
        (rules("sources: [{type: Unauthenticated}], networks: [10.0.0.0/8]"), "W4027 spec.rules[0] 7"),
        (object("Servce", "{ports: [{port: 1}]}"), "W4003 kind 2"),
        (object("Service", "{ports: [{port: 80}, {port: 80}]}"), "W4005 spec.ports[0] 4"),
        (object("Service", "{ports: [{name: a, port: 80}, {name: b, port: 80}]}"), "W4008 spec.ports[1] 4"),
        (object("Service", "{ports: [{name: a, port: 80}, {name: a, port: 81}]}"), "W4008 spec.ports[1] 4"),
        (object("Service", "{ports: [{port: 80}], mode: strict}"), "W4016 spec.mode 4"),
        (object("Mesh", "{trustDomain: a}"), "W4016 metadata.name 0"),
        (
            object("TrafficPolicy", "{targetRefs: [{kind: Service, name: a}], timeouts: {connect: 5}}"),
            "W4007 spec.timeouts.connect 4",
        ),
        (
            object("TrafficPolicy", "{targetRefs: [{kind: Service, name: a}], timeouts: {connect: 0s}}"),
            "W4016 spec.timeouts.connect 4",
        ),
        (
            object("TrafficPolicy", "{targetRefs: [{kind: Service, name: a}], timeouts: {connect: 5x}}"),
            "W4024 spec.timeouts.connect 4",
        ),
        (
            object(
                "TrafficPolicy",
                "{targetRefs: [{kind: Service, name: a}], outlierDetection: {ejection: {base: 2m}}}",
            ),
            "W4016 spec.outlierDetection.ejection 4",
        ),
        (
            object(
                "TrafficPolicy",
                "{targetRefs: [{kind: Service, name: a}], outlierDetection: {ejection: {jitter: 1.1}}}",
            ),
            "W4016 spec.outlierDetection.ejection.jitter 4",
        ),
        (
            object("WorkloadEnrollment", "{identities: ['spiffe://a/ns/other/sa/b'], nodes: [b]}"),
            "W4023 spec.identities[0] 4",
        ),
        (
            object("WorkloadEnrollment", "{identities: ['spiffe://a/ns/shop/sa/b'], nodes: ['*']}"),
            "W4014 spec.nodes[0] 4",
        ),
        (
            object(
                "TCPRoute",
                "{parentRefs: [{kind: Service, name: a}], rules: [{backendRefs: [{name: b, port: 1}]}]}",
            ),
            "W4005 spec.parentRefs[0] 4",
        ),
        (
            object("Workload", "{node: a, identity: spiffe://a/b, ports: {http: '0.0.0.0:80'}}"),
            "W4020 spec.ports.http 4",
        ),
        (object("Workload", "{node: a, identity: spiffe://a/b, ports: {0: 80}}"), "W4016 spec.ports.0 4"),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 1}]}\n".to_owned(),
            "W4017 apiVersion 1",
        ),
        ("- a\n".to_owned(), "W4007  1"),
        ("just a text\n".to_owned(), "W4007  1"),
        (object("Service", "{ports: [{port: 1}]}") + "extra: 1\n", "W4004 extra 5"),
    ] {
        let found = faults(&text);
        assert!(found.contains(&expected.to_owned()), "{expected}: {found:?}\n{text}");
    }
}

#[test]
fn what_is_not_served_yet_is_refused_and_never_called_unknown() {
    let traffic = |part: &str| {
        object("TrafficPolicy", &format!("{{targetRefs: [{{kind: Service, name: a}}], {part}}}"))
    };
    for text in [
        rules("sources: [{type: Any}], http: [{methods: [GET]}]"),
        rules("sources: [{type: Any}], grpc: []"),
        rules("sources: [{type: Any}], when: [{claim: a}]"),
        policy("  enforcementLevel: Application\n  rules: [{name: r, sources: [{type: Any}]}]\n"),
        object("Service", "{ports: [{port: 1}], mode: Permissive}"),
        object("Service", "{ports: [{port: 1}], mode: Observe}"),
        object("Service", "{ports: [{port: 1}], trafficDistribution: PreferSameZone}"),
        object("Service", "{ports: [{port: 1}], names: [charge.shop]}"),
        object("Service", "{ports: [{port: 1, protocol: UDP}]}"),
        object("Workload", "{node: a, identity: spiffe://a/b, healthCheck: {http: {path: /}}}"),
        object("Workload", "{node: a, identity: spiffe://a/b, address: 127.0.0.1:1}"),
        object(
            "WorkloadEnrollment",
            "{identities: ['spiffe://a/ns/shop/sa/b'], nodes: [b], selectors: [{unix: {uid: 1}, systemd: {unit: x}}]}",
        ),
        object(
            "WorkloadEnrollment",
            "{identities: ['spiffe://a/ns/shop/sa/b'], nodes: [b], selectors: [{unix: {uid: 1, path: /x}}]}",
        ),
        traffic("retryConstraint: {}"),
        traffic("sessionPersistence: {}"),
        traffic("outlierDetection: {successRate: {threshold: 80}}"),
        traffic("loadBalancing: {algorithm: ConsistentHash}"),
        traffic("circuitBreaker: {maxRequests: 5}"),
        traffic("timeouts: {request: 5s}"),
        object(
            "TCPRoute",
            "{parentRefs: [{group: '', kind: Service, name: a}], rules: [{backendRefs: [{name: b, namespace: other, port: 1}]}]}",
        ),
        object(
            "TCPRoute",
            "{parentRefs: [{group: g, kind: Gateway, name: a}], rules: [{backendRefs: [{name: b, port: 1}]}]}",
        ),
        object("HTTPRoute", "{rules: []}"),
        object("RateLimit", "{}"),
        object("Service", "{ports: [{port: 1}]}") + "status: {}\n",
        object("Service", "{ports: [{port: 1}]}")
            .replace("{name: x}", "{name: x, annotations: {weft.mesh/callers: '[]'}}"),
    ] {
        let found = faults(&text);
        assert!(found.iter().all(|fault| fault.starts_with("W4009 ")), "{found:?}\n{text}");
    }
}

#[test]
fn pol_05_limits_hold_at_the_limit_and_one_beyond() {
    let list =
        |count: usize, item: &dyn Fn(usize) -> String| (0..count).map(item).collect::<Vec<_>>().join(", ");
    let with_rules = |n| {
        policy(&format!("  rules: [{}]\n", list(n, &|i| format!("{{name: r{i}, sources: [{{type: Any}}]}}"))))
    };
    let with_sources = |n| {
        rules(&format!(
            "sources: [{}]",
            list(n, &|i| format!("{{type: ServiceAccount, serviceAccount: {{namespace: a, name: s{i}}}}}"))
        ))
    };
    let with_ports =
        |n| rules(&format!("sources: [{{type: Any}}], ports: [{}]", list(n, &|i| (i + 1).to_string())));
    let with_targets = |n| {
        object(
            "TrafficPolicy",
            &format!("{{targetRefs: [{}]}}", list(n, &|i| format!("{{kind: Service, name: s{i}}}"))),
        )
    };
    let with_nodes = |n| {
        object(
            "WorkloadEnrollment",
            &format!(
                "{{identities: ['spiffe://a/ns/shop/sa/b'], nodes: [{}]}}",
                list(n, &|i| format!("n{i}"))
            ),
        )
    };
    let cases: [(&dyn Fn(usize) -> String, usize); 5] = [
        (&with_rules, 256),
        (&with_sources, 512),
        (&with_ports, 64),
        (&with_targets, 16),
        (&with_nodes, 1_024),
    ];
    for (text, limit) in cases {
        assert!(parse(&text(limit), Some(&shop())).is_ok(), "{limit}: {:?}", faults(&text(limit)));
        let found = faults(&text(limit + 1));
        assert!(found.iter().any(|fault| fault.starts_with("W4012 ")), "{limit}: {found:?}");
    }
}

#[test]
fn pol_05_objects_are_bounded_in_bytes() {
    let annotated = |bytes: usize| {
        object("Service", "{ports: [{port: 1}]}")
            .replace("{name: x}", &format!("{{name: x, annotations: {{a: \"{}\"}}}}", "x".repeat(bytes)))
    };
    assert!(parse(&annotated(MAX_OBJECT_BYTES - 1_000), Some(&shop())).is_ok());
    assert_eq!(faults(&annotated(MAX_OBJECT_BYTES)), ["W4012  1"]);
    let wide: String = (0..512)
        .map(|i| {
            format!("{{type: SPIFFE, spiffe: \"spiffe://corp.example/ns/shop/sa/{i}{}\"}},", "x".repeat(120))
        })
        .collect();
    assert_eq!(faults(&rules(&format!("sources: [{wide}]"))), ["W4012  1"]);
}

#[test]
fn slips_are_answered_with_the_word_that_was_meant() {
    let fix = |text: &str| parse(text, Some(&shop())).unwrap_err().remove(0).fix.remove(0);
    assert_eq!(fix(&rules("sources: [{type: Any}], port: [80]")), "did you mean ports?");
    assert_eq!(fix(&object("Servise", "{}")), "did you mean Service?");
    assert_eq!(
        fix(&object("TrafficPolicy", "{targetRefs: [{kind: service, name: a}]}")),
        "did you mean Service?"
    );
    let annotated = object("Service", "{ports: [{port: 1}]}")
        .replace("{name: x}", "{name: x, annotations: {weft.mesh/explain-denial: to-caller}}");
    assert_eq!(fix(&annotated), "did you mean weft.mesh/explain-denials?");
}

#[test]
fn references_stay_in_the_policys_namespace() {
    let text = policy("  rules: [{name: r, sources: [{type: Any}]}]\n");
    let elsewhere = text.replace("{kind: Service, name: charge}", "{kind: Namespace, name: other}");
    assert_eq!(faults(&elsewhere), ["W4019 spec.targetRefs[0] 5"]);
    let own = text.replace("{kind: Service, name: charge}", "{kind: Namespace, name: shop}");
    assert!(parse(&own, Some(&shop())).is_ok());
}

#[test]
fn a_namespace_is_taken_from_the_caller_only_where_the_kind_has_one() {
    let service = object("Service", "{ports: [{port: 1}]}");
    assert_eq!(read(&service).metadata().namespace, Some(shop()));
    assert!(parse(&service, None).unwrap_err()[0].what.contains("metadata.namespace is missing"));
    let mesh = "apiVersion: weft.mesh/v1alpha1\nkind: Mesh\nmetadata: {name: mesh, namespace: shop}\nspec: {trustDomain: a}\n";
    assert_eq!(faults(mesh), ["W4016 metadata.namespace 3"]);
}

#[test]
fn lists_as_get_prints_them_can_be_applied() {
    let item = to_json(&read(&object("Service", "{ports: [{port: 1}]}")));
    let list = value_to_yaml(&serde_json::json!({ "items": [item] })).unwrap();
    assert_eq!(parse(&list, None).unwrap().len(), 1);
    let twice = value_to_yaml(&serde_json::json!({ "items": [item, item] })).unwrap();
    assert_eq!(faults(&twice).len(), 1);
}

#[test]
fn the_same_object_twice_in_one_text_is_a_fault() {
    let service = object("Service", "{ports: [{port: 1}]}");
    assert_eq!(faults(&format!("{service}---\n{service}")), ["W4022  6"]);
}

#[test]
fn api_15_messages_carry_no_control_characters() {
    let nasty = "apiVersion: weft.mesh/v1alpha1\nkind: \"a\\n\\e[31mb\"\nmetadata: {\"x\\ny\\e[0m\": \"\\e[1m\", name: \"\\n\"}\n";
    for fault in parse(nasty, None).unwrap_err() {
        let all = format!("{fault} {:?} {:?}", fault.why.join(" "), fault.fix.join(" "));
        assert!(!all.contains(|c: char| c.is_control()), "{all:?}");
    }
}

#[test]
fn durations_and_revisions_are_written_as_the_contract_says() {
    let mut resource = read(&object(
        "TrafficPolicy",
        "{targetRefs: [{kind: Service, name: a}], timeouts: {connect: 1500ms, idle: 1h}}",
    ));
    resource.metadata_mut().revision = 7;
    let json = to_json(&resource);
    assert_eq!(json["spec"]["timeouts"]["connect"], "1.5s");
    assert_eq!(json["metadata"]["resourceVersion"], "7");
    assert_eq!(json["spec"]["loadBalancing"]["algorithm"], "PeakEwma");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_written_manifest_reads_the_same(resource in samples::resource()) {
        let yaml = to_yaml(&resource);
        let read = parse(&yaml, None);
        prop_assert!(read.is_ok(), "{:#?}\n{yaml}", read);
        prop_assert_eq!(&read.unwrap_or_default()[..], std::slice::from_ref(&resource), "{}", yaml);
        let json = to_json(&resource).to_string();
        prop_assert_eq!(parse_json(json.as_bytes(), None).ok(), Some(resource));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[ -~\n]{0,200}") {
        let _ = parse(&text, None);
        let _ = parse_json(text.as_bytes(), None);
    }

    #[test]
    fn no_mutation_of_a_manifest_makes_the_reader_panic(
        resource in samples::resource(), at in any::<proptest::sample::Index>(), byte in any::<u8>()
    ) {
        let mut bytes = to_yaml(&resource).into_bytes();
        let index = at.index(bytes.len());
        bytes[index] = byte;
        let _ = parse(&String::from_utf8_lossy(&bytes), None);
    }
}
