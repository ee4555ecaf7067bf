//! `weft token create | list | revoke`.

use std::process::ExitCode;

use serde_json::json;
use weft_api::{
    pb::management::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest, TokenInfo},
    token::JoinToken,
};
use weft_policy::code;

use crate::{
    args::{
        Global,
        groups::{Purpose, Role, TokenArgs, TokenCommand, TokenCreateArgs},
    },
    client,
    error::CliError,
    output::Output,
    resource::namespace_of,
    run::settings::Flags,
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
        (Purpose::Server, Some(_)) => {
            return Err(CliError::usage("a server has no role", "leave out --role"));
        }
        (Purpose::Agent | Purpose::Server, None) => "",
        (Purpose::User, Some(Role::Viewer)) => "viewer",
        (Purpose::User, Some(Role::Editor)) => "editor",
        (Purpose::User, Some(Role::Admin)) => "admin",
    };
    Ok(CreateTokenRequest {
        purpose: match args.purpose {
            Purpose::Agent => "agent",
            Purpose::User => "user",
            Purpose::Server => "server",
        }
        .to_owned(),
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
    for warning in warnings(args, &made.token, global) {
        output.warning(&warning);
    }
    if output.is_structured() {
        output.object(&json!({"id": made.id, "token": made.token, "expires": made.expires}))?;
    } else {
        output.line(&made.token)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What will surprise whoever uses the token, or this host once it is used.
fn warnings(args: &TokenCreateArgs, token: &str, global: &Global) -> Vec<String> {
    let mut found = Vec::new();
    if let Ok(token) = token.parse::<JoinToken>()
        && token.servers.iter().all(|server| is_loopback(&server.host))
    {
        found.push(
            "the token leads to loopback, so only this host can use it; first: \
             weft up --listen 0.0.0.0 --advertise NAME_OF_THIS_HOST"
                .to_owned(),
        );
    }
    let run_dir = client::local_server_socket(global).and_then(|socket| Some(socket.parent()?.to_owned()));
    let refuses = run_dir.and_then(|run| run.parent().map(refuses_shared_uid)).unwrap_or(false);
    if args.purpose == Purpose::Agent && refuses {
        found.push(format!(
            "{}: once another node has joined, programs of the server's own user are refused on this host",
            code::SHARED_UID
        ));
    }
    found
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Whether the mesh in `state` was started by `weft up`, and not with `--allow-shared-uid`.
fn refuses_shared_uid(state: &std::path::Path) -> bool {
    state.join("server.yaml").exists() && Flags::kept(state).is_ok_and(|flags| !flags.allow_shared_uid)
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
