//! Several authorities in one bundle: each server keeps its own roots there and leaves those of others alone.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use tracing::{info, warn};
use weft_identity::{
    bundle::{TrustBundle, TrustBundles},
    ca::CertificateAuthority,
};

use super::{AuthorityFailure, InstanceAuthority, RETRY, bundle, disk, load_or_create, upstream};
use crate::{
    clock::Clock,
    config::Config,
    layout,
    seal::{KeyFile, KeyRing, RecordKey, RecordPublicKey},
    store::{Compare, Mirror, Op, Store, StoreError},
};

impl InstanceAuthority {
    /// The bundle with `root` of another server beside what stands in it, and how it is written in a transaction.
    ///
    /// # Errors
    ///
    /// [`AuthorityFailure`]: the store, or no bundle is made of these roots.
    pub(crate) async fn with_root(
        &self,
        store: &dyn Store,
        root: CertificateDer<'static>,
    ) -> Result<(TrustBundle, (Compare, Op)), AuthorityFailure> {
        bundle::with_root(store, &self.trust_domain, root).await
    }

    /// Takes in what other servers write into the bundle, for as long as the server runs.
    pub async fn follow(&self, store: Arc<dyn Store>) {
        let mut mirror = Mirror::new(Arc::clone(&store), layout::bundles());
        loop {
            let taken = match mirror.next().await {
                Ok(_) => self.take_in(&*store).await,
                Err(StoreError::Closed) => return,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = taken {
                warn!(%error, "the trust bundle cannot be read; trying again");
                self.clock.sleep(RETRY).await;
            }
        }
    }

    async fn take_in(&self, store: &dyn Store) -> Result<(), AuthorityFailure> {
        let Some(stored) = bundle::stored(store, &self.trust_domain).await? else { return Ok(()) };
        self.in_force(stored);
        Ok(())
    }

    /// Puts a bundle in force, unless one that is as new is.
    pub(super) fn in_force(&self, newer: TrustBundle) {
        if newer.sequence() >= self.bundle.borrow().sequence() {
            self.highest.note(newer.sequence());
            self.note_published(&newer);
        }
        self.bundle.send_if_modified(|before| {
            let is_newer = newer.sequence() > before.sequence();
            if is_newer {
                info!(sequence = newer.sequence(), roots = newer.roots().len(), "the trust bundle changed");
                self.bundles.publish(TrustBundles::from(newer.clone()));
                *before = Arc::new(newer);
            }
            is_newer
        });
    }
}

/// The authority of a server that is not in the mesh yet.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// Its name.
    pub instance: String,
    /// The root that is to stand in the bundle.
    pub root: CertificateDer<'static>,
    keys: KeyFile,
    ring: KeyRing,
}

impl Newcomer {
    /// Makes the authority of the server of `config`, or reads the one that was made before. It is on disk afterwards.
    ///
    /// # Errors
    ///
    /// [`AuthorityFailure`].
    pub fn prepare(config: &Config, clock: &Clock) -> Result<Self, AuthorityFailure> {
        let path = disk::path(&config.state_dir);
        let (identity, now) = (&config.identity, clock.now());
        let above = upstream::read(identity, &config.trust_domain, now)?;
        let ca = load_or_create(&path, &config.trust_domain, identity, above.as_ref(), None, None, now)?;
        let keys = KeyFile::of(&config.state_dir);
        let ring = match keys.load()? {
            Some(kept) => kept.ring,
            None => {
                let ring = KeyRing::of(RecordKey::create()?);
                keys.store(&ring, false)?;
                ring
            }
        };
        Ok(Self { instance: ca.instance().to_owned(), root: ca.active_root().clone(), keys, ring })
    }

    /// The key that signs its records.
    #[must_use]
    pub fn record_key(&self) -> RecordPublicKey {
        self.ring.own().public()
    }

    /// Takes records that one of `keys` signed, from its first start on.
    ///
    /// # Errors
    ///
    /// [`AuthorityFailure`] when they cannot be kept, or one is none.
    pub fn trust(&self, keys: &[Vec<u8>]) -> Result<(), AuthorityFailure> {
        for key in keys {
            let key = <[u8; 32]>::try_from(key.as_slice()).map(RecordPublicKey);
            let key =
                key.map_err(|_| AuthorityFailure::BundleDamaged { why: "a record key is none".into() })?;
            self.ring.trust(key);
        }
        Ok(self.keys.store(&self.ring, false)?)
    }
}

/// Refuses a server that the mesh does not know: the bundle has roots, and none is its own.
pub(super) fn check_admitted(
    ca: &CertificateAuthority,
    known: Option<&TrustBundle>,
) -> Result<(), AuthorityFailure> {
    let own = ca.bundle_roots();
    let admitted =
        known.is_none_or(|bundle| bundle.roots().len() == 0 || bundle.roots().any(|root| own.contains(root)));
    if admitted { Ok(()) } else { Err(AuthorityFailure::NotAdmitted { instance: ca.instance().to_owned() }) }
}
