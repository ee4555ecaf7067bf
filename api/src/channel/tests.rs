//! Real sockets, real certificates: who is let in, what is known of them, what is survived.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use rustls_pki_types::{ServerName, UnixTime};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, transport::Channel};
use weft_identity::{
    bundle::{TrustBundle, TrustBundles},
    ca::CertificateAuthority,
    csr::SigningRequest,
    spiffe::SpiffeId,
    svid::Svid,
    tls::{BundleSlot, ClientAuth, ExpectedPeer, SvidSlot, client_config, server_config},
};
use weft_policy::{code, model::HostPort};

use super::{
    server::{Accept, serve},
    *,
};
use crate::{
    fault::{Fault, faults_to_status, status_to_faults},
    pb::identity::{
        GetBundleRequest, GetBundleResponse, IssueSvidRequest, IssueSvidResponse, JoinRequest, JoinResponse,
        SignForRequest, SignForResponse,
        identity_client::IdentityClient,
        identity_server::{Identity, IdentityServer},
    },
};

const HOUR: Duration = Duration::from_secs(3_600);

/// A trust domain with its authority and a server's listener config.
struct Mesh {
    authority: Mutex<CertificateAuthority>,
    bundles: BundleSlot,
    server: SvidSlot,
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(UnixTime::now().as_secs())
}

impl Mesh {
    fn new(domain: &str) -> Self {
        let domain = domain.parse().unwrap();
        let authority = CertificateAuthority::create(&domain, "one", now()).unwrap();
        let mut bundles = TrustBundles::new();
        bundles.insert(TrustBundle::new(domain, authority.bundle_roots(), 1).unwrap()).unwrap();
        let mesh = Self {
            authority: Mutex::new(authority),
            bundles: BundleSlot::new(bundles),
            server: SvidSlot::empty(),
        };
        mesh.server.publish(mesh.svid("/server/one"));
        mesh
    }

    fn svid(&self, path: &str) -> Svid {
        let (key, csr) = SigningRequest::create().unwrap();
        let mut authority = self.authority.lock().unwrap();
        let id: SpiffeId = format!("{}{path}", authority.trust_domain().id()).parse().unwrap();
        let issued = authority.issue(&SigningRequest::parse(&csr).unwrap(), &id, 24 * HOUR, now()).unwrap();
        Svid::parse(issued.chain, key).unwrap()
    }

    fn listener(&self, client: ClientAuth) -> Arc<rustls::ServerConfig> {
        let resolver = Arc::new(self.server.clone());
        Arc::new(server_config(resolver, self.bundles.clone(), client, &[ALPN_H2]).unwrap())
    }

    /// The configuration of a caller that trusts this mesh; `None` is anonymous.
    fn caller(&self, svid: Option<Svid>) -> Arc<rustls::ClientConfig> {
        let slot = svid.map(|svid| {
            let slot = SvidSlot::empty();
            slot.publish(svid);
            slot
        });
        let domain = self.authority.lock().unwrap().trust_domain().clone();
        Arc::new(client_config(slot, self.bundles.clone(), ExpectedPeer::AnyServerOf(domain), &[ALPN_H2]))
    }
}

/// Answers who called, or with what it was told to.
#[derive(Default)]
struct WhoCalled {
    refusal: Option<Status>,
    roots: Vec<Vec<u8>>,
}

#[tonic::async_trait]
impl Identity for WhoCalled {
    async fn sign_for(&self, _: Request<SignForRequest>) -> Result<Response<SignForResponse>, Status> {
        Err(Status::unimplemented("only who called is told"))
    }

    async fn get_bundle(
        &self,
        request: Request<GetBundleRequest>,
    ) -> Result<Response<GetBundleResponse>, Status> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        let extensions = request.extensions();
        let tls = extensions.get::<ConnectInfo>().map(|info| {
            assert_eq!(info.peer.is_some(), !info.chain.is_empty());
            info.peer.as_ref().map_or_else(|| "nobody".to_owned(), |peer| peer.id.to_string())
        });
        let local = extensions.get::<PeerCred>().map(|cred| format!("uid {}", cred.uid));
        let trust_domain = tls.or(local).unwrap();
        Ok(Response::new(GetBundleResponse { trust_domain, sequence: 1, roots: self.roots.clone() }))
    }

    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn issue_svid(&self, _: Request<IssueSvidRequest>) -> Result<Response<IssueSvidResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// A server that ends with the value.
struct Running {
    _tasks: JoinSet<()>,
}

fn run<S, C>(incoming: S, service: WhoCalled) -> Running
where
    S: Stream<Item = Result<C, std::convert::Infallible>> + Send + 'static,
    C: tokio::io::AsyncRead
        + tokio::io::AsyncWrite
        + tonic::transport::server::Connected<ConnectInfo: Clone + Send + Sync + 'static>
        + Unpin
        + Send
        + 'static,
{
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let service = IdentityServer::new(service);
        grpc_server().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    Running { _tasks: tasks }
}

async fn bound() -> (TcpListener, HostPort) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().into();
    (listener, address)
}

async fn who_am_i(channel: Channel) -> Result<String, Status> {
    let answer = IdentityClient::new(channel).get_bundle(GetBundleRequest {}).await?;
    Ok(answer.into_inner().trust_domain)
}

#[tokio::test]
async fn the_proven_identity_stands_in_every_request() {
    let mesh = Mesh::new("corp.example");
    let (listener, address) = bound().await;
    let _server = run(
        serve_incoming(listener, mesh.listener(ClientAuth::Optional), Limits::default()),
        WhoCalled::default(),
    );

    let node = mesh.caller(Some(mesh.svid("/node/a")));
    let channel = connect(std::slice::from_ref(&address), node, "control.weft").await.unwrap();
    assert_eq!(who_am_i(channel).await.unwrap(), "spiffe://corp.example/node/a");

    let channel = connect(&[address], mesh.caller(None), "control.weft").await.unwrap();
    assert_eq!(who_am_i(channel).await.unwrap(), "nobody");
}

#[tokio::test]
async fn api_01_without_a_trusted_certificate_nobody_gets_in() {
    let mesh = Mesh::new("corp.example");
    let (listener, address) = bound().await;
    let incoming = serve_incoming(listener, mesh.listener(ClientAuth::Required), Limits::default());
    let stats = incoming.stats();
    let _server = run(incoming, WhoCalled::default());

    // In TLS 1.3 the client's side ends before the server has judged the certificate: the first call tells.
    for svid in [None, Some(Mesh::new("evil.example").svid("/node/a"))] {
        let channel = connect(std::slice::from_ref(&address), mesh.caller(svid), "control.weft").await;
        let refused = match channel {
            Ok(channel) => who_am_i(channel).await.is_err(),
            Err(_) => true,
        };
        assert!(refused);
    }
    assert_eq!(stats.accepted(), 0);
    assert!(stats.handshake_failures() >= 2);
}

#[tokio::test]
async fn a_server_of_another_trust_domain_is_told_apart_from_an_unreachable_one() {
    let (mesh, evil) = (Mesh::new("corp.example"), Mesh::new("evil.example"));
    let (listener, address) = bound().await;
    let _server = run(
        serve_incoming(listener, evil.listener(ClientAuth::Optional), Limits::default()),
        WhoCalled::default(),
    );
    let error = connect(std::slice::from_ref(&address), mesh.caller(None), "control.weft").await.unwrap_err();
    assert!(error.is_tls_refusal(), "{error}");

    let (closed, nobody) = bound().await;
    drop(closed);
    let error = connect(std::slice::from_ref(&nobody), mesh.caller(None), "control.weft").await.unwrap_err();
    assert!(!error.is_tls_refusal(), "{error}");
    assert!(error.to_string().contains(&nobody.to_string()), "{error}");
}

#[tokio::test]
async fn a_swapped_svid_is_presented_on_the_next_connection() {
    let mesh = Mesh::new("corp.example");
    let (listener, address) = bound().await;
    let _server = run(
        serve_incoming(listener, mesh.listener(ClientAuth::Optional), Limits::default()),
        WhoCalled::default(),
    );
    let slot = SvidSlot::empty();
    let domain = "corp.example".parse().unwrap();
    let expected = ExpectedPeer::AnyServerOf(domain);
    let tls = Arc::new(client_config(Some(slot.clone()), mesh.bundles.clone(), expected, &[ALPN_H2]));
    for path in ["/node/a", "/node/b"] {
        slot.publish(mesh.svid(path));
        let channel = connect(std::slice::from_ref(&address), tls.clone(), "control.weft").await.unwrap();
        assert_eq!(who_am_i(channel).await.unwrap(), format!("spiffe://corp.example{path}"));
    }
}

#[tokio::test]
async fn a_channel_dials_again_when_its_server_is_back() {
    let mesh = Mesh::new("corp.example");
    let (listener, address) = bound().await;
    let at = listener.local_addr().unwrap();
    let incoming = serve_incoming(listener, mesh.listener(ClientAuth::Optional), Limits::default());
    let connections = incoming.connections();
    let server = run(incoming, WhoCalled::default());
    let channel = connect(&[address], mesh.caller(None), "control.weft").await.unwrap();
    assert!(who_am_i(channel.clone()).await.is_ok());

    drop(server);
    assert!(who_am_i(channel.clone()).await.is_ok(), "tonic's tasks outlive the server");
    connections.close();
    assert!(who_am_i(channel.clone()).await.is_err());
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(at).unwrap();
    let listener = socket.listen(16).unwrap();
    let _server = run(
        serve_incoming(listener, mesh.listener(ClientAuth::Optional), Limits::default()),
        WhoCalled::default(),
    );
    while who_am_i(channel.clone()).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_silent_address_costs_its_head_start_only() {
    let mesh = Mesh::new("corp.example");
    let (_silent, dead) = bound().await;
    let (listener, live) = bound().await;
    let _server = run(
        serve_incoming(listener, mesh.listener(ClientAuth::Optional), Limits::default()),
        WhoCalled::default(),
    );
    let started = tokio::time::Instant::now();
    let channel = connect(&[dead, live], mesh.caller(None), "control.weft").await.unwrap();
    assert!(started.elapsed() < ConnectSettings::default().timeout, "{:?}", started.elapsed());
    assert_eq!(who_am_i(channel).await.unwrap(), "nobody");
}

#[tokio::test]
async fn there_is_no_channel_without_an_address_or_a_name() {
    let mesh = Mesh::new("corp.example");
    assert!(matches!(connect(&[], mesh.caller(None), "a").await, Err(ConnectError::NoAddress)));
    let (_listener, address) = bound().await;
    assert!(matches!(connect(&[address], mesh.caller(None), "a b").await, Err(ConnectError::ServerName(_))));
}

/// Fails as often as it is told, then accepts.
struct Storm {
    errors: VecDeque<io::Error>,
    listener: TcpListener,
}

impl Accept for Storm {
    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        match self.errors.pop_front() {
            Some(error) => Err(error),
            None => self.listener.accept().await,
        }
    }
}

#[tokio::test]
async fn api_09_a_storm_of_accept_errors_does_not_end_the_loop() {
    let mesh = Mesh::new("corp.example");
    let (listener, address) = bound().await;
    // EMFILE and ECONNABORTED of Linux.
    let errors = [24, 103, 24, 24, 103].map(io::Error::from_raw_os_error).into();
    let incoming = serve(Storm { errors, listener }, mesh.listener(ClientAuth::Optional), Limits::default());
    let stats = incoming.stats();
    let _server = run(incoming, WhoCalled::default());
    let channel = connect(&[address], mesh.caller(None), "control.weft").await.unwrap();
    assert_eq!(who_am_i(channel).await.unwrap(), "nobody");
    assert_eq!(stats.accept_errors(), 5);
}

#[tokio::test]
async fn api_10_a_client_that_does_not_shake_hands_is_closed_and_holds_up_nobody() {
    let mesh = Mesh::new("corp.example");
    let (listener, address) = bound().await;
    let at = listener.local_addr().unwrap();
    let limits = Limits { handshake_timeout: Duration::from_millis(300), ..Limits::default() };
    let incoming = serve_incoming(listener, mesh.listener(ClientAuth::Optional), limits);
    let stats = incoming.stats();
    let _server = run(incoming, WhoCalled::default());

    let mut silent = TcpStream::connect(at).await.unwrap();
    let channel = connect(&[address], mesh.caller(None), "control.weft").await.unwrap();
    assert_eq!(who_am_i(channel).await.unwrap(), "nobody");
    assert_eq!(silent.read(&mut [0; 16]).await.unwrap(), 0, "closed by the server");
    assert_eq!(stats.handshake_failures(), 1);
}

#[tokio::test]
async fn api_10_unfinished_handshakes_of_one_address_are_bounded() {
    let mesh = Mesh::new("corp.example");
    let (listener, _) = bound().await;
    let at = listener.local_addr().unwrap();
    let limits = Limits { handshakes_per_address: 2, ..Limits::default() };
    let incoming = serve_incoming(listener, mesh.listener(ClientAuth::Optional), limits);
    let stats = incoming.stats();
    let mut sockets = Vec::new();
    for _ in 0..3 {
        sockets.push(TcpStream::connect(at).await.unwrap());
    }
    assert_eq!(sockets[2].read(&mut [0; 16]).await.unwrap(), 0, "the third is closed at once");
    assert_eq!(stats.refused(), 1);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_until_one_ends() {
    let mesh = Mesh::new("corp.example");
    let (listener, address) = bound().await;
    let limits = Limits { connections: 1, ..Limits::default() };
    let incoming = serve_incoming(listener, mesh.listener(ClientAuth::Optional), limits);
    let stats = incoming.stats();
    let _server = run(incoming, WhoCalled::default());

    let first = connect(std::slice::from_ref(&address), mesh.caller(None), "control.weft").await.unwrap();
    assert!(who_am_i(first.clone()).await.is_ok());
    assert!(connect(std::slice::from_ref(&address), mesh.caller(None), "control.weft").await.is_err());
    assert_eq!((stats.refused(), stats.open()), (1, 1));
    drop(first);
    let again = loop {
        match connect(std::slice::from_ref(&address), mesh.caller(None), "control.weft").await {
            Ok(channel) => break channel,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert!(who_am_i(again).await.is_ok());
}

#[tokio::test]
async fn only_tls_13_with_h2_is_spoken() {
    let mesh = Mesh::new("corp.example");
    let (listener, _) = bound().await;
    let at = listener.local_addr().unwrap();
    let incoming = serve_incoming(listener, mesh.listener(ClientAuth::Optional), Limits::default());
    let stats = incoming.stats();
    let _server = run(incoming, WhoCalled::default());
    let name = || ServerName::try_from("control.weft").unwrap();

    let tls =
        TlsConnector::from(mesh.caller(None)).connect(name(), TcpStream::connect(at).await.unwrap()).await;
    let tls = tls.unwrap();
    assert_eq!(tls.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(ALPN_H2));

    // Without ALPN: closed.
    let mut config = (*mesh.caller(None)).clone();
    config.alpn_protocols.clear();
    let connector = TlsConnector::from(Arc::new(config));
    let mut tls = connector.connect(name(), TcpStream::connect(at).await.unwrap()).await.unwrap();
    assert!(matches!(tls.read(&mut [0; 16]).await, Ok(0) | Err(_)), "nothing is served");

    // A ClientHello of TLS 1.2: the server answers with an alert and closes.
    let mut socket = TcpStream::connect(at).await.unwrap();
    socket.write_all(&client_hello_12()).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer.first(), Some(&21), "an alert: {answer:?}");
    assert_eq!(stats.handshake_failures(), 2);
}

/// A minimal ClientHello of TLS 1.2 (RFC 5246 §7.4.1.2) without supported_versions: TLS 1.3 is not offered.
fn client_hello_12() -> Vec<u8> {
    let mut hello = vec![0x03, 0x03];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]); // no session, ECDHE-ECDSA-AES128-GCM-SHA256, no compression
    hello.extend([0, 14]); // extensions
    hello.extend([0, 10, 0, 4, 0, 2, 0, 23]); // supported_groups: secp256r1
    hello.extend([0, 13, 0, 2, 0, 0]); // signature_algorithms: none
    let length = u8::try_from(hello.len()).unwrap();
    let mut record = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(hello);
    record
}

#[tokio::test]
async fn a_unix_socket_tells_who_the_kernel_says_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/server.sock");
    let listener = bind_unix(&path, 0o600).unwrap();
    let _server = run(serve_unix(listener, Limits::default()), WhoCalled::default());
    let own = tokio::net::UnixStream::pair().unwrap().0.peer_cred().unwrap().uid();
    let channel = connect_unix(&path).await.unwrap();
    assert_eq!(who_am_i(channel).await.unwrap(), format!("uid {own}"));
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server.sock");
    let first = bind_unix(&path, 0o600).unwrap();
    assert_eq!(bind_unix(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    drop(first);
    assert!(matches!(connect_unix(&path).await, Err(ConnectError::Unix { .. })));
    assert!(bind_unix(&path, 0o600).is_ok());

    let file = folder.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert_eq!(bind_unix(&file, 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

#[tokio::test]
async fn wl_05_a_socket_is_not_put_where_somebody_else_can_replace_it() {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("run");
    let socket = folder.join("agent.sock");
    let kind = |path: &Path| bind_unix(path, 0o666).map(drop).map_err(|error| error.kind());
    kind(&socket).unwrap();
    for mode in [0o777, 0o1777, 0o720, 0o702] {
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(kind(&socket), Err(io::ErrorKind::PermissionDenied), "{mode:o}");
    }
    for mode in [0o700, 0o711, 0o755] {
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode)).unwrap();
        kind(&socket).unwrap();
    }
    // A link in the place of the socket is not followed, wherever it leads.
    let other = temp.path().join("precious");
    std::fs::write(&other, "precious").unwrap();
    let planted = folder.join("planted.sock");
    symlink(&other, &planted).unwrap();
    assert_eq!(kind(&planted), Err(io::ErrorKind::AlreadyExists));
    assert_eq!(std::fs::read(&other).unwrap(), b"precious");
    std::fs::remove_file(&planted).unwrap();
    symlink(temp.path().join("nothing"), &planted).unwrap();
    assert_eq!(kind(&planted), Err(io::ErrorKind::AlreadyExists), "nor one that leads nowhere");
    // Only root can give a folder to somebody else; elsewhere this part says nothing.
    if chown(&folder, Some(4242), None).is_ok() {
        assert_eq!(kind(&socket), Err(io::ErrorKind::PermissionDenied), "it belongs to somebody else");
    }
}

#[tokio::test]
async fn wl_05_whoever_squats_the_socket_first_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server.sock");
    let squatter = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert_eq!(bind_unix(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    drop(squatter);
    bind_unix(&path, 0o600).unwrap();
    assert_eq!(mode(&path), 0o600, "a stale one is replaced, with our mode");
}

#[tokio::test]
async fn faults_arrive_over_a_real_connection_however_many_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server.sock");
    let faults: Vec<_> = (0..1_000)
        .map(|i| {
            Fault::new(code::UNKNOWN_FIELD, format!("unknown field {i}"))
                .why("äöü")
                .fix("remove it, then   weft apply -f mesh.yaml")
                .at(format!("spec.x{i}"), None)
        })
        .collect();
    let refusal = Some(faults_to_status(Code::InvalidArgument, &faults));
    let service = WhoCalled { refusal, ..WhoCalled::default() };
    let _server = run(serve_unix(bind_unix(&path, 0o600).unwrap(), Limits::default()), service);
    let status = who_am_i(connect_unix(&path).await.unwrap()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status_to_faults(&status)[..3], faults[..3]);
}

#[tokio::test]
async fn api_05_a_message_beyond_the_limit_is_refused_and_the_connection_lives() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server.sock");
    let service = WhoCalled { roots: vec![vec![0; MAX_MESSAGE_BYTES]], ..WhoCalled::default() };
    let _server = run(serve_unix(bind_unix(&path, 0o600).unwrap(), Limits::default()), service);
    let channel = connect_unix(&path).await.unwrap();
    let limited = IdentityClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let status = limited.clone().get_bundle(GetBundleRequest {}).await.unwrap_err();
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status}");
    let wide = IdentityClient::new(channel).max_decoding_message_size(2 * MAX_MESSAGE_BYTES);
    assert!(wide.clone().get_bundle(GetBundleRequest {}).await.is_ok());
}
