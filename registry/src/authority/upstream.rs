//! The files of an upstream authority: a certificate of a company's PKI, its chain and its key.

use std::{fs::File, io::Read as _, path::Path, time::SystemTime};

use weft_identity::{ca::Upstream, spiffe::TrustDomain};
use weft_policy::code;
use zeroize::Zeroizing;

use super::AuthorityFailure;
use crate::{
    config::{Issuing, UpstreamFiles},
    private::{self, MAX_FILE_BYTES},
};

/// Reads and judges the files that the configuration names; `None` when it names none.
///
/// # Errors
///
/// [`AuthorityFailure`]: a file that is not there or open to others, or nothing that the mesh can sign under.
pub(super) fn read(
    settings: &Issuing,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<Option<Upstream>, AuthorityFailure> {
    let Some(UpstreamFiles { chain, key }) = &settings.upstream else { return Ok(None) };
    let pem = text(chain).map_err(|source| AuthorityFailure::UpstreamFile { path: chain.clone(), source })?;
    let secret = private::read(key)
        .map_err(|error| AuthorityFailure::UpstreamKey(error.to_string(), error.code()))?
        .ok_or_else(|| absent(key))?;
    // A key that is no text is no PEM, and is told as such.
    let secret = Zeroizing::new(String::from_utf8_lossy(&secret).into_owned());
    // Two leaves one after the other, so that there is time to bring another certificate.
    let least = settings.leaf_ttl * 2;
    Ok(Some(Upstream::read(&pem, &secret, trust_domain, least, now)?))
}

fn absent(key: &Path) -> AuthorityFailure {
    AuthorityFailure::UpstreamKey(format!("{} is not there", key.display()), code::UPSTREAM_REFUSED)
}

fn text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}
