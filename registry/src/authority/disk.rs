//! The authority on disk: one private file, so that a crash leaves the old authority or the new one, whole.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use weft_identity::ca::{AuthorityParts, FormerPart, KeyPart, PreparedPart, RootState};
use zeroize::Zeroizing;

use crate::{
    private::{self, PrivateError},
    timestamp::{from_unix_seconds, unix_seconds},
};

/// The format that this version writes. It reads the one before too, which knew no states of former roots.
const FORMAT: u32 = 2;

/// Where the authority of the server with `state_dir` lies.
#[must_use]
pub(super) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("ca").join("authority.json")
}

/// Why the authority cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file or its directory.
    #[error(transparent)]
    File(#[from] PrivateError),
    /// What stands in it is not an authority.
    #[error("{} holds no authority: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Reads the authority; `None` before the first start.
///
/// # Errors
///
/// [`DiskError`]: open to others, damaged, or of a newer version.
pub(super) fn load(path: &Path) -> Result<Option<AuthorityParts>, DiskError> {
    let damaged = |why: &dyn fmt::Display| DiskError::Damaged { path: path.into(), why: why.to_string() };
    let Some(bytes) = private::read(path)? else { return Ok(None) };
    let raw: RawAuthority = serde_json::from_slice(&bytes).map_err(|error| damaged(&Unread(&error)))?;
    if !(1..=FORMAT).contains(&raw.format) {
        return Err(damaged(&format_args!("it has format {}, known is {FORMAT}", raw.format)));
    }
    raw.into_parts().map(Some).map_err(|why| damaged(&why))
}

/// Where reading stopped, and nothing of what stands there: serde repeats the value that it did not expect, and in this
/// file that may be a key.
struct Unread<'a>(&'a serde_json::Error);

impl fmt::Display for Unread<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "it cannot be read at line {}, column {}", self.0.line(), self.0.column())
    }
}

/// Writes the authority, durably and at once.
///
/// # Errors
///
/// [`DiskError::File`]; then the old authority is still there.
pub(super) fn store(path: &Path, parts: &AuthorityParts) -> Result<(), DiskError> {
    if let Some(folder) = path.parent() {
        private::directory(folder)?;
    }
    let text = serde_json::to_vec_pretty(&RawAuthority::from(parts));
    let text = Zeroizing::new(text.expect("texts and numbers always serialise"));
    Ok(private::write(path, &text)?)
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawAuthority {
    format: u32,
    trust_domain: String,
    instance: String,
    root: RawPart,
    #[serde(default)]
    active_since: u64,
    prepared: Option<RawPrepared>,
    #[serde(alias = "retired")]
    former: Vec<RawFormer>,
    intermediate: RawPart,
    high_water: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawPart {
    certificate: String,
    #[serde(with = "secret")]
    key: Zeroizing<String>,
}

/// A text that is wiped when it is dropped.
mod secret {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use zeroize::Zeroizing;

    pub(super) fn serialize<S: Serializer>(text: &Zeroizing<String>, writer: S) -> Result<S::Ok, S::Error> {
        text.as_str().serialize(writer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(reader: D) -> Result<Zeroizing<String>, D::Error> {
        String::deserialize(reader).map(Zeroizing::new)
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawPrepared {
    authority: RawPart,
    since: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawFormer {
    certificate: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<RawKey>,
    #[serde(default)]
    state: RawState,
    #[serde(alias = "at")]
    since: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(transparent)]
struct RawKey(#[serde(with = "secret")] Zeroizing<String>);

#[derive(Clone, Copy, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum RawState {
    #[default]
    Old,
    Tainted,
    Revoked,
}

impl From<&KeyPart> for RawPart {
    fn from(part: &KeyPart) -> Self {
        Self { certificate: part.certificate_pem.clone(), key: part.key_pem.clone() }
    }
}

impl From<RawPart> for KeyPart {
    fn from(raw: RawPart) -> Self {
        Self { certificate_pem: raw.certificate, key_pem: raw.key }
    }
}

impl From<&AuthorityParts> for RawAuthority {
    fn from(parts: &AuthorityParts) -> Self {
        let prepared = |part: &PreparedPart| RawPrepared {
            authority: (&part.authority).into(),
            since: unix_seconds(part.since),
        };
        let former = |part: &FormerPart| RawFormer {
            certificate: part.certificate_pem.clone(),
            key: part.key_pem.clone().map(RawKey),
            state: match part.state {
                RootState::Tainted => RawState::Tainted,
                RootState::Revoked => RawState::Revoked,
                RootState::Prepared | RootState::Active | RootState::Old => RawState::Old,
            },
            since: unix_seconds(part.since),
        };
        Self {
            format: FORMAT,
            trust_domain: parts.trust_domain.to_string(),
            instance: parts.instance.clone(),
            root: (&parts.root).into(),
            active_since: unix_seconds(parts.active_since),
            prepared: parts.prepared.as_ref().map(prepared),
            former: parts.former.iter().map(former).collect(),
            intermediate: (&parts.intermediate).into(),
            high_water: unix_seconds(parts.high_water),
        }
    }
}

impl RawAuthority {
    fn into_parts(self) -> Result<AuthorityParts, String> {
        let prepared = self.prepared.map(|raw| -> Result<_, String> {
            Ok(PreparedPart { authority: raw.authority.into(), since: time(raw.since)? })
        });
        let former = self.former.into_iter().map(|raw| -> Result<_, String> {
            let state = match raw.state {
                RawState::Old => RootState::Old,
                RawState::Tainted => RootState::Tainted,
                RawState::Revoked => RootState::Revoked,
            };
            let (certificate_pem, key_pem) = (raw.certificate, raw.key.map(|key| key.0));
            Ok(FormerPart { certificate_pem, key_pem, state, since: time(raw.since)? })
        });
        Ok(AuthorityParts {
            trust_domain: self.trust_domain.parse().map_err(|_| "trustDomain is none".to_owned())?,
            instance: self.instance,
            root: self.root.into(),
            active_since: time(self.active_since)?,
            prepared: prepared.transpose()?,
            former: former.collect::<Result<_, _>>()?,
            intermediate: self.intermediate.into(),
            high_water: time(self.high_water)?,
        })
    }
}

fn time(seconds: u64) -> Result<SystemTime, String> {
    from_unix_seconds(seconds).ok_or_else(|| format!("{seconds} is not a time"))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

    use weft_identity::ca::CertificateAuthority;

    use super::*;

    fn authority() -> AuthorityParts {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut ca = CertificateAuthority::create(&"corp.example".parse().unwrap(), "a", now).unwrap();
        let first = ca.roots()[0].fingerprint;
        for _ in 0..2 {
            ca.prepare(now).unwrap();
            ca.activate(0, false, now).unwrap();
        }
        ca.taint(&first, now).unwrap();
        ca.prepare(now).unwrap();
        ca.to_parts()
    }

    #[test]
    fn an_authority_comes_back_whole_and_nobody_else_can_read_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = path(temp.path());
        assert!(load(&path).unwrap().is_none());
        let parts = authority();
        store(&path, &parts).unwrap();
        assert!(parts.prepared.is_some() && parts.former.len() == 2);
        assert_eq!(load(&path).unwrap(), Some(parts));
        for (path, mode) in [(path.as_path(), 0o600), (path.parent().unwrap(), 0o700)] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, mode);
        }
    }

    #[test]
    fn the_file_of_the_version_before_is_read() {
        let temp = tempfile::tempdir().unwrap();
        let path = path(temp.path());
        let parts = authority();
        store(&path, &parts).unwrap();
        let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let certificate = text["former"][1]["certificate"].clone();
        let object = text.as_object_mut().unwrap();
        object.retain(|key, _| key != "former" && key != "activeSince");
        object.insert("format".to_owned(), 1.into());
        object.insert(
            "retired".to_owned(),
            serde_json::json!([{"certificate": certificate, "at": 1_800_000_000}]),
        );
        private::write(&path, text.to_string().as_bytes()).unwrap();
        let read = load(&path).unwrap().unwrap();
        assert_eq!((read.former.len(), read.former[0].state), (1, RootState::Old));
        assert!(read.former[0].key_pem.is_none() && read.root == parts.root);
    }

    #[test]
    fn a_cut_or_newer_file_is_no_authority() {
        let temp = tempfile::tempdir().unwrap();
        let path = path(temp.path());
        store(&path, &authority()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let key = "\"-----BEGIN PRIVATE KEY-----\"";
        let misplaced = text.replace("\"format\": 2", &format!("\"format\": {key}"));
        let as_domain = text.replace("\"trustDomain\": \"corp.example\"", &format!("\"trustDomain\": {key}"));
        let as_field = text.replace("\"format\": 2", &format!("{key}: 2"));
        let newer = text.replace("\"format\": 2", "\"format\": 3");
        for broken in [&text[..text.len() / 2], &newer, "{}", &misplaced, &as_domain, &as_field] {
            private::write(&path, broken.as_bytes()).unwrap();
            let refused = load(&path).unwrap_err();
            assert!(matches!(&refused, DiskError::Damaged { .. }), "{refused}");
            assert!(!refused.to_string().contains("PRIVATE"), "{refused}");
        }
    }
}
