//! What an agent does when somebody is denied: peers at once, its own programs as well (security.md 3.6).
//!
//! The list is put in force for handshakes first, then live tunnels and flows are gone through; a tunnel that comes up
//! meanwhile is judged once more when it can be seen, and a flow asks after it has entered its table. So nothing slips
//! between the old list and the new one.

use std::time::SystemTime;

use tracing::{info, warn};
use weft_identity::{
    denied::{Denied, Denylist},
    spiffe::SpiffeId,
    svid::Svid,
    tls::{VerifyError, peer_id},
};
use weft_overlay::{CloseCode, ResetCode, Tunnel};

use crate::{error::FlowError, local::LocalWorkload, shared::Shared};

/// Told to the other end with the code.
const REVOKED: &str = "the identity is revoked";
const BANNED: &str = "its node is banned";

/// With which code a tunnel is closed because of an entry.
const fn close_code(entry: &Denied) -> (CloseCode, &'static str) {
    match entry.node {
        Some(_) => (CloseCode::NodeBanned, BANNED),
        None => (CloseCode::IdentityRevoked, REVOKED),
    }
}

/// With which code a tunnel is closed whose peer does not prove itself any more.
pub(crate) const fn code_of_verdict(error: &VerifyError) -> CloseCode {
    match error {
        VerifyError::Revoked { .. } => CloseCode::IdentityRevoked,
        VerifyError::NodeBanned { .. } => CloseCode::NodeBanned,
        VerifyError::Expired { .. } => CloseCode::IdentityExpired,
        VerifyError::UnknownTrustDomain(_) | VerifyError::NoRoot(_) => CloseCode::TrustDomainRemoved,
        VerifyError::Profile(_)
        | VerifyError::NotYetValid { .. }
        | VerifyError::Authority { .. }
        | VerifyError::Untrusted { .. }
        | VerifyError::Unexpected { .. }
        | VerifyError::UnknownRoot => CloseCode::AuthorityRevoked,
    }
}

impl Shared {
    /// Puts a denylist in force, if it is another one, and cuts what it forbids.
    pub(crate) fn deny(&self, denied: &Denylist) {
        let before = self.bundles.load();
        if before.denied() == denied {
            return;
        }
        self.bundles.deny(denied);
        self.report.metrics.denied(denied.len());
        let now = self.clock.wall();
        let peers = self.close_denied_peers(denied, now);
        let own: Vec<_> = self.locals.all();
        let own = own.iter().filter(|workload| self.withdraw_denied(workload, now)).count();
        let flows = self.cut_denied_flows(denied, now);
        info!(entries = denied.len(), peers, own, flows, "denylist in force");
        // Whoever presents nothing asks anew: its certificate was revoked, or its identity is denied no more.
        self.denylists.send_modify(|count| *count += 1);
    }

    fn close_denied_peers(&self, denied: &Denylist, now: SystemTime) -> usize {
        let mut closed = 0;
        for tunnel in self.planes().iter().flat_map(|plane| plane.overlay.tunnels()) {
            if let Some(entry) = denied.find(tunnel.peer().presented(), now) {
                let (code, detail) = close_code(entry);
                tunnel.close(code, detail);
                closed += 1;
            }
        }
        closed
    }

    /// Takes a workload's certificate out of use if it is denied, and closes the tunnels made with it. Whether it was.
    fn withdraw_denied(&self, workload: &LocalWorkload, now: SystemTime) -> bool {
        let Some(held) = workload.slot.load() else { return false };
        let Some((code, detail)) = self.denial_of(held.svid(), now) else { return false };
        workload.slot.withdraw();
        for plane in self.planes() {
            plane.pool.close_where(code, |key| key.source == workload.identity);
            plane.overlay.close_where(code, detail, |tunnel| self.serves(tunnel, &workload.identity));
        }
        warn!(id = %workload.identity, %code, "the certificate is denied; nothing is presented any more");
        true
    }

    /// Whether this end of an accepted tunnel proved `identity`.
    fn serves(&self, tunnel: &Tunnel, identity: &SpiffeId) -> bool {
        let label = tunnel.server_name().and_then(|name| name.split('.').next());
        label.and_then(|label| self.locals.labelled(label)).is_some_and(|found| found.identity == *identity)
    }

    /// Cuts flows that no tunnel carries, by the short cut on this host and to the outside.
    fn cut_denied_flows(&self, denied: &Denylist, now: SystemTime) -> usize {
        let is_denied = |id: &SpiffeId| denied.identity(id, now).is_some();
        let code = ResetCode::IdentityRevoked;
        self.flows.cut_with(code, |facts| {
            is_denied(&facts.source) || facts.served_by.as_ref().is_some_and(is_denied)
        }) + self.egress.cut_with(code, |facts| is_denied(&facts.source))
    }

    /// Why an SVID of this agent may not be presented, if it may not.
    fn denial_of(&self, svid: &Svid, now: SystemTime) -> Option<(CloseCode, &'static str)> {
        // One that cannot be read is refused by every peer anyway.
        let own = peer_id(svid.chain()).ok()?;
        self.bundles.load().denied().find(own.presented(), now).map(close_code)
    }

    /// Whether an SVID of this agent is denied now.
    pub(crate) fn is_denied(&self, svid: &Svid) -> bool {
        self.denial_of(svid, self.clock.wall()).is_some()
    }

    /// Refuses a flow of `identity` while it is denied. Asked after the flow has entered its table.
    pub(crate) fn check_identity(&self, identity: &SpiffeId) -> Result<(), FlowError> {
        match self.bundles.load().denied().identity(identity, self.clock.wall()) {
            Some(_) => Err(FlowError::Revoked { identity: identity.clone() }),
            None => Ok(()),
        }
    }

    /// Takes a workload's certificate out of use if it is denied, at the moment it came into use.
    pub(crate) fn check_published(&self, workload: &LocalWorkload) {
        self.withdraw_denied(workload, self.clock.wall());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_to_distrust_a_peer_has_a_code_of_its_own() {
        let id: SpiffeId = "spiffe://corp.example/ns/shop/sa/order".parse().unwrap();
        let (now, domain) = (SystemTime::UNIX_EPOCH, id.trust_domain().clone());
        let by = "serial:0a".parse().unwrap();
        let verdicts = [
            (VerifyError::Revoked { id: id.clone(), by }, CloseCode::IdentityRevoked),
            (VerifyError::NodeBanned { id: id.clone(), node: "hostb".to_owned() }, CloseCode::NodeBanned),
            (VerifyError::Expired { id, not_after: now, now }, CloseCode::IdentityExpired),
            (VerifyError::NoRoot(domain.clone()), CloseCode::TrustDomainRemoved),
            (VerifyError::UnknownTrustDomain(domain), CloseCode::TrustDomainRemoved),
            (VerifyError::UnknownRoot, CloseCode::AuthorityRevoked),
        ];
        for (verdict, code) in verdicts {
            assert_eq!(code_of_verdict(&verdict), code, "{verdict}");
        }
    }
}
