//! Keeps the snapshot current: one stream to one server, deltas in, acks and nacks out.
//!
//! The last good snapshot stays in force whatever arrives or fails to. A delta is applied whole or refused whole; what
//! was applied is kept on disk, so that a restart without a server serves.

use std::{collections::BTreeSet, pin::Pin, sync::Arc, time::Duration};

use rand::{SeedableRng as _, rngs::StdRng};
use rustls_pki_types::CertificateDer;
use tokio::{sync::mpsc, time::Sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tracing::{debug, info, warn};
use weft_api::{
    channel::MAX_MESSAGE_BYTES,
    convert::discovery::{DeltaFault, delta_from_message},
    fault::{Fault, from_status},
    pb::discovery::{
        self, Ack, BundleAck, DiscoveryRequest, DiscoveryResponse, Hello, Nack, Subscribe,
        discovery_client::DiscoveryClient, discovery_request, discovery_response,
    },
    record::view_digest,
};
use weft_identity::bundle::TrustBundle;
use weft_policy::{
    code::{self, CodeId},
    name::ServiceName,
    snapshot::{Revision, Snapshot, SnapshotContext, View},
};

use super::link::{BACKOFF_CAP, back_off, no_server};
use crate::shared::Shared;

/// Requests waiting to be sent: one ack and one subscription are ever under way.
const REQUESTS: usize = 16;
/// How many services one Subscribe names (discovery.proto).
const SUBSCRIBE_CHUNK: usize = 1_000;
/// How often unused destinations are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(30);

/// The longest time within which an agent goes elsewhere: a server may not make it wait for ever.
const LONGEST_GOING: Duration = Duration::from_secs(30);

/// An agent that is asked to move again before it has been at a server for so long waits longer each time: servers
/// that send it to each other must not keep it, and themselves, busy with handshakes.
const SETTLED: Duration = Duration::from_secs(60);

/// What the agent holds.
#[derive(Debug)]
struct Held {
    revision: Revision,
    view: Arc<View>,
    digest: [u8; 32],
}

/// Why a session ended.
enum End {
    /// The stream broke or could not be opened.
    Broken(Fault),
    /// The server asked the agent to go elsewhere within that time, and has ended.
    GoAway(Duration),
    /// The agent goes elsewhere, as the server asked; the server is still there.
    Left,
}

impl End {
    fn lost(what: &str) -> Self {
        Self::Broken(Fault::new(code::SERVER_UNREACHABLE, what))
    }
}

/// Runs for the life of the agent. Cancel by dropping: the snapshot in force stays.
pub(crate) async fn keep_current(shared: Arc<Shared>) {
    let mut held = held_from(&shared);
    let mut failures = 0;
    let mut cap = BACKOFF_CAP;
    let mut moves = 0;
    loop {
        let rng = shared.with_rng(StdRng::from_rng);
        match shared.link.connect(rng).await {
            Ok((channel, server)) => {
                let began = shared.clock.now();
                let end = session(&shared, channel, &server, &mut held, &mut failures, &mut cap).await;
                shared.link.leave();
                match end {
                    End::Left => {
                        info!(server, "the server asked this agent to use another one");
                        moves =
                            if shared.clock.now().duration_since(began) < SETTLED { moves + 1 } else { 1 };
                        let wait = shared.with_rng(|rng| back_off(moves, cap, rng));
                        tokio::time::sleep(wait).await;
                        continue;
                    }
                    End::Broken(why) => {
                        let (code, what) = (&why.code, &why.what);
                        info!(server, %code, what, "server lost; the last snapshot stays in force");
                        shared.link.down(why.to_string());
                    }
                    End::GoAway(within) => {
                        let why = "the server asked its agents to move";
                        warn!(server, code = %code::GOING_AWAY, ?within, "{why}");
                        shared.link.down(Fault::new(code::GOING_AWAY, why).to_string());
                        let wait = within.mul_f64(shared.draw());
                        tokio::time::sleep(wait).await;
                    }
                }
            }
            Err(error) => {
                let why = no_server(&error);
                debug!(code = %why.code, %error, "no server");
                shared.link.down(why.to_string());
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
        return End::lost("the request queue is full");
    }
    let mut client = DiscoveryClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut stream = match client.stream(ReceiverStream::new(outgoing)).await {
        Ok(response) => response.into_inner(),
        Err(status) => return End::Broken(from_status(&status).swap_remove(0)),
    };
    let mut forget = tokio::time::interval(FORGET_EVERY);
    let mut is_up = false;
    let mut asked: Option<Asked> = None;
    loop {
        tokio::select! {
            message = stream.message() => {
                let message = match message {
                    Ok(Some(message)) => message,
                    Ok(None) if asked.is_some() => return End::GoAway(asked.map(|asked| asked.within).unwrap_or_default()),
                    Ok(None) => return End::lost("the server closed the stream"),
                    Err(status) => return End::Broken(from_status(&status).swap_remove(0)),
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
                            return End::lost("the stream does not take requests");
                        }
                    }
                    Handled::GoAway(within) => {
                        let within = within.min(LONGEST_GOING);
                        let leaves = Box::pin(tokio::time::sleep(within.mul_f64(shared.draw())));
                        asked.get_or_insert(Asked { within, leaves });
                    }
                    Handled::StartOver(why) => {
                        *held = Held { revision: Revision(0), view: Arc::new(View::new()), digest: [0; 32] };
                        return End::Broken(Fault::new(code::DELTA_LOST, why));
                    }
                }
            }
            Ok(()) = wanted.changed() => {
                for request in subscriptions(&mut told, shared) {
                    if requests.send(request).await.is_err() {
                        return End::lost("the stream does not take requests");
                    }
                }
            }
            () = leaving(&mut asked) => return End::Left,
            _ = forget.tick() => shared.demand.forget(shared.clock.now()),
        }
    }
}

/// The server asked the agent to go.
struct Asked {
    within: Duration,
    /// Until it goes, this server serves it.
    leaves: Pin<Box<Sleep>>,
}

/// Waits for the moment to go; for ever while nobody asked.
async fn leaving(asked: &mut Option<Asked>) {
    match asked {
        Some(asked) => asked.leaves.as_mut().await,
        None => std::future::pending().await,
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
            let taken = take_bundle(shared, &bundle);
            // An earlier server does not ask, and does not know the answer.
            match taken.filter(|_| bundle.acknowledge) {
                Some(sequence) => answer(discovery_request::Message::BundleAck(BundleAck { sequence })),
                None => Handled::Nothing,
            }
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
            shared.link.tell(&settings.own, &settings.servers);
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
    let context = SnapshotContext { trust_domain: shared.trust_domain.clone() };
    match next(message, held, context) {
        Ok((snapshot, next)) => {
            for notice in snapshot.notices() {
                warn!(%notice, "left out of the snapshot");
            }
            shared.publish(snapshot);
            info!(revision = %next.revision, objects = next.view.len(), "snapshot in force");
            *held = next;
            shared.persist(held.revision, &held.view);
            answer(discovery_request::Message::Ack(Ack { revision: to }))
        }
        Err(refusal) => {
            let code = refusal.code();
            match refusal {
                Refusal::StartOver(why) => {
                    warn!(revision = to, %code, why, "the update does not fit what is held; asking for everything again");
                    Handled::StartOver(why)
                }
                Refusal::Nack(reason) => {
                    warn!(revision = to, %code, reason, "update refused; the last good snapshot stays in force");
                    answer(discovery_request::Message::Nack(Nack { revision: to, reason }))
                }
            }
        }
    }
}

fn answer(message: discovery_request::Message) -> Handled {
    Handled::Answer(DiscoveryRequest { message: Some(message) })
}

/// Why an update does not come into force.
#[derive(Debug)]
enum Refusal {
    /// The content is wrong: nothing but a new revision helps.
    Nack(String),
    /// This agent and the server hold different things: start from nothing.
    StartOver(String),
}

impl Refusal {
    const fn code(&self) -> CodeId {
        match self {
            Self::Nack(_) => code::SNAPSHOT_REFUSED,
            Self::StartOver(_) => code::DELTA_LOST,
        }
    }
}

/// What is held after an update, and the snapshot of it: whole, or not at all.
fn next(
    message: discovery::Delta,
    held: &Held,
    context: SnapshotContext,
) -> Result<(Snapshot, Held), Refusal> {
    let expected = message.view_digest.clone();
    let delta = delta_from_message(message).map_err(|fault: DeltaFault| Refusal::Nack(fault.to_string()))?;
    delta.check_base(held.revision).map_err(|error| Refusal::StartOver(error.to_string()))?;
    let view = held.view.apply(&delta).map_err(|error| Refusal::StartOver(error.to_string()))?;
    let view = Arc::new(view);
    let digest = view_digest(&view);
    if digest.as_slice() != expected {
        return Err(Refusal::StartOver("the digest of the view differs from the server's".to_owned()));
    }
    let snapshot = Snapshot::build(Arc::clone(&view), delta.to, context)
        .map_err(|error| Refusal::Nack(error.to_string()))?;
    Ok((snapshot, Held { revision: delta.to, view, digest }))
}

/// Takes a newer bundle in. An older one is a rollback and is refused (FE-11). Gives the sequence of one that is in force
/// and kept for a restart: an authority relies on that before it signs under a new root.
fn take_bundle(shared: &Shared, message: &discovery::Bundle) -> Option<u64> {
    let code = code::BAD_BUNDLE;
    let roots = message.roots.iter().map(|der| CertificateDer::from(der.clone())).collect();
    if message.trust_domain != shared.trust_domain.as_str() {
        warn!(trust_domain = message.trust_domain, %code, "bundle of a foreign trust domain refused");
        return None;
    }
    let held = shared.bundle_sequence();
    if message.sequence < held {
        warn!(held, offered = message.sequence, %code, "older bundle refused");
        return None;
    }
    let tainted: Option<Vec<[u8; 32]>> =
        message.tainted.iter().map(|root| root.as_slice().try_into().ok()).collect();
    let Some(tainted) = tainted else {
        warn!(%code, "bundle refused: a tainted root is no fingerprint");
        return None;
    };
    match TrustBundle::new(shared.trust_domain.clone(), roots, message.sequence) {
        Ok(bundle) => shared.publish_bundle(bundle.with_tainted(tainted)).then_some(message.sequence),
        Err(error) => {
            warn!(%error, %code, "bundle refused");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_api::{convert::discovery::delta_to_message, manifest};
    use weft_policy::{
        model::Resource,
        snapshot::{Delta, ViewObject},
    };

    use super::*;

    const TRUST_DOMAIN: &str = "corp.example";

    /// A view of nothing but the mesh itself.
    fn held() -> Held {
        let text = format!(
            r#"{{"apiVersion": "weft.mesh/v1alpha1", "kind": "Mesh", "metadata": {{"name": "mesh"}},
                "spec": {{"trustDomain": "{TRUST_DOMAIN}", "defaultAuthorization": "Deny", "egress": "Deny"}}}}"#
        );
        let Resource::Mesh(mesh) = manifest::parse_json(text.as_bytes(), None).unwrap() else {
            panic!("{text}")
        };
        let mut view = View::new();
        view.insert(ViewObject::Mesh(Arc::new(mesh)));
        Held { revision: Revision(7), digest: view_digest(&view), view: Arc::new(view) }
    }

    fn context(trust_domain: &str) -> SnapshotContext {
        SnapshotContext { trust_domain: trust_domain.parse().unwrap() }
    }

    /// An update from what is held to the same at the next revision, as the server sends it.
    fn update(held: &Held) -> discovery::Delta {
        delta_to_message(&Delta::full(&held.view, Revision(8)), held.digest)
    }

    #[test]
    fn an_update_that_lost_a_part_is_fetched_again_whole_and_one_that_contradicts_itself_is_refused() {
        let held = held();
        let (_, after) = next(update(&held), &held, context(TRUST_DOMAIN)).unwrap();
        assert_eq!((after.revision, after.digest), (Revision(8), held.digest));

        let mut lost = update(&held);
        lost.view_digest[0] ^= 1;
        assert_eq!(next(lost, &held, context(TRUST_DOMAIN)).unwrap_err().code(), code::DELTA_LOST);
        let mut gap = update(&held);
        (gap.full, gap.from) = (false, 6);
        assert_eq!(next(gap, &held, context(TRUST_DOMAIN)).unwrap_err().code(), code::DELTA_LOST);

        let foreign = next(update(&held), &held, context("other.example"));
        assert_eq!(foreign.unwrap_err().code(), code::SNAPSHOT_REFUSED);
    }
}
