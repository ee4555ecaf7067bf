//! The TLS listener: accepted sockets become proven connections.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};
use weft_identity::tls::{PeerIdentity, peer_id};

use super::{
    ALPN_H2, Limits,
    patience::Patience,
    slots::{ChannelStats, Connections, Cut, Slot, Slots},
};

/// What is known of a TLS connection; in the extensions of every request on it.
#[derive(Clone, Debug)]
pub struct ConnectInfo {
    /// Who the peer proved to be; `None` for a client without a certificate. Its `not_after` is to be checked again on
    /// each request (API-14).
    pub peer: Option<PeerIdentity>,
    /// The chain that proved it, leaf first, to be judged again when bundles change; empty without a certificate.
    pub chain: Arc<[CertificateDer<'static>]>,
    /// Where it connected from, canonical.
    pub remote_addr: SocketAddr,
}

/// Proven connections, for tonic's `serve_with_incoming`. Dropping it closes the listener and ends the handshakes.
#[derive(Debug)]
pub struct Incoming {
    ready: mpsc::Receiver<TlsConnection>,
    stats: Arc<ChannelStats>,
    connections: Connections,
    _acceptor: JoinSet<()>,
}

impl Incoming {
    /// A handle to all connections that come out of here; take it before tonic takes the stream.
    #[must_use]
    pub fn connections(&self) -> Connections {
        self.connections.clone()
    }

    /// What the listener has done so far.
    #[must_use]
    pub fn stats(&self) -> Arc<ChannelStats> {
        Arc::clone(&self.stats)
    }
}

impl Stream for Incoming {
    type Item = Result<TlsConnection, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx).map(|next| next.map(Ok))
    }
}

/// Connections that wait to be taken up by tonic, which takes them up at once.
const READY_CONNECTIONS: usize = 64;

/// Serves TLS on `listener`: `tls` decides who is let in, `limits` how many.
///
/// Handshakes run side by side in a task that the returned stream owns. Call it within a tokio runtime.
#[must_use]
pub fn serve_incoming(listener: TcpListener, tls: Arc<rustls::ServerConfig>, limits: Limits) -> Incoming {
    serve(listener, tls, limits)
}

pub(super) fn serve(listener: impl Accept, tls: Arc<rustls::ServerConfig>, limits: Limits) -> Incoming {
    let (sender, ready) = mpsc::channel(READY_CONNECTIONS);
    let stats = Arc::new(ChannelStats::default());
    let connections = Connections::default();
    let acceptor = Acceptor {
        tls: TlsAcceptor::from(tls),
        limits,
        pending: Slots::new(limits.handshakes, limits.handshakes_per_address),
        open: Slots::new(limits.connections, limits.connections_per_address),
        anonymous: Slots::new(limits.anonymous, limits.anonymous_per_address),
        ready: sender,
        stats: Arc::clone(&stats),
        connections: connections.clone(),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(acceptor.run(listener));
    Incoming { ready, stats, connections, _acceptor: tasks }
}

/// Where sockets come from; a trait so that a test can make accepting fail.
pub(super) trait Accept: Send + 'static {
    fn accept(&mut self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send;
}

impl Accept for TcpListener {
    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        Self::accept(self).await
    }
}

/// The first and the longest wait after accepting failed (API-09): out of descriptors, trying at once only burns CPU.
const ACCEPT_BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

#[derive(Clone)]
struct Acceptor {
    tls: TlsAcceptor,
    limits: Limits,
    pending: Arc<Slots>,
    open: Arc<Slots>,
    anonymous: Arc<Slots>,
    ready: mpsc::Sender<TlsConnection>,
    stats: Arc<ChannelStats>,
    connections: Connections,
}

impl Acceptor {
    async fn run(self, mut listener: impl Accept) {
        let mut handshakes = JoinSet::new();
        let mut backoff = ACCEPT_BACKOFF.0;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept(), if handshakes.len() < self.limits.handshakes => accepted,
                Some(_) = handshakes.join_next() => continue,
                () = self.ready.closed() => return,
            };
            match accepted {
                Ok((socket, from)) => {
                    backoff = ACCEPT_BACKOFF.0;
                    self.begin(&mut handshakes, socket, from);
                }
                Err(error) => {
                    ChannelStats::count(&self.stats.accept_errors);
                    warn!(%error, wait = ?backoff, "cannot accept a connection, trying again");
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(ACCEPT_BACKOFF.1);
                }
            }
        }
    }

    /// Starts the handshake, or closes the socket when a bound is reached.
    fn begin(&self, handshakes: &mut JoinSet<()>, socket: TcpStream, from: SocketAddr) {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let (Some(pending), Some(open)) = (self.pending.take(from.ip()), self.open.take(from.ip())) else {
            self.refused(from);
            return;
        };
        let this = self.clone();
        handshakes.spawn(async move {
            let outcome = timeout(this.limits.handshake_timeout, this.handshake(socket, from, open)).await;
            drop(pending);
            match outcome {
                Ok(Ok(connection)) => this.hand_over(connection).await,
                Ok(Err(HandshakeError::TooManyStrangers)) => this.refused(from),
                Ok(Err(error)) => this.failed(from, &error),
                Err(_elapsed) => this.failed(from, &HandshakeError::TimedOut),
            }
        });
    }

    async fn handshake(
        &self,
        socket: TcpStream,
        from: SocketAddr,
        slot: Slot,
    ) -> Result<TlsConnection, HandshakeError> {
        socket.set_nodelay(true).map_err(HandshakeError::Tls)?;
        let stream = self.tls.accept(socket).await.map_err(HandshakeError::Tls)?;
        let (_, session) = stream.get_ref();
        if session.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
            return Err(HandshakeError::NotTls13);
        }
        if session.alpn_protocol() != Some(ALPN_H2) {
            return Err(HandshakeError::NotHttp2);
        }
        let peer = match session.peer_certificates() {
            None | Some([]) => None,
            Some(chain) => Some(peer_id(chain).map_err(|error| HandshakeError::Nobody(error.to_string()))?),
        };
        let (anonymous, stay) = match &peer {
            Some(_) => (None, None),
            None => {
                let slot = self.anonymous.take(from.ip()).ok_or(HandshakeError::TooManyStrangers)?;
                (Some(slot), Some(self.limits.anonymous_age))
            }
        };
        self.stats.open.fetch_add(1, Ordering::Relaxed);
        let chain =
            session.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect();
        let info = ConnectInfo { peer, chain, remote_addr: from };
        Ok(TlsConnection {
            stream,
            info,
            cut: self.connections.cut(),
            patience: Patience::new(self.limits.handshake_timeout, stay),
            _slots: (slot, anonymous),
            stats: Arc::clone(&self.stats),
        })
    }

    async fn hand_over(&self, connection: TlsConnection) {
        ChannelStats::count(&self.stats.accepted);
        if self.ready.send(connection).await.is_err() {
            debug!("connection dropped: the server is ending");
        }
    }

    fn refused(&self, from: SocketAddr) {
        ChannelStats::count(&self.stats.refused);
        debug!(%from, "connection closed: a limit of the listener is reached");
    }

    fn failed(&self, from: SocketAddr, error: &HandshakeError) {
        ChannelStats::count(&self.stats.handshake_failures);
        debug!(%from, %error, "handshake failed");
    }
}

/// Why a socket did not become a connection.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("no handshake within the time limit")]
    TimedOut,
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("the peer did not negotiate TLS 1.3")]
    NotTls13,
    #[error("the peer did not negotiate h2")]
    NotHttp2,
    #[error("the certificate proves no identity: {0}")]
    Nobody(String),
    #[error("as many callers without a certificate are connected as may be")]
    TooManyStrangers,
}

/// One TLS connection with what is known of its peer.
#[derive(Debug)]
pub struct TlsConnection {
    stream: TlsStream<TcpStream>,
    info: ConnectInfo,
    cut: Cut,
    patience: Patience,
    _slots: (Slot, Option<Slot>),
    stats: Arc<ChannelStats>,
}

impl Drop for TlsConnection {
    fn drop(&mut self) {
        self.stats.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connected for TlsConnection {
    type ConnectInfo = ConnectInfo;

    fn connect_info(&self) -> ConnectInfo {
        self.info.clone()
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.cut.check(cx)?;
        self.patience.check(cx)?;
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.patience.heard(buf.filled().len().saturating_sub(before));
        read
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.cut.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
