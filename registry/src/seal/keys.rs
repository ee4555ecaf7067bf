//! The keys of records: one's own, and those that are trusted.
//!
//! They lie in the server's own directory, `records/key.json` of mode 0600, outside the store that they protect. The
//! private key never leaves it: a backup holds records as they read, and whoever restores one signs them anew.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, ParsedPublicKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{SealError, sha256};
use crate::private;

/// The format of the file that this version writes and reads.
const FORMAT: u32 = 1;

/// Names a key: the first 8 bytes of the SHA-256 of its public half. It only says which key to try; a key that was made
/// to have the same name verifies nothing that another has signed.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyId(pub [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// The public half of a key of records.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RecordPublicKey(pub [u8; 32]);

impl RecordPublicKey {
    /// Reads what [`Self::to_hex`] wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let octet = |at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
        let octets: Option<Vec<u8>> = (0..text.len()).step_by(2).map(octet).collect();
        octets?.try_into().ok().map(Self)
    }

    /// The key in hexadecimal.
    #[must_use]
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|octet| format!("{octet:02x}")).collect()
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let hash = sha256(&[&self.0]);
        let mut id = [0; 8];
        id.copy_from_slice(&hash[..8]);
        KeyId(id)
    }
}

/// A key with which a server signs records. A clone is the same key.
#[derive(Clone)]
pub struct RecordKey {
    pair: Arc<Ed25519KeyPair>,
    public: RecordPublicKey,
    id: KeyId,
}

impl RecordKey {
    /// Makes a new one.
    ///
    /// # Errors
    ///
    /// [`SealError::Entropy`].
    pub fn create() -> Result<Self, SealError> {
        Self::of(Ed25519KeyPair::generate().map_err(|_| SealError::Entropy)?).ok_or(SealError::Entropy)
    }

    fn of(pair: Ed25519KeyPair) -> Option<Self> {
        let public = RecordPublicKey(pair.public_key().as_ref().try_into().ok()?);
        Some(Self { pair: Arc::new(pair), public, id: public.id() })
    }

    /// Its name.
    #[must_use]
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// Its public half.
    #[must_use]
    pub const fn public(&self) -> RecordPublicKey {
        self.public
    }

    /// Its signature over `message`: 64 bytes.
    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("RecordKey").field(&self.id).finish()
    }
}

/// One's own key and all that are trusted, one's own among them. A clone is the same ring.
#[derive(Clone, Debug)]
pub struct KeyRing {
    own: RecordKey,
    trusted: Arc<RwLock<BTreeMap<KeyId, Trusted>>>,
}

#[derive(Debug)]
struct Trusted {
    public: RecordPublicKey,
    parsed: ParsedPublicKey,
}

impl KeyRing {
    /// A ring that trusts its own key only.
    #[must_use]
    pub fn of(own: RecordKey) -> Self {
        let ring = Self { own, trusted: Arc::default() };
        ring.trust(ring.own.public());
        ring
    }

    /// The key that signs.
    #[must_use]
    pub const fn own(&self) -> &RecordKey {
        &self.own
    }

    /// Takes what `key` signs from now on. Returns whether that is new; bytes that are no point of the curve are no key.
    pub fn trust(&self, key: RecordPublicKey) -> bool {
        let Ok(parsed) = ParsedPublicKey::new(&ED25519, key.0) else { return false };
        let mut trusted = self.trusted.write().unwrap_or_else(PoisonError::into_inner);
        trusted.insert(key.id(), Trusted { public: key, parsed }).is_none()
    }

    /// Takes nothing any more that `key` has signed. One's own stays trusted.
    pub fn distrust(&self, key: KeyId) {
        if key != self.own.id() {
            self.trusted.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
        }
    }

    /// All that are trusted.
    #[must_use]
    pub fn trusted(&self) -> Vec<RecordPublicKey> {
        let trusted = self.trusted.read().unwrap_or_else(PoisonError::into_inner);
        trusted.values().map(|trusted| trusted.public).collect()
    }

    /// Whether `signature` is that of `signer` over `message`; `None` when the signer is not trusted.
    pub(super) fn verify(&self, signer: KeyId, message: &[u8], signature: &[u8]) -> Option<bool> {
        let trusted = self.trusted.read().unwrap_or_else(PoisonError::into_inner);
        Some(trusted.get(&signer)?.parsed.verify_sig(message, signature).is_ok())
    }
}

/// The file of the keys.
#[derive(Clone, Debug)]
pub struct KeyFile {
    path: PathBuf,
}

/// What stands in it.
#[derive(Debug)]
pub struct Kept {
    /// The keys.
    pub ring: KeyRing,
    /// Whether a store without signatures is being taken over, and that did not end yet.
    pub taking_over: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawKeys {
    format: u32,
    key: String,
    trusted: Vec<String>,
    taking_over: bool,
}

impl Drop for RawKeys {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.key);
    }
}

impl KeyFile {
    /// That of the server with `state_dir`.
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        Self { path: super::seen::folder(state_dir).join("key.json") }
    }

    /// Reads it; `None` before the first start.
    ///
    /// # Errors
    ///
    /// [`SealError::File`], and [`SealError::Damaged`] without a word of what stands in it.
    pub fn load(&self) -> Result<Option<Kept>, SealError> {
        let Some(bytes) = private::read(&self.path)? else { return Ok(None) };
        let damaged =
            |why: &str| SealError::Damaged { path: self.path.display().to_string(), why: why.to_owned() };
        // serde repeats the value that it did not expect, and here that may be the key.
        let raw: RawKeys = serde_json::from_slice(&bytes).map_err(|_| damaged("it holds no keys"))?;
        if raw.format != FORMAT {
            return Err(damaged("a newer version has written it"));
        }
        let pair = STANDARD.decode(&raw.key).map(Zeroizing::new).map_err(|_| damaged("its key is none"))?;
        let pair = Ed25519KeyPair::from_pkcs8(&pair).map_err(|_| damaged("its key is none"))?;
        let ring = KeyRing::of(RecordKey::of(pair).ok_or_else(|| damaged("its key is none"))?);
        for text in &raw.trusted {
            let key = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
            let key = key.ok_or_else(|| damaged("a trusted key is none"))?;
            ring.trust(RecordPublicKey(key));
        }
        Ok(Some(Kept { ring, taking_over: raw.taking_over }))
    }

    /// Writes it, durably and at once.
    ///
    /// # Errors
    ///
    /// [`SealError`]; then the old one is still there.
    pub fn store(&self, ring: &KeyRing, taking_over: bool) -> Result<(), SealError> {
        if let Some(folder) = self.path.parent() {
            private::directory(folder)?;
        }
        let pair = ring.own.pair.to_pkcs8().map_err(|_| SealError::Entropy)?;
        let raw = RawKeys {
            format: FORMAT,
            key: STANDARD.encode(pair.as_ref()),
            trusted: ring.trusted().iter().map(|key| STANDARD.encode(key.0)).collect(),
            taking_over,
        };
        let text = serde_json::to_vec_pretty(&raw).expect("texts always serialise");
        Ok(private::write(&self.path, &Zeroizing::new(text))?)
    }
}

/// What a person has signed while no server ran, until a server has told its audit log.
#[derive(Clone, Debug)]
pub struct Acceptances {
    path: PathBuf,
}

impl Acceptances {
    /// Those of the server with `state_dir`.
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        Self { path: super::seen::folder(state_dir).join("accepted") }
    }

    /// Notes one behind those that are not told yet.
    ///
    /// # Errors
    ///
    /// [`SealError::File`].
    pub fn note(&self, accepted: &super::Report, uid: u32) -> Result<(), SealError> {
        if let Some(folder) = self.path.parent() {
            private::directory(folder)?;
        }
        let mut text = private::read(&self.path)?.map(|text| text.to_vec()).unwrap_or_default();
        text.extend_from_slice(format!("uid {uid} accepted: {accepted}\n").as_bytes());
        Ok(private::write(&self.path, &text)?)
    }

    /// Those that are not told yet.
    ///
    /// # Errors
    ///
    /// [`SealError::File`].
    pub fn untold(&self) -> Result<Vec<String>, SealError> {
        let text = private::read(&self.path)?.map(|text| String::from_utf8_lossy(&text).into_owned());
        Ok(text.unwrap_or_default().lines().map(ToOwned::to_owned).collect())
    }

    /// All of them are told.
    pub fn told(&self) {
        // Told once more at the next start is better than not at all.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn keys_come_back_whole_and_nobody_else_can_read_them() {
        let temp = tempfile::tempdir().unwrap();
        let file = KeyFile::of(temp.path());
        assert!(file.load().unwrap().is_none());
        let ring = KeyRing::of(RecordKey::create().unwrap());
        let other = RecordKey::create().unwrap();
        assert!(ring.trust(other.public()) && !ring.trust(other.public()));
        file.store(&ring, true).unwrap();
        assert_eq!(fs::metadata(&file.path).unwrap().permissions().mode() & 0o7777, 0o600);
        let kept = file.load().unwrap().unwrap();
        assert!(kept.taking_over && kept.ring.own().public() == ring.own().public());
        let signature = other.sign(b"x");
        assert_eq!(kept.ring.verify(other.id(), b"x", &signature), Some(true));
        kept.ring.distrust(other.id());
        assert_eq!(kept.ring.verify(other.id(), b"x", &signature), None);
        kept.ring.distrust(kept.ring.own().id());
        assert_eq!(kept.ring.trusted().len(), 1, "one's own stays");
    }

    #[test]
    fn a_damaged_file_is_refused_without_a_word_of_the_key() {
        let temp = tempfile::tempdir().unwrap();
        let file = KeyFile::of(temp.path());
        file.store(&KeyRing::of(RecordKey::create().unwrap()), false).unwrap();
        let text = fs::read_to_string(&file.path).unwrap();
        let key = text.split('"').nth(5).unwrap().to_owned();
        for broken in [
            text[..text.len() / 2].to_owned(),
            text.replace("\"format\": 1", "\"format\": 2"),
            text.replace("\"format\": 1", &format!("\"format\": \"{key}\"")),
            text.replace(&key, "AAAA"),
        ] {
            private::write(&file.path, broken.as_bytes()).unwrap();
            let refused = file.load().unwrap_err().to_string();
            assert!(!refused.contains(&key), "{refused}");
        }
    }
}
