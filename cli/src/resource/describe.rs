//! `weft describe`: what a resource is, and what it does now.

use std::{collections::BTreeMap, process::ExitCode};

use serde_json::{Value, json};
use weft_api::{
    manifest,
    pb::management::{GetRequest, StatusRequest},
};
use weft_policy::model::Kind;

use super::{get::list_all, object_ref, parse_document, parse_what};
use crate::{
    args::{Global, groups::DescribeArgs},
    client::{self, Management},
    error::CliError,
    output::Output,
};

/// Describes resources.
pub(crate) fn describe(args: &DescribeArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let what = parse_what(&args.what)?;
    client::block_on_cli(global, async |client| {
        for (kind, name) in &what {
            let name = name
                .as_deref()
                .ok_or_else(|| CliError::usage("a name is needed", "weft describe service/charge"))?;
            one(client, *kind, name, global, output).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn one(
    client: &mut Management,
    kind: Kind,
    name: &str,
    global: &Global,
    output: &Output,
) -> Result<(), CliError> {
    let reference = object_ref(kind, name, global);
    let namespace = reference.namespace.clone();
    let short = reference.name.clone();
    let response = client.get(GetRequest { r#ref: Some(reference) }).await?.into_inner();
    let object = parse_document(&response.document.unwrap_or_default().json)?;
    let effect = if kind == Kind::Service {
        service_effect(client, &short, &namespace, global).await?
    } else {
        json!({})
    };
    if output.is_structured() {
        return output.object(&json!({"object": object, "now": effect}));
    }
    let text = manifest::value_to_yaml(&object).map_err(CliError::internal)?;
    output.line(text.trim_end())?;
    if kind == Kind::Service {
        output.line("")?;
        output.line("now:")?;
        let text = manifest::value_to_yaml(&effect).map_err(CliError::internal)?;
        for line in text.trim_end().lines() {
            output.line(format!("  {line}"))?;
        }
    }
    Ok(())
}

/// Endpoints and policies in force for a service.
async fn service_effect(
    client: &mut Management,
    name: &str,
    namespace: &str,
    global: &Global,
) -> Result<Value, CliError> {
    let status = client.status(StatusRequest {}).await?.into_inner();
    let full = format!("{name}.{namespace}");
    let counts = status.services.iter().find(|service| service.service == full);
    let scope = Global { namespace: Some(namespace.to_owned()), all_namespaces: false, ..global.clone() };
    let policies = list_all(client, Kind::AuthorizationPolicy, &BTreeMap::new(), &scope).await?.objects;
    let names: Vec<_> = policies.iter().filter(|p| targets(p, name)).filter_map(summary).collect();
    let workloads = list_all(client, Kind::Workload, &BTreeMap::new(), &scope).await?.objects;
    let serving = workloads.iter().filter(|w| serves(w, name)).filter_map(|w| {
        let node = w.pointer("/spec/node")?.as_str()?;
        Some(json!(format!("{}@{node}", w.pointer("/metadata/name")?.as_str()?)))
    });
    Ok(json!({
        "endpoints": counts.map_or(0, |c| c.endpoints),
        "confirmed": counts.map_or(0, |c| c.confirmed),
        "workloads": serving.collect::<Vec<_>>(),
        "policies": names,
    }))
}

fn targets(policy: &Value, service: &str) -> bool {
    let refs = policy.pointer("/spec/targetRefs").and_then(Value::as_array);
    refs.is_some_and(|refs| {
        refs.iter().any(|r| r["kind"] == "Namespace" || (r["kind"] == "Service" && r["name"] == service))
    })
}

fn summary(policy: &Value) -> Option<Value> {
    let part = |pointer: &str| policy.pointer(pointer).and_then(Value::as_str);
    Some(json!(format!(
        "{} {} ({})",
        part("/spec/action")?,
        part("/metadata/name")?,
        part("/spec/mode").unwrap_or("Enforce")
    )))
}

fn serves(workload: &Value, service: &str) -> bool {
    let services = workload.pointer("/spec/services").and_then(Value::as_array);
    services.is_some_and(|services| services.iter().any(|s| s == service))
}
