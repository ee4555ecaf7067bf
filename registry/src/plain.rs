//! A plain listener that holds a bounded number of connections, each for a bounded time, for axum.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::TcpListener;
use weft_api::channel::{PlainPlaces, PlainStream};

/// The wait after accepting failed, such as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(crate) struct Bounded {
    listener: TcpListener,
    places: PlainPlaces,
}

impl Bounded {
    pub(crate) fn new(listener: TcpListener) -> Self {
        Self { listener, places: PlainPlaces::default() }
    }
}

impl axum::serve::Listener for Bounded {
    type Io = PlainStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (PlainStream, SocketAddr) {
        let place = self.places.take().await;
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => return (PlainStream::new(stream, place), from),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection, trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
