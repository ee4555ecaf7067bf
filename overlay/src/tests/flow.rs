//! Flows on one tunnel: both ends of both directions, the reply, and the codes.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test]
async fn a_flow_carries_its_header_and_bytes_both_ways() {
    let (order, charge, dialled, accepted) = pair(TransportSettings::default()).await;
    assert_eq!((dialled.peer().id.clone(), accepted.peer().id.clone()), (charge.id, order.id));
    assert_eq!(accepted.server_name(), Some(SERVER_NAME));

    let mut near = dialled.open(&header(80)).await.unwrap();
    near.write_all(b"hello").await.unwrap(); // behind the header, before any reply
    let incoming = accepted.accept().await.unwrap().header().await.unwrap();
    assert_eq!(incoming.header(), &header(80));
    let policy = PolicyRef { policy: "shop/charge-from-order".into(), rule: "order".into() };
    let mut far = incoming.accept(Accepted { policy: Some(policy.clone()) }).await.unwrap();
    let mut buffer = [0; 5];
    far.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"hello");
    far.write_all(b"world").await.unwrap();
    assert_eq!(near.reply().await.unwrap().policy, Some(policy));
    near.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"world");
}

#[tokio::test]
async fn a_flow_is_answered_when_its_acceptance_is_read_and_not_before_and_not_by_a_refusal() {
    let (_order, _charge, dialled, accepted) = pair(TransportSettings::default()).await;
    let mut near = dialled.open(&header(80)).await.unwrap();
    let asked = near.handle();
    let incoming = accepted.accept().await.unwrap().header().await.unwrap();
    assert!(!is_answered(&asked).await);
    let _far = incoming.accept(Accepted::default()).await.unwrap();
    near.reply().await.unwrap();
    assert!(is_answered(&asked).await);

    let mut near = dialled.open(&header(80)).await.unwrap();
    let incoming = accepted.accept().await.unwrap().header().await.unwrap();
    incoming.refuse(Refused::new(ResetCode::PolicyDenied, "W2101", "no"));
    near.reply().await.unwrap_err();
    assert!(!is_answered(&near.handle()).await);
}

async fn is_answered(flow: &FlowHandle) -> bool {
    tokio::time::timeout(Duration::ZERO, flow.answered()).await.is_ok()
}

#[tokio::test]
async fn a_caller_that_finished_still_reads_the_answer() {
    let (_order, _charge, dialled, accepted) = pair(TransportSettings::default()).await;
    let (mut near, mut far) = flow(&dialled, &accepted).await;
    near.write_all(b"request").await.unwrap();
    near.shutdown().await.unwrap();
    let mut request = Vec::new();
    far.read_to_end(&mut request).await.unwrap();
    assert_eq!(request, b"request");
    far.write_all(b"answer").await.unwrap();
    far.shutdown().await.unwrap();
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
}

#[tokio::test]
async fn a_service_that_finished_still_reads_the_caller() {
    let (_order, _charge, dialled, accepted) = pair(TransportSettings::default()).await;
    let (mut near, mut far) = flow(&dialled, &accepted).await;
    far.write_all(b"banner").await.unwrap();
    far.shutdown().await.unwrap();
    let mut banner = Vec::new();
    near.read_to_end(&mut banner).await.unwrap();
    assert_eq!(banner, b"banner");
    near.write_all(b"later").await.unwrap();
    near.shutdown().await.unwrap();
    let mut later = Vec::new();
    far.read_to_end(&mut later).await.unwrap();
    assert_eq!(later, b"later");
}

#[tokio::test]
async fn chunks_arrive_whole_and_in_order_and_packets_leave_in_batches() {
    const CHUNK: usize = 48 * 1024;
    const CHUNKS: usize = 256;
    let (_order, _charge, dialled, accepted) = pair(TransportSettings::default()).await;
    let (near, far) = flow(&dialled, &accepted).await;
    let (mut send, _recv) = near.split();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        for n in 0..CHUNKS {
            let chunk = Bytes::from(vec![n as u8; CHUNK]);
            send.write_all_chunks(&mut [chunk]).await.unwrap();
        }
        send.finish().unwrap();
        send.stopped().await;
    });
    let (_send, mut recv) = far.split();
    let mut chunks = vec![Bytes::new(); 64];
    let mut position = 0;
    while let Some(count) = recv.read_chunks(&mut chunks).await.unwrap() {
        for chunk in &chunks[..count] {
            for byte in chunk {
                assert_eq!(usize::from(*byte), position / CHUNK % 256);
                position += 1;
            }
        }
    }
    assert_eq!(position, CHUNK * CHUNKS);
    let sent = dialled.core().connection.stats().udp_tx;
    assert!(sent.ios * 3 < sent.datagrams, "GSO is in use: {sent:?}");
}

#[tokio::test]
async fn a_refusal_tells_code_and_reason_even_to_a_caller_that_wrote_before() {
    let (_order, _charge, dialled, accepted) = pair(TransportSettings::default()).await;
    let mut near = dialled.open(&header(80)).await.unwrap();
    near.write_all(b"early").await.unwrap();
    let incoming = accepted.accept().await.unwrap().header().await.unwrap();
    incoming.refuse(Refused::new(ResetCode::PolicyDenied, "W2101", "no rule allows order"));
    let StreamError::Refused(refused) = near.reply().await.unwrap_err() else { panic!("refused") };
    assert_eq!(refused, Refused::new(ResetCode::PolicyDenied, "W2101", "no rule allows order"));
    let (send, mut recv) = near.split();
    assert_eq!(send.stopped().await, Some(PeerCode::Known(ResetCode::PolicyDenied)));
    let again = recv.read_chunks(&mut [Bytes::new()]).await.unwrap_err();
    assert_eq!(again.peer_code(), Some(ResetCode::PolicyDenied), "every read says so");
}

#[tokio::test]
async fn every_reset_code_travels_in_both_directions() {
    let (_order, _charge, dialled, accepted) = pair(TransportSettings::default()).await;
    for &code in ResetCode::ALL {
        for dialler_resets in [true, false] {
            let (near, far) = flow(&dialled, &accepted).await;
            let (one, other) = if dialler_resets { (near, far) } else { (far, near) };
            one.abort(code);
            let (mut send, mut recv) = other.split();
            let read = recv.read_chunks(&mut [Bytes::new()]).await.unwrap_err();
            assert_eq!(read, StreamError::Reset(PeerCode::Known(code)));
            let write = loop {
                if let Err(error) = send.write_all_chunks(&mut [Bytes::from_static(b"x")]).await {
                    break error;
                }
                tokio::task::yield_now().await;
            };
            assert_eq!(write, StreamError::Stopped(PeerCode::Known(code)));
        }
    }
}

#[tokio::test]
async fn a_dropped_flow_is_reset_and_never_looks_complete() {
    let (_order, _charge, dialled, accepted) = pair(TransportSettings::default()).await;
    let (mut near, far) = flow(&dialled, &accepted).await;
    near.write_all(b"half a request").await.unwrap();
    drop(near);
    let (_, mut recv) = far.split();
    assert_eq!(end_of(&mut recv).await, StreamError::Reset(PeerCode::Known(ResetCode::Cancelled)));
}

#[tokio::test]
async fn the_owner_of_a_flow_names_the_reason_before_it_drops_it() {
    let (_order, _charge, dialled, accepted) = pair(TransportSettings::default()).await;
    let (near, far) = flow(&dialled, &accepted).await;
    far.handle().set_drop_code(ResetCode::PolicyChanged);
    drop(far);
    let (_, mut recv) = near.split();
    assert_eq!(end_of(&mut recv).await, StreamError::Reset(PeerCode::Known(ResetCode::PolicyChanged)));
}

#[tokio::test]
async fn a_malformed_header_resets_the_flow_and_leaves_the_tunnel() {
    let settings = TransportSettings { header_timeout: Duration::from_millis(200), ..Default::default() };
    let (_order, _charge, dialled, accepted) = pair(settings).await;
    let cases: [(&[u8], ResetCode); 4] = [
        (&[9, 0, 0], ResetCode::UnsupportedVersion),
        (&[1, 0xff, 0xff], ResetCode::Protocol),
        (&[1, 0, 0], ResetCode::Protocol),
        (&[1], ResetCode::Idle), // and nothing more
    ];
    for (bytes, code) in cases {
        let (mut send, mut recv) = dialled.core().connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        let opening = accepted.accept().await.unwrap();
        assert!(opening.header().await.is_err());
        let reset = recv.read_chunk(1, true).await.unwrap_err();
        assert_eq!(reset, quinn::ReadError::Reset(code.varint()), "{bytes:?}");
    }
    flow(&dialled, &accepted).await;
    assert_eq!(accepted.streams_active(), 0, "nothing is left behind");
}

#[tokio::test]
async fn a_flow_that_ends_before_its_header_is_an_error() {
    let (_order, _charge, dialled, accepted) = pair(TransportSettings::default()).await;
    let (mut send, _recv) = dialled.core().connection.open_bi().await.unwrap();
    send.write_all(&header(80).encode()[..20]).await.unwrap();
    send.finish().unwrap();
    let opening = accepted.accept().await.unwrap();
    assert_eq!(opening.header().await.unwrap_err(), OpeningError::Truncated);
}

#[tokio::test]
async fn one_slow_header_does_not_delay_the_next_flow() {
    let (_order, _charge, dialled, accepted) = pair(TransportSettings::default()).await;
    let (mut send, _recv) = dialled.core().connection.open_bi().await.unwrap();
    send.write_all(&[1]).await.unwrap();
    let _slow = accepted.accept().await.unwrap();
    flow(&dialled, &accepted).await;
}

#[tokio::test]
async fn the_flow_limit_doubles_at_three_quarters_up_to_the_ceiling() {
    let settings = TransportSettings { flows_at_start: 8, flows_ceiling: 32, ..Default::default() };
    let (_order, _charge, dialled, accepted) = pair(settings).await;
    let mut open = Vec::new();
    for n in 1..=32 {
        open.push(flow(&dialled, &accepted).await);
        let expected = if n < 6 {
            8
        } else if n < 12 {
            16
        } else {
            32
        };
        assert_eq!(accepted.flow_limit(), expected, "with {n} flows");
    }
    let refused = dialled.open(&header(80)).await.unwrap_err();
    assert_eq!(refused, OpenError::FlowLimit { flows: 32 });
    // quinn announces freed places in lots of an eighth of the limit.
    open.truncate(24);
    eventually("a place is free", || dialled.streams_active() < 32).await;
    flow(&dialled, &accepted).await;
}

#[tokio::test]
async fn a_burst_beyond_the_first_limit_is_served_as_the_limit_grows() {
    let world = World::new();
    let (order, charge) = (world.party("order"), world.party("charge"));
    let _serving = charge.serve(echo);
    let tunnel = order.dial(&charge).await;
    let mut flows = JoinSet::new();
    for _ in 0..600 {
        let tunnel = tunnel.clone();
        flows.spawn(async move {
            let mut stream = tunnel.open(&header(80)).await.unwrap();
            stream.write_all(b"ping").await.unwrap();
            let mut buffer = [0; 4];
            stream.read_exact(&mut buffer).await.unwrap();
            stream
        });
    }
    let open = soon(flows.join_all()).await;
    assert_eq!((open.len(), tunnel.streams_active()), (600, 600));
    drop(open);
    assert_eq!(tunnel.streams_active(), 0);
}

#[tokio::test]
async fn the_dialled_end_may_not_open_flows() {
    let (_order, _charge, _dialled, accepted) = pair(TransportSettings::default()).await;
    let refused = accepted.open(&header(80)).await.unwrap_err();
    assert!(matches!(refused, OpenError::FlowLimit { .. }), "{refused}");
}

#[tokio::test]
async fn loopback_tunnels_find_their_larger_packets() {
    let world = World::new();
    let (order, charge) = (world.party("order"), world.party("charge"));
    let _serving = charge.serve(echo);
    let tunnel = order.dial(&charge).await;
    let mut stream = tunnel.open(&header(80)).await.unwrap();
    let mut buffer = vec![0; 64 * 1024];
    let deadline = clock::now() + PATIENCE;
    while tunnel.stats().mtu_bytes < 6000 {
        assert!(clock::now() < deadline, "mtu stays at {}", tunnel.stats().mtu_bytes);
        stream.write_all(&buffer).await.unwrap();
        stream.read_exact(&mut buffer).await.unwrap();
    }
    assert!(tunnel.stats().mtu_bytes <= 6500);
}

async fn end_of(recv: &mut RecvHalf) -> StreamError {
    loop {
        match recv.read_chunks(&mut [Bytes::new()]).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a clean end"),
            Err(error) => return error,
        }
    }
}
