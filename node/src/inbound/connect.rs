//! Connects to the program behind a local workload. Asks for a permit: without one there is nothing to call it with.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::TcpStream;
use weft_policy::authz::Permit;

/// Why the program was not reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It does not listen, or there is no way to it.
    #[error("the program at {address} does not accept: {source}")]
    Refused {
        /// Where it should listen.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// It did not accept in time.
    #[error("the program at {address} did not accept within {waited:?}")]
    TimedOut {
        /// Where it should listen.
        address: SocketAddr,
        /// How long was waited.
        waited: Duration,
    },
}

/// Opens a connection to the program at `address`, as `permit` allows. Cancel-safe.
///
/// # Errors
///
/// [`ConnectError`].
pub async fn connect(_permit: &Permit, address: SocketAddr, within: Duration) -> Result<TcpStream, ConnectError> {
    let stream = match tokio::time::timeout(within, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(source)) => return Err(ConnectError::Refused { address, source }),
        Err(_) => return Err(ConnectError::TimedOut { address, waited: within }),
    };
    // Small writes go out at once: the relay gathers what it can, so Nagle would only add waits.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}
