//! One HTTP/1.1 exchange through a proxy port, with a bound on everything.

use std::{net::Ipv4Addr, time::Duration};

use bytes::{Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Body;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// The proxy port does not answer.
    #[error("cannot connect to the proxy port: {0}")]
    Connect(std::io::Error),
    /// The exchange broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

/// An answer as it came.
pub(crate) struct Answer {
    pub(crate) head: http::response::Parts,
    /// The beginning of the body, as much as was to be kept.
    pub(crate) body: Bytes,
    /// The length of the whole body, in bytes.
    pub(crate) bytes: u64,
}

/// Sends `request` (absolute-form URI) to the proxy on `proxy_port` and reads the whole answer; of its body only the
/// first `keep_bytes` are kept, the rest is counted.
///
/// Cancel-safe: dropping the future closes the connection.
pub(crate) async fn exchange(
    proxy_port: u16,
    request: Request<Full<Bytes>>,
    timeout: Duration,
    keep_bytes: usize,
) -> Result<Answer, ExchangeError> {
    let attempt = async {
        let stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, proxy_port)).await.map_err(ExchangeError::Connect)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let exchange = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let (body, bytes) = read(body, keep_bytes).await?;
            Ok(Answer { head, body, bytes })
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

/// Reads a body to its end: its first `keep_bytes`, and its length.
async fn read<B>(mut body: B, keep_bytes: usize) -> Result<(Bytes, u64), B::Error>
where
    B: Body<Data = Bytes> + Unpin,
{
    let (mut kept, mut bytes) = (BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        bytes += data.len() as u64;
        let room = keep_bytes.saturating_sub(kept.len());
        kept.extend_from_slice(&data[..room.min(data.len())]);
    }
    Ok((kept.freeze(), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_of_any_length_is_counted_and_its_beginning_kept() {
        let body = Full::new(Bytes::from(vec![7; 1_000_000]));
        assert_eq!(read(body, 3).await.unwrap(), (Bytes::from_static(&[7; 3]), 1_000_000));
        let body = Full::new(Bytes::from_static(b"short"));
        assert_eq!(read(body, 16).await.unwrap(), (Bytes::from_static(b"short"), 5));
    }
}
