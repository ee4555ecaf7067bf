//! `weft server`: the control plane in the foreground, moving what it keeps, and its audit log.

use std::{path::Path, process::ExitCode, time::Duration};

use tracing::info;
use weft_registry::{
    config::{Config, StoreConfig},
    server::{self as moving, Moved, Server, ServerError},
};

use super::{agent::read_token, background, logs, memory, secrecy, signals};
use crate::{
    args::{
        Global,
        groups::Purpose,
        server::{MigrateArgs, RecordsCommand, ServerArgs, ServerCommand},
    },
    error::{CliError, Exit},
    observe::audit::audit,
    output::Output,
};

/// How long open calls may take to end after SIGTERM.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// Runs the server, or moves what it keeps.
pub(crate) fn server(args: &ServerArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    if !matches!(args.command, ServerCommand::Audit { .. }) {
        logs::start(global);
        secrecy::close_memory()?;
    }
    match &args.command {
        ServerCommand::Run { config } => run(config, output),
        ServerCommand::Audit { command } => audit(command, global, output),
        ServerCommand::Backup { file, config } => {
            let moved = moving::back_up(&read(config)?, file).map_err(refused)?;
            output.talk(format!("{} in {}", told(moved), file.display()));
            Ok(ExitCode::SUCCESS)
        }
        ServerCommand::Restore { file, config } => {
            let moved = moving::restore(&read(config)?, file).map_err(refused)?;
            output.talk(format!("{} from {}", told(moved), file.display()));
            Ok(ExitCode::SUCCESS)
        }
        ServerCommand::Join { token_file, config } => {
            let token = read_token(token_file, Purpose::Server)?;
            let joined = weft_registry::server::join_mesh(&read(config)?, &token);
            let joined = joined.map_err(|failure| CliError::new(Exit::Invalid, failure.fault()))?;
            output.done(format!("server {} was let in; agents learn its root now", joined.instance));
            output.talk(format!("next: weft server run --config {}", config.display()));
            Ok(ExitCode::SUCCESS)
        }
        ServerCommand::Records { command } => records(command, output),
        ServerCommand::Migrate(args) => migrate(args, output),
    }
}

/// Says what in the store is not as the server wrote it, or signs it.
fn records(command: &RecordsCommand, output: &Output) -> Result<ExitCode, CliError> {
    let (found, accepted) = match command {
        RecordsCommand::Check { config } => (moving::check_records(&read(config)?), false),
        RecordsCommand::Accept { config } => (moving::accept_records(&read(config)?), true),
    };
    let found = found.map_err(refused)?;
    for (key, why) in &found.records {
        output.line(format!("{key}: {why}"))?;
    }
    for (group, why) in &found.groups {
        output.line(format!("{group}: {why}"))?;
    }
    if found.is_empty() {
        output.talk("every record is as the server wrote it");
    } else if accepted {
        output.talk(format!(
            "{} records and {} groups are signed now",
            found.records.len(),
            found.groups.len()
        ));
    }
    let whole = found.is_empty() || accepted;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Begins the audit log anew if it is not whole.
pub(crate) fn accept_audit(config: &Path, output: &Output) -> Result<ExitCode, CliError> {
    match moving::accept_audit(&read(config)?).map_err(refused)? {
        None => output.talk("the audit log is whole; nothing was done"),
        Some(wrong) => output.talk(format!("the audit log begins anew; it was given up because {wrong}")),
    }
    Ok(ExitCode::SUCCESS)
}

fn told(moved: Moved) -> String {
    format!("{} records as of revision {}", moved.records, moved.revision)
}

fn read(config: &Path) -> Result<Config, CliError> {
    let text = std::fs::read_to_string(config).map_err(|e| CliError::file(config, &e))?;
    background::server_config(&text, &config.display().to_string())
}

fn refused(error: ServerError) -> CliError {
    CliError::new(Exit::Usage, error.fault())
}

/// Moves the mesh, then says what `server.yaml` must say from now on.
fn migrate(args: &MigrateArgs, output: &Output) -> Result<ExitCode, CliError> {
    let config = read(&args.config)?;
    let block = store_block(args, &config)?;
    // Read by the one reader of configurations, so that what is printed is what was done.
    let text = format!("cluster: {}\ntrustDomain: {}\n{block}\n", config.cluster, config.trust_domain);
    let StoreConfig::Etcd(etcd) = background::server_config(&text, "the command line")?.store else {
        return Err(usage("--to names no etcd"));
    };
    if config.store != StoreConfig::Embedded {
        return Err(usage("the configuration names no embedded store: there is nothing to move"));
    }
    let moved = moving::migrate(&config, &etcd).map_err(refused)?;
    output.talk(format!("{} moved; the embedded store is as it was", told(moved)));
    output.talk(format!("put this into {} and start the server:", args.config.display()));
    output.line(&block)?;
    Ok(ExitCode::SUCCESS)
}

/// The setting `store` that the arguments come to.
fn store_block(args: &MigrateArgs, config: &Config) -> Result<String, CliError> {
    let members = args.to.strip_prefix("etcd://").ok_or_else(|| usage("--to is etcd://HOST:PORT"))?;
    let scheme = if args.ca.is_some() { "https" } else { "http" };
    let endpoints: Vec<String> =
        members.split(',').map(|member| quoted(&format!("{scheme}://{member}"))).collect();
    let mut block = format!(
        "store: {{etcd: {{path: {}, endpoints: [{}]",
        quoted(&config.state_dir.display().to_string()),
        endpoints.join(", ")
    );
    if let Some(prefix) = &args.prefix {
        block += &format!(", prefix: {}", quoted(prefix));
    }
    if let Some(ca) = &args.ca {
        block += &format!(", tls: {{ca: {}", quoted(&ca.display().to_string()));
        if let (Some(certificate), Some(key)) = (&args.certificate, &args.key) {
            let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
            block += &format!(", certificate: {}, key: {}", quoted(&certificate), quoted(&key));
        }
        block += "}";
    }
    if let (Some(user), Some(file)) = (&args.user, &args.password_file) {
        let file = quoted(&file.display().to_string());
        block += &format!(", auth: {{user: {}, passwordFile: {file}}}", quoted(user));
    }
    Ok(block + "}}")
}

/// As a string of YAML, which takes strings of JSON.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn usage(what: &str) -> CliError {
    CliError::usage(what, "weft server migrate --to etcd://HOST:PORT")
}

/// Runs the server until SIGINT or SIGTERM.
fn run(config: &Path, output: &Output) -> Result<ExitCode, CliError> {
    memory::give_back()?;
    let server = Server::start(read(config)?).map_err(refused)?;
    output.talk(format!("server ready: control {} (Ctrl-C stops it)", server.control_addr()));
    let stop = signals::wait()?;
    info!(signal = ?stop, "stopping");
    server.shutdown(SHUTDOWN_DEADLINE);
    Ok(stop.exit())
}
