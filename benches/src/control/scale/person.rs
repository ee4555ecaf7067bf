//! The person on the server's host, over its socket: what is configured, and tokens for nodes.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use serde_json::{Value, json};
use tonic::Status;
use tonic::transport::Channel;
use weft_api::channel::connect_unix;
use weft_api::fault::from_status;
use weft_api::pb::management::management_client::ManagementClient;
use weft_api::pb::management::{ApplyRequest, CreateTokenRequest, DenyRequest, Document};
use weft_api::token::JoinToken;

/// The most objects of one change.
const MAX_OBJECTS: usize = 100;
/// The namespace of everything here.
pub(super) const NAMESPACE: &str = "bench";

/// See the module. A clone is the same person.
#[derive(Clone)]
pub(super) struct Person(ManagementClient<Channel>);

impl Person {
    pub(super) async fn at(socket: &Path) -> Result<Self> {
        Ok(Self(ManagementClient::new(connect_unix(socket).await?)))
    }

    /// Applies objects, as many changes as they need. Gives the revision of the last.
    pub(super) async fn apply(&mut self, objects: &[Value]) -> Result<u64> {
        let mut revision = 0;
        for part in objects.chunks(MAX_OBJECTS) {
            let documents = part.iter().map(|object| Document { json: object.to_string().into_bytes() });
            let request = ApplyRequest { documents: documents.collect(), force: true, ..Default::default() };
            revision = self.0.apply(request).await.map_err(said)?.into_inner().revision;
        }
        Ok(revision)
    }

    /// A token for the agent of `node`, which may run `services`.
    pub(super) async fn token(&mut self, node: &str, services: Vec<String>) -> Result<JoinToken> {
        let request = CreateTokenRequest {
            purpose: "agent".to_owned(),
            node: node.to_owned(),
            namespace: NAMESPACE.to_owned(),
            services,
            ..Default::default()
        };
        let answer = self.0.create_token(request).await.map_err(said)?.into_inner();
        answer.token.parse().map_err(|error| anyhow!("{error}")).context("the token cannot be read")
    }

    /// Puts a subject on the denylist. Gives the revision.
    pub(super) async fn deny(&mut self, subject: String) -> Result<u64> {
        let request = DenyRequest { subject, reason: "bench".to_owned() };
        Ok(self.0.deny(request).await.map_err(said)?.into_inner().revision)
    }
}

/// What a refusal says, first fault first.
pub(super) fn said(status: Status) -> anyhow::Error {
    anyhow!("refused: {}", from_status(&status).swap_remove(0))
}

/// A service and the rule that lets `caller` call it.
pub(super) fn service(name: &str, caller: &str) -> [Value; 2] {
    let metadata = |name: &str| json!({"name": name, "namespace": NAMESPACE});
    let service = json!({
        "apiVersion": "weft.mesh/v1alpha1",
        "kind": "Service",
        "metadata": metadata(name),
        "spec": {"ports": [{"name": "echo", "port": 7, "appProtocol": "tcp"}]},
    });
    let target = json!({"group": "", "kind": "Service", "name": name});
    [service, policy(&format!("{name}-callers"), &target, "ALLOW", caller)]
}

/// A rule for the whole namespace, in force at every agent that serves something.
pub(super) fn for_all(name: &str, account: &str) -> Value {
    policy(name, &json!({"group": "", "kind": "Namespace", "name": NAMESPACE}), "DENY", account)
}

/// A rule for one service, in force at the agents that serve it.
pub(super) fn for_one(name: &str, service: &str, account: &str) -> Value {
    policy(name, &json!({"group": "", "kind": "Service", "name": service}), "DENY", account)
}

fn policy(name: &str, target: &Value, action: &str, account: &str) -> Value {
    let source = json!({
        "type": "ServiceAccount",
        "serviceAccount": {"namespace": NAMESPACE, "name": account},
    });
    json!({
        "apiVersion": "weft.mesh/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"targetRefs": [target], "action": action, "rules": [{"name": "only", "sources": [source]}]},
    })
}
