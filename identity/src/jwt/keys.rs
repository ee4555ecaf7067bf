//! The public keys of an issuer (RFC 7517), of which only those that can sign tokens are kept.

use std::fmt;

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;

use super::JwtError;

/// The largest set that is read: [`MAX_KEYS`] RSA keys of 8192 bits take two thirds of it.
pub const MAX_SET_BYTES: usize = 64 * 1024;
/// The most keys of a set: issuers publish two to five.
pub const MAX_KEYS: usize = 32;

const RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// Why a set of keys is of no use.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum JwkSetError {
    /// See [`MAX_SET_BYTES`].
    #[error("the key set is longer than {MAX_SET_BYTES} bytes")]
    TooLong,
    /// See [`MAX_KEYS`].
    #[error("the key set has more than {MAX_KEYS} keys")]
    TooMany,
    /// Not the JSON of a JWK set.
    #[error("the text is no JWK set: {0}")]
    Malformed(String),
    /// Two keys have one name, so a token could not say which it means.
    #[error("two keys of the set have the name {0:?}")]
    SameName(String),
    /// None that could have signed a token.
    #[error(
        "no key of the set can sign a token: RSA of 2048 bits or more, P-256, P-384 or Ed25519 is needed"
    )]
    NoKey,
}

/// See the module.
#[derive(Clone)]
pub struct JwkSet {
    keys: Vec<Key>,
}

#[derive(Clone)]
struct Key {
    name: Option<String>,
    /// The algorithms that it may be used with: those of its kind, or the one that it names.
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct RawSet {
    keys: Vec<serde_json::Value>,
}

impl JwkSet {
    /// Reads a set. Keys of other kinds and for other uses are left out (RFC 7517, 5), symmetric ones among them.
    ///
    /// # Errors
    ///
    /// [`JwkSetError`]
    pub fn parse(text: &[u8]) -> Result<Self, JwkSetError> {
        if text.len() > MAX_SET_BYTES {
            return Err(JwkSetError::TooLong);
        }
        let raw: RawSet = serde_json::from_slice(text).map_err(|e| JwkSetError::Malformed(e.to_string()))?;
        if raw.keys.len() > MAX_KEYS {
            return Err(JwkSetError::TooMany);
        }
        let mut keys: Vec<Key> = Vec::with_capacity(raw.keys.len());
        for value in raw.keys {
            let Some(key) = serde_json::from_value::<Jwk>(value).ok().as_ref().and_then(usable) else {
                continue;
            };
            if let Some(name) = &key.name
                && keys.iter().any(|other| other.name.as_ref() == Some(name))
            {
                return Err(JwkSetError::SameName(name.clone()));
            }
            keys.push(key);
        }
        if keys.is_empty() { Err(JwkSetError::NoKey) } else { Ok(Self { keys }) }
    }

    /// How many keys can have signed a token.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.keys.len()
    }

    /// Never: see [`JwkSetError::NoKey`].
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The one key that a token with that name and algorithm can have been signed with.
    pub(super) fn find(&self, name: Option<&str>, algorithm: Algorithm) -> Result<&DecodingKey, JwtError> {
        let named = |key: &&Key| name.is_none_or(|name| key.name.as_deref() == Some(name));
        let mut fits = self.keys.iter().filter(named).filter(|key| key.algorithms.contains(&algorithm));
        match (fits.next(), fits.next()) {
            (Some(key), None) => Ok(&key.key),
            (None, _) => Err(JwtError::UnknownKey),
            (Some(_), Some(_)) => Err(JwtError::AmbiguousKey),
        }
    }
}

impl fmt::Debug for JwkSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| (&key.name, &key.algorithms))).finish()
    }
}

/// Whether tokens with that algorithm are taken at all.
pub(super) fn is_accepted(algorithm: Algorithm) -> bool {
    algorithm.family() != AlgorithmFamily::Hmac
}

/// The key, if a token can have been signed with it.
fn usable(jwk: &Jwk) -> Option<Key> {
    let common = &jwk.common;
    let signs = common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature);
    let verifies = common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
    let own = algorithms_of(&jwk.algorithm);
    let algorithms: Vec<_> = match &common.key_algorithm {
        None => own.to_vec(),
        Some(only) => own.iter().copied().filter(|algorithm| is(*only, *algorithm)).collect(),
    };
    let key = DecodingKey::from_jwk(jwk).ok()?;
    let usable = signs && verifies && !algorithms.is_empty();
    usable.then(|| Key { name: common.key_id.clone(), algorithms, key })
}

/// The algorithms that a key of that kind signs with; none for kinds that sign no token.
fn algorithms_of(kind: &AlgorithmParameters) -> &'static [Algorithm] {
    if let AlgorithmParameters::RSA(key) = kind
        && is_large(&key.n)
    {
        return &RSA;
    }
    let (curve, of_edwards) = if let AlgorithmParameters::EllipticCurve(key) = kind {
        (&key.curve, false)
    } else if let AlgorithmParameters::OctetKeyPair(key) = kind {
        (&key.curve, true)
    } else {
        return &[];
    };
    if *curve == EllipticCurve::P256 && !of_edwards {
        &[Algorithm::ES256]
    } else if *curve == EllipticCurve::P384 && !of_edwards {
        &[Algorithm::ES384]
    } else if *curve == EllipticCurve::Ed25519 && of_edwards {
        &[Algorithm::EdDSA]
    } else {
        &[]
    }
}

/// Whether a modulus in base64url has 2048 bits or more; what signs with less is not kept, so that nobody waits for it.
fn is_large(modulus: &str) -> bool {
    // Four letters hold three octets.
    modulus.len() * 3 / 4 >= 256
}

fn is(named: KeyAlgorithm, algorithm: Algorithm) -> bool {
    named.to_string().parse() == Ok(algorithm)
}
