//! Certificates as bytes: a strict reader of the fields that the X509-SVID profile speaks about.
//!
//! Owns the syntax. What the fields must say is `svid.rs` (the profile) and `tls/verifier.rs` (the
//! path). Signatures of chains are checked by rustls-webpki, which reads the same bytes on its own, so
//! that a certificate is accepted only where two readers agree.

pub(crate) mod certificate;
pub(crate) mod der;
pub(crate) mod oid;
pub(crate) mod pem;
pub(crate) mod public_key;
pub(crate) mod syntax;
pub(crate) mod time;

use aws_lc_rs::digest;

/// SHA-256 of `bytes`: the fingerprint of a certificate is that of its DER.
pub fn fingerprint(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}
