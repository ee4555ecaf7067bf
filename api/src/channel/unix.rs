//! Unix sockets: who is on the other end is what the kernel says.

use std::{
    convert::Infallible,
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    time::{Sleep, sleep},
};
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::{
    Limits,
    slots::{ChannelStats, Connections, Cut, Slot, Slots},
};

/// The process at the other end of a Unix socket, as of its connect; in the extensions of every request on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PeerCred {
    /// Its effective user.
    pub uid: u32,
    /// Its process; `None` where the kernel does not tell.
    pub pid: Option<i32>,
}

/// Connections of a Unix socket, for tonic's `serve_with_incoming`. Dropping it closes the listener.
#[derive(Debug)]
pub struct UnixIncoming {
    listener: UnixListener,
    slots: Arc<Slots>,
    stats: Arc<ChannelStats>,
    connections: Connections,
    /// Set after accepting failed: until then nothing is accepted.
    pause: Option<Pin<Box<Sleep>>>,
}

/// The wait after accepting failed (API-09).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds a Unix socket at `path` with `mode`, such as `0o600`; a missing folder is made with mode 0700.
///
/// A socket file that nobody listens on any more is replaced. The folder's mode, not the file's, is what keeps others
/// out between bind and chmod, and from putting a socket of their own in its place later (WL-05).
///
/// # Errors
///
/// `AddrInUse` when somebody answers at `path`, `AlreadyExists` when it is not a socket, `PermissionDenied` when the
/// folder is somebody else's or open to others' writing, else what the system says.
pub fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        check_folder(folder)?;
    }
    remove_stale(path)?;
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// Whether nobody but this user and root can put something into `folder`, or lead it elsewhere by a link.
fn check_folder(folder: &Path) -> io::Result<()> {
    let refuse = |why: String| Err(io::Error::new(ErrorKind::PermissionDenied, why));
    // The kernel's word for who this process is, without a call of libc.
    let own = fs::metadata("/proc/self")?.uid();
    for metadata in [fs::symlink_metadata(folder)?, fs::metadata(folder)?] {
        if metadata.uid() != own && metadata.uid() != 0 {
            return refuse(format!("the folder {} belongs to uid {}", folder.display(), metadata.uid()));
        }
        let mode = metadata.permissions().mode() & 0o7777;
        if !metadata.file_type().is_symlink() && mode & 0o022 != 0 {
            return refuse(format!("others may write to the folder {} (mode {mode:04o})", folder.display()));
        }
    }
    Ok(())
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(
                ErrorKind::AlreadyExists,
                "a file that is not a socket is in the way",
            ));
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "another process listens there")),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// Serves `listener` within [`Limits::connections`].
#[must_use]
pub fn serve_unix(listener: UnixListener, limits: Limits) -> UnixIncoming {
    let slots = Slots::new(limits.connections, limits.connections);
    UnixIncoming { listener, slots, stats: Arc::default(), connections: Connections::default(), pause: None }
}

/// All local peers share the places of one address.
const LOCAL: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

impl UnixIncoming {
    /// What the listener has done so far.
    #[must_use]
    pub fn stats(&self) -> Arc<ChannelStats> {
        Arc::clone(&self.stats)
    }

    /// A handle to all connections that come out of here; take it before tonic takes the stream.
    #[must_use]
    pub fn connections(&self) -> Connections {
        self.connections.clone()
    }

    /// The connection, or `None` when it is closed for a bound or because the kernel does not say who it is.
    fn admit(&self, stream: UnixStream) -> Option<UnixConnection> {
        let Some(slot) = self.slots.take(LOCAL) else {
            ChannelStats::count(&self.stats.refused);
            debug!("connection closed: a limit of the socket is reached");
            return None;
        };
        match stream.peer_cred() {
            Ok(cred) => {
                ChannelStats::count(&self.stats.accepted);
                let cred = PeerCred { uid: cred.uid(), pid: cred.pid() };
                Some(UnixConnection { stream, cred, cut: self.connections.cut(), _slot: slot })
            }
            Err(error) => {
                ChannelStats::count(&self.stats.handshake_failures);
                debug!(%error, "connection closed: the kernel does not say whose it is");
                None
            }
        }
    }
}

impl Stream for UnixIncoming {
    type Item = Result<UnixConnection, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match std::task::ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => {
                    if let Some(connection) = self.admit(stream) {
                        return Poll::Ready(Some(Ok(connection)));
                    }
                }
                Err(error) => {
                    ChannelStats::count(&self.stats.accept_errors);
                    warn!(%error, "cannot accept a connection, trying again");
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

/// One connection of a Unix socket.
#[derive(Debug)]
pub struct UnixConnection {
    stream: UnixStream,
    cred: PeerCred,
    cut: Cut,
    _slot: Slot,
}

impl Connected for UnixConnection {
    type ConnectInfo = PeerCred;

    fn connect_info(&self) -> PeerCred {
        self.cred
    }
}

impl AsyncRead for UnixConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.cut.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for UnixConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.cut.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
