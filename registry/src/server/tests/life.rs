//! Starting, ending, and what stays.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use weft_api::pb::management::{ShowAuthorityRequest, StatusRequest};
use weft_policy::code;

use super::{Rig, files, http, workload};
use crate::{clock::Clock, server::ServerError};

#[tokio::test]
async fn every_file_of_the_server_is_its_owners_alone() {
    let rig = Rig::start();
    let found = files(rig.folder());
    assert!(found.iter().any(|path| path.ends_with("ca/authority.json")));
    for path in found {
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
    }
    let socket = fs::metadata(rig.server().socket_path()).unwrap().permissions().mode() & 0o777;
    assert_eq!(socket, 0o600);
}

#[tokio::test]
async fn a_restart_keeps_authority_bundle_port_and_everybodys_identity() {
    let mut rig = Rig::start();
    let node = rig.node("hostb").await;
    let show = async |rig: &Rig| {
        rig.admin().await.show_authority(ShowAuthorityRequest {}).await.unwrap().into_inner()
    };
    let (before, port) = (show(&rig).await, rig.server().control_addr());
    rig.kill();
    rig.start_again();
    let after = show(&rig).await;
    assert_eq!((&before.roots_pem, port), (&after.roots_pem, rig.server().control_addr()));
    let sequence = |shown: &weft_api::pb::management::ShowAuthorityResponse| {
        shown.authority.as_ref().map(|authority| authority.bundle_sequence)
    };
    assert_eq!(sequence(&before), sequence(&after));
    rig.issue(&node, &workload("charge")).await.unwrap();
    rig.issue(&node, "").await.unwrap();
}

#[tokio::test]
async fn a_restart_with_1000_resources_takes_less_than_2_s() {
    let mut rig = Rig::start();
    for part in 0..10 {
        let service = |number| {
            format!(
                "---\napiVersion: weft.mesh/v1alpha1\nkind: Service\n\
                 metadata: {{name: s{part}-{number}, namespace: default}}\n\
                 spec: {{ports: [{{name: http, port: 80}}]}}\n"
            )
        };
        let text: String = (0..100).map(service).collect();
        rig.apply(&text).await;
    }
    rig.kill();
    let clock = Clock::system();
    rig.start_again();
    let status = rig.admin().await.status(StatusRequest {}).await.unwrap().into_inner();
    assert!(clock.uptime() < Duration::from_secs(2), "{:?}", clock.uptime());
    assert_eq!(status.services.len(), 1000);
}

#[tokio::test]
async fn a_second_server_on_the_same_directory_is_refused() {
    let rig = Rig::start();
    assert_eq!(refusal(rig.try_start()), code::STORE_LOCKED.as_str());
    rig.admin().await.status(StatusRequest {}).await.unwrap();
}

#[tokio::test]
async fn state_of_another_trust_domain_or_without_its_keys_is_refused() {
    let mut rig = Rig::start();
    rig.kill();
    assert_eq!(refusal(rig.try_start_as("other.example")), code::OTHER_TRUST_DOMAIN.as_str());
    let path = rig.state().join("ca/authority.json");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(refusal(rig.try_start()), code::KEY_PERMISSIONS.as_str());
    fs::remove_file(&path).unwrap();
    assert_eq!(refusal(rig.try_start()), code::STATE_DAMAGED.as_str());
}

#[tokio::test]
async fn manifests_are_applied_at_the_start_and_a_bad_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let good = "apiVersion: weft.mesh/v1alpha1\nkind: Service\nmetadata: {name: charge, namespace: shop}\n\
                spec: {ports: [{name: http, port: 80}]}\n";
    fs::write(folder.path().join("a.yaml"), good).unwrap();
    let mut rig = Rig::with(&format!("manifests: {:?}\n", folder.path()));
    let status = rig.admin().await.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.services[0].service, "charge.shop");
    rig.kill();
    fs::write(folder.path().join("b.yaml"), good.replace("Service", "Servise")).unwrap();
    let refused = rig.try_start().unwrap_err().fault();
    assert!(refused.why.iter().any(|why| why.contains("b.yaml")), "{refused:?}");
}

#[tokio::test]
async fn the_plain_listeners_tell_metrics_and_readiness_and_no_secret() {
    let rig = Rig::start();
    rig.node("hostb").await;
    let metrics = http(rig.server().metrics_addr(), "/metrics").await;
    for name in [
        "weft_registry_commit_duration_seconds_count",
        "weft_config_revision",
        "weft_identity_certificate_expiry_seconds{kind=\"server\"}",
        "weft_identity_issued_total",
        "weft_trust_bundle_sequence 1",
        "weft_identity_roots{state=\"active\"} 1",
        "weft_identity_roots{state=\"prepared\"} 0",
        "weft_identity_agents_without_prepared_root 0",
        "weft_registry_control_accepted_total",
    ] {
        assert!(metrics.contains(name), "{name} is missing in:\n{metrics}");
    }
    for address in [rig.server().metrics_addr(), rig.server().admin_addr()] {
        assert!(http(address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(http(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(http(address, "/x").await.starts_with("HTTP/1.1 404"));
    }
    assert!(http(rig.server().admin_addr(), "/config").await.contains("trustDomain: corp.example    # test"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_asks_streams_to_end_and_frees_everything() {
    let mut rig = Rig::start();
    let watch = weft_api::pb::management::WatchRequest {
        kind: "Service".into(),
        all_namespaces: true,
        ..Default::default()
    };
    let mut stream = rig.admin().await.watch(watch).await.unwrap().into_inner();
    let server = rig.server.take().unwrap();
    let socket = server.socket_path().to_owned();
    let ending = tokio::task::spawn_blocking(move || server.shutdown(Duration::from_secs(20)));
    // The end of the stream is its answer, whether it is told in words or not.
    while let Ok(Some(_)) = stream.message().await {}
    ending.await.unwrap();
    assert!(!socket.exists());
    rig.start_again();
}

fn refusal(started: Result<crate::server::RunningServer, ServerError>) -> String {
    started.unwrap_err().fault().code.into()
}
