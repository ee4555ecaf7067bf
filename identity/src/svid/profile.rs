//! The X509-SVID profile as checks on single certificates (X509-SVID §2 to §5; X5-01..X5-13).
//!
//! One set of rules for both sides: the authority checks what it signed, a node what it was given, and
//! the verifier what a peer presents.

use rustls_pki_types::CertificateDer;

use super::{KeyUsageFault, MAX_CHAIN_BYTES, MAX_INTERMEDIATES, Serial, SvidError};
use crate::spiffe::{SpiffeId, SpiffeName, TrustDomain};
use crate::x509::certificate::Certificate;
use crate::x509::oid;
use crate::x509::public_key::PublicKey;

/// Bounds a presented chain before anything in it is read.
pub(crate) fn check_size(chain: &[CertificateDer<'_>]) -> Result<(), SvidError> {
    let intermediates = chain.len().saturating_sub(1);
    if intermediates > MAX_INTERMEDIATES {
        return Err(SvidError::TooManyIntermediates(intermediates));
    }
    let bytes: usize = chain.iter().map(|certificate| certificate.len()).sum();
    if bytes > MAX_CHAIN_BYTES { Err(SvidError::ChainTooLong(bytes)) } else { Ok(()) }
}

/// Checks a leaf and gives the identity that it would prove, if its signatures hold.
pub(crate) fn check_leaf(leaf: &Certificate<'_>) -> Result<SpiffeId, SvidError> {
    let id = only_uri(leaf)?;
    if leaf.is_authority()? {
        return Err(SvidError::LeafIsAuthority);
    }
    check_key_usage(leaf)?;
    if leaf.has_unknown_critical() {
        return Err(SvidError::UnknownCriticalExtension);
    }
    if leaf.not_after <= leaf.not_before {
        return Err(SvidError::EmptyValidity);
    }
    Serial::from_integer(leaf.serial)?;
    PublicKey::parse(leaf.spki)?;
    Ok(id)
}

/// X5-01, X5-04, X5-05: one URI, counted raw, and that one is a SPIFFE ID with a path.
fn only_uri(leaf: &Certificate<'_>) -> Result<SpiffeId, SvidError> {
    let names = leaf.alternative_names()?.ok_or(SvidError::NoUri)?;
    match names.uris.as_slice() {
        [] => Err(SvidError::NoUri),
        [uri] => Ok(SpiffeId::try_from(*uri)?),
        several => Err(SvidError::SeveralUris(several.len())),
    }
}

/// X5-07, strict: present, critical, digitalSignature, no signing of certificates or revocation lists.
fn check_key_usage(leaf: &Certificate<'_>) -> Result<(), SvidError> {
    let fault = match leaf.key_usage()? {
        None => KeyUsageFault::Absent,
        Some(usage) if usage.key_cert_sign || usage.crl_sign => KeyUsageFault::Signing,
        Some(usage) if !usage.digital_signature => KeyUsageFault::NoDigitalSignature,
        Some(usage) if !usage.critical => KeyUsageFault::NotCritical,
        Some(_) => return Ok(()),
    };
    Err(SvidError::KeyUsage(fault))
}

/// X5-09: an SVID of ours serves both roles. A peer's is judged by its role (X5-10).
pub(crate) fn check_leaf_purposes(leaf: &Certificate<'_>) -> Result<(), SvidError> {
    match leaf.extended_key_usage()? {
        Some(purposes) if !(purposes.contains(&oid::SERVER_AUTH) && purposes.contains(&oid::CLIENT_AUTH)) => {
            Err(SvidError::ExtendedKeyUsage)
        }
        Some(_) | None => Ok(()),
    }
}

/// Checks a certificate between leaf and root (X5-11, X5-13, CERT-21).
///
/// It may have no SPIFFE ID (an authority of a company's PKI); one that it has must be that of
/// `trust_domain`, without path. A lone `/` is let through, since the bundle specification's own example
/// has one. Other URIs say nothing about SPIFFE.
pub(crate) fn check_authority(
    authority: &Certificate<'_>,
    trust_domain: &TrustDomain,
) -> Result<(), SvidError> {
    if !authority.is_authority()? || !authority.key_usage()?.is_some_and(|usage| usage.key_cert_sign) {
        return Err(SvidError::NotAnAuthority);
    }
    if authority.has_unknown_critical() {
        return Err(SvidError::UnknownCriticalExtension);
    }
    Serial::from_integer(authority.serial)?;
    PublicKey::parse(authority.spki)?;
    let uris = authority.alternative_names()?.map(|names| names.uris).unwrap_or_default();
    let spiffe: Vec<&[u8]> = uris.into_iter().filter(|uri| looks_like_spiffe(uri)).collect();
    match spiffe.as_slice() {
        [] => Ok(()),
        [uri] if names_domain(uri, trust_domain) => Ok(()),
        _ => Err(SvidError::AuthorityId),
    }
}

/// Whether `issuer` is the certificate that `signed` says it was signed with, as far as it says anything. A key is
/// revoked by its identifier, so a certificate must not name another one (RFC 5280 §4.2.1.1).
pub(crate) fn names_issuer(signed: &Certificate<'_>, issuer: &Certificate<'_>) -> Result<bool, SvidError> {
    let stated = signed.authority_key()?;
    let own = issuer.subject_key_id()?;
    let other_key = stated.key_id.zip(own).is_some_and(|(stated, own)| stated != own);
    let other_serial = stated.serial.is_some_and(|serial| serial != issuer.serial);
    Ok(!other_key && !other_serial)
}

/// Checks a root of a bundle: an anchor is a name and a key, so its SPIFFE ID is not looked at.
pub(crate) fn check_root(root: &Certificate<'_>) -> Result<(), SvidError> {
    let may_sign = root.key_usage()?.is_none_or(|usage| usage.key_cert_sign);
    PublicKey::parse(root.spki)?;
    if root.is_authority()? && may_sign { Ok(()) } else { Err(SvidError::NotAnAuthority) }
}

fn looks_like_spiffe(uri: &[u8]) -> bool {
    uri.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"spiffe:"))
}

fn names_domain(uri: &[u8], trust_domain: &TrustDomain) -> bool {
    let Ok(text) = std::str::from_utf8(uri) else { return false };
    match text.strip_suffix('/').unwrap_or(text).parse() {
        Ok(SpiffeName::TrustDomain(domain)) => &domain == trust_domain,
        Ok(SpiffeName::Id(_)) | Err(_) => false,
    }
}
