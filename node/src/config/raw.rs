//! The form of `agent.yaml`. Nothing of it leaves [`super`].

use std::{collections::BTreeMap, num::NonZeroU16};

use serde::Deserialize;
use weft_policy::{
    model::HostPort,
    name::{ClusterName, Namespace, ObjectName},
};

use super::{
    limits::RawLimits,
    value::{Address, Advertised, Directory, Given, LogTarget, Node, ServiceRef},
};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawConfig {
    pub(super) cluster: Option<Given<ClusterName>>,
    pub(super) node: Option<Given<Node>>,
    pub(super) servers: Option<Vec<Given<HostPort>>>,
    pub(super) listen: Option<RawListen>,
    pub(super) advertise: Option<Vec<Given<Advertised>>>,
    pub(super) workers: Option<Given<u32>>,
    pub(super) workloads: Option<Vec<RawWorkload>>,
    pub(super) limits: Option<RawLimits>,
    pub(super) state_dir: Option<Given<Directory>>,
    pub(super) run_dir: Option<Given<Directory>>,
    pub(super) logs: Option<RawLogs>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawListen {
    pub(super) tunnels: Option<Given<Address>>,
    pub(super) proxy: Option<Given<Address>>,
    pub(super) admin: Option<Given<Address>>,
    pub(super) metrics: Option<Given<Address>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWorkload {
    pub(super) service: Given<ObjectName>,
    pub(super) namespace: Option<Given<Namespace>>,
    #[serde(default)]
    pub(super) ports: BTreeMap<String, Given<Address>>,
    pub(super) uid: Option<u32>,
    #[serde(default)]
    pub(super) upstreams: Vec<RawUpstream>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawUpstream {
    pub(super) service: Given<ServiceRef>,
    pub(super) port: Given<NonZeroU16>,
    pub(super) listen: Given<Address>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLogs {
    pub(super) access: Option<Given<LogTarget>>,
}
