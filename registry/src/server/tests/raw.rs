//! HTTP/2 frame by frame (RFC 9113), for what no library would send.

use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::Rig;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
/// Longer than any answer takes; reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// A byte stream of either listener.
pub(super) trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// How the server answered on one stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// A gRPC status.
    Status(u8),
    /// Headers without a status: the call goes on.
    Open,
    /// RST_STREAM with its error code.
    Reset(u32),
    /// GOAWAY with its error code, or the end of the connection.
    Gone(u32),
}

/// A connection on which HTTP/2 has begun.
pub(super) struct Raw {
    stream: Box<dyn Bytes>,
}

/// A TLS connection of `svid`'s holder, or of nobody, on which nothing was sent yet.
pub(super) async fn tls(rig: &Rig, svid: Option<&weft_identity::svid::Svid>) -> Box<dyn Bytes> {
    let socket = TcpStream::connect(rig.server().control_addr()).await.unwrap();
    let connector = TlsConnector::from(rig.tls(svid).await);
    let name = ServerName::try_from("server.weft").unwrap();
    Box::new(connector.connect(name, socket).await.unwrap())
}

impl Raw {
    /// On the Unix socket, as an admin.
    pub(super) async fn socket(rig: &Rig) -> Self {
        Self::begin(Box::new(UnixStream::connect(rig.server().socket_path()).await.unwrap())).await
    }

    /// On the control port, as nobody.
    pub(super) async fn nobody(rig: &Rig) -> Self {
        Self::begin(tls(rig, None).await).await
    }

    pub(super) async fn begin(mut stream: Box<dyn Bytes>) -> Self {
        // A server that has gone already says so when it is read from.
        let _ = stream.write_all(PREFACE).await;
        let mut raw = Self { stream };
        raw.send(SETTINGS, 0, 0, &[]).await;
        raw
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        let _ = self.stream.write_all(&frame).await;
    }

    /// Begins a call on `stream` (an odd number) and sends `body` as it is, as the whole of its request.
    pub(super) async fn call(&mut self, stream: u32, path: &[u8], more: &[(&str, &str)], body: &[u8]) {
        let mut block = Vec::new();
        let fixed: [(&str, &[u8]); 6] = [
            (":method", b"POST"),
            (":scheme", b"http"),
            (":authority", b"server.weft"),
            (":path", path),
            ("content-type", b"application/grpc"),
            ("te", b"trailers"),
        ];
        for (name, value) in fixed.into_iter().chain(more.iter().map(|(n, v)| (*n, v.as_bytes()))) {
            block.push(0); // a literal that is not indexed, with a new name (RFC 7541 §6.2.2)
            text(&mut block, name.as_bytes());
            text(&mut block, value);
        }
        self.send(HEADERS, END_HEADERS, stream, &block).await;
        self.send(DATA, END_STREAM, stream, body).await;
    }

    /// The next frame: kind, flags, stream, payload; `None` at the end of the connection.
    async fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        timeout(PATIENCE, self.stream.read_exact(&mut head)).await.expect("an answer in time").ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        timeout(PATIENCE, self.stream.read_exact(&mut payload)).await.expect("the rest in time").ok()?;
        if (head[3], head[4] & ACK) == (SETTINGS, 0) {
            self.send(SETTINGS, ACK, 0, &[]).await;
        }
        Some((head[3], head[4], stream, payload))
    }

    /// What becomes of the call on `wanted`: its status, or that it stays open.
    pub(super) async fn answer(&mut self, wanted: u32) -> Answer {
        while let Some((kind, flags, stream, payload)) = self.frame().await {
            match kind {
                GOAWAY => return Answer::Gone(code_at(&payload, 4)),
                RST_STREAM if stream == wanted => return Answer::Reset(code_at(&payload, 0)),
                HEADERS if stream == wanted => match status(&payload) {
                    Some(status) => return Answer::Status(status),
                    None if flags & END_STREAM == 0 => {}
                    None => return Answer::Open,
                },
                _ => {}
            }
        }
        Answer::Gone(0)
    }

    /// Whether the first thing heard of `wanted` are headers without a status, as of a stream that goes on.
    pub(super) async fn opens(&mut self, wanted: u32) -> Answer {
        while let Some((kind, _, stream, payload)) = self.frame().await {
            match kind {
                GOAWAY => return Answer::Gone(code_at(&payload, 4)),
                RST_STREAM if stream == wanted => return Answer::Reset(code_at(&payload, 0)),
                HEADERS if stream == wanted => return status(&payload).map_or(Answer::Open, Answer::Status),
                _ => {}
            }
        }
        Answer::Gone(0)
    }

    /// Waits until the server asks to end the connection.
    pub(super) async fn goes_away(&mut self) -> bool {
        while let Some((kind, ..)) = self.frame().await {
            if kind == GOAWAY {
                return true;
            }
        }
        false
    }
}

fn code_at(payload: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(payload[at..at + 4].try_into().unwrap())
}

/// A string of HPACK without Huffman coding (RFC 7541 §5.2), up to a few hundred bytes.
fn text(block: &mut Vec<u8>, text: &[u8]) {
    match u8::try_from(text.len()) {
        Ok(short) if short < 127 => block.push(short),
        _ => {
            block.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                block.push(u8::try_from(rest % 128).unwrap() | 0x80);
                rest /= 128;
            }
            block.push(u8::try_from(rest).unwrap());
        }
    }
    block.extend(text);
}

/// The value of `grpc-status` in a block of the server, which is Huffman coded and comes once on a connection.
fn status(block: &[u8]) -> Option<u8> {
    let name = huffman("grpc-status");
    let at = block.windows(name.len()).position(|part| part == name)? + name.len();
    let length = usize::from(block.get(at)? & 0x7f);
    let value = block.get(at + 1..at + 1 + length)?;
    (0..=16).find(|status| huffman(&status.to_string()) == value)
}

/// The Huffman code of RFC 7541, appendix B, as far as `grpc-status` and numbers need it.
fn huffman(text: &str) -> Vec<u8> {
    let (mut bits, mut count, mut bytes) = (0_u64, 0, Vec::new());
    for letter in text.bytes() {
        let (code, length) = match letter {
            b'0'..=b'2' => (u64::from(letter - b'0'), 5),
            b'3'..=b'9' => (u64::from(letter - b'3') + 0x19, 6),
            b'a' => (0x3, 5),
            b'c' => (0x4, 5),
            b's' => (0x8, 5),
            b't' => (0x9, 5),
            b'-' => (0x16, 6),
            b'g' => (0x26, 6),
            b'p' => (0x2b, 6),
            b'r' => (0x2c, 6),
            b'u' => (0x2d, 6),
            other => panic!("{other} has no code here"),
        };
        bits = (bits << length) | code;
        count += length;
        while count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff).unwrap());
        }
    }
    if count > 0 {
        let rest = (bits << (8 - count)) | (0xff >> count);
        bytes.push(u8::try_from(rest & 0xff).unwrap());
    }
    bytes
}

/// An empty message of gRPC.
pub(super) const EMPTY: &[u8] = &[0; 5];
