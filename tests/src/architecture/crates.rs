//! The floors of the house: which crate may build on which.

use serde_json::Value;

/// What each crate builds on, exactly (architecture, "Floors"). The roof (`weft-tests`, `weft-benches`
/// and `weft-fuzz`) may use everything below it and is used by nothing but itself.
const FLOORS: &[(&str, &[&str])] = &[
    ("weft-identity", &[]),
    ("weft-policy", &["weft-identity"]),
    ("weft-overlay", &["weft-identity"]),
    ("weft-api", &["weft-identity", "weft-policy"]),
    ("weft-registry", &["weft-api", "weft-identity", "weft-policy"]),
    ("weft-node", &["weft-api", "weft-identity", "weft-overlay", "weft-policy"]),
    ("weft-cli", &["weft-api", "weft-identity", "weft-node", "weft-policy", "weft-registry"]),
];

/// The crates above every floor.
const ROOF: &[&str] = &["weft-tests", "weft-benches", "weft-fuzz"];

/// Checks the edges between workspace crates in the output of `cargo metadata --no-deps`.
pub fn edges(metadata: &Value) -> Vec<String> {
    let mut violations = Vec::new();
    for package in list(metadata, "packages") {
        let name = text(package, "name");
        if ROOF.contains(&name) {
            continue;
        }
        let Some((_, floor)) = FLOORS.iter().find(|(known, _)| *known == name) else {
            violations
                .push(format!("{name} has no floor: add it to FLOORS and to the architecture document"));
            continue;
        };
        violations.extend(edges_of(package, name, floor));
    }
    let missing =
        FLOORS.iter().filter(|(name, _)| !list(metadata, "packages").any(|p| text(p, "name") == *name));
    violations
        .extend(missing.map(|(name, _)| format!("{name} is a floor of the house and not in the workspace")));
    violations
}

/// Checks that `weft-policy` sees only the names of identity: neither its TLS nor its CA.
pub fn policy_sees_only_names(metadata: &Value) -> Vec<String> {
    let policy = list(metadata, "packages").filter(|package| text(package, "name") == "weft-policy");
    let edges = policy.flat_map(|package| list(package, "dependencies"));
    edges
        .filter(|edge| text(edge, "name") == "weft-identity" && is_built(edge))
        .filter(|edge| edge["uses_default_features"] != false || list(edge, "features").next().is_some())
        .map(|_| {
            "weft-policy depends on weft-identity with features: use `default-features = false` and none, \
             because authorization needs who, never how it was proven"
                .to_owned()
        })
        .collect()
}

fn edges_of(package: &Value, name: &str, floor: &[&str]) -> Vec<String> {
    let inside = |edge: &&Value| text(edge, "name").starts_with("weft-");
    let built: Vec<&str> = list(package, "dependencies")
        .filter(inside)
        .filter(|e| is_built(e))
        .map(|e| text(e, "name"))
        .collect();
    let tested =
        list(package, "dependencies").filter(inside).filter(|e| !is_built(e)).map(|e| text(e, "name"));

    let climbing = built.iter().copied().filter(|target| !floor.contains(target)).map(|target| {
        format!("{name} -> {target} is not an edge of the house: move the code to the floor that may have it")
    });
    let gone = floor.iter().filter(|target| !built.contains(target)).map(|target| {
        format!(
            "{name} no longer uses {target}: take the edge out of FLOORS and of the architecture document"
        )
    });
    let test_climbing = tested.filter(|target| !floor.contains(target) && *target != name).map(|target| {
        format!("{name} -> {target} (for tests) climbs: a test over several planes belongs in `tests/`")
    });
    climbing.chain(gone).chain(test_climbing).collect()
}

/// Whether a dependency is part of the built crate (not only of its tests).
fn is_built(edge: &Value) -> bool {
    edge["kind"] != "dev"
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A house in order, to be broken by each test.
    fn house() -> Value {
        let packages = FLOORS.iter().map(|(name, floor)| {
            let dependencies: Vec<Value> = floor
                .iter()
                .map(|target| json!({"name": target, "kind": null, "uses_default_features": false, "features": []}))
                .collect();
            json!({"name": name, "dependencies": dependencies})
        });
        json!({"packages": packages.collect::<Vec<_>>()})
    }

    fn add_edge(house: &mut Value, from: &str, to: &str, kind: Value) {
        let packages = house["packages"].as_array_mut().unwrap();
        let package = packages.iter_mut().find(|package| package["name"] == from).unwrap();
        package["dependencies"].as_array_mut().unwrap().push(json!({"name": to, "kind": kind}));
    }

    #[test]
    fn a_house_in_order_passes() {
        assert_eq!(edges(&house()), Vec::<String>::new());
        assert_eq!(policy_sees_only_names(&house()), Vec::<String>::new());
    }

    #[test]
    fn an_edge_between_the_planes_is_found() {
        let mut house = house();
        add_edge(&mut house, "weft-node", "weft-registry", Value::Null);

        assert!(edges(&house)[0].starts_with("weft-node -> weft-registry is not an edge"));
    }

    #[test]
    fn an_edge_for_tests_may_not_climb_either() {
        let mut house = house();
        add_edge(&mut house, "weft-overlay", "weft-node", json!("dev"));
        add_edge(&mut house, "weft-overlay", "weft-identity", json!("dev"));

        assert_eq!(edges(&house).len(), 1);
    }

    #[test]
    fn a_build_edge_counts_as_an_edge() {
        let mut house = house();
        add_edge(&mut house, "weft-identity", "weft-policy", json!("build"));

        assert_eq!(edges(&house).len(), 1);
    }

    #[test]
    fn a_lost_edge_and_an_unknown_or_missing_crate_are_found() {
        let mut house = house();
        house["packages"][1]["dependencies"] = json!([]);
        house["packages"][6] = json!({"name": "weft-new", "dependencies": []});
        let found = edges(&house).join("\n");

        assert!(found.contains("weft-policy no longer uses weft-identity"));
        assert!(found.contains("weft-new has no floor"));
        assert!(found.contains("weft-cli is a floor of the house and not"));
    }

    #[test]
    fn policy_with_the_tls_of_identity_is_found() {
        let mut with_defaults = house();
        with_defaults["packages"][1]["dependencies"][0]["uses_default_features"] = json!(true);
        let mut with_feature = house();
        with_feature["packages"][1]["dependencies"][0]["features"] = json!(["tls"]);

        assert_eq!(policy_sees_only_names(&with_defaults).len(), 1);
        assert_eq!(policy_sees_only_names(&with_feature).len(), 1);
    }
}
