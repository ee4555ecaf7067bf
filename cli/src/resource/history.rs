//! `weft history`: every change of a resource with its author, time and reason.

use std::process::ExitCode;

use serde_json::{Value, json};
use weft_api::{
    manifest,
    pb::management::{HistoryRequest, HistoryResponse, ObjectRef, ObjectRevision},
};

use super::{object_ref, parse_document, parse_what};
use crate::{
    args::{Format, Global, changes::HistoryArgs},
    client,
    error::CliError,
    output::Output,
};

/// The columns, stable (cli.md 4.2).
const COLUMNS: [&str; 5] = ["REVISION", "TIME", "AUTHOR", "CHANGE", "REASON"];
/// What `-o wide` adds.
const WIDE: [&str; 1] = ["CONFIRM_BY"];

/// Shows the revisions of a resource, or the resource at one of them.
pub(crate) fn history(args: &HistoryArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let mut named = refs(&args.what, "weft history service/charge", global)?;
    if named.len() > 1 {
        return Err(CliError::usage("a history is that of one resource", "weft history service/charge"));
    }
    let request = HistoryRequest { r#ref: named.pop(), revision: args.revision };
    let response = client::block_on(global, async |client| client.history(request).await)?;
    match args.revision {
        Some(revision) => print_object(&response, revision, output)?,
        None => print(&response, output)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The resources that the arguments name, each by its name.
pub(super) fn refs(what: &[String], example: &str, global: &Global) -> Result<Vec<ObjectRef>, CliError> {
    let named = parse_what(what)?.into_iter().map(|(kind, name)| {
        let name = name.ok_or_else(|| CliError::usage("a name is needed", example))?;
        Ok(object_ref(kind, &name, global))
    });
    named.collect()
}

fn print(response: &HistoryResponse, output: &Output) -> Result<(), CliError> {
    if output.is_structured() {
        let items: Vec<_> = response.revisions.iter().map(as_json).collect();
        return output.object(&json!({"items": items}));
    }
    if output.format() == Format::Name {
        return response.revisions.iter().try_for_each(|r| output.line(format!("revision/{}", r.revision)));
    }
    let wide = output.format() == Format::Wide;
    let columns: Vec<_> = COLUMNS.iter().chain(WIDE.iter().filter(|_| wide)).copied().collect();
    output.table(&columns, response.revisions.iter().map(|revision| row(revision, wide)).collect())
}

fn row(revision: &ObjectRevision, wide: bool) -> Vec<String> {
    let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let mut cells = vec![
        revision.revision.to_string(),
        dash(&revision.time),
        dash(&revision.author),
        change(revision),
        dash(&revision.reason),
    ];
    if wide {
        cells.push(dash(&revision.confirm_by));
    }
    cells
}

/// What became of the object, and by what where that is not an apply or a delete.
fn change(revision: &ObjectRevision) -> String {
    let how = match revision.verb.as_str() {
        "rollback" if revision.of > 0 => format!(" (rollback to {})", revision.of),
        "rollback" => " (rollback)".to_owned(),
        "unconfirmed" => format!(" (change {} taken back)", revision.of),
        "token" | "start" => format!(" ({})", revision.verb),
        _ => String::new(),
    };
    format!("{}{how}", revision.action)
}

fn as_json(revision: &ObjectRevision) -> Value {
    json!({
        "revision": revision.revision, "time": revision.time, "author": revision.author,
        "reason": revision.reason, "action": revision.action, "verb": revision.verb, "of": revision.of,
        "confirmBy": revision.confirm_by,
    })
}

/// The object as it stood, in YAML unless JSON is asked for.
fn print_object(response: &HistoryResponse, revision: u64, output: &Output) -> Result<(), CliError> {
    let document = response.revisions.first().and_then(|found| found.document.as_ref());
    let Some(document) = document else {
        output.talk(format!("it did not exist at revision {revision}"));
        return Ok(());
    };
    let object = parse_document(&document.json)?;
    if output.format() == Format::Json {
        return output.object(&object);
    }
    output.line(manifest::value_to_yaml(&object).map_err(CliError::internal)?.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(verb: &str, action: &str, of: u64) -> ObjectRevision {
        ObjectRevision {
            revision: 7,
            time: "2026-11-20T09:12:00Z".to_owned(),
            author: "spiffe://corp.example/user/ada".to_owned(),
            reason: "ticket 7".to_owned(),
            action: action.to_owned(),
            verb: verb.to_owned(),
            of,
            ..ObjectRevision::default()
        }
    }

    #[test]
    fn the_columns_and_the_json_of_a_revision_are_stable() {
        assert_eq!(COLUMNS, ["REVISION", "TIME", "AUTHOR", "CHANGE", "REASON"]);
        let found = revision("rollback", "configured", 3);
        let cells = [
            "7",
            "2026-11-20T09:12:00Z",
            "spiffe://corp.example/user/ada",
            "configured (rollback to 3)",
            "ticket 7",
        ];
        assert_eq!(row(&found, false), cells);
        assert_eq!(row(&found, true)[5], "-");
        assert_eq!(
            as_json(&found).to_string(),
            r#"{"revision":7,"time":"2026-11-20T09:12:00Z","author":"spiffe://corp.example/user/ada","reason":"ticket 7","action":"configured","verb":"rollback","of":3,"confirmBy":""}"#
        );
    }

    #[test]
    fn a_change_says_what_made_it_where_that_is_not_plain() {
        for (verb, of, expected) in [
            ("apply", 0, "configured"),
            ("delete", 0, "configured"),
            ("rollback", 0, "configured (rollback)"),
            ("unconfirmed", 12, "configured (change 12 taken back)"),
            ("token", 0, "configured (token)"),
        ] {
            assert_eq!(change(&revision(verb, "configured", of)), expected);
        }
        let first = ObjectRevision { action: "before".to_owned(), ..ObjectRevision::default() };
        assert_eq!(row(&first, false), ["0", "-", "-", "before", "-"]);
    }
}
