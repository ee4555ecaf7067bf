//! What one agent asked for, holds, and has not answered yet.
//!
//! ```text
//! Idle ──the view differs from what is held──▶ Waiting ──ack──▶ Idle (holds the new view)
//!                                                 └─────nack──▶ Idle (holds the old one; silent until the view differs)
//! ```
//!
//! Pure. Invariant: at most one update is unanswered; changes that come meanwhile are told as one difference after it.

use std::{collections::BTreeSet, sync::Arc};

use weft_api::pb::discovery as pb;
use weft_policy::{
    name::{NodeName, ServiceName},
    snapshot::{Delta, Revision, View},
};

use super::{
    encodings::Encodings,
    fit::{TooLarge, fit},
};
use crate::{
    nodes::shown,
    view::{self, Interest},
    world::{Mark, World},
};

/// The most services that one agent may ask for; agents forget unused ones at 1,000 (decisions.md).
pub const MAX_SUBSCRIPTIONS: usize = 10_000;

/// A view that an agent has in force.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its revision.
    pub revision: Revision,
    /// Its objects.
    pub view: Arc<View>,
    /// SHA-256 of the view.
    pub digest: [u8; 32],
}

impl Held {
    fn new(revision: Revision, view: Arc<View>, encodings: &Encodings) -> Self {
        let digest = encodings.view_digest(&view);
        Self { revision, view, digest }
    }
}

/// Where a view was built, and what it is about: until something of that changes, it would come out the same.
#[derive(Debug)]
struct Built {
    at: Mark,
    about: BTreeSet<ServiceName>,
}

/// An update that was sent and is not answered.
#[derive(Debug)]
struct Waiting {
    /// What the agent holds once it accepts.
    held: Held,
    /// What it should hold; more than that, if not everything fitted into one update.
    wanted: Arc<View>,
    /// Where that was built; `None` once the agent asks for something else.
    built: Option<Built>,
}

/// What an agent did against the protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Breach {
    /// It answered an update that it was not sent, or answered one twice.
    #[error("revision {0} was answered, which is not the one that was sent")]
    NotSent(Revision),
    /// It asks for more services than it may.
    #[error("more than {MAX_SUBSCRIPTIONS} services were asked for")]
    TooManySubscriptions,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    node: NodeName,
    services: BTreeSet<ServiceName>,
    /// Services that the agent was told do not exist.
    unknown: BTreeSet<ServiceName>,
    held: Option<Held>,
    waiting: Option<Waiting>,
    /// The view that the agent refused: it is not sent again as it is.
    refused: Option<Arc<View>>,
    /// Whether the agent has been told anything on this stream.
    begun: bool,
    /// Where there was nothing to tell.
    quiet: Option<Built>,
}

impl Session {
    /// A session of an agent that asks for `services` and holds `held`, if it can go on from there.
    ///
    /// # Errors
    ///
    /// [`Breach::TooManySubscriptions`].
    pub fn new(node: NodeName, services: BTreeSet<ServiceName>, held: Option<Held>) -> Result<Self, Breach> {
        if services.len() > MAX_SUBSCRIPTIONS {
            return Err(Breach::TooManySubscriptions);
        }
        let (unknown, waiting, refused, quiet) = (BTreeSet::new(), None, None, None);
        Ok(Self { node, services, unknown, held, waiting, refused, begun: false, quiet })
    }

    /// What the agent may go on from that says it holds the view of `digest` at `revision`: `kept`, if it was left with
    /// that, or what it would be told now, if nothing has changed.
    #[must_use]
    pub fn resumed(
        world: &World,
        node: &NodeName,
        services: &BTreeSet<ServiceName>,
        (revision, digest): (Revision, &[u8]),
        kept: Option<Held>,
        encodings: &Encodings,
    ) -> Option<Held> {
        if revision == Revision(0) || revision > shown(world.catalog().revision()) {
            return None;
        }
        if let Some(kept) = kept.filter(|kept| kept.revision == revision && kept.digest == digest) {
            return Some(kept);
        }
        let now = view::build(world, &Interest::of_node(world, node, services.clone()));
        Some(Held::new(revision, Arc::new(now), encodings)).filter(|held| held.digest == digest)
    }

    /// Changes what is asked for.
    ///
    /// # Errors
    ///
    /// [`Breach::TooManySubscriptions`]; then nothing is changed.
    pub fn subscribe(
        &mut self,
        add: BTreeSet<ServiceName>,
        remove: &BTreeSet<ServiceName>,
    ) -> Result<(), Breach> {
        let mut services = self.services.clone();
        services.retain(|service| !remove.contains(service));
        // Whoever asks again wants to hear again.
        self.unknown.retain(|service| !add.contains(service));
        services.extend(add);
        if services.len() > MAX_SUBSCRIPTIONS {
            return Err(Breach::TooManySubscriptions);
        }
        self.services = services;
        self.quiet = None;
        // What is under way was made for what was asked for before: its acknowledgement is not the last word.
        if let Some(waiting) = &mut self.waiting {
            waiting.built = None;
        }
        Ok(())
    }

    /// The services that do not exist (any more) and that the agent has not been told of.
    pub fn poll_unknown(&mut self, world: &World) -> Vec<ServiceName> {
        let exists = |service: &&ServiceName| world.catalog().services().contains_key(*service);
        let unknown: BTreeSet<_> = self.services.iter().filter(|service| !exists(service)).cloned().collect();
        let news = unknown.difference(&self.unknown).cloned().collect();
        self.unknown = unknown;
        news
    }

    /// The update that is due in `world`, if one is: nothing is while another is unanswered.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] when not even what decides fits into a message.
    pub fn poll_update(
        &mut self,
        world: &World,
        encodings: &Encodings,
    ) -> Result<Option<pb::Delta>, TooLarge> {
        if self.waiting.is_some() || self.stays_quiet(world) {
            return Ok(None);
        }
        let interest = Interest::of_node(world, &self.node, self.services.clone());
        let (view, about) = view::scoped(world, &interest);
        let built = Built { at: world.mark().clone(), about };
        if self.refused.as_ref().is_some_and(|refused| **refused == view) {
            self.quiet = Some(built);
            return Ok(None);
        }
        let to = shown(world.catalog().revision());
        let delta = match &self.held {
            Some(held) if held.revision <= to => {
                let delta = Delta::diff(&held.view, &view, held.revision, to);
                if delta.is_empty() && self.begun {
                    self.quiet = Some(built);
                    return Ok(None);
                }
                delta
            }
            // Nothing is held, or it is of a store that has since been replaced by an older one.
            Some(_) | None => Delta::full(&view, to),
        };
        let held = self.held.as_ref().filter(|_| !delta.full).map(|held| &*held.view);
        let wanted = Arc::new(view);
        let (message, reached) = fit(delta, &wanted, held, encodings)?;
        let next = Held::new(to, reached, encodings);
        let message = pb::Delta { view_digest: next.digest.to_vec(), ..message };
        (self.begun, self.quiet) = (true, None);
        self.waiting = Some(Waiting { held: next, wanted, built: Some(built) });
        Ok(Some(message))
    }

    /// The agent has `revision` in force.
    ///
    /// # Errors
    ///
    /// [`Breach::NotSent`].
    pub fn ack(&mut self, revision: Revision) -> Result<(), Breach> {
        let Waiting { held, wanted, built } = self.answered(revision)?;
        // What did not fit into the update is due now.
        self.quiet = built.filter(|_| Arc::ptr_eq(&held.view, &wanted));
        self.held = Some(held);
        self.refused = None;
        Ok(())
    }

    /// The agent refuses `revision` and keeps what it has.
    ///
    /// # Errors
    ///
    /// [`Breach::NotSent`].
    pub fn nack(&mut self, revision: Revision) -> Result<(), Breach> {
        self.refused = Some(self.answered(revision)?.wanted);
        Ok(())
    }

    /// Whether nothing that this agent is told has changed since there was nothing to tell.
    fn stays_quiet(&self, world: &World) -> bool {
        self.quiet.as_ref().is_some_and(|quiet| !world.concerns(&quiet.at, &self.node, &quiet.about))
    }

    fn answered(&mut self, revision: Revision) -> Result<Waiting, Breach> {
        let fits = self.waiting.as_ref().is_some_and(|waiting| waiting.held.revision == revision);
        self.waiting.take_if(|_| fits).ok_or(Breach::NotSent(revision))
    }

    /// Whether, after [`Self::poll_update`] had nothing, the agent has what it should have.
    #[must_use]
    pub const fn is_current(&self) -> bool {
        self.held.is_some() && self.waiting.is_none() && self.refused.is_none()
    }

    /// What the agent has in force, as far as it said.
    #[must_use]
    pub const fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weft_api::{convert::discovery::delta_from_message, record::view_digest};
    use weft_policy::model::{Key, Kind, Resource};

    use super::*;
    use crate::{catalog::Catalog, liveness::Standings, samples, store::Revision as StoreRevision};

    fn world(catalog: &Catalog) -> World {
        World::derive(Arc::new(catalog.clone()), Standings::default(), None)
    }

    fn at(catalog: &mut Catalog, revision: u64) {
        catalog.apply(crate::store::EventBatch { revision: StoreRevision(revision), events: Vec::new() });
    }

    fn asking_for(services: &[&str]) -> BTreeSet<ServiceName> {
        services.iter().map(|name| samples::service_name(name, "shop")).collect()
    }

    fn taken(view: &View, update: pb::Delta) -> View {
        view.apply(&delta_from_message(update).unwrap()).unwrap()
    }

    fn session(services: &[&str], held: Option<Held>) -> Session {
        Session::new("hosta".parse().unwrap(), asking_for(services), held).unwrap()
    }

    fn poll(session: &mut Session, world: &World) -> Option<pb::Delta> {
        session.poll_update(world, &Encodings::default()).unwrap()
    }

    fn resumed(catalog: &Catalog, claim: (Revision, &[u8]), kept: Option<Held>) -> Option<Held> {
        let (node, services) = ("hosta".parse().unwrap(), asking_for(&["charge"]));
        Session::resumed(&world(catalog), &node, &services, claim, kept, &Encodings::default())
    }

    fn service(name: &str) -> Key {
        Key { kind: Kind::Service, namespace: Some("shop".parse().unwrap()), name: name.parse().unwrap() }
    }

    #[test]
    fn a_new_agent_gets_everything_and_then_differences() {
        let mut catalog = samples::shop();
        let mut session = session(&["charge"], None);
        let first = poll(&mut session, &world(&catalog)).unwrap();
        assert!(first.full);
        session.ack(Revision(first.to)).unwrap();
        assert!(poll(&mut session, &world(&catalog)).is_none(), "nothing has changed");
        catalog.put(Resource::Service(samples::service("unrelated", "shop")));
        assert!(
            poll(&mut session, &world(&catalog)).is_none(),
            "what it did not ask for is not its business"
        );
        session.subscribe(asking_for(&["ledger"]), &BTreeSet::new()).unwrap();
        let second = poll(&mut session, &world(&catalog)).unwrap();
        assert!(!second.full && second.removes.is_empty());
        assert_eq!(second.from, first.to);
    }

    #[test]
    fn what_is_asked_for_while_an_update_is_under_way_is_told_after_its_ack() {
        let world = world(&samples::shop());
        let mut session = session(&["charge"], None);
        let first = poll(&mut session, &world).unwrap().to;
        session.subscribe(asking_for(&["ledger"]), &BTreeSet::new()).unwrap();
        session.ack(Revision(first)).unwrap();
        let second = poll(&mut session, &world).expect("nothing else changes, and it is due all the same");
        assert!(
            second.upserts.iter().any(|object| String::from_utf8_lossy(&object.document).contains("ledger"))
        );
        session.ack(Revision(second.to)).unwrap();
        assert!(poll(&mut session, &world).is_none());
    }

    #[test]
    fn a_slow_agent_has_one_un_acked_delta_and_then_gets_the_rest_as_one() {
        let mut catalog = samples::shop();
        let mut session = session(&["charge", "ledger"], None);
        let first = poll(&mut session, &world(&catalog)).unwrap().to;
        for revision in 100..200 {
            at(&mut catalog, revision);
            let mut changed = samples::service("charge", "shop");
            changed.metadata.revision = revision;
            catalog.put(Resource::Service(changed));
            assert!(poll(&mut session, &world(&catalog)).is_none());
        }
        session.ack(Revision(first)).unwrap();
        let rest = poll(&mut session, &world(&catalog)).unwrap();
        assert_eq!((rest.from, rest.to, rest.upserts.len()), (first, 199, 1));
    }

    #[test]
    fn resume_sends_only_a_delta() {
        let mut catalog = samples::shop();
        at(&mut catalog, 10);
        let mut before = session(&["charge"], None);
        let sent = poll(&mut before, &world(&catalog)).unwrap();
        before.ack(Revision(sent.to)).unwrap();
        let kept = before.held().cloned();
        let claim = (Revision(sent.to), &sent.view_digest[..]);

        // Nothing has changed: an empty delta says so, also when the server has forgotten the agent.
        let held = resumed(&catalog, claim, None);
        let same = poll(&mut session(&["charge"], held), &world(&catalog)).unwrap();
        assert!(!same.full && same.upserts.is_empty() && same.removes.is_empty() && same.from == sent.to);

        // Something has: the difference, if the server remembers; everything, if not.
        at(&mut catalog, 11);
        catalog.remove(&service("charge"));
        let held = resumed(&catalog, claim, kept);
        let some = poll(&mut session(&["charge"], held), &world(&catalog)).unwrap();
        assert!(!some.full && !some.removes.is_empty());
        let held = resumed(&catalog, claim, None);
        assert!(held.is_none());

        // A digest that differs, or a revision that this store never had, is not gone on from.
        for claim in
            [(Revision(sent.to), &[0; 32][..]), (Revision(99), &sent.view_digest[..]), (Revision(0), &[][..])]
        {
            assert!(resumed(&catalog, claim, None).is_none());
        }
    }

    #[test]
    fn a_refused_update_is_not_sent_again_until_something_differs() {
        let mut catalog = samples::shop();
        at(&mut catalog, 10);
        let mut session = session(&["charge"], None);
        let first = poll(&mut session, &world(&catalog)).unwrap().to;
        session.nack(Revision(first)).unwrap();
        assert!(poll(&mut session, &world(&catalog)).is_none());
        at(&mut catalog, 11);
        catalog.remove(&service("charge"));
        let again = poll(&mut session, &world(&catalog)).unwrap();
        assert!(again.full, "it still holds nothing");
    }

    #[test]
    fn only_what_was_sent_can_be_answered_and_only_once() {
        let mut session = session(&["charge"], None);
        assert_eq!(session.ack(Revision(1)), Err(Breach::NotSent(Revision(1))));
        let sent = poll(&mut session, &world(&samples::shop())).unwrap().to;
        assert!(session.ack(Revision(sent + 1)).is_err());
        session.ack(Revision(sent)).unwrap();
        assert_eq!(session.nack(Revision(sent)), Err(Breach::NotSent(Revision(sent))));
    }

    #[test]
    fn an_unknown_service_is_told_once_and_again_when_asked_again_or_gone_again() {
        let mut catalog = samples::shop();
        let mut session = session(&["charge", "nowhere"], None);
        let told = |session: &mut Session, catalog: &Catalog| {
            let unknown = session.poll_unknown(&world(catalog));
            unknown.into_iter().map(|service| service.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(told(&mut session, &catalog), ["nowhere"]);
        assert!(told(&mut session, &catalog).is_empty());
        session.subscribe(asking_for(&["nowhere"]), &BTreeSet::new()).unwrap();
        assert_eq!(told(&mut session, &catalog), ["nowhere"]);
        catalog.remove(&service("charge"));
        assert_eq!(told(&mut session, &catalog), ["charge"]);
        catalog.put(Resource::Service(samples::service("charge", "shop")));
        assert!(told(&mut session, &catalog).is_empty());
        catalog.remove(&service("charge"));
        assert_eq!(told(&mut session, &catalog), ["charge"]);
    }

    #[test]
    fn subscriptions_are_bounded() {
        let many =
            |count: usize| (0..count).map(|n| samples::service_name(&format!("s{n}"), "shop")).collect();
        let mut session = session(&[], None);
        session.subscribe(many(MAX_SUBSCRIPTIONS), &BTreeSet::new()).unwrap();
        let more = BTreeSet::from([samples::service_name("more", "shop")]);
        assert_eq!(session.subscribe(more.clone(), &BTreeSet::new()), Err(Breach::TooManySubscriptions));
        session.subscribe(more, &asking_for(&["s1"])).unwrap();
    }

    proptest! {
        /// Whatever happens, and however slow the agent is, what it holds after the last ack is what it should be told.
        #[test]
        fn an_agent_that_answers_ends_with_the_view_of_the_world(
            steps in proptest::collection::vec((0_usize..4, 0_u8..4, any::<bool>()), 1..40)
        ) {
            let names = ["charge", "ledger", "order", "new"];
            let mut catalog = samples::shop();
            let mut session = session(&names, None);
            let mut view = View::new();
            let mut waiting = None;
            let mut now = world(&catalog);
            let mut asked = asking_for(&names);
            for (revision, (which, what, answer)) in (10_u64..).zip(steps) {
                let one = asking_for(&[names[which]]);
                if what < 2 {
                    at(&mut catalog, revision);
                }
                match what {
                    0 => {
                        let mut service = samples::service(names[which], "shop");
                        service.metadata.revision = revision;
                        catalog.put(Resource::Service(service));
                    }
                    1 => catalog.remove(&service(names[which])),
                    2 => {
                        session.subscribe(one.clone(), &BTreeSet::new()).unwrap();
                        asked.extend(one);
                    }
                    _ => {
                        session.subscribe(BTreeSet::new(), &one).unwrap();
                        asked.retain(|service| !one.contains(service));
                    }
                }
                if what < 2 {
                    now = World::derive(Arc::new(catalog.clone()), Standings::default(), Some(&now));
                }
                if waiting.is_none() {
                    waiting = poll(&mut session, &now);
                }
                if answer && let Some(update) = waiting.take() {
                    view = taken(&view, update.clone());
                    prop_assert_eq!(view_digest(&view).to_vec(), update.view_digest);
                    session.ack(Revision(update.to)).unwrap();
                }
            }
            while let Some(update) = waiting.take().or_else(|| poll(&mut session, &now)) {
                view = taken(&view, update.clone());
                session.ack(Revision(update.to)).unwrap();
            }
            let interest = Interest::of_node(&now, &"hosta".parse().unwrap(), asked);
            prop_assert_eq!(view, view::build(&now, &interest));
        }
    }
}
