//! History, waiting changes and the audit log of a whole server, over its restarts.

use std::{fs, time::Duration};

use tonic::Code;
use weft_api::{
    convert::management as convert,
    manifest,
    pb::management::{
        ApplyRequest, AuditEntry, ConfirmRequest, GetRequest, HistoryRequest, ListAuditRequest, ObjectRef,
        StatusRequest, VerifyAuditRequest, management_client::ManagementClient,
    },
};
use weft_policy::code;

use super::{Rig, call, codes, files};

const WINDOW: Duration = Duration::from_secs(10);
/// Longer than anything here takes, also on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn service(port: u16) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: Service\nmetadata: {{name: charge, namespace: shop}}\n\
         spec: {{ports: [{{port: {port}}}]}}\n"
    )
}

fn charge() -> ObjectRef {
    ObjectRef { kind: "Service".into(), namespace: "shop".into(), name: "charge".into() }
}

async fn apply_within(rig: &Rig, yaml: &str) -> u64 {
    let documents = manifest::parse(yaml, None).unwrap().iter().map(convert::document).collect();
    let confirm_within_ms = u64::try_from(WINDOW.as_millis()).unwrap();
    let request = ApplyRequest { documents, confirm_within_ms, ..Default::default() };
    rig.admin().await.apply(request).await.unwrap().into_inner().change
}

async fn port(rig: &Rig) -> u64 {
    let answer = rig.admin().await.get(GetRequest { r#ref: Some(charge()) }).await.unwrap().into_inner();
    let object: serde_json::Value = serde_json::from_slice(&answer.document.unwrap().json).unwrap();
    object["spec"]["ports"][0]["port"].as_u64().unwrap()
}

async fn audit(rig: &Rig) -> Vec<AuditEntry> {
    rig.admin().await.list_audit(ListAuditRequest { limit: 500 }).await.unwrap().into_inner().entries
}

#[tokio::test]
async fn a_server_that_was_killed_takes_back_in_time_what_nobody_confirmed() {
    let (mut rig, hands) = Rig::timed("");
    rig.apply(&service(80)).await;
    let change = apply_within(&rig, &service(81)).await;
    rig.kill();
    hands.advance(WINDOW / 2);
    rig.start_again();
    assert_eq!(port(&rig).await, 81, "there is time left");
    assert_eq!(
        rig.admin().await.status(StatusRequest {}).await.unwrap().into_inner().pending[0].change,
        change
    );
    rig.kill();
    hands.advance(WINDOW);
    rig.start_again();
    let back = async { while port(&rig).await != 80 {} };
    tokio::time::timeout(SOON, back).await.unwrap();
    let confirmed = rig.admin().await.confirm(ConfirmRequest { change, abort: false }).await;
    assert_eq!(codes(confirmed), (Code::NotFound, code::NOT_WAITING.to_string()));
}

#[tokio::test]
async fn history_and_audit_log_survive_restarts() {
    let mut rig = Rig::start();
    for port in [80, 81] {
        rig.apply(&service(port)).await;
    }
    rig.kill();
    rig.start_again();
    rig.apply(&service(82)).await;
    let request = HistoryRequest { r#ref: Some(charge()), revision: None };
    let told = rig.admin().await.history(request).await.unwrap().into_inner().revisions;
    assert_eq!(
        told.iter().map(|r| r.action.as_str()).collect::<Vec<_>>(),
        ["configured", "configured", "created"]
    );
    assert!(told.windows(2).all(|pair| pair[0].revision > pair[1].revision));
    let changes: Vec<_> = audit(&rig).await.into_iter().filter(|entry| entry.change > 0).collect();
    assert_eq!(changes.len(), 3, "{changes:?}");
    let report = rig.admin().await.verify_audit(VerifyAuditRequest {}).await.unwrap().into_inner();
    assert_eq!(report.faults, Vec::<String>::new());
}

#[tokio::test]
async fn api_11_what_the_gate_refuses_is_in_the_audit_log() {
    let rig = Rig::start();
    let ada = rig.person("ada", "viewer").await;
    let mut client = ManagementClient::new(rig.dial(Some(&ada)).await);
    client.apply(ApplyRequest::default()).await.unwrap_err();
    call(&rig.dial(None).await, "/weft.management.v1.Management/Status").await.unwrap_err();
    let entries = audit(&rig).await;
    let denied = |who: &str, method: &str, code: &str| {
        let path = format!("/weft.management.v1.Management/{method}");
        let is = |entry: &&AuditEntry| entry.outcome == "denied" && entry.method == path;
        let found = entries.iter().filter(is).find(|entry| entry.who.contains(who));
        let found = found.unwrap_or_else(|| panic!("no {method} of {who} in {entries:?}"));
        assert_eq!(found.code, code);
        assert!(!found.from.is_empty());
    };
    denied("spiffe://corp.example/user/ada", "Apply", code::NOT_PERMITTED.as_str());
    denied("anonymous", "Status", code::UNAUTHENTICATED.as_str());
}

#[tokio::test]
async fn api_11_an_audit_log_that_was_cut_off_while_the_server_was_down_is_told() {
    let mut rig = Rig::start();
    for port in [80, 81, 82] {
        rig.apply(&service(port)).await;
    }
    let server = rig.server.take().unwrap();
    tokio::task::spawn_blocking(move || server.shutdown(Duration::from_secs(5))).await.unwrap();
    let log = files(&rig.state().join("audit")).remove(0);
    let text = fs::read_to_string(&log).unwrap();
    let kept: String = text.lines().take(3).map(|line| format!("{line}\n")).collect();
    fs::write(&log, kept).unwrap();
    rig.start_again();
    let status = rig.admin().await.status(StatusRequest {}).await.unwrap().into_inner();
    assert!(status.problems.iter().any(|p| p.code == code::AUDIT_BROKEN.as_str()), "{status:?}");
    let report = rig.admin().await.verify_audit(VerifyAuditRequest {}).await.unwrap().into_inner();
    assert!(!report.faults.is_empty());
    rig.apply(&service(83)).await;
}
