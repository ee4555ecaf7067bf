//! Why a flow was refused or broke, and what follows from it.
//!
//! Owns one table: each cause has exactly one [`Class`]: what the other end is told, the word in metrics, whether another
//! endpoint may be tried, and the catalogue's code. All matches are exhaustive, so a new cause asks for its class.

mod wire;

use std::{io, net::SocketAddr, time::Duration};

use weft_api::fault::Fault;
use weft_identity::spiffe::SpiffeId;
use weft_overlay::{OpeningError, Refused, ResetCode, StreamError, pool::PoolError};
use weft_policy::{
    authz::Denial,
    balance::NoEndpoint,
    code::{self, CodeId},
    name::ServiceName,
    route::NoBackend,
};

pub use self::wire::code_of;
pub(crate) use self::wire::code_of_accept;
use self::wire::{of_opening, of_pool, of_refusal, of_stream};
use crate::{
    app::fault_of,
    intercept::InterceptError,
    relay::{End, Side},
};

/// Why a flow was refused or broke. One variant per cause an operator would treat differently.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// The program's connection was not taken.
    #[error(transparent)]
    Intercept(#[from] InterceptError),
    /// The workload has no valid SVID.
    #[error("{workload} has no certificate now")]
    NoIdentity {
        /// Who should call or serve.
        workload: String,
    },
    /// The workload's SVID has expired and could not be renewed.
    #[error("the certificate of {workload} has expired, and no server has renewed it")]
    IdentityExpired {
        /// Who should call or serve.
        workload: String,
    },
    /// This agent has no snapshot yet: it knows neither services nor rules.
    #[error("this agent has no policy yet")]
    NoSnapshot,
    /// The name is the mesh's and no service has it.
    #[error("no service {name}")]
    UnknownService {
        /// The name, as a service.
        name: String,
    },
    /// The service has no such port.
    #[error("{service} has no port {}", port.map_or_else(|| "of its own choice".to_owned(), |port| port.to_string()))]
    UnknownPort {
        /// The service.
        service: ServiceName,
        /// The port asked for, if one was.
        port: Option<u16>,
    },
    /// The destination is outside the mesh, and that is not allowed.
    #[error("{destination} is outside the mesh")]
    EgressDenied {
        /// What was asked for.
        destination: String,
    },
    /// The destination outside the mesh leads inwards: to this host, its link or a metadata service.
    #[error("{destination} leads to {address}, which is not outside")]
    EgressInward {
        /// What was asked for.
        destination: String,
        /// Where it leads.
        address: std::net::IpAddr,
    },
    /// The destination outside the mesh cannot be connected.
    #[error("cannot connect {destination}")]
    EgressUnreachable {
        /// What was asked for.
        destination: String,
        /// Why.
        source: io::Error,
    },
    /// A name outside the mesh has no address.
    #[error("cannot resolve {host}")]
    NameNotResolved {
        /// The name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// Policy refuses the caller.
    #[error("{}", .0.summary())]
    Denied(Box<Denial>),
    /// The identity of a program of this host is revoked.
    #[error("{identity} is revoked")]
    Revoked {
        /// Whose.
        identity: SpiffeId,
    },
    /// A route leads nowhere.
    #[error(transparent)]
    NoBackend(#[from] NoBackend),
    /// No endpoint can take the connection.
    #[error("{service}: {reason}")]
    NoEndpoint {
        /// The service.
        service: ServiceName,
        /// Why.
        reason: NoEndpoint,
    },
    /// The endpoint's identity may not serve the service.
    #[error("{identity} may not serve {service}")]
    ForeignEndpoint {
        /// The service.
        service: ServiceName,
        /// Who announced itself for it.
        identity: SpiffeId,
    },
    /// No tunnel to the endpoint.
    #[error("no tunnel to {endpoint}")]
    NoTunnel {
        /// The endpoint's workload and node.
        endpoint: String,
        /// Why.
        source: PoolError,
    },
    /// The attempts together took longer than the connect timeout.
    #[error("not connected within {} ms", after.as_millis())]
    ConnectTimeout {
        /// The timeout.
        after: Duration,
    },
    /// The other agent refused the flow.
    #[error(transparent)]
    Refused(Refused),
    /// The flow broke before it was accepted.
    #[error(transparent)]
    Stream(StreamError),
    /// A flow came in without a header.
    #[error(transparent)]
    Opening(#[from] OpeningError),
    /// A flow came in for an endpoint that is not here.
    #[error("no endpoint {label} on this agent")]
    WrongEndpoint {
        /// The label in its header.
        label: String,
    },
    /// A flow came in for a service or port that its endpoint does not serve.
    #[error("{service}:{port} is not served by this endpoint")]
    NotServed {
        /// The service in its header.
        service: String,
        /// The port in its header.
        port: u16,
    },
    /// The program behind the service refuses the connection.
    #[error("the program at {address} refuses the connection")]
    ProgramRefused {
        /// Where it should listen.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The program behind the service does not accept in time.
    #[error("the program at {address} did not accept within {} ms", after.as_millis())]
    ProgramTimeout {
        /// Where it should listen.
        address: SocketAddr,
        /// How long it was awaited.
        after: Duration,
    },
    /// This agent takes no more flows.
    #[error("this agent takes no more flows")]
    Overloaded,
    /// This agent is stopping.
    #[error("this agent is shutting down")]
    Draining,
    /// The program went away before its connection stood.
    #[error("the program went away")]
    ProgramGone(#[source] io::Error),
}

/// What follows from a cause.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Class {
    /// What the other end is told.
    pub reset: ResetCode,
    /// The value of `error.type` in metrics and logs.
    pub label: &'static str,
    /// Whether another endpoint may be tried.
    pub retry: Retry,
    /// The catalogue's code.
    pub code: CodeId,
}

/// Whether another endpoint may be tried. Only while no byte of the program was sent: that is the caller's to know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Retry {
    /// Another one would say the same, or the flow is over.
    Never,
    /// Another one may serve.
    OtherEndpoint,
}

impl Class {
    const fn new(reset: ResetCode, label: &'static str, retry: Retry, code: CodeId) -> Self {
        Self { reset, label, retry, code }
    }
}

impl FlowError {
    /// The class of the cause.
    #[must_use]
    pub fn class(&self) -> Class {
        use Retry::{Never, OtherEndpoint};
        match self {
            Self::Intercept(error) => Class::new(ResetCode::Protocol, error.label(), Never, error.code()),
            Self::NoIdentity { .. } => {
                Class::new(ResetCode::IdentityExpired, "no_identity", Never, code::NO_SVID_YET)
            }
            Self::IdentityExpired { .. } => {
                Class::new(ResetCode::IdentityExpired, "identity_expired", Never, code::OWN_SVID_EXPIRED)
            }
            Self::NoSnapshot => Class::new(ResetCode::PolicyDenied, "no_snapshot", Never, code::NO_SNAPSHOT),
            Self::UnknownService { .. } => {
                Class::new(ResetCode::NoRoute, "unknown_service", Never, code::UNKNOWN_SERVICE)
            }
            Self::UnknownPort { .. } => {
                Class::new(ResetCode::NoRoute, "unknown_port", Never, code::UNKNOWN_PORT)
            }
            Self::EgressDenied { .. } => {
                Class::new(ResetCode::PolicyDenied, "egress_denied", Never, code::EGRESS_DENIED)
            }
            Self::EgressInward { .. } => {
                Class::new(ResetCode::PolicyDenied, "egress_inward", Never, code::EGRESS_DENIED)
            }
            Self::EgressUnreachable { .. } => {
                Class::new(ResetCode::Unreachable, "egress_unreachable", Never, code::EGRESS_UNREACHABLE)
            }
            Self::NameNotResolved { .. } => {
                Class::new(ResetCode::Unreachable, "name_not_resolved", Never, code::NAME_NOT_RESOLVED)
            }
            Self::Denied(denial) => Class::new(ResetCode::PolicyDenied, "denied", Never, denial.code),
            Self::Revoked { .. } => {
                Class::new(ResetCode::IdentityRevoked, "identity_revoked", Never, code::IDENTITY_REVOKED)
            }
            Self::NoBackend(error) => Class::new(ResetCode::NoRoute, "no_backend", Never, error.code()),
            Self::NoEndpoint { reason, .. } => {
                Class::new(ResetCode::Unreachable, no_endpoint(*reason), Never, reason.code())
            }
            Self::ForeignEndpoint { .. } => {
                let code = code::WRONG_SERVER_IDENTITY;
                Class::new(ResetCode::PolicyDenied, "foreign_endpoint", OtherEndpoint, code)
            }
            Self::NoTunnel { source, .. } => of_pool(source),
            Self::ConnectTimeout { .. } => {
                Class::new(ResetCode::UpstreamTimeout, "connect_timeout", Never, code::CONNECT_TIMEOUT)
            }
            Self::Refused(refused) => of_refusal(refused),
            Self::Stream(error) => of_stream(error),
            Self::Opening(error) => of_opening(error),
            Self::WrongEndpoint { .. } => {
                let code = code::UNKNOWN_ENDPOINT;
                Class::new(ResetCode::WrongEndpoint, "wrong_endpoint", OtherEndpoint, code)
            }
            Self::NotServed { .. } => {
                Class::new(ResetCode::NoRoute, "not_served", OtherEndpoint, code::UNKNOWN_ENDPOINT)
            }
            Self::ProgramRefused { .. } => {
                let code = code::PROGRAM_REFUSED;
                Class::new(ResetCode::UpstreamRefused, "program_refused", OtherEndpoint, code)
            }
            Self::ProgramTimeout { .. } => {
                let code = code::PROGRAM_TIMEOUT;
                Class::new(ResetCode::UpstreamTimeout, "program_timeout", OtherEndpoint, code)
            }
            Self::Overloaded => {
                Class::new(ResetCode::Overloaded, "overloaded", OtherEndpoint, code::OVERLOADED)
            }
            Self::Draining => Class::new(ResetCode::Drain, "draining", OtherEndpoint, code::DRAINING),
            Self::ProgramGone(_) => {
                Class::new(ResetCode::Cancelled, "program_gone", Never, code::PEER_CLOSED)
            }
        }
    }

    /// What the program or a person is told: this occurrence, with cause and next commands of its code.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Intercept(error) => error.fault(),
            Self::Refused(refused) => {
                let class = of_refusal(refused);
                let detail = if refused.detail.is_empty() { class.code.title() } else { &refused.detail };
                fault_of(class.code, detail)
            }
            Self::EgressInward { .. } => {
                let mut fault = Fault::new(self.class().code, self.to_string());
                fault = fault.why("egress never goes to this host, its link or a metadata service");
                fault.fix("connect without the proxy, or call it as a service:   weft call <service>")
            }
            Self::NoIdentity { .. }
            | Self::IdentityExpired { .. }
            | Self::NoSnapshot
            | Self::UnknownService { .. }
            | Self::UnknownPort { .. }
            | Self::EgressDenied { .. }
            | Self::EgressUnreachable { .. }
            | Self::NameNotResolved { .. }
            | Self::Denied(_)
            | Self::Revoked { .. }
            | Self::NoBackend(_)
            | Self::NoEndpoint { .. }
            | Self::ForeignEndpoint { .. }
            | Self::NoTunnel { .. }
            | Self::ConnectTimeout { .. }
            | Self::Stream(_)
            | Self::Opening(_)
            | Self::WrongEndpoint { .. }
            | Self::NotServed { .. }
            | Self::ProgramRefused { .. }
            | Self::ProgramTimeout { .. }
            | Self::Overloaded
            | Self::Draining
            | Self::ProgramGone(_) => {
                let mut fault = fault_of(self.class().code, self.to_string());
                let mut source = std::error::Error::source(self);
                while let Some(cause) = source {
                    fault.why.insert(0, cause.to_string());
                    source = cause.source();
                }
                fault
            }
        }
    }
}

impl From<StreamError> for FlowError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Refused(refused) => Self::Refused(refused),
            StreamError::Reset(_)
            | StreamError::Stopped(_)
            | StreamError::TunnelClosed(_)
            | StreamError::Reply(_)
            | StreamError::Ended => Self::Stream(error),
        }
    }
}

impl End {
    /// The code of a flow that ended so on `side`; `None` for a good end, and for a program that broke its own call.
    #[must_use]
    pub fn code(&self, side: Side) -> Option<CodeId> {
        match (self, side) {
            (Self::Clean, _) | (Self::App(_), Side::Caller) => None,
            (Self::App(_), Side::Service) | (Self::Neighbour(_), _) => Some(code::PROGRAM_RESET),
            (Self::Far(error), _) => Some(FlowError::from(error.clone()).class().code),
            (Self::Stalled, _) => Some(code::STALLED),
            (Self::Exchange(crate::intercept::exchange::ExchangeError::NotHttp(_)), _) => {
                Some(code::NOT_HTTP)
            }
            (Self::Exchange(_), _) => Some(code::AMBIGUOUS_REQUEST),
            (Self::Idle, _) => Some(code::IDLE_TIMEOUT),
            (Self::Unanswered, _) => Some(code::CONNECT_TIMEOUT),
            (Self::Cut(reset), _) => Some(code_of(*reset)),
        }
    }

    /// What the program that called is told of it, if it is told at all.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        if let Self::Far(error) = self {
            return Some(FlowError::from(error.clone()).fault());
        }
        let code = self.code(Side::Caller)?;
        let what = if let Self::Exchange(error) = self { error.to_string() } else { code.title().to_owned() };
        Some(fault_of(code, what))
    }
}

const fn no_endpoint(reason: NoEndpoint) -> &'static str {
    match reason {
        NoEndpoint::None => "no_endpoint",
        NoEndpoint::Exhausted => "exhausted",
        NoEndpoint::AllEjected => "all_ejected",
        NoEndpoint::BreakerOpen => "breaker_open",
    }
}

#[cfg(test)]
mod tests {
    use weft_overlay::PeerCode;

    use super::*;

    #[test]
    fn a_refusal_keeps_the_code_that_the_other_agent_named() {
        let refused = FlowError::from(StreamError::Refused(Refused::new(
            ResetCode::PolicyDenied,
            "W2105",
            "port 81 is not allowed",
        )));
        let class = refused.class();
        assert_eq!((class.code, class.retry), (code::PORT_NOT_ALLOWED, Retry::Never));
        assert_eq!(refused.fault().what, "port 81 is not allowed");

        let foreign = FlowError::Refused(Refused::new(ResetCode::Overloaded, "X1", ""));
        assert_eq!((foreign.class().code, foreign.class().retry), (code::OVERLOADED, Retry::OtherEndpoint));
        assert_eq!(foreign.fault().what, code::OVERLOADED.title());
    }

    #[test]
    fn a_fault_tells_the_chain_of_causes() {
        let error = FlowError::ProgramRefused {
            address: "127.0.0.1:8081".parse().unwrap(),
            source: io::ErrorKind::ConnectionRefused.into(),
        };
        let fault = error.fault();
        assert_eq!(fault.code.as_ref(), "W1008");
        assert!(fault.what.contains("127.0.0.1:8081"));
        assert!(fault.why[0].contains("refused"), "{:?}", fault.why);
        assert!(!fault.fix.is_empty());
    }

    #[test]
    fn only_a_good_end_has_no_code() {
        assert_eq!(End::Clean.code(Side::Service), None);
        assert_eq!(End::App(io::ErrorKind::ConnectionReset).code(Side::Caller), None);
        let reset = End::App(io::ErrorKind::ConnectionReset).code(Side::Service);
        assert_eq!(reset, Some(code::PROGRAM_RESET));
        assert_eq!(End::Cut(ResetCode::PolicyChanged).code(Side::Caller), Some(code::REVOKED_BY_POLICY));
        let far = StreamError::Reset(PeerCode::Known(ResetCode::Stalled));
        assert_eq!(End::Far(far).code(Side::Caller), Some(code::STALLED));
    }

    #[test]
    fn whoever_waits_for_a_response_is_told_what_broke_but_for_its_own_doing() {
        let told = |end: End| end.fault().map(|fault| (fault.code.to_string(), fault.what));
        assert_eq!(told(End::Clean), None);
        assert_eq!(told(End::App(io::ErrorKind::ConnectionReset)), None);
        let (code, what) = told(End::Idle).unwrap();
        assert_eq!((code.as_str(), what.as_str()), ("W1017", code::IDLE_TIMEOUT.title()));
        let refused = StreamError::Refused(Refused::new(ResetCode::PolicyDenied, "W2105", "port 81"));
        assert_eq!(told(End::Far(refused)).unwrap(), ("W2105".to_owned(), "port 81".to_owned()));
    }
}
