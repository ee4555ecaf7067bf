//! One stream to one agent: turns what happens into messages, and messages into what happens.
//!
//! The stream is driven by its reader: while the connection takes nothing, nothing is made. It ends when the agent
//! goes, is replaced by a newer connection, loses its identity, or the server ends.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::sync::watch;
use tonic::{Status, Streaming};
use tracing::{info, warn};
use weft_api::pb::discovery::{
    self as pb, Bundle, DiscoveryRequest, DiscoveryResponse, GoAway, Settings, Unknown, discovery_request,
    discovery_response::Message,
};
use weft_identity::bundle::TrustBundle;
use weft_policy::{
    code,
    model::HostPort,
    name::{NodeName, ServiceName},
    snapshot::Revision,
};

use super::{
    MAX_NAMES,
    encodings::Encodings,
    kept::Kept,
    names,
    session::{Breach, Session},
};
use crate::{
    core::Core,
    metrics::Counted,
    nodes::{self, shown},
    presence::Connected,
    refusal::{Refusal, catalogued},
    replicas::watch::Servers,
    roles::Caller,
    world::World,
};

/// How long agents have to find another server when this one ends.
const GO_AWAY_WITHIN: Duration = Duration::from_secs(5);
/// The cap of reconnects up to a thousand agents (decisions.md); above, each agent adds its share.
const RECONNECT_CAP: Duration = Duration::from_millis(1_500);
/// How many agents share [`RECONNECT_CAP`].
const AGENTS_PER_CAP: usize = 1_000;

/// See the module.
pub(super) struct AgentStream {
    pub(super) core: Arc<Core>,
    pub(super) caller: Caller,
    pub(super) node: NodeName,
    pub(super) requests: Streaming<DiscoveryRequest>,
    pub(super) worlds: watch::Receiver<Arc<World>>,
    pub(super) bundles: watch::Receiver<Arc<TrustBundle>>,
    pub(super) connected: Connected,
    pub(super) servers: watch::Receiver<Servers>,
    pub(super) asked: watch::Receiver<Option<Duration>>,
    pub(super) session: Session,
    pub(super) kept: Arc<Kept>,
    pub(super) encodings: Arc<Encodings>,
    pub(super) ready: VecDeque<Message>,
    pub(super) ended: bool,
    pub(super) _counted: Counted,
}

impl AgentStream {
    /// What the agent is told before anything else.
    pub(super) fn greet(&mut self) -> Result<(), Refusal> {
        let bundle = bundle_message(&self.bundles.borrow_and_update());
        self.ready.push_back(Message::Bundle(bundle));
        self.settings();
        self.look()
    }

    /// Tells how to come back, and where else to go.
    fn settings(&mut self) {
        let texts = |addresses: &[HostPort]| addresses.iter().map(ToString::to_string).collect();
        let cap = reconnect_cap(self.core.presence.connected());
        let servers = self.servers.borrow_and_update().clone();
        let settings = Settings {
            reconnect_cap_ms: millis(cap),
            server: self.core.instance.clone(),
            own: texts(&self.core.addresses),
            servers: servers.iter().flat_map(|server| texts(&server.addresses)).collect(),
        };
        self.ready.push_back(Message::Settings(settings));
    }

    /// The next message. Cancel-safe: what was received is handled before the next wait.
    pub(super) async fn next(&mut self) -> Option<Result<DiscoveryResponse, Status>> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(Ok(DiscoveryResponse { message: Some(message) }));
            }
            if self.ended {
                return None;
            }
            if let Err(refusal) = self.event().await {
                self.ended = true;
                info!(node = %self.node, reason = %refusal.faults()[0], "discovery stream closed");
                return Some(Err(refusal.into()));
            }
        }
    }

    /// Waits for one thing to happen and handles it.
    async fn event(&mut self) -> Result<(), Refusal> {
        let clock = self.core.clock.clone();
        let not_after = self.caller.peer.as_ref().map(|peer| peer.not_after);
        let expired = async {
            match not_after {
                Some(time) => clock.sleep_until(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.core.draining.cancelled() => {
                self.go_away(GO_AWAY_WITHIN, "the server ends");
                self.ended = true;
            }
            Ok(()) = self.asked.changed() => {
                let asked = *self.asked.borrow_and_update();
                if let Some(within) = asked {
                    self.go_away(within, "another server has joined");
                }
            }
            Ok(()) = self.servers.changed() => self.settings(),
            () = self.connected.replaced().cancelled() => {
                let what = format!("node {} has connected anew", self.node);
                return Err(Refusal::new(tonic::Code::Aborted, catalogued(code::OLD_BOOT, what)));
            }
            () = expired => {
                let what = format!("the certificate of node {} has expired", self.node);
                return Err(Refusal::new(tonic::Code::Unauthenticated, catalogued(code::PEER_EXPIRED, what)));
            }
            message = self.requests.message() => match message {
                Ok(Some(request)) => self.handle(request)?,
                // The agent is gone; there is nobody to tell.
                Ok(None) | Err(_) => self.ended = true,
            },
            changed = self.worlds.changed() => match changed {
                Ok(()) => {
                    nodes::check_not_banned(&self.core, &self.caller, &self.node)?;
                    self.look()?;
                }
                Err(_) => self.ended = true,
            },
            Ok(()) = self.bundles.changed() => {
                let bundle = Arc::clone(&self.bundles.borrow_and_update());
                let peer = self.caller.peer.as_ref();
                if peer.is_some_and(|peer| !bundle.has_key_of(&peer.authority_key_ids)) {
                    let what = format!("the root of the certificate of node {} was revoked", self.node);
                    let fault = catalogued(code::AUTHORITY_REVOKED, what);
                    return Err(Refusal::new(tonic::Code::Unauthenticated, fault));
                }
                self.ready.push_back(Message::Bundle(bundle_message(&bundle)));
            }
        }
        Ok(())
    }

    fn go_away(&mut self, within: Duration, reason: &str) {
        let reason = reason.to_owned();
        self.ready.push_back(Message::GoAway(GoAway { within_ms: millis(within), reason }));
    }

    fn handle(&mut self, request: DiscoveryRequest) -> Result<(), Refusal> {
        match request.message {
            Some(discovery_request::Message::Subscribe(subscribe)) => {
                let (add, remove) = (names(&subscribe.add, MAX_NAMES)?, names(&subscribe.remove, MAX_NAMES)?);
                self.session.subscribe(add, &remove).map_err(breach)?;
            }
            Some(discovery_request::Message::Ack(ack)) => {
                self.session.ack(Revision(ack.revision)).map_err(breach)?;
                if let Some(took) = self.connected.acked(Revision(ack.revision)) {
                    self.core.metrics.sync_lag.set(took.as_secs_f64());
                }
            }
            Some(discovery_request::Message::Nack(nack)) => {
                self.session.nack(Revision(nack.revision)).map_err(breach)?;
                self.connected.nacked(Revision(nack.revision), &nack.reason);
                self.core.metrics.nacks.inc();
                let reason = nack.reason.chars().take(200).collect::<String>();
                warn!(node = %self.node, revision = nack.revision, ?reason, "an agent refuses an update");
            }
            Some(discovery_request::Message::BundleAck(ack)) => {
                if ack.sequence > self.bundles.borrow().sequence() {
                    return Err(Refusal::bad_value("sequence", "no such bundle was sent"));
                }
                self.connected.has_bundle(ack.sequence);
                return Ok(());
            }
            Some(discovery_request::Message::Hello(_)) => {
                return Err(Refusal::bad_value("hello", "a stream begins with one Hello"));
            }
            None => return Err(Refusal::bad_value("message", "the message is empty or of a newer version")),
        }
        self.look()
    }

    /// Looks whether there is something to tell.
    fn look(&mut self) -> Result<(), Refusal> {
        let world = Arc::clone(&self.worlds.borrow_and_update());
        let unknown = self.session.poll_unknown(&world);
        if !unknown.is_empty() {
            let services = unknown.iter().map(ServiceName::to_string).collect();
            self.ready.push_back(Message::Unknown(Unknown { services }));
        }
        if let Some(update) = self.session.poll_update(&world, &self.encodings).map_err(|too_large| {
            let what = format!("what agent {} needs does not fit into one message: {too_large}", self.node);
            Refusal::exhausted(code::MESSAGE_TOO_LARGE, what)
        })? {
            self.connected.sent(Revision(update.to));
            self.core.metrics.update(update.full);
            self.ready.push_back(Message::Delta(update));
        } else if self.session.is_current() {
            // Nothing of what changed concerns this agent: it is as new as the world.
            self.connected.acked(shown(world.catalog().revision()));
        }
        Ok(())
    }
}

impl Drop for AgentStream {
    fn drop(&mut self) {
        if let Some(held) = self.session.held() {
            self.kept.put(self.node.clone(), held.clone());
        }
    }
}

/// The refusal of an agent that breaks the protocol.
pub(super) fn breach(breach: Breach) -> Refusal {
    match breach {
        Breach::NotSent(_) => Refusal::bad_value("revision", breach.to_string()),
        Breach::TooManySubscriptions => Refusal::exhausted(code::TOO_MANY_STREAMS, breach.to_string()),
    }
}

fn bundle_message(bundle: &TrustBundle) -> Bundle {
    Bundle {
        sequence: bundle.sequence(),
        trust_domain: bundle.trust_domain().to_string(),
        roots: bundle.roots().map(|root| root.as_ref().to_vec()).collect(),
        tainted: bundle.tainted().iter().map(|root| root.to_vec()).collect(),
        acknowledge: true,
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The longest wait between reconnects that agents are to take: so long that they come back at no more than about 700 a
/// second.
fn reconnect_cap(agents: usize) -> Duration {
    let shares = agents.div_ceil(AGENTS_PER_CAP).max(1);
    RECONNECT_CAP * u32::try_from(shares).unwrap_or(u32::MAX)
}

/// The Hello that a stream begins with.
pub(super) fn hello(first: Option<DiscoveryRequest>) -> Result<pb::Hello, Refusal> {
    match first.and_then(|request| request.message) {
        Some(discovery_request::Message::Hello(hello)) => Ok(hello),
        Some(
            discovery_request::Message::Subscribe(_)
            | discovery_request::Message::Ack(_)
            | discovery_request::Message::Nack(_)
            | discovery_request::Message::BundleAck(_),
        )
        | None => Err(Refusal::bad_value("hello", "a stream begins with one Hello")),
    }
}
