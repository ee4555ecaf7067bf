//! Which etcd, as whom, and how long everything may take.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::link::{Endpoint, User};
use crate::store::draft::Bounds;

/// What a store over etcd needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The members that may be asked, at least one, in the order in which they are tried.
    pub endpoints: Vec<Endpoint>,
    /// How etcd proves itself and how this server does; needed where an endpoint speaks TLS.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// As whom the server logs in, if etcd asks for that.
    pub user: Option<User>,
    /// What every key of this mesh starts with; it ends with a slash.
    pub prefix: String,
    /// The server's own directory: what it knows of the store is kept there, so that a store that was set back is seen.
    pub state_dir: PathBuf,
    /// How much is held in memory. The bound of leases is counted by etcd's.
    pub bounds: Bounds,
    /// How long everything may take.
    pub timeouts: Timeouts,
}

/// How long the parts of the work may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// One member, from its name to being logged in; 2 s, twice an election, so that a member that is dead is passed
    /// over in the time that a leader takes to be found.
    pub dial: Duration,
    /// One answer of etcd; 3 s. Beyond that the member is taken for dead, and another is asked.
    pub answer: Duration,
    /// A write, or finding out what became of it, with all repetitions; 10 s, the longest that an election takes.
    pub write: Duration,
    /// How often a silent member is asked for a sign of life, and how long it has to answer; 2 s.
    pub keep_alive: Duration,
    /// How often everything is compared with etcd, in case that a watch lost an event; 5 min (security.md, ETCD-02).
    pub reconcile: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            dial: seconds(2),
            answer: seconds(3),
            write: seconds(10),
            keep_alive: seconds(2),
            reconcile: seconds(300),
        }
    }
}
