//! Connections as a set: bounded places, their common end, and counts of what happened to them.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// What a listener has done; a plane's metrics read from it.
#[derive(Debug, Default)]
pub struct ChannelStats {
    pub(super) accepted: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) handshake_failures: AtomicU64,
    pub(super) accept_errors: AtomicU64,
    pub(super) open: AtomicU64,
}

impl ChannelStats {
    /// Connections that were handed to tonic.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections that were closed because a bound of [`super::Limits`] was reached.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Handshakes that failed, timed out, or proved nobody.
    #[must_use]
    pub fn handshake_failures(&self) -> u64 {
        self.handshake_failures.load(Ordering::Relaxed)
    }

    /// Times that accepting itself failed, such as for want of file descriptors.
    #[must_use]
    pub fn accept_errors(&self) -> u64 {
        self.accept_errors.load(Ordering::Relaxed)
    }

    /// Connections that are open now.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A handle to every connection of one listener.
#[derive(Clone, Debug, Default)]
pub struct Connections(CancellationToken);

impl Connections {
    /// Breaks all connections at once, and those to come, as the end of the process would. tonic serves each connection
    /// in a task of its own, which dropping the server does not end.
    pub fn close(&self) {
        self.0.cancel();
    }

    pub(super) fn cut(&self) -> Cut {
        Cut(Box::pin(self.0.clone().cancelled_owned()))
    }
}

/// The end of one connection, to be asked for before each read and write.
pub(super) struct Cut(Pin<Box<WaitForCancellationFutureOwned>>);

impl Cut {
    /// # Errors
    ///
    /// `ConnectionAborted` once [`Connections::close`] was called; until then the task of `cx` is woken for it.
    pub(super) fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.0.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }
}

impl std::fmt::Debug for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cut")
    }
}

/// A bounded number of places, in total and per address.
#[derive(Debug)]
pub(super) struct Slots {
    total: usize,
    per_address: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Slots {
    pub(super) fn new(total: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self { total, per_address, held: Mutex::default() })
    }

    /// Takes a place for `address` until the [`Slot`] is dropped; `None` when a bound is reached.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Slot> {
        let network = client_network(address);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let here = held.by_address.get(&network).copied().unwrap_or(0);
        if held.total >= self.total || here >= self.per_address {
            return None;
        }
        held.total += 1;
        held.by_address.insert(network, here + 1);
        Some(Slot { slots: Arc::clone(self), network })
    }

    fn give_back(&self, network: IpAddr) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.total -= 1;
        if let Some(here) = held.by_address.get_mut(&network) {
            *here -= 1;
            if *here == 0 {
                held.by_address.remove(&network);
            }
        }
    }
}

/// One taken place.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    network: IpAddr,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.give_back(self.network);
    }
}

/// Who counts as one address: an IPv4 address, or an IPv6 /64, which one host has to itself (RFC 6177).
#[must_use]
pub fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn places_are_bounded_in_total_and_per_address() {
        let slots = Slots::new(3, 2);
        let first = slots.take(ip("10.0.0.1")).unwrap();
        let _second = slots.take(ip("::ffff:10.0.0.1")).unwrap();
        assert!(slots.take(ip("10.0.0.1")).is_none(), "the mapped form is the same address");
        let _third = slots.take(ip("10.0.0.2")).unwrap();
        assert!(slots.take(ip("10.0.0.3")).is_none(), "all places are taken");
        drop(first);
        assert!(slots.take(ip("10.0.0.1")).is_some());
    }

    #[test]
    fn one_ipv6_network_counts_as_one_address() {
        let slots = Slots::new(10, 1);
        let _one = slots.take(ip("2001:db8::1")).unwrap();
        assert!(slots.take(ip("2001:db8::2")).is_none());
        assert!(slots.take(ip("2001:db8:0:1::2")).is_some());
    }
}
