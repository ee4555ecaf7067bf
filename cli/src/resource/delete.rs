//! `weft delete`: named objects, or what files name, in one transaction.

use std::process::ExitCode;

use serde_json::json;
use weft_api::pb::management::{DeleteRequest, ObjectRef, ServiceStatus, StatusRequest};
use weft_policy::model::Kind;

use super::{
    apply::{confirm_within_ms, decisions_json, print_decisions, tell_waiting},
    input, object_ref, parse_what,
};
use crate::{
    args::{Global, changes::DeleteArgs},
    client,
    error::CliError,
    output::Output,
};

/// Deletes resources.
pub(crate) fn delete(args: &DeleteArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let refs = refs(args, global)?;
    if !args.dry_run && !global.yes && args.files.is_empty() && refs.len() > 1 {
        let names: Vec<_> = refs.iter().map(|r| format!("{}/{}", r.kind, r.name)).collect();
        if !output.confirm(&format!("delete {}?", names.join(", ")))? {
            return Err(CliError::usage("not confirmed: nothing was deleted", "weft delete … --yes"));
        }
    }
    let request = DeleteRequest {
        refs,
        dry_run: args.dry_run,
        expected_revision: 0,
        reason: args.change.reason.clone(),
        force: args.change.force,
        confirm_within_ms: confirm_within_ms(&args.change),
    };
    let (response, live) = client::block_on_cli(global, async |client| {
        let status = client.status(StatusRequest {}).await?.into_inner();
        let response = client.delete(request).await?.into_inner();
        let live = live_services(&response.deleted, &status.services);
        Ok((response, live))
    })?;
    for warning in response.warnings.iter().chain(&live) {
        output.warning(warning);
    }
    if output.is_structured() {
        let item = |r: &ObjectRef| json!({"kind": r.kind, "namespace": r.namespace, "name": r.name});
        let items: Vec<_> = response.deleted.iter().map(item).collect();
        output.object(&json!({
            "revision": response.revision, "deleted": items, "change": response.change,
            "confirmBy": response.confirm_by, "decisions": decisions_json(&response.decisions),
            "moreDecisions": response.more_decisions,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let verb = if args.dry_run { "would be deleted" } else { "deleted" };
    for found in &response.deleted {
        output.line(format!("{}/{} {verb}", found.kind, found.name))?;
    }
    tell_waiting(response.change, &response.confirm_by, output);
    print_decisions(&response.decisions, response.more_decisions, output)?;
    Ok(ExitCode::SUCCESS)
}

/// What to say of deleted services that programs serve now.
fn live_services(deleted: &[ObjectRef], services: &[ServiceStatus]) -> Vec<String> {
    let named = |service: &&ServiceStatus| {
        let is = |r: &ObjectRef| {
            r.kind == Kind::Service.name() && format!("{}.{}", r.name, r.namespace) == service.service
        };
        service.endpoints > 0 && deleted.iter().any(is)
    };
    let say = |service: &ServiceStatus| {
        format!(
            "programs serve {} now ({} endpoints); without the Service nobody can call them (W1011) until it is \
             applied again or they are started again",
            service.service, service.endpoints
        )
    };
    services.iter().filter(named).map(say).collect()
}

fn refs(args: &DeleteArgs, global: &Global) -> Result<Vec<ObjectRef>, CliError> {
    let mut refs = Vec::new();
    for (kind, name) in parse_what(&args.what)? {
        let name = name.ok_or_else(|| {
            CliError::usage(
                "a name is needed: a whole kind is never deleted at once",
                "weft delete service/charge",
            )
        })?;
        refs.push(object_ref(kind, &name, global));
    }
    if !args.files.is_empty() {
        for resource in input::read(&args.files, global)? {
            let key = resource.key();
            refs.push(ObjectRef {
                kind: key.kind.name().to_owned(),
                namespace: key.namespace.map(|n| n.to_string()).unwrap_or_default(),
                name: key.name.to_string(),
            });
        }
    }
    Ok(refs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deleted_service_that_programs_serve_is_told() {
        let status =
            |service: &str, endpoints| ServiceStatus { service: service.into(), endpoints, confirmed: 0 };
        let deleted = |kind: &str, name: &str| ObjectRef {
            kind: kind.into(),
            namespace: "shop".into(),
            name: name.into(),
        };
        let services = [status("charge.shop", 2), status("idle.shop", 0), status("other.shop", 1)];
        let told = live_services(&[deleted("Service", "charge"), deleted("Service", "idle")], &services);
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("programs serve charge.shop now (2 endpoints)"), "{told:?}");
        assert!(live_services(&[deleted("TCPRoute", "charge")], &services).is_empty());
    }
}
