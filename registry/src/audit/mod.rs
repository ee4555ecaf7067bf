//! Who called what, and whether they were let: one log of this server, in which nothing can be changed unseen (API-11).
//!
//! ```text
//! gate, management ──▶ bounded queue ──▶ writer ──▶ <state>/audit/<first sequence>.jsonl   (appended, synced)
//!                                          └──────▶ audit/<instance> in the store: newest sequence and hash
//! ```
//!
//! Each line carries the hash of the one before and its own ([`chain`]), so that a line that was removed or changed is
//! seen; that lines were cut off the end, or files off the beginning, is seen by the anchor in the store. What is written
//! within a second of being cut off, on a host that its owner has lost, is not seen: nothing on that host could.
//!
//! A change is written down before it is tried and again when it is over; when it cannot be, it is refused. Reading goes
//! on, and the status, the metrics and the log of the server tell that it is not written down.

pub mod chain;

mod accept;
mod files;
mod writer;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{mpsc, oneshot};
use weft_api::pb::management::Problem;
use weft_policy::{
    code::{self, CodeId},
    limit::{KeyedLimit, Rate, TokenBucket, Verdict},
};

pub use self::{accept::accept, files::FilesError};
use self::{chain::Event, writer::Job};
use crate::{
    clock::Clock,
    metrics::RegistryMetrics,
    refusal::{Refusal, catalogued},
    store::{Store, StoreError},
};

/// Entries that wait for the disk; whoever comes next waits at the door. Some four times what 256 clients with one call
/// each leave at once.
const QUEUE: usize = 1_024;
/// Refusals of a second that are written one by one, and at once: a flood of them must not push everything else out of
/// the log. The entry that follows says how many were not.
const REFUSALS: Rate = Rate {
    per_second: std::num::NonZeroU32::new(20).expect("it is not zero"),
    burst: std::num::NonZeroU32::new(200).expect("it is not zero"),
};

/// Reads of one caller that are written one by one: whoever asks all day must not push what others did out of the log.
/// At this rate one caller fills it in a week.
const READS: Rate = Rate {
    per_second: std::num::NonZeroU32::new(1).expect("it is not zero"),
    burst: std::num::NonZeroU32::new(100).expect("it is not zero"),
};
/// Callers whose reads are told apart at a time.
const READERS: usize = 4_096;

/// Where the log is kept, and how much of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its directory; made with mode 0700.
    pub directory: PathBuf,
    /// The bytes after which a new file is begun. 16 MiB, some 40,000 entries.
    pub file_bytes: u64,
    /// The most files; the oldest is removed for a new one. 16, so the log has 256 MiB at most.
    pub files: usize,
}

impl Settings {
    /// The defaults, in a directory.
    #[must_use]
    pub const fn in_directory(directory: PathBuf) -> Self {
        Self { directory, file_bytes: 16 << 20, files: 16 }
    }
}

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// Its directory or files cannot be used.
    #[error("the audit log: {0}")]
    Files(#[from] FilesError),
    /// Its anchor cannot be read.
    #[error("the anchor of the audit log: {0}")]
    Store(#[from] StoreError),
}

impl AuditError {
    /// Its code in the catalogue.
    #[must_use]
    pub fn code(&self) -> CodeId {
        match self {
            Self::Files(_) => code::AUDIT_UNAVAILABLE,
            Self::Store(error) => error.code(),
        }
    }
}

/// Writes the log. A clone writes the same.
#[derive(Clone, Debug)]
pub struct Audit {
    jobs: mpsc::Sender<Job>,
    state: Arc<State>,
    metrics: Arc<RegistryMetrics>,
    clock: Clock,
}

/// What others are told of the log.
#[derive(Debug)]
struct State {
    /// Why it cannot be written at present.
    failing: Mutex<Option<String>>,
    /// What was wrong with it when it was opened.
    broken: Option<String>,
    refusals: Mutex<TokenBucket>,
    reads: Mutex<KeyedLimit<String>>,
    untold: AtomicU64,
}

/// Opens the log, and checks its end against the anchor in the store. The returned future writes it, for as long as
/// anybody is served.
///
/// # Errors
///
/// [`AuditError`]: a server that could account for nothing does not start.
pub async fn open(
    settings: Settings,
    store: Arc<dyn Store>,
    clock: Clock,
    instance: &str,
    metrics: Arc<RegistryMetrics>,
) -> Result<(Audit, impl Future<Output = ()> + Send + 'static), AuditError> {
    let (jobs, queue) = mpsc::channel(QUEUE);
    let opened = writer::open(settings, store, clock.clone(), instance).await?;
    let state = State {
        failing: Mutex::default(),
        broken: opened.broken(),
        refusals: Mutex::new(TokenBucket::new(REFUSALS, clock.instant())),
        reads: Mutex::new(KeyedLimit::new(READS, READERS)),
        untold: AtomicU64::new(0),
    };
    let audit = Audit { jobs, state: Arc::new(state), metrics, clock };
    let writing = opened.run(queue, audit.state.clone(), Arc::clone(&audit.metrics));
    Ok((audit, writing))
}

impl Audit {
    /// Writes an entry, and waits until it is on the disk.
    ///
    /// # Errors
    ///
    /// A refusal when it cannot be written.
    pub async fn write(&self, event: Event) -> Result<(), Refusal> {
        let (reply, written) = oneshot::channel();
        let sent = self.jobs.send(Job::Write(self.counted(event), Some(reply))).await;
        match (sent, written.await) {
            (Ok(()), Ok(Ok(()))) => Ok(()),
            (Ok(()), Ok(Err(why))) => Err(unavailable(why)),
            (Err(_), _) | (_, Err(_)) => Err(unavailable("its writer has ended".to_owned())),
        }
    }

    /// Writes some time soon what a caller read, unless it reads too much; then a later entry says how many were not written.
    /// What cannot be written is counted and told.
    pub async fn note(&self, event: Event) {
        let (now, who) = (self.clock.instant(), event.who.clone());
        let verdict = self.state.reads.lock().unwrap_or_else(PoisonError::into_inner).take(who, now);
        if verdict != Verdict::Pass {
            self.left_out();
            return;
        }
        if self.jobs.send(Job::Write(self.counted(event), None)).await.is_err() {
            self.metrics.audit_failures.inc();
        }
    }

    /// Writes a refusal some time soon, unless too many come at once; then the next one says how many were not written.
    pub fn refused(&self, event: Event) {
        let now = self.clock.instant();
        let mut bucket = self.state.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let passes = matches!(bucket.take(now), Verdict::Pass);
        drop(bucket);
        if !passes || self.jobs.try_send(Job::Write(self.counted(event), None)).is_err() {
            self.left_out();
        }
    }

    fn left_out(&self) {
        self.state.untold.fetch_add(1, Ordering::Relaxed);
        self.metrics.audit_untold.inc();
    }

    /// The entry with the number of those before it that were not written.
    fn counted(&self, mut event: Event) -> Event {
        event.untold = self.state.untold.swap(0, Ordering::Relaxed);
        event
    }

    /// The newest entries, the newest first.
    ///
    /// # Errors
    ///
    /// A refusal when they cannot be read.
    pub async fn newest(&self, count: usize) -> Result<Vec<chain::Entry>, Refusal> {
        let (reply, read) = oneshot::channel();
        let sent = self.jobs.send(Job::Newest(count, reply)).await;
        match (sent, read.await) {
            (Ok(()), Ok(answer)) => answer.map_err(unavailable),
            (Err(_), _) | (_, Err(_)) => Err(unavailable("its writer has ended".to_owned())),
        }
    }

    /// Reads the whole log, and says what is wrong with it.
    ///
    /// # Errors
    ///
    /// A refusal when it cannot be read.
    pub async fn verify(&self) -> Result<chain::Report, Refusal> {
        let (reply, read) = oneshot::channel();
        let sent = self.jobs.send(Job::Verify(reply)).await;
        match (sent, read.await) {
            (Ok(()), Ok(answer)) => answer.map_err(unavailable),
            (Err(_), _) | (_, Err(_)) => Err(unavailable("its writer has ended".to_owned())),
        }
    }

    /// Writes what is still to be written, and the anchor: the server ends.
    pub async fn settle(&self) {
        let (reply, settled) = oneshot::channel();
        if self.jobs.send(Job::Settle(reply)).await.is_ok() {
            // A writer that is gone has nothing left to write.
            let _ = settled.await;
        }
    }

    /// What a person should look at.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let failing = self.state.failing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let problem = |code: CodeId, what: String| Problem {
            code: code.to_string(),
            what,
            fix: code.row().fix.iter().map(|&fix| fix.to_owned()).collect(),
        };
        let failing = failing.map(|why| problem(code::AUDIT_UNAVAILABLE, format!("the audit log: {why}")));
        let broken = self.state.broken.clone().map(|what| problem(code::AUDIT_BROKEN, what));
        failing.into_iter().chain(broken).collect()
    }
}

fn unavailable(why: String) -> Refusal {
    let fault = catalogued(code::AUDIT_UNAVAILABLE, "the audit log cannot be written").why(why);
    Refusal::new(tonic::Code::Unavailable, fault)
}

#[cfg(test)]
mod tests;
