//! f12: the first bytes of a flow and of its answer, and the numbers of its end.

use bytes::Bytes;
use weft_overlay::{
    CloseCode, HeaderError, MAX_FRAME_BYTES, PeerCode, Progress, ResetCode, StreamHeader, StreamReply,
};

/// Reads the bytes as a header, as a reply, and as codes.
pub fn f12_stream_frames(data: &[u8]) {
    frame(data, StreamHeader::decode, StreamHeader::encode);
    frame(data, StreamReply::decode, StreamReply::encode);
    for chunk in data.chunks_exact(8).take(4) {
        code(u64::from_be_bytes(chunk.try_into().expect("eight bytes")));
    }
}

fn frame<T: Clone + PartialEq + std::fmt::Debug>(
    data: &[u8],
    decode: fn(&[u8]) -> Result<Progress<T>, HeaderError>,
    encode: fn(&T) -> Bytes,
) {
    let whole = decode(data);
    incremental(data, &whole, decode);
    let Ok(Progress::Complete { value, used }) = whole else { return };
    assert!(used <= MAX_FRAME_BYTES && used <= data.len(), "{used} bytes used of {}", data.len());
    assert_eq!(used, declared(data).expect("a whole frame has a length"));
    let again = encode(&value);
    assert!(again.len() <= MAX_FRAME_BYTES);
    let decoded = decode(&again);
    assert_eq!(decoded, Ok(Progress::Complete { value, used: again.len() }), "what was read can be sent on");
    // What may be skipped may also be added: an empty detail. The rest of a value has one encoding.
    assert_eq!(critical(&again), critical(&data[..used]), "a value has one encoding");
}

/// Bytes come in pieces: a verdict once given never changes with what follows, and waits only for what was declared.
fn incremental<T: Clone + PartialEq + std::fmt::Debug>(
    data: &[u8],
    whole: &Result<Progress<T>, HeaderError>,
    decode: fn(&[u8]) -> Result<Progress<T>, HeaderError>,
) {
    for length in 0..data.len().min(MAX_FRAME_BYTES + 4) {
        match decode(&data[..length]) {
            Ok(Progress::NeedMore) => {
                assert!(
                    length < 3 || declared(data).is_some_and(|total| length < total),
                    "waits at {length}"
                );
            }
            early => {
                assert_eq!(&early, whole, "the verdict at {length} bytes changed with the rest");
                return;
            }
        }
    }
}

fn declared(data: &[u8]) -> Option<usize> {
    let length = data.get(1..3)?;
    Some(3 + usize::from(u16::from_be_bytes([length[0], length[1]])))
}

/// The fields of an accepted frame that may not be skipped; fields are in order and once each.
fn critical(frame: &[u8]) -> Vec<(u8, &[u8])> {
    let mut fields = Vec::new();
    let mut last = None;
    let mut rest = &frame[3..];
    while let [kind, high, low, tail @ ..] = rest {
        assert!(last.is_none_or(|last| last < *kind), "fields out of order were accepted");
        last = Some(*kind);
        let (value, behind) = tail.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        if kind & 0x80 == 0 {
            fields.push((*kind, value));
        }
        rest = behind;
    }
    assert!(rest.is_empty(), "bytes between the fields were accepted");
    fields
}

fn code(number: u64) {
    if let Ok(code) = ResetCode::try_from(number) {
        assert_eq!(code.number(), number);
        assert!(CloseCode::try_from(number).is_err(), "one number, two meanings");
    }
    match PeerCode::<ResetCode>::from_wire(number) {
        PeerCode::Known(code) => assert_eq!(code.number(), number),
        PeerCode::Unknown(kept) => assert_eq!(kept, number),
    }
}
