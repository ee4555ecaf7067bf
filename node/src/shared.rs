//! What every part of the agent sees: one struct of handles, made once in `node.rs`.
//!
//! Owns the moments at which something new comes into force: a snapshot, a bundle, an SVID, a registration. In each, what
//! is kept on disk is written by the rules of [`crate::files`], and what lives under the old value is dealt with.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use rand::{Rng as _, rngs::StdRng};
use rustls_pki_types::CertificateDer;
use tracing::{info, warn};
use weft_api::{convert::discovery as convert, pb::discovery, record::view_digest};
use weft_identity::{
    bundle::{TrustBundle, TrustBundles},
    spiffe::{SpiffeId, TrustDomain},
    svid::Svid,
    tls::{BundleSlot, InboundSvids, SvidSlot},
};
use weft_overlay::{CloseCode, Overlay, PoolKey, Tunnel, TunnelPool};
use weft_policy::{
    model::HostPort,
    name::{EndpointLabel, Namespace},
    snapshot::{Delta, Revision, Snapshot, SnapshotContext, View, ViewObject},
};

use crate::{
    clock::Clock,
    config::Config,
    control::{demand::Demand, identity::Holder, link::Link, registration::Withdrawals},
    denials::Denials,
    drain::Drain,
    files::StateDir,
    flows::{EgressFacts, FlowTable},
    join,
    local::{LocalWorkload, LocalWorkloads, Registration},
    outbound::balancers::Balancers,
    own_sockets::OwnSockets,
    report::Report,
    revocation::code_of_verdict,
    state::State,
};

/// The last good view, as a full `Delta` message.
const SNAPSHOT: &str = "snapshot.bin";
/// The labels of this node's endpoints, by `namespace/name`.
const LABELS: &str = "labels.json";
/// The largest snapshot read back: 1,000 destinations of 64 KiB.
pub(crate) const MAX_SNAPSHOT_BYTES: u64 = 64 << 20;

/// The news of a restart may come after a tunnel to the new run was made: one younger than this is left alone. Were it one
/// to the old run after all, a stateless reset ends it at its next packet.
const BOOT_NEWS: Duration = Duration::from_secs(5);

/// Everything that more than one part of the agent needs.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) files: StateDir,
    pub(crate) node_id: SpiffeId,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) namespace: Namespace,
    pub(crate) cluster: String,
    pub(crate) boot: u64,
    /// Where peers reach this agent's tunnels; known once the socket is bound.
    pub(crate) advertise: Vec<HostPort>,
    pub(crate) state: State,
    pub(crate) locals: LocalWorkloads,
    pub(crate) inbound_svids: InboundSvids,
    pub(crate) bundles: BundleSlot,
    pub(crate) node_slot: SvidSlot,
    pub(crate) link: Link,
    pub(crate) demand: Demand,
    pub(crate) flows: FlowTable,
    /// The live flows to destinations outside the mesh.
    pub(crate) egress: FlowTable<EgressFacts>,
    /// The agent's own connections, which prove nobody.
    pub(crate) own_sockets: OwnSockets,
    /// Ended workloads that a server still knows.
    pub(crate) withdrawals: Withdrawals,
    pub(crate) balancers: Balancers,
    pub(crate) denials: Denials,
    pub(crate) drain: Drain,
    pub(crate) report: Report,
    /// Counts the workloads that got their first SVID: they can be registered now.
    pub(crate) proven: watch::Sender<u64>,
    /// Counts the denylists that came into force.
    pub(crate) denylists: watch::Sender<u64>,
    /// Counts the trust bundles that came: what is under a tainted root is renewed.
    pub(crate) bundle_news: watch::Sender<u64>,
    /// The workers' tunnels.
    pub(crate) planes: Mutex<Vec<Plane>>,
    pub(crate) labels: Mutex<BTreeMap<String, String>>,
    pub(crate) sequence: AtomicU64,
    pub(crate) rng: Mutex<StdRng>,
}

/// One worker's side of the wire.
#[derive(Clone)]
pub(crate) struct Plane {
    pub(crate) overlay: Overlay,
    pub(crate) pool: TunnelPool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("node", &self.node_id).finish_non_exhaustive()
    }
}

impl Shared {
    /// Uses the agent's random numbers. Not for keys: those come from the crypto provider.
    pub(crate) fn with_rng<T>(&self, use_it: impl FnOnce(&mut StdRng) -> T) -> T {
        use_it(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A uniform draw in `0.0..1.0`.
    pub(crate) fn draw(&self) -> f64 {
        self.with_rng(|rng| rng.random_range(0.0..1.0))
    }

    /// The workers' tunnels, as they are now.
    pub(crate) fn planes(&self) -> Vec<Plane> {
        self.planes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a snapshot in force, then decides every live flow again.
    pub(crate) fn publish(&self, snapshot: Snapshot) {
        self.close_older_boots(&snapshot);
        self.report.metrics.snapshot(snapshot.revision().0, Duration::ZERO);
        self.state.publish(snapshot);
        // Loaded again: what is in force now is what must decide.
        if let Some(snapshot) = self.state.load() {
            self.deny(snapshot.denied());
            self.balancers.reconcile(&snapshot, self.clock.now());
            let cut = self.flows.decide_again(&snapshot) + self.egress.decide_again(&snapshot);
            if cut > 0 {
                info!(flows = cut, revision = %snapshot.revision(), "flows cut: the new rules refuse them");
            }
        }
    }

    /// Closes tunnels to agents that have started again since (decisions.md, endpoints and leases).
    fn close_older_boots(&self, next: &Snapshot) {
        let Some(old) = self.state.load() else { return };
        for (_, object) in next.view().iter() {
            let ViewObject::Endpoint(endpoint) = object else { continue };
            let Some(ViewObject::Endpoint(before)) = old.view().get(&object.key()) else { continue };
            if before.boot < endpoint.boot {
                let old = |(key, tunnel): &(PoolKey, Tunnel)| {
                    key.destination == endpoint.identity && leads_to_older_run(tunnel.age())
                };
                let tunnels = self.planes().into_iter().flat_map(|plane| plane.pool.tunnels());
                tunnels
                    .filter(old)
                    .for_each(|(_, tunnel)| tunnel.close(CloseCode::OlderBoot, "its agent has restarted"));
            }
        }
    }

    /// Keeps the view for a restart without a server.
    pub(crate) fn persist(&self, revision: Revision, view: &View) {
        let message = convert::delta_to_message(&Delta::full(view, revision), view_digest(view));
        let bytes = prost::Message::encode_to_vec(&message);
        if let Err(error) = self.files.write(SNAPSHOT, &bytes) {
            warn!(%error, "the snapshot is in force, but cannot be kept for a restart");
        }
    }

    /// The sequence of the bundle in force.
    pub(crate) fn bundle_sequence(&self) -> u64 {
        self.sequence.load(Ordering::Relaxed)
    }

    /// Puts a bundle in force and closes tunnels whose peer no longer chains to it. Says whether it is kept for a restart.
    pub(crate) fn publish_bundle(&self, bundle: TrustBundle) -> bool {
        let kept = self.files.write(join::BUNDLE, bundle.to_jwks().as_bytes());
        if let Err(error) = &kept {
            warn!(%error, "the bundle is in force, but cannot be kept for a restart");
        }
        self.sequence.store(bundle.sequence(), Ordering::Relaxed);
        info!(sequence = bundle.sequence(), roots = bundle.roots().len(), "trust bundle in force");
        self.bundles.publish(TrustBundles::from(bundle));
        self.bundle_news.send_modify(|count| *count += 1);
        for tunnel in self.planes().iter().flat_map(|plane| plane.overlay.tunnels()) {
            if let Err(code) = self.judge(&tunnel) {
                tunnel.close(code, "the bundle in force does not vouch for it");
            }
        }
        kept.is_ok()
    }

    /// Whether the holder's SVID is under a root of which everything is to be renewed at once.
    pub(crate) fn is_tainted(&self, svid: &Svid) -> bool {
        self.bundles.load().get(&self.trust_domain).is_some_and(|bundle| bundle.taints(svid.chain()))
    }

    /// Whether the bundle in force still vouches for the peer of a tunnel.
    pub(crate) fn judge(&self, tunnel: &Tunnel) -> Result<(), CloseCode> {
        let chain: Vec<CertificateDer<'static>> = tunnel.peer_chain();
        weft_identity::tls::still_trusted(&chain, &self.bundles.load(), self.clock.wall())
            .map(drop)
            .map_err(|error| code_of_verdict(&error))
    }

    fn svid_file(holder: &Holder) -> String {
        match holder {
            Holder::Node => join::NODE_PEM.to_owned(),
            Holder::Workload(workload) => format!("svids/{}.{}.pem", workload.namespace, workload.name),
        }
    }

    /// Where the holder's SVID is presented from.
    pub(crate) fn slot_of<'a>(&'a self, holder: &'a Holder) -> &'a SvidSlot {
        match holder {
            Holder::Node => &self.node_slot,
            Holder::Workload(workload) => &workload.slot,
        }
    }

    /// The SVID on disk, when it can be read and is the holder's.
    pub(crate) fn stored_svid(&self, holder: &Holder) -> Option<Svid> {
        let bytes = match self.files.read(&Self::svid_file(holder)) {
            Ok(bytes) => bytes?,
            Err(error) => {
                warn!(%error, "the SVID on disk cannot be read");
                return None;
            }
        };
        let text = std::str::from_utf8(&bytes).ok()?;
        Svid::from_pem(text).inspect_err(|error| warn!(%error, "the SVID on disk is not one")).ok()
    }

    /// Presents an SVID from now on; tunnels under the old one take no new flows and end before it does.
    pub(crate) fn publish_svid(&self, holder: &Holder, svid: Svid) {
        if let Err(error) = self.files.write(&Self::svid_file(holder), svid.to_pem().as_bytes()) {
            warn!(%error, "the SVID is in use, but cannot be kept for a restart");
        }
        let slot = self.slot_of(holder);
        let old = slot.load();
        let (id, not_after) = (svid.id().clone(), svid.validity().not_after);
        self.report.metrics.certificate(&id, Some(not_after));
        slot.publish(svid);
        if let Holder::Workload(workload) = holder {
            workload.set_expired(false);
        }
        if old.is_none() {
            self.proven.send_modify(|count| *count += 1);
        }
        info!(%id, "SVID in use");
        if let Holder::Workload(workload) = holder {
            self.check_published(workload);
        }
        if let (Some(old), Holder::Workload(_)) = (old, holder) {
            let left = old.svid().validity().remaining(self.clock.wall());
            let until = self.clock.now() + left.min(Duration::from_secs(7 * 24 * 3_600));
            for plane in self.planes() {
                plane.pool.retire_source(&id, until.into());
            }
        }
    }

    /// Presents none any more: it has expired, and there is no grace.
    pub(crate) fn withdraw_svid(&self, holder: &Holder) {
        match holder {
            Holder::Node => self.node_slot.withdraw(),
            Holder::Workload(workload) => {
                workload.set_expired(true);
                workload.slot.withdraw();
                for plane in self.planes() {
                    plane.pool.close_where(CloseCode::IdentityExpired, |key| key.source == workload.identity);
                }
            }
        }
        warn!(?holder, "the SVID has expired and could not be renewed; nothing is presented any more");
    }

    /// The label that an endpoint of this node had before.
    pub(crate) fn kept_label(&self, workload: &LocalWorkload) -> Option<EndpointLabel> {
        let labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        labels.get(&label_key(workload))?.parse().ok()
    }

    /// Keeps an endpoint's label, so that callers find it again after a restart.
    pub(crate) fn keep_label(&self, workload: &LocalWorkload, label: &EndpointLabel) {
        let mut labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        let old = labels.insert(label_key(workload), label.to_string());
        if old.as_deref() == Some(label.as_str()) {
            return;
        }
        let text = serde_json::to_vec_pretty(&*labels).unwrap_or_default();
        drop(labels);
        if let Err(error) = self.files.write(LABELS, &text) {
            warn!(%error, "the endpoint's label cannot be kept for a restart");
        }
    }

    /// Puts a registration in force: from now on the label selects the workload's SVID.
    pub(crate) fn registered(&self, workload: &Arc<LocalWorkload>, registration: Registration) {
        if let Some(old) = workload.reachable()
            && old.label != registration.label
        {
            self.inbound_svids.remove(old.label.as_str());
        }
        self.inbound_svids.insert(registration.label.as_str(), workload.slot.clone());
        workload.set_registration(registration);
        self.locals.reindex();
    }

    /// Lets a workload answer to a label that the server is going to be asked to reserve for it.
    pub(crate) fn announce(&self, workload: &LocalWorkload, announced: Registration) {
        self.inbound_svids.insert(announced.label.as_str(), workload.slot.clone());
        workload.set_announced(announced);
        self.locals.reindex();
    }

    /// Puts what was known of a declared workload before the restart in force, until a server says otherwise: its label,
    /// and the services that its snapshot says it serves.
    pub(crate) fn restored(&self, workload: &Arc<LocalWorkload>, label: EndpointLabel) {
        let mut services = Vec::new();
        if let Some(snapshot) = self.state.load() {
            for (service, destination) in snapshot.destinations() {
                if destination.endpoints().iter().any(|endpoint| endpoint.label == label) {
                    services.push(service.clone());
                    self.demand.pin(service, self.clock.now());
                }
            }
        }
        self.registered(workload, Registration { label, services, allowed_uids: Vec::new() });
    }

    /// Takes a workload out of everything.
    pub(crate) fn forget_workload(&self, workload: &LocalWorkload) {
        self.locals.remove(&workload.namespace, &workload.name);
        if let Some(known) = workload.reachable() {
            self.inbound_svids.remove(known.label.as_str());
        }
        let ends =
            |source: &SpiffeId| *source == workload.identity && self.locals.of_identity(source).is_none();
        self.flows.cut_where(|facts| ends(&facts.source));
        self.egress.cut_where(|facts| ends(&facts.source));
    }

    /// Removes the key and the credential of a workload that was not declared: it does not come back by itself.
    pub(crate) fn forget_secrets(&self, workload: &Arc<LocalWorkload>) {
        let svid = Self::svid_file(&Holder::Workload(Arc::clone(workload)));
        let credential = format!("credentials/{}.{}", workload.name, workload.namespace);
        for file in [svid, credential] {
            if let Err(error) = crate::files::remove(&self.files.join(&file)) {
                warn!(%error, "a secret of an ended workload stays behind");
            }
        }
    }

    /// Removes what programs left that ended with the last run of the agent: every secret of no workload of now.
    pub(crate) fn sweep_secrets(&self) {
        let current: Vec<_> =
            self.locals.all().iter().map(|one| (one.name.clone(), one.namespace.clone())).collect();
        let svids: Vec<_> =
            current.iter().map(|(name, namespace)| format!("{namespace}.{name}.pem")).collect();
        let credentials: Vec<_> =
            current.iter().map(|(name, namespace)| format!("{name}.{namespace}")).collect();
        for (directory, known) in [("svids", svids), ("credentials", credentials)] {
            if let Err(error) = crate::files::keep_only(&self.files.join(directory), &known) {
                warn!(%error, directory, "secrets of ended workloads stay behind");
            }
        }
    }
}

/// Whether a tunnel of that age may lead to the run of an agent that has ended, when the news of its restart comes.
fn leads_to_older_run(age: Duration) -> bool {
    age > BOOT_NEWS
}

fn label_key(workload: &LocalWorkload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

/// The labels on disk; an unreadable file means that endpoints get new ones.
pub(crate) fn read_labels(files: &StateDir) -> BTreeMap<String, String> {
    let bytes = files.read(LABELS).ok().flatten();
    bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// The snapshot on disk, complete and unchanged, or none.
pub(crate) fn read_snapshot(files: &StateDir, context: SnapshotContext) -> Option<Snapshot> {
    let bytes = crate::files::read_private(&files.join(SNAPSHOT), MAX_SNAPSHOT_BYTES).ok().flatten()?;
    let message: discovery::Delta = prost::Message::decode(bytes.as_slice()).ok()?;
    let expected = message.view_digest.clone();
    let delta = convert::delta_from_message(message).ok()?;
    let view = View::new().apply(&delta).ok()?;
    if view_digest(&view).as_slice() != expected {
        warn!("the snapshot on disk is damaged and is not used");
        return None;
    }
    let snapshot = Snapshot::build(Arc::new(view), delta.to, context);
    snapshot.inspect_err(|error| warn!(%error, "the snapshot on disk cannot be used")).ok()
}

/// Canonical form of an address, for policy, quotas and logs: no `::ffff:`.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_news_of_a_restart_spares_the_tunnel_that_was_made_to_the_new_run() {
        // Callers find the new run within 2 s of its start; the news comes by way of the server, with as much delay.
        assert!(!leads_to_older_run(Duration::from_secs(4)));
        assert!(leads_to_older_run(Duration::from_secs(6)));
    }
}
