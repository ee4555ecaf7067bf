//! The discovery service over real gRPC, with the embedded store.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, transport::Channel};
use weft_api::{
    convert::discovery::delta_from_message,
    pb::discovery::{
        Ack, BundleAck, Delta as DeltaMessage, Hello, Nack, Subscribe, discovery_client::DiscoveryClient,
        discovery_request, discovery_response::Message,
    },
    record::view_digest,
};
use weft_identity::bundle::TrustBundle;
use weft_policy::{
    model::Resource,
    snapshot::{View, ViewKey},
};

use super::*;
use crate::{
    clock::Clock,
    harness::{Plane, agent, fault},
    nodes, samples,
};

/// An agent as the tests drive it.
struct Agent {
    requests: mpsc::Sender<DiscoveryRequest>,
    messages: Streaming<DiscoveryResponse>,
    view: View,
    revision: u64,
}

fn hello(services: &[&str]) -> Hello {
    Hello {
        boot: 1,
        advertise: vec!["192.0.2.1:7443".to_owned()],
        services: services.iter().map(|name| format!("{name}.shop")).collect(),
        version: "0.1.0".to_owned(),
        ..Default::default()
    }
}

impl Agent {
    async fn open(mut client: DiscoveryClient<Channel>, hello: Hello) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(16);
        let first = DiscoveryRequest { message: Some(discovery_request::Message::Hello(hello)) };
        requests.send(first).await.unwrap();
        let messages = client.stream(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Self { requests, messages, view: View::new(), revision: 0 })
    }

    async fn say(&self, message: discovery_request::Message) {
        self.requests.send(DiscoveryRequest { message: Some(message) }).await.unwrap();
    }

    async fn next(&mut self) -> Result<Message, Status> {
        match self.messages.message().await? {
            Some(response) => Ok(response.message.unwrap()),
            None => Err(Status::cancelled("the stream has ended")),
        }
    }

    /// The next update, past everything else.
    async fn delta(&mut self) -> DeltaMessage {
        loop {
            if let Message::Delta(delta) = self.next().await.unwrap() {
                return delta;
            }
        }
    }

    /// Takes an update in force and says so.
    async fn take(&mut self) -> DeltaMessage {
        let message = self.delta().await;
        let delta = delta_from_message(message.clone()).unwrap();
        if !delta.full {
            assert_eq!(delta.from.0, self.revision);
        }
        self.view = self.view.apply(&delta).unwrap();
        assert_eq!(view_digest(&self.view).to_vec(), message.view_digest);
        self.revision = message.to;
        self.say(discovery_request::Message::Ack(Ack { revision: message.to })).await;
        message
    }

    /// Takes updates until the view is as wanted.
    async fn until(&mut self, wanted: impl Fn(&View) -> bool) {
        while !wanted(&self.view) {
            self.take().await;
        }
    }
}

fn host(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn key(name: &str) -> ViewKey {
    ViewKey::Service(samples::service_name(name, "shop"))
}

async fn change(plane: &Plane, name: &str, port: u16) {
    let mut service = samples::service(name, "shop");
    service.ports[0].number = port;
    let revision = plane.rig.put(&Resource::Service(service)).await;
    plane.rig.core.world.wait_for(revision).await;
}

/// Waits for something that happens by itself.
async fn eventually(what: impl Fn() -> bool) {
    while !what() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_agent_gets_bundle_settings_and_everything_then_differences() {
    let plane = Plane::shop().await;
    let mut agent = Agent::open(plane.agent("hosta").await, hello(&["charge"])).await.unwrap();
    let Message::Bundle(bundle) = agent.next().await.unwrap() else { panic!("the bundle comes first") };
    assert_eq!(bundle.trust_domain, "corp.example");
    let Message::Settings(settings) = agent.next().await.unwrap() else { panic!("then the settings") };
    assert_eq!(settings.reconnect_cap_ms, 1_500);
    assert!(agent.take().await.full);
    assert!(agent.view.get(&key("charge")).is_some() && agent.view.get(&key("ledger")).is_none());

    change(&plane, "charge", 81).await;
    let second = agent.take().await;
    assert!(!second.full && second.upsert_count == 1, "{second:?}");

    let newer = TrustBundle::new(samples::domain(), Vec::new(), 2).unwrap();
    plane.rig.bundle.send_replace(Arc::new(newer));
    let Message::Bundle(bundle) = agent.next().await.unwrap() else { panic!("the new bundle") };
    assert_eq!(bundle.sequence, 2);
}

#[tokio::test]
async fn subscribing_brings_a_service_and_an_unknown_one_is_told_at_once() {
    let plane = Plane::shop().await;
    let mut agent = Agent::open(plane.agent("hosta").await, hello(&["nowhere"])).await.unwrap();
    loop {
        if let Message::Unknown(unknown) = agent.next().await.unwrap() {
            assert_eq!(unknown.services, ["nowhere.shop"]);
            break;
        }
    }
    agent.take().await;
    let add = vec!["ledger.shop".to_owned()];
    agent.say(discovery_request::Message::Subscribe(Subscribe { add: add.clone(), remove: vec![] })).await;
    agent.until(|view| view.get(&key("ledger")).is_some()).await;
    agent.say(discovery_request::Message::Subscribe(Subscribe { add: vec![], remove: add })).await;
    agent.until(|view| view.get(&key("ledger")).is_none()).await;
}

#[tokio::test]
async fn a_slow_agent_has_one_un_acked_delta_and_status_shows_what_it_owes() {
    let plane = Plane::shop().await;
    let mut agent = Agent::open(plane.agent("hosta").await, hello(&["charge"])).await.unwrap();
    let first = agent.delta().await;
    for port in 1_000..1_050 {
        change(&plane, "charge", port).await;
    }
    let report = || plane.rig.core.presence.reports()[&host("hosta")].clone();
    assert_eq!((report().outstanding.unwrap().revision, report().acked), (Revision(first.to), Revision(0)));
    agent.say(discovery_request::Message::Ack(Ack { revision: first.to })).await;
    let rest = agent.delta().await;
    assert_eq!((rest.from, rest.upsert_count), (first.to, 1), "fifty changes come as one");
    agent.say(discovery_request::Message::Ack(Ack { revision: rest.to })).await;
    let newest = nodes::shown(plane.rig.core.world.catalog().revision());
    eventually(|| report().acked == newest).await;
    change(&plane, "ledger", 81).await;
    let newest = nodes::shown(plane.rig.core.world.catalog().revision());
    eventually(|| report().acked == newest).await;
}

#[tokio::test]
async fn resume_sends_only_a_delta() {
    let plane = Plane::shop().await;
    let mut before = Agent::open(plane.agent("hosta").await, hello(&["charge", "ledger"])).await.unwrap();
    before.take().await;
    let (view, revision) = (before.view.clone(), before.revision);
    eventually(|| plane.rig.core.presence.reports()[&host("hosta")].outstanding.is_none()).await;
    drop(before);
    eventually(|| plane.rig.core.presence.connected() == 0).await;
    change(&plane, "charge", 81).await;

    let digest = view_digest(&view).to_vec();
    let resume = Hello { resume_revision: revision, view_digest: digest, ..hello(&["charge", "ledger"]) };
    let mut after = Agent::open(plane.agent("hosta").await, resume.clone()).await.unwrap();
    (after.view, after.revision) = (view, revision);
    let delta = after.take().await;
    assert!(!delta.full && delta.upsert_count == 1, "{delta:?}");

    // A view that this server never gave is answered in full.
    let strange = Hello { view_digest: vec![7; 32], ..resume };
    let mut strange = Agent::open(plane.agent("hosta").await, strange).await.unwrap();
    assert!(strange.take().await.full);
}

#[tokio::test]
async fn a_nack_is_kept_for_status_and_the_next_change_is_tried_again() {
    let plane = Plane::shop().await;
    let mut agent = Agent::open(plane.agent("hosta").await, hello(&["charge"])).await.unwrap();
    let refused = agent.delta().await;
    let reason = "two routes".to_owned();
    agent.say(discovery_request::Message::Nack(Nack { revision: refused.to, reason })).await;
    eventually(|| plane.rig.core.metrics.nacks.get() == 1).await;
    let nack = plane.rig.core.presence.reports()[&host("hosta")].nack.clone().unwrap();
    assert_eq!((nack.revision.0, nack.reason.as_str()), (refused.to, "two routes"));
    change(&plane, "charge", 81).await;
    assert!(agent.take().await.full);
    eventually(|| plane.rig.core.presence.reports()[&host("hosta")].nack.is_none()).await;
}

#[tokio::test]
async fn a_newer_run_replaces_the_older_one_which_is_then_refused() {
    let plane = Plane::shop().await;
    let mut old = Agent::open(plane.agent("hosta").await, hello(&[])).await.unwrap();
    old.take().await;
    let newer = Hello { boot: 2, ..hello(&[]) };
    let mut new = Agent::open(plane.agent("hosta").await, newer).await.unwrap();
    new.take().await;
    let status = loop {
        if let Err(status) = old.next().await {
            break status;
        }
    };
    assert_eq!((status.code(), fault(&status).code.as_str()), (Code::Aborted, "W6023"));
    let status = Agent::open(plane.agent("hosta").await, hello(&[])).await.err().unwrap();
    assert_eq!((status.code(), fault(&status).code.as_str()), (Code::FailedPrecondition, "W6023"));
    let record = plane.rig.core.world.catalog().nodes()[&host("hosta")].record.clone();
    assert_eq!(record.boot, 2);
}

#[tokio::test]
async fn endpoints_follow_where_their_agent_says_it_is() {
    let plane = Plane::shop().await;
    let mut caller = Agent::open(plane.agent("hosta").await, hello(&["charge"])).await.unwrap();
    let endpoint = ViewKey::Endpoint(samples::service_name("charge", "shop"), "charge-1".parse().unwrap());
    caller.until(|view| view.get(&endpoint).is_some()).await;
    let moved = Hello { boot: 9, advertise: vec!["192.0.2.99:7443".to_owned()], ..hello(&[]) };
    let _charge = Agent::open(plane.agent("hostb").await, moved).await.unwrap();
    caller
        .until(|view| match view.get(&endpoint) {
            Some(weft_policy::snapshot::ViewObject::Endpoint(found)) => {
                found.boot == 9 && found.addresses[0].host == "192.0.2.99"
            }
            _ => false,
        })
        .await;
}

#[tokio::test]
async fn agents_are_asked_to_go_when_the_server_ends() {
    let plane = Plane::shop().await;
    let mut agent = Agent::open(plane.agent("hosta").await, hello(&[])).await.unwrap();
    agent.take().await;
    plane.rig.core.draining.cancel();
    let Message::GoAway(go) = agent.next().await.unwrap() else { panic!("it is asked to go") };
    assert_eq!(go.within_ms, 5_000);
    assert!(agent.messages.message().await.unwrap().is_none());
}

#[tokio::test]
async fn api_14_a_stream_ends_when_the_agents_certificate_does() {
    let (clock, hands) = Clock::test(samples::far() - Duration::from_secs(10));
    let plane = Plane::with_clock(clock).await;
    plane.rig.put_shop().await;
    let mut agent = Agent::open(plane.agent("hosta").await, hello(&[])).await.unwrap();
    agent.take().await;
    hands.advance(Duration::from_secs(10));
    let status = agent.next().await.unwrap_err();
    assert_eq!((status.code(), fault(&status).code.as_str()), (Code::Unauthenticated, "W3002"));
}

#[tokio::test]
async fn iss_02_a_banned_agent_is_cut_off_on_the_connection_it_has() {
    let plane = Plane::shop().await;
    let mut agent = Agent::open(plane.agent("hosta").await, hello(&[])).await.unwrap();
    agent.take().await;
    let ban = |record: &mut crate::records::NodeRecord| {
        record.banned.push("0a0b".to_owned());
        Ok(())
    };
    update(&plane.rig.core, &host("hosta"), ban).await.unwrap();
    let status = agent.next().await.unwrap_err();
    assert_eq!((status.code(), fault(&status).code.as_str()), (Code::PermissionDenied, "W3017"));
    let again = Agent::open(plane.agent("hosta").await, hello(&[])).await.err().unwrap();
    assert_eq!(again.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn whoever_is_no_agent_or_breaks_the_protocol_is_refused() {
    let plane = Plane::shop().await;
    let admin = DiscoveryClient::new(plane.channel(crate::harness::local(crate::roles::Role::Admin)).await);
    let status = Agent::open(admin, hello(&[])).await.err().unwrap();
    assert_eq!(status.code(), Code::PermissionDenied);
    let mut foreign = agent("hosta", samples::far());
    foreign.identity = Some("spiffe://evil.example/node/hosta".parse().unwrap());
    let foreign = DiscoveryClient::new(plane.channel(foreign).await);
    assert_eq!(Agent::open(foreign, hello(&[])).await.err().unwrap().code(), Code::PermissionDenied);

    let bad = [
        Hello { services: vec!["charge".to_owned()], ..hello(&[]) },
        Hello { advertise: vec!["nowhere".to_owned()], ..hello(&[]) },
        Hello { advertise: vec!["192.0.2.1:1".to_owned(); 9], ..hello(&[]) },
    ];
    for hello in bad {
        let status = Agent::open(plane.agent("hosta").await, hello).await.err().unwrap();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
    let mut agent = Agent::open(plane.agent("hosta").await, hello(&[])).await.unwrap();
    agent.say(discovery_request::Message::Ack(Ack { revision: 999_999 })).await;
    let status = loop {
        if let Err(status) = agent.next().await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn one_message_names_at_most_a_thousand_services() {
    let plane = Plane::shop().await;
    let names = |count: usize| (0..count).map(|number| format!("s{number}.shop")).collect::<Vec<_>>();
    for (count, fits) in [(999, true), (1_000, true), (1_001, false)] {
        let mut agent = Agent::open(plane.agent("hosta").await, hello(&[])).await.unwrap();
        agent.take().await;
        agent
            .say(discovery_request::Message::Subscribe(Subscribe { add: names(count), remove: vec![] }))
            .await;
        assert_eq!(agent.next().await.is_ok(), fits, "{count}");
    }
}

#[tokio::test]
async fn an_agent_says_which_bundle_it_has_and_not_one_that_it_was_not_sent() {
    let plane = Plane::shop().await;
    let mut agent = Agent::open(plane.agent("hosta").await, hello(&[])).await.unwrap();
    let Message::Bundle(bundle) = agent.next().await.unwrap() else { panic!("the bundle comes first") };
    assert!(bundle.acknowledge, "agents of this version answer");
    agent.say(discovery_request::Message::BundleAck(BundleAck { sequence: bundle.sequence })).await;
    let node: NodeName = "hosta".parse().unwrap();
    let acked = || plane.rig.core.presence.reports()[&node].bundle;
    while acked() != bundle.sequence {
        tokio::task::yield_now().await;
    }
    let unsent = BundleAck { sequence: bundle.sequence + 1 };
    agent.say(discovery_request::Message::BundleAck(unsent)).await;
    let refused = loop {
        if let Err(status) = agent.next().await {
            break status;
        }
    };
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(acked(), bundle.sequence);
}
