//! A further server joins a mesh: its authority is made, and another server lets its root into the trust bundle.
//!
//! The keys are on disk before anybody hears of them, so a join that is cut off is repeated with another token and the same
//! authority. Afterwards `weft server run` starts it as any other.

use std::{sync::Arc, time::Duration};

use tokio::runtime::Builder;
use weft_api::{
    channel::{self, ALPN_H2, ConnectError},
    fault::{Fault, from_status},
    pb::identity::{JoinRequest, identity_client::IdentityClient},
    token::{JoinToken, Subject},
};
use weft_identity::tls::{JoinVerifier, join_config};
use weft_policy::code;

use super::ServerError;
use crate::{
    authority::{AuthorityFailure, Newcomer},
    clock::Clock,
    config::{Config, StoreConfig},
    core::VERSION,
    private,
    refusal::catalogued,
};

/// How long the whole join may take.
const WITHIN: Duration = Duration::from_secs(30);

/// Why a server did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinFailure {
    /// The configuration or the token does not fit.
    #[error("{}", .0.what)]
    Unfit(Box<Fault>),
    /// Its authority cannot be made or kept.
    #[error(transparent)]
    Authority(#[from] AuthorityFailure),
    /// No server of the mesh can be reached, or none is the one that the token names.
    #[error("cannot connect to a server of the mesh: {0}")]
    Connect(#[from] ConnectError),
    /// The server refused.
    #[error("the server refused: {}", .0.message())]
    Refused(Box<tonic::Status>),
    /// No answer.
    #[error("no answer within {WITHIN:?}")]
    TimedOut,
}

impl JoinFailure {
    /// What to tell a person.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Unfit(fault) => fault.as_ref().clone(),
            Self::Authority(failure) => failure.fault(),
            Self::Connect(error) if error.is_tls_refusal() => {
                catalogued(code::FINGERPRINT_MISMATCH, self.to_string())
            }
            Self::Connect(_) | Self::TimedOut => catalogued(code::SERVER_UNREACHABLE, self.to_string()),
            Self::Refused(status) => from_status(status).swap_remove(0),
        }
    }
}

/// What came of a join.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Joined {
    /// The name of the new server.
    pub instance: String,
    /// The sequence of the bundle that has its root.
    pub bundle_sequence: u64,
}

/// Joins the mesh that `token` names with the server of `config`, which must not run. Blocks.
///
/// # Errors
///
/// [`JoinFailure`]; then it may be tried again with another token.
pub fn join(config: &Config, token: &JoinToken) -> Result<Joined, JoinFailure> {
    let unfit = |fault: Fault| JoinFailure::Unfit(Box::new(fault));
    if token.subject != Subject::Server {
        let what = "this token is not for a server";
        return Err(unfit(catalogued(code::TOKEN_OTHER_PURPOSE, what)));
    }
    if token.trust_domain != config.trust_domain {
        let what =
            format!("the token is of {}, server.yaml says {}", token.trust_domain, config.trust_domain);
        return Err(unfit(catalogued(code::OTHER_TRUST_DOMAIN, what)));
    }
    if matches!(config.store, StoreConfig::Embedded) {
        return Err(unfit(catalogued(code::SERVER_CANNOT_JOIN, "server.yaml names no etcd")));
    }
    let directory = private::directory(&config.state_dir);
    directory.map_err(|error| unfit(catalogued(error.code(), error.to_string())))?;
    let newcomer = Newcomer::prepare(config, &Clock::system())?;
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| unfit(catalogued(code::INTERNAL, error.to_string())))?;
    let asked = runtime.block_on(async { tokio::time::timeout(WITHIN, ask(token, &newcomer)).await });
    asked.unwrap_or(Err(JoinFailure::TimedOut))
}

async fn ask(token: &JoinToken, newcomer: &Newcomer) -> Result<Joined, JoinFailure> {
    let verifier = JoinVerifier::new(token.trust_domain.clone(), token.fingerprints.iter().copied());
    let tls = Arc::new(join_config(verifier, &[ALPN_H2]));
    let name = token.servers.first().map_or("server", |server| server.host.as_str());
    let channel = channel::connect(&token.servers, tls, name).await?;
    let request = JoinRequest {
        secret: token.secret().to_owned(),
        version: VERSION.to_owned(),
        instance: newcomer.instance.clone(),
        root: newcomer.root.to_vec(),
        record_key: newcomer.record_key().0.to_vec(),
        ..JoinRequest::default()
    };
    let answer = IdentityClient::new(channel).join(request).await;
    let answer = answer.map_err(|status| JoinFailure::Refused(Box::new(status)))?.into_inner();
    newcomer.trust(&answer.record_keys)?;
    let bundle_sequence = answer.bundle.map_or(0, |bundle| bundle.sequence);
    Ok(Joined { instance: newcomer.instance.clone(), bundle_sequence })
}

impl From<JoinFailure> for Fault {
    fn from(failure: JoinFailure) -> Self {
        failure.fault()
    }
}

impl From<ServerError> for JoinFailure {
    fn from(error: ServerError) -> Self {
        Self::Unfit(Box::new(error.fault()))
    }
}
