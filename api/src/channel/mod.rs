//! gRPC over Weft's own TLS, and over Unix sockets, both ends.
//!
//! Owns how a connection of the control plane comes to be: accepted within bounds, proven by the rustls configs of
//! [`weft_identity::tls`] (whose SVIDs and bundles swap underneath), and handed to tonic with what is known of the peer.
//! tonic's TLS features stay off. What a peer may *do* is the planes' business.
//!
//! Invariants: TLS 1.3 and `h2` were negotiated on every TLS connection that comes out of here; nothing that happens
//! while accepting ends the accept loop; a peer that shows a certificate without a readable identity is not served.

mod client;
mod patience;
mod plain;
mod server;
mod slots;
mod unix;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use client::{
    Attempt, AttemptError, ConnectError, ConnectSettings, connect, connect_plain, connect_unix, connect_with,
};
pub use plain::{PlainPlace, PlainPlaces, PlainStream};
pub use server::{ConnectInfo, Incoming, TlsConnection, serve_incoming};
pub use slots::{ChannelStats, Connections, client_network};
pub use unix::{PeerCred, UnixConnection, UnixIncoming, bind_unix, serve_unix};

/// The protocol that both ends must negotiate (RFC 9113 §3.2).
pub const ALPN_H2: &[u8] = b"h2";

/// The largest message either side decodes, 4 MiB (security.md 9.3). Set it on each generated client and server.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Bounds on what a listener takes (security.md 9.3, API-07, API-10).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// From accept to the end of the TLS handshake; 10 s.
    pub handshake_timeout: Duration,
    /// Handshakes under way at once; further connections wait in the kernel's queue. 512.
    pub handshakes: usize,
    /// Handshakes under way from one address (IPv6: one /64); a further connection is closed. 64.
    pub handshakes_per_address: usize,
    /// Connections served at once; a further one is closed. 4,096.
    pub connections: usize,
    /// Connections served for one address (IPv6: one /64); a further one is closed. 1,024, so that a host full of
    /// agents behind one address works.
    pub connections_per_address: usize,
    /// Connections of callers without a certificate, which can only join or fetch the bundle; a further one is closed.
    /// 512, an eighth of all, so that strangers leave room for agents.
    pub anonymous: usize,
    /// The same from one address (IPv6: one /64). 64, as many as may shake hands at once.
    pub anonymous_per_address: usize,
    /// How long such a caller may stay; joining takes less than a second. 60 s.
    pub anonymous_age: Duration,
    /// Streams that one connection may have open. 64 (security.md 9.3).
    pub streams_per_connection: u32,
    /// A connection is asked to end after this time, so that clients spread over the servers. 30 min (security.md 9.3).
    pub connection_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            handshakes: 512,
            handshakes_per_address: 64,
            connections: 4_096,
            connections_per_address: 1_024,
            anonymous: 512,
            anonymous_per_address: 64,
            anonymous_age: Duration::from_secs(60),
            streams_per_connection: 64,
            connection_age: Duration::from_secs(30 * 60),
        }
    }
}

/// How long the streams of a connection may go on after [`Limits::connection_age`].
const CONNECTION_AGE_GRACE: Duration = Duration::from_secs(60);
/// Header bytes of one request (security.md 9.3).
const HEADER_LIST_BYTES: u32 = 16 * 1024;
/// Resets by the client that were not accepted yet (security.md 9.3; hyper's default, written down).
const PENDING_RESETS: usize = 20;
/// Resets that this side caused before the connection is closed (security.md 9.3).
const LOCAL_ERROR_RESETS: usize = 100;
/// A silent client is asked for a sign of life this often, and has as long to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A tonic server with the default bounds of security.md 9.3; add services and `serve_with_incoming` one of our streams.
#[must_use]
pub fn grpc_server() -> tonic::transport::Server {
    grpc_server_with(&Limits::default())
}

/// [`grpc_server`] with other bounds.
#[must_use]
pub fn grpc_server_with(limits: &Limits) -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .max_concurrent_streams(limits.streams_per_connection)
        .max_connection_age(limits.connection_age)
        .max_connection_age_grace(CONNECTION_AGE_GRACE)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(LOCAL_ERROR_RESETS))
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
}
