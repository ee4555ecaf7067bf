//! What etcd can answer instead of doing as it is asked, and what each answer means for a write.

use std::sync::Arc;

use tonic::{Code, Status};
use weft_api::channel::ConnectError;
use weft_policy::code::{self, CodeId};

use super::super::{Revision, StoreError, StoreId};
use crate::private::PrivateError;

/// Why a store over etcd does not open, or stopped following etcd for good.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// No endpoint serves.
    #[error("etcd cannot be reached: {0}")]
    Unreachable(Failure),
    /// etcd knows neither the user nor the certificate, or lets them do less than the store needs.
    #[error("etcd does not let this server in: {0}")]
    Forbidden(Failure),
    /// The revision went back: etcd was restored from an old backup or wiped.
    #[error("etcd is at revision {current}, and {known} was seen already")]
    Behind {
        /// The newest revision that this server has seen.
        known: Revision,
        /// What etcd says now.
        current: Revision,
    },
    /// It is another store than the one that this server knows.
    #[error("etcd holds the store {found}, and this server knows {known}")]
    OtherStore {
        /// The one that it worked with.
        known: StoreId,
        /// The one that is there now.
        found: Found,
    },
    /// It is another cluster than the one that this server knows.
    #[error("this is the etcd cluster {found:016x}, and this server knows {known:016x}")]
    OtherCluster {
        /// The one that it worked with.
        known: u64,
        /// The one that answers now.
        found: u64,
    },
    /// A newer version has written it.
    #[error("the store in etcd has format {found}, which this version does not know")]
    Newer {
        /// The format that it has.
        found: String,
    },
    /// What stands there was not written by Weft.
    #[error("the store in etcd is damaged: {what}")]
    Damaged {
        /// What was found.
        what: String,
    },
    /// The state directory cannot be locked; another server of this host may use it.
    #[error("{0}")]
    Lock(Arc<super::super::embedded::OpenError>),
    /// The file with what this server knows of the store.
    #[error("{0}")]
    Mark(Arc<PrivateError>),
    /// The system has no randomness.
    #[error("the system gives no randomness")]
    Entropy,
}

/// What stands in the place of a store's identity.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// Another store.
    Store(StoreId),
    /// None: the prefix was wiped.
    Nothing,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(id) => id.fmt(f),
            Self::Nothing => f.write_str("of nobody"),
        }
    }
}

impl OpenError {
    /// Its code in the catalogue.
    #[must_use]
    pub fn code(&self) -> CodeId {
        match self {
            Self::Unreachable(_) => code::ETCD_UNREACHABLE,
            Self::Forbidden(_) => code::ETCD_FORBIDDEN,
            Self::Behind { .. } => code::STORE_BEHIND,
            Self::OtherStore { .. } | Self::OtherCluster { .. } => code::STORE_REPLACED,
            Self::Newer { .. } => code::STORE_NEWER,
            Self::Damaged { .. } => code::STORE_DAMAGED,
            Self::Lock(error) => error.code(),
            Self::Mark(error) => error.code(),
            Self::Entropy => code::ENTROPY,
        }
    }
}

/// What a call to etcd came to, if not to an answer. Cheap to clone.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// No connection.
    #[error("{0}")]
    Connect(Arc<ConnectError>),
    /// etcd or the connection to it.
    #[error("{}", .0.message())]
    Etcd(Arc<Status>),
    /// The watch ended.
    #[error("the watch ended: {0}")]
    Watch(Arc<str>),
    /// A transaction of this writer that was given up has been applied after all, so that the next one has to look again.
    #[error("a late write of this server came between")]
    Late,
    /// There is no such lease.
    #[error("no such lease")]
    NoLease,
    /// No answer in time.
    #[error("no answer within {0:?}")]
    TimedOut(std::time::Duration),
    /// The answer lacks what etcd always says.
    #[error("the answer has no header")]
    Headless,
}

/// What a failure says about the request that it answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// It was refused, and would be again.
    Refused,
    /// It was not looked at; another member, or this one a little later, may do it.
    Unserved,
    /// It may have been done.
    Unknown,
    /// The history that it asks for is gone.
    Compacted,
    /// The lease that it names does not exist.
    NoLease,
    /// etcd takes no more writes until there is room.
    Full,
    /// The user or certificate may not.
    Forbidden,
    /// The answer is larger than this side reads.
    TooLarge,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Etcd(Arc::new(status))
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::Connect(Arc::new(error))
    }
}

impl Failure {
    pub(super) fn verdict(&self) -> Verdict {
        match self {
            Self::Connect(_) => Verdict::Unserved,
            Self::TimedOut(_) | Self::Headless | Self::Watch(_) => Verdict::Unknown,
            Self::Late => Verdict::Unserved,
            Self::NoLease => Verdict::NoLease,
            Self::Etcd(status) => of_etcd(status),
        }
    }

    /// As the cause of an error of the store.
    pub(super) fn source(self) -> super::super::Cause {
        Arc::new(self)
    }

    /// What a write came to that was refused or never looked at.
    pub(super) fn unwritten(self) -> StoreError {
        StoreError::Unavailable { source: self.source() }
    }
}

/// etcd says by the text what exactly happened; the texts are part of its API (rpctypes/error.go).
fn of_etcd(status: &Status) -> Verdict {
    let says = |text: &str| status.message().contains(text);
    match status.code() {
        Code::OutOfRange if says("decoded message length too large") => Verdict::TooLarge,
        Code::OutOfRange if says("has been compacted") => Verdict::Compacted,
        Code::NotFound if says("lease not found") => Verdict::NoLease,
        Code::ResourceExhausted if says("database space exceeded") => Verdict::Full,
        // A token ends after a while, and with the member that gave it; with a new login it is looked at.
        Code::Unauthenticated if says("invalid auth token") => Verdict::Unserved,
        Code::InvalidArgument if says("auth store is old") => Verdict::Unserved,
        Code::PermissionDenied | Code::Unauthenticated => Verdict::Forbidden,
        // "authentication failed, invalid user ID or password", "user name is empty", "authentication is not enabled".
        Code::InvalidArgument if says("authentication") || says("user name") => Verdict::Forbidden,
        Code::FailedPrecondition if says("authentication is not enabled") => Verdict::Forbidden,
        // The interceptor of a member without a leader says so before anything else is done.
        Code::Unavailable if says("no leader") => Verdict::Unserved,
        Code::ResourceExhausted if says("too many requests") => Verdict::Unserved,
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::Unimplemented => Verdict::Refused,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_10_only_what_cannot_have_been_done_counts_as_not_done() {
        for (status, verdict) in [
            (Status::unavailable("etcdserver: no leader"), Verdict::Unserved),
            (Status::unavailable("etcdserver: leader changed"), Verdict::Unknown),
            (Status::unavailable("etcdserver: request timed out"), Verdict::Unknown),
            (Status::unavailable("tcp connect error"), Verdict::Unknown),
            (Status::cancelled("operation was canceled"), Verdict::Unknown),
            (Status::unknown("h2 protocol error"), Verdict::Unknown),
            (Status::invalid_argument("etcdserver: too many operations in txn request"), Verdict::Refused),
            (Status::not_found("etcdserver: requested lease not found"), Verdict::NoLease),
            (Status::resource_exhausted("etcdserver: mvcc: database space exceeded"), Verdict::Full),
            (Status::resource_exhausted("etcdserver: too many requests"), Verdict::Unserved),
            (Status::permission_denied("etcdserver: permission denied"), Verdict::Forbidden),
            (Status::unauthenticated("etcdserver: invalid auth token"), Verdict::Unserved),
            (
                Status::invalid_argument("etcdserver: authentication failed, invalid user ID or password"),
                Verdict::Forbidden,
            ),
            (
                Status::out_of_range("etcdserver: mvcc: required revision has been compacted"),
                Verdict::Compacted,
            ),
        ] {
            let text = status.message().to_owned();
            assert_eq!(Failure::from(status).verdict(), verdict, "{text}");
        }
        assert_eq!(Failure::TimedOut(std::time::Duration::from_secs(1)).verdict(), Verdict::Unknown);
    }
}
