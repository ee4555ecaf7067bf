//! Leases, and what a restart keeps.

use super::super::{Event, LeaseId, Ttl};
use super::*;

pub(crate) async fn a_lease_takes_its_keys_in_one_commit<B: Backend>(mut backend: B) {
    let store = backend.open().await;
    let lease = grant::<B>(&*store, 10).await;
    for name in ["/e/3", "/e/1", "/e/2"] {
        put_leased(&*store, name, lease).await;
    }
    let last = put(&*store, "/other", "1").await;
    let mut watch = store.watch(Prefix::everything(), last.next()).await.unwrap();

    backend.pass(&*store, B::SECOND * 9).await;
    assert_eq!(revision(&*store).await, last, "not a moment too early");
    backend.pass(&*store, B::SECOND * 2).await;
    let batch = next(&mut watch).await.unwrap();
    let deleted = ["/e/1", "/e/2", "/e/3"].map(|name| Event::Delete(key(name)));
    assert_eq!(batch, EventBatch { revision: last.next(), events: deleted.to_vec() });
    assert_eq!(names(&*store).await, ["/other"]);

    let error = store.keep_alive(lease).await.unwrap_err();
    assert!(matches!(error, StoreError::NoLease { .. }), "{error}");
    let error = store.put(key("/e/1"), value("1"), Expected::Anything, Some(lease)).await.unwrap_err();
    assert_eq!(error.code().as_str(), "W6011");
}

pub(crate) async fn a_keep_alive_starts_the_lease_anew<B: Backend>(mut backend: B) {
    let store = backend.open().await;
    let lease = grant::<B>(&*store, 10).await;
    put_leased(&*store, "/e/1", lease).await;
    for _ in 0..2 {
        backend.pass(&*store, B::SECOND * 8).await;
        assert_eq!(store.keep_alive(lease).await.unwrap().as_duration(), B::SECOND * 10);
    }
    backend.pass(&*store, B::SECOND * 9).await;
    assert_eq!(names(&*store).await, ["/e/1"]);
    backend.pass(&*store, B::SECOND * 2).await;
    expect_names(&*store, &[]).await;
}

pub(crate) async fn a_revoked_lease_is_gone_with_its_keys<B: Backend>(mut backend: B) {
    let store = backend.open().await;
    let (lease, other) = (grant::<B>(&*store, 10).await, grant::<B>(&*store, 10).await);
    assert_ne!(lease, other);
    for name in ["/e/1", "/e/2"] {
        put_leased(&*store, name, lease).await;
    }
    let before = put_leased(&*store, "/f/1", other).await;
    assert_eq!(store.revoke(lease).await.unwrap(), before.next());
    assert_eq!(names(&*store).await, ["/f/1"]);
    assert!(matches!(store.revoke(lease).await, Err(StoreError::NoLease { .. })));
    assert!(matches!(store.keep_alive(lease).await, Err(StoreError::NoLease { .. })));

    delete(&*store, "/f/1").await;
    let before = revision(&*store).await;
    assert_eq!(store.revoke(other).await.unwrap(), before, "a lease without keys makes no revision");
}

pub(crate) async fn a_key_belongs_to_the_lease_of_its_last_put<B: Backend>(mut backend: B) {
    let store = backend.open().await;
    let (old, new) = (grant::<B>(&*store, 10).await, grant::<B>(&*store, 30).await);
    for name in ["/moved", "/freed", "/kept", "/recreated"] {
        put_leased(&*store, name, old).await;
    }
    put_leased(&*store, "/moved", new).await;
    put(&*store, "/freed", "1").await;
    delete(&*store, "/recreated").await;
    put(&*store, "/recreated", "1").await;

    backend.pass(&*store, B::SECOND * 11).await;
    expect_names(&*store, &["/freed", "/moved", "/recreated"]).await;
    backend.pass(&*store, B::SECOND * 20).await;
    expect_names(&*store, &["/freed", "/recreated"]).await;
}

pub(crate) async fn a_restart_keeps_everything<B: Backend>(mut backend: B) {
    let store = backend.open().await;
    let lease = grant::<B>(&*store, 60).await;
    put(&*store, "/a", "1").await;
    put(&*store, "/a", "2").await;
    put_leased(&*store, "/e", lease).await;
    put(&*store, "/gone", "1").await;
    delete(&*store, "/gone").await;
    store.compact(Revision(1)).await.unwrap();
    let (status, all) = (store.status().await.unwrap(), store.list_all(&Prefix::everything()).await.unwrap());
    drop(store);

    let store = backend.open().await;
    assert_eq!(store.status().await.unwrap(), status);
    assert_eq!(store.list_all(&Prefix::everything()).await.unwrap(), all);
    let error = store.watch(Prefix::everything(), Revision(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::Compacted { .. }), "{error}");
    let mut watch = store.watch(Prefix::everything(), Revision(2)).await.unwrap();
    for expected in 2..=5 {
        assert_eq!(next(&mut watch).await.unwrap().revision, Revision(expected));
    }
    assert!(store.keep_alive(lease).await.is_ok());
    assert_ne!(grant::<B>(&*store, 60).await, lease, "no lease is named twice");
    let again = put(&*store, "/a", "3").await;
    let entry = get(&*store, "/a").await.unwrap();
    assert_eq!((again, entry.create_revision, entry.version), (Revision(6), Revision(1), 3));
}

pub(crate) async fn etcd_04_a_restart_gives_leases_their_full_length<B: Backend>(mut backend: B) {
    let store = backend.open().await;
    let lease = grant::<B>(&*store, 10).await;
    put_leased(&*store, "/e", lease).await;
    backend.pass(&*store, B::SECOND * 8).await;
    drop(store);

    let store = backend.open().await;
    backend.pass(&*store, B::SECOND * 8).await;
    assert_eq!(names(&*store).await, ["/e"]);
    backend.pass(&*store, B::SECOND * 3).await;
    expect_names(&*store, &[]).await;
}

async fn grant<B: Backend>(store: &dyn Store, seconds: u32) -> LeaseId {
    store.grant(Ttl::try_from(B::SECOND * seconds).unwrap()).await.unwrap()
}

async fn put_leased(store: &dyn Store, name: &str, lease: LeaseId) -> Revision {
    store.put(key(name), value("leased"), Expected::Anything, Some(lease)).await.unwrap()
}
