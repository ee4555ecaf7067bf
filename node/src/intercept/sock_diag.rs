//! Asks the kernel who owns the other end of a loopback connection (sock_diag(7), inet_diag).
//!
//! Owns the netlink messages, byte by byte, and the socket they travel on. What the answer proves is decided in
//! [`super::caller`]. The kernel answers within `sendmsg`, so a question is two system calls and never waits.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvfrom, sendto, socket,
};
use tokio::net::TcpStream;

use crate::own_sockets::{OwnSockets, inode_of};

/// `struct nlmsghdr` (linux/netlink.h).
const HEADER_BYTES: usize = 16;
/// `struct inet_diag_req_v2` (linux/inet_diag.h).
const REQUEST_BYTES: usize = 56;
/// `struct inet_diag_msg` (linux/inet_diag.h).
const MESSAGE_BYTES: usize = 72;
/// `SOCK_DIAG_BY_FAMILY` (linux/sock_diag.h).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `NLMSG_ERROR` (linux/netlink.h).
const NLMSG_ERROR: u16 = 2;
/// `NLM_F_REQUEST` (linux/netlink.h): one exact socket, no dump.
const NLM_F_REQUEST: u16 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// `TCP_ESTABLISHED` and `TCP_CLOSE_WAIT` (linux/tcp_states.h): our end of a connection that was not broken.
const WHOLE: [u8; 2] = [1, 8];
/// `INET_DIAG_NOCOOKIE`: the socket is found by its addresses.
const NO_COOKIE: u32 = u32::MAX;
/// Stale answers that are skipped before giving up; there is none unless a question failed half-way.
const MAX_STALE: usize = 16;

/// What the kernel knows of one TCP socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SocketEntry {
    /// The user that made the socket.
    pub uid: u32,
    /// The socket's inode; 0 when no process holds it any more.
    pub inode: u32,
    /// Its state (linux/tcp_states.h).
    pub state: u8,
}

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The netlink socket fails.
    #[error("the kernel does not answer questions about sockets (sock_diag)")]
    Netlink(#[source] io::Error),
    /// The answer is not one to our question.
    #[error("the kernel's answer about a socket cannot be read")]
    Answer,
    /// The caller is this agent, which connected for somebody else.
    #[error("the connection comes from the agent itself, which nobody may use to speak as its user")]
    OwnSocket,
}

/// One netlink socket, used for all questions.
#[derive(Debug)]
pub struct Lookup {
    socket: Mutex<Open>,
    own: OwnSockets,
}

#[derive(Debug)]
struct Open {
    fd: OwnedFd,
    sequence: u32,
}

impl Lookup {
    /// Opens the netlink socket. No connection that `own` knows proves anybody.
    ///
    /// # Errors
    ///
    /// [`LookupError::Netlink`] where the kernel or a sandbox has no sock_diag: then no caller can be proven.
    pub fn open(own: OwnSockets) -> Result<Self, LookupError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkSockDiag)
            .map_err(|errno| LookupError::Netlink(errno.into()))?;
        Ok(Self { socket: Mutex::new(Open { fd, sequence: 0 }), own })
    }

    /// Finds the socket of whoever connected to `accepted` from `peer`. To be asked at once on accept.
    ///
    /// Our own end is asked for after the peer's: were the connection broken already, another program could have the
    /// same addresses by now, and the entry would be that program's.
    ///
    /// # Errors
    ///
    /// [`LookupError`]; a peer that cannot be told is `Ok(None)`.
    pub fn caller_of(
        &self,
        accepted: &TcpStream,
        peer: SocketAddr,
    ) -> Result<Option<SocketEntry>, LookupError> {
        let here = accepted.local_addr().map_err(LookupError::Netlink)?;
        let Some(found) = self.find(peer, here)? else { return Ok(None) };
        if found.inode != 0 && self.own.contains(found.inode) {
            return Err(LookupError::OwnSocket);
        }
        let inode = inode_of(accepted).map_err(LookupError::Netlink)?;
        let ours = self.find(here, peer)?;
        let is_whole = ours.is_some_and(|ours| ours.inode == inode && WHOLE.contains(&ours.state));
        Ok(is_whole.then_some(found))
    }

    /// Finds the socket that stands at `local` and is connected to `remote`, both as that socket sees them.
    ///
    /// Never blocks on anything but another question of this process.
    fn find(&self, local: SocketAddr, remote: SocketAddr) -> Result<Option<SocketEntry>, LookupError> {
        let mut open = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        open.sequence = open.sequence.wrapping_add(1);
        let question = encode(local, remote, open.sequence);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(open.fd.as_raw_fd(), &question, &kernel, MsgFlags::empty())
            .map_err(|errno| LookupError::Netlink(errno.into()))?;
        let mut buffer = [0_u8; 1_024];
        for _ in 0..MAX_STALE {
            let (length, sender) = recvfrom::<NetlinkAddr>(open.fd.as_raw_fd(), &mut buffer)
                .map_err(|errno| LookupError::Netlink(errno.into()))?;
            if sender.is_none_or(|sender| sender.pid() != 0) {
                continue;
            }
            match decode(&buffer[..length], open.sequence, local, remote)? {
                Answer::Stale => {}
                Answer::Absent => return Ok(None),
                Answer::Found(entry) => return Ok(Some(entry)),
            }
        }
        Err(LookupError::Answer)
    }
}

/// What one netlink message says about our question.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Answer {
    /// It answers another question.
    Stale,
    /// There is no such socket.
    Absent,
    Found(SocketEntry),
}

fn encode(local: SocketAddr, remote: SocketAddr, sequence: u32) -> [u8; HEADER_BYTES + REQUEST_BYTES] {
    let (local, remote) = canonical_pair(local, remote);
    let mut message = [0_u8; HEADER_BYTES + REQUEST_BYTES];
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[0..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message[8..12].copy_from_slice(&sequence.to_ne_bytes());
    let request = &mut message[HEADER_BYTES..];
    request[0] = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    request[1] = IPPROTO_TCP;
    request[4..8].copy_from_slice(&u32::MAX.to_ne_bytes()); // every state
    let id = &mut request[8..];
    id[0..2].copy_from_slice(&local.port().to_be_bytes());
    id[2..4].copy_from_slice(&remote.port().to_be_bytes());
    put_address(&mut id[4..20], local.ip());
    put_address(&mut id[20..36], remote.ip());
    id[40..44].copy_from_slice(&NO_COOKIE.to_ne_bytes());
    id[44..48].copy_from_slice(&NO_COOKIE.to_ne_bytes());
    message
}

fn decode(
    message: &[u8],
    sequence: u32,
    local: SocketAddr,
    remote: SocketAddr,
) -> Result<Answer, LookupError> {
    let header = message.get(..HEADER_BYTES).ok_or(LookupError::Answer)?;
    let length = usize::try_from(u32_at(header, 0)?).map_err(|_| LookupError::Answer)?;
    let body = message.get(HEADER_BYTES..length).ok_or(LookupError::Answer)?;
    if u32_at(header, 8)? != sequence {
        return Ok(Answer::Stale);
    }
    match u16::from_ne_bytes([header[4], header[5]]) {
        NLMSG_ERROR => refused(body),
        SOCK_DIAG_BY_FAMILY => entry(body, local, remote),
        _ => Err(LookupError::Answer),
    }
}

/// `struct nlmsgerr`: a negative errno; ENOENT is the kernel's word for "no such socket".
fn refused(body: &[u8]) -> Result<Answer, LookupError> {
    let code = i32::from_ne_bytes(u32_at(body, 0)?.to_ne_bytes());
    if code == -(nix::errno::Errno::ENOENT as i32) {
        return Ok(Answer::Absent);
    }
    Err(LookupError::Netlink(io::Error::from_raw_os_error(code.checked_neg().unwrap_or(0))))
}

/// `struct inet_diag_msg`. The addresses are compared: where no connected socket is found, the kernel answers with a
/// listening one, and that proves nothing about our peer.
fn entry(body: &[u8], local: SocketAddr, remote: SocketAddr) -> Result<Answer, LookupError> {
    let body = body.get(..MESSAGE_BYTES).ok_or(LookupError::Answer)?;
    let (family, id) = (body[0], &body[4..52]);
    let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
    let found = (
        SocketAddr::new(address(&id[4..20], family)?, port(0)),
        SocketAddr::new(address(&id[20..36], family)?, port(2)),
    );
    if found != canonical_pair(local, remote) {
        return Ok(Answer::Absent);
    }
    Ok(Answer::Found(SocketEntry { uid: u32_at(body, 64)?, inode: u32_at(body, 68)?, state: body[1] }))
}

/// IPv4 in IPv6 is IPv4, and a zone or flow label is no part of what identifies the socket.
fn canonical_pair(local: SocketAddr, remote: SocketAddr) -> (SocketAddr, SocketAddr) {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    (canonical(local), canonical(remote))
}

fn put_address(field: &mut [u8], ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => field[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => field.copy_from_slice(&ip.octets()),
    }
}

fn address(field: &[u8], family: u8) -> Result<IpAddr, LookupError> {
    let octets: [u8; 16] = field.try_into().map_err(|_| LookupError::Answer)?;
    match family {
        AF_INET => Ok(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()),
        AF_INET6 => Ok(IpAddr::from(Ipv6Addr::from(octets)).to_canonical()),
        _ => Err(LookupError::Answer),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, LookupError> {
    let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok());
    field.map(u32::from_ne_bytes).ok_or(LookupError::Answer)
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::unix::fs::MetadataExt,
    };

    use proptest::prelude::*;

    use super::*;

    /// A connection to a listener at `bind`, dialled at `dial`; (client, accepted, its peer address).
    fn connection(bind: &str, dial: IpAddr) -> (TcpStream, TcpStream, SocketAddr) {
        let listener = TcpListener::bind(bind).unwrap();
        let client = TcpStream::connect((dial, listener.local_addr().unwrap().port())).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        (client, accepted, peer)
    }

    fn inode_of(stream: &TcpStream) -> u64 {
        std::fs::metadata(format!("/proc/self/fd/{}", stream.as_raw_fd())).unwrap().ino()
    }

    #[test]
    fn the_kernel_names_user_and_inode_of_a_real_client() {
        let lookup = Lookup::open(OwnSockets::default()).unwrap();
        let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
        let mapped = IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped());
        // The last two see the same connection as IPv4 on one side and as IPv4 in IPv6 on the other.
        for (bind, dial) in [("127.0.0.1:0", v4), ("[::1]:0", v6), ("[::]:0", v4), ("127.0.0.1:0", mapped)] {
            let (client, accepted, peer) = connection(bind, dial);
            let entry = lookup.find(peer, accepted.local_addr().unwrap()).unwrap().unwrap();
            assert_eq!(entry.uid, nix::unistd::getuid().as_raw(), "{bind} {dial}");
            assert_eq!(u64::from(entry.inode), inode_of(&client), "{bind} {dial}");
        }
    }

    #[test]
    fn wl_03_a_client_that_is_gone_has_no_inode_or_no_entry() {
        let lookup = Lookup::open(OwnSockets::default()).unwrap();
        let (client, accepted, peer) = connection("127.0.0.1:0", IpAddr::V4(Ipv4Addr::LOCALHOST));
        drop(client);
        let entry = lookup.find(peer, accepted.local_addr().unwrap()).unwrap();
        assert!(entry.is_none_or(|entry| entry.inode == 0), "{entry:?}");
    }

    #[tokio::test]
    async fn the_agents_own_connection_proves_nobody() {
        let own = OwnSockets::default();
        let lookup = Lookup::open(own.clone()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let agents = own.connect(address).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        let refused = lookup.caller_of(&accepted, peer).unwrap_err();
        assert!(matches!(refused, LookupError::OwnSocket), "{refused}");
        drop(agents);

        let client = tokio::net::TcpStream::connect(address).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        let found = lookup.caller_of(&accepted, peer).unwrap().unwrap();
        assert_eq!(found.inode, crate::own_sockets::inode_of(&client).unwrap());
    }

    #[tokio::test]
    async fn wl_03_a_broken_connection_is_not_the_next_one_of_the_same_addresses() {
        let lookup = Lookup::open(OwnSockets::default()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let first = socket.connect(address).await.unwrap();
        let from = first.local_addr().unwrap();
        first.set_zero_linger().unwrap();
        drop(first);
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(from).unwrap();
        let victim = socket.connect(address).await.unwrap();
        // Linux may drop a connection that was reset before it was accepted, or hand it out.
        let (broken, peer) = listener.accept().await.unwrap();
        let found = lookup.caller_of(&broken, peer).unwrap();
        if broken.peer_addr().is_err() {
            assert_eq!(found, None, "the entry is the victim's, the bytes would be the first caller's");
            let (whole, peer) = listener.accept().await.unwrap();
            assert!(lookup.caller_of(&whole, peer).unwrap().is_some());
        } else {
            assert!(found.is_some());
        }
        drop(victim);
    }

    #[test]
    fn wl_03_a_socket_stays_its_makers_whoever_holds_it_later() {
        // Only root can make a socket as somebody else; without it the one user there is stands for both.
        let me = nix::unistd::geteuid();
        let somebody = if me.is_root() { 4_242 } else { me.as_raw() };
        let (lookup, v4) = (Lookup::open(OwnSockets::default()).unwrap(), IpAddr::V4(Ipv4Addr::LOCALHOST));
        // The kernel notes the user who makes a socket. fsuid is this thread's alone.
        let made_as = |uid: u32| {
            nix::unistd::setfsuid(uid.into());
            let made = connection("127.0.0.1:0", v4);
            nix::unistd::setfsuid(me);
            made
        };
        let owner = |(client, accepted, peer): &(TcpStream, TcpStream, SocketAddr)| {
            // Handed over: by a message on a Unix socket or over exec, another process holds the same open socket.
            let passed = client.try_clone().unwrap();
            let before = lookup.find(*peer, accepted.local_addr().unwrap()).unwrap().unwrap();
            assert_eq!(u64::from(before.inode), inode_of(&passed));
            before.uid
        };
        assert_eq!(owner(&made_as(somebody)), somebody, "root holds it now, and it is still somebody's");
        assert_eq!(
            owner(&made_as(me.as_raw())),
            me.as_raw(),
            "and what root made is never a proof for somebody else"
        );
    }

    #[test]
    fn wl_03_a_port_that_is_used_again_proves_only_its_new_owner() {
        let (lookup, v4) = (Lookup::open(OwnSockets::default()).unwrap(), IpAddr::V4(Ipv4Addr::LOCALHOST));
        let (client, accepted, peer) = connection("127.0.0.1:0", v4);
        let first = lookup.find(peer, accepted.local_addr().unwrap()).unwrap().unwrap();
        let (other, accepted_other, peer_other) = connection("127.0.0.1:0", v4);
        drop(client);
        let now = lookup.find(peer, accepted.local_addr().unwrap()).unwrap();
        assert!(now.is_none_or(|now| now.inode != first.inode), "the closed one proves nothing: {now:?}");
        let second = lookup.find(peer_other, accepted_other.local_addr().unwrap()).unwrap().unwrap();
        assert_eq!(u64::from(second.inode), inode_of(&other));
        let crossed = lookup.find(peer, accepted_other.local_addr().unwrap()).unwrap();
        assert_eq!(crossed, None, "ends of two connections are none");
    }

    #[test]
    fn a_listener_at_the_clients_port_is_not_the_client() {
        let lookup = Lookup::open(OwnSockets::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = listener.local_addr().unwrap();
        assert_eq!(lookup.find(nobody, "127.0.0.1:1".parse().unwrap()).unwrap(), None);
    }

    #[test]
    fn a_question_has_the_layout_of_the_kernels_headers() {
        let message = encode("127.0.0.1:258".parse().unwrap(), "127.0.0.2:772".parse().unwrap(), 7);
        assert_eq!(message.len(), 72);
        assert_eq!(message[16..20], [AF_INET, IPPROTO_TCP, 0, 0]);
        assert_eq!(message[24..28], [1, 2, 3, 4]);
        assert_eq!(message[28..32], [127, 0, 0, 1]);
        assert_eq!(message[44..48], [127, 0, 0, 2]);
        assert_eq!(message[64..72], [0xff; 8]);
    }

    #[test]
    fn an_answer_to_another_question_is_stale() {
        let (local, remote) = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        let mut message = encode(local, remote, 7).to_vec();
        message.resize(HEADER_BYTES + MESSAGE_BYTES, 0);
        let length = u32::try_from(message.len()).unwrap();
        message[0..4].copy_from_slice(&length.to_ne_bytes());
        assert_eq!(decode(&message, 8, local, remote).unwrap(), Answer::Stale);
    }

    proptest! {
        #[test]
        fn no_bytes_from_netlink_panic(message in proptest::collection::vec(any::<u8>(), 0..120), sequence: u32) {
            let (local, remote) = ("127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap());
            let _ = decode(&message, sequence, local, remote);
        }
    }
}
