//! Tests over real QUIC on loopback, with certificates of a real authority.
//!
//! [`World`] is a trust domain; a [`Party`] is a workload's agent with an endpoint of its own.

mod flow;
mod handshake;
mod lifecycle;
mod pool;
mod restart;
mod stall;

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use weft_identity::bundle::{TrustBundle, TrustBundles};
use weft_identity::ca::{CaSettings, CertificateAuthority, LeafLifetimes};
use weft_identity::csr::SigningRequest;
use weft_identity::svid::Svid;
use weft_identity::tls::{
    BundleSlot, ClientAuth, ExpectedPeer, InboundSvids, SvidSlot, client_config, server_config,
};
use weft_identity::{SpiffeId, TrustDomain};

use crate::*;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const DAY: Duration = Duration::from_secs(24 * 3600);
const LABEL: &str = "mfzwizltoq3gk5lsmfxhi2lpnz";
const SERVER_NAME: &str = "mfzwizltoq3gk5lsmfxhi2lpnz.local.weft";

/// One trust domain and its authority.
#[derive(Clone)]
struct World {
    authority: Arc<Mutex<CertificateAuthority>>,
    domain: TrustDomain,
    bundles: BundleSlot,
}

/// One workload's end: an endpoint that presents its SVID both ways.
#[derive(Clone)]
struct Party {
    world: World,
    id: SpiffeId,
    slot: SvidSlot,
    overlay: Overlay,
}

impl World {
    fn new() -> Self {
        let domain: TrustDomain = "test.example".parse().unwrap();
        let settings = CaSettings { lifetimes: LeafLifetimes::AllowShort, ..CaSettings::default() };
        let authority = CertificateAuthority::create_with(&domain, "one", settings, wall()).unwrap();
        let mut bundles = TrustBundles::new();
        let bundle = TrustBundle::new(domain.clone(), authority.bundle_roots(), 1).unwrap();
        bundles.insert(bundle).unwrap();
        let bundles = BundleSlot::new(bundles);
        Self { authority: Arc::new(Mutex::new(authority)), domain, bundles }
    }

    fn id(&self, name: &str) -> SpiffeId {
        SpiffeId::workload(&self.domain, "shop", name).unwrap()
    }

    fn issue(&self, id: &SpiffeId, ttl: Duration) -> Svid {
        let (key, request) = SigningRequest::create().unwrap();
        let request = SigningRequest::parse(&request).unwrap();
        let issued = self.authority.lock().unwrap().issue(&request, id, ttl, wall()).unwrap();
        Svid::parse(issued.chain, key).unwrap()
    }

    /// A party on a free port with the default settings.
    fn party(&self, name: &str) -> Party {
        self.party_with(name, TransportSettings::default())
    }

    fn party_with(&self, name: &str, settings: TransportSettings) -> Party {
        let keys = EndpointKeys::generate().unwrap();
        self.party_at("127.0.0.1:0".parse().unwrap(), name, settings, &keys)
    }

    fn party_at(
        &self,
        address: SocketAddr,
        name: &str,
        settings: TransportSettings,
        keys: &EndpointKeys,
    ) -> Party {
        let id = self.id(name);
        let slot = SvidSlot::empty();
        slot.publish(self.issue(&id, DAY));
        let server = self.server(&slot, &[ALPN]);
        let metrics = Arc::new(OverlayMetrics::unregistered());
        let overlay =
            Overlay::bind(bind_udp(address).unwrap(), Arc::new(server), settings, keys, metrics).unwrap();
        Party { world: self.clone(), id, slot, overlay }
    }

    fn server(&self, slot: &SvidSlot, alpn: &[&[u8]]) -> rustls::ServerConfig {
        let inbound = InboundSvids::new();
        inbound.insert(LABEL, slot.clone());
        server_config(Arc::new(inbound), self.bundles.clone(), ClientAuth::Required, alpn).unwrap()
    }
}

impl Party {
    fn address(&self) -> SocketAddr {
        self.overlay.local_addr().unwrap()
    }

    /// What this party dials `peer` with.
    fn client(&self, peer: &SpiffeId) -> Arc<rustls::ClientConfig> {
        let expected = ExpectedPeer::Exactly(peer.clone());
        Arc::new(client_config(Some(self.slot.clone()), self.world.bundles.clone(), expected, &[ALPN]))
    }

    fn dial_with(&self, peer: &SpiffeId) -> crate::pool::DialWith {
        crate::pool::DialWith { server_name: SERVER_NAME.to_owned(), client: self.client(peer) }
    }

    async fn dial(&self, peer: &Self) -> Tunnel {
        let client = self.client(&peer.id);
        self.overlay.dial(&[peer.address()], SERVER_NAME, client).await.unwrap()
    }

    async fn accept(&self) -> Tunnel {
        soon(self.overlay.accept()).await.unwrap().finish().await.unwrap()
    }

    /// Accepts tunnels and flows for as long as the set lives, and serves each flow by `serve`.
    fn serve<F>(&self, serve: impl Fn(Incoming) -> F + Clone + Send + 'static) -> JoinSet<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let overlay = self.overlay.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut tunnels = JoinSet::new();
            while let Some(handshake) = overlay.accept().await {
                let serve = serve.clone();
                tunnels.spawn(async move {
                    let Ok(tunnel) = handshake.finish().await else { return };
                    let mut flows = JoinSet::new();
                    while let Ok(opening) = tunnel.accept().await {
                        let serve = serve.clone();
                        flows.spawn(async move {
                            if let Ok(incoming) = opening.header().await {
                                serve(incoming).await;
                            }
                        });
                    }
                });
            }
        });
        tasks
    }
}

/// Two parties and the tunnel between them, both ends.
async fn pair(settings: TransportSettings) -> (Party, Party, Tunnel, Tunnel) {
    let world = World::new();
    let order = world.party_with("order", settings.clone());
    let charge = world.party_with("charge", settings);
    let (dialled, accepted) = tokio::join!(order.dial(&charge), charge.accept());
    (order, charge, dialled, accepted)
}

/// One flow, both ends, accepted.
async fn flow(dialled: &Tunnel, accepted: &Tunnel) -> (TunnelStream, TunnelStream) {
    let near = dialled.open(&header(80)).await.unwrap();
    let incoming = soon(accepted.accept()).await.unwrap().header().await.unwrap();
    (near, incoming.accept(Accepted::default()).await.unwrap())
}

/// Sends back what comes, and ends when it ends.
async fn echo(incoming: Incoming) {
    let Ok(stream) = incoming.accept(Accepted::default()).await else { return };
    let (mut send, mut recv) = stream.split();
    let mut chunks = vec![bytes::Bytes::new(); 64];
    while let Ok(Some(count)) = recv.read_chunks(&mut chunks).await {
        if send.write_all_chunks(&mut chunks[..count]).await.is_err() {
            return;
        }
    }
    let _ = send.finish();
}

fn header(port: u16) -> StreamHeader {
    StreamHeader {
        namespace: "shop".parse().unwrap(),
        service: "charge".parse().unwrap(),
        port: NonZeroU16::new(port).unwrap(),
        endpoint: LABEL.parse().unwrap(),
        protocol: Protocol::Tcp,
        trace: None,
        source: Some("127.0.0.1:40000".parse().unwrap()),
    }
}

/// The outcome of `future`, which comes soon or the test fails.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it comes soon")
}

/// Waits until `condition` holds, which it does soon or the test fails.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = clock::now() + PATIENCE;
    while !condition() {
        assert!(clock::now() < deadline, "eventually {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn wall() -> SystemTime {
    clock::wall()
}
