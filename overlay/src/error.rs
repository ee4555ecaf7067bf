//! Why a tunnel, a flow, a dial or a handshake failed, one variant per cause that an operator would
//! treat differently.
//!
//! Text that comes from a peer is bounded and cleaned here, before anybody logs it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use quinn::{ConnectionError, ReadError, TransportErrorCode, WriteError};
use weft_identity::SpiffeId;
use weft_identity::tls::VerifyError;

use crate::code::{CloseCode, PeerCode, ResetCode};
use crate::reply::Refused;
use crate::wire::HeaderError;

/// QUIC puts a TLS alert into its error codes from here on (RFC 9001 section 4.8).
const CRYPTO_ERROR: u64 = 0x100;
/// How much of a peer's free text is kept.
const MAX_PEER_TEXT_BYTES: usize = 256;

/// Which end did it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum By {
    /// This end.
    Us,
    /// The other end.
    Peer,
}

/// Why a tunnel is no more.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CloseReason {
    /// One end closed it and said why.
    #[error("closed by {by}: {code}{}", Detail(detail))]
    Closed {
        /// Which end.
        by: By,
        /// Why.
        code: PeerCode<CloseCode>,
        /// More, for a person; bounded, and cleaned if it comes from the peer.
        detail: String,
    },
    /// The certificates did not satisfy one end. With `By::Peer` the other end refused ours.
    #[error("TLS handshake refused by {by}: {alert}{}", Detail(detail))]
    Tls {
        /// Which end refused.
        by: By,
        /// The alert.
        alert: TlsAlert,
        /// More, for a person.
        detail: String,
    },
    /// Nothing was heard for the idle timeout: the peer is gone or the network blocks UDP.
    #[error("no answer from the peer")]
    TimedOut,
    /// The peer has restarted and knows nothing of this tunnel.
    #[error("the peer restarted")]
    Restarted,
    /// QUIC itself failed.
    #[error("QUIC error, raised by {by}: {detail}")]
    Transport {
        /// Which end raised it.
        by: By,
        /// What it was.
        detail: String,
    },
}

/// A TLS alert (RFC 8446 section 6) by its number.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct TlsAlert(pub u8);

impl TlsAlert {
    /// The certificate, or what it names, is revoked.
    pub const CERTIFICATE_REVOKED: Self = Self(44);
    /// The certificate is good, and whom it was issued to is banned.
    pub const ACCESS_DENIED: Self = Self(49);
}

/// Why a read or a write of a flow failed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StreamError {
    /// The other end refused the flow before any byte of the service.
    #[error(transparent)]
    Refused(Refused),
    /// The other end gave up sending.
    #[error("reset by the peer: {0}")]
    Reset(PeerCode<ResetCode>),
    /// The other end gave up receiving.
    #[error("stopped by the peer: {0}")]
    Stopped(PeerCode<ResetCode>),
    /// The tunnel under the flow is gone.
    #[error("tunnel closed: {0}")]
    TunnelClosed(CloseReason),
    /// The first bytes back are not a reply.
    #[error("malformed reply: {0}")]
    Reply(HeaderError),
    /// This half was finished or reset by its owner.
    #[error("this half of the flow is already closed")]
    Ended,
}

/// Why a new flow could not be opened on a tunnel. No byte of the application was sent.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// The tunnel is gone; another one may serve.
    #[error("tunnel closed: {0}")]
    TunnelClosed(CloseReason),
    /// The tunnel takes no new flows; another one may serve.
    #[error("the tunnel is draining")]
    Draining,
    /// As many flows are open as the peer permits.
    #[error("the tunnel carries {flows} flows, its limit")]
    FlowLimit {
        /// How many.
        flows: usize,
    },
}

/// Why no tunnel could be made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DialError {
    /// There is no address to dial.
    #[error("the endpoint has no address")]
    NoAddress,
    /// Nobody answered: the peer is down, or the network blocks UDP.
    #[error("no answer over UDP from {addresses} within {} ms; is the peer up, and is UDP open on the way?",
        waited.as_millis())]
    Blocked {
        /// What was tried.
        addresses: Addresses,
        /// For how long.
        waited: Duration,
    },
    /// The peer answered and the handshake did not end in time.
    #[error("handshake with {address} did not end within {} ms", waited.as_millis())]
    HandshakeTimeout {
        /// Who answered.
        address: SocketAddr,
        /// For how long it was awaited.
        waited: Duration,
    },
    /// The handshake failed.
    #[error("handshake with {address} failed: {reason}")]
    Refused {
        /// Who refused, or was refused.
        address: SocketAddr,
        /// Why.
        reason: CloseReason,
    },
    /// The peer's certificate passed TLS and holds no usable identity.
    #[error("peer at {address} has no usable identity: {detail}")]
    Identity {
        /// Whose certificate.
        address: SocketAddr,
        /// What is wrong with it.
        detail: String,
    },
    /// The address or the server name cannot be dialled.
    #[error("cannot dial {address}: {detail}")]
    Invalid {
        /// What was to be dialled.
        address: SocketAddr,
        /// What is wrong.
        detail: String,
    },
    /// The TLS configuration must not be used for a tunnel.
    #[error(transparent)]
    Config(#[from] ConfigFault),
    /// This end is closing.
    #[error("this end is shutting down")]
    Closing,
}

/// Why an incoming handshake did not become a tunnel.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AcceptError {
    /// It failed.
    #[error("handshake failed: {0}")]
    Refused(CloseReason),
    /// It did not end in time.
    #[error("handshake did not end within {} ms", waited.as_millis())]
    Timeout {
        /// For how long it was awaited.
        waited: Duration,
    },
    /// The peer's certificate passed TLS and holds no usable identity.
    #[error("peer has no usable identity: {0}")]
    Identity(String),
    /// The peer speaks another protocol.
    #[error("peer speaks another protocol than weft/1")]
    Protocol,
    /// It was the oldest of too many, and a newer one took its place.
    #[error("too many handshakes under way, and this one was the oldest")]
    Displaced,
    /// The identity holds as many tunnels, or makes them as fast, as it may.
    #[error("{peer} is over its limit: {code}")]
    OverLimit {
        /// Who.
        peer: SpiffeId,
        /// Which limit.
        code: CloseCode,
    },
}

/// A TLS configuration that would break a promise of the mesh.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConfigFault {
    /// 0-RTT data can be replayed and comes before the peer is proven.
    #[error("the TLS configuration allows early data")]
    EarlyData,
    /// A resumed session does not present its certificate again.
    #[error("the TLS configuration issues session tickets")]
    Resumption,
    /// QUIC v1 protects its first packets with AES-128-GCM.
    #[error("the TLS configuration lacks TLS13_AES_128_GCM_SHA256")]
    InitialSuite,
    /// A listener or dialler of tunnels speaks `weft/1`.
    #[error("the TLS configuration does not offer the protocol weft/1")]
    Alpn,
}

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The socket cannot be used.
    #[error("cannot use the UDP socket")]
    Io(#[from] io::Error),
    /// The TLS configuration must not be used for a tunnel.
    #[error(transparent)]
    Config(#[from] ConfigFault),
    /// The settings contradict each other.
    #[error(transparent)]
    Transport(#[from] crate::transport::InvalidTransport),
}

/// Why an incoming flow did not show a header.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OpeningError {
    /// Its first bytes are not a header; the flow was reset.
    #[error("malformed header: {0}")]
    Header(HeaderError),
    /// It ended before its header was whole.
    #[error("the flow ended before its header")]
    Truncated,
    /// The header did not arrive in time; the flow was reset.
    #[error("no header within {} ms", waited.as_millis())]
    Timeout {
        /// For how long it was awaited.
        waited: Duration,
    },
    /// The flow or its tunnel broke.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// What rustls says when no certificate fits the name that was asked for.
const NOTHING_TO_SHOW: &str = "no server certificate";

impl CloseReason {
    /// This end closed with `code`.
    pub(crate) fn ours(code: CloseCode, detail: &str) -> Self {
        Self::Closed { by: By::Us, code: PeerCode::Known(code), detail: detail.to_owned() }
    }

    /// A stable word for metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Closed { code: PeerCode::Known(code), .. } => code.name(),
            Self::Closed { code: PeerCode::Unknown(_), .. } => "unknown_code",
            Self::Tls { alert: TlsAlert::CERTIFICATE_REVOKED, .. } => "identity_revoked",
            // A server that has no certificate to show gives up with the same alert.
            Self::Tls { alert: TlsAlert::ACCESS_DENIED, detail, .. } if !detail.contains(NOTHING_TO_SHOW) => {
                "node_banned"
            }
            Self::Tls { by: By::Us, detail, .. } => VerifyError::reason_in(detail).unwrap_or("tls_refused"),
            Self::Tls { by: By::Peer, .. } => "tls_refused_by_peer",
            Self::TimedOut => "timed_out",
            Self::Restarted => "restarted",
            Self::Transport { .. } => "transport",
        }
    }
}

impl From<ConnectionError> for CloseReason {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => Self::Closed {
                by: By::Peer,
                code: PeerCode::from_wire(close.error_code.into_inner()),
                detail: peer_text(&close.reason),
            },
            ConnectionError::ConnectionClosed(close) => {
                of_transport(By::Peer, close.error_code, peer_text(&close.reason))
            }
            ConnectionError::TransportError(error) => of_transport(By::Us, error.code, error.reason),
            ConnectionError::TimedOut => Self::TimedOut,
            ConnectionError::Reset => Self::Restarted,
            ConnectionError::LocallyClosed => Self::ours(CloseCode::Done, ""),
            ConnectionError::VersionMismatch => {
                Self::Transport { by: By::Peer, detail: "no common QUIC version".to_owned() }
            }
            ConnectionError::CidsExhausted => {
                Self::Transport { by: By::Us, detail: "connection IDs exhausted".to_owned() }
            }
        }
    }
}

fn of_transport(by: By, code: TransportErrorCode, detail: String) -> CloseReason {
    let number = u64::from(code);
    match u8::try_from(number.wrapping_sub(CRYPTO_ERROR)) {
        Ok(alert) => CloseReason::Tls { by, alert: TlsAlert(alert), detail },
        Err(_) if detail.is_empty() => CloseReason::Transport { by, detail: code.to_string() },
        Err(_) => CloseReason::Transport { by, detail: format!("{code}: {detail}") },
    }
}

/// At most [`MAX_PEER_TEXT_BYTES`] of printable text.
fn peer_text(bytes: &[u8]) -> String {
    let kept = &bytes[..bytes.len().min(MAX_PEER_TEXT_BYTES)];
    String::from_utf8_lossy(kept).chars().filter(|c| !c.is_control()).collect()
}

impl From<ReadError> for StreamError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Reset(PeerCode::from_wire(code.into_inner())),
            ReadError::ConnectionLost(error) => Self::TunnelClosed(error.into()),
            // Reads are ordered and 0-RTT is off: these cannot come.
            ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
                Self::Ended
            }
        }
    }
}

impl From<WriteError> for StreamError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::Stopped(PeerCode::from_wire(code.into_inner())),
            WriteError::ConnectionLost(error) => Self::TunnelClosed(error.into()),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::Ended,
        }
    }
}

impl StreamError {
    /// The code that the peer gave, if it gave one that this version knows.
    pub fn peer_code(&self) -> Option<ResetCode> {
        match self {
            Self::Refused(refused) => refused.code.known(),
            Self::Reset(code) | Self::Stopped(code) => code.known(),
            Self::TunnelClosed(_) | Self::Reply(_) | Self::Ended => None,
        }
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match &error {
            StreamError::Refused(_) => io::ErrorKind::ConnectionRefused,
            StreamError::Reset(_) => io::ErrorKind::ConnectionReset,
            StreamError::Stopped(_) => io::ErrorKind::BrokenPipe,
            StreamError::TunnelClosed(_) => io::ErrorKind::ConnectionAborted,
            StreamError::Reply(_) => io::ErrorKind::InvalidData,
            StreamError::Ended => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Us => "this end",
            Self::Peer => "the peer",
        })
    }
}

impl TlsAlert {
    /// The name of RFC 8446, for the alerts that a refused certificate or protocol causes.
    pub fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            40 => "handshake_failure",
            42 => "bad_certificate",
            43 => "unsupported_certificate",
            44 => "certificate_revoked",
            45 => "certificate_expired",
            46 => "certificate_unknown",
            47 => "illegal_parameter",
            48 => "unknown_ca",
            49 => "access_denied",
            51 => "decrypt_error",
            70 => "protocol_version",
            80 => "internal_error",
            112 => "unrecognized_name",
            116 => "certificate_required",
            120 => "no_application_protocol",
            _ => return None,
        })
    }
}

impl fmt::Display for TlsAlert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "alert {}", self.0),
        }
    }
}

/// The addresses of an endpoint, shown as a list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Addresses(pub Vec<SocketAddr>);

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, address) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            address.fmt(f)?;
        }
        Ok(())
    }
}

/// `: detail`, or nothing.
struct Detail<'a>(&'a str);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_certificate_reads_as_such() {
        let code = TransportErrorCode::crypto(48);
        let reason = of_transport(By::Peer, code, String::new());
        assert_eq!(reason.to_string(), "TLS handshake refused by the peer: unknown_ca");
        assert_eq!(reason.label(), "tls_refused_by_peer");
    }

    #[test]
    fn a_certificate_refused_here_counts_by_its_reason_and_one_refused_there_does_not() {
        let detail = rustls::Error::from(VerifyError::UnknownRoot).to_string();
        let refused = |by, detail: &str| of_transport(by, TransportErrorCode::crypto(46), detail.to_owned());
        assert_eq!(refused(By::Us, &detail).label(), "unknown_root");
        assert_eq!(refused(By::Us, "peer sent no certificates").label(), "tls_refused");
        assert_eq!(refused(By::Peer, &detail).label(), "tls_refused_by_peer", "its words choose no label");
    }

    #[test]
    fn text_of_a_peer_is_bounded_and_cleaned() {
        let hostile = [b"\x1b[31mred\n".as_slice(), &[b'x'; 2000]].concat();
        let text = peer_text(&hostile);
        assert!(text.len() <= MAX_PEER_TEXT_BYTES);
        assert!(text.starts_with("[31mredx"));
    }

    #[test]
    fn a_blocked_dial_names_udp_and_every_address() {
        let addresses = Addresses(vec!["10.0.0.1:7443".parse().unwrap(), "[::1]:7443".parse().unwrap()]);
        let error = DialError::Blocked { addresses, waited: Duration::from_secs(5) };
        assert_eq!(
            error.to_string(),
            "no answer over UDP from 10.0.0.1:7443, [::1]:7443 within 5000 ms; \
             is the peer up, and is UDP open on the way?"
        );
    }
}
