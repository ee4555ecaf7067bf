//! `weft delete`: named objects, or what files name, in one transaction.

use std::process::ExitCode;

use serde_json::json;
use weft_api::pb::management::{DeleteRequest, ObjectRef};

use super::{input, object_ref, parse_what};
use crate::{
    args::{Global, groups::DeleteArgs},
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
    let request = DeleteRequest { refs, dry_run: args.dry_run, expected_revision: 0 };
    let response = client::block_on(global, async |client| client.delete(request).await)?;
    if output.is_structured() {
        let item = |r: &ObjectRef| json!({"kind": r.kind, "namespace": r.namespace, "name": r.name});
        let items: Vec<_> = response.deleted.iter().map(item).collect();
        output.object(&json!({"revision": response.revision, "deleted": items}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let verb = if args.dry_run { "would be deleted" } else { "deleted" };
    for found in &response.deleted {
        output.line(format!("{}/{} {verb}", found.kind, found.name))?;
    }
    Ok(ExitCode::SUCCESS)
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
