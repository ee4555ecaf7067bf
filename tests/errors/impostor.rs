//! Somebody in the place of an agent: at its address, with the certificate that a scenario chooses, and with answers that no
//! agent of this version gives. Also a caller of that kind.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, TokioRuntime, VarInt};
use rustls::server::ResolvesServerCert;
use tokio::sync::oneshot;
use weft_identity::TrustDomain;
use weft_identity::bundle::{TrustBundle, TrustBundles};
use weft_identity::svid::Svid;
use weft_identity::tls::{BundleSlot, ClientAuth, ExpectedPeer, SvidSlot, client_config, server_config};
use weft_overlay::{ALPN, CloseCode, Refused, ResetCode, StreamReply};
use weft_tests::forge::{Forged, Presented};
use weft_tests::manifest::TRUST_DOMAIN;
use weft_tests::netns::Host;
use weft_tests::presented::Proof;

/// The port of tunnels.
pub(crate) const TUNNELS: u16 = 7_443;

/// Packets of a stalled answer that arrive: those with the hello, however large its key shares are, and what follows it.
const LET_THROUGH: usize = 5;
/// Certificates that make the answer far longer than that.
const PADDING: usize = 30;

/// What it does with a flow, once the caller has accepted its certificate.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Resets it.
    Reset(ResetCode),
    /// Refuses it in the words of the protocol.
    Refuse(ResetCode, &'static str),
    /// Answers with bytes that are no reply.
    Nonsense,
    /// Closes the whole tunnel.
    Close(CloseCode),
}

/// An impostor at work; dropping it ends it and frees the port.
pub(crate) struct Impostor {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Impostor {
    /// Takes the port of tunnels on `host`, presents `forged`, speaks `protocol`, and answers.
    #[track_caller]
    pub(crate) fn start(host: &Host, state: &Path, forged: &Forged, protocol: &[u8], answer: Answer) -> Self {
        let config = tls(state, forged.presented(), protocol);
        Self::run(config, bind(host), async move |endpoint| {
            while let Some(incoming) = endpoint.accept().await {
                let Ok(connection) = incoming.await else { continue };
                let _ = serve(&connection, &answer).await;
                connection.closed().await;
            }
        })
    }

    /// Takes the port, and lets only the first packets of its long answer through: it has answered, and its handshake
    /// never ends.
    #[track_caller]
    pub(crate) fn stalling(host: &Host, state: &Path, forged: &Forged) -> Self {
        let last = forged.chain.last().cloned();
        let chain = forged.chain.iter().cloned().chain(last.into_iter().cycle().take(PADDING)).collect();
        let long = Forged { chain, proof: forged.proof.clone() };
        let config = tls(state, long.presented(), ALPN);
        let (front, back) = (bind(host), UdpSocket::bind("127.0.0.1:0").unwrap());
        Self::run(config, back, async move |endpoint| {
            let server = endpoint.local_addr().unwrap();
            let accepting = async {
                // Kept, as one that is dropped closes the connection.
                let mut handshakes = Vec::new();
                while let Some(incoming) = endpoint.accept().await {
                    handshakes.push(incoming.accept());
                }
            };
            tokio::join!(accepting, relay(front, server));
        })
    }

    fn run(
        config: rustls::ServerConfig,
        socket: UdpSocket,
        work: impl AsyncFnOnce(quinn::Endpoint) + Send + 'static,
    ) -> Self {
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let endpoint = endpoint(config, socket);
                tokio::select! {
                    () = work(endpoint.clone()) => {}
                    _ = stopped => {}
                }
                // Else callers would go on with a tunnel to nobody.
                endpoint.close(VarInt::from_u32(0), b"");
                let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
            });
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(connection: &quinn::Connection, answer: &Answer) -> Result<(), Box<dyn std::error::Error>> {
    let (mut send, mut recv) = connection.accept_bi().await?;
    match answer {
        Answer::Reset(code) => {
            let code = VarInt::from_u64(code.number())?;
            send.reset(code)?;
            recv.stop(code)?;
        }
        Answer::Refuse(code, error) => {
            send.write_all(&StreamReply::Refused(Refused::new(*code, error, "")).encode()).await?;
            send.finish()?;
        }
        Answer::Nonsense => send.write_all(&[0xff; 64]).await?,
        Answer::Close(code) => connection.close(VarInt::from_u64(code.number())?, b""),
    }
    Ok(())
}

/// Carries packets between callers and `server`, of which only the first [`LET_THROUGH`] come back.
async fn relay(front: UdpSocket, server: SocketAddr) {
    front.set_nonblocking(true).unwrap();
    let front = tokio::net::UdpSocket::from_std(front).unwrap();
    let back = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (mut caller, mut left) = (None, LET_THROUGH);
    let (mut forth, mut home) = ([0; 2_048], [0; 2_048]);
    loop {
        tokio::select! {
            Ok((length, from)) = front.recv_from(&mut forth) => {
                caller = Some(from);
                let _ = back.send_to(&forth[..length], server).await;
            }
            Ok((length, _)) = back.recv_from(&mut home) => {
                if let (Some(caller), 1..) = (caller, left) {
                    left -= 1;
                    let _ = front.send_to(&home[..length], caller).await;
                }
            }
        }
    }
}

/// Calls the agent of `target` as `svid`, or as nobody, and opens a flow that begins with `bytes`.
#[track_caller]
pub(crate) fn call(
    from: &Host,
    target: SocketAddr,
    state: &Path,
    svid: Option<&Path>,
    sni: &str,
    bytes: &[u8],
) {
    let slot = svid.map(|path| {
        let slot = SvidSlot::empty();
        slot.publish(Svid::from_pem(&fs::read_to_string(path).unwrap()).unwrap());
        slot
    });
    let config = client_config(slot, bundles(state), ExpectedPeer::Anyone, &[ALPN]);
    let socket = from.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let endpoint =
            quinn::Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)).unwrap();
        let crypto = QuicClientConfig::try_from(config).unwrap();
        let connecting =
            endpoint.connect_with(quinn::ClientConfig::new(Arc::new(crypto)), target, sni).unwrap();
        // Whoever shows no certificate is refused after its own handshake has ended.
        let Ok(connection) = connecting.await else { return };
        if let Ok((mut send, mut recv)) = connection.open_bi().await {
            let _ = send.write_all(bytes).await;
            let _ = send.finish();
            let _ = tokio::time::timeout(Duration::from_secs(5), recv.read(&mut [0; 16])).await;
        }
        connection.close(VarInt::from_u32(0), b"");
        endpoint.wait_idle().await;
    });
}

/// The SVID in a PEM file, as a thief presents it.
#[track_caller]
pub(crate) fn stolen(path: &Path) -> Forged {
    let svid = Svid::from_pem(&fs::read_to_string(path).unwrap()).unwrap();
    Forged { chain: svid.chain().to_vec(), proof: Proof::Key(svid.key().secret_der().to_vec()) }
}

/// What an agent trusts, from its state directory.
#[track_caller]
fn bundles(state: &Path) -> BundleSlot {
    let domain: TrustDomain = TRUST_DOMAIN.parse().unwrap();
    let document = fs::read(state.join("bundle.json")).unwrap();
    BundleSlot::new(TrustBundles::from(TrustBundle::from_jwks(domain, &document).unwrap()))
}

fn tls(state: &Path, presented: Arc<Presented>, protocol: &[u8]) -> rustls::ServerConfig {
    let resolver: Arc<dyn ResolvesServerCert> = presented;
    server_config(resolver, bundles(state), ClientAuth::Optional, &[protocol]).unwrap()
}

/// A socket on the port of tunnels; whoever had it has just ended.
#[track_caller]
fn bind(host: &Host) -> UdpSocket {
    host.enter(|| UdpSocket::bind(("0.0.0.0", TUNNELS))).unwrap()
}

fn endpoint(config: rustls::ServerConfig, socket: UdpSocket) -> quinn::Endpoint {
    let crypto = QuicServerConfig::try_from(config).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    quinn::Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime)).unwrap()
}
