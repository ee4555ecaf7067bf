//! What people do: the service of [`weft_api::pb::management`].
//!
//! Owns who may do what to which objects, and the audit of it; each method's work is in a module of its own. The table
//! of [`crate::roles`] says who may call a method at all; here it is asked again for the namespace and the change.

mod admission;
mod apply;
mod audit_log;
mod called;
mod change;
mod check;
mod delete;
mod lockout;
mod loosening;
mod query;
mod revisions;
mod rollback;
mod status;
pub(crate) mod unconfirmed;
mod watch;

use std::sync::Arc;

use futures_util::stream::BoxStream;
use tonic::{Request, Response, Status};
use weft_api::{
    channel::MAX_MESSAGE_BYTES,
    pb::management::{
        ApplyRequest, ApplyResponse, CheckPolicyRequest, CheckPolicyResponse, ConfirmRequest,
        ConfirmResponse, CreateTokenRequest, CreateTokenResponse, DeleteRequest, DeleteResponse, DenyRequest,
        DenyResponse, GetRequest, GetResponse, HistoryRequest, HistoryResponse, ListAuditRequest,
        ListAuditResponse, ListDeniedRequest, ListDeniedResponse, ListRequest, ListResponse,
        ListTokensRequest, ListTokensResponse, RevokeTokenRequest, RevokeTokenResponse, RollbackRequest,
        RotateAuthorityRequest, RotateAuthorityResponse, ShowAuthorityRequest, ShowAuthorityResponse,
        StatusRequest, StatusResponse, UndenyRequest, UndenyResponse, VerifyAuditRequest,
        VerifyAuditResponse, WatchEvent, WatchRequest,
        management_server::{Management, ManagementServer},
    },
};
use weft_identity::spiffe::SpiffeId;
use weft_policy::{
    code,
    limit::KeyedLimit,
    model::{Key, Kind},
    name::Namespace,
};

use self::called::Call;
use crate::{
    core::{Authority, Core, Tokens},
    denied,
    refusal::{Refusal, catalogued},
    roles::{Caller, Role, Source},
    wire::Spoken,
};

/// Callers whose changes are counted at a time. When more come at once than that, a new one waits.
const MAX_CALLERS: usize = 4_096;

/// Serves people. A clone serves the same.
#[derive(Clone)]
pub struct ManagementService {
    core: Arc<Core>,
    tokens: Arc<dyn Tokens>,
    authority: Arc<dyn Authority>,
    watches: Arc<watch::Places>,
    /// Changes of this server are made one after another; those of other servers are kept apart by the store.
    changes: Arc<tokio::sync::Mutex<()>>,
    /// How often each caller may try one.
    pace: Arc<std::sync::Mutex<KeyedLimit<SpiffeId>>>,
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
        let pace = Arc::new(std::sync::Mutex::new(KeyedLimit::new(core.changes, MAX_CALLERS)));
        Self { core, tokens, authority, watches: Arc::default(), changes: Arc::default(), pace }
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
        let (caller, request) = opened(request)?;
        let call = Call::change("Apply", !request.dry_run, &request.reason);
        let call = call.about(called::named(&request.documents));
        self.changing(&caller, call, apply::apply(&self.core, &caller, request)).await
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let (caller, request) = opened(request)?;
        let call = Call::read("Get").about(called::refs(request.r#ref.as_slice()));
        self.reading(&caller, call, async { query::get(&self.core, &caller, &request) }).await
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let (caller, request) = opened(request)?;
        let call = Call::read("List").about([called::scope(&request.kind, &request.namespace)]);
        self.reading(&caller, call, async { query::list(&self.core, &caller, &request) }).await
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (caller, request) = opened(request)?;
        let call = Call::read("Watch").about([called::scope(&request.kind, &request.namespace)]);
        let watching = watch::watch(&self.core, &self.watches, caller.clone(), request);
        self.reading(&caller, call, watching).await
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let (caller, request) = opened(request)?;
        let call = Call::change("Delete", !request.dry_run, &request.reason);
        let call = call.about(called::refs(&request.refs));
        self.changing(&caller, call, delete::delete(&self.core, &caller, request)).await
    }

    async fn check_policy(
        &self,
        request: Request<CheckPolicyRequest>,
    ) -> Result<Response<CheckPolicyResponse>, Status> {
        let (caller, request) = opened(request)?;
        let call = Call::read("CheckPolicy").about([called::subject("Service", &request.service)]);
        self.reading(&caller, call, async { check::check(&self.core, &caller, &request) }).await
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let (caller, _) = opened(request)?;
        let work = async {
            require(&caller, Role::Viewer)?;
            Ok(status::status(&self.core, &caller, self.authority.as_ref()).await)
        };
        self.reading(&caller, Call::read("Status"), work).await
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let (caller, request) = opened(request)?;
        let subject = [called::subject("agent", &request.node), called::subject("user", &request.user)];
        let call = Call::change("CreateToken", true, "").about(subject);
        let work = async {
            admin(&caller)?;
            self.tokens.create(&caller, request).await
        };
        self.changing(&caller, call, work).await
    }

    async fn list_tokens(
        &self,
        request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        let (caller, _) = opened(request)?;
        let work = async {
            admin(&caller)?;
            self.tokens.list().await
        };
        self.reading(&caller, Call::read("ListTokens"), work).await
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        let (caller, request) = opened(request)?;
        let call = Call::change("RevokeToken", true, "").about([called::subject("token", &request.id)]);
        let work = async {
            admin(&caller)?;
            self.tokens.revoke(&caller, &request.id).await.map(|()| RevokeTokenResponse {})
        };
        self.changing(&caller, call, work).await
    }

    async fn show_authority(
        &self,
        request: Request<ShowAuthorityRequest>,
    ) -> Result<Response<ShowAuthorityResponse>, Status> {
        let (caller, _) = opened(request)?;
        let work = async {
            require(&caller, Role::Viewer)?;
            self.authority.show().await
        };
        self.reading(&caller, Call::read("ShowAuthority"), work).await
    }

    async fn rotate_authority(
        &self,
        request: Request<RotateAuthorityRequest>,
    ) -> Result<Response<RotateAuthorityResponse>, Status> {
        let (caller, request) = opened(request)?;
        let step = if request.step.is_empty() { "next" } else { &request.step };
        let forced = if request.force { "forced" } else { "" };
        let subject =
            [called::subject("authority", step), called::subject("root", &request.root), forced.to_owned()];
        let call = Call::change("RotateAuthority", true, &request.reason).about(subject);
        let work = async {
            admin(&caller)?;
            self.authority.rotate(request).await
        };
        self.changing(&caller, call, work).await
    }

    async fn history(&self, request: Request<HistoryRequest>) -> Result<Response<HistoryResponse>, Status> {
        let (caller, request) = opened(request)?;
        let call = Call::read("History").about(called::refs(request.r#ref.as_slice()));
        self.reading(&caller, call, revisions::history(&self.core, &caller, &request)).await
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Result<Response<ApplyResponse>, Status> {
        let (caller, request) = opened(request)?;
        let call = Call::change("Rollback", !request.dry_run, &request.reason);
        let call = call.about(called::refs(&request.refs));
        self.changing(&caller, call, rollback::rollback(&self.core, &caller, request)).await
    }

    async fn confirm(&self, request: Request<ConfirmRequest>) -> Result<Response<ConfirmResponse>, Status> {
        let (caller, request) = opened(request)?;
        let what = if request.abort { "abort of change" } else { "change" };
        let call = Call::change("Confirm", true, "").about([format!("{what} {}", request.change)]);
        let work = async {
            require(&caller, Role::Editor)?;
            unconfirmed::confirm(&self.core, &caller, &request).await
        };
        self.changing(&caller, call, work).await
    }

    async fn list_audit(
        &self,
        request: Request<ListAuditRequest>,
    ) -> Result<Response<ListAuditResponse>, Status> {
        let (caller, request) = opened(request)?;
        let work = async {
            admin(&caller)?;
            audit_log::list(&self.core, &request).await
        };
        self.reading(&caller, Call::read("ListAudit"), work).await
    }

    async fn deny(&self, request: Request<DenyRequest>) -> Result<Response<DenyResponse>, Status> {
        let (caller, request) = opened(request)?;
        let call = Call::change("Deny", true, &request.reason);
        let call = call.about([called::subject("denied", &request.subject)]);
        let work = async {
            admin(&caller)?;
            denied::deny(&self.core, &caller, &request).await
        };
        self.changing(&caller, call, work).await
    }

    async fn undeny(&self, request: Request<UndenyRequest>) -> Result<Response<UndenyResponse>, Status> {
        let (caller, request) = opened(request)?;
        let call = Call::change("Undeny", true, &request.reason);
        let call = call.about([called::subject("denied", &request.subject)]);
        let work = async {
            admin(&caller)?;
            denied::undeny(&self.core, &caller, &request).await
        };
        self.changing(&caller, call, work).await
    }

    async fn list_denied(
        &self,
        request: Request<ListDeniedRequest>,
    ) -> Result<Response<ListDeniedResponse>, Status> {
        let (caller, request) = opened(request)?;
        let work = async {
            require(&caller, Role::Viewer)?;
            Ok(denied::list(&self.core, &request))
        };
        self.reading(&caller, Call::read("ListDenied"), work).await
    }

    async fn verify_audit(
        &self,
        request: Request<VerifyAuditRequest>,
    ) -> Result<Response<VerifyAuditResponse>, Status> {
        let (caller, _) = opened(request)?;
        let work = async {
            admin(&caller)?;
            audit_log::verify(&self.core).await
        };
        self.reading(&caller, Call::read("VerifyAudit"), work).await
    }
}

/// A request and who sent it.
fn opened<T>(request: Request<T>) -> Result<(Caller, T), Refusal> {
    Ok((caller(&request)?, request.into_inner()))
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
    require_everywhere(caller, Role::Admin)
}

/// Refuses a caller whose role for the whole mesh is less than `role`.
fn require_everywhere(caller: &Caller, role: Role) -> Result<(), Refusal> {
    if caller.role_in(None) >= role { Ok(()) } else { Err(lacks(role, None)) }
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
        Role::Server => "server",
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

#[cfg(test)]
mod tests;
