//! What people do: the service of [`weft_api::pb::management`].
//!
//! Owns who may do what to which objects, and the audit of it; each method's work is in a module of its own. The table
//! of [`crate::roles`] says who may call a method at all; here it is asked again for the namespace and the change.

mod admission;
mod apply;
mod change;
mod check;
mod delete;
mod loosening;
mod query;
mod status;
mod watch;

use std::sync::Arc;

use futures_util::stream::BoxStream;
use tonic::{Request, Response, Status};
use tracing::info;
use weft_api::{
    channel::MAX_MESSAGE_BYTES,
    pb::management::{
        ApplyRequest, ApplyResponse, CheckPolicyRequest, CheckPolicyResponse, CreateTokenRequest,
        CreateTokenResponse, DeleteRequest, DeleteResponse, GetRequest, GetResponse, ListRequest,
        ListResponse, ListTokensRequest, ListTokensResponse, RevokeTokenRequest, RevokeTokenResponse,
        ShowAuthorityRequest, ShowAuthorityResponse, StatusRequest, StatusResponse, WatchEvent, WatchRequest,
        management_server::{Management, ManagementServer},
    },
};
use weft_policy::{
    code,
    model::{Key, Kind},
    name::Namespace,
};

use crate::{
    core::{Authority, Core, Tokens},
    refusal::{Refusal, catalogued},
    roles::{Caller, Role, Source},
    wire::Spoken,
};

/// Serves people. A clone serves the same.
#[derive(Clone)]
pub struct ManagementService {
    core: Arc<Core>,
    tokens: Arc<dyn Tokens>,
    authority: Arc<dyn Authority>,
    watches: Arc<watch::Places>,
    /// Changes of this server are made one after another; those of other servers are kept apart by the store.
    changes: Arc<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for ManagementService {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ManagementService").finish_non_exhaustive()
    }
}

impl ManagementService {
    /// A service over what the plane shares.
    #[must_use]
    pub fn new(core: Arc<Core>, tokens: Arc<dyn Tokens>, authority: Arc<dyn Authority>) -> Self {
        Self { core, tokens, authority, watches: Arc::default(), changes: Arc::default() }
    }

    /// The same, ready to be added to a tonic server.
    #[must_use]
    pub fn into_server(self) -> Spoken<ManagementServer<Self>> {
        let server = ManagementServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Spoken::new(server)
    }
}

#[tonic::async_trait]
impl Management for ManagementService {
    type WatchStream = BoxStream<'static, Result<WatchEvent, Status>>;

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let caller = caller(&request)?;
        let _turn = self.changes.lock().await;
        let answer = apply::apply(&self.core, &caller, request.into_inner()).await;
        audited(&caller, "Apply", answer)
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(query::get(&self.core, &caller, &request.into_inner())?))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(query::list(&self.core, &caller, &request.into_inner())?))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        Ok(Response::new(watch::watch(&self.core, &self.watches, caller, request).await?))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let caller = caller(&request)?;
        let _turn = self.changes.lock().await;
        let answer = delete::delete(&self.core, &caller, request.into_inner()).await;
        audited(&caller, "Delete", answer)
    }

    async fn check_policy(
        &self,
        request: Request<CheckPolicyRequest>,
    ) -> Result<Response<CheckPolicyResponse>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(check::check(&self.core, &caller, &request.into_inner())?))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let caller = caller(&request)?;
        require(&caller, Role::Viewer)?;
        Ok(Response::new(status::status(&self.core, &caller, self.authority.as_ref())))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let caller = caller(&request)?;
        let answer = match admin(&caller) {
            Ok(()) => self.tokens.create(&caller, request.into_inner()).await,
            Err(refusal) => Err(refusal),
        };
        audited(&caller, "CreateToken", answer)
    }

    async fn list_tokens(
        &self,
        request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        admin(&caller(&request)?)?;
        Ok(Response::new(self.tokens.list().await?))
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        let caller = caller(&request)?;
        let answer = match admin(&caller) {
            Ok(()) => self.tokens.revoke(&caller, &request.into_inner().id).await,
            Err(refusal) => Err(refusal),
        };
        audited(&caller, "RevokeToken", answer.map(|()| RevokeTokenResponse {}))
    }

    async fn show_authority(
        &self,
        request: Request<ShowAuthorityRequest>,
    ) -> Result<Response<ShowAuthorityResponse>, Status> {
        require(&caller(&request)?, Role::Viewer)?;
        Ok(Response::new(self.authority.show()))
    }
}

/// Who sent a request, as the layer in front of all services found out. A request that did not pass it is refused.
///
/// # Errors
///
/// A refusal when nobody said who asks.
pub fn caller<T>(request: &Request<T>) -> Result<Caller, Refusal> {
    request.extensions().get::<Caller>().cloned().ok_or_else(|| {
        let fault = catalogued(code::UNAUTHENTICATED, "nobody said who is asking");
        Refusal::new(tonic::Code::Unauthenticated, fault)
    })
}

/// Refuses a caller whose role is less than `role`, wherever it holds.
fn require(caller: &Caller, role: Role) -> Result<(), Refusal> {
    if caller.role >= role { Ok(()) } else { Err(lacks(role, None)) }
}

/// Refuses everybody but admins of the whole mesh.
fn admin(caller: &Caller) -> Result<(), Refusal> {
    if caller.role_in(None) >= Role::Admin { Ok(()) } else { Err(lacks(Role::Admin, None)) }
}

/// Refuses a caller whose role for an object is less than `role`.
fn require_for(caller: &Caller, key: &Key, role: Role) -> Result<(), Refusal> {
    let namespace = namespace_of(key);
    if caller.role_in(namespace.as_ref()) >= role { Ok(()) } else { Err(lacks(role, Some(key))) }
}

/// The namespace whose people an object is for: a Namespace object is for its own.
fn namespace_of(key: &Key) -> Option<Namespace> {
    match key.kind {
        Kind::Mesh => None,
        Kind::Namespace => key.name.as_str().parse().ok(),
        Kind::Service
        | Kind::Workload
        | Kind::WorkloadEnrollment
        | Kind::TcpRoute
        | Kind::TrafficPolicy
        | Kind::AuthorizationPolicy => key.namespace.clone(),
    }
}

fn lacks(role: Role, key: Option<&Key>) -> Refusal {
    let role = match role {
        Role::Admin => "admin",
        Role::Editor => "editor",
        Role::Viewer => "viewer",
        Role::Node => "node",
        Role::Anonymous => "none",
    };
    Refusal::not_permitted(match key {
        Some(key) => format!("{key} needs the role {role} for it"),
        None => format!("this needs the role {role}"),
    })
}

/// Who somebody is, for the audit.
fn who(caller: &Caller) -> String {
    match (&caller.identity, caller.source) {
        (Some(identity), _) => identity.to_string(),
        (None, Source::Local { uid }) => format!("uid:{uid}"),
        (None, Source::Remote { addr }) => format!("address:{}", addr.ip()),
    }
}

/// Writes down that something was done or refused, and makes the answer of it (API-11). What was changed in detail is
/// written where it is changed.
fn audited<T>(caller: &Caller, method: &str, answer: Result<T, Refusal>) -> Result<Response<T>, Status> {
    match answer {
        Ok(answer) => {
            info!(target: "audit", who = who(caller), method, outcome = "done");
            Ok(Response::new(answer))
        }
        Err(refusal) => {
            let code = refusal.faults()[0].code.as_ref();
            info!(target: "audit", who = who(caller), method, outcome = "refused", code);
            Err(refusal.into())
        }
    }
}

#[cfg(test)]
mod tests;
