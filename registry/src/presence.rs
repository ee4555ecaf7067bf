//! Which agents are connected, and what they said last.
//!
//! Those that other servers of the mesh have are joined in ([`crate::replicas`]). Lives in memory only: after a restart everybody is unknown until they come back, and [`crate::liveness`] draws no
//! conclusion from that for a while.
//!
//! Invariant: of one node, one connection at a time is current, that of the newest boot; the others are told.

mod elsewhere;
mod lacking;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_policy::{name::NodeName, snapshot::Revision};

use self::elsewhere::Elsewhere;
use crate::{clock::Clock, replicas};

/// The most agents that one server keeps in mind (architecture.md 13).
pub const MAX_AGENTS: usize = 25_000;
/// The longest reason of a Nack that is kept, in characters.
const MAX_REASON_CHARS: usize = 1_024;

/// Whether an agent is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Link {
    /// It is connected, since that uptime of the server.
    Up(Duration),
    /// It was lost at that uptime.
    Lost(Duration),
}

/// What liveness needs to know of an agent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AgentState {
    /// Its newest boot number.
    pub boot: u64,
    /// Whether it is there.
    pub link: Link,
}

/// The agents that connected since the server started. Shared between readers.
pub type Agents = Arc<BTreeMap<NodeName, AgentState>>;

/// What an agent refused, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Nack {
    /// The revision that it refused.
    pub revision: Revision,
    /// Its words.
    pub reason: String,
}

/// An update that an agent has not answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Outstanding {
    /// The revision it leads to.
    pub revision: Revision,
    /// The uptime at which it was sent.
    pub since: Duration,
}

/// What an agent said last, for people.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// Whether it is there, and its boot number.
    pub state: AgentState,
    /// The newest revision that it has in force.
    pub acked: Revision,
    /// The sequence of the newest trust bundle that it has in force, as far as it said on this connection.
    pub bundle: u64,
    /// What it was sent and has not answered.
    pub outstanding: Option<Outstanding>,
    /// What it refused, until it accepts something newer.
    pub nack: Option<Nack>,
    /// The version it runs.
    pub version: String,
    /// When it was heard last.
    pub last_seen: SystemTime,
}

/// Why an agent may not connect.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotAdmitted {
    /// A newer run of the agent is known: two use one state directory or a copy of it.
    #[error("boot {boot} is older than {newest}")]
    OldBoot {
        /// What it said.
        boot: u64,
        /// What is known.
        newest: u64,
    },
    /// The server has as many agents as it takes.
    #[error("this server has {MAX_AGENTS} agents")]
    Full,
}

/// See the module. A clone is the same presence.
#[derive(Clone, Debug)]
pub struct Presence {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    clock: Clock,
    seats: Mutex<Seats>,
    /// Those of this server.
    own: watch::Sender<Agents>,
    /// Those of all servers.
    agents: watch::Sender<Agents>,
}

#[derive(Debug, Default)]
struct Seats {
    by_node: BTreeMap<NodeName, Seat>,
    next: u64,
    elsewhere: Elsewhere,
}

#[derive(Debug)]
struct Seat {
    report: Report,
    /// Which connection is the current one, and how it is told that it no longer is.
    connection: u64,
    replaced: CancellationToken,
    /// Within which time it is asked to be gone, once it is.
    asked: watch::Sender<Option<Duration>>,
}

impl Presence {
    /// Nobody is there yet.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let (own, agents) = (watch::Sender::default(), watch::Sender::default());
        let inner = Inner { clock, seats: Mutex::default(), own, agents };
        Self { inner: Arc::new(inner) }
    }

    /// Takes a connection of `node` in; the one that it has already is told to end.
    ///
    /// # Errors
    ///
    /// [`NotAdmitted::OldBoot`] when a newer run is known here; [`NotAdmitted::Full`].
    pub fn connect(&self, node: &NodeName, boot: u64, version: String) -> Result<Connected, NotAdmitted> {
        let mut seats = self.lock();
        let known = seats.by_node.get(node);
        match known {
            Some(seat) if seat.report.state.boot > boot => {
                return Err(NotAdmitted::OldBoot { boot, newest: seat.report.state.boot });
            }
            None if seats.by_node.len() >= MAX_AGENTS => return Err(NotAdmitted::Full),
            Some(_) | None => {}
        }
        if let Some(seat) = known {
            seat.replaced.cancel();
        }
        // The same run that comes back was never gone for as long as its endpoints are concerned.
        let link = Link::Up(self.inner.clock.uptime());
        let report = Report {
            state: AgentState { boot, link },
            acked: known.map_or(Revision(0), |seat| seat.report.acked),
            bundle: 0,
            outstanding: None,
            nack: known.and_then(|seat| seat.report.nack.clone()),
            version,
            last_seen: self.inner.clock.now(),
        };
        let connection = seats.next;
        seats.next += 1;
        let (replaced, asked) = (CancellationToken::new(), watch::Sender::new(None));
        let asks = asked.subscribe();
        let seat = Seat { report, connection, replaced: replaced.clone(), asked };
        seats.by_node.insert(node.clone(), seat);
        self.publish(&seats);
        drop(seats);
        Ok(Connected { presence: self.clone(), node: node.clone(), connection, replaced, asked: asks })
    }

    /// Takes in which agents are connected to other servers.
    pub fn elsewhere(&self, seats: BTreeMap<NodeName, replicas::Seat>) {
        let mut own = self.lock();
        own.elsewhere.now(seats, self.inner.clock.uptime());
        self.publish(&own);
    }

    /// The agents that are connected to other servers, with where each is.
    #[must_use]
    pub fn connected_elsewhere(&self) -> BTreeMap<NodeName, replicas::Seat> {
        let seats = self.lock();
        let there = seats.elsewhere.connected();
        there.map(|(node, seat)| (node.clone(), seat.clone())).collect()
    }

    /// Asks up to `count` agents that are connected here to use another server, each at a moment of its own `within` a
    /// time. Returns how many.
    pub fn ask_to_go(&self, count: usize, within: Duration) -> usize {
        let seats = self.lock();
        let here = seats.by_node.values().filter(|seat| matches!(seat.report.state.link, Link::Up(_)));
        let mut asked = 0;
        for seat in here.filter(|seat| seat.asked.borrow().is_none()).take(count) {
            seat.asked.send_replace(Some(within));
            asked += 1;
        }
        asked
    }

    /// The agents that connected since the start, as they are now.
    #[must_use]
    pub fn agents(&self) -> Agents {
        self.inner.agents.borrow().clone()
    }

    /// Tells whenever an agent comes, goes or restarts.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Agents> {
        self.inner.agents.subscribe()
    }

    /// Tells whenever an agent of this server comes, goes or restarts.
    #[must_use]
    pub fn watch_own(&self) -> watch::Receiver<Agents> {
        self.inner.own.subscribe()
    }

    /// What each agent of this server said last.
    #[must_use]
    pub fn reports(&self) -> BTreeMap<NodeName, Report> {
        let seats = self.lock();
        seats.by_node.iter().map(|(node, seat)| (node.clone(), seat.report.clone())).collect()
    }

    /// How many agents are connected here.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.inner.own.borrow().values().filter(|agent| matches!(agent.link, Link::Up(_))).count()
    }

    fn publish(&self, seats: &Seats) {
        let states = seats.by_node.iter().map(|(node, seat)| (node.clone(), seat.report.state));
        let own: BTreeMap<_, _> = states.collect();
        let all = seats.elsewhere.join(own.clone());
        self.inner.own.send_if_modified(|before| {
            let changed = **before != own;
            if changed {
                *before = Arc::new(own);
            }
            changed
        });
        self.inner.agents.send_replace(Arc::new(all));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seats> {
        // Nothing under the lock can panic half-way; should it, what is there is still whole.
        self.inner.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One admitted connection of an agent. Dropping it says that the agent is lost, unless it was replaced.
#[derive(Debug)]
pub struct Connected {
    presence: Presence,
    node: NodeName,
    connection: u64,
    replaced: CancellationToken,
    asked: watch::Receiver<Option<Duration>>,
}

impl Connected {
    /// Tells, once, within which time the agent is to use another server.
    #[must_use]
    pub fn asked(&self) -> watch::Receiver<Option<Duration>> {
        self.asked.clone()
    }

    /// Ends when a newer connection of the same node was admitted.
    #[must_use]
    pub const fn replaced(&self) -> &CancellationToken {
        &self.replaced
    }

    /// Notes that `revision` was sent.
    pub fn sent(&self, revision: Revision) {
        let since = self.presence.inner.clock.uptime();
        self.note(|report| report.outstanding = Some(Outstanding { revision, since }));
    }

    /// Notes that the agent has `revision` in force. Says how long that took, if it was sent an update for it.
    pub fn acked(&self, revision: Revision) -> Option<Duration> {
        let now = self.presence.inner.clock.uptime();
        let mut took = None;
        self.note(|report| {
            report.acked = revision;
            took = report.outstanding.take().map(|sent| now.saturating_sub(sent.since));
            report.nack = None;
        });
        took
    }

    /// Notes that the agent has the trust bundle of `sequence` in force.
    pub fn has_bundle(&self, sequence: u64) {
        self.note(|report| report.bundle = report.bundle.max(sequence));
        // Other servers wait for it as well.
        self.presence.inner.own.send_modify(|_| ());
    }

    /// Notes that the agent refused `revision`.
    pub fn nacked(&self, revision: Revision, reason: &str) {
        let visible = reason.chars().filter(|letter| !letter.is_control());
        let reason = visible.take(MAX_REASON_CHARS).collect();
        self.note(|report| {
            report.outstanding = None;
            report.nack = Some(Nack { revision, reason });
        });
    }

    fn note(&self, change: impl FnOnce(&mut Report)) {
        let mut seats = self.presence.lock();
        if let Some(seat) =
            seats.by_node.get_mut(&self.node).filter(|seat| seat.connection == self.connection)
        {
            seat.report.last_seen = self.presence.inner.clock.now();
            change(&mut seat.report);
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut seats = self.presence.lock();
        if let Some(seat) =
            seats.by_node.get_mut(&self.node).filter(|seat| seat.connection == self.connection)
        {
            seat.report.state.link = Link::Lost(self.presence.inner.clock.uptime());
            seat.report.outstanding = None;
            self.presence.publish(&seats);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence() -> (Presence, crate::clock::TestClock) {
        let (clock, hands) = Clock::test(SystemTime::UNIX_EPOCH);
        (Presence::new(clock), hands)
    }

    fn node() -> NodeName {
        "hostb".parse().unwrap()
    }

    fn link(presence: &Presence) -> Link {
        presence.agents()[&node()].link
    }

    #[test]
    fn a_newer_connection_replaces_the_older_one_and_its_end_does_not_lose_the_agent() {
        let (presence, hands) = presence();
        let first = presence.connect(&node(), 3, String::new()).unwrap();
        hands.advance(Duration::from_secs(1));
        let second = presence.connect(&node(), 3, String::new()).unwrap();
        assert!(first.replaced().is_cancelled() && !second.replaced().is_cancelled());
        drop(first);
        assert_eq!(link(&presence), Link::Up(Duration::from_secs(1)));
        drop(second);
        assert_eq!(link(&presence), Link::Lost(Duration::from_secs(1)));
    }

    #[test]
    fn agents_are_asked_to_go_once_each_and_no_more_than_are_too_many() {
        let (presence, _hands) = presence();
        let names = ["hosta", "hostb", "hostc"].map(|name| name.parse::<NodeName>().unwrap());
        let all = names.map(|name| presence.connect(&name, 1, String::new()).unwrap());
        assert_eq!(presence.ask_to_go(2, Duration::from_secs(3)), 2);
        let asked = all.each_ref().map(|agent| *agent.asked().borrow());
        assert_eq!(asked, [Some(Duration::from_secs(3)), Some(Duration::from_secs(3)), None]);
        assert_eq!(presence.ask_to_go(9, Duration::from_secs(3)), 1, "two were asked already");
    }

    #[test]
    fn an_older_boot_is_not_admitted() {
        let (presence, _hands) = presence();
        let _newer = presence.connect(&node(), 3, String::new()).unwrap();
        let refused = presence.connect(&node(), 2, String::new()).unwrap_err();
        assert_eq!(refused, NotAdmitted::OldBoot { boot: 2, newest: 3 });
    }

    #[test]
    fn acks_and_nacks_of_the_current_connection_are_kept_and_reasons_are_made_safe() {
        let (presence, hands) = presence();
        let old = presence.connect(&node(), 3, String::new()).unwrap();
        let now = presence.connect(&node(), 4, "0.1.0".to_owned()).unwrap();
        now.sent(Revision(7));
        old.acked(Revision(99));
        assert_eq!(presence.reports()[&node()].outstanding.unwrap().revision, Revision(7));
        now.nacked(Revision(7), &format!("\x1b[31m{}", "x".repeat(5_000)));
        let nack = presence.reports()[&node()].nack.clone().unwrap();
        assert_eq!((nack.revision, nack.reason.chars().count()), (Revision(7), 1_024));
        assert!(nack.reason.starts_with("[31m"));
        now.sent(Revision(8));
        hands.advance(Duration::from_secs(2));
        assert_eq!(now.acked(Revision(8)), Some(Duration::from_secs(2)));
        let report = presence.reports()[&node()].clone();
        assert_eq!((report.acked, report.nack, report.outstanding), (Revision(8), None, None));
    }
}
