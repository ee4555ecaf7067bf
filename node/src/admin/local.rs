//! A loopback listener that only some users may use.
//!
//! Owns the asking of the kernel who connects, as [`crate::intercept`] does for programs (security.md T1: a compromised
//! workload cannot reach the admin page). Everybody else is told 403 and closed.

use std::{
    collections::VecDeque,
    net::{Shutdown, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::serve::Listener;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use weft_api::channel::{PlainPlaces, PlainStream};

use crate::{intercept::Lookup, telemetry::Seldom};

/// How long to rest after an error of `accept`.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// Refused connections that are kept open, so that their clients can read why.
const MAX_REFUSED: usize = 16;
/// What a stranger is told. (RFC 9112 §9.6: closing at once would reset the connection and could take the
/// answer from the client's hands.)
const REFUSAL: &[u8] = b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nX-Weft-Code: W6015\r\n\
      Content-Length: 56\r\nConnection: close\r\n\r\nW6015 only the agent's own user and root may read this.\n";

/// A TCP listener that passes on connections of some users only.
#[derive(Debug)]
pub struct LocalListener {
    socket: TcpListener,
    lookup: Arc<Lookup>,
    users: Vec<u32>,
    refused: VecDeque<TcpStream>,
    places: PlainPlaces,
    strangers: Seldom,
    failures: Seldom,
}

impl LocalListener {
    /// Passes on connections of root and of this process's user.
    #[must_use]
    pub fn new(socket: TcpListener, lookup: Arc<Lookup>) -> Self {
        Self::for_users(socket, lookup, vec![0, nix::unistd::geteuid().as_raw()])
    }

    /// Passes on connections of `users`.
    #[must_use]
    pub fn for_users(socket: TcpListener, lookup: Arc<Lookup>, users: Vec<u32>) -> Self {
        Self {
            socket,
            lookup,
            users,
            refused: VecDeque::new(),
            places: PlainPlaces::default(),
            strangers: Seldom::default(),
            failures: Seldom::default(),
        }
    }

    fn refuse(&mut self, io: TcpStream) {
        // A fresh socket takes these bytes at once; who is refused is owed no more than the attempt.
        let _ = io.try_write(REFUSAL);
        let _ = SockRef::from(&io).shutdown(Shutdown::Write);
        if self.refused.len() == MAX_REFUSED {
            self.refused.pop_front();
        }
        self.refused.push_back(io);
    }

    fn admits(&self, io: &TcpStream, peer: SocketAddr) -> bool {
        let entry = self.lookup.caller_of(io, peer).ok().flatten();
        entry.is_some_and(|entry| entry.inode != 0 && self.users.contains(&entry.uid))
    }
}

impl Listener for LocalListener {
    type Io = PlainStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let place = self.places.take().await;
        loop {
            match self.socket.accept().await {
                Ok((io, peer)) if self.admits(&io, peer) => return (PlainStream::new(io, place), peer),
                Ok((io, peer)) => {
                    if let Some(withheld) = self.strangers.now() {
                        tracing::warn!(%peer, withheld, "admin page refused to another user");
                    }
                    self.refuse(io);
                }
                Err(error) => {
                    if let Some(withheld) = self.failures.now() {
                        tracing::warn!(%error, withheld, "cannot accept an admin connection");
                    }
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.socket.local_addr()
    }
}
