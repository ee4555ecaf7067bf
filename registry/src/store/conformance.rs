//! One suite that every backend of [`Store`] passes.
//!
//! Owns what the promises of [`crate::store`] mean in practice. A backend implements [`Backend`]
//! and calls `conformance!` once; it can leave out no test. What only one backend has (files,
//! locks, failing disks) is tested beside it.

mod leases;
mod limits;
mod listing;
mod mirrors;
mod model;
mod promises;
mod transactions;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Entry, EventBatch, Expected, Key, Op, Prefix, Revision, Store, StoreError, Txn, Watch};

pub(crate) use leases::*;
pub(crate) use limits::*;
pub(crate) use listing::*;
pub(crate) use mirrors::*;
pub(crate) use model::*;
pub(crate) use promises::*;
pub(crate) use transactions::*;
pub(crate) use watches::*;

/// A store under test, empty when it is first opened.
pub(crate) trait Backend {
    /// Whether the test holds the hands of the clock, and the store takes what comes at once in the order in which it
    /// came. Otherwise time is real, and what comes at once is taken in any order.
    const IN_HAND: bool;

    /// What the tests of leases call a second: real time is too slow for them.
    const SECOND: Duration = Duration::from_secs(1);

    /// Opens the store; again, after the last handle was dropped.
    fn open(&mut self) -> impl Future<Output = Arc<dyn Store>>;

    /// Does to the open store what may happen to it, chosen by `roll`; returns it, or what it is after a restart.
    fn disturb(&mut self, store: Arc<dyn Store>, roll: u32) -> impl Future<Output = Arc<dyn Store>>;

    /// Lets time pass for the leases of `store`.
    fn pass(&mut self, store: &dyn Store, period: Duration) -> impl Future<Output = ()>;
}

/// Makes a test of each function of the suite; `$new` makes a fresh [`Backend`].
macro_rules! conformance {
    ($new:expr) => {
        $crate::store::conformance::conformance! { $new;
            a_hundred_creators_of_one_key_have_one_winner,
            concurrent_increments_lose_no_update,
            a_conflict_names_the_key_and_its_revision,
            a_failed_condition_changes_nothing,
            a_transaction_changes_all_its_keys_at_one_revision,
            a_recreated_key_starts_again_at_version_one,
            etcd_06_a_fence_holds_for_one_life_of_the_key,
            a_transaction_without_effect_makes_no_revision,
            values_end_at_256_kib,
            transactions_end_at_127_operations_and_1_mib,
            pages_end_at_500_entries,
            a_key_is_changed_once_per_transaction,
            pages_walk_a_prefix_in_order,
            writes_between_pages_do_not_disturb_the_walk,
            a_listing_and_its_watch_miss_nothing,
            a_watch_delivers_every_commit_once_and_in_order,
            a_watch_sees_its_prefix_only_and_commits_whole,
            a_watch_resumes_from_any_kept_revision,
            a_watch_of_the_future_is_refused,
            etcd_01_a_watch_from_before_a_compaction_is_told_so,
            etcd_01_a_slow_watch_skips_nothing_in_silence,
            a_lease_takes_its_keys_in_one_commit,
            a_keep_alive_starts_the_lease_anew,
            a_revoked_lease_is_gone_with_its_keys,
            a_key_belongs_to_the_lease_of_its_last_put,
            a_restart_keeps_everything,
            etcd_04_a_restart_gives_leases_their_full_length,
            a_mirror_starts_with_what_is_there_and_follows,
            etcd_01_a_mirror_that_lost_its_place_lists_again_and_tells_the_difference,
            a_mirror_reports_nothing_twice_and_nothing_older,
            random_histories_agree_with_a_model,
            watches_keep_their_promises_under_random_faults,
        }
    };
    ($new:expr; $($name:ident),+ $(,)?) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $crate::store::conformance::$name($new).await;
        }
    )+ };
}
pub(crate) use conformance;

pub(super) fn key(text: &str) -> Key {
    text.parse().unwrap()
}

pub(super) fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

pub(super) fn value(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(super) fn put_op(name: &str, text: &str) -> Op {
    Op::Put { key: key(name), value: value(text), lease: None }
}

pub(super) async fn put(store: &dyn Store, name: &str, text: &str) -> Revision {
    store.put(key(name), value(text), Expected::Anything, None).await.unwrap()
}

pub(super) async fn delete(store: &dyn Store, name: &str) -> Revision {
    store.delete(key(name), Expected::Anything).await.unwrap()
}

pub(super) async fn get(store: &dyn Store, name: &str) -> Option<Entry> {
    store.get(&key(name)).await.unwrap()
}

pub(super) async fn revision(store: &dyn Store) -> Revision {
    store.status().await.unwrap().revision
}

/// The names of all keys.
pub(super) async fn names(store: &dyn Store) -> Vec<String> {
    let listing = store.list_all(&Prefix::everything()).await.unwrap();
    listing.entries.iter().map(|entry| entry.key.to_string()).collect()
}

/// Waits until these are all the names, which is at once unless leases end by real time.
pub(super) async fn expect_names(store: &dyn Store, expected: &[&str]) {
    let mut watch = store.watch(Prefix::everything(), revision(store).await.next()).await.unwrap();
    while names(store).await != expected {
        next(&mut watch).await.unwrap();
    }
}

/// Waits for the next batch of a watch that has one coming.
pub(super) async fn next(watch: &mut Watch) -> Result<EventBatch, StoreError> {
    const PATIENCE: Duration = Duration::from_secs(20);
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("the watch delivers nothing")
}
