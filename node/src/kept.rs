//! What a joined node finds on its disk when it starts: who it is, what it trusts, how often it has started.

use tracing::warn;
use weft_api::fault::Fault;
use weft_identity::{
    bundle::TrustBundle,
    spiffe::{SpiffeId, TrustDomain},
    svid::{Svid, SvidError},
};
use weft_overlay::EndpointKeys;
use weft_policy::code::{self, CodeId};

use crate::{
    clock::Clock,
    files::StateDir,
    join::{BUNDLE, JOIN_RECORD, JoinRecord, NODE_PEM},
    node::NodeError,
};

/// The keys of the tunnel endpoint, the same after a restart, so that peers learn of it at once.
const KEYS: &str = "keys";
/// The agent's boot number.
const BOOT: &str = "boot";

/// What is on disk of a joined node.
pub(crate) struct Kept {
    pub(crate) record: JoinRecord,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) node_id: SpiffeId,
    pub(crate) node_svid: Svid,
    pub(crate) bundle: TrustBundle,
    pub(crate) boot: u64,
    pub(crate) keys: EndpointKeys,
}

impl Kept {
    /// Reads what the join left, and counts this start.
    ///
    /// # Errors
    ///
    /// [`NodeError`] when nobody has joined here, or what is there cannot be used.
    pub(crate) fn read(files: &StateDir) -> Result<Self, NodeError> {
        let not_joined = || {
            let what = format!("{} holds no joined agent", files.path().display());
            NodeError::from(Fault::new(code::NOT_JOINED, what).fix("weft agent join --token-file FILE"))
        };
        let unusable = |code: CodeId, name: &str, why: String| {
            let what = format!("{} cannot be used", files.join(name).display());
            NodeError::from(Fault::new(code, what).why(why).fix("weft agent join --token-file FILE"))
        };
        let damaged = |name: &str, why: String| unusable(code::STATE_DAMAGED, name, why);
        let record = files.read(JOIN_RECORD)?.ok_or_else(not_joined)?;
        let record: JoinRecord =
            serde_json::from_slice(&record).map_err(|e| damaged(JOIN_RECORD, e.to_string()))?;
        let trust_domain: TrustDomain =
            record.trust_domain.parse().map_err(|_| damaged(JOIN_RECORD, "no trust domain".to_owned()))?;
        let pem = files.read(NODE_PEM)?.ok_or_else(not_joined)?;
        let pem = std::str::from_utf8(&pem).map_err(|e| damaged(NODE_PEM, e.to_string()))?;
        let node_svid = Svid::from_pem(pem).map_err(|error| {
            let mismatch = error == SvidError::KeyMismatch;
            let code = if mismatch { code::KEY_MISMATCH } else { code::STATE_DAMAGED };
            unusable(code, NODE_PEM, error.to_string())
        })?;
        let bundle = files.read(BUNDLE)?.ok_or_else(not_joined)?;
        let bundle = TrustBundle::from_jwks(trust_domain.clone(), &bundle)
            .map_err(|error| unusable(code::BAD_BUNDLE, BUNDLE, error.to_string()))?;
        let boot = next_boot(files)?;
        let keys = endpoint_keys(files)?;
        Ok(Self { node_id: node_svid.id().clone(), record, trust_domain, node_svid, bundle, boot, keys })
    }
}

fn next_boot(files: &StateDir) -> Result<u64, NodeError> {
    let old =
        files.read(BOOT)?.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.trim().parse::<u64>().ok());
    // Wall-clock seconds as the floor: a lost file must not make the number go back.
    let floor =
        Clock::system().wall().duration_since(std::time::UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let boot = old.unwrap_or(0).saturating_add(1).max(floor);
    if let Err(error) = files.write(BOOT, boot.to_string().as_bytes()) {
        // A full disk must not keep the agent from serving: the next start counts from the clock.
        warn!(%error, boot, "the number of this start cannot be kept");
    }
    Ok(boot)
}

fn endpoint_keys(files: &StateDir) -> Result<EndpointKeys, NodeError> {
    if let Some(bytes) = files.read(KEYS)?
        && let Ok(keys) = EndpointKeys::try_from(bytes.as_slice())
    {
        return Ok(keys);
    }
    let keys =
        EndpointKeys::generate().map_err(|e| NodeError::from(Fault::new(code::ENTROPY, e.to_string())))?;
    files.write(KEYS, &keys.to_bytes())?;
    Ok(keys)
}
