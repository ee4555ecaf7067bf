//! `weft call`: one request through the mesh, with the decision and the time it took.

use std::{process::ExitCode, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::json;
use tonic::Streaming;
use weft_api::{
    fault::Fault,
    pb::{
        agent::{RunEvent, RunRequest, SpeakEvent, SpeakRequest},
        management::{CheckPolicyRequest, CheckPolicyResponse},
    },
};
use weft_policy::code;

use super::http::{ExchangeError, exchange};
use crate::{
    args::{Global, groups::CallArgs},
    client,
    error::{CliError, Exit},
    output::Output,
    rule::policy::split_target,
};

/// What one call brought.
struct Outcome {
    status: u16,
    code: String,
    took: Duration,
    body: Bytes,
}

/// Calls a service as an identity of this node.
pub(crate) fn call(args: &CallArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let (service, namespace, port) = split_target(&args.target, global)?;
    let request = request(args, &service, &namespace, port)?;
    client::run(async {
        let mut agent = client::agent(global).await?;
        let voice = Voice::open(&mut agent, args, global).await?;
        let verdict = verdict(&voice.workload_id, &format!("{service}.{namespace}"), port, global).await;
        let mut failed = false;
        for _ in 0..args.count {
            let outcome =
                once(voice.proxy, &request, global.timeout, &format!("{service}.{namespace}")).await?;
            failed |= outcome.status >= 400;
            print(&outcome, &voice.workload_id, &args.target, verdict.as_ref(), args, output)?;
        }
        drop(voice);
        Ok(if failed { ExitCode::from(1) } else { ExitCode::SUCCESS })
    })
}

/// A proxy port that speaks as one identity, for as long as this lives.
struct Voice {
    workload_id: String,
    proxy: u16,
    _open: Lease,
}

/// What keeps the port open: closing the stream closes it.
enum Lease {
    /// The identity of a workload that runs here.
    Speaks { _events: Streaming<SpeakEvent> },
    /// No program runs as it now: a caller without a program, which leaves when the call has ended.
    Runs { _events: Streaming<RunEvent> },
}

impl Voice {
    async fn open(agent: &mut client::Agent, args: &CallArgs, global: &Global) -> Result<Self, CliError> {
        let identity = identity(args, global);
        let none = || CliError::internal("the agent gave no proxy port");
        let absent = match agent.speak(SpeakRequest { identity: identity.clone() }).await {
            Ok(events) => {
                let mut events = events.into_inner();
                let event = events.message().await?.ok_or_else(none)?;
                let lease = Lease::Speaks { _events: events };
                return Self::new(event.workload_id, event.proxy_port, lease);
            }
            Err(status) => CliError::from(status),
        };
        let Some(caller) = caller(&identity).filter(|_| absent.has(code::IDENTITY_NOT_ON_NODE)) else {
            return Err(absent);
        };
        let mut events = agent.run(caller).await?.into_inner();
        let event = events.message().await?.ok_or_else(none)?;
        Self::new(event.workload_id, event.proxy_port, Lease::Runs { _events: events })
    }

    fn new(workload_id: String, proxy_port: u32, lease: Lease) -> Result<Self, CliError> {
        let proxy = u16::try_from(proxy_port).map_err(CliError::internal)?;
        Ok(Self { workload_id, proxy, _open: lease })
    }
}

/// The workload of `name` or `namespace/name` that only calls; a SPIFFE ID names no service to start.
fn caller(identity: &str) -> Option<RunRequest> {
    let (namespace, service) = identity.split_once('/').unwrap_or(("", identity));
    let plain = !service.is_empty() && !service.contains(['/', ':']) && !namespace.contains(':');
    plain.then(|| RunRequest {
        service: service.into(),
        namespace: namespace.into(),
        ..RunRequest::default()
    })
}

/// The identity asked for, as the agent reads it: a name, `namespace/name`, a SPIFFE ID, or empty for the only one.
fn identity(args: &CallArgs, global: &Global) -> String {
    match (&args.identity, &global.namespace) {
        (Some(name), Some(namespace)) if !name.contains('/') => format!("{namespace}/{name}"),
        (Some(name), _) => name.clone(),
        (None, _) => String::new(),
    }
}

fn request(
    args: &CallArgs,
    service: &str,
    namespace: &str,
    port: u16,
) -> Result<Request<Full<Bytes>>, CliError> {
    let authority = if port == 0 {
        format!("{service}.{namespace}.svc.weft")
    } else {
        format!("{service}.{namespace}.svc.weft:{port}")
    };
    let body = match args.data.as_deref() {
        None => Bytes::new(),
        Some(text) => match text.strip_prefix('@') {
            Some(path) => {
                std::fs::read(path).map_err(|e| CliError::file(std::path::Path::new(path), &e))?.into()
            }
            None => text.to_owned().into(),
        },
    };
    let path = if args.path.starts_with('/') { args.path.clone() } else { format!("/{}", args.path) };
    Request::builder()
        .method(args.method.as_str())
        .uri(format!("http://{authority}{path}"))
        .header("host", &authority)
        .header("user-agent", concat!("weft/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(body))
        .map_err(|e| CliError::usage(format!("not a request: {e}"), "weft call charge /path -X POST -d BODY"))
}

async fn once(
    proxy: u16,
    request: &Request<Full<Bytes>>,
    timeout: Duration,
    service: &str,
) -> Result<Outcome, CliError> {
    let clock = weft_node::clock::Clock::system();
    let start = clock.now();
    let response =
        exchange(proxy, request.clone(), timeout).await.map_err(|error| call_failed(&error, service))?;
    Ok(Outcome {
        status: response.status().as_u16(),
        code: header(&response, "x-weft-code"),
        took: clock.now().saturating_duration_since(start),
        body: response.into_body(),
    })
}

fn header(response: &Response<Bytes>, name: &str) -> String {
    response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

fn call_failed(error: &ExchangeError, service: &str) -> CliError {
    let (exit, code) = match error {
        ExchangeError::TimedOut(_) => (Exit::TimedOut, code::CONNECT_TIMEOUT),
        ExchangeError::Connect(_) => (Exit::Unreachable, code::AGENT_NOT_RUNNING),
        ExchangeError::Broken(_) | ExchangeError::Body(_) => (Exit::Unreachable, code::PEER_CLOSED),
    };
    let fault = Fault::new(code, format!("the call to {service} failed"));
    CliError::new(exit, fault.why(error.to_string()).fix("weft explain last").fix("weft status"))
}

/// What the rules say of the call, when the server can be asked; it is the code that the destination runs.
async fn verdict(source: &str, service: &str, port: u16, global: &Global) -> Option<CheckPolicyResponse> {
    let mut server = client::server(global).await.ok()?;
    let request = CheckPolicyRequest {
        source: source.to_owned(),
        service: service.to_owned(),
        port: u32::from(port),
        source_ip: String::new(),
        overlay: Vec::new(),
    };
    let answer = tokio::time::timeout(global.timeout, server.check_policy(request)).await.ok()?;
    answer.ok().map(tonic::Response::into_inner)
}

fn print(
    outcome: &Outcome,
    source: &str,
    target: &str,
    verdict: Option<&CheckPolicyResponse>,
    args: &CallArgs,
    output: &Output,
) -> Result<(), CliError> {
    let decision = verdict.map(|v| match (v.allowed, v.policy.as_str()) {
        (true, "") => format!("default {}", v.default_mode),
        (true, policy) => format!("policy {policy} rule {}", v.rule),
        (false, _) => format!("denied {}", v.code),
    });
    if output.is_structured() {
        return output.json_line(&json!({
            "status": outcome.status, "durationMs": millis(outcome.took), "source": source, "target": target,
            "code": outcome.code, "decision": decision, "bytes": outcome.body.len(),
            "body": if args.body { Some(String::from_utf8_lossy(&outcome.body)) } else { None },
        }));
    }
    let decision = decision.unwrap_or_else(|| "decision unknown (no server to ask)".to_owned());
    let short = source.rsplit('/').next().unwrap_or(source);
    output.line(format!(
        "{}  {:.1} ms  {short} → {target}  mTLS  {decision}",
        outcome.status,
        millis(outcome.took)
    ))?;
    if args.body || !outcome.code.is_empty() {
        output.line(crate::output::printable(&String::from_utf8_lossy(&outcome.body)).trim_end())?;
    }
    Ok(())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
