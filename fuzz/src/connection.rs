//! f15: a whole tunnel whose other end is a [`crate::hostile`] peer with a good certificate.
//!
//! The endpoint under attack is Weft's own, on loopback, with the limits of production. After each attack another
//! caller's tunnel, open since the start, must still carry a flow; the attacker's tunnel is gone; and every flow that
//! was handed up carried the identity of the certificate.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use quinn_proto::crypto::rustls::QuicClientConfig;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use weft_identity::bundle::{TrustBundle, TrustBundles};
use weft_identity::ca::CertificateAuthority;
use weft_identity::csr::SigningRequest;
use weft_identity::svid::Svid;
use weft_identity::tls::{
    BundleSlot, ClientAuth, ExpectedPeer, InboundSvids, SvidSlot, client_config, server_config,
};
use weft_identity::{SpiffeId, TrustDomain};
use weft_overlay::{
    ALPN, Accepted, AdmissionSettings, EndpointKeys, Overlay, OverlayMetrics, Protocol, StreamHeader,
    TransportSettings, Tunnel, bind_udp,
};

use crate::choice::Choice;
use crate::hostile::{Hostile, Script, Step};

const LABEL: &str = "mfzwizltoq3gk5lsmfxhi2lpnz";
const SERVER_NAME: &str = "mfzwizltoq3gk5lsmfxhi2lpnz.local.weft";
/// What an honest peer waits for at most; far above what it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long an attacker waits for what it provoked.
const LINGER: Duration = Duration::from_millis(30);
/// The most packets that one input rewrites.
const MOST_STEPS: usize = 24;

struct World {
    runtime: Runtime,
    address: SocketAddr,
    under_attack: Overlay,
    attacker: quinn::Endpoint,
    attacker_tls: Arc<QuicClientConfig>,
    /// The tunnel of the other caller, and its endpoint.
    honest: Mutex<(Overlay, Tunnel)>,
}

/// Three bits of what the attacker opens, then steps: kind, length, bytes.
pub fn f15_quic_connection(data: &[u8]) {
    let mut choice = Choice::new(data);
    let opens = choice.byte();
    let mut steps = VecDeque::new();
    while !choice.is_empty() && steps.len() < MOST_STEPS {
        steps.push_back(match choice.byte() % 4 {
            0 => Step::Pass,
            1 => Step::Overwrite(choice.short(), choice.slice(1_200).to_vec()),
            _ => Step::Replace(choice.slice(1_200).to_vec()),
        });
    }
    let world = world();
    world.runtime.block_on(async {
        attack(world, opens, Script::new(steps)).await;
        survived(world).await;
    });
}

async fn attack(world: &World, opens: u8, script: Arc<Script>) {
    let crypto = Hostile { inner: Arc::clone(&world.attacker_tls), script: Arc::clone(&script) };
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let connecting = world.attacker.connect_with(config, world.address, SERVER_NAME).expect("it may dial");
    let Ok(Ok(connection)) = timeout(PATIENCE, connecting).await else {
        return; // the first rewritten packet ended it
    };
    let provoke = async {
        while !script.is_over() {
            // Something to send, so that there is a packet to rewrite.
            if opens & 1 == 0 {
                let (mut send, _recv) = connection.open_bi().await.ok()?;
                send.write_all(&header("order").encode()).await.ok()?;
                send.write_all(&[0x5a; 1_000]).await.ok()?;
                drop(send);
            } else {
                let mut send = connection.open_uni().await.ok()?;
                send.write_all(&[1; 1_000]).await.ok()?;
                send.finish().ok()?;
            }
            tokio::task::yield_now().await;
        }
        connection.closed().await;
        Some(())
    };
    let _ = timeout(LINGER, provoke).await;
    if opens & 2 == 0 {
        connection.close(0u32.into(), b"");
    } else {
        connection.close(0x7765_6674_0200u64.try_into().unwrap_or(quinn::VarInt::MAX), &[0xff; 64]);
    }
}

/// The other caller noticed nothing, and nothing of the attacker is left.
async fn survived(world: &World) {
    let tunnel = world.honest.lock().expect("no panic under the lock").1.clone();
    let carried = async {
        let stream = tunnel.open(&header("ledger")).await.expect("the honest tunnel is open");
        let (mut send, mut recv) = stream.split();
        send.write_all_chunks(&mut [bytes::Bytes::from_static(b"still here")]).await.expect("it takes bytes");
        send.finish().expect("it is open");
        let mut chunks = vec![bytes::Bytes::new(); 8];
        let mut back = Vec::new();
        while let Some(count) = recv.read_chunks(&mut chunks).await.expect("it gives bytes") {
            chunks[..count].iter().for_each(|chunk| back.extend_from_slice(chunk));
        }
        assert_eq!(back, b"still here");
    };
    timeout(PATIENCE, carried).await.expect("the honest caller waits for ever");
    let gone = async {
        while world.under_attack.tunnels().len() > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the attacker's tunnel stays");
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let inside = runtime.enter();
        let world = runtime.block_on(start());
        drop(inside);
        let (address, under_attack, attacker, attacker_tls, honest) = world;
        World { runtime, address, under_attack, attacker, attacker_tls, honest: Mutex::new(honest) }
    })
}

type Parts = (SocketAddr, Overlay, quinn::Endpoint, Arc<QuicClientConfig>, (Overlay, Tunnel));

async fn start() -> Parts {
    let domain: TrustDomain = "test.example".parse().expect("it is one");
    let now = std::time::SystemTime::now();
    let mut authority = CertificateAuthority::create(&domain, "one", now).expect("there is entropy");
    let mut trusted = TrustBundles::new();
    let bundle = TrustBundle::new(domain.clone(), authority.bundle_roots(), 1).expect("its own root");
    trusted.insert(bundle).expect("the only one");
    let bundles = BundleSlot::new(trusted);
    let mut slot = |name: &str| {
        let id = SpiffeId::workload(&domain, "shop", name).expect("a name");
        let (key, request) = SigningRequest::create().expect("there is entropy");
        let request = SigningRequest::parse(&request).expect("our own");
        let life = Duration::from_secs(24 * 3600);
        let issued = authority.issue(&request, &id, life, now).expect("it may");
        let slot = SvidSlot::empty();
        slot.publish(Svid::parse(issued.chain, key).expect("our own"));
        slot
    };
    let (charge, order, ledger) = (slot("charge"), slot("order"), slot("ledger"));
    let expected = SpiffeId::workload(&domain, "shop", "charge").expect("a name");
    let client = |slot: &SvidSlot| {
        let expected = ExpectedPeer::Exactly(expected.clone());
        Arc::new(client_config(Some(slot.clone()), bundles.clone(), expected, &[ALPN]))
    };
    let under_attack = overlay(&charge, &bundles);
    let address = under_attack.local_addr().expect("it is bound");
    tokio::spawn(serve(under_attack.clone()));
    let honest = overlay(&ledger, &bundles);
    let tunnel = honest.dial(&[address], SERVER_NAME, client(&ledger)).await.expect("an honest caller");
    let tls = QuicClientConfig::try_from(client(&order)).expect("it speaks TLS 1.3");
    let attacker = quinn::Endpoint::client("127.0.0.1:0".parse().expect("it is one")).expect("a socket");
    (address, under_attack, attacker, Arc::new(tls), (honest, tunnel))
}

fn overlay(slot: &SvidSlot, bundles: &BundleSlot) -> Overlay {
    let inbound = InboundSvids::new();
    inbound.insert(LABEL, slot.clone());
    let server = server_config(Arc::new(inbound), bundles.clone(), ClientAuth::Required, &[ALPN]);
    let keys = EndpointKeys::generate().expect("there is entropy");
    // One attacker per input, as fast as they come: how often it may come back is another test's.
    let admission = AdmissionSettings { tunnels_per_peer_per_second: u32::MAX, ..Default::default() };
    let settings = TransportSettings {
        admission,
        idle_timeout: PATIENCE / 2,
        keep_alive: PATIENCE / 8,
        ..Default::default()
    };
    let socket = bind_udp("127.0.0.1:0".parse().expect("it is one")).expect("a socket");
    let metrics = Arc::new(OverlayMetrics::unregistered());
    Overlay::bind(socket, Arc::new(server.expect("in order")), settings, &keys, metrics).expect("it binds")
}

/// Takes every tunnel and flow, and sends back what comes.
async fn serve(overlay: Overlay) {
    while let Some(handshake) = overlay.accept().await {
        tokio::spawn(async move {
            let Ok(tunnel) = handshake.finish().await else { return };
            let peer = tunnel.peer().id.path().to_owned();
            assert!(
                ["/ns/shop/sa/order", "/ns/shop/sa/ledger"].contains(&peer.as_str()),
                "{peer} is nobody here"
            );
            while let Ok(opening) = tunnel.accept().await {
                tokio::spawn(async move {
                    let Ok(incoming) = opening.header().await else { return };
                    let Ok(stream) = incoming.accept(Accepted::default()).await else { return };
                    let (mut send, mut recv) = stream.split();
                    let mut chunks = vec![bytes::Bytes::new(); 64];
                    while let Ok(Some(count)) = recv.read_chunks(&mut chunks).await {
                        if send.write_all_chunks(&mut chunks[..count]).await.is_err() {
                            return;
                        }
                    }
                    let _ = send.finish();
                });
            }
        });
    }
}

fn header(service: &str) -> StreamHeader {
    StreamHeader {
        namespace: "shop".parse().expect("a label"),
        service: service.parse().expect("a label"),
        port: 80.try_into().expect("not zero"),
        endpoint: LABEL.parse().expect("a label"),
        protocol: Protocol::Tcp,
        trace: None,
        source: None,
    }
}
