//! An etcd writer who is not the server cannot widen a policy (security.md T6): all that he does, edited, cut, unsigned,
//! moved, deleted and replayed records (ETCD-09), is refused with W6060, and the rest goes on.

use std::sync::Arc;

use super::process::{Member, folder};
use super::{open, settings};
use crate::seal::tests::by_hand::Scene;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_09_an_etcd_writer_cannot_widen_a_policy() {
    let member = Member::start();
    let (server, somebody) = (folder(), folder());
    let store = open(settings(vec![member.endpoint()], &server)).await.unwrap();
    let hand = open(settings(vec![member.endpoint()], &somebody)).await.unwrap();
    Scene::start(Arc::new(store), Arc::new(hand)).await.run("W6060").await;
}
