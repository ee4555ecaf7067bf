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
            let mut received = Received::default();
            match read(body, keep_bytes, &mut received).await {
                Err(error) if head.status.as_u16() < 400 => Err(error.into()),
                // Who refuses a request need not read it to its end: the answer counts, not how the connection ended.
                Ok(()) | Err(_) => Ok(Answer { head, body: received.kept.freeze(), bytes: received.bytes }),
            }
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

/// What came of a body so far.
#[derive(Default)]
struct Received {
    kept: BytesMut,
    bytes: u64,
}

/// Reads a body to its end: its first `keep_bytes` are kept, all are counted.
async fn read<B>(mut body: B, keep_bytes: usize, received: &mut Received) -> Result<(), B::Error>
where
    B: Body<Data = Bytes> + Unpin,
{
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        received.bytes += data.len() as u64;
        let room = keep_bytes.saturating_sub(received.kept.len());
        received.kept.extend_from_slice(&data[..room.min(data.len())]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_body_of_any_length_is_counted_and_its_beginning_kept() {
        for (length, keep, kept) in [(1_000_000, 3, 3), (5, 16, 5), (0, 16, 0)] {
            let mut received = Received::default();
            let body = Full::new(Bytes::from(vec![7; length]));
            read(body, keep, &mut received).await.unwrap();
            assert_eq!((received.kept.len(), received.bytes), (kept, length as u64));
        }
    }

    #[tokio::test]
    async fn a_refusal_counts_although_the_connection_breaks_in_its_body() {
        for (status, counts) in [("501 Not Implemented", true), ("200 OK", false)] {
            let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let program = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 64];
                assert!(stream.read(&mut request).await.unwrap() > 0);
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: 100\r\n\r\nno");
                stream.write_all(head.as_bytes()).await.unwrap();
            };
            let request = Request::post("http://charge/").body(Full::new(Bytes::from_static(b"x"))).unwrap();
            let (answer, ()) = tokio::join!(exchange(port, request, Duration::from_secs(5), 16), program);
            match answer {
                Ok(answer) => assert!(counts && answer.head.status == 501 && &answer.body[..] == b"no"),
                Err(error) => assert!(!counts && matches!(error, ExchangeError::Broken(_)), "{error}"),
            }
        }
    }
}
