//! The log on disk: files of lines, named after their first entry, of which only the newest is written.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

use super::{
    Settings,
    chain::{self, End, Entry, Report},
};
use crate::private::{self, PrivateError};

/// The longest line that is read: an entry of 128 objects with names of 512 characters has half of it.
const MAX_LINE_BYTES: usize = 512 * 1024;

/// Why the files of the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The directory is somebody else's, or open to others.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// The operating system refuses.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    let path = path.to_path_buf();
    move |source| FilesError::Io { action, path, source }
}

/// The files of one log, open for appending.
#[derive(Debug)]
pub(super) struct Files {
    settings: Settings,
    /// The newest file, its path and its length up to the last whole entry.
    open: Option<(File, PathBuf, u64)>,
    /// What stands in the file beyond that length is left over from a write that failed.
    torn: bool,
}

impl Files {
    /// Opens the directory, cuts off a line that a crash has left half-written, and reads where the log ends.
    pub(super) fn open(settings: Settings) -> Result<(Self, Report), FilesError> {
        private::directory(&settings.directory)?;
        let mut files = Self { settings, open: None, torn: false };
        let report = match files.list()?.pop() {
            Some((_, path)) => {
                let (file, length) = whole_lines(&path)?;
                files.open = Some((file, path.clone(), length));
                let mut report = Report::default();
                read_into(&path, &mut report)?;
                report
            }
            None => Report::default(),
        };
        Ok((files, report))
    }

    /// The first entry of each file, by its name, and its path: the oldest first.
    fn list(&self) -> Result<Vec<(u64, PathBuf)>, FilesError> {
        let directory = &self.settings.directory;
        let mut found = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed("read", directory))? {
            let path = entry.map_err(failed("read", directory))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(first) = name.strip_suffix(".jsonl").and_then(|digits| digits.parse().ok()) {
                found.push((first, path));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Appends whole lines, of which the first is entry `first`, and waits until they are on the disk.
    pub(super) fn append(&mut self, lines: &str, first: u64) -> Result<(), FilesError> {
        if self.open.as_ref().is_none_or(|(_, _, length)| *length >= self.settings.file_bytes) {
            self.open = Some(self.create(first)?);
            self.torn = false;
        }
        let Some((file, path, length)) = &mut self.open else { return Ok(()) };
        if self.torn {
            file.set_len(*length).map_err(failed("cut", path))?;
        }
        self.torn = true;
        file.write_all(lines.as_bytes()).map_err(failed("write", path))?;
        file.sync_data().map_err(failed("sync", path))?;
        self.torn = false;
        *length += u64::try_from(lines.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    fn create(&self, first: u64) -> Result<(File, PathBuf, u64), FilesError> {
        let path = self.settings.directory.join(format!("{first:020}.jsonl"));
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits();
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600).custom_flags(flags);
        let file = options.open(&path).map_err(failed("create", &path))?;
        // One that is there already is left over from a write that failed: none of its lines was acknowledged.
        file.set_len(0).map_err(failed("cut", &path))?;
        File::open(&self.settings.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed("sync", &self.settings.directory))?;
        Ok((file, path, 0))
    }

    /// The first entry that is still there once the oldest files are gone that are too many; `None` when none is.
    pub(super) fn first_after_removal(&self) -> Result<Option<u64>, FilesError> {
        let list = self.list()?;
        let excess = list.len().saturating_sub(self.settings.files.max(1));
        Ok((excess > 0).then(|| list[excess].0))
    }

    /// Removes the files that hold only entries before `first`.
    pub(super) fn remove_before(&self, first: u64) -> Result<(), FilesError> {
        let list = self.list()?;
        for (name, path) in list {
            if name < first {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Moves every file into a directory beside them, where nothing reads it any more: the log begins anew with `first`.
    pub(super) fn set_aside(&mut self, first: u64) -> Result<(), FilesError> {
        self.open = None;
        let aside = self.settings.directory.join(format!("before-{first:020}"));
        private::directory(&aside)?;
        for (name, path) in self.list()? {
            let to = aside.join(format!("{name:020}.jsonl"));
            fs::rename(&path, &to).map_err(failed("move", &path))?;
        }
        Ok(())
    }

    /// Reads every file.
    pub(super) fn verify(&self) -> Result<Report, FilesError> {
        let mut report = Report::default();
        for (first, path) in self.list()? {
            let expected = report.end.seq.saturating_add(1);
            if report.end != End::default() && first != expected {
                report.fault(format!("{} stands where entry {expected} belongs", path.display()));
            }
            read_into(&path, &mut report)?;
        }
        Ok(report)
    }

    /// The entry of a number; `None` when none that is as it was written has it.
    pub(super) fn entry(&self, seq: u64) -> Result<Option<Entry>, FilesError> {
        let list = self.list()?;
        let Some((_, path)) = list.iter().rfind(|(first, _)| *first <= seq) else { return Ok(None) };
        let mut found = None;
        lines(path, |line| {
            if found.is_none() {
                found = chain::read(line).ok().filter(|entry| entry.seq == seq);
            }
        })?;
        Ok(found)
    }

    /// The newest `count` entries, the newest first.
    pub(super) fn newest(&self, count: usize) -> Result<Vec<Entry>, FilesError> {
        let mut newest: Vec<Entry> = Vec::new();
        for (_, path) in self.list()?.into_iter().rev() {
            if newest.len() >= count {
                break;
            }
            let mut entries = Vec::new();
            lines(&path, |line| entries.extend(chain::read(line).ok()))?;
            newest.extend(entries.into_iter().rev().take(count - newest.len()));
        }
        Ok(newest)
    }
}

/// Opens a file for appending, without what follows its last line feed.
fn whole_lines(path: &Path) -> Result<(File, u64), FilesError> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits();
    let file =
        OpenOptions::new().append(true).custom_flags(flags).open(path).map_err(failed("open", path))?;
    let mut reader = BufReader::new(File::open(path).map_err(failed("open", path))?);
    let (mut whole, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(failed("read", path))?;
        if read == 0 {
            return Ok((file, whole));
        }
        if line.last() != Some(&b'\n') {
            file.set_len(whole).map_err(failed("cut", path))?;
            return Ok((file, whole));
        }
        whole += u64::try_from(read).unwrap_or(u64::MAX);
    }
}

fn read_into(path: &Path, report: &mut Report) -> Result<(), FilesError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut number = 0;
    lines(path, |line| {
        number += 1;
        report.take(line, &format!("{name}:{number}"));
    })
}

fn lines(path: &Path, mut take: impl FnMut(&str)) -> Result<(), FilesError> {
    let reader = BufReader::new(File::open(path).map_err(failed("open", path))?);
    for line in reader.split(b'\n') {
        let line = line.map_err(failed("read", path))?;
        // What is too long or no text is no entry, and is told as one that cannot be read.
        let text = std::str::from_utf8(&line).ok().filter(|text| text.len() <= MAX_LINE_BYTES);
        take(text.unwrap_or("?"));
    }
    Ok(())
}
