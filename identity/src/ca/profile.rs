//! What Weft's certificates say (RFC 5280; X509-SVID §2 to §4).
//!
//! | | root | intermediate | leaf |
//! |---|---|---|---|
//! | subject | CN | CN | empty, so the names are critical (X5-03) |
//! | URI | trust domain | trust domain (X5-13) | the workload's ID, exactly one (X5-01) |
//! | basicConstraints | cA, pathLen 1 | cA, pathLen 0 | cA false (X5-06) |
//! | keyUsage, critical | keyCertSign, cRLSign | keyCertSign, cRLSign (X5-11) | digitalSignature (X5-07, X5-08) |
//! | extendedKeyUsage | none | none | serverAuth, clientAuth (X5-09) |
//!
//! No name constraints: rustls-webpki refuses every chain with one on URIs (X5-14).

use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};
use time::OffsetDateTime;

use super::AuthorityError;
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::svid::Validity;

/// How far notBefore lies before the moment of signing, for peers whose clocks are behind
/// (security.md 3.2).
pub const BACKDATE: Duration = Duration::from_secs(60);

/// Octets of randomness in a serial number (SPIRE's choice; RFC 5280 asks for uniqueness, the CA/Browser
/// Forum for 64 bits).
const SERIAL_BYTES: usize = 16;

/// Which of the signing certificates is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Level {
    /// Self-signed; one intermediate may follow.
    Root,
    /// Signs leaves only.
    Intermediate,
}

/// A fresh serial number: 128 random bits, not zero.
pub(crate) fn serial() -> Result<[u8; SERIAL_BYTES], AuthorityError> {
    let mut octets = [0; SERIAL_BYTES];
    aws_lc_rs::rand::fill(&mut octets).map_err(|_| AuthorityError::Provider)?;
    octets[0] |= 0x01; // never zero, and never shorter than its length
    Ok(octets)
}

/// A signing certificate of `trust_domain`. `label` is for people; the serial makes the name unique, so
/// that a path never has two issuers of one name.
pub(crate) fn authority(
    level: Level,
    trust_domain: &TrustDomain,
    label: &str,
    validity: Validity,
) -> Result<CertificateParams, AuthorityError> {
    let serial = serial()?;
    let mut params = base(&serial, &trust_domain.id(), validity)?;
    let unique: String = serial[..4].iter().map(|octet| format!("{octet:02x}")).collect();
    let (name, path_length) = match level {
        Level::Root => (root_name(label), 1),
        Level::Intermediate => (format!("Weft issuer {} ", shown(label)), 0),
    };
    params.distinguished_name.push(DnType::CommonName, format!("{name}{unique}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = level == Level::Intermediate;
    Ok(params)
}

/// A CN has at most 64 characters.
fn shown(label: &str) -> String {
    label.chars().take(24).collect()
}

/// What the names of an instance's roots begin with.
pub(crate) fn root_name(label: &str) -> String {
    format!("Weft root {} ", shown(label))
}

/// The leaf of `id`.
pub(crate) fn leaf(id: &SpiffeId, validity: Validity) -> Result<CertificateParams, AuthorityError> {
    let mut params = base(&serial()?, &id.to_string(), validity)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn base(serial: &[u8], uri: &str, validity: Validity) -> Result<CertificateParams, AuthorityError> {
    let uri = Ia5String::try_from(uri).map_err(AuthorityError::Encoding)?;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.not_before = date(validity.not_before)?;
    params.not_after = date(validity.not_after)?;
    Ok(params)
}

/// Certificates count whole seconds from 1970 to 9999; outside of that the clock is wrong.
fn date(time: SystemTime) -> Result<OffsetDateTime, AuthorityError> {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| AuthorityError::Clock)?.as_secs();
    let seconds = i64::try_from(seconds).map_err(|_| AuthorityError::Clock)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| AuthorityError::Clock)
}
