//! The TCP ends of a flow.
//!
//! A read waits for readiness before it takes memory, so an idle connection holds no buffer. Buffers follow what
//! arrives, from 4 to 64 KiB; a small read is copied out of its buffer, so that a byte that waits for the network does
//! not pin 64 KiB.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::AsyncWrite,
    net::tcp::{ReadHalf, WriteHalf},
};
use tokio_util::io::{poll_read_buf, poll_write_buf};
use weft_overlay::{ResetCode, StallGuard};

use super::{
    chunks::Chunks,
    pump::{Broken, Sink, Source},
};

/// The buffer after small reads.
const MIN_BUFFER_BYTES: usize = 4 * 1024;
/// The buffer of bulk transfers; beyond 64 KiB a read saves less than one system call in a hundred.
const MAX_BUFFER_BYTES: usize = 64 * 1024;
/// Reads up to this are copied: a copy of 2 KiB costs less than what its buffer would pin.
const COPY_BYTES: usize = 2 * 1024;

/// The reading half of a socket.
pub(super) struct TcpSource<'a> {
    half: ReadHalf<'a>,
    broken: fn(io::ErrorKind) -> Broken,
    buffer: BytesMut,
    next_bytes: usize,
}

impl<'a> TcpSource<'a> {
    pub(super) fn new(half: ReadHalf<'a>, broken: fn(io::ErrorKind) -> Broken) -> Self {
        Self { half, broken, buffer: BytesMut::new(), next_bytes: MIN_BUFFER_BYTES }
    }

    /// What was read, as a buffer of its own.
    fn chunk(&mut self, read: usize, room: usize) -> Bytes {
        self.next_bytes = (read * 2).next_power_of_two().clamp(MIN_BUFFER_BYTES, MAX_BUFFER_BYTES);
        if read <= COPY_BYTES && read * 4 < room {
            let copy = Bytes::copy_from_slice(&self.buffer);
            self.buffer.clear();
            return copy;
        }
        self.buffer.split().freeze()
    }
}

impl Source for TcpSource<'_> {
    fn poll_read(&mut self, cx: &mut Context<'_>, chunks: &mut Chunks) -> Poll<Result<bool, Broken>> {
        let broken = self.broken;
        let fail = |error: io::Error| broken(error.kind());
        loop {
            if self.half.as_ref().poll_read_ready(cx).map_err(fail)?.is_pending() {
                self.buffer = BytesMut::new();
                return Poll::Pending;
            }
            if self.buffer.capacity() < self.next_bytes.min(MIN_BUFFER_BYTES) {
                self.buffer = BytesMut::with_capacity(self.next_bytes);
            }
            let room = self.buffer.capacity();
            match poll_read_buf(Pin::new(&mut self.half), cx, &mut self.buffer) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(false)),
                Poll::Ready(Ok(read)) => {
                    chunks.push(self.chunk(read, room));
                    return Poll::Ready(Ok(true));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(fail(error))),
                // It was not ready after all: wait again, without the buffer.
                Poll::Pending => {}
            }
        }
    }

    fn blocked(&self) -> Option<StallGuard<'_>> {
        None
    }

    /// Nothing tells the peer of a TCP connection apart from closing it, which is the owner's.
    fn stop(&mut self, _code: ResetCode) {}
}

/// The writing half of a socket.
pub(super) struct TcpSink<'a> {
    half: WriteHalf<'a>,
    broken: fn(io::ErrorKind) -> Broken,
}

impl<'a> TcpSink<'a> {
    pub(super) const fn new(half: WriteHalf<'a>, broken: fn(io::ErrorKind) -> Broken) -> Self {
        Self { half, broken }
    }
}

impl Sink for TcpSink<'_> {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut Chunks) -> Poll<Result<(), Broken>> {
        while chunks.has_remaining() {
            match ready!(poll_write_buf(Pin::new(&mut self.half), cx, chunks)) {
                Ok(0) => return Poll::Ready(Err((self.broken)(io::ErrorKind::WriteZero))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err((self.broken)(error.kind()))),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match ready!(Pin::new(&mut self.half).poll_shutdown(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            // The program has closed both ways: it needs no telling.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err((self.broken)(error.kind()))),
        }
    }
}
