//! One half of a baseline relay pair: plain TCP, or TLS over TCP with one connection per flow.
//!
//! Owns the copying. It is the least a proxy pair can do: accept, dial, copy both ways with half-close, no
//! policy, no pool, no log. What a mesh adds to it is what the benches measure.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{listen, tls};
use crate::pki::RELAY_NAME;

/// Copy buffer per direction, and what a TLS side reads from TCP at once: rustls alone reads 4 KiB at a time, which
/// costs the decrypting relay a tenth of its processor time and would make the baseline weaker than it need be.
/// Of 16, 64 and 256 KiB the transport study found 64 the best by a little (for its QUIC relay).
const COPY_BYTES: usize = 64 * 1024;

/// Which half of the pair.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Side {
    /// Beside the program that calls: accepts plain, dials the other half.
    Client,
    /// Beside the program that is called: accepts the other half, dials plain.
    Server,
}

/// Arguments of the relay role.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[arg(long, value_enum)]
    side: Side,
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    to: SocketAddr,
    /// Directory with the certificates; plain TCP between the halves without it.
    #[arg(long)]
    certificates: Option<PathBuf>,
}

/// How one accepted flow is carried on.
#[derive(Clone)]
enum Carrier {
    Plain,
    Dial(Arc<ClientConfig>),
    Accept(Arc<ServerConfig>),
}

/// Relays until cancelled. A flow that breaks ends alone.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let carrier = match (&arguments.certificates, arguments.side) {
        (None, Side::Client | Side::Server) => Carrier::Plain,
        (Some(directory), Side::Client) => Carrier::Dial(tls::client(directory)?),
        (Some(directory), Side::Server) => Carrier::Accept(tls::server(directory)?),
    };
    let listener = listen(arguments.listen)?;
    let mut flows = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                flows.spawn(relay(stream, arguments.to, carrier.clone()));
            }
            Some(_) = flows.join_next() => {}
        }
    }
}

async fn relay(accepted: TcpStream, to: SocketAddr, carrier: Carrier) -> Result<()> {
    accepted.set_nodelay(true)?;
    match carrier {
        Carrier::Plain => copy(accepted, dial(to).await?).await,
        Carrier::Dial(config) => {
            let name = ServerName::try_from(RELAY_NAME)?;
            let secured = TlsConnector::from(config)
                .connect(name, BufReader::with_capacity(COPY_BYTES, dial(to).await?))
                .await?;
            copy(accepted, secured).await
        }
        Carrier::Accept(config) => {
            let secured =
                TlsAcceptor::from(config).accept(BufReader::with_capacity(COPY_BYTES, accepted)).await?;
            copy(secured, dial(to).await?).await
        }
    }
}

async fn dial(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).await.with_context(|| format!("cannot connect to {to}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn copy(
    mut one: impl AsyncRead + AsyncWrite + Unpin,
    mut other: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<()> {
    copy_bidirectional_with_sizes(&mut one, &mut other, COPY_BYTES, COPY_BYTES).await?;
    Ok(())
}
