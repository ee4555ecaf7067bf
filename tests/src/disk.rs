//! A small disk of its own, that can fill up and break.
//!
//! An ext4 file system in a file, mounted where only this test and the programs that it starts afterwards see it: the
//! thread that makes the disk gets a mount namespace of its own. Nothing is left mounted when they have ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// See the module. Dropping it unmounts it.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    /// Makes a disk of `size_mib` and mounts it at `mount`, which is made too. Programs started by other threads than this
    /// one, and not by their children, do not see it.
    ///
    /// # Panics
    ///
    /// If this is not run as root, or the system has no loop devices.
    #[track_caller]
    pub fn new(mount: &Path, size_mib: u64) -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("root may have a mount namespace");
        // What is mounted and unmounted here reaches the programs that are started from here, and nobody else.
        run(&["mount", "--make-rslave", "/"]);
        run(&["mount", "--make-rshared", "/"]);
        fs::create_dir_all(mount).unwrap_or_else(|error| panic!("{}: {error}", mount.display()));
        let disk = Self { image: mount.with_extension("disk"), mount: mount.to_owned() };
        run(&["truncate", "-s", &format!("{size_mib}M"), &text(&disk.image)]);
        run(&["mkfs.ext4", "-q", "-F", "-m", "0", &text(&disk.image)]);
        disk.mount();
        disk
    }

    /// Fills it to the last byte.
    ///
    /// # Panics
    ///
    /// If something else than lack of room stops the filling.
    #[track_caller]
    pub fn fill(&self) {
        let filler = self.filler();
        // In large steps, then in small ones, until not even a file of one block has room.
        for bytes in [1 << 20, 4096, 512] {
            let mut number = 0;
            while fs::write(format!("{}-{bytes}-{number}", filler.display()), vec![0; bytes]).is_ok() {
                number += 1;
            }
        }
        let probe = fs::write(self.mount.join("probe"), vec![0; 4096]);
        let full = probe.expect_err("it is full").raw_os_error();
        assert_eq!(full, Some(nix::errno::Errno::ENOSPC as i32), "{}", self.mount.display());
    }

    /// Takes away what [`Self::fill`] has put there.
    #[track_caller]
    pub fn make_room(&self) {
        for entry in fs::read_dir(&self.mount).expect("it is mounted").flatten() {
            if entry.file_name().to_string_lossy().starts_with("filler-") {
                fs::remove_file(entry.path()).unwrap_or_else(|error| panic!("{:?}: {error}", entry.path()));
            }
        }
    }

    /// Breaks it: from now on writes fail with EIO, and it can only be read.
    ///
    /// # Panics
    ///
    /// If the kernel does not let it be broken.
    #[track_caller]
    pub fn fail(&self) {
        let device = output(&["findmnt", "-no", "SOURCE", &text(&self.mount)]);
        let device = device.trim().trim_start_matches("/dev/").to_owned();
        let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
        fs::write(&trigger, "1").unwrap_or_else(|error| panic!("{}: {error}", trigger.display()));
        assert!(fs::write(self.mount.join("probe"), "x").is_err(), "a broken disk takes no write");
    }

    /// Repairs it, as a person does: unmounted, checked, mounted again. No program may use it meanwhile.
    #[track_caller]
    pub fn repair(&self) {
        run(&["umount", &text(&self.mount)]);
        // 0 is "clean", 1 "errors were corrected".
        let checked = Command::new("e2fsck").args(["-f", "-y"]).arg(&self.image).output();
        let checked = checked.expect("e2fsck is where mkfs.ext4 is");
        assert!(matches!(checked.status.code(), Some(0 | 1)), "{checked:?}");
        self.mount();
    }

    fn mount(&self) {
        run(&["mount", "-o", "loop,errors=remount-ro", &text(&self.image), &text(&self.mount)]);
    }

    fn filler(&self) -> PathBuf {
        self.mount.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A program that still lives keeps it until it ends; then it goes with the namespace.
        let _ = Command::new("umount").arg("--lazy").arg(&self.mount).output();
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[track_caller]
fn run(words: &[&str]) {
    output(words);
}

#[track_caller]
fn output(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output =
        output.unwrap_or_else(|error| panic!("cannot start {}: {error} (tests/run installs it)", words[0]));
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
