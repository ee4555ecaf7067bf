//! From what a program said to where it goes: a service port of the mesh, or a destination outside.
//!
//! A destination that this agent does not know yet is asked for, and waited for a moment. Whatever has a mesh suffix is
//! never egress; a plain name is egress only once the registry has said that it is no service.

use std::{net::SocketAddr, num::NonZeroU16, sync::Arc, time::Duration};

use weft_policy::{
    name::{Namespace, ServiceName},
    route::{Resolution, Target},
    snapshot::Snapshot,
};

use crate::{control::demand::Wanted, error::FlowError, intercept::Destination, shared::Shared};

/// How long a flow waits for a destination that is asked for the first time.
const WAIT: Duration = Duration::from_secs(2);

/// Where a flow goes.
pub(crate) enum Way {
    /// To a service port, by this snapshot.
    Mesh(Arc<Snapshot>, Target),
    /// Outside the mesh.
    Outside(Outside),
}

/// A destination outside the mesh.
pub(crate) enum Outside {
    /// By name.
    Host(String, u16),
    /// By address.
    Address(SocketAddr),
}

impl std::fmt::Display for Outside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host(host, port) => write!(f, "{host}:{port}"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// Finds the way for a program of namespace `caller`.
pub(crate) async fn resolve(
    shared: &Shared,
    caller: &Namespace,
    destination: &Destination,
) -> Result<Way, FlowError> {
    match destination {
        Destination::Address(address) => {
            first_snapshot(shared).await.ok_or(FlowError::NoSnapshot)?;
            Ok(Way::Outside(Outside::Address(*address)))
        }
        Destination::Upstream { service, port } => service_port(shared, service, Some(port.get())).await,
        Destination::Named { host, port } => named(shared, caller, host, *port).await,
    }
}

async fn named(
    shared: &Shared,
    caller: &Namespace,
    host: &str,
    port: Option<NonZeroU16>,
) -> Result<Way, FlowError> {
    let snapshot = first_snapshot(shared).await.ok_or(FlowError::NoSnapshot)?;
    let number = port.map(NonZeroU16::get);
    match snapshot.resolve(caller, host, number) {
        Resolution::Service(target) => {
            shared.demand.want(&target.service, shared.clock.now());
            Ok(Way::Mesh(snapshot, target))
        }
        Resolution::UnknownPort { service, port } => Err(FlowError::UnknownPort { service, port }),
        Resolution::NotAName(host) => Err(FlowError::UnknownService { name: host }),
        Resolution::UnknownService(service) => service_port(shared, &service, number).await,
        Resolution::MaybeOutside(service) => match service_port(shared, &service, number).await {
            // The registry knows no such service, so the name is one of the world's.
            Err(FlowError::UnknownService { .. }) => {
                Ok(Way::Outside(Outside::Host(host.to_owned(), number.unwrap_or(80))))
            }
            other => other,
        },
        Resolution::Outside => Ok(Way::Outside(Outside::Host(host.to_owned(), number.unwrap_or(80)))),
    }
}

/// The snapshot in force; an agent that has just joined waits a moment for its first.
async fn first_snapshot(shared: &Shared) -> Option<Arc<Snapshot>> {
    let mut changes = shared.state.changes();
    if let Some(snapshot) = shared.state.load() {
        return Some(snapshot);
    }
    // Without one by then, the flow is refused: fail closed.
    let _ = tokio::time::timeout(WAIT, changes.changed()).await;
    shared.state.load()
}

/// Waits for a service that may not be known here yet.
pub(crate) async fn service_port(
    shared: &Shared,
    service: &ServiceName,
    port: Option<u16>,
) -> Result<Way, FlowError> {
    let mut snapshots = shared.state.changes();
    let mut answers = shared.demand.changes();
    let deadline = tokio::time::Instant::now() + WAIT;
    let unknown = || match shared.state.load() {
        Some(_) => FlowError::UnknownService { name: service.to_string() },
        None => FlowError::NoSnapshot,
    };
    loop {
        snapshots.mark_unchanged();
        answers.mark_unchanged();
        if let Some(snapshot) = shared.state.load()
            && let Some(destination) = snapshot.destination(service)
        {
            shared.demand.want(service, shared.clock.now());
            let found = match port {
                Some(number) => destination.service().port(number),
                None => destination.service().default_port(),
            };
            let Some(found) = found else {
                return Err(FlowError::UnknownPort { service: service.clone(), port });
            };
            let target = Target { service: service.clone(), port: found.number };
            return Ok(Way::Mesh(snapshot, target));
        }
        match shared.demand.want(service, shared.clock.now()) {
            Wanted::Asked if !shared.demand.is_unknown(service) => {}
            Wanted::Asked | Wanted::Unknown => return Err(unknown()),
            Wanted::Full => return Err(FlowError::Overloaded),
        }
        tokio::select! {
            Ok(()) = snapshots.changed() => {}
            Ok(()) = answers.changed() => {}
            () = tokio::time::sleep_until(deadline) => return Err(unknown()),
        }
    }
}
