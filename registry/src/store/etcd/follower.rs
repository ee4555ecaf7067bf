//! Keeps the image of a store in step with etcd.
//!
//! ```text
//! Following ──watch fails──▶ Lost ──another member, same store, no older──▶ Following
//!                             │ ──history gone──▶ listed again: the image is replaced ──▶ Following
//!                             └ ──another store, or an older one──▶ refused: the store ends
//! ```
//!
//! Owns the one watch of this server, and the only writes to its image. While etcd is away, readers read on. Every few
//! minutes everything is compared with etcd, because a watch has been known to lose events (ETCD-02).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use weft_api::pb::etcd::CompactionRequest;

use super::super::draft::{Bounds, Changes};
use super::super::image::{Image, Saved};
use super::super::metrics::StoreMetrics;
use super::super::shared::Shared;
use super::super::{EventBatch, Key, Revision, StoreError};
use super::batches::{Batches, Commit, End};
use super::caller::SharedCaller;
use super::error::{Failure, Found, OpenError, Verdict};
use super::link::Session;
use super::listing::{self, Take};
use super::mark::Mark;
use super::space::{Identity, Name, Space};
use super::wire;

/// Between two attempts to reach etcd again: at first, and at most. The second is that of agents (decisions.md).
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1500));

/// How often what is known of the store is noted in the state directory, if it changed.
const NOTE_EVERY: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Follower {
    pub(super) caller: SharedCaller,
    pub(super) shared: Arc<Shared>,
    pub(super) progress: watch::Sender<Revision>,
    pub(super) space: Space,
    pub(super) identity: Identity,
    pub(super) cluster: u64,
    pub(super) mark: Arc<Mutex<Mark>>,
    pub(super) bounds: Bounds,
    pub(super) metrics: Arc<StoreMetrics>,
    /// What was otherwise than in etcd at the last comparison. What is so twice, was lost.
    pub(super) suspects: BTreeSet<Difference>,
    /// What etcd was told to forget, so that its file does not grow for ever.
    pub(super) compacted: Revision,
}

/// A key that the image and etcd do not agree on, and its last change in each (0: absent).
pub(super) type Difference = (Key, Revision, Revision);

/// What a follower does next.
enum Next {
    /// Reach etcd again and go on behind what is known.
    Resume,
    /// List everything anew.
    Relist,
    /// Nothing more.
    End,
}

/// A watch on its connection.
pub(super) struct Source {
    pub(super) session: Arc<Session>,
    pub(super) batches: Batches,
}

impl Follower {
    /// Runs until the store is closed or refused.
    pub(super) async fn run(mut self, first: Source) {
        let mut source = first;
        loop {
            self.metrics.connected.set(1);
            self.caller.contact.follow(true);
            let mut next = self.follow(&mut source).await;
            self.caller.contact.follow(false);
            self.metrics.connected.set(0);
            source = loop {
                let found = match next {
                    Next::End => return,
                    Next::Resume => self.resume().await,
                    Next::Relist => self.relist().await,
                };
                match found {
                    Ok(source) => break source,
                    Err(why) => next = why,
                }
            };
        }
    }

    /// Applies what the watch delivers until it ends.
    async fn follow(&mut self, source: &mut Source) -> Next {
        let closed = self.caller.closed.clone();
        let clock = self.caller.clock.clone();
        let mut compare_at = clock.uptime().saturating_add(self.caller.timeouts.reconcile);
        let mut note_at = clock.uptime().saturating_add(NOTE_EVERY);
        loop {
            tokio::select! {
                () = closed.cancelled() => return Next::End,
                () = source.session.dead.cancelled() => return Next::Resume,
                commits = source.batches.next() => match commits {
                    Ok(commits) => {
                        self.caller.contact.heard(clock.uptime());
                        if self.apply(commits).is_err() { return Next::End }
                    }
                    Err(End::Compacted(_)) => return Next::Relist,
                    Err(End::Failed(failure)) => {
                        self.caller.link.failed(&source.session, &failure);
                        return Next::Resume;
                    }
                },
                () = clock.sleep_until_uptime(note_at) => {
                    self.note().await;
                    note_at = clock.uptime().saturating_add(NOTE_EVERY);
                }
                () = clock.sleep_until_uptime(compare_at) => match self.look_after().await {
                    Ok(true) => return Next::Relist,
                    // A difference is looked at again soon: it may just have been on its way.
                    Ok(false) if self.suspects.is_empty() => {
                        compare_at = clock.uptime().saturating_add(self.caller.timeouts.reconcile);
                    }
                    Ok(false) | Err(_) => {
                        compare_at = clock.uptime().saturating_add(self.caller.timeouts.answer);
                    }
                },
            }
        }
    }

    /// Shows commits to readers. An error means that the store was refused.
    fn apply(&self, commits: Vec<Commit>) -> Result<(), ()> {
        if commits.iter().any(|commit| commit.identity) {
            let known = self.identity.id;
            self.refuse(OpenError::OtherStore { known, found: Found::Nothing });
            return Err(());
        }
        let Some(newest) = commits.last().map(|commit| self.identity.revision(commit.of_etcd)) else {
            return Ok(());
        };
        let Ok(image) = self.shared.read() else { return Err(()) };
        let changes = Changes::watched(&image, self.bounds, newest, self.batches(commits));
        drop(image);
        self.shared.apply(changes);
        self.tell();
        Ok(())
    }

    fn batches(&self, commits: Vec<Commit>) -> Vec<EventBatch> {
        batches_of(&self.identity, commits)
    }

    /// Tells watches and metrics that the image changed.
    fn tell(&self) {
        let Ok(status) = self.shared.read().map(|image| image.status()) else { return };
        self.metrics.revision.set(i64::try_from(status.revision.0).unwrap_or(i64::MAX));
        self.metrics.bytes.set(i64::try_from(status.bytes).unwrap_or(i64::MAX));
        self.progress.send_replace(status.revision);
    }

    /// Ends the store: going on could undo what was decided and revoked.
    fn refuse(&self, why: OpenError) {
        tracing::error!(code = why.code().as_str(), error = %why, "the store is refused; the server must end");
        self.shared.end(StoreError::Refused { source: Arc::new(why) });
    }

    /// Finds a member that has the same store, no older than it was, and watches from there on.
    async fn resume(&self) -> Result<Source, Next> {
        let mut pause = PAUSE.0;
        loop {
            if self.caller.closed.is_cancelled() {
                return Err(Next::End);
            }
            let failure = match self.connect().await {
                Ok(source) => return Ok(source),
                Err(Reach::Compacted) => return Err(Next::Relist),
                Err(Reach::Refused(why)) => {
                    self.refuse(why);
                    return Err(Next::End);
                }
                Err(Reach::Failed(failure)) => failure,
            };
            tracing::warn!(%failure, "the store in etcd cannot be followed; reads go on");
            tokio::select! {
                () = self.caller.closed.cancelled() => return Err(Next::End),
                () = self.caller.clock.sleep(jittered(pause)) => pause = PAUSE.1.min(pause * 2),
            }
        }
    }

    async fn connect(&self) -> Result<Source, Reach> {
        let session = self.caller.link.session().await.map_err(Reach::Failed)?;
        let key = self.space.identity();
        let answer = self.caller.once(&session, session.kv().range(wire::whole(key))).await?;
        let header = wire::header(answer.header.as_ref())?;
        let identity = answer.kvs.first().map(Identity::read);
        let known = self.shared.read().map_or(Revision::ZERO, |image| image.revision());
        let current = self.identity.revision(header.revision);
        match identity {
            Some(Ok(identity)) if identity == self.identity => {}
            Some(Ok(other)) => {
                let (known, found) = (self.identity.id, Found::Store(other.id));
                return Err(Reach::Refused(OpenError::OtherStore { known, found }));
            }
            Some(Err(_)) | None => {
                let (known, found) = (self.identity.id, Found::Nothing);
                return Err(Reach::Refused(OpenError::OtherStore { known, found }));
            }
        }
        if header.cluster_id != self.cluster {
            let (known, found) = (self.cluster, header.cluster_id);
            return Err(Reach::Refused(OpenError::OtherCluster { known, found }));
        }
        if current < known {
            return Err(Reach::Refused(OpenError::Behind { known, current }));
        }
        self.watch(session, self.identity.of_etcd(known)).await
    }

    async fn watch(&self, session: Arc<Session>, seen: i64) -> Result<Source, Reach> {
        let batches = Batches::open(&self.caller, &session, &self.space, self.identity, seen).await?;
        Ok(Source { session, batches })
    }

    /// Replaces the image by what is there now. Watches that were behind are told that they missed something.
    async fn relist(&self) -> Result<Source, Next> {
        self.metrics.relists.inc();
        // The same checks as before any watch: the store may be another one by now.
        if let Err(next @ Next::End) = self.resume().await.map(drop) {
            return Err(next);
        }
        let listed = match listing::list(&self.caller, &self.space, Take::Everything).await {
            Ok(listed) => listed,
            Err(failure) => {
                tracing::warn!(%failure, "the store in etcd cannot be listed; reads go on");
                self.caller.clock.sleep(jittered(PAUSE.1)).await;
                return Err(if self.caller.closed.is_cancelled() { Next::End } else { Next::Relist });
            }
        };
        let revision = self.identity.revision(listed.revision);
        let entries = listed.entries(&self.space, &self.identity);
        tracing::warn!(%revision, entries = entries.len(), "the store was listed anew");
        self.shared.replace(Image::of(Saved {
            id: self.identity.id,
            revision,
            compacted: revision,
            last_lease: 0,
            entries,
            leases: Vec::new(),
            history: Vec::new(),
        }));
        self.tell();
        let session = self.caller.link.session().await.map_err(|_| Next::Resume)?;
        self.watch(session, listed.revision).await.map_err(|why| match why {
            Reach::Compacted => Next::Relist,
            Reach::Failed(_) | Reach::Refused(_) => Next::Resume,
        })
    }

    /// Lets etcd forget what the image has forgotten, and compares the two. Returns whether an event was lost.
    async fn look_after(&mut self) -> Result<bool, Failure> {
        let forgotten = self.shared.read().map_or(Revision::ZERO, |image| image.compacted());
        if forgotten > self.compacted {
            let of_etcd = self.identity.of_etcd(forgotten);
            let request = CompactionRequest { revision: of_etcd };
            let ask = |session: Arc<Session>| async move { session.kv().compact(request).await };
            match self.caller.repeat(self.caller.deadline(), ask).await {
                Err(failure) if failure.verdict() != Verdict::Compacted => return Err(failure),
                Ok(_) | Err(_) => self.compacted = forgotten,
            }
        }
        self.compare().await
    }

    /// Compares keys and revisions with etcd. Returns whether an event was lost.
    async fn compare(&mut self) -> Result<bool, Failure> {
        let listed = listing::list(&self.caller, &self.space, Take::Keys).await?;
        let mut there = BTreeMap::new();
        for found in &listed.found {
            if let Name::Record(key) = self.space.name(&found.key) {
                there.insert(key, self.identity.revision(found.mod_revision));
            }
        }
        let Ok(image) = self.shared.read() else { return Ok(false) };
        let mut differences = BTreeSet::new();
        for entry in image.entries() {
            let found = there.remove(&entry.key).unwrap_or(Revision::ZERO);
            if found != entry.mod_revision {
                differences.insert((entry.key.clone(), entry.mod_revision, found));
            }
        }
        drop(image);
        differences.extend(there.into_iter().map(|(key, found)| (key, Revision::ZERO, found)));
        let lost = differences.intersection(&self.suspects).count();
        if lost > 0 {
            tracing::error!(lost, "etcd's watch lost events; everything is listed anew");
            differences.clear();
        }
        self.suspects = differences;
        Ok(lost > 0)
    }

    /// Notes what is known of the store, off the runtime's threads.
    async fn note(&self) {
        let Ok(revision) = self.shared.read().map(|image| image.revision()) else { return };
        let (mark, cluster, identity) = (Arc::clone(&self.mark), self.cluster, self.identity);
        let noted = tokio::task::spawn_blocking(move || {
            mark.lock().unwrap_or_else(PoisonError::into_inner).note(cluster, &identity, revision)
        });
        if let Ok(Err(error)) = noted.await {
            tracing::error!(%error, "what is known of the store cannot be noted");
        }
    }
}

/// The commits that changed something, as readers see them.
pub(super) fn batches_of(identity: &Identity, commits: Vec<Commit>) -> Vec<EventBatch> {
    let batch =
        |commit: Commit| EventBatch { revision: identity.revision(commit.of_etcd), events: commit.events };
    commits.into_iter().map(batch).filter(|batch| !batch.events.is_empty()).collect()
}

/// Why a store cannot be followed now.
enum Reach {
    Failed(Failure),
    Compacted,
    Refused(OpenError),
}

impl From<Failure> for Reach {
    fn from(failure: Failure) -> Self {
        if failure.verdict() == Verdict::Compacted { Self::Compacted } else { Self::Failed(failure) }
    }
}

/// Full jitter over `pause`, and never none.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness the pause is the whole one.
    let part = aws_lc_rs::rand::fill(&mut byte).map_or(u8::MAX, |()| byte[0].max(16));
    pause * u32::from(part) / 255
}
