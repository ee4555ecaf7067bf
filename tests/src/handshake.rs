//! A real QUIC handshake between Weft's tunnel endpoint and an attacker, in both roles.
//!
//! The victim is an [`Overlay`] with the TLS configurations of `weft-identity`; the attacker is a bare
//! quinn endpoint that presents what it likes. What counts is what the victim says.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use weft_identity::TrustDomain;
use weft_identity::bundle::{TrustBundle, TrustBundles};
use weft_identity::svid::Svid;
use weft_identity::tls::{
    BundleSlot, ClientAuth, ExpectedPeer, InboundSvids, SvidSlot, client_config, server_config,
};
use weft_overlay::{ALPN, EndpointKeys, Overlay, OverlayMetrics, TransportSettings, Tunnel, bind_udp};

use crate::forge::{Authority, Forged, Leaf, Presented};

/// The trust domain of the victim.
pub const LOCAL: &str = "corp.example";
/// A domain whose bundle the victim holds too.
pub const PARTNER: &str = "partner.example";
/// The victim.
pub const CHARGE: &str = "spiffe://corp.example/ns/shop/sa/charge";
/// Whom the attacker would like to be.
pub const ORDER: &str = "spiffe://corp.example/ns/shop/sa/order";

/// The endpoint label of the victim, as the SNI of a dial.
const SERVER_NAME: &str = "label.local.weft";

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
        let (local, partner) = (Authority::root(LOCAL), Authority::root(PARTNER));
        let intermediate = local.intermediate(LOCAL);
        let bundles = BundleSlot::new(bundles(&[(LOCAL, &local), (PARTNER, &partner)]));
        let own = intermediate.sign(&Leaf::good(CHARGE), &[&intermediate]);
        let victim = SvidSlot::empty();
        victim.publish(Svid::parse(own.chain.clone(), own.key()).expect("it is in order"));
        Self { local, intermediate, partner, bundles, victim }
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
        let inbound = InboundSvids::new();
        inbound.insert("label", self.victim.clone());
        let config = server_config(Arc::new(inbound), self.bundles.clone(), ClientAuth::Required, &[ALPN]);
        endpoint(config.expect("the provider speaks TLS 1.3"))
    }

    /// What the victim says when the attacker calls with `forged`.
    ///
    /// # Errors
    ///
    /// The victim's reason to refuse.
    pub async fn call_victim(&self, forged: &Forged) -> Result<Tunnel, String> {
        let config = self.attacker_config(forged.presented());
        self.call_victim_with(config).await
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

    /// What the victim says when it dials `expected` and finds the attacker, who presents `forged`.
    /// The second value is whom the attacker saw: nobody, unless the victim went all the way.
    pub async fn dialled_by_victim(
        &self,
        forged: &Forged,
        expected: ExpectedPeer,
    ) -> (Result<(), String>, bool) {
        let resolver = forged.presented();
        let config = server_config(resolver, self.bundles.clone(), ClientAuth::Required, &[ALPN]);
        let crypto = QuicServerConfig::try_from(config.expect("the provider speaks TLS 1.3"));
        let crypto = Arc::new(crypto.expect("it has the suite of Initial packets"));
        let attacker = quinn::Endpoint::server(quinn::ServerConfig::with_crypto(crypto), loopback());
        let attacker = attacker.expect("a free port");
        let target = attacker.local_addr().expect("it is bound");

        let victim = self.victim();
        let client = client_config(Some(self.victim.clone()), self.bundles.clone(), expected, &[ALPN]);
        let sees = async {
            let connection = attacker.accept().await.expect("the victim dials").await;
            connection.is_ok_and(|connection| connection.peer_identity().is_some())
        };
        let targets = [target];
        let (dialled, seen) = tokio::join!(victim.dial(&targets, SERVER_NAME, Arc::new(client)), sees);
        (dialled.map(drop).map_err(|error| error.to_string()), seen)
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

fn endpoint(config: rustls::ServerConfig) -> Overlay {
    let socket = bind_udp(loopback()).expect("a free port");
    let keys = EndpointKeys::generate().expect("the provider has entropy");
    let metrics = Arc::new(OverlayMetrics::unregistered());
    let bound = Overlay::bind(socket, Arc::new(config), TransportSettings::default(), &keys, metrics);
    bound.expect("the defaults can be used")
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}
