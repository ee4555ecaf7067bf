//! A wire between a server and etcd that can be cut, or lose one direction.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::super::Endpoint;

/// What becomes of bytes on the wire.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wire {
    /// They pass.
    Whole,
    /// Connections end, and new ones are closed at once.
    Cut,
    /// Requests pass, answers are held back until the wire is cut or whole.
    NoAnswers,
    /// Requests are held back until the wire is cut or whole.
    NoRequests,
}

/// The wire, and how often it was cut: a connection ends with the cut even if the wire is whole again at once.
#[derive(Clone, Copy)]
struct State {
    wire: Wire,
    cuts: u64,
}

/// See the module. Dropping it ends it.
pub(super) struct Relay {
    address: SocketAddr,
    state: Arc<watch::Sender<State>>,
    _tasks: JoinSet<()>,
}

impl Relay {
    pub(super) async fn to(member: &Endpoint) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(watch::Sender::new(State { wire: Wire::Whole, cuts: 0 }));
        let (shared, target) = (Arc::clone(&state), member.address.to_string());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                if shared.borrow().wire == Wire::Cut {
                    continue;
                }
                let Ok(far) = TcpStream::connect(&target).await else { continue };
                connections.spawn(connection(near, far, shared.subscribe()));
            }
        });
        Self { address, state, _tasks: tasks }
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        format!("http://{}", self.address).parse().unwrap()
    }

    pub(super) fn set(&self, wire: Wire) {
        self.state.send_modify(|state| {
            state.wire = wire;
            state.cuts += u64::from(wire == Wire::Cut);
        });
    }
}

async fn connection(near: TcpStream, far: TcpStream, state: watch::Receiver<State>) {
    let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
    let mut cut = state.clone();
    let cuts = cut.borrow().cuts;
    tokio::select! {
        _ = cut.wait_for(|state| state.cuts != cuts) => {}
        () = carry(from_near, to_far, state.clone(), Wire::NoRequests) => {}
        () = carry(from_far, to_near, state, Wire::NoAnswers) => {}
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    held: Wire,
) {
    let cuts = state.borrow().cuts;
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let passes = state.wait_for(|state| state.cuts != cuts || state.wire != held).await;
        if !passes.is_ok_and(|state| state.cuts == cuts) || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
