//! Over a socket that remembers what left.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, Ordering},
};

use super::*;
use crate::clock;

const SEGMENT: usize = 1452;
const BATCH: usize = SEGMENT * GSO_SEGMENTS as usize;

/// Remembers what it was given; takes nothing while it is full.
#[derive(Debug, Default)]
struct Wire {
    sent: Mutex<VecDeque<(SocketAddr, usize, Option<usize>)>>,
    full: AtomicBool,
}

#[derive(Debug)]
struct Room(Arc<Wire>);

impl UdpPoller for Room {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.full.load(Ordering::Relaxed) { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

impl AsyncUdpSocket for Wire {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let length = transmit.contents.len();
        self.sent.lock().unwrap().push_back((transmit.destination, length, transmit.segment_size));
        Ok(())
    }

    fn poll_recv(
        &self,
        _cx: &mut Context<'_>,
        _bufs: &mut [IoSliceMut<'_>],
        _meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(to(1))
    }

    fn max_transmit_segments(&self) -> usize {
        64
    }
}

impl Wire {
    /// Lengths and packet sizes of what left since the last look.
    fn left(&self) -> Vec<(usize, Option<usize>)> {
        self.sent.lock().unwrap().drain(..).map(|(_, length, segment)| (length, segment)).collect()
    }
}

fn to(host: u8) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, host], 7443))
}

fn batch(host: u8, contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
    Transmit { destination: to(host), ecn: None, contents, segment_size, src_ip: None }
}

fn send(trains: &Trains, host: u8, length: usize, segment: Option<usize>) -> io::Result<()> {
    trains.try_send(&batch(host, &vec![0; length], segment))
}

fn scene() -> (Arc<Wire>, Arc<Trains>) {
    let wire = Arc::new(Wire::default());
    (wire.clone(), Trains::new(wire, Quiet::new(clock::now().into_std())))
}

#[test]
fn full_batches_leave_together_as_soon_as_no_other_has_room() {
    let (wire, trains) = scene();
    for _ in 0..4 {
        assert_eq!(wire.left(), []);
        send(&trains, 1, BATCH, Some(SEGMENT)).unwrap();
    }
    assert_eq!(wire.left(), [(4 * BATCH, Some(SEGMENT))], "a fifth would pass 65,507 bytes");
    send(&trains, 1, BATCH, Some(SEGMENT)).unwrap();
    assert_eq!(wire.left(), []);
}

#[test]
fn what_does_not_fill_a_batch_goes_at_once_and_takes_the_train_along() {
    let (wire, trains) = scene();
    send(&trains, 1, 100, None).unwrap();
    send(&trains, 1, 3 * SEGMENT, Some(SEGMENT)).unwrap();
    assert_eq!(wire.left(), [(100, None), (3 * SEGMENT, Some(SEGMENT))]);
    for (last, segment) in [(SEGMENT, None), (100, None), (3 * SEGMENT - 7, Some(SEGMENT))] {
        send(&trains, 1, BATCH, Some(SEGMENT)).unwrap();
        send(&trains, 1, last, segment).unwrap();
        assert_eq!(wire.left(), [(BATCH + last, Some(SEGMENT))]);
    }
}

#[test]
fn what_does_not_belong_to_a_train_goes_after_it() {
    let (wire, trains) = scene();
    let others = [(2, 100, None), (1, SEGMENT + 1, None), (1, 3000, Some(1500)), (1, 2800, Some(1400))];
    for (host, length, segment) in others {
        send(&trains, 1, BATCH, Some(SEGMENT)).unwrap();
        send(&trains, host, length, segment).unwrap();
        assert_eq!(wire.left(), [(BATCH, Some(SEGMENT)), (length, segment)], "{host} {length}");
    }
}

#[test]
fn tls_04_answers_to_unknown_versions_are_few() {
    let (wire, trains) = scene();
    let mut answer = [0; 40];
    answer[0] = 0xc0;
    for _ in 0..1_000 {
        trains.try_send(&batch(1, &answer, None)).unwrap();
    }
    let left = wire.left().len();
    assert!((100..200).contains(&left), "{left}");
}

#[test]
fn batches_that_fill_a_datagram_by_themselves_do_not_wait() {
    let (wire, trains) = scene();
    send(&trains, 1, 65_000, Some(6500)).unwrap();
    assert_eq!(wire.left(), [(65_000, Some(6500))]);
}

/// The conductor, run by hand: one call is one turn.
fn conductor(trains: &Arc<Trains>) -> impl FnMut() {
    let mut conduct = Box::pin(trains.clone().conduct());
    let mut turn =
        move || assert!(conduct.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    turn();
    turn
}

#[test]
fn a_train_that_nobody_adds_to_leaves_by_itself() {
    let (wire, trains) = scene();
    let mut turn = conductor(&trains);
    for batches in 1..4 {
        for _ in 0..batches {
            send(&trains, 1, BATCH, Some(SEGMENT)).unwrap();
            turn();
            assert_eq!(wire.left(), [], "it was added to since the last look");
        }
        turn();
        assert_eq!(wire.left(), [(batches * BATCH, Some(SEGMENT))]);
        turn();
        assert_eq!(wire.left(), []);
    }
}

#[test]
fn without_room_nothing_is_lost_and_nothing_overtakes() {
    let (wire, trains) = scene();
    let mut turn = conductor(&trains);
    wire.full.store(true, Ordering::Relaxed);
    for _ in 0..4 {
        send(&trains, 1, BATCH, Some(SEGMENT)).unwrap();
    }
    send(&trains, 1, 100, None).unwrap();
    for host in [1, 2] {
        let refused = send(&trains, host, 100, None).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock, "the train goes first");
    }
    for _ in 0..3 {
        turn();
    }
    wire.full.store(false, Ordering::Relaxed);
    turn();
    assert_eq!(wire.left(), [(4 * BATCH + 100, Some(SEGMENT))]);
    send(&trains, 2, 100, None).unwrap();
    assert_eq!(wire.left(), [(100, None)]);
}

#[test]
fn nothing_joins_behind_a_shorter_packet() {
    let (wire, trains) = scene();
    let mut turn = conductor(&trains);
    send(&trains, 1, BATCH, Some(SEGMENT)).unwrap();
    wire.full.store(true, Ordering::Relaxed);
    send(&trains, 1, 100, None).unwrap();
    for (length, segment) in [(BATCH, Some(SEGMENT)), (SEGMENT, None), (100, None)] {
        let refused = send(&trains, 1, length, segment).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock, "{length}");
    }
    wire.full.store(false, Ordering::Relaxed);
    turn();
    turn();
    assert_eq!(wire.left(), [(BATCH + 100, Some(SEGMENT))]);
}

/// Wakes the conductor whenever something waits: a runtime that sleeps would forget it.
#[tokio::test]
async fn the_conductor_is_woken_for_what_waits() {
    let (wire, trains) = scene();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(trains.clone().conduct());
    for _ in 0..3 {
        tokio::task::yield_now().await;
        send(&trains, 1, BATCH, Some(SEGMENT)).unwrap();
        tokio::task::yield_now().await;
        assert_eq!(wire.left(), [(BATCH, Some(SEGMENT))]);
    }
}

#[test]
fn a_handshake_that_the_socket_has_no_room_for_is_not_counted_as_sent() {
    let (wire, trains) = scene();
    trains.unproven().heard(to(1), 1200, clock::now().into_std());
    let mut flight = vec![0; 3600];
    flight[0] = 0xc0;
    wire.full.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        assert!(trains.try_send(&batch(1, &flight, Some(1200))).is_err());
    }
    wire.full.store(false, Ordering::Relaxed);
    trains.try_send(&batch(1, &flight, Some(1200))).unwrap();
    assert_eq!(wire.left(), [(3600, Some(1200))], "three times 1,200 bytes are due");
    trains.try_send(&batch(1, &flight[..1200], None)).unwrap();
    assert_eq!(wire.left(), []);
}
