//! How often unknown QUIC versions are answered.
//!
//! quinn answers every large packet of a version that it does not speak with a Version Negotiation packet
//! (RFC 9000 section 6.1 lets a server limit that). Nobody in a mesh speaks another version, so these
//! answers go to probes and to forged addresses: a few a second are enough.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::bucket::TokenBucket;
use crate::clock;

/// Version Negotiation packets a second.
const VERSION_ANSWERS_PER_SECOND: u32 = 100;
/// A long header has this bit (RFC 8999 section 5.1); its version follows the first byte.
const LONG_HEADER: u8 = 0x80;

/// Is quiet towards strangers.
#[derive(Debug)]
pub(crate) struct Quiet {
    version_answers: Mutex<TokenBucket>,
}

impl Quiet {
    pub(crate) fn new(now: Instant) -> Self {
        Self { version_answers: Mutex::new(TokenBucket::full(VERSION_ANSWERS_PER_SECOND, now)) }
    }

    /// Whether `packet` may be sent.
    pub(crate) fn lets_out(&self, packet: &[u8]) -> bool {
        !negotiates_version(packet) || {
            let mut answers = self.version_answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.take(clock::now().into_std())
        }
    }
}

/// Whether `packet` is a Version Negotiation packet: a long header of version 0 (RFC 8999 section 6).
fn negotiates_version(packet: &[u8]) -> bool {
    matches!(packet, [first, 0, 0, 0, 0, ..] if first & LONG_HEADER != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_04_only_version_negotiation_is_told_apart() {
        assert!(negotiates_version(&[0xc0, 0, 0, 0, 0, 8]));
        assert!(negotiates_version(&[0x80, 0, 0, 0, 0]));
        assert!(!negotiates_version(&[0xc0, 0, 0, 0, 1, 8]), "a packet of version 1");
        assert!(!negotiates_version(&[0x40, 0, 0, 0, 0, 8]), "a short header");
        assert!(!negotiates_version(&[0xc0, 0, 0, 0]));
    }
}
