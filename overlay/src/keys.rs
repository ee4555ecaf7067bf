//! The three secrets that let a restarted node end its old tunnels at once.
//!
//! A node keeps them on its disk (0600, the node's business) and shares them among its workers. After a
//! crash, packets of the old tunnels reach the new process: it must recognise its own connection IDs
//! (connection-ID key), or quinn drops them unseen, and answer with the reset token that the peer holds
//! (reset key). Without these the peer waits out its idle timeout of 30 s. The token key signs Retry
//! tokens, which may come back to another worker or to the restarted process.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::{hkdf, hmac, rand};
use quinn::crypto::{HandshakeTokenKey, HmacKey};
use quinn_proto::HashedConnectionIdGenerator;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Reset key and token key are as long as the SHA-256 output that they feed (RFC 2104 section 3).
const SECRET_BYTES: usize = 32;
/// [`HashedConnectionIdGenerator::from_key`] takes 64 bits; it filters noise and guards no secret.
const CID_BYTES: usize = 8;

/// The keys of one node's endpoints. `Debug` shows nothing of them.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct EndpointKeys {
    reset: [u8; SECRET_BYTES],
    connection_id: [u8; CID_BYTES],
    token: [u8; SECRET_BYTES],
}

/// The stored bytes are not a set of endpoint keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("endpoint keys are {} bytes, found {found}", EndpointKeys::BYTES)]
pub struct InvalidEndpointKeys {
    /// How many bytes there were.
    pub found: usize,
}

/// The operating system gave no entropy.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no entropy for endpoint keys")]
pub struct NoEntropy;

impl EndpointKeys {
    /// The length of the stored form.
    pub const BYTES: usize = 2 * SECRET_BYTES + CID_BYTES;

    /// New keys from the crypto provider's entropy.
    ///
    /// # Errors
    ///
    /// [`NoEntropy`] if there is none.
    pub fn generate() -> Result<Self, NoEntropy> {
        let mut bytes = [0; Self::BYTES];
        rand::fill(&mut bytes).map_err(|_| NoEntropy)?;
        let keys = Self::try_from(&bytes[..]).map_err(|_| NoEntropy);
        bytes.zeroize();
        keys
    }

    /// The form to store. It is secret: whoever holds it can end this node's tunnels.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..SECRET_BYTES].copy_from_slice(&self.reset);
        bytes[SECRET_BYTES..2 * SECRET_BYTES].copy_from_slice(&self.token);
        bytes[2 * SECRET_BYTES..].copy_from_slice(&self.connection_id);
        bytes
    }

    pub(crate) fn reset_key(&self) -> Arc<dyn HmacKey> {
        Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &self.reset))
    }

    pub(crate) fn token_key(&self) -> Arc<dyn HandshakeTokenKey> {
        Arc::new(hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&self.token))
    }

    pub(crate) fn connection_ids(&self) -> HashedConnectionIdGenerator {
        HashedConnectionIdGenerator::from_key(u64::from_be_bytes(self.connection_id))
    }
}

impl TryFrom<&[u8]> for EndpointKeys {
    type Error = InvalidEndpointKeys;

    fn try_from(bytes: &[u8]) -> Result<Self, InvalidEndpointKeys> {
        let bytes: &[u8; Self::BYTES] =
            bytes.try_into().map_err(|_| InvalidEndpointKeys { found: bytes.len() })?;
        let mut keys =
            Self { reset: [0; SECRET_BYTES], connection_id: [0; CID_BYTES], token: [0; SECRET_BYTES] };
        keys.reset.copy_from_slice(&bytes[..SECRET_BYTES]);
        keys.token.copy_from_slice(&bytes[SECRET_BYTES..2 * SECRET_BYTES]);
        keys.connection_id.copy_from_slice(&bytes[2 * SECRET_BYTES..]);
        Ok(keys)
    }
}

impl fmt::Debug for EndpointKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EndpointKeys(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_storage_and_are_not_shown() {
        let keys = EndpointKeys::generate().unwrap();
        let again = EndpointKeys::try_from(&keys.to_bytes()[..]).unwrap();
        assert_eq!(keys.to_bytes(), again.to_bytes());
        assert_eq!(format!("{keys:?}"), "EndpointKeys(..)");
    }

    #[test]
    fn two_nodes_have_different_keys() {
        let (one, two) = (EndpointKeys::generate().unwrap(), EndpointKeys::generate().unwrap());
        assert_ne!(one.to_bytes(), two.to_bytes());
    }

    #[test]
    fn stored_keys_of_a_wrong_length_are_refused() {
        for length in [0, EndpointKeys::BYTES - 1, EndpointKeys::BYTES + 1] {
            let refused = EndpointKeys::try_from(&vec![0; length][..]).unwrap_err();
            assert_eq!(refused, InvalidEndpointKeys { found: length });
        }
    }
}
