//! The word that was probably meant.

/// Words further apart than a third of their length are not the same word with a slip.
const SLIP_SHARE: usize = 3;

/// The longest word that is compared; nothing we know is longer.
const MAX_WORD_BYTES: usize = 64;

/// The one of `known` that `word` is most likely a slip of; `None` when none is near.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > MAX_WORD_BYTES {
        return None;
    }
    let lower = word.to_lowercase();
    let scored = known.into_iter().map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate));
    let (slips, best) = scored.min_by_key(|(slips, _)| *slips)?;
    let allowed = (best.chars().count().max(lower.chars().count()) / SLIP_SHARE).max(1);
    (slips <= allowed).then_some(best)
}

/// Optimal string alignment: insertions, deletions, replacements and swaps of neighbours.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<_>, Vec<_>) = (from.chars().collect(), to.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for (row, a) in from.iter().enumerate() {
        let mut this = vec![row + 1];
        for (column, b) in to.iter().enumerate() {
            let replaced = last[column] + usize::from(a != b);
            let mut best = replaced.min(last[column + 1] + 1).min(this[column] + 1);
            if row > 0 && column > 0 && from[row - 1] == *b && *a == to[column - 1] {
                best = best.min(before[column - 1] + 1);
            }
            this.push(best);
        }
        before = std::mem::replace(&mut last, this);
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised() {
        let known = ["sources", "ports", "networks", "name"];
        for (slip, meant) in [
            ("source", Some("sources")),
            ("soruces", Some("sources")),
            ("Ports", Some("ports")),
            ("nmae", Some("name")),
            ("network", Some("networks")),
            ("hostname", None),
            ("", None),
        ] {
            assert_eq!(nearest(slip, known), meant, "{slip}");
        }
    }
}
