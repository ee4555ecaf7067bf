//! Whose records are taken: those of every server whose admission a trusted server has written down.

use std::sync::Arc;

use tracing::{error, info, warn};

use crate::{
    clock::Clock,
    layout,
    records::{Record, ServerRecord},
    seal::{RecordPublicKey, SealError, SealedStore},
    store::{Mirror, Store as _, StoreError},
};

/// The wait after the store failed to read.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// Trusts the record keys of all admitted servers. One may have been let in by another that was let in itself, so it is
/// looked until nobody is added.
///
/// # Errors
///
/// [`SealError`]: the store cannot be read, or the keys cannot be kept.
pub async fn admitted(records: &SealedStore) -> Result<(), SealError> {
    loop {
        let listed = records.list_all(&layout::servers()).await?;
        let mut added = false;
        for entry in listed.entries {
            // What nobody trusted has signed does not read as a record.
            let Ok(server) = ServerRecord::decode(&entry.value) else { continue };
            let Some(key) = RecordPublicKey::parse(&server.record_key) else {
                warn!(key = %entry.key, "the record key of a server cannot be read");
                continue;
            };
            if records.trust(key)? {
                info!(key = %key.id(), admitted_by = server.admitted_by, "the records of another server are taken");
                added = true;
            }
        }
        if !added {
            return Ok(());
        }
    }
}

/// Does so whenever a server is let in, until the store is closed.
pub async fn keep(records: Arc<SealedStore>, clock: Clock) {
    let mut mirror = Mirror::new(Arc::clone(&records) as Arc<_>, layout::servers());
    loop {
        let failure = match mirror.next().await {
            Ok(_) => admitted(&records).await.err().map(|failure| failure.to_string()),
            Err(StoreError::Closed) => return,
            Err(failure) => Some(failure.to_string()),
        };
        if let Some(failure) = failure {
            error!(error = failure, "cannot learn whose records are taken; trying again");
            clock.sleep(RETRY).await;
        }
    }
}
