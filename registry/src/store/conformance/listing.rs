//! Pages, and what happens between them.

use std::collections::BTreeMap;

use super::super::Event;
use super::*;

pub(crate) async fn pages_walk_a_prefix_in_order(mut backend: impl Backend) {
    let store = backend.open().await;
    for name in ["/b/2", "/a/1", "/b/1", "/b", "/b/10", "/c", "/b/é", "/b0"] {
        put(&*store, name, name).await;
    }
    for limit in 1..=6 {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = store.list(&prefix("/b/"), after.as_ref(), limit).await.unwrap();
            assert!(page.entries.len() <= limit);
            seen.extend(page.entries.iter().map(|entry| entry.key.to_string()));
            assert_eq!(page.revision, Revision(8));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, ["/b/1", "/b/10", "/b/2", "/b/é"], "pages of {limit}");
    }
    let behind = store.list(&prefix("/b/"), Some(&key("/zzz")), 10).await.unwrap();
    assert_eq!((behind.entries.len(), behind.next), (0, None));
    let before = store.list(&prefix("/b/"), Some(&key("/a")), 10).await.unwrap();
    assert_eq!(before.entries.len(), 4);
}

pub(crate) async fn writes_between_pages_do_not_disturb_the_walk(mut backend: impl Backend) {
    let store = backend.open().await;
    let stable: Vec<String> = (0..100).map(|number| format!("/k/{number:03}-stable")).collect();
    for (number, name) in stable.iter().enumerate() {
        store.txn(vec![], vec![put_op(name, "v"), put_op(&format!("/k/{number:03}"), "v")]).await.unwrap();
    }
    let (mut seen, mut after, mut page_number) = (Vec::new(), None, 0);
    loop {
        let page = store.list(&prefix("/k/"), after.as_ref(), 7).await.unwrap();
        seen.extend(page.entries.iter().map(|entry| entry.key.to_string()));
        // Behind the walk, at its edge and before it, keys go and come; stable ones are rewritten.
        let edge = seen.len();
        delete(&*store, &seen[edge - 1].replace("-stable", "")).await;
        delete(&*store, "/k/099").await;
        put(&*store, &format!("/k/{page_number:03}-new"), "v").await;
        put(&*store, &stable[(page_number * 13) % stable.len()], "w").await;
        page_number += 1;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert!(seen.is_sorted() && seen.windows(2).all(|pair| pair[0] != pair[1]));
    let seen_stable: Vec<&String> = seen.iter().filter(|name| name.ends_with("-stable")).collect();
    assert_eq!(seen_stable, stable.iter().collect::<Vec<_>>());
}

pub(crate) async fn a_listing_and_its_watch_miss_nothing(mut backend: impl Backend) {
    let store = backend.open().await;
    for number in 0..600 {
        if number % 100 == 0 {
            let ops = (0..100).map(|step| put_op(&format!("/r/{:04}", number + step), "0")).collect();
            store.txn(vec![], ops).await.unwrap();
        }
    }
    let writer = {
        let store = Arc::clone(&store);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            for step in 0..60 {
                put(&*store, &format!("/r/{:04}", step * 10), "1").await;
                delete(&*store, &format!("/r/{:04}", step * 10 + 1)).await;
            }
        });
        tasks
    };
    let everything = Prefix::everything();
    let listing = store.list_all(&everything).await.unwrap();
    writer.join_all().await;

    let mut mirror: BTreeMap<Key, Entry> =
        listing.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
    let newest = revision(&*store).await;
    let mut watch = store.watch(everything.clone(), listing.revision.next()).await.unwrap();
    let mut reached = listing.revision;
    while reached < newest {
        let batch = next(&mut watch).await.unwrap();
        reached = batch.revision;
        for event in batch.events {
            let newer = |known: &Entry| known.mod_revision >= batch.revision;
            match event {
                Event::Put(entry) if !mirror.get(&entry.key).is_some_and(newer) => {
                    mirror.insert(entry.key.clone(), entry);
                }
                Event::Put(_) => {}
                Event::Delete(key) if mirror.get(&key).is_some_and(newer) => {}
                Event::Delete(key) => drop(mirror.remove(&key)),
            }
        }
    }
    let now = store.list_all(&everything).await.unwrap().entries;
    assert_eq!(mirror.into_values().collect::<Vec<_>>(), now);
}
