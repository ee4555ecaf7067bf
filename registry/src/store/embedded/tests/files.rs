//! The directory: who may read it, who may open it, and what is refused.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use redb::{Database, TableDefinition};

use super::super::rows::{ENTRIES, HISTORY, META};
use super::*;

#[tokio::test]
async fn a_second_opener_is_told_who_has_the_store() {
    let host = Host::new();
    let store = host.open_here().await;
    let error = host.try_open().await.map(drop).unwrap_err();
    assert!(
        matches!(error, OpenError::InUse { process, .. } if process == Some(std::process::id())),
        "{error}"
    );
    assert_eq!(error.code().as_str(), "W6002");
    drop(store);
    host.open_here().await;
}

#[tokio::test]
async fn only_the_owner_can_read_the_store() {
    let host = Host::new();
    let directory = host.settings().directory;
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    drop(host.open_here().await);
    assert_eq!(mode(directory.clone()), 0o700);
    for name in ["registry.redb", "registry.lock"] {
        assert_eq!(mode(directory.join(name)), 0o600, "{name}");
    }

    fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(directory.join("registry.redb"), Permissions::from_mode(0o644)).unwrap();
    drop(host.open_here().await);
    assert_eq!((mode(directory.clone()), mode(directory.join("registry.redb"))), (0o700, 0o600));
}

#[tokio::test]
async fn a_store_of_a_newer_format_is_refused_and_left_alone() {
    let host = Host::new();
    drop(host.open_here().await);
    let edit = |database: &Database| {
        let transaction = database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("format", 2).unwrap();
        // What a newer version might have done to the rest must not matter.
        transaction.delete_table(ENTRIES).unwrap();
        transaction.open_table(TableDefinition::<u8, u8>::new("entries")).unwrap();
        transaction.commit().unwrap();
    };
    edit_file(&host, edit);
    for _ in 0..2 {
        let error = host.try_open().await.map(drop).unwrap_err();
        assert!(matches!(error, OpenError::Newer { found: 2, known: 1, .. }), "{error}");
        assert_eq!(error.code().as_str(), "W6003");
    }
}

#[tokio::test]
async fn a_damaged_store_is_refused_with_what_was_found() {
    type Edit = fn(&Database);
    let edits: [(Edit, &str); 4] = [
        (
            |database| {
                let transaction = database.begin_write().unwrap();
                transaction.open_table(HISTORY).unwrap().remove(2).unwrap();
                transaction.commit().unwrap();
            },
            "commits are missing from the history",
        ),
        (
            |database| {
                let transaction = database.begin_write().unwrap();
                transaction.open_table(ENTRIES).unwrap().insert("/a", [1, 2, 3].as_slice()).unwrap();
                transaction.commit().unwrap();
            },
            "entry /a cannot be read",
        ),
        (
            |database| {
                let transaction = database.begin_write().unwrap();
                transaction.open_table(META).unwrap().insert("revision", 1).unwrap();
                transaction.open_table(HISTORY).unwrap().retain(|revision, _| revision == 1).unwrap();
                transaction.commit().unwrap();
            },
            "an entry is newer than the store",
        ),
        (
            |database| {
                let transaction = database.begin_write().unwrap();
                transaction.delete_table(META).unwrap();
                transaction.commit().unwrap();
            },
            "it has no table of numbers",
        ),
    ];
    for (edit, expected) in edits {
        let host = Host::new();
        let store = host.open_here().await;
        for number in 1..=3 {
            put(&store, "/a", &number.to_string()).await;
        }
        drop(store);
        edit_file(&host, edit);
        let error = host.try_open().await.map(drop).unwrap_err();
        assert!(matches!(&error, OpenError::Damaged { what, .. } if what == expected), "{error}");
        assert_eq!(error.code().as_str(), "W6004");
    }
}

#[tokio::test]
async fn a_file_of_something_else_is_refused() {
    let host = Host::new();
    drop(host.open_here().await);
    fs::write(host.settings().directory.join("registry.redb"), "not a database".repeat(1000)).unwrap();
    let error = host.try_open().await.map(drop).unwrap_err();
    assert!(matches!(error, OpenError::Database { .. }), "{error}");
    assert_eq!(error.code().as_str(), "W6004");
}

#[tokio::test]
async fn a_half_written_new_file_does_not_hinder_the_start() {
    let host = Host::new();
    let store = host.open_here().await;
    put(&store, "/a", "1").await;
    drop(store);
    let next = host.settings().directory.join("registry.redb.next");
    fs::write(&next, "left by a crash").unwrap();
    assert_eq!(names(&host.open_here().await).await, ["/a"]);
    assert!(!next.exists());
}

#[tokio::test]
async fn a_wiped_store_has_another_name() {
    let host = Host::new();
    let before = host.open_here().await.status().await.unwrap().id;
    assert_eq!(host.open_here().await.status().await.unwrap().id, before);
    fs::remove_dir_all(host.settings().directory).unwrap();
    assert_ne!(host.open_here().await.status().await.unwrap().id, before);
}

fn edit_file(host: &Host, edit: impl Fn(&Database)) {
    edit(&Database::open(host.settings().directory.join("registry.redb")).unwrap());
}

#[test]
fn a_system_without_random_numbers_opens_no_store_and_is_told_so() {
    assert_eq!(OpenError::Entropy.code().as_str(), "W9005");
}
