//! f15: a whole tunnel whose other end is a [`crate::hostile`] peer with a good certificate.
//!
//! The endpoint under attack is Weft's own, on loopback, with the limits of production. After each attack another
//! caller's tunnel, open since the start, must still carry a flow; the attacker's tunnel and its flows are gone; and every
//! flow that was handed up carried the identity of the certificate. A peer that bent nothing is let in.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use quinn::{TransportConfig, VarInt};
use quinn_proto::crypto::rustls::QuicClientConfig;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
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
    ALPN, Accepted, AdmissionSettings, CloseCode, EndpointKeys, LoadSettings, Opening, Overlay,
    OverlayMetrics, Protocol, StreamHeader, TransportSettings, Tunnel, bind_udp,
};

use crate::choice::Choice;
use crate::hostile::{From, Hostile, Script, Step};

const LABEL: &str = "mfzwizltoq3gk5lsmfxhi2lpnz";
const SERVER_NAME: &str = "mfzwizltoq3gk5lsmfxhi2lpnz.local.weft";
/// What an honest peer waits for at most; far above what it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long an attacker waits for what it provoked.
const LINGER: Duration = Duration::from_millis(30);
/// How long the end of its tunnel may take when its farewell was heard.
const FAREWELL: Duration = Duration::from_millis(200);
/// How long it waits for a handshake that it broke itself.
const BROKEN: Duration = Duration::from_millis(100);
/// How long the endpoint keeps such a handshake: so few are under way at any time that none is asked for a Retry.
const HANDSHAKE: Duration = Duration::from_secs(1);
/// The most packets that one input rewrites.
const MOST_STEPS: usize = 24;

struct World {
    runtime: Runtime,
    address: SocketAddr,
    under_attack: Overlay,
    /// The metrics of the endpoint under attack.
    metrics: Registry,
    attacker: quinn::Endpoint,
    attacker_tls: Arc<QuicClientConfig>,
    /// The tunnel of the other caller, and its endpoint.
    honest: Mutex<(Overlay, Tunnel)>,
}

/// What the attacker does beside its steps.
#[derive(Clone, Copy)]
struct Manner {
    /// Opens unidirectional streams, and no flows.
    control: bool,
    /// Leaves with a code of its own.
    rude: bool,
    /// Bends the handshake as well, and not only what comes after it.
    early: bool,
    /// Takes no more than a byte of any answer.
    stingy: bool,
}

/// Four bits of the attacker's manner, then steps: kind, length, bytes.
pub fn f15_quic_connection(data: &[u8]) {
    let mut choice = Choice::new(data);
    let bits = choice.byte();
    let manner =
        Manner { control: bits & 1 != 0, rude: bits & 2 != 0, early: bits & 4 != 0, stingy: bits & 8 != 0 };
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
        attack(world, manner, steps).await;
        survived(world).await;
    });
}

async fn attack(world: &World, manner: Manner, steps: VecDeque<Step>) {
    let honest = steps.iter().all(|step| matches!(step, Step::Pass));
    let script = Script::new(steps, if manner.early { From::Handshake } else { From::Application });
    let crypto = Hostile { inner: Arc::clone(&world.attacker_tls), script: Arc::clone(&script) };
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    if manner.stingy {
        let mut transport = TransportConfig::default();
        transport.stream_receive_window(VarInt::from_u32(1)).receive_window(VarInt::from_u32(8));
        config.transport_config(Arc::new(transport));
    }
    let dialled = world.attacker.connect_with(config, world.address, SERVER_NAME).expect("it may dial");
    let mut connecting = pin!(dialled);
    let patience = if manner.early && !honest { BROKEN } else { PATIENCE };
    let ended = timeout(patience, connecting.as_mut()).await;
    let Ok(Ok(connection)) = ended else {
        assert!(!honest, "a peer in good order was not let in: {ended:?}");
        return script.stop(); // the first rewritten packet ended it
    };
    let _ = timeout(LINGER, provoke(&connection, &script, manner)).await;
    // It leaves audibly, as above: a farewell that was rewritten as well would only make each input wait for the idle timeout.
    script.stop();
    if manner.rude {
        let code = 0x7765_6674_0200u64.try_into().expect("it fits a varint");
        connection.close(code, &[0xff; 64]);
    } else {
        connection.close(0u32.into(), b"");
    }
}

/// Sends, so that there are packets to rewrite, until every step was taken and the other end had enough.
async fn provoke(connection: &quinn::Connection, script: &Script, manner: Manner) -> Option<()> {
    while !script.is_over() {
        if manner.control {
            let mut send = connection.open_uni().await.ok()?;
            send.write_all(&[1; 1_000]).await.ok()?;
            send.finish().ok()?;
        } else {
            let (mut send, _recv) = connection.open_bi().await.ok()?;
            send.write_all(&header("order").encode()).await.ok()?;
            send.write_all(&[0x5a; 1_000]).await.ok()?;
            drop(send);
        }
        tokio::task::yield_now().await;
    }
    connection.closed().await;
    Some(())
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
    if timeout(FAREWELL, gone(world, || {})).await.is_ok() {
        return;
    }
    // Its farewell was not heard, as when its host fails: it is sent away, and then nothing of it may be left either.
    let send_away = || {
        let is_attacker = |tunnel: &Tunnel| tunnel.peer().id.path() == "/ns/shop/sa/order";
        world.under_attack.close_where(CloseCode::IdentityRevoked, "attacks", is_attacker);
    };
    timeout(PATIENCE, gone(world, send_away)).await.expect("the attacker's tunnel or a flow of it stays");
}

/// Waits until only the honest caller is left, and no flow, while it does something about it.
async fn gone(world: &World, meanwhile: impl Fn()) {
    while world.under_attack.tunnels().len() > 1 || open_flows(&world.metrics) != 0 {
        meanwhile();
        // Nothing tells that a tunnel is gone; so it is looked for, and the caller bounds the wait.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// As the endpoint itself counts them.
fn open_flows(metrics: &Registry) -> u64 {
    let mut text = String::new();
    encode(&mut text, metrics).expect("metrics are text");
    let value = text.lines().find_map(|line| line.strip_prefix("weft_tunnel_streams_active "));
    value.expect("it is registered").parse().expect("as many as there are")
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let inside = runtime.enter();
        let world = runtime.block_on(start());
        drop(inside);
        world(runtime)
    })
}

/// Everything of the world that is made inside of its runtime, which then completes it.
#[expect(
    clippy::disallowed_methods,
    reason = "handshakes go by the real clock, and the server ends with the process"
)]
async fn start() -> impl FnOnce(Runtime) -> World {
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
    let mut metrics = Registry::default();
    let under_attack = overlay(&charge, &bundles, OverlayMetrics::register(&mut metrics));
    let address = under_attack.local_addr().expect("it is bound");
    tokio::spawn(serve(under_attack.clone()));
    let honest = overlay(&ledger, &bundles, OverlayMetrics::unregistered());
    let tunnel = honest.dial(&[address], SERVER_NAME, client(&ledger)).await.expect("an honest caller");
    let tls = QuicClientConfig::try_from(client(&order)).expect("it speaks TLS 1.3");
    let attacker = quinn::Endpoint::client("127.0.0.1:0".parse().expect("it is one")).expect("a socket");
    move |runtime| World {
        runtime,
        address,
        under_attack,
        metrics,
        attacker,
        attacker_tls: Arc::new(tls),
        honest: Mutex::new((honest, tunnel)),
    }
}

fn overlay(slot: &SvidSlot, bundles: &BundleSlot, metrics: OverlayMetrics) -> Overlay {
    let inbound = InboundSvids::new();
    inbound.insert(LABEL, slot.clone());
    let server = server_config(Arc::new(inbound), bundles.clone(), ClientAuth::Required, &[ALPN]);
    let keys = EndpointKeys::generate().expect("there is entropy");
    // One attacker per input, as fast as they come: how often it may come back is another test's.
    let admission = AdmissionSettings {
        tunnels_per_peer_per_second: u32::MAX,
        handshakes_per_network_per_second: u32::MAX,
        ..Default::default()
    };
    // One input may be over a rate, and is then cut; the inputs after it should not find themselves cut for it.
    let load = LoadSettings { control_frames_per_second: 20_000, ..Default::default() };
    let settings = TransportSettings {
        admission,
        load,
        handshake_timeout: HANDSHAKE,
        idle_timeout: PATIENCE / 2,
        keep_alive: PATIENCE / 8,
        ..Default::default()
    };
    let socket = bind_udp("127.0.0.1:0".parse().expect("it is one")).expect("a socket");
    let server = Arc::new(server.expect("in order"));
    Overlay::bind(socket, server, settings, &keys, Arc::new(metrics)).expect("it binds")
}

/// Takes every tunnel and flow, and sends back what comes.
async fn serve(overlay: Overlay) {
    let mut tunnels = JoinSet::new();
    while let Some(handshake) = overlay.accept().await {
        tunnels.spawn(async move {
            let Ok(tunnel) = handshake.finish().await else { return };
            let peer = tunnel.peer().id.path().to_owned();
            assert!(
                ["/ns/shop/sa/order", "/ns/shop/sa/ledger"].contains(&peer.as_str()),
                "{peer} is nobody here"
            );
            let mut flows = JoinSet::new();
            while let Ok(opening) = tunnel.accept().await {
                flows.spawn(echo(opening));
                while flows.try_join_next().is_some() {}
            }
        });
        while tunnels.try_join_next().is_some() {}
    }
}

async fn echo(opening: Opening) {
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
