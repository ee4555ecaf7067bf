//! The dialling side: addresses raced, the winner proven, tonic on top.

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    net::{TcpStream, UnixStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use weft_identity::tls::VerifyError;
use weft_policy::model::HostPort;

use super::ALPN_H2;

/// How long a dial may take and how a connection is kept alive.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ConnectSettings {
    /// From resolving the name to the end of the TLS handshake, for each address; 5 s.
    pub timeout: Duration,
    /// How often a silent server is asked for a sign of life, and how long it has to answer; 10 s.
    pub keep_alive: Duration,
}

impl Default for ConnectSettings {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), keep_alive: Duration::from_secs(10) }
    }
}

/// The head start of an address over the next one (decisions.md, addresses; RFC 8305 §5).
const HEAD_START: Duration = Duration::from_millis(250);

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address was given.
    #[error("no address to connect to")]
    NoAddress,
    /// The server name is not one that TLS can carry.
    #[error("{0:?} is not a server name")]
    ServerName(String),
    /// Every address failed.
    #[error("no address answered: {}", Attempts(.0))]
    Failed(Vec<Attempt>),
    /// The Unix socket did not answer.
    #[error("cannot connect to {}", path.display())]
    Unix {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// HTTP/2 did not start.
    #[error("the server does not speak gRPC")]
    Grpc(#[source] tonic::transport::Error),
}

impl ConnectError {
    /// Whether an address answered and TLS was refused by one side: waiting will not help, identities differ.
    #[must_use]
    pub fn is_tls_refusal(&self) -> bool {
        match self {
            Self::Failed(attempts) => attempts.iter().any(|a| matches!(a.error, AttemptError::Tls(_))),
            Self::NoAddress | Self::ServerName(_) | Self::Unix { .. } | Self::Grpc(_) => false,
        }
    }

    /// What this side found against the certificate of a server, if that is what failed.
    #[must_use]
    pub fn verdict(&self) -> Option<&VerifyError> {
        let Self::Failed(attempts) = self else { return None };
        attempts.iter().find_map(|attempt| match &attempt.error {
            AttemptError::Tls(error) => error.get_ref()?.downcast_ref().and_then(VerifyError::of),
            AttemptError::Resolve(_)
            | AttemptError::Connect(_)
            | AttemptError::TimedOut(_)
            | AttemptError::Protocol => None,
        })
    }
}

/// One address that failed.
#[derive(Debug)]
pub struct Attempt {
    /// `host:port` as given, or the resolved address.
    pub address: String,
    /// Why it failed.
    pub error: AttemptError,
}

/// Why one address failed.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The name does not resolve.
    #[error("does not resolve: {0}")]
    Resolve(io::Error),
    /// TCP was refused or unreachable.
    #[error("{0}")]
    Connect(io::Error),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// One side refused the other's certificate, or it is not TLS.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// The peer speaks TLS, but not TLS 1.3 with h2.
    #[error("not a control port: TLS 1.3 with h2 was not negotiated")]
    Protocol,
}

struct Attempts<'a>(&'a [Attempt]);

impl fmt::Display for Attempts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, attempt) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "; " };
            write!(f, "{comma}{}: {}", attempt.address, attempt.error)?;
        }
        Ok(())
    }
}

/// Connects to the first of `addresses` that answers and proves itself to `tls`; each has a head start of 250 ms over
/// the next. The channel dials again by itself, over all addresses, when its connection breaks.
///
/// `server_name` goes out as SNI; who the server must be stands in `tls`. Cancel-safe.
///
/// # Errors
///
/// [`ConnectError`], with the fate of each address.
pub async fn connect(
    addresses: &[HostPort],
    tls: Arc<rustls::ClientConfig>,
    server_name: &str,
) -> Result<Channel, ConnectError> {
    connect_with(addresses, tls, server_name, ConnectSettings::default()).await
}

/// [`connect`] with other settings.
///
/// # Errors
///
/// [`ConnectError`], with the fate of each address.
pub async fn connect_with(
    addresses: &[HostPort],
    tls: Arc<rustls::ClientConfig>,
    server_name: &str,
    settings: ConnectSettings,
) -> Result<Channel, ConnectError> {
    let name = ServerName::try_from(server_name.to_owned())
        .map_err(|_| ConnectError::ServerName(server_name.to_owned()))?;
    let dialler = Dialler { addresses: addresses.into(), connector: TlsConnector::from(tls), name, settings };
    let first = dialler.dial().await?;
    let endpoint = endpoint(&format!("http://{server_name}"), settings)?;
    let dial = move || {
        let dialler = dialler.clone();
        async move { dialler.dial().await }
    };
    channel(endpoint, first, dial).await
}

/// Connects without TLS, which only other programs of this host may be spoken to: to the first of `addresses` that
/// answers, with the head start and the repetition of [`connect`]. Cancel-safe.
///
/// # Errors
///
/// [`ConnectError`], with the fate of each address.
pub async fn connect_plain(
    addresses: &[HostPort],
    settings: ConnectSettings,
) -> Result<Channel, ConnectError> {
    let addresses: Arc<[HostPort]> = addresses.into();
    let dial = move || {
        let attempts = addresses.iter().cloned().map(|host| dial_plain(host, settings.timeout)).collect();
        async move { race(attempts).await.map_err(ConnectError::Failed) }
    };
    let first = dial().await?;
    channel(endpoint("http://local", settings)?, first, dial).await
}

async fn dial_plain(host: HostPort, limit: Duration) -> Result<TcpStream, Attempt> {
    let dial = async {
        let socket = TcpStream::connect((host.host.as_str(), host.port)).await?;
        socket.set_nodelay(true)?;
        Ok(socket)
    };
    let outcome = match timeout(limit, dial).await {
        Ok(outcome) => outcome.map_err(AttemptError::Connect),
        Err(_elapsed) => Err(AttemptError::TimedOut(limit)),
    };
    outcome.map_err(|error| Attempt { address: host.to_string(), error })
}

/// Connects to the Unix socket at `path`. The channel connects again by itself when its connection breaks.
///
/// # Errors
///
/// [`ConnectError::Unix`] when nobody listens there, [`ConnectError::Grpc`] when the listener is another program.
pub async fn connect_unix(path: &Path) -> Result<Channel, ConnectError> {
    let path = path.to_owned();
    let dial = move || {
        let path = path.clone();
        async move { UnixStream::connect(&path).await.map_err(|source| ConnectError::Unix { path, source }) }
    };
    let first = dial().await?;
    channel(endpoint("http://local", ConnectSettings::default())?, first, dial).await
}

fn endpoint(uri: &str, settings: ConnectSettings) -> Result<Endpoint, ConnectError> {
    Ok(Endpoint::from_shared(uri.to_owned())
        .map_err(|_| ConnectError::ServerName(uri.to_owned()))?
        .http2_keep_alive_interval(settings.keep_alive)
        .keep_alive_timeout(settings.keep_alive)
        .keep_alive_while_idle(true))
}

/// A channel over `first`, a connection that is there already (so that its errors were told exactly), then over `dial`.
async fn channel<S, D, F>(endpoint: Endpoint, first: S, dial: D) -> Result<Channel, ConnectError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    D: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = Result<S, ConnectError>> + Send + 'static,
{
    let first = Mutex::new(Some(first));
    let connector = tower::service_fn(move |_: http::Uri| {
        let ready = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let again = ready.is_none().then(&dial);
        async move {
            match (ready, again) {
                (Some(stream), _) => Ok(TokioIo::new(stream)),
                (None, Some(dial)) => dial.await.map(TokioIo::new),
                (None, None) => Err(ConnectError::NoAddress),
            }
        }
    });
    endpoint.connect_with_connector(connector).await.map_err(ConnectError::Grpc)
}

#[derive(Clone)]
struct Dialler {
    addresses: Arc<[HostPort]>,
    connector: TlsConnector,
    name: ServerName<'static>,
    settings: ConnectSettings,
}

impl Dialler {
    async fn dial(&self) -> Result<TlsStream<TcpStream>, ConnectError> {
        if self.addresses.is_empty() {
            return Err(ConnectError::NoAddress);
        }
        let hosts = self.addresses.iter().cloned();
        let attempts = hosts.map(|host| self.clone().dial_host(host)).collect();
        race(attempts).await.map_err(|failed| ConnectError::Failed(failed.into_iter().flatten().collect()))
    }

    async fn dial_host(self, host: HostPort) -> Result<TlsStream<TcpStream>, Vec<Attempt>> {
        let limit = self.settings.timeout;
        let failed = |error| vec![Attempt { address: host.to_string(), error }];
        let lookup = tokio::net::lookup_host((host.host.as_str(), host.port));
        let found = match timeout(limit, lookup).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(failed(AttemptError::Resolve(error))),
            Err(_elapsed) => return Err(failed(AttemptError::TimedOut(limit))),
        };
        let attempts: Vec<_> = found.map(|address| self.clone().dial_address(address)).collect();
        if attempts.is_empty() {
            return Err(failed(AttemptError::Resolve(io::ErrorKind::NotFound.into())));
        }
        race(attempts).await
    }

    async fn dial_address(self, address: SocketAddr) -> Result<TlsStream<TcpStream>, Attempt> {
        let limit = self.settings.timeout;
        let outcome = timeout(limit, self.handshake(address)).await;
        outcome
            .unwrap_or(Err(AttemptError::TimedOut(limit)))
            .map_err(|error| Attempt { address: address.to_string(), error })
    }

    async fn handshake(&self, address: SocketAddr) -> Result<TlsStream<TcpStream>, AttemptError> {
        let socket = TcpStream::connect(address).await.map_err(AttemptError::Connect)?;
        socket.set_nodelay(true).map_err(AttemptError::Connect)?;
        let stream = self.connector.connect(self.name.clone(), socket).await.map_err(AttemptError::Tls)?;
        let (_, session) = stream.get_ref();
        let tls13 = session.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        if tls13 && session.alpn_protocol() == Some(ALPN_H2) {
            Ok(stream)
        } else {
            Err(AttemptError::Protocol)
        }
    }
}

/// Runs `attempts` in order, each with a head start over the next (none once it has failed); the first success wins and
/// ends the others. The errors are those of all attempts, in the order in which they came.
async fn race<T, E, F>(attempts: Vec<F>) -> Result<T, Vec<E>>
where
    T: Send + 'static,
    E: Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    let mut waiting = attempts.into_iter();
    let mut running = JoinSet::new();
    let mut errors = Vec::new();
    loop {
        match waiting.next() {
            Some(next) => {
                running.spawn(next);
            }
            None if running.is_empty() => return Err(errors),
            None => {}
        }
        let more = waiting.len() > 0;
        tokio::select! {
            Some(ended) = running.join_next() => match ended {
                Ok(Ok(won)) => return Ok(won),
                Ok(Err(error)) => errors.push(error),
                Err(_panicked) => {}
            },
            () = sleep(HEAD_START), if more => {}
        }
    }
}
