//! The corridor of a program's connection: from the loopback port to the service it asked for.
//!
//! The caller was proven on accept. Here the destination is found, the snapshot is loaded once, an endpoint is chosen and
//! opened, and bytes are moved. The destination's agent decides; this side refuses only what it knows to lead nowhere.

pub(crate) mod balancers;
pub(crate) mod egress;
mod open;
pub(crate) mod resolve;
pub(crate) mod standing;

use std::sync::Arc;

use tracing::debug;
use weft_overlay::TunnelPool;
use weft_policy::{model::traffic::TimeoutSettings, name::ServiceName, route::Target, snapshot::Snapshot};

use crate::{
    access::Record,
    carry,
    error::FlowError,
    flows::{Direction, FlowFacts},
    intercept::{Accepted, Pending},
    local::LocalWorkload,
    relay::Transfer,
    shared::Shared,
};
use open::{Opened, Opener};
use resolve::Way;

/// The outbound side of one worker. A clone is the same one.
#[derive(Clone)]
pub(crate) struct Outbound {
    shared: Arc<Shared>,
    opener: Opener,
}

impl Outbound {
    /// Opens tunnels through `pool`.
    pub(crate) fn new(shared: Arc<Shared>, pool: TunnelPool) -> Self {
        Self { opener: Opener::new(Arc::clone(&shared), pool), shared }
    }

    /// Takes a connection whose first bytes are still to come.
    pub(crate) async fn pending(&self, pending: Pending) {
        let peer = pending.peer();
        match pending.finish().await {
            Ok(accepted) => self.serve(accepted).await,
            Err(error) => {
                self.shared.report.metrics.intercept_refused(error.label());
                debug!(%peer, code = %error.code(), %error, "local connection refused");
            }
        }
    }

    /// Carries one connection of a program to the service it asked for.
    async fn serve(&self, accepted: Accepted) {
        let started = self.shared.clock.now();
        let (identity, uid) = (accepted.source.identity.clone(), accepted.source.uid);
        let mut record = Record::new(Direction::Outbound, identity, started, self.shared.clock.wall());
        record.address = Some(accepted.peer);
        record.protocol = accepted.protocol.as_str();
        let asked = accepted.destination.to_string();
        let outcome = self.carry(accepted, &mut record).await;
        if let Err(error) = &outcome {
            self.note_refusal(&record, asked, uid, error);
        }
        record.finish(&self.shared, outcome);
    }

    async fn carry(&self, accepted: Accepted, record: &mut Record) -> Result<Transfer, FlowError> {
        let Accepted { app, source, destination, slot, .. } = accepted;
        let found = self.find(&source, &destination).await;
        let (workload, way) = match found {
            Ok(found) => found,
            Err(error) => return Err(refuse(app, error).await),
        };
        let Some(live) = self.shared.drain.watch().enter() else {
            return Err(refuse(app, FlowError::Draining).await);
        };
        let carried = match way {
            Way::Mesh(snapshot, target) => self.to_service(app, &workload, &snapshot, target, record).await,
            Way::Outside(outside) => egress::carry(&self.shared, app, &workload, &outside, record).await,
        };
        drop((live, slot));
        carried
    }

    /// Keeps what the program was told for `weft explain last` of its user, who sees nothing of other hosts.
    fn note_refusal(&self, record: &Record, asked: String, uid: Option<u32>, error: &FlowError) {
        // What a program did to its own connection is no refusal, and what was decided here has been noted in full.
        let is_own = uid.is_none_or(|uid| uid == nix::unistd::geteuid().as_raw());
        let is_told = matches!(error, FlowError::Denied(_)) && record.path == "local" && is_own;
        if is_told || matches!(error, FlowError::ProgramGone(_)) {
            return;
        }
        let fault = error.fault();
        let target = record.target.as_ref();
        self.shared.denials.note(crate::denials::Refusal {
            time: record.time,
            id: format!("{}-{}", self.shared.config.node, record.id),
            code: fault.code.into(),
            source: record.source.to_string(),
            service: target.map_or(asked, |target| target.service.to_string()),
            port: target.map_or(0, |target| target.port),
            what: fault.what,
            why: fault.why,
            fix: fault.fix,
            direction: record.direction.name(),
            uid,
        });
    }

    async fn find(
        &self,
        source: &crate::intercept::LocalWorkload,
        destination: &crate::intercept::Destination,
    ) -> Result<(Arc<LocalWorkload>, Way), FlowError> {
        let gone = || FlowError::NoIdentity { workload: source.to_string() };
        let workload = self.shared.locals.named(&source.namespace, &source.name).ok_or_else(gone)?;
        let way = resolve::resolve(&self.shared, &source.namespace, destination).await?;
        Ok((workload, way))
    }

    async fn to_service(
        &self,
        app: crate::app::AppStream,
        workload: &Arc<LocalWorkload>,
        snapshot: &Arc<Snapshot>,
        asked: Target,
        record: &mut Record,
    ) -> Result<Transfer, FlowError> {
        record.target = Some(asked.clone());
        let (snapshot, target) = match self.routed(snapshot, asked).await {
            Ok(routed) => routed,
            Err(error) => return Err(refuse(app, error).await),
        };
        record.target = Some(target.clone());
        let facts = FlowFacts {
            direction: Direction::Outbound,
            source: workload.identity.clone(),
            target: target.clone(),
            network: None,
            served_by: None,
            started: record.started,
        };
        let place = match self.shared.flows.enter(facts) {
            Ok(place) => place,
            Err(full) => return Err(refuse(app, FlowError::from(full)).await),
        };
        record.id = place.id();
        record.begins(&self.shared);
        if let Err(error) = self.shared.check_identity(&workload.identity) {
            return Err(refuse(app, error).await);
        }
        let permit = match snapshot.permit_outbound(&workload.identity, &target) {
            Ok(permit) => permit,
            Err(denial) => return Err(refuse(app, FlowError::Denied(denial)).await),
        };
        let settings = settings_of(Some(&snapshot), &target.service);
        let opened = self.opener.open(&snapshot, workload, &permit, &app, &settings, record).await;
        match opened {
            Err(error) => Err(refuse(app, error).await),
            Ok(Opened::Tunnel { stream, standing }) => {
                record.connected(&self.shared);
                let (shared, idle, cut) = (&self.shared, settings.idle, &place.cut);
                carry::caller_to_tunnel(shared, app, (stream, standing), idle, cut, record).await
            }
            Ok(Opened::Local { io, load, place: inbound }) => {
                record.connected(&self.shared);
                let cuts = [&place.cut, &inbound.cut];
                let carried = carry::within_host(&self.shared, app, io, settings.idle, &cuts).await;
                drop(load);
                carried
            }
        }
    }

    /// Follows the destination's route, if it has one, to a backend that is known here.
    async fn routed(
        &self,
        snapshot: &Arc<Snapshot>,
        asked: Target,
    ) -> Result<(Arc<Snapshot>, Target), FlowError> {
        let Some(destination) = snapshot.destination(&asked.service) else {
            return Ok((Arc::clone(snapshot), asked));
        };
        let chosen =
            self.shared.with_rng(|rng| destination.route(asked.port, rng)).map_err(FlowError::NoBackend)?;
        if snapshot.destination(&chosen.service).is_some() {
            return Ok((Arc::clone(snapshot), chosen));
        }
        match resolve::service_port(&self.shared, &chosen.service, Some(chosen.port)).await? {
            Way::Mesh(snapshot, target) => Ok((snapshot, target)),
            Way::Outside(..) => Err(FlowError::UnknownService { name: chosen.service.to_string() }),
        }
    }
}

/// Tells the program why there is no connection, and gives the error back for the log.
async fn refuse(app: crate::app::AppStream, error: FlowError) -> FlowError {
    app.refuse(&error.fault()).await;
    error
}

/// The timeouts of a destination; the defaults when it is not known.
pub(crate) fn settings_of(snapshot: Option<&Snapshot>, service: &ServiceName) -> TimeoutSettings {
    let settings = snapshot.and_then(|snapshot| snapshot.destination(service)).map(|found| *found.settings());
    settings.unwrap_or_default().timeouts
}
