//! What the manifests and the configuration of the tools promise.

use super::tree::BANNED;

/// Methods that `clippy.toml` must forbid; the reasons stand there.
const DISALLOWED: &[&str] = &[
    "std::time::Instant::now",
    "std::time::SystemTime::now",
    "rand::rng",
    "tokio::spawn",
    "quinn::Connecting::into_0rtt",
    "std::env::set_var",
];

/// Checks `clippy.toml`: every method of the house rules is forbidden, and each entry has a reason.
pub fn disallowed_methods_have_reasons(clippy: &str) -> Vec<String> {
    let entries: Vec<(&str, &str)> = array(clippy, "disallowed-methods")
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with(['{', '"']))
        .map(|line| (value(line, "path").unwrap_or(line), value(line, "reason").unwrap_or_default()))
        .collect();
    let missing = DISALLOWED
        .iter()
        .filter(|method| !entries.iter().any(|(path, _)| path == *method))
        .map(|method| format!("clippy.toml does not disallow {method}: add it with its reason"));
    let unexplained = entries
        .iter()
        .filter(|(_, reason)| reason.trim().is_empty())
        .map(|(path, _)| format!("clippy.toml disallows {path} without a reason: add `reason = \"…\"`"));
    missing.chain(unexplained).collect()
}

/// Checks one member's manifest at `path`: the workspace's lints, and versions only in the workspace.
pub fn member(path: &str, manifest: &str) -> Vec<String> {
    let mut violations = Vec::new();
    let mut section = "";
    let mut inherits_lints = false;
    for line in manifest.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
        } else if section == "lints" {
            inherits_lints |= line.replace(' ', "") == "workspace=true";
        } else if section.ends_with("dependencies") && !is_inherited(line) {
            violations.push(format!("{path}: `{line}` has a version of its own: use `workspace = true`"));
        }
    }
    if !inherits_lints {
        violations.push(format!(
            "{path}: the lints of the workspace are not inherited: add `[lints] workspace = true`"
        ));
    }
    violations
}

/// Checks that `deny.toml` bans what the tree may not contain, so that both tools agree.
pub fn deny_names_the_bans(deny: &str) -> Vec<String> {
    let bans = array(deny, "deny");
    let missing = BANNED.iter().filter(|(name, _)| !bans.contains(&format!("\"{name}\"")));
    missing.map(|(name, _)| format!("deny.toml does not ban {name}: add it to `[bans] deny`")).collect()
}

/// Whether a dependency line takes its version from the workspace.
fn is_inherited(line: &str) -> bool {
    let line = line.replace(' ', "");
    line.contains(".workspace=true") || line.contains("workspace=true,") || line.contains("workspace=true}")
}

/// The text of the array `name = [ … ]` up to the line with its closing bracket.
fn array<'a>(toml: &'a str, name: &str) -> &'a str {
    let start = format!("\n{name} = [");
    let Some(at) = toml.find(&start).or_else(|| toml.starts_with(start.trim_start()).then_some(0)) else {
        return "";
    };
    let body = &toml[at + start.len()..];
    &body[..body.find("\n]").unwrap_or(body.len())]
}

/// The string of `key = "…"` in an inline table.
fn value<'a>(table: &'a str, key: &str) -> Option<&'a str> {
    let after = table.split_once(&format!("{key} = \""))?.1;
    Some(after.split_once('"')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disallowed_method_without_reason_or_not_disallowed_is_found() {
        let clippy = "disallowed-methods = [\n  { path = \"rand::rng\", reason = \"\" },\n  \"std::env::set_var\",\n  \
                      { path = \"tokio::spawn\", reason = \"owner\" },\n]\n";
        let found = disallowed_methods_have_reasons(clippy).join("\n");

        assert!(found.contains("disallows rand::rng without a reason"));
        assert!(found.contains("set_var\", without a reason"));
        assert!(found.contains("does not disallow std::time::Instant::now"));
        assert!(!found.contains("tokio::spawn"));
    }

    #[test]
    fn a_member_with_its_own_version_or_without_the_lints_is_found() {
        let manifest = "[dependencies]\nserde = \"1\"\nbytes.workspace = true\nx = { workspace = true, features = [] }\n";
        let found = member("node/Cargo.toml", manifest);

        assert_eq!(found.len(), 2);
        assert!(found[0].contains("`serde = \"1\"`"));
        assert_eq!(
            member("x", "[lints]\nworkspace = true\n[dependencies]\ny = { workspace = true }"),
            [""; 0]
        );
    }

    #[test]
    fn a_ban_that_deny_does_not_know_is_found() {
        let found = deny_names_the_bans("[bans]\ndeny = [\n  { crate = \"ring\" },\n]\n");

        assert_eq!(found.len(), BANNED.len() - 1);
    }
}
