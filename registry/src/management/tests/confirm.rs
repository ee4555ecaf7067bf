//! Changes that wait: kept when they are confirmed, taken back when they are not.

use std::time::{Duration, SystemTime};

use weft_api::pb::management::{
    ConfirmRequest, ConfirmResponse, DeleteRequest, PendingChange, StatusRequest,
};
use weft_policy::{code, model::Key};

use super::{
    history::{port, revisions},
    *,
};
use crate::{
    clock::{Clock, TestClock},
    confirmation::LONGEST,
    harness::{Plane, local},
    layout,
    metrics::OutcomeLabels,
    roles::Role,
    samples,
    store::{Expected, StoreError, embedded::Bounds},
};

const WINDOW: Duration = Duration::from_secs(10);

async fn timed() -> (Plane, TestClock) {
    let (clock, hands) = Clock::test(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    let plane = Plane::with_clock(clock).await;
    plane.rig.put_shop().await;
    (plane, hands)
}

async fn apply_within(client: &mut Client, values: &[Value]) -> Result<ApplyResponse, Status> {
    let confirm_within_ms = u64::try_from(WINDOW.as_millis()).unwrap();
    let request = ApplyRequest { documents: documents(values), confirm_within_ms, ..Default::default() };
    client.apply(request).await.map(tonic::Response::into_inner)
}

async fn confirm(client: &mut Client, change: u64, abort: bool) -> Result<ConfirmResponse, Status> {
    client.confirm(ConfirmRequest { change, abort }).await.map(tonic::Response::into_inner)
}

async fn pending(client: &mut Client) -> Vec<PendingChange> {
    client.status(StatusRequest {}).await.unwrap().into_inner().pending
}

fn key(name: &str) -> Key {
    Resource::Service(samples::service(name, "shop")).key()
}

/// Waits until the world shows `name` with that port, or without it.
async fn shows(plane: &Plane, name: &str, port: Option<u16>) {
    let name = samples::service_name(name, "shop");
    let is = |world: &std::sync::Arc<crate::world::World>| {
        world.catalog().services().get(&name).map(|service| service.ports[0].number) == port
    };
    plane.rig.core.world.changes().wait_for(is).await.unwrap();
}

/// How often a change was taken back, once it ever was: it is counted after it is done.
async fn taken_back(plane: &Plane, outcome: &str) -> u64 {
    let labels = OutcomeLabels { outcome: outcome.to_owned() };
    let count = || plane.rig.core.metrics.taken_back.get_or_create(&labels).get();
    while count() == 0 {
        tokio::task::yield_now().await;
    }
    count()
}

#[tokio::test]
async fn what_nobody_confirms_is_taken_back_at_its_time() {
    let (plane, hands) = timed().await;
    let mut client = plane.admin().await;
    let answer = apply_within(&mut client, &[port("charge", 81), service("new")]).await.unwrap();
    assert_eq!(answer.confirm_by, "2027-01-15T08:00:10Z");
    shows(&plane, "charge", Some(81)).await;
    let told = pending(&mut client).await;
    assert_eq!((told[0].change, told[0].objects.len()), (answer.change, 2));

    hands.advance(WINDOW - Duration::from_millis(1));
    assert_eq!(pending(&mut client).await.len(), 1);
    hands.advance(Duration::from_millis(1));
    shows(&plane, "charge", Some(80)).await;
    shows(&plane, "new", None).await;
    let newest = revisions(&mut client, "svc", "charge").await.remove(0);
    assert_eq!((newest.verb.as_str(), newest.of), ("unconfirmed", answer.change));
    assert_eq!(newest.author, "server one");
    assert!(pending(&mut client).await.is_empty());
    assert_eq!(taken_back(&plane, "ok").await, 1);
}

#[tokio::test]
async fn what_is_confirmed_stays() {
    let (plane, hands) = timed().await;
    let mut client = plane.admin().await;
    let change = apply_within(&mut client, &[port("charge", 81)]).await.unwrap().change;
    assert_eq!(confirm(&mut client, 0, false).await.unwrap().change, change, "the only one of the caller's");
    assert!(plane.rig.core.store.get(&layout::unconfirmed(change)).await.unwrap().is_none());
    hands.advance(LONGEST);
    // A second one is taken back at the same time, after which the first would have been.
    apply_within(&mut client, &[port("ledger", 81)]).await.unwrap();
    hands.advance(WINDOW);
    shows(&plane, "ledger", Some(80)).await;
    shows(&plane, "charge", Some(81)).await;
    refused(confirm(&mut client, change, false).await, Code::NotFound, code::NOT_WAITING);
}

#[tokio::test]
async fn the_same_for_another_reason_is_no_change_and_is_still_taken_back() {
    let (plane, hands) = timed().await;
    let mut client = plane.admin().await;
    let confirm_within_ms = u64::try_from(WINDOW.as_millis()).unwrap();
    let asked = |reason: &str, confirm_within_ms| ApplyRequest {
        documents: documents(&[port("charge", 81)]),
        reason: reason.to_owned(),
        confirm_within_ms,
        ..Default::default()
    };
    client.apply(asked("ticket 7", confirm_within_ms)).await.unwrap();
    for reason in ["ticket 8", ""] {
        let again = client.apply(asked(reason, 0)).await.unwrap().into_inner();
        assert_eq!((again.results[0].outcome.as_str(), again.change), ("unchanged", 0), "{reason}");
    }
    // One that stands in the manifest is asked for.
    let mut own = port("ledger", 81);
    for reason in ["PCI scope", "none any more"] {
        own["metadata"]["annotations"] = json!({"weft.mesh/reason": reason});
        assert_eq!(apply(&mut client, &[own.clone()]).await.unwrap().results[0].outcome, "configured");
    }
    hands.advance(WINDOW);
    shows(&plane, "charge", Some(80)).await;
}

#[tokio::test]
async fn whoever_aborts_takes_it_back_at_once() {
    let (plane, _hands) = timed().await;
    let mut client = plane.admin().await;
    let change = apply_within(&mut client, &[port("charge", 81)]).await.unwrap().change;
    let answer = confirm(&mut client, change, true).await.unwrap();
    assert!(answer.undone_by > change);
    assert_eq!(answer.results[0].outcome, "configured");
    shows(&plane, "charge", Some(80)).await;
    refused(confirm(&mut client, change, true).await, Code::NotFound, code::NOT_WAITING);
}

#[tokio::test]
async fn what_somebody_changed_since_is_left_alone_and_that_is_said() {
    let (plane, hands) = timed().await;
    let mut client = plane.admin().await;
    apply_within(&mut client, &[port("charge", 81), port("ledger", 81)]).await.unwrap();
    let answer = apply(&mut client, &[port("charge", 82)]).await.unwrap();
    assert!(answer.results[0].warnings.iter().any(|line| line.contains("W6050")), "{answer:?}");
    hands.advance(WINDOW);
    shows(&plane, "ledger", Some(80)).await;
    shows(&plane, "charge", Some(82)).await;
    assert_eq!(taken_back(&plane, "partly").await, 1);
}

#[tokio::test]
async fn who_comes_after_a_taking_back_that_changed_nothing_does_not_wait_for_it() {
    let (plane, _hands) = timed().await;
    let mut client = plane.admin().await;
    let change = apply_within(&mut client, &[port("charge", 81)]).await.unwrap().change;
    apply(&mut client, &[port("charge", 82)]).await.unwrap();
    let answer = confirm(&mut client, change, true).await.unwrap();
    assert!(answer.results[0].warnings.iter().any(|line| line.contains("W6051")), "{answer:?}");
    // The world shows no commit without objects, and would be waited for in vain for 5 s.
    let next = [port("ledger", 81)];
    let applied = tokio::time::timeout(Duration::from_secs(3), apply(&mut client, &next));
    applied.await.expect("nothing to wait for").unwrap();
}

#[tokio::test]
async fn an_object_waits_for_one_confirmation_at_a_time() {
    let (plane, _hands) = timed().await;
    let mut client = plane.admin().await;
    apply_within(&mut client, &[port("charge", 81)]).await.unwrap();
    let second = apply_within(&mut client, &[port("charge", 82)]).await;
    refused(second, Code::FailedPrecondition, code::UNCONFIRMED);
    for name in ["a", "b", "c"] {
        apply_within(&mut client, &[service(name)]).await.unwrap();
    }
    let fifth = apply_within(&mut client, &[service("d")]).await;
    refused(fifth, Code::ResourceExhausted, code::UNCONFIRMED);
    refused(confirm(&mut client, 0, false).await, Code::InvalidArgument, code::BAD_VALUE);
}

#[tokio::test]
async fn too_short_and_too_long_a_time_is_refused() {
    let (plane, _hands) = timed().await;
    let mut client = plane.admin().await;
    for confirm_within_ms in [1, 9_999, 24 * 3_600_000 + 1] {
        let request =
            ApplyRequest { documents: documents(&[service("new")]), confirm_within_ms, ..Default::default() };
        refused(client.apply(request).await, Code::InvalidArgument, code::BAD_VALUE);
    }
}

#[tokio::test]
async fn only_an_admin_confirms_what_only_an_admin_could_do() {
    let (plane, hands) = timed().await;
    let (mut admin, mut editor) = (plane.admin().await, plane.people(local(Role::Editor)).await);
    let mut open = service("charge");
    open["spec"]["defaultAuthorization"] = json!("Allow");
    let change = apply_within(&mut admin, &[open]).await.unwrap().change;
    refused(confirm(&mut editor, change, false).await, Code::PermissionDenied, code::NOT_PERMITTED);
    hands.advance(WINDOW);
    let closed = |world: &std::sync::Arc<crate::world::World>| {
        let service = world.catalog().services().get(&samples::service_name("charge", "shop"));
        service.is_some_and(|service| service.default_authorization.is_none())
    };
    plane.rig.core.world.changes().wait_for(closed).await.unwrap();
}

#[tokio::test]
async fn what_somebody_else_tightened_is_not_opened_again_by_an_editor() {
    let (plane, _hands) = timed().await;
    let (mut admin, mut editor) = (plane.admin().await, plane.people(local(Role::Editor)).await);
    let mut eve = local(Role::Editor);
    eve.source = crate::roles::Source::Local { uid: 2_000 };
    let mut eve = plane.people(eve).await;
    let mut open = service("charge");
    open["spec"]["defaultAuthorization"] = json!("Allow");
    apply(&mut admin, &[open]).await.unwrap();
    let change = apply_within(&mut editor, &[service("charge")]).await.unwrap().change;
    let answer = confirm(&mut eve, change, true).await;
    refused(answer, Code::PermissionDenied, code::LOOSENING_NEEDS_ADMIN);
    // Who asks for what stands already is told that it will not stay.
    let same = apply(&mut admin, &[service("charge")]).await.unwrap();
    assert_eq!(same.results[0].outcome, "unchanged");
    assert!(same.results[0].warnings.iter().any(|line| line.contains("takes this object back")), "{same:?}");
    confirm(&mut editor, change, true).await.unwrap();
}

#[tokio::test]
async fn a_deletion_can_wait_too_and_what_cannot_be_taken_back_is_told_until_it_can() {
    let (plane, hands) = timed().await;
    let mut client = plane.admin().await;
    let traffic = |name: &str| {
        json!({
            "apiVersion": "weft.mesh/v1alpha1", "kind": "TrafficPolicy",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "charge"}],
                     "timeouts": {"connect": "2s"}},
        })
    };
    apply(&mut client, &[traffic("a")]).await.unwrap();
    let refs = vec![reference("tp", "a")];
    client.delete(DeleteRequest { refs, confirm_within_ms: 10_000, ..Default::default() }).await.unwrap();
    apply(&mut client, &[traffic("b")]).await.unwrap();
    hands.advance(WINDOW);
    let failed = async {
        loop {
            if let Some(found) = pending(&mut client).await.pop().filter(|found| !found.failed.is_empty()) {
                return found;
            }
        }
    };
    let failed = tokio::time::timeout(Duration::from_secs(20), failed).await.unwrap();
    let status = client.status(StatusRequest {}).await.unwrap().into_inner();
    assert!(status.problems.iter().any(|p| p.code == code::NOT_TAKEN_BACK.as_str()), "{status:?}");
    refused(get(&mut client, "tp", "a").await, Code::NotFound, code::NOT_FOUND);

    let refs = vec![reference("tp", "b")];
    client.delete(DeleteRequest { refs, ..Default::default() }).await.unwrap();
    hands.advance(Duration::from_secs(60));
    let back = |world: &std::sync::Arc<crate::world::World>| world.catalog().traffic().len() == 1;
    plane.rig.core.world.changes().wait_for(back).await.unwrap();
    get(&mut client, "tp", "a").await.unwrap();
    assert!(failed.failed.contains("charge"), "{failed:?}");
}

#[tokio::test]
async fn of_two_servers_only_one_takes_a_change_back() {
    let (plane, hands) = timed().await;
    let second = tokio::task::JoinSet::from_iter([crate::confirmation::keep::run(plane.rig.core.clone())]);
    let mut client = plane.admin().await;
    apply_within(&mut client, &[port("charge", 81)]).await.unwrap();
    hands.advance(WINDOW);
    shows(&plane, "charge", Some(80)).await;
    apply(&mut client, &[service("later")]).await.unwrap();
    let told = revisions(&mut client, "svc", "charge").await;
    assert_eq!(told.iter().filter(|r| r.verb == "unconfirmed").count(), 1);
    assert_eq!(
        plane.rig.core.world.catalog().get(&key("charge")).unwrap().metadata().name.as_str(),
        "charge"
    );
    drop(second);
}

/// Writes beside the objects until the store has no room for another KiB.
async fn fill(plane: &Plane) {
    for number in 0.. {
        let key = layout::audit_anchor(&format!("filler-{number}"));
        let value = vec![b'x'; 1 << 10].into();
        match plane.rig.core.store.put(key, value, Expected::Anything, None).await {
            Ok(_) => {}
            Err(StoreError::Full { .. }) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn small_store() -> Plane {
    let bounds = Bounds { max_bytes: 96 << 10, ..Bounds::default() };
    Plane::over(samples::Rig::with_bounds(Clock::system(), bounds).await)
}

fn large(fill: char) -> Value {
    let mut large = service("one");
    large["metadata"]["annotations"] = json!({"corp.example/note": fill.to_string().repeat(8 << 10)});
    large
}

#[tokio::test]
async fn a_change_that_waits_keeps_what_it_replaced_when_the_store_gives_up_its_history() {
    let plane = small_store().await;
    let mut client = plane.admin().await;
    for letter in ['a', 'b', 'c'] {
        apply(&mut client, &[large(letter)]).await.unwrap();
    }
    let stood = get(&mut client, "svc", "one").await.unwrap();
    fill(&plane).await;
    let change = apply_within(&mut client, &[large('d')]).await.unwrap().change;
    assert!(plane.rig.core.metrics.history_forgotten.get() > 0, "there was room without");
    confirm(&mut client, change, true).await.unwrap();
    let stands = get(&mut client, "svc", "one").await.unwrap();
    assert_eq!(stands["metadata"]["annotations"], stood["metadata"]["annotations"]);
}

#[tokio::test]
async fn a_change_that_could_not_be_taken_back_is_refused_and_one_that_need_not_is_made() {
    let plane = small_store().await;
    let mut client = plane.admin().await;
    apply(&mut client, &[large('a')]).await.unwrap();
    fill(&plane).await;
    let refusal = apply_within(&mut client, &[large('b')]).await;
    refused(refusal, Code::ResourceExhausted, code::STORE_FULL);
    assert!(pending(&mut client).await.is_empty());
    apply(&mut client, &[large('b')]).await.unwrap();
}
