//! `weft get KIND -w`: the list, and every change from then on.

use std::{collections::BTreeMap, process::ExitCode};

use serde_json::{Value, json};
use weft_api::pb::management::{WatchEvent, WatchRequest};
use weft_policy::model::Kind;

use super::{
    get::{Listing, list_all, print_list, scope},
    parse_document,
};
use crate::{
    args::{Format, Global},
    client,
    error::CliError,
    output::Output,
};

/// Prints the list, then each change: a line, or with `-o json` one object a line.
pub(super) fn watch(
    kind: Kind,
    selector: &BTreeMap<String, String>,
    global: &Global,
    output: &Output,
) -> Result<ExitCode, CliError> {
    let json = match output.format() {
        Format::Json => true,
        Format::Table | Format::Wide => false,
        Format::Yaml | Format::Name => {
            return Err(CliError::usage("-w prints a table or JSON lines", "weft get workloads -w -o json"));
        }
    };
    client::run(async {
        let mut client = client::server(global).await?;
        let listed = client::within(global.timeout, list_all(&mut client, kind, selector, global)).await?;
        let request = WatchRequest {
            kind: kind.name().to_owned(),
            namespace: scope(kind, global),
            all_namespaces: global.all_namespaces,
            from_revision: listed.revision + 1,
        };
        print_listing(kind, &listed, json, global, output)?;
        let mut events = client.watch(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            let object = event.document.as_ref().map(|d| parse_document(&d.json)).transpose()?;
            if object.as_ref().is_none_or(|object| is_selected(object, selector)) {
                print_event(&event, object.as_ref(), json, output)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn print_listing(
    kind: Kind,
    listed: &Listing,
    json: bool,
    global: &Global,
    output: &Output,
) -> Result<(), CliError> {
    if !json {
        return print_list(kind, &listed.objects, global, output);
    }
    for object in &listed.objects {
        output.json_line(&json!({"type": "put", "revision": listed.revision, "object": object}))?;
    }
    Ok(())
}

fn print_event(
    event: &WatchEvent,
    object: Option<&Value>,
    json: bool,
    output: &Output,
) -> Result<(), CliError> {
    let named = event.r#ref.clone().unwrap_or_default();
    if !json {
        return output.line(format!("{:<8}{}  revision {}", event.r#type, named.name, event.revision));
    }
    output.json_line(&json!({
        "type": event.r#type, "revision": event.revision, "object": object,
        "ref": {"kind": named.kind, "namespace": named.namespace, "name": named.name},
    }))
}

/// Whether a changed object is one of those asked for. Of a deleted one only the name is known: it is told.
fn is_selected(object: &Value, selector: &BTreeMap<String, String>) -> bool {
    let labels = object.pointer("/metadata/labels");
    selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(&json!(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_selected_by_its_labels() {
        let object = json!({"metadata": {"labels": {"app": "charge", "tier": "b"}}});
        let selector = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert!(is_selected(&object, &selector(&[])));
        assert!(is_selected(&object, &selector(&[("app", "charge"), ("tier", "b")])));
        assert!(!is_selected(&object, &selector(&[("app", "order")])));
        assert!(!is_selected(&json!({"metadata": {}}), &selector(&[("app", "charge")])));
    }
}
