//! What `weft up` was asked for, kept beside the mesh, and the two configuration files that follow from it.
//!
//! A flag that is not given keeps its value: what was said once holds until something else is said. What was asked is
//! written down only once it has started, so a failed attempt changes nothing.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::info;
use weft_identity::spiffe::dns_label;

use super::background;
use crate::{args::groups::UpArgs, error::CliError};

/// The file of the flags in the state directory.
const FLAGS: &str = "up.json";

/// The flags of `weft up` that hold until others are given.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Flags {
    listen: Option<IpAddr>,
    advertise: Vec<String>,
    port_base: Option<u16>,
    pub(crate) allow_shared_uid: bool,
}

impl Flags {
    /// What the mesh in `state` was last started with; the defaults when it never was.
    pub(crate) fn kept(state: &Path) -> Result<Self, CliError> {
        let path = state.join(FLAGS);
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| CliError::file(&path, &e)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(CliError::file(&path, &error)),
        }
    }

    /// The same under the flags that are given.
    pub(crate) fn with(&self, args: &UpArgs) -> Self {
        let mut flags = self.clone();
        if let Some(listen) = args.listen {
            flags.listen = Some(listen);
            if listen.is_loopback() {
                // Nobody outside reaches loopback, whatever name leads here.
                flags.advertise.clear();
            }
        }
        if !args.advertise.is_empty() {
            flags.advertise.clone_from(&args.advertise);
        }
        flags.port_base = args.port_base.or(flags.port_base);
        flags.allow_shared_uid = args.allow_shared_uid.unwrap_or(flags.allow_shared_uid);
        flags
    }

    /// What differs in `new`, one phrase a flag.
    pub(crate) fn changes(&self, new: &Self) -> Vec<String> {
        let rows = self.rows().into_iter().zip(new.rows());
        let differing = rows.filter(|(old, new)| old != new);
        differing.map(|((name, old), (_, new))| format!("{name} {old} → {new}")).collect()
    }

    fn rows(&self) -> [(&'static str, String); 4] {
        let none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
        let port_base = self.port_base.map_or_else(|| "standard".to_owned(), |port| port.to_string());
        [
            ("listen", self.ip().to_string()),
            ("advertise", none(self.advertise.join(","))),
            ("port-base", port_base),
            ("allow-shared-uid", self.allow_shared_uid.to_string()),
        ]
    }

    /// Writes the flags down.
    pub(crate) fn keep(&self, state: &Path) -> Result<(), CliError> {
        let text = serde_json::to_vec_pretty(self).map_err(CliError::internal)?;
        background::write_private(&state.join(FLAGS), &text)
    }

    fn ip(&self) -> IpAddr {
        self.listen.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    fn port(&self, offset: u16, standard: u16) -> u16 {
        self.port_base.map_or(standard, |base| base.saturating_add(offset))
    }
}

/// The values of `up`, as the two configuration files say them.
pub(crate) struct Settings {
    pub(crate) trust_domain: String,
    node: String,
    pub(crate) control: String,
    server_yaml: String,
    agent_yaml: String,
}

impl Settings {
    /// The files for `flags`; the trust domain is fixed by the first start.
    pub(crate) fn new(flags: &Flags, trust_domain: Option<&str>, state: &Path) -> Result<Self, CliError> {
        let host =
            nix::unistd::gethostname().map_err(|e| CliError::internal(format!("no host name: {e}")))?;
        let label = dns_label(&host.to_string_lossy());
        let node = fixed(state, "node", &label)?;
        let wanted = trust_domain.map_or_else(|| format!("{label}.weft.internal"), str::to_owned);
        let kept = fixed(state, "trust-domain", &wanted)?;
        if trust_domain.is_some_and(|given| *given != kept) {
            return Err(CliError::usage(
                format!("the trust domain is {kept} since the first start and cannot change"),
                "weft up --state-dir NEW_DIR --trust-domain …",
            ));
        }
        let control = SocketAddr::new(flags.ip(), flags.port(1, 7444)).to_string();
        let server_yaml = server_yaml(flags, state, &kept, &control);
        let agent_yaml = agent_yaml(flags, state, &node);
        Ok(Self { trust_domain: kept, node, control, server_yaml, agent_yaml })
    }

    /// Writes both files; tells whether either changed.
    pub(crate) fn write(&self, state: &Path) -> Result<bool, CliError> {
        let mut changed = false;
        for (name, text) in [("server.yaml", &self.server_yaml), ("agent.yaml", &self.agent_yaml)] {
            let path = state.join(name);
            if std::fs::read_to_string(&path).is_ok_and(|old| old == *text) {
                continue;
            }
            changed = true;
            background::write_private(&path, text.as_bytes())?;
        }
        info!(trust_domain = %self.trust_domain, node = %self.node, changed, "configuration written");
        Ok(changed)
    }
}

/// A value that the first start fixes.
pub(crate) fn fixed(state: &Path, name: &str, wanted: &str) -> Result<String, CliError> {
    let path = state.join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Ok(_) | Err(_) => {
            background::write_private(&path, wanted.as_bytes())?;
            Ok(wanted.to_owned())
        }
    }
}

fn server_yaml(flags: &Flags, state: &Path, trust_domain: &str, control: &str) -> String {
    let mut text = String::from("# Written by `weft up`, which overwrites it.\n");
    let advertise: Vec<_> = flags.advertise.iter().map(|a| host_of(a)).collect();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "cluster: local\ntrustDomain: {trust_domain}\n\
         listen: {{control: \"{control}\", admin: \"127.0.0.1:{}\", metrics: \"127.0.0.1:{}\"}}\n\
         advertise: {}\nstore: {{embedded: {{path: {}}}}}\nrunDir: {}\nallowSharedUid: {}\n",
        flags.port(2, 7401),
        flags.port(3, 7402),
        json!(advertise),
        json!(state.join("server")),
        json!(state.join("run")),
        flags.allow_shared_uid,
    );
    text
}

fn agent_yaml(flags: &Flags, state: &Path, node: &str) -> String {
    let ip = flags.ip();
    let tunnels = SocketAddr::new(ip, flags.port(0, 7443));
    let advertise: Vec<_> =
        flags.advertise.iter().map(|a| super::agent::with_port(&host_of(a), tunnels.port())).collect();
    let control = SocketAddr::new(
        if ip.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { ip },
        flags.port(1, 7444),
    );
    let mut text = String::from("# Written by `weft up`, which overwrites it.\n");
    // The agent's own admin and metrics listeners take the next free loopback ports (decisions.md, one host).
    let _ = write!(
        text,
        "cluster: local\nnode: {node}\nservers: [\"{control}\"]\n\
         listen: {{tunnels: \"{tunnels}\", proxy: \"127.0.0.1:{}\", admin: \"127.0.0.1:0\", metrics: \"127.0.0.1:0\"}}\n\
         advertise: {}\nstateDir: {}\nrunDir: {}\n",
        flags.port(4, 7480),
        json!(advertise),
        json!(state.join("agent")),
        json!(state.join("run")),
    );
    text
}

/// The host of `host`, `host:port`, `[v6]` or `[v6]:port`.
fn host_of(address: &str) -> String {
    if let Ok(socket) = address.parse::<SocketAddr>() {
        return socket.ip().to_string();
    }
    match address.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() && !host.contains(':') => host.to_owned(),
        Some(_) | None => address.trim_matches(['[', ']']).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &str) -> UpArgs {
        let Command::Up(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("{line}");
        };
        args
    }

    #[test]
    fn the_host_of_an_advertised_address() {
        for (given, host) in [
            ("hosta.example", "hosta.example"),
            ("hosta.example:7443", "hosta.example"),
            ("10.0.0.1:7443", "10.0.0.1"),
            ("[2001:db8::1]:7443", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
        ] {
            assert_eq!(host_of(given), host, "{given}");
        }
    }

    #[test]
    fn a_flag_that_is_not_given_keeps_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let first = Flags::default()
            .with(&args("weft up --listen 0.0.0.0 --advertise hosta --port-base 9000 --allow-shared-uid"));
        first.keep(dir.path()).unwrap();

        let kept = Flags::kept(dir.path()).unwrap();
        assert_eq!(kept, first);
        assert_eq!(kept.with(&args("weft up")), first);
        let other = kept.with(&args("weft up --advertise hostb --allow-shared-uid=false"));
        assert_eq!(kept.changes(&other), ["advertise hosta → hostb", "allow-shared-uid true → false"]);
        let closed = kept.with(&args("weft up --listen 127.0.0.1"));
        assert_eq!(kept.changes(&closed), ["listen 0.0.0.0 → 127.0.0.1", "advertise hosta → none"]);
    }
}
