//! One HTTP/1.1 exchange through a proxy port, with a bound on everything.

use std::{net::Ipv4Addr, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The largest body that is kept, in bytes; a longer one is an error here, not a reason to fill memory.
const MAX_BODY_BYTES: usize = 16 << 20;

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// The proxy port does not answer.
    #[error("cannot connect to the proxy port: {0}")]
    Connect(std::io::Error),
    /// The exchange broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    /// The body broke or was too large.
    #[error("the body broke: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

/// Sends `request` (absolute-form URI) to the proxy on `proxy_port` and reads the whole answer.
///
/// Cancel-safe: dropping the future closes the connection.
pub(crate) async fn exchange(
    proxy_port: u16,
    request: Request<Full<Bytes>>,
    timeout: Duration,
) -> Result<Response<Bytes>, ExchangeError> {
    let attempt = async {
        let stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, proxy_port)).await.map_err(ExchangeError::Connect)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let exchange = async {
            let (parts, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(ExchangeError::Body)?;
            Ok(Response::from_parts(parts, body.to_bytes()))
        };
        tokio::pin!(exchange, connection);
        tokio::select! {
            outcome = &mut exchange => outcome,
            // The connection's own error reaches the exchange as well, with the better words.
            _ = &mut connection => exchange.await,
        }
    };
    tokio::time::timeout(timeout, attempt).await.unwrap_or(Err(ExchangeError::TimedOut(timeout)))
}
