//! `weft run` and `weft call`: workloads that live as long as the caller's stream.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
    time::Duration,
};

use tonic::Code;
use weft_api::{
    fault::Fault,
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

/// How long a started workload may take to get its certificate before `weft run` gives up.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// Programs that may be started by `weft run` at once on one host.
const MAX_RUNS: usize = 1_000;

/// A refusal with the gRPC code that carries it.
pub(super) type Refusal = Box<(Code, Fault)>;

fn refusal(code: Code, fault: Fault) -> Refusal {
    Box::new((code, fault))
}

/// What `weft run` holds: dropping it unregisters the workload.
pub(super) struct RunGuard {
    shared: Arc<Shared>,
    listeners: Listeners,
    workload: Arc<LocalWorkload>,
    _proxy: ProxyGuard,
    _upstreams: Vec<crate::listeners::UpstreamGuard>,
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        let (shared, workload) = (Arc::clone(&self.shared), Arc::clone(&self.workload));
        shared.forget_workload(&workload);
        self.listeners.workloads_changed();
        self.listeners.stop_rotation(&workload);
        let tasks = self.listeners.tasks();
        tasks.spawn(async move { registration::unregister(&shared, &workload).await });
    }
}

/// Starts a workload for a program of user `uid`.
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
    if shared.locals.len() >= MAX_RUNS {
        return Err(refusal(
            Code::ResourceExhausted,
            Fault::new(code::OVER_LIMIT, format!("{MAX_RUNS} workloads run here already")),
        ));
    }
    let workload = Arc::new(describe(shared, uid, named_ports(shared, request.clone()).await?)?);
    let upstreams = upstream_specs(&workload, &request)?;
    shared.locals.insert(&workload);
    let proxy = kept_port(&request);
    let result = bring_up(shared, listeners, uid, &workload, (proxy, upstreams)).await;
    if result.is_err() {
        shared.forget_workload(&workload);
        listeners.stop_rotation(&workload);
        registration::unregister(shared, &workload).await;
    }
    result
}

async fn bring_up(
    shared: &Arc<Shared>,
    listeners: &Listeners,
    uid: u32,
    workload: &Arc<LocalWorkload>,
    (proxy_port, upstreams): (u16, Vec<Upstream>),
) -> Result<(RunEvent, RunGuard), Refusal> {
    if !shared.link.is_up() {
        let fault = Fault::new(code::SERVER_UNREACHABLE, "a new program cannot be started without a server")
            .why(shared.link.state().why_not)
            .fix("weft agent status");
        return Err(refusal(Code::Unavailable, fault));
    }
    // First the certificate: nobody may be sent to an endpoint that cannot prove itself.
    let issued = tokio::time::timeout(READY_WITHIN, identity::first(shared, workload)).await;
    issued.map_err(|_| too_slow(workload))?.map_err(|fault| refusal(Code::PermissionDenied, fault))?;
    let registered = tokio::time::timeout(READY_WITHIN, registration::register(shared, workload)).await;
    registered.map_err(|_| too_slow(workload))?.map_err(|fault| refusal(Code::PermissionDenied, fault))?;
    if !LocalApi::may_speak(uid, workload) {
        let fault =
            Fault::new(code::MAY_NOT_SPEAK_AS, format!("uid {uid} may not run {}", workload.identity))
                .why("only the agent's own user, root and the users that the enrollment names may")
                .fix("weft get workloadenrollments -A -o yaml");
        return Err(refusal(Code::PermissionDenied, fault));
    }
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
    let guard = RunGuard {
        shared: Arc::clone(shared),
        listeners: listeners.clone(),
        workload: Arc::clone(workload),
        _proxy: proxy,
        _upstreams: guards,
    };
    Ok((event, guard))
}

/// The proxy port that a program has from before; a port that asks for a privilege is nobody's.
fn kept_port(request: &RunRequest) -> u16 {
    u16::try_from(request.proxy_port).ok().filter(|port| *port >= 1_024).unwrap_or_default()
}

fn too_slow(workload: &LocalWorkload) -> Refusal {
    let fault = Fault::new(
        code::NO_SVID_YET,
        format!("no certificate for {} within {READY_WITHIN:?}", workload.identity),
    )
    .fix("weft agent status");
    refusal(Code::DeadlineExceeded, fault)
}

/// Gives a port without a name the key of the service's default port. A service that nobody declared is made with port 80
/// named `http` (decisions.md), so that is its key.
async fn named_ports(shared: &Shared, mut request: RunRequest) -> Result<RunRequest, Refusal> {
    let Some(address) = request.ports.remove("") else { return Ok(request) };
    let namespace =
        if request.namespace.is_empty() { shared.namespace.to_string() } else { request.namespace.clone() };
    let (Ok(name), Ok(namespace)) = (request.service.parse(), namespace.parse()) else { return Ok(request) };
    let service = ServiceName::new(namespace, name);
    let key = match resolve::service_port(shared, &service, None).await {
        Ok(Way::Mesh(_, target)) => target.port.to_string(),
        Ok(Way::Outside(..)) | Err(FlowError::UnknownService { .. }) => "http".to_owned(),
        Err(error) => {
            return Err(refusal(Code::InvalidArgument, error.fault().fix("name it: --port NAME=PORT")));
        }
    };
    request.ports.insert(key, address);
    Ok(request)
}

/// The workload that a request describes.
fn describe(shared: &Shared, uid: u32, request: RunRequest) -> Result<LocalWorkload, Refusal> {
    let invalid = |what: String| {
        (
            Code::InvalidArgument,
            Fault::new(code::USAGE, what).fix("weft run --service charge --port 8081 -- PROGRAM"),
        )
    };
    let account: ObjectName =
        request.service.parse().map_err(|e| invalid(format!("service {:?}: {e}", request.service)))?;
    let namespace: Namespace = if request.namespace.is_empty() {
        shared.namespace.clone()
    } else {
        request.namespace.parse().map_err(|e| invalid(format!("namespace {:?}: {e}", request.namespace)))?
    };
    let identity = SpiffeId::workload(&shared.trust_domain, namespace.as_str(), account.as_str());
    let identity = identity.map_err(|e| invalid(e.to_string()))?;
    let mut ports = BTreeMap::new();
    for (key, text) in &request.ports {
        ports.insert(
            key.clone(),
            local_address(text).ok_or_else(|| invalid(format!("{text:?} is not a port")))?,
        );
    }
    let name =
        free_name(shared, &namespace, &account).ok_or_else(|| invalid("the name is too long".to_owned()))?;
    Ok(LocalWorkload::new(identity, namespace, name, account, ports, Some(uid)))
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
        .find(|name| shared.locals.named(namespace, name).is_none())
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
