//! Several servers over one store: who else serves, and which agents are connected there.
//!
//! ```text
//! present/servers/<instance>   where agents reach it
//! present/agents/<node>        where that agent is connected, and at which boot
//! ```
//!
//! Both hang on one lease of the server that writes them, so they vanish when it falls silent (architecture.md 13). Nothing
//! durable hangs on it: an endpoint whose agent is not seen anywhere is in doubt after a minute, not gone
//! ([`crate::liveness`]). Servers over an embedded store are alone and write nothing.
//!
//! [`announce`] writes, [`watch`] reads, [`signing`] has others sign while this one is new, [`balance`] decides how many agents go when another server joins (pure).

pub mod announce;
pub mod balance;
pub mod signing;
pub mod trust;
pub mod watch;

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weft_policy::{model::HostPort, name::NodeName};

use crate::{
    layout,
    store::{Key, Prefix},
};

/// How long a silent server counts as there. Its agents notice sooner, by their connections; others need to know only
/// before the minute is over in which silence means nothing.
pub const LEASE: Duration = Duration::from_secs(15);

/// A server that is there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LiveServer {
    /// Its name, the last segment of its SPIFFE ID.
    pub instance: String,
    /// Where agents reach it.
    pub addresses: Vec<HostPort>,
    /// The version it runs.
    pub version: String,
    /// Whether it signs, for others as well.
    pub signs: bool,
}

/// Where an agent is connected.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seat {
    /// The server.
    pub server: String,
    /// The agent's boot number.
    pub boot: u64,
    /// The sequence of the newest trust bundle that it has said to have in force.
    pub bundle: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawServer {
    addresses: Vec<String>,
    version: String,
    signs: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawSeat {
    server: String,
    boot: u64,
    bundle: u64,
}

fn encode(raw: &impl Serialize) -> Bytes {
    serde_json::to_vec(raw).expect("texts, numbers and lists always serialise").into()
}

impl LiveServer {
    fn record(&self) -> Bytes {
        let addresses = self.addresses.iter().map(ToString::to_string).collect();
        encode(&RawServer { addresses, version: self.version.clone(), signs: self.signs })
    }

    /// Reads a record. `None` when it is none: it counts as nobody.
    fn read(instance: &str, record: &[u8]) -> Option<Self> {
        let raw: RawServer = serde_json::from_slice(record).ok()?;
        let addresses = raw.addresses.iter().map(|text| text.parse().ok()).collect::<Option<_>>()?;
        Some(Self { instance: instance.to_owned(), addresses, version: raw.version, signs: raw.signs })
    }
}

impl Seat {
    fn record(&self) -> Bytes {
        encode(&RawSeat { server: self.server.clone(), boot: self.boot, bundle: self.bundle })
    }

    fn read(record: &[u8]) -> Option<Self> {
        let RawSeat { server, boot, bundle } = serde_json::from_slice(record).ok()?;
        Some(Self { server, boot, bundle })
    }
}

/// What a key of this part names.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Place {
    Server(String),
    Agent(NodeName),
}

fn place(key: &Key) -> Option<Place> {
    let rest = key.as_str().strip_prefix(layout::PRESENT)?;
    match rest.split_once('/')? {
        ("servers", instance) => Some(Place::Server(instance.to_owned())),
        ("agents", node) => node.parse().ok().map(Place::Agent),
        _ => None,
    }
}

fn everything() -> Prefix {
    layout::present()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_what_is_none_counts_as_nobody() {
        let server = LiveServer {
            instance: "s-1".to_owned(),
            addresses: vec!["[2001:db8::1]:7444".parse().unwrap(), "hosta.example:7444".parse().unwrap()],
            version: "0.1.0".to_owned(),
            signs: true,
        };
        assert_eq!(LiveServer::read("s-1", &server.record()), Some(server));
        let seat = Seat { server: "s-1".to_owned(), boot: 7, bundle: 3 };
        assert_eq!(Seat::read(&seat.record()), Some(seat));
        for broken in
            ["", "{}", r#"{"server":"s-1","boot":7}"#, r#"{"server":"s-1","boot":7,"bundle":3,"more":1}"#]
        {
            assert_eq!(Seat::read(broken.as_bytes()), None, "{broken}");
        }
        assert_eq!(LiveServer::read("s-1", br#"{"addresses":["nowhere"],"version":"","signs":true}"#), None);
    }

    #[test]
    fn keys_are_read_back_as_what_they_name() {
        let node: NodeName = "hosta".parse().unwrap();
        assert_eq!(place(&layout::present_agent(&node)), Some(Place::Agent(node)));
        assert_eq!(place(&layout::present_server("s-1")), Some(Place::Server("s-1".to_owned())));
        assert_eq!(place(&"present/newer/x".parse().unwrap()), None);
        assert_eq!(place(&layout::guard()), None);
    }
}
