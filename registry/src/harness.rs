//! A control plane without TLS for the tests of its services: real gRPC over Unix sockets, each socket with a caller
//! that is already proven.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use futures_util::future::BoxFuture;
use tokio::task::JoinSet;
use tonic::{Request, Status, service::interceptor::InterceptedService, transport::Channel};
use weft_api::{
    channel::{Limits, bind_unix, connect_unix, grpc_server, serve_unix},
    fault::status_to_faults,
    pb::{
        discovery::discovery_client::DiscoveryClient,
        management::{
            AuthorityStatus, CreateTokenRequest, CreateTokenResponse, ListTokensResponse, Problem,
            RotateAuthorityRequest, RotateAuthorityResponse, ShowAuthorityResponse,
            management_client::ManagementClient,
        },
    },
};
use weft_identity::{spiffe::SpiffeId, tls::PeerIdentity};

use crate::{
    clock::Clock,
    confirmation,
    core::{Authority, Tokens},
    discovery::DiscoveryService,
    management::ManagementService,
    refusal::Refusal,
    roles::{Caller, Role, Source},
    samples::{self, Rig},
};

/// See the module.
pub(crate) struct Plane {
    pub(crate) rig: Rig,
    management: ManagementService,
    discovery: DiscoveryService,
    sockets: tempfile::TempDir,
    count: AtomicUsize,
    servers: Mutex<JoinSet<()>>,
}

impl Plane {
    pub(crate) async fn start() -> Self {
        Self::with_clock(Clock::system()).await
    }

    pub(crate) async fn with_clock(clock: Clock) -> Self {
        Self::over(Rig::with_clock(clock).await)
    }

    /// The services over a core that runs.
    pub(crate) fn over(rig: Rig) -> Self {
        let core = Arc::clone(&rig.core);
        let mut servers = JoinSet::new();
        servers.spawn(confirmation::keep::run(Arc::clone(&core)));
        Self {
            management: ManagementService::new(Arc::clone(&core), Arc::new(Nothing), Arc::new(Nothing)),
            discovery: DiscoveryService::new(core),
            rig,
            sockets: tempfile::tempdir().unwrap(),
            count: AtomicUsize::new(0),
            servers: Mutex::new(servers),
        }
    }

    /// With the shop in the store.
    pub(crate) async fn shop() -> Self {
        let plane = Self::start().await;
        plane.rig.put_shop().await;
        plane
    }

    /// Ends it as if its process had ended; what is left is the server's own directory.
    pub(crate) fn end(self) -> tempfile::TempDir {
        let Self { rig, .. } = self;
        let Rig { directory, .. } = rig;
        directory
    }

    /// A channel on which every request is `caller`'s.
    pub(crate) async fn channel(&self, caller: Caller) -> Channel {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let path = self.sockets.path().join(format!("{number}.sock"));
        let incoming = serve_unix(bind_unix(&path, 0o600).unwrap(), Limits::default());
        let proven = move |mut request: Request<()>| {
            request.extensions_mut().insert(caller.clone());
            Ok(request)
        };
        let management = self.management.clone().into_server();
        let discovery = self.discovery.clone().into_server();
        let server = grpc_server()
            .add_service(InterceptedService::new(management, proven.clone()))
            .add_service(InterceptedService::new(discovery, proven));
        self.servers.lock().unwrap().spawn(async move {
            server.serve_with_incoming(incoming).await.unwrap();
        });
        connect_unix(&path).await.unwrap()
    }

    pub(crate) async fn people(&self, caller: Caller) -> ManagementClient<Channel> {
        ManagementClient::new(self.channel(caller).await).max_encoding_message_size(usize::MAX)
    }

    pub(crate) async fn admin(&self) -> ManagementClient<Channel> {
        self.people(local(Role::Admin)).await
    }

    pub(crate) async fn agent(&self, node: &str) -> DiscoveryClient<Channel> {
        DiscoveryClient::new(self.channel(agent(node, samples::far())).await)
    }
}

/// Somebody on the server's host.
pub(crate) fn local(role: Role) -> Caller {
    Caller { identity: None, role, scope: None, source: Source::Local { uid: 1_000 }, peer: None }
}

/// Somebody on the server's host whose role holds in one namespace.
pub(crate) fn scoped(role: Role, namespace: &str) -> Caller {
    Caller { scope: Some(BTreeSet::from([namespace.parse().unwrap()])), ..local(role) }
}

/// The agent of a node, with a certificate until `not_after`.
pub(crate) fn agent(node: &str, not_after: SystemTime) -> Caller {
    let id = SpiffeId::node(&samples::domain(), node).unwrap();
    let serial = "0a0b".parse().unwrap();
    let peer =
        PeerIdentity { id: id.clone(), not_after, serial, key: [0; 32], authority_key_ids: Vec::new() };
    let source = Source::Remote { addr: "192.0.2.1:40000".parse().unwrap() };
    Caller { identity: Some(id), role: Role::Node, scope: None, source, peer: Some(peer) }
}

/// What a person is told of a refusal.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) code: String,
    pub(crate) path: String,
    pub(crate) what: String,
    pub(crate) why: Vec<String>,
    pub(crate) fix: Vec<String>,
}

/// The first fault of a refusal.
pub(crate) fn fault(status: &Status) -> Told {
    let first = status_to_faults(status).into_iter().next();
    let fault = first.unwrap_or_else(|| panic!("no fault in {status:?}"));
    let (code, path) = (fault.code.to_string(), fault.path().to_owned());
    Told { code, path, what: fault.what, why: fault.why, fix: fault.fix }
}

/// An authority and a token office that have nothing to tell.
struct Nothing;

impl Tokens for Nothing {
    fn create<'a>(
        &'a self,
        _caller: &'a Caller,
        _request: CreateTokenRequest,
    ) -> BoxFuture<'a, Result<CreateTokenResponse, Refusal>> {
        Box::pin(async { Ok(CreateTokenResponse::default()) })
    }

    fn list(&self) -> BoxFuture<'_, Result<ListTokensResponse, Refusal>> {
        Box::pin(async { Ok(ListTokensResponse::default()) })
    }

    fn revoke<'a>(&'a self, _caller: &'a Caller, _id: &'a str) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(async { Ok(()) })
    }
}

impl Authority for Nothing {
    fn status(&self) -> AuthorityStatus {
        AuthorityStatus::default()
    }

    fn show(&self) -> BoxFuture<'_, Result<ShowAuthorityResponse, Refusal>> {
        Box::pin(async { Ok(ShowAuthorityResponse::default()) })
    }

    fn rotate(
        &self,
        _request: RotateAuthorityRequest,
    ) -> BoxFuture<'_, Result<RotateAuthorityResponse, Refusal>> {
        Box::pin(async { Ok(RotateAuthorityResponse::default()) })
    }

    fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }
}

/// Sends bytes as they are.
pub(crate) struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(to, &item);
        Ok(())
    }
}

impl tonic::codec::Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, _from: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<()>, Status> {
        Ok(Some(()))
    }
}
