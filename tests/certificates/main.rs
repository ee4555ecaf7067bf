//! The catalogue of bad certificates over real QUIC handshakes, in both roles: a hostile caller against a Weft
//! endpoint, and a hostile server against a Weft dialler.
//!
//! Each refusal is checked on both ends: the victim says why in one word of a fixed set and has no tunnel, the
//! attacker hears an alert, and a victim that dials shows nothing of itself. The control of every case is
//! [`trust::an_svid_in_order_is_accepted_in_both_roles`]. The certificates come from rcgen and from an
//! independent tool in Python, `tests/tools/certificates`.
//!
//! CERT-28 comes with the states of an authority.

mod authorities;
mod chains;
mod differential;
mod keys;
mod moments;
mod mutation;
mod names;
mod proof;
mod requests;
mod shapes;
mod trust;

use std::time::Duration;

use weft_tests::corpus::Corpus;

/// The victim's words for a leaf that is no SVID.
const NOT_AN_SVID: &str = "not_an_svid";
/// For a chain that leads to no root of its trust domain.
const UNTRUSTED: &str = "untrusted";
/// For a certificate above the leaf that breaks a rule.
const BAD_AUTHORITY: &str = "bad_authority";
/// What it says of certificates that are not strict DER of version 3.
const MALFORMED: &str = "malformed";

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Makes the cases of `group` and tries each in both roles.
async fn judge(group: &str, refused: &[(&str, &str, &str)]) {
    let corpus = Corpus::make(group);
    corpus.judge(&corpus.lab(), refused).await;
}

/// Likewise, where all refusals of the group have one reason and one wording.
async fn judge_alike(group: &str, reason: &str, says: &str) {
    let corpus = Corpus::make(group);
    let refused = corpus.cases.iter().filter(|case| !case.accept);
    let refused: Vec<_> = refused.map(|case| (case.name.as_str(), reason, says)).collect();
    assert!(refused.len() > 2, "{group} has cases");
    corpus.judge(&corpus.lab(), &refused).await;
}
