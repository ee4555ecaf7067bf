//! The words of decisions, as they stand on a terminal.

use std::net::IpAddr;

use crate::{
    authz::{CallRequest, Decision, Principal, explain::Explanation},
    model::{
        DefaultAuthorization, Mesh,
        authorization::{Action, Mode, PortRef, Source},
    },
    snapshot::{Snapshot, View},
    testing::{charge_with, from, id, mesh, policy, port, rule, service, service_name, shop, snapshot, view},
};

fn told(snapshot: &Snapshot, source: Principal<'_>, port: u16, network: Option<IpAddr>) -> Explanation {
    snapshot.explain(&CallRequest { source, service: &service_name("charge", "shop"), port, network }).1
}

fn lines(explanation: &Explanation) -> String {
    let code = explanation.code.map_or("-", |code| code.as_str());
    format!("{code}: {}\n{}\n{}", explanation.what, explanation.why.join("\n"), explanation.fix.join("\n"))
}

fn two_ports() -> View {
    let mut charge = service("charge", "shop");
    charge.ports = vec![port(80, Some("http")), port(9090, Some("admin"))];
    let mut order = rule("order", vec![from("spiffe://corp.example/ns/shop/sa/order")]);
    order.ports = Some(vec![PortRef::Name("http".parse().unwrap())]);
    order.networks = Some(vec!["10.0.0.0/8".parse().unwrap()]);
    let mut view = view([charge]);
    view.insert(policy("charge-from-order", Action::Allow, vec![order]));
    view
}

#[test]
fn a_refused_caller_is_told_the_nearest_rule_and_how_to_allow_it() {
    let rules = vec![rule("order", vec![from("spiffe://corp.example/ns/shop/sa/order")])];
    let snapshot = charge_with([policy("charge-from-order", Action::Allow, rules)]);
    let explanation = told(&snapshot, Principal::Spiffe(&shop("stranger")), 80, None);
    assert_eq!(
        lines(&explanation),
        "W2101: connection denied: stranger may not reach charge\n\
         policy shop/charge-from-order (rev 7) is the only policy for charge\n  \
           rule order  from spiffe://corp.example/ns/shop/sa/order   \
         ✗ caller is spiffe://corp.example/ns/shop/sa/stranger\n\
         no rule allows it, and the default of the mesh is Deny\n\
         allow it:        weft policy allow stranger charge -n shop\n\
         see the rule:    weft describe authorizationpolicy/charge-from-order -n shop"
    );
}

#[test]
fn clauses_stand_in_columns_with_the_first_failing_one_told() {
    let snapshot = snapshot(two_ports());
    let order = shop("order");
    let explanation = told(&snapshot, Principal::Spiffe(&order), 9090, "10.1.1.1".parse().ok());
    assert_eq!(
        lines(&explanation),
        "W2105: connection denied: order may not reach charge port 9090\n\
         policy shop/charge-from-order (rev 7) is the only policy for charge\n  \
           rule order  from spiffe://corp.example/ns/shop/sa/order   ✓ matches\n              \
                       to   port http (80)                           ✗ port is 9090\n              \
                       in   10.0.0.0/8                               ✓ matches\n\
         no rule allows it, and the default of the mesh is Deny\n\
         allow it:        weft policy allow order charge --port 9090 -n shop\n\
         see the rule:    weft describe authorizationpolicy/charge-from-order -n shop"
    );
    let elsewhere = told(&snapshot, Principal::Spiffe(&order), 80, "192.0.2.1".parse().ok());
    assert!(lines(&elsewhere).contains("✗ caller dials from 192.0.2.1"), "{}", lines(&elsewhere));
    let unknown = told(&snapshot, Principal::Spiffe(&order), 80, None);
    assert!(lines(&unknown).contains("? the caller's address is not known"), "{}", lines(&unknown));
}

#[test]
fn an_allowed_call_is_told_its_rule() {
    let explanation =
        told(&snapshot(two_ports()), Principal::Spiffe(&shop("order")), 80, "10.1.1.1".parse().ok());
    assert_eq!(explanation.what, "connection allowed: order may reach charge port 80");
    assert_eq!(explanation.why[0], "policy shop/charge-from-order (rev 7) allows it by its rule order");
    assert!(explanation.why[1..].iter().all(|line| line.ends_with("✓ matches")), "{explanation:?}");
    assert_eq!((explanation.code, explanation.fix.len()), (None, 0));
}

#[test]
fn a_deny_is_told_with_its_reason_and_what_could_not_be_decided() {
    let mut canary = rule("canary", vec![from("spiffe://corp.example/ns/shop/sa/canary")]);
    canary.ports = Some(vec![PortRef::Name("gone".parse().unwrap())]);
    let mut deny = policy("no-canary", Action::Deny, vec![canary]);
    deny.metadata.annotations.insert("weft.mesh/reason".into(), "ticket SEC-112".into());
    let snapshot = charge_with([deny]);
    let explanation = told(&snapshot, Principal::Spiffe(&shop("canary")), 80, None);
    let text = lines(&explanation);
    assert!(text.starts_with("W2102: connection denied: canary may not reach charge\n"), "{text}");
    assert!(text.contains("policy shop/no-canary (rev 7) denies it by its rule canary; DENY wins"), "{text}");
    assert!(text.ends_with("remove it:       weft delete authorizationpolicy/no-canary -n shop"), "{text}");
    assert!(text.contains("port gone (which the service does not have)"), "{text}");
    assert!(
        text.contains("a DENY whose clause cannot be decided refuses\nits reason: ticket SEC-112"),
        "{text}"
    );
}

#[test]
fn the_default_port_of_a_service_that_does_not_exist_has_no_number() {
    let snapshot = snapshot(view([]));
    let what = told(&snapshot, Principal::Spiffe(&shop("order")), 0, None).what;
    assert!(what.contains("charge") && !what.contains("port"), "{what}");
}

#[test]
fn callers_are_named_as_short_as_they_are_unambiguous() {
    let snapshot = charge_with([]);
    let named = |text: &str| told(&snapshot, Principal::Spiffe(&id(text)), 80, None).what;
    assert!(named("spiffe://corp.example/ns/web/sa/front").contains("front.web may not"));
    assert!(
        named("spiffe://other.example/ns/shop/sa/order")
            .contains("spiffe://other.example/ns/shop/sa/order may")
    );
    assert!(named("spiffe://corp.example/node/hostb").contains("spiffe://corp.example/node/hostb may not"));
    let plain = told(&snapshot, Principal::Unauthenticated, 80, None).what;
    assert!(plain.contains("a caller without identity may not"));
}

#[test]
fn the_summary_is_one_clause_and_the_caller_learns_no_rule_unless_the_policy_says_so() {
    let denial = |view: View, source: &str, port| {
        let source = shop(source);
        let service = service_name("charge", "shop");
        let request =
            CallRequest { source: Principal::Spiffe(&source), service: &service, port, network: None };
        match snapshot(view).authorize(&request).decision {
            Decision::Deny(denial) => denial,
            Decision::Allow(_) => panic!("allowed"),
        }
    };
    let stranger = denial(two_ports(), "stranger", 80);
    assert_eq!(stranger.summary(), "no policy allows this caller (namespace shop, mode deny)");
    assert_eq!(stranger.caller_detail(), "no policy allows this caller");

    let wrong_port = denial(two_ports(), "order", 9090);
    assert_eq!(wrong_port.summary(), "rule order of charge-from-order matches the caller but not port 9090");
    assert_eq!(wrong_port.caller_detail(), "the nearest rule matches the caller but not the port");

    let mut open = policy("p", Action::Deny, vec![rule("r", vec![Source::Any])]);
    open.metadata.annotations.insert("weft.mesh/explain-denials".into(), "to-caller".into());
    let mut view = view([service("charge", "shop")]);
    view.insert(open);
    assert_eq!(denial(view, "x", 80).caller_detail(), "rule r of p denies it");
}

#[test]
fn audit_and_dry_run_are_warnings_about_an_allowed_call() {
    let mut audited = view([service("charge", "shop")]);
    audited.insert(Mesh { default_authorization: DefaultAuthorization::Audit, ..mesh() });
    let explanation = told(&snapshot(audited), Principal::Spiffe(&shop("order")), 80, None);
    assert_eq!(explanation.code.unwrap().as_str(), "W2103");
    assert_eq!(explanation.fix, ["allow it for good: weft policy allow order charge -n shop"]);

    let mut dry = policy("try", Action::Deny, vec![rule("r", vec![Source::Any])]);
    dry.mode = Mode::DryRun;
    let snapshot = charge_with([policy("open", Action::Allow, vec![rule("all", vec![Source::Any])]), dry]);
    let explanation = told(&snapshot, Principal::Spiffe(&shop("order")), 80, None);
    assert_eq!(explanation.code.unwrap().as_str(), "W2111");
    assert_eq!(
        explanation.why.last().unwrap(),
        "policy shop/try (rev 7) is in DryRun: its rule r would refuse it"
    );
}

#[test]
fn long_lists_are_told_by_their_first_few() {
    let sources = (0..6).map(|number| from(&format!("spiffe://corp.example/ns/shop/sa/s{number}"))).collect();
    let snapshot = charge_with([policy("p", Action::Allow, vec![rule("r", sources)])]);
    let explanation = told(&snapshot, Principal::Spiffe(&shop("x")), 80, None);
    assert!(explanation.why[1].contains("sa/s2 and 3 more   ✗"), "{explanation:?}");
}
