//! Random moments that can be repeated, and how long the long forms are.
//!
//! A scenario that draws its moments prints the seed; `WEFT_SEED` repeats it. `tests/long` sets the other variables.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Repeats a run.
const SEED: &str = "WEFT_SEED";

/// A source of random moments.
#[derive(Debug)]
pub struct Chance {
    seed: u64,
    random: StdRng,
}

impl Chance {
    /// Starts with `WEFT_SEED`, or a seed of its own, and prints it to standard error.
    ///
    /// # Panics
    ///
    /// If `WEFT_SEED` is no number.
    #[track_caller]
    pub fn new() -> Self {
        let seed = number(SEED).unwrap_or_else(rand::random);
        eprintln!("{SEED}={seed} repeats this run");
        Self { seed, random: StdRng::seed_from_u64(seed) }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.random.random_range(0..bound)
    }

    /// Lets a random time below `longest` pass: for what happens at a random moment. Nothing is awaited by it.
    pub fn pause(&mut self, longest: Duration) {
        let millis = self.below(u64::try_from(longest.as_millis()).unwrap_or(u64::MAX).max(1));
        std::thread::sleep(Duration::from_millis(millis));
    }
}

impl Default for Chance {
    fn default() -> Self {
        Self::new()
    }
}

/// The environment variable `name` as a number: how long a long form is to be.
///
/// # Panics
///
/// If it is set and no number.
#[track_caller]
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_numbers() {
        let draw = |seed| {
            let mut chance = Chance { seed, random: StdRng::seed_from_u64(seed) };
            [chance.below(1000), chance.below(1000), chance.below(1000)]
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}
