//! Registers this node's workloads, and registers them again whenever a server is reached anew.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use tonic::{Code, Status};
use tracing::{debug, info, warn};
use weft_api::{
    fault::{Fault, from_status},
    pb::discovery::{
        RegisterRequest, RegisterResponse, UnregisterRequest, discovery_client::DiscoveryClient,
    },
};
use weft_policy::name::{EndpointLabel, Namespace, ObjectName, ServiceName};

use crate::{
    local::{LocalWorkload, Registration},
    shared::Shared,
};

/// Registers every workload that can prove itself: each time the link comes up, and when a workload gets its first SVID.
/// Cancel by dropping.
pub(crate) async fn keep_registered(shared: Arc<Shared>) {
    let mut link = shared.link.subscribe();
    let mut proven = shared.proven.subscribe();
    let mut done: HashSet<EndpointOwner> = HashSet::new();
    loop {
        proven.mark_unchanged();
        if link.has_changed().unwrap_or(false) {
            done.clear();
        }
        if link.borrow_and_update().channel.is_some() {
            let due = |workload: &Arc<LocalWorkload>| {
                workload.slot.load().is_some() && !done.contains(&owner(workload))
            };
            let due: Vec<_> = shared.locals.all().into_iter().filter(due).collect();
            for workload in due {
                match register(&shared, &workload).await {
                    Ok(()) => drop(done.insert(owner(&workload))),
                    Err(fault) => {
                        warn!(identity = %workload.identity, code = %fault.code, what = fault.what, "not registered");
                    }
                }
            }
        }
        let changed = tokio::select! {
            changed = link.changed() => {
                done.clear();
                changed
            }
            changed = proven.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Namespace and name of a workload.
type EndpointOwner = (Namespace, ObjectName);

fn owner(workload: &LocalWorkload) -> EndpointOwner {
    (workload.namespace.clone(), workload.name.clone())
}

/// Registers one workload, with the label it had if it had one.
///
/// # Errors
///
/// The server's refusal, as a person meets it. Cancel-safe: registering again is harmless.
pub(crate) async fn register(shared: &Arc<Shared>, workload: &Arc<LocalWorkload>) -> Result<(), Fault> {
    let channel = shared.link.channel().await;
    let request = request(shared, workload);
    let answer = DiscoveryClient::new(channel).register(request).await.map_err(|status| refusal(&status))?;
    let registration = read(&answer.into_inner(), workload)
        .map_err(|what| Fault::new(weft_policy::code::UNEXPECTED_ANSWER, what))?;
    shared.keep_label(workload, &registration.label);
    let now = shared.clock.now();
    for service in &registration.services {
        let is_new = workload.registration().is_none_or(|old| !old.services.contains(service));
        if is_new {
            shared.demand.pin(service, now);
        }
    }
    info!(identity = %workload.identity, services = registration.services.len(), "registered");
    shared.registered(workload, registration);
    Ok(())
}

fn refusal(status: &Status) -> Fault {
    debug!(code = ?status.code(), message = status.message(), "registration refused");
    from_status(status).swap_remove(0)
}

fn request(shared: &Shared, workload: &LocalWorkload) -> RegisterRequest {
    let ports: BTreeMap<_, _> =
        workload.ports.iter().map(|(key, at)| (key.clone(), at.to_string())).collect();
    let label =
        workload.registration().map(|known| known.label.clone()).or_else(|| shared.kept_label(workload));
    RegisterRequest {
        namespace: workload.namespace.to_string(),
        name: workload.name.to_string(),
        identity: workload.identity.to_string(),
        services: if ports.is_empty() { Vec::new() } else { vec![workload.account.to_string()] },
        ports,
        weight: 1,
        region: String::new(),
        zone: String::new(),
        label: label.map(|label| label.to_string()).unwrap_or_default(),
        uid: workload.uid,
        boot: shared.boot,
    }
}

fn read(answer: &RegisterResponse, workload: &LocalWorkload) -> Result<Registration, String> {
    let label: EndpointLabel = answer.label.parse().map_err(|e| format!("the server gave no label: {e}"))?;
    let services = answer.services.iter().map(|name| {
        let name = name.split('.').next().unwrap_or(name);
        let name = name.parse().map_err(|e| format!("the server named a service {name:?}: {e}"))?;
        Ok(ServiceName::new(workload.namespace.clone(), name))
    });
    let services = services.collect::<Result<_, String>>()?;
    Ok(Registration { label, services, allowed_uids: answer.allowed_uids.clone() })
}

/// Withdraws a workload. Without a server it is withdrawn when the agent next says which workloads it has.
pub(crate) async fn unregister(shared: &Arc<Shared>, workload: &LocalWorkload) {
    if let Some(known) = workload.registration() {
        known.services.iter().for_each(|service| shared.demand.unpin(service));
    }
    let Some(channel) = shared.link.state().channel else { return };
    let request = UnregisterRequest {
        namespace: workload.namespace.to_string(),
        name: workload.name.to_string(),
        boot: shared.boot,
    };
    match DiscoveryClient::new(channel).unregister(request).await {
        Ok(_) => info!(identity = %workload.identity, "unregistered"),
        Err(status) if status.code() == Code::NotFound => {}
        Err(status) => warn!(identity = %workload.identity, error = status.message(), "not unregistered"),
    }
}
