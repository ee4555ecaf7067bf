//! What the services of the plane share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;
use weft_api::pb::management::{
    AuthorityStatus, CreateTokenRequest, CreateTokenResponse, ListTokensResponse, Problem,
    RotateAuthorityRequest, RotateAuthorityResponse, ShowAuthorityResponse,
};
use weft_identity::{bundle::TrustBundle, spiffe::TrustDomain};
use weft_policy::{limit::Rate, model::HostPort, name::ClusterName};

use crate::{
    alarms::Alarms,
    audit::Audit,
    clock::Clock,
    keeper::WorldHandle,
    metrics::RegistryMetrics,
    presence::Presence,
    refusal::Refusal,
    replicas::{signing, watch::Servers},
    roles::Caller,
    seal::SealedStore,
    shared_uid::SharedUid,
    store::Store,
};

/// The version that is told to agents and people.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the services of the plane share. Built once by the server.
#[derive(Clone)]
pub struct Core {
    /// Where everything is kept.
    pub store: Arc<dyn Store>,
    /// The same store, as the layer that signs its records.
    pub records: Arc<SealedStore>,
    /// The time.
    pub clock: Clock,
    /// The trust domain; the store's Mesh has the same.
    pub trust_domain: TrustDomain,
    /// The cluster's name.
    pub cluster: ClusterName,
    /// The name of this server, the last segment of its SPIFFE ID.
    pub instance: String,
    /// Everything that is configured, decoded, with what follows from it.
    pub world: WorldHandle,
    /// Which agents are there.
    pub presence: Presence,
    /// Where agents reach this server.
    pub addresses: Arc<[HostPort]>,
    /// Set once this server, which another one has let in, signs with its own key: it does not stop again.
    pub signing: Arc<AtomicBool>,
    /// The servers that are there; none while this one is alone and says nothing (an embedded store).
    pub servers: watch::Receiver<Servers>,
    /// The trust bundle, as agents are told it.
    pub bundle: watch::Receiver<Arc<TrustBundle>>,
    /// What is counted.
    pub metrics: Arc<RegistryMetrics>,
    /// What points at an attack.
    pub alarms: Arc<Alarms>,
    /// Where it is written who called what.
    pub audit: Audit,
    /// How often one caller may try to change something.
    pub changes: Rate,
    /// The most objects of one page of a list; 500.
    pub list_page: usize,
    /// Whether a workload may run as the server's own user.
    pub shared_uid: SharedUid,
    /// Cancelled when the server begins to end: agents are asked to go, streams end.
    pub draining: CancellationToken,
}

/// The most addresses that a token leads to.
const MOST_ADDRESSES: usize = 16;

impl Core {
    /// Whether this server signs with its own key. One that was admitted a short time ago has others sign, as agents may not
    /// know its root yet.
    #[must_use]
    pub fn signs(&self) -> bool {
        let catalog = self.world.catalog();
        let Some(admitted) = catalog.servers().get(&self.instance) else { return true };
        if self.signing.load(Ordering::Relaxed) {
            return true;
        }
        let (record, served) = (&admitted.record, self.clock.uptime());
        let lacking = || self.presence.lacking(&catalog, record.bundle, served);
        let begins = signing::begins(record, self.clock.now(), served, lacking);
        if begins && !self.signing.swap(true, Ordering::Relaxed) {
            info!(instance = self.instance, "this server signs with its own key from now on");
        }
        begins
    }

    /// Where a server of the mesh is reached: this one first, then the others that are there.
    #[must_use]
    pub fn reached_at(&self) -> Vec<HostPort> {
        let mut addresses = self.addresses.to_vec();
        for address in self.servers.borrow().iter().flat_map(|server| &server.addresses) {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses.truncate(MOST_ADDRESSES);
        addresses
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = formatter.debug_struct("Core");
        text.field("trust_domain", &self.trust_domain)
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

/// Makes and revokes the tokens with which agents and people join. The caller's role was checked.
pub trait Tokens: Send + Sync + 'static {
    /// Makes a token, and writes the enrollments that go with it. The secret is in the answer and nowhere else.
    fn create<'a>(
        &'a self,
        caller: &'a Caller,
        request: CreateTokenRequest,
    ) -> BoxFuture<'a, Result<CreateTokenResponse, Refusal>>;

    /// Every token that is not forgotten yet, without its secret.
    fn list(&self) -> BoxFuture<'_, Result<ListTokensResponse, Refusal>>;

    /// Makes a token useless.
    fn revoke<'a>(&'a self, caller: &'a Caller, id: &'a str) -> BoxFuture<'a, Result<(), Refusal>>;
}

/// Tells of the certificate authority.
pub trait Authority: Send + Sync + 'static {
    /// Its roots, its intermediate and what it issued.
    fn status(&self) -> AuthorityStatus;

    /// The same with the certificates, and with what is still in use under tainted roots.
    fn show(&self) -> BoxFuture<'_, Result<ShowAuthorityResponse, Refusal>>;

    /// Takes one step in the life of the roots. The caller's role was checked.
    fn rotate(
        &self,
        request: RotateAuthorityRequest,
    ) -> BoxFuture<'_, Result<RotateAuthorityResponse, Refusal>>;

    /// What a person should look at: certificates that expire soon, roots on their way in or out.
    fn problems(&self) -> Vec<Problem>;
}
