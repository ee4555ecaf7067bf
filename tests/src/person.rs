//! A person without privileges on a host: a user of their own with a home folder of their own.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::app;
use crate::mesh::{install_binary, weft_program};
use crate::netns::{Host, Network};
use crate::process::Program;

/// A user id that is nobody's on a usual machine.
const UID: u32 = 4242;

/// A person on one host of a network. What they leave in the background ends with the network.
#[derive(Debug)]
pub struct Person {
    network: Arc<Network>,
    host: &'static str,
    binary: PathBuf,
    home: PathBuf,
}

impl Person {
    /// A person on a host of their own, with an empty home folder.
    ///
    /// # Panics
    ///
    /// If the host or the folder cannot be made.
    #[track_caller]
    pub fn new() -> Self {
        let [person] = Self::on(["own"]);
        person
    }

    /// A person on each of `hosts`, which reach each other.
    ///
    /// # Panics
    ///
    /// As [`Person::new`].
    #[track_caller]
    pub fn on<const N: usize>(hosts: [&'static str; N]) -> [Self; N] {
        let network = Arc::new(Network::new(&hosts));
        let binary = install_binary(&network);
        hosts.map(|host| Self {
            home: make_home(network.host(host)),
            network: Arc::clone(&network),
            host,
            binary: binary.clone(),
        })
    }

    /// Their host.
    pub fn host(&self) -> &Host {
        self.network.host(self.host)
    }

    /// Their home folder.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// A `weft` command of theirs, not started.
    pub fn weft(&self, args: &[&str]) -> Program {
        weft_program(&self.binary, self.host(), &self.home).as_user(UID).args(args)
    }

    /// curl, run by them.
    pub fn curl(&self) -> Program {
        app::curl(self.host()).env("HOME", &self.home).as_user(UID)
    }
}

impl Default for Person {
    fn default() -> Self {
        Self::new()
    }
}

#[track_caller]
fn make_home(host: &Host) -> PathBuf {
    let home = host.folder().join("home");
    let made = fs::DirBuilder::new().mode(0o700).create(&home);
    made.and_then(|()| chown(&home, Some(UID), Some(UID))).expect("root may make a home for anybody");
    home
}
