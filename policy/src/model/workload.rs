//! Workloads and who may be one.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use weft_identity::spiffe::SpiffeId;

use super::{Locality, Metadata};
use crate::{
    name::{EndpointLabel, NodeName, ObjectName},
    pattern::IdentityPattern,
};

/// One running program behind services of its namespace. Written by agents, by hand only for things without one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Workload {
    /// Namespace and name; labels come from the enrollment.
    pub metadata: Metadata,
    /// The node whose agent reaches it.
    pub node: NodeName,
    /// Its SPIFFE ID.
    pub identity: SpiffeId,
    /// The services of its namespace that it serves; empty for a pure caller.
    pub services: Vec<ObjectName>,
    /// Where the agent reaches each port: by the service port's name or number. A bare port means 127.0.0.1.
    pub ports: BTreeMap<String, SocketAddr>,
    /// Relative share of new connections, 0 to 10,000; 1 by default.
    pub weight: u32,
    /// Where it runs.
    pub locality: Locality,
    /// Given by the server at the first registration; `None` before it.
    pub label: Option<EndpointLabel>,
    /// The uid that its programs run as: whose local connections are its own.
    pub uid: Option<u32>,
}

/// Who may get which identity, on which nodes (SPIRE's registration entry).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkloadEnrollment {
    /// The namespace bounds the identities.
    pub metadata: Metadata,
    /// 1 to 64 patterns, all under `/ns/<namespace>/`.
    pub identities: Vec<IdentityPattern>,
    /// 1 to 1,024 nodes; there is no "any node".
    pub nodes: Vec<NodeName>,
    /// Local users that may start it beside the agent's own and root; empty means only those.
    pub selectors: Vec<UnixSelector>,
    /// Services that its workloads serve; `None` means the service account's own name.
    pub services: Option<Vec<ObjectName>>,
    /// Labels that its workloads get.
    pub labels: BTreeMap<String, String>,
    /// The SVID's lifetime; `None` takes the server's.
    pub ttl: Option<Duration>,
}

/// A property of a local process, as the kernel tells it. All given parts must match.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UnixSelector {
    /// The user id.
    pub uid: Option<u32>,
    /// The user's name, resolved on the node.
    pub user: Option<String>,
}
