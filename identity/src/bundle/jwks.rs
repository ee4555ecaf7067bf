//! The JWK Set form of a bundle (SPIFFE Trust Domain and Bundle §4, RFC 7517).
//!
//! Reading is lenient where the specification says so (a key of unknown kind or use is passed over) and
//! refuses the whole document for anything else that is wrong, so that the last good bundle stays.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use serde_json::{Map, Number, Value, json};

use super::{BundleError, MAX_BUNDLE_BYTES, MAX_BUNDLE_KEYS, MIN_REFRESH_HINT, TrustBundle};
use crate::spiffe::TrustDomain;
use crate::x509::certificate::Certificate;
use crate::x509::public_key::PublicKey;

/// The `use` of a key that signs X.509-SVIDs (X509-SVID §6.1).
const X509_USE: &str = "x509-svid";

/// What is read of a document. A parameter that stands twice is an error of serde's derive.
#[derive(Deserialize)]
struct RawSet {
    keys: Vec<RawKey>,
    spiffe_sequence: Option<Number>,
    spiffe_refresh_hint: Option<Value>,
}

#[derive(Default, Deserialize)]
struct RawKey {
    kty: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    x5c: Option<Vec<String>>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

impl TrustBundle {
    /// Reads the JWK Set `document` as the bundle of `trust_domain`.
    ///
    /// The trust domain is the caller's knowledge, never taken from the document (BU-07). A key counts if
    /// it has a known `kty`, `use` is `x509-svid` and `x5c` is not empty; of `x5c` only the first value is
    /// read. None left is a bundle without roots, which trusts nobody (X5-19, X5-20, BU-02, BU-05).
    ///
    /// # Errors
    ///
    /// [`BundleError`]: too long, too many keys, not a JWK Set, or a counted key that is broken.
    pub fn from_jwks(trust_domain: TrustDomain, document: &[u8]) -> Result<Self, BundleError> {
        if document.len() > MAX_BUNDLE_BYTES {
            return Err(BundleError::TooLong(document.len()));
        }
        let set: RawSet = serde_json::from_slice(document)
            .map_err(|error| BundleError::NotJwks { line: error.line(), column: error.column() })?;
        if set.keys.len() > MAX_BUNDLE_KEYS {
            return Err(BundleError::TooManyKeys(set.keys.len()));
        }
        let sequence = match set.spiffe_sequence {
            Some(number) => number.as_u64().ok_or(BundleError::Sequence)?,
            None => 0,
        };
        let mut roots = Vec::new();
        for (index, key) in set.keys.iter().enumerate() {
            roots.extend(key.certificate(index)?);
        }
        let bundle = Self::new(trust_domain, roots, sequence)?;
        Ok(match set.spiffe_refresh_hint.as_ref().and_then(refresh_hint) {
            Some(hint) => bundle.with_refresh_hint(hint),
            None => bundle,
        })
    }

    /// Writes the bundle as a JWK Set, one key per root (X5-18).
    pub fn to_jwks(&self) -> String {
        let keys: Vec<Value> = self.roots().filter_map(jwk).collect();
        let mut set = Map::new();
        set.insert("keys".to_owned(), Value::Array(keys));
        set.insert("spiffe_sequence".to_owned(), self.sequence().into());
        if let Some(hint) = self.refresh_hint() {
            set.insert("spiffe_refresh_hint".to_owned(), hint.as_secs().into());
        }
        Value::Object(set).to_string()
    }
}

/// A hint never makes a bundle unusable: what is no number is no hint, what is out of range is clamped.
fn refresh_hint(value: &Value) -> Option<Duration> {
    let number = value.as_number()?;
    let seconds = number.as_u64().or_else(|| number.as_i64().map(|_| 0));
    // Neither fits: a fraction, or beyond 64 bits. Both are read as "soon" rather than "late".
    Some(seconds.map_or(MIN_REFRESH_HINT, Duration::from_secs))
}

impl RawKey {
    /// The root of this key, `None` if the key is to be passed over.
    fn certificate(&self, index: usize) -> Result<Option<CertificateDer<'static>>, BundleError> {
        let known = matches!(self.kty.as_deref(), Some("EC" | "RSA" | "OKP"));
        if !known || self.usage.as_deref() != Some(X509_USE) {
            return Ok(None);
        }
        let Some(encoded) = self.x5c.as_ref().and_then(|values| values.first()) else {
            return Ok(None);
        };
        let der = STANDARD.decode(encoded).map_err(|_| BundleError::Encoding(index))?;
        let certificate = CertificateDer::from(der);
        let parsed = Certificate::parse(&certificate).map_err(|_| BundleError::Encoding(index))?;
        // A key of another kind is refused with the whole root, when the bundle is made.
        if PublicKey::parse(parsed.spki).is_ok_and(|key| !self.agrees_with(key)) {
            return Err(BundleError::KeyMismatch(index));
        }
        Ok(Some(certificate))
    }

    /// Whether the parameters that are there are those of `key`.
    fn agrees_with(&self, key: PublicKey<'_>) -> bool {
        let stated = Self::of(key);
        let agrees = |own: &Option<String>, theirs: &Option<String>| own.is_none() || own == theirs;
        self.kty == stated.kty
            && agrees(&self.crv, &stated.crv)
            && agrees(&self.x, &stated.x)
            && agrees(&self.y, &stated.y)
            && agrees(&self.n, &stated.n)
            && agrees(&self.e, &stated.e)
    }

    /// The parameters of `key` (RFC 7518 §6, RFC 8037 §2).
    fn of(key: PublicKey<'_>) -> Self {
        let encode = |octets: &[u8]| Some(URL_SAFE_NO_PAD.encode(octets));
        let curve = |kty: &str, crv: &str| Self {
            kty: Some(kty.to_owned()),
            crv: Some(crv.to_owned()),
            ..Self::default()
        };
        match key {
            PublicKey::P256 { x, y } => Self { x: encode(x), y: encode(y), ..curve("EC", "P-256") },
            PublicKey::P384 { x, y } => Self { x: encode(x), y: encode(y), ..curve("EC", "P-384") },
            PublicKey::Ed25519(x) => Self { x: encode(x), ..curve("OKP", "Ed25519") },
            PublicKey::Rsa { modulus, exponent } => Self {
                kty: Some("RSA".to_owned()),
                n: encode(modulus),
                e: encode(exponent),
                ..Self::default()
            },
        }
    }
}

/// One key of the set: `use`, `x5c` with exactly one certificate, no `kid` (X509-SVID §6.1).
/// Always there, since every root of a bundle was read once.
fn jwk(certificate: &CertificateDer<'static>) -> Option<Value> {
    let parsed = Certificate::parse(certificate).ok()?;
    let key = RawKey::of(PublicKey::parse(parsed.spki).ok()?);
    let mut value = json!({ "use": X509_USE, "kty": key.kty });
    let members = [("crv", key.crv), ("x", key.x), ("y", key.y), ("n", key.n), ("e", key.e)];
    let map = value.as_object_mut()?;
    for (name, member) in members {
        if let Some(member) = member {
            map.insert(name.to_owned(), member.into());
        }
    }
    map.insert("x5c".to_owned(), json!([STANDARD.encode(certificate)]));
    Some(value)
}
