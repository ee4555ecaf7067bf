//! Keeps SVIDs current: one schedule for the node and one for each local workload.
//!
//! When to ask is [`Rotation`]'s to say; the key is born here for each request and never leaves. A renewed SVID is kept on
//! disk before it is used, and tunnels under the old one are replaced (make before break).

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tonic::transport::Channel;
use tracing::{info, warn};
use weft_api::{
    fault::{Fault, from_status},
    pb::identity::{IssueSvidRequest, identity_client::IdentityClient},
};
use weft_identity::{
    csr::SigningRequest,
    rotation::{Action, BACKDATE, Refusal, Rotation, RotationError},
    spiffe::SpiffeId,
    svid::{Serial, Svid},
};
use weft_policy::code::{self, CodeId};

use crate::{join, local::LocalWorkload, shared::Shared, telemetry::metrics::Renewal};

/// Clocks that differ by more are worth a person's look: half of what notBefore is dated back (security.md 5.9).
const SKEW_TOLD: Duration = BACKDATE.checked_div(2).expect("two is not zero");

/// What is under a tainted root is renewed within this time, at a moment drawn by each (security.md 3.3, 4).
pub(crate) const TAINT_SPLAY: Duration = Duration::from_secs(60);
/// Or within that part of what is left of it.
const TAINT_PART: u32 = 4;

/// How often an agent whose own SVID has ended looks whether somebody has joined the node again.
const LOOK_FOR_JOIN: Duration = Duration::from_secs(1);

/// Whose SVID is kept.
#[derive(Clone, Debug)]
pub(crate) enum Holder {
    /// The node's own.
    Node,
    /// A workload's.
    Workload(Arc<LocalWorkload>),
}

impl Holder {
    /// Who that is.
    pub(crate) fn id<'a>(&'a self, shared: &'a Shared) -> &'a SpiffeId {
        match self {
            Self::Node => &shared.node_id,
            Self::Workload(workload) => &workload.identity,
        }
    }
}

/// Keeps one SVID current. Cancel by dropping: what was published stays published.
pub(crate) async fn keep_fresh(shared: Arc<Shared>, holder: Holder, mut renew_now: watch::Receiver<u64>) {
    let mut rotation = resume(&shared, &holder);
    // At most one request is under way; the schedule goes on meanwhile, so that an SVID which expires while no server
    // answers is withdrawn in time.
    let mut asking: Option<BoxFuture<'static, Result<Svid, Refusal>>> = None;
    renew_now.mark_unchanged();
    let mut denylists = shared.denylists.subscribe();
    let mut bundles = shared.bundle_news.subscribe();
    let mut taint = Taint::default();
    loop {
        if let Some(at) = taint.renew_at(&shared, &holder) {
            rotation.renew_by(at);
        }
        if let Some(again) = joined_again(&shared, &holder) {
            (rotation, asking) = (again, None);
        }
        match rotation.next(shared.clock.wall()) {
            Action::Request => asking = Some(Box::pin(ask(Arc::clone(&shared), holder.clone()))),
            Action::Publish(svid) => shared.publish_svid(&holder, svid),
            Action::Withdraw => shared.withdraw_svid(&holder),
            Action::WaitUntil(deadline) => tokio::select! {
                () = shared.clock.sleep_until_wall(look_at(&shared, &holder, deadline)) => {}
                Ok(()) = denylists.changed() => {
                    if shared.slot_of(&holder).load().is_none() {
                        // Revoked, with a key that may be somebody else's: another certificate, of another key.
                        (rotation, asking) = (Rotation::new(holder.id(&shared).clone()), None);
                    }
                }
                Ok(()) = renew_now.changed() => rotation.renew_by(shared.clock.wall()),
                Ok(()) = bundles.changed() => {}
                answer = answered(&mut asking) => {
                    asking = None;
                    let taken = rotation.handle_answer(answer, shared.clock.wall(), shared.draw());
                    if let Err(error) = taken {
                        let code = code_of(&error);
                        warn!(id = %holder.id(&shared), %code, %error, "the issued SVID cannot be used");
                    }
                }
            },
        }
    }
}

/// Which SVID is known to be under a tainted root: its renewal is drawn once.
#[derive(Default)]
struct Taint(Option<Serial>);

impl Taint {
    /// When the holder's SVID is to be renewed because its root was tainted; `None` when it was not, or that was said.
    fn renew_at(&mut self, shared: &Shared, holder: &Holder) -> Option<SystemTime> {
        let credential = shared.slot_of(holder).load()?;
        let svid = credential.svid();
        if self.0.as_ref() == Some(svid.serial()) || !shared.is_tainted(svid) {
            return None;
        }
        self.0 = Some(svid.serial().clone());
        let now = shared.clock.wall();
        let within = TAINT_SPLAY.min(svid.validity().remaining(now) / TAINT_PART);
        info!(id = %holder.id(shared), within_seconds = within.as_secs(), "the root of this SVID is tainted: it is renewed");
        Some(now + within.mul_f64(shared.draw()))
    }
}

/// The catalogue's code of an SVID that is not taken.
const fn code_of(error: &RotationError) -> CodeId {
    match error {
        RotationError::WrongId { .. } => code::UNEXPECTED_ANSWER,
        RotationError::Expired(_) => code::PEER_EXPIRED,
        RotationError::NotYetValid { .. } => code::PEER_NOT_YET_VALID,
    }
}

/// The answer to the request under way; never, when there is none.
async fn answered(asking: &mut Option<BoxFuture<'static, Result<Svid, Refusal>>>) -> Result<Svid, Refusal> {
    match asking {
        Some(request) => request.await,
        None => std::future::pending().await,
    }
}

/// Starts from what is on disk, when it is still good.
fn resume(shared: &Shared, holder: &Holder) -> Rotation {
    let id = holder.id(shared).clone();
    let Some(svid) = shared.stored_svid(holder).filter(|svid| !shared.is_denied(svid)) else {
        return Rotation::new(id);
    };
    let resumed = Rotation::resume(id.clone(), svid, shared.clock.wall(), shared.draw());
    resumed.unwrap_or_else(|error| {
        info!(%id, %error, "the SVID on disk cannot be used");
        if let (Holder::Workload(workload), RotationError::Expired(_)) = (holder, &error) {
            workload.set_expired(true);
        }
        Rotation::new(id)
    })
}

/// Whether the holder is a node that has no SVID any more, so that no server knows it: only a new join helps.
fn must_join(shared: &Shared, holder: &Holder) -> bool {
    matches!(holder, Holder::Node) && shared.node_slot.load().is_none()
}

/// When to look again: soon, while a new join may come.
fn look_at(shared: &Shared, holder: &Holder, deadline: SystemTime) -> SystemTime {
    if must_join(shared, holder) { deadline.min(shared.clock.wall() + LOOK_FOR_JOIN) } else { deadline }
}

/// Starts anew with what a join has left, while the agent ran, for a node whose SVID had ended.
fn joined_again(shared: &Shared, holder: &Holder) -> Option<Rotation> {
    if !must_join(shared, holder) {
        return None;
    }
    let now = shared.clock.wall();
    let (svid, bundle) = join::rejoined(&shared.files, &shared.node_id, now)?;
    if shared.is_denied(&svid) {
        return None;
    }
    let rotation = Rotation::resume(shared.node_id.clone(), svid, now, shared.draw()).ok()?;
    if bundle.sequence() > shared.bundle_sequence() {
        shared.publish_bundle(bundle);
    }
    info!(id = %shared.node_id, "the node was joined again");
    Some(rotation)
}

/// Asks for a workload's first SVID and publishes it, so that nobody is sent to an endpoint that cannot prove itself.
///
/// # Errors
///
/// The issuer's refusal, as a person meets it.
pub(crate) async fn first(shared: &Arc<Shared>, workload: &Arc<LocalWorkload>) -> Result<(), Fault> {
    let holder = Holder::Workload(Arc::clone(workload));
    let svid = request(shared.link.channel().await, &workload.identity, held(shared, &holder)).await?;
    shared.publish_svid(&holder, svid);
    Ok(())
}

/// One request to the issuer, once there is a server to ask. A cancelled one leaves nothing behind.
async fn ask(shared: Arc<Shared>, holder: Holder) -> Result<Svid, Refusal> {
    let channel = shared.link.channel().await;
    match request(channel, holder.id(&shared), held(&shared, &holder)).await {
        Ok(svid) => {
            shared.report.metrics.renewal(Renewal::Issued);
            compare_clocks(&shared, &svid);
            Ok(svid)
        }
        Err(why) => {
            shared.report.metrics.renewal(Renewal::Failed);
            let (code, what) = (&why.code, &why.what);
            warn!(id = %holder.id(&shared), %code, what, "no SVID was issued");
            Err(Refusal::default())
        }
    }
}

/// Notes how far the issuer's clock is from this one: it has dated the SVID back by a known time, to the second.
fn compare_clocks(shared: &Shared, svid: &Svid) {
    let ahead = seconds_ahead(svid.validity().not_before + BACKDATE, shared.clock.wall());
    shared.report.metrics.clock_skew(ahead);
    if ahead.abs() > SKEW_TOLD.as_secs_f64() {
        let code = code::PEER_NOT_YET_VALID;
        warn!(ahead_seconds = ahead, %code, "the server's clock and this one differ; certificates may be refused");
    }
}

/// How far `theirs` lies after `ours`, in seconds; before it, when negative.
fn seconds_ahead(theirs: SystemTime, ours: SystemTime) -> f64 {
    match theirs.duration_since(ours) {
        Ok(ahead) => ahead.as_secs_f64(),
        Err(behind) => -behind.duration().as_secs_f64(),
    }
}

/// The serial number of the SVID that the holder presents until it has the next one; empty for none.
fn held(shared: &Shared, holder: &Holder) -> String {
    shared.slot_of(holder).load().map_or_else(String::new, |held| held.svid().serial().to_string())
}

/// Asks for an SVID with a new key.
async fn request(channel: Channel, id: &SpiffeId, replaces: String) -> Result<Svid, Fault> {
    let (key, csr) = SigningRequest::create().map_err(|e| Fault::new(code::ENTROPY, e.to_string()))?;
    let request = IssueSvidRequest { spiffe_id: id.to_string(), csr, replaces };
    let answer = IdentityClient::new(channel).issue_svid(request).await;
    let answer = answer.map_err(|status| from_status(&status).swap_remove(0))?.into_inner();
    let chain = answer.chain.into_iter().map(CertificateDer::from).collect();
    Svid::parse(chain, key).map_err(|e| Fault::new(code::UNEXPECTED_ANSWER, e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clk_01_the_skew_is_positive_when_the_issuer_is_ahead() {
        let ours = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        assert_eq!(seconds_ahead(ours + Duration::from_secs(300), ours), 300.0);
        assert_eq!(seconds_ahead(ours - Duration::from_secs(30), ours), -30.0);
        assert_eq!(SKEW_TOLD, Duration::from_secs(30));
    }
}
