//! Watch: from a revision, in order, within bounds.

use weft_api::pb::management::{DeleteRequest, WatchEvent, WatchRequest};
use weft_policy::code;

use super::*;
use crate::{
    harness::{Plane, agent, local, scoped},
    roles::{Caller, Role},
    samples,
};

fn services(from_revision: u64) -> WatchRequest {
    WatchRequest {
        kind: "service".to_owned(),
        namespace: "shop".to_owned(),
        all_namespaces: false,
        from_revision,
    }
}

fn told(event: &WatchEvent) -> (String, String, bool) {
    let name = event.r#ref.as_ref().unwrap().name.clone();
    (event.r#type.clone(), name, event.document.is_some())
}

#[tokio::test]
async fn a_watch_from_a_revision_misses_nothing_and_tells_only_what_was_asked_for() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let first = apply(&mut client, &[service("one")]).await.unwrap().revision;
    let policy = json_of(&Resource::AuthorizationPolicy(samples::policy("p", "shop", "charge", "order")));
    apply(&mut client, &[policy]).await.unwrap();
    let mut events = client.watch(services(first)).await.unwrap().into_inner();
    apply(&mut client, &[service("two")]).await.unwrap();
    let refs = vec![reference("svc", "one")];
    client.delete(DeleteRequest { refs, ..Default::default() }).await.unwrap();
    for expected in [("put", "one", true), ("put", "two", true), ("delete", "one", false)] {
        let event = events.message().await.unwrap().unwrap();
        let (kind, name, document) = told(&event);
        assert_eq!((kind.as_str(), name.as_str(), document), expected);
    }
}

#[tokio::test]
async fn a_watch_without_a_revision_tells_what_comes_next_and_of_the_callers_namespaces_only() {
    let plane = Plane::shop().await;
    let mut admin = plane.admin().await;
    let mut viewer = plane.people(scoped(Role::Viewer, "shop")).await;
    let all = WatchRequest { namespace: String::new(), all_namespaces: true, ..services(0) };
    let mut events = viewer.watch(all).await.unwrap().into_inner();
    let mut elsewhere = service("vault");
    elsewhere["metadata"]["namespace"] = json!("bank");
    apply(&mut admin, &[elsewhere]).await.unwrap();
    apply(&mut admin, &[service("mine")]).await.unwrap();
    assert_eq!(told(&events.message().await.unwrap().unwrap()).1, "mine");
}

#[tokio::test]
async fn api_07_one_caller_has_at_most_64_watches() {
    let plane = Plane::shop().await;
    // Two connections of one caller: the bound is the caller's, not the connection's (which has one of its own).
    let mut clients = [plane.admin().await, plane.admin().await];
    let mut open = Vec::new();
    for number in 0..64 {
        open.push(clients[number % 2].watch(services(0)).await.unwrap());
    }
    let status = clients[0].watch(services(0)).await.unwrap_err();
    refused::<()>(Err(status), Code::ResourceExhausted, code::TOO_MANY_STREAMS);
    let mut other =
        plane.people(Caller { source: crate::roles::Source::Local { uid: 7 }, ..local(Role::Viewer) }).await;
    other.watch(services(0)).await.unwrap();
    assert_eq!(plane.rig.core.metrics.watches.get(), 65);

    open.clear();
    while plane.rig.core.metrics.watches.get() > 1 {
        tokio::task::yield_now().await;
    }
    clients[0].watch(services(0)).await.unwrap();
}

#[tokio::test]
async fn a_watch_from_a_part_of_the_history_that_is_gone_says_so() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let revision = apply(&mut client, &[service("one")]).await.unwrap().revision;
    plane.rig.core.store.compact(crate::store::Revision(revision)).await.unwrap();
    let status = client.watch(services(1)).await.unwrap_err();
    refused::<()>(Err(status), Code::OutOfRange, code::COMPACTED);
    let status = client.watch(services(revision + 50)).await.unwrap_err();
    refused::<()>(Err(status), Code::OutOfRange, code::STORE_BEHIND);
}

#[tokio::test]
async fn api_14_a_watch_ends_when_the_callers_certificate_does() {
    let (clock, hands) = crate::clock::Clock::test(samples::far() - std::time::Duration::from_secs(10));
    let plane = Plane::with_clock(clock).await;
    plane.rig.put_shop().await;
    let caller = Caller { role: Role::Viewer, ..agent("ada", samples::far()) };
    let mut client = plane.people(caller).await;
    let mut events = client.watch(services(0)).await.unwrap().into_inner();
    hands.advance(std::time::Duration::from_secs(10));
    let status = events.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_watch_ends_when_the_server_does() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let mut events = client.watch(services(0)).await.unwrap().into_inner();
    plane.rig.core.draining.cancel();
    assert_eq!(events.message().await.unwrap_err().code(), Code::Unavailable);
}
