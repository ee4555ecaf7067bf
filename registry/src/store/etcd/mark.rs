//! What this server knows of its store, kept outside it (ETCD-07).
//!
//! Owns one small file in the state directory: which store, in which cluster, and the newest revision that was seen. An
//! etcd that was wiped, exchanged or restored from an old backup does not match it, and is refused until a person says
//! that it is meant. The name of the writer in it makes the slots of this server its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::embedded::Files;
use super::super::{Revision, StoreId};
use super::error::{Found, OpenError};
use super::space::Identity;
use crate::private;

/// The file's name.
pub(super) const FILE: &str = "etcd.json";

/// The file and its lock.
pub(super) struct Mark {
    path: PathBuf,
    known: Known,
    /// Keeps other servers out of the directory.
    _lock: Files,
}

/// What stands in the file. Numbers beyond 2^53 are texts, as everywhere in JSON.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Known {
    writer: String,
    store: Option<String>,
    cluster: Option<String>,
    revision: u64,
}

impl Mark {
    /// Locks the directory and reads the file; a new writer gets a name.
    pub(super) fn open(directory: &Path) -> Result<Self, OpenError> {
        let mut lock = Files::new(directory.to_owned());
        lock.claim().map_err(|error| OpenError::Lock(Arc::new(error)))?;
        let path = directory.join(FILE);
        let text = private::read(&path).map_err(|error| OpenError::Mark(Arc::new(error)))?;
        let known = match text {
            Some(text) => serde_json::from_slice(&text)
                .map_err(|error| OpenError::Damaged { what: format!("{}: {error}", path.display()) })?,
            None => Known { writer: format!("{:032x}", random()?), ..Known::default() },
        };
        Ok(Self { path, known, _lock: lock })
    }

    pub(super) fn writer(&self) -> &str {
        &self.known.writer
    }

    pub(super) fn revision(&self) -> Revision {
        Revision(self.known.revision)
    }

    /// Whether it was used before, so that an etcd without a store has lost it.
    pub(super) fn store(&self) -> Option<StoreId> {
        let store = self.known.store.as_deref()?;
        u128::from_str_radix(store, 16).ok().map(StoreId)
    }

    /// Whether this is the store that is known, no older than it was.
    pub(super) fn check(
        &self,
        cluster: u64,
        identity: &Identity,
        current: Revision,
    ) -> Result<(), OpenError> {
        if let Some(known) = self.store().filter(|known| *known != identity.id) {
            return Err(OpenError::OtherStore { known, found: Found::Store(identity.id) });
        }
        let known = self.known.cluster.as_deref().and_then(|known| u64::from_str_radix(known, 16).ok());
        if let Some(known) = known.filter(|known| *known != cluster) {
            return Err(OpenError::OtherCluster { known, found: cluster });
        }
        if current < self.revision() {
            return Err(OpenError::Behind { known: self.revision(), current });
        }
        Ok(())
    }

    /// Notes where the store is; the revision in the file never falls.
    pub(super) fn note(
        &mut self,
        cluster: u64,
        identity: &Identity,
        revision: Revision,
    ) -> Result<(), OpenError> {
        let known = Known {
            writer: self.known.writer.clone(),
            store: Some(identity.id.to_string()),
            cluster: Some(format!("{cluster:016x}")),
            revision: revision.0.max(self.known.revision),
        };
        if known != self.known {
            let text = serde_json::to_vec(&known).unwrap_or_default();
            private::write(&self.path, &text).map_err(|error| OpenError::Mark(Arc::new(error)))?;
            self.known = known;
        }
        Ok(())
    }
}

/// Random, for names that must differ from all others.
pub(super) fn random() -> Result<u128, OpenError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| OpenError::Entropy)?;
    Ok(u128::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity { id: StoreId(7), start: Revision(0), created: 1 };

    #[test]
    fn etcd_07_another_store_another_cluster_and_an_older_revision_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let state = temp.path().join("state");
        let mut mark = Mark::open(&state).unwrap();
        assert_eq!(mark.store(), None);
        mark.check(1, &IDENTITY, Revision(0)).unwrap();
        mark.note(1, &IDENTITY, Revision(9)).unwrap();
        mark.note(1, &IDENTITY, Revision(5)).unwrap();
        let writer = mark.writer().to_owned();
        assert!(matches!(Mark::open(&state), Err(OpenError::Lock(_))), "one server for one directory");
        drop(mark);

        let mark = Mark::open(&state).unwrap();
        assert_eq!((mark.writer(), mark.revision(), mark.store()), (&*writer, Revision(9), Some(StoreId(7))));
        mark.check(1, &IDENTITY, Revision(9)).unwrap();
        for (cluster, id, revision, code) in
            [(2, 7, 9, "W6033"), (1, 8, 9, "W6033"), (1, 7, 8, "W6012"), (1, 7, 0, "W6012")]
        {
            let identity = Identity { id: StoreId(id), ..IDENTITY };
            let refused = mark.check(cluster, &identity, Revision(revision)).unwrap_err();
            assert_eq!(refused.code().as_str(), code, "{refused}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_no_reason_to_forget_what_was_known() {
        let temp = tempfile::tempdir().unwrap();
        drop(Mark::open(temp.path()));
        for text in ["", "{}", "{\"writer\": \"a\", \"revision\": 1, \"more\": 2}"] {
            private::write(&temp.path().join(FILE), text.as_bytes()).unwrap();
            assert!(matches!(Mark::open(temp.path()), Err(OpenError::Damaged { .. })), "{text}");
        }
    }
}
