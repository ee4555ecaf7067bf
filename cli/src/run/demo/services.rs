//! The demo's programs: two HTTP services and a TCP echo. They know nothing of Weft.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    thread::JoinHandle,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::error::CliError;

/// How many connections one program takes at once; the demo never has more than a few dozen.
const MAX_CONNECTIONS: usize = 512;

/// How the echo treats bytes; the other way is there to see that the checksum notices.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Echo {
    /// As they came.
    Faithful,
    /// With the first byte of each read changed.
    Corrupt,
}

/// The running programs.
pub(super) struct Services {
    /// The charge service's HTTP port.
    pub(super) charge: SocketAddr,
    /// The charge service's admin port.
    pub(super) admin: SocketAddr,
    /// The order service's HTTP port.
    pub(super) order: SocketAddr,
    /// The ledger's echo port.
    pub(super) ledger: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Services {
    /// Binds four loopback ports and serves them on a thread of their own.
    pub(super) fn start(echo: Echo) -> Result<Self, CliError> {
        let bind = || {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            Ok::<_, std::io::Error>((listener.local_addr()?, listener))
        };
        let failed = |e| CliError::internal(format!("cannot open a loopback port: {e}"));
        let (charge, charge_listener) = bind().map_err(failed)?;
        let (admin, admin_listener) = bind().map_err(failed)?;
        let (order, order_listener) = bind().map_err(failed)?;
        let (ledger, ledger_listener) = bind().map_err(failed)?;
        let stop = CancellationToken::new();
        let cancelled = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let serve = move || {
            let all = async {
                tokio::join!(
                    accept(charge_listener, |stream| http(stream, "charge")),
                    accept(admin_listener, |stream| http(stream, "admin")),
                    accept(order_listener, |stream| http(stream, "order")),
                    accept(ledger_listener, move |stream| echo_back(stream, echo)),
                )
            };
            runtime.block_on(cancelled.run_until_cancelled(all));
        };
        let thread = std::thread::Builder::new().name("demo-services".into()).spawn(serve).map_err(failed)?;
        Ok(Self { charge, admin, order, ledger, stop, thread: Some(thread) })
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // The thread only serves; if it panicked there is nothing left to stop.
            let _ = thread.join();
        }
    }
}

async fn accept<F>(listener: std::net::TcpListener, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + 'static,
{
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let local = tokio::task::LocalSet::new();
    let mut connections = JoinSet::new();
    local
        .run_until(async {
            loop {
                tokio::select! {
                    accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                        if let Ok((stream, _)) = accepted {
                            connections.spawn_local(serve(stream));
                        }
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        })
        .await;
}

async fn http(stream: TcpStream, name: &'static str) {
    let service = service_fn(move |request| answer(request, name));
    // A caller that goes away is not this program's concern.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, name: &'static str) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, text) = match (name, request.method(), request.uri().path()) {
        ("charge", &Method::POST, "/api/v1/charge") => match request.into_body().collect().await {
            Ok(body) => {
                (StatusCode::OK, format!("{{\"charged\": true, \"bytes\": {}}}\n", body.to_bytes().len()))
            }
            Err(_) => (StatusCode::BAD_REQUEST, "the body broke\n".to_owned()),
        },
        (_, &Method::GET, "/") => (StatusCode::OK, format!("this is {name}\n")),
        (_, _, _) => (StatusCode::NOT_FOUND, format!("{name} has no such page\n")),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    Ok(response)
}

async fn echo_back(mut stream: TcpStream, echo: Echo) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => {
                if echo == Echo::Corrupt {
                    buffer[0] ^= 1;
                }
                if stream.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
    // The other side closed its half: closing ours ends the flow in good order.
    let _ = stream.shutdown().await;
}
