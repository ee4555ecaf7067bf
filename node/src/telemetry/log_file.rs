//! A log file of bounded size: when it is full it is set aside as `<name>.1`, and the one set aside before goes.
//!
//! Owns the bound, so that an agent that nobody tends never fills a disk; who wants more lets the lines go to standard
//! output. The file is of mode 0600: it tells who calls whom.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// See the module.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    limit_bytes: u64,
}

impl LogFile {
    /// Opens `path` to append to, made where it is not there.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub fn open(path: &Path, limit_bytes: u64) -> io::Result<Self> {
        let file = append(path)?;
        let size_bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size_bytes, limit_bytes })
    }

    fn set_aside(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        fs::rename(&self.path, old)?;
        self.file = append(&self.path)?;
        self.size_bytes = 0;
        Ok(())
    }
}

impl Write for LogFile {
    /// Takes all of `bytes` or none, so that no line is torn between two files.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let more = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.size_bytes > 0 && self.size_bytes.saturating_add(more) > self.limit_bytes {
            self.set_aside()?;
        }
        self.file.write_all(bytes)?;
        self.size_bytes = self.size_bytes.saturating_add(more);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_full_file_is_set_aside_between_two_lines() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("access.log");
        let read = |name: &str| fs::read_to_string(temp.path().join(name)).unwrap();
        let mut log = LogFile::open(&path, 10).unwrap();
        for line in ["one\n", "two\n", "three\n", "a line longer than the limit\n", "four\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(read("access.log"), "four\n");
        assert_eq!(read("access.log.1"), "a line longer than the limit\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_was_there_is_gone_on_with() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("access.log");
        fs::write(&path, "before\n").unwrap();
        LogFile::open(&path, 100).unwrap().write_all(b"after\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "before\nafter\n");
        LogFile::open(&path, 10).unwrap().write_all(b"new\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
    }
}
