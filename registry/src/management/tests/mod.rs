//! The management service over real gRPC, with the embedded store.

mod apply;
mod audit;
mod check;
mod confirm;
mod delete;
mod history;
mod lockout;
mod matrix;
mod query;
mod roles;
mod watch;

use serde_json::{Value, json};
use tonic::{Code, Status, transport::Channel};
use weft_api::{
    manifest,
    pb::management::{
        ApplyRequest, ApplyResponse, Document, GetRequest, ObjectRef, management_client::ManagementClient,
    },
};
use weft_policy::{code::CodeId, model::Resource};

use crate::harness::fault;

type Client = ManagementClient<Channel>;

fn document(value: &Value) -> Document {
    Document { json: value.to_string().into_bytes() }
}

fn documents(values: &[Value]) -> Vec<Document> {
    values.iter().map(document).collect()
}

fn json_of(resource: &Resource) -> Value {
    manifest::to_json(resource)
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "weft.mesh/v1alpha1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"ports": [{"name": "http", "port": 80}]},
    })
}

fn reference(kind: &str, name: &str) -> ObjectRef {
    ObjectRef { kind: kind.to_owned(), namespace: "shop".to_owned(), name: name.to_owned() }
}

async fn apply(client: &mut Client, values: &[Value]) -> Result<ApplyResponse, Status> {
    let request = ApplyRequest { documents: documents(values), ..Default::default() };
    client.apply(request).await.map(tonic::Response::into_inner)
}

async fn get(client: &mut Client, kind: &str, name: &str) -> Result<Value, Status> {
    let request = GetRequest { r#ref: Some(reference(kind, name)) };
    let document = client.get(request).await?.into_inner().document.unwrap();
    Ok(serde_json::from_slice(&document.json).unwrap())
}

/// Checks both codes of a refusal and gives back its text.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, id: CodeId) -> String {
    let status = answer.unwrap_err();
    let fault = fault(&status);
    assert_eq!((status.code(), fault.code.as_str()), (code, id.as_str()), "{status:?}");
    assert!(!fault.fix.is_empty(), "no next command: {fault:?}");
    format!("{} {}", fault.path, fault.what)
}
