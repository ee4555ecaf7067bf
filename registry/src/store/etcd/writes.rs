//! Transactions on etcd: what they compare, what they change, and what became of them.
//!
//! Owns the translation to etcd's transactions and the answer to a lost answer (see `slots`). A commit returns once the
//! follower has shown it, so that whoever writes reads what it wrote.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use weft_api::pb::etcd::{
    Compare as EtcdCompare, KeyValue, LeaseTimeToLiveRequest, RangeRequest, RequestOp, TxnRequest,
    TxnResponse,
};

use super::super::draft::Bounds;
use super::super::image::entry_bytes;
use super::super::metrics::StoreMetrics;
use super::super::shared::Shared;
use super::super::{Compare, Conflict, Key, LeaseId, Op, Revision, StoreError, Txn};
use super::caller::SharedCaller;
use super::error::{Failure, Verdict};
use super::link::Session;
use super::slots::{Slot, Slots};
use super::space::{Identity, Space, id_of};
use super::wire;

/// See the module.
pub(super) struct Writes {
    pub(super) caller: SharedCaller,
    pub(super) shared: Arc<Shared>,
    pub(super) space: Space,
    pub(super) identity: Identity,
    pub(super) writer: String,
    pub(super) slots: Slots,
    pub(super) bounds: Bounds,
    pub(super) metrics: Arc<StoreMetrics>,
    /// Makes what is written into a slot unlike anything that was written before: random, and counted.
    pub(super) nonce: u128,
    pub(super) count: AtomicU64,
}

/// What became of one attempt.
enum Outcome {
    /// It was applied at this revision of etcd.
    Applied(i64),
    /// It was not, and may be tried again.
    Not(Failure),
}

impl Writes {
    /// Commits a transaction; see [`super::super::Store::commit`].
    pub(super) async fn commit(&self, txn: &Txn) -> Result<Revision, StoreError> {
        if let Some(why) = self.shared.ended() {
            return Err(why.clone());
        }
        self.check_room(txn)?;
        if self.seems_without_effect(txn)? && self.is_without_effect(txn).await? {
            return Ok(self.shared.read()?.revision());
        }
        let began = self.caller.clock.uptime();
        let committed = self.write(txn).await;
        let elapsed = self.caller.clock.uptime().saturating_sub(began);
        match &committed {
            Ok(_) => {
                self.metrics.commits.inc();
                self.metrics.commit_duration.observe(elapsed.as_secs_f64());
            }
            Err(StoreError::Conflict(_)) => {}
            Err(_) => drop(self.metrics.commit_failures.inc()),
        }
        committed
    }

    async fn write(&self, txn: &Txn) -> Result<Revision, StoreError> {
        let mut slot = self.slots.take().await?;
        let deadline = self.caller.deadline();
        loop {
            match self.attempt(txn, &mut slot, deadline).await? {
                Outcome::Applied(revision) => {
                    drop(slot);
                    return self.show(self.identity.revision(revision)).await;
                }
                Outcome::Not(failure) => {
                    self.caller.again(deadline, failure).await.map_err(Failure::unwritten)?;
                }
            }
        }
    }

    /// Waits until readers see the commit.
    async fn show(&self, revision: Revision) -> Result<Revision, StoreError> {
        let limit = self.caller.timeouts.write;
        match tokio::time::timeout(limit, self.shared.reach(revision)).await {
            Ok(reached) => reached.map(|()| revision),
            Err(_) => Err(StoreError::OutcomeUnknown { source: Failure::TimedOut(limit).source() }),
        }
    }

    async fn attempt(&self, txn: &Txn, slot: &mut Slot, deadline: Duration) -> Result<Outcome, StoreError> {
        if !slot.sure {
            self.look_at(slot, deadline).await.map_err(Failure::unwritten)?;
        }
        let session = match self.caller.link.session().await {
            Ok(session) => session,
            Err(failure) => return Ok(Outcome::Not(failure)),
        };
        let token = self.token("t");
        let request = self.request(txn, slot, &token);
        slot.sure = false;
        let answer = self.caller.once(&session, session.kv().txn(request)).await;
        let failure = match answer {
            Ok(answer) if answer.succeeded => {
                let revision = revision_of(&answer).map_err(|source| unknown(&source))?;
                (slot.changed, slot.sure) = (revision, true);
                return Ok(Outcome::Applied(revision));
            }
            Ok(answer) => return self.refused(txn, slot, &answer).await,
            Err(failure) => failure,
        };
        match failure.verdict() {
            Verdict::Unknown => match self.resolve(slot, &token).await {
                Ok(Some(revision)) => Ok(Outcome::Applied(revision)),
                Ok(None) => Ok(Outcome::Not(failure)),
                Err(_) => Err(unknown(&failure)),
            },
            verdict @ (Verdict::Refused
            | Verdict::Unserved
            | Verdict::Compacted
            | Verdict::NoLease
            | Verdict::Full
            | Verdict::Forbidden
            | Verdict::TooLarge) => {
                slot.sure = true;
                self.undone(txn, &session, verdict, failure).await
            }
        }
    }

    /// What a failure means that says for certain that nothing was changed.
    async fn undone(
        &self,
        txn: &Txn,
        session: &Session,
        verdict: Verdict,
        failure: Failure,
    ) -> Result<Outcome, StoreError> {
        match verdict {
            Verdict::Unserved | Verdict::Unknown => Ok(Outcome::Not(failure)),
            Verdict::NoLease => Err(StoreError::NoLease { lease: self.missing_lease(txn, session).await }),
            Verdict::Full
            | Verdict::Refused
            | Verdict::Compacted
            | Verdict::Forbidden
            | Verdict::TooLarge => Err(failure.unwritten()),
        }
    }

    /// Fences off a transaction whose answer was lost, and returns its revision if it was applied all the same.
    async fn resolve(&self, slot: &mut Slot, token: &str) -> Result<Option<i64>, Failure> {
        self.metrics.in_doubt.inc();
        let key = self.space.slot(&self.writer, slot.number);
        let fence = TxnRequest {
            compare: vec![wire::changed_at(key.clone(), slot.changed)],
            success: vec![wire::put(key.clone(), self.token("f").into(), 0)],
            failure: vec![wire::get(wire::whole(key))],
        };
        let ask = |session: Arc<Session>| {
            let fence = fence.clone();
            async move { session.kv().txn(fence).await }
        };
        let answer = self.caller.repeat(self.caller.deadline(), ask).await?;
        let found = wire::found(&answer).into_iter().flatten().next();
        let (changed, applied) = match (answer.succeeded, &found) {
            (true, _) => (revision_of(&answer)?, false),
            // An earlier fence of ours whose answer was lost too leaves something else there.
            (false, Some(found)) => (found.mod_revision, found.value == token.as_bytes()),
            (false, None) => (0, false),
        };
        (slot.changed, slot.sure) = (changed, true);
        tracing::info!(applied, "found out what became of a transaction whose answer was lost");
        Ok(applied.then_some(changed))
    }

    /// Reads a slot whose last transaction nobody waits for any more.
    async fn look_at(&self, slot: &mut Slot, deadline: Duration) -> Result<(), Failure> {
        let key = self.space.slot(&self.writer, slot.number);
        let ask = |session: Arc<Session>| {
            let range = wire::bare(key.clone());
            async move { session.kv().range(range).await }
        };
        let found = self.caller.repeat(deadline, ask).await?;
        slot.changed = found.kvs.first().map_or(0, |found| found.mod_revision);
        slot.sure = true;
        Ok(())
    }

    /// Says which condition failed. If it was the slot's alone, the transaction may be tried again.
    async fn refused(&self, txn: &Txn, slot: &mut Slot, answer: &TxnResponse) -> Result<Outcome, StoreError> {
        let mut found = wire::found(answer);
        let in_slot = found.pop().flatten();
        slot.changed = in_slot.map_or(0, |found| found.mod_revision);
        slot.sure = true;
        match self.conflict(txn, &found) {
            Some(conflict) => Err(self.seen(conflict).await.into()),
            None => Ok(Outcome::Not(Failure::Late)),
        }
    }

    /// Whether a transaction that deletes only would delete nothing, by what this server knows.
    fn seems_without_effect(&self, txn: &Txn) -> Result<bool, StoreError> {
        let image = self.shared.read()?;
        Ok(txn.ops().iter().all(|op| matches!(op, Op::Delete(key) if image.get(key).is_none())))
    }

    /// Checks the conditions of such a transaction, and asks etcd whether its keys are absent at that moment.
    async fn is_without_effect(&self, txn: &Txn) -> Result<bool, StoreError> {
        if txn.compares().is_empty() && txn.ops().is_empty() {
            return Ok(true);
        }
        let count = |op: &Op| wire::get(wire::count(self.space.record(op.key())));
        let request = TxnRequest {
            compare: self.compares(txn),
            success: txn.ops().iter().map(count).collect(),
            failure: self.looks(txn),
        };
        let ask = |session: Arc<Session>| {
            let request = request.clone();
            async move { session.kv().txn(request).await }
        };
        let answer = self.caller.repeat(self.caller.deadline(), ask).await.map_err(Failure::unwritten)?;
        if answer.succeeded {
            return Ok(wire::all_absent(&answer));
        }
        match self.conflict(txn, &wire::found(&answer)) {
            Some(conflict) => Err(self.seen(conflict).await.into()),
            None => Ok(false),
        }
    }

    /// A conflict is told once the follower has shown what it is about: who reads again must not see what was before.
    async fn seen(&self, conflict: Conflict) -> Conflict {
        if let Some(revision) = conflict.current {
            // Without news in time the conflict stands all the same.
            let _ = tokio::time::timeout(self.caller.timeouts.answer, self.shared.reach(revision)).await;
        }
        conflict
    }

    fn request(&self, txn: &Txn, slot: &Slot, token: &str) -> TxnRequest {
        let key = self.space.slot(&self.writer, slot.number);
        let mut compare = self.compares(txn);
        compare.push(wire::changed_at(key.clone(), slot.changed));
        let mut success: Vec<RequestOp> = txn.ops().iter().map(|op| self.op(op)).collect();
        success.push(wire::put(key.clone(), token.to_owned().into(), 0));
        let mut failure = self.looks(txn);
        failure.push(wire::get(wire::bare(key)));
        TxnRequest { compare, success, failure }
    }

    fn compares(&self, txn: &Txn) -> Vec<EtcdCompare> {
        txn.compares().iter().map(|compare| self.compare(compare)).collect()
    }

    fn compare(&self, compare: &Compare) -> EtcdCompare {
        let key = self.space.record(compare.key());
        match compare {
            Compare::Absent(_) => wire::created_at(key, 0),
            Compare::Present(_) => wire::exists(key),
            Compare::Unchanged { mod_revision, .. } => {
                wire::changed_at(key, self.identity.of_etcd(*mod_revision))
            }
            Compare::SameCreation { create_revision, .. } => {
                wire::created_at(key, self.identity.of_etcd(*create_revision))
            }
        }
    }

    fn op(&self, op: &Op) -> RequestOp {
        match op {
            Op::Put { key, value, lease } => {
                wire::put(self.space.record(key), value.clone(), lease.map_or(0, id_of))
            }
            Op::Delete(key) => wire::delete(self.space.record(key)),
        }
    }

    /// Reads what each condition is about, for the case that one fails.
    fn looks(&self, txn: &Txn) -> Vec<RequestOp> {
        let look = |key: &Key| -> RangeRequest { wire::bare(self.space.record(key)) };
        txn.compares().iter().map(|compare| wire::get(look(compare.key()))).collect()
    }

    /// The first condition that does not hold for what was found.
    fn conflict(&self, txn: &Txn, found: &[Option<KeyValue>]) -> Option<Conflict> {
        let created = |found: &KeyValue| self.identity.revision(found.create_revision);
        let changed = |found: &KeyValue| self.identity.revision(found.mod_revision);
        let mut pairs = txn.compares().iter().zip(found);
        let failed = pairs.find(|(compare, found)| match (compare, found) {
            (Compare::Absent(_), found) => found.is_some(),
            (_, None) => true,
            (Compare::Present(_), Some(_)) => false,
            (Compare::Unchanged { mod_revision, .. }, Some(found)) => changed(found) != *mod_revision,
            (Compare::SameCreation { create_revision, .. }, Some(found)) => {
                created(found) != *create_revision
            }
        });
        failed.map(|(compare, found)| Conflict {
            key: compare.key().clone(),
            current: found.as_ref().map(changed),
        })
    }

    /// The first lease of the transaction that has ended.
    async fn missing_lease(&self, txn: &Txn, session: &Session) -> LeaseId {
        let leases = txn.ops().iter().filter_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            Op::Delete(_) => None,
        });
        let mut first = None;
        for lease in leases {
            first = first.or(Some(lease));
            let request = LeaseTimeToLiveRequest { id: id_of(lease), keys: false };
            let asked = self.caller.once(session, session.lease().lease_time_to_live(request)).await;
            if asked.is_ok_and(|answer| answer.ttl <= 0) {
                return lease;
            }
        }
        first.unwrap_or(LeaseId(std::num::NonZeroU64::MIN))
    }

    fn check_room(&self, txn: &Txn) -> Result<(), StoreError> {
        let image = self.shared.read()?;
        let (mut grown, mut shrunk) = (0, 0);
        for op in txn.ops() {
            shrunk += image.get(op.key()).map_or(0, entry_bytes);
            if let Op::Put { key, value, .. } = op {
                grown += (key.as_str().len() + value.len()) as u64;
            }
        }
        let limit_bytes = self.bounds.max_bytes;
        let full = grown > shrunk && image.status().bytes + grown - shrunk > limit_bytes;
        if full { Err(StoreError::Full { limit_bytes }) } else { Ok(()) }
    }

    /// What no other transaction of any writer puts into a slot.
    fn token(&self, kind: &str) -> String {
        format!("{kind} {:032x} {}", self.nonce, self.count.fetch_add(1, Ordering::Relaxed))
    }
}

fn unknown(failure: &Failure) -> StoreError {
    StoreError::OutcomeUnknown { source: failure.clone().source() }
}

fn revision_of(answer: &TxnResponse) -> Result<i64, Failure> {
    wire::header(answer.header.as_ref()).map(|header| header.revision)
}
