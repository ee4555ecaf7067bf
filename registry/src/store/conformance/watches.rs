//! The promises of a watch: ordered, unique, atomic, resumable, and never silent about a gap.

use tokio::task::JoinSet;

use super::super::{Compare, Event};
use super::*;

pub(crate) async fn a_watch_delivers_every_commit_once_and_in_order(mut backend: impl Backend) {
    const WRITERS: u64 = 4;
    const WRITES: u64 = 25;
    let store = backend.open().await;
    let mut watches = Vec::new();
    for _ in 0..3 {
        watches.push(store.watch(prefix("/w/"), Revision(1)).await.unwrap());
    }
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            for number in 0..WRITES {
                put(&*store, &format!("/w/{writer}"), &number.to_string()).await;
            }
        });
    }
    for watch in &mut watches {
        for expected in 1..=WRITERS * WRITES {
            let batch = next(watch).await.unwrap();
            assert_eq!(batch.revision, Revision(expected));
            let [Event::Put(entry)] = batch.events.as_slice() else { panic!("{batch:?}") };
            assert_eq!(entry.mod_revision, batch.revision);
            assert_eq!(entry.value, value(&(entry.version - 1).to_string()), "writes of one writer in order");
        }
    }
    writers.join_all().await;
}

pub(crate) async fn a_watch_sees_its_prefix_only_and_commits_whole(mut backend: impl Backend) {
    let store = backend.open().await;
    let mut watch = store.watch(prefix("/a/"), Revision(1)).await.unwrap();
    put(&*store, "/b/1", "unseen").await;
    put(&*store, "/a", "unseen").await;
    let ops = vec![put_op("/a/2", "2"), put_op("/b/2", "unseen"), put_op("/a/1", "1")];
    let mixed = store.txn(vec![], ops).await.unwrap();
    let gone = store.txn(vec![], vec![Op::Delete(key("/a/2")), Op::Delete(key("/b/1"))]).await.unwrap();

    let batch = next(&mut watch).await.unwrap();
    let changed: Vec<&str> = batch.events.iter().map(|event| event.key().as_str()).collect();
    assert_eq!((batch.revision, changed), (mixed, vec!["/a/2", "/a/1"]), "in the order of the operations");
    let batch = next(&mut watch).await.unwrap();
    assert_eq!(batch, EventBatch { revision: gone, events: vec![Event::Delete(key("/a/2"))] });
}

pub(crate) async fn a_watch_resumes_from_any_kept_revision(mut backend: impl Backend) {
    let store = backend.open().await;
    for number in 1..=10 {
        assert_eq!(put(&*store, "/a", &number.to_string()).await, Revision(number));
    }
    for from in 1..=11 {
        let mut watch = store.watch(prefix("/a"), Revision(from)).await.unwrap();
        for expected in from..=10 {
            let batch = next(&mut watch).await.unwrap();
            let [Event::Put(entry)] = batch.events.as_slice() else { panic!("{batch:?}") };
            assert_eq!((batch.revision, &entry.value), (Revision(expected), &value(&expected.to_string())));
        }
    }
}

pub(crate) async fn a_watch_of_the_future_is_refused(mut backend: impl Backend) {
    let store = backend.open().await;
    let current = put(&*store, "/a", "1").await;
    let mut watch = store.watch(prefix("/a"), current.next()).await.unwrap();
    let error = store.watch(prefix("/a"), current.next().next()).await.unwrap_err();
    assert!(matches!(error, StoreError::Ahead { wanted: Revision(3), current: Revision(1) }), "{error}");

    let committed = delete(&*store, "/a").await;
    assert_eq!(next(&mut watch).await.unwrap().revision, committed);
}

pub(crate) async fn etcd_01_a_watch_from_before_a_compaction_is_told_so(mut backend: impl Backend) {
    let store = backend.open().await;
    for number in 1..=6 {
        put(&*store, "/a", &number.to_string()).await;
    }
    store.compact(Revision(4)).await.unwrap();
    store.compact(Revision(2)).await.unwrap();
    assert_eq!(store.status().await.unwrap().oldest, Revision(5));
    for from in 0..=4 {
        let error = store.watch(prefix("/a"), Revision(from)).await.unwrap_err();
        let told = matches!(error, StoreError::Compacted { wanted, oldest: Revision(5) } if wanted.0 == from);
        assert!(told, "{error}");
    }
    let mut watch = store.watch(prefix("/a"), Revision(5)).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, Revision(5));
    assert_eq!(get(&*store, "/a").await.unwrap().version, 6, "entries stay");

    let ahead = store.compact(Revision(7)).await.unwrap_err();
    assert!(matches!(ahead, StoreError::Ahead { .. }), "{ahead}");
    assert_eq!(ahead.code().as_str(), "W6012");
}

pub(crate) async fn etcd_01_a_slow_watch_skips_nothing_in_silence(mut backend: impl Backend) {
    let store = backend.open().await;
    let mut watch = store.watch(prefix("/a"), Revision(1)).await.unwrap();
    put(&*store, "/a", "1").await;
    assert_eq!(next(&mut watch).await.unwrap().revision, Revision(1));
    for number in 2..=9 {
        put(&*store, "/a", &number.to_string()).await;
    }
    store.compact(Revision(7)).await.unwrap();

    // A backend may have delivered some of them already; then they must follow one another.
    let mut expected = 2;
    let end = loop {
        match next(&mut watch).await {
            Ok(batch) => assert_eq!(batch.revision, Revision(expected)),
            Err(error) => break Some(error),
        }
        expected += 1;
        if expected == 10 {
            break None;
        }
    };
    if let Some(end) = end {
        assert!(matches!(end, StoreError::Compacted { oldest: Revision(8), .. }), "{end}");
        for _ in 0..3 {
            assert!(matches!(next(&mut watch).await, Err(StoreError::Closed)), "an ended watch stays ended");
        }
        let mut again = store.watch(prefix("/a"), Revision(8)).await.unwrap();
        assert_eq!(next(&mut again).await.unwrap().revision, Revision(8));
    }
    assert!(store.txn(vec![Compare::Present(key("/a"))], vec![]).await.is_ok());
}
