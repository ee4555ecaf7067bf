//! What an agent is told in `agent.yaml`, with every default.
//!
//! [`Config::parse`] is the only door. Serde types stop in `raw.rs`. Unknown keys are faults with the nearest known key;
//! each value knows where it came from ([`Config::origins`]).

mod raw;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use weft_api::{duration::format_duration, fault::Fault, manifest::strict};
use weft_identity::spiffe::dns_label;
use weft_overlay::{AdmissionSettings, TransportSettings};
use weft_policy::{
    code,
    model::HostPort,
    name::{ClusterName, Namespace, NodeName, ObjectName},
};

use self::raw::{Period, RawConfig, RawLimits};
use crate::{app::fault_of, intercept::HeadLimits};

const TUNNELS: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 7443);
const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7480);
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7401);
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7402);
/// Live flows of one agent, both directions: a place costs about 300 bytes beside its sockets.
const FLOWS: usize = 65_536;
/// Workers of one agent: more than a host's cores helps nobody.
const MAX_WORKERS: u32 = 64;

/// See the module.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's name; `local`.
    pub cluster: ClusterName,
    /// The node's name; the host's.
    pub node: NodeName,
    /// Control ports, in the order to be tried; empty takes those of the join.
    pub servers: Vec<HostPort>,
    /// Where the agent listens.
    pub listen: Listen,
    /// What peers are told to dial, in order; empty leaves it to the agent.
    pub advertise: Vec<Advertised>,
    /// Threads that carry traffic, 1 to 64; 1.
    pub workers: usize,
    /// Declared workloads; `weft run` adds to them.
    pub workloads: Vec<Workload>,
    /// The directory of keys, SVIDs and the last snapshot.
    pub state_dir: PathBuf,
    /// The directory of `agent.sock`.
    pub run_dir: PathBuf,
    /// Bounds.
    pub limits: Limits,
    access_log: Option<PathBuf>,
    origins: Vec<(String, String, String)>,
}

/// Where the agent listens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Listen {
    /// QUIC. `[::]:7443`, which is IPv4 alone where IPv6 is off.
    pub tunnels: SocketAddr,
    /// The proxy port of every workload; loopback only. `127.0.0.1:7480`.
    pub proxy: SocketAddr,
    /// Admin pages; loopback only. `127.0.0.1:7401`, or the next free port.
    pub admin: SocketAddr,
    /// `/metrics`, `/livez`, `/readyz`. `127.0.0.1:7402`, or the next free port.
    pub metrics: SocketAddr,
}

/// A workload that the configuration declares.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Workload {
    /// Its service account, and the service it serves when it has ports.
    pub service: ObjectName,
    /// Its namespace; `None` takes the join's.
    pub namespace: Option<Namespace>,
    /// Where it serves, by the service port's name or number.
    pub ports: BTreeMap<String, SocketAddr>,
    /// The uid its programs run as.
    pub uid: Option<u32>,
    /// Loopback ports that lead it to other services.
    pub upstreams: Vec<Upstream>,
}

/// A loopback port that leads to a service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Upstream {
    /// The service.
    pub service: ObjectName,
    /// Its namespace; `None` means the workload's.
    pub namespace: Option<Namespace>,
    /// The service's port.
    pub port: NonZeroU16,
    /// Where programs connect; port 0 draws one.
    pub listen: SocketAddr,
}

/// Bounds of the agent, each with its default (decisions.md, tunnels; security.md 9.3).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Live flows, both directions; 65,536.
    pub flows: usize,
    /// Connections of local programs; 65,536.
    pub connections: usize,
    /// Of the tunnels.
    pub transport: TransportSettings,
    /// Of the first bytes on a proxy port.
    pub head: HeadLimits,
}

/// A host that peers are told to dial, with a port if it is not the tunnels' own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Advertised {
    host: String,
    port: Option<u16>,
}

impl Advertised {
    /// What to dial when tunnels are taken on `port`.
    #[must_use]
    pub fn with_port(&self, port: u16) -> HostPort {
        HostPort { host: self.host.clone(), port: self.port.unwrap_or(port) }
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

/// The text is neither a host, an address, nor either with a port.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is neither a host nor host:port")]
pub struct InvalidAdvertised(pub String);

impl FromStr for Advertised {
    type Err = InvalidAdvertised;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(Self { host: ip.to_canonical().to_string(), port: None });
        }
        if let Ok(HostPort { host, port }) = text.parse() {
            return Ok(Self { host, port: Some(port) });
        }
        // A name without a port is one that would be valid with any.
        match format!("{text}:1").parse::<HostPort>() {
            Ok(HostPort { host, .. }) => Ok(Self { host, port: None }),
            Err(_) => Err(InvalidAdvertised(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for Advertised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => self.with_port(port).fmt(f),
            None => f.write_str(&self.host),
        }
    }
}

impl Config {
    /// Reads a configuration; `origin` names the text in [`Config::origins`], such as the file's path.
    ///
    /// # Errors
    ///
    /// Every fault that can be told at once, at least one.
    pub fn parse(text: &str, origin: &str) -> Result<Self, Vec<Fault>> {
        let raw: RawConfig = strict::from_yaml(text).map_err(|fault| vec![fault])?;
        let mut rows = Rows { from: origin, rows: Vec::new() };
        let config = build(raw, &mut rows).map_err(|fault| vec![fault])?;
        let faults = config.faults();
        if faults.is_empty() { Ok(Self { origins: rows.rows, ..config }) } else { Err(faults) }
    }

    /// Every setting: its key, its value, and `default` or the origin that it was read from.
    #[must_use]
    pub fn origins(&self) -> Vec<(String, String, String)> {
        self.origins.clone()
    }

    /// The access log's file, `-` for standard output; `None` writes none.
    #[must_use]
    pub fn access_log(&self) -> Option<&Path> {
        self.access_log.as_deref()
    }

    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let local = [("listen.proxy", self.listen.proxy), ("listen.admin", self.listen.admin)];
        for (key, address) in local {
            if !address.ip().is_loopback() {
                let what = format!("{address} is not an address of loopback");
                faults.push(fault_of(code::NOT_LOOPBACK, what).at(key, None));
            }
        }
        let only_loopback = !self.advertise.is_empty() && self.advertise.iter().all(Advertised::is_loopback);
        if only_loopback && !self.listen.tunnels.ip().is_loopback() {
            let what = format!(
                "{} listens for others, who would be told {}",
                self.listen.tunnels, self.advertise[0]
            );
            faults.push(fault_of(code::LOOPBACK_ADVERTISED, what).at("advertise", None));
        }
        for (index, workload) in self.workloads.iter().enumerate() {
            for (at, upstream) in workload.upstreams.iter().enumerate() {
                if !upstream.listen.ip().is_loopback() {
                    let what = format!("{} is not an address of loopback", upstream.listen);
                    let path = format!("workloads[{index}].upstreams[{at}].listen");
                    faults.push(fault_of(code::NOT_LOOPBACK, what).at(path, None));
                }
            }
        }
        faults
    }
}

fn build(raw: RawConfig, rows: &mut Rows<'_>) -> Result<Config, Fault> {
    let local: ClusterName = "local".parse().expect("it is a DNS label");
    let cluster = rows.take("cluster", raw.cluster.map(|text| text.0), local, ToString::to_string);
    let node = rows.take("node", raw.node.map(|text| text.0), host_name()?, ToString::to_string);
    let listen = Listen {
        tunnels: rows.take("listen.tunnels", raw.listen.tunnels, TUNNELS, ToString::to_string),
        proxy: rows.take("listen.proxy", raw.listen.proxy, PROXY, ToString::to_string),
        admin: rows.take("listen.admin", raw.listen.admin, ADMIN, ToString::to_string),
        metrics: rows.take("listen.metrics", raw.listen.metrics, METRICS, ToString::to_string),
    };
    let servers: Vec<_> = raw.servers.into_iter().map(|text| text.0).collect();
    rows.list("servers", &servers);
    let advertise: Vec<_> = raw.advertise.into_iter().map(|text| text.0).collect();
    rows.list("advertise", &advertise);
    let workers = rows.take("workers", raw.workers, NonZeroU32::MIN, ToString::to_string);
    if workers.get() > MAX_WORKERS {
        return Err(fault_of(code::CONFIG_BAD_VALUE, format!("{workers} is more than {MAX_WORKERS}"))
            .at("workers", None));
    }
    let mut workloads = Vec::with_capacity(raw.workloads.len());
    for (index, workload) in raw.workloads.into_iter().enumerate() {
        workloads.push(declared(index, workload)?);
    }
    rows.list(
        "workloads",
        &workloads.iter().map(|workload| workload.service.to_string()).collect::<Vec<_>>(),
    );
    let state_dir =
        rows.take("stateDir", raw.state_dir, default_state_dir(), |path| path.display().to_string());
    let run_dir =
        rows.take("runDir", raw.run_dir, default_run_dir(&state_dir), |path| path.display().to_string());
    let access = rows.take("logs.access", raw.logs.access.map(Some), None, |path| {
        path.as_ref().map_or_else(|| "none".to_owned(), |path| path.display().to_string())
    });
    let limits = limits(&raw.limits, rows);
    let workers = usize::try_from(workers.get()).unwrap_or(1);
    Ok(Config {
        cluster,
        node,
        servers,
        listen,
        advertise,
        workers,
        workloads,
        state_dir,
        run_dir,
        limits,
        access_log: access,
        origins: Vec::new(),
    })
}

fn declared(index: usize, raw: raw::RawWorkload) -> Result<Workload, Fault> {
    let port_zero = |path: String| fault_of(code::CONFIG_BAD_VALUE, "port 0 cannot be called").at(path, None);
    let mut upstreams = Vec::with_capacity(raw.upstreams.len());
    for (at, upstream) in raw.upstreams.into_iter().enumerate() {
        let path = format!("workloads[{index}].upstreams[{at}].port");
        upstreams.push(Upstream {
            service: upstream.service.0,
            namespace: upstream.namespace.map(|text| text.0),
            port: NonZeroU16::new(upstream.port).ok_or_else(|| port_zero(path))?,
            listen: upstream.listen.0,
        });
    }
    let mut ports = BTreeMap::new();
    for (key, place) in raw.ports {
        if place.0.port() == 0 {
            return Err(port_zero(format!("workloads[{index}].ports.{key}")));
        }
        ports.insert(key, place.0);
    }
    Ok(Workload {
        service: raw.service.0,
        namespace: raw.namespace.map(|text| text.0),
        ports,
        uid: raw.uid,
        upstreams,
    })
}

fn limits(raw: &RawLimits, rows: &mut Rows<'_>) -> Limits {
    let own = TransportSettings::default();
    let bytes = |given: Option<NonZeroU32>| given.map(|count| u64::from(count.get()));
    let admission = AdmissionSettings {
        tunnels_per_peer: rows.size(
            "limits.tunnelsPerPeer",
            raw.tunnels_per_peer,
            own.admission.tunnels_per_peer,
        ),
        tunnels_per_peer_per_second: rows.count(
            "limits.newTunnelsPerSecond",
            raw.new_tunnels_per_second,
            own.admission.tunnels_per_peer_per_second,
        ),
        max_pending: rows.size("limits.pendingHandshakes", raw.pending_handshakes, own.admission.max_pending),
        ..own.admission
    };
    let transport = TransportSettings {
        stream_window_bytes: rows.take(
            "limits.streamWindow",
            bytes(raw.stream_window),
            own.stream_window_bytes,
            ToString::to_string,
        ),
        receive_window_bytes: rows.take(
            "limits.receiveWindow",
            bytes(raw.receive_window),
            own.receive_window_bytes,
            ToString::to_string,
        ),
        send_window_bytes: rows.take(
            "limits.sendWindow",
            bytes(raw.send_window),
            own.send_window_bytes,
            ToString::to_string,
        ),
        flows_at_start: rows.count("limits.streams", raw.streams, own.flows_at_start),
        flows_ceiling: rows.count("limits.streamsCeiling", raw.streams_ceiling, own.flows_ceiling),
        idle_timeout: rows.period("limits.idleTimeout", raw.idle_timeout, own.idle_timeout),
        keep_alive: rows.period("limits.keepAlive", raw.keep_alive, own.keep_alive),
        handshake_timeout: rows.period(
            "limits.handshakeTimeout",
            raw.handshake_timeout,
            own.handshake_timeout,
        ),
        stall_budget_bytes: rows.take(
            "limits.stallBudget",
            bytes(raw.stall_budget),
            own.stall_budget_bytes,
            ToString::to_string,
        ),
        admission,
        ..own
    };
    let head = HeadLimits::default();
    let head = HeadLimits {
        head_bytes: rows.size("limits.headBytes", raw.head_bytes, head.head_bytes),
        headers: rows.size("limits.headers", raw.headers, head.headers),
        target_bytes: rows.size("limits.targetBytes", raw.target_bytes, head.target_bytes),
        timeout: rows.period("limits.headTimeout", raw.head_timeout, head.timeout),
    };
    Limits {
        flows: rows.size("limits.flows", raw.flows, FLOWS),
        connections: rows.size("limits.connections", raw.connections, FLOWS),
        transport,
        head,
    }
}

/// The host's name by the rule of node names.
fn host_name() -> Result<NodeName, Fault> {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    dns_label(&host).parse().map_err(|_| {
        fault_of(code::CONFIG_MISSING, format!("the host's name {host:?} makes no node name"))
            .at("node", None)
    })
}

/// `/var/lib/weft` for root, else `~/.local/share/weft/agent` (cli.md 4.5).
fn default_state_dir() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|_| !nix::unistd::geteuid().is_root());
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    match (data, home) {
        (Some(data), Some(_)) => data.join("weft").join("agent"),
        (None, Some(home)) => home.join(".local/share/weft/agent"),
        (_, None) => PathBuf::from("/var/lib/weft/agent"),
    }
}

/// `$XDG_RUNTIME_DIR/weft`, else `run` in the state directory (decisions.md, sockets).
fn default_run_dir(state_dir: &Path) -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(dir) if dir.is_absolute() => dir.join("weft"),
        Some(_) | None => state_dir.join("run"),
    }
}

/// Collects where each value came from.
struct Rows<'a> {
    from: &'a str,
    rows: Vec<(String, String, String)>,
}

impl Rows<'_> {
    fn take<T>(&mut self, key: &str, given: Option<T>, default: T, show: impl Fn(&T) -> String) -> T {
        let from = if given.is_some() { self.from } else { "default" };
        let value = given.unwrap_or(default);
        self.rows.push((key.to_owned(), show(&value), from.to_owned()));
        value
    }

    fn list(&mut self, key: &str, values: &[impl fmt::Display]) {
        let from = if values.is_empty() { "default" } else { self.from };
        let shown = values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        self.rows.push((key.to_owned(), shown, from.to_owned()));
    }

    fn period(&mut self, key: &str, given: Option<Period>, default: Duration) -> Duration {
        self.take(key, given.map(|period| period.0), default, |period| format_duration(*period))
    }

    fn count(&mut self, key: &str, given: Option<NonZeroU32>, default: u32) -> u32 {
        self.take(key, given.map(NonZeroU32::get), default, ToString::to_string)
    }

    fn size(&mut self, key: &str, given: Option<NonZeroU32>, default: usize) -> usize {
        let given = given.map(|count| usize::try_from(count.get()).unwrap_or(usize::MAX));
        self.take(key, given, default, ToString::to_string)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> Fault {
        Config::parse(text, "agent.yaml").unwrap_err().remove(0)
    }

    #[test]
    fn the_configuration_of_the_specification_is_read() {
        let text = "cluster: local\nnode: hostb\nservers: [hosta.example:7444]\n\
            listen: {tunnels: \"[::]:7443\", proxy: \"127.0.0.1:7480\"}\nadvertise: []\nworkers: 1\nworkloads:\n\
            \x20 - {service: charge, namespace: shop, ports: {http: \"127.0.0.1:8081\", admin: 8082}, uid: 1000,\n\
            \x20    upstreams: [{service: ledger, port: 80, listen: \"127.0.0.1:9001\"}]}\n";
        let config = Config::parse(text, "agent.yaml").unwrap();
        let workload = &config.workloads[0];
        assert_eq!(workload.ports["admin"].to_string(), "127.0.0.1:8082");
        assert_eq!((workload.upstreams[0].port.get(), workload.upstreams[0].listen.port()), (80, 9001));
        assert_eq!(config.limits.transport, TransportSettings::default());
        let row = config.origins().into_iter().find(|row| row.0 == "listen.metrics").unwrap();
        assert_eq!((row.1.as_str(), row.2.as_str()), ("127.0.0.1:7402", "default"));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_key() {
        for (text, path, id) in [
            ("listen: {proxy: \"0.0.0.0:7480\"}\n", "listen.proxy", code::NOT_LOOPBACK),
            ("advertise: [127.0.0.1]\n", "advertise", code::LOOPBACK_ADVERTISED),
            (
                "workloads: [{service: a, upstreams: [{service: b, port: 0, listen: 1}]}]\n",
                "workloads[0].upstreams[0].port",
                code::CONFIG_BAD_VALUE,
            ),
            ("workers: 65\n", "workers", code::CONFIG_BAD_VALUE),
            ("listen: {tunnel: \"[::]:1\"}\n", "listen.tunnel", code::CONFIG_UNKNOWN_KEY),
        ] {
            let fault = fault(text);
            assert_eq!((fault.path(), &*fault.code), (path, id.as_str()), "{text}: {fault:?}");
        }
    }
}
