//! A mesh that is moved while its server stands still: into a file, out of it, into etcd.
//!
//! Agents go on meanwhile as in any outage. The server's own directory (its authority, its name) stays where it is; what
//! moves is what the store holds, as its records read: they are signed anew where they arrive, so no key travels.

use std::path::Path;
use std::sync::Arc;

use nix::unistd::geteuid;
use tokio::runtime::Builder;

use super::{ServerError, parts::open_store};
use crate::clock::Clock;
use crate::config::{Config, EtcdStoreConfig, StoreConfig};
use crate::seal::{
    KeyRing, RecordKey, Report, SealedStore, Seen,
    keys::{Acceptances, KeyFile},
    vouch,
};
use crate::store::{
    Revision, Store,
    etcd::EtcdStore,
    metrics::StoreMetrics,
    transfer::{self, Content},
};
use crate::{audit, authority};

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
        let content = opened(config, transfer::read(&*store).await?)?;
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
        transfer::fill(&*store, &sealed(config, &content)?).await?;
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
        // First: whoever has moved it already hears that, and not that the old store is older than what moved on.
        transfer::check_empty(&store).await?;
        let content = opened(config, content)?;
        transfer::fill(&store, &sealed(config, &content)?).await?;
        store.close().await;
        Ok(Moved::of(&content))
    })
}

/// Says what of the store of `config` is not as the server wrote it. The server must not run.
///
/// # Errors
///
/// [`ServerError`].
pub fn check_records(config: &Config) -> Result<Report, ServerError> {
    block_on(async {
        let store = open_store(config, &Clock::system(), &metrics()).await?;
        transfer::check_finished(&*store).await?;
        // A store that no server with signatures has started on yet is not signed by being looked at.
        let is_sealed = KeyFile::of(&config.state_dir).load()?.is_some_and(|kept| !kept.taking_over);
        if !is_sealed && !vouch::is_sealed(&transfer::read(&*store).await?) {
            return Ok(Report::default());
        }
        Ok(SealedStore::open(store, &config.state_dir).await?.inspect().await?)
    })
}

/// Signs what stands in the store of `config`, and returns what of it was refused before. The server must not run; it
/// tells its audit log when it starts.
///
/// # Errors
///
/// [`ServerError`]; part of it may be signed then.
pub fn accept_records(config: &Config) -> Result<Report, ServerError> {
    block_on(async {
        let store = open_store(config, &Clock::system(), &metrics()).await?;
        transfer::check_finished(&*store).await?;
        let records = SealedStore::open(store, &config.state_dir).await?;
        let found = records.inspect().await?;
        if !found.is_empty() {
            // Before anything is signed: what is interrupted is told as well.
            Acceptances::of(&config.state_dir).note(&found, geteuid().as_raw())?;
            records.accept().await?;
            records.seen().flush()?;
        }
        Ok(found)
    })
}

/// Begins the audit log of the server of `config` anew if it is not whole, and returns what was wrong. The server must not
/// run.
///
/// # Errors
///
/// [`ServerError`]; then nothing is accepted.
pub fn accept_audit(config: &Config) -> Result<Option<String>, ServerError> {
    block_on(async {
        let clock = Clock::system();
        let store = open_store(config, &clock, &metrics()).await?;
        transfer::check_finished(&*store).await?;
        let records = SealedStore::open(store, &config.state_dir).await?;
        let Some(instance) = authority::instance_of(&config.state_dir)? else { return Ok(None) };
        let log = audit::Settings::in_directory(config.state_dir.join("audit"));
        Ok(audit::accept(log, &records, &clock, &instance, geteuid().as_raw()).await?)
    })
}

/// What records say. A store that was never sealed is taken as it is; one that somebody else has written into is refused.
fn opened(config: &Config, content: Content) -> Result<Content, ServerError> {
    let (keys, seen) = (KeyFile::of(&config.state_dir).load()?, Seen::load(&config.state_dir)?);
    match keys {
        Some(kept) if !kept.taking_over => Ok(vouch::opened(&content, &kept.ring, &seen)?),
        Some(kept) => Ok(vouch::taken(&content, &kept.ring)),
        None if vouch::is_sealed(&content) => {
            // Without the key nobody knows what of it the server wrote.
            Ok(vouch::opened(&content, &KeyRing::of(RecordKey::create()?), &seen)?)
        }
        None => Ok(content),
    }
}

/// What is written into a store: signed with the key of the server that will run on it.
fn sealed(config: &Config, content: &Content) -> Result<Content, ServerError> {
    let (file, seen) = (KeyFile::of(&config.state_dir), Seen::load(&config.state_dir)?);
    let ring = match file.load()? {
        Some(kept) => kept.ring,
        None => KeyRing::of(RecordKey::create()?),
    };
    file.store(&ring, false)?;
    let sealed = vouch::sealed(content, &ring, &seen);
    seen.flush()?;
    Ok(sealed)
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
