//! The socket under quinn, which joins full batches of packets into longer trains.
//!
//! quinn hands over at most ten packets at a time; the kernel takes as many as fit one UDP datagram's length (GSO), and
//! passes them through most of its stack as one. A train leaves when it is full, when something comes that does not belong to
//! it, or when the connection behind it has had its turn and added nothing. Only what fills a batch of quinn's waits:
//! requests, answers and acknowledgements go out at once.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit},
};

use crate::clock;
use crate::quiet::Quiet;
use crate::transport::{GSO_SEGMENTS, MAX_BATCH_BYTES};
use crate::unproven::{Unproven, has_long_header};

/// Packets of equal size for one address, one behind the other; at most as long as one UDP datagram, and never older than
/// a turn of all that is ready to run.
#[derive(Debug, Default)]
struct Train {
    bytes: Vec<u8>,
    bound: Option<Bound>,
    /// Whether it has been added to since the last look at it.
    grown: bool,
}

/// What all packets of a train have in common.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Bound {
    destination: SocketAddr,
    src_ip: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    segment: usize,
}

/// What becomes of a batch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// It goes alone, after the train.
    Alone,
    /// It joins, and the train waits for more.
    Joins,
    /// It joins as the last one.
    Ends,
}

impl Train {
    /// Where `batch` goes, if the kernel takes `most` packets at once.
    fn place(&self, batch: &Transmit<'_>, most: usize) -> Place {
        let own = Bound::of(batch);
        let bound = self.bound.unwrap_or(own);
        let length = batch.contents.len();
        let full = length == bound.segment * GSO_SEGMENTS as usize;
        let together = self.bytes.len() + length;
        let more_fit = full && has_room(together + length, bound.segment, most);
        if self.bound.is_none() {
            return if more_fit { Place::Joins } else { Place::Alone };
        }
        // The last packet may be shorter than the others, and ends the train.
        let belongs =
            own == bound || (batch.segment_size.is_none() && own.segment < bound.segment && own.like(bound));
        let open = self.bytes.len().is_multiple_of(bound.segment);
        match (belongs && open && has_room(together, bound.segment, most), more_fit) {
            (false, _) => Place::Alone,
            (true, false) => Place::Ends,
            (true, true) => Place::Joins,
        }
    }

    fn join(&mut self, batch: &Transmit<'_>) {
        self.bound.get_or_insert_with(|| Bound::of(batch));
        self.bytes.extend_from_slice(batch.contents);
        self.grown = true;
    }

    fn transmit(&self) -> Option<Transmit<'_>> {
        let bound = self.bound?;
        Some(Transmit {
            destination: bound.destination,
            ecn: bound.ecn,
            contents: &self.bytes,
            segment_size: Some(bound.segment),
            src_ip: bound.src_ip,
        })
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bound = None;
        self.grown = false;
    }
}

impl Bound {
    fn of(batch: &Transmit<'_>) -> Self {
        let segment = batch.segment_size.unwrap_or(batch.contents.len());
        Self { destination: batch.destination, src_ip: batch.src_ip, ecn: batch.ecn, segment }
    }

    /// The same but for the size of its packets.
    fn like(self, other: Self) -> bool {
        Self { segment: other.segment, ..self } == other
    }
}

/// Whether the kernel takes `bytes` at once, in packets of `segment` bytes, of which it takes `most`.
fn has_room(bytes: usize, segment: usize, most: usize) -> bool {
    bytes <= MAX_BATCH_BYTES as usize && bytes.div_ceil(segment) <= most
}

/// A socket that sends trains, and is quiet towards strangers and unproven addresses.
#[derive(Debug)]
pub(crate) struct Trains {
    socket: Arc<dyn AsyncUdpSocket>,
    quiet: Quiet,
    unproven: Mutex<Unproven>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    train: Train,
    /// Wakes the one that sends trains nobody adds to.
    conductor: Option<Waker>,
}

impl Trains {
    pub(crate) fn new(socket: Arc<dyn AsyncUdpSocket>, quiet: Quiet) -> Arc<Self> {
        let unproven = Mutex::new(Unproven::new(clock::now().into_std()));
        Arc::new(Self { socket, quiet, unproven, waiting: Mutex::default() })
    }

    /// Notes that `address` is dialled from here.
    pub(crate) fn dialled(&self, address: SocketAddr) {
        self.unproven().dialled(address, clock::now().into_std());
    }

    fn unproven(&self) -> MutexGuard<'_, Unproven> {
        self.unproven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes of `batch` may leave.
    fn lets_out(&self, batch: &Transmit<'_>) -> usize {
        if !has_long_header(batch.contents) {
            return batch.contents.len();
        }
        if !self.quiet.lets_out(batch.contents) {
            return 0;
        }
        let segment = batch.segment_size.unwrap_or(batch.contents.len());
        self.unproven().lets_out(batch.destination, batch.contents.len(), segment, clock::now().into_std())
    }

    /// Notes the handshake packets among what came.
    fn note(&self, buffer: &[u8], meta: &RecvMeta) {
        let packets = buffer[..meta.len].chunks(meta.stride.max(1));
        for packet in packets.filter(|packet| has_long_header(packet)) {
            self.unproven().heard(meta.addr, packet.len(), clock::now().into_std());
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what waits. The train stays if the kernel has no room.
    fn depart(&self, train: &mut Train) -> io::Result<()> {
        if let Some(transmit) = train.transmit() {
            match self.socket.try_send(&transmit) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                // Lost, as it may be on any network; whoever sent it will see to that.
                Ok(()) | Err(_) => {}
            }
            train.clear();
        }
        Ok(())
    }

    /// Puts a batch into the train, or sends it behind it.
    fn send(&self, batch: &Transmit<'_>) -> io::Result<()> {
        let mut waiting = self.waiting();
        let most = self.socket.max_transmit_segments();
        let mut place = waiting.train.place(batch, most);
        if place == Place::Alone && waiting.train.bound.is_some() {
            self.depart(&mut waiting.train)?;
            place = waiting.train.place(batch, most);
        }
        match place {
            Place::Alone => return self.socket.try_send(batch),
            Place::Joins => waiting.train.join(batch),
            Place::Ends => {
                waiting.train.join(batch);
                // Without room it waits for the conductor.
                if self.depart(&mut waiting.train).is_ok() {
                    return Ok(());
                }
            }
        }
        if let Some(conductor) = waiting.conductor.take() {
            conductor.wake();
        }
        Ok(())
    }

    /// Sends the trains that nobody adds to, for ever. It looks at a train once more after all that was ready to run has
    /// had its turn.
    pub(crate) async fn conduct(self: Arc<Self>) {
        let mut poller: Option<Pin<Box<dyn UdpPoller>>> = None;
        std::future::poll_fn(|cx| -> Poll<()> {
            loop {
                if let Some(room) = &mut poller {
                    // An error shows again when something is sent.
                    if room.as_mut().poll_writable(cx).is_pending() {
                        return Poll::Pending;
                    }
                    poller = None;
                }
                let mut waiting = self.waiting();
                if waiting.train.bound.is_none() {
                    waiting.conductor = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                if std::mem::take(&mut waiting.train.grown) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                if self.depart(&mut waiting.train).is_err() {
                    poller = Some(Arc::clone(&self.socket).create_io_poller());
                }
            }
        })
        .await;
    }
}

impl AsyncUdpSocket for Trains {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, batch: &Transmit<'_>) -> io::Result<()> {
        let may = self.lets_out(batch);
        if may == 0 {
            return Ok(()); // as if the network had lost it
        }
        let batch = &Transmit {
            destination: batch.destination,
            ecn: batch.ecn,
            contents: &batch.contents[..may],
            segment_size: batch.segment_size,
            src_ip: batch.src_ip,
        };
        let sent = self.send(batch);
        if sent.is_err() && has_long_header(batch.contents) {
            // It is offered again.
            self.unproven().not_sent(batch.destination, may);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let came = self.socket.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(count)) = came {
            bufs.iter().zip(meta.iter()).take(count).for_each(|(buffer, meta)| self.note(buffer, meta));
        }
        came
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests;
