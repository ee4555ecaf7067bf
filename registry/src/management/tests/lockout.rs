//! POL-06: a change that would cut every call to a service must be meant.

use std::time::{Duration, SystemTime};

use weft_api::pb::management::{DeleteRequest, DeleteResponse};
use weft_policy::code;

use super::*;
use crate::{
    clock::Clock,
    harness::{Plane, scoped},
    layout,
    records::{Record as _, RegistrationRecord},
    roles::Role,
    samples,
    store::Expected,
};

/// A policy about charge.
fn policy(name: &str, action: &str, source: Value) -> Value {
    json!({
        "apiVersion": "weft.mesh/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "charge"}],
            "action": action,
            "rules": [{"name": "all", "sources": [source]}],
        },
    })
}

fn deny_all() -> Value {
    policy("deny-all", "DENY", json!({"type": "Any"}))
}

fn exactly(account: &str) -> Value {
    json!({"type": "SPIFFE", "spiffe": format!("spiffe://corp.example/ns/shop/sa/{account}")})
}

async fn apply_as(
    client: &mut Client,
    value: &Value,
    dry_run: bool,
    force: bool,
) -> Result<ApplyResponse, Status> {
    let documents = documents(std::slice::from_ref(value));
    let request = ApplyRequest { documents, dry_run, force, ..Default::default() };
    client.apply(request).await.map(tonic::Response::into_inner)
}

async fn delete(client: &mut Client, name: &str, force: bool) -> Result<DeleteResponse, Status> {
    let refs = vec![reference("ap", name)];
    client.delete(DeleteRequest { refs, force, ..Default::default() }).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn pol_06_a_policy_that_refuses_every_live_call_to_a_service_is_refused_unless_forced() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let answer = apply_as(&mut client, &deny_all(), false, false).await;
    let what = refused(answer, Code::FailedPrecondition, code::LOCKOUT);
    assert!(what.contains("charge.shop"), "{what}");
    refused(get(&mut client, "ap", "deny-all").await, Code::NotFound, code::NOT_FOUND);
    assert_eq!(plane.rig.core.metrics.lockouts.get(), 1);
    apply_as(&mut client, &deny_all(), false, true).await.unwrap();
    // Nobody is let in any more, so nobody can be locked out.
    apply_as(&mut client, &policy("deny-more", "DENY", json!({"type": "Any"})), false, false).await.unwrap();
}

#[tokio::test]
async fn pol_06_taking_the_only_permission_away_is_refused_unless_forced() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let answer = delete(&mut client, "charge-from-order", false).await;
    refused(answer, Code::FailedPrecondition, code::LOCKOUT);
    let misspelt = policy("charge-from-order", "ALLOW", exactly("ordr"));
    refused(apply_as(&mut client, &misspelt, false, false).await, Code::FailedPrecondition, code::LOCKOUT);
    delete(&mut client, "charge-from-order", true).await.unwrap();
}

#[tokio::test]
async fn pol_06_who_is_named_one_by_one_is_meant_and_a_dry_run_policy_cuts_nobody() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let mut shadow = deny_all();
    shadow["spec"]["mode"] = json!("DryRun");
    apply_as(&mut client, &shadow, false, false).await.unwrap();
    let named = policy("deny-order", "DENY", exactly("order"));
    apply_as(&mut client, &named, false, false).await.unwrap();
}

#[tokio::test]
async fn pol_06_what_leaves_somebody_in_or_concerns_nobody_is_not_refused() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let also = policy("charge-from-ledger", "ALLOW", exactly("ledger"));
    apply_as(&mut client, &also, false, false).await.unwrap();
    delete(&mut client, "charge-from-order", false).await.unwrap();
    let mut elsewhere = deny_all();
    elsewhere["spec"]["targetRefs"][0]["name"] = json!("order");
    apply_as(&mut client, &elsewhere, false, false).await.unwrap();
}

#[tokio::test]
async fn pol_06_a_default_that_closes_a_whole_mesh_is_refused_unless_forced() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let with = |default: &str| {
        let mut mesh = json_of(&Resource::Mesh(samples::mesh()));
        mesh["spec"]["defaultAuthorization"] = json!(default);
        mesh
    };
    apply_as(&mut client, &with("Allow"), false, false).await.unwrap();
    let what = refused(
        apply_as(&mut client, &with("Deny"), false, false).await,
        Code::FailedPrecondition,
        code::LOCKOUT,
    );
    assert!(what.contains("order.shop") && !what.contains("charge.shop"), "{what}");
    apply_as(&mut client, &with("Deny"), false, true).await.unwrap();
}

#[tokio::test]
async fn callers_that_nobody_vouches_for_are_not_locked_out() {
    let (clock, hands) = Clock::test(SystemTime::UNIX_EPOCH);
    let plane = Plane::with_clock(clock).await;
    plane.rig.put_shop().await;
    let mut client = plane.admin().await;
    hands.advance(Duration::from_secs(61));
    let doubted = |world: &std::sync::Arc<crate::world::World>| {
        !world.standings().is_confirmed(&("shop".parse().unwrap(), "order-1".parse().unwrap()))
    };
    plane.rig.core.world.changes().wait_for(doubted).await.unwrap();
    apply_as(&mut client, &deny_all(), false, false).await.unwrap();
}

#[tokio::test]
async fn a_dry_run_tells_which_live_calls_are_decided_otherwise() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let answer = apply_as(&mut client, &deny_all(), true, true).await.unwrap();
    assert_eq!((answer.decisions.len(), answer.more_decisions, answer.change), (1, 0, 0));
    let decision = &answer.decisions[0];
    assert_eq!(decision.source, "spiffe://corp.example/ns/shop/sa/order");
    assert_eq!((decision.service.as_str(), decision.port), ("charge.shop", 80));
    assert!(decision.allowed_before && !decision.allowed_after);
    let also = policy("charge-from-ledger", "ALLOW", exactly("ledger"));
    let opened = apply_as(&mut client, &also, true, false).await.unwrap().decisions.remove(0);
    assert!(!opened.allowed_before && opened.allowed_after, "{opened:?}");
}

#[tokio::test]
async fn pol_06_a_dry_run_of_a_lock_out_tells_what_would_happen_and_why_it_would_be_refused() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let first = service("charge");
    let values = [first, deny_all(), policy("deny-more", "DENY", json!({"type": "Any"}))];
    apply(&mut client, &values[..1]).await.unwrap();
    let request = ApplyRequest { documents: documents(&values), dry_run: true, ..Default::default() };
    let answer = client.apply(request).await.unwrap().into_inner();
    assert_eq!((answer.decisions.len(), answer.change), (1, 0));
    assert!(answer.decisions[0].allowed_before && !answer.decisions[0].allowed_after);
    let locked = |warnings: &[String]| warnings.iter().filter(|line| line.starts_with("W6031: ")).count();
    let counts: Vec<_> = answer.results.iter().map(|result| locked(&result.warnings)).collect();
    assert_eq!(counts, [0, 1, 0], "once, with what changes: {answer:?}");
    let told = answer.results[1].warnings.iter().find(|line| line.starts_with("W6031")).unwrap();
    assert!(told.contains("charge.shop is called by spiffe://corp.example/ns/shop/sa/order"), "{told}");

    let refs = vec![reference("ap", "charge-from-order")];
    let request = DeleteRequest { refs, dry_run: true, ..Default::default() };
    let answer = client.delete(request).await.unwrap().into_inner();
    assert_eq!((answer.decisions.len(), locked(&answer.warnings)), (1, 1), "{answer:?}");
    get(&mut client, "ap", "charge-from-order").await.unwrap();
    assert_eq!(plane.rig.core.metrics.lockouts.get(), 0, "nothing was refused");
}

/// Lets a live caller of another namespace call charge.
async fn let_teller_in(plane: &Plane) {
    let bank = "bank".parse().unwrap();
    let teller = samples::workload("teller-1", "bank", "hosta", &["teller"]);
    let label = teller.label.clone().unwrap();
    let enrollment = samples::enrollment("tellers", "bank", &["hosta"], "sa/teller");
    plane.rig.put(&Resource::WorkloadEnrollment(enrollment)).await;
    plane.rig.put(&Resource::Workload(teller)).await;
    let record = RegistrationRecord { node: "hosta".parse().unwrap(), boot: 1, label };
    let key = layout::registration(&bank, &"teller-1".parse().unwrap());
    let put = plane.rig.core.store.put(key, record.encode(), Expected::Anything, None);
    plane.rig.core.world.wait_for(put.await.unwrap()).await;
    let scoped = (bank, "teller-1".parse().unwrap());
    let live = |world: &std::sync::Arc<crate::world::World>| world.standings().is_confirmed(&scoped);
    plane.rig.core.world.changes().wait_for(live).await.unwrap();
    let source = json!({"type": "SPIFFE", "spiffe": "spiffe://corp.example/ns/bank/sa/teller"});
    apply(&mut plane.admin().await, &[policy("charge-from-teller", "ALLOW", source)]).await.unwrap();
}

#[tokio::test]
async fn pol_06_callers_of_namespaces_that_may_not_be_read_are_a_number() {
    let plane = Plane::shop().await;
    let_teller_in(&plane).await;
    let mut editor = plane.people(scoped(Role::Editor, "shop")).await;
    let status = apply_as(&mut editor, &deny_all(), false, false).await.unwrap_err();
    let why = fault(&status).why.join("; ");
    assert!(why.contains("ns/shop/sa/order and 1 of another namespace"), "{why}");
    assert!(!why.contains("teller"), "{why}");

    let dry = apply_as(&mut editor, &deny_all(), true, false).await.unwrap();
    assert!(!format!("{dry:?}").contains("teller"), "{dry:?}");
    assert_eq!((dry.decisions.len(), dry.more_decisions), (1, 1));

    let seen = apply_as(&mut plane.admin().await, &deny_all(), true, false).await.unwrap();
    let told = |needle: &str| seen.decisions.iter().filter(|d| d.source.contains(needle)).count();
    assert_eq!((told("bank/sa/teller"), seen.decisions.len(), seen.more_decisions), (1, 2, 0));
}

#[tokio::test]
async fn pol_06_a_name_in_a_rule_that_does_not_refuse_the_caller_is_not_meant() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let mut decoy = policy("deny-order", "DENY", exactly("order"));
    decoy["spec"]["rules"][0]["ports"] = json!([9_999]);
    apply_as(&mut client, &decoy, false, true).await.unwrap();
    decoy["spec"]["rules"] = json!([
        {"name": "decoy", "sources": [exactly("order")], "ports": [9_999]},
        {"name": "all", "sources": [{"type": "Any"}]},
    ]);
    let answer = apply_as(&mut client, &decoy, false, false).await;
    refused(answer, Code::FailedPrecondition, code::LOCKOUT);
}

#[tokio::test]
async fn pol_06_an_enrollment_without_which_live_workloads_could_not_be_where_they_are_stays_unless_forced() {
    let plane = Plane::shop().await;
    let_teller_in(&plane).await;
    let mut client = plane.admin().await;
    let remove = |dry_run, force| DeleteRequest {
        refs: vec![ObjectRef { namespace: "bank".to_owned(), ..reference("WorkloadEnrollment", "tellers") }],
        dry_run,
        force,
        ..Default::default()
    };
    let status = client.delete(remove(false, false)).await.unwrap_err();
    assert_eq!(fault(&status).code, code::LOCKOUT.as_str(), "{status:?}");
    assert!(fault(&status).why.join("; ").contains("Workload/teller-1.bank"), "{status:?}");
    let dry = client.delete(remove(true, false)).await.unwrap().into_inner();
    assert!(dry.warnings.iter().any(|line| line.starts_with("W6031")), "{dry:?}");
    client.delete(remove(false, true)).await.unwrap();
}
