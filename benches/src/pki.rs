//! Certificates of the TLS baseline: a root, an intermediate and one leaf per relay, all ECDSA P-256.
//!
//! Owns their making. They have the shape of Weft's own (leaf and intermediate on both sides, SPIFFE URI), so that
//! both handshakes sign, verify and send as much; they are not Weft's, so that the baseline runs without it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};

/// The name that the client-side relay asks for and the leaf of the server side carries.
pub(crate) const RELAY_NAME: &str = "relay.bench.internal";

/// File names below the directory given to [`write()`].
pub(crate) const ROOT: &str = "root.pem";

/// Makes the certificates and keys and writes them below `directory`, which only its owner may read.
pub(crate) fn write(directory: &Path) -> Result<()> {
    let root = CertifiedIssuer::self_signed(authority("root"), key()?)?;
    let issuer = CertifiedIssuer::signed_by(authority("intermediate"), key()?, &root)?;
    put(directory, ROOT, &root.pem())?;
    for side in ["client", "server"] {
        let leaf_key = key()?;
        let leaf = leaf(side)?.signed_by(&leaf_key, &issuer)?;
        put(directory, &chain_file(side), &format!("{}{}", leaf.pem(), issuer.pem()))?;
        put(directory, &key_file(side), &leaf_key.serialize_pem())?;
    }
    Ok(())
}

/// The chain (leaf first) of `side`.
pub(crate) fn chain_file(side: &str) -> String {
    format!("{side}.chain.pem")
}

/// The private key of `side`.
pub(crate) fn key_file(side: &str) -> String {
    format!("{side}.key.pem")
}

fn key() -> Result<KeyPair> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf(side: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(vec![RELAY_NAME.to_owned()])?;
    let id = format!("spiffe://bench.internal/ns/bench/sa/{side}");
    params.subject_alt_names.push(SanType::URI(id.try_into()?));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn put(directory: &Path, name: &str, text: &str) -> Result<()> {
    let path = directory.join(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
