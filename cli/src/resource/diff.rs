//! `weft diff`: files against what is stored. Exit 0 same, 1 different, more on errors.

use std::process::ExitCode;

use serde_json::Value;
use weft_api::{manifest, pb::management::GetRequest};

use super::{input, parse_document};
use crate::{
    args::{Global, groups::DiffArgs},
    client,
    error::CliError,
    output::Output,
};

/// Compares files with what is stored.
pub(crate) fn diff(args: &DiffArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let resources = input::read(&args.files, global)?;
    let mut different = false;
    client::block_on_cli(global, async |client| {
        for resource in &resources {
            let key = resource.key();
            let reference = weft_api::pb::management::ObjectRef {
                kind: key.kind.name().to_owned(),
                namespace: key.namespace.as_ref().map(ToString::to_string).unwrap_or_default(),
                name: key.name.to_string(),
            };
            let stored = match client.get(GetRequest { r#ref: Some(reference) }).await {
                Ok(response) => {
                    Some(parse_document(&response.into_inner().document.unwrap_or_default().json)?)
                }
                Err(status) if status.code() == tonic::Code::NotFound => None,
                Err(status) => return Err(status.into()),
            };
            let old = stored.map(without_revision).map(|v| yaml(&v)).transpose()?.unwrap_or_default();
            let new = yaml(&without_revision(manifest::to_json(resource)))?;
            if old != new {
                different = true;
                output.line(format!("--- stored {key}"))?;
                output.line(format!("+++ file   {key}"))?;
                for line in line_diff(&old, &new) {
                    output.line(line)?;
                }
            }
        }
        Ok(())
    })?;
    Ok(if different { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn yaml(value: &Value) -> Result<String, CliError> {
    manifest::value_to_yaml(value).map_err(CliError::internal)
}

/// What the server adds is not a difference.
fn without_revision(mut value: Value) -> Value {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    value
}

/// Lines removed and added, by the longest common subsequence. Manifests are short, so the square table is small.
fn line_diff(old: &str, new: &str) -> Vec<String> {
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let mut common = vec![vec![0_u32; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push(format!("  {}", old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(format!("- {}", old[i]));
            i += 1;
        } else {
            lines.push(format!("+ {}", new[j]));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_line_is_one_removed_and_one_added() {
        assert_eq!(line_diff("a\nb\nc", "a\nx\nc"), ["  a", "- b", "+ x", "  c"]);
        assert_eq!(line_diff("", "a"), ["+ a"]);
        assert_eq!(line_diff("a", ""), ["- a"]);
    }
}
