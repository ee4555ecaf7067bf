//! Why a server does not start, and what to tell a person.

use std::io;

use weft_api::fault::Fault;
use weft_policy::code;

use crate::{
    audit::AuditError,
    authority::AuthorityFailure,
    bootstrap::BootstrapError,
    config::SecretError,
    listeners::ListenError,
    private::PrivateError,
    refusal::catalogued,
    roles::MethodsWithoutRole,
    seal::SealError,
    store::{StoreError, embedded::OpenError, etcd, transfer::TransferError},
};

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The store does not open.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The store in etcd does not open.
    #[error(transparent)]
    Etcd(#[from] etcd::OpenError),
    /// The store was not filled to its end, or something could not be moved into or out of it.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The records of the store are not as the server wrote them, or its key of records cannot be used.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The files with which the server proves itself to etcd.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The store cannot be read.
    #[error("the store cannot be read: {0}")]
    Read(#[from] StoreError),
    /// A listener does not open.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The directory of the socket.
    #[error(transparent)]
    RunDir(#[from] PrivateError),
    /// The audit log cannot be opened.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The authority cannot work.
    #[error(transparent)]
    Authority(#[from] AuthorityFailure),
    /// A method has no role.
    #[error(transparent)]
    Roles(#[from] MethodsWithoutRole),
    /// The TLS configuration is refused by its library.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// What stands in the store or the directory of manifests cannot be in force.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The system gives no thread.
    #[error("the server's thread cannot be started: {0}")]
    Thread(io::Error),
    /// The server ended before it was ready.
    #[error("the server ended while it was starting")]
    Ended,
}

impl ServerError {
    /// What to tell a person.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let id = match self {
            Self::Store(error) => error.code(),
            Self::Etcd(error) => error.code(),
            Self::Seal(error) => error.code(),
            Self::Secret(error) => error.code(),
            Self::Transfer(error) => error.code(),
            Self::Read(error) => error.code(),
            Self::Listen(error) => error.code(),
            Self::RunDir(_) => code::SOCKET_UNSAFE,
            Self::Audit(error) => error.code(),
            Self::Authority(error) => error.code(),
            Self::Roles(_) => code::METHOD_WITHOUT_ROLE,
            Self::Bootstrap(error) => return error.fault(),
            Self::Tls(_) | Self::Thread(_) | Self::Ended => code::INTERNAL,
        };
        let fault = catalogued(id, self.to_string());
        match std::error::Error::source(self) {
            Some(source) => fault.why(source.to_string()),
            None => fault,
        }
    }
}
