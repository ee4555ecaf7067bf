//! Get, List, Status.

use std::collections::BTreeMap;

use weft_api::pb::management::{ListRequest, ListResponse, StatusRequest};
use weft_policy::code;

use super::*;
use crate::harness::Plane;

fn request(page_size: u32, page_token: &str) -> ListRequest {
    ListRequest {
        kind: "services".to_owned(),
        namespace: "shop".to_owned(),
        all_namespaces: false,
        selector: BTreeMap::new(),
        page_size,
        page_token: page_token.to_owned(),
    }
}

fn names(answer: &ListResponse) -> Vec<String> {
    let name = |document: &Document| {
        let object: Value = serde_json::from_slice(&document.json).unwrap();
        object["metadata"]["name"].as_str().unwrap().to_owned()
    };
    answer.documents.iter().map(name).collect()
}

#[tokio::test]
async fn a_list_is_walked_page_by_page_and_each_object_comes_once() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let many: Vec<_> = (0..20).map(|number| service(&format!("s{number:02}"))).collect();
    apply(&mut client, &many).await.unwrap();
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let answer = client.list(request(7, &token)).await.unwrap().into_inner();
        assert!(answer.documents.len() <= 7 && answer.revision > 0);
        all.extend(names(&answer));
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let mut sorted = all.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!((all.len(), sorted.len()), (23, 23));
}

#[tokio::test]
async fn api_06_odd_page_sizes_are_clamped_and_odd_tokens_refused() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    for size in [0, u32::MAX, 1 << 31] {
        let answer = client.list(request(size, "")).await.unwrap().into_inner();
        assert_eq!(answer.documents.len(), 3);
    }
    refused(client.list(request(1, "\u{1}?")).await, Code::InvalidArgument, code::BAD_VALUE);
}

#[tokio::test]
async fn a_page_never_outgrows_a_message() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let large = |number: usize| {
        let mut object = service(&format!("s{number}"));
        object["metadata"]["annotations"] = json!({"note": "x".repeat(48 * 1024)});
        object
    };
    for number in 0..5 {
        let objects: Vec<_> = (0..15).map(|other| large(number * 15 + other)).collect();
        apply(&mut client, &objects).await.unwrap();
    }
    let first = client.list(request(500, "")).await.unwrap().into_inner();
    assert!(!first.next_page_token.is_empty());
    let bytes: usize = first.documents.iter().map(|document| document.json.len()).sum();
    assert!(bytes <= 2 * 1024 * 1024 && bytes > 1024 * 1024, "{bytes}");
}

#[tokio::test]
async fn a_selector_asks_for_all_its_labels() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let mut labelled = service("labelled");
    labelled["metadata"]["labels"] = json!({"team": "payments", "tier": "one"});
    apply(&mut client, &[labelled]).await.unwrap();
    for (value, found) in [("one", 1), ("two", 0)] {
        let labels = [("team", "payments"), ("tier", value)];
        let selector = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let answer = client.list(ListRequest { selector, ..request(0, "") }).await.unwrap().into_inner();
        assert_eq!(answer.documents.len(), found, "{value}");
    }
}

#[tokio::test]
async fn an_unknown_kind_is_named_with_the_known_ones() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let status = client.list(ListRequest { kind: "Servcie".to_owned(), ..request(0, "") }).await.unwrap_err();
    let told = fault(&status);
    assert_eq!(told.code, code::UNKNOWN_KIND.as_str());
    assert!(told.why.iter().any(|fact| fact.contains("Service, WorkloadEnrollment")), "{told:?}");
    let status = get(&mut client, "workload", "order-2").await.unwrap_err();
    assert_eq!(fault(&status).code, code::NOT_FOUND.as_str());
}

#[tokio::test]
async fn an_object_in_another_namespace_is_offered() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let elsewhere = ObjectRef { namespace: "default".to_owned(), ..reference("service", "charge") };
    let status = client.get(GetRequest { r#ref: Some(elsewhere) }).await.unwrap_err();
    assert!(fault(&status).why.iter().any(|fact| fact == "there is Service/charge.shop"), "{status:?}");
}

#[tokio::test]
async fn status_counts_endpoints_and_names_problems_with_codes() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    apply(&mut client, &[service("empty")]).await.unwrap();
    let _hosta = plane.rig.core.presence.connect(&"hosta".parse().unwrap(), 1, "0.1.0".to_owned()).unwrap();
    let status = client.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.trust_domain.as_str(), status.instance.as_str()), ("corp.example", "one"));
    let agents: Vec<_> = status.agents.iter().map(|agent| (agent.node.as_str(), agent.connected)).collect();
    assert_eq!(agents, [("hosta", true), ("hostb", false), ("hostc", false)]);
    assert_eq!(status.agents[1].workloads, 1);
    assert!(status.agents[0].last_seen.ends_with('Z') && status.agents[1].last_seen.is_empty());
    let charge = status.services.iter().find(|service| service.service == "charge.shop").unwrap();
    assert_eq!((charge.endpoints, charge.confirmed), (1, 1));
    let problems: Vec<_> =
        status.problems.iter().map(|problem| (problem.code.as_str(), &problem.what)).collect();
    assert!(
        problems.iter().any(|(code, what)| *code == "W1005" && what.contains("empty.shop")),
        "{problems:?}"
    );
    assert!(problems.iter().any(|(code, what)| *code == "W6001" && what.contains("hostb")), "{problems:?}");
    assert!(status.problems.iter().all(|problem| !problem.fix.is_empty()));
}
