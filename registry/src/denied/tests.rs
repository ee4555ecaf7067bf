//! Bounds, bans cut short, and damaged records, below the service.

use weft_identity::denied::Denied;
use weft_policy::snapshot::ViewObject;

use super::*;
use crate::{
    samples::{self, Rig},
    store::Expected,
};

fn caller() -> Caller {
    crate::harness::local(crate::roles::Role::Admin)
}

fn record(what: What) -> DeniedRecord {
    DeniedRecord { what, author: "uid 0".to_owned(), reason: String::new(), at: 1, until: Some(u64::MAX) }
}

/// A list at its bound less `room`, as the records of a banned node.
async fn fill(core: &Core, room: usize) {
    let serial = |number: usize| Subject::serial(&format!("{:06x}", 0x10_0000 + number), None).unwrap();
    let all: Vec<_> = (0..MAX_ENTRIES - room).map(serial).collect();
    for (part, serials) in all.chunks(MAX_SERIALS).enumerate() {
        let (node, part) = ("filler".parse().unwrap(), u32::try_from(part).unwrap());
        let full = record(What::Certificates { node, part, serials: serials.to_vec() });
        commit(core, Vec::new(), vec![put(&full)]).await.unwrap();
    }
}

#[tokio::test]
async fn a_full_list_takes_no_more_and_says_so() {
    let rig = Rig::start().await;
    fill(&rig.core, 1).await;
    let request = |subject: &str| DenyRequest { subject: subject.to_owned(), reason: String::new() };
    deny(&rig.core, &caller(), &request("serial:0a")).await.unwrap();
    assert_eq!(rig.core.world.current().denied().len(), MAX_ENTRIES);
    let refused = deny(&rig.core, &caller(), &request("serial:0b")).await.unwrap_err();
    assert_eq!(&*refused.faults()[0].code, code::DENYLIST_FULL.as_str());
    deny(&rig.core, &caller(), &request("serial:0a")).await.expect("what is on it may be changed");
}

#[tokio::test]
async fn a_record_that_cannot_be_read_any_more_sets_nobody_free() {
    let rig = Rig::start().await;
    let what = parse("serial:0a").unwrap();
    let key = layout::denied(&what.id());
    commit(&rig.core, Vec::new(), vec![put(&record(what))]).await.unwrap();
    let revision = rig.core.store.put(key, "{}".into(), Expected::Anything, None).await.unwrap();
    rig.core.world.wait_for(revision).await;
    assert_eq!(rig.core.world.current().denied().len(), 1);
    assert_eq!(rig.core.metrics.unreadable_records.get(), 1);
}

#[tokio::test]
async fn a_denied_workload_is_no_endpoint_and_every_node_is_told_of_it() {
    let rig = Rig::start().await;
    rig.put_shop().await;
    let charge = samples::service_name("charge", "shop");
    assert_eq!(rig.core.world.current().endpoints(&charge).len(), 1);
    let what = parse("spiffe://corp.example/ns/shop/sa/charge").unwrap();
    commit(&rig.core, Vec::new(), vec![put(&record(what.clone()))]).await.unwrap();
    let world = rig.core.world.current();
    assert!(world.endpoints(&charge).is_empty());
    let view = crate::view::build(&world, &crate::view::Interest::default());
    let told: Vec<_> = view
        .iter()
        .filter_map(|(_, object)| match object {
            ViewObject::Denied(page) => Some(page.entries().to_vec()),
            ViewObject::Mesh(_)
            | ViewObject::Namespace(_)
            | ViewObject::Service(_)
            | ViewObject::Endpoint(_)
            | ViewObject::TcpRoute(_)
            | ViewObject::TrafficPolicy(_)
            | ViewObject::AuthorizationPolicy(_)
            | ViewObject::Unreadable(_) => None,
        })
        .flatten()
        .collect();
    let subject = "spiffe://corp.example/ns/shop/sa/charge".parse().unwrap();
    assert_eq!(told, [Denied { subject, until: u64::MAX, node: None }]);

    commit(
        &rig.core,
        Vec::new(),
        vec![put(&record(parse("node:hostb").unwrap())), Op::Delete(layout::denied(&what.id()))],
    )
    .await
    .unwrap();
    assert!(rig.core.world.current().endpoints(&charge).is_empty(), "its node is banned");
}
