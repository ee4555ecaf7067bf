//! Opens a connection to a destination: pick an endpoint, open, on a failure that says "another may serve" pick another.
//!
//! The only loop of the corridor. It ends with the destination's connect timeout, which all attempts share, or when every
//! endpoint was tried. An endpoint on this node is reached without a tunnel, by the same decision and the same policy.

use std::{
    collections::HashMap,
    net::SocketAddr,
    num::NonZeroU16,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::debug;
use weft_identity::{
    spiffe::{IdKind, SpiffeId},
    tls::{ExpectedPeer, client_config},
};
use weft_overlay::{
    ALPN, CloseReason, PoolKey, Protocol, StreamError, StreamHeader, TunnelPool, TunnelStream,
    pool::{DialWith, PoolError},
};
use weft_policy::{
    authz::Permit,
    balance::NoEndpoint,
    model::{Endpoint, HostPort, traffic::TimeoutSettings},
    name::EndpointLabel,
    snapshot::{Destination, Snapshot},
};

use super::{
    balancers::{Load, Try},
    standing::{Awaited, Standing, blame},
};
use crate::{
    access::Record,
    app::AppStream,
    error::{FlowError, Retry},
    flows::{Direction, FlowFacts, FlowPlace},
    inbound,
    local::LocalWorkload,
    own_sockets::OwnStream,
    shared::Shared,
};

/// Endpoints tried for one connection.
const MAX_TRIES: usize = 3;
/// TLS configurations kept, one for each pair of identities in use; making one costs about as much as a flow.
const MAX_CONFIGS: usize = 4_096;
/// For so long a resolved name is believed.
const RESOLVED_FOR: Duration = Duration::from_secs(30);
/// Names kept.
const MAX_NAMES: usize = 1_024;

/// TLS configurations by source and destination.
type Configs = HashMap<(SpiffeId, SpiffeId), Arc<rustls::ClientConfig>>;
/// Resolved names, and since when they are believed.
type Names = HashMap<HostPort, (Instant, Vec<SocketAddr>)>;

/// Opens connections for one worker. A clone is the same one.
#[derive(Clone)]
pub(super) struct Opener {
    shared: Arc<Shared>,
    pool: TunnelPool,
    configs: Arc<Mutex<Configs>>,
    names: Arc<Mutex<Names>>,
}

/// An open way to the destination's program.
pub(super) enum Opened {
    /// Through a tunnel. If the program spoke before the reply came, that comes with the first bytes back.
    Tunnel { stream: TunnelStream, standing: Standing },
    /// To a program of this node.
    Local { io: OwnStream, load: Load, place: FlowPlace },
}

impl Opener {
    pub(super) fn new(shared: Arc<Shared>, pool: TunnelPool) -> Self {
        Self { shared, pool, configs: Arc::default(), names: Arc::default() }
    }

    /// Opens a connection as `permit` allows, once the far program has accepted or `app` has something to say. All
    /// attempts, and an answer that is still to come, share the connect timeout.
    pub(super) async fn open(
        &self,
        snapshot: &Snapshot,
        source: &Arc<LocalWorkload>,
        permit: &Permit,
        app: &AppStream,
        settings: &TimeoutSettings,
        record: &mut Record,
    ) -> Result<Opened, FlowError> {
        let within = settings.connect;
        let time = Time { by: self.shared.clock.now() + within, within };
        let target = permit.target();
        let unknown = || FlowError::UnknownService { name: target.service.to_string() };
        let destination = snapshot.destination(&target.service).ok_or_else(unknown)?;
        let mut tried: Vec<EndpointLabel> = Vec::new();
        let mut last = None;
        while tried.len() < MAX_TRIES {
            let attempt = match self.pick(destination, &tried) {
                Ok(attempt) => attempt,
                // What the endpoints said is the better reason than "no more endpoints".
                Err(error) => return Err(last.unwrap_or(error)),
            };
            let endpoint = Arc::clone(attempt.endpoint());
            record.endpoint(&endpoint, tried.len() + 1);
            tried.push(endpoint.label.clone());
            if !may_serve(destination, &endpoint) {
                last = Some(FlowError::ForeignEndpoint {
                    service: target.service.clone(),
                    identity: endpoint.identity.clone(),
                });
                continue;
            }
            match self.one(snapshot, source, permit, attempt, app, (time, record)).await {
                Ok(opened) => return Ok(opened),
                Err(error) if error.class().retry == Retry::OtherEndpoint => {
                    debug!(endpoint = %endpoint.workload, node = %endpoint.node, %error, "trying another endpoint");
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        let none =
            || FlowError::NoEndpoint { service: target.service.clone(), reason: NoEndpoint::Exhausted };
        Err(last.unwrap_or_else(none))
    }

    fn pick(&self, destination: &Destination, tried: &[EndpointLabel]) -> Result<Try, FlowError> {
        let now = self.shared.clock.now();
        let picked = self.shared.with_rng(|rng| self.shared.balancers.pick(destination, rng, now, tried));
        picked.map_err(|none| FlowError::NoEndpoint {
            service: destination.service().service_name(),
            reason: none,
        })
    }

    async fn one(
        &self,
        snapshot: &Snapshot,
        source: &Arc<LocalWorkload>,
        permit: &Permit,
        attempt: Try,
        app: &AppStream,
        (time, record): (Time, &mut Record),
    ) -> Result<Opened, FlowError> {
        let endpoint = Arc::clone(attempt.endpoint());
        let here = (endpoint.node == self.shared.config.node)
            .then(|| self.shared.locals.labelled(endpoint.label.as_str()))
            .flatten();
        let open = async {
            match here {
                Some(workload) => {
                    self.local(snapshot, source, permit, &workload, record).await.map(Side::Local)
                }
                None => self.tunnel(source, permit, &endpoint, app, record).await.map(Side::Tunnel),
            }
        };
        let Time { by, within } = time;
        let outcome = tokio::select! {
            biased;
            outcome = open => outcome,
            () = self.shared.clock.sleep_until(by) => Err(FlowError::ConnectTimeout { after: within }),
        };
        let now = self.shared.clock.now();
        match outcome {
            Ok(Side::Tunnel((stream, true))) => {
                let standing = Standing::Accepted { _load: attempt.connected(now) };
                Ok(Opened::Tunnel { stream, standing })
            }
            Ok(Side::Tunnel((stream, false))) => {
                let standing = Standing::Awaited(Awaited { attempt, by, within });
                Ok(Opened::Tunnel { stream, standing })
            }
            Ok(Side::Local((io, place))) => Ok(Opened::Local { io, load: attempt.connected(now), place }),
            Err(error) => {
                blame(&self.shared, attempt, &error);
                Err(error)
            }
        }
    }

    /// Through a tunnel to the endpoint's agent, and whether that has accepted already.
    async fn tunnel(
        &self,
        source: &Arc<LocalWorkload>,
        permit: &Permit,
        endpoint: &Endpoint,
        app: &AppStream,
        record: &mut Record,
    ) -> Result<(TunnelStream, bool), FlowError> {
        if source.slot.load().is_none() {
            let workload = source.identity.to_string();
            return Err(match source.has_expired() {
                true => FlowError::IdentityExpired { workload },
                false => FlowError::NoIdentity { workload },
            });
        }
        let addresses = self.addresses(endpoint).await?;
        let key = PoolKey {
            source: source.identity.clone(),
            destination: endpoint.identity.clone(),
            addresses: addresses.into(),
        };
        let with = DialWith {
            server_name: format!("{}.{}.weft", endpoint.label, self.shared.cluster),
            client: self.config(source, &endpoint.identity),
        };
        let header = header(permit, endpoint, record)?;
        let mut again = true;
        loop {
            let (mut stream, tunnel) = self.pool.open(&key, &with, &header).await.map_err(|source| {
                let endpoint = format!("{}@{}", endpoint.workload, endpoint.node);
                FlowError::NoTunnel { endpoint, source }
            })?;
            record.tunnel(tunnel.id(), tunnel.remote_address());
            let reply = tokio::select! {
                biased;
                reply = stream.reply() => reply,
                // From here on bytes of the program are under way, and the flow is this tunnel's.
                () = app.speaks() => return Ok((stream, false)),
            };
            match reply {
                Ok(accepted) => {
                    record.accepted(&accepted);
                    return Ok((stream, true));
                }
                // The tunnel led to a run of the agent that is no more, and nothing of the program was sent.
                Err(StreamError::TunnelClosed(CloseReason::Restarted)) if std::mem::take(&mut again) => {
                    debug!(endpoint = %endpoint.workload, node = %endpoint.node, "its agent has restarted, dialling anew");
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// To a program of this node: the destination's decision is made here, by the same code.
    async fn local(
        &self,
        snapshot: &Snapshot,
        source: &Arc<LocalWorkload>,
        permit: &Permit,
        workload: &LocalWorkload,
        record: &mut Record,
    ) -> Result<(OwnStream, FlowPlace), FlowError> {
        let target = permit.target();
        let facts = FlowFacts {
            direction: Direction::Inbound,
            source: source.identity.clone(),
            target: target.clone(),
            network: None,
            served_by: Some(workload.identity.clone()),
            started: record.started,
        };
        let place = self.shared.flows.enter(facts)?;
        self.shared.check_identity(&workload.identity)?;
        record.path = "local";
        // Loaded again: the flow is in the table now, and what decides must be what is in force.
        let current = self.shared.state.load();
        let current = current.as_deref().unwrap_or(snapshot);
        let permit =
            inbound::decide(&self.shared, Some(current), &place, record).map_err(FlowError::Denied)?;
        let address = inbound::program_address(Some(current), workload, target)
            .ok_or_else(|| inbound::not_served(target))?;
        let within = super::settings_of(Some(current), &target.service).connect;
        let io = inbound::connect::connect(&permit, &self.shared.own_sockets, address, within).await?;
        Ok((io, place))
    }

    /// The TLS side of dialling `destination` as `source`: accepts that identity only, so that a wrong server is refused
    /// before it sees the caller's certificate.
    fn config(&self, source: &LocalWorkload, destination: &SpiffeId) -> Arc<rustls::ClientConfig> {
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (source.identity.clone(), destination.clone());
        if let Some(config) = configs.get(&key) {
            return Arc::clone(config);
        }
        if configs.len() >= MAX_CONFIGS {
            configs.clear();
        }
        let expected = ExpectedPeer::Exactly(destination.clone());
        let bundles = self.shared.bundles.clone();
        let config = Arc::new(client_config(Some(source.slot.clone()), bundles, expected, &[ALPN]));
        configs.insert(key, Arc::clone(&config));
        config
    }

    /// The endpoint's addresses in the order to be tried; names are resolved and kept for a moment.
    async fn addresses(&self, endpoint: &Endpoint) -> Result<Vec<SocketAddr>, FlowError> {
        let mut all = Vec::with_capacity(endpoint.addresses.len());
        for address in &endpoint.addresses {
            match address.host.parse() {
                Ok(ip) => all.push(SocketAddr::new(ip, address.port)),
                Err(_) => all.extend(self.resolve(address).await),
            }
        }
        if all.is_empty() {
            let endpoint = format!("{}@{}", endpoint.workload, endpoint.node);
            let source = PoolError::Dial(weft_overlay::DialError::NoAddress);
            return Err(FlowError::NoTunnel { endpoint, source });
        }
        Ok(all)
    }

    async fn resolve(&self, address: &HostPort) -> Vec<SocketAddr> {
        let now = self.shared.clock.now();
        let lock = || self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, known)) = lock().get(address)
            && now.saturating_duration_since(*since) < RESOLVED_FOR
        {
            return known.clone();
        }
        let found = tokio::net::lookup_host((address.host.as_str(), address.port)).await;
        let found: Vec<_> = found.map(Iterator::collect).unwrap_or_default();
        let mut names = lock();
        if names.len() >= MAX_NAMES {
            names.clear();
        }
        names.insert(address.clone(), (now, found.clone()));
        found
    }
}

/// Whether the endpoint's identity may serve the service (decisions.md, being an endpoint): the registry checks the same,
/// and a registry that errs must not be enough.
fn may_serve(destination: &Destination, endpoint: &Endpoint) -> bool {
    let service = destination.service();
    let own = match endpoint.identity.kind() {
        IdKind::Workload { namespace, service_account } => {
            service.service_name().namespace.as_str() == namespace
                && service.metadata.name.as_str() == service_account
        }
        IdKind::Node(_) | IdKind::Server(_) | IdKind::User(_) | IdKind::Other => false,
    };
    own || service.identities.contains(&endpoint.identity)
}

/// The time that all attempts of one connection share.
#[derive(Clone, Copy)]
struct Time {
    by: Instant,
    within: Duration,
}

enum Side {
    Tunnel((TunnelStream, bool)),
    Local((OwnStream, FlowPlace)),
}

fn header(permit: &Permit, endpoint: &Endpoint, record: &Record) -> Result<StreamHeader, FlowError> {
    let target = permit.target();
    let wrong = || FlowError::WrongEndpoint { label: endpoint.label.to_string() };
    let label = |text: &str| text.parse().map_err(|_| wrong());
    Ok(StreamHeader {
        namespace: label(target.service.namespace.as_str())?,
        service: label(target.service.name.as_str())?,
        port: NonZeroU16::new(target.port).ok_or_else(wrong)?,
        endpoint: label(endpoint.label.as_str())?,
        protocol: Protocol::Tcp,
        trace: None,
        source: record.address,
    })
}
