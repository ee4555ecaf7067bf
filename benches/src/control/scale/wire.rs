//! A control channel whose bytes are counted: TLS 1.3 and gRPC as agents speak them, over one connection.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

/// Bytes that agents had from their server, TLS records included, without the headers of TCP and IP.
#[derive(Debug, Default)]
pub(super) struct Wire {
    received: AtomicU64,
}

impl Wire {
    /// All of them.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

struct Counted {
    socket: TcpStream,
    wire: Arc<Wire>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let outcome = Pin::new(&mut self.socket).poll_read(cx, into);
        self.wire.received.fetch_add((into.filled().len() - before) as u64, Ordering::Relaxed);
        outcome
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// Connects to `server`. The channel does not dial again: an agent that loses its connection fails the measurement.
pub(super) async fn connect(
    server: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    wire: Arc<Wire>,
) -> Result<Channel> {
    let socket = TcpStream::connect(server).await?;
    socket.set_nodelay(true)?;
    let name = rustls_pki_types::ServerName::from(server.ip());
    let stream = TlsConnector::from(tls).connect(name, Counted { socket, wire }).await?;
    let mut once = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = once.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        async move { stream }
    });
    Endpoint::from_static("http://server").connect_with_connector(connector).await.context("no gRPC")
}
