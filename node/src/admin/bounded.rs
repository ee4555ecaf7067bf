//! The listener of the metrics port: a bounded number of connections, each for a bounded time.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::TcpListener;
use weft_api::channel::{PlainPlaces, PlainStream};

use crate::telemetry::Seldom;

/// How long to rest after an error of `accept`.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub struct Bounded {
    socket: TcpListener,
    places: PlainPlaces,
    failures: Seldom,
}

impl Bounded {
    /// Takes connections of anybody.
    #[must_use]
    pub fn new(socket: TcpListener) -> Self {
        Self { socket, places: PlainPlaces::default(), failures: Seldom::default() }
    }
}

impl axum::serve::Listener for Bounded {
    type Io = PlainStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (PlainStream, SocketAddr) {
        let place = self.places.take().await;
        loop {
            match self.socket.accept().await {
                Ok((io, peer)) => return (PlainStream::new(io, place), peer),
                Err(error) => {
                    if let Some(withheld) = self.failures.now() {
                        tracing::warn!(%error, withheld, "cannot accept a connection for metrics");
                    }
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}
