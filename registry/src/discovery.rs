//! What agents are told, and what they announce: the service of [`weft_api::pb::discovery`].
//!
//! Owns admission of an agent's stream: who it is, which boot, where it takes tunnels. What it then holds and is sent is
//! [`session`]'s, the messages are `stream`'s, registrations are [`crate::registration`]'s.

pub mod session;

mod encodings;
mod fit;
mod kept;
mod stream;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::stream::{BoxStream, unfold};
use tonic::{Request, Response, Status, Streaming};
use tracing::info;
use weft_api::{
    channel::MAX_MESSAGE_BYTES,
    pb::discovery::{
        self as pb, DiscoveryRequest, DiscoveryResponse, MayRunRequest, MayRunResponse, RegisterRequest,
        RegisterResponse, UnregisterRequest, UnregisterResponse,
        discovery_server::{Discovery, DiscoveryServer},
    },
};
use weft_policy::{
    code,
    model::HostPort,
    name::{NodeName, ServiceName},
    snapshot::Revision,
};

pub use self::{encodings::Encodings, fit::TooLarge};
use self::{
    kept::Kept,
    session::{MAX_SUBSCRIPTIONS, Session},
    stream::{AgentStream, breach, hello},
};
use crate::{
    core::Core,
    management::caller,
    metrics::Counted,
    nodes::{node_of, old_boot, update},
    presence::NotAdmitted,
    refusal::Refusal,
    registration, renewals,
    roles::Caller,
    shared_uid,
    wire::Spoken,
};

/// The most services that one Subscribe adds, and removes (discovery.proto).
pub const MAX_NAMES: usize = 1_000;
/// The most addresses that an agent advertises (the model's bound of an endpoint).
const MAX_ADDRESSES: usize = 8;
/// How long a new stream may take to say who it is for.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// The longest version that is kept.
const MAX_VERSION_CHARS: usize = 64;

/// Serves agents. A clone serves the same.
#[derive(Clone)]
pub struct DiscoveryService {
    core: Arc<Core>,
    kept: Arc<Kept>,
    encodings: Arc<Encodings>,
}

impl std::fmt::Debug for DiscoveryService {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("DiscoveryService").finish_non_exhaustive()
    }
}

impl DiscoveryService {
    /// A service over what the plane shares.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        let encodings = Arc::new(Encodings::new(core.metrics.encoded_objects.clone()));
        Self { core, kept: Arc::default(), encodings }
    }

    /// The same, ready to be added to a tonic server.
    #[must_use]
    pub fn into_server(self) -> Spoken<DiscoveryServer<Self>> {
        let server = DiscoveryServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Spoken::new(server)
    }

    async fn open(
        &self,
        caller: Caller,
        mut requests: Streaming<DiscoveryRequest>,
    ) -> Result<AgentStream, Refusal> {
        let node = node_of(&self.core, &caller)?;
        renewals::seen(&self.core, &caller, &node).await?;
        let first = tokio::time::timeout(HELLO_WITHIN, requests.message()).await;
        let first = first.map_err(|_| Refusal::bad_value("hello", "no Hello came in time"))?;
        let hello = hello(first.map_err(|_| Refusal::bad_value("hello", "the stream broke"))?)?;
        let services = names(&hello.services, MAX_SUBSCRIPTIONS)?;
        self.note(&node, &hello).await?;
        let connected = self.core.presence.connect(&node, hello.boot, version(&hello)).map_err(
            |refused| match refused {
                NotAdmitted::OldBoot { boot, newest } => old_boot(&node, boot, newest),
                NotAdmitted::Full => Refusal::exhausted(code::TOO_MANY_STREAMS, refused.to_string()),
            },
        )?;
        let mut worlds = self.core.world.changes();
        let world = Arc::clone(&worlds.borrow_and_update());
        let claim = (Revision(hello.resume_revision), hello.view_digest.as_slice());
        let kept = self.kept.take(&node);
        let held = Session::resumed(&world, &node, &services, claim, kept, &self.encodings);
        info!(%node, boot = hello.boot, services = services.len(), resumed = held.is_some(), "agent connected");
        let session = Session::new(node.clone(), services, held).map_err(breach)?;
        let mut stream = AgentStream {
            bundles: self.core.bundle.clone(),
            servers: self.core.servers.clone(),
            asked: connected.asked(),
            core: Arc::clone(&self.core),
            caller,
            node,
            requests,
            worlds,
            connected,
            session,
            kept: Arc::clone(&self.kept),
            encodings: Arc::clone(&self.encodings),
            ready: VecDeque::new(),
            ended: false,
            _counted: Counted::new(&self.core.metrics.agents),
        };
        stream.greet()?;
        Ok(stream)
    }

    /// Writes down where the agent takes tunnels, and its boot number, which fences older runs of it.
    async fn note(&self, node: &NodeName, hello: &pb::Hello) -> Result<(), Refusal> {
        let advertise = addresses(&hello.advertise)?;
        update(&self.core, node, |record| {
            if record.boot > hello.boot {
                return Err(old_boot(node, hello.boot, record.boot));
            }
            record.boot = hello.boot;
            record.advertise.clone_from(&advertise);
            record.version = version(hello);
            Ok(())
        })
        .await
        .map(drop)
    }
}

#[tonic::async_trait]
impl Discovery for DiscoveryService {
    type StreamStream = BoxStream<'static, Result<DiscoveryResponse, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let caller = caller(&request)?;
        let opened = self.open(caller, request.into_inner()).await?;
        let messages = unfold(opened, |mut opened| async move {
            let message = opened.next().await?;
            Some((message, opened))
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let caller = caller(&request)?;
        let node = node_of(&self.core, &caller)?;
        let request = request.into_inner();
        let answer = match shared_uid::check(&self.core, &caller, request.uid) {
            Ok(()) => registration::register(&self.core, &node, request).await,
            Err(refusal) => Err(refusal),
        };
        let outcome = answer.as_ref().map_or_else(|refusal| refusal.faults()[0].code.as_ref(), |_| "ok");
        self.core.metrics.registration(outcome);
        Ok(Response::new(answer?))
    }

    async fn may_run(&self, request: Request<MayRunRequest>) -> Result<Response<MayRunResponse>, Status> {
        let caller = caller(&request)?;
        let node = node_of(&self.core, &caller)?;
        registration::may_run(&self.core.world.catalog(), &node, &request.into_inner())?;
        Ok(Response::new(MayRunResponse {}))
    }

    async fn unregister(
        &self,
        request: Request<UnregisterRequest>,
    ) -> Result<Response<UnregisterResponse>, Status> {
        let caller = caller(&request)?;
        let node = node_of(&self.core, &caller)?;
        registration::unregister(&self.core, &node, request.into_inner()).await?;
        Ok(Response::new(UnregisterResponse {}))
    }
}

/// Reads services, each `name.namespace`.
fn names(texts: &[String], most: usize) -> Result<BTreeSet<ServiceName>, Refusal> {
    if texts.len() > most {
        let what = format!("{} services in one message, at most {most}", texts.len());
        return Err(Refusal::exhausted(code::OVER_LIMIT, what));
    }
    let read = |text: &String| {
        service_name(text).ok_or_else(|| Refusal::bad_value("services", "a service is name.namespace"))
    };
    texts.iter().map(read).collect()
}

/// Reads `name.namespace`.
pub(crate) fn service_name(text: &str) -> Option<ServiceName> {
    let (name, namespace) = text.split_once('.')?;
    Some(ServiceName::new(namespace.parse().ok()?, name.parse().ok()?))
}

fn addresses(texts: &[String]) -> Result<Vec<HostPort>, Refusal> {
    if texts.len() > MAX_ADDRESSES {
        return Err(Refusal::bad_value("advertise", format!("more than {MAX_ADDRESSES} addresses")));
    }
    let read = |text: &String| {
        text.parse()
            .map_err(|_| Refusal::bad_value("advertise", "an address is host:port with a port above 0"))
    };
    texts.iter().map(read).collect()
}

fn version(hello: &pb::Hello) -> String {
    hello.version.chars().filter(char::is_ascii_graphic).take(MAX_VERSION_CHARS).collect()
}

#[cfg(test)]
mod tests;
