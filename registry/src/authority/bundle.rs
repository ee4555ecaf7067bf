//! The trust bundle as the store keeps it: the roots and a sequence number that grows with each change of them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use weft_identity::{bundle::TrustBundle, ca::is_root_of, spiffe::TrustDomain};

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

/// Makes `roots`, some of which are `tainted`, the ones that `instance` has in the stored bundle of `trust_domain`, and
/// returns it. Nothing is written when they stand there already.
///
/// # Errors
///
/// [`AuthorityFailure`]; then the bundle may be the one before.
pub(super) async fn publish(
    store: &dyn Store,
    trust_domain: &TrustDomain,
    instance: &str,
    roots: Vec<CertificateDer<'static>>,
    tainted: &[[u8; 32]],
) -> Result<TrustBundle, AuthorityFailure> {
    let key = layout::bundle(trust_domain);
    for _ in 0..ATTEMPTS {
        let entry = store.get(&key).await?;
        let before = entry.as_ref().map(|entry| decode(trust_domain, entry)).transpose()?;
        let (all, tainted) = beside_others(before.as_ref(), instance, &roots, tainted);
        let next = TrustBundle::following(before.as_ref(), trust_domain.clone(), all, tainted)?;
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
    let bundle = TrustBundle::new(trust_domain.clone(), roots, before.sequence().saturating_add(1))?;
    let bundle = bundle.with_tainted(before.tainted().iter().copied());
    let compare = Compare::Unchanged { key: key.clone(), mod_revision: entry.mod_revision };
    let put = Op::Put { key, value: encode(&bundle), lease: None };
    Ok((bundle, (compare, put)))
}

/// What is to stand in the bundle: the `own` roots of `instance`, and what others have there; and which of them are tainted.
fn beside_others(
    before: Option<&TrustBundle>,
    instance: &str,
    own: &[CertificateDer<'static>],
    tainted: &[[u8; 32]],
) -> (Vec<CertificateDer<'static>>, Vec<[u8; 32]>) {
    let (mut roots, mut all_tainted) = (own.to_vec(), tainted.to_vec());
    let others = before.into_iter().flat_map(|bundle| bundle.roots().zip(bundle.fingerprints()));
    for (root, fingerprint) in others.filter(|(root, _)| !is_root_of(root, instance) && !own.contains(root)) {
        roots.push(root.clone());
        let is_tainted = before.is_some_and(|bundle| bundle.tainted().contains(&fingerprint));
        all_tainted.extend(is_tainted.then_some(fingerprint));
    }
    (roots, all_tainted)
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
