//! History and rollback: what every change was, and objects as they stood before it.

use weft_api::pb::management::{DeleteRequest, HistoryRequest, ObjectRevision, RollbackRequest};
use weft_policy::{code, model::DefaultAuthorization};

use super::*;
use crate::{
    clock::Clock,
    harness::{Plane, local},
    roles::Role,
    samples,
    store::embedded::Bounds,
};

pub(super) fn port(name: &str, port: u16) -> Value {
    let mut service = service(name);
    service["spec"]["ports"][0]["port"] = json!(port);
    service
}

async fn apply_for(client: &mut Client, value: &Value, reason: &str) -> u64 {
    let request = ApplyRequest {
        documents: documents(std::slice::from_ref(value)),
        reason: reason.to_owned(),
        ..Default::default()
    };
    client.apply(request).await.unwrap().into_inner().change
}

pub(super) async fn revisions(client: &mut Client, kind: &str, name: &str) -> Vec<ObjectRevision> {
    let request = HistoryRequest { r#ref: Some(reference(kind, name)), revision: None };
    client.history(request).await.unwrap().into_inner().revisions
}

async fn at(client: &mut Client, kind: &str, name: &str, revision: u64) -> Result<Option<Value>, Status> {
    let request = HistoryRequest { r#ref: Some(reference(kind, name)), revision: Some(revision) };
    let found = client.history(request).await?.into_inner().revisions.remove(0);
    Ok(found.document.map(|document| serde_json::from_slice(&document.json).unwrap()))
}

async fn rollback(
    client: &mut Client,
    refs: &[(&str, &str)],
    to_revision: Option<u64>,
) -> Result<ApplyResponse, Status> {
    let refs = refs.iter().map(|(kind, name)| reference(kind, name)).collect();
    let request = RollbackRequest { refs, to_revision, ..Default::default() };
    client.rollback(request).await.map(tonic::Response::into_inner)
}

async fn delete(client: &mut Client, kind: &str, name: &str) {
    let refs = vec![reference(kind, name)];
    client.delete(DeleteRequest { refs, reason: "gone".to_owned(), ..Default::default() }).await.unwrap();
}

async fn port_of(client: &mut Client, name: &str) -> Value {
    get(client, "svc", name).await.unwrap()["spec"]["ports"][0]["port"].clone()
}

#[tokio::test]
async fn every_change_is_a_revision_with_author_time_and_reason() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let first = apply_for(&mut client, &port("new", 80), "ticket 7").await;
    let second = apply_for(&mut client, &port("new", 81), "").await;
    apply_for(&mut client, &port("other", 80), "").await;
    delete(&mut client, "svc", "new").await;

    let told = revisions(&mut client, "svc", "new").await;
    let rows: Vec<_> = told.iter().map(|r| (r.action.as_str(), r.verb.as_str(), r.reason.as_str())).collect();
    let expected =
        [("deleted", "delete", "gone"), ("configured", "apply", ""), ("created", "apply", "ticket 7")];
    assert_eq!(rows, expected);
    assert_eq!((told[2].revision, told[1].revision, told[0].revision), (first, second, second + 2));
    assert!(told.iter().all(|r| r.author == "uid 1000" && r.time.ends_with('Z')), "{told:?}");
    assert_eq!(at(&mut client, "svc", "new", first).await.unwrap().unwrap()["spec"]["ports"][0]["port"], 80);
    assert_eq!(at(&mut client, "svc", "new", second).await.unwrap().unwrap()["spec"]["ports"][0]["port"], 81);
    assert_eq!(at(&mut client, "svc", "new", second + 2).await.unwrap(), None);
    let never = HistoryRequest { r#ref: Some(reference("svc", "never")), revision: None };
    refused(client.history(never).await, Code::NotFound, code::NOT_FOUND);
}

#[tokio::test]
async fn what_changes_nothing_and_what_is_refused_is_no_revision() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    apply(&mut client, &[port("new", 80)]).await.unwrap();
    assert_eq!(apply(&mut client, &[port("new", 80)]).await.unwrap().change, 0);
    let dry = ApplyRequest { documents: documents(&[port("new", 81)]), dry_run: true, ..Default::default() };
    client.apply(dry).await.unwrap();
    let mut stale = port("new", 82);
    stale["metadata"]["resourceVersion"] = json!("1");
    refused(apply(&mut client, &[stale]).await, Code::Aborted, code::WRITE_CONFLICT);
    assert_eq!(revisions(&mut client, "svc", "new").await.len(), 1);
}

#[tokio::test]
async fn a_rollback_is_a_revision_of_its_own_and_can_be_rolled_back() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let first = apply_for(&mut client, &port("new", 80), "").await;
    apply_for(&mut client, &port("new", 81), "").await;
    apply_for(&mut client, &port("new", 82), "").await;
    let answer = rollback(&mut client, &[("svc", "new")], Some(first)).await.unwrap();
    assert_eq!(answer.results[0].outcome, "configured");
    assert_eq!(port_of(&mut client, "new").await, 80);
    let newest = revisions(&mut client, "svc", "new").await.remove(0);
    assert_eq!((newest.revision, newest.verb.as_str(), newest.of), (answer.change, "rollback", first));

    rollback(&mut client, &[("svc", "new")], None).await.unwrap();
    assert_eq!(port_of(&mut client, "new").await, 82, "without a revision: before the newest change");
    let same = rollback(&mut client, &[("svc", "new")], Some(answer.change + 1)).await.unwrap();
    assert_eq!((same.results[0].outcome.as_str(), same.change), ("unchanged", 0));
}

#[tokio::test]
async fn a_rollback_brings_back_what_was_deleted_and_takes_away_what_was_created() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let created = apply_for(&mut client, &port("new", 80), "").await;
    delete(&mut client, "svc", "new").await;
    rollback(&mut client, &[("svc", "new")], Some(created)).await.unwrap();
    assert_eq!(port_of(&mut client, "new").await, 80);

    let answer = rollback(&mut client, &[("svc", "new")], None).await.unwrap();
    assert_eq!(answer.results[0].outcome, "deleted");
    refused(get(&mut client, "svc", "new").await, Code::NotFound, code::NOT_FOUND);
}

#[tokio::test]
async fn an_object_that_is_older_than_the_history_has_its_first_state_as_revision_zero() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    assert!(revisions(&mut client, "svc", "charge").await.is_empty());
    refused(rollback(&mut client, &[("svc", "charge")], None).await, Code::NotFound, code::NO_SUCH_REVISION);
    apply(&mut client, &[port("charge", 81)]).await.unwrap();
    let told = revisions(&mut client, "svc", "charge").await;
    assert_eq!(told.iter().map(|r| r.action.as_str()).collect::<Vec<_>>(), ["configured", "before"]);
    rollback(&mut client, &[("svc", "charge")], Some(0)).await.unwrap();
    assert_eq!(port_of(&mut client, "charge").await, 80);
}

#[tokio::test]
async fn a_rollback_needs_the_role_that_the_change_back_needs() {
    let plane = Plane::shop().await;
    let mut admin = plane.admin().await;
    let mut editor = plane.people(local(Role::Editor)).await;
    let mut open = samples::service("order", "shop");
    open.default_authorization = Some(DefaultAuthorization::Allow);
    let open = json_of(&Resource::Service(open));
    let opened = apply_for(&mut admin, &open, "").await;
    let documents = documents(&[service("order")]);
    editor.apply(ApplyRequest { documents, force: true, ..Default::default() }).await.unwrap();
    let loosens = rollback(&mut editor, &[("svc", "order")], Some(opened)).await;
    refused(loosens, Code::PermissionDenied, code::LOOSENING_NEEDS_ADMIN);
    rollback(&mut admin, &[("svc", "order")], Some(opened)).await.unwrap();

    let mut viewer = plane.people(local(Role::Viewer)).await;
    let answer = rollback(&mut viewer, &[("svc", "order")], None).await;
    refused(answer, Code::PermissionDenied, code::NOT_PERMITTED);
}

#[tokio::test]
async fn all_objects_go_back_or_none_and_what_contradicts_does_not() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let traffic = |name: &str| {
        json!({
            "apiVersion": "weft.mesh/v1alpha1", "kind": "TrafficPolicy",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "charge"}],
                     "timeouts": {"connect": "2s"}},
        })
    };
    let first = apply(&mut client, &[traffic("a"), port("new", 80)]).await.unwrap().change;
    delete(&mut client, "tp", "a").await;
    apply(&mut client, &[port("new", 81)]).await.unwrap();
    apply(&mut client, &[traffic("b")]).await.unwrap();
    let both = [("tp", "a"), ("svc", "new")];
    let answer = rollback(&mut client, &both, Some(first)).await;
    refused(answer, Code::InvalidArgument, code::CONTRADICTION);
    assert_eq!(port_of(&mut client, "new").await, 81, "nothing is half rolled back");

    delete(&mut client, "tp", "b").await;
    let answer = rollback(&mut client, &both, Some(first)).await.unwrap();
    assert_eq!(
        answer.results.iter().map(|r| r.outcome.as_str()).collect::<Vec<_>>(),
        ["configured", "created"]
    );
    assert_eq!(port_of(&mut client, "new").await, 80);
    get(&mut client, "tp", "a").await.unwrap();
}

#[tokio::test]
async fn a_revision_that_is_not_kept_is_not_guessed() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let first = apply_for(&mut client, &port("new", 80), "").await;
    let second = apply_for(&mut client, &port("new", 81), "").await;
    apply_for(&mut client, &port("new", 82), "").await;
    let beyond = rollback(&mut client, &[("svc", "new")], Some(second + 9)).await;
    refused(beyond, Code::NotFound, code::NO_SUCH_REVISION);
    // The change in the middle is lost: what stood after the first one is known nowhere any more.
    let store = &plane.rig.core.store;
    let key = crate::layout::change(second);
    store.delete(key, crate::store::Expected::Anything).await.unwrap();
    let lost = rollback(&mut client, &[("svc", "new")], Some(first)).await;
    refused(lost, Code::NotFound, code::NO_SUCH_REVISION);
    assert_eq!(port_of(&mut client, "new").await, 82);
}

#[tokio::test]
async fn history_is_bounded_and_the_newest_is_kept() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let quiet = apply_for(&mut client, &port("quiet", 80), "").await;
    for number in 0..80 {
        apply(&mut client, &[port("busy", 1_000 + number)]).await.unwrap();
    }
    let kept = crate::history::changes(&*plane.rig.core.store).await.unwrap();
    assert!(kept.len() <= 51 + 16, "{} changes are kept", kept.len());
    assert_eq!(kept[0].number, quiet, "a busy object pushes no other out");
    assert_eq!(revisions(&mut client, "svc", "busy").await.len(), 50 + 1, "fifty, and the state before them");
    assert!(plane.rig.core.metrics.history_forgotten.get() > 0);
}

#[tokio::test]
async fn a_store_that_is_full_gives_up_its_history_first_and_deleting_works() {
    let bounds = Bounds { max_bytes: 96 << 10, ..Bounds::default() };
    let plane = Plane::over(samples::Rig::with_bounds(Clock::system(), bounds).await);
    let mut client = plane.admin().await;
    let large = |name: &str, fill: char| {
        let mut large = service(name);
        large["metadata"]["annotations"] = json!({"corp.example/note": fill.to_string().repeat(8 << 10)});
        large
    };
    for fill in ['a', 'b', 'c', 'd'] {
        apply(&mut client, &[large("one", fill)]).await.unwrap();
    }
    let mut number = 0;
    let refusal = loop {
        number += 1;
        if let Err(status) = apply(&mut client, &[large(&format!("s{number}"), 'x')]).await {
            break status;
        }
        assert!(number < 20, "96 KiB are full");
    };
    refused(Err::<(), _>(refusal), Code::ResourceExhausted, code::STORE_FULL);
    assert!(number >= 9, "what history took is given to objects: {number}");
    delete(&mut client, "svc", "s1").await;
    delete(&mut client, "svc", "one").await;
    let newest = revisions(&mut client, "svc", "one").await.remove(0);
    assert_eq!(newest.action, "deleted");
}

#[tokio::test]
async fn a_reason_is_one_line_that_steers_nothing() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    for bad in ["a\nb", "\u{1b}[2J", "gpj.\u{202e}txt", "a\u{2028}b", &"r".repeat(513)] {
        let request = ApplyRequest {
            documents: documents(&[service("new")]),
            reason: (*bad).to_owned(),
            ..Default::default()
        };
        refused(client.apply(request).await, Code::InvalidArgument, code::BAD_VALUE);
    }
    apply_for(&mut client, &service("new"), &"ü".repeat(512)).await;
}

#[tokio::test]
async fn a_workload_that_was_deleted_comes_back_without_the_label_that_it_had() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    delete(&mut client, "wl", "order-1").await;
    rollback(&mut client, &[("wl", "order-1")], None).await.unwrap();
    assert!(get(&mut client, "wl", "order-1").await.unwrap()["spec"].get("label").is_none());
}
