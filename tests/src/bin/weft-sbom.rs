//! `tests/sbom`: prints the bill of materials of the `weft` binary for one platform.

use std::io::Write as _;
use std::process::{Command, ExitCode};

use weft_tests::architecture::tree::TARGET;
use weft_tests::architecture::workspace_root;
use weft_tests::sbom::inventory::{self, Inventory};
use weft_tests::sbom::{SbomError, document};

fn main() -> ExitCode {
    let target = std::env::args().nth(1).unwrap_or_else(|| TARGET.to_owned());
    match bill(&target) {
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "no bill of materials: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bill(target: &str) -> Result<String, SbomError> {
    let whole = cargo(&inventory::whole_tree(target))?;
    let linked = cargo(&inventory::linked_tree(target))?;
    let metadata = cargo(&inventory::metadata(target))?;
    let metadata =
        serde_json::from_str(&metadata).map_err(|error| SbomError::Line { line: error.to_string() })?;
    let lock = std::fs::read_to_string(workspace_root().join("Cargo.lock"))
        .map_err(|error| SbomError::Line { line: format!("Cargo.lock: {error}") })?;
    let inventory = Inventory::read(target, &whole, &linked, &metadata, &lock)?;
    let document = document(&inventory, created()?)?;
    Ok(format!("{document:#}\n"))
}

/// When the sources were made: `SOURCE_DATE_EPOCH`, or else their last commit; a tree without history has no time.
fn created() -> Result<Option<i64>, SbomError> {
    if let Ok(value) = std::env::var("SOURCE_DATE_EPOCH") {
        return value.trim().parse().map(Some).map_err(|_| SbomError::Epoch { value });
    }
    let git = Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(workspace_root()).output();
    Ok(git.ok().and_then(|output| String::from_utf8(output.stdout).ok()?.trim().parse().ok()))
}

fn cargo(arguments: &[String]) -> Result<String, SbomError> {
    let told = |said: String| SbomError::Cargo { arguments: arguments.join(" "), said };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .args(["--offline", "--locked"])
        .current_dir(workspace_root())
        .output()
        .map_err(|error| told(error.to_string()))?;
    if !output.status.success() {
        return Err(told(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    String::from_utf8(output.stdout).map_err(|error| told(error.to_string()))
}
