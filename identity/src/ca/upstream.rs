//! An authority above this one: a certificate of a company's PKI with its key, under which the mesh signs.
//!
//! Everything that a peer would find wrong with a certificate under it is found here first, when it is read: what is
//! signed later is then refused by nobody.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;

use super::authority::{SigningAuthority, load_key};
use super::{AuthorityError, CaSettings, CertificateAuthority, LeafLifetimes};
use crate::bundle::{TrustBundle, TrustBundles};
use crate::csr::SigningRequest;
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::svid::{MAX_INTERMEDIATES, SvidError, profile};
use crate::tls::{PeerRole, verify_chain};
use crate::x509::certificate::Certificate;
use crate::x509::pem;

/// The most certificates of a chain: leaves come with the mesh's own intermediate too, and the root is not presented.
const MAX_CHAIN: usize = MAX_INTERMEDIATES;

/// A certificate with its key, and the chain up to its root. `Debug` shows no key.
#[derive(Clone)]
pub struct Upstream {
    pub(super) authority: Arc<SigningAuthority>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Upstream").field("authority", &self.authority).finish()
    }
}

/// Why nothing can be signed under a chain and a key.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UpstreamError {
    /// The chain is not PEM, or has no certificate.
    #[error("the chain holds no PEM certificate")]
    Pem,
    /// The chain is longer than peers read.
    #[error("the chain has {0} certificates, at most {MAX_CHAIN} may be in it")]
    TooLong(usize),
    /// Nothing above the certificate is a root.
    #[error("the chain does not end in a self-signed root above the certificate of the key")]
    NoRoot,
    /// One of the certificates may not sign others.
    #[error("certificate {index} of the chain cannot sign others: {source}")]
    NotAuthority {
        /// Its place, from 1.
        index: usize,
        /// What is wrong.
        source: SvidError,
    },
    /// One of the certificates lets too few authorities follow.
    #[error(
        "certificate {index} of the chain lets {length} authorities follow (pathlen), {needed} are needed"
    )]
    PathLength {
        /// Its place, from 1.
        index: usize,
        /// What it says.
        length: u64,
        /// The mesh's own issuer, and those between.
        needed: u64,
    },
    /// One of the certificates is not valid yet.
    #[error("certificate {0} of the chain is not valid yet")]
    NotYetValid(usize),
    /// One of the certificates ends before it can be of use.
    #[error("certificate {index} of the chain ends in {} s, {} s are needed", left.as_secs(), needed.as_secs())]
    Expires {
        /// Its place, from 1.
        index: usize,
        /// What is left.
        left: Duration,
        /// What is needed.
        needed: Duration,
    },
    /// The key is not PKCS#8 of a kind that signs certificates.
    #[error("the key is not a PKCS#8 key of a kind that is used")]
    Key,
    /// The key is of another certificate.
    #[error("the key does not belong to the first certificate of the chain")]
    KeyMismatch,
    /// A certificate that was signed for a trial is refused by the rules for peers.
    #[error("a certificate under it would be refused: {0}")]
    Refused(String),
}

impl Upstream {
    /// Reads a chain (PEM: the certificate of the key, those above it, the self-signed root last) and its key (PKCS#8 PEM)
    /// for `trust_domain`. `least` is how long it must be valid from `now` on.
    ///
    /// # Errors
    ///
    /// [`UpstreamError`], the first thing that is wrong.
    pub fn read(
        chain_pem: &str,
        key_pem: &str,
        trust_domain: &TrustDomain,
        least: Duration,
        now: SystemTime,
    ) -> Result<Self, UpstreamError> {
        let chain = pem::certificates(chain_pem).filter(|chain| !chain.is_empty());
        let chain = chain.ok_or(UpstreamError::Pem)?;
        if chain.len() > MAX_CHAIN {
            return Err(UpstreamError::TooLong(chain.len()));
        }
        check_chain(&chain, trust_domain, least, now)?;
        let der = pem::private_key(key_pem).ok_or(UpstreamError::Key)?;
        let key = load_key(&der).map_err(|_| UpstreamError::Key)?;
        let authority = SigningAuthority::join(chain, key).map_err(|error| {
            let other_key = error == AuthorityError::KeyMismatch;
            if other_key { UpstreamError::KeyMismatch } else { UpstreamError::Refused(error.to_string()) }
        })?;
        let upstream = Self { authority: Arc::new(authority) };
        upstream.try_out(trust_domain, now)?;
        Ok(upstream)
    }

    /// The root that it leads to.
    pub fn root(&self) -> &CertificateDer<'static> {
        self.authority.root_certificate()
    }

    /// Signs a leaf as the mesh would, and judges it as a peer would: constraints and purposes of a foreign PKI are not
    /// read here, but they bind.
    fn try_out(&self, trust_domain: &TrustDomain, now: SystemTime) -> Result<(), UpstreamError> {
        let refused = |why: &dyn fmt::Display| UpstreamError::Refused(why.to_string());
        let settings = CaSettings { lifetimes: LeafLifetimes::AllowShort, ..CaSettings::default() };
        let mut trial = CertificateAuthority::create_under(self, trust_domain, "trial", settings, now)
            .map_err(|error| refused(&error))?;
        let (_, csr) = SigningRequest::create().map_err(|error| refused(&error))?;
        let request = SigningRequest::parse(&csr).map_err(|error| refused(&error))?;
        let id = SpiffeId::server(trust_domain, "trial").map_err(|error| refused(&error))?;
        let life = LeafLifetimes::AllowShort.shortest();
        let leaf = trial.issue(&request, &id, life, now).map_err(|error| refused(&error))?;
        let bundle = TrustBundle::new(trust_domain.clone(), trial.bundle_roots(), 1);
        let bundles = TrustBundles::from(bundle.map_err(|error| refused(&error))?);
        for role in [PeerRole::Server, PeerRole::Client] {
            verify_chain(&bundles, &leaf.chain, role, now).map_err(|error| refused(&error))?;
        }
        Ok(())
    }
}

fn check_chain(
    chain: &[CertificateDer<'static>],
    trust_domain: &TrustDomain,
    least: Duration,
    now: SystemTime,
) -> Result<(), UpstreamError> {
    let Some((root, below)) = chain.split_last() else { return Err(UpstreamError::Pem) };
    for (place, der) in chain.iter().enumerate() {
        let index = place + 1;
        let faulty = |source| UpstreamError::NotAuthority { index, source };
        let certificate = Certificate::parse(der).map_err(|error| faulty(error.into()))?;
        let own = if index == chain.len() {
            profile::check_root(&certificate)
        } else {
            profile::check_authority(&certificate, trust_domain)
        };
        own.map_err(faulty)?;
        let needed = u64::try_from(index).unwrap_or(u64::MAX);
        if let Some(length) = certificate.path_length().map_err(|error| faulty(error.into()))?
            && length < needed
        {
            return Err(UpstreamError::PathLength { index, length, needed });
        }
        if now < certificate.not_before {
            return Err(UpstreamError::NotYetValid(index));
        }
        let left = certificate.not_after.duration_since(now).unwrap_or_default();
        if left < least {
            return Err(UpstreamError::Expires { index, left, needed: least });
        }
    }
    let root = Certificate::parse(root).map_err(|_| UpstreamError::NoRoot)?;
    if below.is_empty() || root.subject != root.issuer { Err(UpstreamError::NoRoot) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
