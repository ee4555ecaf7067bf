//! Why a flow failed, and the one table of what follows from it.
//!
//! Every cause that an operator would treat differently is a variant; [`FlowError::class`] says for each which code the
//! other agent is told, which word the metrics carry, whether another endpoint may be tried, and which row of the
//! catalogue a person reads.

use std::time::Duration;

use weft_api::fault::Fault;
use weft_overlay::{CloseReason, DialError, OpenError, PeerCode, ResetCode, StreamError, pool::PoolError};
use weft_policy::{
    authz::Denial,
    code::{self, CodeId},
    name::ServiceName,
    route::NoBackend,
};

use crate::{app::fault_of, inbound::connect::ConnectError};

/// Why a flow was refused or broke.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// The rules refuse it.
    #[error("{}", .0.summary())]
    Denied(Box<Denial>),
    /// The agent has no snapshot yet.
    #[error("this agent has no policy yet")]
    NoSnapshot,
    /// The caller has no valid SVID.
    #[error("{identity} has no valid certificate")]
    NoSvid {
        /// Who calls.
        identity: String,
    },
    /// The workload that the connection belongs to has gone.
    #[error("{workload} is no workload of this agent any more")]
    WorkloadGone {
        /// Which.
        workload: String,
    },
    /// No service of that name.
    #[error("no service {service}{}", if *server { "" } else { " is known here, and no server is connected" })]
    UnknownService {
        /// Which.
        service: ServiceName,
        /// Whether a server could be asked.
        server: bool,
    },
    /// The service has no such port.
    #[error("{service} has no {}", port.map_or_else(|| "default port".to_owned(), |port| format!("port {port}")))]
    UnknownPort {
        /// The service.
        service: ServiceName,
        /// The port asked for; `None` for the default.
        port: Option<u16>,
    },
    /// Nothing of that name is served.
    #[error("nothing serves {destination} here")]
    NoRoute {
        /// What was asked for.
        destination: String,
    },
    /// The stream names an endpoint that is not behind its tunnel.
    #[error("no endpoint {label} behind this tunnel")]
    WrongEndpoint {
        /// Its label.
        label: String,
    },
    /// A route leads nowhere.
    #[error("{0}")]
    Route(NoBackend),
    /// The agent knows as many destinations as it may.
    #[error("this agent knows as many destinations as it may")]
    TooManyDestinations,
    /// No endpoint, all ejected, or the breaker is open.
    #[error("{service}: {}", .code.title())]
    NoEndpoint {
        /// The service.
        service: ServiceName,
        /// Which of the three.
        code: CodeId,
    },
    /// The endpoint's addresses lead nowhere.
    #[error("{endpoint} advertises no address that resolves here")]
    NoAddress {
        /// Which endpoint.
        endpoint: String,
    },
    /// No tunnel.
    #[error(transparent)]
    Tunnel(#[from] PoolError),
    /// Everything together took too long.
    #[error("not connected within {waited:?}")]
    ConnectTimeout {
        /// How long.
        waited: Duration,
    },
    /// The other agent refused, or the stream broke.
    #[error(transparent)]
    Stream(StreamError),
    /// The program behind the service was not reached.
    #[error(transparent)]
    Program(ConnectError),
    /// The destination is outside the mesh, and that is denied.
    #[error("{destination} is outside the mesh, and egress is denied")]
    EgressDenied {
        /// Where it was to go.
        destination: String,
    },
    /// The destination outside the mesh does not answer.
    #[error("{destination} cannot be connected: {source}")]
    EgressUnreachable {
        /// Where it was to go.
        destination: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// As many flows live as may.
    #[error("the agent carries {limit} flows already, its limit")]
    TooManyFlows {
        /// The limit.
        limit: usize,
    },
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Draining,
    /// A rule changed and refuses the flow now.
    #[error("cut: {}", .0.as_ref().map_or_else(|| "the agent is stopping".to_owned(), |denial| denial.summary()))]
    Cut(Option<Box<Denial>>),
    /// No byte moved for too long.
    #[error("nothing moved for {idle:?}")]
    Idle {
        /// How long.
        idle: Duration,
    },
    /// The program's own connection broke.
    #[error("the program's connection broke: {source}")]
    Local {
        /// What the system said.
        source: std::io::Error,
    },
    /// A fault of this agent.
    #[error("{0}")]
    Internal(String),
}

/// Whether the flow may be tried on another endpoint, as long as no byte of it was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Retry {
    /// Another endpoint may serve.
    OtherEndpoint,
    /// It would fail everywhere, or must not be tried again.
    Never,
}

/// What follows from an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Class {
    /// What the other agent is told.
    pub reset: ResetCode,
    /// The `error.type` of metrics and logs.
    pub label: &'static str,
    /// Whether another endpoint may be tried.
    pub retry: Retry,
    /// The row of the catalogue.
    pub code: CodeId,
}

const fn class(reset: ResetCode, label: &'static str, retry: Retry, code: CodeId) -> Class {
    Class { reset, label, retry, code }
}

impl FlowError {
    /// The one table.
    #[must_use]
    pub fn class(&self) -> Class {
        use Retry::{Never, OtherEndpoint};
        match self {
            Self::Denied(denial) => class(ResetCode::PolicyDenied, "denied", Never, denial.code),
            Self::NoSnapshot => class(ResetCode::PolicyDenied, "no_snapshot", Never, code::NO_SNAPSHOT),
            Self::NoSvid { .. } => class(ResetCode::IdentityExpired, "no_svid", Never, code::NO_SVID_YET),
            Self::WorkloadGone { .. } => {
                class(ResetCode::NoRoute, "workload_gone", Never, code::IDENTITY_NOT_ON_NODE)
            }
            Self::UnknownService { .. } => class(ResetCode::NoRoute, "unknown_service", Never, code::UNKNOWN_SERVICE),
            Self::UnknownPort { .. } => class(ResetCode::NoRoute, "unknown_port", Never, code::UNKNOWN_PORT),
            Self::NoRoute { .. } => class(ResetCode::NoRoute, "no_route", OtherEndpoint, code::UNKNOWN_SERVICE),
            Self::WrongEndpoint { .. } => {
                class(ResetCode::WrongEndpoint, "wrong_endpoint", OtherEndpoint, code::UNKNOWN_ENDPOINT)
            }
            Self::Route(problem) => class(ResetCode::NoRoute, "route", Never, problem.code()),
            Self::TooManyDestinations => class(ResetCode::Overloaded, "too_many_destinations", Never, code::OVERLOADED),
            Self::NoEndpoint { code, .. } => class(ResetCode::Unreachable, "no_endpoint", Never, *code),
            Self::NoAddress { .. } => {
                class(ResetCode::Unreachable, "no_address", OtherEndpoint, code::NO_USABLE_ADDRESS)
            }
            Self::Tunnel(error) => tunnel_class(error),
            Self::ConnectTimeout { .. } => class(ResetCode::Unreachable, "connect_timeout", Never, code::CONNECT_TIMEOUT),
            Self::Stream(error) => stream_class(error),
            Self::Program(ConnectError::Refused { .. }) => {
                class(ResetCode::UpstreamRefused, "program_refused", OtherEndpoint, code::PROGRAM_REFUSED)
            }
            Self::Program(ConnectError::TimedOut { .. }) => {
                class(ResetCode::UpstreamTimeout, "program_timeout", OtherEndpoint, code::PROGRAM_TIMEOUT)
            }
            Self::EgressDenied { .. } => class(ResetCode::PolicyDenied, "egress_denied", Never, code::EGRESS_DENIED),
            Self::EgressUnreachable { .. } => {
                class(ResetCode::Unreachable, "egress_unreachable", Never, code::EGRESS_UNREACHABLE)
            }
            Self::TooManyFlows { .. } => class(ResetCode::Overloaded, "too_many_flows", OtherEndpoint, code::OVERLOADED),
            Self::Draining => class(ResetCode::Drain, "draining", OtherEndpoint, code::DRAINING),
            Self::Cut(Some(_)) => class(ResetCode::PolicyChanged, "policy_changed", Never, code::REVOKED_BY_POLICY),
            Self::Cut(None) => class(ResetCode::Drain, "drained", Never, code::DRAINING),
            Self::Idle { .. } => class(ResetCode::Idle, "idle", Never, code::IDLE_TIMEOUT),
            Self::Local { .. } => class(ResetCode::UpstreamReset, "local_reset", Never, code::PROGRAM_RESET),
            Self::Internal(_) => class(ResetCode::Internal, "internal", Never, code::INTERNAL),
        }
    }

    /// The error as the program or a person meets it.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let class = self.class();
        if let Self::Stream(StreamError::Refused(refused)) = self {
            let what = if refused.detail.is_empty() { class.code.title().to_owned() } else { refused.detail.clone() };
            return fault_of(class.code, what);
        }
        fault_of(class.code, self.to_string())
    }
}

fn tunnel_class(error: &PoolError) -> Class {
    use Retry::{Never, OtherEndpoint};
    match error {
        PoolError::Dial(error) => match error {
            DialError::Blocked { .. } => {
                class(ResetCode::Unreachable, "tunnel_blocked", OtherEndpoint, code::TUNNEL_BLOCKED)
            }
            DialError::NoAddress | DialError::Invalid { .. } => {
                class(ResetCode::Unreachable, "no_address", OtherEndpoint, code::NO_USABLE_ADDRESS)
            }
            DialError::HandshakeTimeout { .. } => {
                class(ResetCode::Unreachable, "handshake_timeout", OtherEndpoint, code::TUNNEL_BLOCKED)
            }
            DialError::Refused { reason, .. } => refused_class(reason),
            DialError::Identity { .. } => class(ResetCode::Unreachable, "wrong_peer", OtherEndpoint, code::WRONG_PEER),
            DialError::Config(_) => class(ResetCode::Internal, "internal", Never, code::INTERNAL),
            DialError::Closing => class(ResetCode::Drain, "draining", Never, code::DRAINING),
        },
        PoolError::Open(OpenError::TunnelClosed(_) | OpenError::Draining) => {
            class(ResetCode::Unreachable, "tunnel_closed", OtherEndpoint, code::TUNNEL_LOST)
        }
        PoolError::Open(OpenError::FlowLimit { .. }) => {
            class(ResetCode::FlowLimit, "flow_limit", OtherEndpoint, code::OVERLOADED)
        }
        PoolError::Full { .. } | PoolError::Crowded { .. } => {
            class(ResetCode::Overloaded, "too_many_tunnels", OtherEndpoint, code::TOO_MANY_TUNNELS)
        }
        PoolError::Closing => class(ResetCode::Drain, "draining", Never, code::DRAINING),
    }
}

/// A handshake that failed: somebody is not who the other expected, or refuses for a reason of its own.
fn refused_class(reason: &CloseReason) -> Class {
    let code = if reason.is_certificate() { code::HANDSHAKE_FAILED } else { code::TUNNEL_REFUSED };
    class(ResetCode::Unreachable, "handshake_refused", Retry::OtherEndpoint, code)
}

fn stream_class(error: &StreamError) -> Class {
    use Retry::{Never, OtherEndpoint};
    match error {
        StreamError::Refused(refused) => {
            let reset = refused.code.known().unwrap_or(ResetCode::Unreachable);
            let row = refused.error.parse::<CodeId>().unwrap_or_else(|_| code_of_reset(reset));
            let retry = match reset {
                ResetCode::Overloaded
                | ResetCode::Drain
                | ResetCode::NoRoute
                | ResetCode::WrongEndpoint
                | ResetCode::FlowLimit
                | ResetCode::UpstreamRefused
                | ResetCode::UpstreamTimeout
                | ResetCode::Unreachable => OtherEndpoint,
                ResetCode::Cancelled
                | ResetCode::PolicyDenied
                | ResetCode::PolicyChanged
                | ResetCode::IdentityRevoked
                | ResetCode::IdentityExpired
                | ResetCode::AuthorityRevoked
                | ResetCode::TrustDomainRemoved
                | ResetCode::NodeBanned
                | ResetCode::UpstreamReset
                | ResetCode::Stalled
                | ResetCode::Idle
                | ResetCode::Protocol
                | ResetCode::UnsupportedVersion
                | ResetCode::Internal => Never,
            };
            class(reset, "refused", retry, row)
        }
        StreamError::Reset(PeerCode::Known(reset)) | StreamError::Stopped(PeerCode::Known(reset)) => {
            class(*reset, reset.name(), Never, code_of_reset(*reset))
        }
        StreamError::Reset(PeerCode::Unknown(_)) | StreamError::Stopped(PeerCode::Unknown(_)) => {
            class(ResetCode::Cancelled, "reset", Never, code::PEER_CLOSED)
        }
        StreamError::TunnelClosed(_) => class(ResetCode::Unreachable, "tunnel_lost", Never, code::TUNNEL_LOST),
        StreamError::Reply(_) => class(ResetCode::Protocol, "protocol", Never, code::PROTOCOL_ERROR),
        StreamError::Ended => class(ResetCode::Cancelled, "ended", Never, code::PEER_CLOSED),
    }
}

/// The row of the catalogue for a code of the wire.
#[must_use]
pub fn code_of_reset(reset: ResetCode) -> CodeId {
    match reset {
        ResetCode::Cancelled => code::PEER_CLOSED,
        ResetCode::PolicyDenied => code::NO_ALLOW,
        ResetCode::PolicyChanged => code::REVOKED_BY_POLICY,
        ResetCode::IdentityRevoked => code::IDENTITY_REVOKED,
        ResetCode::IdentityExpired => code::PEER_EXPIRED,
        ResetCode::AuthorityRevoked => code::AUTHORITY_REVOKED,
        ResetCode::TrustDomainRemoved => code::UNKNOWN_TRUST_DOMAIN,
        ResetCode::NodeBanned => code::IDENTITY_BANNED,
        ResetCode::Drain => code::DRAINING,
        ResetCode::NoRoute => code::UNKNOWN_SERVICE,
        ResetCode::Unreachable => code::TUNNEL_LOST,
        ResetCode::UpstreamRefused => code::PROGRAM_REFUSED,
        ResetCode::UpstreamTimeout => code::PROGRAM_TIMEOUT,
        ResetCode::UpstreamReset => code::PROGRAM_RESET,
        ResetCode::Overloaded | ResetCode::FlowLimit => code::OVERLOADED,
        ResetCode::Stalled => code::STALLED,
        ResetCode::Idle => code::IDLE_TIMEOUT,
        ResetCode::Protocol | ResetCode::UnsupportedVersion => code::PROTOCOL_ERROR,
        ResetCode::WrongEndpoint => code::UNKNOWN_ENDPOINT,
        ResetCode::Internal => code::INTERNAL,
    }
}
