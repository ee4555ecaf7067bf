//! A flow of the peer before it is answered: first its header, then accept or refuse.
//!
//! [`Opening`] has bytes to come, [`Incoming`] has a header; only an accepted one has a
//! [`TunnelStream`]. Dropping either resets the flow.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tracing::debug;

use crate::code::ResetCode;
use crate::error::{OpeningError, StreamError};
use crate::header::StreamHeader;
use crate::load::Work;
use crate::reply::{Accepted, Refused, StreamReply};
use crate::stall::Flow;
use crate::stream::{FlowHandle, FrameFault, TunnelStream, poll_frame};
use crate::tunnel::Tunnel;
use crate::wire::HeaderError;

/// A flow whose header has not been read.
#[derive(Debug)]
pub struct Opening {
    stream: Unanswered,
    timeout: Duration,
}

/// A flow that waits for an answer.
#[derive(Debug)]
pub struct Incoming {
    header: StreamHeader,
    stream: Unanswered,
    ready: Bytes,
}

/// The raw flow; taken out when it is answered, reset when it is dropped before.
#[derive(Debug)]
struct Unanswered {
    tunnel: Tunnel,
    parts: Option<(quinn::SendStream, quinn::RecvStream, Arc<Flow>)>,
}

impl Opening {
    pub(crate) fn new(
        tunnel: Tunnel,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
        flow: Arc<Flow>,
        timeout: Duration,
    ) -> Self {
        Self { stream: Unanswered { tunnel, parts: Some((send, recv, flow)) }, timeout }
    }

    /// Reads the header, within the header timeout. Not cancel-safe: the flow is reset.
    ///
    /// # Errors
    ///
    /// [`OpeningError`]; the flow has been reset with a code that says why.
    pub async fn header(mut self) -> Result<Incoming, OpeningError> {
        let timeout = self.timeout;
        let read = match tokio::time::timeout(timeout, self.stream.read_header()).await {
            Ok(read) => read,
            Err(_) => Err(OpeningError::Timeout { waited: timeout }),
        };
        match read {
            Ok((header, ready)) => Ok(Incoming { header, stream: self.stream, ready }),
            Err(error) => {
                debug!(peer = %self.stream.tunnel.peer().id, %error, "flow without a header");
                self.stream.reset(reset_code(&error));
                if is_fruitless(&error) {
                    // Too many of them close the tunnel; this flow has ended either way.
                    let _ = self.stream.tunnel.core().charge(Work::Fruitless);
                }
                Err(error)
            }
        }
    }
}

/// Whether the peer wasted a flow without a RESET_STREAM, which is counted as a frame.
fn is_fruitless(error: &OpeningError) -> bool {
    match error {
        OpeningError::Header(_) | OpeningError::Truncated | OpeningError::Timeout { .. } => true,
        OpeningError::Stream(_) => false,
    }
}

fn reset_code(error: &OpeningError) -> ResetCode {
    match error {
        OpeningError::Header(HeaderError::UnsupportedVersion(_)) => ResetCode::UnsupportedVersion,
        OpeningError::Header(_) | OpeningError::Truncated => ResetCode::Protocol,
        OpeningError::Timeout { .. } => ResetCode::Idle,
        OpeningError::Stream(_) => ResetCode::Cancelled,
    }
}

impl Incoming {
    /// What the peer asks for. Claims, but for the peer itself: that is [`Tunnel::peer`].
    pub fn header(&self) -> &StreamHeader {
        &self.header
    }

    /// The tunnel that the flow is on.
    pub fn tunnel(&self) -> &Tunnel {
        &self.stream.tunnel
    }

    /// A handle that can name the reason for a later drop.
    pub fn handle(&self) -> Option<FlowHandle> {
        self.stream.parts.as_ref().map(|(_, _, flow)| FlowHandle::of(flow.clone()))
    }

    /// Tells the peer that its flow was accepted and yields the flow.
    ///
    /// Not cancel-safe: the flow is reset.
    ///
    /// # Errors
    ///
    /// [`StreamError`] if the peer has gone.
    pub async fn accept(mut self, accepted: Accepted) -> Result<TunnelStream, StreamError> {
        let (send, recv, flow) = self.stream.parts.take().ok_or(StreamError::Ended)?;
        let mut stream = TunnelStream::accepted(send, recv, flow, std::mem::take(&mut self.ready));
        let reply = StreamReply::Accepted(accepted).encode();
        stream.halves().0.write_all_chunks(&mut [reply]).await?;
        Ok(stream)
    }

    /// Tells the peer why not, and ends the flow. Never waits: where the reply cannot be sent at once,
    /// the reset code alone tells.
    pub fn refuse(mut self, refused: Refused) {
        let code = refused.code.known().unwrap_or(ResetCode::Internal);
        let Some((mut send, mut recv, flow)) = self.stream.parts.take() else { return };
        let reply = StreamReply::Refused(refused).encode();
        let mut cx = Context::from_waker(Waker::noop());
        let sent = pin!(send.write_chunks(&mut [reply.clone()])).poll(&mut cx);
        if matches!(sent, Poll::Ready(Ok(written)) if written.bytes == reply.len()) {
            let _ = send.finish(); // just written to: it is open
        } else {
            let _ = send.reset(code.varint());
        }
        let _ = recv.stop(code.varint()); // an error means that the peer has finished already
        end(&flow);
    }
}

impl Unanswered {
    async fn read_header(&mut self) -> Result<(StreamHeader, Bytes), OpeningError> {
        let Some((_, recv, _)) = &mut self.parts else { return Err(OpeningError::Truncated) };
        let mut buffer = BytesMut::new();
        let frame = poll_fn(|cx| poll_frame(recv, &mut buffer, StreamHeader::decode, cx)).await;
        match frame {
            Ok(Some(header_and_rest)) => Ok(header_and_rest),
            Ok(None) => Err(OpeningError::Truncated),
            Err(FrameFault::Malformed(error)) => Err(OpeningError::Header(error)),
            Err(FrameFault::Read(error)) => Err(self.tunnel.core().stream_error(error).into()),
        }
    }

    fn reset(&mut self, code: ResetCode) {
        let Some((mut send, mut recv, flow)) = self.parts.take() else { return };
        let _ = send.reset(code.varint()); // an error means that it has ended already
        let _ = recv.stop(code.varint());
        end(&flow);
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let code = self.parts.as_ref().map_or(ResetCode::Cancelled, |(_, _, flow)| flow.drop_code());
        self.reset(code);
    }
}

/// Both halves at once, for a flow that never became a stream.
fn end(flow: &Flow) {
    flow.half_dropped();
    flow.half_dropped();
}
