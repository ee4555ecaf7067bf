//! How the connections of local programs come in, and who is behind each.
//!
//! Owns the loopback listeners of an agent and what happens on them until a connection has a proven caller and a
//! destination: then it is [`Accepted`], and the outbound corridor's. Three kinds of listener: one upstream of one
//! workload ([`upstream`]), the proxy port of one workload, and the shared proxy port ([`explicit`]).
//!
//! ```text
//! Listener::accept ─▶ Pending (looked up at once) ─▶ finish ─▶ Accepted { app, source, destination }
//!                                                        └──▶ InterceptError (the program was told)
//! ```
//!
//! Invariant: nothing is [`Accepted`] whose caller the kernel did not name.

pub mod caller;
pub mod connect;
pub mod credential;
pub mod destination;
pub mod exchange;
pub mod explicit;
pub mod forward;
pub mod http_head;
mod slots;
pub mod sock_diag;
pub mod socks5;
pub mod upstream;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::{TcpListener, TcpStream};
use weft_api::fault::Fault;
use weft_policy::code::{self, CodeId};

pub use self::{
    caller::{LocalWorkload, LocalWorkloads, Selectable, Unproven},
    credential::Credential,
    destination::Destination,
    explicit::Owner,
    http_head::HeadLimits,
    slots::Slot,
    sock_diag::{Lookup, LookupError, SocketEntry},
    upstream::Upstream,
};
use crate::{
    app::{AppStream, fault_of},
    own_sockets::OwnSockets,
    refusal::Asked,
    telemetry::Seldom,
};
use slots::Slots;

/// How long a listener rests after an error of `accept`, which is lack of files or memory: trying at once would spin.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// A connection of a local program with a proven caller.
#[derive(Debug)]
pub struct Accepted {
    /// The program's connection, and how it is answered.
    pub app: AppStream,
    /// The workload that calls.
    pub source: Arc<LocalWorkload>,
    /// Where the program connected from.
    pub peer: SocketAddr,
    /// Where it wants to go.
    pub destination: Destination,
    /// How it said so.
    pub protocol: Protocol,
    /// Its share of the agent's connections, given back when dropped.
    pub slot: Slot,
}

/// How a program said where it wants to go.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Protocol {
    /// By connecting to the listener of an upstream.
    Upstream,
    /// SOCKS5.
    Socks5,
    /// HTTP CONNECT.
    Connect,
    /// A plain HTTP request.
    Http,
}

impl Protocol {
    /// The word for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Socks5 => "socks5",
            Self::Connect => "connect",
            Self::Http => "http",
        }
    }
}

/// What all listeners of an agent share. A clone shares the same.
#[derive(Clone, Debug)]
pub struct Interception {
    lookup: Arc<Lookup>,
    limits: HeadLimits,
    slots: Slots,
    own_ports: Arc<[u16]>,
    complaints: Arc<Seldom>,
}

impl Interception {
    /// Makes what listeners share.
    ///
    /// At most `connections` of local programs live at once. `shared_port` is the proxy port that
    /// `*.weft.localhost:<port>` names as its own, beside each listener's. `own` are the agent's own connections, which
    /// are nobody's here.
    ///
    /// # Errors
    ///
    /// [`LookupError`] where the kernel cannot name callers: then no listener may be opened.
    pub fn new(
        limits: HeadLimits,
        connections: usize,
        shared_port: Option<u16>,
        own: OwnSockets,
    ) -> Result<Self, LookupError> {
        let lookup = Arc::new(Lookup::open(own)?);
        let (slots, complaints) = (Slots::new(connections), Arc::default());
        Ok(Self { lookup, limits, slots, own_ports: shared_port.into_iter().collect(), complaints })
    }

    /// A listener that speaks for `upstream`'s workload and leads to its one destination.
    #[must_use]
    pub fn upstream(&self, socket: TcpListener, upstream: Upstream) -> Listener {
        Listener { socket, shared: self.clone(), door: Door::Upstream(upstream) }
    }

    /// A proxy port.
    #[must_use]
    pub fn proxy(&self, socket: TcpListener, owner: Owner) -> Listener {
        let own = socket.local_addr().map(|address| address.port()).ok();
        let mut shared = self.clone();
        shared.own_ports = self.own_ports.iter().copied().chain(own).collect();
        Listener { socket, shared, door: Door::Proxy(owner) }
    }

    /// The lookup, for other loopback listeners that admit by user.
    #[must_use]
    pub fn lookup(&self) -> Arc<Lookup> {
        Arc::clone(&self.lookup)
    }
}

/// A loopback listener.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    shared: Interception,
    door: Door,
}

/// What a connection on a listener means.
#[derive(Clone, Debug)]
enum Door {
    Upstream(Upstream),
    Proxy(Owner),
}

impl Door {
    /// Whether a program of that user may be one of those behind it; which one is proven later.
    fn is_for(&self, uid: u32) -> bool {
        match self {
            Self::Upstream(upstream) => upstream.owner.uid == Some(uid),
            Self::Proxy(Owner::Workload(owner)) => owner.uid == Some(uid),
            Self::Proxy(Owner::Shared(all)) => all.load().iter().any(|one| one.workload.uid == Some(uid)),
        }
    }
}

impl Listener {
    /// Where it listens.
    ///
    /// # Errors
    ///
    /// When the socket is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Waits for the next connection and looks its caller up at once.
    ///
    /// Errors of `accept` are logged and waited out. Cancel-safe.
    pub async fn accept(&self) -> Pending {
        loop {
            match self.socket.accept().await {
                Ok((io, peer)) => return self.pending(io, peer),
                Err(error) => {
                    if let Some(withheld) = self.shared.complaints.now() {
                        tracing::warn!(%error, withheld, "cannot accept a local connection");
                    }
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    fn pending(&self, io: TcpStream, peer: SocketAddr) -> Pending {
        // The lookup comes before anything else: the longer it waits, the more callers have gone.
        let entry = self.shared.lookup.caller_of(&io, peer);
        let uid = entry.as_ref().ok().copied().flatten().filter(|entry| entry.inode != 0);
        let slot = self.shared.slots.take(uid.map(|entry| entry.uid).filter(|uid| self.door.is_for(*uid)));
        Pending { io, peer, entry, slot, shared: self.shared.clone(), door: self.door.clone() }
    }
}

/// A connection whose caller was looked up and whose first bytes are awaited.
#[derive(Debug)]
pub struct Pending {
    io: TcpStream,
    peer: SocketAddr,
    entry: Result<Option<SocketEntry>, LookupError>,
    slot: Option<Slot>,
    shared: Interception,
    door: Door,
}

impl Pending {
    /// Where the program connected from.
    #[must_use]
    pub const fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Proves the caller and reads where it wants to go, within the head's timeout. Dropping it resets the connection.
    ///
    /// # Errors
    ///
    /// [`InterceptError`]; the program has been told, in its protocol where it has one.
    pub async fn finish(self) -> Result<Accepted, InterceptError> {
        let Self { io, peer, entry, slot, shared, door } = self;
        // Latency of small messages matters more than their number; a failure costs nothing else.
        let _ = io.set_nodelay(true);
        let app = AppStream::raw(io);
        let slot = slot.ok_or(InterceptError::TooMany)?;
        let entry = entry?;
        let opened = match door {
            Door::Upstream(upstream) => upstream.open(app, entry)?,
            Door::Proxy(owner) => explicit::open(app, &owner, entry, &shared).await?,
        };
        let explicit::Opened { app, source, destination, protocol, request } = opened;
        let app = app.asked_by(Asked::new(&source, &destination, request));
        Ok(Accepted { app, source, peer, destination, protocol, slot })
    }
}

/// Why a local connection was not taken.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// The caller is no workload that the kernel would vouch for.
    #[error(transparent)]
    Unproven(#[from] Unproven),
    /// The kernel could not be asked.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The agent carries as many local connections as it may.
    #[error("the agent carries as many local connections as it may")]
    TooMany,
    /// The first byte begins no protocol that the port takes.
    #[error("the first byte, {0:#04x}, begins neither SOCKS5 nor an HTTP request")]
    Unknown(u8),
    /// A SOCKS5 message is wrong.
    #[error(transparent)]
    Socks(#[from] socks5::SocksError),
    /// An HTTP request is wrong.
    #[error(transparent)]
    Http(#[from] forward::ForwardError),
    /// The credential cannot be read.
    #[error("the proxy credential cannot be read")]
    Credential,
    /// The first message was not whole in time.
    #[error("no whole request within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// The program closed before its first message was whole.
    #[error("the program closed the connection before it had asked for anything")]
    Closed,
    /// Its socket failed.
    #[error("the program's connection failed")]
    Io(#[from] io::Error),
}

impl InterceptError {
    /// The catalogue's code.
    #[must_use]
    pub const fn code(&self) -> CodeId {
        match self {
            Self::Unproven(unproven) => unproven.code(),
            Self::Lookup(_) => code::CALLER_NOT_PROVEN,
            Self::TooMany => code::TOO_MANY_CONNECTIONS,
            Self::Unknown(_) => code::BAD_PROXY_REQUEST,
            Self::Socks(socks5::SocksError::Command(_)) => code::SOCKS_COMMAND,
            Self::Socks(socks5::SocksError::Credential(_)) | Self::Credential => code::BAD_PROXY_CREDENTIAL,
            Self::Socks(socks5::SocksError::Host(_)) => code::BAD_HOST,
            Self::Socks(
                socks5::SocksError::Version(_)
                | socks5::SocksError::NoMethod
                | socks5::SocksError::Destination,
            ) => code::BAD_SOCKS,
            Self::Http(error) => error.code(),
            Self::Timeout(_) => code::HEAD_TIMEOUT,
            Self::Closed | Self::Io(_) => code::PEER_CLOSED,
        }
    }

    /// The bounded word for metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Unproven(unproven) => unproven.label(),
            Self::Lookup(LookupError::OwnSocket) => "own_socket",
            Self::Lookup(LookupError::Netlink(_) | LookupError::Answer) => "lookup",
            Self::TooMany => "too_many",
            Self::Unknown(_) => "unknown_protocol",
            Self::Socks(_) => "socks",
            Self::Http(_) => "http",
            Self::Credential => "credential",
            Self::Timeout(_) => "timeout",
            Self::Closed => "closed",
            Self::Io(_) => "io",
        }
    }

    /// What the program and the log are told.
    #[must_use]
    pub fn fault(&self) -> Fault {
        fault_of(self.code(), self.to_string())
    }
}

#[cfg(test)]
mod tests;
