//! `weft run`: registers a workload, runs the program with what it needs, unregisters when it ends.

use std::{collections::BTreeMap, os::unix::process::ExitStatusExt as _, process::ExitCode};

use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};
use weft_api::{
    fault::Fault,
    pb::agent::{RunEvent, RunRequest, Upstream},
};

use weft_policy::code;

use crate::{
    args::{Global, groups::RunArgs},
    client,
    error::{CliError, Exit},
    output::Output,
};

/// Runs the program; its exit code is the command's.
pub(crate) fn run(args: &RunArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let request = request(args, global)?;
    client::run(async {
        let mut agent = client::agent(global).await?;
        let mut events = agent.run(request).await?.into_inner();
        let first = events.message().await?.ok_or_else(|| ended("before the workload was registered"))?;
        for warning in &first.warnings {
            output.talk(format!("warning: {warning}"));
        }
        output.talk(format!("{} runs as {}", args.service, first.workload_id));
        let mut child = spawn(args, &first)?;
        let outcome = wait(&mut child, &mut events, output).await;
        // Closing the stream unregisters; the program has ended by now.
        drop(events);
        outcome
    })
}

fn ended(when: &str) -> CliError {
    let fault = Fault::new(code::AGENT_NOT_RUNNING, format!("the agent closed the connection {when}"))
        .fix("weft agent status");
    CliError::new(Exit::Unreachable, fault)
}

/// The wire form of the arguments.
fn request(args: &RunArgs, global: &Global) -> Result<RunRequest, CliError> {
    let mut ports = BTreeMap::new();
    for port in &args.port {
        let (name, address) = port.split_once('=').unwrap_or(("", port));
        ports.insert(name.to_owned(), address.to_owned());
    }
    let upstreams = args.upstream.iter().map(|text| upstream(text)).collect::<Result<_, _>>()?;
    Ok(RunRequest {
        service: args.service.clone(),
        namespace: global.namespace.clone().unwrap_or_default(),
        ports,
        upstreams,
    })
}

/// Reads `SERVICE=PORT` or `SERVICE:SERVICEPORT=PORT`.
fn upstream(text: &str) -> Result<Upstream, CliError> {
    let bad = || {
        CliError::usage(format!("{text:?} is not an upstream"), "--upstream charge=9001, or charge:80=9001")
    };
    let (target, listen) = text.split_once('=').ok_or_else(bad)?;
    let (service, port) = match target.split_once(':') {
        Some((service, port)) => (service, port.parse::<u16>().map_err(|_| bad())?),
        None => (target, 0),
    };
    if service.is_empty() || listen.is_empty() {
        return Err(bad());
    }
    Ok(Upstream { service: service.to_owned(), port: u32::from(port), listen: listen.to_owned() })
}

/// Starts the program with the variables of decisions.md ("environment of a child").
fn spawn(args: &RunArgs, event: &RunEvent) -> Result<Child, CliError> {
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(CliError::usage("no program given", "weft run --service charge -- ./charge"));
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("WEFT_WORKLOAD_ID", &event.workload_id)
        .env("WEFT_WORKLOAD_NAMESPACE", &event.namespace);
    for (name, address) in &event.upstream_addresses {
        let upper = name.to_ascii_uppercase().replace(['-', '.'], "_");
        command.env(format!("WEFT_UPSTREAM_{upper}"), address);
    }
    if event.proxy_port != 0 {
        let proxy = format!("http://127.0.0.1:{}", event.proxy_port);
        for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            command.env(name, &proxy);
        }
        let all = format!("socks5h://127.0.0.1:{}", event.proxy_port);
        command.env("all_proxy", &all).env("ALL_PROXY", &all);
        // Never `localhost`: it would match *.weft.localhost.
        command.env("no_proxy", "127.0.0.1,::1").env("NO_PROXY", "127.0.0.1,::1");
    }
    command.spawn().map_err(|error| {
        let fault =
            Fault::new(code::COMMAND_NOT_FOUND, format!("cannot start {program}")).why(error.to_string());
        CliError::new(Exit::Usage, fault.fix("check the program's path after --"))
    })
}

/// Waits for the program, passing signals on; tells when the agent goes away, without ending the program.
async fn wait(
    child: &mut Child,
    events: &mut tonic::Streaming<RunEvent>,
    output: &Output,
) -> Result<ExitCode, CliError> {
    let listen =
        |kind| signal(kind).map_err(|e| CliError::internal(format!("cannot listen for signals: {e}")));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let mut attached = true;
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status.map_err(|e| CliError::internal(format!("cannot wait for the program: {e}")))?;
                return Ok(exit_code(status));
            }
            _ = interrupt.recv() => forward(child, nix::sys::signal::Signal::SIGINT),
            _ = terminate.recv() => forward(child, nix::sys::signal::Signal::SIGTERM),
            event = events.message(), if attached => match event {
                Ok(Some(event)) => event.warnings.iter().for_each(|warning| output.talk(format!("warning: {warning}"))),
                Ok(None) | Err(_) => {
                    attached = false;
                    output.talk("warning: the agent has gone; the program runs on outside the mesh until the agent is back and it is started again");
                }
            },
        }
    }
}

fn forward(child: &Child, signal: nix::sys::signal::Signal) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // The program may have ended a moment ago: then there is nobody to tell.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
    }
}

/// The program's own code; 128 + N when signal N ended it, as shells do.
fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(70);
    ExitCode::from(u8::try_from(code).unwrap_or(70))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_name_a_service_and_a_local_port() {
        let parsed = upstream("charge:8080=9001").unwrap();
        assert_eq!((parsed.service.as_str(), parsed.port, parsed.listen.as_str()), ("charge", 8080, "9001"));
        assert_eq!(upstream("charge.shop=0").unwrap().port, 0);
        for bad in ["charge", "=1", "charge=", "charge:x=1"] {
            assert!(upstream(bad).is_err(), "{bad}");
        }
    }
}
