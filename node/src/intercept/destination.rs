//! Where a program asks to go, as it said it: a name, an address, or the upstream its listener stands for.
//!
//! Pure. Owns the grammar of hosts and ports in requests. What a name means (a service, something outside, nothing) is
//! the snapshot's to say.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
};

use weft_policy::name::{ServiceName, is_mesh_suffix};

/// The longest host name (RFC 1035 §3.1, as text).
const MAX_HOST_BYTES: usize = 253;
/// The suffix whose port, where it is the proxy's own, says nothing about the service's (decisions.md, ports).
const LOCALHOST_SUFFIX: &str = ".weft.localhost";

/// Where a program asks to go.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Destination {
    /// A host by name, of the mesh or not.
    Named {
        /// The name, in lower case.
        host: String,
        /// The port; `None` means the service's default port.
        port: Option<NonZeroU16>,
    },
    /// What the listener was declared for.
    Upstream {
        /// The service.
        service: ServiceName,
        /// Its port.
        port: NonZeroU16,
    },
    /// An address, canonical: never IPv4 in IPv6, the port never 0.
    Address(SocketAddr),
}

/// The text is no host that a request may name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a host name, IPv4 or [IPv6] address with a port from 1 to 65535")]
pub struct InvalidHost;

impl Destination {
    /// An address and port; `None` for port 0.
    #[must_use]
    pub fn address(ip: IpAddr, port: u16) -> Option<Self> {
        (port != 0).then(|| Self::Address(SocketAddr::new(ip.to_canonical(), port)))
    }

    /// A host by name. Text that is an IPv4 address, or an IPv6 one without brackets, is that address.
    ///
    /// # Errors
    ///
    /// [`InvalidHost`] for characters, labels or lengths that no host has, and for an address without a port.
    pub fn named(host: &str, port: Option<NonZeroU16>) -> Result<Self, InvalidHost> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            let address = port.and_then(|port| Self::address(ip, port.get()));
            return address.ok_or(InvalidHost);
        }
        let name = host.strip_suffix('.').unwrap_or(host);
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let label = |label: &str| !label.is_empty() && label.bytes().all(legal);
        if name.len() > MAX_HOST_BYTES || !name.split('.').all(label) {
            return Err(InvalidHost);
        }
        Ok(Self::Named { host: host.to_ascii_lowercase(), port })
    }

    /// Reads `host`, `host:port` or `[IPv6]:port`, as in a CONNECT target, a URL or a Host header.
    ///
    /// Where no port is given it is `default`.
    ///
    /// # Errors
    ///
    /// [`InvalidHost`]; user information is no part of the grammar.
    pub fn parse(authority: &str, default: Option<NonZeroU16>) -> Result<Self, InvalidHost> {
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (literal, after) = rest.split_once(']').ok_or(InvalidHost)?;
                literal.parse::<Ipv6Addr>().map_err(|_| InvalidHost)?;
                match after.strip_prefix(':') {
                    Some(port) => (literal, Some(port)),
                    None if after.is_empty() => (literal, None),
                    None => return Err(InvalidHost),
                }
            }
            None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            Some(text) => Some(port_number(text)?),
            None => default,
        };
        Self::named(host, port)
    }

    /// Forgets a port that is the proxy's own: `charge.weft.localhost:7480` says where the proxy is, not the service.
    #[must_use]
    pub fn without_own_port(self, own: &[u16]) -> Self {
        match self {
            Self::Named { host, port: Some(port) }
                if own.contains(&port.get()) && bare(&host).ends_with(LOCALHOST_SUFFIX) =>
            {
                Self::Named { host, port: None }
            }
            Self::Named { .. } | Self::Upstream { .. } | Self::Address(_) => self,
        }
    }

    /// Whether the name can only be the mesh's, so that no web site can have it.
    #[must_use]
    pub fn is_mesh_only(&self) -> bool {
        match self {
            Self::Named { host, .. } => is_mesh_suffix(host),
            Self::Upstream { .. } => true,
            Self::Address(_) => false,
        }
    }
}

fn bare(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

fn port_number(text: &str) -> Result<NonZeroU16, InvalidHost> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(InvalidHost);
    }
    text.parse().map_err(|_| InvalidHost)
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named { host, port: Some(port) } => write!(f, "{host}:{port}"),
            Self::Named { host, port: None } => f.write_str(host),
            Self::Upstream { service, port } => write!(f, "{service}:{port}"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HTTP: Option<NonZeroU16> = NonZeroU16::new(80);

    fn read(text: &str) -> Result<String, InvalidHost> {
        Destination::parse(text, HTTP).map(|found| found.to_string())
    }

    #[test]
    fn hosts_with_and_without_port_are_read() {
        assert_eq!(read("Charge.Shop").unwrap(), "charge.shop:80");
        assert_eq!(read("charge.shop.:8080").unwrap(), "charge.shop.:8080");
        assert_eq!(read("10.0.0.1").unwrap(), "10.0.0.1:80");
        assert_eq!(read("[::1]:443").unwrap(), "[::1]:443");
        assert_eq!(read("[::ffff:10.0.0.1]").unwrap(), "10.0.0.1:80");
        assert_eq!(read("my_host").unwrap(), "my_host:80");
    }

    #[test]
    fn http_04_hosts_that_could_be_read_in_two_ways_are_refused() {
        for text in [
            "",
            ":80",
            "a:",
            "a:0",
            "a:65536",
            "a:+80",
            "a: 80",
            "a:80:80",
            "user@a",
            "a b",
            "a,b",
            "a/b",
            "a..b",
            ".a",
            "[::1",
            "[::1]80",
            "[a]",
            "[10.0.0.1]",
            "[::1%eth0]:80",
            "a\0b",
            "a#b",
            "a?b",
            "a\\b",
            "a%2eb",
            "é",
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
        assert!(read(&"a.".repeat(127)).is_ok());
        assert!(read(&"a.".repeat(128)).is_err());
        assert!(Destination::parse("10.0.0.1", None).is_err());
    }

    #[test]
    fn the_proxys_own_port_says_nothing_about_the_service() {
        let without = |text: &str| {
            Destination::parse(text, HTTP).unwrap().without_own_port(&[7_480, 40_001]).to_string()
        };
        assert_eq!(without("charge.weft.localhost:7480"), "charge.weft.localhost");
        assert_eq!(without("charge.shop.weft.localhost.:40001"), "charge.shop.weft.localhost.");
        assert_eq!(without("charge.weft.localhost:8080"), "charge.weft.localhost:8080");
        assert_eq!(without("charge.shop:7480"), "charge.shop:7480");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = Destination::parse(&text, HTTP);
        }
    }
}
