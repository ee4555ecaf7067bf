//! Keeps the snapshot current: one stream to one server, deltas in, acks and nacks out.
//!
//! The last good snapshot stays in force whatever arrives or fails to. A delta is applied whole or refused whole; what
//! was applied is kept on disk, so that a restart without a server serves.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rustls_pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tracing::{debug, info, warn};
use weft_api::{
    channel::MAX_MESSAGE_BYTES,
    convert::discovery::{DeltaFault, delta_from_message},
    pb::discovery::{
        self, Ack, DiscoveryRequest, DiscoveryResponse, Hello, Nack, Subscribe,
        discovery_client::DiscoveryClient, discovery_request, discovery_response,
    },
    record::view_digest,
};
use weft_identity::bundle::TrustBundle;
use weft_policy::{
    name::ServiceName,
    snapshot::{Revision, Snapshot, SnapshotContext, View},
};

use super::link::{BACKOFF_CAP, back_off};
use crate::shared::Shared;

/// Requests waiting to be sent: one ack and one subscription are ever under way.
const REQUESTS: usize = 16;
/// How many services one Subscribe names (discovery.proto).
const SUBSCRIBE_CHUNK: usize = 1_000;
/// How often unused destinations are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(30);

/// What the agent holds.
struct Held {
    revision: Revision,
    view: Arc<View>,
    digest: [u8; 32],
}

/// Why a session ended.
enum End {
    /// The stream broke or could not be opened.
    Broken(String),
    /// The server asked the agent to go elsewhere within that time.
    GoAway(Duration),
}

/// Runs for the life of the agent. Cancel by dropping: the snapshot in force stays.
pub(crate) async fn keep_current(shared: Arc<Shared>) {
    let mut held = held_from(&shared);
    let mut failures = 0;
    let mut cap = BACKOFF_CAP;
    loop {
        match shared.link.connect().await {
            Ok((channel, server)) => {
                let end = session(&shared, channel, &server, &mut held, &mut failures, &mut cap).await;
                match end {
                    End::Broken(why) => {
                        info!(server, why, "server lost; the last snapshot stays in force");
                        shared.link.down(why);
                    }
                    End::GoAway(within) => {
                        shared.link.down("the server asked its agents to move".to_owned());
                        let wait = within.mul_f64(shared.draw());
                        tokio::time::sleep(wait.min(Duration::from_secs(30))).await;
                    }
                }
            }
            Err(error) => {
                debug!(%error, "no server");
                shared.link.down(error.to_string());
            }
        }
        failures += 1;
        let wait = shared.with_rng(|rng| back_off(failures, cap, rng));
        tokio::time::sleep(wait).await;
    }
}

fn held_from(shared: &Shared) -> Held {
    match shared.state.load() {
        Some(snapshot) => {
            let view = Arc::clone(snapshot.view());
            Held { revision: snapshot.revision(), digest: view_digest(&view), view }
        }
        None => Held { revision: Revision(0), view: Arc::new(View::new()), digest: [0; 32] },
    }
}

async fn session(
    shared: &Arc<Shared>,
    channel: Channel,
    server: &str,
    held: &mut Held,
    failures: &mut u32,
    cap: &mut Duration,
) -> End {
    let (requests, outgoing) = mpsc::channel(REQUESTS);
    let mut wanted = shared.demand.changes();
    let mut told = shared.demand.all();
    let hello = hello(shared, held, &told);
    if requests.try_send(hello).is_err() {
        return End::Broken("the request queue is full".to_owned());
    }
    let mut client = DiscoveryClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut stream = match client.stream(ReceiverStream::new(outgoing)).await {
        Ok(response) => response.into_inner(),
        Err(status) => return End::Broken(status.message().to_owned()),
    };
    let mut forget = tokio::time::interval(FORGET_EVERY);
    let mut is_up = false;
    loop {
        tokio::select! {
            message = stream.message() => {
                let message = match message {
                    Ok(Some(message)) => message,
                    Ok(None) => return End::Broken("the server closed the stream".to_owned()),
                    Err(status) => return End::Broken(status.message().to_owned()),
                };
                if !is_up {
                    is_up = true;
                    *failures = 0;
                    info!(server, "connected to a server");
                    shared.link.up(channel.clone(), server.to_owned());
                }
                match handle(shared, message, held, cap) {
                    Handled::Nothing => {}
                    Handled::Answer(answer) => {
                        if requests.send(answer).await.is_err() {
                            return End::Broken("the stream does not take requests".to_owned());
                        }
                    }
                    Handled::GoAway(within) => return End::GoAway(within),
                    Handled::StartOver(why) => {
                        *held = Held { revision: Revision(0), view: Arc::new(View::new()), digest: [0; 32] };
                        return End::Broken(why);
                    }
                }
            }
            Ok(()) = wanted.changed() => {
                for request in subscriptions(&mut told, shared) {
                    if requests.send(request).await.is_err() {
                        return End::Broken("the stream does not take requests".to_owned());
                    }
                }
            }
            _ = forget.tick() => shared.demand.forget(shared.clock.now()),
        }
    }
}

fn hello(shared: &Shared, held: &Held, services: &BTreeSet<ServiceName>) -> DiscoveryRequest {
    let hello = Hello {
        boot: shared.boot,
        advertise: shared.advertise.iter().map(ToString::to_string).collect(),
        resume_revision: held.revision.0,
        view_digest: held.digest.to_vec(),
        services: services.iter().map(ToString::to_string).collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    DiscoveryRequest { message: Some(discovery_request::Message::Hello(hello)) }
}

/// The changes of the wanted set since the server was last told, in messages of legal size.
fn subscriptions(told: &mut BTreeSet<ServiceName>, shared: &Shared) -> Vec<DiscoveryRequest> {
    let wanted = shared.demand.all();
    let names = |set: Vec<&ServiceName>| set.into_iter().map(ToString::to_string).collect::<Vec<_>>();
    let add = names(wanted.difference(told).collect());
    let remove = names(told.difference(&wanted).collect());
    *told = wanted;
    let mut requests = Vec::new();
    let mut push = |add: &[String], remove: &[String]| {
        let subscribe = Subscribe { add: add.to_vec(), remove: remove.to_vec() };
        requests.push(DiscoveryRequest { message: Some(discovery_request::Message::Subscribe(subscribe)) });
    };
    add.chunks(SUBSCRIBE_CHUNK).for_each(|chunk| push(chunk, &[]));
    remove.chunks(SUBSCRIBE_CHUNK).for_each(|chunk| push(&[], chunk));
    requests
}

/// What follows from a message.
enum Handled {
    Nothing,
    Answer(DiscoveryRequest),
    GoAway(Duration),
    StartOver(String),
}

fn handle(shared: &Shared, message: DiscoveryResponse, held: &mut Held, cap: &mut Duration) -> Handled {
    match message.message {
        None => Handled::Nothing,
        Some(discovery_response::Message::Delta(delta)) => take_delta(shared, delta, held),
        Some(discovery_response::Message::Bundle(bundle)) => {
            take_bundle(shared, &bundle);
            Handled::Nothing
        }
        Some(discovery_response::Message::Unknown(unknown)) => {
            let now = shared.clock.now();
            for service in unknown.services.iter().filter_map(|text| parse_service(text)) {
                shared.demand.mark_unknown(service, now);
            }
            Handled::Nothing
        }
        Some(discovery_response::Message::GoAway(go)) => Handled::GoAway(Duration::from_millis(go.within_ms)),
        Some(discovery_response::Message::Settings(settings)) => {
            *cap = Duration::from_millis(settings.reconnect_cap_ms).max(BACKOFF_CAP);
            Handled::Nothing
        }
    }
}

/// Reads `name.namespace`.
fn parse_service(text: &str) -> Option<ServiceName> {
    let (name, namespace) = text.split_once('.')?;
    Some(ServiceName::new(namespace.parse().ok()?, name.parse().ok()?))
}

fn take_delta(shared: &Shared, message: discovery::Delta, held: &mut Held) -> Handled {
    let to = message.to;
    let expected = message.view_digest.clone();
    match apply(shared, message, held, &expected) {
        Ok(next) => {
            *held = next;
            shared.persist(held.revision, &held.view);
            answer(discovery_request::Message::Ack(Ack { revision: to }))
        }
        Err(Refusal::StartOver(why)) => {
            warn!(revision = to, why, "the update does not fit what is held; asking for everything again");
            Handled::StartOver(why)
        }
        Err(Refusal::Nack(reason)) => {
            warn!(revision = to, reason, "update refused; the last good snapshot stays in force");
            answer(discovery_request::Message::Nack(Nack { revision: to, reason }))
        }
    }
}

fn answer(message: discovery_request::Message) -> Handled {
    Handled::Answer(DiscoveryRequest { message: Some(message) })
}

enum Refusal {
    /// The content is wrong: nothing but a new revision helps.
    Nack(String),
    /// This agent and the server hold different things: start from nothing.
    StartOver(String),
}

fn apply(shared: &Shared, message: discovery::Delta, held: &Held, expected: &[u8]) -> Result<Held, Refusal> {
    let delta = delta_from_message(message).map_err(|fault: DeltaFault| Refusal::Nack(fault.to_string()))?;
    delta.check_base(held.revision).map_err(|error| Refusal::StartOver(error.to_string()))?;
    let view = held.view.apply(&delta).map_err(|error| Refusal::StartOver(error.to_string()))?;
    let view = Arc::new(view);
    let digest = view_digest(&view);
    if digest.as_slice() != expected {
        return Err(Refusal::StartOver("the digest of the view differs from the server's".to_owned()));
    }
    let context = SnapshotContext { trust_domain: shared.trust_domain.clone() };
    let snapshot = Snapshot::build(Arc::clone(&view), delta.to, context)
        .map_err(|error| Refusal::Nack(error.to_string()))?;
    for notice in snapshot.notices() {
        warn!(%notice, "left out of the snapshot");
    }
    shared.publish(snapshot);
    info!(revision = %delta.to, objects = view.len(), full = delta.full, "snapshot in force");
    Ok(Held { revision: delta.to, view, digest })
}

/// Takes a newer bundle in. An older one is a rollback and is refused (FE-11).
fn take_bundle(shared: &Shared, message: &discovery::Bundle) {
    let roots = message.roots.iter().map(|der| CertificateDer::from(der.clone())).collect();
    if message.trust_domain != shared.trust_domain.as_str() {
        warn!(trust_domain = message.trust_domain, "bundle of a foreign trust domain refused");
        return;
    }
    let held = shared.bundle_sequence();
    if message.sequence < held {
        warn!(held, offered = message.sequence, "older bundle refused");
        return;
    }
    match TrustBundle::new(shared.trust_domain.clone(), roots, message.sequence) {
        Ok(bundle) => shared.publish_bundle(bundle),
        Err(error) => warn!(%error, "bundle refused"),
    }
}
