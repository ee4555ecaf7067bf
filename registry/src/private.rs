//! Files that only the server may read.
//!
//! Owns how keys and small state reach the disk: mode 0600 in directories of mode 0700, written beside, synced and
//! renamed over, so that a reader sees the old or the new and never half; refused when somebody else could have read
//! or written them. What stands in them belongs to those who write them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process,
};

use nix::{fcntl::OFlag, unistd::geteuid};
use weft_policy::code::{self, CodeId};
use zeroize::Zeroizing;

/// The largest private file that is read: an authority with retired roots has some 20 KiB.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Why a private file or directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    /// The operating system refuses.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// Others may read or write it.
    #[error("{} is open to others (mode {mode:04o})", path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to somebody who is neither this process's user nor root.
    #[error("{} belongs to uid {uid}, not to this server", path.display())]
    ForeignOwner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// A directory for state cannot be made or used.
    #[error(transparent)]
    Directory(Box<Self>),
    /// It is a link, a device, or of another kind than it must be, or too large.
    #[error("{} is not a {expected}", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
        /// What it must be.
        expected: &'static str,
    },
}

impl PrivateError {
    /// Its code in the catalogue.
    #[must_use]
    pub fn code(&self) -> CodeId {
        match self {
            Self::Io { action: "write", .. } => code::WRITE_FAILED,
            Self::Io { .. } | Self::Kind { .. } => code::FILE_UNUSABLE,
            Self::Directory(_) => code::STATE_DIRECTORY,
            Self::Exposed { .. } | Self::ForeignOwner { .. } => code::KEY_PERMISSIONS,
        }
    }
}

/// Makes `path` a directory of mode 0700, or checks that it is one that others cannot enter.
///
/// # Errors
///
/// [`PrivateError::Directory`] when it cannot be made, belongs to somebody else, or is open to others.
pub fn directory(path: &Path) -> Result<(), PrivateError> {
    make_private(path).map_err(|error| PrivateError::Directory(Box::new(error)))
}

fn make_private(path: &Path) -> Result<(), PrivateError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create", path))?;
    let metadata = fs::symlink_metadata(path).map_err(failed("inspect", path))?;
    if metadata.file_type().is_symlink() {
        // Whoever owns the link may lead it elsewhere at any time (WL-05).
        check_owner(path, &metadata)?;
    }
    let metadata = fs::metadata(path).map_err(failed("inspect", path))?;
    check(path, &metadata)
}

/// Writes a file of mode 0600: beside, synced, renamed over `path`, directory synced.
///
/// # Errors
///
/// [`PrivateError::Io`]; then `path` holds what it held before.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), PrivateError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}.tmp", process::id()));
    let written = write_new(&beside, bytes)
        .and_then(|()| fs::rename(&beside, path))
        .and_then(|()| File::open(path.parent().unwrap_or_else(|| Path::new(".")))?.sync_all())
        .map_err(failed("write", path));
    if written.is_err() {
        // The first error is the one that matters; the next write replaces a left-over.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Reads a private file of at most [`MAX_FILE_BYTES`]; `None` when there is none. The bytes are wiped on drop.
///
/// # Errors
///
/// [`PrivateError`] when others may read or write it, it belongs to somebody else, or is no regular file.
pub fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, PrivateError> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let metadata = file.metadata().map_err(failed("inspect", path))?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        return Err(PrivateError::Kind { path: path.into(), expected: "regular file of at most 1 MiB" });
    }
    check(path, &metadata)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0) + 1));
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(failed("read", path))?;
    Ok(Some(bytes))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let flags = OFlag::O_NOFOLLOW.bits();
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(flags).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn check_owner(path: &Path, metadata: &fs::Metadata) -> Result<(), PrivateError> {
    let uid = metadata.uid();
    if uid != geteuid().as_raw() && uid != 0 {
        return Err(PrivateError::ForeignOwner { path: path.into(), uid });
    }
    Ok(())
}

fn check(path: &Path, metadata: &fs::Metadata) -> Result<(), PrivateError> {
    check_owner(path, metadata)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(PrivateError::Exposed { path: path.into(), mode });
    }
    Ok(())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PrivateError {
    let path = path.to_path_buf();
    move |source| PrivateError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_is_written_is_private_and_read_back() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("a/ca");
        directory(&folder).unwrap();
        let path = folder.join("key");
        assert!(read(&path).unwrap().is_none());
        write(&path, b"secret").unwrap();
        write(&path, b"newer").unwrap();
        assert_eq!((mode_of(&folder), mode_of(&path)), (0o700, 0o600));
        assert_eq!(read(&path).unwrap().unwrap().as_slice(), b"newer");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing is left beside");
    }

    #[test]
    fn what_others_may_read_and_what_is_a_link_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("key");
        write(&path, b"secret").unwrap();
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(read(&path), Err(PrivateError::Exposed { mode: found, .. }) if found == mode));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let link = temp.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(read(&link), Err(PrivateError::Io { .. })));
        let open = temp.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        let refused = directory(&open).unwrap_err();
        assert_eq!(refused.code(), code::STATE_DIRECTORY);
        assert!(refused.to_string().contains("open to others"), "{refused}");
    }

    #[test]
    fn wl_05_a_directory_of_somebody_else_or_a_link_of_theirs_is_refused() {
        if !geteuid().is_root() {
            return; // only root can make what belongs to somebody else
        }
        let temp = tempfile::tempdir().unwrap();
        let theirs = temp.path().join("theirs");
        directory(&theirs).unwrap();
        std::os::unix::fs::chown(&theirs, Some(4242), None).unwrap();
        let is_theirs = |refused: PrivateError| refused.to_string().contains("belongs to uid 4242");
        assert!(directory(&theirs).is_err_and(is_theirs));
        let (ours, link) = (temp.path().join("ours"), temp.path().join("link"));
        directory(&ours).unwrap();
        std::os::unix::fs::symlink(&ours, &link).unwrap();
        directory(&link).unwrap();
        std::os::unix::fs::lchown(&link, Some(4242), None).unwrap();
        assert!(directory(&link).is_err_and(is_theirs));
    }

    #[test]
    fn ops_01_a_left_over_of_a_crash_is_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("key");
        fs::write(temp.path().join(format!(".key.{}.tmp", process::id())), "half").unwrap();
        write(&path, b"whole").unwrap();
        assert_eq!(read(&path).unwrap().unwrap().as_slice(), b"whole");
    }
}
