//! kill -9 between and during writes (OPS-01), with a real process; and how long a restart takes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::*;

/// Tells the child where to write.
const DIRECTORY: &str = "WEFT_STORE_KILL_TEST";

#[tokio::test]
async fn ops_01_a_killed_process_loses_nothing_it_acknowledged() {
    const ROUNDS: usize = 8;
    let host = Host::new();
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        let mut child = spawn_child(&host);
        let output = BufReader::new(child.stdout.take().unwrap());
        for line in output.lines().map_while(Result::ok) {
            let Some(number) = line.strip_prefix("acknowledged ") else { continue };
            acknowledged = number.parse().unwrap();
            if acknowledged >= (round as u64 + 1) * 17 {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();

        let store = host.open_here().await;
        let kept = store.status().await.unwrap().revision;
        assert!(kept >= Revision(acknowledged), "round {round}: {kept} of {acknowledged}");
        let listing = store.list_all(&Prefix::everything()).await.unwrap();
        assert_eq!(listing.entries.len() as u64, 2 * kept.0, "both keys of each transaction");
    }
}

/// Not a test of its own: the process that [`ops_01_a_killed_process_loses_nothing_it_acknowledged`]
/// kills. Without its directory it returns at once.
#[tokio::test]
async fn the_child_writes_until_it_is_killed() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let settings = Settings { directory: directory.into(), bounds: Bounds::default() };
    let store = EmbeddedStore::open(settings, Clock::system(), Arc::default()).await.unwrap();
    loop {
        let number = store.status().await.unwrap().revision.next();
        let text = "v".repeat(1000);
        let ops = vec![put_op(&format!("/a/{number}"), &text), put_op(&format!("/b/{number}"), &text)];
        println!("acknowledged {}", store.txn(vec![], ops).await.unwrap());
    }
}

fn spawn_child(host: &Host) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("store::embedded::tests::process_kill::the_child_writes_until_it_is_killed")
        .env(DIRECTORY, host.settings().directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_restart_with_1000_resources_takes_less_than_2_seconds() {
    let host = Host::new();
    let store = host.open_here().await;
    for fifty in 0..20 {
        let name = |number| format!("/resources/Service/default/service-{fifty:02}{number:02}");
        let ops = (0..50).map(|number| put_op(&name(number), &"v".repeat(2500))).collect();
        store.txn(vec![], ops).await.unwrap();
    }
    drop(store);
    // The fastest of three, because other tests keep this machine busy.
    let mut fastest = Duration::MAX;
    for _ in 0..3 {
        let clock = Clock::system();
        let store = host.open_here().await;
        fastest = fastest.min(clock.uptime());
        assert_eq!(store.status().await.unwrap().entries, 1000);
    }
    println!("opened in {fastest:?}");
    assert!(fastest < Duration::from_secs(2), "{fastest:?}");
}
