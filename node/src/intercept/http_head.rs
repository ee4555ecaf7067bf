//! Heads of HTTP/1 messages: where they end, what they say, how long the body behind them is.
//!
//! Pure. Owns the strictness: whatever two implementations could read in two ways is refused, because one of the two
//! would be a proxy that decides and the other a server that acts (security.md 5.4, HTTP-01). Rewriting is
//! [`super::forward`]'s, the bytes behind the head are [`super::exchange`]'s.

use std::time::Duration;

use bytes::Bytes;

/// How large a head may be and how long it may take (security.md 9.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HeadLimits {
    /// The whole head with its empty line.
    pub head_bytes: usize,
    /// Header lines.
    pub headers: usize,
    /// The request target.
    pub target_bytes: usize,
    /// From the first byte awaited to the end of the head.
    pub timeout: Duration,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self {
            head_bytes: 16 * 1_024,
            headers: 100,
            target_bytes: 8 * 1_024,
            timeout: Duration::from_secs(10),
        }
    }
}

/// Why bytes are not a head that may be acted on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HeadError {
    /// More than [`HeadLimits::head_bytes`] or [`HeadLimits::target_bytes`].
    #[error("the head is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// More than [`HeadLimits::headers`].
    #[error("the head has more than {limit} headers")]
    TooManyHeaders {
        /// The limit.
        limit: usize,
    },
    /// Not the grammar of HTTP/1 (RFC 9112).
    #[error("not an HTTP/1 head: {0}")]
    Malformed(&'static str),
    /// Two readers could disagree where a message ends or whom it is for.
    #[error("{0}")]
    Ambiguous(&'static str),
}

/// The head of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestHead {
    /// The method as it was written; methods are case-sensitive.
    pub method: String,
    /// The target as it was written.
    pub target: String,
    /// The version.
    pub version: Version,
    /// The headers in their order.
    pub headers: Headers,
}

/// The head of a response.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ResponseHead {
    /// The status line without its end.
    pub status_line: Bytes,
    /// Its number, 100 to 999.
    pub status: u16,
    /// The headers in their order.
    pub headers: Headers,
}

/// The minor version.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

/// Header lines in their order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Headers(Vec<(Bytes, Bytes)>);

/// How long the body behind a request head is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Body {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks, until the last.
    Chunked,
}

/// Finds the end of the head in `bytes`, of which the first `seen` were looked at before.
///
/// Returns the length of the head with its empty line. A line feed without its carriage return is refused as soon as it
/// shows: some servers take it for the end of a line, others do not.
///
/// # Errors
///
/// [`HeadError`] when no further byte can make it a head.
pub fn find_end(bytes: &[u8], seen: usize, limits: &HeadLimits) -> Result<Option<usize>, HeadError> {
    let from = seen.saturating_sub(3);
    for at in from..bytes.len() {
        if bytes[at] != b'\n' {
            continue;
        }
        if at == 0 || bytes[at - 1] != b'\r' {
            return Err(HeadError::Ambiguous("a line ends without carriage return"));
        }
        if at >= 3 && bytes[at - 3..at - 1] == *b"\r\n" {
            let end = at + 1;
            return if end > limits.head_bytes { Err(too_large(limits)) } else { Ok(Some(end)) };
        }
    }
    if bytes.len() >= limits.head_bytes { Err(too_large(limits)) } else { Ok(None) }
}

const fn too_large(limits: &HeadLimits) -> HeadError {
    HeadError::TooLarge { limit_bytes: limits.head_bytes }
}

/// Reads a whole request head, as [`find_end`] measured it.
///
/// # Errors
///
/// [`HeadError`].
pub fn parse_request(head: &Bytes, limits: &HeadLimits) -> Result<RequestHead, HeadError> {
    let mut lines = vec![httparse::EMPTY_HEADER; limits.headers];
    let mut request = httparse::Request::new(&mut lines);
    match request.parse(head) {
        Ok(httparse::Status::Complete(used)) if used == head.len() => {}
        Ok(_) => return Err(HeadError::Malformed("it is not one whole head")),
        Err(error) => return Err(reject(error, limits)),
    }
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    if target.len() > limits.target_bytes {
        return Err(HeadError::TooLarge { limit_bytes: limits.target_bytes });
    }
    let version = match request.version {
        Some(0) => Version::Http10,
        Some(1) => Version::Http11,
        Some(_) | None => return Err(HeadError::Malformed("its version is not 1.0 or 1.1")),
    };
    let headers = Headers::of(head, request.headers);
    Ok(RequestHead { method: method.to_owned(), target: target.to_owned(), version, headers })
}

/// Reads a whole response head, as [`find_end`] measured it.
///
/// # Errors
///
/// [`HeadError`].
pub fn parse_response(head: &Bytes, limits: &HeadLimits) -> Result<ResponseHead, HeadError> {
    let mut lines = vec![httparse::EMPTY_HEADER; limits.headers];
    let mut response = httparse::Response::new(&mut lines);
    match response.parse(head) {
        Ok(httparse::Status::Complete(used)) if used == head.len() => {}
        Ok(_) => return Err(HeadError::Malformed("it is not one whole head")),
        Err(error) => return Err(reject(error, limits)),
    }
    let status = response.code.filter(|code| (100..1_000).contains(code));
    let status = status.ok_or(HeadError::Malformed("its status is no number from 100"))?;
    let line = head.iter().position(|byte| *byte == b'\r').unwrap_or(head.len());
    let headers = Headers::of(head, response.headers);
    Ok(ResponseHead { status_line: head.slice(..line), status, headers })
}

const fn reject(error: httparse::Error, limits: &HeadLimits) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooManyHeaders { limit: limits.headers },
        httparse::Error::HeaderName => HeadError::Malformed("a header name has characters it may not have"),
        httparse::Error::HeaderValue => HeadError::Malformed("a header value has characters it may not have"),
        httparse::Error::NewLine => HeadError::Malformed("a line does not end as it should"),
        httparse::Error::Status => HeadError::Malformed("its status line cannot be read"),
        httparse::Error::Token => HeadError::Malformed("its first line cannot be read"),
        httparse::Error::Version => HeadError::Malformed("its version is not 1.0 or 1.1"),
    }
}

impl Headers {
    fn of(head: &Bytes, lines: &[httparse::Header<'_>]) -> Self {
        let part =
            |line: &httparse::Header<'_>| (head.slice_ref(line.name.as_bytes()), head.slice_ref(line.value));
        Self(lines.iter().map(part).collect())
    }

    /// Every line, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (std::str::from_utf8(name).unwrap_or_default(), value.as_ref()))
    }

    /// The values of the lines called `name`, whatever their case.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The value of the only line called `name`.
    ///
    /// # Errors
    ///
    /// [`HeadError::Ambiguous`] with `twice` when there are several.
    pub fn only<'a>(&'a self, name: &str, twice: &'static str) -> Result<Option<&'a [u8]>, HeadError> {
        let mut lines = self.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name));
        let first = lines.next().map(|(_, value)| value);
        if lines.next().is_some() { Err(HeadError::Ambiguous(twice)) } else { Ok(first) }
    }

    /// Whether a comma-separated list called `name` holds `token`, whatever its case.
    #[must_use]
    pub fn lists(&self, name: &str, token: &str) -> bool {
        let tokens = self.all(name).flat_map(|value| value.split(|byte| *byte == b','));
        tokens.map(<[u8]>::trim_ascii).any(|found| found.eq_ignore_ascii_case(token.as_bytes()))
    }
}

impl RequestHead {
    /// How long the body is.
    ///
    /// # Errors
    ///
    /// [`HeadError::Ambiguous`] where two servers could disagree: both lengths, two lengths, a length that is no plain
    /// number, a coding other than `chunked`, chunks in HTTP/1.0.
    pub fn body(&self) -> Result<Body, HeadError> {
        let coding = self.headers.only("transfer-encoding", "it has two Transfer-Encoding headers")?;
        let length = self.headers.only("content-length", "it has two Content-Length headers")?;
        match (coding, length) {
            (None, None) => Ok(Body::None),
            (None, Some(length)) => plain_number(length).map(Body::Length),
            (Some(_), Some(_)) => {
                Err(HeadError::Ambiguous("it has both Content-Length and Transfer-Encoding"))
            }
            (Some(_), None) if self.version == Version::Http10 => {
                Err(HeadError::Ambiguous("it has a Transfer-Encoding in HTTP/1.0"))
            }
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Body::Chunked),
            (Some(_), None) => Err(HeadError::Ambiguous("its Transfer-Encoding is not just chunked")),
        }
    }

    /// Whether it asks for another protocol on this connection.
    #[must_use]
    pub fn upgrades(&self) -> bool {
        let asks =
            self.headers.lists("connection", "upgrade") && self.headers.all("upgrade").next().is_some();
        asks && self.version == Version::Http11
    }
}

/// Digits and nothing else: no sign, space, list or prefix; at most 2^63 - 1, so that no sum overflows.
fn plain_number(text: &[u8]) -> Result<u64, HeadError> {
    let wrong = HeadError::Ambiguous("its Content-Length is not a plain number");
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(wrong);
    }
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<u64>().ok());
    number.filter(|number| i64::try_from(*number).is_ok()).ok_or(wrong)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: HeadLimits = HeadLimits {
        head_bytes: 16_384,
        headers: 100,
        target_bytes: 8_192,
        timeout: Duration::from_secs(10),
    };

    fn request(text: &str) -> Result<RequestHead, HeadError> {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let end = find_end(&bytes, 0, &LIMITS)?.ok_or(HeadError::Malformed("no end"))?;
        parse_request(&bytes.slice(..end), &LIMITS)
    }

    fn body_of(headers: &str) -> Result<Body, HeadError> {
        request(&format!("POST / HTTP/1.1\r\n{headers}\r\n"))?.body()
    }

    #[test]
    fn a_plain_request_is_read() {
        let head = request("GET /a?b HTTP/1.1\r\nHost: charge\r\nX-Y:  z \r\n\r\nrest").unwrap();
        assert_eq!((head.method.as_str(), head.target.as_str()), ("GET", "/a?b"));
        assert_eq!(head.headers.all("x-y").collect::<Vec<_>>(), [b"z"]);
        assert_eq!(head.body(), Ok(Body::None));
    }

    #[test]
    fn http_01_messages_of_two_lengths_are_refused() {
        for headers in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: 5,5\r\n",
            "Content-Length: 5 5\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: \r\n",
            "Content-Length: 9223372036854775808\r\n",
            "Content-Length: 99999999999999999999999\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: chunked, identity\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: \"chunked\"\r\n",
        ] {
            assert!(matches!(body_of(headers), Err(HeadError::Ambiguous(_))), "{headers:?}");
        }
        let old = request("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        assert!(old.body().is_err());
    }

    #[test]
    fn http_01_lines_that_two_readers_would_split_differently_are_refused() {
        for text in [
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n",
            "GET / HTTP/1.1\r\n: empty\r\n\r\n",
            "GET  / HTTP/1.1\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "\r\n\r\n",
        ] {
            assert!(request(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn lengths_that_are_plain_are_read() {
        assert_eq!(body_of("Content-Length: 0\r\n"), Ok(Body::Length(0)));
        assert_eq!(body_of("content-length: 9223372036854775807\r\n"), Ok(Body::Length(i64::MAX as u64)));
        assert_eq!(body_of("Transfer-Encoding: Chunked\r\n"), Ok(Body::Chunked));
    }

    #[test]
    fn http_10_heads_at_each_limit_pass_and_beyond_it_do_not() {
        let with_headers =
            |count: usize| request(&format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(count)));
        assert!(with_headers(100).is_ok());
        assert_eq!(with_headers(101), Err(HeadError::TooManyHeaders { limit: 100 }));

        let with_target = |bytes: usize| request(&format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(bytes - 1)));
        assert!(with_target(8_192).is_ok());
        assert_eq!(with_target(8_193), Err(HeadError::TooLarge { limit_bytes: 8_192 }));

        let frame = "GET / HTTP/1.1\r\na: \r\n\r\n".len();
        let with_bytes =
            |bytes: usize| request(&format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(bytes - frame)));
        assert!(with_bytes(16_384).is_ok());
        assert_eq!(with_bytes(16_385), Err(HeadError::TooLarge { limit_bytes: 16_384 }));
        assert_eq!(find_end(&[b'a'; 16_383], 0, &LIMITS), Ok(None));
        assert!(find_end(&[b'a'; 16_384], 0, &LIMITS).is_err());
    }

    #[test]
    fn an_upgrade_needs_both_headers() {
        let asks = |headers: &str| request(&format!("GET / HTTP/1.1\r\n{headers}\r\n")).unwrap().upgrades();
        assert!(asks("Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"));
        assert!(!asks("Upgrade: websocket\r\n"));
        assert!(!asks("Connection: upgrade\r\n"));
    }

    #[test]
    fn a_response_head_is_read() {
        let text = Bytes::from_static(b"HTTP/1.1 200 OK\r\nConnection: Keep-Alive\r\n\r\n");
        let head = parse_response(&text, &LIMITS).unwrap();
        assert_eq!((head.status, head.status_line.as_ref()), (200, &b"HTTP/1.1 200 OK"[..]));
        assert!(head.headers.lists("connection", "keep-alive"));
        assert!(parse_response(&Bytes::from_static(b"SSH-2.0-x\r\n\r\n"), &LIMITS).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = Bytes::from(bytes);
            let _ = find_end(&bytes, 0, &LIMITS);
            let _ = parse_request(&bytes, &LIMITS).map(|head| (head.body(), head.upgrades()));
            let _ = parse_response(&bytes, &LIMITS);
        }

        #[test]
        fn the_end_is_found_wherever_the_bytes_were_split(
            value in "[a-z \r]{0,20}",
            cut in 0_usize..60,
        ) {
            let text = format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\nrest");
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            let whole = find_end(bytes, 0, &LIMITS);
            let first = find_end(&bytes[..cut], 0, &LIMITS);
            let split = match first {
                Ok(None) => find_end(bytes, cut, &LIMITS),
                decided => decided,
            };
            prop_assert_eq!(split, whole);
        }
    }
}
