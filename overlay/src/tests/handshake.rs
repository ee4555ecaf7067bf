//! Who gets a tunnel and who does not, and what each end learns of it.

use std::net::UdpSocket;

use weft_identity::denied::{Denied, Denylist};
use weft_identity::tls::peer_id;

use super::*;

#[tokio::test]
async fn a_server_of_another_authority_is_refused_before_it_sees_the_caller() {
    let (world, foreign) = (World::new(), World::new());
    let (order, charge) = (world.party("order"), foreign.party("charge"));
    let (dialled, accepted) = tokio::join!(try_dial(&order, &charge), finish(&charge));
    let Err(DialError::Refused { reason: CloseReason::Tls { by: By::Us, .. }, .. }) = dialled else {
        panic!("{dialled:?}")
    };
    let told = matches!(accepted, Err(AcceptError::Refused(CloseReason::Tls { by: By::Peer, .. })));
    assert!(told, "{accepted:?}");
}

#[tokio::test]
async fn a_caller_of_another_authority_is_refused_and_told_why() {
    let (world, foreign) = (World::new(), World::new());
    let charge = world.party("charge");
    // It trusts the mesh, but its own certificate comes from elsewhere.
    let mut stranger = foreign.party("order");
    stranger.world = world;
    let (dialled, accepted) = tokio::join!(try_dial(&stranger, &charge), finish(&charge));
    let Err(AcceptError::Refused(CloseReason::Tls { by: By::Us, .. })) = accepted else {
        panic!("{accepted:?}")
    };
    // TLS 1.3 lets the caller finish before the server has judged it.
    let reason = match dialled {
        Ok(tunnel) => soon(tunnel.closed()).await,
        Err(DialError::Refused { reason, .. }) => reason,
        Err(other) => panic!("{other}"),
    };
    assert!(matches!(reason, CloseReason::Tls { by: By::Peer, .. }), "{reason}");
}

#[tokio::test]
async fn whoever_is_denied_is_refused_in_both_roles_and_both_ends_name_the_reason() {
    for (node, word) in [(None, "identity_revoked"), (Some("hostb"), "node_banned")] {
        let world = World::new();
        let (order, charge) = (world.party("order"), world.party("charge"));
        for denied in [&order, &charge] {
            let peer = peer_id(denied.slot.load().unwrap().svid().chain()).unwrap();
            let subject = format!("serial:{}", peer.serial).parse().unwrap();
            let entry = Denied { subject, until: u64::MAX, node: node.map(str::to_owned) };
            world.bundles.deny(&Denylist::of([entry], &Denylist::new()));
            let (dialled, accepted) = tokio::join!(try_dial(&order, &charge), finish(&charge));
            let Err(AcceptError::Refused(there)) = accepted else { panic!("{accepted:?}") };
            // TLS 1.3 lets the caller finish before the server has judged it.
            let here = match dialled {
                Ok(tunnel) => soon(tunnel.closed()).await,
                Err(DialError::Refused { reason, .. }) => reason,
                Err(other) => panic!("{other}"),
            };
            assert_eq!((here.label(), there.label()), (word, word), "{here}, {there}");
        }
    }
}

#[tokio::test]
async fn a_trusted_server_with_another_identity_is_refused() {
    let world = World::new();
    let (order, ledger) = (world.party("order"), world.party("ledger"));
    let client = order.client(&world.id("charge"));
    let addresses = [ledger.address()];
    let dial = order.overlay.dial(&addresses, SERVER_NAME, client);
    let (dialled, _) = tokio::join!(dial, finish(&ledger));
    let Err(DialError::Refused { reason: CloseReason::Tls { by: By::Us, .. }, .. }) = dialled else {
        panic!("{dialled:?}")
    };
}

#[tokio::test]
async fn an_unknown_label_gets_no_tunnel() {
    let world = World::new();
    let (order, charge) = (world.party("order"), world.party("charge"));
    let client = order.client(&charge.id);
    let addresses = [charge.address()];
    let dial = order.overlay.dial(&addresses, "other.local.weft", client);
    let (dialled, accepted) = tokio::join!(dial, finish(&charge));
    let refused =
        matches!(dialled, Err(DialError::Refused { reason: CloseReason::Tls { by: By::Peer, .. }, .. }));
    assert!(refused, "{dialled:?}");
    assert!(matches!(accepted, Err(AcceptError::Refused(_))));
}

#[tokio::test]
async fn tls_04_another_protocol_gets_no_tunnel() {
    let world = World::new();
    let charge = world.party("charge");
    let order = world.party("order");
    let expected = ExpectedPeer::Exactly(charge.id.clone());
    let slot = Some(order.slot.clone());
    let other = Arc::new(client_config(slot, world.bundles.clone(), expected, &[b"h3"]));
    let dialled = order.overlay.dial(&[charge.address()], SERVER_NAME, other).await;
    assert!(matches!(dialled, Err(DialError::Config(ConfigFault::Alpn))), "{dialled:?}");
}

#[tokio::test]
async fn tls_configurations_that_break_a_promise_are_refused() {
    let world = World::new();
    let slot = SvidSlot::empty();
    let bind = |change: fn(&mut rustls::ServerConfig)| {
        let mut server = world.server(&slot, &[ALPN]);
        change(&mut server);
        let keys = EndpointKeys::generate().unwrap();
        let metrics = Arc::new(OverlayMetrics::unregistered());
        let socket = bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
        match Overlay::bind(socket, Arc::new(server), TransportSettings::default(), &keys, metrics) {
            Err(BindError::Config(fault)) => fault,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(bind(|server| server.max_early_data_size = u32::MAX), ConfigFault::EarlyData);
    assert_eq!(bind(|server| server.send_half_rtt_data = true), ConfigFault::EarlyData);
    assert_eq!(bind(|server| server.send_tls13_tickets = 2), ConfigFault::Resumption);
    assert_eq!(bind(|server| server.max_tls13_tickets = 1), ConfigFault::Resumption);
    assert_eq!(bind(|server| server.alpn_protocols.clear()), ConfigFault::Alpn);

    let order = world.party("order");
    let mut client = Arc::unwrap_or_clone(order.client(&world.id("charge")));
    client.enable_early_data = true;
    let dialled = order.overlay.dial(&[order.address()], SERVER_NAME, Arc::new(client)).await;
    assert!(matches!(dialled, Err(DialError::Config(ConfigFault::EarlyData))));
}

#[tokio::test]
async fn silence_is_named_blocked_udp_within_the_handshake_timeout() {
    let world = World::new();
    let settings = TransportSettings { handshake_timeout: Duration::from_millis(400), ..Default::default() };
    let order = world.party_with("order", settings);
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let client = order.client(&world.id("charge"));
    let began = clock::now();
    let dialled = order.overlay.dial(&[address], SERVER_NAME, client).await;
    let Err(DialError::Blocked { addresses, .. }) = dialled else { panic!("{dialled:?}") };
    assert_eq!(addresses, Addresses(vec![address]));
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_peer_that_answers_and_never_finishes_is_not_called_silent() {
    let world = World::new();
    let settings = TransportSettings { handshake_timeout: Duration::from_secs(1), ..Default::default() };
    let order = world.party_with("order", settings);
    let charge = world.party("charge");
    let relay = OneWay::start(charge.address());
    let client = order.client(&charge.id);
    let _accepting = charge.serve(echo);
    let dialled = order.overlay.dial(&[relay.address], SERVER_NAME, client).await;
    assert!(matches!(dialled, Err(DialError::HandshakeTimeout { .. })), "{dialled:?}");
}

#[tokio::test]
async fn a_silent_address_gives_way_to_one_that_answers() {
    let world = World::new();
    let (order, charge) = (world.party("order"), world.party("charge"));
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let client = order.client(&charge.id);
    let addresses = [silent.local_addr().unwrap(), charge.address()];
    let began = clock::now();
    let dial = order.overlay.dial(&addresses, SERVER_NAME, client);
    let (dialled, _accepted) = tokio::join!(dial, charge.accept());
    assert_eq!(dialled.unwrap().remote_address(), charge.address());
    assert!(began.elapsed() >= Duration::from_millis(240), "the first has a head start");
}

#[tokio::test]
async fn a_dial_finds_a_peer_that_starts_while_it_waits() {
    let world = World::new();
    let order = world.party("order");
    let reserved = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap();
    let client = order.client(&world.id("charge"));
    let dial = order.overlay.dial(std::slice::from_ref(&address), SERVER_NAME, client);
    let start = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(reserved);
        let keys = EndpointKeys::generate().unwrap();
        let charge = world.party_at(address, "charge", TransportSettings::default(), &keys);
        (charge.accept().await, charge)
    };
    let began = clock::now();
    let (dialled, _charge) = tokio::join!(dial, start);
    assert_eq!(dialled.unwrap().peer().id, world.id("charge"));
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn quic_01_a_caller_that_must_retry_still_gets_its_tunnel() {
    let world = World::new();
    let admission = AdmissionSettings { retry_above_pending: 0, ..Default::default() };
    let charge = world.party_with("charge", TransportSettings { admission, ..Default::default() });
    let order = world.party("order");
    let (dialled, accepted) = tokio::join!(order.dial(&charge), charge.accept());
    flow(&dialled, &accepted).await;
}

#[tokio::test]
async fn a_peer_over_its_limit_of_tunnels_is_told_so() {
    let world = World::new();
    let admission = AdmissionSettings { tunnels_per_peer: 2, ..Default::default() };
    let charge = world.party_with("charge", TransportSettings { admission, ..Default::default() });
    let order = world.party("order");
    let (first, _first) = tokio::join!(order.dial(&charge), charge.accept());
    let (_second, _kept) = tokio::join!(order.dial(&charge), charge.accept());
    let (third, refused) = tokio::join!(order.dial(&charge), finish(&charge));
    let over = matches!(refused, Err(AcceptError::OverLimit { code: CloseCode::TooManyTunnels, .. }));
    assert!(over, "{refused:?}");
    let reason = soon(third.closed()).await;
    assert_eq!(reason.label(), "too_many_tunnels");

    first.close(CloseCode::Done, "");
    let deadline = clock::now() + PATIENCE;
    loop {
        let (dialled, accepted) = tokio::join!(order.dial(&charge), finish(&charge));
        if let Ok(accepted) = accepted {
            flow(&dialled, &accepted).await;
            break;
        }
        assert!(clock::now() < deadline, "a place gets free");
    }
}

async fn try_dial(from: &Party, to: &Party) -> Result<Tunnel, DialError> {
    let client = from.client(&to.id);
    from.overlay.dial(&[to.address()], SERVER_NAME, client).await
}

async fn finish(party: &Party) -> Result<Tunnel, AcceptError> {
    soon(party.overlay.accept()).await.unwrap().finish().await
}

/// Passes everything to the server and only two datagrams back: the ServerHello and what follows it, but
/// not the end of the certificates.
struct OneWay {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl OneWay {
    fn start(server: SocketAddr) -> Self {
        let bind = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            tokio::net::UdpSocket::from_std(socket).unwrap()
        };
        let (front, back) = (bind(), bind());
        let address = front.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
            let (mut caller, mut passed) = (None, 0);
            loop {
                tokio::select! {
                    Ok((length, from)) = front.recv_from(&mut up) => {
                        caller = Some(from);
                        back.send_to(&up[..length], server).await.unwrap();
                    }
                    Ok((length, _)) = back.recv_from(&mut down) => {
                        if let (Some(caller), 0..2) = (caller, passed) {
                            passed += 1;
                            front.send_to(&down[..length], caller).await.unwrap();
                        }
                    }
                }
            }
        });
        Self { address, _tasks: tasks }
    }
}
