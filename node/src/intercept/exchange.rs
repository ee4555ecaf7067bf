//! One HTTP/1 exchange on a connection that carries no second one.
//!
//! A forwarded request goes where its *own* host says. So that a later request on the same connection can never reach
//! the service of the first, the connection is used for one exchange: the request is followed to its last byte and what
//! comes behind it is dropped; the response is told to be the last (`Connection: close`), so the client sends its next
//! request on a new connection. Only a `101 Switching Protocols` that was asked for opens the connection both ways.
//!
//! Pure but for one signal from response to request. [`RequestGate`] and [`ResponseGate`] see the bytes in passing.

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

use super::http_head::{self, Body, HeadError, HeadLimits, ResponseHead};

/// Bytes behind the request that are dropped before the connection is: pipelined requests that the client sends again
/// elsewhere (RFC 9112 §9.6), not a second stream of data.
const MAX_DROPPED_BYTES: usize = 1024 * 1024;
/// Interim responses before the final one.
const MAX_INTERIM: usize = 16;
/// The longest chunk extension; nobody uses them but attackers.
const MAX_EXTENSION_BYTES: usize = 256;
/// All trailer lines together.
const MAX_TRAILER_BYTES: usize = 8 * 1_024;
/// Hexadecimal digits of a chunk size: 2^60 is far beyond any chunk and cannot overflow.
const MAX_SIZE_DIGITS: u8 = 15;

/// Why the bytes of an exchange cannot be passed on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ExchangeError {
    /// The chunks of the request are malformed.
    #[error("the chunked body of the request is malformed")]
    Chunks,
    /// Far more came behind the request than a client that waits for its response sends.
    #[error("more than {MAX_DROPPED_BYTES} bytes came behind the request")]
    Pipelined,
    /// The service answered something that is no HTTP/1 response.
    #[error("the service did not answer in HTTP/1: {0}")]
    NotHttp(HeadError),
}

/// What became of the request, told by the response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    Waiting,
    Answered,
    Switched,
}

/// Makes the two gates of one exchange.
#[must_use]
pub fn exchange(body: Body, upgrades: bool, limits: HeadLimits) -> (RequestGate, ResponseGate) {
    let (sender, receiver) = watch::channel(Verdict::Waiting);
    let body = match body {
        Body::None | Body::Length(0) => BodyState::Done,
        Body::Length(left) => BodyState::Length(left),
        Body::Chunked => BodyState::Size { size: 0, digits: 0 },
    };
    let request =
        RequestGate { body, trailer_bytes: 0, upgrades, verdict: receiver, held: Bytes::new(), dropped: 0 };
    let response = ResponseGate {
        state: ResponseState::Head,
        buffer: BytesMut::new(),
        interim: 0,
        upgrades,
        verdict: sender,
        limits,
    };
    (request, response)
}

/// Passes the body of one request, and nothing behind it.
#[derive(Debug)]
pub struct RequestGate {
    body: BodyState,
    trailer_bytes: usize,
    upgrades: bool,
    verdict: watch::Receiver<Verdict>,
    /// Bytes behind a request that asked for another protocol, until the service has agreed.
    held: Bytes,
    dropped: usize,
}

/// Where in the body the next byte is (RFC 9112 §7.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum BodyState {
    Length(u64),
    Size { size: u64, digits: u8 },
    Extension { size: u64, bytes: usize },
    SizeEnd { size: u64 },
    Data { left: u64 },
    DataReturn,
    DataEnd,
    Trailer { line: usize },
    TrailerEnd { line: usize },
    Done,
}

impl RequestGate {
    /// Waits until more may be read from the client: at once, but for bytes behind a request that asked for another
    /// protocol and has no answer yet. Returns bytes that waited for that. Cancel-safe.
    pub async fn ready(&mut self) -> Option<Bytes> {
        if !self.upgrades || self.body != BodyState::Done {
            return None;
        }
        // An error means that the response is gone, and with it the exchange.
        let verdict = self.verdict.wait_for(|verdict| *verdict != Verdict::Waiting).await;
        let switched = verdict.is_ok_and(|verdict| *verdict == Verdict::Switched);
        let held = std::mem::take(&mut self.held);
        (switched && !held.is_empty()).then_some(held)
    }

    /// Takes bytes from the client and returns those that go on; the rest is dropped or held.
    ///
    /// # Errors
    ///
    /// [`ExchangeError::Chunks`], [`ExchangeError::Pipelined`].
    pub fn pass(&mut self, mut bytes: Bytes) -> Result<Bytes, ExchangeError> {
        if self.upgrades && *self.verdict.borrow() == Verdict::Switched {
            return Ok(bytes);
        }
        let used = self.take(&bytes)?;
        let behind = bytes.split_off(used);
        if behind.is_empty() {
            return Ok(bytes);
        }
        self.dropped += behind.len();
        if self.dropped > MAX_DROPPED_BYTES {
            return Err(ExchangeError::Pipelined);
        }
        if self.upgrades && *self.verdict.borrow() == Verdict::Waiting {
            self.held = if self.held.is_empty() { behind } else { [&self.held[..], &behind].concat().into() };
        }
        Ok(bytes)
    }

    /// How many of `bytes` belong to the body.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, ExchangeError> {
        let mut at = 0;
        while at < bytes.len() && self.body != BodyState::Done {
            at += self.step(&bytes[at..])?;
        }
        Ok(at)
    }

    /// Takes one framing byte, or as much data as there is; returns how many bytes it took.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, ExchangeError> {
        let available = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let byte = bytes[0];
        let (next, taken) = match self.body {
            BodyState::Length(left) => {
                let taken = left.min(available);
                let rest = left - taken;
                (if rest == 0 { BodyState::Done } else { BodyState::Length(rest) }, taken)
            }
            BodyState::Data { left } => {
                let taken = left.min(available);
                let rest = left - taken;
                (if rest == 0 { BodyState::DataReturn } else { BodyState::Data { left: rest } }, taken)
            }
            BodyState::Size { size, digits } => (size_byte(size, digits, byte)?, 1),
            BodyState::Extension { size, bytes } => (extension_byte(size, bytes, byte)?, 1),
            BodyState::SizeEnd { size: 0 } => (expect(byte, b'\n', BodyState::Trailer { line: 0 })?, 1),
            BodyState::SizeEnd { size } => (expect(byte, b'\n', BodyState::Data { left: size })?, 1),
            BodyState::DataReturn => (expect(byte, b'\r', BodyState::DataEnd)?, 1),
            BodyState::DataEnd => (expect(byte, b'\n', BodyState::Size { size: 0, digits: 0 })?, 1),
            BodyState::Trailer { line } => (self.trailer_byte(line, byte)?, 1),
            BodyState::TrailerEnd { line: 0 } => (expect(byte, b'\n', BodyState::Done)?, 1),
            BodyState::TrailerEnd { .. } => (expect(byte, b'\n', BodyState::Trailer { line: 0 })?, 1),
            BodyState::Done => (BodyState::Done, 0),
        };
        self.body = next;
        Ok(usize::try_from(taken).unwrap_or(bytes.len()))
    }

    fn trailer_byte(&mut self, line: usize, byte: u8) -> Result<BodyState, ExchangeError> {
        self.trailer_bytes += 1;
        match byte {
            b'\r' => Ok(BodyState::TrailerEnd { line }),
            b'\n' | 0 => Err(ExchangeError::Chunks),
            _ if self.trailer_bytes > MAX_TRAILER_BYTES => Err(ExchangeError::Chunks),
            _ => Ok(BodyState::Trailer { line: line + 1 }),
        }
    }
}

fn size_byte(size: u64, digits: u8, byte: u8) -> Result<BodyState, ExchangeError> {
    let digit = char::from(byte).to_digit(16);
    match (digit, byte) {
        (Some(digit), _) if digits < MAX_SIZE_DIGITS => {
            Ok(BodyState::Size { size: size * 16 + u64::from(digit), digits: digits + 1 })
        }
        (None, b'\r') if digits > 0 => Ok(BodyState::SizeEnd { size }),
        (None, b';') if digits > 0 => Ok(BodyState::Extension { size, bytes: 1 }),
        (Some(_) | None, _) => Err(ExchangeError::Chunks),
    }
}

fn extension_byte(size: u64, bytes: usize, byte: u8) -> Result<BodyState, ExchangeError> {
    match byte {
        b'\r' => Ok(BodyState::SizeEnd { size }),
        b'\t' | b' '..=b'~' if bytes < MAX_EXTENSION_BYTES => {
            Ok(BodyState::Extension { size, bytes: bytes + 1 })
        }
        _ => Err(ExchangeError::Chunks),
    }
}

fn expect(byte: u8, wanted: u8, next: BodyState) -> Result<BodyState, ExchangeError> {
    if byte == wanted { Ok(next) } else { Err(ExchangeError::Chunks) }
}

/// Marks the response as the connection's last, and tells the request's gate what the answer was.
#[derive(Debug)]
pub struct ResponseGate {
    state: ResponseState,
    buffer: BytesMut,
    interim: usize,
    upgrades: bool,
    verdict: watch::Sender<Verdict>,
    limits: HeadLimits,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ResponseState {
    Head,
    Through,
}

impl ResponseGate {
    /// Takes bytes from the service and returns what goes to the client.
    ///
    /// # Errors
    ///
    /// [`ExchangeError::NotHttp`]; nothing of the malformed head has been passed on.
    pub fn pass(&mut self, bytes: Bytes) -> Result<Bytes, ExchangeError> {
        if self.state == ResponseState::Through {
            return Ok(bytes);
        }
        let mut seen = self.buffer.len();
        self.buffer.extend_from_slice(&bytes);
        let mut passed = BytesMut::new();
        while self.state == ResponseState::Head {
            let end =
                http_head::find_end(&self.buffer, seen, &self.limits).map_err(ExchangeError::NotHttp)?;
            let Some(end) = end else { break };
            let raw = self.buffer.split_to(end).freeze();
            seen = 0;
            let head = http_head::parse_response(&raw, &self.limits).map_err(ExchangeError::NotHttp)?;
            self.head(&raw, &head, &mut passed)?;
        }
        if self.state == ResponseState::Through {
            passed.unsplit(std::mem::take(&mut self.buffer));
        }
        Ok(passed.freeze())
    }

    /// Whether nothing of a response has been passed on: the client can still be answered in the service's stead.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.state == ResponseState::Head && self.interim == 0
    }

    /// The service sent its last byte.
    ///
    /// # Errors
    ///
    /// [`ExchangeError::NotHttp`] in the middle of a head. No response at all is the service's to answer for.
    pub fn finish(&self) -> Result<(), ExchangeError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        Err(ExchangeError::NotHttp(HeadError::Malformed("it ends in the middle of its head")))
    }

    fn head(&mut self, raw: &Bytes, head: &ResponseHead, passed: &mut BytesMut) -> Result<(), ExchangeError> {
        match head.status {
            101 if self.upgrades => {
                passed.extend_from_slice(raw);
                self.answered(Verdict::Switched);
            }
            101 => {
                return Err(ExchangeError::NotHttp(HeadError::Malformed("it switches protocols unasked")));
            }
            100..200 => {
                self.interim += 1;
                if self.interim > MAX_INTERIM {
                    return Err(ExchangeError::NotHttp(HeadError::Malformed("interim responses do not end")));
                }
                passed.extend_from_slice(raw);
            }
            _ => {
                write_last(head, passed);
                self.answered(Verdict::Answered);
            }
        }
        Ok(())
    }

    fn answered(&mut self, verdict: Verdict) {
        self.state = ResponseState::Through;
        self.verdict.send_replace(verdict);
    }
}

/// Writes `head` with the word that no further response follows.
fn write_last(head: &ResponseHead, out: &mut BytesMut) {
    out.extend_from_slice(&head.status_line);
    out.extend_from_slice(b"\r\n");
    for (name, value) in head.headers.iter() {
        let of_hop = ["connection", "keep-alive", "proxy-connection"];
        if !of_hop.iter().any(|hop| name.eq_ignore_ascii_case(hop)) {
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
    }
    out.extend_from_slice(b"Connection: close\r\n\r\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gates(body: Body) -> (RequestGate, ResponseGate) {
        exchange(body, false, HeadLimits::default())
    }

    fn upgrading() -> (RequestGate, ResponseGate) {
        exchange(Body::None, true, HeadLimits::default())
    }

    /// What the gate lets through of `bytes`, cut into pieces of `size`.
    fn sent(mut gate: RequestGate, bytes: &[u8], size: usize) -> Result<Vec<u8>, ExchangeError> {
        let mut passed = Vec::new();
        for piece in bytes.chunks(size) {
            passed.extend_from_slice(&gate.pass(Bytes::copy_from_slice(piece))?);
        }
        Ok(passed)
    }

    fn answered(mut gate: ResponseGate, bytes: &[u8], size: usize) -> Result<Vec<u8>, ExchangeError> {
        let mut passed = Vec::new();
        for piece in bytes.chunks(size) {
            passed.extend_from_slice(&gate.pass(Bytes::copy_from_slice(piece))?);
        }
        gate.finish()?;
        Ok(passed)
    }

    const NEXT: &[u8] = b"GET / HTTP/1.1\r\nHost: other.shop\r\n\r\n";

    #[test]
    fn a_second_request_never_reaches_the_service_of_the_first() {
        let chunked: &[u8] = b"5;a=b\r\nhello\r\n0\r\nTrailer: x\r\n\r\n";
        for (body, bytes) in [
            (Body::None, &b""[..]),
            (Body::Length(5), b"hello"),
            (Body::Chunked, chunked),
            (Body::Length(0), b""),
        ] {
            for size in [1, 2, 7, 1_000] {
                let (request, _response) = gates(body);
                assert_eq!(sent(request, &[bytes, NEXT].concat(), size).unwrap(), bytes, "{body:?}");
            }
        }
    }

    #[test]
    fn http_01_malformed_chunks_end_the_exchange() {
        for bytes in [
            &b"\r\n"[..],
            b"g\r\n",
            b"5 \r\nhello\r\n",
            b"5\nhello\n",
            b"5\r\nhello0\r\n",
            b"0x5\r\nhello\r\n",
            b"-1\r\n",
            b"1000000000000000\r\n",
            b"5;\x00\r\n",
            b"5;a\nb\r\n",
            b"0\r\nTrailer: x\n\r\n",
        ] {
            let (request, _response) = gates(Body::Chunked);
            assert_eq!(sent(request, bytes, 1_000), Err(ExchangeError::Chunks), "{bytes:?}");
        }
        let long = [b"0\r\n", vec![b'a'; MAX_TRAILER_BYTES + 2].as_slice()].concat();
        assert_eq!(sent(gates(Body::Chunked).0, &long, 1_000), Err(ExchangeError::Chunks));
    }

    #[test]
    fn a_flood_behind_the_request_ends_the_connection() {
        let (mut request, _response) = gates(Body::None);
        assert!(request.pass(vec![0; MAX_DROPPED_BYTES].into()).is_ok_and(|bytes| bytes.is_empty()));
        assert_eq!(request.pass(vec![0].into()), Err(ExchangeError::Pipelined));
    }

    #[test]
    fn the_response_is_marked_as_the_last() {
        let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\nA: b\r\n\r\nbody";
        for size in [1, 3, 1_000] {
            let passed = answered(gates(Body::None).1, bytes, size).unwrap();
            let wanted =
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\nConnection: close\r\n\r\nbody";
            assert_eq!(String::from_utf8(passed).unwrap(), wanted);
        }
    }

    #[test]
    fn what_is_no_response_is_told_apart_before_a_byte_of_it_passes() {
        for bytes in [&b"SSH-2.0-OpenSSH\r\n\r\n"[..], b"-ERR\r\n", b"HTTP/1.1 200 OK\r\nA"] {
            let passed = answered(gates(Body::None).1, bytes, 4);
            let is_other = matches!(passed, Err(ExchangeError::NotHttp(_)));
            assert!(is_other, "{bytes:?}");
        }
        assert_eq!(answered(gates(Body::None).1, b"", 4), Ok(Vec::new()));
    }

    #[test]
    fn a_client_is_answered_in_the_services_stead_only_before_a_byte_of_a_response() {
        let passed = |bytes: &'static [u8]| {
            let (_request, mut gate) = gates(Body::None);
            let _ = gate.pass(Bytes::from_static(bytes));
            gate.is_silent()
        };
        for quiet in
            [b"".as_slice(), b"HTTP/1.1 200", b"nonsense\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n"]
        {
            assert!(passed(quiet), "{}", quiet.escape_ascii());
        }
        for begun in [b"HTTP/1.1 200 OK\r\n\r\n".as_slice(), b"HTTP/1.1 100 Continue\r\n\r\n"] {
            assert!(!passed(begun), "{}", begun.escape_ascii());
        }
    }

    #[test]
    fn http_16_interim_responses_are_counted() {
        let flood = b"HTTP/1.1 102 Processing\r\n\r\n".repeat(MAX_INTERIM + 1);
        assert!(answered(gates(Body::None).1, &flood, 1_000).is_err());
    }

    #[tokio::test]
    async fn http_02_bytes_behind_an_upgrade_wait_for_101() {
        let (mut request, mut response) = upgrading();
        assert!(request.pass(Bytes::from_static(b"frame")).unwrap().is_empty());
        let head =
            Bytes::from_static(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\nhello");
        assert_eq!(response.pass(head.clone()).unwrap(), head);
        assert_eq!(request.ready().await.unwrap(), "frame");
        assert_eq!(request.pass(Bytes::from_static(NEXT)).unwrap(), NEXT);
        assert_eq!(response.pass(Bytes::from_static(b"raw")).unwrap(), "raw");
    }

    #[tokio::test]
    async fn http_02_bytes_behind_a_refused_upgrade_go_nowhere() {
        let (mut request, mut response) = upgrading();
        assert!(request.pass(Bytes::from_static(NEXT)).unwrap().is_empty());
        response.pass(Bytes::from_static(b"HTTP/1.1 200 OK\r\n\r\n")).unwrap();
        assert_eq!(request.ready().await, None);
        assert!(request.pass(Bytes::from_static(NEXT)).unwrap().is_empty());
    }

    #[test]
    fn a_switch_that_nobody_asked_for_is_refused() {
        let bytes = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
        assert!(answered(gates(Body::None).1, bytes, 1_000).is_err());
    }

    proptest! {
        #[test]
        fn the_pieces_that_bytes_come_in_change_nothing(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'5')], 0..200),
            length in 0_u64..100,
            size in 1_usize..50,
        ) {
            for body in [Body::Length(length), Body::Chunked] {
                prop_assert_eq!(sent(gates(body).0, &bytes, size), sent(gates(body).0, &bytes, 1_000));
            }
            prop_assert_eq!(answered(gates(Body::None).1, &bytes, size), answered(gates(Body::None).1, &bytes, 1_000));
        }
    }
}
