//! `server.yaml` as it is written. Nothing here leaves [`crate::config`].

use std::{fmt, net::SocketAddr, num::NonZeroU32, path::PathBuf, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de::Error as _};
use weft_api::duration::parse_duration;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawConfig {
    pub(super) cluster: Option<Text<weft_policy::name::ClusterName>>,
    pub(super) trust_domain: Text<weft_identity::spiffe::TrustDomain>,
    #[serde(default)]
    pub(super) listen: RawListen,
    #[serde(default)]
    pub(super) advertise: Vec<Text<super::Advertised>>,
    pub(super) store: RawStore,
    #[serde(default)]
    pub(super) identity: RawIdentity,
    #[serde(default)]
    pub(super) limits: RawLimits,
    pub(super) run_dir: Option<PathBuf>,
    pub(super) allow_shared_uid: Option<bool>,
    pub(super) manifests: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawListen {
    pub(super) control: Option<SocketAddr>,
    pub(super) admin: Option<SocketAddr>,
    pub(super) metrics: Option<SocketAddr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStore {
    pub(super) embedded: Option<RawEmbedded>,
    pub(super) etcd: Option<RawEtcd>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEmbedded {
    pub(super) path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEtcd {
    pub(super) path: PathBuf,
    pub(super) endpoints: Vec<Text<crate::store::etcd::Endpoint>>,
    pub(super) prefix: Option<String>,
    pub(super) tls: Option<RawEtcdTls>,
    pub(super) auth: Option<RawEtcdAuth>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEtcdTls {
    pub(super) ca: PathBuf,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawEtcdAuth {
    pub(super) user: String,
    pub(super) password_file: PathBuf,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawIdentity {
    pub(super) leaf_ttl: Option<Period>,
    pub(super) intermediate_ttl: Option<Period>,
    pub(super) root_ttl: Option<Period>,
    pub(super) upstream: Option<RawUpstream>,
    pub(super) allow_short_lifetimes: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawLimits {
    pub(super) handshake_timeout: Option<Period>,
    pub(super) handshakes: Option<NonZeroU32>,
    pub(super) handshakes_per_address: Option<NonZeroU32>,
    pub(super) connections: Option<NonZeroU32>,
    pub(super) connections_per_address: Option<NonZeroU32>,
    pub(super) anonymous_connections: Option<NonZeroU32>,
    pub(super) anonymous_per_address: Option<NonZeroU32>,
    pub(super) anonymous_age: Option<Period>,
    pub(super) streams_per_connection: Option<NonZeroU32>,
    pub(super) connection_age: Option<Period>,
    pub(super) streams_per_client: Option<NonZeroU32>,
    pub(super) joins_per_second: Option<NonZeroU32>,
    pub(super) join_burst: Option<NonZeroU32>,
    pub(super) issues_per_second: Option<NonZeroU32>,
    pub(super) issues_per_node: Option<NonZeroU32>,
    pub(super) changes_per_second: Option<NonZeroU32>,
    pub(super) change_burst: Option<NonZeroU32>,
    pub(super) signing_queue: Option<NonZeroU32>,
    pub(super) open_tokens: Option<NonZeroU32>,
    pub(super) list_page: Option<NonZeroU32>,
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

/// A duration as people write it, such as `24h`.
#[derive(Clone, Copy)]
pub(super) struct Period(pub(super) Duration);

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        let text = String::deserialize(reader)?;
        parse_duration(&text).map(Self).map_err(D::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawUpstream {
    pub(super) disk: RawUpstreamDisk,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawUpstreamDisk {
    pub(super) chain: FilePath,
    pub(super) key: FilePath,
}

/// A file as `file:/etc/weft/chain.pem`: an absolute path, so that it does not depend on where the server was started.
pub(super) struct FilePath(pub(super) PathBuf);

impl<'de> Deserialize<'de> for FilePath {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        let text = String::deserialize(reader)?;
        let path = text.strip_prefix("file:").map(PathBuf::from).filter(|path| path.is_absolute());
        path.map(Self).ok_or_else(|| D::Error::custom("it is written as file:/absolute/path"))
    }
}
