//! What the wire said, as a class: resets, refusals, closed tunnels, dials and handshakes that failed.
//!
//! Owns the rows of [`super`]'s table that begin at the overlay. All matches are exhaustive.

use weft_overlay::{
    AcceptError, By, CloseCode, CloseReason, DialError, OpenError, OpeningError, PeerCode, Refused,
    ResetCode, StreamError, TlsAlert, pool::PoolError,
};
use weft_policy::code::{self, CodeId};

use super::{Class, Retry};

/// The alert of a handshake without a certificate (RFC 8446 section 6.2).
const CERTIFICATE_REQUIRED: TlsAlert = TlsAlert(116);

/// The catalogue's code of a reset.
#[must_use]
pub const fn code_of(reset: ResetCode) -> CodeId {
    match reset {
        ResetCode::Cancelled => code::PEER_CLOSED,
        ResetCode::PolicyDenied => code::NO_ALLOW,
        ResetCode::PolicyChanged => code::REVOKED_BY_POLICY,
        ResetCode::IdentityRevoked => code::IDENTITY_REVOKED,
        ResetCode::IdentityExpired => code::OWN_SVID_EXPIRED,
        ResetCode::AuthorityRevoked => code::AUTHORITY_REVOKED,
        ResetCode::TrustDomainRemoved => code::UNKNOWN_TRUST_DOMAIN,
        ResetCode::NodeBanned => code::IDENTITY_BANNED,
        ResetCode::Drain => code::DRAINING,
        ResetCode::NoRoute | ResetCode::WrongEndpoint => code::UNKNOWN_ENDPOINT,
        ResetCode::Unreachable => code::NO_ENDPOINT,
        ResetCode::UpstreamRefused => code::PROGRAM_REFUSED,
        ResetCode::UpstreamTimeout => code::PROGRAM_TIMEOUT,
        ResetCode::UpstreamReset => code::PROGRAM_RESET,
        ResetCode::Overloaded | ResetCode::FlowLimit => code::OVERLOADED,
        ResetCode::Stalled => code::STALLED,
        ResetCode::Idle => code::IDLE_TIMEOUT,
        ResetCode::Protocol => code::PROTOCOL_ERROR,
        ResetCode::UnsupportedVersion => code::BAD_STREAM_HEADER,
        ResetCode::Internal => code::INTERNAL,
    }
}

/// Whether another endpoint may say otherwise.
const fn retry_after(reset: ResetCode) -> Retry {
    match reset {
        ResetCode::Drain
        | ResetCode::NoRoute
        | ResetCode::WrongEndpoint
        | ResetCode::Unreachable
        | ResetCode::UpstreamRefused
        | ResetCode::UpstreamTimeout
        | ResetCode::Overloaded
        | ResetCode::FlowLimit
        | ResetCode::UnsupportedVersion
        | ResetCode::IdentityExpired
        | ResetCode::Internal => Retry::OtherEndpoint,
        ResetCode::Cancelled
        | ResetCode::PolicyDenied
        | ResetCode::PolicyChanged
        | ResetCode::IdentityRevoked
        | ResetCode::AuthorityRevoked
        | ResetCode::TrustDomainRemoved
        | ResetCode::NodeBanned
        | ResetCode::UpstreamReset
        | ResetCode::Stalled
        | ResetCode::Idle
        | ResetCode::Protocol => Retry::Never,
    }
}

fn of_reset(reset: PeerCode<ResetCode>) -> Class {
    match reset {
        PeerCode::Known(reset) => Class::new(reset, reset.name(), retry_after(reset), code_of(reset)),
        PeerCode::Unknown(_) => {
            Class::new(ResetCode::Cancelled, "unknown_code", Retry::Never, code::PEER_CLOSED)
        }
    }
}

/// A refusal names its own code, if this version knows it.
pub(super) fn of_refusal(refused: &Refused) -> Class {
    let class = of_reset(refused.code);
    refused.error.parse().map_or(class, |code| Class { code, ..class })
}

pub(super) fn of_stream(error: &StreamError) -> Class {
    match error {
        StreamError::Refused(refused) => of_refusal(refused),
        StreamError::Reset(code) | StreamError::Stopped(code) => of_reset(*code),
        StreamError::TunnelClosed(reason) => Class { retry: Retry::OtherEndpoint, ..of_close(reason) },
        StreamError::Reply(_) => {
            Class::new(ResetCode::Protocol, "malformed_reply", Retry::OtherEndpoint, code::PROTOCOL_ERROR)
        }
        StreamError::Ended => Class::new(ResetCode::Internal, "ended", Retry::Never, code::INTERNAL),
    }
}

pub(super) fn of_opening(error: &OpeningError) -> Class {
    let never = Retry::Never;
    match error {
        OpeningError::Header(_) | OpeningError::Truncated => {
            Class::new(ResetCode::Protocol, "bad_header", never, code::BAD_STREAM_HEADER)
        }
        OpeningError::Timeout { .. } => {
            Class::new(ResetCode::Idle, "header_timeout", never, code::BAD_STREAM_HEADER)
        }
        OpeningError::Stream(error) => of_stream(error),
    }
}

pub(super) fn of_pool(error: &PoolError) -> Class {
    let other = Retry::OtherEndpoint;
    match error {
        PoolError::Dial(error) => of_dial(error),
        PoolError::Open(OpenError::TunnelClosed(reason)) => Class { retry: other, ..of_close(reason) },
        PoolError::Open(OpenError::Draining) => {
            Class::new(ResetCode::Drain, "tunnel_draining", other, code::DRAINING)
        }
        PoolError::Open(OpenError::FlowLimit { .. }) => {
            Class::new(ResetCode::FlowLimit, "flow_limit", other, code::OVERLOADED)
        }
        PoolError::Full { .. } => {
            Class::new(ResetCode::Overloaded, "pool_full", Retry::Never, code::TOO_MANY_TUNNELS)
        }
        PoolError::Crowded { .. } => {
            Class::new(ResetCode::Overloaded, "dial_crowded", other, code::TOO_MANY_TUNNELS)
        }
        PoolError::Closing => Class::new(ResetCode::Drain, "closing", Retry::Never, code::DRAINING),
    }
}

fn of_dial(error: &DialError) -> Class {
    let other = Retry::OtherEndpoint;
    let unreachable = ResetCode::Unreachable;
    match error {
        DialError::NoAddress | DialError::Invalid { .. } => {
            Class::new(unreachable, "no_address", other, code::NO_USABLE_ADDRESS)
        }
        DialError::Blocked { .. } => Class::new(unreachable, "blocked", other, code::TUNNEL_BLOCKED),
        DialError::HandshakeTimeout { .. } => {
            Class::new(unreachable, "handshake_timeout", other, code::TUNNEL_REFUSED)
        }
        DialError::Refused { reason, .. } => Class { reset: unreachable, retry: other, ..of_close(reason) },
        DialError::Identity { .. } => Class::new(unreachable, "bad_identity", other, code::BAD_CERTIFICATE),
        DialError::Config(_) => Class::new(ResetCode::Internal, "tls_config", Retry::Never, code::INTERNAL),
        DialError::Closing => Class::new(ResetCode::Drain, "closing", Retry::Never, code::DRAINING),
    }
}

/// A tunnel that closed. Whether another endpoint may be tried depends on when, so the callers say.
fn of_close(reason: &CloseReason) -> Class {
    let (reset, code) = match reason {
        CloseReason::Closed { code: PeerCode::Known(close), .. } => of_close_code(*close),
        CloseReason::Closed { code: PeerCode::Unknown(_), .. } => (ResetCode::Cancelled, code::TUNNEL_LOST),
        CloseReason::Tls { by: By::Us, alert, .. } => {
            (ResetCode::Unreachable, refused_certificate(reason.label(), *alert))
        }
        // Two alerts say what the other end has against us; its words choose no code.
        CloseReason::Tls { by: By::Peer, alert: TlsAlert::CERTIFICATE_REVOKED, .. } => {
            (ResetCode::IdentityRevoked, code::IDENTITY_REVOKED)
        }
        CloseReason::Tls { by: By::Peer, alert: TlsAlert::ACCESS_DENIED, .. } => {
            (ResetCode::NodeBanned, code::IDENTITY_BANNED)
        }
        CloseReason::Tls { by: By::Peer, .. } => (ResetCode::Unreachable, code::HANDSHAKE_FAILED),
        CloseReason::TimedOut | CloseReason::Restarted => (ResetCode::Unreachable, code::TUNNEL_LOST),
        CloseReason::Transport { .. } => (ResetCode::Unreachable, code::PROTOCOL_ERROR),
    };
    Class::new(reset, reason.label(), Retry::Never, code)
}

const fn of_close_code(close: CloseCode) -> (ResetCode, CodeId) {
    match close {
        CloseCode::Done | CloseCode::Idle | CloseCode::Replaced | CloseCode::Shutdown => {
            (ResetCode::Cancelled, code::TUNNEL_LOST)
        }
        CloseCode::Drain => (ResetCode::Drain, code::DRAINING),
        CloseCode::IdentityRevoked => (ResetCode::IdentityRevoked, code::IDENTITY_REVOKED),
        CloseCode::IdentityExpired => (ResetCode::IdentityExpired, code::OWN_SVID_EXPIRED),
        CloseCode::AuthorityRevoked => (ResetCode::AuthorityRevoked, code::AUTHORITY_REVOKED),
        CloseCode::TrustDomainRemoved => (ResetCode::TrustDomainRemoved, code::UNKNOWN_TRUST_DOMAIN),
        CloseCode::NodeBanned => (ResetCode::NodeBanned, code::IDENTITY_BANNED),
        CloseCode::PolicyDenied => (ResetCode::PolicyDenied, code::NO_ALLOW),
        CloseCode::OlderBoot => (ResetCode::Cancelled, code::OLDER_BOOT),
        CloseCode::Protocol => (ResetCode::Protocol, code::PROTOCOL_ERROR),
        CloseCode::TooManyTunnels | CloseCode::TooManyHandshakes => {
            (ResetCode::Overloaded, code::TOO_MANY_TUNNELS)
        }
        CloseCode::ExcessiveLoad => (ResetCode::Overloaded, code::OVERLOADED),
        CloseCode::Internal => (ResetCode::Internal, code::INTERNAL),
    }
}

/// The code of a handshake that this end refused; `label` is that of [`CloseReason::label`], which names what
/// `weft_identity` found against the certificate.
fn refused_certificate(label: &str, alert: TlsAlert) -> CodeId {
    match label {
        "not_an_svid" => code::BAD_CERTIFICATE,
        "unknown_trust_domain" => code::UNKNOWN_TRUST_DOMAIN,
        "not_yet_valid" => code::PEER_NOT_YET_VALID,
        "expired" => code::PEER_EXPIRED,
        "no_root" | "bad_authority" | "untrusted" | "unknown_root" => code::UNTRUSTED_CHAIN,
        "unexpected_identity" => code::WRONG_PEER,
        "identity_revoked" => code::IDENTITY_REVOKED,
        "node_banned" => code::IDENTITY_BANNED,
        _ if alert == CERTIFICATE_REQUIRED => code::NO_CERTIFICATE,
        _ => code::HANDSHAKE_FAILED,
    }
}

/// The code of a handshake that did not become a tunnel here, for the log.
pub(crate) fn code_of_accept(error: &AcceptError) -> CodeId {
    match error {
        AcceptError::Refused(reason) => of_close(reason).code,
        AcceptError::Timeout { .. } => code::HANDSHAKE_FAILED,
        AcceptError::Identity(_) => code::BAD_CERTIFICATE,
        AcceptError::Protocol => code::PROTOCOL_ERROR,
        AcceptError::Displaced | AcceptError::OverLimit { .. } => code::TOO_MANY_TUNNELS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_endpoint_cannot_another_may() {
        for &reset in ResetCode::ALL {
            let class = of_reset(PeerCode::Known(reset));
            assert_eq!(class.reset, reset);
            assert_eq!(class.label, reset.name());
        }
        let blocked = of_pool(&PoolError::Dial(DialError::NoAddress));
        assert_eq!((blocked.code, blocked.retry), (code::NO_USABLE_ADDRESS, Retry::OtherEndpoint));
        let closed = StreamError::TunnelClosed(CloseReason::TimedOut);
        assert_eq!(of_stream(&closed).retry, Retry::OtherEndpoint);
    }

    #[test]
    fn every_verdict_on_a_certificate_has_a_code_of_its_own() {
        let other = TlsAlert(46);
        for reason in weft_identity::tls::REASONS {
            assert_ne!(refused_certificate(reason, other), code::HANDSHAKE_FAILED, "{reason}");
        }
        assert_eq!(refused_certificate("tls_refused", CERTIFICATE_REQUIRED), code::NO_CERTIFICATE);
        assert_eq!(refused_certificate("tls_refused", other), code::HANDSHAKE_FAILED);
        let expired =
            CloseReason::Tls { by: By::Us, alert: other, detail: "refused as expired: x".to_owned() };
        assert_eq!(of_close(&expired).code, code::PEER_EXPIRED);
        let by_peer =
            CloseReason::Tls { by: By::Peer, alert: other, detail: "refused as expired: x".to_owned() };
        assert_eq!(of_close(&by_peer).code, code::HANDSHAKE_FAILED, "a peer's words choose no code");
    }
}
