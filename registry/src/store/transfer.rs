//! Everything that a store holds, moved into another one or into a file and back.
//!
//! Owns the order that makes an interruption harmless: while a store is being filled, a record says so, and a server
//! does not start on it. Revisions are not moved: the new store gives its own, which go on behind those of the old one.
//! Leases are not moved either: what hangs on one belongs to a server that runs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weft_policy::code::{self, CodeId};

use super::{
    Compare, Entry, Expected, Key, MAX_TXN_BYTES, MAX_TXN_OPS, Op, Prefix, Revision, Store, StoreError, Txn,
};

/// The record that stands in a store for as long as it is being filled.
const UNFINISHED: &str = "transfer/unfinished";

/// The format of the file.
const FORMAT: u32 = 1;

/// The longest line of the file: a value at its limit in base64, its key, and some JSON.
const MAX_LINE_BYTES: u64 = 512 * 1024;

/// What is moved.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Content {
    /// The records, in the order of their keys; only key and value are moved.
    pub records: Vec<(Key, Bytes)>,
    /// The revision of the store that they are from.
    pub revision: Revision,
}

/// Why nothing, or not everything, was moved.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// A store failed.
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    /// The store that should be filled holds something already.
    #[error("the store is not empty: it holds {entries} records")]
    NotEmpty {
        /// How many.
        entries: usize,
    },
    /// The store was being filled and that did not end.
    #[error("the store was not filled to its end")]
    Unfinished,
    /// The store does not hold what was moved into it.
    #[error("somebody else has written into the store meanwhile")]
    Different,
    /// The operating system refuses the file.
    #[error("{}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not a backup, or not as it was written.
    #[error("{} cannot be restored: {what}", path.display())]
    Damaged {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

impl TransferError {
    /// Its code in the catalogue.
    #[must_use]
    pub fn code(&self) -> CodeId {
        match self {
            Self::Store(error) => error.code(),
            Self::NotEmpty { .. } => code::STORE_NOT_EMPTY,
            Self::Unfinished => code::STORE_UNFINISHED,
            Self::Different => code::WRITE_CONFLICT,
            Self::File { .. } => code::FILE_UNUSABLE,
            Self::Damaged { .. } => code::STORE_DAMAGED,
        }
    }
}

/// Refuses a store that was not filled to its end.
///
/// # Errors
///
/// [`TransferError::Unfinished`]; [`TransferError::Store`] if it cannot be read.
pub async fn check_finished(store: &dyn Store) -> Result<(), TransferError> {
    match store.get(&unfinished()).await? {
        None => Ok(()),
        Some(_) => Err(TransferError::Unfinished),
    }
}

/// Reads everything that hangs on no lease. Nobody may write meanwhile, which the lock of the server's directory sees to.
///
/// # Errors
///
/// [`TransferError::Unfinished`]; [`TransferError::Store`] if it cannot be read.
pub async fn read(store: &dyn Store) -> Result<Content, TransferError> {
    check_finished(store).await?;
    let listing = store.list_all(&Prefix::everything()).await?;
    let durable = listing.entries.into_iter().filter(|entry| entry.lease.is_none());
    let records = durable.map(|Entry { key, value, .. }| (key, value)).collect();
    Ok(Content { records, revision: listing.revision })
}

/// Fills an empty store, or goes on filling one in which an earlier attempt did not end; then compares.
///
/// # Errors
///
/// [`TransferError`]; then no server starts on the store until it was filled to its end.
pub async fn fill(store: &dyn Store, content: &Content) -> Result<(), TransferError> {
    begin(store).await?;
    for part in parts(&content.records) {
        let put =
            |(key, value): &(Key, Bytes)| Op::Put { key: key.clone(), value: value.clone(), lease: None };
        let held = vec![Compare::Present(unfinished())];
        store.commit(Txn::sealed(held, part.iter().map(put).collect())?).await?;
    }
    let found = store.list_all(&Prefix::everything()).await?.entries;
    let found = found.into_iter().filter(|entry| entry.key.as_str() != UNFINISHED);
    if !found.map(|entry| (entry.key, entry.value)).eq(content.records.iter().cloned()) {
        return Err(TransferError::Different);
    }
    store.delete(unfinished(), Expected::Anything).await?;
    Ok(())
}

/// Refuses a store that holds something, but for what an earlier attempt to fill it left.
///
/// # Errors
///
/// [`TransferError::NotEmpty`], or the store.
pub async fn check_empty(store: &dyn Store) -> Result<(), TransferError> {
    let entries = store.status().await?.entries;
    if entries > 0 && store.get(&unfinished()).await?.is_none() {
        return Err(TransferError::NotEmpty { entries });
    }
    Ok(())
}

/// Says that the store is being filled. What an earlier attempt left is removed.
async fn begin(store: &dyn Store) -> Result<(), TransferError> {
    check_empty(store).await?;
    store.put(unfinished(), Bytes::from_static(b"1"), Expected::Anything, None).await?;
    let left = store.list_all(&Prefix::everything()).await?.entries;
    let left: Vec<Op> = left
        .into_iter()
        .filter(|entry| entry.key.as_str() != UNFINISHED)
        .map(|entry| Op::Delete(entry.key))
        .collect();
    for part in left.chunks(MAX_TXN_OPS) {
        store.txn(Vec::new(), part.to_vec()).await?;
    }
    Ok(())
}

/// Transactions within the limits, in order.
fn parts(records: &[(Key, Bytes)]) -> Vec<&[(Key, Bytes)]> {
    let (mut parts, mut start, mut bytes) = (Vec::new(), 0, UNFINISHED.len());
    for (at, (key, value)) in records.iter().enumerate() {
        let more = key.as_str().len() + value.len();
        if at - start == MAX_TXN_OPS || bytes + more > MAX_TXN_BYTES {
            parts.push(&records[start..at]);
            (start, bytes) = (at, UNFINISHED.len());
        }
        bytes += more;
    }
    if start < records.len() {
        parts.push(&records[start..]);
    }
    parts
}

fn unfinished() -> Key {
    UNFINISHED.parse().expect("it is a key")
}

/// The first line of the file.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Head {
    weft_backup: u32,
    records: usize,
    revision: u64,
}

/// A line for each record.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    value: String,
}

/// The last line: what the lines before it come to.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Foot {
    sha256: String,
}

/// Writes a backup; a file that is there already is left alone. It holds hashes of tokens and the whole configuration,
/// and is readable by its owner only.
///
/// # Errors
///
/// [`TransferError::File`]; then no file is left.
pub fn write_file(path: &Path, content: &Content) -> Result<(), TransferError> {
    let refused = |source| TransferError::File { path: path.to_owned(), source };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(refused)?;
    let written = write_lines(file, content);
    if written.is_err() {
        // The first error is the one that matters.
        let _ = fs::remove_file(path);
    }
    written.map_err(refused)
}

fn write_lines(file: File, content: &Content) -> io::Result<()> {
    let mut out = BufWriter::new(file);
    let mut digest = Context::new(&SHA256);
    let mut write = |text: String| {
        digest.update(text.as_bytes());
        digest.update(b"\n");
        out.write_all(text.as_bytes())?;
        out.write_all(b"\n")
    };
    let head = Head { weft_backup: FORMAT, records: content.records.len(), revision: content.revision.0 };
    write(serde_json::to_string(&head)?)?;
    for (key, value) in &content.records {
        write(serde_json::to_string(&Line { key: key.to_string(), value: STANDARD.encode(value) })?)?;
    }
    let foot = Foot { sha256: STANDARD.encode(digest.finish()) };
    writeln!(out, "{}", serde_json::to_string(&foot)?)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// Reads a backup, and checks that it is whole.
///
/// # Errors
///
/// [`TransferError::File`] and [`TransferError::Damaged`].
pub fn read_file(path: &Path) -> Result<Content, TransferError> {
    let refused = |source| TransferError::File { path: path.to_owned(), source };
    let damaged = |what: &str| TransferError::Damaged { path: path.to_owned(), what: what.to_owned() };
    let mut lines = BufReader::new(File::open(path).map_err(refused)?);
    let mut digest = Context::new(&SHA256);
    let mut line = || -> Result<String, TransferError> {
        let mut text = String::new();
        io::Read::take(&mut lines, MAX_LINE_BYTES).read_line(&mut text).map_err(refused)?;
        let whole = text.strip_suffix('\n').ok_or_else(|| damaged("it ends too early"))?;
        Ok(whole.to_owned())
    };
    let first = line()?;
    let head: Head = serde_json::from_str(&first).map_err(|_| damaged("it is not a backup of Weft"))?;
    if head.weft_backup != FORMAT {
        return Err(damaged("a newer version has written it"));
    }
    digest.update(first.as_bytes());
    digest.update(b"\n");
    let mut records = Vec::new();
    for _ in 0..head.records {
        let text = line()?;
        let Line { key, value } = serde_json::from_str(&text).map_err(|_| damaged("a line is no record"))?;
        let key = key.parse().map_err(|_| damaged("a key cannot be one"))?;
        let value = STANDARD.decode(value).map_err(|_| damaged("a value cannot be decoded"))?;
        records.push((key, value.into()));
        digest.update(text.as_bytes());
        digest.update(b"\n");
    }
    let foot: Foot = serde_json::from_str(&line()?).map_err(|_| damaged("its last line is missing"))?;
    if foot.sha256 != STANDARD.encode(digest.finish()) {
        return Err(damaged("it was changed after it was written"));
    }
    Ok(Content { records, revision: Revision(head.revision) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::conformance::{key, names, put};
    use super::super::embedded::{Bounds, EmbeddedStore, Settings};
    use super::*;
    use crate::clock::Clock;

    async fn store(folder: &Path) -> EmbeddedStore {
        let settings = Settings { directory: folder.to_owned(), bounds: Bounds::default() };
        EmbeddedStore::open(settings, Clock::system(), Arc::default()).await.unwrap()
    }

    fn content(count: usize, bytes: usize) -> Content {
        let record = |number: usize| (key(&format!("/{number:06}")), Bytes::from(vec![7; bytes]));
        Content { records: (0..count).map(record).collect(), revision: Revision(9) }
    }

    #[tokio::test]
    async fn what_is_moved_is_there_whole_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        for (name, content) in
            [("none", content(0, 0)), ("many", content(1000, 10)), ("large", content(9, 262_144))]
        {
            let store = store(&temp.path().join(name)).await;
            fill(&store, &content).await.unwrap();
            assert_eq!(read(&store).await.unwrap().records, content.records, "{name}");
            if content.records.is_empty() {
                continue;
            }
            let again = fill(&store, &content).await.unwrap_err();
            assert!(matches!(again, TransferError::NotEmpty { .. }), "{again}");
        }
    }

    #[tokio::test]
    async fn a_store_that_was_not_filled_to_its_end_is_refused_until_it_is() {
        let temp = tempfile::tempdir().unwrap();
        let store = store(temp.path()).await;
        put(&store, UNFINISHED, "1").await;
        put(&store, "/half", "1").await;
        let unfinished = check_finished(&store).await.unwrap_err();
        assert!(matches!(unfinished, TransferError::Unfinished));
        assert_eq!(unfinished.code().as_str(), "W6037");
        assert!(matches!(read(&store).await, Err(TransferError::Unfinished)), "it is no source either");
        fill(&store, &content(2, 1)).await.unwrap();
        assert_eq!(names(&store).await, ["/000000", "/000001"]);
        check_finished(&store).await.unwrap();
    }

    #[test]
    fn a_file_is_read_as_it_was_written_or_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("backup");
        let content = content(3, 100);
        write_file(&path, &content).unwrap();
        assert_eq!(read_file(&path).unwrap(), content);
        assert!(
            matches!(write_file(&path, &content), Err(TransferError::File { .. })),
            "nothing is overwritten"
        );

        let text = fs::read(&path).unwrap();
        for at in (0..text.len()).step_by(7) {
            let mut broken = text.clone();
            broken[at] ^= 1;
            fs::write(&path, &broken).unwrap();
            assert!(read_file(&path).is_err(), "byte {at}");
        }
        for length in 0..text.len() {
            fs::write(&path, &text[..length]).unwrap();
            assert!(read_file(&path).is_err(), "cut at {length}");
        }
    }
}
