//! JSON Web Tokens of callers: whether one proves what it says, by the public keys of its issuer (RFC 7515, 7517, 7519).
//!
//! Pure: the time and the keys are handed in, and nothing that a token names (`jku`, `jwk`, `x5u`, `x5c`) is ever looked at
//! or fetched. The algorithm is that of the key, never the token's choice alone: symmetric ones do not exist here, so a
//! public key can never be taken for a shared secret.

mod claims;
mod keys;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Header, crypto, decode_header};

pub use self::{
    claims::{ClaimValue, Claims},
    keys::{JwkSet, JwkSetError, MAX_KEYS, MAX_SET_BYTES},
};

/// The longest token that is read: twice what the largest issuers hand out, and half of the headers of a request.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// By how much clocks may differ unless a rule says otherwise.
pub const DEFAULT_LEEWAY: Duration = Duration::from_secs(60);
/// The most that a rule may say.
pub const MAX_LEEWAY: Duration = Duration::from_secs(300);

/// What a token must say to be taken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Expected {
    /// `iss`, exactly.
    pub issuer: String,
    /// One of these must be among `aud`. An empty list takes no token at all.
    pub audiences: Vec<String>,
    /// By how much clocks may differ, at most [`MAX_LEEWAY`].
    pub leeway: Duration,
}

/// Why a token is not taken. No text of the token is in it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum JwtError {
    /// See [`MAX_TOKEN_BYTES`].
    #[error("the token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    /// Not three parts in base64url, or a part is not the JSON that it should be.
    #[error("the token is malformed")]
    Malformed,
    /// `none`, a symmetric one, or one that is not known.
    #[error("the token's algorithm is not accepted")]
    Algorithm,
    /// A header demands what this reader does not know (RFC 7515, 4.1.11), or the token is of another type.
    #[error("the token's header demands what is not supported")]
    Header,
    /// No key of the set fits, by its name and its kind; a newer set may have it.
    #[error("no key of the issuer fits the token")]
    UnknownKey,
    /// The token names no key and several fit.
    #[error("the token does not say which of the issuer's keys signed it")]
    AmbiguousKey,
    /// Not signed by the key.
    #[error("the token's signature is wrong")]
    Signature,
    /// `iss` is missing or another one.
    #[error("the token is of another issuer")]
    Issuer,
    /// `aud` is missing, or names others.
    #[error("the token is meant for another audience")]
    Audience,
    /// `exp` is missing or no time.
    #[error("the token does not say when it ends")]
    NoExpiry,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` or `iat` is yet to come, or no time.
    #[error("the token is not valid yet")]
    NotYetValid,
}

impl JwtError {
    /// Whether newer keys of the issuer could change the answer, so that asking for them makes sense.
    #[must_use]
    pub const fn wants_newer_keys(self) -> bool {
        matches!(self, Self::UnknownKey)
    }
}

/// What `token` proves at `now` by one of `keys`.
///
/// # Errors
///
/// [`JwtError`]; whoever asks must take any of them for "no token".
pub fn verify(token: &str, keys: &JwkSet, expected: &Expected, now: SystemTime) -> Result<Claims, JwtError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(JwtError::TooLong);
    }
    let header = decode_header(token).map_err(|_| JwtError::Malformed)?;
    check_header(&header)?;
    let key = keys.find(header.kid.as_deref(), header.alg)?;
    let (message, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed)?;
    let signed = crypto::verify(signature, message.as_bytes(), key, header.alg);
    if !signed.map_err(|_| JwtError::Malformed)? {
        return Err(JwtError::Signature);
    }
    let claims = read_claims(message)?;
    check_claims(&claims, expected, now)?;
    Ok(claims)
}

fn check_header(header: &Header) -> Result<(), JwtError> {
    if !keys::is_accepted(header.alg) {
        return Err(JwtError::Algorithm);
    }
    // JWT and JOSE (RFC 7519, 5.1), and at+jwt (RFC 9068, 2.1), in any case of letters.
    const TYPES: [&str; 3] = ["JWT", "JOSE", "at+jwt"];
    let of_a_type =
        header.typ.as_ref().is_none_or(|typ| TYPES.iter().any(|known| known.eq_ignore_ascii_case(typ)));
    let plain = header.enc.is_none() && header.zip.is_none() && header.crit.is_none();
    // RFC 7797: the payload would not be base64url.
    let encoded = matches!(header.extras.get::<serde_json::Value>("b64"), Ok(None));
    if of_a_type && plain && encoded { Ok(()) } else { Err(JwtError::Header) }
}

/// What stands between the header and the signature. It is read here, and not by the library, so that no reader but
/// ours ever judges it.
fn read_claims(message: &str) -> Result<Claims, JwtError> {
    let (_, payload) = message.rsplit_once('.').ok_or(JwtError::Malformed)?;
    let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).map_err(|_| JwtError::Malformed)?;
    serde_json::from_slice(&payload).map_err(|_| JwtError::Malformed)
}

fn check_claims(claims: &Claims, expected: &Expected, now: SystemTime) -> Result<(), JwtError> {
    if claims.text("iss") != Some(expected.issuer.as_str()) {
        return Err(JwtError::Issuer);
    }
    if !claims
        .texts("aud")
        .is_some_and(|own| own.iter().any(|one| expected.audiences.iter().any(|a| a == one)))
    {
        return Err(JwtError::Audience);
    }
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let leeway = expected.leeway.min(MAX_LEEWAY).as_secs_f64();
    let ends = claims.number("exp").ok_or(JwtError::NoExpiry)?;
    if seconds >= ends + leeway {
        return Err(JwtError::Expired);
    }
    for begins in ["nbf", "iat"] {
        match claims.get(begins) {
            None => {}
            Some(ClaimValue::Number(from)) if *from <= seconds + leeway => {}
            Some(_) => return Err(JwtError::NotYetValid),
        }
    }
    Ok(())
}
