//! The layer keeps the promises of a store, except that a manifest takes one of the 127 operations.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;

use super::super::SealedStore;
use crate::{
    clock::{Clock, TestClock},
    store::{
        Revision, Store,
        conformance::{Backend, conformance},
        embedded::{Bounds, EmbeddedStore, Settings},
    },
};

conformance!(Layered::new();
    a_hundred_creators_of_one_key_have_one_winner,
    concurrent_increments_lose_no_update,
    a_conflict_names_the_key_and_its_revision,
    a_failed_condition_changes_nothing,
    a_transaction_changes_all_its_keys_at_one_revision,
    a_recreated_key_starts_again_at_version_one,
    etcd_06_a_fence_holds_for_one_life_of_the_key,
    a_transaction_without_effect_makes_no_revision,
    pages_end_at_500_entries,
    pages_walk_a_prefix_in_order,
    a_listing_and_its_watch_miss_nothing,
    a_watch_delivers_every_commit_once_and_in_order,
    a_watch_resumes_from_any_kept_revision,
    a_watch_of_the_future_is_refused,
    etcd_01_a_watch_from_before_a_compaction_is_told_so,
    etcd_01_a_slow_watch_skips_nothing_in_silence,
    a_mirror_starts_with_what_is_there_and_follows,
    a_mirror_reports_nothing_twice_and_nothing_older,
    watches_keep_their_promises_under_random_faults,
);

struct Layered {
    directory: TempDir,
    clock: Clock,
    hands: TestClock,
}

impl Layered {
    fn new() -> Self {
        let (clock, hands) = Clock::test(SystemTime::UNIX_EPOCH);
        Self { directory: tempfile::tempdir().unwrap(), clock, hands }
    }
}

impl Backend for Layered {
    const IN_HAND: bool = true;

    async fn open(&mut self) -> Arc<dyn Store> {
        let settings = Settings { directory: self.directory.path().join("store"), bounds: Bounds::default() };
        let inner = EmbeddedStore::open(settings, self.clock.clone(), Arc::default()).await.unwrap();
        Arc::new(SealedStore::open(Arc::new(inner), self.directory.path()).await.unwrap())
    }

    async fn disturb(&mut self, store: Arc<dyn Store>, _roll: u32) -> Arc<dyn Store> {
        drop(store);
        self.open().await
    }

    async fn pass(&mut self, store: &dyn Store, period: Duration) {
        self.hands.advance(period);
        store.compact(Revision::ZERO).await.unwrap();
        store.compact(Revision::ZERO).await.unwrap();
    }
}
