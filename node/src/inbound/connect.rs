//! Connects to the program behind a local workload. Asks for a permit: without one there is nothing to call it with.

use std::{net::SocketAddr, time::Duration};

use weft_policy::authz::Permit;

use crate::{
    error::FlowError,
    own_sockets::{OwnSockets, OwnStream},
};

/// Opens a connection to the program at `address`, as `permit` allows. Cancel-safe.
///
/// # Errors
///
/// [`FlowError::ProgramRefused`], [`FlowError::ProgramTimeout`].
pub(crate) async fn connect(
    _permit: &Permit,
    own: &OwnSockets,
    address: SocketAddr,
    within: Duration,
) -> Result<OwnStream, FlowError> {
    let stream = match tokio::time::timeout(within, own.connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(source)) => return Err(FlowError::ProgramRefused { address, source }),
        Err(_) => return Err(FlowError::ProgramTimeout { address, after: within }),
    };
    // Small writes go out at once: the relay gathers what it can, so Nagle would only add waits.
    let _ = stream.io().set_nodelay(true);
    Ok(stream)
}
