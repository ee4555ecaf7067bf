//! SPIFFE names: trust domains and the IDs under them.
//!
//! Owns the grammar of SPIFFE-ID §2 and the four shapes of path that Weft gives out. Does not know
//! certificates (that is [`crate::svid`]).
//!
//! Text becomes a name only through `FromStr` or `TryFrom`; there is no normalisation of any kind, so
//! equality of names is equality of bytes and `parse(text).to_string() == text` for every accepted text.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest SPIFFE ID in bytes (SPIFFE-ID §2.3: up to 2048 must be supported, longer ones not made).
pub const MAX_ID_BYTES: usize = 2048;

/// Longest trust domain name in bytes (SPIFFE-ID §2.3).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// Longest DNS label in bytes (RFC 1035 §2.3.4); [`dns_label`] cuts there.
pub const MAX_DNS_LABEL_BYTES: usize = 63;

const SCHEME: &str = "spiffe://";

/// Why a text is not a SPIFFE ID or trust domain.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidSpiffeId {
    /// The ID is longer than [`MAX_ID_BYTES`].
    #[error("longer than {MAX_ID_BYTES} bytes")]
    TooLong,
    /// The text does not begin with `spiffe://`, in lower case.
    #[error("does not begin with spiffe://")]
    Scheme,
    /// The bytes are not UTF-8, so certainly not the ASCII subset of a SPIFFE ID.
    #[error("not valid UTF-8")]
    NotUtf8,
    /// Nothing stands between `spiffe://` and the path.
    #[error("trust domain is empty")]
    EmptyTrustDomain,
    /// The trust domain is longer than [`MAX_TRUST_DOMAIN_BYTES`].
    #[error("trust domain is longer than {MAX_TRUST_DOMAIN_BYTES} bytes")]
    TrustDomainTooLong,
    /// A character outside `[a-z0-9._-]`: upper case, a port, user information, a wildcard.
    #[error("{0:?} is not allowed in a trust domain: only a-z, 0-9, '.', '_' and '-' are")]
    TrustDomainCharacter(char),
    /// The ID names a trust domain only, where a workload, node, server or person is needed.
    #[error("has no path")]
    NoPath,
    /// The path has an empty segment (`//`) or ends with `/`.
    #[error("path has an empty segment")]
    EmptySegment,
    /// The path has a segment `.` or `..`.
    #[error("path has a segment '.' or '..'")]
    DotSegment,
    /// A character outside `[a-zA-Z0-9._-]`: percent-encoding, a query, a fragment.
    #[error("{0:?} is not allowed in a path: only letters, digits, '.', '_', '-' and '/' are")]
    PathCharacter(char),
}

/// A trust domain, such as `prod.example`: the part of a SPIFFE ID for which one bundle vouches.
///
/// Holding one means the text is 1 to 255 bytes of `[a-z0-9._-]`. It is never read as a DNS name or an
/// address.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name without scheme, such as `prod.example`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the trust domain itself, such as `spiffe://prod.example`.
    pub fn id(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(InvalidSpiffeId::EmptyTrustDomain);
        }
        if let Some(other) = text.chars().find(|c| !is_trust_domain_character(*c)) {
            return Err(InvalidSpiffeId::TrustDomainCharacter(other));
        }
        if text.len() > MAX_TRUST_DOMAIN_BYTES {
            return Err(InvalidSpiffeId::TrustDomainTooLong);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TrustDomain({})", self.0)
    }
}

impl AsRef<str> for TrustDomain {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// The SPIFFE ID of one party, such as `spiffe://prod.example/ns/pay/sa/api`.
///
/// Holding one means the text obeys SPIFFE-ID §2 (charset, at most 2048 bytes) and has a non-root
/// path, as X509-SVID asks of leaf certificates.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    path: Arc<str>, // begins with '/', has at least one segment
}

/// Whom a path names, by the shapes that Weft gives out. Borrowed from the ID.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum IdKind<'a> {
    /// `/ns/<namespace>/sa/<service account>`: a workload.
    Workload {
        /// The namespace that the service account belongs to.
        namespace: &'a str,
        /// The service account; the service name unless the enrollment says otherwise.
        service_account: &'a str,
    },
    /// `/node/<node>`: the agent of a node.
    Node(&'a str),
    /// `/server/<instance>`: a control plane instance.
    Server(&'a str),
    /// `/user/<name>`: a person.
    User(&'a str),
    /// Any other path: legal SPIFFE, but nothing that Weft issues.
    Other,
}

impl SpiffeId {
    /// Names a workload: `/ns/<namespace>/sa/<service_account>`.
    ///
    /// # Errors
    ///
    /// [`InvalidSpiffeId`] if a part is not one path segment or the ID gets longer than 2048 bytes.
    pub fn workload(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, InvalidSpiffeId> {
        Self::of_segments(trust_domain, &["ns", namespace, "sa", service_account])
    }

    /// Names the agent of a node: `/node/<node>`.
    ///
    /// # Errors
    ///
    /// As [`SpiffeId::workload`].
    pub fn node(trust_domain: &TrustDomain, node: &str) -> Result<Self, InvalidSpiffeId> {
        Self::of_segments(trust_domain, &["node", node])
    }

    /// Names a control plane instance: `/server/<instance>`.
    ///
    /// # Errors
    ///
    /// As [`SpiffeId::workload`].
    pub fn server(trust_domain: &TrustDomain, instance: &str) -> Result<Self, InvalidSpiffeId> {
        Self::of_segments(trust_domain, &["server", instance])
    }

    /// Names a person: `/user/<name>`.
    ///
    /// # Errors
    ///
    /// As [`SpiffeId::workload`].
    pub fn user(trust_domain: &TrustDomain, name: &str) -> Result<Self, InvalidSpiffeId> {
        Self::of_segments(trust_domain, &["user", name])
    }

    /// The trust domain whose bundle vouches for this ID.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading slash, such as `/ns/pay/sa/api`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The segments of the path, at least one, none empty.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.path.split('/').skip(1)
    }

    /// Whom the path names. Only whole, exact shapes count: `/node/a/b` is [`IdKind::Other`].
    pub fn kind(&self) -> IdKind<'_> {
        let mut segments = self.segments();
        let parts = [segments.next(), segments.next(), segments.next(), segments.next(), segments.next()];
        match parts {
            [Some("ns"), Some(namespace), Some("sa"), Some(service_account), None] => {
                IdKind::Workload { namespace, service_account }
            }
            [Some("node"), Some(node), None, ..] => IdKind::Node(node),
            [Some("server"), Some(instance), None, ..] => IdKind::Server(instance),
            [Some("user"), Some(name), None, ..] => IdKind::User(name),
            _ => IdKind::Other,
        }
    }

    /// Builds an ID from whole segments, so that a name holding `/` cannot become another ID.
    fn of_segments(trust_domain: &TrustDomain, segments: &[&str]) -> Result<Self, InvalidSpiffeId> {
        segments.iter().try_for_each(|segment| check_segment(segment))?;
        let path = segments.iter().fold(String::new(), |path, segment| path + "/" + segment);
        if SCHEME.len() + trust_domain.0.len() + path.len() > MAX_ID_BYTES {
            return Err(InvalidSpiffeId::TooLong);
        }
        Ok(Self { trust_domain: trust_domain.clone(), path: path.into() })
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse()? {
            SpiffeName::Id(id) => Ok(id),
            SpiffeName::TrustDomain(_) => Err(InvalidSpiffeId::NoPath),
        }
    }
}

impl TryFrom<&[u8]> for SpiffeId {
    type Error = InvalidSpiffeId;

    /// Reads the raw bytes of a URI SAN, which need not be UTF-8.
    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        std::str::from_utf8(bytes).map_err(|_| InvalidSpiffeId::NotUtf8)?.parse()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if formatter.width().is_none() && formatter.precision().is_none() {
            return write!(formatter, "{SCHEME}{}{}", self.trust_domain.0, self.path);
        }
        formatter.pad(&format!("{SCHEME}{}{}", self.trust_domain.0, self.path))
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SpiffeId({self})")
    }
}

/// Any SPIFFE ID: that of a trust domain (no path) or of a party in it.
///
/// Signing certificates and bundle maps carry the first form, leaves only the second; so most code
/// takes [`SpiffeId`] or [`TrustDomain`] and meets this type only while reading.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum SpiffeName {
    /// `spiffe://prod.example`.
    TrustDomain(TrustDomain),
    /// `spiffe://prod.example/ns/pay/sa/api`.
    Id(SpiffeId),
}

impl SpiffeName {
    /// The trust domain, whichever form it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        match self {
            Self::TrustDomain(domain) => domain,
            Self::Id(id) => id.trust_domain(),
        }
    }
}

impl FromStr for SpiffeName {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_ID_BYTES {
            return Err(InvalidSpiffeId::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(InvalidSpiffeId::Scheme)?;
        let Some(slash) = rest.find('/') else {
            return Ok(Self::TrustDomain(rest.parse()?));
        };
        let trust_domain = rest[..slash].parse()?;
        let path = &rest[slash..];
        path.split('/').skip(1).try_for_each(check_segment)?;
        Ok(Self::Id(SpiffeId { trust_domain, path: path.into() }))
    }
}

impl fmt::Display for SpiffeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TrustDomain(domain) => write!(formatter, "{SCHEME}{domain}"),
            Self::Id(id) => id.fmt(formatter),
        }
    }
}

/// Makes a host name usable as a node name and as a label of a trust domain.
///
/// Lower case; every character outside `[a-z0-9]` becomes `-`; dashes at the ends are dropped and the
/// result is cut at 63 bytes (RFC 1035). A text that leaves nothing becomes `host`.
pub fn dns_label(text: &str) -> String {
    let mapped: String = text
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .collect();
    let start = mapped.trim_start_matches('-');
    let label = start[..start.len().min(MAX_DNS_LABEL_BYTES)].trim_end_matches('-');
    if label.is_empty() { "host".to_owned() } else { label.to_owned() }
}

fn is_trust_domain_character(c: char) -> bool {
    matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-')
}

fn is_path_character(c: char) -> bool {
    matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-')
}

fn check_segment(segment: &str) -> Result<(), InvalidSpiffeId> {
    match segment {
        "" => return Err(InvalidSpiffeId::EmptySegment),
        "." | ".." => return Err(InvalidSpiffeId::DotSegment),
        _ => {}
    }
    match segment.chars().find(|c| !is_path_character(*c)) {
        Some(other) => Err(InvalidSpiffeId::PathCharacter(other)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
