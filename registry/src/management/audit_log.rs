//! The audit log, for admins.

use weft_api::pb::management::{AuditEntry, ListAuditRequest, ListAuditResponse, VerifyAuditResponse};

use crate::{audit::chain::Entry, core::Core, refusal::Refusal};

/// The most entries of one answer, as of every list (security.md 9.3).
const MAX_ENTRIES: usize = 500;
/// How many who does not say gets: a few screens.
const ENTRIES: usize = 100;

pub(super) async fn list(core: &Core, request: &ListAuditRequest) -> Result<ListAuditResponse, Refusal> {
    let count = match usize::try_from(request.limit) {
        Ok(0) | Err(_) => ENTRIES,
        Ok(count) => count.min(MAX_ENTRIES),
    };
    let entries = core.audit.newest(count).await?;
    Ok(ListAuditResponse { entries: entries.into_iter().map(told).collect() })
}

pub(super) async fn verify(core: &Core) -> Result<VerifyAuditResponse, Refusal> {
    let report = core.audit.verify().await?;
    Ok(VerifyAuditResponse {
        first: report.first,
        last: report.end.seq,
        hash: report.end.hash,
        faults: report.faults,
    })
}

fn told(entry: Entry) -> AuditEntry {
    AuditEntry {
        sequence: entry.seq,
        time: entry.at,
        who: entry.who,
        role: entry.role,
        from: entry.from,
        method: entry.method,
        outcome: entry.outcome,
        code: entry.code,
        objects: entry.objects,
        reason: entry.reason,
        change: entry.change,
        untold: entry.untold,
        hash: entry.hash,
    }
}
