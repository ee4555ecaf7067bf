//! No head-of-line blocking: flows whose reader stands still do not slow the others down.

use bytes::Bytes;

use super::*;

/// Header ports that say what the acceptor does with a flow.
const SINK: u16 = 1;
const STALL: u16 = 2;
/// What flow 101 moves in one measurement.
const LOAD: usize = 96 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_stalled_flows_leave_flow_101_at_nine_tenths_of_its_rate_and_none_is_reset() {
    let world = World::new();
    let (order, charge) = (world.party("order"), world.party("charge"));
    let _serving = charge.serve(serve);
    let tunnel = order.dial(&charge).await;

    let quiet = order.dial(&charge).await;
    let mut stalled = Vec::new();
    for _ in 0..100 {
        stalled.push(StalledFlow::start(&tunnel).await);
    }
    let full = (2 << 20) - (64 << 10); // all but the header and the last partial chunk
    let filled = || stalled.iter().all(|flow| flow.written() >= full);
    eventually("every stalled flow has filled its own window", filled).await;

    // In turns, and the best of each: other programs use the machine too.
    let (mut alone, mut beside) = (Duration::MAX, Duration::MAX);
    for round in 0..12 {
        alone = alone.min(measure(&quiet).await);
        beside = beside.min(measure(&tunnel).await);
        if round >= 3 && beside.mul_f64(0.9) <= alone {
            break;
        }
    }
    let rate = alone.as_secs_f64() / beside.as_secs_f64();
    assert!(rate >= 0.9, "{rate:.2} of its rate: {alone:?} alone, {beside:?} beside");
    for flow in &mut stalled {
        assert_eq!(flow.ended(), None, "none is reset");
    }
}

#[tokio::test]
async fn past_the_budget_the_longest_stalled_flow_is_reset_with_its_code() {
    let settings = TransportSettings {
        stream_window_bytes: 64 << 10,
        receive_window_bytes: 256 << 10,
        stall_budget_bytes: 256 << 10,
        ..Default::default()
    };
    let world = World::new();
    let order = world.party("order");
    let charge = world.party_with("charge", settings);
    let _serving = charge.serve(serve);
    let tunnel = order.dial(&charge).await;

    let mut first = StalledFlow::start(&tunnel).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut others = Vec::new();
    for _ in 0..2 {
        others.push(StalledFlow::start(&tunnel).await);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(first.ended(), None, "three are within the budget");
    others.push(StalledFlow::start(&tunnel).await);
    let end = soon(first.end()).await;
    assert_eq!(end, StreamError::Stopped(PeerCode::Known(ResetCode::Stalled)));
    tokio::time::sleep(Duration::from_millis(300)).await;
    for flow in &mut others {
        assert_eq!(flow.ended(), None, "only the longest-stalled one goes");
    }
    measure_bytes(&tunnel, 1 << 20).await;
}

#[tokio::test]
async fn the_budget_of_an_identity_spans_its_tunnels_and_not_those_of_others() {
    let settings = TransportSettings {
        stream_window_bytes: 64 << 10,
        receive_window_bytes: 256 << 10,
        stall_budget_bytes: 80 << 10,
        ..Default::default()
    };
    let world = World::new();
    let (order, cart) = (world.party("order"), world.party("cart"));
    let charge = world.party_with("charge", settings);
    let _serving = charge.serve(serve);
    let (one, two, other) = (order.dial(&charge).await, order.dial(&charge).await, cart.dial(&charge).await);
    let mut first = StalledFlow::start(&one).await;
    let mut apart = StalledFlow::start(&other).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut second = StalledFlow::start(&two).await;
    assert_eq!(soon(first.end()).await, StreamError::Stopped(PeerCode::Known(ResetCode::Stalled)));
    assert_eq!(apart.ended(), None);
    assert_eq!(second.ended(), None);
}

#[tokio::test]
async fn a_flow_that_takes_again_gives_its_extra_window_back() {
    let settings = TransportSettings {
        stream_window_bytes: 64 << 10,
        receive_window_bytes: 64 << 10,
        stall_budget_bytes: 80 << 10,
        ..Default::default()
    };
    let (_order, _charge, dialled, accepted) = pair(settings).await;
    // One after the other, so that each finds the whole budget free again.
    for _ in 0..4 {
        let (near, far) = flow(&dialled, &accepted).await;
        let (mut send, _recv) = near.split();
        let (_send, mut recv) = far.split();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            send.write_all_chunks(&mut [Bytes::from(vec![0; 256 << 10])]).await.unwrap();
            send.finish().unwrap();
            send.stopped().await;
        });
        let stalled = recv.while_blocked(tokio::time::sleep(Duration::from_millis(300))).await;
        assert_eq!(stalled, Ok(()), "within the budget");
        let mut read = 0;
        let mut chunks = vec![Bytes::new(); 16];
        while let Some(count) = recv.read_chunks(&mut chunks).await.unwrap() {
            read += chunks[..count].iter().map(Bytes::len).sum::<usize>();
        }
        assert_eq!(read, 256 << 10);
    }
}

/// How long flow 101 takes for its load.
async fn measure(tunnel: &Tunnel) -> Duration {
    measure_bytes(tunnel, LOAD).await
}

async fn measure_bytes(tunnel: &Tunnel, bytes: usize) -> Duration {
    let stream = tunnel.open(&header(SINK)).await.unwrap();
    let (mut send, mut recv) = stream.split();
    recv.reply().await.unwrap();
    let chunk = Bytes::from(vec![7; 64 << 10]);
    let began = clock::now();
    soon(async {
        for _ in 0..bytes / chunk.len() {
            send.write_all_chunks(&mut [chunk.clone()]).await.unwrap();
        }
        send.finish().unwrap();
        assert_eq!(recv.read_chunks(&mut [Bytes::new()]).await.unwrap(), None); // the sink has all
    })
    .await;
    began.elapsed()
}

/// The acceptor: a sink reads all and then finishes; a stalled one reads once, and its local socket takes
/// nothing ever after.
async fn serve(incoming: Incoming) {
    let stalls = incoming.header().port.get() == STALL;
    let (mut send, mut recv) = incoming.accept(Accepted::default()).await.unwrap().split();
    let mut chunks = vec![Bytes::new(); 64];
    if stalls {
        let _ = recv.read_chunks(&mut chunks).await;
        let _ = recv.while_blocked(std::future::pending::<()>()).await;
        return; // evicted: both halves are dropped
    }
    while let Ok(Some(_)) = recv.read_chunks(&mut chunks).await {}
    let _ = send.finish();
}

/// A caller that sends to a reader that stands still.
struct StalledFlow {
    task: JoinSet<StreamError>,
    written: Arc<std::sync::atomic::AtomicUsize>,
    _recv: RecvHalf,
}

impl StalledFlow {
    async fn start(tunnel: &Tunnel) -> Self {
        let (mut send, recv) = tunnel.open(&header(STALL)).await.unwrap().split();
        let written = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = written.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let chunk = Bytes::from(vec![1; 64 << 10]);
            loop {
                match send.write_chunks(&mut [chunk.clone()]).await {
                    Ok(taken) => count.fetch_add(taken.bytes, std::sync::atomic::Ordering::Relaxed),
                    Err(error) => return error,
                };
            }
        });
        Self { task, written, _recv: recv }
    }

    fn written(&self) -> usize {
        self.written.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn ended(&mut self) -> Option<StreamError> {
        self.task.try_join_next().map(Result::unwrap)
    }

    async fn end(&mut self) -> StreamError {
        self.task.join_next().await.unwrap().unwrap()
    }
}
