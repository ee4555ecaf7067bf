//! `weft get`: one object or a list; `-w` goes on with its changes ([`super::watch`]).

use std::{collections::BTreeMap, process::ExitCode};

use serde_json::{Value, json};
use weft_api::pb::management::{GetRequest, ListRequest, StatusRequest};
use weft_policy::model::Kind;

use super::{columns, namespace_of, object_ref, parse_document, parse_what, watch};
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
    let agents = matches!(args.what.as_slice(), [only] if only == "agents" || only == "agent");
    let what = if agents { Vec::new() } else { parse_what(&args.what)? };
    let selector = parse_selector(args.selector.as_deref())?;
    if args.watch {
        let [(kind, None)] = what.as_slice() else {
            return Err(CliError::usage("-w follows the list of one kind", "weft get workloads -w"));
        };
        return watch::watch(*kind, &selector, global, output);
    }
    if agents {
        return show_agents(global, output);
    }
    client::block_on_cli(global, async |client| {
        for (kind, name) in &what {
            match name {
                Some(name) => show_one(client, *kind, name, global, output).await?,
                None => show_list(client, *kind, &selector, global, output).await?,
            }
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

/// A whole list, and the revision from which on changes may be missing in it.
pub(crate) struct Listing {
    pub(crate) objects: Vec<Value>,
    pub(crate) revision: u64,
}

/// Reads a whole list, page by page.
pub(crate) async fn list_all(
    client: &mut Management,
    kind: Kind,
    selector: &BTreeMap<String, String>,
    global: &Global,
) -> Result<Listing, CliError> {
    let mut listing = Listing { objects: Vec::new(), revision: 0 };
    let mut page_token = String::new();
    loop {
        let request = ListRequest {
            kind: kind.name().to_owned(),
            namespace: scope(kind, global),
            all_namespaces: global.all_namespaces,
            selector: selector.clone(),
            page_size: PAGE_SIZE,
            page_token,
        };
        let page = client.list(request).await?.into_inner();
        if listing.objects.is_empty() {
            listing.revision = page.revision;
        }
        for document in &page.documents {
            listing.objects.push(parse_document(&document.json)?);
        }
        if page.next_page_token.is_empty() {
            return Ok(listing);
        }
        page_token = page.next_page_token;
    }
}

/// The namespace that a list is of: none where all are asked for, or where the kind has none.
pub(super) fn scope(kind: Kind, global: &Global) -> String {
    if kind.is_namespaced() && !global.all_namespaces { namespace_of(global) } else { String::new() }
}

async fn show_list(
    client: &mut Management,
    kind: Kind,
    selector: &BTreeMap<String, String>,
    global: &Global,
    output: &Output,
) -> Result<(), CliError> {
    let objects = list_all(client, kind, selector, global).await?.objects;
    if output.is_structured() {
        return output.object(&listed(objects));
    }
    print_list(kind, &objects, global, output)
}

/// A list for programs, with its age when the server's store does not answer.
fn listed(items: Vec<Value>) -> Value {
    let mut list = json!({ "items": items });
    if let Some(age) = client::stale_for() {
        list["staleSeconds"] = age.as_secs().into();
    }
    list
}

/// A table, or the word that there is nothing.
pub(super) fn print_list(
    kind: Kind,
    objects: &[Value],
    global: &Global,
    output: &Output,
) -> Result<(), CliError> {
    if objects.is_empty() {
        let place = if global.all_namespaces || !kind.is_namespaced() {
            "the mesh".to_owned()
        } else {
            format!("namespace {}", namespace_of(global))
        };
        output.talk(format!("no {} in {place}", kind.plural()));
        return Ok(());
    }
    print_table(kind, objects, global, output)
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

/// `weft get agents`: revision, lag, last nack of each agent.
fn show_agents(global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let status = client::block_on(global, async |client| client.status(StatusRequest {}).await)?;
    if output.is_structured() {
        let items: Vec<_> = status.agents.iter().map(crate::observe::status::agent_json).collect();
        output.object(&listed(items))?;
        return Ok(ExitCode::SUCCESS);
    }
    if output.format() == Format::Name {
        for agent in &status.agents {
            output.line(format!("agent/{}", agent.node))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let row = |agent: &weft_api::pb::management::AgentStatus| {
        // Only the server that it is connected to knows.
        let is_known = agent.server.is_empty() || agent.server == status.instance;
        let lag = status.revision.saturating_sub(agent.acked_revision);
        vec![
            agent.node.clone(),
            crate::observe::status::state_of(agent).to_owned(),
            if is_known { agent.acked_revision.to_string() } else { "-".to_owned() },
            if is_known { lag.to_string() } else { "-".to_owned() },
            agent.workloads.to_string(),
            agent.version.clone(),
            if agent.last_nack.is_empty() { "-".to_owned() } else { agent.last_nack.clone() },
            if agent.server.is_empty() { "-".to_owned() } else { agent.server.clone() },
        ]
    };
    let columns = ["NODE", "STATE", "REVISION", "LAG", "WORKLOADS", "VERSION", "LAST_NACK", "SERVER"];
    output.table(&columns, status.agents.iter().map(row).collect())?;
    Ok(ExitCode::SUCCESS)
}
