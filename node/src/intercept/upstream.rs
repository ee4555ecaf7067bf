//! A loopback listener that stands for one service, for one workload (decisions.md, "Callers on one host").
//!
//! Owns nothing on the wire: the program speaks to its peer at once. The caller is proven by its uid, or reset.

use std::{num::NonZeroU16, sync::Arc};

use weft_policy::name::ServiceName;

use super::{
    Protocol,
    caller::{self, LocalWorkload, Unproven},
    destination::Destination,
    explicit::Opened,
    sock_diag::SocketEntry,
};
use crate::app::AppStream;

/// Whom a listener belongs to and where it leads.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// The only workload that may use it.
    pub owner: Arc<LocalWorkload>,
    /// The service.
    pub service: ServiceName,
    /// Its port.
    pub port: NonZeroU16,
}

impl Upstream {
    pub(super) fn open(self, app: AppStream, entry: Option<SocketEntry>) -> Result<Opened, Unproven> {
        let source = caller::prove_owner(entry, &self.owner)?;
        let destination = Destination::Upstream { service: self.service, port: self.port };
        Ok(Opened { app, source, destination, protocol: Protocol::Upstream, request: None })
    }
}
