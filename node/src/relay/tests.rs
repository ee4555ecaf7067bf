//! Flows over real sockets and a real tunnel, and how programs see them end.

use std::{future::pending, io};

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use weft_overlay::{PeerCode, Refused};

use super::*;
use crate::{
    intercept::{exchange::exchange, http_head::Body},
    testing::{PATIENCE, TunnelPair, tcp_pair},
};

fn relay(side: Side) -> Relay {
    let idle = Duration::from_secs(3_600);
    Relay { side, idle, meter: Arc::default(), clock: Clock::system() }
}

/// Two programs and what carries between them.
struct Flow {
    client: TcpStream,
    server: TcpStream,
    carried: tokio::task::JoinHandle<(Transfer, Transfer)>,
}

#[expect(clippy::disallowed_methods, reason = "a test owns its tasks")]
fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    tokio::spawn(future)
}

/// A flow between two programs of one agent; its two transfers are the same.
async fn neighbours() -> Flow {
    let ((client, accepted), (dialled, server)) = (tcp_pair().await, tcp_pair().await);
    let carried = spawn(async move {
        let (mut app, mut other) = (AppStream::raw(accepted), AppStream::raw(dialled));
        let transfer = within_host(&mut app, &mut other, &relay(Side::Caller), pending()).await;
        (transfer.clone(), transfer)
    });
    Flow { client, server, carried }
}

/// A flow through a tunnel.
async fn distant() -> Flow {
    let ((client, accepted), (dialled, server)) = (tcp_pair().await, tcp_pair().await);
    let carried = spawn(async move {
        let tunnels = TunnelPair::new().await;
        let (near, far) = tunnels.flow().await;
        let near = end_of(accepted, near, Side::Caller);
        let far = end_of(dialled, far, Side::Service);
        tokio::join!(near, far)
    });
    Flow { client, server, carried }
}

/// One agent's part of a flow: everything is dropped as soon as it ends.
async fn end_of(io: TcpStream, mut tunnel: TunnelStream, side: Side) -> Transfer {
    let mut app = AppStream::raw(io);
    both_ways(&mut app, &mut tunnel, &relay(side), pending()).await
}

async fn ends(flow: tokio::task::JoinHandle<(Transfer, Transfer)>) -> (End, End) {
    let (near, far) = timeout(PATIENCE, flow).await.unwrap().unwrap();
    (near.end, far.end)
}

async fn read_all(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.unwrap()?;
    Ok(bytes)
}

#[tokio::test]
async fn a_client_that_shuts_down_writing_still_reads_the_answer() {
    for mut flow in [neighbours().await, distant().await] {
        flow.client.write_all(b"question").await.unwrap();
        flow.client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut flow.server).await.unwrap(), b"question");
        flow.server.write_all(b"answer").await.unwrap();
        drop(flow.server);
        assert_eq!(read_all(&mut flow.client).await.unwrap(), b"answer");
        let (near, far) = timeout(PATIENCE, flow.carried).await.unwrap().unwrap();
        assert_eq!((near.sent_bytes, near.received_bytes, near.end), (8, 6, End::Clean));
        assert_eq!(far.end, End::Clean);
    }
}

#[tokio::test]
async fn a_server_may_speak_first() {
    for mut flow in [neighbours().await, distant().await] {
        flow.server.write_all(b"banner").await.unwrap();
        let mut banner = [0; 6];
        timeout(PATIENCE, flow.client.read_exact(&mut banner)).await.unwrap().unwrap();
        assert_eq!(&banner, b"banner");
        drop((flow.client, flow.server));
    }
}

#[tokio::test]
async fn megabytes_arrive_as_they_were_sent() {
    let sent: Vec<u8> = (0_u32..8 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for flow in [neighbours().await, distant().await] {
        let Flow { mut client, mut server, carried } = flow;
        let (there, back) = (sent.clone(), sent.clone());
        let serve = spawn(async move {
            let received = read_all(&mut server).await.unwrap();
            server.write_all(&back).await.unwrap();
            received
        });
        client.write_all(&there).await.unwrap();
        client.shutdown().await.unwrap();
        assert!(read_all(&mut client).await.unwrap() == sent);
        assert!(serve.await.unwrap() == sent);
        assert_eq!(ends(carried).await, (End::Clean, End::Clean));
    }
}

#[tokio::test]
async fn a_reset_of_the_server_is_a_reset_for_the_client() {
    for mut flow in [neighbours().await, distant().await] {
        flow.client.write_all(b"question").await.unwrap();
        let mut question = [0; 8];
        timeout(PATIENCE, flow.server.read_exact(&mut question)).await.unwrap().unwrap();
        flow.server.set_zero_linger().unwrap();
        drop(flow.server);
        let seen = read_all(&mut flow.client).await.unwrap_err();
        assert_eq!(seen.kind(), io::ErrorKind::ConnectionReset);
        let (near, far) = ends(flow.carried).await;
        assert!(
            matches!(
                &near,
                End::Neighbour(_) | End::Far(StreamError::Reset(PeerCode::Known(ResetCode::UpstreamReset)))
            ),
            "{near:?}"
        );
        assert!(matches!(far, End::App(_) | End::Neighbour(_)), "{far:?}");
    }
}

#[tokio::test]
async fn a_reset_of_the_client_is_a_reset_for_the_server() {
    for mut flow in [neighbours().await, distant().await] {
        flow.client.write_all(b"question").await.unwrap();
        let mut question = [0; 8];
        timeout(PATIENCE, flow.server.read_exact(&mut question)).await.unwrap().unwrap();
        flow.client.set_zero_linger().unwrap();
        drop(flow.client);
        assert_eq!(read_all(&mut flow.server).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(matches!(ends(flow.carried).await.0, End::App(_)));
    }
}

#[tokio::test]
async fn a_dropped_flow_resets_both_programs() {
    for mut flow in [neighbours().await, distant().await] {
        flow.client.write_all(b"question").await.unwrap();
        let mut question = [0; 8];
        timeout(PATIENCE, flow.server.read_exact(&mut question)).await.unwrap().unwrap();
        flow.carried.abort();
        assert_eq!(read_all(&mut flow.client).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(read_all(&mut flow.server).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_flow_that_is_cut_tells_its_code_to_the_other_end() {
    let tunnels = TunnelPair::new().await;
    let (near, far) = tunnels.flow().await;
    let ((mut client, accepted), (dialled, mut server)) = (tcp_pair().await, tcp_pair().await);
    let cut = async move {
        let (mut app, mut near) = (AppStream::raw(accepted), near);
        both_ways(&mut app, &mut near, &relay(Side::Caller), async { End::Cut(ResetCode::PolicyChanged) })
            .await
    };
    let (near, far) = tokio::join!(cut, end_of(dialled, far, Side::Service));
    assert_eq!(near.end, End::Cut(ResetCode::PolicyChanged));
    let told = PeerCode::Known(ResetCode::PolicyChanged);
    assert!(
        matches!(far.end, End::Far(StreamError::Reset(code) | StreamError::Stopped(code)) if code == told)
    );
    assert!(read_all(&mut client).await.is_err() && read_all(&mut server).await.is_err());
}

#[tokio::test]
async fn a_refused_flow_ends_with_the_refusal_and_can_be_answered() {
    let tunnels = TunnelPair::new().await;
    let (mut near, incoming) = tunnels.opening().await;
    let (mut client, accepted) = tcp_pair().await;
    let (request, response) = exchange(Body::None, false, crate::intercept::HeadLimits::default());
    let mut app = AppStream::raw(accepted)
        .answered_by(crate::app::Answer::Http, Default::default())
        .with_exchange(b"GET / HTTP/1.1\r\n\r\n".as_slice().into(), (request, response));
    incoming.refuse(Refused::new(ResetCode::PolicyDenied, "W2101", "no policy allows this caller"));
    let relay = relay(Side::Caller);
    let ended = timeout(PATIENCE, both_ways(&mut app, &mut near, &relay, pending())).await.unwrap();
    let End::Far(StreamError::Refused(refused)) = &ended.end else { panic!("{ended:?}") };
    let fault = crate::app::fault_of(weft_policy::code::NO_ALLOW, refused.detail.clone());
    let (answered, ()) = tokio::join!(read_all(&mut client), app.refuse(&fault));
    assert!(answered.unwrap().starts_with(b"HTTP/1.1 403 Forbidden\r\n"));
}

#[tokio::test]
async fn an_answer_is_delivered_although_the_service_took_no_more() {
    let tunnels = TunnelPair::new().await;
    let (near, mut far) = tunnels.flow().await;
    let (mut client, accepted) = tcp_pair().await;
    let near = spawn(end_of(accepted, near, Side::Caller));
    client.write_all(b"question").await.unwrap();
    let (send, recv) = far.halves();
    recv.stop(ResetCode::UpstreamReset);
    send.write_all(b"answer").await.unwrap();
    send.finish().unwrap();
    client.write_all(b"more").await.unwrap();
    assert_eq!(read_all(&mut client).await.unwrap(), b"answer");
    // The client may go on sending until it closes; then the flow ends with what the service said.
    let _ = client.write_all(b"and more").await;
    drop(client);
    let ended = timeout(PATIENCE, near).await.unwrap().unwrap();
    assert!(matches!(ended.end, End::Far(StreamError::Stopped(_))), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_flow_without_a_byte_ends_after_the_idle_timeout() {
    let ((mut client, accepted), (dialled, mut server)) = (tcp_pair().await, tcp_pair().await);
    let (mut app, mut other) = (AppStream::raw(accepted), AppStream::raw(dialled));
    let relay = Relay { idle: Duration::from_secs(60), ..relay(Side::Caller) };
    let started = relay.clock.now();
    let transfer = within_host(&mut app, &mut other, &relay, pending()).await;
    assert_eq!((transfer.end, relay.clock.now() - started), (End::Idle, Duration::from_secs(60)));
    drop((app, other));
    assert!(read_all(&mut client).await.is_err() && read_all(&mut server).await.is_err());
}

#[tokio::test]
async fn a_second_request_on_a_forwarded_connection_goes_nowhere() {
    let ((mut client, accepted), (dialled, mut server)) = (tcp_pair().await, tcp_pair().await);
    let gates = exchange(Body::None, false, crate::intercept::HeadLimits::default());
    let first = b"GET / HTTP/1.1\r\nHost: a.shop\r\nConnection: close\r\n\r\n";
    let second = b"GET / HTTP/1.1\r\nHost: b.shop\r\n\r\n";
    let carried = spawn(async move {
        let mut app = AppStream::raw(accepted)
            .answered_by(crate::app::Answer::Http, second.as_slice().into())
            .with_exchange(first.as_slice().into(), gates);
        let mut other = AppStream::raw(dialled);
        within_host(&mut app, &mut other, &relay(Side::Caller), pending()).await
    });
    client.write_all(second).await.unwrap();
    let mut seen = vec![0; first.len()];
    timeout(PATIENCE, server.read_exact(&mut seen)).await.unwrap().unwrap();
    assert_eq!(seen, first);
    server.write_all(b"HTTP/1.1 204 No Content\r\nConnection: keep-alive\r\n\r\n").await.unwrap();
    drop(server);
    let answer = read_all(&mut client).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
    drop(client);
    let ended = timeout(PATIENCE, carried).await.unwrap().unwrap();
    assert_eq!((ended.end, ended.sent_bytes), (End::Clean, first.len() as u64));
}

#[tokio::test]
async fn many_flows_share_one_tunnel() {
    let tunnels = Arc::new(TunnelPair::new().await);
    let mut flows = Vec::new();
    for n in 0..100_u32 {
        let (near, far) = tunnels.flow().await;
        let ((mut client, accepted), (dialled, mut server)) = (tcp_pair().await, tcp_pair().await);
        let agents = spawn(async move {
            tokio::join!(end_of(accepted, near, Side::Caller), end_of(dialled, far, Side::Service))
        });
        let echo = spawn(async move {
            let (mut read, mut write) = server.split();
            tokio::io::copy(&mut read, &mut write).await
        });
        flows.push((agents, echo));
        client.write_all(&n.to_be_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut client).await.unwrap(), n.to_be_bytes());
    }
    for (agents, echo) in flows {
        assert_eq!(timeout(PATIENCE, echo).await.unwrap().unwrap().unwrap(), 4);
        assert_eq!(ends(agents).await, (End::Clean, End::Clean));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn bytes_arrive_in_order_whatever_the_writes(writes in proptest::collection::vec(1_usize..70_000, 1..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let Flow { mut client, mut server, carried } = neighbours().await;
            let reader = spawn(async move { read_all(&mut server).await.unwrap() });
            let mut sent = Vec::new();
            for (turn, size) in writes.iter().enumerate() {
                let piece = vec![turn as u8; *size];
                client.write_all(&piece).await.unwrap();
                sent.extend_from_slice(&piece);
            }
            drop(client);
            assert!(reader.await.unwrap() == sent);
            assert_eq!(ends(carried).await.0, End::Clean);
        });
    }
}
