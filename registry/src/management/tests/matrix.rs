//! Every method of the service, as every role, in the own namespace, in another one, and everywhere (API-02). A method
//! that is not in here fails the test.

use weft_api::pb::{
    self,
    management::{
        CheckPolicyRequest, ConfirmRequest, CreateTokenRequest, DeleteRequest, DenyRequest, HistoryRequest,
        ListAuditRequest, ListDeniedRequest, ListRequest, ListTokensRequest, RevokeTokenRequest,
        RollbackRequest, RotateAuthorityRequest, ShowAuthorityRequest, StatusRequest, UndenyRequest,
        VerifyAuditRequest, WatchRequest,
    },
};

use super::*;
use crate::{
    harness::{Plane, local, scoped},
    roles::Role,
};

const SERVICE: &str = "/weft.management.v1.Management/";

/// What a method asks of its caller.
#[derive(Clone, Copy, Debug)]
enum Needs {
    /// This role, for the namespace that the request is about.
    There(Role),
    /// This role, wherever it holds.
    Anywhere(Role),
    /// An admin of the whole mesh.
    MeshAdmin,
}

const TABLE: &[(&str, Needs)] = &[
    ("Apply", Needs::There(Role::Editor)),
    ("CheckPolicy", Needs::There(Role::Viewer)),
    ("Confirm", Needs::There(Role::Editor)),
    ("CreateToken", Needs::MeshAdmin),
    ("Delete", Needs::There(Role::Editor)),
    ("Deny", Needs::MeshAdmin),
    ("Get", Needs::There(Role::Viewer)),
    ("History", Needs::There(Role::Viewer)),
    ("List", Needs::There(Role::Viewer)),
    ("ListAudit", Needs::MeshAdmin),
    ("ListDenied", Needs::Anywhere(Role::Viewer)),
    ("ListTokens", Needs::MeshAdmin),
    ("RevokeToken", Needs::MeshAdmin),
    ("Rollback", Needs::There(Role::Editor)),
    ("RotateAuthority", Needs::MeshAdmin),
    ("ShowAuthority", Needs::Anywhere(Role::Viewer)),
    ("Status", Needs::Anywhere(Role::Viewer)),
    ("Undeny", Needs::MeshAdmin),
    ("VerifyAudit", Needs::MeshAdmin),
    ("Watch", Needs::There(Role::Viewer)),
];

fn vault(namespace: &str, port: u16) -> Value {
    let mut vault = service("vault");
    vault["metadata"]["namespace"] = json!(namespace);
    vault["spec"]["ports"][0]["port"] = json!(port);
    vault
}

fn vault_ref(namespace: &str) -> ObjectRef {
    ObjectRef { namespace: namespace.to_owned(), ..reference("Service", "vault") }
}

/// A change in `namespace` that waits for its confirmation.
async fn waiting(admin: &mut Client, namespace: &str, port: u16) -> u64 {
    let request = ApplyRequest {
        documents: documents(&[vault(namespace, port)]),
        confirm_within_ms: 3_600_000,
        ..Default::default()
    };
    admin.apply(request).await.unwrap().into_inner().change
}

/// An identity that is denied, and then no more.
fn nobody(namespace: &str) -> String {
    format!("spiffe://corp.example/ns/{namespace}/sa/nobody")
}

/// Asks `method` for something in `namespace` that an admin gets.
async fn ask(client: &mut Client, method: &str, namespace: &str, change: u64) -> Result<(), Status> {
    let refs = vec![vault_ref(namespace)];
    let (name, kind) = (namespace.to_owned(), "Service".to_owned());
    match method {
        "Apply" => {
            let documents = documents(&[vault(namespace, 99)]);
            client.apply(ApplyRequest { documents, dry_run: true, ..Default::default() }).await.map(drop)
        }
        "CheckPolicy" => {
            let service = format!("vault.{namespace}");
            client.check_policy(CheckPolicyRequest { service, ..Default::default() }).await.map(drop)
        }
        "Confirm" => client.confirm(ConfirmRequest { change, abort: false }).await.map(drop),
        "CreateToken" => client.create_token(CreateTokenRequest::default()).await.map(drop),
        "Delete" => {
            client.delete(DeleteRequest { refs, dry_run: true, ..Default::default() }).await.map(drop)
        }
        "Deny" => {
            client.deny(DenyRequest { subject: nobody(namespace), ..Default::default() }).await.map(drop)
        }
        "Get" => client.get(GetRequest { r#ref: Some(vault_ref(namespace)) }).await.map(drop),
        "History" => client
            .history(HistoryRequest { r#ref: Some(vault_ref(namespace)), revision: None })
            .await
            .map(drop),
        "List" => client.list(ListRequest { kind, namespace: name, ..Default::default() }).await.map(drop),
        "ListAudit" => client.list_audit(ListAuditRequest { limit: 1 }).await.map(drop),
        "ListDenied" => client.list_denied(ListDeniedRequest::default()).await.map(drop),
        "ListTokens" => client.list_tokens(ListTokensRequest {}).await.map(drop),
        "RevokeToken" => client.revoke_token(RevokeTokenRequest::default()).await.map(drop),
        "Rollback" => {
            client.rollback(RollbackRequest { refs, dry_run: true, ..Default::default() }).await.map(drop)
        }
        "RotateAuthority" => client.rotate_authority(RotateAuthorityRequest::default()).await.map(drop),
        "ShowAuthority" => client.show_authority(ShowAuthorityRequest {}).await.map(drop),
        "Status" => client.status(StatusRequest {}).await.map(drop),
        "Undeny" => {
            client.undeny(UndenyRequest { subject: nobody(namespace), ..Default::default() }).await.map(drop)
        }
        "VerifyAudit" => client.verify_audit(VerifyAuditRequest {}).await.map(drop),
        "Watch" => client.watch(WatchRequest { kind, namespace: name, ..Default::default() }).await.map(drop),
        other => panic!("{other} is in the table and not asked"),
    }
}

#[test]
fn api_02_every_method_of_the_descriptors_is_in_the_table() {
    let methods = pb::methods();
    let served: Vec<_> = methods.iter().filter_map(|path| path.strip_prefix(SERVICE)).collect();
    assert!(served.len() >= 16, "{served:?}");
    for method in &served {
        assert!(TABLE.iter().any(|(name, _)| name == method), "{method} is not in the table");
    }
    for (method, _) in TABLE {
        assert!(served.contains(method), "{method} is not served");
    }
}

#[tokio::test]
async fn api_02_each_role_each_method_own_and_foreign_namespace() {
    let plane = Plane::shop().await;
    let mut admin = plane.admin().await;
    for port in [80, 81] {
        for namespace in ["shop", "bank"] {
            apply(&mut admin, &[vault(namespace, port)]).await.unwrap();
        }
    }
    let mut port = 1_000;
    let mut asked = 0;
    for role in [Role::Anonymous, Role::Node, Role::Server, Role::Viewer, Role::Editor, Role::Admin] {
        let callers =
            [("shop", plane.people(scoped(role, "shop")).await), ("*", plane.people(local(role)).await)];
        for (scope, mut client) in callers {
            for (method, needs) in TABLE {
                for namespace in ["shop", "bank"] {
                    let covers = scope == "*" || scope == namespace;
                    let person = matches!(role, Role::Viewer | Role::Editor | Role::Admin);
                    let allowed = person
                        && match needs {
                            Needs::There(least) => role >= *least && covers,
                            Needs::Anywhere(least) => role >= *least,
                            Needs::MeshAdmin => role == Role::Admin && scope == "*",
                        };
                    port += 1;
                    let waits = *method == "Confirm";
                    let change = if waits { waiting(&mut admin, namespace, port).await } else { 0 };
                    let answer = ask(&mut client, method, namespace, change).await;
                    let what = format!("{method} in {namespace} as {role:?} of {scope}: {answer:?}");
                    assert_eq!(answer.is_ok(), allowed, "{what}");
                    if let Err(status) = answer {
                        // Who may not see a change is not told that it is there.
                        let code = if waits && !covers { Code::NotFound } else { Code::PermissionDenied };
                        assert!(status.code() == code || status.code() == Code::PermissionDenied, "{what}");
                    }
                    if waits && !allowed {
                        admin.confirm(ConfirmRequest { change, abort: false }).await.unwrap();
                    }
                    asked += 1;
                }
            }
        }
    }
    assert_eq!(asked, 6 * 2 * 2 * TABLE.len());
}
