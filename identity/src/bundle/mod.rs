//! Trust bundles: the roots that vouch for one trust domain, and the map of all of them.
//!
//! Owns which roots count for which trust domain, and their JWK Set form (`jwks.rs`). Roots of two trust
//! domains are never pooled: who verifies a chain asks for the bundle of the leaf's own trust domain
//! first (SPIFFE Federation §7.3).

mod jwks;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, TrustAnchor};

use crate::denied::Denylist;
use crate::spiffe::TrustDomain;
use crate::svid::{SvidError, Validity, profile};
use crate::tls::SIGNATURES;
use crate::x509::certificate::Certificate;
use crate::x509::fingerprint;
use crate::x509::public_key::Signed;

/// Largest JWK Set that is read, in bytes (security.md 9.3).
pub const MAX_BUNDLE_BYTES: usize = 1024 * 1024;

/// Most keys in a JWK Set, and most roots in a bundle (security.md 9.3).
pub const MAX_BUNDLE_KEYS: usize = 64;

/// Shortest refresh hint that is honoured (SPIRE's minimum; BU-04).
pub const MIN_REFRESH_HINT: Duration = Duration::from_secs(60);

/// Longest refresh hint that is honoured: a week without looking hides a revocation for a week.
pub const MAX_REFRESH_HINT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why roots or a document do not make a bundle.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BundleError {
    /// The document has more than [`MAX_BUNDLE_BYTES`] bytes.
    #[error("the bundle has {0} bytes, at most {MAX_BUNDLE_BYTES} are read")]
    TooLong(usize),
    /// The document has more than [`MAX_BUNDLE_KEYS`] keys.
    #[error("the bundle has {0} keys, at most {MAX_BUNDLE_KEYS} are read")]
    TooManyKeys(usize),
    /// The document is not JSON, has a parameter twice, or lacks `keys`.
    #[error("the bundle is not a JWK set: line {line}, column {column}")]
    NotJwks {
        /// Line of the fault, from 1.
        line: usize,
        /// Column of the fault, from 1.
        column: usize,
    },
    /// `spiffe_sequence` is not an integer from 0 to 2^64 - 1.
    #[error("spiffe_sequence is not an integer of 64 bits")]
    Sequence,
    /// `x5c` of a key is not base64 DER.
    #[error("x5c of key {0} is not a base64 certificate")]
    Encoding(usize),
    /// The key's own parameters state another key than its certificate does (RFC 7517 §4.7).
    #[error("key {0} is not the key of its certificate")]
    KeyMismatch(usize),
    /// A root is not a certificate that may sign.
    #[error("root {index} is not a usable certificate authority")]
    Root {
        /// Position among the roots, from 0.
        index: usize,
        /// What is wrong with it.
        source: SvidError,
    },
    /// The same key vouches for another trust domain already (BU-09, FED-02).
    #[error("a root of {domain} has the same key as one of {other}")]
    SharedKey {
        /// The trust domain of the refused bundle.
        domain: TrustDomain,
        /// The trust domain whose bundle has that key.
        other: TrustDomain,
    },
}

/// The roots of one trust domain, with the sequence number of this state of them.
///
/// A bundle without roots is legal and means that no X.509-SVID of the trust domain is valid (BU-02).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    roots: Vec<Root>,
    sequence: u64,
    refresh_hint: Option<Duration>,
    tainted: BTreeSet<[u8; 32]>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Root {
    certificate: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl TrustBundle {
    /// Makes a bundle of `roots` (DER, equal ones count once) for `trust_domain`.
    ///
    /// `sequence` grows with every change of the contents; 0 where there is none.
    ///
    /// # Errors
    ///
    /// [`BundleError::TooManyKeys`]; [`BundleError::Root`] if one cannot be read or is not an authority.
    /// An expired root is no error: it is left out by [`TrustBundle::anchors`].
    pub fn new(
        trust_domain: TrustDomain,
        roots: Vec<CertificateDer<'static>>,
        sequence: u64,
    ) -> Result<Self, BundleError> {
        let mut kept: Vec<Root> = Vec::with_capacity(roots.len());
        for (index, certificate) in roots.into_iter().enumerate() {
            if kept.iter().any(|root| root.certificate == certificate) {
                continue;
            }
            kept.push(Root::parse(certificate).map_err(|source| BundleError::Root { index, source })?);
        }
        if kept.len() > MAX_BUNDLE_KEYS {
            return Err(BundleError::TooManyKeys(kept.len()));
        }
        Ok(Self { trust_domain, roots: kept, sequence, refresh_hint: None, tainted: BTreeSet::new() })
    }

    /// What a publisher tells after `before`, with the next sequence number; `None` when that says the same already.
    ///
    /// # Errors
    ///
    /// As [`TrustBundle::new`].
    pub fn following(
        before: Option<&Self>,
        trust_domain: TrustDomain,
        roots: Vec<CertificateDer<'static>>,
        tainted: impl IntoIterator<Item = [u8; 32]>,
    ) -> Result<Option<Self>, BundleError> {
        let sequence = before.map_or(0, Self::sequence).saturating_add(1);
        let next = Self::new(trust_domain, roots, sequence)?.with_tainted(tainted);
        let same = |before: &Self| {
            let set = |bundle: &Self| bundle.fingerprints().into_iter().collect::<BTreeSet<_>>();
            before.tainted == next.tainted && set(before) == set(&next)
        };
        Ok(if before.is_some_and(same) { None } else { Some(next) })
    }

    /// The same roots, of which some (SHA-256 of their DER) are tainted: what they have signed is good, and to be renewed
    /// at once. It is not part of the JWK Set form.
    pub fn with_tainted(mut self, roots: impl IntoIterator<Item = [u8; 32]>) -> Self {
        let known: BTreeSet<_> = self.fingerprints().into_iter().collect();
        self.tainted = roots.into_iter().filter(|root| known.contains(root)).collect();
        self
    }

    /// SHA-256 of the DER of each tainted root.
    pub fn tainted(&self) -> &BTreeSet<[u8; 32]> {
        &self.tainted
    }

    /// Whether `chain`, leaf first and without its root, was signed under a tainted root.
    ///
    /// It is not verified otherwise: this is for one's own chain, and for what one has issued.
    pub fn taints(&self, chain: &[CertificateDer<'_>]) -> bool {
        if self.tainted.is_empty() {
            return false;
        }
        let top = chain.last().map(|der| (Certificate::parse(der), Signed::parse(der)));
        let Some((Ok(top), Ok(signed))) = top else { return false };
        let signs = |root: &Root| {
            Certificate::parse(&root.certificate).is_ok_and(|root| {
                root.subject == top.issuer
                    && profile::names_issuer(&top, &root).unwrap_or(false)
                    && signed.is_signed_with(root.spki, SIGNATURES.all)
            })
        };
        let tainted = |root: &&Root| self.tainted.contains(&fingerprint(&root.certificate));
        self.roots.iter().filter(tainted).any(signs)
    }

    /// The same roots with a hint how often consumers should ask again, clamped to the honoured range.
    pub fn with_refresh_hint(mut self, hint: Duration) -> Self {
        self.refresh_hint = Some(hint.clamp(MIN_REFRESH_HINT, MAX_REFRESH_HINT));
        self
    }

    /// The trust domain that the roots vouch for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The sequence number, 0 where the publisher gives none.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// How often to ask for a newer bundle, if the publisher says so.
    pub fn refresh_hint(&self) -> Option<Duration> {
        self.refresh_hint
    }

    /// The root certificates, DER, whether or not they have expired.
    pub fn roots(&self) -> impl ExactSizeIterator<Item = &CertificateDer<'static>> {
        self.roots.iter().map(|root| &root.certificate)
    }

    /// SHA-256 of each root's DER, in the order of [`TrustBundle::roots`].
    pub fn fingerprints(&self) -> Vec<[u8; 32]> {
        self.roots.iter().map(|root| fingerprint(&root.certificate)).collect()
    }

    /// When each root is valid, in the order of [`TrustBundle::roots`].
    pub fn validities(&self) -> Vec<Validity> {
        let validity = |root: &Root| Validity { not_before: root.not_before, not_after: root.not_after };
        self.roots.iter().map(validity).collect()
    }

    /// The roots that chains may end in at `now`.
    ///
    /// webpki's anchors carry no validity, so an expired root must be left out here (CERT-27).
    pub fn anchors(&self, now: SystemTime) -> Vec<TrustAnchor<'static>> {
        self.roots.iter().filter(|root| now < root.not_after).map(|root| root.anchor.clone()).collect()
    }

    /// The certificates of the root that `anchor` stands for: one, or several of the same name and key.
    pub(crate) fn certificates_of(
        &self,
        anchor: &TrustAnchor<'_>,
    ) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.roots.iter().filter(|root| root.anchor == *anchor).map(|root| &root.certificate)
    }

    /// Whether a root is here of which a chain has named one of `authority_key_ids` as its issuer; of a chain that names
    /// none this cannot be said, and it counts as such.
    ///
    /// For what was verified when it came and is not at hand any more: a root that has left takes it along.
    pub fn has_key_of(&self, authority_key_ids: &[Vec<u8>]) -> bool {
        let names = |root: &Root| {
            let parsed = Certificate::parse(&root.certificate).ok();
            let own = parsed.as_ref().and_then(|root| root.subject_key_id().ok().flatten());
            own.is_none_or(|own| authority_key_ids.iter().any(|id| id == own))
        };
        authority_key_ids.is_empty() || self.roots.iter().any(names)
    }

    /// When the last of the roots expires; `None` without roots.
    pub fn last_expiry(&self) -> Option<SystemTime> {
        self.roots.iter().map(|root| root.not_after).max()
    }

    fn shares_key_with(&self, other: &Self) -> bool {
        let key = |root: &Root| root.anchor.subject_public_key_info.clone();
        self.roots.iter().any(|root| other.roots.iter().any(|theirs| key(theirs) == key(root)))
    }
}

impl Root {
    fn parse(certificate: CertificateDer<'static>) -> Result<Self, SvidError> {
        let parsed = Certificate::parse(&certificate)?;
        profile::check_root(&parsed)?;
        let (not_before, not_after) = (parsed.not_before, parsed.not_after);
        let anchor =
            webpki::anchor_from_trusted_cert(&certificate).map_err(|_| SvidError::Malformed)?.to_owned();
        Ok(Self { certificate, anchor, not_before, not_after })
    }
}

/// The bundles of all trust domains that are trusted, one per domain, and who is denied all the same. Cheap to clone.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TrustBundles {
    bundles: BTreeMap<TrustDomain, Arc<TrustBundle>>,
    denied: Denylist,
}

impl TrustBundles {
    /// Trusts nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `bundle` in place of the one its trust domain had.
    ///
    /// # Errors
    ///
    /// [`BundleError::SharedKey`] if a root's key is in another trust domain's bundle: it could then
    /// vouch for both (BU-09). Nothing is changed.
    pub fn insert(&mut self, bundle: TrustBundle) -> Result<(), BundleError> {
        let domain = bundle.trust_domain();
        let clash = self
            .bundles
            .values()
            .find(|other| other.trust_domain() != domain && bundle.shares_key_with(other));
        if let Some(other) = clash {
            let other = other.trust_domain().clone();
            return Err(BundleError::SharedKey { domain: domain.clone(), other });
        }
        self.bundles.insert(domain.clone(), Arc::new(bundle));
        Ok(())
    }

    /// Stops trusting `domain`; gives what was trusted.
    pub fn remove(&mut self, domain: &TrustDomain) -> Option<Arc<TrustBundle>> {
        self.bundles.remove(domain)
    }

    /// The bundle of `domain`, and of no other (X5-17).
    pub fn get(&self, domain: &TrustDomain) -> Option<&Arc<TrustBundle>> {
        self.bundles.get(domain)
    }

    /// The same bundles, with `denied` refused whatever they vouch for.
    #[must_use]
    pub fn denying(self, denied: Denylist) -> Self {
        Self { denied, ..self }
    }

    /// Who is refused whatever the bundles vouch for.
    pub fn denied(&self) -> &Denylist {
        &self.denied
    }

    /// All bundles, in the order of their trust domains' names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<TrustBundle>> {
        self.bundles.values()
    }
}

impl From<TrustBundle> for TrustBundles {
    fn from(bundle: TrustBundle) -> Self {
        let bundles = BTreeMap::from([(bundle.trust_domain().clone(), Arc::new(bundle))]);
        Self { bundles, denied: Denylist::new() }
    }
}

#[cfg(test)]
#[cfg(feature = "ca")]
mod tests;
