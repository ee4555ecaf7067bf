//! `weft token create | list | revoke`.

use std::process::ExitCode;

use serde_json::json;
use weft_api::pb::management::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest, TokenInfo};

use crate::{
    args::{
        Global,
        groups::{Purpose, Role, TokenArgs, TokenCommand, TokenCreateArgs},
    },
    client,
    error::CliError,
    output::Output,
    resource::namespace_of,
};

/// Dispatches `weft token …`.
pub(crate) fn token(args: &TokenArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    match &args.command {
        TokenCommand::Create(create_args) => create(create_args, global, output),
        TokenCommand::List => list(global, output),
        TokenCommand::Revoke { id } => {
            let request = RevokeTokenRequest { id: id.clone() };
            client::block_on(global, async |client| client.revoke_token(request).await)?;
            output.line(format!("token/{id} revoked"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The wire form of the arguments.
pub(crate) fn request(args: &TokenCreateArgs, global: &Global) -> Result<CreateTokenRequest, CliError> {
    let role = match (args.purpose, args.role) {
        (Purpose::User, None) => {
            return Err(CliError::usage("a person's token needs a role", "--role viewer|editor|admin"));
        }
        (Purpose::Agent, Some(_)) => {
            return Err(CliError::usage("an agent has no role", "leave out --role"));
        }
        (Purpose::Agent, None) => "",
        (Purpose::User, Some(Role::Viewer)) => "viewer",
        (Purpose::User, Some(Role::Editor)) => "editor",
        (Purpose::User, Some(Role::Admin)) => "admin",
    };
    Ok(CreateTokenRequest {
        purpose: if args.purpose == Purpose::Agent { "agent" } else { "user" }.to_owned(),
        node: args.node.clone().unwrap_or_default(),
        user: args.user.clone().unwrap_or_default(),
        namespace: namespace_of(global),
        services: args.service.clone(),
        role: role.to_owned(),
        ttl_seconds: args.ttl.as_secs(),
        replace: args.replace,
        uids: args.uid.clone(),
    })
}

fn create(args: &TokenCreateArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let request = request(args, global)?;
    let made = client::block_on(global, async |client| client.create_token(request).await)?;
    for enrollment in &made.enrollments {
        output.talk(format!("{}/{}.{} written", enrollment.kind, enrollment.name, enrollment.namespace));
    }
    output.talk(format!("token {} may be used once, until {}", made.id, made.expires));
    if output.is_structured() {
        output.object(&json!({"id": made.id, "token": made.token, "expires": made.expires}))?;
    } else {
        output.line(&made.token)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list(global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let found = client::block_on(global, async |client| client.list_tokens(ListTokensRequest {}).await)?;
    if output.is_structured() {
        let item = |t: &TokenInfo| {
            json!({"id": t.id, "for": t.purpose, "subject": t.subject, "state": t.state, "expires": t.expires,
                   "createdBy": t.created_by})
        };
        output.object(&json!({"items": found.tokens.iter().map(item).collect::<Vec<_>>()}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |t: TokenInfo| vec![t.id, t.purpose, t.subject, t.state, t.expires, t.created_by];
    let columns = ["ID", "FOR", "SUBJECT", "STATE", "EXPIRES", "CREATED_BY"];
    output.table(&columns, found.tokens.into_iter().map(row).collect())?;
    Ok(ExitCode::SUCCESS)
}
