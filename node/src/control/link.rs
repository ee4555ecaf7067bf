//! The connection to a server: one channel at a time, shared by everything that asks the control plane.
//!
//! Owns connecting, to any of the servers and with back-off, and who may know of it. Losing the link stops no flow.
//!
//! Servers are tried in a random order, so that agents spread over them; one that was lost, or asked the agent to go, comes
//! last.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{Rng, seq::SliceRandom as _};
use tokio::sync::watch;
use tonic::transport::Channel;
use weft_api::{
    channel::{self, ALPN_H2, ConnectError},
    fault::Fault,
};
use weft_identity::{
    spiffe::TrustDomain,
    tls::{BundleSlot, ExpectedPeer, SvidSlot, client_config},
};
use weft_policy::{code, model::HostPort};

use crate::join::clock_fault;

/// First back-off ceiling of reconnecting (decisions.md, endpoints and leases).
pub(crate) const BACKOFF_BASE: Duration = Duration::from_millis(100);
/// Last back-off ceiling, unless the server's hint says otherwise.
pub(crate) const BACKOFF_CAP: Duration = Duration::from_millis(1_500);

/// The link as others see it.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkState {
    /// The channel, while there is one whose discovery stream is up.
    pub(crate) channel: Option<Channel>,
    /// Whom it leads to.
    pub(crate) server: String,
    /// Why there is none, for status and logs.
    pub(crate) why_not: String,
}

/// Who can reach a server, and how.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    servers: Arc<[HostPort]>,
    told: Arc<Mutex<Told>>,
    trust_domain: TrustDomain,
    slot: SvidSlot,
    bundles: BundleSlot,
    state: Arc<watch::Sender<LinkState>>,
}

/// What the last server said of the servers.
#[derive(Debug, Default)]
struct Told {
    /// Its own addresses.
    own: Vec<HostPort>,
    /// Those of every server.
    all: Vec<HostPort>,
    /// Whether it comes last when another is looked for.
    is_left: bool,
}

/// The most servers of which the agent is told: more than anybody runs, and no message makes it dial a thousand.
const MAX_TOLD: usize = 64;

impl Link {
    /// A link that is not up yet.
    pub(crate) fn new(
        servers: Vec<HostPort>,
        trust_domain: TrustDomain,
        slot: SvidSlot,
        bundles: BundleSlot,
    ) -> Self {
        let state = Arc::new(watch::Sender::new(LinkState::default()));
        Self { servers: servers.into(), told: Arc::default(), trust_domain, slot, bundles, state }
    }

    /// Takes in what the server says of itself and of the others. What cannot be read is left out.
    pub(crate) fn tell(&self, own: &[String], all: &[String]) {
        let read =
            |texts: &[String]| texts.iter().take(MAX_TOLD).filter_map(|text| text.parse().ok()).collect();
        let (own, all): (Vec<HostPort>, Vec<HostPort>) = (read(own), read(all));
        let known = self.servers.iter().chain(&all).filter(|server| own.contains(server));
        let name = known.map(ToString::to_string).next();
        *self.told() = Told { own, all, is_left: false };
        if let Some(name) = name {
            self.state.send_if_modified(|state| std::mem::replace(&mut state.server, name.clone()) != name);
        }
    }

    /// Has another server tried before the last one.
    pub(crate) fn leave(&self) {
        self.told().is_left = true;
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whom to try, in that order.
    fn candidates(&self, rng: &mut impl Rng) -> Vec<HostPort> {
        let told = self.told();
        let mut candidates = self.servers.to_vec();
        for server in &told.all {
            if !candidates.contains(server) {
                candidates.push(server.clone());
            }
        }
        candidates.shuffle(rng);
        if told.is_left {
            candidates.sort_by_key(|server| told.own.contains(server));
        }
        candidates
    }

    /// Where the servers are, as configured or as the join said.
    pub(crate) fn servers(&self) -> &[HostPort] {
        &self.servers
    }

    /// The state now.
    pub(crate) fn state(&self) -> LinkState {
        self.state.borrow().clone()
    }

    /// Whether a server is connected.
    pub(crate) fn is_up(&self) -> bool {
        self.state.borrow().channel.is_some()
    }

    /// The channel, as soon as there is one. Cancel-safe.
    pub(crate) async fn channel(&self) -> Channel {
        let mut changes = self.state.subscribe();
        loop {
            if let Some(channel) = changes.borrow_and_update().channel.clone() {
                return channel;
            }
            if changes.changed().await.is_err() {
                // The link is gone because the agent ends; whoever waits is about to be dropped.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Tries every server once; tells which ones.
    pub(crate) async fn connect(&self, mut rng: impl Rng) -> Result<(Channel, String), ConnectError> {
        let servers = self.candidates(&mut rng);
        let expected = ExpectedPeer::AnyServerOf(self.trust_domain.clone());
        let tls = client_config(Some(self.slot.clone()), self.bundles.clone(), expected, &[ALPN_H2]);
        let name = crate::join::server_name(&servers);
        let channel = channel::connect(&servers, Arc::new(tls), &name).await?;
        let mut servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
        servers.sort();
        Ok((channel, servers.join(",")))
    }

    /// Notes each change of the link from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }

    /// Tells everybody that the channel can be used.
    pub(crate) fn up(&self, channel: Channel, server: String) {
        self.state.send_replace(LinkState { channel: Some(channel), server, why_not: String::new() });
    }

    /// Tells everybody that there is none.
    pub(crate) fn down(&self, why_not: String) {
        self.state.send_modify(|state| {
            state.channel = None;
            state.why_not = why_not;
        });
    }
}

/// Why no server is connected, as a person meets it.
pub(crate) fn no_server(error: &ConnectError) -> Fault {
    let code = match clock_fault(error) {
        Some(code) => code,
        None if error.is_tls_refusal() => code::WRONG_SERVER,
        None => code::SERVER_UNREACHABLE,
    };
    Fault::new(code, error.to_string())
}

/// The wait before attempt `failures` (counted from 1): uniform up to a ceiling that doubles from 100 ms to `cap`.
pub(crate) fn back_off(failures: u32, cap: Duration, rng: &mut impl Rng) -> Duration {
    let ceiling = BACKOFF_BASE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(cap);
    ceiling.mul_f64(rng.random_range(0.0..=1.0))
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    fn link(servers: &[&str]) -> Link {
        let servers = servers.iter().map(|text| text.parse().unwrap()).collect();
        let bundles = BundleSlot::new(weft_identity::bundle::TrustBundles::default());
        Link::new(servers, "corp.example".parse().unwrap(), SvidSlot::empty(), bundles)
    }

    #[test]
    fn servers_are_tried_at_random_and_the_one_that_was_left_comes_last() {
        let link = link(&["a:1", "b:1"]);
        let mut rng = StdRng::seed_from_u64(7);
        let firsts = |rng: &mut StdRng| -> std::collections::BTreeSet<String> {
            (0..50).map(|_| link.candidates(rng)[0].to_string()).collect()
        };
        assert_eq!(firsts(&mut rng).len(), 2);
        link.tell(&["b:1".to_owned()], &["b:1".to_owned(), "c:1".to_owned(), "nowhere".to_owned()]);
        assert_eq!(firsts(&mut rng).len(), 3, "one that was told is tried as well");
        assert_eq!(link.state().server, "b:1");
        link.leave();
        for _ in 0..50 {
            let last = link.candidates(&mut rng).pop().unwrap();
            assert_eq!(last.to_string(), "b:1");
        }
        link.tell(&["c:1".to_owned()], &vec!["x:1".to_owned(); 1_000]);
        assert_eq!(link.candidates(&mut rng).len(), 3, "a list without end is not taken in");
    }

    #[test]
    fn waits_double_up_to_the_cap_with_full_jitter() {
        let mut rng = StdRng::seed_from_u64(7);
        for failures in 1..40 {
            let ceiling = Duration::from_millis(100 * 2_u64.pow(failures.min(5) - 1)).min(BACKOFF_CAP);
            let wait = back_off(failures, BACKOFF_CAP, &mut rng);
            assert!(wait <= ceiling.max(BACKOFF_CAP), "{failures}: {wait:?}");
        }
        let longest = (0..200).map(|_| back_off(9, BACKOFF_CAP, &mut rng)).max().unwrap();
        assert!(longest > BACKOFF_CAP / 2 && longest <= BACKOFF_CAP);
    }
}
