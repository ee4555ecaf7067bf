//! How a store over etcd is opened: who it is, what it holds, what happened lately.
//!
//! ```text
//! lock and mark ─▶ log in ─▶ list ─▶ same store, no older? ─▶ recent history ─▶ follow
//! ```

use std::sync::{Arc, Mutex};

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weft_api::pb::etcd::TxnRequest;

use super::super::draft::{Bounds, Changes};
use super::super::image::{Image, Saved};
use super::super::metrics::StoreMetrics;
use super::super::shared::Shared;
use super::super::{Revision, StoreId};
use super::batches::{Batches, Commit, End};
use super::caller::{Caller, SharedCaller};
use super::contact::Contact;
use super::error::{Failure, Found, OpenError, Verdict};
use super::follower::{Follower, Source, batches_of};
use super::lease::Leases;
use super::link::{Link, Session};
use super::listing::{self, Listed, Take};
use super::mark::{Mark, random};
use super::settings::Settings;
use super::slots::{SLOTS, Slots};
use super::space::{Identity, InvalidIdentity, Space};
use super::wire;
use super::writes::Writes;
use super::{EtcdStore, UNDER_WAY_KIB};
use crate::clock::Clock;

/// How often the recent history is asked for again because etcd forgot some of it meanwhile.
const ATTEMPTS: usize = 5;

/// What was read of the store.
struct Loaded {
    image: Image,
    source: Source,
    identity: Identity,
    cluster: u64,
    slots: [i64; SLOTS],
}

impl EtcdStore {
    /// Opens the store, or creates it where there is none and this server never knew one.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: etcd cannot be reached or does not let the server in, the store is not the one that this server
    /// knows or is older than it was, or the state directory is in use.
    pub async fn open(
        settings: Settings,
        clock: Clock,
        metrics: Arc<StoreMetrics>,
    ) -> Result<Self, OpenError> {
        Self::open_from(settings, Revision::ZERO, clock, metrics).await
    }

    /// As [`Self::open`]; a store that has to be created goes on from `start`, the revision of the store that it takes
    /// over from, so that no agent sees a revision go back.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub async fn open_from(
        settings: Settings,
        start: Revision,
        clock: Clock,
        metrics: Arc<StoreMetrics>,
    ) -> Result<Self, OpenError> {
        let directory = settings.state_dir.clone();
        let mark = tokio::task::spawn_blocking(move || Mark::open(&directory)).await;
        let mark = mark.map_err(|_| OpenError::Entropy)??;
        let Settings { endpoints, tls, user, prefix, bounds, timeouts, state_dir: _ } = settings;
        let link = Link::new(endpoints, tls, user, timeouts);
        let (closed, contact) = (CancellationToken::new(), Contact::default());
        let caller = Arc::new(Caller { link, timeouts, clock, closed, contact });
        let space = Space::new(&prefix);
        let loaded = load(&caller, &space, &mark, start, bounds).await?;
        let Loaded { image, source, identity, cluster, slots } = loaded;
        let writer = mark.writer().to_owned();
        let shared_compacted = image.compacted();
        let (progress, seen) = watch::channel(image.revision());
        let shared = Arc::new(Shared::new(image, seen));
        let mark = Arc::new(Mutex::new(mark));
        let follower = Follower {
            caller: Arc::clone(&caller),
            shared: Arc::clone(&shared),
            progress,
            space: space.clone(),
            identity,
            cluster,
            mark: Arc::clone(&mark),
            bounds,
            metrics: Arc::clone(&metrics),
            suspects: std::collections::BTreeSet::new(),
            compacted: shared_compacted,
        };
        let leases =
            Leases::new(Arc::clone(&caller), Arc::clone(&shared), space.clone(), identity, bounds.max_leases);
        let writes = Writes {
            caller: Arc::clone(&caller),
            shared: Arc::clone(&shared),
            space,
            identity,
            writer,
            slots: Slots::new(slots),
            bounds,
            metrics: Arc::clone(&metrics),
            nonce: random()?,
            count: 0.into(),
        };
        // The watch is open; the follower only goes on with it.
        caller.contact.follow(true);
        let mut tasks = JoinSet::new();
        tasks.spawn(follower.run(source));
        let room = Semaphore::new(UNDER_WAY_KIB);
        let store = Self {
            caller,
            shared,
            identity,
            cluster,
            mark,
            writes,
            leases,
            room,
            metrics,
            follower: tokio::sync::Mutex::new(tasks),
        };
        // Before anything is written: whoever takes over from here on knows this store.
        store.note();
        Ok(store)
    }
}

async fn load(
    caller: &SharedCaller,
    space: &Space,
    mark: &Mark,
    start: Revision,
    bounds: Bounds,
) -> Result<Loaded, OpenError> {
    let mut listed = listing::list(caller, space, Take::Everything).await.map_err(refused)?;
    let identity = match listed.identity(space) {
        Some(identity) => identity.map_err(unreadable)?,
        None => {
            if let Some(known) = mark.store() {
                return Err(OpenError::OtherStore { known, found: Found::Nothing });
            }
            create(caller, space, start).await?;
            listed = listing::list(caller, space, Take::Everything).await.map_err(refused)?;
            let damaged = || OpenError::Damaged { what: "it was deleted while it was made".to_owned() };
            listed.identity(space).ok_or_else(damaged)?.map_err(unreadable)?
        }
    };
    mark.check(listed.cluster, &identity, identity.revision(listed.revision))?;
    let slots = slots(&listed, space, mark.writer());
    let (image, source, slots) =
        follow(caller, space, &listed, identity, slots, mark.writer(), bounds).await?;
    Ok(Loaded { image, source, identity, cluster: listed.cluster, slots })
}

/// Writes who the store is, unless another server was faster.
async fn create(caller: &SharedCaller, space: &Space, start: Revision) -> Result<(), OpenError> {
    let key = space.identity();
    let text = Identity::text(StoreId(random()?), start);
    let create = TxnRequest {
        compare: vec![wire::created_at(key.clone(), 0)],
        success: vec![wire::put(key, text.into(), 0)],
        failure: Vec::new(),
    };
    let ask = |session: Arc<Session>| {
        let create = create.clone();
        async move { session.kv().txn(create).await }
    };
    caller.repeat(caller.deadline(), ask).await.map_err(refused).map(drop)
}

/// The revision of each of the writer's slots.
fn slots(listed: &Listed, space: &Space, writer: &str) -> [i64; SLOTS] {
    let mut slots = [0; SLOTS];
    for (number, changed) in slots.iter_mut().enumerate() {
        let key = space.slot(writer, number);
        let found = listed.found.iter().find(|found| found.key == key);
        *changed = found.map_or(0, |found| found.mod_revision);
    }
    slots
}

/// Reads the recent history, as far as etcd keeps it and the bounds allow, and goes on watching behind it.
///
/// A watch does not say where the past ends. It has ended when the newest change of what was listed was seen; if the very
/// last commit was a deletion, a slot is written, which is then the newest change.
async fn follow(
    caller: &SharedCaller,
    space: &Space,
    listed: &Listed,
    identity: Identity,
    mut slots: [i64; SLOTS],
    writer: &str,
    bounds: Bounds,
) -> Result<(Image, Source, [i64; SLOTS]), OpenError> {
    let mut end = listed.newest();
    if end < listed.revision {
        let opened = wire::put(space.slot(writer, 0), "opened".into(), 0);
        let put = TxnRequest { compare: Vec::new(), success: vec![opened], failure: Vec::new() };
        let ask = |session: Arc<Session>| {
            let put = put.clone();
            async move { session.kv().txn(put).await }
        };
        let answer = caller.repeat(caller.deadline(), ask).await.map_err(refused)?;
        end = wire::header(answer.header.as_ref()).map_err(refused)?.revision;
        slots[0] = end;
    }
    let most = i64::try_from(bounds.max_history).unwrap_or(i64::MAX);
    let mut forgotten = listed.revision.saturating_sub(most).max(identity.created);
    let mut failure = Failure::Headless;
    for _ in 0..ATTEMPTS {
        match past(caller, space, identity, forgotten, end).await {
            Ok((source, commits)) => {
                let saved = Saved {
                    id: identity.id,
                    revision: identity.revision(listed.revision),
                    compacted: identity.revision(forgotten),
                    last_lease: 0,
                    entries: listed.entries(space, &identity),
                    leases: Vec::new(),
                    history: Vec::new(),
                };
                return Ok((image(&identity, saved, listed.revision, commits, bounds), source, slots));
            }
            Err(End::Compacted(compacted)) if compacted <= listed.revision => forgotten = compacted,
            Err(End::Compacted(_)) => {
                failure = Failure::Watch("the history was compacted while it was read".into())
            }
            Err(End::Failed(why)) => {
                failure = why;
                caller.again(caller.deadline(), failure.clone()).await.map_err(refused)?;
            }
        }
    }
    Err(refused(failure))
}

/// Watches from behind `seen` until `end` was seen.
async fn past(
    caller: &SharedCaller,
    space: &Space,
    identity: Identity,
    seen: i64,
    end: i64,
) -> Result<(Source, Vec<Commit>), End> {
    let session = caller.link.session().await.map_err(End::Failed)?;
    let mut batches = Batches::open(caller, &session, space, identity, seen).await.map_err(End::Failed)?;
    let mut commits: Vec<Commit> = Vec::new();
    while seen.max(commits.last().map_or(0, |commit| commit.of_etcd)) < end {
        let limit = caller.timeouts.answer;
        let more = tokio::time::timeout(limit, batches.next()).await;
        commits.extend(more.unwrap_or(Err(End::Failed(Failure::TimedOut(limit))))?);
    }
    Ok((Source { session, batches }, commits))
}

/// What was listed, with the commits before it as its history and those behind it applied.
fn image(identity: &Identity, mut listed: Saved, at: i64, commits: Vec<Commit>, bounds: Bounds) -> Image {
    let (past, later): (Vec<_>, Vec<_>) = commits.into_iter().partition(|commit| commit.of_etcd <= at);
    listed.history = batches_of(identity, past);
    let mut image = Image::of(listed);
    let newest = later.last().map_or_else(|| image.revision(), |commit| identity.revision(commit.of_etcd));
    let changes = Changes::watched(&image, bounds, newest, batches_of(identity, later));
    image.apply(changes);
    image
}

fn refused(failure: Failure) -> OpenError {
    match failure.verdict() {
        Verdict::Forbidden => OpenError::Forbidden(failure),
        Verdict::Refused
        | Verdict::Unserved
        | Verdict::Unknown
        | Verdict::Compacted
        | Verdict::NoLease
        | Verdict::Full
        | Verdict::TooLarge => OpenError::Unreachable(failure),
    }
}

fn unreadable(why: InvalidIdentity) -> OpenError {
    match why {
        InvalidIdentity::Newer(found) => OpenError::Newer { found },
        InvalidIdentity::Damaged => {
            OpenError::Damaged { what: "the record of its identity is not as Weft wrote it".to_owned() }
        }
    }
}
