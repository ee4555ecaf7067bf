//! `agent.yaml` as it is written. Nothing here leaves [`crate::config`].

use std::{
    collections::BTreeMap, fmt, net::SocketAddr, num::NonZeroU32, path::PathBuf, str::FromStr, time::Duration,
};

use serde::{Deserialize, Deserializer, de::Error as _};
use weft_api::duration::parse_duration;
use weft_policy::{
    model::HostPort,
    name::{ClusterName, Namespace, NodeName, ObjectName},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawConfig {
    pub(super) cluster: Option<Text<ClusterName>>,
    pub(super) node: Option<Text<NodeName>>,
    #[serde(default)]
    pub(super) servers: Vec<Text<HostPort>>,
    #[serde(default)]
    pub(super) listen: RawListen,
    #[serde(default)]
    pub(super) advertise: Vec<Text<super::Advertised>>,
    pub(super) workers: Option<NonZeroU32>,
    #[serde(default)]
    pub(super) workloads: Vec<RawWorkload>,
    #[serde(default)]
    pub(super) limits: RawLimits,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) run_dir: Option<PathBuf>,
    #[serde(default)]
    pub(super) logs: RawLogs,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawListen {
    pub(super) tunnels: Option<SocketAddr>,
    pub(super) proxy: Option<SocketAddr>,
    pub(super) admin: Option<SocketAddr>,
    pub(super) metrics: Option<SocketAddr>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLogs {
    pub(super) access: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWorkload {
    pub(super) service: Text<ObjectName>,
    pub(super) namespace: Option<Text<Namespace>>,
    #[serde(default)]
    pub(super) ports: BTreeMap<String, Place>,
    pub(super) uid: Option<u32>,
    #[serde(default)]
    pub(super) upstreams: Vec<RawUpstream>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawUpstream {
    pub(super) service: Text<ObjectName>,
    pub(super) namespace: Option<Text<Namespace>>,
    pub(super) port: u16,
    pub(super) listen: Place,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawLimits {
    pub(super) flows: Option<NonZeroU32>,
    pub(super) connections: Option<NonZeroU32>,
    pub(super) stream_window: Option<NonZeroU32>,
    pub(super) receive_window: Option<NonZeroU32>,
    pub(super) send_window: Option<NonZeroU32>,
    pub(super) streams: Option<NonZeroU32>,
    pub(super) streams_ceiling: Option<NonZeroU32>,
    pub(super) idle_timeout: Option<Period>,
    pub(super) keep_alive: Option<Period>,
    pub(super) handshake_timeout: Option<Period>,
    pub(super) stall_budget: Option<NonZeroU32>,
    pub(super) tunnels_per_peer: Option<NonZeroU32>,
    pub(super) new_tunnels_per_second: Option<NonZeroU32>,
    pub(super) pending_handshakes: Option<NonZeroU32>,
    pub(super) head_bytes: Option<NonZeroU32>,
    pub(super) headers: Option<NonZeroU32>,
    pub(super) target_bytes: Option<NonZeroU32>,
    pub(super) head_timeout: Option<Period>,
}

/// A value that is written as one text.
pub(super) struct Text<T>(pub(super) T);

impl<'de, T: FromStr> Deserialize<'de> for Text<T>
where
    T::Err: fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        let text = String::deserialize(reader)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}

/// A duration as people write it, such as `10s`.
#[derive(Clone, Copy)]
pub(super) struct Period(pub(super) Duration);

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        let text = String::deserialize(reader)?;
        parse_duration(&text).map(Self).map_err(D::Error::custom)
    }
}

/// `8081` (then on 127.0.0.1) or `127.0.0.1:8081`.
#[derive(Clone, Copy)]
pub(super) struct Place(pub(super) SocketAddr);

#[derive(Deserialize)]
#[serde(untagged)]
enum PortOrAddress {
    Port(u16),
    Text(String),
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        let bad = |text: &str| D::Error::custom(format!("{text:?} is neither a port nor ip:port"));
        match PortOrAddress::deserialize(reader)? {
            PortOrAddress::Port(port) => Ok(Self(SocketAddr::from(([127, 0, 0, 1], port)))),
            PortOrAddress::Text(text) => match text.parse::<u16>() {
                Ok(port) => Ok(Self(SocketAddr::from(([127, 0, 0, 1], port)))),
                Err(_) => text.parse().map(Self).map_err(|_| bad(&text)),
            },
        }
    }
}
