//! What an agent is told in `agent.yaml`, by environment and by flags, with every default.
//!
//! [`Config::parse`] and [`Config::read`] are the only doors: serde types stop in `raw.rs`, text becomes a type in
//! `value.rs`. Unknown keys are faults with the nearest known key, line and column; all faults of the values are told at
//! once; each value knows where it came from ([`Config::origins`]).

mod limits;
mod origin;
mod raw;
mod value;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
    path::{Path, PathBuf},
};

use weft_api::{fault::Fault, manifest::strict};
use weft_identity::spiffe::dns_label;
use weft_overlay::{PoolSettings, TransportSettings};
use weft_policy::{
    code::{self, CodeId},
    model::HostPort,
    name::{ClusterName, MAX_LABEL_BYTES, Namespace, NodeName, ObjectName, PortName},
};

pub use self::{
    limits::{FlowLimits, Limits, RequestLimits, TelemetryLimits, TunnelLimits},
    origin::{Origin, Overrides, Setting},
    value::{Advertised, ByteSize, InvalidValue, Period},
};
use self::{
    origin::Resolver,
    raw::{RawConfig, RawListen, RawUpstream, RawWorkload},
    value::{Address, Directory, LogTarget, Node},
};
use crate::{intercept::HeadLimits, listen::is_loopback};

const TUNNELS: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 7_443);
const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7_480);
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7_401);
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7_402);
/// Workers: each is a thread with its own endpoint.
const MAX_WORKERS: u32 = 64;
/// Declared workloads, and upstreams of one.
const MAX_DECLARED: usize = 1_000;
/// Servers, and advertised addresses: what a dialler tries in order.
const MAX_HOSTS: usize = 8;
/// The file of the access log in the state directory.
const ACCESS_LOG: &str = "access.log";

/// See the module.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's name; `local`.
    pub cluster: ClusterName,
    /// The node's name; the host's, folded to a name.
    pub node: NodeName,
    /// Servers of the control plane, tried in order; empty leaves it to what was learnt at joining.
    pub servers: Vec<HostPort>,
    /// Where the agent listens.
    pub listen: Listen,
    /// Where peers dial, in order; empty leaves it to the agent.
    pub advertise: Vec<Advertised>,
    /// Threads that carry flows; 1.
    pub workers: usize,
    /// Declared workloads; `weft run` adds to them.
    pub workloads: Vec<WorkloadConfig>,
    /// Bounds, each with its default.
    pub limits: Limits,
    /// The directory of keys, SVIDs and the snapshot.
    pub state_dir: PathBuf,
    /// The directory of `agent.sock`.
    pub run_dir: PathBuf,
    access_log: Option<PathBuf>,
    origins: Vec<Setting>,
}

/// Where an agent listens. A port of 0 is chosen by the kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Listen {
    /// QUIC tunnels. `[::]:7443`, which is IPv4 alone where IPv6 is off.
    pub tunnels: SocketAddr,
    /// The shared proxy port, on loopback. `127.0.0.1:7480`.
    pub proxy: SocketAddr,
    /// The admin page, on loopback. `127.0.0.1:7401`.
    pub admin: SocketAddr,
    /// Metrics and health. `127.0.0.1:7402`.
    pub metrics: SocketAddr,
}

/// A workload that the configuration declares.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkloadConfig {
    /// The service it serves, and the service account it is.
    pub service: ObjectName,
    /// Its namespace; `None` is the agent's own.
    pub namespace: Option<Namespace>,
    /// Where its program listens, by the service port's name or number; empty for a pure caller.
    pub ports: BTreeMap<String, SocketAddr>,
    /// The user its programs run as; `None` is the agent's own, unless that is root.
    pub uid: Option<u32>,
    /// Services it reaches by a listener of their own.
    pub upstreams: Vec<UpstreamConfig>,
}

/// A loopback listener that leads to one service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UpstreamConfig {
    /// The service.
    pub service: ObjectName,
    /// Its namespace; `None` is the workload's.
    pub namespace: Option<Namespace>,
    /// The service's port.
    pub port: NonZeroU16,
    /// Where the workload connects.
    pub listen: SocketAddr,
}

/// What the defaults of a host depend on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Host {
    /// The host's name.
    pub name: String,
    /// The user the agent runs as.
    pub uid: u32,
    /// The state directory where none is given.
    pub state_dir: PathBuf,
    /// `$XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
}

impl Host {
    /// This process's host and user.
    #[must_use]
    pub fn of_process() -> Self {
        let directory =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let uid = nix::unistd::geteuid().as_raw();
        let data = directory("XDG_DATA_HOME")
            .or_else(|| directory("HOME").map(|home| home.join(".local/share")))
            .filter(|_| uid != 0)
            .unwrap_or_else(|| "/var/lib".into());
        let name = nix::unistd::gethostname().unwrap_or_default();
        Self {
            name: name.to_string_lossy().into_owned(),
            uid,
            state_dir: data.join("weft/agent"),
            runtime_dir: directory("XDG_RUNTIME_DIR"),
        }
    }
}

impl Config {
    /// Reads a file's text; `origin` is its name. Neither environment nor flags count.
    ///
    /// # Errors
    ///
    /// Every fault of the values, or the first of the text's form; never empty.
    pub fn parse(text: &str, origin: &str) -> Result<Self, Vec<Fault>> {
        Self::read(text, origin, &Overrides::default(), &Host::of_process())
    }

    /// Reads a file's text under what overrides it, on a given host.
    ///
    /// # Errors
    ///
    /// As [`Config::parse`].
    pub fn read(text: &str, origin: &str, overrides: &Overrides, host: &Host) -> Result<Self, Vec<Fault>> {
        let raw: RawConfig = strict::from_yaml(text).map_err(|fault| vec![fault])?;
        let mut resolver = Resolver::new(overrides, origin);
        let mut config = resolve(raw, &mut resolver, host);
        config.origins = std::mem::take(&mut resolver.settings);
        let mut faults = resolver.faults;
        faults.extend(config.contradictions(host));
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }

    /// Every value with its key and origin, for `weft config view --origin`.
    #[must_use]
    pub fn origins(&self) -> &[Setting] {
        &self.origins
    }

    /// Where the access log goes: `-` is standard output, `None` nowhere.
    #[must_use]
    pub fn access_log(&self) -> Option<&Path> {
        self.access_log.as_deref()
    }

    /// What tunnels are made with.
    #[must_use]
    pub fn transport(&self) -> TransportSettings {
        self.limits.transport()
    }

    /// What the pool of outbound tunnels is made with.
    #[must_use]
    pub fn pool(&self) -> PoolSettings {
        self.limits.pool()
    }

    /// What heads of requests are read with.
    #[must_use]
    pub fn head_limits(&self) -> HeadLimits {
        self.limits.head()
    }

    /// Connections of local programs at a time.
    #[must_use]
    pub fn connections(&self) -> usize {
        usize::try_from(self.limits.flows.local).unwrap_or(usize::MAX)
    }

    /// Flows at a time.
    #[must_use]
    pub fn max_flows(&self) -> usize {
        usize::try_from(self.limits.flows.total).unwrap_or(usize::MAX)
    }

    /// What no single value tells.
    fn contradictions(&self, host: &Host) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (key, address) in [("listen.proxy", self.listen.proxy), ("listen.admin", self.listen.admin)] {
            faults.extend(on_loopback(key, address));
        }
        let port = self.listen.tunnels.port();
        let told: Vec<HostPort> = self.advertise.iter().map(|host| host.with_port(port)).collect();
        faults.extend(check_advertised(self.listen.tunnels, &told).err());
        for (key, count) in [("servers", self.servers.len()), ("advertise", self.advertise.len())] {
            if count > MAX_HOSTS {
                let what = format!("{count} are too many: at most {MAX_HOSTS} are tried");
                faults.push(Fault::new(code::CONFIG_BAD_VALUE, what).at(key, None));
            }
        }
        faults.extend(self.workload_faults(host));
        faults
    }

    fn workload_faults(&self, host: &Host) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.workloads.len() > MAX_DECLARED {
            let what = format!("{} workloads are too many: at most {MAX_DECLARED}", self.workloads.len());
            faults.push(Fault::new(code::CONFIG_BAD_VALUE, what).at("workloads", None));
        }
        let mut taken = BTreeSet::new();
        for (index, workload) in self.workloads.iter().enumerate() {
            let key = format!("workloads[{index}]");
            faults.extend(workload.ports.keys().filter_map(|port| port_fault(&key, port)));
            for (name, address) in &workload.ports {
                if address.port() == 0 {
                    faults.push(bad(&format!("{key}.ports.{name}"), "a program cannot listen on port 0"));
                }
            }
            if !workload.upstreams.is_empty() && workload.uid.is_none() && host.uid == 0 {
                let what = "uid is missing: this agent runs as root, so whose connections are the workload's must be said";
                let fault = Fault::new(code::CONFIG_MISSING, what).at(format!("{key}.uid"), None);
                faults.push(fault.fix("add uid: the user that the program runs as (id -u <user>)"));
            }
            for (place, upstream) in workload.upstreams.iter().enumerate() {
                let key = format!("{key}.upstreams[{place}].listen");
                faults.extend(on_loopback(&key, upstream.listen));
                if upstream.listen.port() != 0 && !taken.insert(upstream.listen) {
                    faults.push(bad(&key, &format!("{} is given to two upstreams", upstream.listen)));
                }
            }
        }
        faults
    }
}

/// Checks that others are not told loopback addresses of a listener that is open to them.
///
/// # Errors
///
/// W5011 when `tunnels` is reachable from outside and everything in `advertise` is loopback; nothing advertised is no
/// error here, since the agent finds its address later, and asks again then.
pub fn check_advertised(tunnels: SocketAddr, advertise: &[HostPort]) -> Result<(), Fault> {
    let local = |told: &HostPort| told.host.parse::<Advertised>().is_ok_and(|host| host.is_loopback());
    if is_loopback(tunnels.ip()) || advertise.is_empty() || !advertise.iter().all(local) {
        return Ok(());
    }
    let told: Vec<String> = advertise.iter().map(ToString::to_string).collect();
    let what = format!("tunnels are taken on {tunnels}, and only {} is advertised", told.join(", "));
    Err(with_fixes(
        Fault::new(code::LOOPBACK_ADVERTISED, what).at("advertise", None),
        code::LOOPBACK_ADVERTISED,
    ))
}

fn on_loopback(key: &str, address: SocketAddr) -> Option<Fault> {
    if is_loopback(address.ip()) {
        return None;
    }
    let fault = Fault::new(code::NOT_LOOPBACK, format!("{address} is not on loopback")).at(key, None);
    Some(with_fixes(fault, code::NOT_LOOPBACK))
}

fn with_fixes(mut fault: Fault, code: CodeId) -> Fault {
    let row = code.row();
    fault.why.push(row.cause.to_owned());
    fault.fix.extend(row.fix.iter().map(|line| (*line).to_owned()));
    fault
}

fn port_fault(key: &str, port: &str) -> Option<Fault> {
    let number = port.parse::<NonZeroU16>().is_ok();
    let named = port.parse::<PortName>().is_ok() && !port.bytes().all(|byte| byte.is_ascii_digit());
    (!number && !named)
        .then(|| bad(&format!("{key}.ports"), &format!("{port:?} is no name or number of a service port")))
}

fn bad(key: &str, what: &str) -> Fault {
    Fault::new(code::CONFIG_BAD_VALUE, what).at(key, None)
}

fn resolve(raw: RawConfig, resolver: &mut Resolver<'_>, host: &Host) -> Config {
    let local: ClusterName = "local".parse().expect("local is a name");
    let cluster = resolver.one("cluster", raw.cluster, local);
    let own: NodeName = dns_label(&host.name).parse().expect("a folded name is a name");
    let Node(node) = resolver.one("node", raw.node, Node(own));
    let listen = resolve_listen(raw.listen.unwrap_or_default(), resolver);
    let advertise = resolver.many("advertise", raw.advertise);
    let workers = resolver.bounded("workers", raw.workers, 1, &(1..=MAX_WORKERS));
    let Directory(state_dir) = resolver.one("stateDir", raw.state_dir, Directory(host.state_dir.clone()));
    let sockets = match &host.runtime_dir {
        Some(runtime) => runtime.join("weft"),
        None => state_dir.join("run"),
    };
    let Directory(run_dir) = resolver.one("runDir", raw.run_dir, Directory(sockets));
    let file = LogTarget::Path(state_dir.join(ACCESS_LOG));
    let access = resolver.one("logs.access", raw.logs.unwrap_or_default().access, file);
    Config {
        cluster,
        node,
        servers: resolver.many("servers", raw.servers),
        advertise,
        listen,
        workers: usize::try_from(workers).unwrap_or(1),
        workloads: raw.workloads.unwrap_or_default().into_iter().map(workload).collect(),
        limits: Limits::resolve(raw.limits, resolver),
        state_dir,
        run_dir,
        access_log: match access {
            LogTarget::Off => None,
            LogTarget::Path(path) => Some(path),
        },
        origins: Vec::new(),
    }
}

fn resolve_listen(raw: RawListen, resolver: &mut Resolver<'_>) -> Listen {
    let mut one = |key, given, default| resolver.one(key, given, Address(default)).0;
    Listen {
        tunnels: one("listen.tunnels", raw.tunnels, TUNNELS),
        proxy: one("listen.proxy", raw.proxy, PROXY),
        admin: one("listen.admin", raw.admin, ADMIN),
        metrics: one("listen.metrics", raw.metrics, METRICS),
    }
}

fn workload(raw: RawWorkload) -> WorkloadConfig {
    let RawWorkload { service, namespace, ports, uid, upstreams } = raw;
    WorkloadConfig {
        service: service.0,
        namespace: namespace.map(|namespace| namespace.0),
        ports: ports.into_iter().map(|(port, address)| (port, address.0.0)).collect(),
        uid,
        upstreams: upstreams.into_iter().map(upstream).collect(),
    }
}

fn upstream(raw: RawUpstream) -> UpstreamConfig {
    let RawUpstream { service, port, listen } = raw;
    let (service, namespace) = (service.0.name, service.0.namespace);
    UpstreamConfig { service, namespace, port: port.0, listen: listen.0.0 }
}

// A folded host name fits one label, as a node name does.
const _: () = assert!(MAX_LABEL_BYTES == 63);

#[cfg(test)]
mod tests;
