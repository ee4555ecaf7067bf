//! etcd's watch, read as whole commits in order.
//!
//! Owns what must hold of a watch whatever etcd sends (ETCD-02): revisions only grow, a commit is delivered whole even if
//! etcd sends it in fragments, and a watch that ends says why. What Weft did not write is left out.

use bytes::Bytes;
use futures_util::stream;
use futures_util::stream::StreamExt as _;
use tonic::Streaming;
use weft_api::pb::etcd::event::EventType;
use weft_api::pb::etcd::watch_request::RequestUnion;
use weft_api::pb::etcd::{Event as EtcdEvent, WatchCreateRequest, WatchRequest, WatchResponse};

use super::super::Event;
use super::caller::Caller;
use super::error::Failure;
use super::link::Session;
use super::space::{Identity, Name, Space};

/// A watch of one space.
pub(super) struct Batches {
    stream: Streaming<WatchResponse>,
    order: Order,
}

/// Makes whole commits in order of the events that etcd sends. No I/O.
struct Order {
    space: Space,
    identity: Identity,
    /// Where the watch began; what was committed there is known.
    first: i64,
    /// The newest revision that was delivered, or was known before.
    seen: i64,
    /// Events of a commit that may go on in the next fragment.
    rest: Vec<EtcdEvent>,
}

/// What one commit of etcd changed in the space.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) of_etcd: i64,
    /// What readers see of it; it may be nothing.
    pub(super) events: Vec<Event>,
    /// Whether it changed who the store is.
    pub(super) identity: bool,
}

/// Why a watch ended.
#[derive(Debug)]
pub(super) enum End {
    /// etcd has forgotten everything up to and including this revision.
    Compacted(i64),
    /// The member or the way to it failed.
    Failed(Failure),
}

impl Batches {
    /// Watches everything behind etcd's revision `seen`.
    ///
    /// etcd is asked from `seen` on: it takes a watch from the very revision that it has compacted to, although the
    /// deletions of that commit are gone. One revision earlier it tells (ETCD-01).
    pub(super) async fn open(
        caller: &Caller,
        session: &Session,
        space: &Space,
        identity: Identity,
        seen: i64,
    ) -> Result<Self, Failure> {
        let (key, range_end): (Bytes, Bytes) = (space.prefix(), space.end());
        let create = WatchCreateRequest { key, range_end, start_revision: seen, fragment: true };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // etcd ends a watch whose requests have ended, so they never do.
        let requests = stream::iter([request]).chain(stream::pending());
        let stream = caller.once(session, session.watch().watch(requests)).await?;
        Ok(Self { stream, order: Order::new(space.clone(), identity, seen) })
    }

    /// Waits for the next commits; there is at least one. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Vec<Commit>, End> {
        loop {
            let answer = self.stream.message().await.map_err(|status| End::Failed(status.into()))?;
            let Some(answer) = answer else { return Err(failed("etcd gives no reason")) };
            if answer.compact_revision > 0 {
                return Err(End::Compacted(answer.compact_revision));
            }
            if answer.canceled {
                return Err(failed(&answer.cancel_reason));
            }
            let commits = self.order.take(answer.events, answer.fragment);
            if !commits.is_empty() {
                return Ok(commits);
            }
        }
    }
}

impl Order {
    fn new(space: Space, identity: Identity, seen: i64) -> Self {
        Self { space, identity, first: seen, seen, rest: Vec::new() }
    }

    /// Takes what etcd sent; returns the commits that are there as a whole. Of a fragment, the last one may go on.
    fn take(&mut self, events: Vec<EtcdEvent>, fragment: bool) -> Vec<Commit> {
        self.rest.extend(events);
        let mut commits = Vec::new();
        let mut events = std::mem::take(&mut self.rest).into_iter().peekable();
        while let Some(revision) = events.peek().map(revision_of) {
            let mut of_commit = Vec::new();
            while let Some(event) = events.next_if(|event| revision_of(event) == revision) {
                of_commit.push(event);
            }
            if fragment && events.peek().is_none() {
                self.rest = of_commit;
            } else if revision > self.seen {
                self.seen = revision;
                commits.push(self.commit(revision, of_commit));
            } else if revision != self.first {
                tracing::error!(revision, seen = self.seen, "etcd's watch went back; the commit is left out");
            }
        }
        commits
    }

    fn commit(&self, of_etcd: i64, events: Vec<EtcdEvent>) -> Commit {
        let mut commit = Commit { of_etcd, events: Vec::new(), identity: false };
        for event in events {
            let Some(found) = event.kv else { continue };
            match self.space.name(&found.key) {
                Name::Record(key) if event.r#type == i32::from(EventType::Delete) => {
                    commit.events.push(Event::Delete(key))
                }
                Name::Record(key) => match self.identity.entry(key, found) {
                    Some(entry) => commit.events.push(Event::Put(entry)),
                    None => tracing::error!(
                        of_etcd,
                        "a value is larger than any that Weft writes; it is left out"
                    ),
                },
                Name::Identity => commit.identity |= of_etcd != self.identity.created,
                Name::Slot => {}
                Name::Foreign => {
                    tracing::warn!(of_etcd, "a key under the mesh's prefix is not one of Weft's")
                }
            }
        }
        commit
    }
}

fn revision_of(event: &EtcdEvent) -> i64 {
    event.kv.as_ref().map_or(0, |found| found.mod_revision)
}

fn failed(why: &str) -> End {
    End::Failed(Failure::Watch(why.into()))
}

#[cfg(test)]
mod tests {
    use weft_api::pb::etcd::KeyValue;

    use super::super::super::{Revision, StoreId};
    use super::*;

    fn put(key: &str, revision: i64) -> EtcdEvent {
        let (key, value) = (format!("/w/r/{key}").into(), Bytes::from_static(b"v"));
        let (create_revision, mod_revision) = (revision, revision);
        let kv = KeyValue { key, value, create_revision, mod_revision, version: 1, lease: 0 };
        EtcdEvent { r#type: EventType::Put.into(), kv: Some(kv) }
    }

    fn order(seen: i64) -> Order {
        let identity = Identity { id: StoreId(1), start: Revision::ZERO, created: 2 };
        Order::new(Space::new("/w/"), identity, seen)
    }

    fn shown(commits: &[Commit]) -> Vec<(i64, Vec<String>)> {
        let keys = |commit: &Commit| commit.events.iter().map(|event| event.key().to_string()).collect();
        commits.iter().map(|commit| (commit.of_etcd, keys(commit))).collect()
    }

    fn expected(commits: &[(i64, &[&str])]) -> Vec<(i64, Vec<String>)> {
        commits.iter().map(|(at, keys)| (*at, keys.iter().map(|&key| key.to_owned()).collect())).collect()
    }

    #[test]
    fn etcd_02_what_goes_back_or_comes_twice_is_left_out() {
        let mut order = order(5);
        let commits = order.take(vec![put("old", 5), put("older", 3), put("a", 6), put("b", 8)], false);
        assert_eq!(shown(&commits), expected(&[(6, &["a"]), (8, &["b"])]));
        let commits = order.take(vec![put("a", 6), put("late", 7), put("b", 8), put("c", 9)], false);
        assert_eq!(shown(&commits), expected(&[(9, &["c"])]));
    }

    #[test]
    fn a_commit_in_fragments_is_delivered_whole() {
        let mut order = order(5);
        let commits = order.take(vec![put("a", 6), put("b", 7)], true);
        assert_eq!(shown(&commits), expected(&[(6, &["a"])]));
        assert_eq!(order.take(vec![put("c", 7)], true).len(), 0);
        let commits = order.take(vec![put("d", 7), put("e", 8)], false);
        assert_eq!(shown(&commits), expected(&[(7, &["b", "c", "d"]), (8, &["e"])]));
    }

    #[test]
    fn etcd_05_foreign_keys_and_values_are_left_out_and_the_rest_goes_on() {
        let mut order = order(5);
        let mut large = put("large", 6);
        if let Some(kv) = &mut large.kv {
            kv.value = vec![0; super::super::super::MAX_VALUE_BYTES + 1].into();
        }
        let commits = order.take(vec![large, put("line\n", 6), put("a", 6)], false);
        assert_eq!(shown(&commits), expected(&[(6, &["a"])]));
    }
}
