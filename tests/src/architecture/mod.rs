//! The invariants of the source tree, each a function from what was read to what is wrong.
//!
//! `tests/architecture.rs` applies them to this workspace; the tests beside each function apply
//! them to made-up input that breaks the rule, so a check that cannot fail is noticed.
//!
//! A check returns one message per violation: the place, the rule, and how to mend it.

pub mod crates;
pub mod lexer;
pub mod licences;
pub mod manifests;
pub mod sources;
pub mod tree;

use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the workspace, where `Cargo.toml` and `clippy.toml` stand.
pub fn workspace_root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the tests crate stands in the workspace root").to_path_buf()
}

/// Runs cargo in the workspace without network and without touching the lock file; returns stdout.
///
/// # Panics
///
/// If cargo fails: then the tree cannot be judged, and the message carries cargo's own words.
pub fn cargo(args: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(args)
        .args(["--offline", "--locked"])
        .current_dir(workspace_root())
        .output()
        .expect("cargo can be started");
    assert!(output.status.success(), "cargo {args:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}

/// Fails the calling test if `violations` is not empty, printing every one of them.
///
/// # Panics
///
/// If there is a violation.
#[track_caller]
pub fn assert_none(violations: &[String]) {
    assert!(violations.is_empty(), "{} violation(s):\n  - {}", violations.len(), violations.join("\n  - "));
}
