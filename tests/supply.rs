//! The bill of materials of the binary, made by its command and read by others: the schema of CycloneDX, and cargo.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use weft_tests::architecture::{cargo, workspace_root};
use weft_tests::python;

fn sbom(environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-sbom"));
    command.env_remove("SOURCE_DATE_EPOCH").envs(environment.iter().copied());
    command.output().expect("the command can be started")
}

fn bill(environment: &[(&str, &str)]) -> (String, Value) {
    let output = sbom(environment);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
    let value = serde_json::from_str(&text).expect("it is JSON");
    (text, value)
}

/// What the schema of CycloneDX says of a document; nothing if it is in order.
fn faults(document: &str) -> String {
    let mut validator = python::tool("sbom_schema.py");
    let mut child =
        validator.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python can be started");
    child.stdin.take().expect("it is piped").write_all(document.as_bytes()).expect("python reads");
    let output = child.wait_with_output().expect("python ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.success(), said.is_empty(), "{said}");
    said
}

#[test]
fn the_bill_of_materials_obeys_the_schema_of_cyclonedx() {
    let (text, value) = bill(&[]);

    assert_eq!(faults(&text), "");
    let mut bent = value.clone();
    bent["components"][0]["licenses"] = json!([{"expression": 7}]);
    assert_ne!(faults(&bent.to_string()), "", "the validator takes anything");
    let mut unknown = value;
    unknown["unheardOf"] = json!(1);
    assert_ne!(faults(&unknown.to_string()), "", "the validator is not strict");
}

#[test]
fn it_lists_what_cargo_builds_and_nothing_else() {
    let (_, value) = bill(&[]);
    let listed: BTreeSet<String> = value["components"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|part| format!("{} v{}", part["name"].as_str().unwrap(), part["version"].as_str().unwrap()))
        .collect();
    let tree = cargo(&[
        "tree",
        "--package=weft-cli",
        "--edges=normal,build",
        "--prefix=none",
        "--format={p}",
        "--target=x86_64-unknown-linux-gnu",
        "--no-dedupe",
    ]);
    let built: BTreeSet<String> = tree
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("weft-cli "))
        .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
        .collect();

    assert_eq!(listed, built);
    assert!(listed.iter().any(|name| name.starts_with("aws-lc-sys ")), "the crypto library is in it");
    assert!(!listed.iter().any(|name| name.starts_with("proptest ")), "what only tests need is not");
}

#[test]
fn every_reference_of_the_graph_is_a_component_and_everything_is_reached_from_the_binary() {
    let (_, value) = bill(&[]);
    let text = |value: &Value| value.as_str().expect("a reference").to_owned();
    let root = text(&value["metadata"]["component"]["bom-ref"]);
    let components = value["components"].as_array().expect("a list");
    let mut known: BTreeSet<String> = components.iter().map(|part| text(&part["bom-ref"])).collect();
    assert_eq!(known.len(), components.len(), "a reference stands for two components");
    known.insert(root.clone());

    let mut reached = BTreeSet::new();
    let mut next = vec![root];
    while let Some(reference) = next.pop() {
        if !reached.insert(reference.clone()) {
            continue;
        }
        let entries = value["dependencies"].as_array().expect("a list");
        let entry = entries.iter().find(|entry| entry["ref"] == *reference).expect("each has its entry");
        next.extend(entry["dependsOn"].as_array().expect("a list").iter().map(text));
    }

    assert_eq!(reached, known);
}

#[test]
fn the_same_sources_give_the_same_bytes_and_nothing_of_the_machine() {
    let epoch = [("SOURCE_DATE_EPOCH", "1800000000")];
    let (one, value) = bill(&epoch);

    assert_eq!(one, bill(&epoch).0);
    assert_eq!(value["metadata"]["timestamp"], "2027-01-15T08:00:00Z");
    let here = workspace_root().to_string_lossy().into_owned();
    assert!(!one.contains(&here) && !one.contains("file:"), "a path of this machine stands in it");
    assert_eq!(bill(&[]).0, bill(&[]).0, "without the variable it goes by the commit");
}

#[test]
fn a_date_that_is_none_is_refused() {
    for wrong in ["yesterday", "", "99999999999999999999"] {
        let output = sbom(&[("SOURCE_DATE_EPOCH", wrong)]);

        assert!(!output.status.success() && output.stdout.is_empty(), "{wrong:?} was taken");
        assert!(String::from_utf8_lossy(&output.stderr).contains("SOURCE_DATE_EPOCH"));
    }
}
