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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{any_id, any_pattern};

    #[test]
    fn pol_10_what_is_not_in_the_grammar_is_refused() {
        let too_many = format!("spiffe://td{}", "/a".repeat(MAX_SEGMENTS + 1));
        for bad in [
            "",
            "td/a",
            "SPIFFE://td/a",
            "https://td/a",
            "spiffe://",
            "spiffe://td",
            "spiffe://td/",
            "spiffe:///a",
            "spiffe://*/a",
            "spiffe://td*/a",
            "spiffe://*.td/a",
            "spiffe://TD/a",
            "spiffe://td:1/a",
            "spiffe://u@td/a",
            "spiffe://td/a/",
            "spiffe://td//a",
            "spiffe://td/./a",
            "spiffe://td/../a",
            "spiffe://td/a*",
            "spiffe://td/*a",
            "spiffe://td/a*b",
            "spiffe://td/***",
            "spiffe://td/**/a",
            "spiffe://td/a?b",
            "spiffe://td/a#b",
            "spiffe://td/a%2fb",
            "spiffe://td/.*",
            "spiffe://td/a b",
            "spiffe://td/a\n",
            "spiffe://td/ü",
            "spiffe://td/a|b",
            &too_many,
        ] {
            assert!(bad.parse::<IdentityPattern>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_pattern_of_the_most_segments_is_accepted() {
        assert!(format!("spiffe://td{}", "/*".repeat(MAX_SEGMENTS)).parse::<IdentityPattern>().is_ok());
    }

    #[test]
    fn an_enrollment_reaches_only_its_own_namespace() {
        let stays = |text: &str| text.parse::<IdentityPattern>().unwrap().stays_in_namespace("shop");
        for inside in ["spiffe://td/ns/shop/sa/order", "spiffe://td/ns/shop/*/x", "spiffe://td/ns/shop/**"] {
            assert!(stays(inside), "{inside}");
        }
        for outside in [
            "spiffe://td/ns/shop",
            "spiffe://td/ns/shopx/sa/a",
            "spiffe://td/ns/*/sa/a",
            "spiffe://td/*/shop/sa/a",
            "spiffe://td/ns/**",
            "spiffe://td/**",
            "spiffe://td/node/shop",
            "spiffe://td/x/ns/shop/sa/a",
        ] {
            assert!(!stays(outside), "{outside}");
        }
    }

    #[test]
    fn only_two_stars_alone_are_the_whole_domain() {
        let whole = |text: &str| text.parse::<IdentityPattern>().unwrap().is_whole_domain();
        assert!(whole("spiffe://td/**"));
        assert!(!whole("spiffe://td/*") && !whole("spiffe://td/ns/**"));
    }

    proptest! {
        #[test]
        fn the_text_of_a_pattern_reads_as_the_same_pattern(pattern in any_pattern()) {
            prop_assert_eq!(pattern.to_string().parse(), Ok(pattern));
        }

        #[test]
        fn the_pattern_of_one_id_matches_that_id_only(one in any_id(), other in any_id()) {
            let pattern = IdentityPattern::exactly(&one);
            prop_assert!(pattern.matches(&one));
            prop_assert_eq!(pattern.matches(&other), one == other);
            prop_assert_eq!(pattern.to_string(), one.to_string());
        }

        #[test]
        fn reading_any_text_never_panics(text in "(spiffe://)?[a-z.*/%:@-]{0,40}") {
            if let Ok(pattern) = text.parse::<IdentityPattern>() {
                prop_assert_eq!(pattern.to_string(), text);
            }
        }
    }
}
