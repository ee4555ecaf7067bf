//! Files that only the agent may read, and the directory that only one agent may use.
//!
//! Owns how keys, snapshots and credentials reach the disk: mode 0600 in directories of mode 0700, written beside and
//! renamed over (so that a reader sees the old or the new, never half), synced with their directory, and refused when
//! somebody else could have read or written them. What stands in the files belongs to those who write them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::{fcntl::OFlag, unistd::geteuid};
use weft_api::fault::Fault;
use weft_policy::code::{self, CodeId};

use crate::app::fault_of;
use zeroize::Zeroizing;

/// The largest private file that is read: a snapshot of thousands of objects fits, a mistaken path does not.
pub const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// The name of the file whose lock makes a directory one agent's.
const LOCK: &str = "lock";
/// What unfinished files end in.
const UNFINISHED: &str = ".tmp";

/// Why a private file or directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Others may read or write it.
    #[error("{} is open to others (mode {mode:04o}): run `chmod go= {}`", path.display(), path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to somebody who is neither this process's user nor root.
    #[error("{} belongs to uid {uid}, not to this agent", path.display())]
    ForeignOwner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Not of the kind that was asked for: a link, a device, a directory.
    #[error("{} is not a {expected}", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// Larger than may be read.
    #[error("{} has {size_bytes} bytes, more than {limit_bytes}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// A directory for state cannot be made or used.
    #[error(transparent)]
    Directory(Box<Self>),
    /// Another agent uses the directory.
    #[error("{} is in use by another agent{}", path.display(), holder.map_or_else(String::new, |pid| format!(" (pid {pid})")))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who, as the lock file says.
        holder: Option<u32>,
    },
}

impl FileError {
    /// The catalogue's code.
    #[must_use]
    pub fn code(&self) -> CodeId {
        match self {
            Self::Io { action: "write", .. } => code::WRITE_FAILED,
            Self::Io { .. } | Self::Kind { .. } => code::FILE_UNUSABLE,
            Self::Directory(_) => code::STATE_DIRECTORY,
            Self::TooLarge { .. } => code::STATE_DAMAGED,
            Self::Exposed { .. } | Self::ForeignOwner { .. } => code::KEY_PERMISSIONS,
            Self::InUse { .. } => code::STATE_IN_USE,
        }
    }
}

impl FileError {
    /// The error as a person meets it.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let fault = fault_of(self.code(), self.to_string());
        match std::error::Error::source(self) {
            Some(source) => fault.why(source.to_string()),
            None => fault,
        }
    }
}

/// Makes `path` a directory of mode 0700 of this user.
///
/// One that exists is taken when it is private already, or empty and ours (then it is made private): tightening a
/// directory that others use, such as `/tmp`, would break them.
///
/// # Errors
///
/// [`FileError::Directory`] when it cannot be made, belongs to somebody else, or is open to others and in use.
pub fn private_dir(path: &Path) -> Result<(), FileError> {
    make_private(path).map_err(|error| FileError::Directory(Box::new(error)))
}

fn make_private(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("create", path))?;
    let metadata = fs::metadata(path).map_err(io_error("inspect", path))?;
    if !metadata.is_dir() {
        return Err(FileError::Kind { path: path.into(), expected: "directory" });
    }
    check_owner(path, &metadata)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let empty = fs::read_dir(path).map_err(io_error("list", path))?.next().is_none();
    if !empty || metadata.uid() != geteuid().as_raw() {
        return Err(FileError::Exposed { path: path.into(), mode });
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io_error("make private", path))
}

/// Writes a file of mode 0600: beside, synced, renamed over `path`, directory synced.
///
/// # Errors
///
/// [`FileError::Io`]; then `path` holds what it held before.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}.{serial}{UNFINISHED}", process::id()));
    let written = write_new(&beside, bytes)
        .and_then(|()| fs::rename(&beside, path))
        .and_then(|()| sync_directory_of(path))
        .map_err(io_error("write", path));
    if written.is_err() {
        // The error that matters is the first one; a left-over is swept at the next start.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Reads a private file of at most `limit_bytes`; `None` when there is none.
///
/// The bytes are wiped when dropped. A link is not followed.
///
/// # Errors
///
/// [`FileError`] when others may read or write it, when it belongs to somebody else, or is no regular file.
pub fn read_private(path: &Path, limit_bytes: u64) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FileError::Io { action: "read", path: path.into(), source }),
    };
    let metadata = file.metadata().map_err(io_error("inspect", path))?;
    if !metadata.is_file() {
        return Err(FileError::Kind { path: path.into(), expected: "regular file" });
    }
    check_owner(path, &metadata)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::Exposed { path: path.into(), mode });
    }
    let size_bytes = metadata.len();
    if size_bytes > limit_bytes {
        return Err(FileError::TooLarge { path: path.into(), size_bytes, limit_bytes });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(size_bytes).unwrap_or(0) + 1));
    file.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    Ok(Some(bytes))
}

/// Removes a file; one that is not there is as good as removed.
///
/// # Errors
///
/// [`FileError::Io`].
pub fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        Ok(()) | Err(_) => sync_directory_of(path).map_err(io_error("remove", path)),
    }
}

/// Removes every file of `directory` that is not among `names`; a directory that is not there holds none.
///
/// # Errors
///
/// [`FileError::Io`].
pub(crate) fn keep_only(directory: &Path, names: &[String]) -> Result<(), FileError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(io_error("list", directory))?,
    };
    for entry in entries {
        let entry = entry.map_err(io_error("list", directory))?;
        let name = entry.file_name();
        if !names.iter().any(|kept| name.to_str() == Some(kept)) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// The state directory of one agent, locked against a second one until dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: Option<File>,
}

impl StateDir {
    /// Takes `path` (made when it is not there) for this agent and removes what a crash left unfinished.
    ///
    /// # Errors
    ///
    /// [`FileError::InUse`] when another agent holds it, else as [`private_dir`].
    pub fn open(path: &Path) -> Result<Self, FileError> {
        private_dir(path)?;
        let lock = Some(lock(path)?);
        let state = Self { path: path.into(), _lock: lock };
        state.sweep()?;
        Ok(state)
    }

    /// The directory of an agent that runs, for the one thing that is done beside it: joining again
    /// ([`crate::join::join`]).
    pub(crate) fn beside(path: &Path) -> Self {
        Self { path: path.into(), _lock: None }
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of `name` in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a private directory in it and returns its path.
    ///
    /// # Errors
    ///
    /// As [`private_dir`].
    pub fn subdirectory(&self, name: &str) -> Result<PathBuf, FileError> {
        let path = self.join(name);
        private_dir(&path)?;
        Ok(path)
    }

    /// Reads `name`, of at most [`MAX_FILE_BYTES`]; `None` when there is none.
    ///
    /// # Errors
    ///
    /// As [`read_private`].
    pub fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
        read_private(&self.join(name), MAX_FILE_BYTES)
    }

    /// Writes `name`; the directory in front of it is made when it is not there yet.
    ///
    /// # Errors
    ///
    /// As [`write_private`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), FileError> {
        if let Some((directory, _)) = name.rsplit_once('/') {
            self.subdirectory(directory)?;
        }
        write_private(&self.join(name), bytes)
    }

    /// Removes files that a crash left between writing and renaming.
    fn sweep(&self) -> Result<(), FileError> {
        for entry in fs::read_dir(&self.path).map_err(io_error("list", &self.path))? {
            let entry = entry.map_err(io_error("list", &self.path))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') && name.ends_with(UNFINISHED) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn lock(directory: &Path) -> Result<File, FileError> {
    let path = directory.join(LOCK);
    let flags = OFlag::O_NOFOLLOW.bits();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(&path)
        .map_err(io_error("lock", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // The holder's number is a courtesy: without it the refusal stands all the same.
            let _ = (&mut file).take(16).read_to_string(&mut text);
            return Err(FileError::InUse { path: directory.into(), holder: text.trim().parse().ok() });
        }
        Err(TryLockError::Error(source)) => return Err(FileError::Io { action: "lock", path, source }),
    }
    // The number is a courtesy to the reader of an error; a full disk must not keep an agent from starting.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", process::id()));
    Ok(file)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let flags = OFlag::O_NOFOLLOW.bits();
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(flags).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

fn check_owner(path: &Path, metadata: &fs::Metadata) -> Result<(), FileError> {
    let uid = metadata.uid();
    if uid == geteuid().as_raw() || uid == 0 {
        return Ok(());
    }
    Err(FileError::ForeignOwner { path: path.into(), uid })
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_path_buf();
    move |source| FileError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_written_is_private_and_read_back() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("a/state")).unwrap();
        state.write("keys", b"secret").unwrap();
        state.write("keys", b"newer").unwrap();
        assert_eq!(mode_of(state.path()), 0o700);
        assert_eq!(mode_of(&state.join("keys")), 0o600);
        assert_eq!(state.read("keys").unwrap().unwrap().as_slice(), b"newer");
        assert!(state.read("absent").unwrap().is_none());
        assert_eq!(mode_of(&state.subdirectory("svids").unwrap()), 0o700);
        state.write("inner/a.pem", b"in a directory of its own").unwrap();
        assert_eq!(mode_of(&state.join("inner")), 0o700);
    }

    #[test]
    fn a_second_agent_is_refused_until_the_first_is_gone() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("state");
        let first = StateDir::open(&path).unwrap();
        let refused = StateDir::open(&path).unwrap_err();
        assert!(
            matches!(refused, FileError::InUse { holder, .. } if holder == Some(process::id())),
            "{refused}"
        );
        drop(first);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("key");
        write_private(&path, b"secret").unwrap();
        for mode in [0o640, 0o604, 0o620] {
            set_mode(&path, mode);
            let refused = read_private(&path, 100).unwrap_err();
            assert!(matches!(refused, FileError::Exposed { mode: found, .. } if found == mode));
        }
        set_mode(&path, 0o600);
        assert!(read_private(&path, 6).is_ok());
        assert!(matches!(read_private(&path, 5), Err(FileError::TooLarge { size_bytes: 6, .. })));
    }

    #[test]
    fn wl_05_links_and_directories_are_not_followed_or_read() {
        let temp = tempfile::tempdir().unwrap();
        write_private(&temp.path().join("key"), b"secret").unwrap();
        let link = temp.path().join("link");
        std::os::unix::fs::symlink(temp.path().join("key"), &link).unwrap();
        assert!(matches!(read_private(&link, 100), Err(FileError::Io { .. })));
        assert!(matches!(read_private(temp.path(), 100), Err(FileError::Kind { .. })));
    }

    #[test]
    fn a_directory_in_use_by_others_is_left_alone_and_an_empty_one_is_made_private() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("shared");
        fs::create_dir(&path).unwrap();
        set_mode(&path, 0o755);
        fs::write(path.join("theirs"), "x").unwrap();
        let refused = StateDir::open(&path).unwrap_err();
        assert_eq!(refused.code(), code::STATE_DIRECTORY);
        assert!(refused.to_string().contains("mode 0755"), "{refused}");
        assert_eq!(mode_of(&path), 0o755);
        fs::remove_file(path.join("theirs")).unwrap();
        StateDir::open(&path).unwrap();
        assert_eq!(mode_of(&path), 0o700);
    }

    #[test]
    fn ops_01_what_a_crash_left_unfinished_is_swept() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("state");
        drop(StateDir::open(&path).unwrap());
        fs::write(path.join(".keys.1.0.tmp"), "half").unwrap();
        let state = StateDir::open(&path).unwrap();
        assert!(!state.join(".keys.1.0.tmp").exists());
    }

    #[test]
    fn removing_what_is_not_there_is_no_error() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("gone");
        write_private(&path, b"x").unwrap();
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }
}
