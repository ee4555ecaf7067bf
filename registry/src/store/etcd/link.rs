//! The way to the cluster: one connection to one of its members, and another member when that one fails.
//!
//! Owns dialling, logging in, and the choice of the member. A [`Session`] is one connection; whoever finds it failing
//! says so ([`Link::failed`]), which ends it for everybody and makes the next member the first choice.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::{Interceptor, interceptor::InterceptedService};
use tonic::transport::Channel;
use tonic::{Request, Status};
use weft_api::channel::{ConnectError, ConnectSettings, connect_plain, connect_with};
use weft_api::pb::etcd::AuthenticateRequest;
use weft_api::pb::etcd::auth_client::AuthClient;
use weft_api::pb::etcd::kv_client::KvClient;
use weft_api::pb::etcd::lease_client::LeaseClient;
use weft_api::pb::etcd::watch_client::WatchClient;
use weft_policy::model::HostPort;
use zeroize::Zeroizing;

use super::caller::MAX_ANSWER_BYTES;
use super::error::Failure;
use super::settings::Timeouts;

/// One member of the cluster: `https://host:port`, or `http://` on loopback.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Where it listens for clients.
    pub address: HostPort,
}

/// The text is no endpoint.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// It is not of that form.
    #[error("{0:?} is not https://host:port")]
    Form(String),
    /// The password and every record would cross the network readable.
    #[error("{0:?} is not on loopback, and elsewhere etcd must be asked over https")]
    Plain(String),
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shown = || text.chars().take(80).collect();
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(InvalidEndpoint::Form(shown())),
        };
        let address: HostPort =
            rest.strip_suffix('/').unwrap_or(rest).parse().map_err(|_| InvalidEndpoint::Form(shown()))?;
        let loopback = address.host == "localhost"
            || address.host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if !tls && !loopback {
            return Err(InvalidEndpoint::Plain(shown()));
        }
        Ok(Self { tls, address })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }
}

/// A user of etcd. Its debug form does not show the password.
#[derive(Clone)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its password.
    pub password: Zeroizing<String>,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}

/// One connection to one member.
pub(super) struct Session {
    channel: Signed,
    pub(super) endpoint: Endpoint,
    /// Cancelled once somebody found it failing.
    pub(super) dead: CancellationToken,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// A channel whose every call carries what [`Signature`] adds.
type Signed = InterceptedService<Channel, Signature>;

/// What each call says of itself: as whom it is made, and that a member without a leader shall refuse it at once.
#[derive(Clone)]
pub(super) struct Signature {
    token: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Signature {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        Ok(request)
    }
}

impl Session {
    pub(super) fn kv(&self) -> KvClient<Signed> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(super) fn watch(&self) -> WatchClient<Signed> {
        WatchClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(super) fn lease(&self) -> LeaseClient<Signed> {
        LeaseClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }
}

/// See the module.
pub(super) struct Link {
    endpoints: Vec<Endpoint>,
    tls: Option<Arc<rustls::ClientConfig>>,
    user: Option<User>,
    timeouts: Timeouts,
    /// The member that is tried first.
    first: AtomicUsize,
    current: Mutex<Option<Arc<Session>>>,
}

impl Link {
    pub(super) fn new(
        endpoints: Vec<Endpoint>,
        tls: Option<Arc<rustls::ClientConfig>>,
        user: Option<User>,
        timeouts: Timeouts,
    ) -> Self {
        Self { endpoints, tls, user, timeouts, first: AtomicUsize::new(0), current: Mutex::new(None) }
    }

    /// The connection there is, or a new one: each member is tried once. Cancel-safe.
    ///
    /// # Errors
    ///
    /// What the last member said.
    pub(super) async fn session(&self) -> Result<Arc<Session>, Failure> {
        let mut current = self.current.lock().await;
        if let Some(session) = current.as_ref().filter(|session| !session.dead.is_cancelled()) {
            return Ok(Arc::clone(session));
        }
        *current = None;
        let mut last = Failure::from(ConnectError::NoAddress);
        for _ in 0..self.endpoints.len() {
            let index = self.first.load(Ordering::Relaxed) % self.endpoints.len();
            let endpoint = self.endpoints[index].clone();
            match self.dial(&endpoint).await {
                Ok(channel) => {
                    tracing::info!(%endpoint, "connected to etcd");
                    let session = Arc::new(Session { channel, endpoint, dead: CancellationToken::new() });
                    *current = Some(Arc::clone(&session));
                    return Ok(session);
                }
                Err(failure) => {
                    tracing::warn!(%endpoint, %failure, "etcd does not take a connection");
                    self.first.fetch_add(1, Ordering::Relaxed);
                    last = failure;
                }
            }
        }
        Err(last)
    }

    /// Ends a session that failed; the next one starts at the next member.
    pub(super) fn failed(&self, session: &Session, failure: &Failure) {
        if !session.dead.is_cancelled() {
            session.dead.cancel();
            self.first.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(endpoint = %session.endpoint, %failure, "etcd failed");
        }
    }

    /// Everything within the time of a dial: a member that accepts and says nothing is as good as none.
    async fn dial(&self, endpoint: &Endpoint) -> Result<Signed, Failure> {
        let limit = self.timeouts.dial;
        let dialled = tokio::time::timeout(limit, self.log_in(endpoint)).await;
        dialled.unwrap_or(Err(Failure::TimedOut(limit)))
    }

    async fn log_in(&self, endpoint: &Endpoint) -> Result<Signed, Failure> {
        let settings = ConnectSettings { timeout: self.timeouts.dial, keep_alive: self.timeouts.keep_alive };
        let address = std::slice::from_ref(&endpoint.address);
        let channel = match (&self.tls, endpoint.tls) {
            (Some(tls), true) => {
                connect_with(address, Arc::clone(tls), &endpoint.address.host, settings).await?
            }
            (None, true) => return Err(ConnectError::NoAddress.into()),
            (_, false) => connect_plain(address, settings).await?,
        };
        let mut signature = Signature { token: None };
        if let Some(User { name, password }) = &self.user {
            let request = AuthenticateRequest { name: name.clone(), password: password.as_str().to_owned() };
            let mut client = AuthClient::with_interceptor(channel.clone(), signature.clone());
            let answer = client.authenticate(request).await?.into_inner();
            let unreadable = |_| Status::internal("etcd's token is not one that a header can carry");
            let mut token: MetadataValue<Ascii> = answer.token.parse().map_err(unreadable)?;
            token.set_sensitive(true);
            signature.token = Some(token);
        }
        Ok(InterceptedService::new(channel, signature))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_08_plain_text_stays_on_this_host() {
        for (text, shown) in [
            ("https://etcd-1.example:2379", "https://etcd-1.example:2379"),
            ("https://10.0.0.1:2379/", "https://10.0.0.1:2379"),
            ("http://127.0.0.1:2379", "http://127.0.0.1:2379"),
            ("http://[::1]:2379", "http://[::1]:2379"),
            ("http://localhost:2379", "http://localhost:2379"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown);
        }
        for text in ["http://10.0.0.1:2379", "http://etcd.example:2379", "http://0.0.0.0:2379"] {
            assert_eq!(text.parse::<Endpoint>(), Err(InvalidEndpoint::Plain(text.to_owned())));
        }
        for text in ["", "etcd:2379", "https://etcd", "unix:///x", "https://a:2379/x"] {
            assert_eq!(text.parse::<Endpoint>(), Err(InvalidEndpoint::Form(text.to_owned())));
        }
    }

    #[test]
    fn the_password_is_in_no_debug_text() {
        let user = User { name: "weft".to_owned(), password: Zeroizing::new("secret".to_owned()) };
        assert!(!format!("{user:?}").contains("secret"));
    }
}
