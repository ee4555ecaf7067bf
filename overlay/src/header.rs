//! The first bytes of a flow: which service it asks for, and what the other end should know about it.
//!
//! Pure. The identity of the caller is *not* here: it is the TLS identity of the tunnel and nothing else.
//! Everything in a header is a claim of that identity, good for routing and logs; `source` in particular
//! must never be taken for proof of an address.
//!
//! The client may send application bytes right behind the header; the answer is [`crate::StreamReply`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;

use bytes::Bytes;

use crate::wire::{self, FrameWriter, HeaderError, Progress};

/// The version of header and reply that this crate speaks.
pub const HEADER_VERSION: u8 = 1;

/// The longest name part: one DNS label (RFC 1035 section 2.3.4).
const MAX_LABEL_BYTES: usize = 63;

/// Field kinds. All are critical: an end that does not know one must refuse the flow.
mod kind {
    pub(super) const NAMESPACE: u8 = 0x01;
    pub(super) const SERVICE: u8 = 0x02;
    pub(super) const PORT: u8 = 0x03;
    pub(super) const ENDPOINT: u8 = 0x04;
    pub(super) const PROTOCOL: u8 = 0x05;
    pub(super) const TRACE: u8 = 0x06;
    pub(super) const SOURCE: u8 = 0x07;
}

/// What a flow asks of the agent at the other end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StreamHeader {
    /// The namespace of the service.
    pub namespace: Label,
    /// The name of the service.
    pub service: Label,
    /// The port of the service (not of the workload).
    pub port: NonZeroU16,
    /// The label of the endpoint that the caller chose; keeps replicas behind one tunnel apart.
    pub endpoint: Label,
    /// What the bytes behind the header are.
    pub protocol: Protocol,
    /// The trace that the flow belongs to.
    pub trace: Option<TraceContext>,
    /// Where the application connected from, as the caller's agent saw it.
    pub source: Option<SocketAddr>,
}

/// What the bytes behind the header are.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Protocol {
    /// The two byte streams of a TCP connection.
    Tcp,
}

/// One DNS label: 1 to 63 of `a-z`, `0-9` and `-`, not at the edges (RFC 1123 section 2.1).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Label(Box<str>);

/// The text is not one lower-case DNS label.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a lower-case DNS label of 1 to {MAX_LABEL_BYTES} characters")]
pub struct InvalidLabel;

/// The trace and span of W3C Trace Context level 1; both ids are non-zero, as it demands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TraceContext {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    flags: u8,
}

impl StreamHeader {
    /// The bytes that go first on the stream; less than [`wire::MAX_FRAME_BYTES`].
    pub fn encode(&self) -> Bytes {
        let mut frame = FrameWriter::new(HEADER_VERSION);
        frame.field(kind::NAMESPACE, self.namespace.as_str().as_bytes());
        frame.field(kind::SERVICE, self.service.as_str().as_bytes());
        frame.field(kind::PORT, &self.port.get().to_be_bytes());
        frame.field(kind::ENDPOINT, self.endpoint.as_str().as_bytes());
        frame.field(kind::PROTOCOL, &[self.protocol.number()]);
        if let Some(trace) = self.trace {
            frame.field(kind::TRACE, &trace.to_bytes());
        }
        if let Some(source) = self.source {
            frame.field(kind::SOURCE, &address_bytes(source));
        }
        frame.finish()
    }

    /// Reads a header from the front of `bytes`.
    ///
    /// # Errors
    ///
    /// [`HeaderError`] as soon as the bytes cannot become a header; never for one that is only cut short.
    pub fn decode(bytes: &[u8]) -> Result<Progress<Self>, HeaderError> {
        let Some((mut fields, used)) = wire::frame(bytes, HEADER_VERSION)? else {
            return Ok(Progress::NeedMore);
        };
        let (mut namespace, mut service, mut port, mut endpoint) = (None, None, None, None);
        let (mut protocol, mut trace, mut source) = (None, None, None);
        while let Some((kind, value)) = fields.next()? {
            match kind {
                kind::NAMESPACE => namespace = Some(label(value, "namespace")?),
                kind::SERVICE => service = Some(label(value, "service")?),
                kind::PORT => port = Some(port_number(value)?),
                kind::ENDPOINT => endpoint = Some(label(value, "endpoint")?),
                kind::PROTOCOL => protocol = Some(Protocol::from_bytes(value)?),
                kind::TRACE => trace = Some(TraceContext::from_bytes(value)?),
                kind::SOURCE => source = Some(address(value)?),
                unknown => wire::skip(unknown)?,
            }
        }
        let value = Self {
            namespace: namespace.ok_or(HeaderError::Missing("namespace"))?,
            service: service.ok_or(HeaderError::Missing("service"))?,
            port: port.ok_or(HeaderError::Missing("port"))?,
            endpoint: endpoint.ok_or(HeaderError::Missing("endpoint"))?,
            protocol: protocol.ok_or(HeaderError::Missing("protocol"))?,
            trace,
            source,
        };
        Ok(Progress::Complete { value, used })
    }
}

impl Protocol {
    fn number(self) -> u8 {
        match self {
            Self::Tcp => 1,
        }
    }

    fn from_bytes(value: &[u8]) -> Result<Self, HeaderError> {
        match value {
            [1] => Ok(Self::Tcp),
            _ => Err(HeaderError::Malformed("protocol")),
        }
    }
}

impl Label {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Self, InvalidLabel> {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let edges = !text.starts_with('-') && !text.ends_with('-');
        let sized = (1..=MAX_LABEL_BYTES).contains(&text.len());
        if sized && edges && text.bytes().all(inner) { Ok(Self(text.into())) } else { Err(InvalidLabel) }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TraceContext {
    const BYTES: usize = 25;

    /// `None` if an id is all zero, which W3C Trace Context calls invalid.
    pub fn new(trace_id: [u8; 16], span_id: [u8; 8], flags: u8) -> Option<Self> {
        let valid = trace_id != [0; 16] && span_id != [0; 8];
        valid.then_some(Self { trace_id, span_id, flags })
    }

    /// The trace.
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// The parent span.
    pub fn span_id(&self) -> [u8; 8] {
        self.span_id
    }

    /// The trace flags; bit 0 says that the trace is sampled.
    pub fn flags(&self) -> u8 {
        self.flags
    }

    fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.trace_id);
        bytes[16..24].copy_from_slice(&self.span_id);
        bytes[24] = self.flags;
        bytes
    }

    fn from_bytes(value: &[u8]) -> Result<Self, HeaderError> {
        let malformed = HeaderError::Malformed("trace");
        let (trace_id, rest) = value.split_first_chunk().ok_or(malformed)?;
        let (span_id, rest) = rest.split_first_chunk().ok_or(malformed)?;
        let &[flags] = rest else { return Err(malformed) };
        Self::new(*trace_id, *span_id, flags).ok_or(malformed)
    }
}

fn label(value: &[u8], field: &'static str) -> Result<Label, HeaderError> {
    let text = str::from_utf8(value).map_err(|_| HeaderError::Malformed(field))?;
    text.parse().map_err(|_| HeaderError::Malformed(field))
}

fn port_number(value: &[u8]) -> Result<NonZeroU16, HeaderError> {
    let bytes = value.try_into().map_err(|_| HeaderError::Malformed("port"))?;
    NonZeroU16::new(u16::from_be_bytes(bytes)).ok_or(HeaderError::Malformed("port"))
}

/// 4 or 16 bytes of address, then the port. An IPv4-mapped address travels as IPv4.
fn address_bytes(address: SocketAddr) -> Vec<u8> {
    let mut bytes = match address.ip().to_canonical() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.extend(address.port().to_be_bytes());
    bytes
}

fn address(value: &[u8]) -> Result<SocketAddr, HeaderError> {
    let malformed = HeaderError::Malformed("source");
    let (ip, port) = value.split_last_chunk::<2>().ok_or(malformed)?;
    let ip: IpAddr = if let Ok(v4) = <[u8; 4]>::try_from(ip) {
        Ipv4Addr::from(v4).into()
    } else if let Ok(v6) = <[u8; 16]>::try_from(ip) {
        Ipv6Addr::from(v6).into()
    } else {
        return Err(malformed);
    };
    if ip.to_canonical() != ip {
        return Err(malformed); // one address, one encoding
    }
    Ok(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_of_real_size_fits_a_fifth_of_a_packet() {
        let header = StreamHeader {
            namespace: "shop".parse().unwrap(),
            service: "charge".parse().unwrap(),
            port: NonZeroU16::new(80).unwrap(),
            endpoint: "mfzwizltoq3gk5lsmfxhi2lpnz".parse().unwrap(),
            protocol: Protocol::Tcp,
            trace: TraceContext::new([7; 16], [9; 8], 1),
            source: Some("10.1.2.3:40000".parse().unwrap()),
        };
        assert!(header.encode().len() < 240, "{} bytes", header.encode().len());
    }

    #[test]
    fn an_unknown_version_is_refused_at_its_first_byte() {
        assert_eq!(StreamHeader::decode(&[2]), Err(HeaderError::UnsupportedVersion(2)));
    }

    #[test]
    fn a_frame_of_more_than_a_kibibyte_is_refused_before_it_arrives() {
        assert_eq!(StreamHeader::decode(&[1, 0xff, 0xff]), Err(HeaderError::TooLong(65538)));
        assert_eq!(StreamHeader::decode(&[1, 0x03, 0xfd]), Ok(Progress::NeedMore)); // exactly 1,024
        assert_eq!(StreamHeader::decode(&[1, 0x03, 0xfe]), Err(HeaderError::TooLong(1025)));
    }

    #[test]
    fn an_unknown_critical_field_is_refused_and_an_optional_one_skipped() {
        let with = |kind: u8| {
            let mut frame = FrameWriter::new(HEADER_VERSION);
            frame.field(kind::NAMESPACE, b"shop");
            frame.field(kind::SERVICE, b"charge");
            frame.field(kind::PORT, &80u16.to_be_bytes());
            frame.field(kind::ENDPOINT, b"abc");
            frame.field(kind::PROTOCOL, &[1]);
            frame.field(kind, b"future");
            StreamHeader::decode(&frame.finish())
        };
        assert_eq!(with(0x20), Err(HeaderError::UnknownField(0x20)));
        assert!(matches!(with(0x20 | wire::OPTIONAL), Ok(Progress::Complete { .. })));
    }

    #[test]
    fn a_repeated_or_missing_field_is_refused() {
        let mut frame = FrameWriter::new(HEADER_VERSION);
        frame.field(kind::SERVICE, b"a");
        frame.field(kind::SERVICE, b"b");
        assert_eq!(StreamHeader::decode(&frame.finish()), Err(HeaderError::Order(kind::SERVICE)));
        let empty = FrameWriter::new(HEADER_VERSION).finish();
        assert_eq!(StreamHeader::decode(&empty), Err(HeaderError::Missing("namespace")));
    }

    #[test]
    fn names_that_are_not_labels_are_refused() {
        for text in ["", "-a", "a-", "A", "a.b", "a_b", "é", &"x".repeat(64)] {
            assert!(text.parse::<Label>().is_err(), "{text}");
        }
        assert!("x".repeat(63).parse::<Label>().is_ok());
    }

    prop_compose! {
        fn any_header()(
            namespace in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
            service in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
            endpoint in "[a-z2-7]{26}",
            port in 1u16..,
            trace in proptest::option::of((any::<[u8; 16]>(), any::<[u8; 8]>(), any::<u8>())),
            source in proptest::option::of(any::<SocketAddr>()),
        ) -> StreamHeader {
            StreamHeader {
                namespace: namespace.parse().unwrap(),
                service: service.parse().unwrap(),
                port: NonZeroU16::new(port).unwrap(),
                endpoint: endpoint.parse().unwrap(),
                protocol: Protocol::Tcp,
                trace: trace.and_then(|(trace, span, flags)| TraceContext::new(trace, span, flags)),
                source: source.map(|source| SocketAddr::new(source.ip().to_canonical(), source.port())),
            }
        }
    }

    proptest! {
        #[test]
        fn a_header_survives_the_wire_and_leaves_the_payload(header in any_header(), payload: Vec<u8>) {
            let encoded = header.encode();
            let mut bytes = encoded.to_vec();
            bytes.extend(&payload);
            let decoded = StreamHeader::decode(&bytes);
            prop_assert_eq!(decoded, Ok(Progress::Complete { value: header, used: encoded.len() }));
        }

        #[test]
        fn every_cut_of_a_header_asks_for_more(header in any_header()) {
            let encoded = header.encode();
            for length in 0..encoded.len() {
                prop_assert_eq!(StreamHeader::decode(&encoded[..length]), Ok(Progress::NeedMore));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..1200),
        ) {
            let _ = StreamHeader::decode(&bytes);
        }

        #[test]
        fn a_flipped_byte_never_panics_and_an_accepted_frame_is_the_only_one_for_its_value(
            header in any_header(), position: proptest::sample::Index, value: u8,
        ) {
            let mut bytes = header.encode().to_vec();
            let position = position.index(bytes.len());
            bytes[position] = value;
            if let Ok(Progress::Complete { value, used }) = StreamHeader::decode(&bytes) {
                let skipped = bytes[..used].len() != value.encode().len();
                prop_assert!(skipped || value.encode() == bytes[..used]);
            }
        }
    }
}
