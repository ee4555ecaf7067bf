//! A simulated agent: all of a real one that its server sees. It joins with a token, proves itself with its SVID,
//! registers its workloads, asks for the services that it calls, and acknowledges what it is told.
//!
//! What it does not do is use what it is told. One of [`CHECKED`] keeps it as real ones do and compares the digest.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustls_pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use weft_api::channel::{ALPN_H2, MAX_MESSAGE_BYTES, connect};
use weft_api::convert::discovery::delta_from_message;
use weft_api::pb::discovery::discovery_client::DiscoveryClient;
use weft_api::pb::discovery::{
    Ack, BundleAck, Delta, DiscoveryRequest, DiscoveryResponse, Hello, RegisterRequest, UnregisterRequest,
    discovery_request, discovery_response,
};
use weft_api::pb::identity::JoinRequest;
use weft_api::pb::identity::identity_client::IdentityClient;
use weft_api::record::view_digest;
use weft_api::token::JoinToken;
use weft_identity::bundle::{TrustBundle, TrustBundles};
use weft_identity::csr::SigningRequest;
use weft_identity::svid::Svid;
use weft_identity::tls::{BundleSlot, ExpectedPeer, JoinVerifier, SvidSlot, client_config, join_config};
use weft_policy::snapshot::View;

use super::board::Board;
use super::person::{NAMESPACE, said};
use super::wire;
use crate::plane::TRUST_DOMAIN;

/// One of so many agents keeps its view and checks its digest; if all did, this process would take the time of the one
/// that is measured.
const CHECKED: usize = 20;
/// The boot number: each runs once.
const BOOT: u64 = 1;
/// Requests that wait to be sent: an ack of an update and one of a bundle.
const REQUESTS: usize = 4;

/// A workload of an agent.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    /// Its own name.
    pub(super) name: String,
    /// The service that it serves, which is its account as well.
    pub(super) service: String,
}

/// Who an agent is and what it has.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) number: usize,
    pub(super) name: String,
    pub(super) workloads: Vec<Workload>,
    pub(super) calls: Vec<String>,
}

/// An agent that is connected. A clone is the same.
#[derive(Clone)]
pub(super) struct Agent {
    pub(super) node: Arc<Node>,
    client: DiscoveryClient<Channel>,
}

/// What an agent is told, for as long as it lives.
pub(super) struct Stream {
    agent: Agent,
    messages: Streaming<DiscoveryResponse>,
    requests: mpsc::Sender<DiscoveryRequest>,
    board: Arc<Board>,
    view: Option<View>,
}

impl Agent {
    /// Joins with `token`, connects, and registers its workloads.
    pub(super) async fn join(
        node: Node,
        token: &JoinToken,
        server: SocketAddr,
        board: &Arc<Board>,
    ) -> Result<(Self, Stream)> {
        let tls = credentials(&node.name, token).await?;
        let channel = wire::connect(server, tls, Arc::clone(&board.wire)).await?;
        let client = DiscoveryClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut agent = Self { node: Arc::new(node), client };
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        requests.try_send(agent.hello()).context("the queue of requests is full")?;
        let opened = agent.client.stream(ReceiverStream::new(outgoing)).await.map_err(said)?;
        let view = agent.node.number.is_multiple_of(CHECKED).then(View::new);
        let messages = opened.into_inner();
        let stream = Stream { agent: agent.clone(), messages, requests, board: Arc::clone(board), view };
        Ok((agent, stream))
    }

    fn hello(&self) -> DiscoveryRequest {
        let services = self.node.calls.iter().map(|service| format!("{service}.{NAMESPACE}"));
        let hello = Hello {
            boot: BOOT,
            advertise: vec![format!("192.0.2.{}:7443", self.node.number % 250 + 1)],
            services: services.collect(),
            version: "bench".to_owned(),
            ..Default::default()
        };
        DiscoveryRequest { message: Some(discovery_request::Message::Hello(hello)) }
    }

    /// Registers a workload.
    pub(super) async fn register(&self, workload: &Workload) -> Result<()> {
        let request = RegisterRequest {
            namespace: NAMESPACE.to_owned(),
            name: workload.name.clone(),
            identity: format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{}", workload.service),
            ports: BTreeMap::from([("echo".to_owned(), "127.0.0.1:7".to_owned())]),
            weight: 1,
            boot: BOOT,
            services: vec![workload.service.clone()],
            ..Default::default()
        };
        self.client.clone().register(request).await.map(drop).map_err(said)
    }

    /// Withdraws a workload.
    pub(super) async fn withdraw(&self, workload: &Workload) -> Result<()> {
        let (namespace, name) = (NAMESPACE.to_owned(), workload.name.clone());
        let request = UnregisterRequest { namespace, name, boot: BOOT };
        self.client.clone().unregister(request).await.map(drop).map_err(said)
    }
}

impl Stream {
    /// Takes in and acknowledges what comes, until the stream ends.
    pub(super) async fn run(mut self) -> Result<()> {
        while let Some(message) = self.messages.message().await.map_err(said)? {
            match message.message {
                Some(discovery_response::Message::Delta(delta)) => self.take(delta).await?,
                Some(discovery_response::Message::Bundle(bundle)) => {
                    let ack = BundleAck { sequence: bundle.sequence };
                    self.answer(discovery_request::Message::BundleAck(ack)).await?;
                }
                Some(discovery_response::Message::Settings(_)) => {}
                Some(discovery_response::Message::Unknown(unknown)) => {
                    bail!("there are no {:?}", unknown.services)
                }
                Some(discovery_response::Message::GoAway(_)) | None => bail!("the server does not go on"),
            }
        }
        bail!("the stream of {} ended", self.agent.node.name)
    }

    async fn take(&mut self, delta: Delta) -> Result<()> {
        if self.view.is_some() {
            self.check(delta.clone())?;
        }
        let ack = Ack { revision: delta.to };
        self.answer(discovery_request::Message::Ack(ack)).await?;
        self.board.acked(self.agent.node.number, &self.agent.node.name, &delta);
        Ok(())
    }

    /// What is held after `delta` must be what the server says.
    fn check(&mut self, delta: Delta) -> Result<()> {
        let Some(held) = &self.view else { return Ok(()) };
        let expected = delta.view_digest.clone();
        let view = held.apply(&delta_from_message(delta)?)?;
        ensure!(view_digest(&view).as_slice() == expected, "{} holds something else", self.agent.node.name);
        self.view = Some(view);
        Ok(())
    }

    async fn answer(&self, message: discovery_request::Message) -> Result<()> {
        let request = DiscoveryRequest { message: Some(message) };
        self.requests.send(request).await.map_err(|_| anyhow!("the stream takes no requests"))
    }
}

/// Uses `token` up for an SVID, and makes of it what a caller presents and whom it believes.
async fn credentials(node: &str, token: &JoinToken) -> Result<Arc<rustls::ClientConfig>> {
    let verifier = JoinVerifier::new(token.trust_domain.clone(), token.fingerprints.iter().copied());
    let channel = connect(&token.servers, Arc::new(join_config(verifier, &[ALPN_H2])), "127.0.0.1").await?;
    let (key, csr) = SigningRequest::create()?;
    let request =
        JoinRequest { secret: token.secret().to_owned(), node: node.to_owned(), csr, ..Default::default() };
    let joined = IdentityClient::new(channel).join(request).await.map_err(said)?.into_inner();
    let chain = joined.chain.into_iter().map(CertificateDer::from).collect();
    let bundle = joined.bundle.context("no bundle came")?;
    let roots = bundle.roots.into_iter().map(CertificateDer::from).collect();
    let bundle = TrustBundle::new(token.trust_domain.clone(), roots, bundle.sequence)?;
    let slot = SvidSlot::empty();
    slot.publish(Svid::parse(chain, key)?);
    let expected = ExpectedPeer::AnyServerOf(token.trust_domain.clone());
    let bundles = BundleSlot::new(TrustBundles::from(bundle));
    Ok(Arc::new(client_config(Some(slot), bundles, expected, &[ALPN_H2])))
}
