//! The directory of the store: its lock, its file, and the replacement of that file.
//!
//! ```text
//! registry.lock        held by the process that has the store open; its text is the process id
//! registry.redb        the store
//! registry.redb.next   a new store being written; renamed over the old one when it is complete
//! ```
//!
//! Everything is readable by its owner only. A file that others could read is narrowed on opening,
//! because the registry holds hashes of tokens and the whole configuration (security.md 4, T5).

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::{Builder, Database, DatabaseError};
use weft_policy::code::{self, CodeId};

/// Memory of redb's page cache, in bytes: enough for the pages of one group of writes, because
/// readers are served by the image.
const PAGE_CACHE_BYTES: usize = 16 << 20;

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the store in {} is in use by {}", directory.display(), owner(*process))]
    InUse {
        /// Its directory.
        directory: PathBuf,
        /// The process that holds the lock, where it has written its id already.
        process: Option<u32>,
    },
    /// A newer version has written it.
    #[error("the store in {} has format {found}, newer than {known}", directory.display())]
    Newer {
        /// Its directory.
        directory: PathBuf,
        /// The format that it has.
        found: u128,
        /// The newest one that this version reads.
        known: u128,
    },
    /// What it holds does not fit together.
    #[error("the store in {} is damaged: {what}", directory.display())]
    Damaged {
        /// Its directory.
        directory: PathBuf,
        /// What was found.
        what: String,
    },
    /// The operating system refuses the directory.
    #[error("cannot use {} for state", directory.display())]
    Directory {
        /// Which one.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operating system refuses a file.
    #[error("cannot open {}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The database refuses its file.
    #[error("cannot open the database in {}", directory.display())]
    Database {
        /// Its directory.
        directory: PathBuf,
        /// Why.
        source: Box<redb::Error>,
    },
    /// The system has no randomness for the name of a new store.
    #[error("the system gives no randomness")]
    Entropy,
    /// The thread of the writer cannot be started.
    #[error("cannot start the thread of the store")]
    Thread(#[source] io::Error),
    /// The process is shutting down.
    #[error("opening the store was interrupted")]
    Stopped,
}

impl OpenError {
    /// Returns the code of this error in the catalogue.
    pub fn code(&self) -> CodeId {
        match self {
            Self::InUse { .. } => code::STORE_LOCKED,
            Self::Newer { .. } => code::STORE_NEWER,
            Self::Damaged { .. } | Self::Database { .. } => code::STORE_DAMAGED,
            Self::Directory { .. } => code::STATE_DIRECTORY,
            Self::File { .. } => code::FILE_UNUSABLE,
            Self::Entropy => code::ENTROPY,
            Self::Thread(_) | Self::Stopped => code::INTERNAL,
        }
    }
}

fn owner(process: Option<u32>) -> String {
    process.map_or_else(|| "another process".to_owned(), |process| format!("process {process}"))
}

/// Makes a database of an open file.
type Build = Box<dyn Fn(File) -> Result<Database, DatabaseError> + Send>;

/// See the module.
pub(in crate::store) struct Files {
    directory: PathBuf,
    build: Build,
    lock: Option<File>,
}

impl Files {
    /// Returns the files in `directory`, which need not exist yet.
    pub(in crate::store) fn new(directory: PathBuf) -> Self {
        let build = |file| Builder::new().set_cache_size(PAGE_CACHE_BYTES).create_file(file);
        Self::with_database(directory, Box::new(build))
    }

    /// As [`Self::new`], with a database of the caller's.
    pub(super) fn with_database(directory: PathBuf, build: Build) -> Self {
        Self { directory, build, lock: None }
    }

    /// Returns where the files are.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Creates the directory if need be and takes the lock, which is held until `self` is dropped.
    pub(in crate::store) fn claim(&mut self) -> Result<(), OpenError> {
        let directory = self.directory.clone();
        let refused = |source| OpenError::Directory { directory: directory.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(refused)?;
        narrow(&directory, 0o700).map_err(refused)?;

        let path = self.path("registry.lock");
        let refused = |source| OpenError::File { path: path.clone(), source };
        let mut lock = open_private(&path, false).map_err(refused)?;
        match patiently(|| lock.try_lock(), |error| matches!(error, TryLockError::WouldBlock)) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let read = lock.read_to_string(&mut text);
                let process = read.ok().and_then(|_| text.trim().parse().ok());
                return Err(OpenError::InUse { directory, process });
            }
            Err(TryLockError::Error(source)) => return Err(refused(source)),
        }
        // The id is a courtesy to the reader of an error; a full disk must not keep us from opening.
        let written = lock.set_len(0).and_then(|()| lock.rewind());
        let _ = written.and_then(|()| write!(lock, "{}", std::process::id()));
        self.lock = Some(lock);
        Ok(())
    }

    /// Whether there is a store.
    pub(super) fn exists(&self) -> Result<bool, OpenError> {
        let path = self.path(CURRENT);
        path.try_exists().map_err(|source| OpenError::File { path, source })
    }

    /// Opens the store.
    pub(super) fn open(&self) -> Result<Database, OpenError> {
        self.database(CURRENT, false)
    }

    /// Starts a new store beside the one there is.
    pub(super) fn begin_next(&self) -> Result<Database, OpenError> {
        self.database(NEXT, true)
    }

    /// Removes a new store that was not completed.
    pub(super) fn abandon_next(&self) {
        let _ = fs::remove_file(self.path(NEXT));
    }

    /// Puts the new store, which is complete and closed, in the place of the old one, durably.
    pub(super) fn install_next(&self) -> Result<(), OpenError> {
        let directory = &self.directory;
        let renamed = fs::rename(self.path(NEXT), self.path(CURRENT));
        let synced = renamed.and_then(|()| File::open(directory)).and_then(|directory| directory.sync_all());
        synced.map_err(|source| OpenError::File { path: directory.clone(), source })
    }

    fn database(&self, name: &str, truncate: bool) -> Result<Database, OpenError> {
        let path = self.path(name);
        let open = || {
            let refused = |source| OpenError::File { path: path.clone(), source };
            let file = open_private(&path, truncate).map_err(refused)?;
            (self.build)(file).map_err(|error| self.refused(error))
        };
        patiently(open, |error| matches!(error, OpenError::InUse { .. }))
    }

    /// Names the directory in an error of the database.
    pub(super) fn refused(&self, error: impl Into<redb::Error>) -> OpenError {
        let directory = self.directory.clone();
        let error = error.into();
        if matches!(error, redb::Error::DatabaseAlreadyOpen) {
            // Whoever has it open did not ask for our lock: a tool, not a server.
            return OpenError::InUse { directory, process: None };
        }
        OpenError::Database { directory, source: Box::new(error) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

const CURRENT: &str = "registry.redb";
const NEXT: &str = "registry.redb.next";

/// How often a lock is tried, and how long to wait between: half a second in all. A server that is
/// being replaced needs a moment to end, and a process that it starts holds its locks from the
/// fork to the exec.
const TRIES: u32 = 25;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// Repeats what is refused because of a lock.
fn patiently<T, E>(mut attempt: impl FnMut() -> Result<T, E>, busy: impl Fn(&E) -> bool) -> Result<T, E> {
    for _ in 1..TRIES {
        match attempt() {
            Err(error) if busy(&error) => std::thread::sleep(BETWEEN_TRIES),
            done => return done,
        }
    }
    attempt()
}

/// Opens or creates a file that only its owner may read.
fn open_private(path: &Path, truncate: bool) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(truncate).mode(0o600).open(path)?;
    narrow(path, 0o600)?;
    Ok(file)
}

/// Takes every right from `path` that `mode` does not give.
fn narrow(path: &Path, mode: u32) -> io::Result<()> {
    let found = fs::metadata(path)?.permissions().mode() & 0o777;
    if found & !mode == 0 {
        return Ok(());
    }
    tracing::warn!(path = %path.display(), found = format!("{found:o}"), "narrowing the rights of the store");
    fs::set_permissions(path, Permissions::from_mode(found & mode))
}
