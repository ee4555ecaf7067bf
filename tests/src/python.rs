//! The Python interpreter that has the test packages of `tests/requirements.txt`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The variable in which `tests/run` hands over the interpreter of its virtual environment.
pub const VARIABLE: &str = "WEFT_TEST_PYTHON";

/// The interpreter to start scripts with: what [`VARIABLE`] names, else the one that an earlier `tests/run` left behind.
///
/// # Panics
///
/// Without one of them: a test whose attacker is missing has failed, it is not skipped.
#[must_use]
pub fn interpreter() -> PathBuf {
    let left_behind = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tests-run/python/bin/python");
    let chosen = std::env::var_os(VARIABLE).map_or(left_behind, PathBuf::from);
    assert!(
        chosen.exists(),
        "no Python with the test packages at {}: run tests/run --e2e once, or make a virtual environment, \
         install tests/requirements.txt into it and name its interpreter in {VARIABLE}",
        chosen.display()
    );
    chosen
}

/// A command that runs `tests/tools/<script>` with the test packages and unbuffered output.
#[must_use]
pub fn tool(script: &str) -> Command {
    let mut command = Command::new(interpreter());
    command.arg("-u").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools").join(script));
    command
}
