//! One behaviour a test: defaults, DENY over ALLOW, clauses, DryRun, permits.

use std::sync::Arc;

use super::{code_of, decide, decide_port};
use crate::{
    authz::{Basis, CallRequest, Clause, Decision, Denial, DenyReason, Impact, Principal, Truth},
    model::{
        DefaultAuthorization, Mesh, Service, TargetRef,
        authorization::{Action, Mode, PortRef, Rule, Source},
    },
    route::Target,
    snapshot::{DefaultOrigin, Revision, Unreadable, View, ViewKey},
    testing::{
        charge_with, from, id, mesh, namespace, policy, port, rule, service, service_name, settings_of, shop,
        snapshot, view,
    },
};

fn allow_order() -> Vec<Rule> {
    vec![rule("order", vec![from("spiffe://corp.example/ns/shop/sa/order")])]
}

#[test]
fn an_allow_rule_makes_a_permit_that_names_it() {
    let snapshot = charge_with([policy("charge-from-order", Action::Allow, allow_order())]);
    let Decision::Allow(permit) = decide(&snapshot, &shop("order")).decision else { panic!("refused") };
    assert_eq!(permit.rule().unwrap().policy_id(), "charge-from-order.shop");
    assert_eq!(permit.rule().unwrap().name().as_str(), "order");
    assert_eq!(permit.source(), Some(&shop("order")));
    assert_eq!(permit.target().to_string(), "charge.shop:80");
    assert_eq!(permit.revision(), Revision(41));
}

#[test]
fn who_is_not_named_is_refused_by_the_default() {
    let snapshot = charge_with([policy("charge-from-order", Action::Allow, allow_order())]);
    let authorization = decide(&snapshot, &shop("stranger"));
    let Decision::Deny(denial) = &authorization.decision else { panic!("allowed") };
    assert_eq!(denial.code.as_str(), "W2101");
    assert_eq!(denial.reason, DenyReason::NoAllow(DefaultOrigin::Mesh, DefaultAuthorization::Deny));
    let nearest = denial.nearest.as_ref().unwrap();
    assert_eq!((nearest.rule.name().as_str(), nearest.first_failing()), ("order", Some(Clause::Source)));
}

#[test]
fn deny_wins_over_every_allow() {
    let any = || vec![rule("all", vec![Source::Any])];
    let snapshot = charge_with([policy("a", Action::Allow, any()), policy("b", Action::Deny, allow_order())]);
    assert_eq!(code_of(&decide(&snapshot, &shop("order"))), "W2102");
    assert_eq!(code_of(&decide(&snapshot, &shop("other"))), "allowed");
    assert_eq!(decide(&snapshot, &shop("order")).decision.rule().unwrap().policy_id(), "b.shop");
}

#[test]
fn the_default_is_the_most_specific_one_and_rules_never_change_it() {
    use DefaultAuthorization::{Allow, Audit, Deny};
    let cases = [
        (Deny, None, None, DefaultOrigin::Mesh, Deny),
        (Allow, None, None, DefaultOrigin::Mesh, Allow),
        (Allow, Some(Deny), None, DefaultOrigin::Namespace, Deny),
        (Deny, Some(Allow), None, DefaultOrigin::Namespace, Allow),
        (Allow, Some(Allow), Some(Deny), DefaultOrigin::Service, Deny),
        (Deny, Some(Deny), Some(Audit), DefaultOrigin::Service, Audit),
    ];
    for (of_mesh, of_namespace, of_service, origin, expected) in cases {
        for with_rules in [false, true] {
            let mut view: View = [Service { default_authorization: of_service, ..service("charge", "shop") }]
                .into_iter()
                .collect();
            view.insert(Mesh { default_authorization: of_mesh, ..mesh() });
            view.insert(settings_of("shop", of_namespace));
            if with_rules {
                view.insert(policy("p", Action::Allow, allow_order()));
            }
            let snapshot = snapshot(view);
            let charge = snapshot.destination(&service_name("charge", "shop")).unwrap();
            assert_eq!(charge.default_authorization(), (origin, expected));
            let allowed = decide(&snapshot, &shop("stranger")).decision.is_allowed();
            assert_eq!(allowed, expected != Deny, "{of_mesh:?} {of_namespace:?} {of_service:?}");
        }
    }
}

#[test]
fn audit_allows_and_tells_what_deny_would_have_refused() {
    let mut view = view([service("charge", "shop")]);
    view.insert(Mesh { default_authorization: DefaultAuthorization::Audit, ..mesh() });
    view.insert(policy("p", Action::Allow, allow_order()));
    let authorization = decide(&snapshot(view), &shop("stranger"));
    let Decision::Allow(permit) = &authorization.decision else { panic!("refused") };
    assert_eq!(permit.basis(), &Basis::Default(DefaultOrigin::Mesh, DefaultAuthorization::Audit));
    assert_eq!(authorization.audit.unwrap().code.as_str(), "W2101");
}

#[test]
fn a_rule_for_another_port_is_told_apart_from_no_rule() {
    let mut charge = service("charge", "shop");
    charge.ports = vec![port(80, Some("http")), port(9090, Some("admin"))];
    let mut by_port = allow_order();
    by_port[0].ports = Some(vec![PortRef::Name("http".parse().unwrap())]);
    let mut view = view([charge]);
    view.insert(policy("p", Action::Allow, by_port));
    let snapshot = snapshot(view);

    let order = shop("order");
    assert_eq!(code_of(&decide_port(&snapshot, Principal::Spiffe(&order), 80)), "allowed");
    assert_eq!(code_of(&decide_port(&snapshot, Principal::Spiffe(&order), 9090)), "W2105");
    assert_eq!(code_of(&decide_port(&snapshot, Principal::Spiffe(&shop("x")), 9090)), "W2101");
}

#[test]
fn networks_are_asked_beside_the_source_and_an_unknown_address_is_no_match() {
    let mut rules = allow_order();
    rules[0].networks = Some(vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()]);
    let snapshot = charge_with([policy("p", Action::Allow, rules.clone())]);
    let order = shop("order");
    let at = |snapshot: &crate::snapshot::Snapshot, network: Option<&str>| {
        let network = network.map(|text| text.parse().unwrap());
        let service = service_name("charge", "shop");
        let source = Principal::Spiffe(&order);
        code_of(&snapshot.authorize(&CallRequest { source, service: &service, port: 80, network }))
    };
    assert_eq!(at(&snapshot, Some("10.1.2.3")), "allowed");
    assert_eq!(at(&snapshot, Some("::ffff:10.1.2.3")), "allowed");
    assert_eq!(at(&snapshot, Some("2001:db8::1")), "allowed");
    assert_eq!(at(&snapshot, Some("192.0.2.1")), "W2106");
    assert_eq!(at(&snapshot, None), "W2106");

    let denied = charge_with([policy("a", Action::Allow, allow_order()), policy("b", Action::Deny, rules)]);
    assert_eq!(at(&denied, Some("192.0.2.1")), "allowed");
    assert_eq!(at(&denied, Some("10.1.2.3")), "W2102");
    assert_eq!(at(&denied, None), "W2102", "a DENY that cannot be decided refuses");
}

#[test]
fn an_exception_takes_out_of_a_pattern_and_is_told_as_nearest() {
    let source = Source::Spiffe {
        pattern: "spiffe://corp.example/ns/shop/sa/*".parse().unwrap(),
        except: vec!["spiffe://corp.example/ns/shop/sa/order-canary".parse().unwrap()],
    };
    let snapshot = charge_with([policy("p", Action::Allow, vec![rule("shop", vec![source])])]);
    assert_eq!(code_of(&decide(&snapshot, &shop("order"))), "allowed");
    assert_eq!(code_of(&decide(&snapshot, &shop("order-canary"))), "W2101");
}

#[test]
fn a_service_account_is_one_of_the_local_trust_domain() {
    let source = Source::ServiceAccount { namespace: namespace("shop"), name: "order".parse().unwrap() };
    let snapshot = charge_with([policy("p", Action::Allow, vec![rule("order", vec![source])])]);
    assert_eq!(code_of(&decide(&snapshot, &shop("order"))), "allowed");
    for other in [
        "spiffe://evil.example/ns/shop/sa/order",
        "spiffe://corp.example/ns/shop/sa/order/x",
        "spiffe://corp.example/x/ns/shop/sa/order",
        "spiffe://corp.example/ns/shopx/sa/order",
    ] {
        assert_eq!(code_of(&decide(&snapshot, &id(other))), "W2101", "{other}");
    }
}

#[test]
fn dry_run_is_evaluated_and_never_blocks_or_opens() {
    let dry = |name, action, rules| crate::model::AuthorizationPolicy {
        mode: Mode::DryRun,
        ..policy(name, action, rules)
    };
    let everyone = || vec![rule("all", vec![Source::Any])];
    let snapshot = charge_with([
        policy("a", Action::Allow, allow_order()),
        dry("b", Action::Deny, everyone()),
        dry("c", Action::Allow, everyone()),
    ]);
    let impacts = |source: &str| {
        let authorization = decide(&snapshot, &shop(source));
        let of = |found: &crate::authz::ShadowVerdict| (found.found.rule.policy_id(), found.impact);
        (authorization.decision.is_allowed(), authorization.shadow.iter().map(of).collect::<Vec<_>>())
    };
    let (b, c) = ("b.shop".to_owned(), "c.shop".to_owned());
    assert_eq!(impacts("order"), (true, vec![(b.clone(), Impact::WouldDeny), (c.clone(), Impact::None)]));
    assert_eq!(impacts("x"), (false, vec![(b, Impact::None), (c, Impact::WouldAllow)]));
}

#[test]
fn a_port_that_the_service_lacks_is_told_only_to_who_may_call() {
    let snapshot = charge_with([policy("p", Action::Allow, allow_order())]);
    assert_eq!(code_of(&decide_port(&snapshot, Principal::Spiffe(&shop("order")), 81)), "W1012");
    assert_eq!(code_of(&decide_port(&snapshot, Principal::Spiffe(&shop("x")), 81)), "W2101");
}

#[test]
fn an_unknown_service_is_refused() {
    let snapshot = charge_with([]);
    let service = service_name("none", "shop");
    let order = shop("order");
    let request =
        CallRequest { source: Principal::Spiffe(&order), service: &service, port: 80, network: None };
    assert_eq!(code_of(&snapshot.authorize(&request)), "W1011");
    assert_eq!(Denial::without_snapshot(&request).code.as_str(), "W2108");
}

#[test]
fn the_outbound_side_refuses_only_what_cannot_be_decided() {
    let snapshot = charge_with([]);
    let code = |service: &str, port| {
        let target = Target { service: service_name(service, "shop"), port };
        snapshot.permit_outbound(&shop("order"), &target).map_err(|denial| denial.code.as_str()).map(
            |permit| {
                assert_eq!(permit.basis(), &Basis::Outbound);
                permit.target().port
            },
        )
    };
    assert_eq!(code("charge", 80), Ok(80));
    assert_eq!(code("charge", 81), Err("W1012"));
    assert_eq!(code("none", 80), Err("W1011"));
}

#[test]
fn an_unreadable_policy_closes_its_targets_and_nothing_else() {
    let lost = |targets| Unreadable {
        key: ViewKey::AuthorizationPolicy(namespace("shop"), "lost".parse().unwrap()),
        targets,
        why: "field rules[0].sources is missing".to_owned(),
    };
    let services = || {
        let open = |name, namespace| Service {
            default_authorization: Some(DefaultAuthorization::Allow),
            ..service(name, namespace)
        };
        view([open("charge", "shop"), open("ledger", "shop"), open("web", "front")])
    };
    let codes = |view: View| {
        let snapshot = snapshot(view);
        let code = |name, namespace| {
            let service = service_name(name, namespace);
            let order = shop("order");
            let source = Principal::Spiffe(&order);
            code_of(&snapshot.authorize(&CallRequest { source, service: &service, port: 80, network: None }))
        };
        [code("charge", "shop"), code("ledger", "shop"), code("web", "front")]
    };
    let mut one = services();
    one.insert(policy("p", Action::Allow, allow_order()));
    one.insert(lost(vec![TargetRef::Service("charge".parse().unwrap())]));
    assert_eq!(codes(one), ["W2107", "allowed", "allowed"]);

    let mut whole = services();
    whole.insert(lost(vec![TargetRef::Namespace(namespace("shop"))]));
    assert_eq!(codes(whole), ["W2107", "W2107", "allowed"]);

    let mut unsaid = services();
    unsaid.insert(lost(Vec::new()));
    assert_eq!(codes(unsaid), ["W2107", "W2107", "allowed"], "no target left: the whole namespace");

    let mut outbound = services();
    outbound.insert(lost(vec![TargetRef::Service("charge".parse().unwrap())]));
    let target = Target { service: service_name("charge", "shop"), port: 80 };
    let refused = snapshot(outbound).permit_outbound(&shop("order"), &target).unwrap_err();
    assert_eq!(refused.code.as_str(), "W2107");
}

#[test]
fn the_nearest_rule_is_the_one_that_shares_most_with_the_call() {
    let mut by_port = rule("by-port", vec![from("spiffe://corp.example/ns/shop/sa/order")]);
    by_port.ports = Some(vec![PortRef::Number(81)]);
    let near = rule("a-near", vec![from("spiffe://corp.example/ns/shop/sa/other")]);
    let far = rule("a-far", vec![from("spiffe://other.example/ns/shop/sa/order")]);
    let snapshot =
        charge_with([policy("a", Action::Allow, vec![far, near]), policy("b", Action::Allow, vec![by_port])]);
    let nearest = |source: &str| match decide(&snapshot, &id(source)).decision {
        Decision::Deny(denial) => denial.nearest.unwrap(),
        Decision::Allow(_) => panic!("allowed"),
    };
    let found = nearest("spiffe://corp.example/ns/shop/sa/order");
    assert_eq!(
        (found.rule.name().as_str(), found.source, found.ports),
        ("by-port", Truth::True, Truth::False)
    );
    assert_eq!(nearest("spiffe://corp.example/ns/shop/sa/x").rule.name().as_str(), "a-near");
    assert_eq!(nearest("spiffe://other.example/x").rule.name().as_str(), "a-far");
    assert_eq!(
        nearest("spiffe://third.example/x").rule.name().as_str(),
        "a-far",
        "some rule is always named"
    );
}

#[test]
fn of_several_rules_the_one_with_the_smaller_name_is_told() {
    let exact = || vec![from("spiffe://corp.example/ns/shop/sa/order")];
    let wide = || vec![from("spiffe://corp.example/**")];
    let on = |port, mut rule: Rule| {
        rule.ports = Some(vec![PortRef::Number(port)]);
        rule
    };
    let told = |policies: [crate::model::AuthorizationPolicy; 2]| match decide(
        &charge_with(policies),
        &shop("order"),
    )
    .decision
    {
        Decision::Allow(permit) => permit.rule().unwrap().policy_id(),
        Decision::Deny(denial) => {
            denial.rule().or_else(|| denial.nearest.as_ref().map(|near| &near.rule)).unwrap().policy_id()
        }
    };
    for action in [Action::Allow, Action::Deny] {
        for (first, second) in [(exact(), wide()), (wide(), exact())] {
            let (first, second) = (rule("r", first), rule("r", second));
            assert_eq!(told([policy("a", action, vec![first]), policy("b", action, vec![second])]), "a.shop");
        }
    }
    for (first, second) in [(exact(), wide()), (wide(), exact())] {
        let (first, second) = (on(81, rule("r", first)), on(81, rule("r", second)));
        let policies = [policy("a", Action::Allow, vec![first]), policy("b", Action::Allow, vec![second])];
        assert_eq!(told(policies), "a.shop", "also of the nearest");
    }
}

#[test]
fn a_snapshot_and_its_parts_may_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Arc<crate::snapshot::Snapshot>>();
    shared::<crate::authz::Permit>();
}
