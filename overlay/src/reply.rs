//! The first bytes back: whether the flow was accepted, and by which rule; or why not.
//!
//! Pure. A refusal travels here, with a code that a person can look up, and as the STOP_SENDING code of
//! the stream, so that a caller that is still writing learns of it at once.

use bytes::Bytes;

use crate::code::{PeerCode, ResetCode};
use crate::header::HEADER_VERSION;
use crate::wire::{self, FrameWriter, HeaderError, Progress};

/// The longest detail of a refusal; a longer one is cut at a character.
pub const MAX_DETAIL_BYTES: usize = 512;
/// The longest name of a policy or rule that is told to the caller.
const MAX_NAME_BYTES: usize = 160;
/// `W2101` and the like.
const MAX_ERROR_CODE_BYTES: usize = 16;

mod kind {
    pub(super) const STATUS: u8 = 0x01;
    pub(super) const CODE: u8 = 0x02;
    pub(super) const ERROR: u8 = 0x03;
    pub(super) const POLICY: u8 = 0x84; // optional: good for the log only
    pub(super) const RULE: u8 = 0x85;
    pub(super) const DETAIL: u8 = 0x86;
}

const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;

/// The answer to a [`crate::StreamHeader`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StreamReply {
    /// The flow goes on; the service's bytes follow.
    Accepted(Accepted),
    /// The flow ends here.
    Refused(Refused),
}

/// Which rule let the flow pass at the other end, for the access log of the caller.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Accepted {
    /// Policy as `namespace/name`, and the name of its rule.
    pub policy: Option<PolicyRef>,
}

/// A policy and the rule in it that decided.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PolicyRef {
    /// `namespace/name`, at most 160 bytes; longer ones are cut.
    pub policy: String,
    /// The rule's name, at most 160 bytes; longer ones are cut.
    pub rule: String,
}

/// Why the other end refused a flow.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("refused: {code}: {detail}")]
pub struct Refused {
    /// What kind of refusal it is.
    pub code: PeerCode<ResetCode>,
    /// The code of the error catalogue, such as `W2101`; at most 16 bytes.
    pub error: String,
    /// One sentence for a person, at most [`MAX_DETAIL_BYTES`]; it comes from the peer.
    pub detail: String,
}

impl Refused {
    /// A refusal of this end. Text beyond the limits is cut.
    pub fn new(code: ResetCode, error: &str, detail: &str) -> Self {
        Self { code: PeerCode::Known(code), error: error.to_owned(), detail: detail.to_owned() }
    }
}

impl StreamReply {
    /// The bytes that go first on the way back.
    pub fn encode(&self) -> Bytes {
        let mut frame = FrameWriter::new(HEADER_VERSION);
        match self {
            Self::Accepted(accepted) => {
                frame.field(kind::STATUS, &[ACCEPTED]);
                if let Some(reference) = &accepted.policy {
                    frame.field(kind::POLICY, cut(&reference.policy, MAX_NAME_BYTES).as_bytes());
                    frame.field(kind::RULE, cut(&reference.rule, MAX_NAME_BYTES).as_bytes());
                }
            }
            Self::Refused(refused) => {
                let number = match refused.code {
                    PeerCode::Known(code) => code.number(),
                    PeerCode::Unknown(number) => number,
                };
                frame.field(kind::STATUS, &[REFUSED]);
                frame.field(kind::CODE, &number.to_be_bytes());
                frame.field(kind::ERROR, cut(&refused.error, MAX_ERROR_CODE_BYTES).as_bytes());
                frame.field(kind::DETAIL, cut(&refused.detail, MAX_DETAIL_BYTES).as_bytes());
            }
        }
        frame.finish()
    }

    /// Reads a reply from the front of `bytes`.
    ///
    /// # Errors
    ///
    /// [`HeaderError`] as soon as the bytes cannot become a reply.
    pub fn decode(bytes: &[u8]) -> Result<Progress<Self>, HeaderError> {
        let Some((mut fields, used)) = wire::frame(bytes, HEADER_VERSION)? else {
            return Ok(Progress::NeedMore);
        };
        let (mut status, mut code, mut error) = (None, None, None);
        let (mut policy, mut rule, mut detail) = (None, None, String::new());
        while let Some((kind, value)) = fields.next()? {
            match kind {
                kind::STATUS => status = Some(value),
                kind::CODE => code = Some(number(value)?),
                kind::ERROR => error = Some(text(value, MAX_ERROR_CODE_BYTES, "error")?),
                kind::POLICY => policy = Some(text(value, MAX_NAME_BYTES, "policy")?),
                kind::RULE => rule = Some(text(value, MAX_NAME_BYTES, "rule")?),
                kind::DETAIL => detail = text(value, MAX_DETAIL_BYTES, "detail")?,
                unknown => wire::skip(unknown)?,
            }
        }
        let value = match status {
            // The fields of a refusal are critical: an answer that has them as well says two things.
            Some([ACCEPTED]) if code.is_none() && error.is_none() => Self::Accepted(Accepted {
                policy: policy.zip(rule).map(|(policy, rule)| PolicyRef { policy, rule }),
            }),
            Some([REFUSED]) => Self::Refused(Refused {
                code: PeerCode::from_wire(code.ok_or(HeaderError::Missing("code"))?),
                error: error.ok_or(HeaderError::Missing("error"))?,
                detail,
            }),
            Some(_) => return Err(HeaderError::Malformed("status")),
            None => return Err(HeaderError::Missing("status")),
        };
        Ok(Progress::Complete { value, used })
    }
}

fn number(value: &[u8]) -> Result<u64, HeaderError> {
    value.try_into().map(u64::from_be_bytes).map_err(|_| HeaderError::Malformed("code"))
}

/// Text of the peer that will be shown and logged: bounded, UTF-8, and without control characters.
fn text(value: &[u8], limit: usize, field: &'static str) -> Result<String, HeaderError> {
    let text = str::from_utf8(value).map_err(|_| HeaderError::Malformed(field))?;
    if text.len() > limit || text.chars().any(char::is_control) {
        return Err(HeaderError::Malformed(field));
    }
    Ok(text.to_owned())
}

/// The longest prefix of at most `limit` bytes that ends at a character; control characters end it too,
/// because the other end would refuse them.
fn cut(text: &str, limit: usize) -> &str {
    let fits = |&(at, c): &(usize, char)| at + c.len_utf8() <= limit && !c.is_control();
    let end = text.char_indices().take_while(fits).last().map_or(0, |(at, c)| at + c.len_utf8());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_long_detail_is_cut_at_a_character_and_still_fits() {
        let refused = Refused::new(ResetCode::PolicyDenied, "W2101", &"é".repeat(400));
        let encoded = StreamReply::Refused(refused).encode();
        assert!(encoded.len() <= wire::MAX_FRAME_BYTES);
        let Ok(Progress::Complete { value: StreamReply::Refused(decoded), .. }) =
            StreamReply::decode(&encoded)
        else {
            panic!("a refusal comes back")
        };
        assert_eq!(decoded.code, PeerCode::Known(ResetCode::PolicyDenied));
        assert_eq!(decoded.detail, "é".repeat(256));
    }

    #[test]
    fn a_refusal_without_a_code_is_malformed() {
        let mut frame = FrameWriter::new(HEADER_VERSION);
        frame.field(kind::STATUS, &[REFUSED]);
        assert_eq!(StreamReply::decode(&frame.finish()), Err(HeaderError::Missing("code")));
    }

    #[test]
    fn an_acceptance_with_the_code_or_error_of_a_refusal_is_malformed() {
        for (kind, value) in
            [(kind::CODE, &ResetCode::Drain.number().to_be_bytes()[..]), (kind::ERROR, &b"W1020"[..])]
        {
            let mut frame = FrameWriter::new(HEADER_VERSION);
            frame.field(kind::STATUS, &[ACCEPTED]);
            frame.field(kind, value);
            assert_eq!(StreamReply::decode(&frame.finish()), Err(HeaderError::Malformed("status")));
        }
    }

    #[test]
    fn text_with_terminal_escapes_is_refused() {
        let mut frame = FrameWriter::new(HEADER_VERSION);
        frame.field(kind::STATUS, &[REFUSED]);
        frame.field(kind::CODE, &ResetCode::Drain.number().to_be_bytes());
        frame.field(kind::ERROR, b"W1\x1b[31m");
        assert_eq!(StreamReply::decode(&frame.finish()), Err(HeaderError::Malformed("error")));
    }

    fn any_reply() -> impl Strategy<Value = StreamReply> {
        let name = "[a-z/-]{0,160}";
        let accepted = proptest::option::of((name, name)).prop_map(|names| {
            let policy = names.map(|(policy, rule)| PolicyRef { policy, rule });
            StreamReply::Accepted(Accepted { policy })
        });
        let refused = (any::<u64>(), "W[0-9]{4}", "[ -~]{0,512}").prop_map(|(number, error, detail)| {
            StreamReply::Refused(Refused { code: PeerCode::from_wire(number), error, detail })
        });
        prop_oneof![accepted, refused]
    }

    proptest! {
        #[test]
        fn a_reply_survives_the_wire(reply in any_reply()) {
            let encoded = reply.encode();
            for length in 0..encoded.len() {
                prop_assert_eq!(StreamReply::decode(&encoded[..length]), Ok(Progress::NeedMore));
            }
            let expected = Progress::Complete { value: reply, used: encoded.len() };
            prop_assert_eq!(StreamReply::decode(&encoded), Ok(expected));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
            let _ = StreamReply::decode(&bytes);
            let mut framed = vec![HEADER_VERSION, 0, bytes.len().min(255) as u8];
            framed.extend(&bytes);
            let _ = StreamReply::decode(&framed);
        }
    }
}
