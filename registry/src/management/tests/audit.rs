//! API-11: what is allowed and what is denied is written down, and what cannot be is not done.

use weft_api::pb::management::{
    AuditEntry, CreateTokenRequest, ListAuditRequest, StatusRequest, VerifyAuditRequest,
};
use weft_policy::code;

use super::*;
use crate::{
    harness::{Plane, scoped},
    roles::Role,
};

/// The newest entries, the oldest first.
async fn entries(client: &mut Client, count: usize) -> Vec<AuditEntry> {
    let limit = u32::try_from(count).unwrap();
    let mut found = client.list_audit(ListAuditRequest { limit }).await.unwrap().into_inner().entries;
    found.reverse();
    found
}

#[tokio::test]
async fn api_11_allowed_and_denied_calls_are_written_down_with_who_what_and_why() {
    let plane = Plane::shop().await;
    let mut admin = plane.admin().await;
    let mut editor = plane.people(scoped(Role::Editor, "shop")).await;
    let request = ApplyRequest {
        documents: documents(&[service("new")]),
        reason: "ticket 7".to_owned(),
        ..Default::default()
    };
    let change = editor.apply(request).await.unwrap().into_inner().change;
    let mut foreign = service("vault");
    foreign["metadata"]["namespace"] = json!("bank");
    apply(&mut editor, &[foreign]).await.unwrap_err();
    editor.create_token(CreateTokenRequest { node: "hostz".into(), ..Default::default() }).await.unwrap_err();
    get(&mut editor, "svc", "new").await.unwrap();
    get(&mut editor, "svc", "nothing").await.unwrap_err();

    let told = entries(&mut admin, 8).await;
    let rows: Vec<_> = told
        .iter()
        .map(|e| (e.method.as_str(), e.outcome.as_str(), e.code.as_str(), e.objects.join(",")))
        .collect();
    let row = |method, outcome, code, object: &str| (method, outcome, code, object.to_owned());
    assert_eq!(
        rows,
        [
            row("Apply", "begun", "", "Service/new.shop"),
            row("Apply", "allowed", "", "Service/new.shop"),
            row("Apply", "begun", "", "Service/vault.bank"),
            row("Apply", "denied", "W6015", "Service/vault.bank"),
            row("CreateToken", "begun", "", "agent/hostz"),
            row("CreateToken", "denied", "W6015", "agent/hostz"),
            row("Get", "allowed", "", "svc/new.shop"),
            row("Get", "failed", "W4021", "svc/nothing.shop"),
        ]
    );
    assert_eq!((told[1].reason.as_str(), told[1].change), ("ticket 7", change));
    assert!(told.iter().all(|e| e.who == "uid 1000" && e.role == "editor in shop"), "{told:?}");
    let report = admin.verify_audit(VerifyAuditRequest {}).await.unwrap().into_inner();
    assert_eq!((report.faults.len(), report.first), (0, 1));
}

#[tokio::test]
async fn api_11_a_change_that_cannot_be_written_down_is_refused_and_reading_goes_on() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let log = plane.rig.directory.path().join("audit");
    let away = plane.rig.directory.path().join("away");
    apply(&mut client, &[service("first")]).await.unwrap();
    std::fs::rename(&log, &away).unwrap();
    // The file that is open takes entries until it is full; the next one cannot be made.
    let mut number = 0;
    let refusal = loop {
        number += 1;
        if let Err(status) = apply(&mut client, &[service(&format!("s{number}"))]).await {
            break status;
        }
        assert!(number < 100, "files of 4 KiB are full after a few changes");
    };
    refused(Err::<(), _>(refusal), Code::Unavailable, code::AUDIT_UNAVAILABLE);
    let refused_one = format!("s{number}");
    refused(get(&mut client, "svc", &refused_one).await, Code::NotFound, code::NOT_FOUND);
    let status = client.status(StatusRequest {}).await.unwrap().into_inner();
    assert!(status.problems.iter().any(|p| p.code == code::AUDIT_UNAVAILABLE.as_str()), "{status:?}");

    std::fs::rename(&away, &log).unwrap();
    apply(&mut client, &[service(&refused_one)]).await.unwrap();
    let report = client.verify_audit(VerifyAuditRequest {}).await.unwrap().into_inner();
    assert_eq!(report.faults, Vec::<String>::new());
}
