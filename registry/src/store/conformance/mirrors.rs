//! A mirror over the store: nothing lost, nothing twice.

use std::collections::BTreeMap;

use tokio::task::JoinSet;

use super::super::{Event, Mirror};
use super::*;

pub(crate) async fn a_mirror_starts_with_what_is_there_and_follows(mut backend: impl Backend) {
    let store = backend.open().await;
    let mut empty = Mirror::new(Arc::clone(&store), prefix("/m/"));
    assert_eq!(follow(&mut empty).await.events, []);
    put(&*store, "/m/1", "1").await;
    put(&*store, "/other", "1").await;

    let mut mirror = Mirror::new(Arc::clone(&store), prefix("/m/"));
    for mirror in [&mut empty, &mut mirror] {
        assert_eq!(changes(&follow(mirror).await), ["put /m/1"]);
    }
    let deleted = delete(&*store, "/m/1").await;
    for mirror in [&mut empty, &mut mirror] {
        assert_eq!(changes(&follow(mirror).await), ["delete /m/1"]);
        assert_eq!(mirror.revision(), deleted);
    }
}

pub(crate) async fn etcd_01_a_mirror_that_lost_its_place_lists_again_and_tells_the_difference(
    mut backend: impl Backend,
) {
    let store = backend.open().await;
    for name in ["/m/deleted", "/m/kept", "/m/recreated", "/m/rewritten"] {
        put(&*store, name, "1").await;
    }
    let mut mirror = Mirror::new(Arc::clone(&store), prefix("/m/"));
    assert_eq!(follow(&mut mirror).await.events.len(), 4);

    delete(&*store, "/m/deleted").await;
    delete(&*store, "/m/recreated").await;
    put(&*store, "/m/recreated", "2").await;
    put(&*store, "/m/rewritten", "2").await;
    put(&*store, "/m/brief", "1").await;
    delete(&*store, "/m/brief").await;
    let newest = put(&*store, "/m/new", "1").await;
    store.compact(newest).await.unwrap();

    // A backend whose watch had delivered before the compaction tells it step by step.
    let mut state = BTreeMap::from(
        ["deleted", "kept", "recreated", "rewritten"].map(|name| (name.to_owned(), "1".to_owned())),
    );
    while mirror.revision() < newest {
        apply(&mut state, follow(&mut mirror).await);
    }
    let expected = [("kept", "1"), ("new", "1"), ("recreated", "2"), ("rewritten", "2")];
    assert_eq!(state, BTreeMap::from(expected.map(|(name, text)| (name.to_owned(), text.to_owned()))));

    put(&*store, "/m/new", "2").await;
    assert_eq!(changes(&follow(&mut mirror).await), ["put /m/new"]);
}

pub(crate) async fn a_mirror_reports_nothing_twice_and_nothing_older(mut backend: impl Backend) {
    let store = backend.open().await;
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            for step in 0..50 {
                let name = format!("/m/{writer}-{}", step % 5);
                if step % 7 == 3 {
                    delete(&*store, &name).await
                } else {
                    put(&*store, &name, "v").await
                };
                if step % 10 == 9 {
                    let newest = revision(&*store).await;
                    store.compact(newest).await.unwrap();
                }
            }
        });
    }
    let mut mirror = Mirror::new(Arc::clone(&store), prefix("/m/"));
    let mut last: BTreeMap<Key, Revision> = BTreeMap::new();
    let mut seen = Revision::ZERO;
    let mut check = |batch: EventBatch| {
        assert!(batch.revision >= seen, "{batch:?}");
        seen = batch.revision;
        for event in batch.events {
            let (key, revision) = match event {
                Event::Put(entry) => (entry.key, entry.mod_revision),
                Event::Delete(key) => (key, batch.revision),
            };
            let before = last.insert(key.clone(), revision);
            assert!(before.is_none_or(|before| before < revision), "{key}: {before:?}, then {revision}");
        }
    };
    check(follow(&mut mirror).await);
    while !writers.is_empty() {
        tokio::select! {
            batch = follow(&mut mirror) => check(batch),
            Some(done) = writers.join_next() => done.unwrap(),
        }
    }
    let end = put(&*store, "/m/end", "1").await;
    while mirror.revision() < end {
        check(follow(&mut mirror).await);
    }
}

/// Waits for the next batch of a mirror that has one coming.
async fn follow(mirror: &mut Mirror) -> EventBatch {
    const PATIENCE: Duration = Duration::from_secs(20);
    tokio::time::timeout(PATIENCE, mirror.next()).await.expect("the mirror reports nothing").unwrap()
}

fn changes(batch: &EventBatch) -> Vec<String> {
    let text = |event: &Event| match event {
        Event::Put(entry) => format!("put {}", entry.key),
        Event::Delete(key) => format!("delete {key}"),
    };
    batch.events.iter().map(text).collect()
}

fn apply(state: &mut BTreeMap<String, String>, batch: EventBatch) {
    let short = |key: &Key| key.as_str().trim_start_matches("/m/").to_owned();
    for event in batch.events {
        match event {
            Event::Put(entry) => {
                drop(state.insert(short(&entry.key), String::from_utf8(entry.value.to_vec()).unwrap()))
            }
            Event::Delete(key) => drop(state.remove(&short(&key))),
        }
    }
}
