//! A wall clock of its own for the `weft` processes of one host, that a scenario can step while they run.
//!
//! libfaketime stands between the programs and the wall clock; the clock that only grows stays the machine's. Real time
//! namespaces have no wall clock.

use std::fs;
use std::path::PathBuf;

use crate::netns::Host;
use crate::process::Program;

/// Makes `program` read the clock of `host`.
///
/// # Panics
///
/// If libfaketime is not installed.
#[track_caller]
pub fn under_clock_of(host: &Host, program: Program) -> Program {
    let program = program.env("LD_PRELOAD", library()).env("FAKETIME_TIMESTAMP_FILE", file(host));
    program
        .env("FAKETIME_NO_CACHE", "1")
        .env("DONT_FAKE_MONOTONIC", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
}

/// From now on the clock of `host` is `seconds` ahead of the machine's; behind, when negative.
///
/// # Panics
///
/// If the file cannot be written.
#[track_caller]
pub fn set(host: &Host, seconds: i64) {
    let (file, draft) = (file(host), file(host).with_extension("new"));
    let written = fs::write(&draft, format!("{seconds:+}\n")).and_then(|()| fs::rename(&draft, &file));
    written.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

fn file(host: &Host) -> PathBuf {
    host.folder().join("clock")
}

#[track_caller]
fn library() -> PathBuf {
    let places = fs::read_dir("/usr/lib").expect("every Linux has it").flatten();
    let found =
        places.map(|place| place.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    found.expect("no libfaketime: apt-get install faketime (tests/run installs it)")
}
