//! Plain HTTP connections of a few pages, within bounds: what the metrics and admin ports of both planes serve.
//!
//! Owns the places of one listener and the patience with one connection: a peer that neither asks nor takes its answer
//! is closed, so that idle connections cannot use up the process's descriptors.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep},
};

/// The connections that one listener holds; further ones wait in the kernel's queue. A scraper needs one.
const MAX_CONNECTIONS: usize = 64;
/// From the accept, or from the last byte of an answer, to the first byte of the next answer: the header timeout of
/// security.md 9.3, which the pages themselves need next to nothing of.
const PATIENCE: Duration = Duration::from_secs(10);

/// The places of one listener. A clone shares them.
#[derive(Clone, Debug)]
pub struct PlainPlaces(Arc<Semaphore>);

impl Default for PlainPlaces {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_CONNECTIONS)))
    }
}

/// One place, given back when dropped.
#[derive(Debug)]
pub struct PlainPlace(#[expect(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>);

impl PlainPlaces {
    /// Waits for a place. Cancel-safe.
    pub async fn take(&self) -> PlainPlace {
        // The semaphore is never closed.
        PlainPlace(Arc::clone(&self.0).acquire_owned().await.ok())
    }
}

/// A connection that holds a place and ends when its peer is too slow.
#[derive(Debug)]
pub struct PlainStream {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    _place: PlainPlace,
}

impl PlainStream {
    /// Takes an accepted connection.
    #[must_use]
    pub fn new(stream: TcpStream, place: PlainPlace) -> Self {
        Self { stream, deadline: Box::pin(tokio::time::sleep(PATIENCE)), _place: place }
    }

    /// What the socket says; a peer that keeps it waiting beyond the deadline has failed.
    fn within<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match polled {
            Poll::Pending if self.deadline.as_mut().poll(context).is_ready() => {
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            other @ (Poll::Ready(_) | Poll::Pending) => other,
        }
    }
}

impl AsyncRead for PlainStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Bytes that come in do not move the deadline: one a second would hold the place for good.
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.within(context, polled)
    }
}

impl AsyncWrite for PlainStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        if matches!(polled, Poll::Ready(Ok(_))) {
            self.deadline.as_mut().reset(Instant::now() + PATIENCE);
        }
        self.within(context, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.within(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.within(context, polled)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    async fn pair(places: &PlainPlaces) -> (TcpStream, PlainStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, PlainStream::new(listener.accept().await.unwrap().0, places.take().await))
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_nothing_is_ended_and_its_place_is_free() {
        let places = PlainPlaces::default();
        let (_client, mut held) = pair(&places).await;
        let began = Instant::now();
        let ended = held.read_u8().await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed().as_secs() + 1 >= PATIENCE.as_secs(), "{:?}", began.elapsed());
        drop(held);
        assert_eq!(places.0.available_permits(), MAX_CONNECTIONS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_buys_no_time_and_an_answer_does() {
        let places = PlainPlaces::default();
        let (mut client, mut held) = pair(&places).await;
        client.write_all(b"GET").await.unwrap();
        let mut bytes = [0; 3];
        held.read_exact(&mut bytes).await.unwrap();
        let began = Instant::now();
        tokio::time::advance(PATIENCE / 2).await;
        held.write_all(b"answer").await.unwrap();
        assert!(held.read_u8().await.is_err());
        let took = began.elapsed().as_secs();
        assert!((14..=16).contains(&took), "{took} s: five before the answer, ten after it");
    }
}
