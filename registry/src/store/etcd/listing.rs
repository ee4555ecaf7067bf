//! Everything of one space as it stood at one revision, page by page.

use std::sync::Arc;

use bytes::Bytes;
use tonic::{Response, Status};
use weft_api::pb::etcd::{KeyValue, RangeRequest, RangeResponse};

use super::super::{Entry, MAX_PAGE_ENTRIES};
use super::caller::Caller;
use super::error::{Failure, Verdict};
use super::link::Session;
use super::space::{Identity, InvalidIdentity, Name, Space};
use super::wire;

/// How often a listing starts again because its revision was compacted under it.
const RESTARTS: usize = 5;

/// What stands in the space.
pub(super) struct Listed {
    /// etcd's revision at which it stood so.
    pub(super) revision: i64,
    /// The cluster that said so.
    pub(super) cluster: u64,
    pub(super) found: Vec<KeyValue>,
}

/// With their values or without.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Take {
    Everything,
    Keys,
}

/// Lists the space: linearizable, and all pages at one revision.
pub(super) async fn list(caller: &Caller, space: &Space, take: Take) -> Result<Listed, Failure> {
    let mut restarts = 0;
    loop {
        match once(caller, space, take).await {
            Err(failure) if failure.verdict() == Verdict::Compacted && restarts < RESTARTS => restarts += 1,
            outcome => return outcome,
        }
    }
}

async fn once(caller: &Caller, space: &Space, take: Take) -> Result<Listed, Failure> {
    let mut listed = Listed { revision: 0, cluster: 0, found: Vec::new() };
    let (mut next, mut limit) = (space.prefix(), MAX_PAGE_ENTRIES);
    loop {
        let deadline = caller.deadline();
        let request = RangeRequest {
            key: next.clone(),
            range_end: space.end(),
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
            revision: listed.revision,
            keys_only: take == Take::Keys,
            count_only: false,
        };
        let page = caller.repeat(deadline, |session| page(session, request.clone())).await;
        let page = match page {
            // Large values: fewer of them fit into one answer.
            Err(failure) if failure.verdict() == Verdict::TooLarge && limit > 1 => {
                limit = limit.div_ceil(4);
                continue;
            }
            page => page?,
        };
        if listed.revision == 0 {
            let header = wire::header(page.header.as_ref())?;
            (listed.revision, listed.cluster) = (header.revision, header.cluster_id);
        }
        // The smallest key behind the last one.
        next = page.kvs.last().map_or_else(Bytes::new, |last| [&last.key[..], &[0]].concat().into());
        let more = page.more && !page.kvs.is_empty();
        listed.found.extend(page.kvs);
        if !more {
            return Ok(listed);
        }
    }
}

async fn page(session: Arc<Session>, request: RangeRequest) -> Result<Response<RangeResponse>, Status> {
    session.kv().range(request).await
}

impl Listed {
    /// Who the store is, if there is one.
    pub(super) fn identity(&self, space: &Space) -> Option<Result<Identity, InvalidIdentity>> {
        let key = space.identity();
        self.found.iter().find(|found| found.key == key).map(Identity::read)
    }

    /// etcd's revision of the newest change of what is there.
    pub(super) fn newest(&self) -> i64 {
        self.found.iter().map(|found| found.mod_revision).max().unwrap_or(0)
    }

    /// The records; what Weft did not write is left out.
    pub(super) fn entries(&self, space: &Space, identity: &Identity) -> Vec<Entry> {
        let entry = |found: &KeyValue| match space.name(&found.key) {
            Name::Record(key) => {
                let entry = identity.entry(key, found.clone());
                if entry.is_none() {
                    tracing::error!("a value is larger than any that Weft writes; it is left out");
                }
                entry
            }
            Name::Identity | Name::Slot => None,
            Name::Foreign => {
                tracing::warn!("a key under the mesh's prefix is not one of Weft's; it is left out");
                None
            }
        };
        self.found.iter().filter_map(entry).collect()
    }
}
