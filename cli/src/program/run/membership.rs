//! The registration of a running program, made again whenever its agent comes back.
//!
//! ```text
//! registered ──stream ends──▶ away ──an agent answers──▶ registered
//! ```
//!
//! The program keeps what its environment says: the proxy port and the upstream ports are asked for again by number.

use std::time::Duration;

use tonic::Streaming;
use weft_api::{
    fault::Fault,
    pb::agent::{RunEvent, RunRequest, Upstream},
};
use weft_policy::code;

use crate::{
    args::Global,
    client,
    error::{CliError, Exit},
    output::Output,
};

/// The first wait for an agent that has gone, and the longest: as an agent waits for its server (decisions.md).
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_millis(1_500);

/// The program's place in the mesh; dropping it gives the place up.
pub(super) struct Membership {
    global: Global,
    request: RunRequest,
    events: Option<Streaming<RunEvent>>,
    wait: Duration,
    /// The code of the last refusal, so that one that repeats is told once.
    refused: String,
}

/// What happened to the registration.
pub(super) enum Change {
    /// The agent tells something.
    Told(Vec<String>),
    /// The agent has gone.
    Gone,
    /// It is registered again, and whether its ports are the old ones.
    Back { whole: bool },
    /// The agent is there and refuses.
    Refused(Option<Fault>),
}

impl Membership {
    /// Registers the program.
    pub(super) async fn begin(request: RunRequest, global: &Global) -> Result<(Self, RunEvent), CliError> {
        // From now on this agent and no other: a host may have several.
        let (_, socket) = client::agent_and_socket(global).await?;
        let global = Global { agent_socket: Some(socket), ..global.clone() };
        let (events, first) = register(request.clone(), &global).await?;
        let request = pinned(request, &first);
        let events = Some(events);
        Ok((Self { global, request, events, wait: FIRST_WAIT, refused: String::new() }, first))
    }

    /// The next change. Cancel-safe: an attempt that is cut off is made again.
    pub(super) async fn change(&mut self) -> Change {
        if let Some(events) = &mut self.events {
            return match events.message().await {
                Ok(Some(event)) => Change::Told(event.warnings),
                Ok(None) | Err(_) => {
                    self.events = None;
                    self.wait = FIRST_WAIT;
                    Change::Gone
                }
            };
        }
        loop {
            tokio::time::sleep(self.wait).await;
            self.wait = (self.wait * 2).min(LONGEST_WAIT);
            match register(self.request.clone(), &self.global).await {
                Ok((events, event)) => {
                    self.events = Some(events);
                    self.refused.clear();
                    return Change::Back { whole: event.proxy_port == self.request.proxy_port };
                }
                // The agent is not there yet, or has no server yet: it is waited for in silence.
                Err(error) if error.is_unreachable() => {}
                Err(error) => {
                    let fault = error.faults().first().cloned();
                    let code = fault.as_ref().map(|fault| fault.code.to_string()).unwrap_or_default();
                    if code != self.refused {
                        self.refused = code;
                        return Change::Refused(fault);
                    }
                }
            }
        }
    }
}

impl Change {
    /// Says it to the person.
    pub(super) fn tell(self, output: &Output) {
        match self {
            Self::Told(warnings) => {
                warnings.iter().for_each(|warning| output.warning(warning));
            }
            Self::Gone => output.talk("warning: the agent has gone; the program runs on, outside the mesh until it is back"),
            Self::Back { whole: true } => output.talk("the agent is back: the program is in the mesh again"),
            Self::Back { whole: false } => output.talk(
                "warning: the agent is back, but the program's proxy port is taken: start it again to make calls",
            ),
            Self::Refused(Some(fault)) => output.fault(&fault),
            Self::Refused(None) => output.talk("warning: the agent refuses the program"),
        }
    }
}

/// Asks the agent for a place, and waits for its first word.
async fn register(request: RunRequest, global: &Global) -> Result<(Streaming<RunEvent>, RunEvent), CliError> {
    client::within(global.timeout, async {
        let mut agent = client::agent(global).await?;
        let mut events = agent.run(request).await?.into_inner();
        let first = events.message().await?.ok_or_else(ended)?;
        Ok((events, first))
    })
    .await
}

fn ended() -> CliError {
    let what = "the agent closed the connection before the workload was registered";
    CliError::new(Exit::Unreachable, Fault::new(code::AGENT_NOT_RUNNING, what).fix("weft agent status"))
}

/// The request with the ports that were given, which the program knows from its environment.
fn pinned(mut request: RunRequest, given: &RunEvent) -> RunRequest {
    request.proxy_port = given.proxy_port;
    for upstream in &mut request.upstreams {
        if let Some(address) = given.upstream_addresses.get(short(upstream)).filter(|_| picks(upstream)) {
            upstream.listen.clone_from(address);
        }
    }
    request
}

/// The name by which an upstream's address is told.
fn short(upstream: &Upstream) -> &str {
    upstream.service.split('.').next().unwrap_or_default()
}

/// Whether the agent picked the port.
fn picks(upstream: &Upstream) -> bool {
    upstream.listen == "0" || upstream.listen.ends_with(":0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_registers_again_asks_for_the_ports_it_has() {
        let upstream = |service: &str, listen: &str| Upstream {
            service: service.into(),
            port: 0,
            listen: listen.into(),
        };
        let request = RunRequest {
            upstreams: vec![upstream("charge.shop", "0"), upstream("ledger", "9001"), upstream("gone", "0")],
            ..RunRequest::default()
        };
        let given = RunEvent {
            proxy_port: 40_001,
            upstream_addresses: [("charge", "127.0.0.1:40002"), ("ledger", "127.0.0.1:9001")]
                .map(|(name, address)| (name.to_owned(), address.to_owned()))
                .into(),
            ..RunEvent::default()
        };
        let again = pinned(request, &given);
        assert_eq!(again.proxy_port, 40_001);
        let listens: Vec<_> = again.upstreams.iter().map(|upstream| upstream.listen.as_str()).collect();
        assert_eq!(listens, ["127.0.0.1:40002", "9001", "0"]);
    }
}
