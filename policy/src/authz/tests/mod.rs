//! The model of security.md 7.2 under test: single rules, the attack catalogue, properties, and the words.

mod catalogue;
mod model;
mod semantics;
mod words;

use weft_identity::spiffe::SpiffeId;

use super::{Authorization, CallRequest, Principal};
use crate::{snapshot::Snapshot, testing::service_name};

/// Decides a call of `source` to `charge.shop` port 80.
fn decide(snapshot: &Snapshot, source: &SpiffeId) -> Authorization {
    decide_port(snapshot, Principal::Spiffe(source), 80)
}

fn decide_port(snapshot: &Snapshot, source: Principal<'_>, port: u16) -> Authorization {
    snapshot.authorize(&CallRequest { source, service: &service_name("charge", "shop"), port, network: None })
}

/// The code of the refusal, or `allowed`.
fn code_of(authorization: &Authorization) -> &'static str {
    match &authorization.decision {
        super::Decision::Allow(_) => "allowed",
        super::Decision::Deny(denial) => denial.code.as_str(),
    }
}
