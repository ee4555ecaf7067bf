//! The credential by which a program says which workload it is, where its uid has several.
//!
//! Owns its making, its file (0600, of the workload's user), its two spellings on the wire (HTTP Basic, RFC 7617, and
//! SOCKS5 user name and password, RFC 1929) and a comparison that takes the same time for every guess. It never stands
//! in an argument list, a log or an error.

use std::{
    fmt,
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
    rand::fill,
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use zeroize::Zeroizing;

use crate::files::{self, FileError};

/// Bytes of randomness; 128 bits cannot be guessed online or offline.
const SECRET_BYTES: usize = 16;
/// The longest user name and password that SOCKS5 can carry (RFC 1929 §2).
const MAX_PART_BYTES: usize = 255;

/// A name and a secret.
#[derive(Clone)]
pub struct Credential {
    name: String,
    secret: Zeroizing<String>,
}

/// The text is not a credential.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a proxy credential")]
pub struct InvalidCredential;

/// The system gives no random numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoEntropy;

impl Credential {
    /// Makes the credential of the workload `name` from fresh randomness.
    ///
    /// # Errors
    ///
    /// [`NoEntropy`].
    pub fn create(name: &str) -> Result<Self, NoEntropy> {
        let mut secret = Zeroizing::new([0_u8; SECRET_BYTES]);
        fill(secret.as_mut()).map_err(|_| NoEntropy)?;
        Ok(Self::from_parts(name, secret.as_ref()))
    }

    /// Makes a credential of given randomness.
    #[must_use]
    pub fn from_parts(name: &str, secret: &[u8]) -> Self {
        let secret = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(secret));
        Self { name: name.to_owned(), secret }
    }

    /// Reads `user:password`, the form of its file and, within base64, of HTTP Basic.
    ///
    /// # Errors
    ///
    /// [`InvalidCredential`], which does not repeat the text.
    pub fn parse(text: &str) -> Result<Self, InvalidCredential> {
        let (name, secret) = text.trim_end_matches('\n').split_once(':').ok_or(InvalidCredential)?;
        Self::presented(name.as_bytes(), secret.as_bytes())
    }

    /// Reads the value of a `Proxy-Authorization` header.
    ///
    /// # Errors
    ///
    /// [`InvalidCredential`] for another scheme than Basic, bad base64 or bad text.
    pub fn parse_basic(value: &[u8]) -> Result<Self, InvalidCredential> {
        let value = std::str::from_utf8(value).map_err(|_| InvalidCredential)?;
        let (scheme, encoded) = value.trim().split_once(' ').ok_or(InvalidCredential)?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(InvalidCredential);
        }
        let decoded = BASE64_STANDARD.decode(encoded.trim()).map_err(|_| InvalidCredential)?;
        let decoded = Zeroizing::new(decoded);
        Self::parse(std::str::from_utf8(&decoded).map_err(|_| InvalidCredential)?)
    }

    /// Takes the two parts that SOCKS5 carries.
    ///
    /// # Errors
    ///
    /// [`InvalidCredential`] when a part is empty, too long or not text.
    pub fn presented(name: &[u8], secret: &[u8]) -> Result<Self, InvalidCredential> {
        let part = |bytes: &[u8]| {
            let fits = (1..=MAX_PART_BYTES).contains(&bytes.len());
            std::str::from_utf8(bytes).ok().filter(|_| fits).map(str::to_owned).ok_or(InvalidCredential)
        };
        Ok(Self { name: part(name)?, secret: Zeroizing::new(part(secret)?) })
    }

    /// Whether both parts are equal. Takes the same time for every presented credential.
    #[must_use]
    pub fn matches(&self, presented: &Self) -> bool {
        verify_slices_are_equal(self.digest().as_ref(), presented.digest().as_ref()).is_ok()
    }

    /// Writes it to `path`, mode 0600, and gives the file to `uid` where that is another user (which only root can).
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub fn write(&self, path: &Path, uid: Option<u32>) -> Result<PathBuf, FileError> {
        let line = Zeroizing::new(format!("{}:{}\n", self.name, self.secret.as_str()));
        files::write_private(path, line.as_bytes())?;
        let own = nix::unistd::geteuid().as_raw();
        if let Some(uid) = uid.filter(|uid| *uid != own) {
            let give = chown(path, Some(uid), None);
            give.map_err(|source| FileError::Io { action: "give away", path: path.into(), source })?;
        }
        Ok(path.to_owned())
    }

    /// One digest over both parts, with the border between them marked: equal digests mean equal parts.
    fn digest(&self) -> aws_lc_rs::digest::Digest {
        let length = u8::try_from(self.name.len()).unwrap_or(u8::MAX);
        let text = Zeroizing::new([&[length], self.name.as_bytes(), self.secret.as_bytes()].concat());
        digest(&SHA256, &text)
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_credential_survives_its_file_and_both_spellings() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("order.proxy");
        let credential = Credential::create("order.shop").unwrap();
        credential.write(&path, Some(nix::unistd::geteuid().as_raw())).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(credential.matches(&Credential::parse(&text).unwrap()));

        let line = text.trim_end();
        let basic = format!("Basic {}", BASE64_STANDARD.encode(line));
        assert!(credential.matches(&Credential::parse_basic(basic.as_bytes()).unwrap()));
        let (name, secret) = line.split_once(':').unwrap();
        assert!(credential.matches(&Credential::presented(name.as_bytes(), secret.as_bytes()).unwrap()));
    }

    #[test]
    fn two_credentials_never_match_and_the_border_of_name_and_secret_counts() {
        assert!(!Credential::create("a").unwrap().matches(&Credential::create("a").unwrap()));
        let one = Credential::parse("ab:c").unwrap();
        let other = Credential::parse("a:bc").unwrap();
        assert!(!one.matches(&other));
    }

    #[test]
    fn what_is_no_credential_is_refused_without_being_repeated() {
        for text in ["", "name", ":secret", "name:"] {
            assert!(Credential::parse(text).is_err(), "{text}");
        }
        for value in ["Bearer abc", "Basic", "Basic !!!", "Basic bm9jb2xvbg=="] {
            let refused = Credential::parse_basic(value.as_bytes()).unwrap_err();
            assert_eq!(refused.to_string(), "not a proxy credential");
        }
        assert!(Credential::presented(&[b'a'; 256], b"x").is_err());
        assert!(Credential::presented(&[0xff], b"x").is_err());
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let credential = Credential::from_parts("order", &[7; 16]);
        assert!(!format!("{credential:?}").contains(credential.secret.as_str()));
    }
}
