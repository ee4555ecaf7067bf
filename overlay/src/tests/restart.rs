//! A killed agent that comes back on its port with its keys ends its old tunnels at once.

use std::sync::mpsc;
use std::thread::JoinHandle;

use bytes::Bytes;

use super::*;

/// From the restart to the end of the old tunnel, while it carries traffic.
const AT_ONCE: Duration = Duration::from_secs(1);

#[tokio::test]
async fn quic_18_the_restart_of_the_accepting_agent_ends_old_tunnels_within_a_second_of_traffic() {
    let world = World::new();
    let order = world.party("order");
    let charge = Killable::start(&world, "charge", TransportSettings::default());
    let tunnel = charge.dialled_by(&order).await;
    let (mut send, _recv) = tunnel.open(&header(80)).await.unwrap().split();
    send.write_all_chunks(&mut [Bytes::from_static(b"before")]).await.unwrap();
    settle(&tunnel).await;

    let charge = charge.kill_and_restart(&world, "charge");
    let began = clock::now();
    let reason = until_closed(&mut send, &tunnel).await;
    assert_eq!(reason, CloseReason::Restarted);
    assert!(began.elapsed() < AT_ONCE, "after {:?}", began.elapsed());
    let again = charge.dialled_by(&order).await;
    assert_eq!(again.close_reason(), None, "and new ones work");
}

#[tokio::test]
async fn quic_18_the_restart_of_the_dialling_agent_ends_old_tunnels_within_a_second_of_traffic() {
    let world = World::new();
    let charge = world.party("charge");
    let order = Killable::start(&world, "order", TransportSettings::default());
    order.dial(charge.address());
    let tunnel = charge.accept().await;
    let stream = soon(tunnel.accept()).await.unwrap().header().await.unwrap();
    let (mut send, _recv) = stream.accept(Accepted::default()).await.unwrap().split();
    settle(&tunnel).await;

    let _order = order.kill_and_restart(&world, "order");
    let began = clock::now();
    let reason = until_closed(&mut send, &tunnel).await;
    assert_eq!(reason, CloseReason::Restarted);
    assert!(began.elapsed() < AT_ONCE, "after {:?}", began.elapsed());
}

#[tokio::test]
async fn a_restart_with_other_keys_does_not_end_them() {
    let world = World::new();
    let order = world.party("order");
    let charge = Killable::start(&world, "charge", TransportSettings::default());
    let tunnel = charge.dialled_by(&order).await;
    let (mut send, _recv) = tunnel.open(&header(80)).await.unwrap().split();
    settle(&tunnel).await;
    let charge = Killable { keys: EndpointKeys::generate().unwrap(), ..charge };
    let _charge = charge.kill_and_restart(&world, "charge");
    for _ in 0..20 {
        send.write_chunks(&mut [Bytes::from_static(b"x")]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(tunnel.close_reason(), None, "a reset with a wrong token is ignored");
}

#[tokio::test]
async fn a_flow_that_finds_a_quiet_tunnel_to_a_restarted_agent_gets_a_new_one() {
    let world = World::new();
    let order = world.party("order");
    let charge = Killable::start(&world, "charge", TransportSettings::default());
    let metrics = Arc::new(OverlayMetrics::unregistered());
    let pool = TunnelPool::new(order.overlay.clone(), PoolSettings::default(), metrics);
    let key = PoolKey {
        source: order.id.clone(),
        destination: charge.id.clone(),
        addresses: [charge.address].into(),
    };
    let with = order.dial_with(&charge.id);
    let (stream, first) = pool.open(&key, &with, &header(80)).await.unwrap();
    drop(stream);
    settle(&first).await;
    eventually("nothing more is heard", || first.is_quiet()).await;

    let _charge = charge.kill_and_restart(&world, "charge");
    let (mut stream, second) = soon(pool.open(&key, &with, &header(80))).await.unwrap();
    assert_eq!(first.close_reason(), Some(CloseReason::Restarted));
    assert_ne!(first.id(), second.id());
    soon(stream.reply()).await.unwrap();
}

#[tokio::test]
async fn a_flow_on_a_tunnel_that_was_just_in_use_survives_the_restart_of_its_peer() {
    let world = World::new();
    let order = world.party("order");
    let charge = Killable::start(&world, "charge", TransportSettings::default());
    let metrics = Arc::new(OverlayMetrics::unregistered());
    let pool = TunnelPool::new(order.overlay.clone(), PoolSettings::default(), metrics);
    let key = PoolKey {
        source: order.id.clone(),
        destination: charge.id.clone(),
        addresses: [charge.address].into(),
    };
    let with = order.dial_with(&charge.id);
    let (_, first) = pool.open(&key, &with, &header(80)).await.unwrap();
    settle(&first).await;
    for _ in 0..20 {
        let (mut stream, tunnel) = pool.open(&key, &with, &header(80)).await.unwrap();
        assert_eq!(tunnel.id(), first.id());
        soon(stream.reply()).await.unwrap();
    }

    // Less than a second since it was heard: the tunnel looks alive, and its peer is another run.
    let charge = charge.kill_and_restart(&world, "charge");
    tokio::time::sleep(Duration::from_millis(50)).await; // as long as an agent needs to start
    let (mut stream, second) = soon(pool.open(&key, &with, &header(80))).await.unwrap();
    assert_ne!(first.id(), second.id());
    soon(stream.reply()).await.unwrap();
    drop(charge);
}

/// Writes a little now and then, as a flow in use does, until the tunnel ends.
async fn until_closed(send: &mut SendHalf, tunnel: &Tunnel) -> CloseReason {
    let traffic = async {
        loop {
            let _ = send.write_chunks(&mut [Bytes::from_static(b"x")]).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(async {
        tokio::select! {
            reason = tunnel.closed() => reason,
            () = traffic => unreachable!("it goes on"),
        }
    })
    .await
}

/// Lets the handshake settle: connection IDs with their reset tokens are exchanged behind it.
async fn settle(tunnel: &Tunnel) {
    let frames = |tunnel: &Tunnel| tunnel.core().connection.stats().frame_rx.new_connection_id;
    eventually("connection IDs arrive", || frames(tunnel) > 0).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// A party on a runtime and a thread of its own, which dies without a word.
pub(super) struct Killable {
    address: SocketAddr,
    id: SpiffeId,
    keys: EndpointKeys,
    orders: tokio::sync::mpsc::UnboundedSender<Order>,
    thread: JoinHandle<()>,
}

enum Order {
    Dial(SocketAddr),
    Die,
}

impl Killable {
    pub(super) fn start(world: &World, name: &str, settings: TransportSettings) -> Self {
        let keys = EndpointKeys::generate().unwrap();
        Self::start_at("127.0.0.1:0".parse().unwrap(), world, name, settings, keys)
    }

    fn start_at(
        address: SocketAddr,
        world: &World,
        name: &str,
        settings: TransportSettings,
        keys: EndpointKeys,
    ) -> Self {
        let (orders, mut inbox) = tokio::sync::mpsc::unbounded_channel();
        let (ready, bound) = mpsc::channel();
        let (world, name, its_keys) = (world.clone(), name.to_owned(), keys.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let remains = runtime.block_on(async {
                let party = world.party_at(address, &name, settings, &its_keys);
                let serving = party.serve(hold);
                ready.send((party.address(), party.id.clone())).unwrap();
                let mut held = Vec::new();
                while let Some(Order::Dial(address)) = inbox.recv().await {
                    let client = party.client(&world.id("charge"));
                    let tunnel = party.overlay.dial(&[address], SERVER_NAME, client).await.unwrap();
                    let stream = tunnel.open(&header(80)).await.unwrap();
                    held.push((tunnel, stream));
                }
                (party, serving, held)
            });
            drop(runtime); // its sockets and tasks go first: nobody says goodbye
            drop(remains);
        });
        let (address, id) = bound.recv().unwrap();
        Self { address, id, keys, orders, thread }
    }

    pub(super) async fn dialled_by(&self, party: &Party) -> Tunnel {
        let client = party.client(&self.id);
        party.overlay.dial(&[self.address], SERVER_NAME, client).await.unwrap()
    }

    fn dial(&self, address: SocketAddr) {
        self.orders.send(Order::Dial(address)).unwrap();
    }

    pub(super) fn kill(self) {
        self.orders.send(Order::Die).unwrap();
        self.thread.join().unwrap();
    }

    fn kill_and_restart(self, world: &World, name: &str) -> Self {
        let (address, keys) = (self.address, self.keys.clone());
        self.kill();
        Self::start_at(address, world, name, TransportSettings::default(), keys)
    }
}

/// Takes what comes and holds the flow open.
async fn hold(incoming: Incoming) {
    let Ok(stream) = incoming.accept(Accepted::default()).await else { return };
    let (_send, mut recv) = stream.split();
    let mut chunks = vec![Bytes::new(); 8];
    while let Ok(Some(_)) = recv.read_chunks(&mut chunks).await {}
}
