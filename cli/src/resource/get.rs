//! `weft get`: one object, a list, or a stream of changes.

use std::{collections::BTreeMap, process::ExitCode};

use serde_json::{Value, json};
use weft_api::pb::management::{GetRequest, ListRequest, StatusRequest, WatchRequest};
use weft_policy::model::Kind;

use super::{columns, namespace_of, object_ref, parse_document, parse_what};
use crate::{
    args::{Format, Global, groups::GetArgs},
    client::{self, Management},
    error::CliError,
    output::Output,
};

/// The largest page a server gives (security.md 9.3).
const PAGE_SIZE: u32 = 500;

/// Shows resources.
pub(crate) fn get(args: &GetArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    if matches!(args.what.as_slice(), [only] if only == "agents" || only == "agent") {
        return agents(global, output);
    }
    let what = parse_what(&args.what)?;
    let selector = parse_selector(args.selector.as_deref())?;
    let watch = args.watch;
    client::block_on_cli(global, async |client| {
        for (kind, name) in &what {
            match name {
                Some(name) => show_one(client, *kind, name, global, output).await?,
                None => show_list(client, *kind, &selector, global, output).await?,
            }
        }
        if watch && let [(kind, None)] = what.as_slice() {
            watch_kind(client, *kind, global, output).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn parse_selector(text: Option<&str>) -> Result<BTreeMap<String, String>, CliError> {
    let pair = |part: &str| {
        let (key, value) = part.split_once('=')?;
        Some((key.trim().to_owned(), value.trim().to_owned()))
    };
    let bad = || CliError::usage("a selector is key=value,…", "weft get workloads -l app=charge");
    text.map_or_else(|| Ok(BTreeMap::new()), |t| t.split(',').map(|p| pair(p).ok_or_else(bad)).collect())
}

async fn show_one(
    client: &mut Management,
    kind: Kind,
    name: &str,
    global: &Global,
    output: &Output,
) -> Result<(), CliError> {
    let request = GetRequest { r#ref: Some(object_ref(kind, name, global)) };
    let response = client.get(request).await?.into_inner();
    let object = parse_document(&response.document.unwrap_or_default().json)?;
    if output.is_structured() {
        return output.object(&object);
    }
    print_table(kind, &[object], global, output)
}

/// Reads a whole list, page by page.
pub(crate) async fn list_all(
    client: &mut Management,
    kind: Kind,
    selector: &BTreeMap<String, String>,
    global: &Global,
) -> Result<Vec<Value>, CliError> {
    let mut objects = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListRequest {
            kind: kind.name().to_owned(),
            namespace: if kind.is_namespaced() { namespace_of(global) } else { String::new() },
            all_namespaces: global.all_namespaces,
            selector: selector.clone(),
            page_size: PAGE_SIZE,
            page_token,
        };
        let page = client.list(request).await?.into_inner();
        for document in &page.documents {
            objects.push(parse_document(&document.json)?);
        }
        if page.next_page_token.is_empty() {
            return Ok(objects);
        }
        page_token = page.next_page_token;
    }
}

async fn show_list(
    client: &mut Management,
    kind: Kind,
    selector: &BTreeMap<String, String>,
    global: &Global,
    output: &Output,
) -> Result<(), CliError> {
    let objects = list_all(client, kind, selector, global).await?;
    if output.is_structured() {
        return output.object(&json!({ "items": objects }));
    }
    if objects.is_empty() {
        let place = if global.all_namespaces || !kind.is_namespaced() {
            "the mesh".to_owned()
        } else {
            format!("namespace {}", namespace_of(global))
        };
        output.talk(format!("no {} in {place}", kind.plural()));
        return Ok(());
    }
    print_table(kind, &objects, global, output)
}

fn print_table(kind: Kind, objects: &[Value], global: &Global, output: &Output) -> Result<(), CliError> {
    if output.format() == Format::Name {
        for object in objects {
            let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
            output.line(format!("{}/{name}", kind.name().to_lowercase()))?;
        }
        return Ok(());
    }
    let wide = output.format() == Format::Wide;
    let rows = objects.iter().map(|object| columns::row(kind, object, global.all_namespaces, wide)).collect();
    output.table(&columns::head(kind, global.all_namespaces, wide), rows)
}

async fn watch_kind(
    client: &mut Management,
    kind: Kind,
    global: &Global,
    output: &Output,
) -> Result<(), CliError> {
    let request = WatchRequest {
        kind: kind.name().to_owned(),
        namespace: if kind.is_namespaced() { namespace_of(global) } else { String::new() },
        all_namespaces: global.all_namespaces,
        from_revision: 0,
    };
    let mut events = client.watch(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        let object = event.document.map(|d| parse_document(&d.json)).transpose()?;
        if output.is_structured() {
            let line = json!({"type": event.r#type, "revision": event.revision, "object": object});
            output.json_line(&line)?;
            continue;
        }
        let name = event.r#ref.map(|r| r.name).unwrap_or_default();
        output.line(format!("{:<8}{name}  revision {}", event.r#type, event.revision))?;
    }
    Ok(())
}

/// `weft get agents`: revision, lag, last nack of each agent.
fn agents(global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let status = client::block_on(global, async |client| client.status(StatusRequest {}).await)?;
    if output.is_structured() {
        let items: Vec<_> = status.agents.iter().map(crate::observe::status::agent_json).collect();
        output.object(&json!({ "items": items }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |agent: &weft_api::pb::management::AgentStatus| {
        vec![
            agent.node.clone(),
            if agent.connected { "connected" } else { "away" }.to_owned(),
            agent.acked_revision.to_string(),
            status.revision.saturating_sub(agent.acked_revision).to_string(),
            agent.workloads.to_string(),
            agent.version.clone(),
            if agent.last_nack.is_empty() { "-".to_owned() } else { agent.last_nack.clone() },
        ]
    };
    let columns = ["NODE", "STATE", "REVISION", "LAG", "WORKLOADS", "VERSION", "LAST_NACK"];
    output.table(&columns, status.agents.iter().map(row).collect())?;
    Ok(ExitCode::SUCCESS)
}
