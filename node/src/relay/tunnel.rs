//! The tunnel's ends of a flow: whole packets' payloads in, whole buffers out, no copies.

use std::{
    array,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use weft_overlay::{RecvHalf, ResetCode, SendHalf, StallGuard, StreamError};

use super::{
    chunks::Chunks,
    pump::{Broken, Sink, Source},
};

/// Payloads taken at once: as many as one `writev` of tokio's takes, and bulk fills them all. The array lives on the stack.
const READ_CHUNKS: usize = 64;

/// The receiving half.
pub(super) struct TunnelSource<'a> {
    half: &'a mut RecvHalf,
}

impl<'a> TunnelSource<'a> {
    pub(super) const fn new(half: &'a mut RecvHalf) -> Self {
        Self { half }
    }
}

impl Source for TunnelSource<'_> {
    fn poll_read(&mut self, cx: &mut Context<'_>, chunks: &mut Chunks) -> Poll<Result<bool, Broken>> {
        // On the stack, not in the flow: an idle flow should cost nothing.
        let mut payloads: [Bytes; READ_CHUNKS] = array::from_fn(|_| Bytes::new());
        match ready!(self.half.poll_read_chunks(cx, &mut payloads)) {
            Ok(Some(count)) => {
                for payload in payloads.into_iter().take(count) {
                    chunks.push(payload);
                }
                Poll::Ready(Ok(true))
            }
            Ok(None) => Poll::Ready(Ok(false)),
            Err(error) => Poll::Ready(Err(Broken::Far(error))),
        }
    }

    fn blocked(&self) -> Option<StallGuard<'_>> {
        Some(self.half.blocked())
    }

    fn stop(&mut self, code: ResetCode) {
        self.half.stop(code);
    }
}

/// The sending half.
pub(super) struct TunnelSink<'a> {
    half: &'a mut SendHalf,
}

impl<'a> TunnelSink<'a> {
    pub(super) const fn new(half: &'a mut SendHalf) -> Self {
        Self { half }
    }
}

impl Sink for TunnelSink<'_> {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut Chunks) -> Poll<Result<(), Broken>> {
        while chunks.has_remaining() {
            match ready!(self.half.poll_write_chunks(cx, chunks.as_mut_slice())) {
                Ok(written) => chunks.written(written.bytes, written.chunks),
                Err(error) => return Poll::Ready(Err(Broken::Far(error))),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match self.half.finish() {
            Ok(()) | Err(StreamError::Ended) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(Broken::Far(error))),
        }
    }
}
