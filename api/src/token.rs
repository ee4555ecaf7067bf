//! The text of a one-use token: everything a joiner needs, and nothing to copy beside it.
//!
//! Owns the form `weft1.<base64url of a JSON object>`. Whether a token may be used is the registry's question; only its
//! hash is kept there. The secret is never shown by `Debug` and is wiped when dropped.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use weft_identity::spiffe::TrustDomain;
use weft_policy::model::HostPort;
use zeroize::Zeroizing;

/// What every token text begins with; the number is the version of the form.
const PREFIX: &str = "weft1.";

/// The longest text accepted, in bytes: 16 addresses and 64 fingerprints fit several times.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Secrets have 256 bits (security.md T3 asks for at least 128).
pub const SECRET_BYTES: usize = 32;

/// The fewest characters behind the prefix that are taken for a token: its secret alone has 43.
const LEAST_TOKEN_CHARS: usize = 40;

/// Whether a token stands in `text`, such as an argument of a command, whole or cut. A file's name is none.
#[must_use]
pub fn stands_in(text: &str) -> bool {
    text.match_indices(PREFIX).any(|(at, _)| {
        let behind = text[at + PREFIX.len()..].bytes();
        behind.take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')).count()
            >= LEAST_TOKEN_CHARS
    })
}

/// Who may use a token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Subject {
    /// The agent of the node of that name.
    Node(String),
    /// A person.
    User(String),
    /// A further server of the mesh.
    Server,
}

/// A token as its holder reads it.
pub struct JoinToken {
    /// Its public name, for lists and logs.
    pub id: String,
    /// Who may use it.
    pub subject: Subject,
    /// The cluster's name.
    pub cluster: String,
    /// Where servers listen, in order; 1 to 16.
    pub servers: Vec<HostPort>,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// SHA-256 of every root of the bundle; 1 to 64.
    pub fingerprints: Vec<[u8; 32]>,
    /// Unix seconds after which it is void.
    pub expires: u64,
    secret: Zeroizing<String>,
}

/// Why a text is not a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidToken {
    /// It does not begin with `weft1.`, or is too long.
    #[error("the text is not a weft token (it begins with weft1.)")]
    Form,
    /// What follows is not base64url.
    #[error("the token was cut or changed on the way")]
    Encoding,
    /// A field is missing, unknown or out of bounds.
    #[error("the token's content is not valid")]
    Content,
}

/// The JSON inside. Field names are one letter: a token is carried by hand.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    i: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    u: Option<String>,
    /// For a further server; never `false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    o: Option<bool>,
    c: String,
    a: Vec<String>,
    d: String,
    f: Vec<String>,
    e: u64,
    s: String,
}

impl JoinToken {
    /// Puts a token together around `secret` (base64url text of [`SECRET_BYTES`] random bytes).
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "one for each field; a builder would only rename them")]
    pub fn new(
        id: String,
        subject: Subject,
        cluster: String,
        servers: Vec<HostPort>,
        trust_domain: TrustDomain,
        fingerprints: Vec<[u8; 32]>,
        expires: u64,
        secret: Zeroizing<String>,
    ) -> Self {
        Self { id, subject, cluster, servers, trust_domain, fingerprints, expires, secret }
    }

    /// The secret that proves possession.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// The text to hand over, once.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let (node, user, other) = match &self.subject {
            Subject::Node(name) => (Some(name.clone()), None, None),
            Subject::User(name) => (None, Some(name.clone()), None),
            Subject::Server => (None, None, Some(true)),
        };
        let wire = Wire {
            i: self.id.clone(),
            n: node,
            u: user,
            o: other,
            c: self.cluster.clone(),
            a: self.servers.iter().map(ToString::to_string).collect(),
            d: self.trust_domain.to_string(),
            f: self.fingerprints.iter().map(|f| URL_SAFE_NO_PAD.encode(f)).collect(),
            e: self.expires,
            s: self.secret.to_string(),
        };
        // A struct of strings and numbers always serialises; an empty token would be refused by everyone.
        let json = Zeroizing::new(serde_json::to_vec(&wire).unwrap_or_default());
        Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json.as_slice())))
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let encoded = text.strip_prefix(PREFIX).ok_or(InvalidToken::Form)?;
        if text.len() > MAX_TOKEN_BYTES {
            return Err(InvalidToken::Form);
        }
        let json = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(|_| InvalidToken::Encoding)?);
        let wire: Wire = serde_json::from_slice(&json).map_err(|_| InvalidToken::Content)?;
        wire.try_into()
    }
}

impl TryFrom<Wire> for JoinToken {
    type Error = InvalidToken;

    fn try_from(wire: Wire) -> Result<Self, Self::Error> {
        let invalid = |_| InvalidToken::Content;
        let subject = match (wire.n, wire.u, wire.o) {
            (Some(node), None, None) => Subject::Node(node),
            (None, Some(user), None) => Subject::User(user),
            (None, None, Some(true)) => Subject::Server,
            _ => return Err(InvalidToken::Content),
        };
        let fingerprint = |text: &String| {
            let bytes = URL_SAFE_NO_PAD.decode(text).map_err(invalid)?;
            <[u8; 32]>::try_from(bytes).map_err(|_| InvalidToken::Content)
        };
        let servers: Vec<HostPort> =
            wire.a.iter().map(|a| a.parse()).collect::<Result<_, _>>().map_err(|_| InvalidToken::Content)?;
        let fingerprints: Vec<_> = wire.f.iter().map(fingerprint).collect::<Result<_, _>>()?;
        let within = |count: usize, most: usize| (1..=most).contains(&count);
        if !within(servers.len(), 16) || !within(fingerprints.len(), 64) || wire.s.is_empty() {
            return Err(InvalidToken::Content);
        }
        Ok(Self {
            id: wire.i,
            subject,
            cluster: wire.c,
            servers,
            trust_domain: wire.d.parse().map_err(|_| InvalidToken::Content)?,
            fingerprints,
            expires: wire.e,
            secret: Zeroizing::new(wire.s),
        })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .field("subject", &self.subject)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken::new(
            "t-1".into(),
            Subject::Node("hostb".into()),
            "local".into(),
            vec!["hosta.example:7444".parse().unwrap(), "[2001:db8::1]:7444".parse().unwrap()],
            "corp.example".parse().unwrap(),
            vec![[7; 32], [9; 32]],
            1_800_000_000,
            Zeroizing::new("hunter2hunter2".into()),
        )
    }

    #[test]
    fn a_token_survives_the_way() {
        let text = token().to_text();
        let read: JoinToken = format!("  {}\n", text.as_str()).parse().unwrap();
        assert_eq!(read.to_text(), text);
        assert_eq!(read.secret(), "hunter2hunter2");
        assert_eq!(read.subject, Subject::Node("hostb".into()));
        for subject in [Subject::User("ada".into()), Subject::Server] {
            let text = JoinToken { subject: subject.clone(), ..token() }.to_text();
            assert_eq!(text.parse::<JoinToken>().unwrap().subject, subject);
        }
    }

    #[test]
    fn a_cut_or_foreign_text_is_refused() {
        let text = token().to_text();
        for cut in 0..text.len() {
            assert!(text[..cut].parse::<JoinToken>().is_err(), "cut at {cut}");
        }
        assert_eq!("weft2.AAAA".parse::<JoinToken>().unwrap_err(), InvalidToken::Form);
        assert_eq!("weft1.e30".parse::<JoinToken>().unwrap_err(), InvalidToken::Content);
    }

    #[test]
    fn a_token_is_seen_in_an_argument_and_a_file_of_tokens_is_none() {
        let text = token().to_text();
        for argument in [text.to_string(), format!("--token-file={}", text.as_str()), text[..80].to_owned()] {
            assert!(stands_in(&argument), "{argument}");
        }
        for argument in ["weft1.token", "/run/weft1.d/hostb", "--token-file", "-", "weft1."] {
            assert!(!stands_in(argument), "{argument}");
        }
    }

    #[test]
    fn the_secret_is_not_shown() {
        assert!(!format!("{:?}", token()).contains("hunter2"));
    }
}
