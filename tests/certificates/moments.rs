//! Certificates out of their time (CERT-04).

use std::time::Duration;

use weft_tests::forge::{Leaf, Offset};
use weft_tests::handshake::{Lab, ORDER};

use super::{HOUR, SECOND};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn cert_04_an_svid_out_of_its_time_is_refused() {
    let lab = Lab::new();
    for by in [SECOND, HOUR] {
        let expired = Leaf::good(ORDER).valid(Offset::Ago(2 * HOUR - SECOND), Offset::Ago(by));
        lab.refuses(&format!("expired by {by:?}"), &lab.sign(&expired), "expired", ORDER).await;
    }
    // Handshakes of a loaded machine may take a while, so the shortest is with a clock that stands still, below.
    for early in [61 * SECOND, HOUR] {
        let future = Leaf::good(ORDER).valid(Offset::In(early), Offset::In(HOUR + HOUR / 2));
        lab.refuses(&format!("valid in {early:?}"), &lab.sign(&future), "not_yet_valid", ORDER).await;
    }
}

#[tokio::test]
async fn cert_04_the_boundaries_hold_to_the_second() {
    let mut lab = Lab::new();
    let (begin, end) = (Offset::Ago(MINUTE), Offset::In(MINUTE));
    let leaf = lab.sign(&Leaf::good(ORDER).valid(begin, end));
    let identity = lab.accepts("within", &leaf).await;
    let (end, begin) = (identity.not_after, identity.not_after - 2 * MINUTE);

    for (case, now, reason) in [
        ("an hour before it begins", begin - HOUR, Some("not_yet_valid")),
        ("61 s before it begins", begin - 61 * SECOND, Some("not_yet_valid")),
        ("a second before it begins", begin - SECOND, Some("not_yet_valid")),
        ("as it begins", begin, None),
        ("a second before it ends", end - SECOND, None),
        ("as it ends", end, Some("expired")),
        ("a second after it ends", end + SECOND, Some("expired")),
        ("an hour after it ends", end + HOUR, Some("expired")),
    ] {
        lab.at(now);
        match reason {
            Some(reason) => lab.refuses(case, &leaf, reason, ORDER).await,
            None => drop(lab.accepts(case, &leaf).await),
        }
    }
}
