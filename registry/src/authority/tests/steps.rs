//! Steps in the life of the roots, as people take them, and what a crash between two writes leaves.

use tonic::Code;
use weft_api::pb::management::{RotateAuthorityRequest, RotateAuthorityResponse};
use weft_identity::ca::{CaSettings, RootState};

use super::*;
use crate::{presence::Connected, refusal::Refusal, samples};

/// A server's authority with agents that listen to it.
struct Server {
    rig: samples::Rig,
    hands: TestClock,
    authority: Arc<InstanceAuthority>,
}

impl Server {
    async fn start() -> Self {
        let (clock, hands) = Clock::test(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let rig = samples::Rig::with_clock(clock).await;
        let authority = open(&rig).await;
        // It has served long enough: who is not there is not on the way back.
        hands.advance(crate::liveness::GRACE);
        Self { rig, hands, authority }
    }

    /// The server after a crash.
    async fn restart(&mut self) {
        self.authority = open(&self.rig).await;
    }

    fn agent(&self, node: &str) -> Connected {
        self.rig.core.presence.connect(&node.parse().unwrap(), 1, String::new()).unwrap()
    }

    fn has_all(&self, agents: &[&Connected]) {
        agents.iter().for_each(|agent| agent.has_bundle(self.sequence()));
    }

    fn sequence(&self) -> u64 {
        self.authority.bundle().borrow().sequence()
    }

    async fn rotate(&self, step: &str) -> Result<RotateAuthorityResponse, Refusal> {
        self.authority.rotate(RotateAuthorityRequest { step: step.to_owned(), ..Default::default() }).await
    }

    async fn forced(&self, step: &str) -> Result<RotateAuthorityResponse, Refusal> {
        let request = RotateAuthorityRequest { step: step.to_owned(), force: true, ..Default::default() };
        self.authority.rotate(request).await
    }

    fn states(&self) -> Vec<String> {
        self.authority.status().roots.into_iter().map(|root| root.state).collect()
    }

    /// What the holder of `id` gets, in the place of what it had.
    async fn issue(&self, id: &SpiffeId, replaces: Option<&IssuedSvid>) -> IssuedSvid {
        let (_, csr) = SigningRequest::create().unwrap();
        let (request, now) = (SigningRequest::parse(&csr).unwrap(), self.rig.core.clock.now());
        let issued = self.authority.sign(&request, id, DAY, now).unwrap();
        let record = Issuance::new(&request, id, &issued, now, id.to_string());
        let record = record.replacing(replaces.map(|svid| svid.serial.clone()));
        self.rig.core.store.txn(Vec::new(), record.ops()).await.unwrap();
        issued
    }
}

async fn open(rig: &samples::Rig) -> Arc<InstanceAuthority> {
    let core = &rig.core;
    let (domain, folder) = (samples::domain(), rig.directory.path());
    let opened = InstanceAuthority::open(&*core.store, &core.clock, folder, &domain, Issuing::default());
    let authority = Arc::new(opened.await.unwrap());
    authority.listen_to(Arc::clone(&core.store), core.presence.clone(), core.world.clone());
    authority
}

fn workload() -> SpiffeId {
    format!("spiffe://{}/ns/shop/sa/charge", samples::domain()).parse().unwrap()
}

#[track_caller]
fn refused(answer: Result<RotateAuthorityResponse, Refusal>, id: CodeId) -> String {
    let refusal = answer.unwrap_err();
    let fault = &refusal.faults()[0];
    assert_eq!((refusal.code(), &*fault.code), (Code::FailedPrecondition, id.as_str()), "{fault}");
    assert!(!fault.fix.is_empty());
    format!("{} {}", fault.what, fault.why.join(" "))
}

#[tokio::test]
async fn a_rotation_is_taken_step_by_step_and_each_says_what_it_waits_for() {
    let server = Server::start().await;
    let (hosta, hostb) = (server.agent("hosta"), server.agent("hostb"));
    server.has_all(&[&hosta, &hostb]);
    let (id, first) = (workload(), hex(&server.authority.ca().roots()[0].fingerprint));
    let under_first = server.issue(&id, None).await;
    let (before, own) = (server.sequence(), serial(&server.authority));

    let prepared = server.rotate("").await.unwrap();
    assert_eq!((prepared.step.as_str(), prepared.next.as_str()), ("prepare", "activate"));
    assert_eq!((server.sequence(), server.states()), (before + 1, vec!["active".into(), "prepared".into()]));
    server.has_all(&[&hosta]);
    let waits = refused(server.rotate("").await, code::ROTATION_WAITS);
    assert!(waits.contains("hostb") && !waits.contains("hosta"), "{waits}");
    assert_eq!(server.authority.status().roots[1].missing, ["hostb"]);
    assert_eq!(serial(&server.authority), own);

    server.has_all(&[&hostb]);
    let activated = server.rotate("").await.unwrap();
    assert_eq!((activated.step.as_str(), activated.root), ("activate", prepared.root));
    assert_ne!(serial(&server.authority), own, "the server itself is under the new root at once");
    assert_eq!(server.sequence(), before + 1, "the bundle is the same");

    let tainted = server.rotate("").await.unwrap();
    assert_eq!((tainted.step.as_str(), tainted.root.as_str()), ("taint", first.as_str()));
    let bundle = server.authority.bundle().borrow().clone();
    assert_eq!((bundle.sequence(), bundle.tainted().len()), (before + 2, 1));
    assert!(bundle.taints(&under_first.chain));

    let waits = refused(server.rotate("").await, code::ROTATION_WAITS);
    assert!(waits.contains("move their flows"), "{waits}");
    server.hands.advance(Duration::from_secs(90));
    let waits = refused(server.rotate("").await, code::ROTATION_WAITS);
    assert!(waits.contains(&id.to_string()), "{waits}");
    let shown = server.authority.show().await.unwrap().authority.unwrap();
    assert_eq!(shown.roots.iter().map(|root| root.unrenewed).collect::<Vec<_>>(), [0, 1]);
    server.issue(&id, Some(&under_first)).await;
    let revoked = server.rotate("").await.unwrap();
    assert_eq!((revoked.step.as_str(), revoked.next.as_str()), ("revoke", ""));
    let bundle = server.authority.bundle().borrow().clone();
    assert_eq!((bundle.sequence(), bundle.roots().len(), bundle.tainted().len()), (before + 3, 1, 0));
    assert_eq!(server.states(), ["active", "revoked"]);
}

#[tokio::test]
async fn force_takes_a_step_that_waits_and_warns() {
    let server = Server::start().await;
    let _silent = server.agent("hosta");
    server.issue(&workload(), None).await;
    server.rotate("prepare").await.unwrap();
    refused(server.rotate("activate").await, code::ROTATION_WAITS);
    let warned = server.forced("activate").await.unwrap().warnings;
    assert!(warned[0].contains("hosta") && warned[0].contains(code::ROTATION_FORCED.as_str()), "{warned:?}");
    server.rotate("taint").await.unwrap();
    refused(server.rotate("revoke").await, code::ROTATION_WAITS);
    server.forced("revoke").await.unwrap();
}

#[tokio::test]
async fn an_activation_is_taken_back_and_steps_that_do_not_fit_are_refused() {
    let server = Server::start().await;
    for step in ["activate", "taint", "revoke", "rollback"] {
        refused(server.forced(step).await, code::NO_SUCH_STEP);
    }
    let first = server.authority.status().roots[0].fingerprint.clone();
    server.rotate("prepare").await.unwrap();
    server.rotate("activate").await.unwrap();
    assert_eq!(server.rotate("rollback").await.unwrap().root, first);
    for (step, root, id) in [
        ("taint", first.as_str(), code::NO_SUCH_STEP),
        ("revoke", &first[..8], code::NO_SUCH_STEP),
        ("taint", "00000000", code::NO_SUCH_STEP),
    ] {
        let (step, root) = (step.to_owned(), root.to_owned());
        let request = RotateAuthorityRequest { step, root, ..Default::default() };
        refused(server.authority.rotate(request).await, id);
    }
    for (step, root) in [("taint", "0000000"), ("burn", "")] {
        let (step, root) = (step.to_owned(), root.to_owned());
        let request = RotateAuthorityRequest { step, root, ..Default::default() };
        let refusal = server.authority.rotate(request).await.unwrap_err();
        assert_eq!(refusal.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn agents_on_their_way_back_to_a_server_that_restarted_are_waited_for() {
    let mut server = Server::start().await;
    server.rig.put_shop().await;
    let hosta = server.agent("hosta");
    server.rotate("prepare").await.unwrap();
    server.restart().await;
    server.has_all(&[&hosta]);
    let waits = refused(server.rotate("activate").await, code::ROTATION_WAITS);
    assert!(waits.contains("hostb") && !waits.contains("hosta"), "{waits}");
    server.hands.advance(crate::liveness::GRACE);
    let warned = server.rotate("activate").await.unwrap().warnings;
    assert!(warned[0].contains("hostb"), "it is told who was away: {warned:?}");
}

#[tokio::test]
async fn the_schedule_waits_for_every_agent_and_not_for_ever() {
    let server = Server::start().await;
    let hosta = server.agent("hosta");
    let store = Arc::clone(&server.rig.core.store);
    let states = async |days: u32| {
        server.hands.advance(days * DAY);
        server.authority.maintain(&*store).await.unwrap();
        server.states().join(" ")
    };
    assert_eq!(states(334).await, "active");
    assert_eq!(states(1).await, "active prepared");
    assert_eq!(states(10).await, "active prepared", "the agent is silent");
    server.has_all(&[&hosta]);
    assert_eq!(states(0).await, "active old");

    assert_eq!(states(335).await, "active prepared", "and again a year later, when the first root is gone");
    assert_eq!(states(12).await, "active prepared");
    assert_eq!(states(1).await, "active old", "a week before the end nobody is waited for");
}

/// Every point between two writes of each step: what stands on disk when the process ends, and the bundle of before.
#[tokio::test]
async fn a_start_completes_what_a_crash_has_left() {
    let mut server = Server::start().await;
    type Change = fn(&mut CertificateAuthority, SystemTime);
    let steps: [(Change, &str); 5] = [
        (|ca, now| assert!(ca.prepare(now).is_ok()), "active prepared"),
        (|ca, now| assert!(ca.activate(0, false, now).is_ok()), "active old"),
        (|ca, now| assert!(ca.roll_back(now).is_ok()), "active old"),
        (
            |ca, now| {
                let old = ca.roots().into_iter().find(|root| root.state == RootState::Old).unwrap();
                ca.taint(&old.fingerprint, now).unwrap();
            },
            "active tainted",
        ),
        (
            |ca, now| {
                let tainted = ca.tainted_roots()[0];
                ca.revoke(&tainted, 0, false, now).unwrap();
            },
            "active revoked",
        ),
    ];
    for (change, after) in steps {
        let (before, path) = (server.sequence(), disk::path(server.rig.directory.path()));
        let parts = disk::load(&path).unwrap().unwrap();
        let mut ca = CertificateAuthority::load(&parts, CaSettings::default()).unwrap();
        change(&mut ca, server.rig.core.clock.now());
        disk::store(&path, &ca.to_parts()).unwrap();
        server.restart().await;
        assert_eq!(server.states().join(" "), after);
        let bundle = server.authority.bundle().borrow().clone();
        assert!(bundle.sequence() >= before);
        let published: Vec<_> = bundle.roots().cloned().collect();
        let own = server.authority.ca().bundle_roots();
        assert!(own.iter().all(|root| published.contains(root)) && own.len() == published.len());
        let stored = bundle::stored(&*server.rig.core.store, &samples::domain()).await.unwrap().unwrap();
        assert_eq!((stored.sequence(), stored.tainted()), (bundle.sequence(), bundle.tainted()));
        assert_eq!(server.authority.slot().load().unwrap().svid().chain().len(), 2);
    }
}

#[tokio::test]
async fn what_the_server_itself_has_replaced_within_a_second_is_not_in_use() {
    let server = Server::start().await;
    for step in ["prepare", "activate", "rollback", "rollback", "taint"] {
        server.rotate(step).await.unwrap();
    }
    server.hands.advance(Duration::from_secs(90));
    server.rotate("revoke").await.unwrap();
}
