//! What a server is told in `server.yaml`, with every default.
//!
//! [`Config::parse`] is the only door. Serde types stop in `raw.rs`. Unknown keys are faults with the nearest known key;
//! each value knows where it came from ([`Config::origins`]).

mod etcd;
mod raw;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use weft_api::{channel, duration::format_duration, fault::Fault, manifest::strict};
use weft_identity::{
    ca::{LONGEST_LEAF, LeafLifetimes},
    spiffe::TrustDomain,
};
use weft_policy::{code, limit::Rate, model::HostPort, name::ClusterName};

pub use self::etcd::{EtcdSecrets, EtcdStoreConfig, SecretError, StoreConfig};
use self::raw::{Period, RawConfig, RawLimits};
use crate::{refusal::catalogued, store::MAX_PAGE_ENTRIES};

/// Leaf lifetime by default (security.md 3.2, availability profile).
pub const LEAF_TTL: Duration = Duration::from_secs(24 * 3600);
/// Life of an intermediate by default (decisions.md, certificates).
pub const INTERMEDIATE_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// Life of a root by default (decisions.md, certificates).
pub const ROOT_TTL: Duration = Duration::from_secs(365 * 24 * 3600);
/// Longest life of a root (security.md 3.2: 10 years when it is kept off line).
const LONGEST_ROOT: Duration = Duration::from_secs(3_650 * 24 * 3600);
/// Shortest life of an intermediate, unless short lives are allowed: it is renewed at half of it.
const SHORTEST_INTERMEDIATE: Duration = Duration::from_secs(3600);
/// A leaf longer than this part of its issuer's life may be cut (security.md 3.2).
const LEAF_PART: u32 = 6;

const CONTROL: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 7444);
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7401);
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7402);

/// See the module.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's name; `local`.
    pub cluster: ClusterName,
    /// The trust domain. It cannot change after the first start.
    pub trust_domain: TrustDomain,
    /// Where the server listens.
    pub listen: Listen,
    /// What others are told to dial, in order; empty leaves it to the server.
    pub advertise: Vec<Advertised>,
    /// Where the mesh is kept.
    pub store: StoreConfig,
    /// The directory of the embedded store, the authority and what the server remembers.
    pub state_dir: PathBuf,
    /// How certificates are issued.
    pub identity: Issuing,
    /// Bounds (security.md 9.3).
    pub limits: Limits,
    /// The directory of `server.sock`.
    pub run_dir: PathBuf,
    /// Whether a workload with the server's own uid is accepted although other nodes are enrolled.
    pub allow_shared_uid: bool,
    /// A directory of manifests that are applied at each start.
    pub manifests: Option<PathBuf>,
    origins: Vec<(String, String, String)>,
}

/// Where the server listens. A port of 0 is drawn once and then kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Listen {
    /// gRPC over TLS: agents, people elsewhere. `[::]:7444`, which is IPv4 alone where IPv6 is off.
    pub control: SocketAddr,
    /// Plain, for people of this host; loopback only. `127.0.0.1:7401`.
    pub admin: SocketAddr,
    /// Plain, for Prometheus; loopback only. `127.0.0.1:7402`.
    pub metrics: SocketAddr,
}

/// The files of an upstream authority.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UpstreamFiles {
    /// The certificate under which the mesh signs, those above it, and the root.
    pub chain: PathBuf,
    /// The key of the first; for nobody else to read.
    pub key: PathBuf,
}

/// How certificates are issued.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Issuing {
    /// Life of an agent's and a workload's certificate; 24 h.
    pub leaf_ttl: Duration,
    /// Whether lives below 5 min are allowed.
    pub lifetimes: LeafLifetimes,
    /// Life of the intermediate; 30 days.
    pub intermediate_ttl: Duration,
    /// Life of the root; 1 year.
    pub root_ttl: Duration,
    /// The authority above this one, instead of a root of its own.
    pub upstream: Option<UpstreamFiles>,
}

impl Default for Issuing {
    fn default() -> Self {
        Self {
            leaf_ttl: LEAF_TTL,
            lifetimes: LeafLifetimes::Standard,
            intermediate_ttl: INTERMEDIATE_TTL,
            root_ttl: ROOT_TTL,
            upstream: None,
        }
    }
}

impl Issuing {
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut check = |key: &str, life: Duration, shortest: Duration, longest: Duration| {
            if !(shortest..=longest).contains(&life) {
                let [life, shortest, longest] = [life, shortest, longest].map(format_duration);
                let what = format!("{life} is not from {shortest} to {longest}");
                faults.push(catalogued(code::CONFIG_BAD_VALUE, what).at(format!("identity.{key}"), None));
            }
        };
        let shortest = match self.lifetimes {
            LeafLifetimes::Standard => SHORTEST_INTERMEDIATE,
            LeafLifetimes::AllowShort => Duration::ZERO,
        };
        check("leafTtl", self.leaf_ttl, self.lifetimes.shortest(), LONGEST_LEAF);
        // An issuer is replaced at half of its life, so what it signs has at least that much of it before it.
        let intermediate = shortest.max(self.leaf_ttl * 2);
        check("intermediateTtl", self.intermediate_ttl, intermediate, LONGEST_ROOT / 2);
        check("rootTtl", self.root_ttl, self.intermediate_ttl * 2, LONGEST_ROOT);
        faults
    }

    fn warnings(&self) -> Vec<Fault> {
        let mut warnings = Vec::new();
        if self.lifetimes == LeafLifetimes::AllowShort {
            let what = format!("certificates live {}", format_duration(self.leaf_ttl));
            warnings.push(catalogued(code::SHORT_LIFETIME, what));
        }
        let uncut = self.intermediate_ttl / LEAF_PART;
        if self.leaf_ttl > uncut {
            let what = format!(
                "certificates of more than {}, a sixth of identity.intermediateTtl, may be cut where the intermediate ends",
                format_duration(uncut)
            );
            warnings.push(catalogued(code::LIFETIME_REFUSED, what));
        }
        warnings
    }
}

/// Bounds of the server, each with its default.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Of the listeners.
    pub channel: channel::Limits,
    /// Calls and streams that one client may have open on all its connections together; 128, which is two connections
    /// with all their streams: the one that it has and the one that it moves to.
    pub streams_per_client: u32,
    /// Attempts to join from one address (IPv6: one /64): 1 a second, 5 at once.
    pub joins: Rate,
    /// Certificates asked for from one address: 500 a second, as many at once.
    pub issues_per_address: Rate,
    /// Certificates asked for by one identity: 100 a second, 1,000 at once, so that a node may start with that many.
    pub issues_per_node: Rate,
    /// Calls of one person or program that may change something, dry runs among them: 2 a second, 300 at once, so that a
    /// directory of manifests may be applied file by file. Not for the socket on the server's host: its owner has the store.
    pub changes: Rate,
    /// Requests that wait for a signature or its record; a further one is refused. 256.
    pub signing_queue: u32,
    /// Tokens that are neither used, revoked nor expired; 1,000.
    pub open_tokens: u32,
    /// Objects of one page of a list; 500, which is also the most (security.md 9.3).
    pub list_page: usize,
}

impl Limits {
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut refuse = |key: &str, what: String| {
            faults.push(catalogued(code::CONFIG_BAD_VALUE, what).at(format!("limits.{key}"), None));
        };
        let channel = &self.channel;
        for (key, time) in [
            ("handshakeTimeout", channel.handshake_timeout),
            ("anonymousAge", channel.anonymous_age),
            ("connectionAge", channel.connection_age),
        ] {
            if time.is_zero() {
                refuse(key, "nobody can be served in no time".to_owned());
            }
        }
        if self.list_page > MAX_PAGE_ENTRIES {
            refuse("listPage", format!("a page has at most {MAX_PAGE_ENTRIES} objects"));
        }
        faults
    }
}

/// A host that others are told to dial, with a port if it is not the listener's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Advertised {
    host: String,
    port: Option<u16>,
}

impl Advertised {
    /// What to dial when the control listener has `port`.
    #[must_use]
    pub fn with_port(&self, port: u16) -> HostPort {
        HostPort { host: self.host.clone(), port: self.port.unwrap_or(port) }
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

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

/// The text is neither a host, an address, nor either with a port.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is neither a host nor host:port")]
pub struct InvalidAdvertised(pub String);

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

    /// What is legal, and should be looked at by a person.
    #[must_use]
    pub fn warnings(&self) -> Vec<Fault> {
        self.identity.warnings()
    }

    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (key, address) in [("listen.admin", self.listen.admin), ("listen.metrics", self.listen.metrics)] {
            if !address.ip().is_loopback() {
                let what = format!("{address} is not an address of loopback");
                faults.push(catalogued(code::NOT_LOOPBACK, what).at(key, None));
            }
        }
        faults.extend(self.identity.faults());
        let only_loopback = !self.advertise.is_empty() && self.advertise.iter().all(Advertised::is_loopback);
        if only_loopback && !self.listen.control.ip().is_loopback() {
            let what = format!(
                "{} listens for others, who would be told {}",
                self.listen.control, self.advertise[0]
            );
            faults.push(catalogued(code::LOOPBACK_ADVERTISED, what).at("advertise", None));
        }
        faults.extend(self.store.faults());
        faults.extend(self.limits.faults());
        faults
    }
}

fn build(raw: RawConfig, rows: &mut Rows<'_>) -> Result<Config, Fault> {
    let local: ClusterName = "local".parse().expect("it is a DNS label");
    let cluster = rows.take("cluster", raw.cluster.map(|text| text.0), local, ToString::to_string);
    rows.given("trustDomain", &raw.trust_domain.0);
    let listen = Listen {
        control: rows.take("listen.control", raw.listen.control, CONTROL, ToString::to_string),
        admin: rows.take("listen.admin", raw.listen.admin, ADMIN, ToString::to_string),
        metrics: rows.take("listen.metrics", raw.listen.metrics, METRICS, ToString::to_string),
    };
    let advertise: Vec<_> = raw.advertise.into_iter().map(|text| text.0).collect();
    let shown: Vec<_> = advertise.iter().map(ToString::to_string).collect();
    rows.take("advertise", (!shown.is_empty()).then(|| shown.join(", ")), String::new(), Clone::clone);
    let (state_dir, store) = etcd::build(raw.store, &cluster, rows)?;
    let run_dir = default_run_dir(&state_dir);
    let short = rows.take(
        "identity.allowShortLifetimes",
        raw.identity.allow_short_lifetimes,
        false,
        ToString::to_string,
    );
    let leaf_ttl = rows.period("identity.leafTtl", raw.identity.leaf_ttl, LEAF_TTL);
    let lifetimes = if short { LeafLifetimes::AllowShort } else { LeafLifetimes::Standard };
    let intermediate_ttl =
        rows.period("identity.intermediateTtl", raw.identity.intermediate_ttl, INTERMEDIATE_TTL);
    let root_ttl = rows.period("identity.rootTtl", raw.identity.root_ttl, ROOT_TTL);
    let upstream = raw.identity.upstream.map(|upstream| {
        let (chain, key) = (upstream.disk.chain.0, upstream.disk.key.0);
        rows.given("identity.upstream.disk.chain", &chain.display());
        rows.given("identity.upstream.disk.key", &key.display());
        UpstreamFiles { chain, key }
    });
    let limits = limits(&raw.limits, rows);
    Ok(Config {
        cluster,
        trust_domain: raw.trust_domain.0,
        listen,
        advertise,
        identity: Issuing { leaf_ttl, lifetimes, intermediate_ttl, root_ttl, upstream },
        limits,
        run_dir: rows.take("runDir", raw.run_dir, run_dir, |path| path.display().to_string()),
        allow_shared_uid: rows.take("allowSharedUid", raw.allow_shared_uid, false, ToString::to_string),
        manifests: rows.take("manifests", raw.manifests.map(Some), None, |path| {
            path.as_ref().map_or_else(|| "none".to_owned(), |path| path.display().to_string())
        }),
        store,
        state_dir,
        origins: Vec::new(),
    })
}

fn limits(raw: &RawLimits, rows: &mut Rows<'_>) -> Limits {
    let own = channel::Limits::default();
    let channel = channel::Limits {
        handshake_timeout: rows.period(
            "limits.handshakeTimeout",
            raw.handshake_timeout,
            own.handshake_timeout,
        ),
        handshakes: rows.size("limits.handshakes", raw.handshakes, own.handshakes),
        handshakes_per_address: rows.size(
            "limits.handshakesPerAddress",
            raw.handshakes_per_address,
            own.handshakes_per_address,
        ),
        connections: rows.size("limits.connections", raw.connections, own.connections),
        connections_per_address: rows.size(
            "limits.connectionsPerAddress",
            raw.connections_per_address,
            own.connections_per_address,
        ),
        anonymous: rows.size("limits.anonymousConnections", raw.anonymous_connections, own.anonymous),
        anonymous_per_address: rows.size(
            "limits.anonymousPerAddress",
            raw.anonymous_per_address,
            own.anonymous_per_address,
        ),
        anonymous_age: rows.period("limits.anonymousAge", raw.anonymous_age, own.anonymous_age),
        streams_per_connection: rows
            .count("limits.streamsPerConnection", raw.streams_per_connection, own.streams_per_connection)
            .get(),
        connection_age: rows.period("limits.connectionAge", raw.connection_age, own.connection_age),
    };
    let issues = rows.count("limits.issuesPerSecond", raw.issues_per_second, 500);
    let per_node = rows.count("limits.issuesPerNode", raw.issues_per_node, 100);
    Limits {
        channel,
        streams_per_client: rows.count("limits.streamsPerClient", raw.streams_per_client, 128).get(),
        joins: Rate {
            per_second: rows.count("limits.joinsPerSecond", raw.joins_per_second, 1),
            burst: rows.count("limits.joinBurst", raw.join_burst, 5),
        },
        issues_per_address: Rate { per_second: issues, burst: issues },
        issues_per_node: Rate { per_second: per_node, burst: per_node.saturating_mul(TEN) },
        changes: Rate {
            per_second: rows.count("limits.changesPerSecond", raw.changes_per_second, 2),
            burst: rows.count("limits.changeBurst", raw.change_burst, 300),
        },
        signing_queue: rows.count("limits.signingQueue", raw.signing_queue, 256).get(),
        open_tokens: rows.count("limits.openTokens", raw.open_tokens, 1_000).get(),
        list_page: rows.size("limits.listPage", raw.list_page, MAX_PAGE_ENTRIES),
    }
}

/// How many seconds' worth of certificates a node may ask for at once, after a restart of everything on it.
const TEN: NonZeroU32 = NonZeroU32::new(10).expect("it is not zero");

/// `$XDG_RUNTIME_DIR/weft`, else `run` in the state directory (decisions.md, sockets).
fn default_run_dir(state_dir: &std::path::Path) -> PathBuf {
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

    fn given(&mut self, key: &str, value: &dyn fmt::Display) {
        self.rows.push((key.to_owned(), value.to_string(), self.from.to_owned()));
    }

    fn period(&mut self, key: &str, given: Option<Period>, default: Duration) -> Duration {
        self.take(key, given.map(|period| period.0), default, |period| format_duration(*period))
    }

    fn count(&mut self, key: &str, given: Option<NonZeroU32>, default: u32) -> NonZeroU32 {
        let default = NonZeroU32::new(default).unwrap_or(NonZeroU32::MIN);
        self.take(key, given, default, ToString::to_string)
    }

    fn size(&mut self, key: &str, given: Option<NonZeroU32>, default: usize) -> usize {
        let given = given.map(|count| usize::try_from(count.get()).unwrap_or(usize::MAX));
        self.take(key, given, default, ToString::to_string)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "trustDomain: corp.example\nstore: {embedded: {path: /var/lib/weft}}\n";

    fn fault(more: &str) -> Fault {
        Config::parse(&format!("{LEAST}{more}"), "server.yaml").unwrap_err().remove(0)
    }

    #[test]
    fn the_least_configuration_has_every_default() {
        let config = Config::parse(LEAST, "server.yaml").unwrap();
        assert_eq!(config.cluster.as_str(), "local");
        assert_eq!(config.listen, Listen { control: CONTROL, admin: ADMIN, metrics: METRICS });
        assert_eq!(config.identity.leaf_ttl, LEAF_TTL);
        assert_eq!(config.limits.channel, channel::Limits::default());
        assert!(config.warnings().is_empty());
    }

    #[test]
    fn the_configuration_of_the_specification_is_read() {
        let text = "cluster: local\ntrustDomain: corp.example\n\
            listen: {control: \"[::]:7444\", admin: \"127.0.0.1:7401\", metrics: \"127.0.0.1:7402\"}\n\
            advertise: [hostA.example]\nstore: {embedded: {path: /var/lib/weft}}\n\
            identity: {leafTtl: 24h, upstream: null}\nrunDir: /run/weft\nallowSharedUid: true\n\
            limits: {handshakes: 64, joinsPerSecond: 2}\n";
        let config = Config::parse(text, "server.yaml").unwrap();
        assert_eq!(config.advertise[0].with_port(7444).to_string(), "hostA.example:7444");
        assert_eq!(config.limits.channel.handshakes, 64);
        let origins = config.origins();
        let row = |key: &str| origins.iter().find(|row| row.0 == key).cloned().unwrap();
        assert_eq!(row("identity.leafTtl").2, "server.yaml");
        assert_eq!(row("limits.handshakes").1, "64");
        assert_eq!(row("limits.connections").2, "default");
    }

    #[test]
    fn an_unknown_key_names_the_nearest_and_a_missing_one_is_named() {
        let fault_at = |more| fault(more);
        assert_eq!(fault_at("advertize: []\n").fix, ["did you mean advertise?"]);
        assert_eq!(fault_at("listen: {contrl: \"[::]:1\"}\n").path(), "listen.contrl");
        let missing = Config::parse("cluster: local\n", "x").unwrap_err();
        assert_eq!(&*missing[0].code, code::CONFIG_MISSING.as_str());
    }

    #[test]
    fn values_that_cannot_be_are_refused_with_their_key() {
        for (more, path, id) in [
            ("listen: {metrics: \"0.0.0.0:7402\"}\n", "listen.metrics", code::NOT_LOOPBACK),
            ("identity: {leafTtl: 10s}\n", "identity.leafTtl", code::CONFIG_BAD_VALUE),
            ("identity: {leafTtl: 8h30}\n", "identity.leafTtl", code::CONFIG_BAD_VALUE),
            ("identity: {leafTtl: 169h}\n", "identity.leafTtl", code::CONFIG_BAD_VALUE),
            ("identity: {intermediateTtl: 47h}\n", "identity.intermediateTtl", code::CONFIG_BAD_VALUE),
            (
                "identity: {leafTtl: 5m, intermediateTtl: 59m}\n",
                "identity.intermediateTtl",
                code::CONFIG_BAD_VALUE,
            ),
            ("identity: {rootTtl: 1439h}\n", "identity.rootTtl", code::CONFIG_BAD_VALUE),
            ("identity: {rootTtl: 87601h}\n", "identity.rootTtl", code::CONFIG_BAD_VALUE),
            (
                "identity: {upstream: {disk: {chain: chain.pem, key: file:/key.pem}}}\n",
                "identity.upstream.disk.chain",
                code::CONFIG_BAD_VALUE,
            ),
            (
                "identity: {upstream: {disk: {chain: file:/chain.pem, key: file:key.pem}}}\n",
                "identity.upstream.disk.key",
                code::CONFIG_BAD_VALUE,
            ),
            ("advertise: [127.0.0.1, localhost]\n", "advertise", code::LOOPBACK_ADVERTISED),
            ("advertise: [\"a b\"]\n", "advertise[0]", code::CONFIG_BAD_VALUE),
            ("limits: {handshakes: 0}\n", "limits.handshakes", code::CONFIG_BAD_VALUE),
            ("limits: {connectionAge: 0s}\n", "limits.connectionAge", code::CONFIG_BAD_VALUE),
            ("limits: {listPage: 501}\n", "limits.listPage", code::CONFIG_BAD_VALUE),
        ] {
            let fault = fault(more);
            assert_eq!((fault.path(), &*fault.code), (path, id.as_str()), "{more}: {fault:?}");
        }
    }

    #[test]
    fn short_lives_need_to_be_allowed_and_warn() {
        let text = format!("{LEAST}identity: {{leafTtl: 10s, allowShortLifetimes: true}}\n");
        let config = Config::parse(&text, "x").unwrap();
        assert_eq!(&*config.warnings()[0].code, code::SHORT_LIFETIME.as_str());
    }

    #[test]
    fn an_upstream_authority_is_two_files() {
        let text = format!(
            "{LEAST}identity: {{upstream: {{disk: {{chain: file:/a/chain.pem, key: file:/a/key.pem}}}}}}\n"
        );
        let files = Config::parse(&text, "x").unwrap().identity.upstream.unwrap();
        assert_eq!(
            (files.chain.as_path(), files.key.as_path()),
            ("/a/chain.pem".as_ref(), "/a/key.pem".as_ref())
        );
    }

    #[test]
    fn a_certificate_longer_than_a_sixth_of_its_issuers_life_warns() {
        let warnings = |lives: &str| {
            Config::parse(&format!("{LEAST}identity: {{{lives}}}\n"), "x").unwrap().warnings().len()
        };
        assert_eq!(warnings("leafTtl: 1h, intermediateTtl: 6h, rootTtl: 12h"), 0);
        assert_eq!(warnings("leafTtl: 1h, intermediateTtl: 5h, rootTtl: 12h"), 1);
    }

    #[test]
    fn an_advertised_host_may_have_a_port() {
        for (text, dialled) in [
            ("hosta.example", "hosta.example:7444"),
            ("hosta.example:9", "hosta.example:9"),
            ("10.0.0.1", "10.0.0.1:7444"),
            ("2001:db8::1", "[2001:db8::1]:7444"),
            ("[2001:db8::1]", "[2001:db8::1]:7444"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
        ] {
            let advertised: Advertised = text.parse().unwrap();
            assert_eq!(advertised.with_port(7444).to_string(), dialled, "{text}");
        }
    }
}
