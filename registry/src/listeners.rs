//! Where the server listens, and what it remembers of it.
//!
//! A port of 0 is drawn once and kept in the state directory, so that agents find a restarted server; a taken loopback
//! port moves to the next free one, since server and agent of one host have the same defaults (decisions.md, one host).
//! What came of it stands in `listeners.json`.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use weft_api::channel::bind_unix;
use weft_policy::{
    code::{self, CodeId},
    model::HostPort,
};

use crate::{
    config::Config,
    private::{self, PrivateError},
};

/// The file that tells where the server listens.
const FILE: &str = "listeners.json";
/// The name of the Unix socket.
const SOCKET: &str = "server.sock";
/// How many ports behind a taken one are tried.
const NEIGHBOURS: u16 = 64;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// The open listeners.
#[derive(Debug)]
pub struct Listeners {
    /// gRPC over TLS.
    pub control: TcpListener,
    /// Plain, for people of this host.
    pub admin: TcpListener,
    /// Plain, for Prometheus.
    pub metrics: TcpListener,
    /// gRPC for this user and root.
    pub unix: UnixListener,
    /// Their addresses.
    pub addresses: Addresses,
}

/// Where the listeners are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Addresses {
    /// gRPC over TLS.
    pub control: SocketAddr,
    /// Plain, for people of this host.
    pub admin: SocketAddr,
    /// Plain, for Prometheus.
    pub metrics: SocketAddr,
    /// gRPC for this user and root.
    pub socket: PathBuf,
}

/// What the server remembers between starts.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
struct Memory {
    control: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
}

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A port cannot be opened.
    #[error("cannot listen on {address}: {source}")]
    Port {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The Unix socket cannot be opened.
    #[error("cannot listen on {}: {source}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is remembered cannot be written or read.
    #[error(transparent)]
    Memory(#[from] PrivateError),
}

impl ListenError {
    /// Its code in the catalogue.
    #[must_use]
    pub fn code(&self) -> CodeId {
        let (kind, known) = match self {
            Self::Port { source, .. } => (source.kind(), PORT_CODES),
            Self::Socket { source, .. } => (source.kind(), SOCKET_CODES),
            Self::Memory(error) => return error.code(),
        };
        known.iter().find(|(found, _)| *found == kind).map_or(code::FILE_UNUSABLE, |(_, id)| *id)
    }
}

/// What a refused port means to a person; everything else is said in the system's words.
const PORT_CODES: &[(ErrorKind, CodeId)] = &[
    (ErrorKind::AddrInUse, code::PORT_IN_USE),
    (ErrorKind::PermissionDenied, code::PORT_NOT_PERMITTED),
    (ErrorKind::AddrNotAvailable, code::ADDRESS_NOT_LOCAL),
];
/// What a refused socket means to a person.
const SOCKET_CODES: &[(ErrorKind, CodeId)] = &[
    (ErrorKind::AddrInUse, code::STATE_IN_USE),
    (ErrorKind::AlreadyExists, code::SOCKET_UNSAFE),
    (ErrorKind::PermissionDenied, code::SOCKET_UNSAFE),
];

impl Listeners {
    /// Opens every listener of `config`. Call it within a tokio runtime, with the store open: its lock keeps a second
    /// server away.
    ///
    /// # Errors
    ///
    /// [`ListenError`], the first that cannot be opened.
    pub fn open(config: &Config) -> Result<Self, ListenError> {
        let file = config.state_dir.join(FILE);
        let memory = recall(&file);
        let control = open_control(config.listen.control, memory.control)?;
        let admin = open_loopback(config.listen.admin, memory.admin)?;
        let metrics = open_loopback(config.listen.metrics, memory.metrics)?;
        let socket = config.run_dir.join(SOCKET);
        let unix = bind_unix(&socket, 0o600)
            .map_err(|source| ListenError::Socket { path: socket.clone(), source })?;
        let addresses =
            Addresses { control: local(&control)?, admin: local(&admin)?, metrics: local(&metrics)?, socket };
        let remembered = Memory {
            control: Some(addresses.control),
            admin: Some(addresses.admin),
            metrics: Some(addresses.metrics),
        };
        let text = serde_json::to_vec(&remembered).expect("addresses always serialise");
        private::write(&file, &text)?;
        Ok(Self { control, admin, metrics, unix, addresses })
    }
}

/// What others are told to dial: what the configuration says, else the address of this host that leads outside.
#[must_use]
pub fn advertised(config: &Config, control: SocketAddr) -> Vec<HostPort> {
    /// What fits a token.
    const MOST: usize = 16;
    if !config.advertise.is_empty() {
        return config.advertise.iter().take(MOST).map(|host| host.with_port(control.port())).collect();
    }
    let ip = if control.ip().is_unspecified() { outward() } else { control.ip() };
    if ip.is_loopback() && !control.ip().is_loopback() {
        tracing::warn!(code = %code::LOOPBACK_ADVERTISED, "tokens lead to loopback: no route leads outside, and nothing is advertised");
    }
    vec![SocketAddr::new(ip, control.port()).into()]
}

/// The source address of the route to the outside; loopback when there is none. Nothing is sent: connecting a UDP socket
/// only asks the routing table. The addresses are those of documentation (RFC 5737, RFC 3849).
fn outward() -> IpAddr {
    let ask = |own: SocketAddr, outside: SocketAddr| {
        let socket = UdpSocket::bind(own).ok()?;
        socket.connect(outside).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let v4 = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9));
    let v6 = SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9));
    ask((Ipv4Addr::UNSPECIFIED, 0).into(), v4)
        .or_else(|| ask((Ipv6Addr::UNSPECIFIED, 0).into(), v6))
        .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn recall(file: &Path) -> Memory {
    // What cannot be read is forgotten: ports are drawn anew, and agents are told by their next token.
    let bytes = private::read(file).ok().flatten();
    bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn open_control(wanted: SocketAddr, before: Option<SocketAddr>) -> Result<TcpListener, ListenError> {
    let kept = before.filter(|kept| wanted.port() == 0 && kept.ip() == wanted.ip());
    if let Some(listener) = kept.and_then(|kept| bind(kept).ok()) {
        return Ok(listener);
    }
    let refused = |source| ListenError::Port { address: wanted, source };
    match bind(wanted) {
        Err(error) if wanted.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && is_without_v6(&error) => {
            bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, wanted.port()))).map_err(refused)
        }
        other => other.map_err(refused),
    }
}

/// Whether this host has IPv6 turned off.
fn is_without_v6(error: &io::Error) -> bool {
    let off = [nix::errno::Errno::EAFNOSUPPORT, nix::errno::Errno::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|number| off.contains(&nix::errno::Errno::from_raw(number)))
}

fn open_loopback(wanted: SocketAddr, before: Option<SocketAddr>) -> Result<TcpListener, ListenError> {
    let kept = before.filter(|kept| wanted.port() == 0 && kept.ip() == wanted.ip());
    if let Some(listener) = kept.and_then(|kept| bind(kept).ok()) {
        return Ok(listener);
    }
    let last = if wanted.port() == 0 { 0 } else { wanted.port().saturating_add(NEIGHBOURS) };
    for port in wanted.port()..=last {
        match bind(SocketAddr::new(wanted.ip(), port)) {
            Ok(listener) => {
                if port != wanted.port() {
                    tracing::info!(%wanted, port, "the port is taken, the next free one is used");
                }
                return Ok(listener);
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(source) => {
                return Err(ListenError::Port { address: SocketAddr::new(wanted.ip(), port), source });
            }
        }
    }
    Err(ListenError::Port { address: wanted, source: ErrorKind::AddrInUse.into() })
}

/// Binds; `[::]` takes IPv4 too, whatever the host's default is.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED))?;
    }
    // A restarted server takes its port back from connections that are still in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn local(listener: &TcpListener) -> Result<SocketAddr, ListenError> {
    let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    listener.local_addr().map_err(|source| ListenError::Port { address: nowhere, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(folder: &Path, listen: &str) -> Config {
        let text = format!(
            "trustDomain: corp.example\nstore: {{embedded: {{path: {folder:?}}}}}\nrunDir: {:?}\nlisten: {listen}\n",
            folder.join("run")
        );
        Config::parse(&text, "test").unwrap()
    }

    const ANY: &str = "{control: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", metrics: \"127.0.0.1:0\"}";

    #[tokio::test]
    async fn a_drawn_port_is_kept_over_a_restart() {
        let temp = tempfile::tempdir().unwrap();
        let config = config(temp.path(), ANY);
        let first = Listeners::open(&config).unwrap().addresses;
        let again = Listeners::open(&config).unwrap().addresses;
        assert_eq!(first, again);
    }

    #[tokio::test]
    async fn a_taken_loopback_port_moves_on_and_a_taken_control_port_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let moved = format!("{{control: \"127.0.0.1:0\", admin: \"{address}\", metrics: \"127.0.0.1:0\"}}");
        let opened = Listeners::open(&config(temp.path(), &moved)).unwrap();
        assert!(opened.addresses.admin.port() > address.port());
        drop(opened);
        let fixed = format!("{{control: \"{address}\", admin: \"127.0.0.1:0\", metrics: \"127.0.0.1:0\"}}");
        let refused = Listeners::open(&config(temp.path(), &fixed)).unwrap_err();
        assert_eq!(refused.code(), code::PORT_IN_USE);
        assert!(refused.to_string().contains(&address.to_string()));
    }

    #[tokio::test]
    async fn a_second_server_does_not_take_the_socket() {
        let temp = tempfile::tempdir().unwrap();
        let config = config(temp.path(), ANY);
        let _first = Listeners::open(&config).unwrap();
        assert_eq!(Listeners::open(&config).unwrap_err().code(), code::STATE_IN_USE);
    }

    #[test]
    fn others_are_told_the_configured_hosts_or_one_of_this_host() {
        let temp = tempfile::tempdir().unwrap();
        let config = config(temp.path(), ANY);
        let control = "10.0.0.7:7444".parse().unwrap();
        assert_eq!(advertised(&config, control)[0].to_string(), "10.0.0.7:7444");
        let any = advertised(&config, "[::]:7444".parse().unwrap());
        assert!(!any[0].to_string().contains("::]"), "{any:?}");
    }
}
