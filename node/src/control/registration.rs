//! Registers this node's workloads, registers them again whenever a server is reached anew, and withdraws those that end.
//!
//! Owns what is due: a call that got no answer is made again, so that neither a workload nor its end is forgotten.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use rand::Rng;
use tokio::sync::watch;
use tonic::{Code, Status};
use tracing::{debug, info, warn};
use weft_api::{
    fault::{Fault, from_status},
    pb::discovery::{
        MayRunRequest, RegisterRequest, RegisterResponse, UnregisterRequest,
        discovery_client::DiscoveryClient,
    },
};
use weft_identity::spiffe::SpiffeId;
use weft_policy::{
    code,
    name::{EndpointLabel, Namespace, ObjectName, ServiceName},
};

use super::link::{BACKOFF_BASE, BACKOFF_CAP, back_off};
use crate::{
    local::{LocalWorkload, Registration},
    shared::Shared,
};

/// The waits before a question that no server took is asked again: 3 s in all, within the patience of a person.
const ASK_AGAIN: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1_600),
];
/// How long one call to the server may take before it counts as lost.
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// Calls under way at once, so that one slow answer does not keep the others waiting.
const CALLS: usize = 16;
/// How soon a server that refused is asked again: an enrollment may have been written since.
const REFUSED_AGAIN: Duration = Duration::from_secs(30);

/// Workloads that ended here and may still be known to a server. Bounded by the number of programs that may run.
#[derive(Debug)]
pub(crate) struct Withdrawals {
    due: Mutex<BTreeMap<EndpointOwner, Arc<LocalWorkload>>>,
    changed: watch::Sender<u64>,
}

impl Default for Withdrawals {
    fn default() -> Self {
        Self { due: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Withdrawals {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<EndpointOwner, Arc<LocalWorkload>>> {
        // Each change is one insertion or removal.
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a workload that ended; [`keep_registered`] tells the server, until it has heard.
    pub(crate) fn note(&self, workload: &Arc<LocalWorkload>) {
        self.lock().insert(owner(workload), Arc::clone(workload));
        self.changed.send_modify(|count| *count += 1);
    }

    /// Whether a server may still know a workload of that name, which nobody may take meanwhile.
    pub(crate) fn holds(&self, namespace: &Namespace, name: &ObjectName) -> bool {
        self.lock().contains_key(&(namespace.clone(), name.clone()))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    fn all(&self) -> Vec<Arc<LocalWorkload>> {
        self.lock().values().cloned().collect()
    }

    fn done(&self, workload: &LocalWorkload) {
        self.lock().remove(&owner(workload));
    }
}

/// What is known of a registration that is due.
#[derive(Clone, Copy, Debug)]
struct Failed {
    /// In a row.
    times: u32,
    /// Whether the server said no, rather than nothing.
    refused: bool,
}

/// Registers every workload that can prove itself, and withdraws those that ended: when the link comes up, when a
/// workload gets its first SVID or ends, and again after a while as long as anything is due. Cancel by dropping.
///
/// All registrations of a round have ended before its withdrawals are sent, so that neither can overtake the other.
pub(crate) async fn keep_registered(shared: Arc<Shared>) {
    let mut link = shared.link.subscribe();
    let mut proven = shared.proven.subscribe();
    let mut ended = shared.withdrawals.changed.subscribe();
    let mut done: HashSet<EndpointOwner> = HashSet::new();
    let mut failed: HashMap<EndpointOwner, Failed> = HashMap::new();
    loop {
        proven.mark_unchanged();
        ended.mark_unchanged();
        if link.has_changed().unwrap_or(false) {
            done.clear();
        }
        let is_up = link.borrow_and_update().channel.is_some();
        let mut lost = 0;
        if is_up {
            register_due(&shared, &mut done, &mut failed).await;
            lost = withdraw_due(&shared).await;
        }
        let again = if is_up { shared.with_rng(|rng| next_try(&failed, lost, rng)) } else { None };
        let retry = async {
            match again {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        let changed = tokio::select! {
            changed = link.changed() => {
                done.clear();
                changed
            }
            changed = proven.changed() => changed,
            changed = ended.changed() => changed,
            () = retry => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Registers what is due, and notes what failed.
async fn register_due(
    shared: &Arc<Shared>,
    done: &mut HashSet<EndpointOwner>,
    failed: &mut HashMap<EndpointOwner, Failed>,
) {
    let all = shared.locals.all();
    let known: HashSet<_> = all.iter().map(|workload| owner(workload)).collect();
    done.retain(|owner| known.contains(owner));
    failed.retain(|owner, _| known.contains(owner));
    let is_due =
        |workload: &Arc<LocalWorkload>| workload.slot.load().is_some() && !done.contains(&owner(workload));
    let due: Vec<_> = all.into_iter().filter(is_due).collect();
    let calls = due.into_iter().map(|workload| async move {
        let outcome = tokio::time::timeout(CALL_WITHIN, register(shared, &workload)).await;
        let late = |_| Err(Fault::new(code::SERVER_UNREACHABLE, "the server did not answer in time").into());
        (workload, outcome.unwrap_or_else(late))
    });
    let mut calls = futures_util::stream::iter(calls).buffer_unordered(CALLS);
    while let Some((workload, outcome)) = calls.next().await {
        let key = owner(&workload);
        let Err(NotRegistered { fault, refused }) = outcome else {
            failed.remove(&key);
            done.insert(key);
            continue;
        };
        let before = failed.get(&key).copied().unwrap_or(Failed { times: 0, refused: !refused });
        failed.insert(key, Failed { times: before.times.saturating_add(1), refused });
        workload.set_unregistered(Fault::clone(&fault));
        // Said once, not at each try.
        if before.refused != refused {
            warn!(identity = %workload.identity, code = %fault.code, what = fault.what, "not registered");
        }
    }
}

/// Withdraws what has ended. Returns how many calls got no answer.
async fn withdraw_due(shared: &Arc<Shared>) -> usize {
    let calls = shared.withdrawals.all().into_iter().map(|workload| async move {
        let told = tokio::time::timeout(CALL_WITHIN, unregister(shared, &workload)).await.unwrap_or(false);
        if told {
            shared.withdrawals.done(&workload);
        }
        told
    });
    let told: Vec<bool> = futures_util::stream::iter(calls).buffer_unordered(CALLS).collect().await;
    told.into_iter().filter(|told| !told).count()
}

/// When to try again what is still due; `None` when nothing is.
fn next_try(failed: &HashMap<EndpointOwner, Failed>, lost: usize, rng: &mut impl Rng) -> Option<Duration> {
    let lost = (lost > 0).then_some(1);
    let soonest = failed.values().filter(|one| !one.refused).map(|one| one.times).chain(lost).min();
    match soonest {
        // Never at once: the jitter of reconnecting reaches down to nothing.
        Some(times) => Some(BACKOFF_BASE + back_off(times, BACKOFF_CAP, rng)),
        None => (!failed.is_empty()).then_some(REFUSED_AGAIN),
    }
}

/// Why a workload is not registered.
#[derive(Debug)]
pub(crate) struct NotRegistered {
    /// As a person meets it.
    pub(crate) fault: Box<Fault>,
    /// Whether the server said no: asking again at once would change nothing.
    refused: bool,
}

impl From<Fault> for NotRegistered {
    fn from(fault: Fault) -> Self {
        Self { fault: Box::new(fault), refused: false }
    }
}

/// Namespace and name of a workload.
type EndpointOwner = (Namespace, ObjectName);

fn owner(workload: &LocalWorkload) -> EndpointOwner {
    (workload.namespace.clone(), workload.name.clone())
}

/// Registers one workload, with the label it had if it had one. It answers to its label before the server is asked.
///
/// # Errors
///
/// The server's refusal, or that there was no answer. Registering again is harmless; whoever drops this future before its
/// end withdraws the workload later, because the server may have heard.
pub(crate) async fn register(
    shared: &Arc<Shared>,
    workload: &Arc<LocalWorkload>,
) -> Result<(), NotRegistered> {
    let channel = shared.link.channel().await;
    announce(shared, workload);
    let request = request(shared, workload);
    let answer = DiscoveryClient::new(channel).register(request).await.map_err(|status| refusal(&status))?;
    let registration =
        read(&answer.into_inner(), workload).map_err(|what| Fault::new(code::UNEXPECTED_ANSWER, what))?;
    let current = shared.locals.named(&workload.namespace, &workload.name);
    if !current.is_some_and(|current| Arc::ptr_eq(&current, workload)) {
        // It ended meanwhile; nothing of it may come into force any more.
        shared.withdrawals.note(workload);
        return Ok(());
    }
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

/// Asks whether a local user, who is neither the agent's own nor root, may start programs as `identity`.
///
/// # Errors
///
/// The server's refusal, as a person meets it.
pub(crate) async fn may_run(shared: &Shared, identity: &SpiffeId, uid: u32) -> Result<(), Status> {
    let user = tokio::task::spawn_blocking(move || {
        let found = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid));
        found.ok().flatten().map(|user| user.name).unwrap_or_default()
    });
    // Without a name only a selector by number can let the user in.
    let user = user.await.unwrap_or_default();
    let request = MayRunRequest { identity: identity.to_string(), uid, user };
    // An agent that has just joined or started may be asked before its link is up, or while it changes servers.
    for pause in ASK_AGAIN {
        match DiscoveryClient::new(shared.link.channel().await).may_run(request.clone()).await {
            Err(status) if status.code() == Code::Unavailable => tokio::time::sleep(pause).await,
            answered => return answered.map(drop),
        }
    }
    DiscoveryClient::new(shared.link.channel().await).may_run(request).await.map(drop)
}

fn refusal(status: &Status) -> NotRegistered {
    debug!(code = ?status.code(), message = status.message(), "registration refused");
    let refused = matches!(
        status.code(),
        Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented
    );
    NotRegistered { fault: Box::new(from_status(status).swap_remove(0)), refused }
}

/// Makes a workload that was never registered reachable for the one service it may ask for.
fn announce(shared: &Shared, workload: &LocalWorkload) {
    if workload.reachable().is_some() {
        return;
    }
    let drawn = || EndpointLabel::from_bits(shared.with_rng(Rng::random));
    let label = shared.kept_label(workload).unwrap_or_else(drawn);
    let service = || ServiceName::new(workload.namespace.clone(), workload.account.clone());
    let services = if workload.ports.is_empty() { Vec::new() } else { vec![service()] };
    shared.announce(workload, Registration { label, services, allowed_uids: Vec::new() });
}

fn request(shared: &Shared, workload: &LocalWorkload) -> RegisterRequest {
    let ports: BTreeMap<_, _> =
        workload.ports.iter().map(|(key, at)| (key.clone(), at.to_string())).collect();
    let label = workload.reachable().map(|known| known.label.clone()).or_else(|| shared.kept_label(workload));
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

/// Withdraws a workload. Returns whether the server has heard.
async fn unregister(shared: &Arc<Shared>, workload: &LocalWorkload) -> bool {
    let channel = shared.link.channel().await;
    let request = UnregisterRequest {
        namespace: workload.namespace.to_string(),
        name: workload.name.to_string(),
        boot: shared.boot,
    };
    match DiscoveryClient::new(channel).unregister(request).await {
        Ok(_) => {
            info!(identity = %workload.identity, "unregistered");
            true
        }
        Err(status) => {
            // What a server refuses is not this agent's to withdraw: asking again would not change that.
            let refused = matches!(
                status.code(),
                Code::NotFound | Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition
            );
            warn!(identity = %workload.identity, error = status.message(), refused, "not unregistered");
            refused
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    fn workload(name: &str) -> Arc<LocalWorkload> {
        let identity = format!("spiffe://corp.example/ns/shop/sa/{name}").parse().unwrap();
        let (namespace, name): (Namespace, ObjectName) = ("shop".parse().unwrap(), name.parse().unwrap());
        Arc::new(LocalWorkload::new(identity, namespace, name.clone(), name, BTreeMap::new(), None))
    }

    fn failed(all: &[(&str, u32, bool)]) -> HashMap<EndpointOwner, Failed> {
        let one = |(name, times, refused): &(&str, u32, bool)| {
            (owner(&workload(name)), Failed { times: *times, refused: *refused })
        };
        all.iter().map(one).collect()
    }

    #[test]
    fn what_got_no_answer_is_tried_again_soon_and_what_was_refused_later() {
        let mut rng = StdRng::seed_from_u64(7);
        assert_eq!(next_try(&failed(&[]), 0, &mut rng), None);
        assert_eq!(next_try(&failed(&[("a", 9, true)]), 0, &mut rng), Some(REFUSED_AGAIN));
        for times in 1..40 {
            for (known, lost) in [(failed(&[("a", times, false), ("b", 1, true)]), 0), (failed(&[]), 1)] {
                let wait = next_try(&known, lost, &mut rng).unwrap();
                assert!((BACKOFF_BASE..=BACKOFF_BASE + BACKOFF_CAP).contains(&wait), "{times}: {wait:?}");
            }
        }
    }

    #[test]
    fn the_name_of_an_ended_workload_is_taken_until_the_server_has_heard() {
        let withdrawals = Withdrawals::default();
        let order = workload("order");
        withdrawals.note(&order);
        withdrawals.note(&order);
        assert!(withdrawals.holds(&order.namespace, &order.name) && withdrawals.len() == 1);
        withdrawals.done(&order);
        assert!(!withdrawals.holds(&order.namespace, &order.name));
    }

    #[test]
    fn a_server_that_is_busy_or_gone_has_refused_nothing() {
        for code in [Code::Unavailable, Code::Aborted, Code::DeadlineExceeded, Code::Internal] {
            assert!(!refusal(&Status::new(code, "later")).refused, "{code:?}");
        }
        assert!(refusal(&Status::permission_denied("no")).refused);
    }
}
