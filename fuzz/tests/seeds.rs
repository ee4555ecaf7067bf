//! Replays the seeds of every target, and a few thousand mutations of each by a small generator: what a plain
//! `cargo test` can do without libFuzzer.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};

/// Mutations of each seed; 0x5eed is where the generator starts, always.
const ROUNDS: usize = 20;
/// The same for a target that makes a handshake and waits for what it provoked with each.
const ROUNDS_OF_CONNECTIONS: usize = 2;

/// What panicked on a thread of its own, where the test would not notice; libFuzzer ends the process for it.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn listen_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(panic.to_string());
            default(panic);
        }));
    });
}

fn nothing_panicked(name: &str) {
    let panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(panics.is_empty(), "{name}: {panics:?}");
}

#[test]
fn every_seed_of_every_target_keeps_its_promises() {
    listen_for_panics();
    for (name, target) in weft_fuzz::TARGETS {
        let seeds = seeds(name);
        assert!(seeds.len() >= 5, "{name} has {} seeds", seeds.len());
        for seed in &seeds {
            target(&fs::read(seed).expect("a seed can be read"));
        }
        nothing_panicked(name);
    }
}

#[test]
fn mutated_seeds_keep_their_promises() {
    listen_for_panics();
    let mut state = 0x5eed_u64;
    for (name, target) in weft_fuzz::TARGETS {
        let rounds = if name == "f15_quic_connection" { ROUNDS_OF_CONNECTIONS } else { ROUNDS };
        for seed in seeds(name) {
            let whole = fs::read(&seed).expect("a seed can be read");
            for _ in 0..rounds {
                target(&mutated(whole.clone(), &mut state));
            }
        }
        nothing_panicked(name);
    }
}

#[test]
fn every_target_has_a_binary_a_dictionary_or_none_and_at_most_three_hundred_seeds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = 0;
    for (name, _) in weft_fuzz::TARGETS {
        assert!(root.join("fuzz_targets").join(format!("{name}.rs")).is_file(), "{name} has no binary");
        all += seeds(name).len();
    }
    // Some twenty a target are looked over when they change, and all of them replay in seconds.
    assert!(all < 300, "{all} seeds");
    let binaries = fs::read_dir(root.join("fuzz_targets")).expect("the folder is there").count();
    assert_eq!(binaries, weft_fuzz::TARGETS.len(), "a binary without a target");
}

fn seeds(name: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
    let mut found: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("the folder can be listed").path())
        .collect();
    found.sort();
    found
}

/// One to four changes: a byte, a cut, a repetition.
fn mutated(mut bytes: Vec<u8>, state: &mut u64) -> Vec<u8> {
    for _ in 0..=next(state) % 4 {
        if bytes.is_empty() {
            return bytes;
        }
        let at = next(state) as usize % bytes.len();
        match next(state) % 4 {
            0 => bytes.truncate(at),
            1 => {
                let piece = bytes[at..bytes.len().min(at + 8)].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes[at] ^= 1 << (next(state) % 8),
        }
    }
    bytes
}

/// Xorshift.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
