//! Routes: where the connections of a service go.

use super::Metadata;
use crate::name::ServiceName;

/// A Gateway API `TCPRoute` attached to services of its namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TcpRoute {
    /// Namespace and name.
    pub metadata: Metadata,
    /// 1 to 16 services whose connections it takes.
    pub parents: Vec<ParentRef>,
    /// 1 to 16 backends; a connection goes to one by weight.
    pub backends: Vec<BackendRef>,
}

/// A service (and port) whose connections a route takes.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ParentRef {
    /// The service.
    pub service: ServiceName,
    /// One of its ports; `None` means all.
    pub port: Option<u16>,
}

/// One place a route sends connections to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BackendRef {
    /// The service.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
    /// Relative share, 0 to 1,000,000 (Gateway API); 1 by default. When all are 0 the connection is refused.
    pub weight: u32,
}
