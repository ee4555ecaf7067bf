//! The one door of every service: who asks, and whether the method is theirs to call.
//!
//! A tower layer in front of all services. It knows the caller from the connection ([`ConnectInfo`] of TLS, [`PeerCred`]
//! of the Unix socket), judges the certificate again on every request (its end, the bundle, bans: API-14, ISS-02), looks
//! the role up and the method's row, and only then lets the request through, with the [`Caller`] in its extensions.
//!
//! Invariants: a path that is not in the table is UNIMPLEMENTED for everybody, before anything is known of the caller
//! (API-04); whatever is not allowed is denied.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    convert::Infallible,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use nix::unistd::geteuid;
use tonic::{
    Code, Status,
    body::Body,
    codegen::http::{Request, Response},
};
use tower::{Layer, Service};
use tracing::{debug, warn};
use weft_api::channel::{ConnectInfo, PeerCred, client_network};
use weft_identity::{
    bundle::TrustBundles,
    fingerprint,
    spiffe::{IdKind, SpiffeId, TrustDomain},
    tls::{BundleSlot, PeerIdentity, still_trusted},
};
use weft_policy::{
    code,
    name::{Namespace, NodeName},
};

use crate::{
    alarms::{Alarm, Alarms},
    audit::{
        Audit,
        chain::{Event, Outcome},
    },
    clock::Clock,
    denied,
    keeper::WorldHandle,
    refusal::{Refusal, catalogued},
    roles::{Access, Caller, Role, Source, Table},
    telemetry::GateMetrics,
};

/// Decides who comes in. A clone is the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    table: Table,
    clock: Clock,
    world: WorldHandle,
    trust_domain: TrustDomain,
    bundles: BundleSlot,
    metrics: GateMetrics,
    alarms: Arc<Alarms>,
    audit: Audit,
    own_uid: u32,
    per_client: u32,
    open: Mutex<HashMap<ClientKey, u32>>,
    judged: Mutex<Judged>,
}

/// The leaf certificates that were found to lead to the present bundle, so that not every call costs signatures.
#[derive(Debug, Default)]
struct Judged {
    bundles: Arc<TrustBundles>,
    since: Duration,
    leaves: HashSet<[u8; 32]>,
}

/// How long a judgement holds: so much later than its end may a root be believed.
const JUDGED_FOR: Duration = Duration::from_secs(60);
/// The most judgements that are kept; then they are all made anew.
const MAX_JUDGED: usize = 32_768;

/// Who counts as one client for the bound on open calls.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum ClientKey {
    Identity(SpiffeId),
    Network(IpAddr),
    Uid(u32),
}

/// What the gate needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who may call what.
    pub table: Table,
    /// The time.
    pub clock: Clock,
    /// Roles of people, bans of nodes.
    pub world: WorldHandle,
    /// The mesh's own.
    pub trust_domain: TrustDomain,
    /// What is trusted now.
    pub bundles: BundleSlot,
    /// What is counted.
    pub metrics: GateMetrics,
    /// What points at an attack.
    pub alarms: Arc<Alarms>,
    /// Where refusals are written down.
    pub audit: Audit,
    /// Calls that one client may have open.
    pub per_client: u32,
}

impl Gate {
    /// A gate for callers of this process's own user, root, and those who have certificates.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let Settings { table, clock, world, trust_domain, bundles, metrics, alarms, audit, per_client } =
            settings;
        let own_uid = geteuid().as_raw();
        let (open, judged) = (Mutex::default(), Mutex::default());
        let inner = Inner {
            table,
            clock,
            world,
            trust_domain,
            bundles,
            metrics,
            alarms,
            audit,
            own_uid,
            per_client,
            open,
            judged,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The caller behind a request, or why the request is refused.
    fn admit<B>(&self, request: &Request<B>) -> Result<(Caller, Place), Refusal> {
        let path = request.uri().path();
        let access = self.inner.table.get(path).copied().ok_or_else(unimplemented)?;
        let caller = self.inner.caller(request).inspect_err(|refusal| {
            self.inner.audit.refused(unproven(request, refusal));
        })?;
        if !access.allows(&caller) {
            let refusal = self.inner.denied(&caller, access, path);
            let event = Event::of(&caller, path, Outcome::Denied);
            self.inner.audit.refused(Event { code: refusal.faults()[0].code.to_string(), ..event });
            return Err(refusal);
        }
        let place = self.take(&caller)?;
        Ok((caller, place))
    }

    fn take(&self, caller: &Caller) -> Result<Place, Refusal> {
        let key = match (&caller.identity, caller.source) {
            (Some(identity), _) => ClientKey::Identity(identity.clone()),
            (None, Source::Remote { addr }) => ClientKey::Network(client_network(addr.ip())),
            (None, Source::Local { uid }) => ClientKey::Uid(uid),
        };
        let mut open = self.inner.open();
        let count = open.entry(key.clone()).or_insert(0);
        if *count >= self.inner.per_client {
            let what = format!("{caller} has {count} calls open, no more are taken");
            return Err(Refusal::exhausted(code::TOO_MANY_STREAMS, what));
        }
        *count += 1;
        Ok(Place { gate: self.clone(), key })
    }
}

impl Inner {
    fn caller<B>(&self, request: &Request<B>) -> Result<Caller, Refusal> {
        let extensions = request.extensions();
        if let Some(info) = extensions.get::<ConnectInfo>() {
            return self.remote(info);
        }
        let Some(cred) = extensions.get::<PeerCred>() else {
            return Err(unauthenticated("nothing is known of the connection"));
        };
        let role = if cred.uid == self.own_uid || cred.uid == 0 { Role::Admin } else { Role::Anonymous };
        let source = Source::Local { uid: cred.uid };
        Ok(Caller { identity: None, role, scope: None, source, peer: None })
    }

    fn remote(&self, info: &ConnectInfo) -> Result<Caller, Refusal> {
        let source = Source::Remote { addr: info.remote_addr };
        let Some(peer) = &info.peer else {
            return Ok(Caller { identity: None, role: Role::Anonymous, scope: None, source, peer: None });
        };
        self.still_proven(info, peer)?;
        let (role, scope) = self.role(peer)?;
        let caller =
            Caller { identity: Some(peer.id.clone()), role, scope, source, peer: Some(peer.clone()) };
        denied::check_caller(&self.world.current(), &caller, self.clock.now())?;
        Ok(caller)
    }

    /// Whether the handshake's proof still holds: a connection lives longer than what it was made with (API-14).
    fn still_proven(&self, info: &ConnectInfo, peer: &PeerIdentity) -> Result<(), Refusal> {
        let now = self.clock.now();
        if now >= peer.not_after {
            return Err(unauthenticated(format!("the certificate of {} has expired", peer.id)));
        }
        if peer.id.trust_domain() != &self.trust_domain {
            return Err(unauthenticated(format!("{} is of another trust domain", peer.id)));
        }
        if self.was_judged(info) {
            return Ok(());
        }
        let bundles = self.bundles.load();
        still_trusted(&info.chain, &bundles, now).map_err(|error| unauthenticated(error.to_string()))?;
        self.remember(info, bundles);
        Ok(())
    }

    /// Whether the leaf was found trustworthy under the present bundle, not long ago.
    fn was_judged(&self, info: &ConnectInfo) -> bool {
        let judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = self.clock.uptime().saturating_sub(judged.since) < JUDGED_FOR;
        let present = Arc::ptr_eq(&judged.bundles, &self.bundles.load());
        fresh && present && info.chain.first().is_some_and(|leaf| judged.leaves.contains(&fingerprint(leaf)))
    }

    fn remember(&self, info: &ConnectInfo, bundles: Arc<TrustBundles>) {
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.uptime();
        let stale = now.saturating_sub(judged.since) >= JUDGED_FOR || judged.leaves.len() >= MAX_JUDGED;
        if stale || !Arc::ptr_eq(&judged.bundles, &bundles) {
            *judged = Judged { bundles, since: now, leaves: HashSet::new() };
        }
        judged.leaves.extend(info.chain.first().map(|leaf| fingerprint(leaf)));
    }

    fn role(&self, peer: &PeerIdentity) -> Result<(Role, Option<BTreeSet<Namespace>>), Refusal> {
        let catalog = self.world.catalog();
        match peer.id.kind() {
            IdKind::Node(name) => {
                let node = name.parse().ok().and_then(|name: NodeName| catalog.nodes().get(&name));
                let serial = peer.serial.to_string();
                if node.is_none_or(|node| node.record.banned.contains(&serial)) {
                    let what = format!("node {name} is not known with this certificate; it must join again");
                    return Err(Refusal::denied(code::IDENTITY_BANNED, what));
                }
                Ok((Role::Node, None))
            }
            IdKind::User(name) => Ok(catalog.users().get(name).map_or((Role::Anonymous, None), |user| {
                let namespaces = user.record.namespaces.as_ref();
                (user.record.role, namespaces.map(|names| names.iter().cloned().collect()))
            })),
            // The first server was admitted by nobody, and asks nobody to sign for it.
            IdKind::Server(instance) if catalog.servers().contains_key(instance) => Ok((Role::Server, None)),
            IdKind::Server(_) | IdKind::Workload { .. } | IdKind::Other => Ok((Role::Anonymous, None)),
        }
    }

    fn denied(&self, caller: &Caller, access: Access, path: &str) -> Refusal {
        if let Some(untold) = self.alarms.raise(Alarm::NotPermitted) {
            warn!(target: "audit", who = %caller, path, needed = %access, untold, "refused");
        }
        if caller.identity.is_none() && matches!(caller.source, Source::Remote { .. }) {
            return unauthenticated(format!("this needs {access}, and no certificate was shown"));
        }
        Refusal::not_permitted(format!("this needs {access}; {caller} has the role {}", caller.role.as_str()))
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<ClientKey, u32>> {
        // Counting cannot panic half-way.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One open call of a client, until its answer has ended.
#[derive(Debug)]
struct Place {
    gate: Gate,
    key: ClientKey,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.gate.inner.open();
        if let Some(count) = open.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.key);
            }
        }
    }
}

/// What is written down of a caller whose proof does not hold: what it claims to be.
fn unproven<B>(request: &Request<B>, refusal: &Refusal) -> Event {
    let info = request.extensions().get::<ConnectInfo>();
    let peer = info.and_then(|info| info.peer.as_ref());
    let who = peer.map_or_else(|| "nobody".to_owned(), |peer| format!("{}, not proven", peer.id));
    let event = Event::unknown(&who, request.uri().path(), Outcome::Denied);
    let from = info.map(|info| info.remote_addr.to_string()).unwrap_or_default();
    Event { from, code: refusal.faults()[0].code.to_string(), ..event }
}

fn unimplemented() -> Refusal {
    Refusal::new(Code::Unimplemented, catalogued(code::VERSION_SKEW, "the server has no such method"))
}

fn unauthenticated(what: impl Into<String>) -> Refusal {
    Refusal::new(Code::Unauthenticated, catalogued(code::UNAUTHENTICATED, what))
}

impl<S> Layer<S> for Gate {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { gate: self.clone(), inner }
    }
}

/// Services behind the gate.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    gate: Gate,
    inner: S,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match self.gate.admit(&request) {
            Ok((caller, place)) => {
                request.extensions_mut().insert(caller);
                let answer = self.inner.call(request);
                Box::pin(async move {
                    let response = answer.await?;
                    // The place is given back when the last byte of the answer is out, or the stream is dropped.
                    Ok(response.map(|body| {
                        Body::new(body.map_frame(move |frame| {
                            let _held = &place;
                            frame
                        }))
                    }))
                })
            }
            Err(refusal) => {
                let metrics = &self.gate.inner.metrics;
                metrics.refused(refusal.faults().first().map_or("", |fault| &fault.code));
                debug!(path = request.uri().path(), code = ?refusal.code(), "request refused at the gate");
                let response = Status::from(refusal).into_http();
                Box::pin(std::future::ready(Ok(response)))
            }
        }
    }
}
