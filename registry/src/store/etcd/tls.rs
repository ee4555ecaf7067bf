//! How etcd proves itself to a server, and the server to etcd.
//!
//! Owns the TLS configuration of the link: TLS 1.3 alone, etcd's certificate against the roots of a file, this server's
//! certificate and key from files that only it may read. These are certificates of etcd's own making, not of the mesh.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use weft_api::channel::ALPN_H2;

use crate::private::{self, PrivateError};

/// The files of TLS, all PEM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TlsFiles {
    /// The roots that etcd's certificates go back to.
    pub ca: PathBuf,
    /// The server's certificate and its key, where etcd asks for one.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or is open to others.
    #[error(transparent)]
    File(#[from] PrivateError),
    /// The operating system refuses a file that others may read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It holds nothing of the kind.
    #[error("{} holds no {expected} in PEM", path.display())]
    Empty {
        /// Which one.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// The certificates or the key cannot be used.
    #[error("{} cannot be used: {source}", path.display())]
    Unusable {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// The largest file of certificates that is read.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

impl TlsFiles {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// [`TlsError`], with the file that it is about.
    pub fn load(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(&self.ca)? {
            let unusable = |source| TlsError::Unusable { path: self.ca.clone(), source };
            roots.add(root).map_err(unusable)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|source| TlsError::Unusable { path: self.ca.clone(), source })?
            .with_root_certificates(roots);
        let mut config = match &self.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let unusable = |source| TlsError::Unusable { path: certificate.clone(), source };
                builder.with_client_auth_cert(certificates(certificate)?, read_key(key)?).map_err(unusable)?
            }
        };
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |source| TlsError::Read { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(read)?.len();
    let empty = || TlsError::Empty { path: path.to_owned(), expected: "certificate" };
    if length > MAX_FILE_BYTES {
        return Err(empty());
    }
    let text = std::fs::read(path).map_err(read)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(empty)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let missing = || TlsError::Read { path: path.to_owned(), source: std::io::ErrorKind::NotFound.into() };
    let text = private::read(path)?.ok_or_else(missing)?;
    let empty = |_| TlsError::Empty { path: path.to_owned(), expected: "private key" };
    PrivateKeyDer::from_pem_slice(&text).map_err(empty)
}
