//! One direction of a flow: from a source, through a gate, into a sink.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use weft_overlay::{ResetCode, StallGuard, StreamError};

use super::{Activity, chunks::Chunks};
use crate::intercept::exchange::{ExchangeError, RequestGate, ResponseGate};

/// How much one direction may move before the other flows of the worker get their turn. At 8 Gbit/s it is 1 ms.
const TURN_BYTES: usize = 1024 * 1024;

/// Where bytes come from.
pub(super) trait Source: Send {
    /// Reads what is there; `false` is the clean end. Holds no buffer while it has nothing.
    fn poll_read(&mut self, cx: &mut Context<'_>, chunks: &mut Chunks) -> Poll<Result<bool, Broken>>;

    /// Says, for as long as the guard lives, that what was read cannot be passed on.
    fn blocked(&self) -> Option<StallGuard<'_>>;

    /// No more will be read: whoever sends should know.
    fn stop(&mut self, code: ResetCode);
}

/// Where bytes go.
pub(super) trait Sink: Send {
    /// Writes until `chunks` is empty.
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut Chunks) -> Poll<Result<(), Broken>>;

    /// Ends this direction in good order.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>;
}

/// Which way bytes go, seen from this agent's program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Direction {
    /// From the program.
    Up,
    /// To the program.
    Down,
}

/// What broke.
#[derive(Clone, Debug)]
pub(super) enum Broken {
    App(io::ErrorKind),
    Neighbour(io::ErrorKind),
    Far(StreamError),
    Stalled,
    Exchange(ExchangeError),
}

/// How one direction ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The source ended and the sink knows.
    Cleanly,
    /// The sink takes no more; the source has been told. The other direction may go on.
    SinkRefused(Broken),
    /// Bytes are missing: the flow is broken.
    SourceBroke(Broken),
}

/// What looks at the bytes in passing.
pub(super) enum Gate<'a> {
    Open,
    Request(&'a mut RequestGate),
    Response(&'a mut ResponseGate),
}

impl Gate<'_> {
    async fn ready(&mut self) -> Option<Bytes> {
        match self {
            Self::Request(gate) => gate.ready().await,
            Self::Open | Self::Response(_) => None,
        }
    }

    fn pass(&mut self, chunks: &mut Chunks) -> Result<(), Broken> {
        match self {
            Self::Open => return Ok(()),
            Self::Request(gate) => {
                for chunk in chunks.empty_out() {
                    chunks.push(gate.pass(chunk).map_err(Broken::Exchange)?);
                }
            }
            Self::Response(gate) => {
                for chunk in chunks.empty_out() {
                    chunks.push(gate.pass(chunk).map_err(Broken::Exchange)?);
                }
            }
        }
        Ok(())
    }

    fn finish(&self) -> Result<(), Broken> {
        match self {
            Self::Response(gate) => gate.finish().map_err(Broken::Exchange),
            Self::Open | Self::Request(_) => Ok(()),
        }
    }
}

/// Moves bytes until the source ends or something breaks. `first` goes before anything that is read: bytes that no
/// gate looks at, then bytes that were read before. `code` is what the source is told if the sink refuses.
pub(super) async fn pump(
    source: &mut impl Source,
    gate: &mut Gate<'_>,
    sink: &mut impl Sink,
    activity: &Activity<'_>,
    (direction, code): (Direction, ResetCode),
    (mut chunks, behind): (Chunks, Bytes),
) -> Ended {
    if let Err(broken) = start(gate, &mut chunks, behind) {
        return Ended::SourceBroke(broken);
    }
    let mut turn = 0;
    loop {
        let bytes = chunks.remaining();
        if bytes > 0 {
            match write(source, sink, &mut chunks, activity).await {
                Ok(()) => activity.moved(direction, bytes),
                Err(Broken::Stalled) => return Ended::SourceBroke(Broken::Stalled),
                Err(broken) => {
                    source.stop(code);
                    return Ended::SinkRefused(broken);
                }
            }
        }
        turn += bytes;
        if turn >= TURN_BYTES {
            turn = 0;
            tokio::task::yield_now().await;
        }
        match read(source, gate, &mut chunks).await {
            Ok(true) => {}
            Ok(false) => break,
            Err(broken) => return Ended::SourceBroke(broken),
        }
    }
    match poll_fn(|cx| sink.poll_finish(cx)).await {
        Ok(()) => Ended::Cleanly,
        Err(broken) => Ended::SinkRefused(broken),
    }
}

fn start(gate: &mut Gate<'_>, chunks: &mut Chunks, behind: Bytes) -> Result<(), Broken> {
    let mut gated = Chunks::starting_with(behind);
    gate.pass(&mut gated)?;
    for chunk in gated.empty_out() {
        chunks.push(chunk);
    }
    Ok(())
}

/// Reads at least something that goes on, `false` at the end.
async fn read(source: &mut impl Source, gate: &mut Gate<'_>, chunks: &mut Chunks) -> Result<bool, Broken> {
    if let Some(held) = gate.ready().await {
        chunks.push(held);
        return Ok(true);
    }
    let more = poll_fn(|cx| {
        let polled = source.poll_read(cx, chunks);
        if polled.is_pending() {
            chunks.release();
        }
        polled
    })
    .await?;
    if more {
        gate.pass(chunks)?
    } else {
        gate.finish()?
    }
    Ok(more)
}

/// Writes everything. While the sink takes nothing the source's flow counts as blocked, and may have to go.
async fn write(
    source: &impl Source,
    sink: &mut impl Sink,
    chunks: &mut Chunks,
    activity: &Activity<'_>,
) -> Result<(), Broken> {
    if let Poll::Ready(written) = poll_fn(|cx| Poll::Ready(sink.poll_write(cx, chunks))).await {
        return written;
    }
    loop {
        let left = chunks.remaining();
        let guard = source.blocked();
        let progress = poll_fn(|cx| match sink.poll_write(cx, chunks) {
            Poll::Ready(written) => Poll::Ready(Some(written)),
            Poll::Pending if chunks.remaining() < left => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        let written = match &guard {
            None => progress.await,
            Some(guard) => tokio::select! {
                biased;
                written = progress => written,
                () = guard.evicted() => return Err(Broken::Stalled),
            },
        };
        drop(guard);
        match written {
            Some(written) => return written,
            None => activity.touch(),
        }
    }
}
