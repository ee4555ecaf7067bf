//! Who etcd lets in, and what a server that is not let in says (ETCD-08).

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

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

/// Certificates of an authority of etcd's own, in files as `server.yaml` names them.
struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let folder = process::folder();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca"), root.pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca")
    }

    /// A certificate for loopback that ends in `year`, and its key.
    fn issue(&self, name: &str, year: i32) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(year, 1, 1));
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let path = |kind: &str| self.folder.path().join(format!("{name}.{kind}"));
        std::fs::write(path("pem"), leaf.pem()).unwrap();
        crate::private::write(&path("key"), key.serialize_pem().as_bytes()).unwrap();
        (path("pem"), path("key"))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_08_both_sides_prove_themselves_or_nothing_is_said() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (certificate, key) = authority.issue("etcd", 2040);
    let ca = authority.ca();
    let member = Member::start_with(&[
        "--client-cert-auth",
        "--trusted-ca-file",
        text(&ca),
        "--cert-file",
        text(&certificate),
        "--key-file",
        text(&key),
    ]);
    let state = process::folder();
    let with = |files: TlsFiles| {
        let mut settings = settings(vec![member.endpoint()], &state);
        settings.tls = Some(files.load().unwrap());
        settings.timeouts = Timeouts { write: Duration::from_secs(1), ..Timeouts::default() };
        settings
    };
    let own = authority.issue("server", 2040);
    for (what, ca, own) in [
        ("a wrong root", other.ca(), Some(own.clone())),
        ("no certificate", authority.ca(), None),
        ("a certificate of another root", authority.ca(), Some(other.issue("server", 2040))),
        ("a certificate that has ended", authority.ca(), Some(authority.issue("old", 2020))),
    ] {
        let refused = open(with(TlsFiles { ca, own })).await.unwrap_err();
        assert_eq!(refused.code().as_str(), "W6034", "{what}: {refused}");
    }
    let store = open(with(TlsFiles { ca: authority.ca(), own: Some(own) })).await.unwrap();
    put(&store, "/a", "1").await;
    assert!(get(&store, "/a").await.is_some());
}

#[test]
fn etcd_08_a_key_that_others_may_read_is_refused_with_its_file() {
    use std::os::unix::fs::PermissionsExt as _;

    let authority = Authority::new();
    let own = authority.issue("server", 2040);
    let files = TlsFiles { ca: authority.ca(), own: Some(own.clone()) };
    assert!(files.load().is_ok());
    std::fs::set_permissions(&own.1, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(files.load(), Err(TlsError::File(_))));
    let swapped = TlsFiles { ca: own.1, own: None };
    let told = swapped.load().unwrap_err().to_string();
    assert!(told.contains("server.key") && told.contains("certificate"), "{told}");
}
