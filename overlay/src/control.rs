//! What the two ends of a tunnel tell each other beside the flows: so far, that one of them is going.
//!
//! A control message is a unidirectional stream of its own: version, kind, value. Pure. Unknown kinds
//! are ignored, because an older end can always do without them.

use crate::code::{CloseCode, PeerCode};

const VERSION: u8 = 1;
const GO_AWAY: u8 = 1;
/// Version, kind, and the code.
const GO_AWAY_BYTES: usize = 10;
/// The longest message that is read.
pub(crate) const MAX_CONTROL_BYTES: usize = 64;

/// One message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Control {
    /// Open no new flows here: this end closes the tunnel when the present ones are done.
    GoAway(PeerCode<CloseCode>),
}

impl Control {
    pub(crate) fn go_away(code: CloseCode) -> [u8; GO_AWAY_BYTES] {
        let mut bytes = [0; GO_AWAY_BYTES];
        bytes[0] = VERSION;
        bytes[1] = GO_AWAY;
        bytes[2..].copy_from_slice(&code.number().to_be_bytes());
        bytes
    }

    /// `None` for anything that this version does not know.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [VERSION, GO_AWAY, code @ ..] => {
                let number = u64::from_be_bytes(code.try_into().ok()?);
                Some(Self::GoAway(PeerCode::from_wire(number)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_go_away_survives_the_wire() {
        let bytes = Control::go_away(CloseCode::Drain);
        assert_eq!(Control::decode(&bytes), Some(Control::GoAway(PeerCode::Known(CloseCode::Drain))));
    }

    #[test]
    fn what_is_unknown_is_ignored() {
        assert_eq!(Control::decode(&[]), None);
        assert_eq!(Control::decode(&[1, 9, 0]), None);
        assert_eq!(Control::decode(&[2, 1, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Control::decode(&bytes);
        }
    }
}
