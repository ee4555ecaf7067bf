//! Patterns over SPIFFE IDs: the grammar of security.md 7.2, point 4.
//!
//! `spiffe://<literal trust domain>/<seg>/<seg>…`, where a segment is a literal, `*` (exactly one segment), or a
//! trailing `**` (one or more). No partial wildcard, no regular expression, no suffix: each was a hole in a peer.

use std::{fmt, str::FromStr};

use weft_identity::spiffe::{SpiffeId, TrustDomain};

/// The most segments a pattern may have (security.md 7.2, point 12).
pub const MAX_SEGMENTS: usize = 64;

/// A set of SPIFFE IDs of one literal trust domain.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct IdentityPattern {
    trust_domain: TrustDomain,
    segments: Vec<Segment>,
    trailing: Trailing,
}

/// One place of a pattern's path.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Segment {
    Literal(String),
    Any,
}

/// Whether a pattern ends in `**`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Trailing {
    Exact,
    OneOrMore,
}

/// Why a text is not an identity pattern.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidPattern {
    /// It does not begin with `spiffe://`.
    #[error("an identity pattern begins with spiffe://")]
    Scheme,
    /// The trust domain is not a literal, valid one.
    #[error("the trust domain must be literal and valid: {0}")]
    TrustDomain(String),
    /// No path: a workload always has one.
    #[error("a pattern needs a path: use spiffe://{0}/** for every workload of the trust domain")]
    NoPath(String),
    /// `**` before the end, or a wildcard that is part of a segment.
    #[error("{0:?}: a wildcard stands for whole segments, ** only at the end")]
    Wildcard(String),
    /// A segment that no SPIFFE ID can have.
    #[error("{0:?} is not a path segment of a SPIFFE ID")]
    Segment(String),
    /// More than [`MAX_SEGMENTS`].
    #[error("a pattern has at most 64 segments")]
    TooManySegments,
}

impl IdentityPattern {
    /// The pattern that only `id` matches.
    #[must_use]
    pub fn exactly(id: &SpiffeId) -> Self {
        let segments = id.path().trim_start_matches('/').split('/');
        Self {
            trust_domain: id.trust_domain().clone(),
            segments: segments.map(|s| Segment::Literal(s.to_owned())).collect(),
            trailing: Trailing::Exact,
        }
    }

    /// The literal trust domain.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The segments and how the pattern ends, for an index over many patterns.
    pub(crate) fn parts(&self) -> (&[Segment], Trailing) {
        (&self.segments, self.trailing)
    }

    /// Whether every workload of the trust domain matches: `spiffe://<trust domain>/**`.
    #[must_use]
    pub fn is_whole_domain(&self) -> bool {
        self.segments.is_empty() && self.trailing == Trailing::OneOrMore
    }

    /// Whether `id` is in the set: byte equality of trust domain and literal segments, segment by segment.
    #[must_use]
    pub fn matches(&self, id: &SpiffeId) -> bool {
        if id.trust_domain() != &self.trust_domain {
            return false;
        }
        let mut path = id.path().trim_start_matches('/').split('/');
        for segment in &self.segments {
            match (segment, path.next()) {
                (_, None) => return false,
                (Segment::Literal(literal), Some(found)) if literal != found => return false,
                (Segment::Literal(_) | Segment::Any, Some(_)) => {}
            }
        }
        match self.trailing {
            Trailing::Exact => path.next().is_none(),
            Trailing::OneOrMore => path.next().is_some(),
        }
    }

    /// Whether every ID of the pattern lies under `/ns/<namespace>/`: what an enrollment of that namespace may give.
    #[must_use]
    pub fn stays_in_namespace(&self, namespace: &str) -> bool {
        let literal = |index: usize, text: &str| matches!(self.segments.get(index), Some(Segment::Literal(found)) if found == text);
        literal(0, "ns")
            && literal(1, namespace)
            && (self.segments.len() > 2 || self.trailing == Trailing::OneOrMore)
    }
}

impl FromStr for IdentityPattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("spiffe://").ok_or(InvalidPattern::Scheme)?;
        let (domain, path) = rest.split_once('/').ok_or_else(|| InvalidPattern::NoPath(rest.to_owned()))?;
        let trust_domain: TrustDomain =
            domain.parse().map_err(|_| InvalidPattern::TrustDomain(domain.to_owned()))?;
        let mut segments = Vec::new();
        let mut trailing = Trailing::Exact;
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            if part == "**" && parts.peek().is_none() {
                trailing = Trailing::OneOrMore;
            } else {
                segments.push(segment(part)?);
            }
        }
        if segments.len() > MAX_SEGMENTS {
            return Err(InvalidPattern::TooManySegments);
        }
        Ok(Self { trust_domain, segments, trailing })
    }
}

fn segment(part: &str) -> Result<Segment, InvalidPattern> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    match part {
        "*" => Ok(Segment::Any),
        _ if part.contains('*') => Err(InvalidPattern::Wildcard(part.to_owned())),
        "" | "." | ".." => Err(InvalidPattern::Segment(part.to_owned())),
        _ if part.bytes().all(legal) => Ok(Segment::Literal(part.to_owned())),
        _ => Err(InvalidPattern::Segment(part.to_owned())),
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}", self.trust_domain)?;
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => write!(f, "/{text}")?,
                Segment::Any => f.write_str("/*")?,
            }
        }
        match self.trailing {
            Trailing::Exact => Ok(()),
            Trailing::OneOrMore => f.write_str("/**"),
        }
    }
}
