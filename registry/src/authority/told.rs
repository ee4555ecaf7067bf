//! What people are told of the authority.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use weft_api::{
    duration::format_duration,
    pb::management::{
        AuthorityStatus, Problem, RootStatus, RotateAuthorityRequest, RotateAuthorityResponse,
        ShowAuthorityResponse,
    },
};
use weft_identity::{
    ca::{BACKDATE, CLOCK_TOLERANCE, Root, RootState},
    svid::Validity,
};
use weft_policy::code::{self, CodeId};

use super::{InstanceAuthority, hex};
use crate::{core::Authority, issuance, refusal::Refusal, timestamp::rfc3339};

/// So little of the root's life is left when the schedule should have prepared another, at the latest.
const LATE_PREPARATION: Duration = Duration::from_secs(30 * 24 * 3600);
/// So little is left when the schedule should have activated the prepared one, whoever had taken it.
const LATE_ACTIVATION: Duration = Duration::from_secs(6 * 24 * 3600);
/// The most nodes that are named beside a root.
const MAX_MISSING: usize = 100;

impl Authority for InstanceAuthority {
    fn status(&self) -> AuthorityStatus {
        let bundle = self.bundle.borrow().clone();
        let (own, intermediate, (step, at)) = {
            let ca = self.ca();
            (ca.roots(), ca.intermediate_validity(), ca.next_rotation())
        };
        let issued = self.issued.load(std::sync::atomic::Ordering::Relaxed);
        let mut roots: Vec<_> = own.iter().map(|root| self.root_status(root)).collect();
        let foreign = bundle.fingerprints().into_iter().zip(bundle.validities());
        let foreign = foreign.filter(|(found, _)| own.iter().all(|root| root.fingerprint != *found));
        roots.extend(foreign.map(|(found, validity)| foreign_root(&found, validity)));
        let next_step = if step == RootState::Active { "activate" } else { "prepare" };
        AuthorityStatus {
            roots,
            intermediate_not_after: rfc3339(intermediate.not_after),
            issued,
            bundle_sequence: bundle.sequence(),
            leaf_ttl: format_duration(self.settings.leaf_ttl),
            next_step: next_step.to_owned(),
            next_step_at: rfc3339(at),
        }
    }

    fn show(&self) -> BoxFuture<'_, Result<ShowAuthorityResponse, Refusal>> {
        Box::pin(async {
            let mut authority = self.status();
            if let Some(audience) = self.audience.get() {
                let (tainted, void, now) = (self.ca().tainted_roots(), audience.banned(), self.clock.now());
                for root in tainted {
                    let in_use = issuance::in_use_under(&*audience.store, &root, &void, now).await?;
                    let count = u32::try_from(in_use.len()).unwrap_or(u32::MAX);
                    let shown = authority.roots.iter_mut().filter(|shown| shown.fingerprint == hex(&root));
                    shown.for_each(|shown| shown.unrenewed = count);
                }
            }
            let bundle = self.bundle.borrow().clone();
            Ok(ShowAuthorityResponse {
                authority: Some(authority),
                roots_pem: bundle.roots().map(|root| pem(root)).collect(),
                trust_domain: self.trust_domain.to_string(),
            })
        })
    }

    fn rotate(
        &self,
        request: RotateAuthorityRequest,
    ) -> BoxFuture<'_, Result<RotateAuthorityResponse, Refusal>> {
        Box::pin(async move { self.step(&request).await })
    }

    fn problems(&self) -> Vec<Problem> {
        let now = self.clock.now();
        let ca = self.ca();
        let sixth = |validity: &Validity| validity.period().saturating_sub(BACKDATE) / 6;
        let mut problems = Vec::new();
        let mut tell = |id: CodeId, what: String| {
            let fix = id.row().fix.iter().map(|&fix| fix.to_owned()).collect();
            problems.push(Problem { code: id.as_str().to_owned(), what, fix });
        };
        let intermediate = ca.intermediate_validity();
        if intermediate.remaining(now) < sixth(&intermediate) {
            let at = rfc3339(ca.intermediate_validity().not_after);
            let what = format!("the intermediate of {} ends {at} and was not renewed", ca.instance());
            tell(code::CA_EXPIRES_SOON, what);
        }
        let (root, left) = (ca.root_validity(), ca.root_validity().remaining(now));
        let waits = ca.prepared_root().is_some();
        if left < sixth(&root).min(if waits { LATE_ACTIVATION } else { LATE_PREPARATION }) {
            let (at, of) = (rfc3339(root.not_after), ca.instance());
            let why = match (waits, ca.is_under_upstream()) {
                (true, _) => "the next one does not sign yet",
                (false, true) => "the upstream authority's files hold no new one",
                (false, false) => "no new one is prepared",
            };
            tell(code::CA_EXPIRES_SOON, format!("the root of {of} ends {at} and {why}"));
        }
        let upstream = self.upstream_fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(fault) = &*upstream {
            tell(code::UPSTREAM_REFUSED, fault.what.clone());
        }
        drop(upstream);
        if ca.high_water().duration_since(now).is_ok_and(|back| back > CLOCK_TOLERANCE) {
            let at = rfc3339(ca.high_water());
            tell(code::CLOCK_WENT_BACK, format!("the last certificate was signed at {at}, which lies ahead"));
        }
        if self.slot.load().is_none() {
            tell(code::OWN_SVID_EXPIRED, "the server's own certificate has expired".to_owned());
        }
        problems
    }
}

impl InstanceAuthority {
    fn root_status(&self, root: &Root) -> RootStatus {
        let published = root.state != RootState::Revoked;
        let missing =
            if published { self.missing(&root.fingerprint).unwrap_or_default() } else { Vec::new() };
        RootStatus {
            fingerprint: hex(&root.fingerprint),
            not_before: rfc3339(root.validity.not_before),
            not_after: rfc3339(root.validity.not_after),
            instance: self.instance(),
            active: root.state == RootState::Active,
            state: root.state.as_str().to_owned(),
            since: rfc3339(root.since),
            missing: missing.iter().take(MAX_MISSING).map(ToString::to_string).collect(),
            unrenewed: 0,
            can_return: root.can_return,
        }
    }
}

fn foreign_root(fingerprint: &[u8; 32], validity: Validity) -> RootStatus {
    RootStatus {
        fingerprint: hex(fingerprint),
        not_before: rfc3339(validity.not_before),
        not_after: rfc3339(validity.not_after),
        ..RootStatus::default()
    }
}

/// RFC 7468 §5.1.
fn pem(certificate: &[u8]) -> String {
    let text = STANDARD.encode(certificate);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
