//! TLS configurations of the baseline relays.
//!
//! Owns the settings that make the baseline a fair one: TLS 1.3, mutual, the provider and key exchange that Weft
//! uses (aws-lc-rs, X25519MLKEM768 first), and no resumption, because Weft does not resume either.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::pki;

/// The configuration of the client-side relay, from the files of [`pki::write`].
pub(crate) fn client(directory: &Path) -> Result<Arc<ClientConfig>> {
    let (chain, key) = identity(directory, "client")?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(directory)?)
        .with_client_auth_cert(chain, key)?;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The configuration of the server-side relay, from the files of [`pki::write`].
pub(crate) fn server(directory: &Path) -> Result<Arc<ServerConfig>> {
    let (chain, key) = identity(directory, "server")?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(directory)?, provider()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn roots(directory: &Path) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join(pki::ROOT))?)?;
    Ok(Arc::new(roots))
}

fn identity(directory: &Path, side: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_file_iter(directory.join(pki::chain_file(side)))?
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("cannot read the chain of {side}"))?;
    let key = PrivateKeyDer::from_pem_file(directory.join(pki::key_file(side)))?;
    Ok((chain, key))
}
