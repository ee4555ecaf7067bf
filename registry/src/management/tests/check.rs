//! `policy check` answers as the destination's agent would.

use std::sync::Arc;

use proptest::prelude::*;
use weft_api::pb::management::{CheckPolicyRequest, CheckPolicyResponse};
use weft_policy::{
    authz::{CallRequest, Principal},
    code,
    snapshot::{Revision, Snapshot, SnapshotContext},
};

use super::*;
use crate::{
    harness::{Plane, local},
    roles::Role,
    samples,
    view::{self, Interest},
};

fn question(source: &str) -> CheckPolicyRequest {
    let source = if source.is_empty() { String::new() } else { format!("spiffe://corp.example{source}") };
    CheckPolicyRequest { source, service: "charge.shop".to_owned(), ..Default::default() }
}

async fn check(client: &mut Client, request: CheckPolicyRequest) -> CheckPolicyResponse {
    client.check_policy(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn an_allowed_call_names_policy_and_rule() {
    let plane = Plane::shop().await;
    let mut client = plane.people(local(Role::Viewer)).await;
    let answer = check(&mut client, question("/ns/shop/sa/order")).await;
    assert!(answer.allowed && answer.code.is_empty());
    assert_eq!((answer.policy.as_str(), answer.rule.as_str()), ("charge-from-order.shop", "order"));
    assert_eq!((answer.default_mode.as_str(), answer.default_from.as_str()), ("deny", "mesh"));
    assert!(answer.revision > 0);
}

#[tokio::test]
async fn a_refused_call_says_why_and_what_to_do() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let answer = check(&mut client, question("/ns/shop/sa/ledger")).await;
    assert!(!answer.allowed);
    assert_eq!(answer.code, code::NO_ALLOW.as_str());
    assert!(
        !answer.why.is_empty() && answer.fix.iter().any(|fix| fix.contains("weft policy allow")),
        "{answer:?}"
    );
    let plain = check(&mut client, question("")).await;
    assert_eq!(plain.code, code::UNAUTHENTICATED_CALLER.as_str());
    let nowhere = CheckPolicyRequest { service: "nowhere.shop".to_owned(), ..question("/ns/shop/sa/order") };
    assert_eq!(check(&mut client, nowhere).await.code, code::UNKNOWN_SERVICE.as_str());
    let port = CheckPolicyRequest { port: 81, ..question("/ns/shop/sa/order") };
    assert_eq!(check(&mut client, port).await.code, code::UNKNOWN_PORT.as_str());
}

#[tokio::test]
async fn objects_laid_over_count_for_this_check_only() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let allow = samples::policy("more", "shop", "charge", "ledger");
    let overlay = documents(&[json_of(&Resource::AuthorizationPolicy(allow))]);
    let with = CheckPolicyRequest { overlay, ..question("/ns/shop/sa/ledger") };
    assert!(check(&mut client, with).await.allowed);
    assert!(!check(&mut client, question("/ns/shop/sa/ledger")).await.allowed);
    let mut bad = json_of(&Resource::AuthorizationPolicy(samples::policy("x", "shop", "charge", "a")));
    bad["spec"]["rules"] = json!([]);
    let bad = CheckPolicyRequest { overlay: documents(&[bad]), ..question("/ns/shop/sa/order") };
    refused(client.check_policy(bad).await, Code::InvalidArgument, code::EMPTY_LIST);
}

#[tokio::test]
async fn a_dry_run_policy_is_told_as_a_shadow() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let mut deny = samples::policy("shadow", "shop", "charge", "order");
    deny.action = weft_policy::model::authorization::Action::Deny;
    deny.mode = weft_policy::model::authorization::Mode::DryRun;
    apply(&mut client, &[json_of(&Resource::AuthorizationPolicy(deny))]).await.unwrap();
    let answer = check(&mut client, question("/ns/shop/sa/order")).await;
    assert!(answer.allowed);
    assert_eq!(answer.shadow, ["shadow.shop: rule order would deny"]);
}

#[tokio::test]
async fn pol_02_a_policy_that_cannot_be_read_closes_the_service() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let key =
        Resource::AuthorizationPolicy(samples::policy("charge-from-order", "shop", "charge", "order")).key();
    let key = crate::layout::resource(&key);
    let put = plane.rig.core.store.put(key, "{".into(), crate::store::Expected::Anything, None);
    plane.rig.core.world.wait_for(put.await.unwrap()).await;
    let answer = check(&mut client, question("/ns/shop/sa/order")).await;
    assert_eq!(answer.code, code::POLICY_UNAVAILABLE.as_str());
}

#[tokio::test]
async fn what_cannot_be_understood_is_refused_with_its_field() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let mut ask = async |request| client.check_policy(request).await;
    let bad = CheckPolicyRequest { source: "order".to_owned(), ..question("") };
    refused(ask(bad).await, Code::InvalidArgument, code::BAD_SPIFFE_ID);
    let bad = CheckPolicyRequest { source_ip: "10.0.0".to_owned(), ..question("") };
    refused(ask(bad).await, Code::InvalidArgument, code::BAD_ADDRESS);
    let bad = CheckPolicyRequest { service: "charge".to_owned(), ..question("") };
    assert_eq!(ask(bad).await.unwrap_err().code(), Code::InvalidArgument);
    let bad = CheckPolicyRequest { port: 70_000, ..question("") };
    assert_eq!(ask(bad).await.unwrap_err().code(), Code::InvalidArgument);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Explain equals enforce: the answer is the decision of a snapshot built from what the hosting agent is sent.
    #[test]
    fn the_answer_is_the_decision_of_the_hosting_agent(
        pairs in proptest::collection::vec((0_usize..3, 0_usize..3, any::<bool>()), 0..5),
        default in 0_usize..3,
    ) {
        let names = ["charge", "ledger", "order"];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let plane = Plane::shop().await;
            let mut client = plane.admin().await;
            let mut objects = vec![json!({
                "apiVersion": "weft.mesh/v1alpha1", "kind": "Namespace", "metadata": {"name": "shop"},
                "spec": {"defaultAuthorization": (["Deny", "Audit", "Allow"][default])},
            })];
            for (number, (target, caller, deny)) in pairs.into_iter().enumerate() {
                let mut policy = samples::policy(&format!("p{number}"), "shop", names[target], names[caller]);
                if deny {
                    policy.action = weft_policy::model::authorization::Action::Deny;
                }
                objects.push(json_of(&Resource::AuthorizationPolicy(policy)));
            }
            apply(&mut client, &objects).await.unwrap();
            let world = plane.rig.core.world.current();
            for (name, host) in [("charge", "hostb"), ("ledger", "hostc"), ("order", "hosta")] {
                let interest = Interest::of_node(&world, &host.parse().unwrap(), Default::default());
                let context = SnapshotContext { trust_domain: samples::domain() };
                let view = Arc::new(view::build(&world, &interest));
                let snapshot = Snapshot::build(view, Revision(1), context).unwrap();
                for caller in names {
                    let id = samples::identity("shop", caller);
                    let service = samples::service_name(name, "shop");
                    let source = Principal::Spiffe(&id);
                    let call = CallRequest { source, service: &service, port: 80, network: None };
                    let enforced = snapshot.authorize(&call).decision.is_allowed();
                    let request = CheckPolicyRequest {
                        service: service.to_string(),
                        ..question(&format!("/ns/shop/sa/{caller}"))
                    };
                    assert_eq!(check(&mut client, request).await.allowed, enforced, "{caller} -> {name}");
                }
            }
        });
    }
}
