//! Where the current SVIDs and bundles stand, so that rotation swaps a pointer and rebuilds nothing.
//!
//! Owns the slots and how rustls picks from them. When something is published or withdrawn is decided by
//! [`crate::rotation`]; who is told of the change is the plane's business.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;

use crate::bundle::TrustBundles;
use crate::denied::Denylist;
use crate::svid::Svid;

/// A published SVID with what rustls needs to present it.
#[derive(Debug)]
pub struct Credential {
    svid: Svid,
    certified: Arc<CertifiedKey>,
}

impl Credential {
    /// The SVID.
    pub fn svid(&self) -> &Svid {
        &self.svid
    }
}

/// The current SVID of one workload, node or server. Clones are handles to the same slot.
///
/// An empty slot presents no certificate: as a server the handshake fails, as a client the peer sees an
/// anonymous caller, which a tunnel refuses.
#[derive(Clone, Debug, Default)]
pub struct SvidSlot(Arc<ArcSwapOption<Credential>>);

impl SvidSlot {
    /// A slot without an SVID yet.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Presents `svid` from the next handshake on.
    pub fn publish(&self, svid: Svid) {
        self.publish_with(svid, &[]);
    }

    /// Presents `svid` followed by `extra` certificates.
    ///
    /// The control listener appends its root, so that a joiner who knows only the root's fingerprint can
    /// find the root in the chain.
    pub fn publish_with(&self, svid: Svid, extra: &[CertificateDer<'static>]) {
        let chain = svid.chain().iter().chain(extra).cloned().collect();
        let certified = Arc::new(CertifiedKey::new(chain, Arc::clone(svid.signer())));
        self.0.store(Some(Arc::new(Credential { svid, certified })));
    }

    /// Presents nothing any more: the SVID has expired or was revoked.
    pub fn withdraw(&self) {
        self.0.store(None);
    }

    /// What is presented now.
    pub fn load(&self) -> Option<Arc<Credential>> {
        self.0.load_full()
    }

    fn certified(&self) -> Option<Arc<CertifiedKey>> {
        self.0.load().as_ref().map(|credential| Arc::clone(&credential.certified))
    }
}

impl ResolvesServerCert for SvidSlot {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }
}

impl ResolvesClientCert for SvidSlot {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The SVIDs that one listener can present, chosen by the first label of the SNI.
///
/// The SNI of a tunnel is `<endpoint label>.<cluster>.weft`. A label that is not here, or whose slot is
/// empty, fails the handshake: there is no default identity. Clones are handles to the same set.
#[derive(Clone, Debug, Default)]
pub struct InboundSvids(Arc<ArcSwap<HashMap<String, SvidSlot>>>);

impl InboundSvids {
    /// Presents nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Presents `slot` to callers of `label`; a slot that was there before is replaced.
    pub fn insert(&self, label: &str, slot: SvidSlot) {
        let label = label.to_ascii_lowercase();
        self.0.rcu(|slots| {
            let mut slots = HashMap::clone(slots);
            slots.insert(label.clone(), slot.clone());
            slots
        });
    }

    /// Stops answering for `label`.
    pub fn remove(&self, label: &str) {
        let label = label.to_ascii_lowercase();
        self.0.rcu(|slots| {
            let mut slots = HashMap::clone(slots);
            slots.remove(&label);
            slots
        });
    }

    /// The slot that callers of `label` get.
    pub fn slot(&self, label: &str) -> Option<SvidSlot> {
        self.0.load().get(&label.to_ascii_lowercase()).cloned()
    }

    /// How many labels are answered for.
    pub fn len(&self) -> usize {
        self.0.load().len()
    }

    /// Whether no label is answered for.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl ResolvesServerCert for InboundSvids {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let label = hello.server_name()?.split('.').next()?;
        self.slot(label)?.certified()
    }
}

/// The bundles that handshakes are verified against. Clones are handles to the same slot.
#[derive(Clone, Debug, Default)]
pub struct BundleSlot(Arc<ArcSwap<TrustBundles>>);

impl BundleSlot {
    /// A slot that starts with `bundles`.
    pub fn new(bundles: TrustBundles) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(bundles)))
    }

    /// Verifies against `bundles` from the next handshake on. Who is denied stays denied.
    pub fn publish(&self, bundles: TrustBundles) {
        self.0.rcu(|now| bundles.clone().denying(now.denied().clone()));
    }

    /// Refuses `denied`, and nobody else of those that the bundles vouch for, from the next handshake on.
    pub fn deny(&self, denied: &Denylist) {
        self.0.rcu(|now| TrustBundles::clone(now).denying(denied.clone()));
    }

    /// What is trusted now.
    pub fn load(&self) -> Arc<TrustBundles> {
        self.0.load_full()
    }
}
