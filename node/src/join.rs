//! Joining a mesh: from a one-use token to the node's own SVID on disk.
//!
//! Owns what a joined node keeps: `node.pem` (SVID and key), `bundle.json` (roots) and `join.json` (who it joined). The
//! first contact is already authenticated: the server must chain to a root whose fingerprint the token carries and be
//! `/server/*` of the token's trust domain. The key is born here and stays here.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;
use weft_api::{
    channel::{self, ALPN_H2, ConnectError},
    fault::{Fault, from_status},
    pb::identity::{GetBundleResponse, JoinRequest, JoinResponse, identity_client::IdentityClient},
    token::{JoinToken, Subject},
};
use weft_identity::{
    bundle::{BundleError, TrustBundle},
    csr::{CsrError, SigningRequest},
    spiffe::{SpiffeId, TrustDomain},
    svid::{Svid, SvidError},
    tls::{JoinVerifier, VerifyError, join_config},
};
use weft_policy::{
    code::{self, CodeId},
    model::HostPort,
};

use crate::{
    app::fault_of,
    clock::Clock,
    config::Config,
    files::{FileError, StateDir},
};

/// The node's SVID and key, PEM.
pub(crate) const NODE_PEM: &str = "node.pem";
/// The trust bundle, a SPIFFE bundle document.
pub(crate) const BUNDLE: &str = "bundle.json";
/// Who was joined.
pub(crate) const JOIN_RECORD: &str = "join.json";
/// How long the whole join may take.
const JOIN_WITHIN: Duration = Duration::from_secs(30);

/// What a node knows of the mesh it joined.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JoinRecord {
    pub(crate) spiffe_id: String,
    pub(crate) trust_domain: String,
    pub(crate) namespace: String,
    pub(crate) cluster: String,
    pub(crate) servers: Vec<String>,
}

/// The outcome of a join.
#[derive(Clone, Debug)]
pub struct Joined {
    /// The node's identity.
    pub spiffe_id: SpiffeId,
    /// The namespace that its workloads belong to when they name none.
    pub namespace: String,
    /// The cluster.
    pub cluster: String,
    /// The servers, of which one answered.
    pub server: String,
}

/// Why a join failed. Nothing was written then, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is for a person.
    #[error("the token is not for a node")]
    NotForNode,
    /// The token is for another node than the configuration names.
    #[error("the token is for node {token}, this is node {node}")]
    OtherNode {
        /// Whom it is for.
        token: String,
        /// Who this is.
        node: String,
    },
    /// No server could be reached, or none proved to be of the token's mesh.
    #[error("cannot connect to a server of the mesh")]
    Connect(#[source] ConnectError),
    /// The server refused.
    #[error("the server refused: {}", .0.message())]
    Refused(tonic::Status),
    /// The server did not answer in time.
    #[error("no answer within {JOIN_WITHIN:?}")]
    TimedOut,
    /// The server's roots are not the ones the token names.
    #[error("the server's bundle does not match the token")]
    Bundle(#[source] Option<BundleError>),
    /// No key or request could be made.
    #[error("cannot make a key")]
    Request(#[source] CsrError),
    /// What the server issued is not an SVID for this node.
    #[error("the server issued something that is not an SVID of this node")]
    Svid(#[source] Option<SvidError>),
    /// The state could not be written.
    #[error("cannot keep the identity")]
    File(#[from] FileError),
    /// No runtime could be made.
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
}

impl JoinError {
    /// The error as a person meets it.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let again = "on the server's host: weft token create --for agent --node NAME";
        let mut fault = match self {
            Self::NotForNode => {
                Fault::new(code::TOKEN_OTHER_PURPOSE, "this token is not for an agent").fix(again)
            }
            Self::OtherNode { .. } => Fault::new(code::TOKEN_OTHER_NODE, self.to_string()).fix(again),
            Self::Connect(error) if clock_fault(error).is_some() => {
                let code = clock_fault(error).unwrap_or(code::PEER_EXPIRED);
                fault_of(code, "by the clock of this host the server's certificate is not valid")
            }
            Self::Connect(error) if error.is_tls_refusal() => {
                Fault::new(code::FINGERPRINT_MISMATCH, "the server is not the one that the token names")
                    .fix(again)
            }
            Self::Connect(_) | Self::TimedOut => {
                Fault::new(code::SERVER_UNREACHABLE, "no server of the mesh can be reached")
                    .fix("check that TCP port 7444 of the server is open from here")
                    .fix("weft agent join --token-file FILE")
            }
            Self::Refused(status) => return from_status(status).swap_remove(0),
            Self::Bundle(Some(_)) => {
                Fault::new(code::BAD_BUNDLE, "the server's trust bundle cannot be used").fix(again)
            }
            Self::Bundle(None) => Fault::new(code::FINGERPRINT_MISMATCH, self.to_string()).fix(again),
            Self::Request(_) | Self::Runtime(_) => Fault::new(code::INTERNAL, self.to_string()),
            Self::Svid(_) => Fault::new(code::UNEXPECTED_ANSWER, self.to_string()).fix(again),
            Self::File(error) => return error.fault(),
        };
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            fault = fault.why(cause.to_string());
            source = cause.source();
        }
        fault
    }
}

/// The code of a server that was refused for its times alone: one of the two clocks is wrong, and nothing else is.
#[must_use]
pub fn clock_fault(error: &ConnectError) -> Option<CodeId> {
    match error.verdict()? {
        // The root is the one that the token names, so what it lacks is the time.
        VerifyError::NotYetValid { .. } | VerifyError::NoRoot(_) => Some(code::PEER_NOT_YET_VALID),
        VerifyError::Expired { .. } => Some(code::PEER_EXPIRED),
        VerifyError::Profile(_)
        | VerifyError::UnknownTrustDomain(_)
        | VerifyError::Authority { .. }
        | VerifyError::Untrusted { .. }
        | VerifyError::Unexpected { .. }
        | VerifyError::Revoked { .. }
        | VerifyError::NodeBanned { .. }
        | VerifyError::UnknownRoot => None,
    }
}

/// Whether the state directory of `config` holds the identity of a joined node.
#[must_use]
pub fn is_joined(config: &Config) -> bool {
    let present = |name: &str| config.state_dir.join(name).is_file();
    present(NODE_PEM) && present(BUNDLE) && present(JOIN_RECORD)
}

/// Whether the node's own certificate has ended, so that only another join lets it in again.
#[must_use]
pub fn has_ended(config: &Config) -> bool {
    kept_svid(&StateDir::beside(&config.state_dir))
        .is_some_and(|svid| svid.validity().not_after <= Clock::system().wall())
}

/// Joins the mesh that `token` names, and keeps the identity in the state directory. Blocks.
///
/// # Errors
///
/// [`JoinError`]; the token may be used up when it is [`JoinError::Svid`] or [`JoinError::File`].
pub fn join(token: &JoinToken, config: &Config) -> Result<Joined, JoinError> {
    let Subject::Node(node) = &token.subject else { return Err(JoinError::NotForNode) };
    if node != config.node.as_str() {
        return Err(JoinError::OtherNode { token: node.clone(), node: config.node.to_string() });
    }
    let state = state_of(config, token)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(JoinError::Runtime)?;
    let outcome = runtime.block_on(async { tokio::time::timeout(JOIN_WITHIN, ask(token, node)).await });
    let (response, key) = outcome.map_err(|_| JoinError::TimedOut)??;
    keep(token, &response, key, &state)
}

/// The directory that the identity is kept in. An agent that runs has it for itself, unless its own certificate has ended:
/// then it waits for another one, which it takes up without a restart ([`rejoined`]).
fn state_of(config: &Config, token: &JoinToken) -> Result<StateDir, FileError> {
    match StateDir::open(&config.state_dir) {
        Err(FileError::InUse { path, holder }) => {
            let beside = StateDir::beside(&config.state_dir);
            let waits = kept_svid(&beside).is_some_and(|svid| {
                let same = svid.id().trust_domain() == &token.trust_domain;
                same && svid.validity().not_after <= Clock::system().wall()
            });
            if waits { Ok(beside) } else { Err(FileError::InUse { path, holder }) }
        }
        opened => opened,
    }
}

fn kept_svid(files: &StateDir) -> Option<Svid> {
    let pem = files.read(NODE_PEM).ok()??;
    Svid::from_pem(std::str::from_utf8(&pem).ok()?).ok()
}

/// What a join has left beside an agent whose certificate had ended: the node's SVID and the bundle; `None` before that.
pub(crate) fn rejoined(files: &StateDir, node: &SpiffeId, now: SystemTime) -> Option<(Svid, TrustBundle)> {
    let svid = kept_svid(files).filter(|svid| svid.id() == node && svid.validity().contains(now))?;
    let bundle = files.read(BUNDLE).ok()??;
    Some((svid, TrustBundle::from_jwks(node.trust_domain().clone(), &bundle).ok()?))
}

/// A connection to a server that the token vouches for.
async fn connect(token: &JoinToken) -> Result<Channel, JoinError> {
    let verifier = JoinVerifier::new(token.trust_domain.clone(), token.fingerprints.iter().copied());
    let tls = Arc::new(join_config(verifier, &[ALPN_H2]));
    channel::connect(&token.servers, tls, &server_name(&token.servers)).await.map_err(JoinError::Connect)
}

/// The SNI towards a server: its own host name; who it must be is said by the verifier, not by the name.
pub(crate) fn server_name(servers: &[HostPort]) -> String {
    let host = servers.first().map_or("server", |server| server.host.as_str());
    host.to_owned()
}

async fn ask(
    token: &JoinToken,
    node: &str,
) -> Result<(JoinResponse, rustls_pki_types::PrivateKeyDer<'static>), JoinError> {
    let channel = connect(token).await?;
    let (key, csr) = SigningRequest::create().map_err(JoinError::Request)?;
    let request = JoinRequest {
        secret: token.secret().to_owned(),
        node: node.to_owned(),
        csr,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..JoinRequest::default()
    };
    let response = IdentityClient::new(channel).join(request).await.map_err(JoinError::Refused)?;
    Ok((response.into_inner(), key))
}

fn keep(
    token: &JoinToken,
    response: &JoinResponse,
    key: rustls_pki_types::PrivateKeyDer<'static>,
    state: &StateDir,
) -> Result<Joined, JoinError> {
    let bundle = response.bundle.as_ref().ok_or(JoinError::Bundle(None))?;
    let bundle = read_bundle(bundle, &token.trust_domain).map_err(JoinError::Bundle)?;
    if !bundle.fingerprints().iter().any(|found| token.fingerprints.contains(found)) {
        return Err(JoinError::Bundle(None));
    }
    let chain = response.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let svid = Svid::parse(chain, key).map_err(|e| JoinError::Svid(Some(e)))?;
    if svid.id().to_string() != response.spiffe_id || svid.id().trust_domain() != &token.trust_domain {
        return Err(JoinError::Svid(None));
    }
    let record = JoinRecord {
        spiffe_id: svid.id().to_string(),
        trust_domain: token.trust_domain.to_string(),
        namespace: response.namespace.clone(),
        cluster: response.cluster.clone(),
        servers: token.servers.iter().map(ToString::to_string).collect(),
    };
    let joined = Joined {
        spiffe_id: svid.id().clone(),
        namespace: record.namespace.clone(),
        cluster: record.cluster.clone(),
        server: record.servers.join(", "),
    };
    // The record is written last: without it the node counts as not joined. An agent that waits to be joined again looks
    // at the SVID, so that comes after the bundle.
    state.write(BUNDLE, bundle.to_jwks().as_bytes())?;
    state.write(NODE_PEM, svid.to_pem().as_bytes())?;
    let text = serde_json::to_vec_pretty(&record).unwrap_or_default();
    state.write(JOIN_RECORD, &text)?;
    Ok(joined)
}

/// The bundle of a message, for the trust domain that is expected and no other.
pub(crate) fn read_bundle(
    message: &GetBundleResponse,
    expected: &TrustDomain,
) -> Result<TrustBundle, Option<BundleError>> {
    let roots = message.roots.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let domain: Result<TrustDomain, _> = message.trust_domain.parse();
    match domain {
        Ok(domain) if domain == *expected => TrustBundle::new(domain, roots, message.sequence).map_err(Some),
        Ok(_) | Err(_) => Err(None),
    }
}
