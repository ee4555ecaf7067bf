//! The socket under quinn, which answers unknown QUIC versions only so often.
//!
//! quinn answers every large packet of a version that it does not speak with a Version Negotiation packet
//! (RFC 9000 section 6.1 lets a server limit that). Nobody in a mesh speaks another version, so these
//! answers go to probes and to forged addresses: a few a second are enough.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use crate::bucket::TokenBucket;
use crate::clock;

/// Version Negotiation packets a second.
const VERSION_ANSWERS_PER_SECOND: u32 = 100;
/// A long header has this bit (RFC 8999 section 5.1); its version follows the first byte.
const LONG_HEADER: u8 = 0x80;

/// A socket that is quiet towards strangers.
#[derive(Debug)]
pub(crate) struct Quiet {
    socket: Arc<dyn AsyncUdpSocket>,
    version_answers: Mutex<TokenBucket>,
}

impl Quiet {
    pub(crate) fn new(socket: Arc<dyn AsyncUdpSocket>, now: Instant) -> Self {
        Self { socket, version_answers: Mutex::new(TokenBucket::full(VERSION_ANSWERS_PER_SECOND, now)) }
    }

    fn may_answer(&self) -> bool {
        let mut answers = self.version_answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.take(clock::now().into_std())
    }
}

/// Whether `packet` is a Version Negotiation packet: a long header of version 0 (RFC 8999 section 6).
fn negotiates_version(packet: &[u8]) -> bool {
    matches!(packet, [first, 0, 0, 0, 0, ..] if first & LONG_HEADER != 0)
}

impl AsyncUdpSocket for Quiet {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if negotiates_version(transmit.contents) && !self.may_answer() {
            return Ok(()); // as if the network had lost it
        }
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_04_only_version_negotiation_is_told_apart() {
        assert!(negotiates_version(&[0xc0, 0, 0, 0, 0, 8]));
        assert!(negotiates_version(&[0x80, 0, 0, 0, 0]));
        assert!(!negotiates_version(&[0xc0, 0, 0, 0, 1, 8]), "a packet of version 1");
        assert!(!negotiates_version(&[0x40, 0, 0, 0, 0, 8]), "a short header");
        assert!(!negotiates_version(&[0xc0, 0, 0, 0]));
    }
}
