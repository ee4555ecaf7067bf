//! An index of identity patterns by their segments.
//!
//! A walk with one SPIFFE ID finds every pattern that matches it in O(segments), and on the way the pattern that comes
//! nearest, so that a refusal can name it without a second search.

use std::collections::HashMap;

use weft_identity::spiffe::{SpiffeId, TrustDomain};

use crate::pattern::{IdentityPattern, Segment, Trailing};

/// Which source of which rule a pattern stands for; indices into the owner's list.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    /// Index of the rule.
    pub(super) rule: u32,
    /// Index of the source in the rule.
    pub(super) source: u32,
}

/// Whether a pattern may be named as the nearest one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Candidate {
    /// It belongs to a rule that could allow.
    Nearest,
    /// It does not.
    No,
}

/// A rule whose pattern shares the longest beginning with the ID that was looked up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Near {
    /// Trust domain and segments shared.
    pub(super) depth: usize,
    /// Index of the rule; the smallest of those with the same beginning.
    pub(super) rule: u32,
}

/// The patterns of one set of rules, per literal trust domain.
#[derive(Debug, Default)]
pub(super) struct IdentityTrie {
    roots: HashMap<TrustDomain, Node>,
}

#[derive(Debug, Default)]
struct Node {
    literals: HashMap<Box<str>, Self>,
    any: Option<Box<Self>>,
    /// Patterns that end here.
    here: Vec<Entry>,
    /// Patterns that end here in `**`: one or more segments follow.
    below: Vec<Entry>,
    /// The smallest rule at or below that may be named as the nearest.
    nearest: Option<u32>,
}

impl IdentityTrie {
    /// Adds a pattern. At most [`crate::pattern::MAX_SEGMENTS`] nodes come with it.
    pub(super) fn insert(&mut self, pattern: &IdentityPattern, entry: Entry, candidate: Candidate) {
        let mut node = self.roots.entry(pattern.trust_domain().clone()).or_default();
        node.note(entry, candidate);
        let (segments, trailing) = pattern.parts();
        for segment in segments {
            node = match segment {
                Segment::Literal(text) => node.literals.entry(text.as_str().into()).or_default(),
                Segment::Any => node.any.get_or_insert_default(),
            };
            node.note(entry, candidate);
        }
        match trailing {
            Trailing::Exact => node.here.push(entry),
            Trailing::OneOrMore => node.below.push(entry),
        }
    }

    /// Calls `matched` for each pattern that matches `id`, and gives the nearest one by shared beginning.
    pub(super) fn walk(&self, id: &SpiffeId, mut matched: impl FnMut(Entry)) -> Option<Near> {
        let root = self.roots.get(id.trust_domain())?;
        let mut near = None;
        root.walk(id.path().strip_prefix('/'), 1, &mut near, &mut matched);
        near
    }
}

impl Node {
    fn note(&mut self, entry: Entry, candidate: Candidate) {
        if candidate == Candidate::Nearest {
            self.nearest = Some(self.nearest.map_or(entry.rule, |rule| rule.min(entry.rule)));
        }
    }

    /// `rest` is what is left of the path, `None` at its end.
    fn walk(
        &self,
        rest: Option<&str>,
        depth: usize,
        near: &mut Option<Near>,
        matched: &mut impl FnMut(Entry),
    ) {
        if let Some(rule) = self.nearest {
            let deeper = near.is_none_or(|n| depth > n.depth || (depth == n.depth && rule < n.rule));
            if deeper {
                *near = Some(Near { depth, rule });
            }
        }
        let Some(rest) = rest else {
            self.here.iter().copied().for_each(matched);
            return;
        };
        self.below.iter().copied().for_each(&mut *matched);
        let (segment, rest) =
            rest.split_once('/').map_or((rest, None), |(segment, rest)| (segment, Some(rest)));
        if let Some(child) = self.literals.get(segment) {
            child.walk(rest, depth + 1, near, matched);
        }
        if let Some(child) = &self.any {
            child.walk(rest, depth + 1, near, matched);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing;

    fn found(trie: &IdentityTrie, id: &str) -> Vec<u32> {
        let mut rules = Vec::new();
        trie.walk(&id.parse().unwrap(), |entry| rules.push(entry.rule));
        rules.sort_unstable();
        rules
    }

    fn trie(patterns: &[&str]) -> IdentityTrie {
        let mut trie = IdentityTrie::default();
        for (rule, pattern) in patterns.iter().enumerate() {
            let entry = Entry { rule: u32::try_from(rule).unwrap(), source: 0 };
            trie.insert(&pattern.parse().unwrap(), entry, Candidate::Nearest);
        }
        trie
    }

    #[test]
    fn literal_star_and_double_star_are_found_together() {
        let trie = trie(&[
            "spiffe://td/a/b",
            "spiffe://td/a/*",
            "spiffe://td/**",
            "spiffe://td/a",
            "spiffe://x/a/b",
        ]);
        assert_eq!(found(&trie, "spiffe://td/a/b"), [0, 1, 2]);
        assert_eq!(found(&trie, "spiffe://td/a"), [2, 3]);
        assert_eq!(found(&trie, "spiffe://td/a/b/c"), [2]);
        assert_eq!(found(&trie, "spiffe://td-/a/b"), [0; 0]);
    }

    #[test]
    fn the_nearest_pattern_shares_the_longest_beginning() {
        let trie =
            trie(&["spiffe://td/ns/other/sa/x", "spiffe://td/ns/shop/sa/order", "spiffe://td/ns/shop/sa/a"]);
        let near = trie.walk(&"spiffe://td/ns/shop/sa/stranger".parse().unwrap(), |_| ()).unwrap();
        assert_eq!(near, Near { depth: 4, rule: 1 });
        assert_eq!(trie.walk(&"spiffe://other/ns/shop".parse().unwrap(), |_| ()), None);
    }

    #[test]
    fn pol_05_a_pattern_of_64_wildcards_among_many_is_found() {
        let stars = "/*".repeat(64);
        let mut patterns = vec![format!("spiffe://td{stars}")];
        for at in 0..64 {
            let mut segments = vec!["*"; 64];
            segments[at] = "a";
            patterns.push(format!("spiffe://td/{}", segments.join("/")));
        }
        let texts: Vec<_> = patterns.iter().map(String::as_str).collect();
        let trie = trie(&texts);
        assert_eq!(found(&trie, &format!("spiffe://td{}", "/a".repeat(64))).len(), 65);
        assert_eq!(found(&trie, &format!("spiffe://td{}", "/b".repeat(64))), [0]);
        assert_eq!(found(&trie, &format!("spiffe://td{}", "/a".repeat(65))), [0; 0]);
    }

    proptest! {
        #[test]
        fn the_index_finds_exactly_the_patterns_that_match(
            patterns in prop::collection::vec(testing::any_pattern(), 0..20),
            id in testing::any_id(),
        ) {
            let mut trie = IdentityTrie::default();
            for (rule, pattern) in patterns.iter().enumerate() {
                trie.insert(pattern, Entry { rule: rule as u32, source: 0 }, Candidate::No);
            }
            let matching: Vec<_> =
                (0..patterns.len() as u32).filter(|rule| patterns[*rule as usize].matches(&id)).collect();
            prop_assert_eq!(found(&trie, &id.to_string()), matching);
        }
    }
}
