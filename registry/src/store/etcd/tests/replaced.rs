//! A store that is not the one that was known is refused, loudly (ETCD-07).

use super::super::super::conformance::{next, put, revision};
use super::super::super::{Prefix, Revision};
use super::*;

/// Copies what the member has on its disk; it must not run.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

fn restore(lone: &Lone, backup: &TempDir) {
    let data = lone.member.as_ref().unwrap().data().join("data");
    std::fs::remove_dir_all(&data).unwrap();
    copy(backup.path(), &data);
}

fn back_up(lone: &Lone) -> TempDir {
    let backup = process::folder();
    copy(&lone.member.as_ref().unwrap().data().join("data"), backup.path());
    backup
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_07_an_etcd_restored_from_an_old_backup_is_refused_at_the_start() {
    let mut lone = Lone::new();
    let store = lone.open().await;
    put(&*store, "/a", "1").await;
    drop(store);
    lone.member.as_mut().unwrap().kill();
    let backup = back_up(&lone);
    lone.member.as_mut().unwrap().run();
    let store = open(lone.settings()).await.unwrap();
    for number in 0..10 {
        put(&store, "/a", &number.to_string()).await;
    }
    let known = revision(&store).await;
    drop(store);
    lone.member.as_mut().unwrap().kill();
    restore(&lone, &backup);
    lone.member.as_mut().unwrap().run();

    let refused = open(lone.settings()).await.unwrap_err();
    assert!(matches!(refused, OpenError::Behind { known: seen, .. } if seen == known), "{refused}");
    assert_eq!(refused.code().as_str(), "W6012");

    // A person says that it is meant.
    let state = lone.settings().state_dir;
    std::fs::rename(state.join(mark::FILE), state.join("etcd.json.old")).unwrap();
    let store = open(lone.settings()).await.unwrap();
    assert!(put(&store, "/a", "again").await < known);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_07_a_running_server_refuses_an_etcd_that_went_back() {
    let mut lone = Lone::new();
    let store = lone.open().await;
    put(&*store, "/a", "1").await;
    drop(store);
    lone.member.as_mut().unwrap().kill();
    let backup = back_up(&lone);
    lone.member.as_mut().unwrap().run();
    let store = open(lone.settings()).await.unwrap();
    let mut last = Revision::ZERO;
    for number in 0..10 {
        last = put(&store, "/a", &number.to_string()).await;
    }
    let mut watch = store.watch(Prefix::everything(), last.next()).await.unwrap();
    lone.member.as_mut().unwrap().kill();
    restore(&lone, &backup);
    lone.member.as_mut().unwrap().run();

    let refused = next(&mut watch).await.unwrap_err();
    assert_eq!(refused.code().as_str(), "W6012", "{refused}");
    let refused = store.txn(vec![], vec![super::super::super::Op::Delete("/a".parse().unwrap())]).await;
    assert_eq!(refused.unwrap_err().code().as_str(), "W6012", "nothing is written into it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_07_a_wiped_etcd_and_another_one_are_refused() {
    let mut lone = Lone::new();
    let store = lone.open().await;
    put(&*store, "/a", "1").await;
    drop(store);
    // The same addresses, nothing in it.
    lone.member.as_mut().unwrap().kill();
    std::fs::remove_dir_all(lone.member.as_ref().unwrap().data().join("data")).unwrap();
    lone.member.as_mut().unwrap().run();
    let refused = open(lone.settings()).await.unwrap_err();
    assert!(matches!(refused, OpenError::OtherStore { found: Found::Nothing, .. }), "{refused}");
    assert_eq!(refused.code().as_str(), "W6033");

    // Somebody else's server has made a store there meanwhile.
    let other = process::folder();
    let endpoint = lone.member.as_ref().unwrap().endpoint();
    drop(open(settings(vec![endpoint], &other)).await.unwrap());
    let refused = open(lone.settings()).await.unwrap_err();
    assert!(matches!(refused, OpenError::OtherStore { found: Found::Store(_), .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_07_a_running_server_sees_that_its_keys_were_wiped() {
    let mut lone = Lone::new();
    let store = lone.open().await;
    let last = put(&*store, "/a", "1").await;
    let mut watch = store.watch(Prefix::everything(), last.next()).await.unwrap();
    lone.member.as_ref().unwrap().etcdctl(&["del", "--prefix", "/weft/test/"]);
    let refused = next(&mut watch).await.unwrap_err();
    assert_eq!(refused.code().as_str(), "W6033", "{refused}");
}
