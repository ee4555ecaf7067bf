//! The agent's own outgoing TCP sockets: nothing that they reach may take the agent for a local caller.
//!
//! The agent connects for others: for a peer to a program here, for a program to a service or to a destination outside.
//! Should such a connection arrive at a port that admits by user, the kernel would name the agent's user, and whoever
//! asked for the connection would speak as a workload of that user. So a socket is entered here before it is connected,
//! and [`crate::intercept::Lookup`] proves nobody by it.

use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::net::{TcpSocket, TcpStream};

/// The inodes of the open ones; as many as the agent has descriptors. A clone is the same set.
#[derive(Clone, Debug, Default)]
pub struct OwnSockets(Arc<Mutex<HashSet<u32>>>);

/// A connection that the agent made, known as its own while it is open.
#[derive(Debug)]
pub struct OwnStream {
    // Before the mark: it is closed first.
    io: TcpStream,
    mark: Mark,
}

/// One socket's place in the set.
#[derive(Debug)]
pub struct Mark {
    sockets: OwnSockets,
    inode: u32,
}

impl OwnSockets {
    fn lock(&self) -> MutexGuard<'_, HashSet<u32>> {
        // No code that holds the lock can leave the set half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects to `address` by a socket that is known as the agent's own before its first packet. Cancel-safe.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<OwnStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        let inode = inode_of(&socket)?;
        self.lock().insert(inode);
        let mark = Mark { sockets: self.clone(), inode };
        let io = socket.connect(address).await?;
        Ok(OwnStream { io, mark })
    }

    /// Whether the socket of that inode is the agent's own.
    #[must_use]
    pub fn contains(&self, inode: u32) -> bool {
        self.lock().contains(&inode)
    }
}

impl OwnStream {
    /// The connection, and the mark that must outlive it.
    #[must_use]
    pub fn into_parts(self) -> (TcpStream, Mark) {
        (self.io, self.mark)
    }

    /// The connection itself.
    #[must_use]
    pub const fn io(&self) -> &TcpStream {
        &self.io
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.sockets.lock().remove(&self.inode);
    }
}

/// The number by which the kernel tells sockets apart, in the width of its answers about them (sock_diag(7)).
///
/// # Errors
///
/// What the system says.
pub(crate) fn inode_of(socket: &impl AsFd) -> io::Result<u32> {
    let stat = nix::sys::stat::fstat(socket)?;
    u32::try_from(stat.st_ino & u64::from(u32::MAX)).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_socket_is_known_while_it_is_open() {
        let sockets = OwnSockets::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = sockets.connect(address).await.unwrap();
        let inode = inode_of(stream.io()).unwrap();
        assert!(sockets.contains(inode));
        let (io, mark) = stream.into_parts();
        drop(io);
        assert!(sockets.contains(inode));
        drop((mark, listener));
        assert!(!sockets.contains(inode));
        assert!(sockets.connect(address).await.is_err());
        assert!(sockets.lock().is_empty(), "a connection that failed leaves nothing");
    }
}
