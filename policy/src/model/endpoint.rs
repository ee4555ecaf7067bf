//! Endpoints: one workload of one service as a caller's agent sees it.

use std::{collections::BTreeMap, fmt, net::SocketAddr, str::FromStr};

use weft_identity::spiffe::SpiffeId;

use crate::name::{EndpointLabel, NodeName, ObjectName, ServiceName};

/// A host name or address with a port, as advertised: resolved by whoever dials.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct HostPort {
    /// A DNS name or an IP address without brackets.
    pub host: String,
    /// The port, not 0.
    pub port: u16,
}

/// The text is not `host:port`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not host:port")]
pub struct InvalidHostPort(pub String);

impl FromStr for HostPort {
    type Err = InvalidHostPort;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || InvalidHostPort(text.to_owned());
        if let Ok(address) = text.parse::<SocketAddr>() {
            if address.port() == 0 {
                return Err(fail());
            }
            return Ok(address.into());
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(fail)?;
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
        if host.is_empty() || host.len() > 253 || !host.bytes().all(legal) {
            return Err(fail());
        }
        match port.parse::<u16>() {
            Ok(port) if port != 0 => Ok(Self { host: host.to_owned(), port }),
            Ok(_) | Err(_) => Err(fail()),
        }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_canonical().to_string(), port: address.port() }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Where an endpoint's agent takes tunnels, in order of preference; 1 to 8.
pub type TunnelAddresses = Vec<HostPort>;

/// Where something runs, for balancing near first.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Locality {
    /// Such as `eu-west`; empty when unknown.
    pub region: String,
    /// Such as `eu-west-1a`; empty when unknown.
    pub zone: String,
}

/// Whether an endpoint's owner has confirmed it since the server (re)started (decisions.md, endpoints and leases).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EndpointState {
    /// Its agent is connected and has registered it.
    Confirmed,
    /// Known from before, not confirmed: dialled last.
    Unconfirmed,
}

/// One workload of one service, as derived by the registry for the agents that call it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// The service it serves.
    pub service: ServiceName,
    /// The name of its Workload object.
    pub workload: ObjectName,
    /// The node that owns it.
    pub node: NodeName,
    /// Exactly whom the handshake must prove.
    pub identity: SpiffeId,
    /// What stands in the SNI and the stream header.
    pub label: EndpointLabel,
    /// Where its agent takes tunnels.
    pub addresses: TunnelAddresses,
    /// Relative share of new connections, 0 to 10,000; 0 takes none.
    pub weight: u32,
    /// Where it runs.
    pub locality: Locality,
    /// Labels from its enrollment.
    pub labels: BTreeMap<String, String>,
    /// The boot number of its agent; peers close tunnels to an older one.
    pub boot: u64,
    /// Whether its owner has confirmed it.
    pub state: EndpointState,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_and_port_reads_as_it_is_written() {
        for text in ["hosta.example:7443", "192.0.2.1:1", "[2001:db8::1]:65535"] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
        }
        let mapped: HostPort = "[::ffff:192.0.2.1]:7443".parse().unwrap();
        assert_eq!(mapped.to_string(), "192.0.2.1:7443", "addresses are canonical");
    }

    #[test]
    fn what_nobody_could_dial_is_refused() {
        for bad in [
            "",
            "host",
            "host:",
            ":7443",
            "host:0",
            "host:65536",
            "192.0.2.1:0",
            "ho st:1",
            "2001:db8::1:1",
            "a/b:1",
        ] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad:?}");
        }
        assert!(format!("{}:1", "a".repeat(254)).parse::<HostPort>().is_err());
    }
}
