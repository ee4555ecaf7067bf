//! Who etcd lets in, and what a server that is not let in says (ETCD-08).

use super::super::super::conformance::{get, put};
use super::*;

const ROOT: [&str; 2] = ["--user", "root:root-secret"];

fn user(name: &str, password: &str) -> User {
    User { name: name.to_owned(), password: zeroize::Zeroizing::new(password.to_owned()) }
}

/// A member with the users `weft`, who may use the prefix of the tests, and `guest`, who may not.
fn guarded() -> Member {
    let member = Member::start();
    for arguments in [
        &["user", "add", "root:root-secret"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "mesh"],
        &["role", "grant-permission", "mesh", "--prefix=true", "readwrite", "/weft/test/"],
        &["user", "add", "weft:weft-secret"],
        &["user", "grant-role", "weft", "mesh"],
        &["user", "add", "guest:guest-secret"],
        &["auth", "enable"],
    ] {
        member.etcdctl(arguments);
    }
    member
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_08_only_a_user_with_its_password_and_permission_gets_in() {
    let member = guarded();
    let state = process::folder();
    let as_user = |user| Settings { user, ..settings(vec![member.endpoint()], &state) };
    for (who, given) in [
        ("nobody", None),
        ("a wrong password", Some(user("weft", "wrong"))),
        ("an unknown user", Some(user("other", "weft-secret"))),
        ("a user without permission", Some(user("guest", "guest-secret"))),
    ] {
        let refused = open(as_user(given)).await.unwrap_err();
        assert_eq!(refused.code().as_str(), "W6035", "{who}: {refused}");
        assert!(!refused.to_string().contains("secret"), "{refused}");
    }
    let store = open(as_user(Some(user("weft", "weft-secret")))).await.unwrap();
    put(&store, "/a", "1").await;

    // The tokens of a member that restarts are gone; the server logs in again.
    let mut member = member;
    member.restart();
    put(&store, "/a", "2").await;
    assert_eq!(get(&store, "/a").await.unwrap().version, 2);

    // Whoever loses the permission while it runs is told so, and reads on.
    let revoke = ["role", "revoke-permission", "mesh", "--prefix=true", "/weft/test/"];
    member.etcdctl(&[&ROOT[..], &revoke].concat());
    let refused =
        store.delete("/a".parse().unwrap(), super::super::super::Expected::Anything).await.unwrap_err();
    assert_eq!(refused.code().as_str(), "W6005", "{refused}");
    assert!(get(&store, "/a").await.is_some());
}
