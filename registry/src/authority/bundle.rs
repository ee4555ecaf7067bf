//! The trust bundle as the store keeps it: the roots and a sequence number that grows with each change of them.

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use weft_identity::{
    bundle::TrustBundle,
    ca::{CertificateAuthority, is_root_of},
    spiffe::TrustDomain,
};

use super::AuthorityFailure;
use crate::{
    layout,
    store::{Compare, Entry, Expected, Op, Store, StoreError},
};

/// How often a lost race for the record is run again.
const ATTEMPTS: usize = 5;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawBundle {
    sequence: u64,
    roots: Vec<String>,
    /// SHA-256 of tainted roots.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tainted: Vec<String>,
}

/// The stored bundle of `trust_domain`; `None` before the first start.
///
/// # Errors
///
/// [`AuthorityFailure`] when it cannot be read.
pub(super) async fn stored(
    store: &dyn Store,
    trust_domain: &TrustDomain,
) -> Result<Option<TrustBundle>, AuthorityFailure> {
    let entry = store.get(&layout::bundle(trust_domain)).await?;
    entry.as_ref().map(|entry| decode(trust_domain, entry)).transpose()
}

/// Makes `own` the roots that `instance` has in the stored bundle of `trust_domain`, and returns it. Nothing is written when
/// they stand there already, unless the store was set back to a bundle before the one of sequence `highest`: then what stands
/// there is published anew with a higher one.
///
/// # Errors
///
/// [`AuthorityFailure`]; then the bundle may be the one before.
pub(super) async fn publish(
    store: &dyn Store,
    trust_domain: &TrustDomain,
    instance: &str,
    own: Own,
    highest: u64,
) -> Result<TrustBundle, AuthorityFailure> {
    let key = layout::bundle(trust_domain);
    for _ in 0..ATTEMPTS {
        let entry = store.get(&key).await?;
        let before = entry.as_ref().map(|entry| decode(trust_domain, entry)).transpose()?;
        let (roots, tainted) = beside_others(before.as_ref(), instance, &own);
        let is_behind = before.as_ref().map_or(0, TrustBundle::sequence) < highest;
        let next = if is_behind {
            let next = TrustBundle::new(trust_domain.clone(), roots, highest.saturating_add(1))?;
            Some(next.with_tainted(tainted))
        } else {
            TrustBundle::following(before.as_ref(), trust_domain.clone(), roots, tainted)?
        };
        let bundle = match (next, before) {
            (Some(next), _) => next,
            (None, Some(before)) => return Ok(before),
            (None, None) => return Err(AuthorityFailure::BundleContended),
        };
        let expected = entry.map_or(Expected::Absent, |entry| Expected::Unchanged(entry.mod_revision));
        match store.put(key.clone(), encode(&bundle), expected, None).await {
            Ok(_) => return Ok(bundle),
            Err(StoreError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(AuthorityFailure::BundleContended)
}

/// The stored bundle with one more root, and how it is written beside other things.
pub(super) async fn with_root(
    store: &dyn Store,
    trust_domain: &TrustDomain,
    root: CertificateDer<'static>,
) -> Result<(TrustBundle, (Compare, Op)), AuthorityFailure> {
    let key = layout::bundle(trust_domain);
    let entry = store.get(&key).await?.ok_or(AuthorityFailure::BundleContended)?;
    let before = decode(trust_domain, &entry)?;
    let roots = before.roots().cloned().chain([root]).collect();
    let bundle = TrustBundle::new(trust_domain.clone(), roots, before.sequence().saturating_add(1))?
        .with_tainted(before.tainted().iter().copied());
    let compare = Compare::Unchanged { key: key.clone(), mod_revision: entry.mod_revision };
    let put = Op::Put { key, value: encode(&bundle), lease: None };
    Ok((bundle, (compare, put)))
}

/// What one server has to say about the bundle.
#[derive(Clone, Debug)]
pub(super) struct Own {
    /// Its roots that are to stand there.
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// SHA-256 of those of them that are tainted.
    pub(super) tainted: Vec<[u8; 32]>,
    /// SHA-256 of every root that is or was its own: what is not among the first is to go. Roots of an upstream authority
    /// do not say whose they are.
    pub(super) known: BTreeSet<[u8; 32]>,
}

impl Own {
    /// What `ca` has to say, which has taken the place of `before`.
    pub(super) fn of(ca: &CertificateAuthority, before: Option<&CertificateAuthority>) -> Self {
        let all = ca.roots().into_iter().chain(before.into_iter().flat_map(CertificateAuthority::roots));
        let known = all.map(|root| root.fingerprint).collect();
        Self { roots: ca.bundle_roots(), tainted: ca.tainted_roots(), known }
    }
}

/// What is to stand in the bundle: the `own` roots of `instance`, and what others have there.
fn beside_others(
    before: Option<&TrustBundle>,
    instance: &str,
    own: &Own,
) -> (Vec<CertificateDer<'static>>, Vec<[u8; 32]>) {
    let mut roots = own.roots.clone();
    let mut tainted = own.tainted.clone();
    let Some(before) = before else { return (roots, tainted) };
    let is_theirs = |fingerprint: &[u8; 32]| !own.known.contains(fingerprint);
    let others = before.roots().zip(before.fingerprints());
    let others = others.filter(|(root, name)| is_theirs(name) && !is_root_of(root, instance));
    roots.extend(others.map(|(root, _)| root.clone()));
    tainted.extend(before.tainted().iter().copied().filter(is_theirs));
    (roots, tainted)
}

fn encode(bundle: &TrustBundle) -> Bytes {
    let roots = bundle.roots().map(|root| STANDARD.encode(root)).collect();
    let tainted = bundle.tainted().iter().map(|root| STANDARD.encode(root)).collect();
    let raw = RawBundle { sequence: bundle.sequence(), roots, tainted };
    serde_json::to_vec(&raw).expect("texts and numbers always serialise").into()
}

fn decode(trust_domain: &TrustDomain, entry: &Entry) -> Result<TrustBundle, AuthorityFailure> {
    let damaged = |why: String| AuthorityFailure::BundleDamaged { why };
    let raw: RawBundle = serde_json::from_slice(&entry.value).map_err(|error| damaged(error.to_string()))?;
    let root = |text: &String| STANDARD.decode(text).map(CertificateDer::from);
    let roots: Result<Vec<_>, _> = raw.roots.iter().map(root).collect();
    let roots = roots.map_err(|error| damaged(error.to_string()))?;
    let fingerprint = |text: &String| STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    let tainted: Option<Vec<[u8; 32]>> = raw.tainted.iter().map(fingerprint).collect();
    let tainted = tainted.ok_or_else(|| damaged("a tainted root is no fingerprint".to_owned()))?;
    Ok(TrustBundle::new(trust_domain.clone(), roots, raw.sequence)?.with_tainted(tainted))
}
