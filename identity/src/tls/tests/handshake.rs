//! Whole TLS handshakes without sockets: what the configurations really do on the wire.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Error, HandshakeKind, NamedGroup, ProtocolVersion,
    ServerConfig, ServerConnection,
};
use rustls_pki_types::{ServerName, UnixTime};

use super::super::*;
use crate::bundle::TrustBundles;
use crate::denied::{Denied, Denylist};
use crate::forge::{Authority, Forge, Key, at, domain, id};
use crate::x509::fingerprint;

const ORDER: &str = "spiffe://td/ns/shop/sa/order";
const CHARGE: &str = "spiffe://td/ns/shop/sa/charge";
const ALPN: &[&[u8]] = &[b"weft/1"];

#[test]
fn both_ends_prove_who_they_are() {
    let mesh = Mesh::new();
    let (client, server) = mesh.connect().unwrap();
    assert_eq!(peer_id(client.peer_certificates().unwrap()).unwrap().id, id(CHARGE));
    assert_eq!(peer_id(server.peer_certificates().unwrap()).unwrap().id, id(ORDER));
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(client.alpn_protocol(), Some(ALPN[0]));
    assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
}

#[test]
fn tls_01_no_ticket_is_given_and_no_session_is_resumed() {
    let mesh = Mesh::new();
    let (client_config, server_config) = (Arc::new(mesh.client()), Arc::new(mesh.server()));
    for _ in 0..2 {
        let (client, server) = handshake(&client_config, &server_config, "label.local.weft").unwrap();
        assert_eq!(client.tls13_tickets_received(), 0);
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn tls_01_a_client_that_asks_for_tickets_gets_none() {
    let mesh = Mesh::new();
    let mut greedy = mesh.client();
    greedy.resumption = rustls::client::Resumption::in_memory_sessions(16);
    let (greedy, server) = (Arc::new(greedy), Arc::new(mesh.server()));
    for _ in 0..2 {
        let (client, _) = handshake(&greedy, &server, "label.local.weft").unwrap();
        assert_eq!(client.tls13_tickets_received(), 0);
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn tls_02_03_and_06_early_data_half_rtt_data_and_key_logs_are_off() {
    let mesh = Mesh::new();
    let (client, server) = (mesh.client(), mesh.server());
    assert!(!client.enable_early_data && !client.enable_secret_extraction);
    assert!(
        server.max_early_data_size == 0 && !server.send_half_rtt_data && !server.enable_secret_extraction
    );
    assert!(server.send_tls13_tickets == 0 && server.max_tls13_tickets == 0);
    assert!(!client.key_log.will_log("CLIENT_HANDSHAKE_TRAFFIC_SECRET"));
    assert!(!server.key_log.will_log("CLIENT_HANDSHAKE_TRAFFIC_SECRET"));
    assert!(client.cert_decompressors.is_empty() && server.cert_decompressors.is_empty(), "CERT-25");
}

#[test]
fn tls_04_only_tls_13_and_only_the_named_protocols_are_spoken() {
    let provider = crypto_provider();
    let suites = &provider.cipher_suites;
    assert!(suites.iter().all(|suite| suite.version().version == ProtocolVersion::TLSv1_3));
    assert_eq!(provider.kx_groups[0].name(), NamedGroup::X25519MLKEM768);

    let mesh = Mesh::new();
    let mut other = mesh.client();
    other.alpn_protocols = vec![b"h2".to_vec()];
    assert_eq!(refusal(&other, &mesh.server()), Error::NoApplicationProtocol);
}

#[test]
fn cert_23_a_certificate_without_its_key_is_refused() {
    let mesh = Mesh::new();
    let leaf = Forge::leaf(CHARGE).signed_by(&mesh.root);
    let wrong = crypto_provider().key_provider.load_private_key(Key::new().pkcs8()).unwrap();
    let stolen = CertifiedKey::new(vec![leaf], wrong);
    let resolver = SingleCertAndKey::from(stolen);
    let server = mesh.server_presenting(Arc::new(resolver));
    let refused = handshake(&Arc::new(mesh.client()), &Arc::new(server), "label.local.weft").map(|_| ());
    let Err(Failure::Client(Error::InvalidCertificate(error))) = refused else { panic!("{refused:?}") };
    assert_eq!(error, rustls::CertificateError::BadSignature);
}

#[test]
fn cert_24_a_caller_without_a_certificate_is_refused_where_one_is_required() {
    let mesh = Mesh::new();
    let anonymous = mesh.at_noon(client_config(None, mesh.bundles(), exactly(CHARGE), ALPN));
    assert_eq!(refusal(&anonymous, &mesh.server()), Error::NoCertificatesPresented);

    let empty_slot = client_config(Some(SvidSlot::empty()), mesh.bundles(), exactly(CHARGE), ALPN);
    assert_eq!(refusal(&mesh.at_noon(empty_slot), &mesh.server()), Error::NoCertificatesPresented);
}

#[test]
fn a_control_listener_takes_the_anonymous_and_still_refuses_the_untrusted() {
    let mesh = Mesh::new();
    let server = || mesh.server_with(ClientAuth::Optional);
    let anonymous = mesh.at_noon(client_config(None, mesh.bundles(), exactly(CHARGE), ALPN));
    let (_, accepted) = handshake(&Arc::new(anonymous), &Arc::new(server()), "label.local.weft").unwrap();
    assert_eq!(accepted.peer_certificates(), None);

    let stranger = SvidSlot::empty();
    stranger.publish(Authority::root("td").svid(ORDER));
    let stranger = mesh.at_noon(client_config(Some(stranger), mesh.bundles(), exactly(CHARGE), ALPN));
    let refused = refusal(&stranger, &server());
    assert_eq!(VerifyError::of(&refused).unwrap().reason(), "untrusted");
}

#[test]
fn cert_26_a_wrong_server_is_refused_before_it_sees_the_callers_certificate() {
    let mesh = Mesh::new();
    let client = Arc::new(mesh.client_expecting(exactly("spiffe://td/ns/shop/sa/ledger")));
    let mut server = ServerConnection::new(Arc::new(mesh.server())).unwrap();
    let mut client = connection(&client, "label.local.weft");
    let Err(Failure::Client(error)) = drive(&mut client, &mut server) else { panic!("accepted") };
    assert_eq!(VerifyError::of(&error).unwrap().reason(), "unexpected_identity");
    assert_eq!(server.peer_certificates(), None);
}

#[test]
fn cert_04_the_time_of_the_configuration_decides() {
    let mesh = Mesh::new();
    let mut late = mesh.client();
    late.time_provider = Arc::new(Fixed(at(3600)));
    let refused = handshake(&Arc::new(late), &Arc::new(mesh.server()), "label.local.weft").map(|_| ());
    let Err(Failure::Client(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(VerifyError::of(&error).unwrap().reason(), "expired");
}

#[test]
fn rotation_and_withdrawal_show_in_the_next_handshake() {
    let mesh = Mesh::new();
    let (client_config, server_config) = (Arc::new(mesh.client()), Arc::new(mesh.server()));
    let not_after = || {
        let (client, _) = handshake(&client_config, &server_config, "label.local.weft").ok()?;
        Some(peer_id(client.peer_certificates().unwrap()).unwrap().not_after)
    };
    assert_eq!(not_after(), Some(at(3600)));
    mesh.charge.publish(mesh.root.svid_valid(CHARGE, at(-60), at(7200)));
    assert_eq!(not_after(), Some(at(7200)));
    mesh.charge.withdraw();
    assert_eq!(not_after(), None);
}

#[test]
fn a_changed_bundle_counts_from_the_next_handshake() {
    let mesh = Mesh::new();
    let (client_config, server_config) = (Arc::new(mesh.client()), Arc::new(mesh.server()));
    assert!(handshake(&client_config, &server_config, "label.local.weft").is_ok());
    mesh.trusted.publish(TrustBundles::new());
    let refused = handshake(&client_config, &server_config, "label.local.weft").map(|_| ());
    let Err(Failure::Client(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(VerifyError::of(&error).unwrap().reason(), "unknown_trust_domain");
}

#[test]
fn the_first_label_of_the_sni_picks_the_identity_and_there_is_no_default() {
    let mesh = Mesh::new();
    let svids = InboundSvids::new();
    svids.insert("LABEL", mesh.charge.clone());
    svids.insert("empty", SvidSlot::empty());
    assert_eq!(svids.len(), 2);
    let server = Arc::new(mesh.server_presenting(Arc::new(svids.clone())));
    let client = Arc::new(mesh.client());
    let served = |name: &str| handshake(&client, &server, name).is_ok();
    assert!(served("label.local.weft") && served("label"));
    for name in ["empty.local.weft", "other.local.weft", "x.label.weft", "127.0.0.1"] {
        assert!(!served(name), "{name}");
    }
    svids.remove("label");
    assert!(!served("label.local.weft"));
}

#[test]
fn a_joiner_finds_the_pinned_root_in_the_presented_chain() {
    let mesh = Mesh::new();
    let control = SvidSlot::empty();
    control
        .publish_with(mesh.root.svid("spiffe://td/server/a"), std::slice::from_ref(&mesh.root.certificate));
    let server = || {
        let resolver: Arc<dyn ResolvesServerCert> = Arc::new(control.clone());
        mesh.at_noon_server(server_config(resolver, mesh.bundles(), ClientAuth::Optional, ALPN).unwrap())
    };
    let joiner = |pin| mesh.at_noon(join_config(JoinVerifier::new(domain("td"), [pin]), ALPN));
    let pinned = joiner(fingerprint(&mesh.root.certificate));
    let (client, _) = handshake(&Arc::new(pinned), &Arc::new(server()), "localhost").unwrap();
    assert_eq!(peer_id(client.peer_certificates().unwrap()).unwrap().id, id("spiffe://td/server/a"));

    let refused = handshake(&Arc::new(joiner([0; 32])), &Arc::new(server()), "localhost").map(|_| ());
    let Err(Failure::Client(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(VerifyError::of(&error).unwrap().reason(), "unknown_root");
}

#[test]
fn a_tunnel_is_for_workloads_and_not_for_nodes_servers_or_people() {
    let mesh = Mesh::new();
    let resolver: Arc<dyn ResolvesServerCert> = Arc::new(mesh.charge.clone());
    let server = Arc::new(mesh.at_noon_server(tunnel_config(resolver, mesh.bundles(), ALPN).unwrap()));
    let call = || handshake(&Arc::new(mesh.client()), &server, "label.local.weft").map(|_| ());
    assert!(call().is_ok(), "a workload of the domain");
    for stranger in
        ["spiffe://td/node/a", "spiffe://td/server/a", "spiffe://td/user/ann", "spiffe://td/other"]
    {
        mesh.order.publish(mesh.root.svid(stranger));
        let Err(Failure::Server(error)) = call() else { panic!("{stranger} is in the tunnel") };
        assert_eq!(VerifyError::of(&error).unwrap().reason(), "unexpected_identity", "{stranger}");
    }
}

#[test]
fn the_refused_side_learns_by_an_alert() {
    let mesh = Mesh::new();
    let client = mesh.client_expecting(exactly("spiffe://td/ns/shop/sa/ledger"));
    let mut client = connection(&Arc::new(client), "label.local.weft");
    let mut server = ServerConnection::new(Arc::new(mesh.server())).unwrap();
    assert!(drive(&mut client, &mut server).is_err());
    let mut alert = Vec::new();
    client.write_tls(&mut alert).unwrap();
    server.read_tls(&mut alert.as_slice()).unwrap();
    let told = server.process_new_packets().unwrap_err();
    assert_eq!(told, Error::AlertReceived(AlertDescription::CertificateUnknown));
}

#[test]
fn whoever_is_denied_learns_it_by_an_alert_of_its_own_from_the_next_handshake_on() {
    for (node, alert) in
        [(None, AlertDescription::CertificateRevoked), (Some("hostb"), AlertDescription::AccessDenied)]
    {
        let mesh = Mesh::new();
        mesh.connect().unwrap();
        let serial =
            format!("serial:{}", peer_id(mesh.charge.load().unwrap().svid().chain()).unwrap().serial);
        let entry =
            Denied { subject: serial.parse().unwrap(), until: u64::MAX, node: node.map(str::to_owned) };
        mesh.trusted.deny(&Denylist::of([entry], &Denylist::new()));
        // A newer bundle does not set anybody free.
        mesh.trusted.publish(mesh.root.bundles("td"));

        let mut client = connection(&Arc::new(mesh.client()), "label.local.weft");
        let mut server = ServerConnection::new(Arc::new(mesh.server())).unwrap();
        assert!(drive(&mut client, &mut server).is_err());
        let mut sent = Vec::new();
        client.write_tls(&mut sent).unwrap();
        server.read_tls(&mut sent.as_slice()).unwrap();
        assert_eq!(server.process_new_packets().unwrap_err(), Error::AlertReceived(alert));

        mesh.trusted.deny(&Denylist::new());
        mesh.connect().unwrap();
    }
}

/// One trust domain with a caller and a service.
struct Mesh {
    root: Authority,
    order: SvidSlot,
    charge: SvidSlot,
    trusted: BundleSlot,
}

impl Mesh {
    fn new() -> Self {
        let root = Authority::root("td");
        let (order, charge) = (SvidSlot::empty(), SvidSlot::empty());
        order.publish(root.svid(ORDER));
        charge.publish(root.svid(CHARGE));
        let trusted = BundleSlot::new(root.bundles("td"));
        Self { root, order, charge, trusted }
    }

    fn bundles(&self) -> BundleSlot {
        self.trusted.clone()
    }

    fn client(&self) -> ClientConfig {
        self.client_expecting(exactly(CHARGE))
    }

    fn client_expecting(&self, expected: ExpectedPeer) -> ClientConfig {
        self.at_noon(client_config(Some(self.order.clone()), self.bundles(), expected, ALPN))
    }

    fn server(&self) -> ServerConfig {
        self.server_with(ClientAuth::Required)
    }

    fn server_with(&self, client: ClientAuth) -> ServerConfig {
        let resolver: Arc<dyn ResolvesServerCert> = Arc::new(self.charge.clone());
        self.at_noon_server(server_config(resolver, self.bundles(), client, ALPN).unwrap())
    }

    fn server_presenting(&self, resolver: Arc<dyn ResolvesServerCert>) -> ServerConfig {
        self.at_noon_server(server_config(resolver, self.bundles(), ClientAuth::Required, ALPN).unwrap())
    }

    fn at_noon(&self, mut config: ClientConfig) -> ClientConfig {
        config.time_provider = Arc::new(Fixed(at(0)));
        config
    }

    fn at_noon_server(&self, mut config: ServerConfig) -> ServerConfig {
        config.time_provider = Arc::new(Fixed(at(0)));
        config
    }

    fn connect(&self) -> Result<(ClientConnection, ServerConnection), Failure> {
        handshake(&Arc::new(self.client()), &Arc::new(self.server()), "label.local.weft")
    }
}

#[derive(Debug)]
struct Fixed(SystemTime);

impl TimeProvider for Fixed {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.0.duration_since(UNIX_EPOCH).ok()?))
    }
}

/// Which side gave up, and why.
#[derive(Debug)]
enum Failure {
    Client(Error),
    Server(Error),
}

fn exactly(text: &str) -> ExpectedPeer {
    ExpectedPeer::Exactly(id(text))
}

fn connection(config: &Arc<ClientConfig>, name: &str) -> ClientConnection {
    ClientConnection::new(Arc::clone(config), ServerName::try_from(name.to_owned()).unwrap()).unwrap()
}

fn handshake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    name: &str,
) -> Result<(ClientConnection, ServerConnection), Failure> {
    let mut client = connection(client, name);
    let mut server = ServerConnection::new(Arc::clone(server)).map_err(Failure::Server)?;
    drive(&mut client, &mut server)?;
    Ok((client, server))
}

/// Carries records both ways until neither side has any left.
fn drive(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), Failure> {
    loop {
        let mut to_server = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut to_server).unwrap();
        }
        let mut rest = to_server.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().map_err(Failure::Server)?;
        }
        let mut to_client = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut to_client).unwrap();
        }
        let mut rest = to_client.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().map_err(Failure::Client)?;
        }
        if to_server.is_empty() && to_client.is_empty() {
            return Ok(());
        }
    }
}

/// Why the server refuses the client.
fn refusal(client: &ClientConfig, server: &ServerConfig) -> Error {
    match handshake(&Arc::new(client.clone()), &Arc::new(server.clone()), "label.local.weft").map(|_| ()) {
        Err(Failure::Server(error)) => error,
        other => panic!("the server did not refuse: {other:?}"),
    }
}
