//! Making, listing and revoking tokens: what an admin does.

use std::time::{Duration, SystemTime};

use aws_lc_rs::rand;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::future::BoxFuture;
use tonic::Code;
use tracing::info;
use weft_api::{
    convert::management as convert,
    pb::management::{CreateTokenRequest, CreateTokenResponse, ListTokensResponse},
    token::{JoinToken, SECRET_BYTES},
};
use weft_identity::spiffe::SpiffeId;
use weft_policy::{code, model::Key};
use zeroize::Zeroizing;

use super::{
    join_token::{JoinTokens, MAX_TRIES, hash, known, put, unusable},
    record::{Purpose, State, TokenRecord},
    wanted::Wanted,
};
use crate::{
    core::Tokens,
    denied, history, issuance, layout,
    records::Record,
    refusal::{Refusal, catalogued},
    roles::{Caller, Role},
    store::{Compare, Entry, Expected, Op, StoreError},
    timestamp::{rfc3339, unix_seconds},
};

/// How long a token that is over stays in the list.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// What a new token writes, if everything that it was checked against is still there.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) compares: Vec<Compare>,
    pub(super) ops: Vec<Op>,
    pub(super) enrollments: Vec<Key>,
    replaced: bool,
    /// The change of the history, if there is one.
    pub(super) change: Option<u64>,
}

impl JoinTokens {
    async fn make(
        &self,
        caller: &Caller,
        request: CreateTokenRequest,
    ) -> Result<CreateTokenResponse, Refusal> {
        if caller.role_in(None) != Role::Admin {
            return Err(Refusal::not_permitted("only an admin of the whole mesh makes tokens"));
        }
        let wanted = Wanted::read(request)?;
        let _one = self.making.lock().await;
        self.make_room().await?;
        let now = self.core.clock.now();
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(Zeroizing::new(random::<SECRET_BYTES>()?)));
        let record = TokenRecord {
            id: format!("t-{}", hex(&random::<5>()?)),
            purpose: wanted.purpose.clone(),
            state: State::Unused,
            expires: now + wanted.ttl,
            created_by: caller.to_string(),
            created: now,
        };
        let key = layout::token(&hash(&secret));
        for _ in 0..MAX_TRIES {
            let mut plan = self.plan(caller, &wanted, now).await?;
            plan.compares.push(Compare::Absent(key.clone()));
            plan.ops.push(put(key.clone(), record.encode()));
            match self.core.store.txn(plan.compares, plan.ops.clone()).await {
                Ok(revision) => {
                    self.core.world.wait_for_commit(revision, &plan.ops).await;
                    if let Some(change) = plan.change {
                        history::trim::after(&self.core, change).await;
                    }
                    info!(
                        target: "audit", who = %caller, id = record.id, subject = ?record.subject(),
                        replaced = plan.replaced, %revision, "token made"
                    );
                    return Ok(self.answer(&record, secret, &plan.enrollments));
                }
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Refusal::new(Code::Aborted, catalogued(code::WRITE_CONFLICT, "too many changes come at once")))
    }

    fn answer(
        &self,
        record: &TokenRecord,
        secret: Zeroizing<String>,
        enrollments: &[Key],
    ) -> CreateTokenResponse {
        let token = JoinToken::new(
            record.id.clone(),
            record.subject(),
            self.core.cluster.to_string(),
            self.core.reached_at(),
            self.core.trust_domain.clone(),
            self.core.bundle.borrow().fingerprints(),
            unix_seconds(record.expires),
            secret,
        );
        CreateTokenResponse {
            id: record.id.clone(),
            token: token.to_text().to_string(),
            expires: rfc3339(record.expires),
            enrollments: enrollments.iter().map(convert::reference).collect(),
        }
    }

    /// What a token writes beside itself: enrollment and ban.
    async fn plan(&self, caller: &Caller, wanted: &Wanted, now: SystemTime) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        let Purpose::Agent { node, namespace } = &wanted.purpose else { return Ok(plan) };
        if let Some(lifted) = denied::lifted_by_token(&self.core, node, wanted.replace)? {
            // Its certificates stay denied until they end: whoever joins now gets others.
            plan.ops.push(lifted);
        }
        let (record, compare) = self.node(node).await?;
        if let Some(mut record) = record.filter(|record| record.serial.is_some()) {
            if !wanted.replace {
                return Err(known(node));
            }
            let id = SpiffeId::node(&self.core.trust_domain, node.as_str()).map_err(unusable)?;
            record.banned = issuance::valid_serials(&*self.core.store, &id, now).await?;
            record.serial = None;
            plan.compares.push(compare);
            plan.ops.push(put(layout::node(node), record.encode()));
            plan.ops.push(Op::Delete(layout::renewals(node)));
            plan.replaced = true;
        }
        self.enroll(caller, wanted, node, namespace, &mut plan).await?;
        Ok(plan)
    }

    /// Forgets tokens that have been over for a day, and refuses when too many others wait.
    async fn make_room(&self) -> Result<(), Refusal> {
        let now = self.core.clock.now();
        let mut open = 0;
        for (record, entry) in self.all().await? {
            if !record.is_over(now) {
                open += 1;
            } else if record.expires + REMEMBERED < now {
                let forgotten =
                    self.core.store.delete(entry.key, Expected::Unchanged(entry.mod_revision)).await;
                match forgotten {
                    Ok(_) | Err(StoreError::Conflict(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        if open >= self.open_tokens {
            return Err(Refusal::exhausted(code::TOO_MANY_TOKENS, format!("{open} tokens wait to be used")));
        }
        Ok(())
    }

    /// Every token that can be read.
    async fn all(&self) -> Result<Vec<(TokenRecord, Entry)>, Refusal> {
        let listing = self.core.store.list_all(&layout::tokens()).await?;
        let read = |entry: Entry| Some((TokenRecord::decode(&entry.value).ok()?, entry));
        Ok(listing.entries.into_iter().filter_map(read).collect())
    }

    async fn withdraw(&self, caller: &Caller, id: &str) -> Result<(), Refusal> {
        if caller.role_in(None) != Role::Admin {
            return Err(Refusal::not_permitted("only an admin of the whole mesh revokes tokens"));
        }
        for _ in 0..MAX_TRIES {
            let found = self.all().await?.into_iter().find(|(record, _)| record.id == id);
            let Some((record, entry)) = found else {
                let shown: String = id.chars().take(64).collect();
                return Err(Refusal::new(
                    Code::NotFound,
                    catalogued(code::TOKEN_UNKNOWN, format!("no token {shown:?}")),
                ));
            };
            match record.state {
                State::Revoked => return Ok(()),
                State::Used => {
                    let what = format!("token {id} was used already");
                    return Err(Refusal::new(Code::FailedPrecondition, catalogued(code::TOKEN_USED, what)));
                }
                State::Unused => {}
            }
            let revoked = TokenRecord { state: State::Revoked, ..record };
            let expected = Expected::Unchanged(entry.mod_revision);
            match self.core.store.put(entry.key, revoked.encode(), expected, None).await {
                Ok(revision) => {
                    info!(target: "audit", who = %caller, id, %revision, "token revoked");
                    return Ok(());
                }
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Refusal::new(Code::Aborted, catalogued(code::WRITE_CONFLICT, "the token changes all the time")))
    }
}

impl Tokens for JoinTokens {
    fn create<'a>(
        &'a self,
        caller: &'a Caller,
        request: CreateTokenRequest,
    ) -> BoxFuture<'a, Result<CreateTokenResponse, Refusal>> {
        Box::pin(self.make(caller, request))
    }

    fn list(&self) -> BoxFuture<'_, Result<ListTokensResponse, Refusal>> {
        Box::pin(async move {
            let now = self.core.clock.now();
            let mut tokens = self.all().await?;
            tokens.sort_by_key(|(record, _)| (record.created, record.id.clone()));
            Ok(ListTokensResponse { tokens: tokens.iter().map(|(record, _)| record.info(now)).collect() })
        })
    }

    fn revoke<'a>(&'a self, caller: &'a Caller, id: &'a str) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(self.withdraw(caller, id))
    }
}

fn random<const N: usize>() -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| {
        Refusal::new(Code::Unavailable, catalogued(code::ENTROPY, "the system gives no random numbers"))
    })?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
