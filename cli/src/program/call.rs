//! `weft call`: one request through the mesh, with the decision and the time it took.

use std::{process::ExitCode, time::Duration};

use bytes::Bytes;
use http::Request;
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
    args::{Format, Global, groups::CallArgs},
    client,
    error::{CliError, Exit},
    output::Output,
    rule::policy::{is_unknown, split_target},
};

/// The most of a body that is printed; the rest is counted.
const MAX_PRINTED_BYTES: usize = 16 << 20;
/// What is kept of a body that is not asked for: a refusal of Weft's own is shorter.
const UNASKED_BYTES: usize = 64 << 10;

/// What one call brought.
struct Outcome {
    status: u16,
    /// The code of Weft, when Weft itself answered instead of the program.
    code: String,
    took: Duration,
    body: Bytes,
    bytes: u64,
}

/// Calls a service as an identity of this node.
pub(crate) fn call(args: &CallArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let (service, namespace, port) = split_target(&args.target, global)?;
    let request = request(args, &service, &namespace, port)?;
    let service = format!("{service}.{namespace}");
    client::run(async {
        let mut agent = client::agent(global).await?;
        let voice = Voice::open(&mut agent, args, global).await?;
        let mut decision = None;
        let mut exit = 0;
        for number in 0..args.count {
            let outcome = once(voice.proxy, &request, global.timeout, &service, args.body).await?;
            if outcome.code.is_empty() && decision.is_none() {
                decision = Some(decided(&voice.workload_id, &service, port, global).await);
            }
            exit = if exit == 0 { outcome.exit() } else { exit };
            print(&outcome, number, &voice.workload_id, decision.as_deref(), args, output)?;
        }
        drop(voice);
        Ok(ExitCode::from(exit))
    })
}

impl Outcome {
    /// Exit code of one call (cli.md 4.3): 1 is a no, of the rules or of the program.
    fn exit(&self) -> u8 {
        match (self.code.as_str(), self.status) {
            ("", ..400) => 0,
            ("", _) => 1,
            (code, _) if is_unknown(code) => Exit::NotFound as u8,
            (_, 504) => Exit::TimedOut as u8,
            (code, _) if code.starts_with("W1") => Exit::Unreachable as u8,
            (_, _) => 1,
        }
    }

    /// What happened to the call, and by whose word; `decision` is that of the rules for a call that arrived.
    fn verdict(&self, decision: Option<&str>) -> String {
        match self.code.as_str() {
            "" => format!("mTLS  {}", decision.unwrap_or("decision unknown")),
            code if code.starts_with("W2") => format!("denied {code}"),
            code => format!("failed {code}"),
        }
    }
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
    wants_body: bool,
) -> Result<Outcome, CliError> {
    let keep = if wants_body { MAX_PRINTED_BYTES } else { UNASKED_BYTES };
    let clock = weft_node::clock::Clock::system();
    let start = clock.now();
    let answer = exchange(proxy, request.clone(), timeout, keep)
        .await
        .map_err(|error| call_failed(&error, service))?;
    let code = answer.head.headers.get("x-weft-code").and_then(|value| value.to_str().ok());
    Ok(Outcome {
        status: answer.head.status.as_u16(),
        code: code.unwrap_or_default().to_owned(),
        took: clock.now().saturating_duration_since(start),
        body: answer.body,
        bytes: answer.bytes,
    })
}

fn call_failed(error: &ExchangeError, service: &str) -> CliError {
    let (exit, code) = match error {
        ExchangeError::TimedOut(_) => (Exit::TimedOut, code::CONNECT_TIMEOUT),
        ExchangeError::Connect(_) => (Exit::Unreachable, code::AGENT_NOT_RUNNING),
        ExchangeError::Broken(_) => (Exit::Unreachable, code::PEER_CLOSED),
    };
    let fault = Fault::new(code, format!("the call to {service} failed"));
    CliError::new(exit, fault.why(error.to_string()).fix("weft explain last").fix("weft status"))
}

/// Which rule lets a call pass that arrived: asked of the server, which runs the destination's code, afterwards.
async fn decided(source: &str, service: &str, port: u16, global: &Global) -> String {
    let request = CheckPolicyRequest {
        source: source.to_owned(),
        service: service.to_owned(),
        port: u32::from(port),
        ..CheckPolicyRequest::default()
    };
    let ask = async {
        let mut server = client::server(global).await?;
        Ok(server.check_policy(request).await?.into_inner())
    };
    match client::within(global.timeout, ask).await {
        Ok(verdict) => rule_of(&verdict),
        Err(_) => "decision unknown (no server to ask)".to_owned(),
    }
}

fn rule_of(verdict: &CheckPolicyResponse) -> String {
    match (verdict.allowed, verdict.policy.as_str()) {
        (true, "") => format!("default {}", verdict.default_mode),
        (true, policy) => format!("policy {policy} rule {}", verdict.rule),
        (false, _) => "decision unknown (the rules have changed since)".to_owned(),
    }
}

fn print(
    outcome: &Outcome,
    number: u32,
    source: &str,
    decision: Option<&str>,
    args: &CallArgs,
    output: &Output,
) -> Result<(), CliError> {
    let cut = outcome.bytes - outcome.body.len() as u64;
    if args.body && cut > 0 {
        output.talk(format!("warning: the last {cut} of {} bytes are not printed", outcome.bytes));
    }
    let text = String::from_utf8_lossy(&outcome.body);
    if output.is_structured() {
        let denied = (!outcome.code.is_empty()).then(|| outcome.verdict(None));
        let object = json!({
            "status": outcome.status, "durationMs": millis(outcome.took), "source": source,
            "target": args.target, "code": outcome.code, "decision": denied.as_deref().or(decision),
            "bytes": outcome.bytes, "body": args.body.then_some(&text),
        });
        if output.format() == Format::Yaml {
            if number > 0 {
                output.line("---")?;
            }
            return output.object(&object);
        }
        return output.json_line(&object);
    }
    output.line(format!(
        "{}  {:.1} ms  {} → {}  {}",
        outcome.status,
        millis(outcome.took),
        source.rsplit('/').next().unwrap_or(source),
        args.target,
        outcome.verdict(decision)
    ))?;
    if args.body || !outcome.code.is_empty() {
        output.line(crate::output::printable(&text).trim_end())?;
    }
    Ok(())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16, code: &str) -> Outcome {
        Outcome { status, code: code.to_owned(), took: Duration::ZERO, body: Bytes::new(), bytes: 0 }
    }

    #[test]
    fn the_exit_code_tells_a_no_from_what_is_unknown_or_out_of_reach() {
        for (status, code, exit) in [
            (200, "", 0),
            (302, "", 0),
            (404, "", 1),
            (503, "", 1),
            (403, "W2101", 1),
            (502, "W1011", 3),
            (502, "W1012", 3),
            (503, "W1005", 6),
            (504, "W1004", 7),
        ] {
            assert_eq!(outcome(status, code).exit(), exit, "{status} {code}");
        }
    }

    #[test]
    fn only_a_call_that_arrived_is_called_mutual_tls() {
        let rule = Some("policy allow-order-charge.default rule order");
        assert_eq!(outcome(200, "").verdict(rule), "mTLS  policy allow-order-charge.default rule order");
        assert_eq!(outcome(403, "W2101").verdict(rule), "denied W2101");
        assert_eq!(outcome(502, "W1011").verdict(rule), "failed W1011");
        let refused = CheckPolicyResponse { allowed: false, ..CheckPolicyResponse::default() };
        assert!(rule_of(&refused).contains("unknown"), "the call passed, so the rules were others");
    }
}
