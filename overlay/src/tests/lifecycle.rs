//! The ends of tunnels: closed, drained, expired, silent.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test]
async fn both_ends_learn_who_closed_and_why() {
    let (_order, _charge, dialled, accepted) = pair(TransportSettings::default()).await;
    let (near, far) = flow(&dialled, &accepted).await;
    accepted.close(CloseCode::IdentityRevoked, "order was banned");
    let closed = |by| CloseReason::Closed {
        by,
        code: PeerCode::Known(CloseCode::IdentityRevoked),
        detail: "order was banned".to_owned(),
    };
    assert_eq!(soon(dialled.closed()).await, closed(By::Peer));
    assert_eq!(soon(accepted.closed()).await, closed(By::Us));
    for (stream, by) in [(near, By::Peer), (far, By::Us)] {
        let (_, mut recv) = stream.split();
        let error = recv.read_chunks(&mut [bytes::Bytes::new()]).await.unwrap_err();
        assert_eq!(error, StreamError::TunnelClosed(closed(by)));
    }
    let open = dialled.open(&header(80)).await.unwrap_err();
    assert_eq!(open, OpenError::TunnelClosed(closed(By::Peer)));
}

/// The peer may take its time between its certificate and the end of the handshake.
#[tokio::test]
async fn a_peer_that_lost_its_authority_during_the_handshake_gets_no_tunnel() {
    let world = World::new();
    let (order, charge) = (world.party("order"), world.party("charge"));
    let now_in_force = BundleSlot::new(TrustBundles::new());
    charge.overlay.judge_by(move |tunnel| {
        weft_identity::tls::still_trusted(&tunnel.peer_chain(), &now_in_force.load(), wall())
            .map(drop)
            .map_err(|_| CloseCode::AuthorityRevoked)
    });
    let (dialled, accepted) = tokio::join!(order.dial(&charge), charge.accept());
    assert_eq!(accepted.close_reason().unwrap().label(), "authority_revoked");
    assert!(matches!(accepted.accept().await, Err(CloseReason::Closed { by: By::Us, .. })));
    assert_eq!(soon(dialled.closed()).await.label(), "authority_revoked");
}

#[tokio::test]
async fn a_tunnel_without_handles_and_flows_closes_itself() {
    let (_order, charge, dialled, accepted) = pair(TransportSettings::default()).await;
    let (near, _far) = flow(&dialled, &accepted).await;
    drop(dialled);
    assert_eq!(accepted.close_reason(), None, "its flow keeps it");
    drop(near);
    assert_eq!(soon(accepted.closed()).await.label(), "done");
    drop(accepted);
    eventually("the endpoint forgets it", || charge.overlay.tunnels().is_empty()).await;
}

#[tokio::test]
async fn a_draining_end_gets_no_new_flows_and_keeps_the_old_ones() {
    let (_order, charge, dialled, accepted) = pair(TransportSettings::default()).await;
    let (mut near, mut far) = flow(&dialled, &accepted).await;
    charge.overlay.drain(CloseCode::Drain);
    let code = PeerCode::Known(CloseCode::Drain);
    assert_eq!(soon(dialled.draining()).await, Phase::Draining { by: By::Peer, code });
    assert_eq!(accepted.phase(), Phase::Draining { by: By::Us, code });
    assert_eq!(dialled.open(&header(80)).await.unwrap_err(), OpenError::Draining);
    near.write_all(b"still here").await.unwrap();
    near.shutdown().await.unwrap();
    let mut text = String::new();
    far.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "still here");
}

#[tokio::test]
async fn an_endpoint_that_closes_tells_all_its_peers() {
    let world = World::new();
    let (order, charge) = (world.party("order"), world.party("charge"));
    let (one, _one) = tokio::join!(order.dial(&charge), charge.accept());
    let (two, _two) = tokio::join!(order.dial(&charge), charge.accept());
    charge.overlay.close(CloseCode::Shutdown);
    soon(charge.overlay.wait_idle()).await;
    assert_eq!(soon(one.closed()).await.label(), "shutdown");
    assert_eq!(soon(two.closed()).await.label(), "shutdown");
    assert!(charge.overlay.accept().await.is_none());
}

#[tokio::test]
async fn tunnels_are_closed_by_what_they_are() {
    let world = World::new();
    let (order, cart, charge) = (world.party("order"), world.party("cart"), world.party("charge"));
    let (banned, _one) = tokio::join!(order.dial(&charge), charge.accept());
    let (fine, _two) = tokio::join!(cart.dial(&charge), charge.accept());
    let which = |tunnel: &Tunnel| tunnel.peer().id == order.id;
    assert_eq!(charge.overlay.close_where(CloseCode::OlderBoot, "boot 3, now 4", which), 1);
    assert_eq!(soon(banned.closed()).await.label(), "older_boot");
    assert_eq!(fine.close_reason(), None);
}

#[tokio::test]
async fn a_tunnel_is_closed_before_the_peers_certificate_expires() {
    let world = World::new();
    let (order, charge) = (world.party("order"), world.party("charge"));
    order.slot.publish(world.issue(&order.id, Duration::from_secs(4)));
    let not_after = order.slot.load().unwrap().svid().validity().not_after;
    let (dialled, accepted) = tokio::join!(order.dial(&charge), charge.accept());
    let (near, _far) = flow(&dialled, &accepted).await;
    assert_eq!(accepted.peer().not_after, not_after);
    assert_eq!(
        soon(accepted.closed()).await,
        CloseReason::Closed {
            by: By::Us,
            code: PeerCode::Known(CloseCode::IdentityExpired),
            detail: "the certificate of the tunnel expires".to_owned(),
        }
    );
    assert!(wall() < not_after, "in time");
    assert_eq!(soon(dialled.closed()).await.label(), "identity_expired");
    drop(near);
}

#[tokio::test]
async fn a_peer_that_falls_silent_ends_the_tunnel_after_the_idle_timeout() {
    let settings = TransportSettings {
        idle_timeout: Duration::from_millis(900),
        keep_alive: Duration::from_millis(300),
        ..Default::default()
    };
    let world = World::new();
    let order = world.party_with("order", settings.clone());
    let charge = restart::Killable::start(&world, "charge", settings);
    let tunnel = charge.dialled_by(&order).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(tunnel.close_reason(), None, "keep-alive keeps an idle tunnel");
    charge.kill();
    assert_eq!(soon(tunnel.closed()).await, CloseReason::TimedOut);
}
