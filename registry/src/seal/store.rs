//! A store whose records are signed on the way in and checked on the way out.
//!
//! Readers get what records say. Who asks for a record of a group, or for all that are there, gets it only while the
//! group adds up; the mirrored part comes with its manifests, and whoever mirrors it adds it up as it changes
//! ([`super::Ledger`]). In the place of a single record that is refused, readers of the mirrored part and of records in no
//! group get a value that none takes for a record ([`super::refusal`] reads why): the rest goes on.

use std::{
    collections::BTreeMap, collections::BTreeSet, hash::BuildHasher as _, path::Path, sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture};
use tokio::sync::{Mutex, MutexGuard};
use tracing::{error, info, warn};

use super::{
    Group, KeyRing, RecordKey, SealError, Seen,
    draft::{self, Advanced, Book, Standing},
    envelope,
    group::{Sealing, leaf, leaf_of, sealing},
    keys::{KeyFile, RecordPublicKey},
    ledger, vouch,
    vouch::Report,
};
use crate::{
    authority, layout,
    store::{
        Entry, Event, EventBatch, Key, LeaseId, Listing, Op, Page, Prefix, Revision, Status, Store,
        StoreError, Ttl, Txn, Watch,
    },
};

/// How often a write is tried again because another server has written a manifest, and a group is read again because it
/// changed while it was read.
const MAX_TRIES: usize = 16;
/// The pause before that: a commit of the other server takes about as long.
const PAUSE: Duration = Duration::from_millis(5);
/// Writers of one group take turns, so that of one server they never meet at its manifest. More than divisions of nodes,
/// so that few groups share one.
const TURNS: usize = 128;

/// See the module.
pub struct SealedStore {
    inner: Arc<dyn Store>,
    opener: Opener,
    file: KeyFile,
    turns: Vec<Mutex<()>>,
    /// Divisions as this server wrote or last read them.
    divisions: std::sync::Mutex<BTreeMap<Group, Book>>,
    hasher: std::hash::RandomState,
    taken_over: usize,
}

impl SealedStore {
    /// Puts the layer over `inner`, with the keys in `state_dir`, which are made at the first start. A store from before
    /// there were signatures is taken over then, once: what stands in it is signed as it is.
    ///
    /// # Errors
    ///
    /// [`SealError`]; the server must not start.
    pub async fn open(inner: Arc<dyn Store>, state_dir: &Path) -> Result<Self, SealError> {
        let (file, seen) = (KeyFile::of(state_dir), Arc::new(Seen::load(state_dir)?));
        let (ring, taking_over) = match file.load()? {
            Some(kept) => (kept.ring, kept.taking_over),
            None => {
                let ring = KeyRing::of(RecordKey::create()?);
                // Of a store that was sealed, and in a directory that never had a server, nothing is signed unseen.
                let own = authority::exists(state_dir) || vouch::is_empty(&*inner).await?;
                let taking_over = own && !vouch::has_manifests(&*inner).await?;
                if !taking_over {
                    error!(key = %ring.own().id(), "the store has records and this server no key of theirs; a new one was made, and they are refused");
                }
                file.store(&ring, taking_over)?;
                (ring, taking_over)
            }
        };
        let mut taken_over = 0;
        if taking_over {
            taken_over = vouch::accept(&*inner, &ring, &seen).await?.records.len();
            seen.flush()?;
            file.store(&ring, false)?;
            if taken_over > 0 {
                warn!(
                    records = taken_over,
                    "records from before there were signatures were signed as they stand"
                );
            }
            info!(key = %ring.own().id(), "records are signed from now on");
        }
        let turns = (0..TURNS).map(|_| Mutex::default()).collect();
        let opener = Opener { ring, seen };
        let (divisions, hasher) = (std::sync::Mutex::default(), std::hash::RandomState::new());
        Ok(Self { inner, opener, file, turns, divisions, hasher, taken_over })
    }

    /// Whether nothing of a store that is sealed is this server's, and it was not told whose records to take: it was not let
    /// in yet.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the store cannot be read.
    pub async fn is_stranger(&self) -> Result<bool, StoreError> {
        let Opener { ring, seen } = &self.opener;
        if !seen.all().is_empty() || ring.trusted().len() > 1 {
            return Ok(false);
        }
        let manifests = vouch::manifests(&*self.inner).await?;
        let own = manifests.iter().any(|entry| envelope::open(ring, &entry.key, &entry.value).is_ok());
        Ok(!own && !manifests.is_empty())
    }

    /// The keys that are trusted.
    #[must_use]
    pub const fn ring(&self) -> &KeyRing {
        &self.opener.ring
    }

    /// Takes what `key` signs from now on, also after a restart. Returns whether that is new.
    ///
    /// # Errors
    ///
    /// [`SealError`] when it cannot be kept; until the end of the process it is taken nevertheless.
    pub fn trust(&self, key: RecordPublicKey) -> Result<bool, SealError> {
        let is_new = self.opener.ring.trust(key);
        if is_new {
            self.file.store(&self.opener.ring, false)?;
        }
        Ok(is_new)
    }

    /// What was seen of manifests.
    #[must_use]
    pub const fn seen(&self) -> &Arc<Seen> {
        &self.opener.seen
    }

    /// How many records were signed because they are from before there were signatures.
    #[must_use]
    pub const fn taken_over(&self) -> usize {
        self.taken_over
    }

    /// Everything in the store that is refused.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when it cannot be read.
    pub async fn inspect(&self) -> Result<Report, StoreError> {
        vouch::inspect(&*self.inner, &self.opener.ring, &self.opener.seen).await
    }

    /// Signs what stands in the store now, and returns what of it was refused before.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; part of it may be signed then.
    pub async fn accept(&self) -> Result<Report, StoreError> {
        let mut turns = Vec::with_capacity(TURNS);
        for turn in &self.turns {
            turns.push(turn.lock().await);
        }
        let accepted = vouch::accept(&*self.inner, &self.opener.ring, &self.opener.seen).await?;
        drop(turns);
        Ok(accepted)
    }

    /// The groups that are not mirrored and do not add up.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when they cannot be read.
    pub async fn broken_beside(&self) -> Result<Vec<(Group, String)>, StoreError> {
        let manifests = self.inner.list_all(&group_keys_beside()).await?.entries;
        let found = manifests.iter().filter_map(|entry| Group::of_manifest(&entry.key));
        let seen = self.opener.seen.all().into_keys().filter(|group| !group.is_in_mesh());
        let mut broken = Vec::new();
        for group in found.chain(seen).collect::<BTreeSet<_>>() {
            if let Some(why) = self.fault(&group).await? {
                broken.push((group, why));
            }
        }
        Ok(broken)
    }

    async fn fault(&self, group: &Group) -> Result<Option<String>, StoreError> {
        Ok(self.book(group).await?.fault(&self.opener.ring, group, self.opener.seen.of(group)))
    }

    /// A group as it stands between two commits.
    async fn book(&self, group: &Group) -> Result<Book, StoreError> {
        let mut tries = 0;
        loop {
            let before = self.inner.get(group.key()).await?;
            let mut members = BTreeMap::new();
            for prefix in group.prefixes() {
                let entries = self.inner.list_all(&prefix).await?.entries;
                let own = entries.into_iter().filter(|entry| group.has(&entry.key, entry.lease.is_some()));
                members.extend(own.map(|entry| (entry.key.clone(), leaf_of(&entry.key, &entry.value))));
            }
            let after = self.inner.get(group.key()).await?;
            let revision = |entry: &Option<Entry>| entry.as_ref().map(|entry| entry.mod_revision);
            tries += 1;
            if revision(&before) == revision(&after) || tries == MAX_TRIES {
                return Ok(Book { manifest: after.map(|entry| (entry.value, entry.mod_revision)), members });
            }
        }
    }

    /// A division as it stands by its manifest. Its members are read only when another server has written it: they stand
    /// among those of all others, and looking through a thousand agents for each that starts would take their square.
    ///
    /// What somebody else wrote meanwhile is not taken up by that, and so stays refused: the next manifest is over what
    /// this server knows to be its own.
    async fn division(&self, group: &Group) -> Result<Book, StoreError> {
        let stands = self.inner.get(group.key()).await?.map(|entry| entry.mod_revision);
        let known = lock(&self.divisions).get(group).cloned();
        let current = |book: &Book| book.manifest.as_ref().map(|(_, revision)| *revision) == stands;
        if let Some(book) = known.filter(|book| stands.is_some() && current(book)) {
            return Ok(book);
        }
        let book = self.book(group).await?;
        if book.fault(&self.opener.ring, group, self.opener.seen.of(group)).is_none() {
            self.remember(group, book.clone());
        }
        Ok(book)
    }

    /// There are as many as divisions at most.
    fn remember(&self, group: &Group, book: Book) {
        if group.is_division() {
            lock(&self.divisions).insert(group.clone(), book);
        }
    }

    /// Whether what stands at `key` is what the newest manifest of its division counts.
    async fn is_counted(&self, group: &Group, key: &Key, entry: Option<&Entry>) -> Result<bool, StoreError> {
        let book = self.division(group).await?;
        let whole = book.fault(&self.opener.ring, group, self.opener.seen.of(group)).is_none();
        Ok(whole && book.members.get(key).copied() == entry.map(|entry| leaf(key, &entry.value)))
    }

    async fn write(&self, txn: &Txn) -> Result<Revision, StoreError> {
        let groups = draft::groups(txn.ops());
        let _turns = self.take_turns(&groups).await;
        let mut tries = 0;
        loop {
            let standing = self.standing(txn, &groups).await?;
            let (sealed, generations) = draft::seal(&self.opener.ring, txn, &standing)?;
            tries += 1;
            match self.inner.commit(sealed).await {
                Ok(revision) => {
                    for Advanced { group, generation, manifest, members } in generations {
                        self.opener.seen.note(&group, generation);
                        self.remember(&group, Book { manifest: Some((manifest, revision)), members });
                    }
                    return Ok(revision);
                }
                Err(StoreError::Conflict(conflict))
                    if Group::of_manifest(&conflict.key).is_some() && tries < MAX_TRIES =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for the turns of `groups`, in one order for everybody.
    async fn take_turns(&self, groups: &BTreeSet<Group>) -> Vec<MutexGuard<'_, ()>> {
        let number =
            |group: &Group| usize::try_from(self.hasher.hash_one(group) % TURNS as u64).unwrap_or_default();
        let numbers: BTreeSet<usize> = groups.iter().map(number).collect();
        let mut turns = Vec::with_capacity(numbers.len());
        for turn in numbers.into_iter().filter_map(|number| self.turns.get(number)) {
            turns.push(turn.lock().await);
        }
        turns
    }

    async fn standing(&self, txn: &Txn, groups: &BTreeSet<Group>) -> Result<Standing, StoreError> {
        let mut standing = Standing::default();
        for group in groups {
            let book =
                if group.is_division() { self.division(group).await? } else { self.book(group).await? };
            standing.books.insert(group.clone(), book);
            standing.seen.insert(group.clone(), self.opener.seen.of(group));
        }
        for op in txn.ops() {
            let Op::Put { key, .. } = op else { continue };
            if let Some(entry) = self.inner.get(key).await? {
                standing.records.insert(key.clone(), draft::follows(&entry.value));
            }
        }
        Ok(standing)
    }

    async fn page(&self, prefix: &Prefix, after: Option<&Key>, limit: usize) -> Result<Page, StoreError> {
        let manifests = adds_up(prefix);
        let mut page = self.inner.list(prefix, after, limit).await?;
        page.entries =
            page.entries.into_iter().filter_map(|entry| self.opener.shown(entry, manifests)).collect();
        if !manifests {
            self.check(&page.entries).await?;
            // The first of a group may be the one that was deleted.
            if let Some(group) = group_of(prefix) {
                self.check_group(&group).await?;
            }
        }
        Ok(page)
    }

    /// Refuses to show records of groups that do not add up.
    async fn check(&self, entries: &[Entry]) -> Result<(), StoreError> {
        let mut groups = BTreeSet::new();
        for entry in entries {
            let Sealing::Member(group) = sealing(&entry.key, entry.lease.is_some()) else { continue };
            if let Some(why) = envelope::refusal(&entry.value) {
                return Err(StoreError::Unvouched { what: entry.key.to_string(), why: why.to_owned() });
            }
            groups.insert(group);
        }
        for group in groups {
            self.check_group(&group).await?;
        }
        Ok(())
    }

    async fn check_group(&self, group: &Group) -> Result<(), StoreError> {
        match self.fault(group).await? {
            Some(why) => Err(StoreError::Unvouched { what: group.to_string(), why }),
            None => Ok(()),
        }
    }

    /// The mirrored part as it stood between two changes of its groups.
    async fn mirrored(&self, prefix: &Prefix) -> Result<Listing, StoreError> {
        let manifests = group_keys_in_mesh();
        let mut tries = 0;
        loop {
            let listing = whole(self, prefix).await?;
            let after = self.inner.list_all(&manifests).await?.entries;
            let revisions = |entries: &[Entry]| -> BTreeMap<Key, Revision> {
                let own = entries.iter().filter(|entry| entry.key.is_under(&manifests));
                own.map(|entry| (entry.key.clone(), entry.mod_revision)).collect()
            };
            tries += 1;
            if revisions(&listing.entries) == revisions(&after) || tries == MAX_TRIES {
                return Ok(listing);
            }
        }
    }
}

/// Opens what comes out of the store.
#[derive(Clone)]
struct Opener {
    ring: KeyRing,
    seen: Arc<Seen>,
}

impl Opener {
    /// An entry as readers see it; `None` for a manifest, unless they add up themselves.
    fn shown(&self, entry: Entry, manifests: bool) -> Option<Entry> {
        let is_manifest = Group::of_manifest(&entry.key).is_some();
        let (entry, manifest) = ledger::shown(&self.ring, entry);
        if let Some((group, generation)) = manifest {
            self.seen.note(&group, generation);
        }
        (manifests || !is_manifest).then_some(entry)
    }

    /// A commit as readers see it; empty when it changed nothing of theirs.
    fn batch(&self, batch: EventBatch, manifests: bool) -> EventBatch {
        let shown = |event| match event {
            Event::Put(entry) => self.shown(entry, manifests).map(Event::Put),
            Event::Delete(key) => {
                (manifests || Group::of_manifest(&key).is_none()).then_some(Event::Delete(key))
            }
        };
        EventBatch { revision: batch.revision, events: batch.events.into_iter().filter_map(shown).collect() }
    }
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Books are put in whole.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Whether the reader of this prefix adds the groups up.
fn adds_up(prefix: &Prefix) -> bool {
    *prefix == layout::mesh()
}

/// The group that everything under `prefix` belongs to, if it is one.
fn group_of(prefix: &Prefix) -> Option<Group> {
    match sealing(&format!("{}0", prefix.as_str()).parse().ok()?, false) {
        Sealing::Member(group) => {
            (group.prefixes() == [prefix.clone()] && !group.is_division()).then_some(group)
        }
        Sealing::Open | Sealing::Signed | Sealing::Manifest(_) => None,
    }
}

fn group_keys_in_mesh() -> Prefix {
    super::group::IN_MESH.parse().expect("it is a prefix")
}

fn group_keys_beside() -> Prefix {
    super::group::BESIDE.parse().expect("it is a prefix")
}

/// All pages of a prefix.
async fn whole(store: &SealedStore, prefix: &Prefix) -> Result<Listing, StoreError> {
    let first = store.page(prefix, None, crate::store::MAX_PAGE_ENTRIES).await?;
    let mut listing = Listing { entries: first.entries, revision: first.revision };
    let mut next = first.next;
    while let Some(after) = next {
        let page = store.page(prefix, Some(&after), crate::store::MAX_PAGE_ENTRIES).await?;
        listing.entries.extend(page.entries);
        next = page.next;
    }
    Ok(listing)
}

impl Store for SealedStore {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move {
            let entry = self.inner.get(key).await?.and_then(|entry| self.opener.shown(entry, false));
            if let Sealing::Member(group) = sealing(key, false)
                && group.is_division()
                && self.is_counted(&group, key, entry.as_ref()).await?
            {
                return Ok(entry);
            }
            match (&entry, sealing(key, false)) {
                (Some(entry), _) => self.check(std::slice::from_ref(entry)).await?,
                // It may be the one that was deleted.
                (None, Sealing::Member(group)) => self.check_group(&group).await?,
                (None, Sealing::Open | Sealing::Signed | Sealing::Manifest(_)) => {}
            }
            Ok(entry)
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        self.page(prefix, after, limit).boxed()
    }

    fn list_all<'a>(&'a self, prefix: &'a Prefix) -> BoxFuture<'a, Result<Listing, StoreError>> {
        Box::pin(async move {
            if adds_up(prefix) { self.mirrored(prefix).await } else { whole(self, prefix).await }
        })
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move { self.write(&txn).await })
    }

    fn watch(&self, prefix: Prefix, from: Revision) -> BoxFuture<'_, Result<Watch, StoreError>> {
        Box::pin(async move {
            let manifests = adds_up(&prefix);
            let inner = self.inner.watch(prefix, from).await?;
            let opener = self.opener.clone();
            let opened = inner.filter_map(move |batch| {
                let batch = batch.map(|batch| opener.batch(batch, manifests));
                let nothing = batch.as_ref().is_ok_and(|batch| batch.events.is_empty());
                std::future::ready((!nothing).then_some(batch))
            });
            Ok(Watch::new(opened))
        })
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.compact(revision)
    }

    fn grant(&self, ttl: Ttl) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        self.inner.grant(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Ttl, StoreError>> {
        self.inner.keep_alive(lease)
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.inner.revoke(lease)
    }

    fn status(&self) -> BoxFuture<'_, Result<Status, StoreError>> {
        self.inner.status()
    }

    fn stale_for(&self) -> Option<Duration> {
        self.inner.stale_for()
    }
}

impl std::fmt::Debug for SealedStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SealedStore").field("key", &self.ring().own().id()).finish_non_exhaustive()
    }
}
