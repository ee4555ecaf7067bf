//! How identities are got and kept: the gRPC service over [`crate::attest`] and [`crate::issuer`].

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_api::{
    channel::MAX_MESSAGE_BYTES,
    pb::identity::{
        GetBundleRequest, GetBundleResponse, IssueSvidRequest, IssueSvidResponse, JoinRequest, JoinResponse,
        SignForRequest, SignForResponse,
        identity_server::{Identity, IdentityServer},
    },
};

use crate::{
    attest::join_token::{self, JoinTokens},
    core::Core,
    issuer::{self, Issuer},
    refusal::Refusal,
    roles::Caller,
    telemetry::IdentityMetrics,
    wire::Spoken,
};

/// Serves agents and people who get or renew an identity.
#[derive(Debug)]
pub struct IdentityService {
    core: Core,
    tokens: Arc<JoinTokens>,
    issuer: Arc<Issuer>,
    metrics: IdentityMetrics,
}

impl IdentityService {
    /// A service over what the plane shares.
    #[must_use]
    pub const fn new(
        core: Core,
        tokens: Arc<JoinTokens>,
        issuer: Arc<Issuer>,
        metrics: IdentityMetrics,
    ) -> Self {
        Self { core, tokens, issuer, metrics }
    }

    /// The same, ready to be added to a tonic server.
    #[must_use]
    pub fn into_server(self) -> Spoken<IdentityServer<Self>> {
        let server = IdentityServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Spoken::new(server)
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let caller = caller(&request)?;
        let answer = self.tokens.join(issuer::address_of(&caller), request.into_inner()).await;
        self.metrics.joined(&answer);
        Ok(Response::new(answer?))
    }

    async fn issue_svid(
        &self,
        request: Request<IssueSvidRequest>,
    ) -> Result<Response<IssueSvidResponse>, Status> {
        let caller = caller(&request)?;
        let answer = self.issuer.issue(&caller, request.into_inner()).await;
        self.metrics.issued(&answer);
        Ok(Response::new(answer?))
    }

    async fn get_bundle(
        &self,
        _request: Request<GetBundleRequest>,
    ) -> Result<Response<GetBundleResponse>, Status> {
        Ok(Response::new(join_token::bundle(&self.core)))
    }

    async fn sign_for(&self, request: Request<SignForRequest>) -> Result<Response<SignForResponse>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(self.issuer.sign_for(&caller, &request.into_inner())?))
    }
}

/// Who asks. The gate says so on every request; without it nobody is served.
fn caller<T>(request: &Request<T>) -> Result<Caller, Refusal> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Refusal::not_permitted("the request did not come through the gate"))
}
