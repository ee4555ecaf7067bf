//! Who asks, and what that caller may do.
//!
//! [`Caller`] is put into the extensions of every request before a service sees it.

use std::{collections::BTreeSet, net::SocketAddr};

use weft_identity::{spiffe::SpiffeId, tls::PeerIdentity};
use weft_policy::name::Namespace;

/// What a caller may do. Later ones of the three roles of people include the earlier ones.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Role {
    /// Nothing that needs a role.
    Anonymous,
    /// What an agent does, for its own node.
    Node,
    /// Read.
    Viewer,
    /// Change objects, tighten defaults.
    Editor,
    /// Everything.
    Admin,
}

/// Where a request came from.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Source {
    /// The Unix socket on the server's host.
    Local {
        /// The peer's effective user, as the kernel tells it.
        uid: u32,
    },
    /// The control port.
    Remote {
        /// The peer's address, canonical.
        addr: SocketAddr,
    },
}

/// Who sent a request, proven before any service sees it.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The identity of the certificate; `None` on the Unix socket and for those who show none.
    pub identity: Option<SpiffeId>,
    /// What the caller may do, in its [`Self::scope`].
    pub role: Role,
    /// The namespaces in which the role holds; `None` means everywhere.
    pub scope: Option<BTreeSet<Namespace>>,
    /// Where the request came from.
    pub source: Source,
    /// What the handshake proved.
    pub peer: Option<PeerIdentity>,
}

impl Caller {
    /// The role that the caller has for things of `namespace`; `None` are the things of no namespace.
    #[must_use]
    pub fn role_in(&self, namespace: Option<&Namespace>) -> Role {
        match (&self.scope, namespace) {
            (None, _) => self.role,
            (Some(scope), Some(namespace)) if scope.contains(namespace) => self.role,
            (Some(_), _) => Role::Anonymous,
        }
    }
}
