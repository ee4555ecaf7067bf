//! The highest sequence of the trust bundle that this server has put in force, kept outside the store.
//!
//! A store that a person has set back, or begun anew, holds an older bundle. Agents refuse a bundle with a lower sequence
//! than theirs, so the next one must have a higher sequence than any that was told (security.md 3.5).

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use tracing::error;

use super::DiskError;
use crate::private;

/// See the module.
#[derive(Debug)]
pub(super) struct Highest {
    path: PathBuf,
    known: Mutex<u64>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    sequence: u64,
}

impl Highest {
    /// Reads what the server with `state_dir` has noted; nothing before its first start.
    ///
    /// # Errors
    ///
    /// [`DiskError`]: the file cannot be read, or holds no sequence.
    pub(super) fn load(state_dir: &Path) -> Result<Self, DiskError> {
        let path = state_dir.join("ca").join("bundle.json");
        let known = match private::read(&path)? {
            Some(bytes) => {
                let damaged =
                    |why: serde_json::Error| DiskError::Damaged { path: path.clone(), why: why.to_string() };
                serde_json::from_slice::<Raw>(&bytes).map_err(damaged)?.sequence
            }
            None => 0,
        };
        Ok(Self { path, known: Mutex::new(known) })
    }

    /// The highest sequence so far; 0 for none.
    pub(super) fn get(&self) -> u64 {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a bundle of `sequence` is about to be in force. It is small and seldom, so it is written at once. When that
    /// fails the bundle is in force all the same: what it revokes must be.
    pub(super) fn note(&self, sequence: u64) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if sequence <= *known {
            return;
        }
        *known = sequence;
        let text = serde_json::to_vec(&Raw { sequence }).expect("a number always serialises");
        if let Err(error) = private::write(&self.path, &text) {
            error!(%error, sequence, "the sequence of the trust bundle cannot be noted");
        }
    }
}
