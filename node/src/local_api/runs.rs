//! `weft run` and `weft call`: workloads that live as long as the caller's stream.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
    time::Duration,
};

use tokio::sync::oneshot;
use tonic::Code;
use weft_api::{
    fault::{Fault, from_status},
    pb::agent::{RunEvent, RunRequest, SpeakEvent},
};
use weft_identity::spiffe::SpiffeId;
use weft_policy::{
    code,
    name::{Namespace, ObjectName, ServiceName},
};

use super::LocalApi;
use crate::{
    control::{identity, registration},
    drain::Phase,
    error::FlowError,
    listeners::{Listeners, ProxyGuard, UpstreamSpec},
    local::LocalWorkload,
    outbound::resolve::{self, Way},
    shared::Shared,
};

/// How long a start waits for the agent's link to a server: one that has just joined or started connects within this time.
const SERVER_WITHIN: Duration = Duration::from_secs(3);
/// How long a started workload may take to get its certificate before `weft run` gives up.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// Programs that may be started by `weft run` at once on one host.
const MAX_RUNS: usize = 1_000;

/// A refusal with the gRPC code that carries it.
pub(super) type Refusal = Box<(Code, Fault)>;

fn refusal(code: Code, fault: Fault) -> Refusal {
    Box::new((code, fault))
}

/// A workload in the tables: dropping it takes it out of everything, however far its start had come.
struct Entered {
    shared: Arc<Shared>,
    listeners: Listeners,
    workload: Arc<LocalWorkload>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let Self { shared, listeners, workload } = self;
        // The one who renews its key stops before the key goes.
        listeners.stop_rotation(workload);
        shared.forget_workload(workload);
        shared.forget_secrets(workload);
        listeners.workloads_changed();
        if let Some(known) = workload.registration() {
            known.services.iter().for_each(|service| shared.demand.unpin(service));
        }
        shared.withdrawals.note(workload);
    }
}

/// What `weft run` holds: dropping it unregisters the workload.
pub(super) struct RunGuard {
    // The ports close first.
    _proxy: ProxyGuard,
    _upstreams: Vec<crate::listeners::UpstreamGuard>,
    _entered: Entered,
}

/// Starts a workload for a program of user `uid`.
///
/// The start runs to its end even when the caller goes away: only then is it known what there is to take back.
pub(super) async fn start(
    shared: &Arc<Shared>,
    listeners: &Listeners,
    uid: u32,
    request: RunRequest,
) -> Result<(RunEvent, RunGuard), Refusal> {
    if shared.drain.phase() != Phase::Running {
        let fault = Fault::new(code::DRAINING, "this agent was drained: it takes no new program");
        return Err(refusal(Code::Unavailable, fault.fix("weft up")));
    }
    let (started, outcome) = oneshot::channel();
    let (shared, owned) = (Arc::clone(shared), listeners.clone());
    listeners.tasks().spawn(async move {
        // Without a receiver the guard is dropped here, and with it the workload.
        let _ = started.send(enter_and_bring_up(&shared, &owned, uid, request).await);
    });
    let stopping = || refusal(Code::Unavailable, Fault::new(code::INTERNAL, "the agent is stopping"));
    outcome.await.unwrap_or_else(|_| Err(stopping()))
}

async fn enter_and_bring_up(
    shared: &Arc<Shared>,
    listeners: &Listeners,
    uid: u32,
    request: RunRequest,
) -> Result<(RunEvent, RunGuard), Refusal> {
    if tokio::time::timeout(SERVER_WITHIN, shared.link.channel()).await.is_err() {
        let why = Some(shared.link.state().why_not).filter(|why| !why.is_empty());
        let fault = Fault::new(code::SERVER_UNREACHABLE, "a new program cannot be started without a server")
            .why(why.unwrap_or_else(|| "no server has answered yet".to_owned()))
            .fix("weft agent status");
        return Err(refusal(Code::Unavailable, fault));
    }
    let wanted = describe(shared, &request)?;
    check_ports(listeners, &request)?;
    let permitted = tokio::time::timeout(READY_WITHIN, may_run(shared, uid, &wanted.identity)).await;
    permitted.map_err(|_| too_slow(&wanted.identity))??;
    let ports = read_ports(&named_ports(shared, request.ports.clone(), &wanted).await?)?;
    let entered = enter(shared, listeners, uid, wanted, ports)?;
    let upstreams = upstream_specs(&entered.workload, &request)?;
    bring_up(entered, uid, kept_port(&request), upstreams).await
}

/// Whether that user may run programs as that identity: the agent's own user and root may, others when an enrollment
/// names them. Asked before anything is issued or registered (decisions.md, speaking as a workload).
async fn may_run(shared: &Shared, uid: u32, identity: &SpiffeId) -> Result<(), Refusal> {
    if LocalApi::is_owner(uid) {
        return Ok(());
    }
    let asked = registration::may_run(shared, identity, uid).await;
    asked.map_err(|status| refusal(status.code(), from_status(&status).swap_remove(0)))
}

/// Puts the workload into the tables. Nothing here waits, so no second caller comes between looking and entering.
fn enter(
    shared: &Arc<Shared>,
    listeners: &Listeners,
    uid: u32,
    wanted: Wanted,
    ports: BTreeMap<String, SocketAddr>,
) -> Result<Entered, Refusal> {
    let Wanted { identity, namespace, account } = wanted;
    if shared.locals.len() + shared.withdrawals.len() >= MAX_RUNS {
        let fault = Fault::new(code::OVER_LIMIT, format!("{MAX_RUNS} workloads run here already"));
        return Err(refusal(Code::ResourceExhausted, fault));
    }
    let of_identity = |workload: &Arc<LocalWorkload>| workload.identity == identity;
    let is_held = |workload: &Arc<LocalWorkload>| {
        of_identity(workload) && workload.uid.is_some_and(|holder| holder != uid)
    };
    if uid != 0 && shared.locals.all().iter().any(is_held) {
        let fault = Fault::new(code::MAY_NOT_SPEAK_AS, format!("uid {uid} may not run {identity}"))
            .why("a program of another user holds that identity on this node")
            .fix("weft agent status");
        return Err(refusal(Code::PermissionDenied, fault));
    }
    let name =
        free_name(shared, &namespace, &account).ok_or_else(|| invalid("the name is too long".to_owned()))?;
    let workload = Arc::new(LocalWorkload::new(identity, namespace, name, account, ports, Some(uid)));
    shared.locals.insert(&workload);
    Ok(Entered { shared: Arc::clone(shared), listeners: listeners.clone(), workload })
}

async fn bring_up(
    entered: Entered,
    uid: u32,
    proxy_port: u16,
    upstreams: Vec<Upstream>,
) -> Result<(RunEvent, RunGuard), Refusal> {
    let Entered { shared, listeners, workload } = &entered;
    // First the certificate: nobody may be sent to an endpoint that cannot prove itself.
    let issued = tokio::time::timeout(READY_WITHIN, identity::first(shared, workload)).await;
    let late = |_| too_slow(&workload.identity);
    issued.map_err(late)?.map_err(|fault| refusal(Code::PermissionDenied, fault))?;
    let registered = tokio::time::timeout(READY_WITHIN, registration::register(shared, workload)).await;
    registered.map_err(late)?.map_err(|no| refusal(Code::PermissionDenied, *no.fault))?;
    listeners.start_rotation(workload);
    listeners.workloads_changed();
    let proxy = listeners.open_proxy(workload, uid, proxy_port).await;
    let proxy = proxy.map_err(|fault| refusal(Code::Unavailable, fault))?;
    let mut addresses = BTreeMap::new();
    let mut guards = Vec::new();
    for upstream in upstreams {
        let spec = with_port(shared, upstream).await?;
        let name = spec.service.name.to_string();
        let opened = listeners.open_upstream(workload, uid, spec).await;
        let guard = opened.map_err(|fault| refusal(Code::FailedPrecondition, fault))?;
        addresses.insert(name, guard.address.to_string());
        guards.push(guard);
    }
    let event = RunEvent {
        workload_id: workload.identity.to_string(),
        namespace: workload.namespace.to_string(),
        name: workload.name.to_string(),
        proxy_port: u32::from(proxy.address.port()),
        upstream_addresses: addresses,
        warnings: Vec::new(),
    };
    Ok((event, RunGuard { _proxy: proxy, _upstreams: guards, _entered: entered }))
}

/// The proxy port that a program has from before; a port that asks for a privilege is nobody's.
fn kept_port(request: &RunRequest) -> u16 {
    u16::try_from(request.proxy_port).ok().filter(|port| *port >= 1_024).unwrap_or_default()
}

fn too_slow(identity: &SpiffeId) -> Refusal {
    let what = format!("no certificate for {identity} within {READY_WITHIN:?}");
    let fault = Fault::new(code::NO_SVID_YET, what).fix("weft agent status");
    refusal(Code::DeadlineExceeded, fault)
}

/// Gives a port without a name the key of the service's default port. A service that nobody declared is made with port 80
/// named `http` (decisions.md), so that is its key.
async fn named_ports(
    shared: &Shared,
    mut ports: BTreeMap<String, String>,
    wanted: &Wanted,
) -> Result<BTreeMap<String, String>, Refusal> {
    let Some(address) = ports.remove("") else { return Ok(ports) };
    let service = ServiceName::new(wanted.namespace.clone(), wanted.account.clone());
    let key = match resolve::service_port(shared, &service, None).await {
        Ok(Way::Mesh(_, target)) => target.port.to_string(),
        Ok(Way::Outside(..)) | Err(FlowError::UnknownService { .. }) => "http".to_owned(),
        Err(error) => {
            return Err(refusal(Code::InvalidArgument, error.fault().fix("name it: --port NAME=PORT")));
        }
    };
    ports.insert(key, address);
    Ok(ports)
}

/// Whom a request wants to run as.
struct Wanted {
    identity: SpiffeId,
    namespace: Namespace,
    account: ObjectName,
}

fn invalid(what: String) -> Refusal {
    let fault = Fault::new(code::USAGE, what);
    refusal(Code::InvalidArgument, fault.fix("weft run --service charge --port 8081 -- PROGRAM"))
}

/// The workload that a request describes.
fn describe(shared: &Shared, request: &RunRequest) -> Result<Wanted, Refusal> {
    let account: ObjectName =
        request.service.parse().map_err(|e| invalid(format!("service {:?}: {e}", request.service)))?;
    let namespace: Namespace = if request.namespace.is_empty() {
        shared.namespace.clone()
    } else {
        request.namespace.parse().map_err(|e| invalid(format!("namespace {:?}: {e}", request.namespace)))?
    };
    let identity = SpiffeId::workload(&shared.trust_domain, namespace.as_str(), account.as_str());
    let identity = identity.map_err(|e| invalid(e.to_string()))?;
    Ok(Wanted { identity, namespace, account })
}

fn read_ports(ports: &BTreeMap<String, String>) -> Result<BTreeMap<String, SocketAddr>, Refusal> {
    let read = |(key, text): (&String, &String)| {
        let address = local_address(text).ok_or_else(|| invalid(format!("{text:?} is not a port")))?;
        Ok((key.clone(), address))
    };
    ports.iter().map(read).collect()
}

/// Where a program serves is its own port: never one of the agent's or the server's, where the agent would knock for it.
fn check_ports(listeners: &Listeners, request: &RunRequest) -> Result<(), Refusal> {
    for text in request.ports.values() {
        let address = local_address(text).ok_or_else(|| invalid(format!("{text:?} is not a port")))?;
        if listeners.is_of_the_mesh(address) {
            return Err(invalid(format!(
                "{address} is a port of this agent or its server, not of a program"
            )));
        }
    }
    Ok(())
}

/// `<account>-<node>`, with a number when it is taken.
pub(crate) fn free_name(shared: &Shared, namespace: &Namespace, account: &ObjectName) -> Option<ObjectName> {
    let node = shared.config.node.as_str();
    let names = std::iter::once(String::new()).chain((2..).map(|n: u32| format!("-{n}")));
    names
        .take(MAX_RUNS + 1)
        .filter_map(|suffix| {
            let room = weft_policy::name::MAX_LABEL_BYTES.saturating_sub(suffix.len());
            let base = format!("{account}-{node}");
            let base = base.get(..room).unwrap_or(&base).trim_end_matches('-').to_owned();
            format!("{base}{suffix}").parse::<ObjectName>().ok()
        })
        .find(|name| {
            shared.locals.named(namespace, name).is_none() && !shared.withdrawals.holds(namespace, name)
        })
}

/// A bare port means loopback.
fn local_address(text: &str) -> Option<SocketAddr> {
    if let Ok(port) = text.parse::<u16>() {
        return (port != 0).then(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().ok().filter(|address: &SocketAddr| address.port() != 0)
}

fn upstream_specs(workload: &LocalWorkload, request: &RunRequest) -> Result<Vec<Upstream>, Refusal> {
    let invalid = |what: String| {
        refusal(
            Code::InvalidArgument,
            Fault::new(code::USAGE, what).fix("weft run --upstream charge:80=9001 …"),
        )
    };
    let spec = |upstream: &weft_api::pb::agent::Upstream| {
        let (name, namespace) = match upstream.service.split_once('.') {
            Some((name, namespace)) => {
                (name, namespace.parse().map_err(|e| invalid(format!("{namespace:?}: {e}")))?)
            }
            None => (upstream.service.as_str(), workload.namespace.clone()),
        };
        let name = name.parse().map_err(|e| invalid(format!("{name:?}: {e}")))?;
        let port =
            u16::try_from(upstream.port).map_err(|_| invalid(format!("{} is not a port", upstream.port)))?;
        let listen = match upstream.listen.parse::<u16>() {
            Ok(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            Err(_) => {
                let parsed: Result<SocketAddr, _> = upstream.listen.parse();
                parsed.map_err(|_| invalid(format!("{:?} is not a port", upstream.listen)))?
            }
        };
        if !listen.ip().is_loopback() {
            return Err(invalid(format!("an upstream listens on loopback only, not on {listen}")));
        }
        Ok(Upstream { service: ServiceName::new(namespace, name), port: NonZeroU16::new(port), listen })
    };
    request.upstreams.iter().map(spec).collect()
}

/// An upstream as it was asked for.
struct Upstream {
    service: ServiceName,
    /// `None` is the service's default port.
    port: Option<NonZeroU16>,
    listen: SocketAddr,
}

/// Finds the service's default port where none was named.
async fn with_port(shared: &Shared, upstream: Upstream) -> Result<UpstreamSpec, Refusal> {
    let Upstream { service, port, listen } = upstream;
    let port = match port {
        Some(port) => port,
        None => match resolve::service_port(shared, &service, None).await {
            Ok(Way::Mesh(_, target)) => NonZeroU16::new(target.port).ok_or_else(|| no_port(&service))?,
            Ok(Way::Outside(..)) => return Err(no_port(&service)),
            Err(error) => return Err(refusal(Code::NotFound, error.fault())),
        },
    };
    Ok(UpstreamSpec { service, port, listen })
}

fn no_port(service: &ServiceName) -> Refusal {
    refusal(Code::NotFound, Fault::new(code::UNKNOWN_PORT, format!("{service} has no default port")))
}

/// Opens a proxy port that speaks as an identity of this node.
pub(super) async fn speak(
    shared: &Arc<Shared>,
    listeners: &Listeners,
    uid: u32,
    wanted: &str,
) -> Result<(SpeakEvent, ProxyGuard), Refusal> {
    let all = shared.locals.all();
    let matches: Vec<_> =
        all.iter().filter(|workload| is_called(workload, wanted, &shared.namespace)).collect();
    let allowed: Vec<_> = matches.iter().filter(|workload| LocalApi::may_speak(uid, workload)).collect();
    let identities = || {
        let mine = all.iter().filter(|workload| LocalApi::may_speak(uid, workload));
        mine.map(|workload| format!("{}/{}", workload.namespace, workload.account))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let workload = match (allowed.as_slice(), wanted) {
        ([only, ..], _) if !wanted.is_empty() => only,
        ([only], "") => only,
        ([], _) if !matches.is_empty() => {
            let fault = Fault::new(code::MAY_NOT_SPEAK_AS, format!("uid {uid} may not speak as {wanted}"));
            return Err(refusal(
                Code::PermissionDenied,
                fault.fix("weft get workloadenrollments -A -o yaml"),
            ));
        }
        (_, "") => {
            let fault = Fault::new(
                code::AMBIGUOUS_WORKLOAD,
                "say who calls: this host has several identities, or none",
            )
            .why(format!("identities here: {}", identities()))
            .fix("weft call SERVICE --as NAME");
            return Err(refusal(Code::InvalidArgument, fault));
        }
        (_, _) => {
            let fault =
                Fault::new(code::IDENTITY_NOT_ON_NODE, format!("no workload of this node is {wanted}"))
                    .why(format!("identities here: {}", identities()))
                    .fix("weft run --service NAME -- PROGRAM");
            return Err(refusal(Code::NotFound, fault));
        }
    };
    let proxy =
        listeners.open_proxy(workload, uid, 0).await.map_err(|fault| refusal(Code::Unavailable, fault))?;
    let event = SpeakEvent {
        workload_id: workload.identity.to_string(),
        proxy_port: u32::from(proxy.address.port()),
    };
    Ok((event, proxy))
}

/// Whether `wanted` (a SPIFFE ID, `namespace/name`, `name`, or empty for any) means the workload.
fn is_called(workload: &LocalWorkload, wanted: &str, default: &Namespace) -> bool {
    if wanted.is_empty() {
        return true;
    }
    if wanted.starts_with("spiffe://") {
        return workload.identity.to_string() == wanted;
    }
    let (namespace, name) = wanted.split_once('/').unwrap_or((default.as_str(), wanted));
    workload.namespace.as_str() == namespace
        && (workload.account.as_str() == name || workload.name.as_str() == name)
}
