//! Names of records: [`Key`] and [`Prefix`].
//!
//! Owns what a name may be. The store sorts by the bytes of the key and gives its parts no
//! meaning; who writes which keys is the business of the services above.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The longest key and prefix, in bytes. etcd has no bound of its own below its request size; 1 KiB
/// holds the longest name the resource model can form (kind, namespace and name of 253 bytes each).
pub const MAX_KEY_BYTES: usize = 1024;

/// The name of one record, such as `/resources/Service/shop/charge`.
///
/// Holding one means 1 to [`MAX_KEY_BYTES`] bytes of UTF-8 without control characters (a NUL or a
/// newline in a name would reach logs and other tools: ETCD-05).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key(Arc<str>);

/// Selects every key that starts with it. The empty prefix selects all keys.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Prefix(Arc<str>);

/// Why a text is no [`Key`] or [`Prefix`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidKey {
    /// A key needs at least one byte.
    #[error("a key may not be empty")]
    Empty,
    /// The text is longer than [`MAX_KEY_BYTES`].
    #[error("a key of {bytes} bytes is longer than {MAX_KEY_BYTES}")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The text holds a control character.
    #[error("a key may not hold the control character at byte {at}")]
    Control {
        /// Where it stands, in bytes from the start.
        at: usize,
    },
}

impl Key {
    /// Returns the text of the key.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this key is selected by `prefix`.
    pub fn is_under(&self, prefix: &Prefix) -> bool {
        self.0.starts_with(&*prefix.0)
    }
}

impl Prefix {
    /// Returns the prefix that selects every key.
    pub fn everything() -> Self {
        Self(Arc::from(""))
    }

    /// Returns the text of the prefix.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The rules that keys and prefixes share.
fn check(text: &str) -> Result<(), InvalidKey> {
    if text.len() > MAX_KEY_BYTES {
        return Err(InvalidKey::TooLong { bytes: text.len() });
    }
    match text.char_indices().find(|(_, character)| character.is_control()) {
        Some((at, _)) => Err(InvalidKey::Control { at }),
        None => Ok(()),
    }
}

impl FromStr for Key {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(InvalidKey::Empty);
        }
        check(text)?;
        Ok(Self(text.into()))
    }
}

impl FromStr for Prefix {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        check(text)?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Lets a sorted map of keys be searched by text; the order of both is that of the bytes.
impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_05_a_key_has_1_to_1024_bytes() {
        assert_eq!("".parse::<Key>(), Err(InvalidKey::Empty));
        for length in [1, MAX_KEY_BYTES - 1, MAX_KEY_BYTES] {
            assert_eq!("k".repeat(length).parse::<Key>().unwrap().as_str().len(), length);
        }
        let too_long = "k".repeat(MAX_KEY_BYTES + 1);
        assert_eq!(too_long.parse::<Key>(), Err(InvalidKey::TooLong { bytes: 1025 }));
        assert_eq!(too_long.parse::<Prefix>(), Err(InvalidKey::TooLong { bytes: 1025 }));
    }

    #[test]
    fn etcd_05_nul_and_newline_are_refused_and_named_by_position() {
        assert_eq!("/a\0".parse::<Key>(), Err(InvalidKey::Control { at: 2 }));
        assert_eq!("/é\n".parse::<Key>(), Err(InvalidKey::Control { at: 3 }));
        assert_eq!("\u{7f}".parse::<Prefix>(), Err(InvalidKey::Control { at: 0 }));
    }

    #[test]
    fn a_prefix_selects_by_bytes_and_the_empty_one_selects_all() {
        let key: Key = "/resources/Service/shop/charge".parse().unwrap();
        for prefix in ["", "/", "/resources/Serv", key.as_str()] {
            assert!(key.is_under(&prefix.parse().unwrap()), "{prefix}");
        }
        assert!(!key.is_under(&"/resources/Service/shop/charge/".parse().unwrap()));
        assert_eq!(Prefix::everything(), "".parse().unwrap());
    }
}
