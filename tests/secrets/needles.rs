//! The secrets of a run in every form in which they could stand somewhere, and the search for all of them at once.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;

/// A secret is looked for in pieces of so many bytes: no line break of PEM falls into all of them.
const PIECE: usize = 16;
/// By so many first bytes a needle is found.
const HEAD: usize = 4;
/// What stands before the 32 secret bytes in a PKCS#8 key of P-256: version 1 of RFC 5915 and the octet string's head.
pub(crate) const BEFORE_SCALAR: [u8; 5] = [0x02, 0x01, 0x01, 0x04, 0x20];
/// The length of those secret bytes.
pub(crate) const SCALAR: usize = 32;

/// All that must not be found, and where a look-up begins.
#[derive(Default)]
pub(crate) struct Secrets {
    names: Vec<String>,
    texts: Vec<Vec<u8>>,
    needles: BTreeMap<[u8; HEAD], Vec<Needle>>,
    heads: Vec<bool>,
}

struct Needle {
    text: Vec<u8>,
    form: &'static str,
    secret: usize,
}

/// What was found where it must not be.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Found {
    pub(crate) secret: String,
    pub(crate) form: &'static str,
}

impl Secrets {
    /// Adds the bytes that make `name` a secret, unless they are known already.
    ///
    /// # Panics
    ///
    /// If they are too short to be told from chance.
    #[track_caller]
    pub(crate) fn add(&mut self, name: &str, secret: &[u8]) {
        assert!(secret.len() >= PIECE, "{name} has {} bytes only", secret.len());
        if self.texts.iter().any(|known| known == secret) {
            return;
        }
        self.heads.resize(1 << 16, false);
        let number = self.names.len();
        self.names.push(name.to_owned());
        self.texts.push(secret.to_vec());
        for (form, text) in secret.chunks_exact(PIECE).flat_map(forms) {
            self.heads[usize::from(text[0]) << 8 | usize::from(text[1])] = true;
            let head = text[..HEAD].try_into().expect("every form is longer");
            self.needles.entry(head).or_default().push(Needle { text, form, secret: number });
        }
    }

    /// Adds every private key that stands as PEM in `text`, under names of `prefix`; returns how many there are.
    pub(crate) fn add_pem(&mut self, prefix: &str, text: &str) -> usize {
        let keys: Vec<Vec<u8>> = pem_keys(text);
        for (number, key) in keys.iter().enumerate() {
            let at = key.windows(BEFORE_SCALAR.len()).position(|window| window == BEFORE_SCALAR);
            let from = at.expect("a PKCS#8 key of P-256") + BEFORE_SCALAR.len();
            self.add(&format!("{prefix}, key {number}"), &key[from..from + SCALAR]);
        }
        keys.len()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// The name and the bytes of each.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.names.iter().map(String::as_str).zip(self.texts.iter().map(Vec::as_slice))
    }

    /// Whether these bytes are one of them.
    pub(crate) fn knows(&self, secret: &[u8]) -> bool {
        self.texts.iter().any(|known| known == secret)
    }

    /// What of them stands in `bytes`.
    pub(crate) fn search(&self, bytes: &[u8]) -> Vec<Found> {
        let mut found = Vec::new();
        for (at, window) in bytes.windows(HEAD).enumerate() {
            if !self.heads[usize::from(window[0]) << 8 | usize::from(window[1])] {
                continue;
            }
            let head: [u8; HEAD] = window.try_into().expect("windows of that length");
            let here = self.needles.get(&head).into_iter().flatten();
            let here = here.filter(|needle| bytes[at..].starts_with(&needle.text));
            found.extend(
                here.map(|needle| Found { secret: self.names[needle.secret].clone(), form: needle.form }),
            );
        }
        found.sort();
        found.dedup();
        found
    }
}

/// The PKCS#8 keys in PEM, also where the PEM is a JSON string.
fn pem_keys(text: &str) -> Vec<Vec<u8>> {
    let text = text.replace("\\n", "\n").replace('"', "\n");
    let keys = PrivateKeyDer::pem_slice_iter(text.as_bytes());
    keys.map(|key| key.expect("PEM that we wrote").secret_der().to_vec()).collect()
}

/// How a piece may be spelt, also when what is spelt is its base64: the bytes of a PEM file, or of a token.
fn forms(piece: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut all = spelt(piece);
    let of_base64: Vec<_> = all.iter().filter(|(form, _)| form.starts_with("base64")).cloned().collect();
    for (_, text) in of_base64 {
        all.extend(spelt(&text).into_iter().map(|(_, text)| ("base64, spelt once more", text)));
    }
    all.sort_by(|one, other| one.1.cmp(&other.1));
    all.dedup_by(|one, other| one.1 == other.1);
    all
}

fn spelt(piece: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let joined = |separator: &str, one: fn(u8) -> String| {
        let all: Vec<String> = piece.iter().map(|byte| one(*byte)).collect();
        all.join(separator).into_bytes()
    };
    let mut all = vec![
        ("its bytes", piece.to_vec()),
        ("escaped bytes", piece.escape_ascii().to_string().into_bytes()),
        ("bytes as Rust shows them", rust_escaped(piece).into_bytes()),
        ("hex", joined("", |byte| format!("{byte:02x}"))),
        ("upper hex", joined("", |byte| format!("{byte:02X}"))),
        ("hex with colons", joined(":", |byte| format!("{byte:02x}"))),
        ("hex numbers", joined(", ", |byte| format!("{byte:02x}"))),
        ("numbers", joined(", ", |byte| byte.to_string())),
        ("JSON numbers", joined(",", |byte| byte.to_string())),
    ];
    // Base64 depends on what stands before: each of the three ways to begin.
    for skipped in 0..3 {
        let whole = &piece[skipped..][..(piece.len() - skipped) / 3 * 3];
        all.push(("base64", BASE64_STANDARD_NO_PAD.encode(whole).into_bytes()));
        all.push(("base64url", BASE64_URL_SAFE_NO_PAD.encode(whole).into_bytes()));
    }
    all
}

/// As `Debug` of the buffers of hyper and h2 shows bytes: `\0` is short there.
fn rust_escaped(piece: &[u8]) -> String {
    piece.iter().fold(String::new(), |mut text, byte| {
        match byte {
            0 => text.push_str("\\0"),
            byte => write!(text, "{}", byte.escape_ascii()).expect("a string takes everything"),
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A real key, made for this test and used nowhere.
    fn made() -> rcgen::KeyPair {
        rcgen::KeyPair::generate().unwrap()
    }

    #[test]
    fn a_key_is_found_however_its_file_is_spelt_and_whatever_stands_around_it() {
        let key = made();
        let mut secrets = Secrets::default();
        assert_eq!(secrets.add_pem("it", &key.serialize_pem()), 1);
        let der = key.serialize_der();
        let spelt = [
            der.clone(),
            key.serialize_pem().into_bytes(),
            key.serialize_pem().replace('\n', "\\n").into_bytes(),
            key.serialize_pem().replace('\n', "\r\n").into_bytes(),
            key.serialize_pem().lines().nth(2).unwrap().as_bytes().to_vec(),
            format!("{der:?}").into_bytes(),
            format!("{der:02x?}").into_bytes(),
            der.escape_ascii().to_string().into_bytes(),
            BASE64_URL_SAFE_NO_PAD.encode(&der).into_bytes(),
            format!("{:?}", key.serialize_pem().as_bytes()).into_bytes(),
            BASE64_STANDARD_NO_PAD.encode(key.serialize_pem()).into_bytes(),
            BASE64_STANDARD_NO_PAD.encode([b"x".as_slice(), &der].concat()).into_bytes(),
        ];
        for text in spelt {
            let log = [b"12:00 INFO ".as_slice(), &text, b" and so on"].concat();
            let found = secrets.search(&log);
            assert!(found.iter().any(|found| found.secret == "it, key 0"), "{}", log.escape_ascii());
        }
        assert_eq!(secrets.search(key.public_key_pem().as_bytes()), [], "what all may see is no secret");
        assert_eq!(secrets.search(made().serialize_pem().as_bytes()), [], "another key");
    }

    #[test]
    fn a_text_is_found_in_a_header_of_basic_authentication_and_in_a_token() {
        let secret = b"pXk3qT0cQv2mJ8yZsLw1Ag";
        let mut secrets = Secrets::default();
        secrets.add("it", secret);
        for name in ["a", "ab", "abc"] {
            let pair = [name.as_bytes(), b":", secret].concat();
            assert!(!secrets.search(BASE64_STANDARD_NO_PAD.encode(&pair).as_bytes()).is_empty(), "{name}");
            assert!(!secrets.search(&pair).is_empty());
        }
        assert_eq!(secrets.search(b"pXk3qT0cQv2mJ8yZ"), secrets.search(secret), "its first part is enough");
        assert_eq!(secrets.search(b"pXk3qT0cQv2mJ8y"), []);
    }
}
