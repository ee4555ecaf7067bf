//! What several tests need: pairs of sockets, and a tunnel between two identities over real QUIC on loopback.

use std::{
    net::SocketAddr,
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::net::{TcpListener, TcpStream};
use weft_identity::{
    SpiffeId, TrustDomain,
    bundle::{TrustBundle, TrustBundles},
    ca::CertificateAuthority,
    csr::SigningRequest,
    svid::Svid,
    tls::{BundleSlot, ExpectedPeer, InboundSvids, SvidSlot, client_config, tunnel_config},
};
use weft_overlay::{
    ALPN, Accepted, EndpointKeys, Incoming, Overlay, OverlayMetrics, Protocol, StreamHeader,
    TransportSettings, Tunnel, TunnelStream, bind_udp,
};

const LABEL: &str = "mfzwizltoq3gk5lsmfxhi2lpnz";
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A connected pair: the side that dialled, the side that accepted.
pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// A tunnel between two agents; flows go from the caller's to the service's.
pub(crate) struct TunnelPair {
    pub(crate) caller: Tunnel,
    pub(crate) service: Tunnel,
    _overlays: [Overlay; 2],
}

#[expect(clippy::disallowed_methods, reason = "certificates of a test are valid now")]
fn wall() -> SystemTime {
    SystemTime::now()
}

impl TunnelPair {
    pub(crate) async fn new() -> Self {
        let domain: TrustDomain = "test.example".parse().unwrap();
        let mut authority = CertificateAuthority::create(&domain, "one", wall()).unwrap();
        let mut bundles = TrustBundles::new();
        bundles.insert(TrustBundle::new(domain.clone(), authority.bundle_roots(), 1).unwrap()).unwrap();
        let bundles = BundleSlot::new(bundles);
        let mut party = |name: &str| {
            let id = SpiffeId::workload(&domain, "shop", name).unwrap();
            let slot = SvidSlot::empty();
            slot.publish(issue(&mut authority, &id));
            let inbound = InboundSvids::new();
            inbound.insert(LABEL, slot.clone());
            let server = tunnel_config(Arc::new(inbound), bundles.clone(), &[ALPN]).unwrap();
            (id, slot, overlay(server))
        };
        let (_, caller_slot, from) = party("order");
        let (callee, _, to) = party("charge");
        let expected = ExpectedPeer::Exactly(callee);
        let client = Arc::new(client_config(Some(caller_slot), bundles.clone(), expected, &[ALPN]));
        let address = [to.local_addr().unwrap()];
        let name = format!("{LABEL}.local.weft");
        let accept = async { to.accept().await.unwrap().finish().await.unwrap() };
        let (caller, service) = tokio::join!(from.dial(&address, &name, client), accept);
        Self { caller: caller.unwrap(), service, _overlays: [from, to] }
    }

    /// A flow that waits for its answer: the caller's end and the service's.
    pub(crate) async fn opening(&self) -> (TunnelStream, Incoming) {
        let header = StreamHeader {
            namespace: "shop".parse().unwrap(),
            service: "charge".parse().unwrap(),
            port: NonZeroU16::new(80).unwrap(),
            endpoint: LABEL.parse().unwrap(),
            protocol: Protocol::Tcp,
            trace: None,
            source: None::<SocketAddr>,
        };
        let accept = async { self.service.accept().await.unwrap().header().await.unwrap() };
        let (opened, incoming) = tokio::join!(self.caller.open(&header), accept);
        (opened.unwrap(), incoming)
    }

    /// An accepted flow: the caller's end and the service's.
    pub(crate) async fn flow(&self) -> (TunnelStream, TunnelStream) {
        let (opened, incoming) = self.opening().await;
        (opened, incoming.accept(Accepted::default()).await.unwrap())
    }
}

fn issue(authority: &mut CertificateAuthority, id: &SpiffeId) -> Svid {
    let (key, request) = SigningRequest::create().unwrap();
    let request = SigningRequest::parse(&request).unwrap();
    let issued = authority.issue(&request, id, DAY, wall()).unwrap();
    Svid::parse(issued.chain, key).unwrap()
}

fn overlay(server: rustls::ServerConfig) -> Overlay {
    let socket = bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
    let keys = EndpointKeys::generate().unwrap();
    let metrics = Arc::new(OverlayMetrics::unregistered());
    Overlay::bind(socket, Arc::new(server), TransportSettings::default(), &keys, metrics).unwrap()
}
