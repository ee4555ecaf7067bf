//! The UDP socket under an endpoint: bound once, with buffers that do not lose packets at full rate.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tracing::debug;

/// What the kernel granted of the wanted buffers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SocketBuffers {
    /// Receive buffer in bytes, as the kernel counts (twice what was asked, overhead included).
    pub receive_bytes: usize,
    /// Send buffer in bytes, likewise.
    pub send_bytes: usize,
}

/// Binds a UDP socket for [`crate::Overlay::bind`]. `[::]` is bound dual-stack.
///
/// # Errors
///
/// The error of `socket` or `bind`, such as an address in use.
pub fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Asks for `bytes` of buffer in both directions and returns what the kernel granted.
///
/// First by SO_RCVBUFFORCE and SO_SNDBUFFORCE, which pass `net.core.rmem_max` with CAP_NET_ADMIN; else
/// by SO_RCVBUF and SO_SNDBUF, which the kernel cuts to it. A small buffer costs rate, not correctness,
/// so nothing here fails.
pub(crate) fn size_buffers(socket: &UdpSocket, bytes: usize) -> SocketBuffers {
    let plain = SockRef::from(socket);
    if setsockopt(socket, sockopt::RcvBufForce, &bytes).is_err()
        && let Err(error) = plain.set_recv_buffer_size(bytes)
    {
        debug!(%error, "receive buffer stays as it is");
    }
    if setsockopt(socket, sockopt::SndBufForce, &bytes).is_err()
        && let Err(error) = plain.set_send_buffer_size(bytes)
    {
        debug!(%error, "send buffer stays as it is");
    }
    SocketBuffers {
        receive_bytes: plain.recv_buffer_size().unwrap_or(0),
        send_bytes: plain.send_buffer_size().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_grow_as_far_as_the_kernel_lets_them() {
        let socket = bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
        let before = SockRef::from(&socket).recv_buffer_size().unwrap();
        let granted = size_buffers(&socket, 4 << 20);
        assert!(granted.receive_bytes >= before);
        assert!(granted.send_bytes > 0);
    }

    #[test]
    fn an_address_in_use_is_an_error() {
        let first = bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
        let taken = bind_udp(first.local_addr().unwrap());
        assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
