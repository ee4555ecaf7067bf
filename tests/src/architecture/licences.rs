//! Licences: what is built, tested or fuzzed must be usable under a licence that `deny.toml` allows.
//!
//! `deny.toml` is the one list. cargo-deny reads it where an advisory database can be reached; this check needs neither
//! that nor any network. Expressions are those of SPDX: one side of an `OR` is enough, an `AND` needs both, and a
//! licence `WITH` an exception is another licence than without.

use serde_json::Value;
use spdx::{Expression, Licensee, ParseMode};

/// Arguments for cargo that print every crate of the workspace, of its tests and of the fuzz targets.
pub const EVERY_CRATE: &[&str] =
    &["metadata", "--format-version=1", "--all-features", "--filter-platform=x86_64-unknown-linux-gnu"];

/// What `deny.toml` allows: everywhere, and to a crate of this name.
struct Allowed {
    everywhere: Vec<Licensee>,
    exceptions: Vec<(String, Vec<Licensee>)>,
}

/// Finds crates in the output of [`EVERY_CRATE`] that no allowed licence covers, each with what it asks for.
///
/// A crate that names no licence is refused: a file in its package is for a person to read.
pub fn forbidden(metadata: &Value, deny: &str) -> Vec<String> {
    let allowed = match Allowed::read(deny) {
        Ok(allowed) => allowed,
        Err(fault) => return vec![fault],
    };
    let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
    if packages.is_empty() {
        return vec!["cargo metadata lists no package: was it read right?".to_owned()];
    }
    let idle = allowed
        .exceptions
        .iter()
        .filter(|(name, _)| !packages.iter().any(|package| text(package, "name") == name))
        .map(|(name, _)| format!("deny.toml makes an exception for {name}, which is not built: take it out"));
    packages.iter().filter_map(|package| judge(package, &allowed)).chain(idle).collect()
}

fn judge(package: &Value, allowed: &Allowed) -> Option<String> {
    let name = format!("{} {}", text(package, "name"), text(package, "version"));
    let licence = text(package, "license");
    if licence.is_empty() {
        return Some(format!("{name} names no licence: read its package, then decide"));
    }
    // The form that manifests had before SPDX is still found: `MIT/Apache-2.0`.
    let expression = match Expression::parse_mode(licence, ParseMode::LAX) {
        Ok(expression) => expression,
        Err(error) => return Some(format!("{name}: `{licence}` is no licence expression: {}", error.reason)),
    };
    let own = allowed.exceptions.iter().filter(|(exempt, _)| exempt == text(package, "name"));
    let covering = allowed.everywhere.iter().chain(own.flat_map(|(_, licences)| licences));
    let covered = expression.evaluate(|needed| covering.clone().any(|licensee| licensee.satisfies(needed)));
    (!covered).then(|| {
        format!(
            "{name} is under `{licence}`, which `[licenses] allow` of deny.toml does not cover: \
             do without it, or allow the licence there and say why"
        )
    })
}

impl Allowed {
    /// Reads `[licenses]`; a form of the section that is not understood here is a fault.
    fn read(deny: &str) -> Result<Self, String> {
        let lines = deny.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let section =
            lines.skip_while(|line| *line != "[licenses]").skip(1).take_while(|line| !is_header(line));
        let section = format!("\n{}", section.collect::<Vec<_>>().join("\n"));
        let everywhere = section
            .split_once("\nallow = [")
            .map(|(_, after)| licensees(after))
            .transpose()?
            .filter(|allowed| !allowed.is_empty())
            .ok_or("`[licenses] allow` of deny.toml is empty or was not found")?;
        let mut exceptions = Vec::new();
        let mut rest = section.split_once("\nexceptions = [").map_or("]", |(_, after)| after);
        loop {
            rest = rest.trim_start_matches([',', '\n', ' ']);
            if rest.starts_with(']') {
                return Ok(Self { everywhere, exceptions });
            }
            let (exception, after) = exception(rest)?;
            exceptions.push(exception);
            rest = after;
        }
    }
}

/// Reads `{ allow = ["…"], crate = "…" }`, the keys in either order, and gives what is behind it.
fn exception(text: &str) -> Result<((String, Vec<Licensee>), &str), String> {
    let fault = || format!("an exception of deny.toml has a form that this check does not read: {text:.60}");
    let (inside, after) = text.strip_prefix('{').and_then(|text| text.split_once('}')).ok_or_else(fault)?;
    let (_, name) = inside.split_once("crate = \"").ok_or_else(fault)?;
    let (name, _) = name.split_once('"').ok_or_else(fault)?;
    let (_, list) = inside.split_once("allow = [").ok_or_else(fault)?;
    // A version behind the name would make the exception narrower than it is read here.
    if name.contains([':', '@']) || inside.matches('=').count() != 2 {
        return Err(fault());
    }
    Ok(((name.to_owned(), licensees(list)?), after))
}

/// The licences up to the closing bracket.
fn licensees(list: &str) -> Result<Vec<Licensee>, String> {
    let (inside, _) = list.split_once(']').ok_or("a list of deny.toml does not end")?;
    let names = inside.split(',').map(|entry| entry.trim().trim_matches('"')).filter(|name| !name.is_empty());
    names
        .map(|name| {
            Licensee::parse(name).map_err(|error| format!("deny.toml allows `{name}`: {}", error.reason))
        })
        .collect()
}

fn is_header(line: &str) -> bool {
    line.starts_with('[')
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const DENY: &str = "[advisories]\nversion = 2\n\n[licenses]\n# why\nallow = [\"Apache-2.0\", \"MIT\", \"ISC\"]\n\
                        exceptions = []\n\n[bans]\nallow = [\"GPL-3.0-only\"]\n";

    fn refused(licence: &str) -> Vec<String> {
        forbidden(&json!({"packages": [{"name": "x", "version": "1.0.0", "license": licence}]}), DENY)
    }

    #[test]
    fn a_licence_that_is_not_allowed_is_refused_by_name() {
        let found = refused("GPL-3.0-only");

        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("x 1.0.0 is under `GPL-3.0-only`"), "{found:?}");
        assert_eq!(refused("MIT"), [""; 0]);
    }

    #[test]
    fn one_side_of_an_or_is_enough_and_an_and_needs_both() {
        for fine in ["MIT OR GPL-3.0-only", "GPL-3.0-only OR Apache-2.0", "MIT AND ISC", "MIT/Apache-2.0"] {
            assert_eq!(refused(fine), [""; 0], "{fine}");
        }
        for bad in ["MIT AND GPL-3.0-only", "(MIT OR ISC) AND GPL-3.0-only", "GPL-3.0-only OR MPL-2.0"] {
            assert_eq!(refused(bad).len(), 1, "{bad}");
        }
        // AND binds tighter than OR.
        assert_eq!(refused("MIT OR ISC AND GPL-3.0-only"), [""; 0]);
        assert_eq!(refused("GPL-3.0-only OR ISC AND GPL-3.0-only").len(), 1);
    }

    #[test]
    fn a_licence_with_an_exception_is_another_licence() {
        assert_eq!(refused("Apache-2.0 WITH LLVM-exception").len(), 1);
        assert_eq!(refused("Apache-2.0 WITH LLVM-exception OR MIT"), [""; 0]);
    }

    #[test]
    fn a_crate_without_a_licence_or_with_a_made_up_one_is_refused() {
        let nothing =
            json!({"packages": [{"name": "x", "version": "1.0.0", "license": null, "license_file": "EULA"}]});

        assert!(forbidden(&nothing, DENY)[0].contains("names no licence"));
        assert!(refused("Trust-Me-1.0")[0].contains("is no licence expression"));
        assert!(refused("MIT OR")[0].contains("is no licence expression"));
    }

    #[test]
    fn a_list_that_cannot_be_read_is_not_an_empty_one() {
        let good = json!({"packages": [{"name": "x", "version": "1.0.0", "license": "MIT"}]});

        assert!(forbidden(&good, "[bans]\nallow = [\"MIT\"]\n")[0].contains("not found"));
        assert!(forbidden(&good, &DENY.replace("\"ISC\"", "\"Isc-ish\""))[0].contains("Isc-ish"));
        assert!(forbidden(&json!({"packages": []}), DENY)[0].contains("no package"));
    }

    #[test]
    fn an_exception_holds_for_its_crate_alone() {
        let deny = DENY
            .replace("exceptions = []", "exceptions = [\n    { allow = [\"NCSA\"], crate = \"fuzzer\" },\n]");
        let tree = |name: &str| {
            json!({"packages": [
                {"name": name, "version": "1.0.0", "license": "MIT AND NCSA"},
                {"name": "fuzzer", "version": "1.0.0", "license": "MIT AND NCSA"},
            ]})
        };

        assert_eq!(forbidden(&tree("fuzzer"), &deny), [""; 0]);
        assert!(forbidden(&tree("y"), &deny)[0].starts_with("y 1.0.0 is under `MIT AND NCSA`"));
        let gone = json!({"packages": [{"name": "x", "version": "1.0.0", "license": "MIT"}]});
        assert!(forbidden(&gone, &deny)[0].contains("exception for fuzzer, which is not built"));
        for odd in ["crate = \"fuzzer@0.4\"", "name = \"fuzzer\"", "crate = \"fuzzer\", reason = \"r\""] {
            let odd = deny.replace("crate = \"fuzzer\"", odd);
            assert!(forbidden(&tree("fuzzer"), &odd)[0].contains("does not read"), "{odd}");
        }
    }

    #[test]
    fn a_list_over_several_lines_is_read() {
        let tall = DENY.replace("[\"Apache-2.0\", ", "[\n    \"Apache-2.0\",\n    # and\n    ");

        assert_eq!(
            forbidden(
                &json!({"packages": [{"name": "x", "version": "1", "license": "MIT AND Apache-2.0"}]}),
                &tall
            ),
            [""; 0]
        );
    }
}
