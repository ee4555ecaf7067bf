//! Who may do what, within the methods (which methods at all is [`crate::roles`]' table).

use weft_api::pb::management::{
    CheckPolicyRequest, CreateTokenRequest, DeleteRequest, ListRequest, ListTokensRequest,
    RevokeTokenRequest, ShowAuthorityRequest, StatusRequest, WatchRequest,
};
use weft_policy::code;

use super::*;
use crate::{
    harness::{Plane, agent, local, scoped},
    roles::Role,
    samples,
};

fn namespace(name: &str, default: &str) -> Value {
    json!({
        "apiVersion": "weft.mesh/v1alpha1", "kind": "Namespace", "metadata": {"name": name},
        "spec": {"defaultAuthorization": default},
    })
}

#[tokio::test]
async fn api_01_whoever_has_no_role_is_refused_by_every_method() {
    let plane = Plane::shop().await;
    for caller in [local(Role::Anonymous), agent("hosta", samples::far())] {
        let mut client = plane.people(caller).await;
        let denied = |status: Status| {
            assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
            assert_eq!(fault(&status).code, code::NOT_PERMITTED.as_str());
        };
        denied(apply(&mut client, &[service("x")]).await.unwrap_err());
        denied(get(&mut client, "service", "charge").await.unwrap_err());
        denied(client.list(ListRequest { kind: "svc".to_owned(), ..Default::default() }).await.unwrap_err());
        denied(
            client.watch(WatchRequest { kind: "svc".to_owned(), ..Default::default() }).await.unwrap_err(),
        );
        let refs = vec![reference("svc", "charge")];
        denied(client.delete(DeleteRequest { refs, ..Default::default() }).await.unwrap_err());
        let check = CheckPolicyRequest { service: "charge.shop".to_owned(), ..Default::default() };
        denied(client.check_policy(check).await.unwrap_err());
        denied(client.status(StatusRequest {}).await.unwrap_err());
        denied(client.create_token(CreateTokenRequest::default()).await.unwrap_err());
        denied(client.list_tokens(ListTokensRequest {}).await.unwrap_err());
        denied(client.revoke_token(RevokeTokenRequest::default()).await.unwrap_err());
        denied(client.show_authority(ShowAuthorityRequest {}).await.unwrap_err());
    }
}

#[tokio::test]
async fn api_02_a_viewer_reads_an_editor_writes_and_only_an_admin_makes_tokens() {
    let plane = Plane::shop().await;
    for (role, may_write, may_admin) in
        [(Role::Viewer, false, false), (Role::Editor, true, false), (Role::Admin, true, true)]
    {
        let mut client = plane.people(local(role)).await;
        assert!(get(&mut client, "service", "charge").await.is_ok());
        assert_eq!(apply(&mut client, &[service("charge")]).await.is_ok(), may_write, "{role:?}");
        assert_eq!(client.list_tokens(ListTokensRequest {}).await.is_ok(), may_admin, "{role:?}");
    }
}

#[tokio::test]
async fn api_02_a_role_in_one_namespace_ends_at_its_border() {
    let plane = Plane::shop().await;
    let mut admin = plane.admin().await;
    let mut elsewhere = service("vault");
    elsewhere["metadata"]["namespace"] = json!("bank");
    apply(&mut admin, &[elsewhere.clone()]).await.unwrap();

    let mut editor = plane.people(scoped(Role::Editor, "shop")).await;
    apply(&mut editor, &[service("mine")]).await.unwrap();
    elsewhere["spec"]["ports"][0]["port"] = json!(81);
    let both = [service("mine-too"), elsewhere];
    refused(apply(&mut editor, &both).await, Code::PermissionDenied, code::NOT_PERMITTED);
    refused(get(&mut editor, "service", "mine-too").await, Code::NotFound, code::NOT_FOUND);
    let vault = ObjectRef { namespace: "bank".to_owned(), ..reference("service", "vault") };
    let status = editor.get(GetRequest { r#ref: Some(vault.clone()) }).await;
    refused(status, Code::PermissionDenied, code::NOT_PERMITTED);
    let gone = editor.delete(DeleteRequest { refs: vec![vault], ..Default::default() }).await;
    refused(gone, Code::PermissionDenied, code::NOT_PERMITTED);

    let all = ListRequest { kind: "svc".to_owned(), all_namespaces: true, ..Default::default() };
    let seen = editor.list(all).await.unwrap().into_inner().documents;
    assert!(seen.iter().all(|document| !String::from_utf8_lossy(&document.json).contains("bank")));
    let mesh = json_of(&Resource::Mesh(samples::mesh()));
    let mut louder = mesh;
    louder["metadata"]["labels"] = json!({"a": "b"});
    refused(apply(&mut editor, &[louder]).await, Code::PermissionDenied, code::NOT_PERMITTED);
}

#[tokio::test]
async fn loosening_needs_an_admin_and_tightening_an_editor() {
    let plane = Plane::shop().await;
    let mut editor = plane.people(local(Role::Editor)).await;
    let mut admin = plane.admin().await;
    for default in ["Audit", "Allow"] {
        let answer = apply(&mut editor, &[namespace("shop", default)]).await;
        let what = refused(answer, Code::PermissionDenied, code::LOOSENING_NEEDS_ADMIN);
        assert!(what.contains(&format!("from Deny to {default}")), "{what}");
    }
    apply(&mut admin, &[namespace("shop", "Allow")]).await.unwrap();
    // Whom the default let in is let in no more: that must be meant.
    let documents = documents(&[namespace("shop", "Deny")]);
    editor.apply(ApplyRequest { documents, force: true, ..Default::default() }).await.unwrap();

    let mut open = service("charge");
    open["spec"]["defaultAuthorization"] = json!("Allow");
    refused(apply(&mut editor, &[open]).await, Code::PermissionDenied, code::LOOSENING_NEEDS_ADMIN);
    let mut scoped_admin = plane.people(scoped(Role::Admin, "shop")).await;
    apply(&mut scoped_admin, &[namespace("shop", "Audit")]).await.unwrap();
}

#[tokio::test]
async fn an_editor_does_not_open_a_closed_service_by_creating_it_anew() {
    let plane = Plane::shop().await;
    let mut admin = plane.admin().await;
    apply(&mut admin, &[namespace("shop", "Allow")]).await.unwrap();
    let mut vault = service("vault");
    vault["spec"]["defaultAuthorization"] = json!("Deny");
    apply(&mut admin, &[vault]).await.unwrap();

    let delete = || DeleteRequest { refs: vec![reference("svc", "vault")], ..Default::default() };
    let mut editor = plane.people(local(Role::Editor)).await;
    let answer = editor.delete(delete()).await;
    let what = refused(answer, Code::PermissionDenied, code::LOOSENING_NEEDS_ADMIN);
    assert!(what.contains("from Deny to Allow"), "{what}");
    let documents = documents(&[namespace("shop", "Deny")]);
    admin.apply(ApplyRequest { documents, force: true, ..Default::default() }).await.unwrap();
    editor.delete(delete()).await.unwrap();
}

#[tokio::test]
async fn a_request_that_did_not_pass_the_gate_is_refused() {
    let request = tonic::Request::new(());
    let refusal = super::super::caller(&request).unwrap_err();
    assert_eq!(refusal.code(), Code::Unauthenticated);
}
