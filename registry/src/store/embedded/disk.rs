//! What makes a write durable: redb, and what is done when it fails.
//!
//! Owns the database file. Each group of changes is one redb transaction, on the disk (fsync)
//! before [`Disk::write`] returns; `set_quick_repair` keeps the start after a crash short.
//!
//! After a failed write the file is not trusted any more: when an fsync fails, Linux may drop the
//! pages and report success the next time. So the next write first saves the whole image, which
//! holds exactly what was acknowledged, into a new file and renames it over the old one.
//!
//! ```text
//! Open ──write fails──▶ Broken ──whole image saved──▶ Open
//! ```

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use redb::{Database, ReadableDatabase, ReadableTable, TableError, WriteTransaction};

use super::super::draft::Changes;
use super::super::image::{Image, Saved};
use super::super::{Entry, EventBatch, LeaseId, Revision, StoreError, StoreId, Ttl};
use super::files::{Files, OpenError};
use super::rows::{self, ENTRIES, FORMAT, HISTORY, LEASES, META, meta_names};

/// See the module.
pub(super) struct Disk {
    files: Files,
    state: State,
}

enum State {
    Open(Database),
    Broken,
}

/// Why changes are not durable.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// The file could not be replaced after an earlier failure; nothing was written.
    #[error("the store cannot be saved anew after an earlier failure")]
    Save(#[source] OpenError),
    /// The transaction failed before its commit; nothing was written.
    #[error("the disk refused the write")]
    Stage(#[source] redb::Error),
    /// The commit failed: after a crash, the changes may be there or not.
    #[error("the disk failed during the commit")]
    Commit(#[source] redb::Error),
}

impl From<WriteError> for StoreError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Save(_) | WriteError::Stage(_) => Self::Unavailable { source: Arc::new(error) },
            WriteError::Commit(_) => Self::OutcomeUnknown { source: Arc::new(error) },
        }
    }
}

impl Disk {
    /// Takes the lock, then opens the store, or creates an empty one; returns what it holds.
    pub(super) fn open(mut files: Files) -> Result<(Self, Image), OpenError> {
        files.claim()?;
        files.abandon_next();
        if !files.exists()? {
            save(&files, &Image::empty(new_id()?))?;
        }
        let database = files.open()?;
        let image = load(&files, &database)?;
        Ok((Self { files, state: State::Open(database) }, image))
    }

    /// Makes `changes`, drafted on `image`, durable.
    pub(super) fn write(&mut self, changes: &Changes, image: &Image) -> Result<(), WriteError> {
        let database = match std::mem::replace(&mut self.state, State::Broken) {
            State::Open(database) => database,
            State::Broken => {
                save(&self.files, image).map_err(WriteError::Save)?;
                self.files.open().map_err(WriteError::Save)?
            }
        };
        let transaction = stage(&database, changes, image.compacted()).map_err(WriteError::Stage)?;
        transaction.commit().map_err(|error| WriteError::Commit(error.into()))?;
        self.state = State::Open(database);
        Ok(())
    }
}

/// Draws the name of a new store.
fn new_id() -> Result<StoreId, OpenError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| OpenError::Entropy)?;
    Ok(StoreId(u128::from_be_bytes(bytes)))
}

fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    Ok(transaction)
}

/// Puts changes into a transaction that only needs to be committed.
fn stage(
    database: &Database,
    changes: &Changes,
    compacted: Revision,
) -> Result<WriteTransaction, redb::Error> {
    let transaction = begin(database)?;
    {
        let mut entries = transaction.open_table(ENTRIES)?;
        for (key, entry) in &changes.entries {
            match entry {
                Some(entry) => entries.insert(key.as_str(), rows::encode_entry(entry).as_slice())?,
                None => entries.remove(key.as_str())?,
            };
        }
        let mut leases = transaction.open_table(LEASES)?;
        for (lease, ttl) in &changes.leases {
            match ttl {
                Some(ttl) => leases.insert(lease.0.get(), millis(*ttl))?,
                None => leases.remove(lease.0.get())?,
            };
        }
        let mut history = transaction.open_table(HISTORY)?;
        for batch in changes.batches.iter().filter(|batch| batch.revision > changes.compacted) {
            history.insert(batch.revision.0, rows::encode_batch(batch).as_slice())?;
        }
        if changes.compacted > compacted {
            history.retain_in(..=changes.compacted.0, |_, _| false)?;
        }
        put_numbers(&transaction, changes.revision, changes.compacted, changes.last_lease)?;
    }
    Ok(transaction)
}

/// Writes the whole image into a new file and puts it in the place of the old one.
fn save(files: &Files, image: &Image) -> Result<(), OpenError> {
    let written = files.begin_next().and_then(|database| {
        let saved = save_into(&database, image).map_err(|error| files.refused(error));
        drop(database);
        saved
    });
    if written.is_err() {
        files.abandon_next();
    }
    written.and_then(|()| files.install_next())
}

fn save_into(database: &Database, image: &Image) -> Result<(), redb::Error> {
    let transaction = begin(database)?;
    {
        let mut entries = transaction.open_table(ENTRIES)?;
        for entry in image.entries() {
            entries.insert(entry.key.as_str(), rows::encode_entry(entry).as_slice())?;
        }
        let mut leases = transaction.open_table(LEASES)?;
        for (lease, ttl) in image.leases() {
            leases.insert(lease.0.get(), millis(ttl))?;
        }
        let mut history = transaction.open_table(HISTORY)?;
        for batch in image.history() {
            history.insert(batch.revision.0, rows::encode_batch(batch).as_slice())?;
        }
        let mut meta = transaction.open_table(META)?;
        meta.insert(meta_names::FORMAT, FORMAT)?;
        meta.insert(meta_names::ID, image.status().id.0)?;
        drop(meta);
        put_numbers(&transaction, image.revision(), image.compacted(), image.last_lease())?;
    }
    Ok(transaction.commit()?)
}

fn put_numbers(
    transaction: &WriteTransaction,
    revision: Revision,
    compacted: Revision,
    last_lease: u64,
) -> Result<(), redb::Error> {
    let mut meta = transaction.open_table(META)?;
    meta.insert(meta_names::REVISION, u128::from(revision.0))?;
    meta.insert(meta_names::COMPACTED, u128::from(compacted.0))?;
    meta.insert(meta_names::LAST_LEASE, u128::from(last_lease))?;
    Ok(())
}

fn millis(ttl: Ttl) -> u64 {
    u64::try_from(ttl.as_duration().as_millis()).expect("a lease lasts at most 30 days")
}

/// Reads the whole store, after a look at its format.
fn load(files: &Files, database: &Database) -> Result<Image, OpenError> {
    let damaged = |what: String| OpenError::Damaged { directory: files.directory().to_owned(), what };
    let transaction = database.begin_read().map_err(|error| files.refused(error))?;
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => {
            return Err(damaged("it has no table of numbers".to_owned()));
        }
        Err(error) => return Err(files.refused(error)),
    };
    let number = |name: &str| match meta.get(name) {
        Ok(Some(number)) => Ok(number.value()),
        Ok(None) => Err(damaged(format!("it has no number {name}"))),
        Err(error) => Err(files.refused(error)),
    };
    let small = |name: &str| {
        number(name).and_then(|number| {
            u64::try_from(number).map_err(|_| damaged(format!("its number {name} is too large")))
        })
    };
    let found = number(meta_names::FORMAT)?;
    if found > FORMAT {
        return Err(OpenError::Newer { directory: files.directory().to_owned(), found, known: FORMAT });
    }
    let rows = read_rows(&transaction).map_err(|error| match error {
        RowsError::Unreadable(what) => damaged(what),
        RowsError::Database(error) => files.refused(error),
    })?;
    let saved = Saved {
        id: StoreId(number(meta_names::ID)?),
        revision: Revision(small(meta_names::REVISION)?),
        compacted: Revision(small(meta_names::COMPACTED)?),
        last_lease: small(meta_names::LAST_LEASE)?,
        entries: rows.entries,
        leases: rows.leases,
        history: rows.history,
    };
    Image::restore(saved).map_err(|what| damaged(what.to_owned()))
}

struct Rows {
    entries: Vec<Entry>,
    leases: Vec<(LeaseId, Ttl)>,
    history: Vec<EventBatch>,
}

enum RowsError {
    Unreadable(String),
    Database(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for RowsError {
    fn from(error: E) -> Self {
        Self::Database(error.into())
    }
}

fn read_rows(transaction: &redb::ReadTransaction) -> Result<Rows, RowsError> {
    let mut rows = Rows { entries: Vec::new(), leases: Vec::new(), history: Vec::new() };
    for row in transaction.open_table(ENTRIES)?.iter()? {
        let (key, record) = row?;
        let entry = rows::decode_entry(key.value(), record.value());
        rows.entries.push(entry.ok_or_else(|| unreadable("entry", key.value()))?);
    }
    for row in transaction.open_table(LEASES)?.iter()? {
        let (number, length) = row?;
        let lease = NonZeroU64::new(number.value()).map(LeaseId);
        let ttl = Ttl::try_from(Duration::from_millis(length.value())).ok();
        rows.leases.push(lease.zip(ttl).ok_or_else(|| unreadable("lease", number.value()))?);
    }
    for row in transaction.open_table(HISTORY)?.iter()? {
        let (revision, changes) = row?;
        let batch = rows::decode_batch(revision.value(), changes.value());
        rows.history.push(batch.ok_or_else(|| unreadable("commit", revision.value()))?);
    }
    Ok(rows)
}

fn unreadable(what: &str, which: impl std::fmt::Display) -> RowsError {
    RowsError::Unreadable(format!("{what} {which} cannot be read"))
}
