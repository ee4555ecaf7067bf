//! The framing that the stream header and the reply share: a version, a length, and typed fields.
//!
//! ```text
//! version u8 │ body length u16 │ field*          field: kind u8 │ length u16 │ value
//! ```
//!
//! Pure and strict, because these are the first bytes that a peer can shape: fields come in ascending
//! order and once each, so a value has one encoding; an unknown field is refused unless its kind says
//! that it may be skipped ([`OPTIONAL`]); nothing is allocated before the frame is whole, and a whole
//! frame is at most [`MAX_FRAME_BYTES`].

use bytes::{BufMut, Bytes, BytesMut};

/// The largest frame, prefix included. A real header is about 150 bytes; one packet carries it.
pub const MAX_FRAME_BYTES: usize = 1024;

/// A kind with this bit may be skipped by an end that does not know it; any other may not.
pub(crate) const OPTIONAL: u8 = 0x80;

/// Version and body length.
const PREFIX_BYTES: usize = 3;

/// What a decoder makes of the bytes so far.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Progress<T> {
    /// The value is complete; `used` bytes belonged to it, the rest is payload.
    Complete {
        /// What was decoded.
        value: T,
        /// How many bytes it took.
        used: usize,
    },
    /// The bytes are a good beginning, and not yet all.
    NeedMore,
}

/// Why the first bytes of a stream are not a header or a reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HeaderError {
    /// The first byte is a version that this end does not speak.
    #[error("unsupported version {0}")]
    UnsupportedVersion(u8),
    /// The frame announces more than [`MAX_FRAME_BYTES`].
    #[error("frame of {0} bytes, at most {MAX_FRAME_BYTES} allowed")]
    TooLong(usize),
    /// A field reaches beyond the frame.
    #[error("field {0:#04x} reaches beyond the frame")]
    Overrun(u8),
    /// Fields must ascend, once each.
    #[error("field {0:#04x} is repeated or out of order")]
    Order(u8),
    /// A field that must be understood and is not known.
    #[error("unknown critical field {0:#04x}")]
    UnknownField(u8),
    /// A required field is absent.
    #[error("field {0} is missing")]
    Missing(&'static str),
    /// A field does not hold what it should.
    #[error("field {0} is malformed")]
    Malformed(&'static str),
}

/// Collects the fields of one frame.
pub(crate) struct FrameWriter {
    bytes: BytesMut,
}

impl FrameWriter {
    pub(crate) fn new(version: u8) -> Self {
        let mut bytes = BytesMut::with_capacity(256);
        bytes.put_u8(version);
        bytes.put_u16(0); // the length, known in `finish`
        Self { bytes }
    }

    /// Appends a field; callers go in ascending order of `kind`.
    pub(crate) fn field(&mut self, kind: u8, value: &[u8]) {
        self.bytes.put_u8(kind);
        self.bytes.put_u16(u16::try_from(value.len()).expect("no field is longer than a frame"));
        self.bytes.put_slice(value);
    }

    pub(crate) fn finish(mut self) -> Bytes {
        let body = self.bytes.len() - PREFIX_BYTES;
        debug_assert!(self.bytes.len() <= MAX_FRAME_BYTES, "field types bound the frame");
        let length = u16::try_from(body).expect("field types bound the frame far below 64 KiB");
        self.bytes[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
        self.bytes.freeze()
    }
}

/// Splits the frame off the front of `bytes`: its fields and its whole length.
pub(crate) fn frame(bytes: &[u8], version: u8) -> Result<Option<(Fields<'_>, usize)>, HeaderError> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    if first != version {
        return Err(HeaderError::UnsupportedVersion(first));
    }
    let Some(length) = bytes.get(1..PREFIX_BYTES) else { return Ok(None) };
    let total = PREFIX_BYTES + usize::from(u16::from_be_bytes([length[0], length[1]]));
    if total > MAX_FRAME_BYTES {
        return Err(HeaderError::TooLong(total));
    }
    Ok(bytes.get(PREFIX_BYTES..total).map(|rest| (Fields { rest, last: None }, total)))
}

/// Walks the fields of a frame, in order.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    last: Option<u8>,
}

impl<'a> Fields<'a> {
    /// The next field: its kind and its value.
    pub(crate) fn next(&mut self) -> Result<Option<(u8, &'a [u8])>, HeaderError> {
        let Some((&kind, rest)) = self.rest.split_first() else { return Ok(None) };
        if self.last.is_some_and(|last| last >= kind) {
            return Err(HeaderError::Order(kind));
        }
        let (length, rest) = rest.split_first_chunk::<2>().ok_or(HeaderError::Overrun(kind))?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (value, rest) = rest.split_at_checked(length).ok_or(HeaderError::Overrun(kind))?;
        self.rest = rest;
        self.last = Some(kind);
        Ok(Some((kind, value)))
    }
}

/// Refuses a field that is unknown and may not be skipped.
pub(crate) fn skip(kind: u8) -> Result<(), HeaderError> {
    if kind & OPTIONAL == 0 { Err(HeaderError::UnknownField(kind)) } else { Ok(()) }
}
