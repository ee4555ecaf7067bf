//! Opens the sockets an agent listens on, and says what is wrong when one cannot be opened.
//!
//! Owns the options of listening sockets (dual stack, reuse, buffers), the fall-back to IPv4 where IPv6 is off, and the
//! search for whoever holds a port. What is served on a socket is its user's.

use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
};

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use weft_api::fault::Fault;
use weft_policy::code::{self, CodeId};

/// Connections the kernel holds ready until they are accepted; Linux' own cap is `net.core.somaxconn`, 4,096.
const BACKLOG: i32 = 4_096;
/// How many ports above a taken one are tried where any port will do.
const NEXT_PORTS: u16 = 64;
/// The most processes whose open files are looked through for the holder of a port.
const MAX_PROCESSES: usize = 20_000;

/// What a socket is for, as errors name it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// QUIC tunnels from other agents.
    Tunnels,
    /// The explicit proxy.
    Proxy,
    /// The admin page.
    Admin,
    /// Metrics and health.
    Metrics,
    /// One declared upstream, such as `ledger.shop:80`.
    Upstream(String),
}

impl Purpose {
    /// The key of `agent.yaml` that changes it.
    const fn key(&self) -> &'static str {
        match self {
            Self::Tunnels => "listen.tunnels",
            Self::Proxy => "listen.proxy",
            Self::Admin => "listen.admin",
            Self::Metrics => "listen.metrics",
            Self::Upstream(_) => "workloads[].upstreams[].listen",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tunnels => f.write_str("tunnels"),
            Self::Proxy => f.write_str("the proxy"),
            Self::Admin => f.write_str("the admin page"),
            Self::Metrics => f.write_str("metrics"),
            Self::Upstream(name) => write!(f, "upstream {name}"),
        }
    }
}

/// A socket that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {purpose}: {problem}")]
pub struct ListenError {
    /// What for.
    pub purpose: Purpose,
    /// Where.
    pub address: SocketAddr,
    /// Why not.
    #[source]
    pub problem: ListenProblem,
}

/// Why a socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenProblem {
    /// Somebody listens there.
    #[error("the port is taken{}", holder.as_ref().map_or_else(String::new, |holder| format!(" by {holder}")))]
    Taken {
        /// Who, when this user may know.
        holder: Option<Holder>,
    },
    /// The address is none of this host's.
    #[error("the address is none of this host's")]
    NotHere,
    /// The port asks for a privilege.
    #[error("not permitted; ports below 1024 need CAP_NET_BIND_SERVICE")]
    NotPermitted,
    /// Anything else the system says.
    #[error(transparent)]
    Io(io::Error),
}

/// The process that holds a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its short name.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

impl ListenError {
    /// The catalogue's code.
    #[must_use]
    pub fn code(&self) -> CodeId {
        match &self.problem {
            ListenProblem::Taken { .. } => code::PORT_IN_USE,
            ListenProblem::NotHere => code::ADDRESS_NOT_LOCAL,
            ListenProblem::NotPermitted => code::PORT_NOT_PERMITTED,
            ListenProblem::Io(error) if error.raw_os_error() == Some(Errno::EMFILE as i32) => {
                code::FILE_LIMIT
            }
            ListenProblem::Io(_) => code::NOT_SUPPORTED_HERE,
        }
    }

    /// The error as a person meets it.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let mut fault =
            Fault::new(self.code(), format!("cannot listen on {} for {}", self.address, self.purpose));
        fault = fault.why(self.problem.to_string());
        fault.fix = self.fix();
        fault
    }

    /// What a person can do, one command or edit a line.
    #[must_use]
    pub fn fix(&self) -> Vec<String> {
        let change = match &self.purpose {
            Purpose::Upstream(_) => format!(
                "choose another port: weft run --upstream SERVICE=PORT (0 picks one), or {} in agent.yaml",
                self.purpose.key()
            ),
            Purpose::Tunnels | Purpose::Proxy | Purpose::Admin | Purpose::Metrics => {
                format!("choose another address: {} in agent.yaml", self.purpose.key())
            }
        };
        match &self.problem {
            ListenProblem::Taken { holder: Some(holder) } if holder.pid == std::process::id() => vec![change],
            ListenProblem::Taken { holder: Some(holder) } if holder.name.starts_with("weft") => {
                vec![format!("stop that mesh or agent: weft down (it is process {})", holder.pid), change]
            }
            ListenProblem::Taken { holder: Some(holder) } => {
                vec![format!("stop it: kill {}", holder.pid), change]
            }
            ListenProblem::Taken { holder: None } => {
                vec![format!("see who listens: sudo ss -lntup 'sport = :{}'", self.address.port()), change]
            }
            ListenProblem::NotHere | ListenProblem::NotPermitted | ListenProblem::Io(_) => vec![change],
        }
    }
}

/// Listens on TCP. `[::]` takes IPv4 too; where IPv6 is off it becomes `0.0.0.0`. Needs a tokio runtime.
///
/// # Errors
///
/// [`ListenError`] with the holder of a taken port, when this user may see it.
pub fn tcp(address: SocketAddr, purpose: &Purpose) -> Result<TcpListener, ListenError> {
    open(address, Type::STREAM, Protocol::TCP)
        .and_then(|socket| {
            socket.listen(BACKLOG)?;
            TcpListener::from_std(socket.into())
        })
        .map_err(|error| explain(error, address, purpose, Transport::Tcp))
}

/// Listens on TCP at `address`, or where that port is taken, at the next free one above it.
///
/// For ports that nobody has to know beforehand (admin, metrics): a second agent on a host takes the next.
///
/// # Errors
///
/// As [`tcp`], for the first address that failed for another reason, or the last tried.
pub fn tcp_or_next(address: SocketAddr, purpose: &Purpose) -> Result<TcpListener, ListenError> {
    let mut wanted = address;
    for _ in 0..NEXT_PORTS {
        match tcp(wanted, purpose) {
            Err(ListenError { problem: ListenProblem::Taken { .. }, .. }) if wanted.port() < u16::MAX => {
                wanted.set_port(wanted.port() + 1);
            }
            done => return done,
        }
    }
    tcp(wanted, purpose)
}

/// Opens the UDP socket of tunnels, non-blocking. `[::]` takes IPv4 too, as in [`tcp`]. Its buffers are sized by
/// `weft_overlay::Overlay::bind`.
///
/// # Errors
///
/// [`ListenError`] with the holder of a taken port, when this user may see it.
pub fn udp(address: SocketAddr, purpose: &Purpose, sharing: Sharing) -> Result<UdpSocket, ListenError> {
    open_shared(address, Type::DGRAM, Protocol::UDP, sharing)
        .map(UdpSocket::from)
        .map_err(|error| explain(error, address, purpose, Transport::Udp))
}

/// Whether several workers share one UDP port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sharing {
    /// One socket has the port.
    Alone,
    /// The kernel spreads peers over the workers' sockets (`SO_REUSEPORT`).
    Workers,
}

fn open(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    open_shared(address, kind, protocol, Sharing::Alone)
}

fn open_shared(address: SocketAddr, kind: Type, protocol: Protocol, sharing: Sharing) -> io::Result<Socket> {
    match open_exactly(address, kind, protocol, sharing) {
        Err(error) if address.ip().is_unspecified() && address.is_ipv6() && is_without_ipv6(&error) => {
            open_exactly((Ipv4Addr::UNSPECIFIED, address.port()).into(), kind, protocol, sharing)
        }
        opened => opened,
    }
}

fn open_exactly(address: SocketAddr, kind: Type, protocol: Protocol, sharing: Sharing) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    if kind == Type::STREAM {
        // A restarted agent must not wait for the connections of its predecessor to leave TIME_WAIT.
        socket.set_reuse_address(true)?;
    }
    if sharing == Sharing::Workers {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Whether an error means that this host has no IPv6: EAFNOSUPPORT is 97 and EADDRNOTAVAIL 99 on Linux.
fn is_without_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32)
}

#[derive(Clone, Copy)]
enum Transport {
    Tcp,
    Udp,
}

fn explain(error: io::Error, address: SocketAddr, purpose: &Purpose, transport: Transport) -> ListenError {
    let taken = error.kind() == io::ErrorKind::AddrInUse;
    let absent = error.kind() == io::ErrorKind::AddrNotAvailable;
    let forbidden = error.kind() == io::ErrorKind::PermissionDenied;
    let problem = if taken {
        ListenProblem::Taken { holder: holder_of(address.port(), transport) }
    } else if absent {
        ListenProblem::NotHere
    } else if forbidden {
        ListenProblem::NotPermitted
    } else {
        ListenProblem::Io(error)
    };
    ListenError { purpose: purpose.clone(), address, problem }
}

/// Finds the process that listens on `port`, as far as this user may see: its own processes, or all for root.
fn holder_of(port: u16, transport: Transport) -> Option<Holder> {
    let tables = match transport {
        Transport::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Transport::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let inodes: Vec<u64> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listening_inodes(&table, port, transport))
        .collect();
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten().take(MAX_PROCESSES);
    processes.filter_map(|entry| process_with(&entry.path(), &links)).next()
}

/// The inodes of sockets that listen on `port`, from the text of a table under `/proc/net` (proc(5)).
fn listening_inodes(table: &str, port: u16, transport: Transport) -> Vec<u64> {
    let state = match transport {
        Transport::Tcp => "0A", // TCP_LISTEN
        Transport::Udp => "07", // unconnected
    };
    let wanted = format!(":{port:04X}");
    let rows = table.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.len() > 9 && row[1].ends_with(&wanted) && row[3] == state)
        .filter_map(|row| row[9].parse().ok())
        .filter(|inode| *inode != 0)
        .collect()
}

fn process_with(process: &Path, links: &[String]) -> Option<Holder> {
    let pid = process.file_name()?.to_str()?.parse().ok()?;
    let files = fs::read_dir(process.join("fd")).ok()?;
    let holds = |file: fs::DirEntry| {
        let target = fs::read_link(file.path()).ok()?;
        links.iter().any(|link| target.as_os_str() == link.as_str()).then_some(())
    };
    files.flatten().find_map(holds)?;
    let name = fs::read_to_string(process.join("comm")).ok()?;
    Some(Holder { pid, name: name.trim_end().to_owned() })
}

/// Whether an address lets nobody but this host in.
#[must_use]
pub const fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// The address that all tunnel sockets share.
///
/// # Errors
///
/// That of `getsockname`, or that there is no socket.
pub(crate) fn local_addr(sockets: &[UdpSocket]) -> io::Result<SocketAddr> {
    let first = sockets.first().ok_or(io::ErrorKind::NotConnected)?;
    first.local_addr().map(crate::shared::canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    #[tokio::test]
    async fn a_taken_port_names_its_holder() {
        let first = tcp(LOOPBACK, &Purpose::Proxy).unwrap();
        let refused = tcp(first.local_addr().unwrap(), &Purpose::Proxy).unwrap_err();
        assert_eq!(refused.code(), code::PORT_IN_USE);
        let ListenProblem::Taken { holder: Some(holder) } = &refused.problem else {
            panic!("{refused}");
        };
        assert_eq!(holder.pid, std::process::id());
        assert!(
            refused.fix().iter().all(|fix| !fix.contains("kill")),
            "it is this process: {:?}",
            refused.fix()
        );
        for (name, advice) in [("python3", "kill 1"), ("weft", "weft down")] {
            let holder = Some(Holder { pid: 1, name: name.to_owned() });
            let other = ListenError { problem: ListenProblem::Taken { holder }, ..refused_again(&first) };
            assert!(other.fix()[0].contains(advice), "{:?}", other.fix());
        }
        assert!(refused.to_string().contains("for the proxy: the port is taken by"), "{refused}");
    }

    fn refused_again(first: &TcpListener) -> ListenError {
        tcp(first.local_addr().unwrap(), &Purpose::Upstream("ledger.shop:80".into())).unwrap_err()
    }

    #[tokio::test]
    async fn the_next_free_port_is_taken_where_any_will_do() {
        let first = tcp(LOOPBACK, &Purpose::Admin).unwrap();
        let taken = first.local_addr().unwrap();
        let second = tcp_or_next(taken, &Purpose::Admin).unwrap().local_addr().unwrap();
        assert!(second.port() > taken.port() && second.ip() == taken.ip());
    }

    #[test]
    fn a_taken_udp_port_names_its_holder_and_workers_share_one() {
        let first = udp(LOOPBACK, &Purpose::Tunnels, Sharing::Alone).unwrap();
        let refused = udp(first.local_addr().unwrap(), &Purpose::Tunnels, Sharing::Alone).unwrap_err();
        assert!(matches!(refused.problem, ListenProblem::Taken { holder: Some(_) }), "{refused}");

        let first = udp(LOOPBACK, &Purpose::Tunnels, Sharing::Workers).unwrap();
        udp(first.local_addr().unwrap(), &Purpose::Tunnels, Sharing::Workers).unwrap();
    }

    #[tokio::test]
    async fn an_address_of_another_host_is_told_apart() {
        let elsewhere = "192.0.2.1:0".parse().unwrap();
        let refused = tcp(elsewhere, &Purpose::Upstream("ledger.shop:80".into())).unwrap_err();
        assert_eq!(refused.code(), code::ADDRESS_NOT_LOCAL);
        assert!(refused.to_string().contains("upstream ledger.shop:80"));
    }

    #[tokio::test]
    async fn the_unspecified_address_takes_ipv4_as_well() {
        let listener = tcp("[::]:0".parse().unwrap(), &Purpose::Metrics).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (client, accepted) =
            tokio::join!(tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)), listener.accept());
        client.unwrap();
        assert!(is_loopback(accepted.unwrap().1.ip()));
    }

    #[test]
    fn the_tables_of_proc_are_read_by_port_and_state() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1D38 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0 100 0\n\
             1: 0100007F:1D38 0100007F:9999 01 00000000:00000000 00:00000000 00000000  1000        0 4343 1 0 100 0\n\
             short line\n";
        assert_eq!(listening_inodes(table, 7480, Transport::Tcp), [4242]);
        assert!(listening_inodes(table, 7481, Transport::Tcp).is_empty());
    }
}
