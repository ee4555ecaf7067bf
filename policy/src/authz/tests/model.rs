//! Properties: the index agrees with a plain reading of the model, and losing parts never widens (fuzz target f08).

use std::net::IpAddr;

use proptest::prelude::*;
use weft_identity::spiffe::{SpiffeId, TrustDomain};

use crate::{
    authz::{Authorization, CallRequest, Decision, DenyReason, Principal, Truth},
    model::{
        AuthorizationPolicy, Service,
        authorization::{Action, Mode, PortRef, Rule, Source},
    },
    snapshot::{Snapshot, Unreadable, ViewKey},
    testing::{any_id, any_policies, domain, namespace, port, service, service_name, snapshot, view},
};

/// A call by somebody, to some port, from somewhere or nowhere known.
#[derive(Clone, Debug)]
struct Call {
    source: Option<SpiffeId>,
    port: u16,
    network: Option<IpAddr>,
}

fn any_call() -> impl Strategy<Value = Call> {
    let near: SpiffeId = "spiffe://corp.example/ns/a/sa/b".parse().unwrap();
    let source = prop_oneof![6 => any_id().prop_map(Some), 2 => Just(Some(near)), 1 => Just(None)];
    let network = prop::sample::select(vec!["10.1.1.1", "192.0.2.9", "2001:db8::1", "198.51.100.1"]);
    let network = prop::option::of(network.prop_map(|text| text.parse().unwrap()));
    (source, prop::sample::select(vec![80_u16, 81, 9]), network).prop_map(|(source, port, network)| Call {
        source,
        port,
        network,
    })
}

fn charge() -> Service {
    Service { ports: vec![port(80, Some("http")), port(81, Some("admin"))], ..service("charge", "shop") }
}

fn snapshot_of(policies: &[AuthorizationPolicy]) -> Snapshot {
    let mut view = view([charge()]);
    view.extend(policies.iter().cloned());
    snapshot(view)
}

fn authorize(snapshot: &Snapshot, call: &Call) -> Authorization {
    let source = call.source.as_ref().map_or(Principal::Unauthenticated, Principal::Spiffe);
    let service = service_name("charge", "shop");
    snapshot.authorize(&CallRequest { source, service: &service, port: call.port, network: call.network })
}

/// What a plain reading of security.md 7.2 says, rule by rule.
#[derive(Debug, Eq, PartialEq)]
enum Reading {
    Closed,
    Denied,
    Allowed,
    Default,
}

fn read(policies: &[AuthorizationPolicy], call: &Call) -> Reading {
    let enforced = |action| policies.iter().filter(move |p| p.mode == Mode::Enforce && p.action == action);
    if enforced(Action::Deny).any(|policy| policy.targets.is_empty() || policy.rules.is_empty()) {
        return Reading::Closed;
    }
    let rules = |action| enforced(action).filter(|p| !p.targets.is_empty()).flat_map(|policy| &policy.rules);
    if rules(Action::Deny).any(|rule| holds(rule, call) != Truth::False) {
        return Reading::Denied;
    }
    if rules(Action::Allow).any(|rule| holds(rule, call) == Truth::True) {
        return Reading::Allowed;
    }
    Reading::Default
}

fn or(parts: Vec<Truth>) -> Truth {
    if parts.is_empty() {
        return Truth::Unknown;
    }
    if parts.contains(&Truth::True) {
        Truth::True
    } else if parts.contains(&Truth::Unknown) {
        Truth::Unknown
    } else {
        Truth::False
    }
}

fn yes(holds: bool) -> Truth {
    if holds { Truth::True } else { Truth::False }
}

fn holds(rule: &Rule, call: &Call) -> Truth {
    let source = or(rule.sources.iter().map(|source| is(source, call.source.as_ref(), &domain())).collect());
    let ports = rule.ports.as_ref().map_or(Truth::True, |ports| {
        or(ports
            .iter()
            .map(|reference| match reference {
                PortRef::Number(number) => yes(*number == call.port),
                PortRef::Name(name) => match name.as_str() {
                    "http" => yes(call.port == 80),
                    "admin" => yes(call.port == 81),
                    _ => Truth::Unknown,
                },
            })
            .collect())
    });
    let networks = rule.networks.as_ref().map_or(Truth::True, |networks| match call.network {
        Some(address) => or(networks.iter().map(|network| yes(network.contains(&address))).collect()),
        None => Truth::Unknown,
    });
    match [source, ports, networks] {
        parts if parts.contains(&Truth::False) => Truth::False,
        parts if parts.contains(&Truth::Unknown) => Truth::Unknown,
        _ => Truth::True,
    }
}

fn is(source: &Source, caller: Option<&SpiffeId>, local: &TrustDomain) -> Truth {
    match (source, caller) {
        (Source::Unauthenticated, caller) => yes(caller.is_none()),
        (Source::Any, caller) => yes(caller.is_some()),
        (Source::Spiffe { .. } | Source::ServiceAccount { .. }, None) => Truth::Unknown,
        (Source::Spiffe { pattern, except }, Some(id)) => {
            yes(pattern.matches(id) && !except.iter().any(|pattern| pattern.matches(id)))
        }
        (Source::ServiceAccount { namespace, name }, Some(id)) => {
            yes(id.to_string() == format!("spiffe://{local}/ns/{namespace}/sa/{name}"))
        }
    }
}

/// Loses one part of one policy, as a truncated or damaged record could.
fn lose(policies: &mut [AuthorizationPolicy], which: usize, part: u8) {
    let Some(index) = which.checked_rem(policies.len()) else { return };
    let policy = &mut policies[index];
    let count = policy.rules.len();
    match part {
        0 => policy.targets.clear(),
        1 => policy.rules.clear(),
        _ if count == 0 => {}
        2 => policy.rules[which % count].sources.clear(),
        3 => policy.rules[which % count].ports = Some(Vec::new()),
        _ => policy.rules[which % count].networks = Some(Vec::new()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_024))]

    #[test]
    fn the_index_decides_as_a_plain_reading_does(policies in any_policies(), call in any_call()) {
        let authorization = authorize(&snapshot_of(&policies), &call);
        let expected = read(&policies, &call);
        match &authorization.decision {
            Decision::Allow(permit) => {
                prop_assert_eq!(expected, Reading::Allowed);
                prop_assert_eq!(holds(permit.rule().unwrap().rule(), &call), Truth::True);
            }
            Decision::Deny(denial) => match &denial.reason {
                DenyReason::PolicyUnavailable(_) => prop_assert_eq!(expected, Reading::Closed),
                DenyReason::DenyRule(found) => {
                    prop_assert_eq!(expected, Reading::Denied);
                    prop_assert_eq!(found.verdict(), holds(found.rule.rule(), &call));
                }
                DenyReason::UnknownPort => prop_assert!(expected == Reading::Allowed && call.port == 9),
                DenyReason::NoAllow(..) => prop_assert_eq!(expected, Reading::Default),
                DenyReason::NoSnapshot | DenyReason::UnknownService => prop_assert!(false, "{:?}", denial),
            },
        }
    }

    #[test]
    fn dry_run_records_exactly_the_rules_that_fire(policies in any_policies(), call in any_call()) {
        let authorization = authorize(&snapshot_of(&policies), &call);
        let mut fired = Vec::new();
        for policy in policies.iter().filter(|p| p.mode == Mode::DryRun && !p.targets.is_empty()) {
            for rule in &policy.rules {
                let truth = holds(rule, &call);
                let fires = match policy.action {
                    Action::Allow => truth == Truth::True,
                    Action::Deny => truth != Truth::False,
                };
                if fires {
                    fired.push((policy.metadata.name.to_string(), rule.name.to_string()));
                }
            }
        }
        fired.sort();
        let recorded: Vec<_> = authorization.shadow.iter().map(|verdict| {
            let rule = &verdict.found.rule;
            (rule.policy().metadata.name.to_string(), rule.name().to_string())
        }).collect();
        prop_assert_eq!(recorded, fired);
    }

    #[test]
    fn the_nearest_rule_is_an_allow_that_fails_and_none_is_nearer(policies in any_policies(), call in any_call()) {
        let Decision::Deny(denial) = authorize(&snapshot_of(&policies), &call).decision else { return Ok(()) };
        if !matches!(denial.reason, DenyReason::NoAllow(..)) {
            prop_assert_eq!(denial.nearest, None);
            return Ok(());
        }
        let candidates: Vec<_> = policies
            .iter()
            .filter(|p| p.mode == Mode::Enforce && p.action == Action::Allow && !p.targets.is_empty())
            .flat_map(|policy| &policy.rules)
            .collect();
        prop_assert_eq!(denial.nearest.is_none(), candidates.is_empty());
        let Some(nearest) = denial.nearest else { return Ok(()) };
        prop_assert_ne!(nearest.verdict(), Truth::True);
        prop_assert!(nearest.first_failing().is_some());
        let names_caller = |rule: &Rule| {
            or(rule.sources.iter().map(|s| is(s, call.source.as_ref(), &domain())).collect()) == Truth::True
        };
        if candidates.iter().any(|rule| names_caller(rule)) {
            prop_assert!(names_caller(nearest.rule.rule()), "a rule that names the caller is nearer");
        }
    }

    #[test]
    fn f08_losing_a_part_never_widens(
        policies in any_policies(), call in any_call(), which in any::<usize>(), part in 0..5_u8,
    ) {
        let whole = authorize(&snapshot_of(&policies), &call).decision.is_allowed();
        let mut damaged = policies;
        lose(&mut damaged, which, part);
        let left = authorize(&snapshot_of(&damaged), &call).decision.is_allowed();
        prop_assert!(whole || !left);
    }

    #[test]
    fn f08_a_policy_that_cannot_be_read_never_widens(
        policies in any_policies(), call in any_call(), which in any::<usize>(),
    ) {
        let whole = authorize(&snapshot_of(&policies), &call).decision.is_allowed();
        let mut view = view([charge()]);
        view.extend(policies.iter().cloned());
        if let Some(lost) = which.checked_rem(policies.len()).map(|index| &policies[index]) {
            let key = ViewKey::AuthorizationPolicy(namespace("shop"), lost.metadata.name.clone());
            view.insert(Unreadable { key, targets: lost.targets.clone(), why: "truncated".to_owned() });
        }
        let left = authorize(&snapshot(view), &call).decision.is_allowed();
        prop_assert!(whole || !left);
    }

    #[test]
    fn every_decision_can_be_told(policies in any_policies(), call in any_call()) {
        let snapshot = snapshot_of(&policies);
        let source = call.source.as_ref().map_or(Principal::Unauthenticated, Principal::Spiffe);
        let service = service_name("charge", "shop");
        let request = CallRequest { source, service: &service, port: call.port, network: call.network };
        let (authorization, told) = snapshot.explain(&request);
        prop_assert_eq!(&authorization, &authorize(&snapshot, &call));
        prop_assert!(!told.what.is_empty() && !told.why.is_empty());
        prop_assert!(told.why.iter().chain(&told.fix).all(|line| !line.contains('\n')));
        if let Decision::Deny(denial) = &authorization.decision {
            prop_assert_eq!(told.code, Some(denial.code));
            prop_assert!(told.fix.iter().any(|fix| fix.contains("weft ")));
            prop_assert!(!denial.summary().is_empty() && denial.caller_detail().len() <= 512);
        }
    }
}
