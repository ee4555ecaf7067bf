//! Delete: what goes, what is left, what may not.

use weft_api::pb::management::{DeleteRequest, DeleteResponse};
use weft_policy::code;

use super::*;
use crate::{harness::Plane, layout, samples};

async fn delete(client: &mut Client, refs: Vec<ObjectRef>, expected: u64) -> Result<DeleteResponse, Status> {
    let request = DeleteRequest { refs, expected_revision: expected, ..Default::default() };
    client.delete(request).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn deleting_a_service_names_what_still_refers_to_it() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let route = json_of(&Resource::TcpRoute(samples::route("r1", "shop", "charge", "ledger")));
    apply(&mut client, &[route]).await.unwrap();
    let answer = delete(&mut client, vec![reference("svc", "charge")], 0).await.unwrap();
    assert_eq!(answer.deleted[0].kind, "Service");
    let said = answer.warnings.join("\n");
    for left in ["TCPRoute/r1.shop", "AuthorizationPolicy/charge-from-order.shop", "Workload/charge-1.shop"] {
        assert!(said.contains(left), "{said}");
    }
    refused(get(&mut client, "service", "charge").await, Code::NotFound, code::NOT_FOUND);

    let refs = vec![reference("we", "ledger")];
    let forced = DeleteRequest { refs, force: true, ..Default::default() };
    let lost = client.delete(forced).await.unwrap().into_inner().warnings;
    assert!(lost[0].contains("Workload/ledger-1.shop loses its identity"), "{lost:?}");
    let together = vec![reference("svc", "order"), reference("wl", "order-1")];
    assert!(delete(&mut client, together, 0).await.unwrap().warnings.is_empty());
}

#[tokio::test]
async fn what_is_missing_changed_or_the_mesh_itself_is_not_deleted() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let both = vec![reference("svc", "charge"), reference("svc", "nothing")];
    refused(delete(&mut client, both, 0).await, Code::NotFound, code::NOT_FOUND);
    get(&mut client, "service", "charge").await.unwrap();
    let stale = delete(&mut client, vec![reference("svc", "charge")], 9_999).await;
    refused(stale, Code::Aborted, code::WRITE_CONFLICT);
    let mesh = ObjectRef { kind: "Mesh".to_owned(), namespace: String::new(), name: "mesh".to_owned() };
    refused(delete(&mut client, vec![mesh], 0).await, Code::InvalidArgument, code::IMMUTABLE);
    refused(delete(&mut client, vec![], 0).await, Code::InvalidArgument, code::NOTHING_TO_DO);
}

#[tokio::test]
async fn with_a_workload_go_its_registration_and_its_label() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    delete(&mut client, vec![reference("wl", "charge-1")], 0).await.unwrap();
    let catalog = plane.rig.core.world.catalog();
    let (shop, name) = ("shop".parse().unwrap(), "charge-1".parse().unwrap());
    let store = &plane.rig.core.store;
    assert!(store.get(&layout::registration(&shop, &name)).await.unwrap().is_none());
    assert!(catalog.label(&"label-charge-1".parse().unwrap()).is_none());
    assert!(plane.rig.core.world.current().endpoints(&samples::service_name("charge", "shop")).is_empty());
}

#[tokio::test]
async fn an_object_that_cannot_be_read_can_be_deleted() {
    let plane = Plane::shop().await;
    let mut client = plane.admin().await;
    let key =
        Resource::AuthorizationPolicy(samples::policy("charge-from-order", "shop", "charge", "order")).key();
    let put =
        plane.rig.core.store.put(layout::resource(&key), "{".into(), crate::store::Expected::Anything, None);
    plane.rig.core.world.wait_for(put.await.unwrap()).await;
    refused(get(&mut client, "ap", "charge-from-order").await, Code::DataLoss, code::UNREADABLE_RECORD);
    delete(&mut client, vec![reference("ap", "charge-from-order")], 0).await.unwrap();
    refused(get(&mut client, "ap", "charge-from-order").await, Code::NotFound, code::NOT_FOUND);
}
