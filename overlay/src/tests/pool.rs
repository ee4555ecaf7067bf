//! The pool: one tunnel for all flows of a pair, replaced and closed in time.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::pool::{DialWith, PoolError};

#[tokio::test]
async fn concurrent_flows_of_a_pair_share_one_handshake_and_one_tunnel() {
    let setup = Setup::new(PoolSettings::default());
    let mut flows = JoinSet::new();
    for _ in 0..32 {
        let setup = setup.clone();
        flows.spawn(async move { setup.open().await.unwrap() });
    }
    let opened = soon(flows.join_all()).await;
    let first = opened[0].1.id();
    assert!(opened.iter().all(|(_, tunnel)| tunnel.id() == first));
    assert_eq!(setup.charge.overlay.tunnels().len(), 1);
    assert_eq!(opened[0].1.streams_active(), 32);
}

#[tokio::test]
async fn an_idle_tunnel_is_closed_and_a_new_one_made_when_needed() {
    let idle_timeout = Duration::from_millis(200);
    let look_every = Duration::from_millis(20);
    let setup = Setup::new(PoolSettings { idle_timeout, look_every, ..Default::default() });
    let (stream, first) = setup.open().await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(first.close_reason(), None, "a flow keeps it");
    let accepted = setup.charge.overlay.tunnels().remove(0);
    drop(stream);
    assert_eq!(soon(first.closed()).await.label(), "idle");
    assert_eq!(soon(accepted.closed()).await.label(), "idle");
    let (_stream, second) = setup.open().await.unwrap();
    assert_ne!(first.id(), second.id());
}

#[tokio::test]
async fn a_renewed_svid_is_make_before_break() {
    let setup = Setup::new(PoolSettings { look_every: Duration::from_millis(20), ..Default::default() });
    let (mut old_stream, old) = setup.open().await.unwrap();
    let before = setup.charge.overlay.tunnels().remove(0).peer().serial.clone();

    setup.order.slot.publish(setup.order.world.issue(&setup.order.id, DAY));
    setup.pool.retire_source(&setup.order.id, clock::now() + DAY);
    let deadline = clock::now() + PATIENCE;
    let new = loop {
        let (mut stream, tunnel) = setup.open().await.unwrap();
        ping(&mut stream).await;
        if tunnel.id() != old.id() {
            break tunnel;
        }
        assert!(clock::now() < deadline, "a replacement comes");
    };
    ping(&mut old_stream).await; // flows on the old tunnel go on
    assert_eq!(old.close_reason(), None);
    let presented: Vec<_> =
        setup.charge.overlay.tunnels().iter().map(|tunnel| tunnel.peer().serial.clone()).collect();
    assert!(presented.contains(&before) && presented.iter().any(|serial| *serial != before));

    drop(old_stream);
    assert_eq!(soon(old.closed()).await.label(), "replaced");
    assert_eq!(new.close_reason(), None);
}

#[tokio::test]
async fn a_retired_tunnel_is_cut_when_its_time_is_up() {
    let setup = Setup::new(PoolSettings { look_every: Duration::from_millis(20), ..Default::default() });
    let (_stream, old) = setup.open().await.unwrap();
    setup.pool.retire_source(&setup.order.id, clock::now() + Duration::from_millis(300));
    assert_eq!(soon(old.closed()).await.label(), "identity_expired");
    let (mut stream, _new) = setup.open().await.unwrap();
    ping(&mut stream).await;
}

#[tokio::test]
async fn a_draining_peer_gets_new_flows_on_a_new_tunnel_only() {
    let setup = Setup::new(PoolSettings { look_every: Duration::from_millis(20), ..Default::default() });
    let (mut stream, first) = setup.open().await.unwrap();
    setup.charge.overlay.tunnels()[0].drain(CloseCode::Drain);
    soon(first.draining()).await;
    let (_second_stream, second) = setup.open().await.unwrap();
    assert_ne!(first.id(), second.id());
    ping(&mut stream).await;
    drop(stream);
    assert_eq!(soon(first.closed()).await.label(), "drain");
}

#[tokio::test]
async fn a_dead_pooled_tunnel_costs_a_flow_nothing() {
    let setup = Setup::new(PoolSettings::default());
    let (_stream, first) = setup.open().await.unwrap();
    setup.charge.overlay.tunnels()[0].close(CloseCode::Shutdown, "");
    soon(first.closed()).await;
    let (mut stream, second) = setup.open().await.unwrap();
    assert_ne!(first.id(), second.id());
    ping(&mut stream).await;
}

#[tokio::test]
async fn every_waiter_of_a_failed_dial_learns_why_and_the_next_flow_dials_anew() {
    let settings = TransportSettings { handshake_timeout: Duration::from_millis(300), ..Default::default() };
    let setup = Setup::with(PoolSettings::default(), settings);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let key = PoolKey { addresses: [silent.local_addr().unwrap()].into(), ..setup.key.clone() };
    let head = header(80);
    let open = || setup.pool.open(&key, &setup.with, &head);
    let (one, two) = tokio::join!(open(), open());
    for failed in [one, two, open().await] {
        assert!(matches!(failed, Err(PoolError::Dial(DialError::Blocked { .. }))));
    }
    assert!(setup.pool.tunnels().is_empty());
}

#[tokio::test]
async fn a_full_pool_refuses_rather_than_growing() {
    let setup = Setup::new(PoolSettings { max_tunnels: 1, ..Default::default() });
    let (_stream, _tunnel) = setup.open().await.unwrap();
    let other = PoolKey { source: setup.order.world.id("cart"), ..setup.key.clone() };
    let refused = setup.pool.open(&other, &setup.with, &header(80)).await;
    assert!(matches!(refused, Err(PoolError::Full { tunnels: 1 })));
}

#[tokio::test]
async fn a_revoked_source_loses_its_tunnels_at_once() {
    let setup = Setup::new(PoolSettings::default());
    let (_stream, tunnel) = setup.open().await.unwrap();
    setup.pool.close_where(CloseCode::IdentityRevoked, |key| key.source == setup.order.id);
    assert_eq!(soon(tunnel.closed()).await.label(), "identity_revoked");
}

#[tokio::test]
async fn a_pool_that_is_gone_closes_its_tunnels() {
    let setup = Setup::new(PoolSettings::default());
    let (stream, tunnel) = setup.open().await.unwrap();
    let accepted = setup.charge.overlay.tunnels().remove(0);
    let Setup { pool, .. } = setup;
    drop((pool, stream, tunnel));
    assert_eq!(soon(accepted.closed()).await.label(), "done");
}

#[derive(Clone)]
struct Setup {
    order: Party,
    charge: Party,
    pool: TunnelPool,
    key: PoolKey,
    with: DialWith,
    _serving: Arc<JoinSet<()>>,
}

impl Setup {
    fn new(settings: PoolSettings) -> Self {
        Self::with(settings, TransportSettings::default())
    }

    fn with(pool: PoolSettings, transport: TransportSettings) -> Self {
        let world = World::new();
        let order = world.party_with("order", transport);
        let charge = world.party("charge");
        let metrics = Arc::new(OverlayMetrics::unregistered());
        let pool = TunnelPool::new(order.overlay.clone(), pool, metrics);
        let key = PoolKey {
            source: order.id.clone(),
            destination: charge.id.clone(),
            addresses: [charge.address()].into(),
        };
        let with = order.dial_with(&charge.id);
        let serving = Arc::new(charge.serve(echo));
        Self { order, charge, pool, key, with, _serving: serving }
    }

    async fn open(&self) -> Result<(TunnelStream, Tunnel), PoolError> {
        let (mut stream, tunnel) = soon(self.pool.open(&self.key, &self.with, &header(80))).await?;
        soon(stream.reply()).await.unwrap(); // the other end is there as well
        Ok((stream, tunnel))
    }
}

async fn ping(stream: &mut TunnelStream) {
    stream.write_all(b"ping").await.unwrap();
    let mut buffer = [0; 4];
    soon(stream.read_exact(&mut buffer)).await.unwrap();
}
