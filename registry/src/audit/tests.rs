//! The log on a real disk and over a real store.

use std::{fs, path::PathBuf};

use tempfile::TempDir;
use tokio::task::JoinSet;

use super::*;
use crate::{
    audit::chain::{End, Outcome},
    harness::local,
    roles::Role,
    store::{
        Expected,
        embedded::{self, EmbeddedStore},
        metrics::StoreMetrics,
    },
};

struct Rig {
    folder: TempDir,
    store: Arc<dyn Store>,
    clock: Clock,
    metrics: Arc<RegistryMetrics>,
    writers: JoinSet<()>,
}

impl Rig {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let directory = folder.path().join("store");
        let settings = embedded::Settings { directory, bounds: Default::default() };
        let opened = EmbeddedStore::open(settings, clock.clone(), Arc::new(StoreMetrics::default())).await;
        let store: Arc<dyn Store> = Arc::new(opened.unwrap());
        Self { folder, store, clock, metrics: Arc::default(), writers: JoinSet::new() }
    }

    fn directory(&self) -> PathBuf {
        self.folder.path().join("audit")
    }

    async fn open(&mut self, file_bytes: u64, files: usize) -> Audit {
        let settings = Settings { directory: self.directory(), file_bytes, files };
        let (store, metrics) = (Arc::clone(&self.store), Arc::clone(&self.metrics));
        let (audit, writing) = open(settings, store, self.clock.clone(), "one", metrics).await.unwrap();
        self.writers.spawn(writing);
        audit
    }

    /// Drops the log as a crash would.
    async fn crash(&mut self, audit: Audit) {
        drop(audit);
        self.writers.shutdown().await;
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(self.directory()).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    }
}

fn event(number: u64) -> Event {
    Event { change: number, ..Event::of(&local(Role::Admin), "Apply", Outcome::Allowed) }
}

async fn written(audit: &Audit, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        audit.write(event(number)).await.unwrap();
    }
}

#[tokio::test]
async fn api_11_what_was_written_is_there_after_a_crash_and_the_chain_goes_on() {
    let mut rig = Rig::new().await;
    let audit = rig.open(1 << 20, 16).await;
    written(&audit, 1..=5).await;
    rig.crash(audit).await;
    let audit = rig.open(1 << 20, 16).await;
    written(&audit, 6..=9).await;
    let report = audit.verify().await.unwrap();
    assert_eq!((report.first, report.end.seq, report.faults), (1, 9, Vec::new()));
    let changes: Vec<_> = audit.newest(4).await.unwrap().iter().map(|entry| entry.change).collect();
    assert_eq!(changes, [9, 8, 7, 6]);
    assert!(audit.problems().is_empty());
}

#[tokio::test]
async fn a_line_that_a_crash_left_half_written_was_never_acknowledged() {
    let mut rig = Rig::new().await;
    let audit = rig.open(1 << 20, 16).await;
    written(&audit, 1..=3).await;
    audit.settle().await;
    rig.crash(audit).await;
    let path = rig.files().remove(0);
    let mut torn = fs::read(&path).unwrap();
    torn.extend_from_slice(br#"{"seq":4,"at":"20"#);
    fs::write(&path, torn).unwrap();
    let audit = rig.open(1 << 20, 16).await;
    written(&audit, 4..=4).await;
    assert_eq!(audit.verify().await.unwrap().faults, Vec::<String>::new());
}

#[tokio::test]
async fn api_11_entries_that_were_removed_changed_or_cut_off_are_found() {
    let lines = |path: &PathBuf| -> Vec<String> {
        fs::read_to_string(path).unwrap().lines().map(|line| format!("{line}\n")).collect()
    };
    type Edit = fn(&mut Vec<String>);
    let edits: [(&str, Edit); 4] = [
        ("one in the middle removed", |lines| drop(lines.remove(1))),
        ("one changed", |lines| lines[1] = lines[1].replace("Apply", "Get")),
        ("the last ones cut off", |lines| lines.truncate(2)),
        ("everything removed", Vec::clear),
    ];
    for (what, edit) in edits {
        let mut rig = Rig::new().await;
        let audit = rig.open(1 << 20, 16).await;
        written(&audit, 1..=5).await;
        audit.settle().await;
        let path = rig.files().remove(0);
        let mut kept = lines(&path);
        edit(&mut kept);
        fs::write(&path, kept.concat()).unwrap();
        assert!(!audit.verify().await.unwrap().faults.is_empty(), "{what}, while it runs");
        rig.crash(audit).await;

        let audit = rig.open(1 << 20, 16).await;
        assert_eq!(audit.problems()[0].code, code::AUDIT_BROKEN.as_str(), "{what}, after a restart");
        assert_eq!(audit.newest(1).await.unwrap()[0].outcome, "broken");
        written(&audit, 6..=6).await;
        assert!(!audit.verify().await.unwrap().faults.is_empty(), "{what}: it stays to be seen");
    }
}

#[tokio::test]
async fn api_11_a_chain_that_was_computed_anew_beyond_the_anchor_is_found() {
    // In one file, and with one file for each entry.
    for file_bytes in [1 << 20, 1] {
        let mut rig = Rig::new().await;
        let audit = rig.open(file_bytes, 16).await;
        written(&audit, 1..=5).await;
        audit.settle().await;
        rig.crash(audit).await;
        let path = |first: u64| rig.directory().join(format!("{first:020}.jsonl"));
        let mut end = End::default();
        let forged: Vec<String> =
            (101..=106).map(|number| end.append(event(number), std::time::UNIX_EPOCH)).collect();
        if file_bytes == 1 {
            for (line, first) in forged.iter().zip(1..) {
                fs::write(path(first), line).unwrap();
            }
        } else {
            fs::write(path(1), forged.concat()).unwrap();
        }

        let audit = rig.open(file_bytes, 16).await;
        let problem = audit.problems().remove(0);
        assert_eq!(problem.code, code::AUDIT_BROKEN.as_str());
        assert!(problem.what.contains("entry 5 is another one"), "{problem:?}");
        assert_eq!(audit.newest(1).await.unwrap()[0].outcome, "broken");
        assert_eq!(audit.verify().await.unwrap().faults.len(), 1, "the anchor is still that of the true log");
        written(&audit, 8..=8).await;
        audit.settle().await;
        assert_eq!(audit.verify().await.unwrap().faults.len(), 1, "it stays to be seen");
    }
}

#[tokio::test]
async fn api_11_a_log_that_goes_on_beyond_its_anchor_is_whole() {
    for file_bytes in [1 << 20, 1] {
        let mut rig = Rig::new().await;
        let audit = rig.open(file_bytes, 16).await;
        written(&audit, 1..=3).await;
        audit.settle().await;
        written(&audit, 4..=6).await;
        rig.crash(audit).await;
        let audit = rig.open(file_bytes, 16).await;
        assert!(audit.problems().is_empty(), "{:?}", audit.problems());
        assert_eq!(audit.verify().await.unwrap().faults, Vec::<String>::new());
    }
}

#[tokio::test]
async fn api_11_a_whole_file_that_is_removed_is_found_and_one_that_is_too_old_is_not_missed() {
    let mut rig = Rig::new().await;
    let audit = rig.open(1, 3).await;
    written(&audit, 1..=7).await;
    audit.settle().await;
    assert_eq!(rig.files().len(), 3);
    let report = audit.verify().await.unwrap();
    assert_eq!((report.first, report.end.seq, report.faults), (5, 7, Vec::new()));
    let first = rig.files().remove(0);
    fs::remove_file(first).unwrap();
    assert_eq!(audit.verify().await.unwrap().faults.len(), 1);
}

#[tokio::test]
async fn what_cannot_be_written_is_refused_told_and_written_again_when_it_can() {
    let mut rig = Rig::new().await;
    let audit = rig.open(1, 100).await;
    written(&audit, 1..=1).await;
    let away = rig.folder.path().join("away");
    fs::rename(rig.directory(), &away).unwrap();
    let refusal = audit.write(event(2)).await.unwrap_err();
    assert_eq!(&*refusal.faults()[0].code, code::AUDIT_UNAVAILABLE.as_str());
    assert_eq!(audit.problems()[0].code, code::AUDIT_UNAVAILABLE.as_str());
    assert_eq!(rig.metrics.audit_failures.get(), 1);
    fs::rename(&away, rig.directory()).unwrap();
    written(&audit, 2..=3).await;
    assert!(audit.problems().is_empty());
    let report = audit.verify().await.unwrap();
    assert_eq!((report.end.seq, report.faults), (3, Vec::new()));
}

#[tokio::test]
async fn a_flood_of_refusals_is_a_number_and_not_a_full_log() {
    let (clock, hands) = Clock::test(std::time::SystemTime::UNIX_EPOCH);
    let mut rig = Rig { clock, ..Rig::new().await };
    let audit = rig.open(1 << 20, 16).await;
    let denied = || Event::unknown("nobody", "/x", Outcome::Denied);
    for _ in 0..1_000 {
        audit.refused(denied());
    }
    hands.advance(std::time::Duration::from_secs(1));
    audit.write(event(1)).await.unwrap();
    let newest = audit.newest(500).await.unwrap();
    assert_eq!(newest.len(), 201);
    assert_eq!((newest[0].untold, rig.metrics.audit_untold.get()), (800, 800));
}

#[tokio::test]
async fn api_11_who_reads_all_day_does_not_push_others_out_of_the_log() {
    let (clock, hands) = Clock::test(std::time::SystemTime::UNIX_EPOCH);
    let mut rig = Rig { clock, ..Rig::new().await };
    let audit = rig.open(1 << 20, 16).await;
    let read = |who: &str| Event { method: "Get".to_owned(), ..Event::unknown(who, "Get", Outcome::Allowed) };
    for _ in 0..150 {
        audit.note(read("ada")).await;
    }
    audit.note(read("bob")).await;
    hands.advance(std::time::Duration::from_secs(2));
    for _ in 0..3 {
        audit.note(read("ada")).await;
    }
    audit.write(event(1)).await.unwrap();
    let newest = audit.newest(500).await.unwrap();
    let of = |who: &str| newest.iter().filter(|entry| entry.who == who).count();
    assert_eq!((of("ada"), of("bob")), (102, 1));
    assert_eq!(newest.iter().map(|entry| entry.untold).sum::<u64>(), 51);
    assert_eq!(rig.metrics.audit_untold.get(), 51);
}

#[tokio::test]
async fn an_anchor_that_cannot_be_read_is_told() {
    let mut rig = Rig::new().await;
    let audit = rig.open(1 << 20, 16).await;
    written(&audit, 1..=2).await;
    rig.crash(audit).await;
    let key = crate::layout::audit_anchor("one");
    rig.store.put(key, "?".into(), Expected::Anything, None).await.unwrap();
    let audit = rig.open(1 << 20, 16).await;
    assert_eq!(audit.problems()[0].code, code::AUDIT_BROKEN.as_str());
}

#[tokio::test]
async fn a_log_that_is_lost_is_given_up_by_a_person_and_whole_again_behind_the_gap() {
    let mut rig = Rig::new().await;
    let audit = rig.open(4_096, 16).await;
    written(&audit, 1..=5).await;
    audit.settle().await;
    rig.crash(audit).await;
    let settings = || Settings { directory: rig.directory(), file_bytes: 4_096, files: 16 };
    let none = accept(settings(), &*rig.store, &rig.clock, "one", 7).await.unwrap();
    assert_eq!(none, None, "a whole log is left alone");

    fs::remove_dir_all(rig.directory()).unwrap();
    let audit = rig.open(4_096, 16).await;
    assert_eq!(audit.problems()[0].code, "W6055");
    written(&audit, 6..=6).await;
    audit.settle().await;
    rig.crash(audit).await;
    let audit = rig.open(4_096, 16).await;
    assert!(!audit.verify().await.unwrap().faults.is_empty(), "no restart makes it whole");
    audit.settle().await;
    rig.crash(audit).await;

    let settings = Settings { directory: rig.directory(), file_bytes: 4_096, files: 16 };
    let wrong = accept(settings, &*rig.store, &rig.clock, "one", 7).await.unwrap().unwrap();
    let audit = rig.open(4_096, 16).await;
    assert!(audit.problems().is_empty(), "{:?}", audit.problems());
    written(&audit, 8..=8).await;
    let report = audit.verify().await.unwrap();
    assert!(report.faults.is_empty(), "{:?}", report.faults);
    let newest = audit.newest(2).await.unwrap();
    assert_eq!((newest[0].change, newest[1].outcome.as_str()), (8, Outcome::Broken.word()));
    assert!(newest[1].reason.starts_with("uid 7 gave up") && newest[1].reason.contains(&wrong), "{newest:?}");
    assert!(newest[1].seq > 6, "numbers are not given twice: {newest:?}");
    assert!(rig.files().iter().any(|path| path.is_dir()), "what was left of the old one is kept");
}
