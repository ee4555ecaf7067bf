//! Conditions, atomicity, revisions and versions.

use tokio::task::JoinSet;

use super::super::{Compare, Conflict};
use super::*;

pub(crate) async fn a_hundred_creators_of_one_key_have_one_winner(mut backend: impl Backend) {
    let store = backend.open().await;
    let mut creators = JoinSet::new();
    for creator in 0..100 {
        let store = Arc::clone(&store);
        let text = value(&format!("creator {creator}"));
        creators.spawn(async move {
            let created = store.put(key("/token/1"), text.clone(), Expected::Absent, None).await;
            created.map(|revision| (revision, text))
        });
    }
    let (won, lost): (Vec<_>, Vec<_>) = creators.join_all().await.into_iter().partition(Result::is_ok);

    let winners: Vec<_> = won.into_iter().flatten().collect();
    let [(revision, text)] = winners.as_slice() else { panic!("winners: {winners:?}") };
    assert_eq!(lost.len(), 99);
    for error in lost.into_iter().filter_map(Result::err) {
        assert_eq!(error.conflict().and_then(|conflict| conflict.current), Some(*revision), "{error}");
    }
    assert_eq!(get(&*store, "/token/1").await.unwrap().value, *text);
}

pub(crate) async fn concurrent_increments_lose_no_update(mut backend: impl Backend) {
    const TASKS: usize = 8;
    const STEPS: usize = 20;
    let store = backend.open().await;
    put(&*store, "/counter", "0").await;
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let mut done = 0;
            while done < STEPS {
                let before = get(&*store, "/counter").await.unwrap();
                let count: usize = std::str::from_utf8(&before.value).unwrap().parse().unwrap();
                let expected = Expected::Unchanged(before.mod_revision);
                let text = value(&(count + 1).to_string());
                match store.put(key("/counter"), text, expected, None).await {
                    Ok(_) => done += 1,
                    Err(error) => assert!(error.conflict().is_some(), "{error}"),
                }
            }
        });
    }
    tasks.join_all().await;
    let counter = get(&*store, "/counter").await.unwrap();
    assert_eq!(counter.value, value(&(TASKS * STEPS).to_string()));
    assert_eq!(counter.version, 1 + (TASKS * STEPS) as u64);
}

pub(crate) async fn a_conflict_names_the_key_and_its_revision(mut backend: impl Backend) {
    let store = backend.open().await;
    let first = put(&*store, "/a", "1").await;
    let second = put(&*store, "/a", "2").await;
    let conflict = |key, current| Conflict { key, current };

    let stale = store.put(key("/a"), value("3"), Expected::Unchanged(first), None).await.unwrap_err();
    assert_eq!(stale.conflict(), Some(&conflict(key("/a"), Some(second))));
    assert_eq!(stale.to_string(), format!("/a was changed at revision {second}"));
    let exists = store.put(key("/a"), value("3"), Expected::Absent, None).await.unwrap_err();
    assert_eq!(exists.conflict(), Some(&conflict(key("/a"), Some(second))));
    let absent = store.delete(key("/b"), Expected::Unchanged(second)).await.unwrap_err();
    assert_eq!(absent.conflict(), Some(&conflict(key("/b"), None)));

    let compares = vec![Compare::Present(key("/a")), Compare::Present(key("/c")), Compare::Absent(key("/a"))];
    let several = store.txn(compares, vec![]).await.unwrap_err();
    assert_eq!(several.conflict(), Some(&conflict(key("/c"), None)), "the first that fails is named");
}

pub(crate) async fn a_failed_condition_changes_nothing(mut backend: impl Backend) {
    let store = backend.open().await;
    let before = put(&*store, "/a", "1").await;
    let ops = vec![put_op("/b", "1"), Op::Delete(key("/a"))];
    let verdict = store.txn(vec![Compare::Absent(key("/a"))], ops).await;
    assert!(verdict.unwrap_err().conflict().is_some());
    assert_eq!(revision(&*store).await, before);
    assert_eq!(names(&*store).await, ["/a"]);
}

pub(crate) async fn a_transaction_changes_all_its_keys_at_one_revision(mut backend: impl Backend) {
    let store = backend.open().await;
    put(&*store, "/old", "1").await;
    let compares = vec![Compare::Present(key("/old")), Compare::Absent(key("/x"))];
    let ops = vec![put_op("/x", "1"), Op::Delete(key("/old")), put_op("/y", "2")];
    let committed = store.txn(compares, ops).await.unwrap();

    assert_eq!(revision(&*store).await, committed);
    assert_eq!(names(&*store).await, ["/x", "/y"]);
    for name in ["/x", "/y"] {
        let entry = get(&*store, name).await.unwrap();
        assert_eq!((entry.create_revision, entry.mod_revision, entry.version), (committed, committed, 1));
    }
}

pub(crate) async fn a_recreated_key_starts_again_at_version_one(mut backend: impl Backend) {
    let store = backend.open().await;
    let first = put(&*store, "/a", "1").await;
    put(&*store, "/a", "2").await;
    let third = put(&*store, "/a", "3").await;
    let entry = get(&*store, "/a").await.unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision, entry.version), (first, third, 3));

    let deleted = delete(&*store, "/a").await;
    assert_eq!(get(&*store, "/a").await, None);
    let again = put(&*store, "/a", "4").await;
    let entry = get(&*store, "/a").await.unwrap();
    assert!(first < third && third < deleted && deleted < again);
    assert_eq!((entry.create_revision, entry.mod_revision, entry.version), (again, again, 1));
}

pub(crate) async fn etcd_06_a_fence_holds_for_one_life_of_the_key(mut backend: impl Backend) {
    let store = backend.open().await;
    let lock = put(&*store, "/lock", "holder 1").await;
    let fence = || vec![Compare::SameCreation { key: key("/lock"), create_revision: lock }];
    put(&*store, "/lock", "holder 1, still").await;
    assert!(store.txn(fence(), vec![put_op("/work", "1")]).await.is_ok());

    delete(&*store, "/lock").await;
    assert!(store.txn(fence(), vec![put_op("/work", "2")]).await.is_err());
    put(&*store, "/lock", "holder 2").await;
    assert!(store.txn(fence(), vec![put_op("/work", "3")]).await.is_err());
    assert_eq!(get(&*store, "/work").await.unwrap().value, value("1"));
}

pub(crate) async fn a_transaction_without_effect_makes_no_revision(mut backend: impl Backend) {
    let store = backend.open().await;
    let before = put(&*store, "/a", "1").await;
    assert_eq!(store.txn(vec![Compare::Present(key("/a"))], vec![]).await.unwrap(), before);
    assert_eq!(delete(&*store, "/never").await, before);
    assert_eq!(revision(&*store).await, before);
    assert_eq!(put(&*store, "/a", "1").await, before.next(), "writing the same value is an effect");
}
