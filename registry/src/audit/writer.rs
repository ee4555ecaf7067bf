//! The one task that writes the log: what has queued up goes to the disk together, then its anchor to the store.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use super::{
    AuditError, Settings, State,
    chain::{End, Entry, Event, Outcome, Report},
    files::{Files, FilesError},
};
use crate::{
    clock::Clock,
    layout,
    metrics::RegistryMetrics,
    store::{Expected, Key, Store, StoreError},
};

/// Entries that are written together: as many as wait at most while the disk takes the ones before.
const BATCH: usize = 256;
/// So long after an entry its anchor is in the store. Each is a commit, so not every entry has one of its own.
const ANCHOR_WITHIN: Duration = Duration::from_secs(1);
/// The same for what nobody was refused and nothing was changed by: reads are many.
const ANCHOR_READS_WITHIN: Duration = Duration::from_secs(60);

/// What the writer is asked for.
#[derive(Debug)]
pub(super) enum Job {
    Write(Event, Option<oneshot::Sender<Result<(), String>>>),
    Newest(usize, oneshot::Sender<Result<Vec<Entry>, String>>),
    Verify(oneshot::Sender<Result<Report, String>>),
    Settle(oneshot::Sender<()>),
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Anchor {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) hash: String,
}

impl Anchor {
    pub(super) async fn read(store: &dyn Store, key: &Key) -> Result<Option<Self>, StoreError> {
        let entry = store.get(key).await?;
        // One that cannot be read holds nothing: the log is then told to be broken.
        let lost = Self { first: 0, last: u64::MAX, hash: String::new() };
        Ok(entry.map(|entry| serde_json::from_slice(&entry.value).unwrap_or(lost)))
    }

    pub(super) fn encode(&self) -> Bytes {
        serde_json::to_vec(self).expect("texts and numbers always serialise").into()
    }
}

/// An open log that nobody writes yet.
pub(super) struct Opened {
    files: Arc<Mutex<Files>>,
    end: End,
    first: u64,
    anchored: u64,
    anchor_key: Key,
    store: Arc<dyn Store>,
    clock: Clock,
    broken: Option<String>,
}

/// Opens the files and compares their end with the anchor.
pub(super) async fn open(
    settings: Settings,
    store: Arc<dyn Store>,
    clock: Clock,
    instance: &str,
) -> Result<Opened, AuditError> {
    let anchor_key = layout::audit_anchor(instance);
    let anchor = Anchor::read(&*store, &anchor_key).await?;
    let (mut files, report) = Files::open(settings)?;
    let mut wrong = report.faults.first().cloned();
    let mut end = report.end.clone();
    if let Some(anchor) = &anchor {
        if wrong.is_none() {
            wrong = cut_off(anchor, &report)
                .map_or_else(|| exchanged(anchor, &end, &files), |cut| Ok(Some(cut)))?;
        }
        // Numbers are not given twice: the gap stays to be seen.
        if end.seq < anchor.last && anchor.last != u64::MAX {
            end.seq = anchor.last;
        }
    }
    let first = anchor.as_ref().map_or(report.first, |anchor| anchor.first);
    if let Some(wrong) = &wrong {
        error!(target: "audit", wrong, "the audit log is not as it was written");
        let event = Event::unknown("server", "audit", Outcome::Broken).because(wrong);
        let line = end.append(event, clock.now());
        files.append(&line, end.seq)?;
    }
    let files = Arc::new(Mutex::new(files));
    Ok(Opened { files, end, first, anchored: 0, anchor_key, store, clock, broken: wrong })
}

/// What the anchor knows to have been written after the end of the log.
pub(super) fn cut_off(anchor: &Anchor, newest: &Report) -> Option<String> {
    (newest.end.seq < anchor.last).then(|| {
        format!(
            "the log ends with entry {}, and was written up to {}",
            newest.end.seq,
            if anchor.last == u64::MAX { "an unknown one".to_owned() } else { anchor.last.to_string() }
        )
    })
}

/// What the anchor knows to be there before the beginning of the log.
pub(super) fn missing(anchor: &Anchor, whole: &Report) -> Option<String> {
    (anchor.first != 0 && anchor.first < whole.first).then(|| {
        format!(
            "the log begins with entry {}, and entries from {} on are to be there",
            whole.first, anchor.first
        )
    })
}

/// Whether the log, where it reaches as far as the anchor, has another entry there than the one that was anchored: a
/// chain that somebody has computed anew holds together, and only the anchor knows that it is another one.
pub(super) fn exchanged(anchor: &Anchor, end: &End, files: &Files) -> Result<Option<String>, FilesError> {
    let Anchor { last, hash, .. } = anchor;
    if *last == 0 || end.seq < *last {
        return Ok(None);
    }
    Ok(match files.entry(*last)? {
        Some(entry) if entry.hash == *hash => None,
        Some(_) => Some(format!("entry {last} is another one than was written")),
        None => Some(format!("entry {last} was written and is not there")),
    })
}

impl Opened {
    pub(super) fn broken(&self) -> Option<String> {
        self.broken.clone()
    }

    /// Writes what comes through the queue until nobody can send any more.
    pub(super) async fn run(
        self,
        mut queue: mpsc::Receiver<Job>,
        state: Arc<State>,
        metrics: Arc<RegistryMetrics>,
    ) {
        let clock = self.clock.clone();
        let mut writer = Writer { log: self, state, metrics, due: None };
        let mut jobs = Vec::with_capacity(BATCH);
        loop {
            let anchor = async {
                match writer.due {
                    Some(due) => clock.sleep_until_uptime(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                count = queue.recv_many(&mut jobs, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    writer.take(std::mem::take(&mut jobs)).await;
                }
                () = anchor => writer.anchor().await,
            }
        }
    }
}

struct Writer {
    log: Opened,
    state: Arc<State>,
    metrics: Arc<RegistryMetrics>,
    /// When the anchor is to be written, as an uptime.
    due: Option<Duration>,
}

impl Writer {
    async fn take(&mut self, jobs: Vec<Job>) {
        let (mut events, mut replies, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for job in jobs {
            match job {
                Job::Write(event, reply) => {
                    events.push(event);
                    replies.extend(reply);
                }
                Job::Newest(..) | Job::Verify(_) | Job::Settle(_) => others.push(job),
            }
        }
        if !events.is_empty() {
            let written = self.write(events).await;
            for reply in replies {
                // Whoever has gone away needs no answer.
                let _ = reply.send(written.clone());
            }
        }
        for job in others {
            self.answer(job).await;
        }
    }

    async fn write(&mut self, events: Vec<Event>) -> Result<(), String> {
        let count = events.len();
        let only_reads = events.iter().all(|event| event.outcome == Outcome::Allowed && event.change == 0);
        let now = self.log.clock.now();
        let (mut end, mut lines) = (self.log.end.clone(), String::new());
        let first = end.seq.saturating_add(1);
        for event in events {
            lines.push_str(&end.append(event, now));
        }
        let written = self.on_disk(move |files| files.append(&lines, first)).await;
        self.tell(&written);
        written?;
        self.metrics.audit_entries.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
        self.log.end = end;
        if self.log.first == 0 {
            self.log.first = first;
        }
        self.make_room().await;
        let within = if only_reads { ANCHOR_READS_WITHIN } else { ANCHOR_WITHIN };
        let due = self.log.clock.uptime().saturating_add(within);
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
        Ok(())
    }

    /// Waits for the disk where it may take its time.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Files) -> Result<T, FilesError> + Send + 'static,
    ) -> Result<T, String> {
        let files = Arc::clone(&self.log.files);
        let done = move || work(&mut files.lock().unwrap_or_else(PoisonError::into_inner));
        match tokio::task::spawn_blocking(done).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Loudly when it begins to fail and when it ends to.
    fn tell(&self, written: &Result<(), String>) {
        let mut failing = self.state.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match written {
            Ok(()) => {
                if failing.take().is_some() {
                    warn!(target: "audit", "the audit log is written again");
                }
            }
            Err(why) => {
                self.metrics.audit_failures.inc();
                if failing.replace(why.clone()).is_none() {
                    error!(target: "audit", why, "the audit log cannot be written; changes are refused");
                }
            }
        }
    }

    /// Removes the oldest files: first the anchor says that they may be missing, then they go.
    async fn make_room(&mut self) {
        match self.on_disk(|files| files.first_after_removal()).await {
            Ok(Some(first)) => {
                self.log.first = first;
                self.anchor().await;
                if self.log.anchored == self.log.end.seq
                    && let Err(error) = self.on_disk(move |files| files.remove_before(first)).await
                {
                    warn!(target: "audit", %error, "an old file of the audit log cannot be removed");
                }
            }
            Ok(None) => {}
            Err(error) => warn!(target: "audit", %error, "the files of the audit log cannot be listed"),
        }
    }

    async fn anchor(&mut self) {
        self.due = None;
        let (end, first) = (&self.log.end, self.log.first);
        let anchor = Anchor { first, last: end.seq, hash: end.hash.clone() };
        let put = self.log.store.put(self.log.anchor_key.clone(), anchor.encode(), Expected::Anything, None);
        match put.await {
            Ok(_) => self.log.anchored = end.seq,
            Err(StoreError::Closed) => {}
            Err(error) => {
                warn!(target: "audit", %error, "the anchor of the audit log cannot be written; trying again");
                self.due = Some(self.log.clock.uptime().saturating_add(ANCHOR_READS_WITHIN));
            }
        }
    }

    async fn answer(&mut self, job: Job) {
        match job {
            Job::Write(..) => {}
            Job::Newest(count, reply) => {
                let _ = reply.send(self.on_disk(move |files| files.newest(count)).await);
            }
            Job::Verify(reply) => {
                let _ = reply.send(self.verify().await);
            }
            Job::Settle(reply) => {
                if self.due.is_some() {
                    self.anchor().await;
                }
                let _ = reply.send(());
            }
        }
    }

    async fn verify(&self) -> Result<Report, String> {
        let mut report = self.on_disk(|files| files.verify()).await?;
        let anchor = Anchor::read(&*self.log.store, &self.log.anchor_key).await;
        let anchor = anchor.map_err(|error| error.to_string())?;
        if let Some(anchor) = anchor {
            missing(&anchor, &report).into_iter().for_each(|wrong| report.fault(wrong));
            let end = report.end.clone();
            let wrong = self.on_disk(move |files| exchanged(&anchor, &end, files)).await?;
            wrong.into_iter().for_each(|wrong| report.fault(wrong));
        }
        // The next anchor is written over the one that a chain computed anew did not fit to: what it showed stays told.
        if report.faults.is_empty() {
            self.log.broken.iter().for_each(|wrong| report.fault(wrong.clone()));
        }
        // The writer itself knows best what it has written.
        let end = &self.log.end;
        if report.end.seq < end.seq {
            report.fault(format!(
                "the log ends with entry {}, and was written up to {}",
                report.end.seq, end.seq
            ));
        } else if report.end != *end {
            report.fault(format!("entry {} is another one than was written", end.seq));
        }
        Ok(report)
    }
}
