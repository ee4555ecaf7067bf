//! Begins a log anew when the one that is there will never be whole again: its directory was lost, or cut.
//!
//! Owns the one way out of W6055. What is left of the old log is kept beside the new one, whose first entry says who gave
//! the old one up and what was wrong with it; numbers go on, so that the gap stays to be seen.

use tracing::warn;

use super::{
    AuditError, Settings,
    chain::{End, Event, Outcome},
    files::Files,
    writer::{Anchor, cut_off, exchanged, missing},
};
use crate::{
    clock::Clock,
    layout,
    store::{Expected, Store},
};

/// Begins the log of `instance` anew if it is not whole, for the person with `uid`. Returns what was wrong. No server may
/// run.
///
/// # Errors
///
/// [`AuditError`]; then the old log is still told to be broken, and this may be tried again.
pub async fn accept(
    settings: Settings,
    store: &dyn Store,
    clock: &Clock,
    instance: &str,
    uid: u32,
) -> Result<Option<String>, AuditError> {
    let key = layout::audit_anchor(instance);
    let anchor = Anchor::read(store, &key).await?;
    let (mut files, _) = Files::open(settings)?;
    let report = files.verify()?;
    let mut wrong = report.faults.first().cloned();
    if let Some(anchor) = &anchor
        && wrong.is_none()
    {
        wrong = missing(anchor, &report).or_else(|| cut_off(anchor, &report));
        if wrong.is_none() {
            wrong = exchanged(anchor, &report.end, &files)?;
        }
    }
    let Some(wrong) = wrong else { return Ok(None) };
    let known = anchor.map_or(0, |anchor| if anchor.last == u64::MAX { 0 } else { anchor.last });
    // The entry that is written now is the first of a chain of its own.
    let mut end = End { seq: known.max(report.end.seq), ..End::default() };
    let first = end.seq.saturating_add(1);
    files.set_aside(first)?;
    let what = format!("uid {uid} gave up the log before this entry: {wrong}");
    let line = end.append(Event::unknown("server", "audit", Outcome::Broken).because(&what), clock.now());
    files.append(&line, first)?;
    let anchor = Anchor { first, last: end.seq, hash: end.hash };
    store.put(key, anchor.encode(), Expected::Anything, None).await?;
    warn!(target: "audit", uid, wrong, "the audit log begins anew");
    Ok(Some(wrong))
}
