//! What is wrong with a view, in words and codes.

use std::fmt;

use super::{MAX_POLICIES, ViewKey};
use crate::{
    code::{self, CodeId},
    name::{Namespace, ServiceName},
};

/// Why a view makes no snapshot: every fault, in the order of the keys.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the configuration is refused: {}", Listed(faults))]
pub struct SnapshotError {
    /// At least one.
    pub faults: Vec<Fault>,
}

struct Listed<'a>(&'a [Fault]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "; " };
            write!(f, "{comma}{fault}")?;
        }
        Ok(())
    }
}

/// One thing that is wrong with the whole.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Fault {
    /// There is no Mesh, so there are no defaults.
    #[error("there is no Mesh object")]
    NoMesh,
    /// The Mesh is another one's.
    #[error("the Mesh is of trust domain {found}, this is {expected}")]
    TrustDomain {
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// An endpoint without its service.
    #[error("{0}, which is not there")]
    EndpointWithoutService(ViewKey),
    /// Two workloads have one label, so a tunnel could reach either.
    #[error("{first} and {second} have the same label")]
    SameLabel {
        /// One.
        first: ViewKey,
        /// The other.
        second: ViewKey,
    },
    /// Two TrafficPolicies for one service.
    #[error("{first} and {second} both set the traffic of {service}")]
    TwoTrafficPolicies {
        /// The service.
        service: ServiceName,
        /// One.
        first: ViewKey,
        /// The other.
        second: ViewKey,
    },
    /// Two routes for one port of a service, or for all of its ports.
    #[error("{first} and {second} both take the connections of {service}{}", OnPort(*port))]
    TwoRoutes {
        /// The service.
        service: ServiceName,
        /// The port; `None` for all.
        port: Option<u16>,
        /// One.
        first: ViewKey,
        /// The other.
        second: ViewKey,
    },
    /// An object that speaks for a namespace that is not its own.
    #[error("{object} reaches into namespace {namespace}")]
    OtherNamespace {
        /// The object.
        object: ViewKey,
        /// The namespace.
        namespace: Namespace,
    },
    /// Something other than a policy cannot be read.
    #[error("{key} cannot be read: {why}")]
    Unreadable {
        /// What it is.
        key: ViewKey,
        /// Why.
        why: String,
    },
    /// More policies than a decision should have to look at.
    #[error("{service} has {count} policies, more than {MAX_POLICIES}")]
    TooManyPolicies {
        /// The service.
        service: ServiceName,
        /// How many it has.
        count: usize,
    },
}

struct OnPort(Option<u16>);

impl fmt::Display for OnPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |port| write!(f, " port {port}"))
    }
}

impl Fault {
    /// The code in the catalogue.
    #[must_use]
    pub const fn code(&self) -> CodeId {
        match self {
            Self::NoMesh | Self::EndpointWithoutService(_) => code::SNAPSHOT_REFUSED,
            Self::TrustDomain { .. } => code::IMMUTABLE,
            Self::SameLabel { .. } | Self::TwoTrafficPolicies { .. } | Self::TwoRoutes { .. } => {
                code::CONTRADICTION
            }
            Self::OtherNamespace { .. } => code::OTHER_NAMESPACE,
            Self::Unreadable { .. } => code::UNREADABLE_RECORD,
            Self::TooManyPolicies { .. } => code::OVER_LIMIT,
        }
    }
}

/// Something that was left out of a snapshot.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Notice {
    /// The endpoint's identity may not serve the service.
    #[error("{0} is left out: its identity may not serve the service")]
    WrongIdentity(ViewKey),
    /// The endpoint lacks a label that the service's selector asks for.
    #[error("{0} is left out: the service's selector does not match its labels")]
    NotSelected(ViewKey),
}

impl Notice {
    /// The code in the catalogue.
    #[must_use]
    pub const fn code(&self) -> CodeId {
        match self {
            Self::WrongIdentity(_) => code::WRONG_SERVER_IDENTITY,
            Self::NotSelected(_) => code::NO_ENDPOINT,
        }
    }
}
