//! Tunnels: authenticated byte streams between two SPIFFE identities, over QUIC.
//!
//! The wire protocol on one page.
//!
//! - **A tunnel** is one QUIC connection with ALPN [`ALPN`] and mutual TLS 1.3 between one source and one
//!   destination identity. No resumption, no 0-RTT, no migration, no datagrams. The server name is the
//!   opaque label of an endpoint. The identity of every flow on it is the TLS identity of the connection.
//! - **A flow** is one bidirectional stream, opened by the end that dialled. First the
//!   [`StreamHeader`] says which service it wants; application bytes may follow at once. First on the way
//!   back the [`StreamReply`] accepts or refuses. FIN ends one direction cleanly; RESET_STREAM and
//!   STOP_SENDING carry a [`ResetCode`].
//! - **A control message** is a unidirectional stream: GoAway asks for no new flows.
//! - **The end** is a CONNECTION_CLOSE with a [`CloseCode`], or, after a crash, a stateless reset.
//!
//! ```text
//! Overlay::dial ─▶ Tunnel ─▶ open(header) ─▶ TunnelStream ─▶ SendHalf, RecvHalf
//! Overlay::accept ─▶ Handshake ─▶ Tunnel ─▶ accept ─▶ Opening ─▶ Incoming ─▶ accept or refuse
//! TunnelPool: one tunnel per (source, destination, addresses), made when first needed
//! ```
//!
//! Who may call whom is decided above, and bytes are moved above: this crate carries.

mod admission;
mod bucket;
mod budget;
mod clock;
mod code;
mod control;
mod crypto;
mod dial;
mod endpoint;
mod error;
mod gate;
mod header;
mod keys;
mod live;
mod load;
mod metrics;
mod opening;
pub mod pool;
mod quiet;
mod reply;
mod say;
mod socket;
mod stall;
mod stream;
mod train;
mod transport;
mod tunnel;
mod unproven;
mod wire;

#[cfg(test)]
mod tests;

pub use code::{CloseCode, PeerCode, ResetCode, UnknownCode};
pub use endpoint::{Handshake, Overlay};
pub use error::{
    AcceptError, Addresses, BindError, By, CloseReason, ConfigFault, DialError, OpenError, OpeningError,
    StreamError, TlsAlert,
};
pub use header::{HEADER_VERSION, InvalidLabel, Label, Protocol, StreamHeader, TraceContext};
pub use keys::{EndpointKeys, InvalidEndpointKeys, NoEntropy};
pub use metrics::OverlayMetrics;
pub use opening::{Incoming, Opening};
pub use pool::{PoolKey, PoolSettings, TunnelPool};
pub use reply::{Accepted, MAX_DETAIL_BYTES, PolicyRef, Refused, StreamReply};
pub use socket::{SocketBuffers, bind_udp};
pub use stall::StallGuard;
pub use stream::{Evicted, FlowHandle, RecvHalf, SendHalf, TunnelStream, Written};
pub use transport::{AdmissionSettings, InvalidTransport, LoadSettings, TransportSettings};
pub use tunnel::{Phase, Role, Tunnel, TunnelStats};
pub use wire::{HeaderError, MAX_FRAME_BYTES, Progress};

/// The application protocol of tunnels that carry flows as raw streams.
pub const ALPN: &[u8] = b"weft/1";
