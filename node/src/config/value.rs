//! The scalar values of `agent.yaml`: text that becomes a type at the border.

use std::{
    fmt,
    marker::PhantomData,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};
use weft_api::duration::{format_duration, parse_duration};
use weft_identity::spiffe::dns_label;
use weft_policy::{
    model::HostPort,
    name::{Namespace, NodeName, ObjectName},
};

/// A value that the file gives as text or number.
#[derive(Clone, Debug)]
pub(super) struct Given<T>(pub(super) T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Scalar(PhantomData))
    }
}

struct Scalar<T>(PhantomData<T>);

impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Scalar<T> {
    type Value = Given<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a number")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Given<T>, E> {
        text.parse().map(Given).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Given<T>, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Given<T>, E> {
        self.visit_str(&number.to_string())
    }
}

/// The text is not a value of its kind.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct InvalidValue {
    text: String,
    expected: &'static str,
}

impl InvalidValue {
    fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.chars().take(80).collect(), expected }
    }
}

/// A number of bytes, such as `2MiB`, `64KiB` or `4096`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl FromStr for ByteSize {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || InvalidValue::new(text, "a size: write bytes, or a number with KiB, MiB or GiB");
        let unit = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
        let (digits, bytes) = unit.unwrap_or((text, 1));
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(fail());
        }
        let number: u64 = digits.parse().map_err(|_| fail())?;
        number.checked_mul(bytes).map(Self).ok_or_else(fail)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.iter().find(|(_, bytes)| self.0 >= *bytes && self.0.is_multiple_of(*bytes));
        match whole {
            Some((unit, bytes)) => write!(f, "{}{unit}", self.0 / bytes),
            None => self.0.fmt(f),
        }
    }
}

/// A period, such as `30s` or `250ms`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Period(pub Duration);

impl FromStr for Period {
    type Err = weft_api::duration::InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_duration(text).map(Self)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_duration(self.0))
    }
}

/// A name of a node; what a host calls itself is folded to one (decisions.md, names).
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Node(pub(super) NodeName);

impl FromStr for Node {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |_| InvalidValue::new(text, "a node name");
        if text.is_empty() {
            return Err(InvalidValue::new(text, "a node name"));
        }
        dns_label(text).parse().map(Self).map_err(fail)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An address and port, canonical: never IPv4 in IPv6. A bare port means 127.0.0.1 (decisions.md, ports).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Address(pub(super) SocketAddr);

impl FromStr for Address {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(port) = text.parse::<u16>() {
            return Ok(Self((Ipv4Addr::LOCALHOST, port).into()));
        }
        let address: SocketAddr =
            text.parse().map_err(|_| InvalidValue::new(text, "a port, ip:port or [IPv6]:port"))?;
        Ok(Self(SocketAddr::new(address.ip().to_canonical(), address.port())))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A host that peers dial, with a port if it is not the one that tunnels are taken on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Advertised {
    host: String,
    port: Option<NonZeroU16>,
}

impl Advertised {
    /// What to dial when tunnels are taken on `port`.
    #[must_use]
    pub fn with_port(&self, port: u16) -> HostPort {
        HostPort { host: self.host.clone(), port: self.port.map_or(port, NonZeroU16::get) }
    }

    /// Whether only this host can reach it.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let name = self.host.to_ascii_lowercase();
        let name = name.trim_end_matches('.');
        let of_localhost = name == "localhost" || name.ends_with(".localhost");
        of_localhost || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl FromStr for Advertised {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || InvalidValue::new(text, "a host, host:port, address or [IPv6]:port");
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
            if ip.is_unspecified() {
                return Err(InvalidValue::new(text, "an address that others can dial"));
            }
            return Ok(Self { host: ip.to_string(), port: None });
        }
        if let Ok(HostPort { host, port }) = text.parse() {
            return Ok(Self { host, port: NonZeroU16::new(port) });
        }
        // A name without a port is one that would be good with any.
        let HostPort { host, .. } = format!("{text}:1").parse().map_err(|_| fail())?;
        Ok(Self { host, port: None })
    }
}

impl fmt::Display for Advertised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => self.with_port(port.get()).fmt(f),
            None => f.write_str(&self.host),
        }
    }
}

/// Where access-log lines go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum LogTarget {
    Off,
    Path(PathBuf),
}

impl FromStr for LogTarget {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Err(InvalidValue::new(text, "off, - for standard output, or a path")),
            "off" => Ok(Self::Off),
            path => Ok(Self::Path(path.into())),
        }
    }
}

impl fmt::Display for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// A directory, not empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Directory(pub(super) PathBuf);

impl FromStr for Directory {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.contains('\0') {
            return Err(InvalidValue::new(text, "a directory"));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// A service by name: `ledger`, or `ledger.bank` in another namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct ServiceRef {
    pub(super) name: ObjectName,
    pub(super) namespace: Option<Namespace>,
}

impl FromStr for ServiceRef {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |_| InvalidValue::new(text, "a service: name, or name.namespace");
        let (name, namespace) = text.split_once('.').map_or((text, None), |(name, ns)| (name, Some(ns)));
        let namespace = namespace.map(Namespace::from_str).transpose().map_err(fail)?;
        Ok(Self { name: name.parse().map_err(fail)?, namespace })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown<T: FromStr<Err: fmt::Debug> + fmt::Display>(text: &str) -> String {
        text.parse::<T>().unwrap().to_string()
    }

    #[test]
    fn sizes_have_binary_units() {
        for (text, again) in
            [("2MiB", "2MiB"), ("4096", "4KiB"), ("1000", "1000"), ("0", "0"), ("1GiB", "1GiB")]
        {
            assert_eq!(shown::<ByteSize>(text), again);
        }
        for text in ["", "MiB", "1.5MiB", "-1", "2MB", "2 MiB", "99999999999GiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_canonical_and_a_port_is_of_loopback() {
        assert_eq!(shown::<Address>("8081"), "127.0.0.1:8081");
        assert_eq!(shown::<Address>("[::ffff:10.0.0.1]:80"), "10.0.0.1:80");
        assert_eq!(shown::<Address>("[::]:7443"), "[::]:7443");
        for text in ["", "host:80", "127.0.0.1", "65536", "::1:80"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_host_is_advertised_with_or_without_a_port() {
        let dialled = |text: &str| text.parse::<Advertised>().unwrap().with_port(7_443).to_string();
        assert_eq!(dialled("hostA.example"), "hostA.example:7443");
        assert_eq!(dialled("hostA.example:9000"), "hostA.example:9000");
        assert_eq!(dialled("::ffff:10.0.0.1"), "10.0.0.1:7443");
        assert_eq!(dialled("[fd00::1]:9000"), "[fd00::1]:9000");
        for text in ["", "a b", "a:0", "0.0.0.0", "[::]"] {
            assert!(text.parse::<Advertised>().is_err(), "{text}");
        }
        for text in ["localhost", "127.0.0.1:1", "::1", "a.localhost."] {
            assert!(text.parse::<Advertised>().unwrap().is_loopback(), "{text}");
        }
    }

    #[test]
    fn a_host_name_is_folded_to_a_node_name() {
        assert_eq!(shown::<Node>("hostB"), "hostb");
        assert_eq!(shown::<Node>("web_1.example"), "web-1-example");
        assert!("".parse::<Node>().is_err());
    }

    #[test]
    fn a_service_may_name_its_namespace() {
        let read =
            |text: &str| text.parse::<ServiceRef>().map(|found| found.namespace.map(|ns| ns.to_string()));
        assert_eq!(read("ledger").unwrap(), None);
        assert_eq!(read("ledger.bank").unwrap(), Some("bank".to_owned()));
        assert!(read("ledger.bank.svc").is_err() && read("").is_err());
    }
}
