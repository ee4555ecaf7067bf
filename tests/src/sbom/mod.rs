//! The software bill of materials of the `weft` binary, as CycloneDX 1.6 in JSON.
//!
//! Owns the document: which crates are in the binary or took part in building it, under which licence, with the checksum
//! of the lock file, and what depends on what. What cargo says is read in [`inventory`]; `tests/sbom` is the command.
//!
//! The same sources give the same bytes: no path, no host, no time of the run stands in it.

pub mod inventory;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use spdx::Expression;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use inventory::{Crate, Inventory};

/// Why there is no bill of materials.
#[derive(Debug, thiserror::Error)]
pub enum SbomError {
    /// Cargo did not answer.
    #[error("cargo {arguments} failed: {said}")]
    Cargo {
        /// What it was asked.
        arguments: String,
        /// Its own words.
        said: String,
    },
    /// Cargo answered in a form that is not known here: an unread tree is not a complete one.
    #[error("cannot read this line of cargo: {line:?}")]
    Line {
        /// The line.
        line: String,
    },
    /// The tree names a crate of which the metadata knows nothing.
    #[error("cargo metadata does not know {name} {version}")]
    Unknown {
        /// The package name.
        name: String,
        /// Its version.
        version: String,
    },
    /// A crate of a registry stands in the lock file without its checksum.
    #[error("Cargo.lock has no checksum of {name} {version}")]
    Unsealed {
        /// The package name.
        name: String,
        /// Its version.
        version: String,
    },
    /// A licence is missing, or no SPDX expression.
    #[error("{name} names no SPDX licence expression: {licence:?}")]
    Licence {
        /// The package name.
        name: String,
        /// What it names instead.
        licence: String,
    },
    /// `SOURCE_DATE_EPOCH` is not a number of seconds since 1970.
    #[error("SOURCE_DATE_EPOCH is not a number of seconds since 1970: {value:?}")]
    Epoch {
        /// Its value.
        value: String,
    },
}

/// The document for one platform.
///
/// `created` is when the sources were made, in seconds since 1970; without it the document has no timestamp.
///
/// # Errors
///
/// As [`SbomError`]: a bill that leaves something out is none.
pub fn document(inventory: &Inventory, created: Option<i64>) -> Result<Value, SbomError> {
    let root = inventory.root();
    let mut components = Vec::new();
    for part in inventory.crates().filter(|part| *part != root) {
        components.push(component(part, inventory.is_linked(part))?);
    }
    let dependencies: Vec<Value> = inventory
        .crates()
        .map(|part| json!({"ref": reference(part), "dependsOn": inventory.below(part).map(reference).collect::<Vec<_>>()}))
        .collect();
    let mut metadata = json!({
        "lifecycles": [{"phase": "build"}],
        "tools": {"components": [{"type": "application", "name": "weft-sbom", "version": root.version}]},
        "component": {
            "type": "application",
            "bom-ref": reference(root),
            "name": "weft",
            "version": root.version,
            "description": root.description,
            "licenses": [{"expression": licence(root)?}],
            "purl": reference(root),
        },
        "properties": [{"name": "weft:target", "value": inventory.target()}],
    });
    if let Some(created) = created {
        metadata["timestamp"] = json!(written(created)?);
    }
    let mut document = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": metadata,
        "components": components,
        "dependencies": dependencies,
        "compositions": [{"aggregate": "complete", "dependencies": [reference(root)]}],
    });
    document["serialNumber"] = json!(serial_number(&document));
    Ok(document)
}

fn component(part: &Crate, is_linked: bool) -> Result<Value, SbomError> {
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(part),
        "name": part.name,
        "version": part.version,
        // What only took part in building it: build scripts, procedural macros and what these need.
        "scope": if is_linked { "required" } else { "excluded" },
        "licenses": [{"expression": licence(part)?}],
        "purl": reference(part),
    });
    if !part.is_ours {
        let unsealed = || SbomError::Unsealed { name: part.name.clone(), version: part.version.clone() };
        let checksum = part.checksum.as_ref().ok_or_else(unsealed)?;
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    Ok(component)
}

/// The package URL, which names a component in this document as well.
///
/// Our own crates are in no registry: a `pkg:cargo` of theirs could be a stranger's.
fn reference(part: &Crate) -> String {
    let (name, version) = (&part.name, part.version.replace('+', "%2B"));
    match (part.is_ours, part.is_root) {
        (true, true) => format!("pkg:generic/weft@{version}"),
        (true, false) => format!("pkg:generic/{name}@{version}"),
        (false, _) => format!("pkg:cargo/{name}@{version}"),
    }
}

/// The licence in the words of SPDX; manifests once also said `MIT/Apache-2.0`.
fn licence(part: &Crate) -> Result<String, SbomError> {
    let fault = || SbomError::Licence { name: part.name.clone(), licence: part.licence.clone() };
    let canonical = Expression::canonicalize(&part.licence).map_err(|_| fault())?;
    let text = canonical.unwrap_or_else(|| part.licence.clone());
    Expression::parse(&text).map_err(|_| fault())?;
    Ok(text)
}

fn written(seconds: i64) -> Result<String, SbomError> {
    let fault = || SbomError::Epoch { value: seconds.to_string() };
    let moment = OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| fault())?;
    moment.format(&Rfc3339).map_err(|_| fault())
}

/// A UUID made of the content (RFC 9562, version 8), so that the same bill has the same number.
fn serial_number(document: &Value) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest(&SHA256, document.to_string().as_bytes()).as_ref()[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("urn:uuid:{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "0weft-cli v0.1.0 (/home/me/weft/cli)\n1serde v1.0.1\n2serde_derive v1.0.1 (proc-macro)\n\
                        1weft-node v0.1.0 (/home/me/weft/node)\n2serde v1.0.1 (*)\n2aws-lc-sys v0.47.0+x\n3cc v1.2.0\n";
    const LINKED: &str = "weft-cli v0.1.0 (/home/me/weft/cli)\nserde v1.0.1\nweft-node v0.1.0 (/home/me/weft/node)\n\
                          serde v1.0.1 (*)\naws-lc-sys v0.47.0+x\n";
    const LOCK: &str = "version = 4\n\n[[package]]\nname = \"serde\"\nversion = \"1.0.1\"\nsource = \"r\"\nchecksum = \"aa\"\n\n\
                        [[package]]\nname = \"serde_derive\"\nversion = \"1.0.1\"\nchecksum = \"bb\"\n\n[[package]]\n\
                        name = \"aws-lc-sys\"\nversion = \"0.47.0+x\"\nchecksum = \"cc\"\n\n[[package]]\nname = \"cc\"\n\
                        version = \"1.2.0\"\nchecksum = \"dd\"\ndependencies = [\n \"serde\",\n]\n";

    fn metadata() -> Value {
        let package = |name: &str, version: &str, licence: &str, source: Value| json!({"name": name, "version": version, "license": licence, "source": source, "description": "what it is"});
        json!({"packages": [
            package("weft-cli", "0.1.0", "Apache-2.0", Value::Null),
            package("weft-node", "0.1.0", "Apache-2.0", Value::Null),
            package("serde", "1.0.1", "MIT/Apache-2.0", json!("registry")),
            package("serde_derive", "1.0.1", "MIT OR Apache-2.0", json!("registry")),
            package("aws-lc-sys", "0.47.0+x", "ISC AND (Apache-2.0 OR ISC)", json!("registry")),
            package("cc", "1.2.0", "MIT", json!("registry")),
        ]})
    }

    fn bill(metadata: &Value, lock: &str) -> Result<Value, SbomError> {
        document(
            &Inventory::read("x86_64-unknown-linux-gnu", TREE, LINKED, metadata, lock)?,
            Some(1_800_000_000),
        )
    }

    fn find<'a>(bill: &'a Value, name: &str) -> &'a Value {
        bill["components"].as_array().unwrap().iter().find(|part| part["name"] == name).unwrap()
    }

    #[test]
    fn what_is_linked_is_required_and_what_builds_it_is_not() {
        let bill = bill(&metadata(), LOCK).unwrap();

        assert_eq!(bill["metadata"]["component"]["purl"], "pkg:generic/weft@0.1.0");
        assert_eq!(bill["metadata"]["timestamp"], "2027-01-15T08:00:00Z");
        assert_eq!(bill["components"].as_array().unwrap().len(), 5, "the application is no part of itself");
        for (name, scope) in [
            ("serde", "required"),
            ("aws-lc-sys", "required"),
            ("serde_derive", "excluded"),
            ("cc", "excluded"),
        ] {
            assert_eq!(find(&bill, name)["scope"], scope, "{name}");
        }
    }

    #[test]
    fn a_part_has_its_package_url_its_checksum_and_its_licence_in_the_words_of_spdx() {
        let bill = bill(&metadata(), LOCK).unwrap();
        let (aws, serde, node) = (find(&bill, "aws-lc-sys"), find(&bill, "serde"), find(&bill, "weft-node"));

        assert_eq!(aws["purl"], "pkg:cargo/aws-lc-sys@0.47.0%2Bx");
        assert_eq!(aws["hashes"], json!([{"alg": "SHA-256", "content": "cc"}]));
        assert_eq!(serde["licenses"], json!([{"expression": "MIT OR Apache-2.0"}]));
        assert_eq!(node["purl"], "pkg:generic/weft-node@0.1.0");
        assert_eq!(node.get("hashes"), None, "a folder of this repository has no checksum");
    }

    #[test]
    fn the_graph_is_the_tree_of_cargo() {
        let bill = bill(&metadata(), LOCK).unwrap();
        let below = |of: &str| {
            let all = bill["dependencies"].as_array().unwrap();
            all.iter().find(|entry| entry["ref"] == of).unwrap()["dependsOn"].clone()
        };

        assert_eq!(
            below("pkg:generic/weft@0.1.0"),
            json!(["pkg:cargo/serde@1.0.1", "pkg:generic/weft-node@0.1.0"])
        );
        assert_eq!(
            below("pkg:generic/weft-node@0.1.0"),
            json!(["pkg:cargo/aws-lc-sys@0.47.0%2Bx", "pkg:cargo/serde@1.0.1"])
        );
        assert_eq!(below("pkg:cargo/cc@1.2.0"), json!([]));
    }

    #[test]
    fn no_path_of_the_machine_stands_in_it_and_the_same_sources_give_the_same_bytes() {
        let (one, other) = (bill(&metadata(), LOCK).unwrap(), bill(&metadata(), LOCK).unwrap());

        assert!(!one.to_string().contains("/home/me"));
        assert_eq!(one.to_string(), other.to_string());
        let changed = bill(&metadata(), &LOCK.replace("\"aa\"", "\"ee\"")).unwrap();
        assert_ne!(one["serialNumber"], changed["serialNumber"], "another content is another bill");
    }

    #[test]
    fn what_is_not_known_whole_makes_no_bill() {
        let mut nameless = metadata();
        nameless["packages"].as_array_mut().unwrap().pop();
        let mut free = metadata();
        free["packages"][5]["license"] = json!("Trust-Me-1.0");

        assert!(matches!(bill(&nameless, LOCK), Err(SbomError::Unknown { name, .. }) if name == "cc"));
        assert!(matches!(bill(&free, LOCK), Err(SbomError::Licence { name, .. }) if name == "cc"));
        let unsealed = LOCK.replace("checksum = \"dd\"\n", "");
        assert!(
            matches!(bill(&metadata(), &unsealed), Err(SbomError::Unsealed { name, .. }) if name == "cc")
        );
        assert!(matches!(
            Inventory::read("t", "weft-cli v0.1.0\n", LINKED, &metadata(), LOCK),
            Err(SbomError::Line { .. })
        ));
    }
}
