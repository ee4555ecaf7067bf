//! `weft run`: registers a workload, runs the program with what it needs, unregisters when it ends.

mod membership;

use std::{
    collections::BTreeMap, net::SocketAddr, os::unix::process::ExitStatusExt as _, process::ExitCode,
    task::Poll,
};

use nix::sys::signal::Signal;
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};
use weft_api::pb::agent::{RunEvent, RunRequest, Upstream};
use weft_policy::name::ObjectName;

use self::membership::Membership;
use crate::{
    args::{Format, Global, groups::RunArgs},
    client,
    error::CliError,
    output::Output,
};

/// The signals that are the program's to act on.
const FORWARDED: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// Runs the program; its exit code is the command's.
pub(crate) fn run(args: &RunArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let request = request(args, global)?;
    client::run(async {
        let signals = Signals::listen()?;
        let (mut membership, first) = Membership::begin(request, global).await?;
        for warning in &first.warnings {
            output.warning(warning);
        }
        output.talk(format!("{} runs as {}", args.service, first.workload_id));
        let mut child = spawn(args, &first, output)?;
        let outcome = wait(&mut child, signals, &mut membership, output).await;
        // Closing the stream unregisters; the program has ended by now.
        drop(membership);
        outcome
    })
}

/// The wire form of the arguments.
fn request(args: &RunArgs, global: &Global) -> Result<RunRequest, CliError> {
    let mut ports = BTreeMap::new();
    for text in &args.port {
        let (name, address) = text.split_once('=').unwrap_or(("", text));
        let is_port = address.parse::<u16>().is_ok_and(|port| port != 0)
            || address.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0);
        if !is_port {
            return Err(CliError::usage(
                format!("{text:?} is not a port"),
                "--port 8081, --port 127.0.0.1:8081, or --port http=8081",
            ));
        }
        ports.insert(name.to_owned(), address.to_owned());
    }
    if let Err(error) = args.service.parse::<ObjectName>() {
        return Err(CliError::usage(format!("service {:?}: {error}", args.service), "--service charge"));
    }
    let upstreams = args.upstream.iter().map(|text| upstream(text)).collect::<Result<_, _>>()?;
    Ok(RunRequest {
        service: args.service.clone(),
        namespace: global.namespace.clone().unwrap_or_default(),
        ports,
        upstreams,
        proxy_port: 0,
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

/// Starts the program with the variables of decisions.md ("environment of a child"), by way of [`super::exec`].
fn spawn(args: &RunArgs, event: &RunEvent, output: &Output) -> Result<Child, CliError> {
    // The file of this very process, even where another version has taken its place meanwhile.
    let mut command = Command::new("/proc/self/exe");
    if output.format() == Format::Json {
        command.args(["-o", "json"]);
    }
    let parent = std::process::id().to_string();
    command.args(["exec-program", "--parent", &parent, "--"]).args(&args.command);
    command.env("WEFT_WORKLOAD_ID", &event.workload_id).env("WEFT_WORKLOAD_NAMESPACE", &event.namespace);
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
    command.spawn().map_err(|e| CliError::internal(format!("cannot start another process: {e}")))
}

/// Waits for the program, passing signals on. An agent that goes away does not end it: its registration is made again.
async fn wait(
    child: &mut Child,
    mut signals: Signals,
    membership: &mut Membership,
    output: &Output,
) -> Result<ExitCode, CliError> {
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status.map_err(|e| CliError::internal(format!("cannot wait for the program: {e}")))?;
                return Ok(exit_code(status));
            }
            signal = signals.next() => forward(child, signal),
            change = membership.change() => change.tell(output),
        }
    }
}

/// The signals that came.
struct Signals(Vec<(Signal, tokio::signal::unix::Signal)>);

impl Signals {
    fn listen() -> Result<Self, CliError> {
        let listen = |kind: Signal| {
            let stream = signal(SignalKind::from_raw(kind as i32));
            stream
                .map(|stream| (kind, stream))
                .map_err(|e| CliError::internal(format!("cannot listen for signals: {e}")))
        };
        FORWARDED.into_iter().map(listen).collect::<Result<_, _>>().map(Self)
    }

    /// The next one. Cancel-safe.
    async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            let ready = |(kind, stream): &mut (Signal, tokio::signal::unix::Signal)| {
                stream.poll_recv(context).is_ready().then_some(*kind)
            };
            self.0.iter_mut().find_map(ready).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

fn forward(child: &Child, signal: Signal) {
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
    use clap::Parser as _;

    use super::*;
    use crate::{
        args::{Cli, Command},
        error::Exit,
    };

    #[test]
    fn upstreams_name_a_service_and_a_local_port() {
        let parsed = upstream("charge:8080=9001").unwrap();
        assert_eq!((parsed.service.as_str(), parsed.port, parsed.listen.as_str()), ("charge", 8080, "9001"));
        assert_eq!(upstream("charge.shop=0").unwrap().port, 0);
        for bad in ["charge", "=1", "charge=", "charge:x=1"] {
            assert!(upstream(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_a_port_or_a_service_is_wrong_usage() {
        let read = |line: &str| {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let Command::Run(args) = cli.command else { panic!("{line}") };
            request(&args, &cli.global).map_err(|error| error.exit())
        };
        for bad in
            ["--port abc", "--port 0", "--port http=", "--port 70000", "--upstream charge=", "--port x:1"]
        {
            assert_eq!(read(&format!("weft run --service order {bad} -- true")), Err(Exit::Usage), "{bad}");
        }
        assert_eq!(read("weft run --service Not_One -- true"), Err(Exit::Usage));
        let good = read("weft run --service order --port http=8081 --port 9=[::1]:9 -- true").unwrap();
        assert_eq!(good.ports.len(), 2);
    }
}
