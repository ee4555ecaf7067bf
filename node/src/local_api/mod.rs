//! What local people and `weft run` ask of the agent, over `agent.sock`.
//!
//! The caller is who the kernel says it is. Only the agent's own user, root, or a user whom the enrollment names may
//! speak as a workload (decisions.md, speaking as a workload).

mod runs;
mod status;

pub(crate) use runs::free_name;
pub(crate) use status::{must_join_again, rfc3339};

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status};
use tracing::info;
use weft_api::{
    channel::PeerCred,
    fault::{Fault, fault_to_status},
    pb::agent::{
        AgentStatusRequest, AgentStatusResponse, Denial, DenialsRequest, DenialsResponse, DrainRequest,
        DrainResponse, RunEvent, RunRequest, SpeakEvent, SpeakRequest, agent_server,
    },
};

use weft_policy::code;

use crate::{listeners::Listeners, local::LocalWorkload, shared::Shared};

/// The longest drain that may be asked for.
const MAX_DRAIN: Duration = Duration::from_secs(24 * 3_600);
/// Refusals told at once (agent.proto).
const MAX_DENIALS: u32 = 100;

/// The service behind `agent.sock`.
#[derive(Clone)]
pub(crate) struct LocalApi {
    shared: Arc<Shared>,
    listeners: Listeners,
    drained: mpsc::Sender<()>,
}

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl LocalApi {
    /// `drained` is told once a drain that was asked for here has ended.
    pub(crate) const fn new(shared: Arc<Shared>, listeners: Listeners, drained: mpsc::Sender<()>) -> Self {
        Self { shared, listeners, drained }
    }

    fn uid<T>(request: &Request<T>) -> Result<u32, Status> {
        let peer = request.extensions().get::<PeerCred>();
        let unknown = || Fault::new(code::UNAUTHENTICATED, "the kernel does not say who the caller is");
        peer.map(|peer| peer.uid).ok_or_else(|| fault_to_status(Code::Unauthenticated, &unknown()))
    }

    /// Whether that user may do as it likes here.
    fn is_owner(uid: u32) -> bool {
        uid == 0 || uid == nix::unistd::geteuid().as_raw()
    }

    /// Whether that user may speak as a workload that runs: as its own, or as one that is no user's. What another user
    /// holds is root's alone beside that user (decisions.md, speaking as a workload).
    fn may_speak(uid: u32, workload: &LocalWorkload) -> bool {
        let named = || workload.registration().is_some_and(|known| known.allowed_uids.contains(&uid));
        match workload.uid {
            Some(owner) => owner == uid || uid == 0,
            None => Self::is_owner(uid) || named(),
        }
    }
}

#[tonic::async_trait]
impl agent_server::Agent for LocalApi {
    type RunStream = Events<RunEvent>;
    type SpeakStream = Events<SpeakEvent>;

    async fn run(&self, request: Request<RunRequest>) -> Result<Response<Self::RunStream>, Status> {
        let uid = Self::uid(&request)?;
        let started = runs::start(&self.shared, &self.listeners, uid, request.into_inner()).await;
        let (event, guard) = started.map_err(|refusal| fault_to_status(refusal.0, &refusal.1))?;
        info!(workload = event.workload_id, uid, "program started");
        Ok(Response::new(held_open(event, guard)))
    }

    async fn speak(&self, request: Request<SpeakRequest>) -> Result<Response<Self::SpeakStream>, Status> {
        let uid = Self::uid(&request)?;
        let wanted = request.into_inner().identity;
        let spoken = runs::speak(&self.shared, &self.listeners, uid, &wanted).await;
        let (event, guard) = spoken.map_err(|refusal| fault_to_status(refusal.0, &refusal.1))?;
        Ok(Response::new(held_open(event, guard)))
    }

    async fn status(
        &self,
        request: Request<AgentStatusRequest>,
    ) -> Result<Response<AgentStatusResponse>, Status> {
        let uid = Self::uid(&request)?;
        let may_see = |workload: &LocalWorkload| Self::is_owner(uid) || Self::may_speak(uid, workload);
        Ok(Response::new(status::status(&self.shared, &self.listeners, may_see)))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        let uid = Self::uid(&request)?;
        if !Self::is_owner(uid) {
            let fault = Fault::new(code::NOT_PERMITTED, "only the agent's own user and root may drain it");
            return Err(fault_to_status(Code::PermissionDenied, &fault));
        }
        let deadline = Duration::from_millis(request.into_inner().deadline_ms).min(MAX_DRAIN);
        let flows_cut = self.shared.drain.drain(deadline, &self.shared.clock).await;
        // The one who waits for the end may have left already.
        let _ = self.drained.try_send(());
        Ok(Response::new(DrainResponse { flows_cut: flows_cut as u64 }))
    }

    async fn denials(&self, request: Request<DenialsRequest>) -> Result<Response<DenialsResponse>, Status> {
        let uid = Self::uid(&request)?;
        let limit = request.into_inner().limit.clamp(1, MAX_DENIALS) as usize;
        let may_see = |refusal: &crate::denials::Refusal| Self::is_owner(uid) || refusal.uid == Some(uid);
        let denials = self.shared.denials.latest(limit, may_see).into_iter().map(told).collect();
        Ok(Response::new(DenialsResponse { denials }))
    }
}

fn told(refusal: crate::denials::Refusal) -> Denial {
    Denial {
        time: rfc3339(refusal.time),
        id: refusal.id,
        code: refusal.code,
        source: refusal.source,
        service: refusal.service,
        port: u32::from(refusal.port),
        what: refusal.what,
        why: refusal.why,
        fix: refusal.fix,
        direction: refusal.direction.to_owned(),
    }
}

/// A stream of one event that stays open, and keeps `guard`, until the caller goes away.
fn held_open<T: Send + 'static, G: Send + 'static>(event: T, guard: G) -> Events<T> {
    let (sender, receiver) = mpsc::channel(1);
    // A new channel of size one takes the first event.
    let _ = sender.try_send(Ok(event));
    let stream = ReceiverStream::new(receiver).map(move |item| {
        // The guard and the sender live as long as the stream does.
        let _held = (&guard, &sender);
        item
    });
    Box::pin(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(uid: Option<u32>) -> LocalWorkload {
        let (namespace, name) =
            ("shop".parse().unwrap(), "order".parse::<weft_policy::name::ObjectName>().unwrap());
        let identity = "spiffe://corp.example/ns/shop/sa/order".parse().unwrap();
        LocalWorkload::new(identity, namespace, name.clone(), name, std::collections::BTreeMap::new(), uid)
    }

    #[test]
    fn wl_02_what_another_user_holds_is_nobody_elses() {
        let own = nix::unistd::geteuid().as_raw();
        let (holder, stranger) = (own + 1, own + 2);
        assert!(LocalApi::may_speak(holder, &workload(Some(holder))));
        assert!(!LocalApi::may_speak(stranger, &workload(Some(holder))));
        assert!(LocalApi::may_speak(0, &workload(Some(holder))));
        assert!(LocalApi::may_speak(own, &workload(None)) && !LocalApi::may_speak(stranger, &workload(None)));

        let named = |uid| {
            let named = workload(uid);
            let label = "abc".parse().unwrap();
            let allowed_uids = vec![stranger];
            named.set_registration(crate::local::Registration { label, services: Vec::new(), allowed_uids });
            named
        };
        assert!(LocalApi::may_speak(stranger, &named(None)));
        assert!(!LocalApi::may_speak(stranger, &named(Some(holder))), "a selector names who may start it");
    }
}
