//! A person's own identity: how the command line speaks to a server that is not on this host.
//!
//! `weft user login` trades a one-use token for an SVID `/user/<name>`; its key is born here and stays in the
//! configuration directory, mode 0600. It is renewed on use, once half its life has passed.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use rustls_pki_types::CertificateDer;
use tonic::transport::Channel;
use weft_api::{
    channel::{self, ALPN_H2, ConnectSettings},
    fault::Fault,
    pb::identity::{GetBundleRequest, IssueSvidRequest, JoinRequest, identity_client::IdentityClient},
    token::{JoinToken, Subject},
};
use weft_identity::{
    bundle::{TrustBundle, TrustBundles},
    csr::SigningRequest,
    spiffe::SpiffeId,
    svid::Svid,
    tls::{BundleSlot, ExpectedPeer, JoinVerifier, SvidSlot, client_config, join_config},
};
use weft_node::{clock::Clock, join::clock_fault};
use weft_policy::{code, model::HostPort};

use crate::{
    args::groups::{Purpose, UserArgs, UserCommand},
    client,
    error::{CliError, Exit},
    output::Output,
    paths,
    run::{agent::read_token, background},
};

/// The person's SVID and key, PEM.
const IDENTITY: &str = "identity.pem";
/// The mesh's roots.
const BUNDLE: &str = "bundle.json";
/// How long login may take.
const LOGIN_WITHIN: Duration = Duration::from_secs(30);

/// What the configuration directory holds of a person.
pub(crate) struct Person {
    dir: PathBuf,
    svid: Svid,
    bundle: TrustBundle,
}

/// Dispatches `weft user …`.
pub(crate) fn user(args: &UserArgs, output: &Output) -> Result<ExitCode, CliError> {
    match &args.command {
        UserCommand::Login { token_file } => {
            let token = read_token(token_file, Purpose::User)?;
            let id = login(&token)?;
            output.done(format!("you are {id}, until renewed in 12 h by use"));
            let servers: Vec<_> = token.servers.iter().map(ToString::to_string).collect();
            output.talk(format!("next: weft status --server {}", servers.join(" or ")));
            Ok(ExitCode::SUCCESS)
        }
        UserCommand::Whoami => {
            let person = load()?;
            output.line(person.svid.id().to_string())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn login(token: &JoinToken) -> Result<SpiffeId, CliError> {
    let Subject::User(name) = &token.subject else {
        let fault = Fault::new(code::TOKEN_OTHER_PURPOSE, "this token is for an agent, not for a person")
            .fix("weft token create --for user --user NAME --role viewer");
        return Err(CliError::new(Exit::Invalid, fault));
    };
    let verifier = JoinVerifier::new(token.trust_domain.clone(), token.fingerprints.iter().copied());
    let tls = Arc::new(join_config(verifier, &[ALPN_H2]));
    let (key, csr) = SigningRequest::create().map_err(CliError::internal)?;
    let request = JoinRequest {
        secret: token.secret().to_owned(),
        node: String::new(),
        csr,
        version: crate::observe::version::VERSION.to_owned(),
        ..JoinRequest::default()
    };
    let answer = client::run(async {
        let channel = connect_any(&token.servers, tls, LOGIN_WITHIN).await?;
        Ok(IdentityClient::new(channel).join(request).await?.into_inner())
    })?;
    let chain = answer.chain.into_iter().map(CertificateDer::from).collect();
    let svid = Svid::parse(chain, key).map_err(CliError::internal)?;
    let bundle = answer.bundle.unwrap_or_default();
    let roots: Vec<_> = bundle.roots.into_iter().map(CertificateDer::from).collect();
    let bundle =
        TrustBundle::new(token.trust_domain.clone(), roots, bundle.sequence).map_err(CliError::internal)?;
    let known = bundle.fingerprints().iter().any(|found| token.fingerprints.contains(found));
    let expected = SpiffeId::user(&token.trust_domain, name).map_err(CliError::internal)?;
    if !known || *svid.id() != expected {
        let fault = Fault::new(code::FINGERPRINT_MISMATCH, "the server's answer does not match the token");
        return Err(CliError::new(Exit::NotAllowed, fault));
    }
    let person = Person { dir: paths::config_dir()?, svid, bundle };
    background::private_dir(&person.dir)?;
    person.keep()?;
    Ok(expected)
}

/// The person whose identity lies in the configuration directory.
pub(crate) fn load() -> Result<Person, CliError> {
    let dir = paths::config_dir()?;
    let nobody = || {
        let fault = Fault::new(code::UNAUTHENTICATED, "you have no identity for a server on another host")
            .why(format!("{} does not exist", dir.join(IDENTITY).display()))
            .fix("on the server's host:  weft token create --for user --user NAME --role viewer")
            .fix("here:                  weft user login --token-file FILE");
        CliError::new(Exit::NotAllowed, fault)
    };
    let pem = std::fs::read_to_string(dir.join(IDENTITY)).map_err(|_| nobody())?;
    let pem = zeroize::Zeroizing::new(pem);
    let svid = Svid::from_pem(&pem).map_err(|e| CliError::file(&dir.join(IDENTITY), &e))?;
    let document = std::fs::read(dir.join(BUNDLE)).map_err(|_| nobody())?;
    let domain = svid.id().trust_domain().clone();
    let bundle =
        TrustBundle::from_jwks(domain, &document).map_err(|e| CliError::file(&dir.join(BUNDLE), &e))?;
    Ok(Person { dir, svid, bundle })
}

impl Person {
    /// Connects to a server as this person, and renews the SVID when half its life has passed.
    pub(crate) async fn connect(mut self, address: &str, timeout: Duration) -> Result<Channel, CliError> {
        let address: HostPort = address.parse().map_err(|_| {
            CliError::usage(
                format!("{address:?} is neither a socket's path nor host:port"),
                "--server HOST:7444",
            )
        })?;
        let now = Clock::system().wall();
        if !self.svid.validity().contains(now) {
            let fault = Fault::new(code::OWN_SVID_EXPIRED, "your certificate has expired")
                .fix("on the server's host:  weft token create --for user --user NAME --role viewer")
                .fix("here:                  weft user login --token-file FILE");
            return Err(CliError::new(Exit::NotAllowed, fault));
        }
        let slot = SvidSlot::empty();
        slot.publish(self.svid.clone());
        let expected = ExpectedPeer::AnyServerOf(self.svid.id().trust_domain().clone());
        let bundles = BundleSlot::new(TrustBundles::from(self.bundle.clone()));
        let tls = Arc::new(client_config(Some(slot), bundles, expected, &[ALPN_H2]));
        let channel = connect_any(&[address], tls, timeout).await?;
        let validity = self.svid.validity();
        if validity.remaining(now) < validity.period() / 2 {
            self.renew(channel.clone()).await?;
        }
        self.refresh_bundle(channel.clone()).await?;
        Ok(channel)
    }

    /// Learns of new roots before one of them signs the server's certificate. A server that does not tell leaves what is
    /// known; an older bundle is a rollback and is not taken.
    async fn refresh_bundle(&mut self, channel: Channel) -> Result<(), CliError> {
        let Ok(answer) = IdentityClient::new(channel).get_bundle(GetBundleRequest {}).await else {
            return Ok(());
        };
        let (answer, domain) = (answer.into_inner(), self.bundle.trust_domain().clone());
        let roots: Vec<_> = answer.roots.into_iter().map(CertificateDer::from).collect();
        if answer.sequence <= self.bundle.sequence() || answer.trust_domain != domain.as_str() {
            return Ok(());
        }
        self.bundle = TrustBundle::new(domain, roots, answer.sequence).map_err(CliError::internal)?;
        self.keep()
    }

    async fn renew(&mut self, channel: Channel) -> Result<(), CliError> {
        let (key, csr) = SigningRequest::create().map_err(CliError::internal)?;
        let replaces = self.svid.serial().to_string();
        let request = IssueSvidRequest { spiffe_id: self.svid.id().to_string(), csr, replaces };
        let answer = IdentityClient::new(channel).issue_svid(request).await?.into_inner();
        let chain = answer.chain.into_iter().map(CertificateDer::from).collect();
        self.svid = Svid::parse(chain, key).map_err(CliError::internal)?;
        self.keep()
    }

    fn keep(&self) -> Result<(), CliError> {
        background::write_private(&self.dir.join(IDENTITY), self.svid.to_pem().as_bytes())?;
        background::write_private(&self.dir.join(BUNDLE), self.bundle.to_jwks().as_bytes())
    }
}

async fn connect_any(
    servers: &[HostPort],
    tls: Arc<rustls::ClientConfig>,
    timeout: Duration,
) -> Result<Channel, CliError> {
    let name = servers.first().map_or("server", |server| server.host.as_str()).to_owned();
    let settings = ConnectSettings { timeout, ..ConnectSettings::default() };
    channel::connect_with(servers, tls, &name, settings).await.map_err(|error| {
        let code = match clock_fault(&error) {
            Some(code) => code,
            None if error.is_tls_refusal() => code::WRONG_SERVER,
            None => code::SERVER_UNREACHABLE,
        };
        let fault = Fault::new(code, "cannot connect to the server").why(error.to_string());
        CliError::new(Exit::Unreachable, fault)
    })
}
