//! The store over real etcd processes: the suite of all backends, then what only etcd can do.

mod access;
mod cluster;
mod faults;
mod process;
mod relay;
mod replaced;
mod sealed;

use std::time::Duration;

use tempfile::TempDir;

use self::process::Member;
use super::super::conformance::{Backend, conformance};
use super::super::draft::Bounds;
use super::*;
use crate::clock::Clock;

conformance!(Lone::new());

/// One member, a wire to it, and a server's directory.
pub(super) struct Lone {
    state: TempDir,
    member: Option<Member>,
    relay: Option<relay::Relay>,
}

impl Lone {
    pub(super) fn new() -> Self {
        Self { state: process::folder(), member: None, relay: None }
    }

    pub(super) fn settings(&self) -> Settings {
        let endpoint = self.relay.as_ref().expect("etcd was started").endpoint();
        settings(vec![endpoint], &self.state)
    }
}

/// Settings for one server, whose directory is `state`.
pub(super) fn settings(endpoints: Vec<Endpoint>, state: &TempDir) -> Settings {
    Settings {
        endpoints,
        tls: None,
        user: None,
        prefix: "/weft/test/".to_owned(),
        state_dir: state.path().join("state"),
        bounds: Bounds::default(),
        timeouts: Timeouts::default(),
    }
}

pub(super) async fn open(settings: Settings) -> Result<EtcdStore, OpenError> {
    EtcdStore::open(settings, Clock::system(), Arc::default()).await
}

impl Backend for Lone {
    const IN_HAND: bool = false;
    /// Ten of them are four seconds, and etcd looks for ended leases twice a second.
    const SECOND: Duration = Duration::from_millis(400);

    async fn open(&mut self) -> Arc<dyn Store> {
        match &mut self.member {
            Some(member) => member.restart(),
            None => {
                let member = Member::start();
                self.relay = Some(relay::Relay::to(&member.endpoint()).await);
                self.member = Some(member);
            }
        }
        Arc::new(open(self.settings()).await.unwrap())
    }

    async fn disturb(&mut self, store: Arc<dyn Store>, roll: u32) -> Arc<dyn Store> {
        match roll % 3 {
            0 => {
                drop(store);
                return self.open().await;
            }
            1 => self.member.as_mut().expect("etcd was started").restart(),
            _ => {
                let relay = self.relay.as_ref().expect("etcd was started");
                relay.set(relay::Wire::Cut);
                relay.set(relay::Wire::Whole);
            }
        }
        store
    }

    async fn pass(&mut self, _store: &dyn Store, period: Duration) {
        Clock::system().sleep(period).await;
    }
}
