//! The attack catalogue of security.md 5.5, as far as it concerns connections.

use std::sync::Arc;

use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::{code_of, decide, decide_port};
use crate::{
    authz::{CallRequest, Principal},
    model::{
        AuthorizationPolicy, DefaultAuthorization, Mesh, TargetRef,
        authorization::{Action, Mode, PortRef, Rule, Source},
    },
    name::ServiceName,
    snapshot::Snapshot,
    testing::{
        charge_with, from, id, mesh, namespace, policy, rule, service, service_name, shop, snapshot, view,
    },
};

fn any() -> Vec<Source> {
    vec![Source::Any]
}

/// A rule that names everybody, after `empty` has emptied a list of it.
fn emptied(empty: impl Fn(&mut Rule)) -> Vec<Rule> {
    let mut rule = rule("r", any());
    rule.ports = Some(vec![PortRef::Number(80)]);
    empty(&mut rule);
    vec![rule]
}

#[test]
fn pol_01_an_emptied_list_allows_nobody_and_a_deny_with_one_refuses_everybody() {
    type Emptied = (&'static str, fn(&mut Rule));
    let cases: [Emptied; 3] = [
        ("sources", |rule| rule.sources.clear()),
        ("ports", |rule| rule.ports = Some(Vec::new())),
        ("networks", |rule| rule.networks = Some(Vec::new())),
    ];
    for (list, empty) in cases {
        let allow = charge_with([policy("p", Action::Allow, emptied(empty))]);
        assert_ne!(code_of(&decide(&allow, &shop("order"))), "allowed", "{list}");

        let open = policy("open", Action::Allow, vec![rule("all", any())]);
        let deny = charge_with([open, policy("p", Action::Deny, emptied(empty))]);
        assert_eq!(code_of(&decide(&deny, &shop("order"))), "W2102", "{list}");
    }
}

#[test]
fn pol_01_a_policy_without_rules_or_targets_never_widens() {
    let open = || policy("open", Action::Allow, vec![rule("all", any())]);
    let code = |broken: AuthorizationPolicy| code_of(&decide(&charge_with([open(), broken]), &shop("order")));
    let no_targets =
        |action| AuthorizationPolicy { targets: Vec::new(), ..policy("p", action, vec![rule("all", any())]) };
    assert_eq!(code(policy("p", Action::Deny, Vec::new())), "W2107");
    assert_eq!(code(no_targets(Action::Deny)), "W2107");

    let alone = |broken| code_of(&decide(&charge_with([broken]), &shop("order")));
    assert_eq!(alone(policy("p", Action::Allow, Vec::new())), "W2101");
    assert_eq!(alone(no_targets(Action::Allow)), "W2101");
    assert_eq!(alone(AuthorizationPolicy { mode: Mode::DryRun, ..no_targets(Action::Deny) }), "W2101");
}

#[test]
fn pol_01_a_port_name_that_the_service_lacks_is_no_match_for_allow_and_a_match_for_deny() {
    let gone = || emptied(|rule| rule.ports = Some(vec![PortRef::Name("gone".parse().unwrap())]));
    assert_eq!(code_of(&decide(&charge_with([policy("p", Action::Allow, gone())]), &shop("a"))), "W2105");

    let open = policy("open", Action::Allow, vec![rule("all", any())]);
    assert_eq!(
        code_of(&decide(&charge_with([open, policy("p", Action::Deny, gone())]), &shop("a"))),
        "W2102"
    );
}

#[test]
fn pol_03_the_verdict_does_not_depend_on_any_order() {
    let exactly = |name: &str| from(&format!("spiffe://corp.example/ns/shop/sa/{name}"));
    let shadow = |policy| AuthorizationPolicy { mode: Mode::DryRun, ..policy };
    let ports = |mut rule: Rule, number| {
        rule.ports = Some(vec![PortRef::Number(number)]);
        rule
    };
    let mut policies = vec![
        policy("a", Action::Allow, vec![rule("x", vec![exactly("order"), exactly("web")]), rule("y", any())]),
        policy("b", Action::Deny, vec![rule("x", vec![exactly("web")]), rule("y", vec![exactly("canary")])]),
        policy("c", Action::Allow, vec![ports(rule("x", vec![exactly("late"), exactly("late")]), 81)]),
        shadow(policy("d", Action::Deny, vec![rule("x", any()), rule("y", vec![exactly("order")])])),
        shadow(policy("e", Action::Allow, vec![rule("x", any())])),
        AuthorizationPolicy {
            targets: vec![TargetRef::Namespace(namespace("shop"))],
            ..policy("f", Action::Deny, vec![rule("x", vec![exactly("canary"), exactly("late")])])
        },
    ];
    // The same name in another namespace is another policy.
    let foreign = AuthorizationPolicy {
        metadata: crate::testing::metadata("b", Some("front")),
        ..policy("b", Action::Deny, vec![rule("x", any())])
    };
    let callers = ["order", "web", "canary", "late", "nobody"].map(shop);
    let verdicts = |policies: &[AuthorizationPolicy]| {
        let mut view = view([service("charge", "shop"), service("charge", "front")]);
        view.extend(policies.iter().cloned());
        view.insert(foreign.clone());
        let snapshot = snapshot(view);
        callers.iter().map(|caller| decide(&snapshot, caller)).collect::<Vec<_>>()
    };
    let expected = verdicts(&policies);
    assert_eq!(
        expected.iter().map(code_of).collect::<Vec<_>>(),
        ["allowed", "W2102", "W2102", "W2102", "allowed"]
    );
    let mut rng = StdRng::seed_from_u64(3);
    for _ in 0..1_000 {
        policies.shuffle(&mut rng);
        for policy in &mut policies {
            policy.rules.shuffle(&mut rng);
            policy.rules.iter_mut().for_each(|rule| rule.sources.shuffle(&mut rng));
        }
        assert_eq!(verdicts(&policies), expected);
    }
}

#[test]
fn pol_05_ten_thousand_rules_are_found_by_their_source() {
    let rules = |policy_number: usize| {
        let name = |number| format!("caller-{policy_number}-{number}");
        let source = |number| from(&format!("spiffe://corp.example/ns/shop/sa/{}", name(number)));
        (0..256).map(|number| rule(&name(number), vec![source(number)])).collect()
    };
    let policies = (0..40).map(|number| policy(&format!("p{number}"), Action::Allow, rules(number)));
    let snapshot = charge_with(policies);
    for (policy, number) in [(0, 0), (17, 128), (39, 255)] {
        let caller = format!("caller-{policy}-{number}");
        let decision = decide(&snapshot, &shop(&caller)).decision;
        assert_eq!(decision.rule().unwrap().name().as_str(), caller);
    }
    assert_eq!(code_of(&decide(&snapshot, &shop("caller-40-0"))), "W2101");
}

#[test]
fn pol_08_live_flows_are_refused_exactly_when_the_new_rules_refuse_them() {
    let allowed = |names: &[&str]| {
        let sources = names.iter().map(|name| from(&format!("spiffe://corp.example/ns/shop/sa/{name}")));
        charge_with([policy("p", Action::Allow, vec![rule("r", sources.collect())])])
    };
    let (old, new) = (allowed(&["a", "b"]), allowed(&["b", "c"]));
    let service = service_name("charge", "shop");
    let flows: Vec<_> = (0..10_000).map(|number| shop(["a", "b", "c"][number % 3])).collect();
    let kept = |snapshot: &Snapshot| -> Vec<_> {
        let request = |source| CallRequest {
            source: Principal::Spiffe(source),
            service: &service,
            port: 80,
            network: None,
        };
        flows.iter().map(|flow| snapshot.authorize(&request(flow)).decision.is_allowed()).collect()
    };
    let (before, after) = (kept(&old), kept(&new));
    for (number, (before, after)) in before.into_iter().zip(after).enumerate() {
        assert_eq!((before, after), [(true, false), (true, true), (false, true)][number % 3]);
    }
}

/// The IDs of the table below, in its columns.
const IDS: [&str; 19] = [
    "spiffe://td/a",
    "spiffe://td/a/b",
    "spiffe://td/a/b/c",
    "spiffe://td/ab",
    "spiffe://td/A/b",
    "spiffe://td/a/B",
    "spiffe://td/a/b.c",
    "spiffe://td/a/bXc",
    "spiffe://td.evil/a/b",
    "spiffe://xtd/a/b",
    "spiffe://td-/a/b",
    "spiffe://td/cert-manager.io",
    "spiffe://td/cert-managerXio",
    "spiffe://td/ns/shop/sa/order",
    "spiffe://td/ns/shop/sa/order-canary",
    "spiffe://td/ns/shopx/sa/order",
    "spiffe://td/x/ns/shop/sa/order",
    "spiffe://td/ns/shop/sa/order/extra",
    "spiffe://td/b/a",
];

/// Pattern, and for each ID whether it matches.
const PATTERNS: [(&str, &str); 12] = [
    ("spiffe://td/a", "1000000000000000000"),
    ("spiffe://td/a/*", "0100011100000000000"),
    ("spiffe://td/a/**", "0110011100000000000"),
    ("spiffe://td/**", "1111111100011111111"),
    ("spiffe://td/*", "1001000000011000000"),
    ("spiffe://td/*/b", "0100100000000000000"),
    ("spiffe://td/a/b.c", "0000001000000000000"),
    ("spiffe://td/cert-manager.io", "0000000000010000000"),
    ("spiffe://td/ns/shop/sa/order", "0000000000000100000"),
    ("spiffe://td/ns/shop/sa/*", "0000000000000110000"),
    ("spiffe://td/ns/*/sa/order", "0000000000000101000"),
    ("spiffe://td/ns/shop/**", "0000000000000110010"),
];

#[test]
fn pol_10_patterns_are_literal_and_segment_by_segment() {
    let mut cases = 0;
    for (pattern, marks) in PATTERNS {
        let allow = charge_with([policy("p", Action::Allow, vec![rule("r", vec![from(pattern)])])]);
        let open = policy("open", Action::Allow, vec![rule("all", any())]);
        let deny = charge_with([open, policy("p", Action::Deny, vec![rule("r", vec![from(pattern)])])]);
        for (text, mark) in IDS.into_iter().zip(marks.chars()) {
            let expected = mark == '1';
            let matches = pattern.parse::<crate::pattern::IdentityPattern>().unwrap().matches(&id(text));
            assert_eq!(matches, expected, "{pattern} on {text}");
            assert_eq!(
                decide(&allow, &id(text)).decision.is_allowed(),
                expected,
                "ALLOW {pattern} on {text}"
            );
            assert_eq!(decide(&deny, &id(text)).decision.is_allowed(), !expected, "DENY {pattern} on {text}");
            cases += 1;
        }
    }
    assert_eq!(cases, 228);
}

#[test]
fn pol_11_any_never_includes_a_plain_caller_unless_it_is_written() {
    let plain = |sources| {
        let snapshot = charge_with([policy("p", Action::Allow, vec![rule("r", sources)])]);
        code_of(&decide_port(&snapshot, Principal::Unauthenticated, 80))
    };
    assert_eq!(plain(any()), "W2109");
    assert_eq!(plain(vec![from("spiffe://corp.example/**")]), "W2109");
    assert_eq!(plain(vec![Source::Unauthenticated]), "allowed");
    assert_eq!(plain(vec![Source::Any, Source::Unauthenticated]), "allowed");

    let authenticated =
        charge_with([policy("p", Action::Allow, vec![rule("r", vec![Source::Unauthenticated])])]);
    assert_eq!(code_of(&decide(&authenticated, &shop("order"))), "W2101", "plain means plain");
}

#[test]
fn pol_11_a_deny_of_an_identity_is_not_escaped_by_leaving_the_certificate_away() {
    let open = || policy("a", Action::Allow, vec![rule("r", vec![Source::Any, Source::Unauthenticated])]);
    let with = |source| {
        let snapshot = charge_with([open(), policy("b", Action::Deny, vec![rule("r", vec![source])])]);
        code_of(&decide_port(&snapshot, Principal::Unauthenticated, 80))
    };
    assert_eq!(with(from("spiffe://corp.example/ns/shop/sa/evil")), "W2102");
    assert_eq!(with(Source::Unauthenticated), "W2102");
    assert_eq!(with(Source::Any), "allowed", "it is known that a plain caller is not authenticated");
}

#[test]
fn pol_11_exceptions_never_name_a_plain_caller() {
    let everybody_but = Source::Spiffe {
        pattern: "spiffe://corp.example/**".parse().unwrap(),
        except: vec!["spiffe://corp.example/ns/shop/sa/order".parse().unwrap()],
    };
    let open = policy("a", Action::Allow, vec![rule("r", vec![Source::Any, Source::Unauthenticated])]);
    let snapshot = charge_with([open, policy("b", Action::Deny, vec![rule("r", vec![everybody_but])])]);
    assert_eq!(code_of(&decide_port(&snapshot, Principal::Unauthenticated, 80)), "W2102");
    assert_eq!(code_of(&decide(&snapshot, &shop("order"))), "allowed");
}

#[test]
fn pol_12_rules_of_a_service_and_of_its_namespace_are_one_union() {
    let exactly =
        |name: &str| vec![rule(name, vec![from(&format!("spiffe://corp.example/ns/shop/sa/{name}"))])];
    let whole =
        |policy| AuthorizationPolicy { targets: vec![TargetRef::Namespace(namespace("shop"))], ..policy };
    let mut view = view([service("charge", "shop"), service("ledger", "shop"), service("web", "front")]);
    view.extend([
        policy("of-service", Action::Allow, exactly("order")),
        whole(policy("of-namespace", Action::Allow, exactly("backup"))),
        whole(policy("no-canary", Action::Deny, exactly("canary"))),
        AuthorizationPolicy {
            targets: vec![
                TargetRef::Service("charge".parse().unwrap()),
                TargetRef::Namespace(namespace("shop")),
            ],
            ..policy("both", Action::Allow, exactly("canary"))
        },
    ]);
    let snapshot = snapshot(view);
    let code = |service: ServiceName, caller: &str| {
        let source = shop(caller);
        let request =
            CallRequest { source: Principal::Spiffe(&source), service: &service, port: 80, network: None };
        code_of(&snapshot.authorize(&request))
    };
    assert_eq!(code(service_name("charge", "shop"), "order"), "allowed");
    assert_eq!(code(service_name("charge", "shop"), "backup"), "allowed");
    assert_eq!(code(service_name("charge", "shop"), "canary"), "W2102");
    assert_eq!(code(service_name("ledger", "shop"), "order"), "W2101");
    assert_eq!(code(service_name("ledger", "shop"), "backup"), "allowed");
    assert_eq!(code(service_name("ledger", "shop"), "canary"), "W2102");
    assert_eq!(code(service_name("web", "front"), "backup"), "W2101", "other namespaces are untouched");
}

#[test]
fn istio_cve_2026_39350_a_dot_is_a_dot_in_allow_and_in_deny() {
    let source = || vec![from("spiffe://corp.example/ns/cert-manager.io/sa/a")];
    let look_alike = id("spiffe://corp.example/ns/cert-managerXio/sa/a");
    let allow = charge_with([policy("p", Action::Allow, vec![rule("r", source())])]);
    assert!(!decide(&allow, &look_alike).decision.is_allowed());
    let open = policy("open", Action::Allow, vec![rule("all", any())]);
    let deny = charge_with([open, policy("p", Action::Deny, vec![rule("r", source())])]);
    assert!(decide(&deny, &look_alike).decision.is_allowed());
}

#[test]
fn ztunnel_a_policy_that_has_not_come_never_leaves_an_open_list() {
    let view = view([service("charge", "shop")]);
    let snapshot = snapshot(view);
    assert_eq!(code_of(&decide(&snapshot, &shop("order"))), "W2101");
    assert!(Arc::clone(snapshot.view()).len() == 2);
}

#[test]
fn cilium_cve_2025_64715_allow_by_default_does_not_survive_an_unreadable_policy() {
    let mut view = view([service("charge", "shop")]);
    view.insert(Mesh { default_authorization: DefaultAuthorization::Allow, ..mesh() });
    view.insert(policy("p", Action::Deny, Vec::new()));
    assert_eq!(code_of(&decide(&snapshot(view), &shop("order"))), "W2107");
}
