//! Destinations outside the mesh: connected directly, by an explicit mode, never by accident.

use std::time::Duration;

use tokio::net::TcpStream;
use tracing::info;
use weft_policy::{model::EgressMode, snapshot::Snapshot};

use super::{refuse, resolve::Outside};
use crate::{
    access::Record, app::AppStream, carry::within_host, error::FlowError, local::LocalWorkload,
    relay::Transfer, shared::Shared,
};

/// How long a destination outside may take to accept.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Without a byte in either direction for so long, the connection ends: the default of services.
const IDLE: Duration = Duration::from_secs(3_600);

/// Carries a connection to `outside`, when the workload's namespace may go there.
pub(super) async fn carry(
    shared: &Shared,
    app: AppStream,
    workload: &LocalWorkload,
    snapshot: &Snapshot,
    outside: &Outside,
    record: &mut Record,
) -> Result<Transfer, FlowError> {
    record.path = "egress";
    record.outside = Some(outside.to_string());
    match snapshot.egress(&workload.namespace) {
        EgressMode::Deny => {
            return Err(refuse(app, FlowError::EgressDenied { destination: outside.to_string() }).await);
        }
        EgressMode::Log => info!(source = %workload.identity, destination = %outside, "egress"),
        EgressMode::Allow => {}
    }
    let connect = async {
        match outside {
            Outside::Host(host, port) => TcpStream::connect((host.as_str(), *port)).await,
            Outside::Address(address) => TcpStream::connect(address).await,
        }
    };
    let timed = tokio::time::timeout(CONNECT_WITHIN, connect).await;
    let connected = timed.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut)));
    let io = match connected {
        Ok(io) => io,
        Err(source) => {
            let error = FlowError::EgressUnreachable { destination: outside.to_string(), source };
            return Err(refuse(app, error).await);
        }
    };
    record.begins(shared);
    record.connected(shared);
    within_host(shared, app, io, IDLE, &[]).await
}
