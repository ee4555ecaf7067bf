//! One flow: two byte streams in opposite directions, each with an end of its own.
//!
//! [`SendHalf`] and [`RecvHalf`] move whole [`Bytes`] without copying, which is what a relay wants (one
//! read yields up to 64 packets' payloads for one `writev`); both also are [`AsyncWrite`] and
//! [`AsyncRead`]. `finish` is the clean end of a direction and leaves the other one open. A half that is
//! dropped before its end is *reset*, never finished: a cut flow must not look like a complete one.
//!
//! On the side that opened the flow the reply of the other end comes first; reads take it off and fail
//! with [`StreamError::Refused`] if it refuses.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::code::{PeerCode, ResetCode};
use crate::error::StreamError;
use crate::reply::{Accepted, Refused, StreamReply};
use crate::stall::{Flow, StallGuard};
use crate::wire::{HeaderError, Progress};

/// Both halves of a flow.
#[derive(Debug)]
pub struct TunnelStream {
    send: SendHalf,
    recv: RecvHalf,
}

/// The sending direction of a flow.
#[derive(Debug)]
pub struct SendHalf {
    stream: quinn::SendStream,
    flow: Arc<Flow>,
    ended: bool,
}

/// The receiving direction of a flow.
#[derive(Debug)]
pub struct RecvHalf {
    stream: quinn::RecvStream,
    flow: Arc<Flow>,
    stage: Stage,
    /// Payload that arrived in one chunk with the header or the reply.
    ready: Bytes,
    ended: bool,
}

/// Lets the owner of a flow, such as a policy decision, name the reason before it drops the flow.
#[derive(Clone, Debug)]
pub struct FlowHandle {
    flow: Arc<Flow>,
}

/// The flow was reset because its identity used up its receive budget.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("stalled for longest while the receive budget of its identity was used up")]
pub struct Evicted;

/// How much one [`SendHalf::write_chunks`] took.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Written {
    /// All bytes.
    pub bytes: usize,
    /// Chunks taken as a whole; these are empty now.
    pub chunks: usize,
}

#[derive(Debug)]
enum Stage {
    /// The reply has not come yet; so much of it has.
    Reply(BytesMut),
    Data(Accepted),
    Refused(Refused),
}

impl TunnelStream {
    /// The dialler's side: the reply comes first.
    pub(crate) fn opened(send: quinn::SendStream, recv: quinn::RecvStream, flow: Arc<Flow>) -> Self {
        Self::new(send, recv, flow, Stage::Reply(BytesMut::new()), Bytes::new())
    }

    /// The acceptor's side: `ready` came behind the header.
    pub(crate) fn accepted(
        send: quinn::SendStream,
        recv: quinn::RecvStream,
        flow: Arc<Flow>,
        ready: Bytes,
    ) -> Self {
        flow.count_read(ready.len());
        Self::new(send, recv, flow, Stage::Data(Accepted::default()), ready)
    }

    fn new(
        send: quinn::SendStream,
        recv: quinn::RecvStream,
        flow: Arc<Flow>,
        stage: Stage,
        ready: Bytes,
    ) -> Self {
        let send = SendHalf { stream: send, flow: flow.clone(), ended: false };
        Self { send, recv: RecvHalf { stream: recv, flow, stage, ready, ended: false } }
    }

    /// What the other end told with its acceptance; `None` until that has come.
    pub fn told(&self) -> Option<&Accepted> {
        match &self.recv.stage {
            Stage::Data(accepted) => Some(accepted),
            Stage::Reply(_) | Stage::Refused(_) => None,
        }
    }

    /// Both directions, to be used apart.
    pub fn split(self) -> (SendHalf, RecvHalf) {
        (self.send, self.recv)
    }

    /// Both directions, borrowed.
    pub fn halves(&mut self) -> (&mut SendHalf, &mut RecvHalf) {
        (&mut self.send, &mut self.recv)
    }

    /// A handle that can name the reason for a later drop.
    pub fn handle(&self) -> FlowHandle {
        FlowHandle { flow: self.send.flow.clone() }
    }

    /// See [`RecvHalf::reply`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn reply(&mut self) -> Result<Accepted, StreamError> {
        self.recv.reply().await
    }

    /// Ends both directions with `code`.
    pub fn abort(mut self, code: ResetCode) {
        self.send.reset(code);
        self.recv.stop(code);
    }
}

impl FlowHandle {
    pub(crate) fn of(flow: Arc<Flow>) -> Self {
        Self { flow }
    }

    /// A number for the flow, unique within its endpoint.
    pub fn id(&self) -> u64 {
        self.flow.id
    }

    /// Waits until a read has met the acceptance of the other end. On the side that opened the flow only: the other one
    /// would wait for ever.
    ///
    /// Cancel-safe; one waiter at a time.
    pub async fn answered(&self) {
        self.flow.answered().await;
    }

    /// The code that the peer sees if the halves are dropped before their end; without a call it is
    /// [`ResetCode::Cancelled`].
    pub fn set_drop_code(&self, code: ResetCode) {
        self.flow.set_drop_code(code);
    }
}

impl SendHalf {
    /// Sends as much of `chunks` as flow control permits, without copying, and advances them.
    ///
    /// Cancel-safe: if it does not resolve, nothing was taken.
    ///
    /// # Errors
    ///
    /// [`StreamError::Stopped`] with the peer's code, or the end of the tunnel. On the side that opened
    /// the flow the reply, if it is a refusal, tells more: read it.
    pub async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> Result<Written, StreamError> {
        std::future::poll_fn(|cx| self.poll_write_chunks(cx, chunks)).await
    }

    /// The same for a hand-written future.
    pub fn poll_write_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Written, StreamError>> {
        let written = ready!(pin!(self.stream.write_chunks(chunks)).poll(cx));
        Poll::Ready(match written {
            Ok(quinn::Written { bytes, chunks }) => Ok(Written { bytes, chunks }),
            Err(error) => Err(self.flow.tunnel.stream_error(error)),
        })
    }

    /// Sends all of `chunks`. Not cancel-safe: a part may have been sent.
    ///
    /// # Errors
    ///
    /// As [`SendHalf::write_chunks`].
    pub async fn write_all_chunks(&mut self, mut chunks: &mut [Bytes]) -> Result<(), StreamError> {
        while !chunks.is_empty() {
            let written = self.write_chunks(chunks).await?;
            chunks = &mut chunks[written.chunks..];
        }
        Ok(())
    }

    /// Ends this direction cleanly: the peer reads all that was sent, then the end. The other direction
    /// stays open.
    ///
    /// # Errors
    ///
    /// [`StreamError::Ended`] if it had ended before.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.ended = true;
        self.stream.finish().map_err(|_| StreamError::Ended)
    }

    /// Gives up this direction; the peer's reads fail with `code`. After `finish` it takes back what has
    /// not arrived yet.
    pub fn reset(&mut self, code: ResetCode) {
        self.ended = true;
        let _ = self.stream.reset(code.varint()); // all has arrived, or it was reset: nothing is left
    }

    /// Waits until the peer stops reading. `None` means that it read all, or has no more to tell.
    ///
    /// Cancel-safe.
    pub async fn stopped(&self) -> Option<PeerCode<ResetCode>> {
        let code = self.stream.stopped().await.ok().flatten();
        code.map(|code| PeerCode::from_wire(code.into_inner()))
    }

    /// A handle that can name the reason for a later drop.
    pub fn handle(&self) -> FlowHandle {
        FlowHandle { flow: self.flow.clone() }
    }
}

impl RecvHalf {
    /// Fills `chunks` with what has arrived, in order and without copying; up to as many as there are.
    /// `None` is the clean end of this direction.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`StreamError::Refused`] if the other end refused the flow, [`StreamError::Reset`] with the peer's
    /// code, or the end of the tunnel.
    pub async fn read_chunks(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, StreamError> {
        std::future::poll_fn(|cx| self.poll_read_chunks(cx, chunks)).await
    }

    /// The same for a hand-written future.
    pub fn poll_read_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, StreamError>> {
        ready!(self.poll_reply(cx))?;
        if chunks.is_empty() {
            return Poll::Ready(Ok(Some(0)));
        }
        if !self.ready.is_empty() {
            chunks[0] = std::mem::take(&mut self.ready);
            return Poll::Ready(Ok(Some(1)));
        }
        let read = ready!(pin!(self.stream.read_chunks(chunks)).poll(cx));
        Poll::Ready(match read {
            Ok(Some(count)) => {
                self.flow.count_read(chunks[..count].iter().map(Bytes::len).sum());
                Ok(Some(count))
            }
            Ok(None) => {
                self.ended = true;
                Ok(None)
            }
            Err(error) => Err(self.failed(error)),
        })
    }

    /// Waits for the reply of the other end and returns what it told. Reads do this by themselves; ask
    /// first where nothing must be sent before the other end has accepted.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// As [`RecvHalf::read_chunks`].
    pub async fn reply(&mut self) -> Result<Accepted, StreamError> {
        std::future::poll_fn(|cx| self.poll_reply(cx)).await?;
        match &self.stage {
            Stage::Data(accepted) => Ok(accepted.clone()),
            Stage::Reply(_) | Stage::Refused(_) => Err(StreamError::Ended),
        }
    }

    /// Gives up this direction; the peer's writes fail with `code`. Does nothing after the end.
    pub fn stop(&mut self, code: ResetCode) {
        self.flow.receive_ended();
        if !std::mem::replace(&mut self.ended, true) {
            let _ = self.stream.stop(code.varint()); // ended by itself: nothing is left to say
        }
    }

    /// Says that the local socket takes nothing now, for as long as the guard lives.
    ///
    /// A relay takes one whenever its write would block, see [`RecvHalf::while_blocked`].
    pub fn blocked(&self) -> StallGuard<'_> {
        StallGuard::new(&self.flow)
    }

    /// Waits for `writable` with the flow marked as blocked.
    ///
    /// # Errors
    ///
    /// [`Evicted`] if the flow must go meanwhile: drop both halves, the peer is told
    /// [`ResetCode::Stalled`].
    pub async fn while_blocked<T>(&self, writable: impl Future<Output = T>) -> Result<T, Evicted> {
        let guard = self.blocked();
        tokio::select! {
            biased;
            done = writable => Ok(done),
            () = guard.evicted() => Err(Evicted),
        }
    }

    fn poll_reply(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        loop {
            let buffer = match &mut self.stage {
                Stage::Data(_) => return Poll::Ready(Ok(())),
                Stage::Refused(refused) => return Poll::Ready(Err(StreamError::Refused(refused.clone()))),
                Stage::Reply(buffer) => buffer,
            };
            let decoded = match ready!(poll_frame(&mut self.stream, buffer, StreamReply::decode, cx)) {
                Ok(Some(decoded)) => decoded,
                Ok(None) => {
                    self.ended = true;
                    let missing = HeaderError::Missing("reply");
                    return Poll::Ready(Err(StreamError::Reply(missing)));
                }
                Err(FrameFault::Malformed(error)) => {
                    self.stop(ResetCode::Protocol);
                    return Poll::Ready(Err(StreamError::Reply(error)));
                }
                Err(FrameFault::Read(error)) => return Poll::Ready(Err(self.failed(error))),
            };
            let (reply, rest) = decoded;
            self.flow.count_read(rest.len());
            self.ready = rest;
            self.stage = match reply {
                StreamReply::Accepted(accepted) => {
                    self.flow.set_answered();
                    Stage::Data(accepted)
                }
                StreamReply::Refused(refused) => Stage::Refused(refused),
            };
        }
    }

    fn failed(&mut self, error: quinn::ReadError) -> StreamError {
        self.ended = true;
        self.flow.tunnel.stream_error(error)
    }
}

/// What can go wrong while a frame is read.
pub(crate) enum FrameFault {
    Malformed(HeaderError),
    Read(quinn::ReadError),
}

/// Reads a header or reply, and returns it with the payload that came in the same chunk. `None` if the
/// stream ended before.
pub(crate) fn poll_frame<T>(
    stream: &mut quinn::RecvStream,
    buffer: &mut BytesMut,
    decode: fn(&[u8]) -> Result<Progress<T>, HeaderError>,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<(T, Bytes)>, FrameFault>> {
    loop {
        let chunk = match ready!(pin!(stream.read_chunk(usize::MAX, true)).poll(cx)) {
            Ok(Some(chunk)) => chunk.bytes,
            Ok(None) => return Poll::Ready(Ok(None)),
            Err(error) => return Poll::Ready(Err(FrameFault::Read(error))),
        };
        let bytes = if buffer.is_empty() {
            chunk // the common case: all in the first packet, no copy
        } else {
            buffer.extend_from_slice(&chunk);
            buffer.split().freeze()
        };
        match decode(&bytes).map_err(FrameFault::Malformed) {
            Ok(Progress::Complete { value, used }) => {
                return Poll::Ready(Ok(Some((value, bytes.slice(used..)))));
            }
            Ok(Progress::NeedMore) => buffer.extend_from_slice(&bytes), // bounded: a frame is 1 KiB
            Err(fault) => return Poll::Ready(Err(fault)),
        }
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if !self.ended {
            self.reset(self.flow.drop_code());
        }
        self.flow.half_dropped();
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        self.stop(self.flow.drop_code());
        self.flow.half_dropped();
    }
}

impl AsyncWrite for SendHalf {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(pin!(self.stream.write(buf)).poll(cx));
        Poll::Ready(written.map_err(|error| self.flow.tunnel.stream_error(error).into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(self.finish().map_err(io::Error::from))
    }
}

impl AsyncRead for RecvHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_reply(cx))?;
        if !this.ready.is_empty() {
            let taken = this.ready.split_to(this.ready.len().min(buf.remaining()));
            buf.put_slice(&taken);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        if let Err(error) = ready!(this.stream.poll_read_buf(cx, buf)) {
            return Poll::Ready(Err(this.failed(error).into()));
        }
        let read = buf.filled().len() - before;
        this.flow.count_read(read);
        this.ended |= read == 0 && buf.remaining() > 0;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.send).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_shutdown(cx)
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.recv).poll_read(cx, buf)
    }
}
