//! A real QUIC handshake between Weft's tunnel endpoint and an attacker, in both roles.
//!
//! The victim is an [`Overlay`] with the TLS configurations of `weft-identity`; the attacker is a bare
//! quinn endpoint that presents what it likes. What counts is what the victim says.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::server::ResolvesServerCert;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::{CertificateDer, UnixTime};
use weft_identity::TrustDomain;
use weft_identity::bundle::{TrustBundle, TrustBundles};
use weft_identity::svid::Svid;
use weft_identity::tls::{
    BundleSlot, ClientAuth, ExpectedPeer, InboundSvids, SvidSlot, client_config, server_config,
};
use weft_overlay::{ALPN, EndpointKeys, Overlay, OverlayMetrics, TransportSettings, Tunnel, bind_udp};

use crate::forge::{Authority, Forged, Leaf, Presented};
use crate::verdict::{Verdict, judge_callee, judge_caller};

/// The trust domain of the victim.
pub const LOCAL: &str = "corp.example";
/// A domain whose bundle the victim holds too.
pub const PARTNER: &str = "partner.example";
/// The victim.
pub const CHARGE: &str = "spiffe://corp.example/ns/shop/sa/charge";
/// Whom the attacker would like to be.
pub const ORDER: &str = "spiffe://corp.example/ns/shop/sa/order";

/// The endpoint label of the victim, as the SNI of a dial.
pub const SERVER_NAME: &str = "label.local.weft";

/// Two trust domains, and a victim that trusts both.
#[derive(Debug)]
pub struct Lab {
    /// The root of the victim's own domain.
    pub local: Authority,
    /// An intermediate under it.
    pub intermediate: Authority,
    /// The root of the partner's domain.
    pub partner: Authority,
    /// What the victim trusts.
    pub bundles: BundleSlot,
    victim: SvidSlot,
    clock: Option<Moment>,
}

/// The clock of a victim that stands still.
#[derive(Clone, Copy, Debug)]
struct Moment(SystemTime);

impl TimeProvider for Moment {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// New roots, and a victim with an SVID in order.
    ///
    /// # Panics
    ///
    /// If identity refuses what is in order.
    pub fn new() -> Self {
        Self::trusting(&[])
    }

    /// The same, and the victim trusts `roots` too, as roots of its own domain.
    ///
    /// # Panics
    ///
    /// If identity refuses what is in order.
    pub fn trusting(roots: &[CertificateDer<'static>]) -> Self {
        let (local, partner) = (Authority::root(LOCAL), Authority::root(PARTNER));
        let intermediate = local.intermediate(LOCAL);
        let mut trusted = bundles(&[(LOCAL, &local), (PARTNER, &partner)]);
        let roots = std::iter::once(local.certificate()).chain(roots).cloned().collect();
        let own = TrustBundle::new(LOCAL.parse().expect("a trust domain"), roots, 2);
        trusted.insert(own.expect("roots in order")).expect("no key is in two domains");
        let bundles = BundleSlot::new(trusted);
        let own = intermediate.sign(&Leaf::good(CHARGE), &[&intermediate]);
        let victim = SvidSlot::empty();
        victim.publish(Svid::parse(own.chain.clone(), own.key()).expect("it is in order"));
        Self { local, intermediate, partner, bundles, victim, clock: None }
    }

    /// For the victim it is `now` from here on.
    pub fn at(&mut self, now: SystemTime) {
        self.clock = Some(Moment(now));
    }

    /// What the victim makes of a caller that presents `forged`, and what the caller hears of it.
    pub async fn judge_caller(&self, forged: &Forged) -> Verdict {
        self.judge_caller_with(self.attacker_config(forged.presented())).await
    }

    /// What the victim makes of a caller with `config`.
    pub async fn judge_caller_with(&self, config: rustls::ClientConfig) -> Verdict {
        judge_caller(&self.victim(), config).await
    }

    /// What the victim makes of a callee that presents `forged` where it expects `expected`.
    pub async fn judge_callee(&self, forged: &Forged, expected: ExpectedPeer) -> Verdict {
        self.judge_callee_with(self.attacker_server(forged.presented()), expected).await
    }

    /// What the victim makes of a callee with `config`.
    pub async fn judge_callee_with(&self, config: rustls::ServerConfig, expected: ExpectedPeer) -> Verdict {
        judge_callee(&self.victim(), self.victim_client(expected), config).await
    }

    /// A server of the attacker that trusts the victim and presents what `resolver` says.
    ///
    /// # Panics
    ///
    /// If the provider lacks TLS 1.3.
    pub fn attacker_server(&self, resolver: Arc<dyn ResolvesServerCert>) -> rustls::ServerConfig {
        let config = server_config(resolver, self.bundles.clone(), ClientAuth::Required, &[ALPN]);
        config.expect("the provider speaks TLS 1.3")
    }

    fn victim_client(&self, expected: ExpectedPeer) -> rustls::ClientConfig {
        let mut config = client_config(Some(self.victim.clone()), self.bundles.clone(), expected, &[ALPN]);
        if let Some(moment) = self.clock {
            config.time_provider = Arc::new(moment);
        }
        config
    }

    /// `leaf` as this mesh signs it: by the intermediate of the local domain.
    pub fn sign(&self, leaf: &Leaf) -> Forged {
        self.intermediate.sign(leaf, &[&self.intermediate])
    }

    /// The victim's endpoint on a port of its own.
    ///
    /// # Panics
    ///
    /// If it cannot be bound.
    pub fn victim(&self) -> Overlay {
        self.victim_with(TransportSettings::default())
    }

    /// The same with other limits.
    ///
    /// # Panics
    ///
    /// If it cannot be bound.
    pub fn victim_with(&self, settings: TransportSettings) -> Overlay {
        let inbound = InboundSvids::new();
        inbound.insert("label", self.victim.clone());
        let config = server_config(Arc::new(inbound), self.bundles.clone(), ClientAuth::Required, &[ALPN]);
        let mut config = config.expect("the provider speaks TLS 1.3");
        if let Some(moment) = self.clock {
            config.time_provider = Arc::new(moment);
        }
        endpoint(config, settings)
    }

    /// What the victim says when a client with `config` calls.
    ///
    /// # Errors
    ///
    /// The victim's reason to refuse.
    pub async fn call_victim_with(&self, config: rustls::ClientConfig) -> Result<Tunnel, String> {
        let victim = self.victim();
        let (dialled, accepted) = tokio::join!(dial(address(&victim), config), accept(&victim));
        // A client of TLS 1.3 may think that it is in before the server has judged it: the server counts.
        drop(dialled);
        accepted
    }

    /// A client of the attacker that trusts the victim and presents `resolver`'s chain.
    pub fn attacker_config(&self, resolver: Arc<Presented>) -> rustls::ClientConfig {
        let mut config = self.anonymous_config();
        config.client_auth_cert_resolver = resolver;
        config
    }

    /// A client without a certificate that trusts the victim.
    pub fn anonymous_config(&self) -> rustls::ClientConfig {
        client_config(None, self.bundles.clone(), ExpectedPeer::Anyone, &[ALPN])
    }
}

/// Bundles with one root each.
///
/// # Panics
///
/// If identity refuses a root in order.
pub fn bundles(roots: &[(&str, &Authority)]) -> TrustBundles {
    let mut bundles = TrustBundles::new();
    for (domain, root) in roots {
        let domain: TrustDomain = domain.parse().expect("a trust domain");
        let bundle = TrustBundle::new(domain, vec![root.certificate().clone()], 1).expect("a root in order");
        bundles.insert(bundle).expect("few bundles");
    }
    bundles
}

/// Dials `target` with a bare quinn client, as the attacker.
///
/// # Errors
///
/// If the handshake fails on this side.
pub async fn dial(target: SocketAddr, config: rustls::ClientConfig) -> Result<quinn::Connection, String> {
    let connecting = connecting(target, config)?;
    connecting.await.map_err(|error| error.to_string())
}

/// A bare quinn endpoint that takes calls with `config`.
///
/// # Panics
///
/// If there is no free port.
pub fn listen(config: rustls::ServerConfig) -> quinn::Endpoint {
    let crypto = QuicServerConfig::try_from(config).expect("it has the suite of Initial packets");
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    quinn::Endpoint::server(config, loopback()).expect("a free port")
}

/// Begins to dial `target` with a bare quinn client.
///
/// # Errors
///
/// If it cannot even begin.
pub fn connecting(target: SocketAddr, config: rustls::ClientConfig) -> Result<quinn::Connecting, String> {
    let crypto = QuicClientConfig::try_from(config).map_err(|error| error.to_string())?;
    let client = quinn::Endpoint::client(loopback()).map_err(|error| error.to_string())?;
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    client.connect_with(config, target, SERVER_NAME).map_err(|error| error.to_string())
}

/// What `victim` says of the next caller.
///
/// # Errors
///
/// Its reason to refuse.
///
/// # Panics
///
/// If the victim's endpoint is closed.
pub async fn accept(victim: &Overlay) -> Result<Tunnel, String> {
    let handshake = victim.accept().await.expect("the endpoint is open");
    handshake.finish().await.map_err(|error| error.to_string())
}

/// Where `victim` listens.
///
/// # Panics
///
/// If it has no address, which a bound one has.
pub fn address(victim: &Overlay) -> SocketAddr {
    victim.local_addr().expect("it is bound")
}

fn endpoint(config: rustls::ServerConfig, settings: TransportSettings) -> Overlay {
    let socket = bind_udp(loopback()).expect("a free port");
    let keys = EndpointKeys::generate().expect("the provider has entropy");
    let metrics = Arc::new(OverlayMetrics::unregistered());
    let bound = Overlay::bind(socket, Arc::new(config), settings, &keys, metrics);
    bound.expect("the defaults can be used")
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}
