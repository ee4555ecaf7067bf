//! A whole server, over its own sockets: real TLS on loopback, real files, its clock in the test's hand where time
//! matters.

mod access;
mod changes;
mod connections;
mod copies;
mod crash;
mod denied;
mod issue;
mod join;
mod keys;
mod life;
mod odd_wire;
mod raw;
mod weight;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, Request, Response, Status, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;
use weft_api::{
    channel::{ALPN_H2, connect, connect_unix},
    fault::status_to_faults,
    manifest,
    pb::{
        identity::{GetBundleRequest, IssueSvidRequest, JoinRequest, identity_client::IdentityClient},
        management::{
            ApplyRequest, CreateTokenRequest, Document, StatusRequest, management_client::ManagementClient,
        },
    },
    token::JoinToken,
};
use weft_identity::{
    bundle::{TrustBundle, TrustBundles},
    csr::SigningRequest,
    spiffe::{SpiffeId, TrustDomain},
    svid::Svid,
    tls::{BundleSlot, ExpectedPeer, SvidSlot, client_config},
};

use super::{RunningServer, Server, ServerError};
use crate::{
    clock::{Clock, TestClock},
    config::Config,
};

/// A server in a directory of its own.
pub(super) struct Rig {
    folder: TempDir,
    more: String,
    clock: Clock,
    server: Option<RunningServer>,
}

impl Rig {
    pub(super) fn start() -> Self {
        Self::with("")
    }

    /// With more lines of configuration.
    pub(super) fn with(more: &str) -> Self {
        Self::with_clock(more, Clock::system())
    }

    /// With a clock that starts now and stands still.
    pub(super) fn timed(more: &str) -> (Self, TestClock) {
        let (clock, hands) = Clock::test(Clock::system().now());
        (Self::with_clock(more, clock), hands)
    }

    fn with_clock(more: &str, clock: Clock) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut rig = Self { folder, more: more.to_owned(), clock, server: None };
        rig.server = Some(rig.try_start().unwrap());
        rig
    }

    pub(super) fn try_start(&self) -> Result<RunningServer, ServerError> {
        self.try_start_as("corp.example")
    }

    pub(super) fn try_start_as(&self, trust_domain: &str) -> Result<RunningServer, ServerError> {
        let text = format!(
            "trustDomain: {trust_domain}\nstore: {{embedded: {{path: {:?}}}}}\nrunDir: {:?}\n\
             listen: {{control: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", metrics: \"127.0.0.1:0\"}}\n{}",
            self.state(),
            self.folder.path().join("run"),
            self.more
        );
        Server::start_with(Config::parse(&text, "test").unwrap(), self.clock.clone())
    }

    pub(super) fn kill(&mut self) {
        self.server.take().unwrap().kill();
    }

    pub(super) fn start_again(&mut self) {
        self.server = Some(self.try_start().unwrap());
    }

    pub(super) fn server(&self) -> &RunningServer {
        self.server.as_ref().unwrap()
    }

    pub(super) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn now(&self) -> std::time::SystemTime {
        self.clock.now()
    }

    pub(super) async fn socket(&self) -> Channel {
        connect_unix(self.server().socket_path()).await.unwrap()
    }

    pub(super) async fn admin(&self) -> ManagementClient<Channel> {
        ManagementClient::new(self.socket().await)
    }

    pub(super) async fn bundle(&self) -> TrustBundle {
        let mut client = IdentityClient::new(self.socket().await);
        let told = client.get_bundle(GetBundleRequest {}).await.unwrap().into_inner();
        let roots = told.roots.into_iter().map(Into::into).collect();
        TrustBundle::new(told.trust_domain.parse().unwrap(), roots, told.sequence).unwrap()
    }

    /// Over TLS, with that SVID or as nobody.
    pub(super) async fn dial(&self, svid: Option<&Svid>) -> Channel {
        let tls = self.tls(svid).await;
        connect(&[self.server().control_addr().into()], tls, "server.weft").await.unwrap()
    }

    /// The TLS configuration of a caller with that SVID or without any.
    pub(super) async fn tls(&self, svid: Option<&Svid>) -> Arc<rustls::ClientConfig> {
        let bundles = BundleSlot::new(TrustBundles::from(self.bundle().await));
        let slot = svid.map(|svid| {
            let slot = SvidSlot::empty();
            slot.publish(svid.clone());
            slot
        });
        let expected = ExpectedPeer::AnyServerOf(domain());
        Arc::new(client_config(slot, bundles, expected, &[ALPN_H2]))
    }

    /// How often an alarm was raised, as the metrics tell.
    pub(super) async fn alarms(&self, kind: &str) -> u64 {
        let text = http(self.server().metrics_addr(), "/metrics").await;
        let start = format!("weft_registry_alarms_total{{kind=\"{kind}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("no {start}in:\n{text}")).parse().unwrap()
    }

    /// How many certificates are in the issuance log.
    pub(super) async fn issued(&self) -> u64 {
        let status = self.admin().await.status(StatusRequest {}).await.unwrap().into_inner();
        status.authority.unwrap().issued
    }

    pub(super) async fn token(&self, request: CreateTokenRequest) -> JoinToken {
        self.admin().await.create_token(request).await.unwrap().into_inner().token.parse().unwrap()
    }

    pub(super) async fn join(&self, token: &JoinToken, node: &str) -> Result<Svid, Status> {
        let client = IdentityClient::new(self.dial(None).await);
        join_by(client, token.secret(), node).await
    }

    /// A node that has joined, and may run anything in `default`.
    pub(super) async fn node(&self, name: &str) -> Svid {
        let token = self.token(agent_token(name)).await;
        self.join(&token, name).await.unwrap()
    }

    /// A person that has joined.
    pub(super) async fn person(&self, name: &str, role: &str) -> Svid {
        let (purpose, user, role) = ("user".into(), name.into(), role.into());
        let token = self.token(CreateTokenRequest { purpose, user, role, ..Default::default() }).await;
        self.join(&token, "").await.unwrap()
    }

    /// An SVID that `holder` asks for.
    pub(super) async fn issue(&self, holder: &Svid, id: &str) -> Result<Svid, Status> {
        issue_by(IdentityClient::new(self.dial(Some(holder)).await), id).await
    }

    pub(super) async fn apply(&self, yaml: &str) {
        let resources = manifest::parse(yaml, None).unwrap();
        let document = |resource| Document { json: manifest::to_json(resource).to_string().into_bytes() };
        let documents = resources.iter().map(document).collect();
        let request = ApplyRequest { documents, ..Default::default() };
        self.admin().await.apply(request).await.unwrap();
    }
}

pub(super) fn domain() -> TrustDomain {
    "corp.example".parse().unwrap()
}

pub(super) fn agent_token(node: &str) -> CreateTokenRequest {
    CreateTokenRequest { purpose: "agent".into(), node: node.into(), ..Default::default() }
}

pub(super) async fn join_by(
    mut client: IdentityClient<Channel>,
    secret: &str,
    node: &str,
) -> Result<Svid, Status> {
    let (key, csr) = SigningRequest::create().unwrap();
    let request = JoinRequest {
        secret: secret.into(),
        node: node.into(),
        csr,
        version: "test".into(),
        ..JoinRequest::default()
    };
    let answer = client.join(request).await?.into_inner();
    let chain = answer.chain.into_iter().map(Into::into).collect();
    Ok(Svid::parse(chain, key).unwrap())
}

pub(super) async fn issue_by(mut client: IdentityClient<Channel>, id: &str) -> Result<Svid, Status> {
    let (key, csr) = SigningRequest::create().unwrap();
    let answer = client
        .issue_svid(IssueSvidRequest { spiffe_id: id.into(), csr, ..Default::default() })
        .await?
        .into_inner();
    let chain = answer.chain.into_iter().map(Into::into).collect();
    Ok(Svid::parse(chain, key).unwrap())
}

pub(super) fn workload(name: &str) -> String {
    SpiffeId::workload(&domain(), "default", name).unwrap().to_string()
}

/// Calls any method with an empty message.
pub(super) async fn call(channel: &Channel, path: &str) -> Result<Response<()>, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path: PathAndQuery = path.parse().unwrap();
    client.unary(Request::new(()), path, ProstCodec::<(), ()>::default()).await
}

/// The gRPC code and the code of the catalogue of a refusal.
pub(super) fn codes<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    let fault = status_to_faults(&status).into_iter().next();
    (status.code(), fault.map(|fault| fault.code.into()).unwrap_or_default())
}

/// Every regular file below a folder.
pub(super) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(files(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

/// The answer of a plain listener.
pub(super) async fn http(address: std::net::SocketAddr, path: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    text
}
