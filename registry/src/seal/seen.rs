//! The newest generation of each manifest that this server has seen, kept outside the store.
//!
//! A manifest that is put back together with its members is signed and adds up; only its generation shows that it is old.
//! The file is written within a second of a change, and not with each: whoever crashes the server and puts records back
//! within that second undoes that second.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tracing::error;

use super::{Group, SealError};
use crate::{clock::Clock, private};

/// So long after a change it is on the disk.
const WITHIN: Duration = Duration::from_secs(1);
/// The format of the file.
const FORMAT: u32 = 1;

/// The server's own directory for keys of records and what it has seen of them.
#[must_use]
pub(super) fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("records")
}

/// See the module.
#[derive(Debug)]
pub struct Seen {
    path: PathBuf,
    newest: Mutex<BTreeMap<Group, u64>>,
    /// What stands in the file.
    written: Mutex<BTreeMap<Group, u64>>,
    news: Notify,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawSeen {
    format: u32,
    /// By the key of the manifest.
    manifests: BTreeMap<String, u64>,
}

impl Seen {
    /// Reads what the server with `state_dir` has seen.
    ///
    /// # Errors
    ///
    /// [`SealError`]: a file that cannot be read is no reason to forget what was seen.
    pub fn load(state_dir: &Path) -> Result<Self, SealError> {
        let path = folder(state_dir).join("seen.json");
        let damaged = |why: String| SealError::Damaged { path: path.display().to_string(), why };
        let mut newest = BTreeMap::new();
        if let Some(bytes) = private::read(&path)? {
            let raw: RawSeen = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
            if raw.format != FORMAT {
                return Err(damaged("a newer version has written it".to_owned()));
            }
            for (key, generation) in raw.manifests {
                let group = key.parse().ok().and_then(|key| Group::of_manifest(&key));
                newest.insert(group.ok_or_else(|| damaged(format!("{key} is no manifest")))?, generation);
            }
        }
        let (written, news) = (Mutex::new(newest.clone()), Notify::new());
        Ok(Self { path, newest: Mutex::new(newest), written, news })
    }

    /// The newest generation of a group; 0 when it has none.
    #[must_use]
    pub fn of(&self, group: &Group) -> u64 {
        lock(&self.newest).get(group).copied().unwrap_or(0)
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> BTreeMap<Group, u64> {
        lock(&self.newest).clone()
    }

    /// Notes a generation; an older one changes nothing.
    pub fn note(&self, group: &Group, generation: u64) {
        let mut newest = lock(&self.newest);
        let known = newest.entry(group.clone()).or_default();
        if *known < generation {
            *known = generation;
            self.news.notify_one();
        }
    }

    /// Writes what is new to the disk.
    ///
    /// # Errors
    ///
    /// [`SealError::File`].
    pub fn flush(&self) -> Result<(), SealError> {
        // Held while it is written: of two flushes the later one must not write what the earlier one saw.
        let mut written = lock(&self.written);
        let newest = self.all();
        if *written == newest {
            return Ok(());
        }
        if let Some(folder) = self.path.parent() {
            private::directory(folder)?;
        }
        let manifests = newest.iter().map(|(group, generation)| (group.key().to_string(), *generation));
        let raw = RawSeen { format: FORMAT, manifests: manifests.collect() };
        private::write(&self.path, &serde_json::to_vec(&raw).expect("texts and numbers always serialise"))?;
        *written = newest;
        Ok(())
    }

    /// Keeps the file current, for as long as the server runs. Ends only by being dropped.
    pub async fn keep(self: Arc<Self>, clock: Clock) {
        loop {
            self.news.notified().await;
            clock.sleep(WITHIN).await;
            let seen = Arc::clone(&self);
            let flushed = tokio::task::spawn_blocking(move || seen.flush()).await;
            if let Ok(Err(error)) = flushed {
                error!(%error, "it cannot be kept which records were seen; tried again after the next change");
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Maps are replaced or written entry by entry: a panic in between leaves them whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_seen_after_a_restart_and_never_falls() {
        let temp = tempfile::tempdir().unwrap();
        let seen = Seen::load(temp.path()).unwrap();
        let group = Group::of_manifest(&"mesh/_manifests/shop".parse().unwrap()).unwrap();
        seen.note(&group, 3);
        seen.note(&group, 2);
        seen.flush().unwrap();
        seen.note(&group, 9);
        let seen = Seen::load(temp.path()).unwrap();
        assert_eq!(seen.of(&group), 3, "the last second is not on the disk");
        private::write(&seen.path, b"{}").unwrap();
        assert!(matches!(Seen::load(temp.path()), Err(SealError::Damaged { .. })));
    }
}
