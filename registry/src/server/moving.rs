//! A mesh that is moved while its server stands still: into a file, out of it, into etcd.
//!
//! Agents go on meanwhile as in any outage. The server's own directory (its authority, its name) stays where it is; what
//! moves is what the store holds.

use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Builder;

use super::{ServerError, parts::open_store};
use crate::clock::Clock;
use crate::config::{Config, EtcdStoreConfig, StoreConfig};
use crate::store::{
    Revision, Store,
    etcd::EtcdStore,
    metrics::StoreMetrics,
    transfer::{self, Content},
};

/// What was moved.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moved {
    /// How many records.
    pub records: usize,
    /// The revision of the store that they are from.
    pub revision: Revision,
}

impl Moved {
    fn of(content: &Content) -> Self {
        Self { records: content.records.len(), revision: content.revision }
    }
}

/// Writes what the store of `config` holds into a new file. The server must not run.
///
/// # Errors
///
/// [`ServerError`]; then there is no file.
pub fn back_up(config: &Config, file: &Path) -> Result<Moved, ServerError> {
    block_on(async {
        let store = open_store(config, &Clock::system(), &metrics()).await?;
        let content = transfer::read(&*store).await?;
        transfer::write_file(file, &content)?;
        Ok(Moved::of(&content))
    })
}

/// Fills the store of `config`, which must be empty, from a file. The server must not run.
///
/// # Errors
///
/// [`ServerError`]; then no server starts on the store until it was filled to its end.
pub fn restore(config: &Config, file: &Path) -> Result<Moved, ServerError> {
    block_on(async {
        let content = transfer::read_file(file)?;
        let store: Arc<dyn Store> = match &config.store {
            StoreConfig::Embedded => open_store(config, &Clock::system(), &metrics()).await?,
            StoreConfig::Etcd(etcd) => {
                let settings = etcd.settings(&config.state_dir)?;
                Arc::new(EtcdStore::open_from(settings, content.revision, Clock::system(), metrics()).await?)
            }
        };
        transfer::fill(&*store, &content).await?;
        Ok(Moved::of(&content))
    })
}

/// Fills the store in `etcd`, which must be empty, from the embedded one of `config`. The server must not run.
///
/// # Errors
///
/// [`ServerError`]; the embedded store is as it was, and no server starts on etcd until it was filled to its end.
pub fn migrate(config: &Config, etcd: &EtcdStoreConfig) -> Result<Moved, ServerError> {
    block_on(async {
        let content = {
            let store = open_store(config, &Clock::system(), &metrics()).await?;
            transfer::read(&*store).await?
        };
        // The two have one directory, and so one lock: the first is closed by now.
        let settings = etcd.settings(&config.state_dir)?;
        let store = EtcdStore::open_from(settings, content.revision, Clock::system(), metrics()).await?;
        transfer::fill(&store, &content).await?;
        store.close().await;
        Ok(Moved::of(&content))
    })
}

fn metrics() -> Arc<StoreMetrics> {
    Arc::default()
}

fn block_on<T>(work: impl Future<Output = Result<T, ServerError>>) -> Result<T, ServerError> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(ServerError::Thread)?
        .block_on(work)
}
