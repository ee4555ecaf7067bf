//! What the audit log is told of a call, before and after it.
//!
//! A change is written down before it is tried, and is not tried when that fails: what nobody could account for does not
//! happen. What is only read is written down afterwards, and is answered either way.

use std::sync::PoisonError;

use serde::Deserialize;
use tonic::{Code, Response, Status};
use tracing::error;
use weft_api::{
    pb::management::{ApplyResponse, ConfirmResponse, DeleteResponse, Document, ObjectRef},
    staleness,
};

use super::ManagementService;
use crate::{
    audit::chain::{Event, Outcome},
    refusal::Refusal,
    roles::{Caller, Source},
    throttle,
};

/// The longest part of a name that is written down; real ones have 63 characters.
const MAX_NAME_CHARS: usize = 128;

/// The most objects that are named: no method takes more.
const MAX_OBJECTS: usize = 128;

/// A call of one method.
pub(super) struct Call {
    method: &'static str,
    changes: bool,
    reason: String,
    objects: Vec<String>,
}

impl Call {
    /// One that changes nothing.
    pub(super) const fn read(method: &'static str) -> Self {
        Self { method, changes: false, reason: String::new(), objects: Vec::new() }
    }

    /// One that changes something, unless it is a dry run.
    pub(super) fn change(method: &'static str, changes: bool, reason: &str) -> Self {
        Self { method, changes, reason: reason.to_owned(), objects: Vec::new() }
    }

    /// The same about objects.
    pub(super) fn about(mut self, objects: impl IntoIterator<Item = String>) -> Self {
        self.objects = objects.into_iter().filter(|name| !name.is_empty()).collect();
        self
    }

    fn event(&self, caller: &Caller, outcome: Outcome) -> Event {
        Event::of(caller, self.method, outcome).about(self.objects.clone()).because(&self.reason)
    }
}

/// The answer of a method that may have made a change.
pub(super) trait Answer {
    /// The number of the change; 0 for none.
    fn change(&self) -> u64 {
        0
    }
}

impl Answer for ApplyResponse {
    fn change(&self) -> u64 {
        self.change
    }
}

impl Answer for DeleteResponse {
    fn change(&self) -> u64 {
        self.change
    }
}

impl Answer for ConfirmResponse {
    #[expect(
        clippy::misnamed_getters,
        reason = "the change that this call made is the one that took the other back"
    )]
    fn change(&self) -> u64 {
        self.undone_by
    }
}

impl Answer for weft_api::pb::management::CreateTokenResponse {}
impl Answer for weft_api::pb::management::DenyResponse {}
impl Answer for weft_api::pb::management::UndenyResponse {}
impl Answer for weft_api::pb::management::RevokeTokenResponse {}
impl Answer for weft_api::pb::management::RotateAuthorityResponse {}

impl ManagementService {
    /// Asks for one change of a caller that comes through the network. The owner of the host has the store anyway.
    fn paced(&self, caller: &Caller, call: &Call) -> Result<(), Refusal> {
        let (Some(identity), Source::Remote { .. }) = (&caller.identity, caller.source) else {
            return Ok(());
        };
        let now = self.core.clock.instant();
        let verdict = self.pace.lock().unwrap_or_else(PoisonError::into_inner).take(identity.clone(), now);
        throttle::pass(verdict, "changes by this caller").inspect_err(|refusal| {
            self.core.audit.refused(refused(call, caller, refusal));
        })
    }

    /// Answers a call that may change something, written down before and after. Changes are made one after another.
    pub(super) async fn changing<T: Answer>(
        &self,
        caller: &Caller,
        call: Call,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<Response<T>, Status> {
        self.paced(caller, &call)?;
        if !call.changes {
            return self.reading(caller, call, work).await;
        }
        let _turn = self.changes.lock().await;
        self.core.audit.write(call.event(caller, Outcome::Begun)).await?;
        let answer = work.await;
        let mut event = ended(&call, caller, &answer);
        event.change = answer.as_ref().map_or(0, Answer::change);
        if let Err(refusal) = self.core.audit.write(event).await {
            // It is done, and its beginning is written down; whoever changes something next is refused.
            let (method, why) = (call.method, &refusal.faults()[0].what);
            error!(target: "audit", who = %caller, method, why, "the end of a change could not be written down");
        }
        self.aged(answer.map(Response::new).map_err(Status::from))
    }

    /// Answers a call that changes nothing, and writes it down.
    pub(super) async fn reading<T>(
        &self,
        caller: &Caller,
        call: Call,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<Response<T>, Status> {
        let answer = work.await;
        self.core.audit.note(ended(&call, caller, &answer)).await;
        self.aged(answer.map(Response::new).map_err(Status::from))
    }

    /// Says of an answer how old it is, if the store does not answer: a person must not take it for what is there now.
    fn aged<T>(&self, mut answer: Result<Response<T>, Status>) -> Result<Response<T>, Status> {
        if let Some(age) = self.core.store.stale_for() {
            match &mut answer {
                Ok(response) => staleness::mark(response.metadata_mut(), age),
                Err(status) => staleness::mark(status.metadata_mut(), age),
            }
        }
        answer
    }
}

fn ended<T>(call: &Call, caller: &Caller, answer: &Result<T, Refusal>) -> Event {
    match answer {
        Ok(_) => call.event(caller, Outcome::Allowed),
        Err(refusal) => refused(call, caller, refusal),
    }
}

fn refused(call: &Call, caller: &Caller, refusal: &Refusal) -> Event {
    let denied = matches!(refusal.code(), Code::PermissionDenied | Code::Unauthenticated);
    let outcome = if denied { Outcome::Denied } else { Outcome::Failed };
    Event { code: refusal.faults()[0].code.to_string(), ..call.event(caller, outcome) }
}

#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    kind: String,
    metadata: Named,
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
}

/// The objects that documents are about, as far as that can be read.
pub(super) fn named(documents: &[Document]) -> Vec<String> {
    let name = |document: &Document| match serde_json::from_slice::<Head>(&document.json) {
        Ok(Head { kind, metadata: Named { name, namespace } }) => object(&kind, &namespace, &name),
        Err(_) => "unreadable".to_owned(),
    };
    documents.iter().take(MAX_OBJECTS).map(name).collect()
}

/// The objects that references name.
pub(super) fn refs(refs: &[ObjectRef]) -> Vec<String> {
    refs.iter().take(MAX_OBJECTS).map(|found| object(&found.kind, &found.namespace, &found.name)).collect()
}

/// Something of a kind by one name; nothing without a name.
pub(super) fn subject(kind: &str, name: &str) -> String {
    if name.is_empty() { String::new() } else { format!("{kind}/{}", cut(name)) }
}

/// Everything of a kind, in one namespace or in all.
pub(super) fn scope(kind: &str, namespace: &str) -> String {
    let dot = if namespace.is_empty() { "" } else { "." };
    format!("{}/*{dot}{}", cut(kind), cut(namespace))
}

fn object(kind: &str, namespace: &str, name: &str) -> String {
    let dot = if namespace.is_empty() { "" } else { "." };
    format!("{}/{}{dot}{}", cut(kind), cut(name), cut(namespace))
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_NAME_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_named_whatever_a_document_holds() {
        let named = |json: &str| named(&[Document { json: json.as_bytes().to_vec() }]).remove(0);
        assert_eq!(
            named(r#"{"kind":"Service","metadata":{"name":"a","namespace":"shop"},"spec":{}}"#),
            "Service/a.shop"
        );
        assert_eq!(named(r#"{"kind":"Mesh","metadata":{"name":"mesh"}}"#), "Mesh/mesh");
        for bad in ["", "[", "null", r#"{"metadata":7}"#, &"[".repeat(100_000)] {
            assert_eq!(named(bad), "unreadable");
        }
        let long = format!(r#"{{"kind":"K","metadata":{{"name":"{}"}}}}"#, "n".repeat(10_000));
        assert_eq!(named(&long).len(), 2 + MAX_NAME_CHARS);
    }
}
