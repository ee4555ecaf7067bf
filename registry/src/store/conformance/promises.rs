//! What a watch promises, under random faults: the seven guarantees that etcd gives its own.
//!
//! | guarantee | here |
//! |---|---|
//! | ordered | revisions of one watch only grow |
//! | unique | no commit comes twice |
//! | reliable | no commit of the prefix is left out between two that came |
//! | atomic | all changes of a commit come together, in its order |
//! | resumable | a watch that broke goes on behind what it delivered, without a gap |
//! | bookmarkable | a listing at a revision and the watch behind it are the whole |
//! | complete from a revision | a watch from an old revision delivers what a watch since then has delivered |
//!
//! One writer makes random transactions and notes what each changed. Observers watch random prefixes from random
//! revisions; what each of them saw must be exactly what the writer noted. `WEFT_STORE_SEED` replays a run.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch::{Receiver, Sender};
use tokio::task::JoinSet;

use super::super::Event;
use super::*;

/// Transactions of one run, observers, and keys of each of two prefixes.
const STEPS: usize = 120;
const OBSERVERS: usize = 6;
const KEYS: usize = 5;

/// One piece of what an observer saw.
#[derive(Debug)]
enum Seen {
    /// Everything under the prefix as of a revision.
    Listing(Revision, Vec<Entry>),
    /// A commit behind the one before.
    Commit(EventBatch),
}

pub(crate) async fn watches_keep_their_promises_under_random_faults<B: Backend>(mut backend: B) {
    let seed = std::env::var("WEFT_STORE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("WEFT_STORE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut store = Some(backend.open().await);
    let handle = Sender::new(store.clone());
    let end = Sender::new(None);
    let mut observers = JoinSet::new();
    let mut commits = Vec::new();
    for step in 0..STEPS {
        let current = store.take().expect("it is put back below");
        if step % (STEPS / OBSERVERS) == 0 {
            let selected = prefix(["", "/a/", "/b/"][random.random_range(0..3)]);
            // From the start, from somewhere on, or from a listing.
            let from =
                commits.get(random.random_range(0..=commits.len())).map(|batch: &EventBatch| batch.revision);
            observers.spawn(observe(handle.subscribe(), end.subscribe(), selected, from));
        }
        commits.extend(write(&*current, &mut random).await);
        store = Some(match random.random_range(0..20) {
            0 => {
                let kept = commits.len() - commits.len().min(random.random_range(0..10));
                let revision = commits
                    .get(kept)
                    .or_else(|| commits.last())
                    .map_or(Revision::ZERO, |batch| batch.revision);
                current.compact(revision).await.unwrap();
                current
            }
            1 | 2 => {
                handle.send_replace(None);
                let again = backend.disturb(current, random.random()).await;
                handle.send_replace(Some(Arc::clone(&again)));
                again
            }
            _ => current,
        });
    }
    // The last commit touches every prefix, so that each observer knows when it has seen all.
    let store = store.expect("it was put back above");
    let last = store.txn(vec![], vec![put_op("/a/end", "1"), put_op("/b/end", "1")]).await.unwrap();
    commits.push(noted(&*store, last, &["/a/end", "/b/end"], &[]).await);
    end.send_replace(Some(last));
    while let Some(seen) = observers.join_next().await {
        let (selected, seen) = seen.unwrap();
        judge(&commits, &selected, &seen, seed);
    }
}

/// Makes one random transaction; notes what it changed, if anything.
async fn write(store: &dyn Store, random: &mut StdRng) -> Option<EventBatch> {
    let mut names: Vec<String> = Vec::new();
    for part in ["/a", "/b"] {
        names.extend((0..KEYS).map(|number| format!("{part}/{number}")));
    }
    let (mut puts, mut deletions, mut ops) = (Vec::new(), Vec::new(), Vec::new());
    for name in &names {
        match random.random_range(0..10) {
            0 | 1 => {
                puts.push(name.as_str());
                ops.push(put_op(name, &random.random::<u16>().to_string()));
            }
            2 if get(store, name).await.is_some() => {
                deletions.push(name.as_str());
                ops.push(Op::Delete(key(name)));
            }
            _ => {}
        }
    }
    if ops.is_empty() {
        return None;
    }
    let revision = store.txn(vec![], ops).await.unwrap();
    Some(noted(store, revision, &puts, &deletions).await)
}

/// What a transaction of the only writer has changed, in the order of its keys, which is that of its operations.
async fn noted(store: &dyn Store, revision: Revision, puts: &[&str], deletions: &[&str]) -> EventBatch {
    let mut events = Vec::new();
    for name in puts {
        let entry = get(store, name).await.unwrap();
        assert_eq!(entry.mod_revision, revision, "who writes reads what it wrote");
        events.push(Event::Put(entry));
    }
    events.extend(deletions.iter().map(|name| Event::Delete(key(name))));
    events.sort_by(|one, other| one.key().cmp(other.key()));
    EventBatch { revision, events }
}

/// Watches `selected`, from a revision or from a listing, until the end was seen.
async fn observe(
    mut handle: Receiver<Option<Arc<dyn Store>>>,
    mut end: Receiver<Option<Revision>>,
    selected: Prefix,
    from: Option<Revision>,
) -> (Prefix, Vec<Seen>) {
    let mut seen = Vec::new();
    let mut next_revision = from;
    loop {
        let store = handle.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        let listed = async {
            let from = match next_revision {
                Some(from) => from,
                None => {
                    let listing = list_at_once(&*store, &selected).await?;
                    let next = listing.0.next();
                    seen.push(Seen::Listing(listing.0, listing.1));
                    next
                }
            };
            next_revision = Some(from);
            store.watch(selected.clone(), from).await
        };
        let opened = listed.await;
        drop(store);
        let mut watch = match opened {
            Ok(watch) => watch,
            Err(StoreError::Compacted { .. }) => {
                next_revision = None;
                continue;
            }
            Err(_) => continue,
        };
        loop {
            let done = end.borrow().is_some_and(|end| next_revision > Some(end));
            if done {
                return (selected, seen);
            }
            let batch = tokio::select! {
                batch = watch.next() => batch,
                changed = end.changed() => {
                    changed.unwrap();
                    continue;
                }
            };
            match batch {
                Ok(batch) => {
                    next_revision = Some(batch.revision.next());
                    seen.push(Seen::Commit(batch));
                }
                Err(error) => {
                    if matches!(error, StoreError::Compacted { .. }) {
                        next_revision = None;
                    }
                    break;
                }
            }
        }
    }
}

/// All entries of one page, which are as of its revision.
async fn list_at_once(store: &dyn Store, selected: &Prefix) -> Result<(Revision, Vec<Entry>), StoreError> {
    let page = store.list(selected, None, 500).await?;
    assert_eq!(page.next, None);
    Ok((page.revision, page.entries))
}

/// Compares what an observer saw with what the writer noted.
fn judge(commits: &[EventBatch], selected: &Prefix, seen: &[Seen], seed: u64) {
    let of_prefix = |batch: &EventBatch| {
        let events = batch.events.iter().filter(|event| event.key().is_under(selected));
        EventBatch { revision: batch.revision, events: events.cloned().collect() }
    };
    let known: Vec<EventBatch> =
        commits.iter().map(of_prefix).filter(|batch| !batch.events.is_empty()).collect();
    let mut next = None;
    for piece in seen {
        match piece {
            Seen::Listing(revision, entries) => {
                let mut state = BTreeMap::new();
                for event in commits
                    .iter()
                    .take_while(|batch| batch.revision <= *revision)
                    .flat_map(|batch| &batch.events)
                {
                    match event {
                        Event::Put(entry) => drop(state.insert(entry.key.clone(), entry.clone())),
                        Event::Delete(key) => drop(state.remove(key)),
                    }
                }
                state.retain(|key, _| key.is_under(selected));
                assert_eq!(
                    entries,
                    &state.into_values().collect::<Vec<_>>(),
                    "a listing at {revision}, seed {seed}"
                );
                next = Some(known.partition_point(|batch| batch.revision <= *revision));
            }
            Seen::Commit(batch) => {
                let at =
                    next.unwrap_or_else(|| known.partition_point(|known| known.revision < batch.revision));
                assert_eq!(Some(batch), known.get(at), "{selected}, seed {seed}");
                next = Some(at + 1);
            }
        }
    }
    assert_eq!(next, Some(known.len()), "{selected} to the end, seed {seed}");
}
